"""``firth video``: files hidden in the frames of a video, and taken out again."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from firth.cli.options import JSON, QUIET, number
from firth.cli.output import print_json, print_table, printable, width
from firth.errors import SettingError, StorageError
from firth.files import check_writable, replacing
from firth.progress import Reporter, pick

_VIDEO = typer.Argument(metavar="FILE", help="The video to look into.")
_COVER = typer.Argument(metavar="COVER", help="The video to hide in.")
_PROMPT = typer.Option("--password-prompt", help="Ask for a password on the terminal.")
_PASSWORD_FILE = typer.Option(
    "--password-file", metavar="F", help="Read the password from a file; one line end behind it is dropped."
)
_FORCE = typer.Option("--force", help="Replace the file if it exists.")
_RATE = number("--rate", low=0, high=1, metavar="BITS", help="Lossless profile: bits a luma sample at most.")
_MIN_PSNR = number(
    "--min-psnr", low=20, high=100, metavar="DB", help="Hide no more than keeps this luma PSNR, in dB."
)
_MIN_SSIM = number(
    "--min-ssim", low=0, high=1, metavar="S", help="No stronger than keeps this SSIM of luma, 0 to 1."
)
_MAX_FLICKER = number(
    "--max-flicker",
    low=0,
    metavar="L",
    help="No stronger than keeps the flicker of the change below L levels.",
)
_SPREAD = typer.Option(
    "--spread", help="Robust profiles: codewords over 16 frames in place of whole ones in each; more fits."
)


def hide(
    cover: Annotated[Path, _COVER],
    payload: Annotated[
        str, typer.Argument(metavar="PAYLOAD", help="The file to hide, or - for standard input.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", help="The video to write: .mkv, .mp4, .mov, .webm."),
    ],
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="lossless for files that keep every bit; high, web or hard live through a lossy encode.",
        ),
    ] = "lossless",
    password_prompt: Annotated[bool, _PROMPT] = False,
    password_file: Annotated[Path | None, _PASSWORD_FILE] = None,
    rate: Annotated[float, _RATE] = 0.4,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Lossless profile: ffv1, x264, vp9 or x265; else the ending of OUT decides."
        ),
    ] = None,
    min_psnr: Annotated[float | None, _MIN_PSNR] = None,
    min_ssim: Annotated[float | None, _MIN_SSIM] = None,
    max_flicker: Annotated[float | None, _MAX_FLICKER] = None,
    spread: Annotated[bool, _SPREAD] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Take the payload out of OUT and compare, before it gets its name. Robust profiles do by "
            "default; lossless compares every frame always.",
        ),
    ] = None,
    survive: Annotated[
        str | None,
        typer.Option(
            metavar="X:PRESET:CRF",
            help="Also try a second encode, such as x264:medium:28; the payload must come out of it, at "
            "one code rate or another.",
        ),
    ] = None,
    force: Annotated[bool, _FORCE] = False,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Hide a file in a video; only luma changes, and OUT appears when all is checked.

    $ firth video hide film.mp4 notes.pdf -o out.mkv --password-prompt
    $ firth video hide film.mp4 key.txt -o out.mp4 --profile web --survive x264:medium:23
    """
    from firth import video

    password = _password(password_prompt, password_file, twice=True)
    data = sys.stdin.buffer.read() if payload == "-" else payload
    with _reporting(quiet) as progress:
        done = video.hide(
            cover,
            data,
            output,
            profile=profile,
            password=password,
            rate=rate,
            codec=codec,
            min_psnr=min_psnr,
            min_ssim=min_ssim,
            max_flicker=max_flicker,
            spread=spread,
            verify=verify,
            survive=survive,
            force=force,
            progress=progress,
        )
    facts = dataclasses.asdict(done) | {"path": str(done.path)}
    if as_json:
        print_json(_finite(facts))
        return
    _print_facts(
        {
            "file": str(done.path),
            "profile": f"{done.profile}, {done.codec}",
            "payload": f"{done.payload_bytes:,} bytes",
            "packed": f"{done.hidden_bytes:,} bytes; there is room for {done.most_bytes:,}",
            **({"codewords": _codewords(done.code_rate, done.spread)} if done.code_rate else {}),
            "symbols": f"{done.symbols:,} in {done.n_frames:,} frames; any {done.symbols_needed:,} do",
            "luma PSNR": f"{done.psnr:.2f} dB (worst frame {done.psnr_least:.2f})",
            "SSIM": "-" if done.ssim is None else f"{done.ssim:.4f}",
            "flicker": "-"
            if done.flicker is None
            else f"{done.flicker:.2f} levels (the cover moves by {done.cover_flicker:.2f})",
            "size": f"{done.n_bytes:,} bytes, {done.growth:.2f} times the cover",
            "secret": "yes" if done.secret else "no: without a password everybody can take it out",
            **({"survived": done.survived} if done.survived else {}),
        }
    )


