"""The file formats of vectors: one module each behind one table.

A new format is a module with a ``FORMAT`` and a line in ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError, SettingError, StorageError
from firth.files import check_folder_writable, check_writable, storage_error
from firth.formats import (
    fasttext_bin,
    floret,
    gensim_kv,
    glove,
    npy,
    parquet,
    projector,
    safetensors,
    static_folder,
    word2vec_binary,
    word2vec_text,
)
from firth.formats.table import (
    PIECE,
    Facts,
    Format,
    Head,
    Options,
    Table,
    names_in,
    parts_of,
    read_head,
)
from firth.textfiles import compression_of

__all__ = [
    "FORMATS",
    "Facts",
    "Format",
    "Options",
    "Table",
    "check_target",
    "format_for_writing",
    "inspect",
    "lost",
    "parts_of",
    "read",
    "recognise",
    "write",
]

# Asked in this order: what is more particular first.
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        safetensors,
        fasttext_bin,
        floret,
        npy,
        parquet,
        static_folder,
        projector,
        gensim_kv,
        word2vec_text,
        word2vec_binary,
        glove,
    )
}

# What people try to open, by its first bytes, and the way out.
_PICKLE = (
    "a Python pickle (gensim's own form?), which is never opened, since it can run any code; "
    "use save_word2vec_format in gensim, or format='gensim' to have an installed gensim open it"
)
_FOREIGN = (
    *((bytes((0x80, protocol)), _PICKLE) for protocol in range(2, 6)),
    (b"PK\x03\x04", "a zip archive (.npz?); unpack it first"),
    (b"\x89HDF", "an HDF5 file, which is not read as vectors"),
)


def recognise(path: Path, header: bool | None = None) -> Format:
    """The format of a file or folder by its content.

    Args:
        path: the file, which may be compressed by gzip, bzip2, xz or Zstandard; or the folder.
        header: for text that reads both ways (GloVe whose first line is ``1 2``): whether the
            first line is a header.

    Raises:
        FormatError: it is empty, or none of the formats.
        StorageError: it cannot be read, or is a folder without vectors.
    """
    head = read_head(path)
    if head.names is not None:
        for row in FORMATS.values():
            if row.folder is not None and row.recognise(head):
                return row
        raise _no_folder(head)
    for magic, what in _FOREIGN:
        if head.data.startswith(magic):
            raise FormatError(f"{path} is {what}")
    if header is False:
        return FORMATS["glove"]
    for name, row in FORMATS.items():
        if row.folder is None and row.recognise(head):
            if head.compression and not _reads_packed(row):
                raise FormatError(
                    f"{path} is {head.compression}-compressed {name}, which is not read compressed; unpack it"
                )
            return FORMATS["word2vec"] if header and name == "glove" else row
    raise FormatError(
        f"{path} is no file of vectors that firth knows ({', '.join(FORMATS)}); it begins with {_show(head)}"
    )


def _reads_packed(row: Format) -> bool:
    return row.packed or row.name == "word2vec-binary"


def _no_folder(head: Head) -> StorageError:
    names = sorted(head.names or ())
    what = f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
    folders = ", ".join(name for name, row in FORMATS.items() if row.folder is not None)
    known = f" ({folders})" if folders else ""
    return StorageError(
        f"cannot read {head.path}: it is a folder, and none of vectors that firth knows{known}; {what}"
    )


def _show(head: Head) -> str:
    """The first bytes: as text where they are some, else in hexadecimal."""
    data = head.data[:24]
    text = data.decode(errors="replace").rstrip("\ufffd" if len(data) == 24 else "")
    if "\ufffd" in text or any(ord(char) < 32 and char not in "\t\r\n" for char in text):
        return f"the bytes {data[:16].hex(' ')}"
    return repr(text)


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise SettingError(f"format is {name!r}; one of {', '.join(FORMATS)} is expected")
    return FORMATS[name]


def _row_for(path: Path, name: str | None, options: Options) -> Format:
    """The format called ``name``, for a path that can be one; or the one that the content shows."""
    if name is None:
        return recognise(path, options.header)
    row = _named(name)
    head = read_head(path)  # the same sentences for a missing, unreadable or empty file
    if head.names is not None and row.folder is None:
        raise StorageError(f"cannot read {path}: it is a folder, a file of vectors is needed")
    if head.names is None and row.folder is not None:
        raise StorageError(f"cannot read {path}: it is a file, and {name} is a folder; leave the format out")
    return row


def read(path: Path, name: str | None, options: Options) -> Table:
    """Read a file or folder of vectors: of format ``name``, or of what its content shows.

    Raises:
        FormatError: also where the file changed meanwhile, or is of another format than ``name``.
    """
    row = _row_for(path, name, options)
    before = _state(path)
    try:
        table = row.read(path, options)
    except FormatError as error:
        if _state(path) != before:
            raise _changed(path) from error
        raise _other_format(path, name, error) from error
    if _state(path) != before:
        raise _changed(path)
    return _rounded(table, path) if options.dtype == "float16" else table


def _other_format(path: Path, name: str | None, error: FormatError) -> FormatError:
    """The error, with what the content shows where another format was named."""
    if name is None:
        return error
    try:
        found = recognise(path).name
    except (FormatError, StorageError):
        return error
    return error if found == name else FormatError(f"{error}; its content is that of format={found!r}")


def _state(path: Path) -> list[tuple[str, int, int, int]]:
    """What changes when a file, or one in a folder, is written."""
    files = [path / name for name in sorted(names_in(path))] if path.is_dir() else [path]
    try:
        facts = [(file, file.stat()) for file in files]
    except OSError as error:
        raise storage_error(error, path, "read") from error
    return [(file.name, fact.st_ino, fact.st_size, fact.st_mtime_ns) for file, fact in facts]


def _changed(path: Path) -> FormatError:
    return FormatError(f"{path} changed while it was read; read it again when nothing writes to it")


def _rounded(table: Table, path: Path) -> Table:
    """The table with each number the nearest float16; a table in memory is changed in place."""
    matrices: list[NDArray[np.float32] | None] = []
    for matrix in (table.matrix, table.context):
        if matrix is None:
            matrices.append(None)
            continue
        target = matrix if matrix.flags.writeable else np.empty(matrix.shape, np.float32)
        step = max(1, PIECE // matrix.shape[1])
        for start in range(0, len(matrix), step):
            with np.errstate(over="ignore"):
                part = np.asarray(matrix[start : start + step]).astype(np.float16)
            if not np.isfinite(part).all():
                key = table.keys[start + int(np.argmin(np.isfinite(part).all(axis=1)))]
                raise FormatError(
                    f"{path}: the vector of {key!r} holds a number beyond float16 (65,504); "
                    "read it as float32"
                )
            target[start : start + step] = part
        matrices.append(target)
    assert matrices[0] is not None
    return replace(table, matrix=matrices[0], context=matrices[1], storage="float16")


def inspect(path: Path, name: str | None = None, options: Options | None = None) -> tuple[Format, Facts]:
    """What a file of vectors holds, by its header and first rows; the numbers are not read.

    A format that has no short way is read in full.

    Raises:
        FormatError, StorageError: as ``read``, for what is seen of the file.
    """
    options = Options() if options is None else options
    row = _row_for(path, name, options)
    if row.inspect is not None:
        try:
            return row, row.inspect(path, options)
        except FormatError as error:
            raise _other_format(path, name, error) from error
    table = row.read(path, options)
    rows, dim = table.matrix.shape
    facts = Facts(rows, dim, table.storage, tuple(table.keys[:10]), parts_of(table), table.metadata)
    return row, facts


def format_for_writing(path: Path, name: str | None) -> Format:
    """The format called ``name``, or the one that the ending of ``path`` chooses, or the native one.

    ``.gz``, ``.bz2``, ``.xz`` and ``.zst`` after another ending compress text.

    Raises:
        SettingError: no such format, or one that is not written compressed.
    """
    packed = compression_of(path)
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if name is not None:
        row = _named(name)
    else:
        row = next((row for row in FORMATS.values() if suffix in row.suffixes), FORMATS["safetensors"])
    if packed and not row.packed:
        texts = ", ".join(one for one, known in FORMATS.items() if known.packed)
        raise SettingError(
            f"cannot write {path}: {row.name} is written uncompressed ({texts} are compressed); "
            f"leave {path.suffix} out"
        )
    return row


def check_target(path: Path, row: Format) -> None:
    """Whether ``row`` can be written to ``path``, before long work.

    Raises:
        StorageError: there is something that is not to be replaced, or no folder for it.
    """
    if row.folder is None:
        check_writable(path)
    else:
        check_folder_writable(path, row.folder)


def lost(parts: Sequence[str], row: Format) -> list[str]:
    """Which of ``parts`` (see ``table.PARTS``) a file of format ``row`` does not keep."""
    return [] if row.complete else [part for part in parts if part not in row.holds]


def write(path: Path, table: Table, name: str | None) -> None:
    """Write a file or folder of vectors, whole or not at all."""
    row = format_for_writing(path, name)
    if not len(table.keys) and not row.keyless:
        raise FormatError(
            f"cannot write {path}: there are no keys, and {row.name} is made of some; "
            "vectors_for_all(words) gives them, safetensors keeps the subwords alone"
        )
    row.write(path, table)
