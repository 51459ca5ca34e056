"""Hiding a payload in a video: what is checked before, what is done, what is checked after."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firth.errors import SettingError, StorageError
from firth.files import check_writable, replacing
from firth.progress import SILENT, Reporter
from firth.video.codecs import ROBUST, container_for, encoder_for
from firth.video.floors import Floors
from firth.video.frames import VideoInfo, probe
from firth.video.payload import locator_key, pack
from firth.video.profile import STRENGTHS, Profile
from firth.video.profiles import pick, readable
from firth.video.trial import Trial
from firth.video.work import Work
from firth.video.writing import lost

CONTAINER_BYTES = 40  # of a payload with a password and without a name: what the container adds at most


@dataclass(frozen=True)
class Hidden:
    """What :func:`hide` has written.

    Attributes:
        path: the file.
        profile, codec: how.
        code_rate: information bits a coded bit, robust profiles only.
        spread: frames that share codewords; 1 where each frame stands by itself.
        payload_bytes, hidden_bytes: before and after packing.
        most_bytes: what the cover takes at most in this profile.
        n_frames: frames written.
        symbols, symbols_needed: symbols in the file, and those that give the payload back: any of them.
        psnr, psnr_least: of luma in dB before encoding, over the film and in its worst frame.
        ssim: of luma before encoding, of about ten frames, one in fifty of long films; ``None`` where
            frames are too small.
        flicker, cover_flicker: see :class:`firth.video.metrics.Quality`; ``None`` with a single frame.
        n_bytes, growth: size of the file, and over that of the cover.
        secret: a password seals it. Otherwise everybody with firth can take it out.
        survived: the second encode that it was taken out after, or ``None``.
    """

    path: Path
    profile: str
    codec: str
    code_rate: float | None
    spread: int
    payload_bytes: int
    hidden_bytes: int
    most_bytes: int
    n_frames: int
    symbols: int
    symbols_needed: int
    psnr: float
    psnr_least: float
    ssim: float | None
    flicker: float | None
    cover_flicker: float | None
    n_bytes: int
    growth: float
    secret: bool
    survived: str | None


@dataclass(frozen=True)
class Room:
    """What a cover takes in a profile.

    Attributes:
        profile: its name.
        n_bytes: payload that does not compress, with a password, if not a frame is lost.
        bits_per_frame: of that, a frame.
    """

    profile: str
    n_bytes: int
    bits_per_frame: float


def hide(
    cover: str | os.PathLike[str],
    payload: bytes | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    profile: str = "lossless",
    password: str | None = None,
    name: str | None = None,
    rate: float = 0.4,
    codec: str | None = None,
    min_psnr: float | None = None,
    min_ssim: float | None = None,
    max_flicker: float | None = None,
    spread: bool = False,
    verify: bool | None = None,
    survive: str | None = None,
    force: bool = False,
    progress: Reporter = SILENT,
) -> Hidden:
    """Write ``cover`` again with ``payload`` hidden in its frames, and check that it is there.

    Only the luma plane changes. Audio, subtitles, chroma, times and tags stay as they are. The file appears
    under its name when all is done, or not at all.

    Args:
        cover: the video.
        payload: bytes, or the path of a file.
        out: the file to write; its ending names the container.
        profile: ``"lossless"`` for files that keep every bit, or ``"high"``, ``"web"``, ``"hard"``, which
            live through a lossy encode.
        password: seals the payload and says where it stands; without one it is not secret.
        name: a file name to keep with the payload; that of the file by default.
        rate: bits a luma sample at most, lossless profile only.
        codec: an encoder of the lossless profile: ``"ffv1"``, ``"x264"``, ``"vp9"`` or ``"x265"``;
            by default the container decides (.mkv: ffv1).
        min_psnr: hide no more, or no stronger, than keeps this luma PSNR in dB.
        min_ssim: no stronger than keeps this SSIM of luma (0 to 1): robust profiles are tried on the whole
            cover at each of their strengths first.
        max_flicker: no stronger than keeps the flicker of the change below so many luma levels; likewise.
        spread: robust profiles: cut codewords over 16 frames, in place of whole ones in each. More fits, and
            a frame that is lost costs a share of several codewords.
        verify: take the payload out of the written file and compare. Robust profiles do so by default;
            the lossless one compares every frame instead, and does both if asked.
        survive: a second encode to try on the file, such as ``"x264:medium:28"``: the payload must come out
            of that too. Where it does not, the other code rates that hold it are tried.
        force: replace ``out`` if it exists.
        progress: told of every frame.

    Raises:
        SettingError: a wrong call, an empty payload, or one that the cover cannot hold: told before work.
        StorageError: a file that cannot be read or written, or ``out`` exists.
        FormatError: no video, no strength keeps the quality asked for, or the payload did not come back as
            it should; nothing is written then.
        MissingExtra: PyAV or, with a password, cryptography is not installed.
    """
    chosen = pick(profile, rate)
    trial = Trial.parse(survive) if survive is not None else None
    if trial is not None and chosen.lossless:
        raise SettingError(
            f"hide: the lossless profile lives through no second encode, --survive {trial} least of all; "
            "use --profile web or hard"
        )
    target = _target(cover, payload, out, force)
    data, title = _read(payload, name)
    blob = pack(data, title, password)
    info = probe(cover)
    encoder = encoder_for(out, codec, chosen.lossless, info)
    encoder.check(info)
    floors = Floors(min_psnr, min_ssim, max_flicker)
    chosen = _settled(chosen, min_psnr, spread, info)
    room = chosen.most_bytes(info)
    if len(blob) > room:
        raise SettingError(_too_large(len(blob), room, chosen, info))
    work = Work(cover, out, info, encoder, blob, locator_key(password), floors, progress)
    if floors.need_rehearsal:
        chosen = work.strongest(_strengths(pick(profile, rate), min_psnr, spread, info))
    check = verify or (verify is None and not chosen.lossless)
    with replacing(target) as file:
        written = Path(file.name)
        done = work.first_to_come_through(written, chosen, check, trial)
        for what in lost(cover, written):
            warnings.warn(f"{os.fspath(out)} could not keep {what} of {os.fspath(cover)}", stacklevel=2)
        if target.exists() and not force:
            raise StorageError(_exists(out))
        n_bytes = written.stat().st_size
    quality = done.quality
    flicker, cover_flicker = quality.flicker or (None, None)
    return Hidden(
        path=Path(out),
        profile=chosen.name,
        codec=encoder.name,
        code_rate=done.profile.code_rate,
        spread=done.profile.spread,
        payload_bytes=len(data),
        hidden_bytes=len(blob),
        most_bytes=room,
        n_frames=done.n_frames,
        symbols=done.symbols,
        symbols_needed=done.symbols_needed,
        psnr=quality.psnr,
        psnr_least=quality.psnr_least,
        ssim=quality.ssim,
        flicker=flicker,
        cover_flicker=cover_flicker,
        n_bytes=n_bytes,
        growth=n_bytes / info.n_bytes,
        secret=password is not None,
        survived=str(trial) if trial is not None else None,
    )


def capacity(
    cover: str | os.PathLike[str], *, rate: float = 0.4, min_psnr: float | None = None, spread: bool = False
) -> list[Room]:
    """What a cover takes in each profile; no frame is decoded.

    Args:
        cover: the video.
        rate: bits a luma sample, lossless profile only.
        min_psnr: hide no more than keeps this luma PSNR in dB.
        spread: robust profiles with codewords spread over frames.

    Raises:
        FormatError: no video.
        StorageError: the file cannot be read.
        SettingError: ``rate`` outside its range.
        MissingExtra: PyAV is not installed.
    """
    info = probe(cover)
    rooms = []
    for one in readable():
        n_bytes = max(0, _room(pick(one.name, rate), min_psnr, spread, info) - CONTAINER_BYTES)
        rooms.append(Room(one.name, n_bytes, 8 * n_bytes / info.n_frames))
    return rooms


def _settled(profile: Profile, min_psnr: float | None, spread: bool, info: VideoInfo) -> Profile:
    """The profile at the strength that keeps a PSNR, and spread if asked for."""
    if min_psnr is not None:
        profile = profile.holding(min_psnr, info)
    return profile.spread_out(info) if spread else profile


def _strengths(profile: Profile, min_psnr: float | None, spread: bool, info: VideoInfo) -> list[Profile]:
    """The profile at its strengths, the greatest that keeps a PSNR first."""
    found = [_settled(profile, min_psnr, spread, info)]
    for psnr in STRENGTHS:
        try:
            one = _settled(profile, max(psnr, min_psnr or 0), spread, info)
        except SettingError:  # weaker than it can be
            break
        if one not in found:
            found.append(one)
    return found


def _room(profile: Profile, min_psnr: float | None, spread: bool, info: VideoInfo) -> int:
    """Bytes of a blob; 0 also where the profile cannot hold so high a quality, or write such pixels."""
    try:
        if not profile.lossless:
            ROBUST.check(info)
        return _settled(profile, min_psnr, spread and not profile.lossless, info).most_bytes(info)
    except SettingError:
        return 0


def _target(
    cover: str | os.PathLike[str],
    payload: bytes | str | os.PathLike[str],
    out: str | os.PathLike[str],
    force: bool,
) -> Path:
    """Where to write, if that may be."""
    container_for(out)
    for what, given in (("cover", cover), ("payload", payload)):
        if not isinstance(given, bytes) and os.path.realpath(given) == os.path.realpath(out):
            raise SettingError(f"hide: {os.fspath(out)} is the {what} itself; name another file to write")
    target = check_writable(out)
    if target.exists() and not force:
        raise StorageError(_exists(out))
    return target


def _exists(out: str | os.PathLike[str]) -> str:
    return f"{os.fspath(out)} exists; name another file, or replace it with --force (force=True)"


def _read(payload: bytes | str | os.PathLike[str], name: str | None) -> tuple[bytes, str | None]:
    if isinstance(payload, bytes):
        return payload, name
    try:
        return Path(payload).read_bytes(), Path(payload).name if name is None else name
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot read {os.fspath(payload)}: {reason}") from error


def _too_large(need: int, have: int, chosen: Profile, info: VideoInfo) -> str:
    """Need, have, and what would fit."""
    ways = list(_ways(need, have, chosen, info))
    return (
        f"hide: the payload needs {need:,} bytes after packing, and {info.path} ({info.n_frames:,} frames of "
        f"{info.width}x{info.height}) takes {have:,} in profile {chosen.name}; use {' or '.join(ways)}"
    )


def _ways(need: int, have: int, chosen: Profile, info: VideoInfo) -> Iterator[str]:
    for other in readable():
        room = _room(other, None, False, info)
        if other.name != chosen.name and room >= need:
            yield f"--profile {other.name} ({room:,} bytes)"
    spread = 0 if chosen.lossless or chosen.spread > 1 else _room(chosen, None, True, info)
    if spread >= need:
        yield f"--spread ({spread:,} bytes)"
    if chosen.lossless and pick("lossless", 1.0).most_bytes(info) >= need:
        yield f"--rate 1 ({pick('lossless', 1.0).most_bytes(info):,} bytes)"
    if have:
        frames = -(-need * info.n_frames // have)
        seconds = f" ({frames * info.seconds / info.n_frames:.0f} s)" if info.seconds else ""
        yield f"a cover of {frames:,} such frames{seconds}"
    else:
        yield "a cover with larger frames"
