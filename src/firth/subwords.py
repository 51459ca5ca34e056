"""Vectors of words that nobody has seen, made of the rows of their character n-grams.

A model with subwords keeps, besides a row for each word of its vocabulary, a table of rows that n-grams
share by hashing. ``FastTextSubwords`` finds them as fastText does (Bojanowski et al. 2017, "Enriching Word
Vectors with Subword Information"), ``FloretSubwords`` as floret does, where words have no row of their own.
What a row is read from is a ``RowTable``: an array, a mapped file, or the codes of a quantised model.

Everything here is numpy.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from firth import ngrams
from firth.errors import SettingError, ShapeError

Float32s = NDArray[np.float32]
Ints = NDArray[np.int64]

GATHERED = 1 << 17  # numbers gathered at once, so that they are still in the cache when they are added
WORDS = 1 << 16  # bytes of words whose n-grams are looked up at once
BLOCK = 1 << 20  # numbers that RowTable.blocks hands out at once
LONGEST_NGRAM = 100
BARE = ("</s>",)  # fastText's word for the end of a line has no n-grams


class RowTable(Protocol):
    """A table of rows that can be fetched by number."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, numbers in a row."""
        ...

    def take(self, rows: Ints) -> Float32s:
        """The rows of these numbers as a new (N, D) float32 array."""
        ...


class DenseRows:
    """Rows that lie in memory or in a mapped file, at whatever byte they begin.

    Args:
        matrix: (R, D) float32 in C order; taken over without a copy.
    """

    def __init__(self, matrix: Float32s) -> None:
        if matrix.ndim != 2 or matrix.dtype != np.float32 or not matrix.flags.c_contiguous:
            raise ShapeError(
                f"DenseRows(): {matrix.dtype} of shape {matrix.shape}; (R, D) float32 in C order is expected"
            )
        self.matrix = matrix
        # Rows of bytes: numpy would copy the whole table first if its numbers are not aligned.
        self._bytes = matrix.view(np.uint8)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, numbers in a row."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def take(self, rows: Ints) -> Float32s:
        """The rows of these numbers as a new (N, D) float32 array."""
        taken: Float32s = np.take(self._bytes, rows, axis=0).view(np.float32)
        return taken


