"""The definition of every training step, in plain loops over float64.

This module is the documentation of the mathematics and the judge of the fast kernels: it takes
the same arguments as :mod:`firth.kernels.cpu`, makes the same draws, and is never optimised.

Words used throughout
    *place* or ``pos``: the number of a token in the encoded corpus. *piece*: at most ``PIECE``
    consecutive tokens of one sentence, cut at multiples of ``PIECE`` from the sentence's start;
    no window crosses a piece. *input table* (u, ``inputs``): rows looked up for context words;
    these become the word vectors. *output table* (v, ``outputs``): rows of centre words and
    negatives. The direction, context as input and centre as target, is word2vec.c's.

Draws
    Every random number is a hash of (seed, epoch, place, what is drawn), so that it does not
    depend on threads, devices, ranks or interruptions: ``draw(key, pos)`` with one key for each
    thing that is drawn (:func:`stream_keys`). The hash is splitmix64 (Steele, Lea and Flood,
    2014, "Fast splittable pseudorandom number generators"). Probabilities are uint32
    thresholds, so that no rounding differs between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PIECE = 1000
"""The most tokens in a piece."""

STEPS = 3
"""Goes up when draws, steps or their rounding change, so that no run is resumed half by other ones."""

EXACT, CLIP, SKIP = 0, 1, 2
"""Pairs with a score beyond 6: as they are; sigmoid taken as 0 or 1 (word2vec.c); left out (gensim)."""

SATURATED = 6.0

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Floats = npt.NDArray[np.floating[Any]]


class Step(NamedTuple):
    """What a kernel needs to know about the objective and the learning rate, as plain numbers."""

    window: int  # contexts on each side, 1..; the largest if shrink
    shrink: bool  # draw the reach of each window from 1..window
    share: int  # consecutive kept tokens that share their negatives; 0: fresh ones for each pair
    pool: int  # negatives drawn for a group (share > 0) or for a pair (share == 0)
    weight: float  # of one negative in loss and gradient: negatives / pool
    saturation: int  # EXACT, CLIP or SKIP; used where share == 0
    rate_first: float  # learning rate at place 0 of this epoch
    rate_slope: float  # its fall with each token
    rate_last: float  # its floor
    fixed_inputs: int = 0  # input rows below this take part in every score and never move
    fixed_outputs: int = 0  # the same for output rows
    bfloat16: bool = False  # tables hold bfloat16 numbers and updates are rounded by chance; where share > 0


class Draws(NamedTuple):
    """Keys and thresholds of the random draws of one epoch."""

    keys: npt.NDArray[np.uint64]  # (2 + n,): kept?, reach, then the negatives
    keep: npt.NDArray[np.uint32]  # (V,): a token is kept if its draw is at most this
    threshold: npt.NDArray[np.uint32]  # (V,): alias method: the cell itself if at most this ...
    alias: npt.NDArray[np.int32]  # (V,): ... else this id


# --- draws --------------------------------------------------------------------------------------


def mix(z: int) -> int:
    """The finaliser of splitmix64: 64 bits in, 64 well-mixed bits out."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def draw(key: int, pos: int) -> int:
    """64 random bits for a place: element ``pos`` of the splitmix64 sequence that begins at ``key``."""
    return mix(key + pos * _GOLDEN)


def stream_keys(seed: int, epoch: int, n: int) -> npt.NDArray[np.uint64]:
    """``n`` keys, one for each kind of draw in this epoch, uint64 (n,)."""
    base = mix(mix(seed + _GOLDEN) + epoch * _GOLDEN)
    return np.array([mix(base + (kind + 1) * 0xD1B54A32D192ED03) for kind in range(n)], np.uint64)


def is_kept(draws: Draws, token_id: int, pos: int) -> bool:
    """Whether the token at ``pos`` survives subsampling."""
    return draw(int(draws.keys[0]), pos) >> 32 <= int(draws.keep[token_id])


def reach_at(step: Step, draws: Draws, pos: int) -> int:
    """How many kept tokens the window of the centre at ``pos`` reaches to each side."""
    if not step.shrink:
        return step.window
    return 1 + ((draw(int(draws.keys[1]), pos) >> 32) * step.window >> 32)


