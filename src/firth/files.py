"""Writing files so that a crash, a full disk or Ctrl-C leaves the old file whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from firth.errors import StorageError


def check_writable(path: str | os.PathLike[str]) -> Path:
    """The file that writing to ``path`` would replace, if it can be; for a check before long work.

    Returns:
        ``path``, or what it points at if it is a symbolic link.

    Raises:
        StorageError: the folder is missing or read-only, or there is something at ``path`` that is not to
            be replaced: a folder, a device, a pipe, a read-only file.
    """
    target = Path(path)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    folder = target.parent
    if not folder.is_dir():
        raise StorageError(f"cannot write {target}: the folder {folder} does not exist; create it first")
    if target.is_dir():
        raise StorageError(f"cannot write {target}: it is a folder, a file name is needed")
    if not os.access(folder, os.W_OK):
        raise StorageError(f"cannot write {target}: the folder {folder} is not writable")
    if target.exists() and not target.is_file():
        raise StorageError(f"cannot write {target}: it is a device or a pipe, a file name is needed")
    if target.exists() and not os.access(target, os.W_OK):
        raise StorageError(f"cannot write {target}: the file is read-only")
    return target


def storage_error(error: OSError, path: str | os.PathLike[str], action: str = "write") -> StorageError:
    """``error`` as one sentence about ``path``: what failed, why, and what it leaves behind."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(Path(path).parent).free
            reason += f" ({free:,} bytes free)"
    untouched = "; nothing was overwritten" if action == "write" else ""
    return StorageError(f"cannot {action} {os.fspath(path)}: {reason}{untouched}")


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make a rename inside ``folder`` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` for writing bytes; sync and rename it at the end.

    If the body raises (also ``KeyboardInterrupt``), the temporary file is removed and
    whatever stood at ``path`` stays as it was.

    Raises:
        StorageError: the file cannot be created, written or renamed.
    """
    target = check_writable(path)
    # The name is known before the file is there, so that Ctrl-C at no moment leaves one behind.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        # The sentence tells the free space: ask before the temporary file gives its own back.
        failed = error if isinstance(error, StorageError) else storage_error(error, target)
        _remove(temporary)
        if failed is error:
            raise
        raise failed from error
    except BaseException:
        _remove(temporary)
        raise
    sync_folder(target.parent)


def check_folder_writable(path: str | os.PathLike[str], own: Callable[[Path], bool]) -> Path:
    """The folder that ``replacing_folder`` would make or replace at ``path``, if it can.

    Args:
        path: where the folder is to be.
        own: whether a folder that is there already was made by us and may go.

    Raises:
        StorageError: the folder around it is missing or read-only, or what is at ``path`` is a file or
            somebody else's folder.
    """
    target = Path(path)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    around = target.parent
    if not around.is_dir():
        raise StorageError(f"cannot write {target}: the folder {around} does not exist; create it first")
    if not os.access(around, os.W_OK):
        raise StorageError(f"cannot write {target}: the folder {around} is not writable")
    if target.exists() and not target.is_dir():
        raise StorageError(f"cannot write {target}: a folder is to be made, and a file has that name")
    if target.is_dir() and any(target.iterdir()) and not own(target):
        raise StorageError(
            f"cannot write {target}: it holds files that firth did not put there; name a new folder"
        )
    return target


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str], own: Callable[[Path], bool]) -> Iterator[Path]:
    """Make a temporary folder beside ``path`` for the body to fill; sync and rename it at the end.

    If the body raises, the temporary folder is removed and what stood at ``path`` stays. An empty
    folder, or one that ``own`` knows, is replaced.

    Raises:
        StorageError: see ``check_folder_writable``; or a file cannot be written.
    """
    target = check_folder_writable(path, own)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _sync(file)
        _sync(temporary)
        check_folder_writable(target, own)  # another run may have come first
        _put_folder(temporary, target)
    except OSError as error:
        failed = error if isinstance(error, StorageError) else storage_error(error, target)
        remove_tree(temporary)
        if failed is error:
            raise
        raise failed from error
    except BaseException:
        remove_tree(temporary)
        raise
    sync_folder(target.parent)


def _put_folder(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``; a folder that is there is moved aside, and back at a failure."""
    if not target.exists():
        os.rename(temporary, target)
        return
    aside = temporary.with_suffix(".old")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(aside, target)
        raise
    remove_tree(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing_together(first: Path, second: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Two temporary files for files that belong together, put in place when both are whole and synced.

    The old ``second`` is removed before anything is renamed: a crash in between leaves one without the
    other, which can be told, and never the new of one beside the old of the other.

    Raises:
        StorageError: as ``replacing``.
    """
    targets = check_writable(first), check_writable(second)
    mark = secrets.token_hex(8)
    temporaries = [target.with_name(f".{target.name}.{mark}.tmp") for target in targets]
    try:
        with open(temporaries[0], "xb") as one, open(temporaries[1], "xb") as other:
            yield one, other
            for file in (one, other):
                file.flush()
                os.fsync(file.fileno())
        targets[1].unlink(missing_ok=True)
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
    except OSError as error:
        failed = error if isinstance(error, StorageError) else storage_error(error, targets[0])
        for temporary in temporaries:
            _remove(temporary)
        if failed is error:
            raise
        raise failed from error
    except BaseException:
        for temporary in temporaries:
            _remove(temporary)
        raise
    sync_folder(targets[0].parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a folder of our own making; what is gone already is no error."""
    shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