def extract(
    file: Annotated[Path, _VIDEO],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Where to write it; - is standard output. Else its own name.",
        ),
    ] = None,
    password_prompt: Annotated[bool, _PROMPT] = False,
    password_file: Annotated[Path | None, _PASSWORD_FILE] = None,
    force: Annotated[bool, _FORCE] = False,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Take out what is hidden: every byte as it was, or nothing.

    $ firth video extract out.mkv --password-prompt
    $ firth video extract out.mkv -o - | less
    """
    from firth import video
    from firth.video.finding import default_name

    if output == "-" and as_json:
        raise SettingError("firth video extract writes either the payload or JSON to standard output")
    if output not in (None, "-"):
        _check_new(Path(str(output)), force)
    password = _password(password_prompt, password_file, twice=False)
    with _reporting(quiet) as progress:
        found = video.extract(file, password=password, progress=progress)
    if output == "-":
        sys.stdout.buffer.write(found.data)
        sys.stdout.buffer.flush()
        return
    # A name that came with the payload is only a name: no folder of it counts.
    target = Path(default_name(found, file) if output is None else output)
    _check_new(target, force)
    with replacing(target) as opened:
        opened.write(found.data)
    facts = dataclasses.asdict(found) | {"path": str(target), "n_bytes": len(found.data)}
    del facts["data"]
    if as_json:
        print_json(_finite(facts))
        return
    _print_facts(
        {
            "file": str(target),
            "payload": f"{len(found.data):,} bytes" + (f", named {found.name}" if found.name else ""),
            "profile": found.profile,
            "frames": f"{found.n_usable:,} usable of {found.n_frames:,} read",
            "secret": "yes" if found.secret else "no",
        }
    )


def capacity(
    cover: Annotated[Path, _COVER],
    rate: Annotated[float, _RATE] = 0.4,
    min_psnr: Annotated[float | None, _MIN_PSNR] = None,
    spread: Annotated[bool, _SPREAD] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """How many bytes a video takes in each profile.

    $ firth video capacity film.mp4
    """
    from firth import video

    rooms = video.capacity(cover, rate=rate, min_psnr=min_psnr, spread=spread)
    if as_json:
        print_json([dataclasses.asdict(room) for room in rooms])
        return
    print_table(
        [
            ["profile", "bytes", "bits a frame"],
            *([room.profile, f"{room.n_bytes:,}", f"{room.bits_per_frame:,.0f}"] for room in rooms),
        ]
    )


def inspect(
    file: Annotated[Path, _VIDEO],
    password_prompt: Annotated[bool, _PROMPT] = False,
    password_file: Annotated[Path | None, _PASSWORD_FILE] = None,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Whether something is hidden, and how safely: the step before hiding or extracting.

    $ firth video inspect out.mkv --password-prompt
    """
    from firth import video

    password = _password(password_prompt, password_file, twice=False)
    with _reporting(quiet) as progress:
        seen = video.inspect(file, password=password, progress=progress)
    if as_json:
        print_json(_finite(dataclasses.asdict(seen) | {"margin": seen.margin}))
        return
    facts = {"hidden": _verdict(seen.found, seen.password_fits, password is not None)}
    if seen.found:
        enough = "" if seen.symbols_found >= seen.symbols_needed else ", too few to take it out"
        facts |= {
            "profile": str(seen.profile),
            "frames": f"{seen.n_usable:,} usable of {seen.n_frames:,}",
            "symbols": f"{seen.symbols_found:,}, {seen.symbols_needed:,} are needed",
            "margin": f"{seen.margin or 0:.2f} times what is needed{enough}",
            "bit errors": "-" if seen.bit_error_rate is None else f"{100 * seen.bit_error_rate:.3g} %",
        }
    else:
        facts["frames"] = f"{seen.n_frames:,} read"
    _print_facts(facts | {"compression": f"{seen.bits_per_pixel:.3f} bits a pixel"})


VERBS: dict[str, Callable[..., None]] = {
    "hide": hide,
    "extract": extract,
    "capacity": capacity,
    "inspect": inspect,
}


@contextlib.contextmanager
def _reporting(quiet: bool) -> Iterator[Reporter]:
    """Progress of the work within; at Ctrl-C the sentence that nothing is left of it."""
    progress = pick(quiet)
    try:
        yield progress
    except KeyboardInterrupt:
        progress.close()
        print("firth: stopped; nothing was written", file=sys.stderr)
        raise
    finally:
        progress.close()


def _codewords(code_rate: float, spread: int) -> str:
    place = "whole in each frame" if spread == 1 else f"each spread over {spread} frames"
    return f"rate {code_rate:g}, {place}"


def _verdict(found: bool, fits: bool | None, given: bool) -> str:
    if not found:
        return "nothing found" + (
            " for this password; a wrong one and nothing hidden look alike"
            if given
            else " without a password; what a password hides would look the same"
        )
    if fits is None:
        return "yes, without a password"
    return "yes, and the password fits" if fits else "yes, without a password; the one given is not needed"


def _password(prompt: bool, file: Path | None, *, twice: bool) -> str | None:
    """The password of the options, or ``None``; never from the command line itself."""
    if prompt and file is not None:
        raise SettingError("firth video takes a password from --password-prompt or --password-file, not both")
    if file is not None:
        return _password_of(file)
    return _asked(twice) if prompt else None


def _password_of(file: Path) -> str:
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise StorageError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"--password-file {file}: byte {error.start} is not UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    if not text:
        raise SettingError(f"--password-file {file} is empty")
    return text


def _asked(twice: bool) -> str:
    import getpass
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            given = getpass.getpass("password: ", stream=sys.stderr)
            again = getpass.getpass("the same again: ", stream=sys.stderr) if twice else given
    except (getpass.GetPassWarning, EOFError, OSError) as error:
        raise SettingError("--password-prompt needs a terminal to ask on; use --password-file") from error
    if given != again:
        raise SettingError("the two passwords differ; nothing was done")
    if not given:
        raise SettingError("the password is empty; leave --password-prompt away to hide without secrecy")
    return given


def _check_new(path: Path, force: bool) -> None:
    if check_writable(path).exists() and not force:
        raise StorageError(f"{path} exists; name another file with -o, or replace it with --force")


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts for JSON, which has no infinity (the PSNR of an unchanged frame)."""
    return {
        name: None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
        for name, value in facts.items()
    }


def _print_facts(facts: dict[str, str]) -> None:
    space = max(width(name) for name in facts) + 2
    for name, value in facts.items():
        print(printable(name.ljust(space) + value))