def negative_at(draws: Draws, which: int, pos: int) -> int:
    """The id of negative number ``which`` at ``pos``, by the alias method (Walker 1977; Vose 1991)."""
    bits = draw(int(draws.keys[2 + which]), pos)
    cell = (bits >> 32) * len(draws.alias) >> 32
    return cell if bits & 0xFFFFFFFF <= int(draws.threshold[cell]) else int(draws.alias[cell])


def alias_table(weights: Floats) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
    """Thresholds and aliases that draw id i with probability ``weights[i] / sum(weights)``.

    Args:
        weights: (V,) float64, positive.

    Returns:
        ``threshold`` uint32 (V,) and ``alias`` int32 (V,); see :func:`negative_at`. Probabilities
        are exact to 2**-32 / V.
    """
    n = len(weights)
    share = np.asarray(weights, np.float64) * (n / np.sum(weights, dtype=np.float64))
    threshold = np.full(n, 0xFFFFFFFF, np.uint32)
    alias = np.arange(n, dtype=np.int32)
    small = [i for i in range(n) if share[i] < 1.0]
    large = [i for i in range(n) if share[i] >= 1.0]
    while small and large:
        low, high = small.pop(), large.pop()
        threshold[low] = int(min(max(share[low] * 4294967296.0 - 1.0, 0.0), 4294967295.0))
        alias[low] = high
        share[high] -= 1.0 - share[low]
        (small if share[high] < 1.0 else large).append(high)
    return threshold, alias


# --- tables in bfloat16 -------------------------------------------------------------------------


ROUNDING = 0xA0761D6478BD642F
"""Turns the first key into one of its own for what decides about rounding."""

ROW_STEP, COLUMN_STEP = 0x9E3779B9, 0x85EBCA6B
"""Odd, so that no two rows of a table and no two columns of a row share their bits."""


