"""What every format reads and writes: a ``Table``; and how the reading may be bent: ``Options``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError, SettingError, StorageError
from firth.files import storage_error
from firth.keys import Keys
from firth.textfiles import TextFile

HEAD = 1 << 20  # bytes looked at to recognise a format
ERRORS = ("strict", "replace", "ignore", "surrogateescape")


@dataclass(frozen=True)
class Table:
    """The content of a file of vectors.

    Shapes: matrix (V, D) float32 · counts (V,) int64 · context (V, D) float32. ``storage`` is what a
    number takes in the native file: ``"float32"``, ``"float16"`` or ``"int8"``.
    """

    keys: Keys
    matrix: NDArray[np.float32]
    counts: NDArray[np.int64] | None = None
    context: NDArray[np.float32] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    storage: str = "float32"


@dataclass(frozen=True)
class Options:
    """How to read; each format uses what applies to it.

    Attributes:
        header: text only: whether the first line is ``rows dim``; ``None`` looks at the content.
        limit: read no more than the first ``limit`` rows.
        errors: bytes that are no UTF-8: ``"strict"`` (refused), ``"replace"``, ``"ignore"`` or
            ``"surrogateescape"`` (kept, and written back as they were).
    """

    header: bool | None = None
    limit: int | None = None
    errors: str = "strict"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SettingError(f"load(): limit is {self.limit}; it is a number of rows, 1 or more")
        if self.errors not in ERRORS:
            raise SettingError(f"load(): errors is {self.errors!r}; one of {', '.join(ERRORS)} is expected")


@dataclass(frozen=True)
class Head:
    """The beginning of a file, decompressed; all that recognition looks at.

    ``size`` is the size of the file where it is not compressed, else ``None``.
    """

    path: Path
    data: bytes
    size: int | None
    compression: str | None

    @property
    def whole(self) -> bool:
        """Whether ``data`` is the whole content."""
        return len(self.data) < HEAD


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Attributes:
        name: as the command line and ``Vectors.save(format=)`` spell it.
        suffixes: endings of file names that choose it for writing.
        recognise: whether the beginning of a file is of this format.
        read: path and options to ``Table``.
        write: path and ``Table`` to a file, whole or not at all.
        check: refuses, by ``FormatError``, keys that ``write`` would refuse to write to a path.
        complete: whether it holds counts, context and metadata too.
    """

    name: str
    suffixes: tuple[str, ...]
    recognise: Callable[[Head], bool]
    read: Callable[[Path, Options], Table]
    write: Callable[[Path, Table], None]
    check: Callable[[Path, Iterable[str]], None]
    complete: bool = False


def read_head(path: Path) -> Head:
    """The first megabyte of a file.

    Raises:
        StorageError: there is no such file, or it is a folder or not readable.
        FormatError: it is empty.
    """
    if path.is_dir():
        raise StorageError(f"cannot read {path}: it is a folder, a file of vectors is needed")
    with TextFile(path) as file:
        head = Head(path, file.read(HEAD), None if file.compression else file_size(path), file.compression)
    if not head.data:
        raise FormatError(f"{path} is empty: there are no vectors in it")
    return head


def file_size(path: Path) -> int:
    """Bytes on disk, or ``StorageError``."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise storage_error(error, path, "read") from error


class Rows:
    """Rows that come in blocks; grows with what has been read, never with what a header says.

    Args:
        path: for messages.
        dim: numbers in a row.
        expected: a bound on the number of rows that the size of the file allows (not a claim).
        errors: how to decode keys, see ``Options``.
    """

    def __init__(self, path: Path, dim: int, expected: int, errors: str) -> None:
        self._path, self._dim, self._errors = path, dim, errors
        # Pages that are never written cost no memory, so a generous bound is cheap.
        self._matrix = np.empty((expected, dim), np.float32)
        self._keys: list[str] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Sequence[bytes], values: NDArray[np.float32], place: Callable[[int], str]) -> None:
        """Append a block.

        Args:
            keys: (N,) as they stand in the file.
            values: (N, D) float32.
            place: where row ``i`` of the block stands, for messages: ``"line 7"``, ``"byte 140"``.
        """
        start, stop = len(self._keys), len(self._keys) + len(keys)
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise FormatError(
                f"{self._path}, {place(row)}: the vector holds NaN, infinity or a number beyond float32"
            )
        if stop > len(self._matrix):
            larger = np.empty((max(stop, len(self._matrix) * 3 // 2), self._dim), np.float32)
            larger[:start] = self._matrix[:start]
            self._matrix = larger
        self._matrix[start:stop] = values
        for row, key in enumerate(keys):
            try:
                text = key.decode("utf-8", self._errors)
            except UnicodeDecodeError as error:
                raise FormatError(
                    f'{self._path}, {place(row)}: the key {key!r} is no UTF-8; errors="replace" reads it'
                ) from error
            if not text:
                raise FormatError(f"{self._path}, {place(row)}: the key is empty")
            self._keys.append(text)

    def table(self) -> Table:
        """What was added, without the repeats of a key; they are counted in a warning."""
        if not self._keys:
            raise FormatError(f"{self._path} holds no vectors")
        first: dict[str, int] = {}
        for row, key in enumerate(self._keys):
            first.setdefault(key, row)
        matrix = self._matrix[: len(self._keys)]
        if len(first) < len(self._keys):
            repeats = len(self._keys) - len(first)
            name = next(key for row, key in enumerate(self._keys) if first[key] != row)
            warn(
                f"{self._path}: {repeats:,} rows repeat a key (first {name!r}); of each key the first is kept"
            )
            # Move the kept rows up in place: one copy of the matrix is enough.
            for target, (key, row) in enumerate(first.items()):
                matrix[target] = matrix[row]
                first[key] = target
            matrix = matrix[: len(first)]
        return Table(Keys.from_rows(first), matrix)


def warn(sentence: str) -> None:
    """A warning about a file; the sentence names it, so where in firth it arose does not matter."""
    warnings.warn(sentence, UserWarning, stacklevel=2)
