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
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from firth.errors import FormatError
from firth.files import replacing_folder, storage_error
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, names_in, warn
from firth.textfiles import TextFile

NAME = "the projector's table"
TENSORS, METADATA, CONFIG = "tensors.tsv", "metadata.tsv", "projector_config.pbtxt"
MARK = "# Written by firth"
ESCAPED = "# firth: escaped"
_UNESCAPE = re.compile(r"\\(?:[\\trn]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_PLAIN = {"\\\\": "\\", "\\t": "\t", "\\r": "\r", "\\n": "\n"}
_KEYS = (b"token", b"word", b"key")
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
    dim = _dim(place.tensors)
    counts: list[int] = []
    with TextFile(place.tensors) as file, TextFile(place.metadata) as words:
        keys = _keys(words, place, options.errors, counts)
        expected = 0 if file.compression is not None else text.most_numbers(place.tensors, dim)
        if options.limit is not None:
            expected = min(expected, options.limit)
        rows = Rows(place.tensors, dim, expected, "surrogatepass")
        for data in text.blocks(file, place.tensors):
            start = len(rows)
            values = text.parse_numbers(data, place.tensors, start + 1, dim, "\t")
            wanted = len(values) if options.limit is None else min(len(values), options.limit - start)
            part = list(islice(keys, wanted))
            if len(part) < wanted:
                raise _misfit(path, f"{start + len(part):,} keys", "more rows")
            rows.add(part, values[:wanted], lambda row, start=start: f"line {start + row + 1}")  # type: ignore[misc]
            if len(rows) == options.limit:
                break
        found = len(rows)
        more = 0 if found == options.limit else sum(1 for _ in keys)
    if more:
        raise _misfit(path, f"{found + more:,} keys", f"{found:,} rows")
    return rows.table(np.array(counts[:found], np.int64) if counts else None)


def _misfit(path: Path, keys: str, rows: str) -> FormatError:
    return FormatError(f"{path}: {METADATA} has {keys} and {TENSORS} {rows}; they do not fit")


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


def _keys(file: TextFile, place: Place, errors: str, counts: list[int]) -> Iterator[bytes]:
    """The keys as UTF-8, lone surrogates in three bytes; counts, where there are some, go to ``counts``."""
    number, titles, key_column, count_column = 0, [b""], 0, -1
    for lines in text.line_blocks(file, place.metadata):
        for line in lines:
            number += 1
            cells = [line] if len(titles) == 1 and number > 1 else line.split(b"\t")
            if number == 1 and len(cells) > 1:  # several columns have a header, one has none
                titles = cells
                key_column = next((titles.index(name) for name in _KEYS if name in titles), 0)
                count_column = titles.index(b"count") if b"count" in titles else -1
                continue
            if len(cells) != len(titles):
                raise FormatError(
                    f"{place.metadata}, line {number}: {len(cells)} columns; {len(titles)} are expected"
                )
            if count_column >= 0:
                count = cells[count_column]
                if not re.fullmatch(rb"\d{1,18}", count):
                    raise FormatError(f"{place.metadata}, line {number}: the count {count!r} is no number")
                counts.append(int(count))
            yield _decoded(cells[key_column], place, number, errors).encode("utf-8", "surrogatepass")
    if number == 0 or (number == 1 and len(titles) > 1):
        raise FormatError(f"{place.metadata} is empty: there are no keys in it")


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
    counts: list[int] = []
    with TextFile(place.metadata) as words:
        keys = _keys(words, place, options.errors, counts)
        first = tuple(key.decode("utf-8", "surrogatepass") for key in islice(keys, 10))
        rows = len(first) + sum(1 for _ in keys)
    return Facts(rows, _dim(place.tensors), "text", first, ("counts",) if counts else ())


def write(path: Path, table: Table) -> None:
    """Write the folder; the numbers read back exactly.

    Raises:
        FormatError: a number is not finite.
        StorageError: the folder cannot be written, or is somebody else's.
    """
    check(path, table.keys)
    if len(table.keys) > MANY:
        warn(
            f"{path}: {len(table.keys):,} points, and browsers give up beyond some {MANY:,}; "
            "firth convert --limit keeps the first"
        )
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


FORMAT = Format(
    "projector", (), recognise, read, write, check, holds=("counts",), inspect=inspect, folder=ours
)
