"""The inner loops of the LDPC code, in Numba: building its graph, and decoding.

A graph is stored by checks: ``starts`` (n_checks + 1,) and ``bits`` (n_edges,), the bits of check c being
``bits[starts[c]:starts[c + 1]]``.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

TABLE_STEPS = 16  # of the correction, per unit of log-likelihood
TABLE_REACH = 8  # beyond this it is below 0.0004
MOST_LLR = np.float32(25.0)
FEW = 8  # edges: bits of more are in no codeword of few ones, however they are joined
UNREACHED = 1 << 30  # steps
NEAR = 2  # steps that are looked around such bits

_MIDDLES = (np.arange(TABLE_STEPS * TABLE_REACH + 1) + 0.5) / TABLE_STEPS
SOFT_STEP = np.log1p(np.exp(-_MIDDLES)).astype(np.float32)
SOFT_STEP[-1] = 0.0


@nb.njit(cache=True, nogil=True)
def spread_edges(degrees: Ints, n_checks: int, draws: NDArray[np.uint64]) -> Ints:
    """Checks of each information bit, by progressive edge growth (Hu, Eleftheriou, Arnold 2005).

    An edge goes to a check that is farthest from the bit in the graph so far, of those to one with the
    fewest edges; ties are broken by ``draws``. So short cycles are avoided, and with them codewords of few
    ones. Checks are also joined to their neighbours, by the parity bits of the accumulator. For bits of more
    than ``FEW`` edges all checks beyond ``NEAR`` steps are as far, which takes a small part of the time.

    Args:
        degrees: (n_info,) edges of each information bit, ascending.
        n_checks: checks, and parity bits.
        draws: one word an edge.

    Returns:
        (sum of degrees,) the checks, bit after bit.
    """
    n_info = degrees.size
    first = np.zeros(n_info + 1, np.int64)
    for bit in range(n_info):
        first[bit + 1] = first[bit] + degrees[bit]
    chosen = np.full(first[n_info], -1, np.int32)
    load = np.zeros(n_checks, np.int32)
    room = 8 + 4 * (first[n_info] // n_checks + 1)  # edges that a check can hold
    held = np.full((n_checks, room), -1, np.int32)
    far = np.zeros(n_checks, np.int32)  # steps from the bit
    queue = np.empty(n_checks, np.int32)
    asked = np.full(n_info, -1, np.int64)  # the last edge for which a bit was gone through
    least, n_at_least = np.int32(0), n_checks  # the fewest edges of a check, and how many have so few
    for bit in range(n_info):
        reach = n_checks if degrees[bit] <= FEW else NEAR
        for at in range(first[bit], first[bit + 1]):
            begun = chosen[first[bit] : at]
            n_known = _steps_from(begun, at, reach, held, load, first, chosen, far, queue, asked)
            start = np.int64(draws[at] % np.uint64(n_checks))
            best = _farthest(queue, n_known, far, load, start, room, least)
            chosen[at] = best
            held[best, load[best]] = bit
            load[best] += 1
            n_at_least -= load[best] == least + 1
            if n_at_least == 0:
                least = load.min()
                n_at_least = (load == least).sum()
    return chosen


@nb.njit(cache=True, nogil=True)
def _farthest(queue: Ints, n_known: int, far: Ints, load: Ints, start: int, room: int, least: int) -> int:
    """A check that is farthest, of those one with the fewest edges, and of these the next from ``start``.

    ``least`` is the fewest that any check has.
    """
    n_checks = far.size
    best, farthest, fewest, nearest = np.int64(-1), -1, room, n_checks
    if n_known < n_checks:  # some are not reached at all
        for step in range(n_checks):
            check = (start + step) % n_checks
            if far[check] == UNREACHED and load[check] < fewest:
                best, fewest = np.int64(check), load[check]
                if fewest == least:
                    break
        if best >= 0:
            return int(best)
    for at in range(n_known - 1, -1, -1):
        check = queue[at]
        if best >= 0 and far[check] < farthest:
            break
        step = (check - start) % n_checks
        if load[check] < room and (load[check] < fewest or (load[check] == fewest and step < nearest)):
            best, farthest, fewest, nearest = np.int64(check), far[check], load[check], step
    return int(best)


@nb.njit(cache=True, nogil=True)
def _steps_from(
    begun: Ints,
    turn: int,
    reach: int,
    held: NDArray[np.int32],
    load: Ints,
    first: NDArray[np.int64],
    chosen: Ints,
    far: Ints,
    queue: Ints,
    asked: NDArray[np.int64],
) -> int:
    """Fill ``far`` with the steps from the checks ``begun`` to every check, ``UNREACHED`` where no path leads
    and beyond ``reach``, and ``queue`` with those reached, the nearest first; how many these are.

    ``turn`` marks in ``asked`` the bits that were gone through: each is, once.
    """
    n_checks = far.size
    far[:] = UNREACHED
    n_known = 0
    for check in begun:
        far[check] = 0
        queue[n_known] = check
        n_known += 1
    done = 0
    while done < n_known < n_checks:
        check = queue[done]
        done += 1
        if far[check] == reach:
            break
        for side in (-1, 1):
            other = check + side
            if 0 <= other < n_checks and far[other] == UNREACHED:
                far[other] = far[check] + 1
                queue[n_known] = other
                n_known += 1
        for h in range(load[check]):
            bit = held[check, h]
            if asked[bit] == turn:
                continue
            asked[bit] = turn
            for e in range(first[bit], first[bit + 1]):
                other = chosen[e]
                if other >= 0 and far[other] == UNREACHED:
                    far[other] = far[check] + 1
                    queue[n_known] = other
                    n_known += 1
    return n_known


@nb.njit(cache=True, nogil=True)
def _soft(x: float) -> float:
    at = int(x * TABLE_STEPS)
    return float(SOFT_STEP[min(at, TABLE_STEPS * TABLE_REACH)])


@nb.njit(cache=True, nogil=True)
def _box(a: float, b: float) -> float:
    """The log-likelihood ratio of the sum of two bits: 2 atanh(tanh(a/2) tanh(b/2))."""
    small = min(abs(a), abs(b))
    value = small + _soft(abs(a + b)) - _soft(abs(a - b))
    return value if (a < 0) == (b < 0) else -(small + _soft(abs(a - b)) - _soft(abs(a + b)))


@nb.njit(cache=True, nogil=True)
def _all_hold(starts: Ints, bits: Ints, total: Floats) -> bool:
    for check in range(starts.size - 1):
        odd = False
        for e in range(starts[check], starts[check + 1]):
            odd ^= total[bits[e]] < 0
        if odd:
            return False
    return True


@nb.njit(cache=True, nogil=True)
def decode(
    starts: Ints, bits: Ints, most_in_check: int, llr: Floats, rounds: int, hard: NDArray[np.uint8]
) -> Ints:
    """Sum-product decoding, check after check (layered: Hocevar 2004), codeword after codeword.

    Args:
        starts, bits, most_in_check: the graph, and the size of its largest check.
        llr: (n_words, n_coded) log P(0) / P(1); becomes the log-likelihoods after decoding.
        rounds: most passes over all checks.
        hard: (n_words, n_coded) out: the decided bits.

    Returns:
        (n_words,) rounds that were needed, or -1 where the checks never all held.
    """
    n_words = llr.shape[0]
    n_checks = starts.size - 1
    needed = np.full(n_words, -1, np.int32)
    message = np.empty(bits.size, np.float32)
    come = np.empty(most_in_check, np.float32)
    left = np.empty(most_in_check, np.float32)
    for word in range(n_words):
        total = llr[word]
        message[:] = 0
        for at in range(total.size):
            total[at] = min(max(total[at], -MOST_LLR), MOST_LLR)
        for number in range(rounds):
            broken = False
            for check in range(n_checks):
                begin = starts[check]
                size = starts[check + 1] - begin
                odd = False
                for e in range(size):
                    value = total[bits[begin + e]]
                    odd ^= value < 0
                    come[e] = value - message[begin + e]
                broken |= odd
                left[0] = come[0]
                for e in range(1, size - 1):
                    left[e] = _box(left[e - 1], come[e])
                right = come[size - 1]
                for e in range(size - 1, -1, -1):
                    if e == size - 1:
                        out = left[size - 2]
                    elif e == 0:
                        out = right
                    else:
                        out = _box(left[e - 1], right)
                        right = _box(right, come[e])
                    total[bits[begin + e]] = come[e] + out
                    message[begin + e] = out
            # Later checks may have turned bits of earlier ones: ask once more.
            if not broken and _all_hold(starts, bits, total):
                needed[word] = number
                break
        for at in range(total.size):
            hard[word, at] = total[at] < 0
    return needed
