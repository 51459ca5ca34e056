"""Parquet: the columns ``token`` string, ``count`` int64 (where there are counts), ``vector``
fixed_size_list<float32>, in groups of 65,536 rows; metadata as JSON under the schema's key ``firth``.

Read are also tables that others wrote: keys in ``token``, ``word``, ``key`` or the only column of strings,
vectors in ``vector``, ``embedding``, ``vectors``, ``embeddings`` or the only column of lists (of any length
kind and float type, each row as long as the first). A batch of rows is held at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError
from firth.files import replacing, storage_error
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, file_size

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet as pq

NAME = "Parquet"
GROUP = 65_536  # rows of a group that is written
BATCH = 1 << 15  # numbers of a batch
TOKENS = ("token", "word", "key")
VECTORS = ("vector", "embedding", "vectors", "embeddings")


class Columns(NamedTuple):
    """The names of the columns that are read."""

    token: str
    vector: str
    counts: str | None


def recognise(head: Head) -> bool:
    """``PAR1`` and the first byte of a page's header, which no text has."""
    return head.data.startswith(b"PAR1") and head.data[4:5] in (b"\x15", b"\x19", b"\x00")


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, its errors as sentences about ``path``."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    pool = pa.default_memory_pool()
    try:
        # Arrow's own pool would keep tens of megabytes, and a ParquetFile takes that of the process.
        pa.set_memory_pool(pa.system_memory_pool())
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise FormatError(f"{path} is cut or damaged Parquet ({_reason(error)})") from error
    except OSError as error:
        if error.errno is not None:
            raise storage_error(error, path, "read") from error
        raise FormatError(f"{path} is cut or damaged Parquet ({_reason(error)})") from error
    finally:
        pa.set_memory_pool(pool)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120].rstrip(".")


def columns(path: Path, schema: pa.Schema) -> Columns:
    """Which columns hold keys, vectors and counts.

    Raises:
        FormatError: there are none that could.
    """
    import pyarrow.types as kinds

    def lists(kind: pa.DataType) -> bool:
        listed = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        return bool(listed and kinds.is_floating(kind.value_type))

    def strings(kind: pa.DataType) -> bool:
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind))

    names = {
        "token": [f.name for f in schema if strings(f.type)],
        "vector": [f.name for f in schema if lists(f.type)],
    }
    chosen = {}
    for what, usual in (("token", TOKENS), ("vector", VECTORS)):
        there = names[what]
        found = next((name for name in usual if name in there), there[0] if len(there) == 1 else None)
        if found is None:
            kind = "strings" if what == "token" else "lists of floats"
            raise FormatError(
                f"{path} has the columns {', '.join(schema.names[:8])}; one of {kind} "
                f"called {what!r} is expected"
            )
        chosen[what] = found
    place = schema.get_field_index("count")
    counts = place >= 0 and kinds.is_integer(schema.field(place).type)
    return Columns(chosen["token"], chosen["vector"], "count" if counts else None)


