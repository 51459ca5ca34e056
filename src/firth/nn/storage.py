"""A table and its optimiser state in one memory-mapped file: training tables larger than memory.

How a layer uses this::

    spec = TableSpec.of(rows, dim, dtype, recipe)          # recipe=None: lookups only
    file = open_table(path, spec, padding_row=0)           # opened if it is there, else created
    file = read_table(path, spec)                          # no recipe: lookups only, weight frozen
    layer.weight = nn.Parameter(file.weight)               # mapped; nothing is read or copied
    optimizer = attach(layer, recipe, state=file.state, step=file.steps)
    with file.step():                                      # around each update of weight and state
        rows.update(...)
    with file.writing():                                   # around other writes: max_norm, load_state_dict
        rows.renorm(...)
    file.flush()                                           # on the disk, consistent, with file.steps

:mod:`firth.nn.tablespec` tells what is in the file.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import secrets
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firth.errors import RunError, SettingError, StorageError
from firth.files import check_writable, replacing, storage_error, sync_folder
from firth.nn.tablespec import (
    BOOT_AT,
    CHUNK,
    CLEAN,
    FLUSHED,
    JSON_AT,
    MARK,
    Initial,
    TableSpec,
    boot_id,
    check_fits,
    check_whole,
    elements,
    new_header,
    read_header,
    reserve,
    ways_out,
    write_all,
    write_tensors,
)

_PAGE = 4096
_LOCK_WAIT = 0.2  # seconds; a reader holds the lock for an instant


class TableFile:
    """An open table file; made by :func:`open_table`, :func:`create_table` or :func:`read_table`.

    Attributes:
        path: the file.
        spec: what it holds.
        weight: (rows, dim), mapped: reading faults pages in, the system writes changed ones back.
        state: the mapped state tensors by name.
        read_only: changes of the tensors stay in this process's memory and never reach the file.
    """

    def __init__(self, path: Path, spec: TableSpec, descriptor: int, lock: int | None) -> None:
        self.path, self.spec, self.read_only = path, spec, lock is None
        self._owner = os.getpid()
        self._busy = threading.RLock()
        self._inside = False  # of a change under way
        # A descriptor of its own holds the lock: the mapping would keep it alive in forked children.
        self._release = None if lock is None else weakref.finalize(self, os.close, lock)
        if lock is not None:
            _let_children_go(self)
        self._map = _mapped(descriptor, path, spec.size, self.read_only)
        self._header: npt.NDArray[np.uint64] = np.frombuffer(self._map, np.uint64, JSON_AT // 8)
        tensors = {name: _tensor(self._map, dtype, shape, at) for name, dtype, shape, at in spec.parts}
        self.weight = tensors.pop("weight")
        self.state: dict[str, Tensor] = tensors

    @property
    def steps(self) -> int:
        """Steps of training that the tensors have seen."""
        return int(self._header[MARK]) // 2

    @property
    def flushed_steps(self) -> int:
        """Steps at the last :meth:`flush`."""
        return int(self._header[FLUSHED])

    @contextlib.contextmanager
    def step(self) -> Iterator[int]:
        """Around one update of weight and state; gives the number of the step, from 1.

        A ``FloatingPointError`` inside is taken as a refusal before anything was written; after any
        other exception the step counts as cut.

        Raises:
            RunError: the file is read-only, closed, of a parent process, or an earlier step was cut.
        """
        with self._writing(counts=True) as number:
            yield number

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around a change of weight or state that is no step of training; errors as :meth:`step`."""
        with self._writing(counts=False):
            yield

    @contextlib.contextmanager
    def _writing(self, counts: bool) -> Iterator[int]:
        with self._busy:
            mark = int(self._header[MARK])
            if self._inside:  # the outer change ends the mark
                yield mark // 2 + 1
                return
            self._check_writes()
            if self._header[CLEAN]:
                self._header[CLEAN] = 0
                self._put_boot()
                self._sync(_PAGE)
            self._header[MARK], self._inside = mark | 1, True
            try:
                yield mark // 2 + 1
            except FloatingPointError:
                self._header[MARK] = mark
                raise
            else:
                self._header[MARK] = mark + 2 if counts else mark
            finally:
                self._inside = False

    def flush(self) -> int:
        """Bring everything to the disk; the number of steps that is safe there from now on.

        Raises:
            RunError: as :meth:`step`.
            StorageError: the disk refuses.
        """
        with self._busy:
            self._check_writes()
            self._sync(self.spec.size)
            self._put_boot()
            self._header[FLUSHED] = self.steps
            self._header[CLEAN] = 1
            self._sync(_PAGE)
            return self.steps

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Flush, and copy the file to ``path``; what stood there is replaced when the copy is whole.

        Raises:
            RunError: as :meth:`step`.
            StorageError: the copy cannot be written.
        """
        with self._busy, replacing(path) as copy:
            if not self.read_only:
                self.flush()
            with open(self.path, "rb") as source:
                while piece := source.read(CHUNK):
                    copy.write(piece)

    def close(self) -> None:
        """Flush and give the file free for other processes; the tensors must not be changed any more.

        Raises:
            StorageError: the disk refuses.
        """
        with self._busy:
            if self._release is None or not self._release.alive:
                return
            try:
                if not self._cut and os.getpid() == self._owner:
                    self.flush()
            finally:
                self._release()

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TableFile({str(self.path)!r}, {self.spec}, steps={self.steps})"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"the table file {self.path} cannot be pickled or copied with its layer; "
            "save layer.state_dict(), or copy the file with snapshot(path)"
        )

    @property
    def _cut(self) -> bool:
        return bool(int(self._header[MARK]) & 1)

    def _check_writes(self) -> None:
        if self._release is None:
            reason = "was opened read-only; open it for training, with a recipe"
        elif os.getpid() != self._owner:
            reason = "was opened by the process that forked this one; open it here after that one closed it"
        elif not self._release.alive:
            reason = "is closed; open it again"
        elif self._cut:
            reason = f"holds half of step {self.steps + 1}, which an error cut; {ways_out(self.path)}"
        else:
            return
        raise RunError(f"the table file {self.path} {reason}")

    def _put_boot(self) -> None:
        self._header.view(np.uint8)[BOOT_AT : BOOT_AT + 36] = np.frombuffer(boot_id(), np.uint8)

    def _sync(self, size: int) -> None:
        try:
            self._map.flush(0, size)
        except OSError as error:
            raise storage_error(error, self.path, "flush") from error


def open_table(
    path: str | os.PathLike[str],
    spec: TableSpec,
    *,
    initial: Initial = None,
    padding_row: int | None = None,
) -> TableFile:
    """Open the file for training, or create it by :func:`create_table` if there is none.

    Args:
        path, spec: the file and what it must hold; ``kind`` too.
        initial, padding_row: for a new file.

    Raises:
        SettingError: the file holds something else than ``spec``.
        FormatError: it is cut, damaged or no table file.
        RunError: another process has it open for training, or a step was cut.
        StorageError: it cannot be opened or made.
    """
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        return create_table(path, spec, initial=initial, padding_row=padding_row)
    with contextlib.ExitStack() as stack:
        lock = _descriptor(stack, path, os.O_RDONLY)
        _take_lock(lock, path)
        descriptor = _descriptor(stack, path, os.O_RDWR)
        if not os.path.samestat(os.fstat(lock), os.fstat(descriptor)):
            raise RunError(f"the table file {path} was replaced while it was opened; try again")
        there = read_header(descriptor, path)
        check_fits(path, there, spec, training=True)
        check_whole(descriptor, path)
        return TableFile(path, there, descriptor, os.dup(lock))


def read_table(path: str | os.PathLike[str], spec: TableSpec | None = None) -> TableFile:
    """Open the file for lookups only, also beside a process that trains it.

    What is written into the tensors stays in this process's memory (copy on write). Beside a training
    process, rows are read as they change: a row may be seen half updated.

    Args:
        path: the file.
        spec: what it must hold (``None``: anything); ``kind`` and ``states`` are not compared.

    Raises:
        SettingError, FormatError, RunError, StorageError: as :func:`open_table`.
    """
    path = Path(path)
    if not path.exists():
        raise StorageError(
            f"there is no table file {path} to look rows up in; a layer with a recipe (fused=) makes one, "
            "and so does firth.nn.storage.create_table"
        )
    with contextlib.ExitStack() as stack:
        descriptor = _descriptor(stack, path, os.O_RDONLY)
        there = read_header(descriptor, path)
        if spec is not None:
            check_fits(path, there, spec, training=False)
        if not _has_writer(descriptor, path):  # a writer's own mark is odd whenever it steps
            check_whole(descriptor, path)
        return TableFile(path, there, descriptor, None)


def create_table(
    path: str | os.PathLike[str],
    spec: TableSpec,
    *,
    initial: Initial = None,
    padding_row: int | None = None,
) -> TableFile:
    """Make a new file with space for all of it reserved, and open it for training.

    Args:
        path: must not exist.
        spec: what to hold.
        initial: (rows, dim) values, or a function that fills a flat chunk of the weight in place, called
            chunk after chunk; default: N(0, 1), the draws of ``torch.nn.Embedding`` with the same seed.
        padding_row: this row is set to zero, unless ``initial`` gives values.

    Raises:
        SettingError: ``initial`` has another shape.
        StorageError: there is something at ``path``, or the disk has no space for the file. Nothing is
            left behind.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise StorageError(f"cannot make the table file {path}: there is one; open it, or remove it first")
    if isinstance(initial, Tensor) and initial.shape != (spec.rows, spec.dim):
        raise SettingError(
            f"the table file {path} of {spec} cannot begin with values of shape {tuple(initial.shape)}"
        )
    path = check_writable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, descriptor)
            reserve(descriptor, spec.size, path)
            write_tensors(descriptor, spec, initial, padding_row)
            write_all(descriptor, new_header(spec), 0)
            lock = _descriptor(stack, temporary, os.O_RDONLY)
            _take_lock(lock, path)
            _name(temporary, path)
            return TableFile(path, spec, descriptor, os.dup(lock))
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(error, path, "make the table file") from error
    finally:
        temporary.unlink(missing_ok=True)


