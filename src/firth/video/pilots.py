"""Pilots and the noise model: how far a received coefficient is to be believed.

A codec's noise is no Gaussian: a quantiser leaves some blocks almost as they were and wipes others out. So
the density of the phase error is chosen from a bank of shapes, a peak of some width and form over a floor,
for each frame and, within it, for each quarter of its blocks by activity. What is chosen is the most likely
shape given all phases, whose bits are not known, and the pilots, a few bits that both sides know.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BINS = 64  # of |phase| in [0, 1/2]
N_CLASSES = 4  # quarters of the blocks by activity
BORROWED = 200.0  # coefficients of the whole frame that count as a class's own
_FORMS = (0.7, 1.0, 1.5, 2.0)  # exponents of the peak
_FLOORS = (0.003, 0.03, 0.1, 0.3, 0.6, 0.85, 0.95)


@lru_cache(maxsize=1)
def bank() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(shapes, BINS) log probability of |phase| whichever the bit, and log P(0) / P(1) given it."""
    size = (np.arange(BINS) + 0.5) / (2 * BINS)
    turns = np.arange(-3, 4)[:, None]
    whichever, ratio = [], []
    for form in _FORMS:
        for width in np.geomspace(0.015, 0.6, 24):
            near = np.exp(-((np.abs(size + turns) / width) ** form)).sum(0)
            far = np.exp(-((np.abs(0.5 - size + turns) / width) ** form)).sum(0)
            total = (near + far).sum()
            for floor in _FLOORS:
                zero = near / total * (1 - floor) + floor / (2 * BINS)
                one = far / total * (1 - floor) + floor / (2 * BINS)
                whichever.append(np.log(zero + one))
                ratio.append(np.log(zero / one))
    return np.array(whichever), np.array(ratio)


def log_likelihoods(
    phases: Floats, activity: Floats, pilot_pos: NDArray[np.int64], pilot_bits: NDArray[np.uint8]
) -> Floats:
    """(n_blocks, n_coefs) log P(0) / P(1) of every bit, pilots too.

    Args:
        phases: (n_blocks, n_coefs) in steps, [-1/2, 1/2]: 0 means bit 0, a half means 1.
        activity: (n_blocks,) of :meth:`firth.video.carrier.BlockCarrier.activity`.
        pilot_pos: places of the pilots in ``phases``, flat.
        pilot_bits: what was sent there.
    """
    whichever, ratio = bank()
    at = np.minimum((np.abs(phases) * (2 * BINS)).astype(np.int64), BINS - 1)
    order = np.argsort(activity, kind="stable")
    block_class = np.empty(len(order), np.int64)
    block_class[order] = np.arange(len(order)) * N_CLASSES // len(order)
    cell = block_class[:, None] * BINS + at
    counts = np.bincount(cell.reshape(-1), minlength=N_CLASSES * BINS).reshape(N_CLASSES, BINS)
    score = counts @ whichever.T
    pilot_cell = cell.reshape(-1)[pilot_pos]
    for bit, sign in ((0, -1.0), (1, 1.0)):
        own = np.bincount(pilot_cell[pilot_bits == bit], minlength=N_CLASSES * BINS)
        score -= own.reshape(N_CLASSES, BINS) @ np.logaddexp(0, sign * ratio).T
    score += BORROWED / phases.size * score.sum(0)
    tables = ratio[score.argmax(1)].astype(np.float32)  # (classes, BINS)
    return np.asarray(tables.reshape(-1)[cell])


def information(llr: Floats) -> float:
    """Bits that each coded bit says, if its log-likelihood ratio is right: 1 less its binary entropy."""
    size = np.abs(llr)
    wrong = np.exp(-size) / (1 + np.exp(-size))
    return float(1 - np.mean(np.log1p(np.exp(-size)) + size * wrong) / np.log(2))


def match(phases: Floats, pilot_phases: Floats, pilot_bits: NDArray[np.uint8]) -> Floats:
    """How well patterns fit: (...) numbers that are normal with variance 1 where nothing is hidden.

    The mean of two sums over the last axis: the pilots' cosine of one turn a step, which is 1 where the bit
    is right; and that of two turns a step, which needs no bits, over all coefficients.

    Args:
        phases: (..., n) in steps.
        pilot_phases: (..., n_pilots) in steps, and the bits (..., n_pilots) that were sent.
    """
    known = np.cos(2 * np.pi * pilot_phases) * (1.0 - 2.0 * pilot_bits)
    blind = np.cos(4 * np.pi * phases)
    both = known.sum(-1) / np.sqrt(known.shape[-1]) + blind.sum(-1) / np.sqrt(blind.shape[-1])
    return np.asarray(both, np.float32)  # each sum has variance 1/2
