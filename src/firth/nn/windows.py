"""The windows and draws of ``kernels.reference`` for a whole stretch of text at once, in numpy.

Every number here is equal to that of the function of the reference that is named beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firth.kernels import reference
from firth.kernels.reference import Draws, Step

Longs = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

_HALF = np.uint64(32)


class Pairs(NamedTuple):
    """The pairs of centre and context of a stretch, in the order in which the kernels take them."""

    context_ids: Longs  # (P,)
    center_ids: Longs  # (P,)
    group_rows: Longs  # (P,): which row of negatives belongs to the pair; ascending
    negatives: Longs  # (G, pool): ids; a row for each group, or with share 0 for each pair


def piece_starts(sentence_starts: Longs, start_pos: int, stop_pos: int) -> Longs:
    """Where the pieces of a stretch begin, with the end of the last, int64; ``reference.pieces``.

    Args:
        sentence_starts: (S + 1,). start_pos, stop_pos: borders of pieces.
    """
    first = np.searchsorted(sentence_starts, start_pos, "right") - 1
    last = np.searchsorted(sentence_starts, stop_pos, "left")
    begins, ends = sentence_starts[first:last], sentence_starts[first + 1 : last + 1]
    counts = -(-(ends - begins) // reference.PIECE)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + reference.PIECE * (np.arange(counts.sum()) - before)
    inside = starts[(starts >= start_pos) & (starts < stop_pos)]
    return np.append(inside, stop_pos).astype(np.int64)


def pairs_in(ids: npt.NDArray[np.int32], starts: Longs, step: Step, draws: Draws) -> Pairs:
    """All pairs of the pieces that begin at ``starts``, with their negatives.

    ``reference.kept_in``, ``contexts_of`` and ``negative_at``.

    Args:
        ids: (N,) the encoded corpus. starts: as :func:`piece_starts` gives them, next to each other.
        step: ``window``, ``shrink``, ``share`` and ``pool`` are looked at.
        draws: of the epoch.
    """
    all_pos = np.arange(starts[0], starts[-1])
    drawn = _draws(draws.keys[0], all_pos) >> _HALF
    pos = all_pos[drawn <= draws.keep[ids[starts[0] : starts[-1]]]]
    kept = ids[pos].astype(np.int64)
    piece = np.searchsorted(starts, pos, "right") - 1
    reach = np.full(len(pos), step.window)
    if step.shrink:
        reach = 1 + (((_draws(draws.keys[1], pos) >> _HALF) * np.uint64(step.window)) >> _HALF).astype(
            np.int64
        )
    centers, offsets = _near(piece, reach, step.window)
    contexts = centers + offsets
    if not step.share:
        slots = (offsets + step.window)[:, None] * step.pool + np.arange(step.pool)
        negatives = _negatives_at(draws, slots, pos[centers, None])
        return Pairs(kept[contexts], kept[centers], np.arange(len(centers)), negatives)
    rank = np.arange(len(pos)) - np.searchsorted(piece, piece)  # place among the kept of its piece
    firsts = np.flatnonzero(rank % step.share == 0)
    group = np.searchsorted(firsts, np.arange(len(pos)), "right") - 1
    negatives = _negatives_at(draws, np.arange(step.pool), pos[firsts, None])
    return Pairs(kept[contexts], kept[centers], group[centers], negatives)


def _near(piece: Longs, reach: Longs, window: int) -> tuple[Longs, Longs]:
    """Each centre with the offset of each of its contexts, by centre, then from left to right."""
    n = len(piece)
    offsets = np.delete(np.arange(-window, window + 1), window)
    found = np.zeros((n, len(offsets)), bool)
    for column, offset in enumerate(offsets.tolist()):
        if abs(offset) >= n:
            continue
        near = slice(max(-offset, 0), n - max(offset, 0))
        far = slice(max(offset, 0), n - max(-offset, 0))
        found[near, column] = (piece[near] == piece[far]) & (reach[near] >= abs(offset))
    centers, columns = np.nonzero(found)
    return centers, offsets[columns]


def _negatives_at(draws: Draws, which: Longs, pos: Longs) -> Longs:
    """``reference.negative_at`` for arrays."""
    bits = _draws(draws.keys[2 + which], pos)
    cells = ((bits >> _HALF) * np.uint64(len(draws.alias))) >> _HALF
    low = bits & np.uint64(0xFFFFFFFF)
    negatives: Longs = np.where(low <= draws.threshold[cells], cells.astype(np.int64), draws.alias[cells])
    return negatives


def _draws(keys: Any, pos: Longs) -> Bits:
    """``reference.draw`` for arrays of keys and places; uint64 wraps as the mask there does."""
    z = pos.astype(np.uint64) * np.uint64(reference._GOLDEN) + keys
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits: Bits = z ^ (z >> np.uint64(31))
    return bits
