"""Character n-grams of words and their hashes, for many words at once.

An n-gram is n characters of the word between its marks (``<word>``); a single mark is none. A
character is a byte and the continuation bytes (``10xxxxxx``) after it, so that bytes that are no UTF-8
have n-grams too. Sources: fastText, ``Dictionary::computeSubwords`` and ``Dictionary::hash`` in
``src/dictionary.cc``; floret, ``Dictionary::murmurhash`` in the file of the same name; MurmurHash3_x64_128
by Austin Appleby (public domain).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FNV_OFFSET = np.uint32(2166136261)
FNV_PRIME = np.uint32(16777619)
GROUPED = 1 << 22  # bytes of substrings copied out at once

_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)
_FMIX1 = np.uint64(0xFF51AFD7ED558CCD)
_FMIX2 = np.uint64(0xC4CEB9FE1A85EC53)


class Spans(NamedTuple):
    """Substrings of ``data``, those of word ``i`` from ``offsets[i]`` to ``offsets[i + 1]``.

    Shapes: data (B,) uint8 · begins, ends (M,) int64, bytes of ``data`` · offsets (W + 1,) int64.
    """

    data: NDArray[np.uint8]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]


class Characters:
    """Words with their marks, end to end, and where the characters begin.

    Args:
        words: (W,) without their marks.
        bow, eow: the marks, whole characters.
    """

    def __init__(self, words: Sequence[bytes], bow: bytes, eow: bytes) -> None:
        self.data = np.frombuffer(b"".join(bow + word + eow for word in words), np.uint8)
        borders = np.flatnonzero((self.data & 0xC0) != 0x80)
        marks = len(bow) + len(eow)
        ends = np.cumsum([len(word) + marks for word in words], dtype=np.int64)
        # Characters count from 0 over all words; word i has those from first[i] to first[i + 1].
        self.borders = np.append(borders, self.data.size).astype(np.int64)
        self.first = np.concatenate(([0], np.searchsorted(borders, ends))).astype(np.int64)

    def counts(self, n: int) -> NDArray[np.int64]:
        """(W,) n-grams of ``n`` characters of each word; a mark alone is none."""
        counts: NDArray[np.int64] = np.maximum(np.diff(self.first) - n + 1 - 2 * (n == 1), 0)
        return counts

    def offsets(self, minn: int, maxn: int) -> NDArray[np.int64]:
        """(W + 1,) where the n-grams of each word begin among all."""
        offsets = np.zeros(len(self.first), np.int64)
        for n in range(minn, maxn + 1):
            offsets[1:] += self.counts(n)
        np.cumsum(offsets, out=offsets)
        return offsets

    def ngrams(self, minn: int, maxn: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each length n: n, (M,) the character at which each n-gram begins, and (M,) its place."""
        place = self.offsets(minn, maxn)[:-1]
        for n in range(minn, maxn + 1):
            count = self.counts(n)
            within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            yield n, np.repeat(self.first[:-1] + (n == 1), count) + within, np.repeat(place, count) + within
            place = place + count


def ngrams(words: Sequence[bytes], minn: int, maxn: int, bow: bytes, eow: bytes) -> Spans:
    """All n-grams of ``minn`` to ``maxn`` characters, shorter ones first within a word.

    Args:
        words: (W,) without their marks.
        minn, maxn: 1 or more; a ``maxn`` below ``minn`` gives none.
        bow, eow: the marks, whole characters.
    """
    characters = Characters(words, bow, eow)
    offsets = characters.offsets(minn, maxn)
    begins, ends = np.empty((2, int(offsets[-1])), np.int64)
    for n, start, target in characters.ngrams(minn, maxn):
        begins[target] = characters.borders[start]
        ends[target] = characters.borders[start + n]
    return Spans(characters.data, begins, ends, offsets)


