"""Files of records -> their texts: JSON lines, CSV and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from firth.errors import FirthError, SourceError
from firth.files import storage_error
from firth.textfiles import Bytes, Checked, TextFile, text_lines

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_CSV_BLOCK = 16 << 20  # a record of CSV must fit into a block
_PARQUET_ROWS = 1024

Item = str | Sequence[str]


def record_kind(path: Path) -> str | None:
    """What the name says: ``"jsonl"``, ``"csv"``, ``"tsv"``, ``"parquet"``, or ``None`` for plain text."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return _KINDS.get(suffixes[-1]) if suffixes else None


def jsonl_items(file: TextFile, errors: str, field: str) -> Iterator[Item]:
    """The strings (or lists of tokens) under ``field`` of each line's object; ``null`` is passed over.

    Raises:
        SourceError: a line that is no JSON object, or without the field.
    """
    for line_number, line in enumerate(text_lines(Checked(file, file.name, errors)), 1):
        if not line.strip():
            continue
        place = f"{file.name}, line {line_number:,}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{place} is not JSON: {error}") from None
        except RecursionError:
            raise SourceError(f"{place} is not JSON that can be read: it is nested too deeply") from None
        if not isinstance(record, dict):
            raise SourceError(f"{place} holds a JSON {type(record).__name__}, expected an object")
        if field not in record:
            raise SourceError(f"{place} has no field {field!r}{_offer(list(record), 'field')}")
        value = record[field]
        if _is_item(value):
            yield value
        elif value is not None:
            raise SourceError(
                f"{place}: field {field!r} holds a JSON {type(value).__name__}, "
                f"expected a string or a list of strings"
            )


def _is_item(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(token, str) for token in value)
    )


def csv_items(file: TextFile, errors: str, field: str, delimiter: str) -> Iterator[Item]:
    """The values of the column ``field``; the first line names the columns, quoting as in RFC 4180.

    Raises:
        SourceError: no such column, a line with another number of columns, a record over 16 MiB.
    """
    import pyarrow as pa
    from pyarrow import csv

    exact = _Exact(Checked(file, file.name, errors))
    try:
        reader = csv.open_csv(
            pa.PythonFile(exact, mode="r"),
            read_options=csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={field: pa.string()}, include_columns=[field], strings_can_be_null=False
            ),
        )
        for batch in reader:
            yield from (value for value in batch.column(0).to_pylist() if value is not None)
    except (pa.ArrowException, KeyError) as error:
        if exact.failed is not None:
            raise exact.failed from None
        if isinstance(error, KeyError) or "include_columns" in str(error):
            raise SourceError(
                f"{file.name} has no column {field!r}; name the column of the text with field= (--field)"
            ) from None
        raise SourceError(f"cannot read {file.name} as CSV: {str(error).splitlines()[0]}") from error


def parquet_items(path: Path, field: str, done: list[int]) -> Iterator[Item]:
    """The values of the column ``field`` of strings, or of lists of strings (one sentence a row).

    ``done[0]`` grows to the size of the file as rows are read.

    Raises:
        SourceError: no Parquet file, no such column, or a column of something else.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise SourceError(f"{path} has no column {field!r}{_offer(names, 'column')}")
            _check_column(table.schema_arrow.field(field).type, path, field)
            base, rows, size = done[0], 0, path.stat().st_size
            for batch in table.iter_batches(_PARQUET_ROWS, columns=[field], use_threads=False):
                yield from (value for value in batch.column(0).to_pylist() if value is not None)
                rows += batch.num_rows
                done[0] = base + size * rows // max(1, table.metadata.num_rows)
    except UnicodeDecodeError as error:
        reason = error.reason
        raise SourceError(f"{path}: column {field!r} holds a value that is not UTF-8 ({reason})") from None
    except pa.ArrowException as error:
        raise SourceError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if error.errno is not None:
            raise storage_error(error, path, "read") from error
        raise SourceError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from error


def _check_column(kind: Any, path: Path, field: str) -> None:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise SourceError(
            f"{path}: column {field!r} holds {kind}, expected strings or lists of strings; "
            f"name another with field= (--field)"
        )


def _offer(names: Sequence[str], what: str) -> str:
    """The end of a sentence that tells the fields there are."""
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"; it has {shown}: name the {what} of the text with field= (--field)" if names else ""


class _Exact:
    """A stream that never gives more than it is asked for, as pyarrow expects.

    pyarrow turns an error of ours into one of its own; ``failed`` keeps the first.
    """

    closed = False

    def __init__(self, stream: Bytes) -> None:
        self._stream = stream
        self._rest = b""
        self.failed: FirthError | None = None

    def read(self, size: int = -1, /) -> bytes:
        try:
            if not self._rest:
                self._rest = self._stream.read(size)
        except FirthError as error:
            self.failed = error
            raise
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None: ...

    def flush(self) -> None: ...
