"""What every format reads and writes: a ``Table``; and how the reading may be bent: ``Options``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError, SettingError
from firth.files import storage_error
from firth.keys import Keys
from firth.subwords import Subwords
from firth.textfiles import TextFile

HEAD = 1 << 20  # bytes looked at to recognise a format
ERRORS = ("strict", "replace", "ignore", "surrogateescape")
DTYPES = ("float32", "float16")
PIECE = 1 << 20  # numbers worked on at once
SOME = 1 << 14  # keys worked on at once


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
    subwords: Subwords | None = None


@dataclass(frozen=True)
class Options:
    """How to read; each format uses what applies to it.

    Attributes:
        header: text only: whether the first line is ``rows dim``; ``None`` looks at the content.
        limit: read no more than the first ``limit`` rows.
        errors: bytes that are no UTF-8: ``"strict"`` (refused), ``"replace"``, ``"ignore"`` or
            ``"surrogateescape"`` (kept, and written back as they were).
        dtype: ``"float32"``, or ``"float16"`` to round each number to the nearest float16. In memory it
            is float32 either way; the native file then takes two bytes a number.
    """

    header: bool | None = None
    limit: int | None = None
    errors: str = "strict"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SettingError(f"load(): limit is {self.limit}; it is a number of rows, 1 or more")
        if self.errors not in ERRORS:
            raise SettingError(f"load(): errors is {self.errors!r}; one of {', '.join(ERRORS)} is expected")
        if self.dtype not in DTYPES:
            raise SettingError(
                f"load(): dtype is {self.dtype!r}; float32 is what vectors are kept in, float16 rounds them"
            )


@dataclass(frozen=True)
class Head:
    """The beginning of a file, decompressed; all that recognition looks at.

    ``size`` is the size of the file where it is not compressed, else ``None``. Of a folder there are
    ``names``, those of the files in it, and no data; of a file ``names`` is ``None``.
    """

    path: Path
    data: bytes
    size: int | None
    compression: str | None
    names: frozenset[str] | None = None

    @property
    def whole(self) -> bool:
        """Whether ``data`` is the whole content."""
        return len(self.data) < HEAD


@dataclass(frozen=True)
class Facts:
    """What a file says of itself without its numbers being read.

    Attributes:
        rows: how many vectors; ``None`` where that cannot be told from the beginning of the file.
        dim: numbers in a row.
        dtype: of the numbers in the file, in numpy's or plain words: ``"float32"``, ``"text"``.
        first: the first keys.
        inside: what else is in it, of ``PARTS`` and in a format's own words (``"labels"``).
        metadata: as in ``Table``.
        exact: whether ``rows`` was counted or claimed by the file; otherwise it is an estimate.
    """

    rows: int | None
    dim: int
    dtype: str
    first: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    exact: bool = True


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Attributes:
        name: as the command line and ``Vectors.save(format=)`` spell it.
        suffixes: endings of file names that choose it for writing.
        recognise: whether the beginning of a file is of this format.
        read: path and options to ``Table``.
        write: path and ``Table`` to a file or folder, whole or not at all.
        check: refuses, by ``FormatError``, keys that ``write`` would refuse to write to a path.
        complete: whether it keeps all that a ``Table`` holds.
        holds: where it does not: what it keeps beside keys and numbers, of ``PARTS``; the rest is lost.
        inspect: what a file says of itself; without it the file is read for that.
        packed: whether it is text, so that ``write`` compresses by the ending of the path.
        folder: for a format that is a folder: whether one was made by ``write`` and may be replaced.
        keyless: whether it can hold subwords without any keys.
    """

    name: str
    suffixes: tuple[str, ...]
    recognise: Callable[[Head], bool]
    read: Callable[[Path, Options], Table]
    write: Callable[[Path, Table], None]
    check: Callable[[Path, Iterable[str]], None]
    complete: bool = False
    holds: tuple[str, ...] = ()
    inspect: Callable[[Path, Options], Facts] | None = None
    packed: bool = False
    folder: Callable[[Path], bool] | None = None
    keyless: bool = False


PARTS = ("counts", "context", "subwords", "metadata")
"""What a ``Table`` may hold beside keys and numbers, by the names of its fields."""


def parts_of(table: Table) -> tuple[str, ...]:
    """Which of ``PARTS`` a table holds."""
    there = (name for name in PARTS if getattr(table, name, None) is not None)
    return tuple(name for name in there if name != "metadata" or table.metadata)