def read(path: Path, options: Options) -> Table:
    """Read Parquet in batches.

    Raises:
        FormatError: no such columns, or the file is damaged.
        StorageError: it cannot be read.
    """
    rows: Rows | None = None
    counts: list[NDArray[np.int64]] = []
    with _opened(path) as file:
        names = columns(path, file.schema_arrow)
        dim = _dim(path, file, names.vector)
        # A byte of a file may stand for many rows: the claimed number is not allocated.
        expected = min(file.metadata.num_rows, file_size(path) // (4 * dim) + 1)
        rows = Rows(path, dim, max(0, expected), options.errors)
        for batch in file.iter_batches(
            max(1, BATCH // dim), columns=[name for name in names if name], use_threads=False
        ):
            left = None if options.limit is None else options.limit - len(rows)
            if left == 0:
                break
            part = batch if left is None else batch.slice(0, left)
            _add(path, rows, counts, part, names)
        metadata = _metadata(path, file.schema_arrow)
    return rows.table(np.concatenate(counts) if counts else None, metadata)


def _dim(path: Path, file: pq.ParquetFile, name: str) -> int:
    """The length of a vector: of the type, or of the first row."""
    import pyarrow.types as kinds

    kind = file.schema_arrow.field(name).type
    if kinds.is_fixed_size_list(kind):
        dim = int(kind.list_size)
    else:
        first = next(file.iter_batches(1, columns=[name]), None)
        value = None if first is None or not len(first) else first.column(0)[0].as_py()
        dim = len(value or ())
    if dim < 1:
        raise FormatError(f"{path}: the vectors of the column {name!r} are empty; there are none to read")
    return dim


def _add(
    path: Path, rows: Rows, counts: list[NDArray[np.int64]], batch: pa.RecordBatch, names: Columns
) -> None:
    """One batch into ``rows`` and ``counts``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    start = len(rows)
    for name in names:
        if name is not None and batch.column(name).null_count:
            row = int(np.argmax(batch.column(name).is_null().to_numpy(zero_copy_only=False)))
            raise FormatError(f"{path}, row {start + row:,}: the {name} is missing")
    vectors = batch.column(names.vector)
    lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)
    if not (lengths == rows.dim).all():
        row = int(np.argmax(lengths != rows.dim))
        raise FormatError(
            f"{path}, row {start + row:,}: the vector has {int(lengths[row])} numbers; "
            f"{rows.dim} are expected"
        )
    flat = vectors.flatten()
    if flat.null_count:
        row = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))) // rows.dim
        raise FormatError(f"{path}, row {start + row:,}: a number of the vector is missing")
    with np.errstate(over="ignore"):
        values = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    keys, sizes = text.joined(batch.column(names.token).cast(pa.binary()))
    rows.add_joined(keys, sizes, values.reshape(-1, rows.dim), lambda row: f"row {start + row:,}")
    if names.counts is not None:
        counts.append(pc.cast(batch.column(names.counts), pa.int64()).to_numpy(zero_copy_only=False))


def _metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    data = (schema.metadata or {}).get(b"firth")
    if data is None:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the metadata are no JSON; the file is damaged") from error
    return found if isinstance(found, dict) else {}


def inspect(path: Path, options: Options) -> Facts:
    """What the footer says, and the first keys."""
    with _opened(path) as file:
        names = columns(path, file.schema_arrow)
        kind = file.schema_arrow.field(names.vector).type
        batch = next(file.iter_batches(10, columns=[names.token]), None)
        keys = () if batch is None else tuple(str(key) for key in batch.column(0).to_pylist())
        metadata = _metadata(path, file.schema_arrow)
        inside = (("counts",) if names.counts else ()) + (("metadata",) if metadata else ())
        dim = _dim(path, file, names.vector)
        dtype = {"halffloat": "float16", "float": "float32", "double": "float64"}.get(
            str(kind.value_type), ""
        )
        return Facts(file.metadata.num_rows, dim, dtype, keys, inside, metadata)


def write(path: Path, table: Table) -> None:
    """Write Parquet, compressed by Zstandard; vectors plain, since no two numbers are alike.

    Raises:
        FormatError: a key has no form in UTF-8.
        StorageError: the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet as pq

    check(path, table.keys)
    dim = table.matrix.shape[1]
    fields = [pa.field("token", pa.string(), nullable=False)]
    if table.counts is not None:
        fields.append(pa.field("count", pa.int64(), nullable=False))
    fields.append(
        pa.field("vector", pa.list_(pa.field("element", pa.float32(), nullable=False), dim), nullable=False)
    )
    schema = pa.schema(fields, {"firth": json.dumps(table.metadata)} if table.metadata else None)
    names = table.keys.to_list()
    with (
        replacing(path) as file,
        pq.ParquetWriter(
            file, schema, compression={"token": "zstd", "vector.list.element": "none"}, use_dictionary=False
        ) as writer,
    ):
        for start in range(0, len(names), GROUP):
            rows = slice(start, start + GROUP)
            flat = pa.array(np.ascontiguousarray(table.matrix[rows], np.float32).ravel())
            arrays = [pa.array(names[rows], pa.string())]
            if table.counts is not None:
                arrays.append(pa.array(table.counts[rows]))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=fields[-1].type))
            writer.write_batch(pa.record_batch(arrays, schema=schema), row_group_size=GROUP)


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys that are no Unicode text (lone surrogates) by ``FormatError``."""
    for key in keys:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise FormatError(
                f"cannot write {path}: the key {key!r} has no form in UTF-8; use safetensors"
            ) from None


FORMAT = Format(
    "parquet", (".parquet",), recognise, read, write, check, holds=("counts", "metadata"), inspect=inspect
)
