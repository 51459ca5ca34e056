"""The closest keys that exist, for the error message about one that does not.

The distance is that of Damerau and Levenshtein in its common, restricted form (insert, delete,
replace, or swap two neighbours: one each), computed for all keys of a similar length at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

LONGEST = 64  # longer keys are compared by their first characters only
BLOCK = 32_768  # keys compared at once, so that their tables stay in the cache
FAR = 100  # stands for every distance that is too great to matter


def close_keys(key: str, keys: Sequence[str], n: int = 3) -> list[str]:
    """Up to ``n`` of ``keys`` that look like ``key``, closest first, earlier ones first among equals.

    Close is one edit away for a key of up to 3 characters, two up to 11, else three; letter case
    costs nothing. About 0.2 s for a million keys.

    Args:
        key: what was asked for.
        keys: what there is, most frequent first for the best suggestions.
        n: how many to return at most.
    """
    wanted = key[:LONGEST]
    limit = 1 if len(wanted) < 4 else 2 if len(wanted) < 12 else 3
    found: list[tuple[int, int]] = []
    for start in range(0, len(keys), BLOCK):
        block = keys[start : start + BLOCK]
        sizes = np.fromiter(map(len, block), np.int64, len(block))
        similar = np.abs(np.minimum(sizes, LONGEST) - len(wanted)) <= limit
        rows = np.flatnonzero(similar)
        if rows.size:
            others = list(compress(block, similar))
            if sizes[rows].max() > LONGEST:
                others = [other[:LONGEST] for other in others]
            distances = edit_distances(wanted, others, limit)
            near = np.flatnonzero(distances <= limit)
            found += zip(distances[near].tolist(), (start + rows[near]).tolist(), strict=True)
    return [keys[row] for _, row in sorted(found)[:n]]


def edit_distances(wanted: str, others: Sequence[str], limit: int) -> NDArray[np.int8]:
    """Restricted Damerau-Levenshtein distance of ``wanted`` to each of ``others``, case aside.

    Row ``i`` of the classic table is made for all ``others`` at once, only within ``limit`` of the
    diagonal, and those that are too far already drop out; most do within three rows.

    Args:
        wanted: at most 64 characters.
        others: (N,) strings of at most 64 characters.
        limit: distances above this need not be right.

    Returns:
        (N,) int8; ``FAR`` where the distance is above ``limit``.
    """
    result = np.full(len(others), FAR, np.int8)
    ids = np.arange(len(others))
    lengths = np.fromiter(map(len, others), np.int64, len(others))
    width = int(lengths.max(initial=1))
    codes = np.array(others, dtype=f"U{width}").view(np.uint32).reshape(len(others), width)
    chars = np.ascontiguousarray(codes.T)  # (width, N)

    row = np.minimum(np.arange(width + 1), FAR).astype(np.int8)[:, None].repeat(len(others), axis=1)
    above = row  # the row before it; row 1 does not look at it
    hit_above = np.zeros((0, len(others)), bool)
    for i, char in enumerate(wanted, 1):
        hit = (chars == _code(char.lower())) | (chars == _code(char.upper()))
        new = np.full_like(row, FAR)
        new[0] = i
        for j in range(max(1, i - limit), min(width, i + limit) + 1):
            best = np.minimum(row[j], new[j - 1]) + np.int8(1)
            np.minimum(best, row[j - 1] + ~hit[j - 1], out=best)
            if i > 1 and j > 1:
                swapped = hit[j - 2] & hit_above[j - 1]
                np.minimum(best, np.where(swapped, above[j - 2] + np.int8(1), FAR), out=best)
            new[j] = best
        above, row, hit_above = row, new, hit
        alive = row.min(axis=0) <= limit
        if 2 * np.count_nonzero(alive) < alive.size:
            ids, lengths, chars = ids[alive], lengths[alive], chars[:, alive]
            above, row, hit_above = above[:, alive], row[:, alive], hit_above[:, alive]
    distances = row[lengths, np.arange(ids.size)]
    result[ids] = np.where(distances <= limit, distances, FAR)
    return result


def _code(char: str) -> int:
    # Some capitals are two characters long; they match nothing, which is near enough.
    return ord(char) if len(char) == 1 else 0x110000
