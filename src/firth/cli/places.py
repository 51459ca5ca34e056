"""Where ``firth train`` writes: apart from what it reads, and what becomes of its run folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from firth.errors import Diverged, FormatError, Interrupted, RunError, SettingError, SourceError, StorageError
from firth.files import remove_tree
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
        place = os.path.realpath(path)
        for folder in folders:
            if Path(place).is_relative_to(folder):
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
def run_kept(folder: Path, own: bool, progress: Reporter) -> Iterator[None]:
    """Around training and saving: when they fail, tell how to go on, or leave no run folder behind.

    Args:
        folder: the run folder.
        own: whether it was chosen here and not by ``--run``; it is removed at the end.
        progress: closed before anything is printed.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        progress.close()
        if _has_checkpoint(folder):
            sentence = str(stopped) if isinstance(stopped, Interrupted) else f"stopped; {folder} has the run"
            print(f"firth: {sentence}:\n{resume_line()}", file=sys.stderr)
        else:
            print("firth: stopped before there was anything to save", file=sys.stderr)
            _remove_run(folder, own)
        raise
    except RunError:
        raise  # the folder is another's
    except SourceError:
        _remove_run(folder, own)  # the text has nothing to go on with
        raise
    except (Diverged, FormatError, StorageError) as error:
        if not _has_checkpoint(folder):
            _remove_run(folder, own)
            raise
        if isinstance(error, Diverged):
            kept = f"{folder} keeps the last good checkpoint: remove it before a run with another lr"
        else:
            kept = f"{folder} has the run: the same command with --resume goes on"
        raise type(error)(f"{error}; {kept}") from error
    _remove_run(folder, own)


def resume_line() -> str:
    """The command of this process with --resume."""
    arguments = sys.argv[1:]
    return shlex.join(["firth", *arguments, *([] if "--resume" in arguments else ["--resume"])])


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
            (folder / "settings.json").unlink(missing_ok=True)
            (folder / "lock").unlink()
    except OSError:
        return  # there is none, or another holds it
    with contextlib.suppress(OSError):
        folder.rmdir()
