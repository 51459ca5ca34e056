"""A numpy array ``NAME.npy`` and its keys beside it in ``NAME.vocab.txt``, one a line.

Keys are also looked for in ``NAME.vocab.json`` (a list), ``NAME.txt``, ``NAME.json``, ``vocab.txt`` and
``vocab.json``, in this order. A float32 array in rows is mapped and its numbers are not looked at; float16
and float64, either byte order, become float32. Arrays of objects are pickles and are never opened.
Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from firth.errors import FormatError, StorageError
from firth.files import replacing_together, storage_error
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, file_size, floats
from firth.keys import Keys
from firth.textfiles import TextFile

NAME = "a numpy array with a vocabulary"
MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 1 << 16


class Shape(NamedTuple):
    """What the header of an array says, checked against the size of the file."""

    rows: int
    dim: int
    dtype: np.dtype[Any]
    by_columns: bool
    begin: int


def recognise(head: Head) -> bool:
    """numpy's first six bytes."""
    return head.data.startswith(MAGIC)


def read_shape(path: Path) -> Shape:
    """The header of an array.

    Raises:
        FormatError: it is damaged, no table of numbers, or does not fit the size of the file.
    """
    try:
        with open(path, "rb") as raw:
            file = io.BytesIO(raw.read(LONGEST_HEADER))
    except OSError as error:
        raise storage_error(error, path, "read") from error
    try:
        shape, by_columns, dtype = _parse(file)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError, KeyError) as error:
        reason = " ".join(str(error).split())[:80]
        raise FormatError(f"{path}: the header of the numpy array is cut or damaged ({reason})") from error
    if dtype.hasobject:
        raise FormatError(
            f"{path} holds Python objects, a pickle that is never opened; save the numbers as float32"
        )
    if dtype.kind != "f" or dtype.itemsize > 8 or len(shape) != 2:
        raise FormatError(f"{path} is {dtype} of shape {shape}; (rows, dim) of float32 is expected")
    rows, dim = shape
    begin, size = file.tell(), file_size(path)
    if rows < 1 or dim < 1:
        raise FormatError(f"{path}: the table has the shape {rows} x {dim}; at least 1 x 1 is expected")
    if begin + rows * dim * dtype.itemsize != size:
        raise FormatError(
            f"{path}: the header promises {rows:,} x {dim:,} of {dtype}, "
            f"{begin + rows * dim * dtype.itemsize:,} bytes, and the file has {size:,}; it is cut or damaged"
        )
    return Shape(rows, dim, dtype, by_columns, begin)


