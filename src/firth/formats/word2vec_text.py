"""word2vec text, and fastText's ``.vec``: a line ``rows dim``, then ``key number ... number`` a row.

The header fixes how many numbers end a line, so a key may hold spaces. fastText ends each line by
a space. Source: https://code.google.com/archive/p/word2vec, ``word2vec.c``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from firth.errors import FormatError
from firth.files import replacing
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, read_head
from firth.textfiles import TextFile, compressing

NAME = "word2vec text"


def sizes(line: bytes) -> tuple[int, int] | None:
    """The two numbers of a header line, or ``None`` where it is none."""
    match = text.HEADER.fullmatch(line.rstrip(b"\r\n"))
    return (int(match[1]), int(match[2])) if match else None


def recognise(head: Head) -> bool:
    """Two whole numbers in the first line, and text after it that is not GloVe of one number a row."""
    first, _, rest = head.data.partition(b"\n")
    header = sizes(first)
    if header is None or (len(first) == len(head.data) and not head.whole):
        return False
    row, end, _ = rest.partition(b"\n")
    if end and header[1] != 1 and len(text.fields(row)) == 2 and text.count_values(row) == 1:
        return False  # GloVe of one number a row, whose first key looks like a number
    return not is_binary(rest, *header, whole=head.whole)


def is_binary(rest: bytes, rows: int, dim: int, *, whole: bool) -> bool:
    """Whether what follows a header of ``rows dim`` is word2vec binary, as far as bytes can tell.

    Args:
        rest: the first bytes after the header.
        whole: whether they are all there are.
    """
    row = rest.split(b"\n", 1)[0]
    values = text.count_values(row)
    if 1 <= dim <= values:
        return False
    if any(byte < 9 or 13 < byte < 32 for byte in rest[:1024]):
        return True  # float32 numbers are full of bytes that text does not hold
    if values or not whole or not 1 <= rows <= len(rest):
        return False
    place = 0
    for _ in range(rows):
        space = rest.find(b" ", place)
        place = space + 1 + 4 * dim
        if space < 0 or place > len(rest):
            return False
    return not rest[place:].strip(b"\n")


def check_sizes(path: Path, header: tuple[int, int]) -> tuple[int, int]:
    """The header, if it could be true of any file."""
    rows, dim = header
    if rows < 1 or dim < 1:
        raise FormatError(
            f"{path}, line 1: the header says {rows} rows of {dim} numbers; both must be 1 or more"
        )
    if dim > text.LONGEST_LINE // 2:
        raise FormatError(f"{path}, line 1: the header says {dim:,} numbers a row, which no file holds")
    return rows, dim


def read(path: Path, options: Options) -> Table:
    """Read word2vec text.

    Raises:
        FormatError: the header does not fit the file, or a line is not a key and numbers.
        StorageError: it cannot be read.
    """
    with TextFile(path) as file:
        first = _first_line(file, path)
        header = sizes(first)
        if header is None:
            raise _no_header(path, first)
        claimed, dim = check_sizes(path, header)
        most = claimed if options.limit is None else min(claimed, options.limit)
        expected = 0 if file.compression is not None else min(most, text.most_rows(path, dim))
        rows = Rows(path, dim, expected, options.errors)
        limit = options.limit if options.limit is not None and options.limit < claimed else None
        found = text.read_rows(file, path, dim, rows, first_line=2, named=True, limit=limit)
    if limit is None and found != claimed:
        lies = (
            "too few: the file is cut or the header lies" if found < claimed else "too many: the header lies"
        )
        raise FormatError(
            f"{path}: the header promises {claimed:,} rows and {found:,} follow, {lies}; "
            f"limit={min(found, claimed)} reads that many"
        )
    return rows.table()


def inspect(path: Path, options: Options) -> Facts:
    """What the header claims, and the first keys."""
    head = read_head(path)
    first, _, rest = head.data.partition(b"\n")
    header = sizes(first)
    if header is None:
        raise _no_header(path, first)
    rows, dim = check_sizes(path, header)
    lines = text.head_lines(replace(head, data=rest))
    return Facts(rows, dim, "text", text.first_keys(lines, dim))


def _no_header(path: Path, first: bytes) -> FormatError:
    return FormatError(
        f"{path}, line 1: {first[:40].decode(errors='replace')!r} is no header `rows dim`; "
        "header=False reads GloVe text"
    )


def _first_line(file: TextFile, path: Path) -> bytes:
    data = b""
    while len(data) < 256 and not data.endswith(b"\n"):
        byte = file.read(1)
        if not byte:
            break
        data += byte
    if not data:
        raise FormatError(f"{path} is empty: there are no vectors in it")
    return data


def write(path: Path, table: Table) -> None:
    """Write word2vec text; the numbers read back exactly.

    Raises:
        FormatError: a key holds a line end, or a number is not finite.
        StorageError: the file cannot be written.
    """
    with replacing(path) as raw, compressing(raw, path) as file:
        file.write(b"%d %d\n" % table.matrix.shape)
        text.write_rows(file, path, table, NAME)


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys with a line end by ``FormatError``."""
    for key in keys:
        text.encode_key(key, path, NAME)


FORMAT = Format("word2vec", (".txt", ".vec"), recognise, read, write, check, inspect=inspect, packed=True)