def read_head(path: Path) -> Head:
    """The first megabyte of a file.

    Raises:
        StorageError: there is no such file, or it is not readable.
        FormatError: it is empty.
    """
    if path.is_dir():
        return Head(path, b"", None, None, frozenset(names_in(path)))
    with TextFile(path) as file:
        head = Head(path, file.read(HEAD), None if file.compression else file_size(path), file.compression)
    if not head.data:
        raise FormatError(f"{path} is empty: there are no vectors in it")
    return head


def names_in(path: Path) -> list[str]:
    """What is in a folder, or ``StorageError``."""
    try:
        return os.listdir(path)
    except OSError as error:
        raise storage_error(error, path, "read") from error


def file_size(path: Path) -> int:
    """Bytes on disk, or ``StorageError``."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise storage_error(error, path, "read") from error


class Rows:
    """Rows that come in blocks; grows with what has been read, never with what a header says.

    Keys are kept as bytes end to end: as ``str`` they would take half as much as the numbers of a small
    table.

    Args:
        path: for messages.
        dim: numbers in a row.
        expected: a bound on the number of rows that the size of the file allows (not a claim).
        errors: how to decode keys, see ``Options``.

    Attributes:
        kept: after ``table()``: the rows that are left where keys were repeated; else ``None``.
    """

    def __init__(self, path: Path, dim: int, expected: int, errors: str) -> None:
        self._path, self.dim, self._errors = path, dim, errors
        # Pages that are never written cost no memory, so a generous bound is cheap.
        self._matrix = np.empty((expected, dim), np.float32)
        self._keys = bytearray()  # end to end
        self._sizes = bytearray()  # their lengths, as int32
        self._length = 0
        self.kept: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self._length

    def add(self, keys: Sequence[bytes], values: NDArray[np.float32], place: Callable[[int], str]) -> None:
        """Append a block.

        Args:
            keys: (N,) as they stand in the file.
            values: (N, D) float32.
            place: where row ``i`` of the block stands, for messages: ``"line 7"``, ``"byte 140"``.
        """
        sizes = np.fromiter(map(len, keys), np.int64, len(keys))
        self.add_joined(b"".join(keys), sizes, values, place)

    def add_joined(
        self,
        keys: bytes,
        sizes: NDArray[np.int64],
        values: NDArray[np.float32],
        place: Callable[[int], str],
    ) -> None:
        """Append a block whose keys lie end to end; ``sizes`` (N,) are their lengths in bytes."""
        if not len(sizes):
            return
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise FormatError(
                f"{self._path}, {place(row)}: the vector holds NaN, infinity or a number beyond float32"
            )
        if not sizes.all():
            row = int(np.argmin(sizes))
            raise FormatError(f"{self._path}, {place(row)}: the key is empty")
        if not _is_utf8(keys, sizes):
            keys, sizes = self._decoded(keys, sizes, place)
        start, stop = self._length, self._length + len(sizes)
        if stop > len(self._matrix):
            # Memory that is resized is moved by the system and not copied; there is one table at any time.
            self._matrix.resize((max(stop, len(self._matrix) * 9 // 8), self.dim), refcheck=False)
        self._matrix[start:stop] = values
        self._keys += keys
        self._sizes += sizes.astype(np.int32).tobytes()
        self._length = stop

    def _decoded(
        self, keys: bytes, sizes: NDArray[np.int64], place: Callable[[int], str]
    ) -> tuple[bytes, NDArray[np.int64]]:
        """Keys that are not all UTF-8 as ``errors`` wants them, with lone surrogates in three bytes."""
        texts: list[bytes] = []
        ends = np.cumsum(sizes).tolist()
        for row, (end, size) in enumerate(zip(ends, sizes.tolist(), strict=True)):
            key = keys[end - size : end]
            try:
                texts.append(key.decode("utf-8", self._errors).encode("utf-8", "surrogatepass"))
            except UnicodeDecodeError as error:
                raise FormatError(
                    f'{self._path}, {place(row)}: the key {key!r} is no UTF-8; errors="replace" reads it'
                ) from error
            if not texts[-1]:
                raise FormatError(f"{self._path}, {place(row)}: the key is empty")
        return b"".join(texts), np.fromiter(map(len, texts), np.int64, len(texts))

    def keys(self) -> Keys:
        """The keys alone, for a format whose numbers are elsewhere.

        Raises:
            FormatError: there are none, or one occurs twice.
        """
        data, offsets = self._joined()
        repeats = _repeats(data, offsets)
        if repeats.size:
            row = int(repeats[0])
            raise FormatError(
                f"{self._path}: the key {_key(data, offsets, row)!r} of row {row:,} occurs twice; "
                "one key a row is expected"
            )
        return Keys.from_bytes(np.frombuffer(data, np.uint8), offsets, str(self._path), checked=True)

    def table(self, counts: NDArray[np.int64] | None = None, metadata: dict[str, Any] | None = None) -> Table:
        """What was added, without the repeats of a key; they are counted in a warning.

        Args:
            counts: of all rows added.
            metadata: of the table.
        """
        data, offsets = self._joined()
        matrix = self._matrix
        matrix.resize((self._length, self.dim), refcheck=False)
        repeats = _repeats(data, offsets)
        if repeats.size:
            warn(
                f"{self._path}: {len(repeats):,} rows repeat a key "
                f"(first {_key(data, offsets, int(repeats[0]))!r}); of each key the first is kept"
            )
            self.kept = rows = np.delete(np.arange(self._length), repeats)
            data = b"".join(
                data[begin:end]
                for begin, end in zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
            )
            offsets = np.concatenate(([0], np.cumsum(np.diff(offsets)[rows])))
            # Move the kept rows up in place: one table is enough.
            step = max(1, PIECE // self.dim)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                matrix[start : start + len(part)] = matrix[part]
            matrix.resize((len(rows), self.dim), refcheck=False)
            counts = None if counts is None else counts[rows]
        keys = Keys.from_bytes(np.frombuffer(data, np.uint8), offsets, str(self._path), checked=True)
        return Table(keys, matrix, counts, metadata=metadata or {})

    def _joined(self) -> tuple[bytes, NDArray[np.int64]]:
        """All keys end to end, and where each begins and the last ends; nothing can be added after."""
        if not self._length:
            raise FormatError(f"{self._path} holds no vectors")
        data, self._keys = bytes(self._keys), bytearray()
        offsets = np.zeros(self._length + 1, np.int64)
        np.cumsum(np.frombuffer(self._sizes, np.int32), out=offsets[1:])
        self._sizes = bytearray()
        return data, offsets


def _key(data: bytes, offsets: NDArray[np.int64], row: int) -> str:
    return data[offsets[row] : offsets[row + 1]].decode("utf-8", "surrogatepass")


def floats(path: Path, source: NDArray[Any], first: int) -> NDArray[np.float32]:
    """The ``first`` rows of a (V, D) array of any number type as float32, in pieces.

    Raises:
        FormatError: NaN, infinity or a number beyond float32; the row is named.
    """
    result = np.empty((first, source.shape[1]), np.float32)
    step = max(1, PIECE // source.shape[1])
    for start in range(0, first, step):
        part = result[start : start + step]
        with np.errstate(over="ignore"):
            part[...] = source[start : min(first, start + step)]
        if not np.isfinite(part).all():
            row = start + int(np.argmin(np.isfinite(part).all(axis=1)))
            raise FormatError(
                f"{path}, row {row:,}: the vector holds NaN, infinity or a number beyond float32"
            )
    return result


def _is_utf8(keys: bytes, sizes: NDArray[np.int64]) -> bool:
    """Whether each key by itself is UTF-8; none is empty."""
    if keys.isascii():
        return True
    try:
        keys.decode()
    except UnicodeDecodeError:
        return False
    begins = np.frombuffer(keys, np.uint8)[np.cumsum(sizes) - sizes]
    return not ((begins & 0xC0) == 0x80).any()  # no character is cut by the end of a key


def _repeats(data: bytes, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows whose key an earlier row has, rising."""
    hashes = _hashes(data, offsets)
    hashes.sort()  # in place: most often this is all there is to do
    if not (hashes[1:] == hashes[:-1]).any():
        return np.zeros(0, np.int64)
    hashes = _hashes(data, offsets)
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(np.diff(hashes[order]) == 0)
    rows = np.unique(np.concatenate((order[equal], order[equal + 1])))
    seen: set[bytes] = set()
    found: list[int] = []
    for row in rows.tolist():
        key = data[offsets[row] : offsets[row + 1]]
        if key in seen:
            found.append(row)
        seen.add(key)
    return np.array(found, np.int64)


def _hashes(data: bytes, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    hashes = np.empty(len(offsets) - 1, np.int64)
    for start in range(0, len(hashes), SOME):
        ends = offsets[start : start + SOME + 1].tolist()
        hashes[start : start + SOME] = [hash(data[a:b]) for a, b in pairwise(ends)]
    return hashes


def warn(sentence: str) -> None:
    """A warning about a file; the sentence names it, so where in firth it arose does not matter."""
    warnings.warn(sentence, UserWarning, stacklevel=2)
