"""Lines ``key number number ...`` to rows and back: what word2vec text, fastText .vec and GloVe share.

Bytes are split at ``\\n`` only and lines from the right, so that keys with spaces, NEL (U+0085) or
no-break spaces survive. Blocks of a megabyte go through ``pyarrow.csv``; a block that it refuses
(a key with spaces, a wrong count, rubbish) is read again line by line, which is the definition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError
from firth.files import storage_error
from firth.formats.table import Head, Rows, Table, file_size, warn
from firth.textfiles import TextFile

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1 << 19  # bytes parsed at once
LONGEST_LINE = 1 << 26
SMALL = 1 << 16  # a smaller block is read without pyarrow
WRITTEN = 1 << 18  # numbers turned into text at once

HEADER = re.compile(rb"[ \t]*([+-]?\d{1,30})[ \t]+([+-]?\d{1,30})[ \t\r]*")
NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(?i:nan|inf|infinity)")
ODD = re.compile(rb"[_\0]")  # float() and numpy read over these


def is_number(piece: bytes) -> bool:
    """Whether a piece of a line reads as a number."""
    return NUMBER.fullmatch(piece) is not None


def fields(line: bytes) -> list[bytes]:
    """A line at its single spaces, without its line end and trailing space."""
    return strip_end(line).split(b" ")


def strip_end(line: bytes) -> bytes:
    """A line without ``\\n``, ``\\r`` and the spaces before them; nothing else, a NEL may be a key."""
    return line.rstrip(b"\r\n \t")


def head_lines(head: Head, most: int = 200) -> list[bytes]:
    """The first whole lines of a file."""
    lines = head.data.split(b"\n", most + 1)
    if not head.whole or len(lines) > most + 1:
        lines = lines[:-1]
    return [line for line in lines[:most] if strip_end(line)]


def count_values(line: bytes) -> int:
    """How many numbers stand at the end of a line, its first piece apart."""
    count = 0
    for piece in reversed(fields(line)[1:]):
        if not is_number(piece):
            break
        count += 1
    return count


def first_keys(lines: list[bytes], dim: int) -> tuple[str, ...]:
    """The keys of some lines, for people to see."""
    return tuple(strip_end(line).rsplit(b" ", dim)[0].decode(errors="replace") for line in lines[:10])


def blocks(file: TextFile, path: Path) -> Iterator[bytes]:
    """The rest of a file as blocks of whole lines; the last line may lack its end."""
    rest = b""
    while data := file.read(BLOCK):
        cut = data.rfind(b"\n") + 1
        if cut:
            yield rest + data[:cut]
            rest = data[cut:]
        else:
            rest += data
        if len(rest) > LONGEST_LINE:
            raise FormatError(f"{path}: a line has over {LONGEST_LINE:,} bytes; this is no text format")
    if rest:
        yield rest


def line_blocks(file: TextFile, path: Path) -> Iterator[list[bytes]]:
    """The rest of a file as lists of lines without their ends: ``\\r\\n`` where the first line has it."""
    crlf = None
    for data in blocks(file, path):
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        if crlf is None:
            crlf = lines[0].endswith(b"\r")
        yield [line.removesuffix(b"\r") for line in lines] if crlf else lines


def read_rows(
    file: TextFile, path: Path, dim: int, rows: Rows, *, first_line: int, named: bool, limit: int | None
) -> int:
    """Read lines into ``rows`` until the end or ``limit``.

    Args:
        file: stands at line ``first_line``.
        dim: numbers in a row.
        named: whether ``dim`` is known from a header. If not, a line of more numbers is an error
            and not a key that ends in numbers.
        limit: most rows to read.

    Returns:
        rows read; with a ``limit``, there may be more in the file.

    Raises:
        FormatError: a line that is not a key and ``dim`` numbers.
    """
    blank = 0  # the number of the first blank line; it has to be followed by blank lines only
    data = b"\n"
    for data in blocks(file, path):
        if blank and data.strip(b"\r\n"):
            raise _blank_line(path, blank)
        if blank:
            continue
        line = first_line + len(rows)
        parsed = _parse_fast(data, dim) if len(data) > SMALL else None
        if parsed is None:
            lines, values, blank = _parse_lines(data, path, line, dim, named)
            sizes, keys = np.fromiter(map(len, lines), np.int64, len(lines)), b"".join(lines)
        else:
            keys, sizes, values = parsed
        if limit is not None and len(rows) + len(sizes) >= limit:
            sizes = sizes[: limit - len(rows)]
            keys, values = keys[: int(sizes.sum())], values[: len(sizes)]
        rows.add_joined(keys, sizes, values, lambda row, line=line: f"line {line + row}")  # type: ignore[misc]
        if len(rows) == limit:
            return limit
    if not data.endswith(b"\n"):
        warn(f"{path}: the last line has no line end; if the file was cut, its last number is wrong")
    return len(rows)


def _blank_line(path: Path, line: int) -> FormatError:
    return FormatError(f"{path}, line {line}: the line is blank, and rows follow it")


def _parse_fast(data: bytes, dim: int) -> tuple[bytes, NDArray[np.int64], NDArray[np.float32]] | None:
    """The block by pyarrow, or ``None`` where anything about it is not plain.

    Returns:
        the keys end to end, their lengths in bytes, the numbers.
    """
    import pyarrow as pa
    from pyarrow import csv

    # A lone \r would end a line for pyarrow, and a byte order mark is lost.
    lone = b"\r" in data and data.count(b"\r") != data.count(b"\r\n")
    if lone or data.startswith(b"\xef\xbb\xbf") or 2 * dim >= len(data):
        return None
    trailing = data[: data.find(b"\n")].rstrip(b"\r").endswith(b" ")  # fastText's .vec
    names = [str(column) for column in range(dim + 1 + trailing)]
    types = {name: pa.float32() for name in names[1 : dim + 1]} | {names[0]: pa.binary()}
    if trailing:
        types[names[-1]] = pa.binary()
    try:
        table = csv.read_csv(
            pa.py_buffer(data),
            csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            csv.ParseOptions(delimiter=" ", quote_char=False, escape_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types=types, null_values=[], strings_can_be_null=False, check_utf8=False
            ),
            pa.system_memory_pool(),  # its own would keep tens of megabytes
        )
    except pa.ArrowInvalid:
        return None
    if trailing and any(table.column(dim + 1).to_pylist()):
        return None
    values = np.empty((len(table), dim), np.float32)
    for column in range(dim):
        values[:, column] = _one_array(table.column(column + 1))
    keys, sizes = joined(table.column(0).combine_chunks())
    return keys, sizes, values


def joined(column: pa.BinaryArray) -> tuple[bytes, NDArray[np.int64]]:
    """An Arrow array of bytes (32-bit offsets, no nulls): its values end to end, and their lengths."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return (b"" if data is None else data[int(ends[0]) : int(ends[-1])].to_pybytes()), np.diff(ends)


