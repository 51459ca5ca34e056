"""The file formats of vectors: one module each behind one table.

A new format is a module with a ``FORMAT`` and a line in ``FORMATS``.
"""

from __future__ import annotations

from pathlib import Path

from firth.errors import FormatError, SettingError
from firth.formats import glove, safetensors, word2vec_binary, word2vec_text
from firth.formats.table import Format, Head, Options, Table, read_head

__all__ = ["FORMATS", "Format", "Options", "Table", "format_for_writing", "read", "recognise", "write"]

# Asked in this order: what is more particular first.
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (safetensors, word2vec_text, word2vec_binary, glove)
}

# What people try to open, by its first bytes, and the way out.
_FOREIGN = (
    (b"\xba\x16\x4f\x2f", "a fastText .bin model, which is not read; fastText's .vec file is"),
    (
        b"\x80",
        "a Python pickle (gensim's native form?), which is never opened; use save_word2vec_format in gensim",
    ),
    (b"\x93NUMPY", "a numpy array without keys; build Vectors(keys, matrix)"),
    (b"PK\x03\x04", "a zip archive (.npz?); unpack it first"),
    (b"PAR1", "a Parquet file, which is not read as vectors"),
    (b"\x89HDF", "an HDF5 file, which is not read as vectors"),
)


def recognise(path: Path, header: bool | None = None) -> Format:
    """The format of a file by its content.

    Args:
        path: the file, which may be compressed by gzip, bzip2, xz or Zstandard.
        header: for text that reads both ways (GloVe whose first line is ``1 2``): whether the
            first line is a header.

    Raises:
        FormatError: it is empty, or none of the formats.
        StorageError: it cannot be read.
    """
    head = read_head(path)
    for magic, what in _FOREIGN:
        if head.data.startswith(magic):
            raise FormatError(f"{path} is {what}")
    if header is False:
        return FORMATS["glove"]
    for name, row in FORMATS.items():
        if row.recognise(head):
            if name == "safetensors" and head.compression:
                raise FormatError(
                    f"{path} is {head.compression}-compressed safetensors, which cannot be mapped; unpack it"
                )
            return FORMATS["word2vec"] if header and name == "glove" else row
    raise FormatError(
        f"{path} is no file of vectors that firth knows ({', '.join(FORMATS)}); it begins with {_show(head)}"
    )


def _show(head: Head) -> str:
    return repr(head.data[:24].decode(errors="replace"))


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise SettingError(f"format is {name!r}; one of {', '.join(FORMATS)} is expected")
    return FORMATS[name]


def read(path: Path, name: str | None, options: Options) -> Table:
    """Read a file of vectors: of format ``name``, or of what its content shows."""
    if name is None:
        row = recognise(path, options.header)
    else:
        row = _named(name)
        read_head(path)  # the same sentences for a missing, unreadable or empty file
    return row.read(path, options)


def format_for_writing(path: Path, name: str | None) -> Format:
    """The format called ``name``, or the one that the ending of ``path`` chooses, or the native one.

    Raises:
        SettingError: no such format, or an ending that promises compression.
    """
    check_uncompressed(path)
    if name is not None:
        return _named(name)
    suffix = path.suffix.lower()
    return next((row for row in FORMATS.values() if suffix in row.suffixes), FORMATS["safetensors"])


def check_uncompressed(path: Path) -> None:
    """Refuse a name that promises compression, which firth does not write."""
    if path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst"):
        raise SettingError(
            f"cannot write {path}: vectors are written uncompressed; save as {path.stem} and compress it"
        )


def write(path: Path, table: Table, name: str | None) -> None:
    """Write a file of vectors, whole or not at all."""
    format_for_writing(path, name).write(path, table)
