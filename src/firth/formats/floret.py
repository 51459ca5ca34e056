"""floret tables: text, ``bucket dim minn maxn hashCount hashSeed BOW EOW``, then ``row number ... number``.

A table has no words: every word is the mean of rows that it and its n-grams are hashed to. So there are no
keys, and ``vectors_for_all(words)`` gives some. Source: floret, ``FastText::saveFloretVectors`` in
``src/fasttext.cc``; spaCy, ``Vectors.get_batch`` in ``spacy/vectors.pyx``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from firth.errors import FormatError, SettingError
from firth.files import replacing
from firth.formats import text
from firth.formats.table import Facts, Format, Head, Options, Rows, Table, read_head
from firth.keys import Keys
from firth.subwords import DenseRows, FloretSubwords, blocks
from firth.textfiles import TextFile, compressing

NAME = "floret table"
LONGEST_HEADER = 1 << 10
MOST = 1 << 31
_HEADER = re.compile(rb"(\d{1,20}) (\d{1,20}) (\d{1,20}) (\d{1,20}) (\d{1,20}) (\d{1,20}) (\S+) (\S+)[ \r]*")


class Settings(NamedTuple):
    """The first line."""

    bucket: int
    dim: int
    minn: int
    maxn: int
    hash_count: int
    hash_seed: int
    bow: bytes
    eow: bytes


def settings(line: bytes) -> Settings | None:
    """The settings in a first line, or ``None``."""
    match = _HEADER.fullmatch(line)
    if match is None:
        return None
    bucket, dim, minn, maxn, count, seed = (int(piece) for piece in match.groups()[:6])
    # Six numbers and a key of two words are what a line of other text may be too.
    odd = text.is_number(match[7]) or text.is_number(match[8])
    return None if odd else Settings(bucket, dim, minn, maxn, count, seed, match[7], match[8])


def recognise(head: Head) -> bool:
    """Six whole numbers and two marks in the first line."""
    line, end, _ = head.data[:LONGEST_HEADER].partition(b"\n")
    return bool(end) and settings(line) is not None


def _settings(path: Path) -> Settings:
    """Those of a file, or ``FormatError`` where they cannot be."""
    line, end, _ = read_head(path).data[:LONGEST_HEADER].partition(b"\n")
    found = settings(line) if end else None
    if found is None:
        raise FormatError(
            f"{path} does not begin with a line `bucket dim minn maxn hashCount hashSeed BOW EOW`; "
            f"this is no {NAME}"
        )
    if not (0 < found.bucket < MOST and 0 < found.dim < MOST):
        raise FormatError(
            f"{path}, line 1: a table of {found.bucket:,} rows of {found.dim:,} numbers cannot be"
        )
    return found


def read(path: Path, options: Options) -> Table:
    """Read a table; ``limit`` does not apply, a part of it would give other vectors.

    Raises:
        FormatError: the header does not fit the rows, or a row is none.
        StorageError: it cannot be read.
    """
    found = _settings(path)
    with TextFile(path) as file:
        while file.read(1) not in (b"\n", b""):  # over the first line
            pass
        expected = 0 if file.compression is not None else min(found.bucket, text.most_rows(path, found.dim))
        rows = Rows(path, found.dim, expected, "strict")
        text.read_rows(file, path, found.dim, rows, first_line=2, named=True, limit=None)
    if len(rows) != found.bucket:
        raise FormatError(
            f"{path}: the header promises {found.bucket:,} rows and {len(rows):,} follow; "
            "it is cut or damaged"
        )
    table = rows.table()
    for row, name in enumerate(table.keys):
        if name != str(row):
            raise FormatError(f"{path}, line {row + 2}: row {row} is named {name!r:.40}; rows count from 0")
    try:
        subwords = FloretSubwords(
            DenseRows(table.matrix),
            found.minn,
            found.maxn,
            hash_count=found.hash_count,
            hash_seed=found.hash_seed,
            bow=found.bow.decode("utf-8", options.errors),
            eow=found.eow.decode("utf-8", options.errors),
        )
    except (SettingError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}, line 1: the settings cannot be: {error}") from error
    return Table(Keys(()), np.empty((0, found.dim), np.float32), subwords=subwords)


def inspect(path: Path, options: Options) -> Facts:
    """What the first line says."""
    found = _settings(path)
    return Facts(0, found.dim, "text", (), ("subwords", f"{found.bucket:,} rows of n-grams"))


def write(path: Path, table: Table) -> None:
    """Write the table that words are made of; keys, and vectors that it does not give, are left out.

    Raises:
        FormatError: the subwords are not of floret's kind, or a number is not finite.
        StorageError: the file cannot be written.
    """
    subwords = table.subwords
    if not isinstance(subwords, FloretSubwords):
        has = "no subwords" if subwords is None else f"subwords of {subwords.kind}'s kind"
        raise FormatError(
            f"cannot write {path}: the vectors have {has}, and a {NAME} is made of floret's; use safetensors"
        )
    rows = subwords.table
    matrix = rows.matrix if isinstance(rows, DenseRows) else np.concatenate(list(blocks(rows)))
    marks = [text.encode_key(mark, path, NAME) for mark in (subwords.bow, subwords.eow)]
    if any(not mark or re.search(rb"\s", mark) or text.is_number(mark) for mark in marks):
        raise FormatError(
            f"cannot write {path}: {subwords.bow!r} and {subwords.eow!r} cannot be the marks of a word in a "
            f"{NAME}; use safetensors"
        )
    numbers = (*matrix.shape, subwords.minn, subwords.maxn, subwords.hash_count, subwords.hash_seed)
    with replacing(path) as raw, compressing(raw, path) as file:
        file.write(b" ".join([*(b"%d" % number for number in numbers), *marks]) + b"\n")
        text.write_rows(file, path, Table(Keys(str(row) for row in range(len(matrix))), matrix), NAME)


def check(path: Path, keys: Iterable[str]) -> None:
    """There are no keys in the file, so that none is refused."""


FORMAT = Format(
    "floret",
    (".floret",),
    recognise,
    read,
    write,
    check,
    holds=("subwords",),
    inspect=inspect,
    packed=True,
    keyless=True,
)
