"""The native form: one safetensors file that opens memory-mapped (several: ``safetensors_shards``).

::

    8 bytes   length n of the header, little-endian
    n bytes   JSON: {"__metadata__": {...}, name: {"dtype", "shape", "data_offsets"}, ...}, padded with
              spaces so that the data begin at a multiple of 64
    data      vectors      F32 (V, D); or F16; or I8 with
              vectors_scale F32 (V,): a row is its bytes times its scale
              context      like vectors, the second table, where there is one
              ngrams       F32 (R, D): the rows that n-grams share, where there are subwords
              ngram_buckets I64 (R,): the bucket of each of these, where not all are kept
              key_offsets  I64 (V + 1,)
              counts       I64 (V,), where there are some
              keys         U8 (B,): UTF-8, end to end; key i is keys[key_offsets[i]:key_offsets[i + 1]]

``__metadata__`` is ``{"format": "firth", "version": "1", "metadata": JSON}``, with ``"subwords": JSON``
where n-grams are kept: how words find their rows. Every safetensors reader opens the file. The container
is read here with numpy alone, so that opening vectors needs no other library. Source:
https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firth import quantize
from firth.errors import FormatError, SettingError
from firth.files import replacing, storage_error
from firth.formats.table import Format, Head, Options, Table
from firth.keys import Keys
from firth.subwords import DenseRows, FastTextSubwords, Subwords, blocks, from_settings

ALIGNMENT = 64
LONGEST_HEADER = 100_000_000  # the bound of the reference reader
VERSION = "1"

_WIDTHS = {1: "BOOL U8 I8 F8_E4M3 F8_E5M2", 2: "I16 U16 F16 BF16", 4: "I32 U32 F32", 8: "I64 U64 F64"}
_DTYPES = {name: width for width, names in _WIDTHS.items() for name in names.split()}
_NUMPY: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
_STORAGES = {"F32": "float32", "F16": "float16", "I8": "int8"}


class Entry(NamedTuple):
    """A tensor as the header describes it; ``begin`` and ``end`` count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def recognise(head: Head) -> bool:
    """Eight bytes that are no text, then JSON, or the index of several files.

    Whether the length is true is for ``read`` to say.
    """
    if head.data[:1] == b"{":
        from firth.formats import safetensors_shards

        return safetensors_shards.is_index(head.data)
    return head.data[8:9] == b"{" and (b"\0" in head.data[:8] or b'"dtype"' in head.data[8:4096])