def _parse(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype. By hand: numpy's reader has many ways to fail."""
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as one")
    width = 2 if file.read(2)[:1] == b"\x01" else 4
    length = int.from_bytes(file.read(width), "little")
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"{length:,} bytes are promised")
    header = ast.literal_eval(text.decode("latin-1").strip())
    shape, by_columns = header["shape"], header["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        raise ValueError("the shape is none")
    if not isinstance(by_columns, bool) or not isinstance(header["descr"], str):
        raise ValueError("it describes no plain numbers")
    return shape, by_columns, np.dtype(header["descr"])


def vocabulary(path: Path) -> Path:
    """The file that holds the keys of the array at ``path``.

    Raises:
        FormatError: there is none.
    """
    stem = path.with_suffix("") if path.suffix.lower() == ".npy" else path
    names = [f"{stem.name}{end}" for end in (".vocab.txt", ".vocab.json", ".txt", ".json")]
    for name in (*names, "vocab.txt", "vocab.json"):
        if name != path.name and (found := path.with_name(name)).is_file():
            return found
    raise FormatError(
        f"{path} is an array without keys: put them beside it into {names[0]}, one a line, "
        "or build Vectors(keys, matrix)"
    )


def read(path: Path, options: Options) -> Table:
    """Map or read the array, and read its vocabulary.

    Raises:
        FormatError: one of both is missing or damaged, or they do not fit.
        StorageError: one cannot be read.
    """
    shape = read_shape(path)
    words = vocabulary(path)
    first = shape.rows if options.limit is None else min(shape.rows, options.limit)
    keys, found = _read_keys(words, first, options.errors)
    if found != shape.rows:
        raise FormatError(f"{path} has {shape.rows:,} rows and {words} {found:,} keys; they do not fit")
    array: NDArray[Any] = np.memmap(
        path, shape.dtype, "r", shape.begin, (shape.rows, shape.dim), "F" if shape.by_columns else "C"
    )
    if shape.dtype == np.dtype("<f4") and not shape.by_columns:
        return Table(keys, array[:first])
    return Table(keys, floats(path, array, first))


def _read_keys(path: Path, first: int, errors: str) -> tuple[Keys, int]:
    """The first keys, and how many there are."""
    if path.suffix.lower() == ".json":
        try:
            data = path.read_bytes()
        except OSError as error:
            raise storage_error(error, path, "read") from error
        return _json_keys(path, data, first)
    rows, found = Rows(path, 0, 0, errors), 0
    with TextFile(path) as file:
        for lines in text.line_blocks(file, path):
            part = lines[: max(0, first - found)]
            numbers = np.empty((len(part), 0), np.float32)
            rows.add(part, numbers, lambda row, found=found: f"line {found + row + 1}")  # type: ignore[misc]
            found += len(lines)
    if not found:
        raise FormatError(f"{path} is empty: there are no keys in it")
    return rows.keys(), found


def _json_keys(path: Path, data: bytes, first: int) -> tuple[Keys, int]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON ({str(error)[:80]})") from error
    if not isinstance(found, list) or not all(isinstance(key, str) and key for key in found):
        raise FormatError(f"{path} is no JSON list of non-empty strings; one key a row is expected")
    distinct = dict.fromkeys(found[:first])
    if len(distinct) != len(found[:first]):
        raise FormatError(f"{path}: a key occurs twice; one key a row is expected")
    return Keys(distinct), len(found)


def inspect(path: Path, options: Options) -> Facts:
    """What the header of the array says, and the first keys."""
    shape = read_shape(path)
    words = vocabulary(path)
    with open(words, "rb") as file:
        head = file.read(1 << 16)
    if words.suffix.lower() == ".json":
        keys = tuple(_read_keys(words, 10, options.errors)[0])
    else:
        keys = tuple(line.rstrip(b"\r").decode(errors="replace") for line in head.split(b"\n")[:10] if line)
    return Facts(shape.rows, shape.dim, shape.dtype.name, keys, inside=(f"keys in {words.name}",))


def write(path: Path, table: Table) -> None:
    """Write ``NAME.npy`` (float32, version 1.0) and ``NAME.vocab.txt``.

    Raises:
        FormatError: a key holds a line end.
        StorageError: a file cannot be written.
    """
    keys = [_encoded(key, path) for key in table.keys]
    header = {"descr": "<f4", "fortran_order": False, "shape": table.matrix.shape}
    with replacing_together(path, _words_path(path)) as (file, words):
        npy_format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(table.matrix, "<f4").data)
        words.write(b"".join(key + b"\n" for key in keys))


def _words_path(path: Path) -> Path:
    target = path.with_suffix(".vocab.txt") if path.suffix.lower() == ".npy" else None
    if target is None:
        raise StorageError(f"cannot write {path}: the name of an array ends in .npy; the keys go beside it")
    return target


def _encoded(key: str, path: Path) -> bytes:
    data = text.encode_key(key, path, NAME)
    if data.endswith(b"\r"):
        raise FormatError(
            f"cannot write {path}: the key {key!r} ends in a carriage return, which ends a line too; "
            "use safetensors"
        )
    return data


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys with a line end by ``FormatError``."""
    for key in keys:
        _encoded(key, path)


FORMAT = Format("npy", (".npy",), recognise, read, write, check, inspect=inspect)