def accept_table(path: str | os.PathLike[str]) -> int:
    """Take a file whose last step was cut as it is; the number of steps that it then counts.

    Each row that the cut step used may hold its old or its new values, and a few a mixture; weight and
    state of a row may be a step apart. No other row was touched, unless the machine went down.

    Raises:
        FormatError, RunError, StorageError: as :func:`open_table`.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        lock = _descriptor(stack, path, os.O_RDONLY)
        _take_lock(lock, path)
        descriptor = _descriptor(stack, path, os.O_RDWR)
        spec = read_header(descriptor, path)
        with TableFile(path, spec, descriptor, os.dup(lock)) as file:
            file._header[MARK] = steps = 2 * ((int(file._header[MARK]) + 1) // 2)
        return steps // 2


def _descriptor(stack: contextlib.ExitStack, path: Path, access: int) -> int:
    """Open a regular file until the stack ends; a pipe or a device is refused, not waited for."""
    try:
        descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise storage_error(error, path, "open the table file") from error
    stack.callback(os.close, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise StorageError(f"cannot open the table file {path}: it is not a regular file")
    return descriptor


def _mapped(descriptor: int, path: Path, size: int, private: bool) -> mmap.mmap:
    # Without MAP_NORESERVE the system may refuse a private mapping larger than its memory.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    try:
        mapped = mmap.mmap(descriptor, size, flags if private else mmap.MAP_SHARED)
    except OSError as error:
        raise storage_error(error, path, "map the table file") from error
    if hasattr(mmap, "MADV_RANDOM") and size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        mapped.madvise(mmap.MADV_RANDOM)  # reading ahead would push out rows that are in use
    return mapped


def _tensor(mapped: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], at: int) -> Tensor:
    count = elements(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=at).view(shape)


def _take_lock(lock: int, path: Path) -> None:
    import fcntl

    end = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise RunError(
                    f"the table file {path} is open for training in another process or layer; close that "
                    "one first, or open the file for lookups only (no fused=)"
                ) from error
            time.sleep(0.01)
        except OSError as error:  # a file system without locks
            raise storage_error(error, path, "lock the table file") from error


def _has_writer(descriptor: int, path: Path) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError as error:
        raise storage_error(error, path, "lock the table file") from error
    return False


_OPEN: weakref.WeakSet[TableFile] = weakref.WeakSet()


def _let_children_go(file: TableFile) -> None:
    """Forked children close their copy of the lock at once, so that it dies with its process."""
    _OPEN.add(file)
    _watch_forks()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for file in list(_OPEN):
        if file._release is not None:
            file._release()


def _name(temporary: Path, path: Path) -> None:
    """Give the finished file its name; a file that came there meanwhile is not replaced."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise StorageError(f"cannot make the table file {path}: another process just made one") from None
    except OSError:  # a file system without links
        os.rename(temporary, path)
    sync_folder(path.parent)
