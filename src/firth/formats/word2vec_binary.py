"""word2vec binary: ``rows dim\\n``, then a row: key, a space, ``dim`` float32 (little-endian).

word2vec.c ends each row by ``\\n``; the GoogleNews file and gensim do not. Both are read; the
first is written. A key with a space could not be told from the end of a key and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from firth.errors import FormatError
from firth.files import replacing
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, file_size, read_head
from firth.formats.word2vec_text import check_sizes, is_binary, sizes
from firth.textfiles import TextFile

NAME = "word2vec binary"
CHUNK = 1 << 19
LONGEST_KEY = 1 << 16


def recognise(head: Head) -> bool:
    """Two whole numbers in the first line, and no text after it."""
    first, end, rest = head.data.partition(b"\n")
    header = sizes(first)
    return header is not None and bool(end) and is_binary(rest, *header, whole=head.whole)


def read(path: Path, options: Options) -> Table:
    """Read word2vec binary, in chunks.

    Raises:
        FormatError: the header does not fit the file, or it is cut.
        StorageError: it cannot be read.
    """
    with TextFile(path) as file:
        data = file.read(CHUNK)
        header = sizes(data[:256].split(b"\n", 1)[0]) if b"\n" in data[:256] else None
        if header is None:
            raise FormatError(f"{path} does not begin with a line `rows dim`; this is no {NAME}")
        claimed, dim = check_sizes(path, header)
        most = claimed if options.limit is None else min(claimed, options.limit)
        begin = data.index(b"\n") + 1
        expected = 0
        if file.compression is None:
            size = file_size(path)
            if most * (4 * dim + 2) > size - begin:
                raise FormatError(
                    f"{path}: the header promises {claimed:,} rows of {dim:,} numbers, which take "
                    f"{claimed * (4 * dim + 2):,} bytes, and {size - begin:,} follow; it is cut or damaged"
                )
            expected = most
        rows = Rows(path, dim, expected, options.errors)
        rest = _read_rows(file, data, begin, rows, path, most, dim)
        if most == claimed and (rest + file.read(2)).strip(b"\n"):
            raise FormatError(
                f"{path}: more bytes follow the {claimed:,} rows that the header promises; "
                f"it lies or the file is damaged; limit={claimed} reads that many"
            )
    return rows.table()


def inspect(path: Path, options: Options) -> Facts:
    """What the header claims, and the first keys."""
    head = read_head(path)
    header = sizes(head.data[:256].split(b"\n", 1)[0])
    if header is None:
        raise FormatError(f"{path} does not begin with a line `rows dim`; this is no {NAME}")
    rows, dim = check_sizes(path, header)
    place = head.data.find(b"\n") + 1
    keys: list[str] = []
    while len(keys) < min(10, rows) and (space := head.data.find(b" ", place)) >= 0:
        keys.append(head.data[place:space].lstrip(b"\n").decode(errors="replace"))
        place = space + 1 + 4 * dim
    return Facts(rows, dim, "float32", tuple(keys))


def _read_rows(file: TextFile, data: bytes, begin: int, rows: Rows, path: Path, most: int, dim: int) -> bytes:
    """Fill ``rows`` up to ``most``; returns the bytes read and not used."""
    width = 4 * dim
    offset = 0  # of data[0] in the file
    while True:
        keys: list[bytes] = []
        parts: list[bytes] = []
        places: list[int] = []
        while len(rows) + len(keys) < most:
            space = data.find(b" ", begin)
            if space < 0 or space + 1 + width > len(data):
                break
            keys.append(data[begin:space].lstrip(b"\n"))
            parts.append(data[space + 1 : space + 1 + width])
            places.append(offset + begin)
            begin = space + 1 + width
        if keys:
            values = np.frombuffer(b"".join(parts), "<f4").reshape(len(keys), dim)
            rows.add(keys, values, lambda row, places=places: f"byte {places[row]:,}")  # type: ignore[misc]
        if len(rows) == most:
            return data[begin:]
        if data.find(b" ", begin) < 0 and len(data) - begin > LONGEST_KEY:
            raise FormatError(f"{path}, byte {offset + begin:,}: no space ends the key; this is no {NAME}")
        more = file.read(CHUNK)
        if not more:
            raise FormatError(
                f"{path}: the header promises {most:,} rows and the file ends in row {len(rows) + 1:,}, "
                f"byte {offset + len(data):,}; it is cut; limit={len(rows)} reads the whole ones"
            )
        offset += begin
        data, begin = data[begin:] + more, 0


def write(path: Path, table: Table) -> None:
    """Write word2vec binary as word2vec.c does.

    Raises:
        FormatError: a key holds a space or a line end.
        StorageError: the file cannot be written.
    """
    check(path, table.keys)
    keys = [text.encode_key(key, path, NAME) for key in table.keys]
    with replacing(path) as file:
        file.write(b"%d %d\n" % table.matrix.shape)
        for data, row in zip(keys, np.asarray(table.matrix, "<f4"), strict=True):
            file.write(data + b" " + row.tobytes() + b"\n")


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys with a space or a line end by ``FormatError``."""
    for key in keys:
        text.encode_key(key, path, NAME)
        if " " in key:
            raise FormatError(
                f"cannot write {path}: the key {key!r} holds a space, which ends a key in {NAME}; "
                "use word2vec text or safetensors, or replace spaces (firth convert --space-as _)"
            )


FORMAT = Format("word2vec-binary", (".bin",), recognise, read, write, check, inspect=inspect)