def blocks(table: RowTable) -> Iterator[Float32s]:
    """All rows of a table in order, some at a time."""
    rows, dim = table.shape
    step = max(1, BLOCK // dim)
    for start in range(0, rows, step):
        yield table.take(np.arange(start, min(start + step, rows)))


class Subwords(abc.ABC):
    """The rows that n-grams share, and how words find theirs. Immutable.

    Args:
        table: the rows.
        minn, maxn: characters in an n-gram, its marks counted; ``maxn`` 0 stands for no n-grams.

    Raises:
        SettingError: lengths below 0 or above 100, or a table without rows.
    """

    kind: ClassVar[str]
    kept: Ints | None = None

    def __init__(self, table: RowTable, minn: int, maxn: int) -> None:
        if not (0 <= minn <= LONGEST_NGRAM and 0 <= maxn <= LONGEST_NGRAM):
            raise SettingError(
                f"{type(self).__name__}(): minn is {minn} and maxn {maxn}; 0 to {LONGEST_NGRAM} is possible"
            )
        if min(table.shape) < 1:
            raise SettingError(f"{type(self).__name__}(): the table has the shape {table.shape}")
        self.table, self.minn, self.maxn = table, minn, maxn

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.table.shape[1]

    @abc.abstractmethod
    def rows(self, words: Sequence[bytes]) -> tuple[Ints, Ints]:
        """The rows of the table that words are made of.

        Args:
            words: (W,) bytes.

        Returns:
            rows (M,) int64 and offsets (W + 1,) int64; word i has ``rows[offsets[i]:offsets[i + 1]]``.
        """

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """All but the table, as JSON has it; ``from_settings`` reads it."""

    def mapped(self, change: Callable[[Float32s], NDArray[Any]]) -> Subwords:
        """New ``Subwords`` whose every row is changed alike, in memory.

        Args:
            change: rows (N, D) to rows (N, D'). If it is affine, the vector of a word is changed by it too,
                since a vector is a mean of rows.
        """
        parts = (np.asarray(change(part), np.float32) for part in blocks(self.table))
        first = next(parts)
        matrix = np.empty((self.table.shape[0], first.shape[1]), np.float32)
        place = 0
        for part in itertools.chain([first], parts):
            matrix[place : place + len(part)] = part
            place += len(part)
        return from_settings(self.settings(), DenseRows(matrix), self.kept)

    def vectors(self, words: Sequence[str]) -> Float32s:
        """(W, D) float32, new: the mean of the rows of each word; zeros for a word that has none."""
        out = np.empty((len(words), self.dim), np.float32)
        for part, sums, counts in self._sums([encode(word) for word in words]):
            np.divide(sums, np.maximum(counts, 1)[:, None], out=out[part], casting="same_kind")
        return out

    def _sums(self, words: Sequence[bytes]) -> Iterator[tuple[slice, Float32s, Ints]]:
        """For a stretch of words at a time: which they are, the sums of their rows, how many rows."""
        for part in _stretches(words):
            rows, offsets = self.rows(words[part])
            yield part, sum_rows(self.table, rows, offsets), np.diff(offsets)


class FastTextSubwords(Subwords):
    """n-grams hashed by FNV-1a into buckets of rows of their own, as fastText has them.

    The vector of a word of the vocabulary is the mean of its own row and of those of its n-grams; that
    of another word, of its n-grams alone.

    Args:
        table: a row for each bucket, or for each bucket that is kept.
        minn, maxn: characters in an n-gram, ``<`` and ``>`` around the word counted.
        buckets: how many there are; the rows of the table by default.
        kept: (R,) the bucket of each row, where a pruned model keeps only some; n-grams of the others
            do not count.
        bare: words without n-grams. The first versions of fastText had none of them.

    Raises:
        SettingError: as ``Subwords``; or buckets that do not fit the table.
    """

    kind = "fasttext"

    def __init__(
        self,
        table: RowTable,
        minn: int,
        maxn: int,
        *,
        buckets: int | None = None,
        kept: Ints | None = None,
        bare: Sequence[str] = BARE,
    ) -> None:
        super().__init__(table, minn, maxn)
        self.buckets = table.shape[0] if buckets is None else buckets
        self.kept, self.bare = kept, tuple(bare)
        self._bare = {encode(word) for word in bare}
        if kept is None and self.buckets != table.shape[0]:
            raise SettingError(f"FastTextSubwords(): {table.shape[0]} rows for {self.buckets} buckets")
        if kept is not None:
            inside = kept.shape == table.shape[:1] and ((kept >= 0) & (kept < self.buckets)).all()
            self._order = np.argsort(kept, kind="stable")
            self._sorted = kept[self._order]
            if not inside or (np.diff(self._sorted) == 0).any():
                raise SettingError(
                    f"FastTextSubwords(): kept are {kept.shape} buckets for {table.shape[0]} rows; a bucket "
                    f"of 0 to {self.buckets - 1} for each row, none twice, is expected"
                )

    def rows(self, words: Sequence[bytes]) -> tuple[Ints, Ints]:
        """See ``Subwords.rows``."""
        hashes, offsets = ngrams.fnv1a(words, max(1, self.minn), self.maxn, b"<", b">")
        found = (hashes % np.uint32(self.buckets)).astype(np.int64)
        good = np.ones(len(found), bool)
        if self.kept is not None:
            places = np.minimum(np.searchsorted(self._sorted, found), len(self._sorted) - 1)
            good = self._sorted[places] == found
            found = self._order[places]
        for place in [place for place, word in enumerate(words) if word in self._bare]:
            good[offsets[place] : offsets[place + 1]] = False
        if good.all():
            return found, offsets
        return found[good], np.concatenate(([0], np.cumsum(good)))[offsets]

    def complete(self, words: Sequence[bytes], own: Float32s) -> None:
        """Turn the words' own rows (W, D) into their vectors, in place."""
        for part, sums, counts in self._sums(words):
            np.divide(sums + own[part], counts[:, None] + 1, out=own[part], casting="same_kind")

    def own_rows(self, words: Sequence[bytes], vectors: Float32s) -> Float32s:
        """The inverse of ``complete``: (W, D) rows that, averaged with the n-grams', give ``vectors``."""
        own = np.empty(vectors.shape, np.float32)
        for part, sums, counts in self._sums(words):
            own[part] = vectors[part] * (counts[:, None] + 1.0) - sums
        return own

    def settings(self) -> dict[str, Any]:
        """``kind``, ``minn``, ``maxn``, ``buckets``, ``bare``."""
        return {
            "kind": self.kind,
            "minn": self.minn,
            "maxn": self.maxn,
            "buckets": self.buckets,
            "bare": list(self.bare),
        }


class FloretSubwords(Subwords):
    """Words and n-grams hashed by MurmurHash3 into one small table, several rows each, as floret has them.

    The vector of every word is the mean of the rows of ``<word>`` and of its n-grams.

    Args:
        table: the rows.
        minn, maxn: characters in an n-gram, the marks counted.
        hash_count: rows of each, 1 to 4.
        hash_seed: 0 to 2**32 - 1.
        bow, eow: the marks at the beginning and the end of a word.

    Raises:
        SettingError: as ``Subwords``; or a setting out of its range.
    """

    kind = "floret"

    def __init__(
        self,
        table: RowTable,
        minn: int,
        maxn: int,
        *,
        hash_count: int = 1,
        hash_seed: int = 2166136261,
        bow: str = "<",
        eow: str = ">",
    ) -> None:
        super().__init__(table, minn, maxn)
        if not (1 <= hash_count <= 4 and 0 <= hash_seed < 1 << 32):
            raise SettingError(
                f"FloretSubwords(): hash_count is {hash_count} and hash_seed {hash_seed}; "
                "1 to 4 and 0 to 4294967295 are possible"
            )
        self.hash_count, self.hash_seed, self.bow, self.eow = hash_count, hash_seed, bow, eow

    def rows(self, words: Sequence[bytes]) -> tuple[Ints, Ints]:
        """See ``Subwords.rows``."""
        bow, eow = encode(self.bow), encode(self.eow)
        whole = self._hashed(ngrams.whole(words, bow, eow))
        spans = ngrams.ngrams(words, max(1, self.minn), self.maxn, bow, eow)
        # The word first, then its n-grams.
        offsets = spans.offsets + np.arange(len(words) + 1)
        found = np.empty((int(offsets[-1]), self.hash_count), np.int64)
        first = np.zeros(len(found), bool)
        first[offsets[:-1]] = True
        found[first] = whole
        found[~first] = self._hashed(spans)
        return found.ravel(), offsets * self.hash_count

    def _hashed(self, spans: ngrams.Spans) -> Ints:
        hashes = ngrams.murmur3(spans, self.hash_seed)[:, : self.hash_count]
        return (hashes % np.uint32(self.table.shape[0])).astype(np.int64)

    def settings(self) -> dict[str, Any]:
        """``kind`` and the arguments."""
        return {
            "kind": self.kind,
            "minn": self.minn,
            "maxn": self.maxn,
            "hash_count": self.hash_count,
            "hash_seed": self.hash_seed,
            "bow": self.bow,
            "eow": self.eow,
        }


def from_settings(settings: dict[str, Any], table: RowTable, kept: Ints | None) -> Subwords:
    """What ``settings()`` described, over a table again.

    Raises:
        SettingError: a setting is missing, of another type or out of its range.
    """

    def named(name: str, kind: type) -> Any:
        if type(settings.get(name)) is not kind:
            raise SettingError(
                f"subwords are described by {str(settings)[:80]}: {name} is no {kind.__name__}"
            )
        return settings[name]

    minn, maxn = named("minn", int), named("maxn", int)
    if named("kind", str) == FastTextSubwords.kind:
        bare = named("bare", list)
        if not all(isinstance(word, str) for word in bare):
            raise SettingError(f"subwords are described by {str(settings)[:80]}: bare are no words")
        return FastTextSubwords(table, minn, maxn, buckets=named("buckets", int), kept=kept, bare=bare)
    if settings["kind"] != FloretSubwords.kind:
        raise SettingError(f"subwords are of the kind {settings['kind'][:40]!r}, which is not known")
    return FloretSubwords(
        table,
        minn,
        maxn,
        hash_count=named("hash_count", int),
        hash_seed=named("hash_seed", int),
        bow=named("bow", str),
        eow=named("eow", str),
    )


def sum_rows(table: RowTable, rows: Ints, offsets: Ints) -> Float32s:
    """(W, D) float32: the sums of ``rows[offsets[i]:offsets[i + 1]]``; zeros where there are none."""
    dim = table.shape[1]
    sums = np.zeros((len(offsets) - 1, dim), np.float32)
    most = max(1, GATHERED // dim)
    word = 0
    while word < len(sums):
        begin = int(offsets[word])
        stop = max(word + 1, int(np.searchsorted(offsets, begin + most, "right")) - 1)
        end = int(offsets[stop])
        if end - begin > most:  # one word, and a long one
            for start in range(begin, end, most):
                sums[word] += table.take(rows[start : min(start + most, end)]).sum(axis=0)
        elif end > begin:
            filled = np.flatnonzero(np.diff(offsets[word : stop + 1])) + word
            sums[filled] = np.add.reduceat(table.take(rows[begin:end]), offsets[filled] - begin, axis=0)
        word = stop
    return sums


def encode(word: str) -> bytes:
    """A word as the bytes that are hashed: UTF-8; bytes kept by ``surrogateescape`` as they were."""
    try:
        return word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return word.encode("utf-8", "surrogatepass")


def _stretches(words: Sequence[bytes]) -> Iterator[slice]:
    """Slices of words of about ``WORDS`` bytes, marks counted."""
    start, size = 0, 0
    for place, word in enumerate(words):
        size += len(word) + 2
        if size >= WORDS:
            yield slice(start, place + 1)
            start, size = place + 1, 0
    if start < len(words):
        yield slice(start, len(words))
