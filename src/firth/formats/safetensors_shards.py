"""The native form over several files, for tables that no process holds whole.

::

    X.safetensors.index.json      {"metadata": {"total_size", "format": "firth", "version", "rows", "dim",
                                  "metadata": JSON}, "weight_map": {tensor: file}}
    X-00001-of-00004.safetensors  vectors.00001 F32 (rows of this file, D), and in the first file
                                  key_offsets, counts and keys as in ``safetensors``
    ...                           with a context table, twice as many files: context.00001, ...

The index is that of transformers' sharded checkpoints: every tensor is in the file that it names. Rows stand
in the order of the files; each but the last holds a multiple of ``ROWS``, and data begin at a page, so that
``read`` maps the files one behind the other as one array.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError
from firth.files import replacing, storage_error, write_text
from firth.formats import safetensors
from firth.formats.adjoining import PAGE, Stretch, adjoined
from firth.formats.table import Options, Table
from firth.keys import Keys

SUFFIX = ".index.json"
ROWS = 1024
"""A file holds a multiple of so many rows: whole pages, whatever the dim."""

TABLES = ("vectors", "context")


def index_path(path: Path) -> Path:
    """The index of the files that ``path`` (``X.safetensors``) is written to."""
    return path.with_name(path.name + SUFFIX)


def shard_path(path: Path, number: int, count: int) -> Path:
    """File ``number``, from 1, of ``count``."""
    return path.with_name(f"{path.stem}-{number:05d}-of-{count:05d}{path.suffix}")


def bounds(rows: int, parts: int) -> list[int]:
    """Where the rows of each file begin, and at the end ``rows``."""
    each = -(-rows // (parts * ROWS)) * ROWS
    return [min(part * each, rows) for part in range(parts + 1)]


def write_shard(
    path: Path,
    table: str,
    number: int,
    shape: tuple[int, int],
    pieces: Iterable[NDArray[np.float32]],
    keys: Keys | None = None,
    counts: NDArray[np.int64] | None = None,
) -> None:
    """Write one file, whole or not at all.

    Args:
        path: of this file. table, number: ``"vectors"`` or ``"context"``, and which rows, from 1.
        shape: of this file's rows; pieces: the rows, (any, D) each, together as many.
        keys, counts: of all rows, in the first file.

    Raises:
        StorageError: it cannot be written.
    """
    tensors: dict[str, tuple[str, tuple[int, ...], NDArray[Any] | None]] = {}
    tensors[f"{table}.{number:05d}"] = ("F32", shape, None)
    if keys is not None:
        data, offsets = keys.to_bytes()
        characters = np.frombuffer(bytes(data), np.uint8)
        tensors["key_offsets"] = ("I64", offsets.shape, offsets)
        if counts is not None:
            tensors["counts"] = ("I64", counts.shape, counts)
        tensors["keys"] = ("U8", characters.shape, characters)
    header: dict[str, Any] = {"__metadata__": {"format": "firth-shard", "version": safetensors.VERSION}}
    place = 0
    for name, (dtype, extent, _) in tensors.items():
        end = place + int(np.prod(extent)) * {"F32": 4, "I64": 8, "U8": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": list(extent), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, "<f4").data)
        for dtype, _, array in tensors.values():
            if array is not None:
                file.write(np.ascontiguousarray(array, {"I64": "<i8", "U8": "u1"}[dtype]).data)


def write_index(
    path: Path, rows: int, dim: int, parts: int, context: bool, counts: bool, metadata: Mapping[str, Any]
) -> Path:
    """Write the index when all files are there; its path.

    Raises:
        StorageError: it cannot be written.
    """
    files = parts * (2 if context else 1)
    first = shard_path(path, 1, files).name
    weights = dict.fromkeys(("key_offsets", "keys", *(["counts"] if counts else [])), first)
    for number in range(1, parts + 1):
        weights[f"vectors.{number:05d}"] = shard_path(path, number, files).name
        if context:
            weights[f"context.{number:05d}"] = shard_path(path, parts + number, files).name
    facts = {
        "total_size": rows * dim * 4 * (2 if context else 1),
        "format": "firth",
        "version": safetensors.VERSION,
        "rows": rows,
        "dim": dim,
        "metadata": json.dumps(dict(metadata)),
    }
    index = index_path(path)
    write_text(index, json.dumps({"metadata": facts, "weight_map": weights}, indent=1))
    return index


def is_index(data: bytes) -> bool:
    """Whether the beginning of a file is that of an index."""
    return data.lstrip()[:1] == b"{" and b'"weight_map"' in data and b'"metadata"' in data


def read(path: Path, options: Options) -> Table:
    """Map the files of an index as one table; keys and counts are copied.

    Raises:
        FormatError: cut, damaged, not made by firth, or a file is missing from the index.
        StorageError: a file cannot be opened.
    """
    try:
        index = json.loads(path.read_bytes())
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON ({str(error)[:80]}); the index is damaged") from error
    facts, weights = index.get("metadata"), index.get("weight_map")
    if not isinstance(facts, dict) or not isinstance(weights, dict) or facts.get("format") != "firth":
        raise FormatError(f"{path} is the index of sharded tensors, but not of vectors that firth wrote")
    if facts.get("version") != safetensors.VERSION:
        raise FormatError(
            f"{path} has version {facts.get('version')} of the format, this firth reads {safetensors.VERSION}"
        )
    try:
        rows, dim, metadata = int(facts["rows"]), int(facts["dim"]), json.loads(str(facts["metadata"]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path} does not say its rows, dim and metadata; the index is damaged") from error
    shards = _Shards(path, weights)
    tables = {name: shards.table(name, rows, dim) for name in TABLES if f"{name}.00001" in weights}
    if "vectors" not in tables or not isinstance(metadata, dict):
        raise FormatError(f"{path} names no vectors; the index is damaged")
    offsets = shards.array("key_offsets", "I64", rows + 1)
    keys = Keys.from_bytes(shards.array("keys", "U8", None), np.array(offsets), str(path))
    counts = np.array(shards.array("counts", "I64", rows)) if "counts" in weights else None
    if options.limit is not None and options.limit < rows:
        rows = options.limit
        keys = keys.take(np.arange(rows))
        counts = None if counts is None else counts[:rows]
        tables = {name: table[:rows] for name, table in tables.items()}
    return Table(keys, tables["vectors"], counts, tables.get("context"), metadata)


class _Shards:
    """The files of an index, each header read once."""

    def __init__(self, index: Path, weights: Mapping[str, Any]) -> None:
        self._index, self._weights = index, weights
        self._headers: dict[str, tuple[dict[str, safetensors.Entry], int]] = {}

    def table(self, name: str, rows: int, dim: int) -> NDArray[np.float32]:
        """(rows, dim) float32 of all files."""
        stretches, found, number = [], 0, 1
        while (tensor := f"{name}.{number:05d}") in self._weights:
            path, entry, begin = self._find(tensor)
            if entry.dtype != "F32" or len(entry.shape) != 2 or entry.shape[1] != dim:
                raise FormatError(
                    f"{path}: the tensor {tensor!r} is {entry.dtype} {list(entry.shape)}; F32 any x {dim} "
                    "is expected"
                )
            stretches.append(Stretch(path, begin + entry.begin, entry.end - entry.begin))
            found, number = found + entry.shape[0], number + 1
        if found != rows or not rows or not dim:
            raise FormatError(
                f"{self._index}: its files hold {found:,} rows of {name}, and it says {rows:,} x {dim}"
            )
        return adjoined(stretches).view("<f4").reshape(rows, dim)

    def array(self, name: str, dtype: str, size: int | None) -> NDArray[Any]:
        """A tensor of one dimension."""
        path, entry, begin = self._find(name)
        if entry.dtype != dtype or len(entry.shape) != 1 or size not in (None, entry.shape[0]):
            raise FormatError(f"{path}: the tensor {name!r} is {entry.dtype} {list(entry.shape)}")
        raw = np.memmap(path, np.uint8, "r")[begin + entry.begin : begin + entry.end]
        return np.asarray(raw).view({"I64": "<i8", "U8": "u1"}[dtype])

    def _find(self, tensor: str) -> tuple[Path, safetensors.Entry, int]:
        file = self._weights.get(tensor)
        if not isinstance(file, str) or Path(file).name != file or not file:
            raise FormatError(f"{self._index}: {tensor!r} is in {str(file)!r:.60}, which is no file's name")
        path = self._index.with_name(file)
        if file not in self._headers:
            try:
                data = np.memmap(path, np.uint8, "r")
            except (OSError, ValueError) as error:
                cause = error if isinstance(error, OSError) else OSError("it is empty")
                raise storage_error(cause, path, "read") from error
            entries, _, begin = safetensors.read_header(path, data)
            self._headers[file] = entries, begin
        entries, begin = self._headers[file]
        if tensor not in entries:
            raise FormatError(f"{path}: the tensor {tensor!r} is missing, which {self._index.name} names")
        return path, entries[tensor], begin