def fnv1a(
    words: Sequence[bytes], minn: int, maxn: int, bow: bytes, eow: bytes
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """FNV-1a of 32 bits of all n-grams, over bytes taken as signed, as fastText has it.

    Args:
        words, minn, maxn, bow, eow: as for ``ngrams``.

    Returns:
        hashes (M,) uint32 in the order of ``ngrams``, and offsets (W + 1,) int64: those of word i are
        from ``offsets[i]`` to ``offsets[i + 1]``.
    """
    characters = Characters(words, bow, eow)
    offsets = characters.offsets(minn, maxn)
    hashes = np.empty(int(offsets[-1]), np.uint32)
    borders = characters.borders
    sizes = np.diff(borders)
    signed = characters.data.view(np.int8).astype(np.int32).view(np.uint32)
    # The n-gram at each character grows by one character a step; those that leave their word are not taken.
    state = np.full(len(sizes), FNV_OFFSET)
    grown = 0
    for n, start, target in characters.ngrams(minn, maxn):
        for step in range(grown, min(n, len(sizes))):
            state[: len(sizes) - step] ^= signed[borders[step:-1]]
            state *= FNV_PRIME
            for byte in range(1, int(sizes.max(initial=1))):
                more = np.flatnonzero(sizes[step:] > byte)
                state[more] = (state[more] ^ signed[borders[more + step] + byte]) * FNV_PRIME
        grown = n
        hashes[target] = state[start]
    return hashes, offsets


def whole(words: Sequence[bytes], bow: bytes, eow: bytes) -> Spans:
    """Each word with its marks, as its one substring."""
    data = np.frombuffer(b"".join(bow + word + eow for word in words), np.uint8)
    marks = len(bow) + len(eow)
    ends = np.cumsum([len(word) + marks for word in words], dtype=np.int64)
    begins = np.concatenate(([0], ends[:-1])).astype(np.int64)
    return Spans(data, begins, ends, np.arange(len(words) + 1))


def murmur3(spans: Spans, seed: int) -> NDArray[np.uint32]:
    """(M, 4) uint32: MurmurHash3_x64_128, the low half of each 64-bit word first.

    Args:
        spans: what to hash.
        seed: 0 to 2**32 - 1.
    """
    hashes = np.empty((len(spans.begins), 2), np.uint64)
    blocks = (spans.ends - spans.begins) // 16
    for count in np.unique(blocks).tolist():
        members = np.flatnonzero(blocks == count)
        width = 16 * (count + 1)
        step = max(1, GROUPED // width)
        for start in range(0, len(members), step):
            some = members[start : start + step]
            hashes[some] = _murmur3(_padded(spans, some, width), spans.ends[some] - spans.begins[some], seed)
    return hashes.astype("<u8").view("<u4").astype(np.uint32)


def _padded(spans: Spans, members: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """(N, width / 8) little-endian words: the substrings with zeros behind them."""
    places = spans.begins[members, None] + np.arange(width)
    inside = places < spans.ends[members, None]
    taken = np.where(inside, spans.data[np.minimum(places, spans.data.size - 1)], np.uint8(0))
    return taken.view("<u8").astype(np.uint64)


def _murmur3(words: NDArray[np.uint64], sizes: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    h1 = np.full(len(words), seed, np.uint64)
    h2 = h1.copy()
    last = words.shape[1] - 2
    for block in range(0, last, 2):
        h1 ^= _rotate(words[:, block] * _C1, 31) * _C2
        h1 = (_rotate(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729)
        h2 ^= _rotate(words[:, block + 1] * _C2, 33) * _C1
        h2 = (_rotate(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5)
    # Zeros behind a tail change nothing, so that one of any length is mixed alike.
    h2 ^= _rotate(words[:, last + 1] * _C2, 33) * _C1
    h1 ^= _rotate(words[:, last] * _C1, 31) * _C2

    lengths = sizes.astype(np.uint64)
    h1, h2 = h1 ^ lengths, h2 ^ lengths
    h1 += h2
    h2 += h1
    h1, h2 = _final(h1), _final(h2)
    h1 += h2
    h2 += h1
    return np.stack((h1, h2), axis=1)


def _rotate(values: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))


def _final(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(33))) * _FMIX1
    values = (values ^ (values >> np.uint64(33))) * _FMIX2
    return values ^ (values >> np.uint64(33))
