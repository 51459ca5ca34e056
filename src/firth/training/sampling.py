"""From counts to the arrays that the kernels draw with, and the tables they start from."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from firth.kernels.reference import stream_keys

ROW_FLOATS = 16
"""Rows are padded with zeros to a multiple of this, 64 bytes: one cache line, one vector register."""

HUGE_PAGE = 1 << 21

_INIT = 0x1E17  # the kind of draw that fills the first table; no epoch has so high a number


def keep_thresholds(counts: npt.NDArray[np.int64], sample: float) -> npt.NDArray[np.uint32]:
    """Subsampling: a token is kept if its 32 random bits are at most its threshold.

    The probability is min(1, sqrt(s/f) + s/f) with f the word's share of all counts, as in
    word2vec.c, gensim and fastText; ``sample=0`` keeps all.

    Args:
        counts: (V,) int64; 0 is taken as 1. sample: the share s from which words are thinned out.

    Returns:
        uint32 (V,).
    """
    counts = np.maximum(counts, 1)
    if sample <= 0:
        return np.full(len(counts), 0xFFFFFFFF, np.uint32)
    ratio = sample / (counts / counts.sum())
    keep = np.minimum(np.sqrt(ratio) + ratio, 1.0)
    thresholds: npt.NDArray[np.uint32] = np.maximum(np.ceil(keep * 2.0**32) - 1, 0).astype(np.uint32)
    return thresholds


def noise_weights(counts: npt.NDArray[np.int64], exponent: float) -> npt.NDArray[np.float64]:
    """The noise distribution, not normalised: count ** exponent, float64 (V,)."""
    return counts.astype(np.float64) ** exponent


def zeros(rows: int, dim: int) -> npt.NDArray[np.float32]:
    """A zero table float32 (rows, padded dim), on huge pages where the system has them.

    A row is read at random, so that with small pages each read would miss the TLB as well. Small
    tables and systems without huge pages get memory that is aligned to pages.
    """
    width = -(-dim // ROW_FLOATS) * ROW_FLOATS
    count = rows * width
    private = hasattr(mmap, "MADV_HUGEPAGE")
    try:
        # Private, since shared anonymous memory takes no huge pages; aligned, since they must be.
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if private else {}
        memory = mmap.mmap(-1, count * 4 + HUGE_PAGE, **flags)
    except OSError as error:
        raise MemoryError(f"no memory for a table of {rows:,} rows of {width} numbers: {error}") from error
    if private:
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.float32)
    skip = -whole.ctypes.data % HUGE_PAGE // 4
    return whole[skip : skip + count].reshape(rows, width)


def initial_inputs(
    rows: int, dim: int, spread: float, seed: int, part: int = 0, size: int = 1
) -> npt.NDArray[np.float32]:
    """The input table at the start: uniform in +-spread/dim, each number drawn by its place.

    Args:
        rows: of the whole table.
        part, size: only the rows ``part``, ``part + size``, ``part + 2 size``, ... of it are made.

    Returns:
        float32 (ceil(rows / size), padded dim), padding zero; of a part that is one row short, the last
        row is zero.
    """
    table = zeros(-(-rows // size), dim)
    key = stream_keys(seed, _INIT, 1)[0]
    own = np.arange(part, rows, size, dtype=np.uint64)
    columns = np.arange(dim, dtype=np.uint64)
    chunk = max(1, (1 << 15) // dim)  # the passes over a chunk stay in the cache
    for first in range(0, len(own), chunk):
        places = own[first : first + chunk, None] * np.uint64(dim) + columns
        bits = _draw(key, places.reshape(-1))
        bits >>= np.uint64(40)
        unit = bits.astype(np.float32)
        unit *= np.float32(2.0**-24)
        unit -= np.float32(0.5)
        unit *= np.float32(2 * spread / dim)
        table[first : first + len(places), :dim] = unit.reshape(-1, dim)
    return table


def _draw(key: Any, pos: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """``reference.draw`` for many places."""
    z = pos * np.uint64(0x9E3779B97F4A7C15)
    z += key
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
