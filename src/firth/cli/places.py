"""Where ``firth train`` writes: apart from what it reads, and what becomes of its run folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from firth.errors import (
    Diverged,
    FormatError,
    Interrupted,
    RunError,
    SettingError,
    SourceError,
    StorageError,
)
from firth.files import remove_tree
from firth.processes import PeerFailed, place
from firth.progress import Reporter


def check_apart(texts: Sequence[str], files: Sequence[Path], written: Sequence[tuple[str, Path]]) -> None:
    """Refuse to write where text is read: it would be overwritten, or the next run would read the result.

    Args:
        texts: what was named on the command line; of these, all below a folder is read.
        files: every file that is read.
        written: option and path of each file and folder that is written.

    Raises:
        SettingError: names both.
    """
    folders = [os.path.realpath(name) for name in texts if os.path.isdir(name)]
    for option, path in written:
        place = Path(os.path.realpath(path))
        for folder in folders:
            if place.is_relative_to(folder) and not _hidden(place.relative_to(folder)):
                raise SettingError(
                    f"{option} {path} lies in the folder {folder}, all of which is read as text; "
                    "name a place outside of it"
                )
        for file in files:
            if Path(os.path.realpath(file)).is_relative_to(place):
                raise SettingError(
                    f"{option} {path} would be written where {file} is read; name another place"
                )


@contextlib.contextmanager
def ctrl_c_told(folder: Path, progress: Reporter, leads: bool = True) -> Iterator[None]:
    """At Ctrl-C: close ``progress`` and print how to go on from the run folder, if there is something.

    Args:
        leads: whether this process tells; of several, one does.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        progress.close()
        if not leads:
            raise
        if _has_checkpoint(folder):
            sentence = str(stopped) if isinstance(stopped, Interrupted) else f"stopped; {folder} has the run"
            print(f"firth: {sentence}:\n{resume_line()}", file=sys.stderr)
        else:
            print("firth: stopped before there was anything to save", file=sys.stderr)
        raise


@contextlib.contextmanager
def run_kept(folder: Path, own: bool) -> Iterator[None]:
    """Around training and saving: a run folder stays as long as somebody can go on from it.

    Args:
        folder: the run folder.
        own: whether it was chosen here and not by ``--run``. Then it is removed after success, and
            after a failure that leaves nothing to go on from.
    """
    before = _has_checkpoint(folder)
    try:
        yield
    except PeerFailed as error:
        if not _has_checkpoint(folder):
            raise
        sentence = f"{error}; {folder} has the run: the same command with --resume goes on"
        raise PeerFailed(sentence, error.speaks) from error
    except RunError:
        raise  # the folder is another's
    except BaseException as error:
        kept = before or (_has_checkpoint(folder) and not isinstance(error, SourceError))
        if not kept:
            _remove_run(folder, own)
        elif isinstance(error, Diverged):
            sentence = f"{folder} keeps the last good checkpoint: remove it before a run with another lr"
            raise Diverged(f"{error}; {sentence}") from error
        elif isinstance(error, (FormatError, StorageError)):
            sentence = f"{folder} has the run: the same command with --resume goes on"
            raise type(error)(f"{error}; {sentence}") from error
        raise
    _remove_run(folder, own)


def _hidden(path: Path) -> bool:
    """Whether it is passed over where a folder is read."""
    return any(part.startswith(".") for part in path.parts)


def resume_line() -> str:
    """The command of this process with --resume."""
    arguments = sys.argv[1:]
    start = ["firth"] if place() is None else ["torchrun", "...", "-m", "firth"]
    return shlex.join([*start, *arguments, *([] if "--resume" in arguments else ["--resume"])])


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*"))


def _remove_run(folder: Path, own: bool) -> None:
    """Remove what a run has put into its folder, unless another process trains there; the rest stays."""
    import fcntl

    if not own:
        return
    try:
        with (folder / "lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in (*folder.glob("checkpoint-*"), *folder.glob(".tmp-*")):
                remove_tree(part)
            for name in ("settings.json", "run.vocab", "torchrun"):
                (folder / name).unlink(missing_ok=True)
            (folder / "lock").unlink()
    except OSError:
        return  # there is none, or another holds it
    with contextlib.suppress(OSError):
        folder.rmdir()