def read(path: Path, options: Options) -> Table:
    """Map a file that ``write`` made; nothing but keys' offsets and counts is copied.

    Numbers stored in one or two bytes become float32 in memory; the file stays mapped meanwhile.

    Raises:
        FormatError: cut, damaged, or not made by firth.
        StorageError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if file.read(1) == b"{":
                from firth.formats import safetensors_shards

                return safetensors_shards.read(path, options)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise storage_error(error, path, "read") from error
        raise FormatError(f"{path} is empty: there are no vectors in it") from error
    entries, notes, begin = read_header(path, data)
    if notes.get("format") != "firth" or "vectors" not in entries or "keys" not in entries:
        raise FormatError(
            f"{path} is a safetensors file, but not one of vectors that firth wrote; "
            f"it holds {', '.join(sorted(entries)[:5]) or 'nothing'}"
        )
    if notes.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {notes.get('version')} of the format, this firth reads {VERSION}"
        )

    arrays = _Arrays(path, data, entries, begin)
    rows, dim = arrays.shape("vectors")
    if dim == 0 or (rows == 0 and "subwords" not in notes):
        raise FormatError(f"{path}: the table has the shape {rows} x {dim}; at least 1 x 1 is expected")
    offsets = arrays.get("key_offsets", "I64", (rows + 1,))
    keys = Keys.from_bytes(arrays.get("keys", "U8", (None,)), np.array(offsets), str(path))
    counts = arrays.get("counts", "I64", (rows,)) if "counts" in entries else None
    metadata = _loads(path, notes.get("metadata", "{}"), "metadata")

    if options.limit is not None and options.limit < rows:
        first = options.limit
        keys = keys.take(np.arange(first))
        counts = None if counts is None else counts[:first]
        rows = first
    vectors = arrays.floats("vectors", dim, rows)
    context = arrays.floats("context", dim, rows) if "context" in entries else None
    storage = _STORAGES[entries["vectors"].dtype]
    subwords = _subwords(path, arrays, notes["subwords"], dim) if "subwords" in notes else None
    counts = None if counts is None else np.array(counts)
    return Table(keys, vectors, counts, context, metadata, storage, subwords)


def _subwords(path: Path, arrays: _Arrays, settings: str, dim: int) -> Subwords:
    """How words find the rows of their n-grams, which stay mapped."""
    described = _loads(path, settings, "description of the subwords")
    table = arrays.get("ngrams", "F32", (None, dim))
    rows = len(table)
    kept = np.array(arrays.get("ngram_buckets", "I64", (rows,))) if "ngram_buckets" in arrays else None
    try:
        return from_settings(described, DenseRows(table), kept)
    except SettingError as error:
        raise FormatError(f"{path}: the subwords do not fit: {error}; the file is damaged") from error


class _Arrays:
    """Tensors of a mapped file by name, their dtype and shape checked."""

    def __init__(self, path: Path, data: NDArray[np.uint8], entries: dict[str, Entry], begin: int) -> None:
        self._path, self._data, self._entries, self._begin = path, data, entries, begin

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        entry = self._entries.get(name)
        if entry is None:
            raise FormatError(f"{self._path}: the tensor {name!r} is missing")
        fits = len(entry.shape) == len(shape) and all(
            b is None or a == b for a, b in zip(entry.shape, shape, strict=True)
        )
        if entry.dtype != dtype or not fits:
            expected = " x ".join("any" if size is None else str(size) for size in shape)
            raise FormatError(
                f"{self._path}: the tensor {name!r} is {entry.dtype} {list(entry.shape)}; "
                f"{dtype} {expected} is expected"
            )
        part = self._data[self._begin + entry.begin : self._begin + entry.end]
        array: NDArray[Any] = np.asarray(part).view(_NUMPY[dtype])
        return array.reshape(entry.shape)

    def shape(self, name: str) -> tuple[int, int]:
        """Of a table of numbers, whatever they are stored as."""
        dtype = self._entries[name].dtype
        shape = self.get(name, dtype if dtype in _STORAGES else "F32", (None, None)).shape
        return shape[0], shape[1]

    def floats(self, name: str, dim: int, first: int) -> NDArray[np.float32]:
        """The ``first`` rows of a table as float32: mapped, or made of what is stored in less."""
        dtype, shape = self._entries[name].dtype, (self._entries["vectors"].shape[0], dim)
        table = self.get(name, dtype if dtype in _STORAGES else "F32", shape)[:first]
        if dtype == "F16":
            return quantize.from_half(table)
        if dtype != "I8":
            return table
        scale = self.get(f"{name}_scale", "F32", shape[:1])[:first]
        if not (np.isfinite(scale) & (scale >= 0)).all():
            row = int(np.argmin(np.isfinite(scale) & (scale >= 0)))
            raise FormatError(f"{self._path}: the scale of row {row} is {scale[row]}; the file is damaged")
        return quantize.from_int8(table, np.asarray(scale))


def read_header(path: Path, data: NDArray[np.uint8]) -> tuple[dict[str, Entry], dict[str, str], int]:
    """The header of a safetensors file, checked against the size of the file.

    Returns:
        the tensors by name, the metadata, and the byte at which the data begin.
    """
    size = data.size
    length = int.from_bytes(data[:8].tobytes(), "little") if size >= 8 else 0
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise FormatError(
            f"{path}: the header claims {length:,} bytes and the file has {size:,}; it is cut or damaged"
        )
    header = _loads(path, data[8 : 8 + length].tobytes(), "header")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise FormatError(f"{path}: __metadata__ in the header is no table of strings")
    entries = {name: _entry(path, name, value) for name, value in header.items()}

    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            what = "overlaps its neighbour" if entry.begin < end else "leaves a gap before it"
            raise FormatError(
                f"{path}: the tensor {name!r} begins at byte {entry.begin:,} of the data and {what}"
            )
        end = entry.end
    if 8 + length + end != size:
        raise FormatError(
            f"{path}: the header describes {8 + length + end:,} bytes and the file has {size:,}; "
            f"it is {'cut' if size < 8 + length + end else 'damaged'}"
        )
    return entries, notes, 8 + length


def _entry(path: Path, name: str, value: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        sizes = (*shape, begin, end)
        good = dtype in _DTYPES and all(type(size) is int and 0 <= size < 1 << 62 for size in sizes)
    except (TypeError, KeyError, ValueError):
        good = False
    if not good:
        raise FormatError(
            f"{path}: the header describes the tensor {name!r} by {str(value)[:80]}, which it cannot be"
        )
    needed = _DTYPES[dtype]
    for extent in shape:
        needed *= extent
    if begin > end or needed != end - begin:
        raise FormatError(
            f"{path}: the tensor {name!r} is {dtype} {list(shape)[:8]}, {needed:,} bytes, "
            f"and its offsets span {end - begin:,}"
        )
    return Entry(dtype, shape, begin, end)


def _loads(path: Path, text: bytes | str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path}: the {what} is no JSON ({str(error)[:80]}); the file is damaged"
        ) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: the {what} is no JSON object; the file is damaged")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def write(path: Path, table: Table) -> None:
    """Write the native form; the same table gives the same bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    data, offsets = table.keys.to_bytes()
    tensors = _stored("vectors", table.matrix, table.storage)
    if table.context is not None:
        tensors |= _stored("context", table.context, table.storage)
    if table.subwords is not None:
        tensors |= _stored_subwords(table.subwords)
    tensors["key_offsets"] = ("I64", offsets)
    if table.counts is not None:
        tensors["counts"] = ("I64", table.counts)
    tensors["keys"] = ("U8", data)
    if table.storage != "float32":  # the widest first, so that every tensor begins aligned
        tensors = dict(sorted(tensors.items(), key=lambda item: -_DTYPES[item[1][0]]))

    notes = {"format": "firth", "version": VERSION, "metadata": json.dumps(table.metadata)}
    if table.subwords is not None:
        notes["subwords"] = json.dumps(table.subwords.settings())
    header: dict[str, Any] = {"__metadata__": notes}
    place = 0
    for name, (dtype, array) in tensors.items():
        end = place + array.size * _DTYPES[dtype]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)

    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for dtype, array in tensors.values():
            file.write(np.ascontiguousarray(array, _NUMPY[dtype]).data)


def _stored(name: str, matrix: NDArray[np.float32], storage: str) -> dict[str, tuple[str, NDArray[Any]]]:
    """The tensors that a table of numbers becomes."""
    if storage == "int8":
        codes, scale = quantize.to_int8(matrix)
        return {f"{name}_scale": ("F32", scale), name: ("I8", codes)}
    if storage == "float16":
        return {name: ("F16", quantize.to_half(matrix))}
    return {name: ("F32", matrix)}


def _stored_subwords(subwords: Subwords) -> dict[str, tuple[str, NDArray[Any]]]:
    """The tensors that n-grams become; quantised ones are put together first."""
    rows = subwords.table
    matrix = rows.matrix if isinstance(rows, DenseRows) else np.concatenate(list(blocks(rows)))
    tensors: dict[str, tuple[str, NDArray[Any]]] = {"ngrams": ("F32", matrix)}
    if isinstance(subwords, FastTextSubwords) and subwords.kept is not None:
        tensors["ngram_buckets"] = ("I64", subwords.kept)
    return tensors


def check(path: Path, keys: Iterable[str]) -> None:
    """Every key can be written."""


FORMAT = Format("safetensors", (".safetensors",), recognise, read, write, check, complete=True, keyless=True)