def rounding_bits(draws: Draws, pos: int, row: int, width: int) -> npt.NDArray[np.uint32]:
    """32 random bits for each number of a row that moves at ``pos``, uint32 (width,).

    The input table is rounded by the high 16, the output table by the low 16. The hash is the finaliser
    of MurmurHash3 (Appleby 2011).
    """
    base = draw(int(draws.keys[0]) ^ ROUNDING, pos) & 0xFFFFFFFF
    z = np.uint32((base + row * ROW_STEP) & 0xFFFFFFFF) + np.arange(width, dtype=np.uint32) * np.uint32(
        COLUMN_STEP
    )
    z = (z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    z = (z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return z ^ (z >> np.uint32(16))


def to_bfloat16(values: Floats, bits: npt.NDArray[np.uint32] | int) -> npt.NDArray[np.float32]:
    """``values`` rounded up or down to numbers of bfloat16, as float32.

    Args:
        bits: 0 to 65,535. Where they are random, the mean is the value itself; 0x8000 rounds to the nearest.

    Source: stochastic rounding, Gupta et al. 2015, arXiv 1502.02551, section 3.
    """
    exact = np.ascontiguousarray(values, np.float32)
    raised = (exact.view(np.uint32) + np.uint32(bits)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(exact), exact, raised.view(np.float32))


# --- parts of a step ----------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def softplus(x: float) -> float:
    """ln(1 + e^x) = -ln sigmoid(-x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def rate_at(step: Step, pos: int) -> float:
    """The learning rate at place ``pos`` of the epoch: a straight line down to a floor."""
    return max(step.rate_last, step.rate_first - step.rate_slope * pos)


def pieces(sentence_starts: npt.NDArray[np.int64], start_pos: int, stop_pos: int) -> list[tuple[int, int]]:
    """The pieces ``(first place, end)`` of a stretch that begins and ends on borders of pieces."""
    found = []
    for begin, end in zip(sentence_starts[:-1].tolist(), sentence_starts[1:].tolist(), strict=True):
        for first in range(begin, end, PIECE):
            if start_pos <= first < stop_pos:
                found.append((first, min(first + PIECE, end)))
    return found


def kept_in(
    ids: npt.NDArray[np.int32], first: int, end: int, step: Step, draws: Draws
) -> list[tuple[int, int, int]]:
    """The piece after subsampling: ``(token id, place, reach)`` of each kept token."""
    return [
        (int(ids[pos]), pos, reach_at(step, draws, pos))
        for pos in range(first, end)
        if is_kept(draws, int(ids[pos]), pos)
    ]


def contexts_of(i: int, reach: int, n_kept: int) -> list[int]:
    """Where in the kept list the contexts of centre number ``i`` stand."""
    return [c for c in range(max(i - reach, 0), min(i + reach + 1, n_kept)) if c != i]


# --- skip-gram ----------------------------------------------------------------------------------


def skipgram_shared(
    inputs: Floats,
    outputs: Floats,
    ids: npt.NDArray[np.int32],
    sentence_starts: npt.NDArray[np.int64],
    start_pos: int,
    stop_pos: int,
    step: Step,
    draws: Draws,
    stats: npt.NDArray[np.float64],
) -> None:
    """Skip-gram with negatives shared by ``step.share`` consecutive kept tokens (a group).

    A group draws ``pool`` negatives at the place of its first token. With x(c, t) = u_c . v_t, its
    loss is the sum over its centres i and their contexts c of::

        softplus(-x(c, i))  +  weight * sum over negatives n of softplus(x(c, n))

    where a negative that is the centre itself is left out. All scores are taken before the
    group's updates; then every row moves by ``rate`` times the sum of its slopes, a row that is
    named twice by both sums. Rows below ``step.fixed_inputs`` and ``step.fixed_outputs`` stay.
    With ``step.bfloat16`` a moved row is rounded by chance, see :func:`to_bfloat16`.

    Args:
        inputs, outputs: (V, D) float tables, changed in place.
        ids: (N,) int32, the encoded corpus. sentence_starts: (S + 1,) int64, the last is N.
        start_pos, stop_pos: the stretch to train on, borders of pieces.
        step, draws: see there.
        stats: (3,) float64; the summed loss, the number of (centre, context) pairs and the sum of
            all scores (to notice what is not finite) are added to it.

    Source: Mikolov et al. 2013, arXiv 1310.4546, eq. 4; shared negatives: Ji et al. 2016,
    arXiv 1604.04661 (a group of one token is their window).
    """
    for first, end in pieces(sentence_starts, start_pos, stop_pos):
        kept = kept_in(ids, first, end, step, draws)
        for start in range(0, len(kept), step.share):
            _shared_group(inputs, outputs, kept, start, step, draws, stats)


def _shared_group(
    inputs: Floats,
    outputs: Floats,
    kept: list[tuple[int, int, int]],
    start: int,
    step: Step,
    draws: Draws,
    stats: npt.NDArray[np.float64],
) -> None:
    negatives = [negative_at(draws, n, kept[start][1]) for n in range(step.pool)]
    input_delta: dict[int, Floats] = {}
    output_delta: dict[int, Floats] = {}

    def pair(context_id: int, target_id: int, weight: float, sign: float) -> None:
        u, v = inputs[context_id].astype(np.float64), outputs[target_id].astype(np.float64)
        x = float(u @ v)
        slope = -sign * weight * sigmoid(sign * x)  # minus the derivative of the loss
        input_delta[context_id] = input_delta.get(context_id, 0.0) + slope * v
        output_delta[target_id] = output_delta.get(target_id, 0.0) + slope * u
        stats[0] += weight * softplus(sign * x)
        stats[2] += x

    for i in range(start, min(start + step.share, len(kept))):
        center_id, _, reach = kept[i]
        for c in contexts_of(i, reach, len(kept)):
            context_id = kept[c][0]
            pair(context_id, center_id, 1.0, -1.0)
            stats[1] += 1
            for negative_id in negatives:
                if negative_id != center_id:
                    pair(context_id, negative_id, step.weight, 1.0)
    pos = kept[start][1]
    rate = rate_at(step, pos)
    for row, delta in input_delta.items():
        if row >= step.fixed_inputs:
            inputs[row] += rate * delta
            if step.bfloat16:
                bits = rounding_bits(draws, pos, row, len(inputs[row])) >> np.uint32(16)
                inputs[row] = to_bfloat16(inputs[row], bits)
    for row, delta in output_delta.items():
        if row >= step.fixed_outputs:
            outputs[row] += rate * delta
            if step.bfloat16:
                bits = rounding_bits(draws, pos, row, len(outputs[row])) & np.uint32(0xFFFF)
                outputs[row] = to_bfloat16(outputs[row], bits)


def skipgram_pairs(
    inputs: Floats,
    outputs: Floats,
    ids: npt.NDArray[np.int32],
    sentence_starts: npt.NDArray[np.int64],
    start_pos: int,
    stop_pos: int,
    step: Step,
    draws: Draws,
    stats: npt.NDArray[np.float64],
) -> None:
    """Skip-gram as published: fresh negatives for each pair, each pair updated before the next.

    Arguments as for :func:`skipgram_shared`; ``step.share`` is not looked at. For context c of
    centre i the targets are the centre and ``pool`` negatives drawn at the centre's place; each
    target's row moves at once, the context's row after its last target. A negative that is the
    centre is left out. ``step.saturation`` says what happens to scores beyond 6: EXACT is the
    mathematics, CLIP word2vec.c's table, SKIP gensim's. The loss is exact in all three.

    Source: word2vec.c, ``TrainModelThread``; gensim ``word2vec_inner.pyx``, ``w2v_fast_sentence_sg_neg``.
    """
    for first, end in pieces(sentence_starts, start_pos, stop_pos):
        kept = kept_in(ids, first, end, step, draws)
        for i, (center_id, pos, reach) in enumerate(kept):
            rate = rate_at(step, pos)
            for c in contexts_of(i, reach, len(kept)):
                context = inputs[kept[c][0]]
                moved = np.zeros(len(context))
                slot = (c - i + step.window) * step.pool
                for n in range(-1, step.pool):
                    target_id = center_id if n < 0 else negative_at(draws, slot + n, pos)
                    if n >= 0 and target_id == center_id:
                        continue
                    target = outputs[target_id]
                    x = float(context.astype(np.float64) @ target.astype(np.float64))
                    stats[0] += softplus(-x if n < 0 else x)
                    stats[2] += x
                    slope = _saturating_slope(x, n < 0, step.saturation)
                    moved += rate * slope * target
                    if target_id >= step.fixed_outputs:
                        target += rate * slope * context
                if kept[c][0] >= step.fixed_inputs:
                    context += moved
                stats[1] += 1


def _saturating_slope(x: float, positive: bool, saturation: int) -> float:
    label = 1.0 if positive else 0.0
    if saturation == SKIP and abs(x) >= SATURATED:
        return 0.0
    if saturation == CLIP and abs(x) > SATURATED:
        return label - (1.0 if x > 0 else 0.0)
    return label - sigmoid(x)


KERNELS = {"skipgram_shared": skipgram_shared, "skipgram_pairs": skipgram_pairs}


def run(
    kernel: str,
    inputs: Floats,
    outputs: Floats,
    ids: npt.NDArray[np.int32],
    sentence_starts: npt.NDArray[np.int64],
    block_starts: npt.NDArray[np.int64],
    step: Step,
    draws: Draws,
    threads: int = 1,
    stopped: Callable[[], bool] = lambda: False,
    sharers: int = 1,
) -> tuple[npt.NDArray[np.float64], int]:
    """One run: the kernel over consecutive blocks; the signature that every device shares.

    Args:
        kernel: a key of ``KERNELS``.
        block_starts: (B + 1,) int64, the borders of the run's blocks.
        threads: taken and not used here.
        stopped: asked before each block but the first; if it says true, the run ends early.
        sharers: processes that train these tables at the same time; taken and not used here.

    Returns:
        stats, float64 (3,): loss, pairs and scores summed over the run; and the number of blocks
        done, always the first ones.
    """
    stats = np.zeros(3)
    n_done = 0
    for start, stop in zip(block_starts[:-1].tolist(), block_starts[1:].tolist(), strict=True):
        if n_done and stopped():
            break
        KERNELS[kernel](inputs, outputs, ids, sentence_starts, start, stop, step, draws, stats)
        n_done += 1
    return stats, n_done