def _one_array(column: pa.ChunkedArray) -> NDArray[np.float32]:
    array: NDArray[np.float32] = column.to_numpy()
    return array


def _parse_lines(
    data: bytes, path: Path, line: int, dim: int, named: bool
) -> tuple[list[bytes], NDArray[np.float32], int]:
    """The block line by line: keys, values, and the number of the first blank line or 0."""
    keys: list[bytes] = []
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    # A number takes two bytes at least: what a header claims is not allocated unless it can be there.
    values = np.empty(
        (min(len(lines), len(data) // (2 * dim) + 1), dim if len(data) > 2 * dim else 0), np.float32
    )
    blank = 0
    for place, raw in enumerate(lines):
        text = strip_end(raw)
        if not text:
            blank = blank or line + place
            continue
        if blank:
            raise _blank_line(path, blank)
        pieces = text.rsplit(b" ", dim)
        try:
            if len(pieces) <= dim or ODD.search(text, len(pieces[0])):
                raise ValueError
            with np.errstate(over="ignore"):  # a number beyond float32 gets its sentence in Rows
                values[len(keys)] = np.array(pieces[1:], dtype=np.bytes_).astype(np.float32)
        except ValueError:
            raise _bad_line(text, path, line + place, dim) from None
        key = pieces[0]
        if not named and b" " in key and is_number(key.rsplit(b" ", 1)[1]):
            raise _bad_line(text, path, line + place, dim)
        keys.append(key)
    return keys, values[: len(keys)], blank


def _bad_line(text: bytes, path: Path, line: int, dim: int) -> FormatError:
    pieces = text.split(b" ")
    count = count_values(text)
    if count < dim and len(pieces) > dim:
        wrong = next(piece for piece in reversed(pieces) if not is_number(piece))
        return FormatError(
            f"{path}, line {line}: {wrong.decode(errors='replace')[:40]!r} is no number; "
            f"a key and {dim} numbers are expected"
        )
    return FormatError(f"{path}, line {line}: {count} numbers follow the key; {dim} are expected")


def most_rows(path: Path, dim: int) -> int:
    """How many rows of ``dim`` numbers an uncompressed file can hold: a bound that no header can forge."""
    return min(count_ends(path) + 1, file_size(path) // (2 * dim + 1))


def count_ends(path: Path) -> int:
    """How many line ends an uncompressed file has; about a second for three gigabytes in memory."""
    ends = 0
    try:
        with open(path, "rb") as file:
            while data := file.read(BLOCK):
                ends += data.count(b"\n")
    except OSError as error:
        raise storage_error(error, path, "read") from error
    return ends


def most_numbers(path: Path, dim: int) -> int:
    """The bound of ``most_rows`` for lines of numbers without a key."""
    return min(count_ends(path) + 1, file_size(path) // (2 * dim) + 1)


def parse_numbers(data: bytes, path: Path, line: int, dim: int, separator: str) -> NDArray[np.float32]:
    """A block of lines of ``dim`` numbers each, (N, dim) float32.

    Args:
        data: whole lines.
        path: for messages.
        line: the number of the first one.
        separator: one character between numbers.

    Raises:
        FormatError: a line of another length, or something that is no number.
    """
    import pyarrow as pa
    from pyarrow import csv

    names = [str(column) for column in range(dim)]
    if 2 * dim <= len(data) + 1:
        try:
            table = csv.read_csv(
                pa.py_buffer(data),
                csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
                csv.ParseOptions(delimiter=separator, quote_char=False, ignore_empty_lines=False),
                csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float32()), null_values=[]),
                pa.system_memory_pool(),
            )
        except pa.ArrowInvalid:
            table = None
        if table is not None:
            values = np.empty((len(table), dim), np.float32)
            for column in range(dim):
                values[:, column] = _one_array(table.column(column))
            return values
    lines = data.split(b"\n")
    for number, text in enumerate(lines if lines[-1] else lines[:-1], line):
        pieces = text.rstrip(b"\r").split(separator.encode())
        wrong = next((piece for piece in pieces if not is_number(piece)), None)
        if wrong is not None or len(pieces) != dim:
            what = f"{len(pieces)} numbers" if wrong is None else repr(wrong.decode(errors="replace")[:40])
            raise FormatError(f"{path}, line {number}: {what}; {dim} numbers are expected")
    raise FormatError(f"{path}, line {line}: the lines from here on are no table of {dim} numbers")


def write_rows(file: IO[bytes], path: Path, table: Table, format_name: str) -> None:
    """Write ``key number ... number\\n`` for each row; the numbers are the shortest that read back exactly.

    Raises:
        FormatError: a number is NaN or infinite, or a key cannot be written.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = table.keys.to_list()
    for start, numbers in _number_lines(path, table.matrix, names, " "):
        part = names[start : start + len(numbers)]
        keys = pa.array([encode_key(key, path, format_name) for key in part], pa.binary())
        lines = pc.binary_join_element_wise(keys, numbers, b" ")
        lines = pc.binary_join_element_wise(lines, b"\n", b"")
        file.write(b"".join(lines.to_pylist()))


def write_numbers(
    file: IO[bytes], path: Path, matrix: NDArray[np.float32], names: list[str], separator: str
) -> None:
    """Write the numbers of each row alone; ``names`` are its keys, for messages.

    Raises:
        FormatError: a number is NaN or infinite.
    """
    for _, lines in _number_lines(path, matrix, names, separator):
        file.write(b"\n".join(lines.to_pylist()) + b"\n")


def _number_lines(
    path: Path, matrix: NDArray[np.float32], names: list[str], separator: str
) -> Iterator[tuple[int, pa.Array]]:
    """The first row of a block, and its lines of numbers as Arrow's bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    dim = matrix.shape[1]
    step = max(1, WRITTEN // dim)
    for start in range(0, len(matrix), step):
        part = np.ascontiguousarray(matrix[start : start + step])
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            key = names[start + int(np.argmin(finite))]
            raise FormatError(f"cannot write {path}: the vector of {key!r} holds NaN or infinity")
        numbers = pc.cast(pa.array(part.ravel()), pa.string())
        ends = np.arange(len(part) + 1, dtype=np.int32) * dim
        joined_numbers = pc.binary_join(pa.ListArray.from_arrays(ends, numbers), separator)
        yield start, pc.cast(joined_numbers, pa.binary())


def encode_key(key: str, path: Path, format_name: str, *, ends: bool = False) -> bytes:
    """A key as bytes that end at the first number of its line, or ``FormatError``.

    Args:
        ends: whether the key may hold line ends.
    """
    try:
        data = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FormatError(
            f"cannot write {path}: the key {key!r} has no form in UTF-8; use safetensors"
        ) from None
    if b"\n" in data and not ends:
        raise FormatError(
            f"cannot write {path}: the key {key!r} holds a line end, which ends a row in {format_name}; "
            "use safetensors"
        )
    return data
