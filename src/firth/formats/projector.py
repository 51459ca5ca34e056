"""The folder that TensorBoard's projector and projector.tensorflow.org open.

::

    tensors.tsv            a row a line: numbers between tabs, no header
    metadata.tsv           a key a line and no header; with counts a header ``token<TAB>count`` first (one
                           column has no header, several have one)
    projector_config.pbtxt names both files

A key that holds a tab, a line end, another control character or a backslash, or that begins or ends with
white space, would shift the rows there; if there is one, all keys are written with Python's escapes
(a tab becomes a backslash and ``t``), and the comment ``# firth: escaped`` in the config says so to the
reader here.
Source: https://www.tensorflow.org/tensorboard/tensorboard_projector_plugin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError
from firth.files import replacing_folder, storage_error
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, names_in
from firth.textfiles import TextFile

NAME = "the projector's table"
TENSORS, METADATA, CONFIG = "tensors.tsv", "metadata.tsv", "projector_config.pbtxt"
MARK = "# Written by firth"
ESCAPED = "# firth: escaped"
_UNESCAPE = re.compile(r"\\(?:[\\trn]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_PLAIN = {"\\\\": "\\", "\\t": "\t", "\\r": "\r", "\\n": "\n"}
MANY = 100_000  # points beyond which a browser gives up


class Place(NamedTuple):
    """The files of a table, and whether its keys are escaped."""

    tensors: Path
    metadata: Path
    escaped: bool


def recognise(head: Head) -> bool:
    """A folder with both tables."""
    return head.names is not None and {TENSORS, METADATA} <= head.names


def read(path: Path, options: Options) -> Table:
    """Read the folder.

    Raises:
        FormatError: a file is missing or damaged, or they do not fit.
        StorageError: one cannot be read.
    """
    place = _place(path)
    keys, counts = _read_metadata(place, options)
    dim = _dim(place.tensors)
    with TextFile(place.tensors) as file:
        expected = 0 if file.compression is not None else text.most_numbers(place.tensors, dim)
        rows = Rows(place.tensors, dim, min(expected, len(keys)), "strict")
        for data in text.blocks(file, place.tensors):
            start = len(rows)
            values = text.parse_numbers(data, place.tensors, start + 1, dim, "\t")
            part = keys[start : start + len(values)]
            full = options.limit is not None and len(part) < len(values) and len(keys) == options.limit
            if len(part) < len(values) and not full:
                raise FormatError(
                    f"{path}: {METADATA} has {len(keys):,} keys and {TENSORS} has more rows; they do not fit"
                )
            encoded = [key.encode("utf-8", "surrogatepass") for key in part]
            rows.add(encoded, values[: len(part)], lambda row, start=start: f"line {start + row + 1}")  # type: ignore[misc]
            if full:
                break
    if len(rows) < len(keys):
        raise FormatError(
            f"{path}: {METADATA} has {len(keys):,} keys and {TENSORS} {len(rows):,} rows; they do not fit"
        )
    return rows.table(counts)


def _place(path: Path) -> Place:
    names = names_in(path)
    for name in (TENSORS, METADATA):
        if name not in names:
            raise FormatError(f"{path} has no {name}; it is no folder of the projector")
    config = b""
    if CONFIG in names:
        try:
            with open(path / CONFIG, "rb") as file:
                config = file.read(1 << 16)
        except OSError as error:
            raise storage_error(error, path / CONFIG, "read") from error
    return Place(path / TENSORS, path / METADATA, ESCAPED.encode() in config.split(b"\n"))


def _dim(path: Path) -> int:
    with TextFile(path) as file:
        line = file.read(1 << 20).split(b"\n", 1)[0]
    if not line.strip():
        raise FormatError(f"{path}, line 1: there are no numbers in it")
    return line.count(b"\t") + 1


def _read_metadata(place: Place, options: Options) -> tuple[list[str], NDArray[np.int64] | None]:
    """The keys, and the counts where there is a column of them."""
    with TextFile(place.metadata) as file:
        lines = file.read().split(b"\n")
    if not lines[-1]:
        lines.pop()
    if lines and all(line.endswith(b"\r") for line in lines):
        lines = [line[:-1] for line in lines]
    first, column = 1, None
    titles = [] if not lines else lines[0].split(b"\t")
    key_column = next((titles.index(name) for name in (b"token", b"word", b"key") if name in titles), 0)
    if len(titles) > 1:
        first, lines = 2, lines[1:]
        column = titles.index(b"count") if b"count" in titles else None
    lines = lines[: options.limit]
    if not lines:
        raise FormatError(f"{place.metadata} is empty: there are no keys in it")
    keys: list[str] = []
    counts: list[int] = []
    for number, line in enumerate(lines, first):
        cells = line.split(b"\t") if len(titles) > 1 else [line]
        if len(cells) != max(1, len(titles)):
            raise FormatError(
                f"{place.metadata}, line {number}: {len(cells)} columns; {max(1, len(titles))} are expected"
            )
        keys.append(_decoded(cells[key_column], place, number, options.errors))
        if column is not None:
            if not re.fullmatch(rb"\d{1,18}", cells[column]):
                raise FormatError(
                    f"{place.metadata}, line {number}: the count {cells[column]!r} is no number"
                )
            counts.append(int(cells[column]))
    return keys, np.array(counts, np.int64) if column is not None else None


def _decoded(cell: bytes, place: Place, number: int, errors: str) -> str:
    try:
        key = cell.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise FormatError(
            f'{place.metadata}, line {number}: the key {cell!r} is no UTF-8; errors="replace" reads it'
        ) from error
    if place.escaped:
        key = _UNESCAPE.sub(
            lambda found: _PLAIN.get(found[0]) or chr(min(int(found[0][2:], 16), 0x10FFFF)), key
        )
    if not key:
        raise FormatError(f"{place.metadata}, line {number}: the key is empty")
    return key


def inspect(path: Path, options: Options) -> Facts:
    """Keys are counted, they are a small part of the folder; numbers are not read."""
    place = _place(path)
    keys, counts = _read_metadata(place, options)
    return Facts(
        len(keys), _dim(place.tensors), "text", tuple(keys[:10]), ("counts",) if counts is not None else ()
    )


def write(path: Path, table: Table) -> None:
    """Write the folder; the numbers read back exactly.

    Raises:
        FormatError: a number is not finite.
        StorageError: the folder cannot be written, or is somebody else's.
    """
    check(path, table.keys)
    names = table.keys.to_list()
    escaped = any(_odd(key) for key in names)
    cells = [_escape(key) for key in names] if escaped else names
    if table.counts is not None:
        counted = zip(cells, table.counts.tolist(), strict=True)
        cells = ["token\tcount", *(f"{cell}\t{count}" for cell, count in counted)]
    with replacing_folder(path, ours) as folder:
        with open(folder / TENSORS, "xb") as file:
            text.write_numbers(file, path, table.matrix, names, "\t")
        (folder / METADATA).write_bytes(
            b"".join(cell.encode("utf-8", "surrogateescape") + b"\n" for cell in cells)
        )
        (folder / CONFIG).write_text(_config(escaped), encoding="utf-8")


def _config(escaped: bool) -> str:
    mark = f"{MARK}\n{ESCAPED}\n" if escaped else f"{MARK}\n"
    files = f'  tensor_path: "{TENSORS}"\n  metadata_path: "{METADATA}"\n'
    return f'{mark}embeddings {{\n  tensor_name: "vectors"\n{files}}}\n'


def ours(path: Path) -> bool:
    """Whether the folder holds these three files and no other, and firth wrote them."""
    if set(names_in(path)) != {TENSORS, METADATA, CONFIG}:
        return False
    with open(path / CONFIG, "rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _odd(key: str) -> bool:
    """Whether a key would be seen as another: JavaScript trims lines, and splits at tabs."""
    return key != key.strip() or key[:1] == "\ufeff" or "\\" in key or any(ord(char) < 32 for char in key)


def _escape(key: str) -> str:
    inner = key.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    inner = re.sub(r"[\x00-\x1f]", lambda found: f"\\x{ord(found[0]):02x}", inner)
    return re.sub(
        r"^[\s\ufeff]+|[\s\ufeff]+$", lambda found: "".join(f"\\u{ord(char):04x}" for char in found[0]), inner
    )


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys without a form in UTF-8 by ``FormatError``."""
    for key in keys:
        text.encode_key(key, path, NAME, ends=True)


def too_many(rows: int) -> str:
    """A sentence where a browser would give up, else ``""``."""
    return (
        f"the projector shows about {MANY:,} points and there are {rows:,}; --limit keeps the first"
        if rows > MANY
        else ""
    )


FORMAT = Format(
    "projector", (), recognise, read, write, check, holds=("counts",), inspect=inspect, folder=ours
)
