"""Skip-gram over a part of the rows: what a process that holds one part of each table can train.

Rows are dealt out: row i of a table stands in part i mod ``size``, at i // ``size``. A bucket is a part of
the input table with a part of the output table. All pairs of a text, with its negatives, fall into the
``size`` x ``size`` buckets by the rows that they name; a bucket's pairs touch no other rows. Buckets that
share no part can be trained by different processes at the same time without knowing of each other
(Lerer et al. 2019, arXiv 1903.12287, PyTorch-BigGraph; Zhu et al. 2019, arXiv 1903.00757, GraphVite). Unlike
theirs, negatives here are those that are drawn for the place in the text, whatever part they are in.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from firth.kernels.cpu import FASTMATH
from firth.kernels.reference import PIECE, Draws, Step

_FAST = {"nogil": True, "fastmath": FASTMATH, "boundscheck": False, "error_model": "numpy"}


@nb.njit(inline="always")
def _bits(key: Any, pos: Any) -> Any:
    """``reference.draw``."""
    z = key + np.uint64(pos) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@nb.njit(**_FAST)
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0.0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@nb.njit(**_FAST)
def _add(to: Any, factor: Any, row: Any) -> None:
    for d in range(to.shape[0]):
        to[d] += factor * row[d]


@nb.njit(cache=True, **_FAST)
def skipgram_shared_part(
    inputs: Any,
    outputs: Any,
    ids: Any,
    sentence_starts: Any,
    start_pos: Any,
    stop_pos: Any,
    step: Step,
    draws: Draws,
    size: int,
    input_part: int,
    output_part: int,
    stats: Any,
) -> None:
    """The pairs of one bucket in ``ids[start_pos:stop_pos]``, in the order of the text.

    Within a group of ``step.share`` kept tokens all scores are taken before any row moves, as in
    ``reference.skipgram_shared``; with ``size`` 1 the two do the same.

    Args:
        inputs, outputs: (rows of the part, width) float32, C-contiguous, changed in place.
        size, input_part, output_part: the bucket. Others as for ``reference.skipgram_shared``;
            ``draws.keep`` and the alias table are those of all rows.
        stats: (3,) float64: loss, pairs and scores of this bucket are added.
    """
    width = inputs.shape[1]
    window, share, pool = step.window, step.share, step.pool
    weight = np.float32(step.weight)
    n_types = np.uint64(draws.keep.shape[0])
    most = share + 2 * window
    kept_id, kept_pos = np.empty(PIECE + 1, np.int32), np.empty(PIECE + 1, np.int64)
    reach = np.empty(PIECE + 1, np.int32)
    before = np.empty((most, width), np.float32)  # contexts as they were
    context, context_row = np.empty(most, np.int64), np.empty(most, np.int64)
    target_id, target_row = np.empty(pool + share, np.int32), np.empty(pool + share, np.int64)
    slopes = np.empty((most, pool + share), np.float32)
    loss_sum: Any = 0.0
    score_sum: Any = 0.0
    n_pairs: Any = 0
    sentence: Any = np.searchsorted(sentence_starts, start_pos, side="right") - 1
    piece_pos = np.int64(start_pos)
    while piece_pos < stop_pos:
        while sentence_starts[sentence + 1] <= piece_pos:
            sentence += 1
        piece_end = min(piece_pos + PIECE, sentence_starts[sentence + 1], stop_pos)
        n_kept: Any = 0
        for pos in range(piece_pos, piece_end):
            token_id = ids[pos]
            if np.uint32(_bits(draws.keys[0], pos) >> np.uint64(32)) <= draws.keep[token_id]:
                kept_id[n_kept], kept_pos[n_kept], reach[n_kept] = token_id, pos, window
                if step.shrink:
                    high = _bits(draws.keys[1], pos) >> np.uint64(32)
                    reach[n_kept] = 1 + np.int32((high * np.uint64(window)) >> np.uint64(32))
                n_kept += 1
        for first in range(0, n_kept, share):
            last = min(first + share, n_kept)
            low, above = first, last
            for i in range(first, last):
                low, above = min(low, i - reach[i]), max(above, i + reach[i] + 1)
            low, above = max(low, 0), min(above, n_kept)
            n_contexts = 0
            for c in range(low, above):
                if kept_id[c] % size == input_part:
                    context[n_contexts], context_row[n_contexts] = c, kept_id[c] // size
                    n_contexts += 1
            if n_contexts == 0:
                continue
            n_negatives = 0
            for n in range(pool):
                bits = _bits(draws.keys[2 + n], kept_pos[first])
                cell = np.int64(((bits >> np.uint64(32)) * n_types) >> np.uint64(32))
                own = np.uint32(bits & np.uint64(0xFFFFFFFF)) <= draws.threshold[cell]
                drawn_id = np.int32(cell) if own else draws.alias[cell]
                if drawn_id % size == output_part:
                    target_id[n_negatives], target_row[n_negatives] = drawn_id, drawn_id // size
                    n_negatives += 1
            rate = np.float32(max(step.rate_last, step.rate_first - step.rate_slope * kept_pos[first]))
            # Weights: of a negative by the windows that hold the context, then of the centres.
            for k in range(n_contexts):
                held = np.float32(0.0)
                for i in range(first, last):
                    if context[k] != i and abs(context[k] - i) <= reach[i]:
                        held += weight
                for t in range(n_negatives):
                    slopes[k, t] = held
                    for i in range(first, last):
                        inside = context[k] != i and abs(context[k] - i) <= reach[i]
                        if inside and kept_id[i] == target_id[t]:
                            slopes[k, t] -= weight
            n_targets = n_negatives
            for i in range(first, last):
                if kept_id[i] % size == output_part:
                    target_row[n_targets] = kept_id[i] // size
                    for k in range(n_contexts):
                        inside = context[k] != i and abs(context[k] - i) <= reach[i]
                        slopes[k, n_targets] = np.float32(-1.0) if inside else np.float32(0.0)
                        n_pairs += np.int64(inside)
                    n_targets += 1
            for k in range(n_contexts):
                row = inputs[context_row[k]]
                before[k] = row
                for t in range(n_targets):
                    w = slopes[k, t]
                    if w != np.float32(0.0):
                        x = _dot(row, outputs[target_row[t]])
                        score_sum += x
                        signed = x if w > np.float32(0.0) else -x
                        e = np.exp(-abs(signed))
                        loss_sum += abs(w) * (max(signed, np.float32(0.0)) + np.log1p(e))
                        part = np.float32(1.0) / (np.float32(1.0) + e)
                        slopes[k, t] = -w * rate * (part if signed > np.float32(0.0) else e * part)
            for k in range(n_contexts):
                for t in range(n_targets):
                    if slopes[k, t] != np.float32(0.0):
                        _add(inputs[context_row[k]], slopes[k, t], outputs[target_row[t]])
            for t in range(n_targets):
                for k in range(n_contexts):
                    if slopes[k, t] != np.float32(0.0):
                        _add(outputs[target_row[t]], slopes[k, t], before[k])
        piece_pos = piece_end
    stats[0] += loss_sum
    stats[1] += n_pairs
    stats[2] += score_sum
