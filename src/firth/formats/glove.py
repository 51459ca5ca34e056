"""GloVe text: ``key number ... number`` a row, no header.

How many numbers a row has is what most of the first lines have. A key may hold spaces
(``. . .`` in glove.840B), but its last word may not be a number: that would be one number too many.
Source: https://github.com/stanfordnlp/GloVe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from firth.errors import FormatError
from firth.files import replacing
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, read_head
from firth.textfiles import TextFile, compressing

NAME = "GloVe text"
COUNTED = 1 << 27  # bytes of a file up to which `inspect` counts its lines


def recognise(head: Head) -> bool:
    """Lines that end in numbers, the same count in most of them."""
    lines = text.head_lines(head)
    return bool(lines) and text.count_values(lines[0]) > 0


def dimension(head: Head) -> int:
    """The count of numbers that most of the first lines have."""
    counts = Counter(text.count_values(line) for line in text.head_lines(head))
    dim = counts.most_common(1)[0][0] if counts else 0
    if dim == 0:
        raise FormatError(f"{head.path}, line 1: no numbers follow the key; this is no {NAME}")
    return dim


def read(path: Path, options: Options) -> Table:
    """Read GloVe text.

    Raises:
        FormatError: a line is not a key and as many numbers as the other lines have.
        StorageError: it cannot be read.
    """
    dim = dimension(read_head(path))
    with TextFile(path) as file:
        expected = 0 if file.compression is not None else text.most_rows(path, dim)
        if options.limit is not None:
            expected = min(expected, options.limit)
        rows = Rows(path, dim, expected, options.errors)
        text.read_rows(file, path, dim, rows, first_line=1, named=False, limit=options.limit)
    return rows.table()


def inspect(path: Path, options: Options) -> Facts:
    """Dimension and first keys; rows are counted in a small file and estimated in a large one."""
    head = read_head(path)
    dim = dimension(head)
    lines = text.head_lines(head)
    rows: int | None = None
    exact = head.whole or (head.size is not None and head.size <= COUNTED)
    if head.whole:
        rows = sum(1 for line in head.data.split(b"\n") if text.strip_end(line))
    elif exact:
        rows = text.count_ends(path)
    elif head.size is not None:
        rows = round(head.size * head.data.count(b"\n") / (head.data.rfind(b"\n") + 1))
    return Facts(rows, dim, "text", text.first_keys(lines, dim), exact=exact)


def write(path: Path, table: Table) -> None:
    """Write GloVe text; the numbers read back exactly.

    Raises:
        FormatError: a key would be read back as another, or a number is not finite.
        StorageError: the file cannot be written.
    """
    check(path, table.keys)
    with replacing(path) as raw, compressing(raw, path) as file:
        text.write_rows(file, path, table, NAME)


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys that would be read back as others by ``FormatError``."""
    for key in keys:
        text.encode_key(key, path, NAME)
        if " " in key and text.is_number(key.rsplit(" ", 1)[1].encode("utf-8", "surrogatepass")):
            raise FormatError(
                f"cannot write {path}: the end of the key {key!r} would be read as a number, since {NAME} "
                "has no header; use word2vec text or safetensors"
            )


FORMAT = Format("glove", (".glove",), recognise, read, write, check, inspect=inspect, packed=True)
