"""Writing fastText's binary model, version 12: what ``fasttext`` and gensim load and ask for vectors.

The layout stands in ``fasttext_bin``. Vectors without subwords become a model without n-grams. Without a
context table the output table is zeros, which the vectors do not depend on; the file is no classifier and
no good start for more training then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError
from firth.files import replacing
from firth.formats.table import PIECE, Table
from firth.subwords import FastTextSubwords, blocks

MAGIC = 793712314
VERSION = 12
LONGEST_WORD = (1 << 16) - 1
NAME = "fastText .bin"

# Of the settings those that do not change the vectors, with fastText's defaults (src/args.cc).
DEFAULTS = {"ws": 5, "epoch": 5, "min_count": 1, "neg": 5, "lr_update_rate": 100, "t": 1e-4}
MODELS = {"cbow": 1, "skipgram": 2}
LOSSES = {"ns": 2, "softmax": 3, "ova": 4}


def write(path: Path, table: Table) -> None:
    """Write a model whose words and n-grams have the vectors of ``table``, to rounding.

    Raises:
        FormatError: a key cannot be written, or the subwords are not those of a fastText
            model with all its n-grams.
        StorageError: the file cannot be written.
    """
    subwords = table.subwords
    if subwords is not None and (not isinstance(subwords, FastTextSubwords) or subwords.kept is not None):
        what = "those of a pruned model" if isinstance(subwords, FastTextSubwords) else "of floret's kind"
        raise FormatError(
            f"cannot write {path}: the subwords are {what}, which a {NAME} has no place for; use safetensors"
        )
    words = [encode_word(key, path) for key in table.keys]
    with replacing(path) as file:
        file.write(struct.pack("<2i", MAGIC, VERSION))
        file.write(_settings(table, subwords))
        _write_dictionary(file, table, words)
        if subwords is not None:  # the program that reads this has its own words without n-grams
            subwords = FastTextSubwords(subwords.table, subwords.minn, subwords.maxn)
        shared = 0 if subwords is None else subwords.buckets
        rows, dim = table.matrix.shape
        file.write(struct.pack("<?2q", False, rows + shared, dim))
        for start, part in _parts(table.matrix):
            own = part if subwords is None else subwords.own_rows(words[start : start + len(part)], part)
            file.write(np.ascontiguousarray(own, "<f4").data)
        for part in [] if subwords is None else blocks(subwords.table):
            file.write(np.ascontiguousarray(part, "<f4").data)
        file.write(struct.pack("<?2q", False, rows, dim))
        for _, part in _parts(table.matrix if table.context is None else table.context):
            out = part if table.context is not None else np.zeros_like(part)
            file.write(np.ascontiguousarray(out, "<f4").data)


def _parts(matrix: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = max(1, PIECE // matrix.shape[1])
    for start in range(0, len(matrix), step):
        yield start, matrix[start : start + step]


def _settings(table: Table, subwords: FastTextSubwords | None) -> bytes:
    """The settings: what the vectors need, and the rest as a model that was read had it."""
    noted = table.metadata.get("fasttext")
    known: dict[str, Any] = noted if isinstance(noted, dict) else {}
    values = {
        name: known[name] if _fits(known.get(name), default) else default
        for name, default in DEFAULTS.items()
    }
    model = MODELS.get(str(known.get("model")), MODELS["skipgram"])
    loss = LOSSES.get(str(known.get("loss")), LOSSES["ns"]) if table.context is not None else LOSSES["ns"]
    minn, maxn, buckets = (0, 0, 0) if subwords is None else (subwords.minn, subwords.maxn, subwords.buckets)
    return struct.pack(
        "<12id",
        table.matrix.shape[1],
        values["ws"],
        values["epoch"],
        values["min_count"],
        values["neg"],
        1,
        loss,
        model,
        buckets,
        minn,
        maxn,
        values["lr_update_rate"],
        values["t"],
    )


def _fits(value: object, default: float) -> bool:
    return type(value) is type(default) and 0 <= value < 1 << 31


def _write_dictionary(file: IO[bytes], table: Table, words: list[bytes]) -> None:
    counts = np.ones(len(words), np.int64) if table.counts is None else table.counts
    if not counts.any():
        counts = counts + 1  # fastText divides by their sum
    noted = table.metadata.get("fasttext")
    tokens = noted.get("tokens") if isinstance(noted, dict) else None
    total = int(counts.sum())
    if not (type(tokens) is int and total <= tokens < 1 << 63):
        tokens = total
    file.write(struct.pack("<3i2q", len(words), len(words), 0, tokens, -1))
    pack = struct.Struct("<qb").pack
    for start in range(0, len(words), PIECE // 64):
        some = zip(
            words[start : start + PIECE // 64], counts[start : start + PIECE // 64].tolist(), strict=True
        )
        file.write(b"".join(word + b"\0" + pack(count, 0) for word, count in some))


def check(path: Path, keys: Iterable[str]) -> None:
    """Refuse keys that cannot be written, by ``FormatError``."""
    for key in keys:
        encode_word(key, path)


def encode_word(key: str, path: Path) -> bytes:
    """A key as the bytes of an entry, or ``FormatError``."""
    try:
        word = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FormatError(
            f"cannot write {path}: the key {key!r} has no form in UTF-8; use safetensors"
        ) from None
    if b"\0" in word or len(word) > LONGEST_WORD:
        what = "holds a zero byte, which ends a word" if b"\0" in word else f"has {len(word):,} bytes"
        raise FormatError(f"cannot write {path}: the key {key[:40]!r} {what} in {NAME}; use safetensors")
    return word
