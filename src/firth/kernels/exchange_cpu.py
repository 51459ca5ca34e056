"""Rows that several processes have moved, made one again: the fast twin of ``Exchange.combined`` on the CPU.

The definition is in ``firth.training.exchange``, in torch, which is also what cards run. There each row is
read and written some twenty times; here it stays in the first cache.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

_FAST = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}


@nb.njit(**_FAST)
def _factor(x: Any, summed: Any, size: Any) -> Any:
    """What a sum over ``size`` runs counts where each run multiplies a distance by exp(-x)."""
    x = min(max(x, np.float32(1e-6)), np.float32(60.0))
    return np.float32(np.expm1(-summed * x) / np.expm1(-x) / size)


@nb.njit(cache=True, **_FAST)
def move(
    table: Any,
    before: Any,
    rows: Any,
    total: Any,
    met: Any,
    space: Any,
    lengths: Any,
    summed: Any,
    size: Any,
    near: Any,
    growth: Any,
) -> None:
    """Move rows of ``table`` from what they were before, and let these be what they were.

    Args:
        table: float32 (V, at least dim), C-contiguous, changed. before: float32 (V, dim), changed.
        rows: int64 (n,), which of them. total: float32 (n, dim), by how much all processes moved them.
        met: float32 (n,), curvature x rate x rows met. space: float32 (k, dim), directions. lengths: float32
            (k + 1,), of the rows met along each and along any other.
        summed, size, near, growth: as in ``firth.training.exchange``.
    """
    n, dim = total.shape
    k = len(lengths) - 1
    moved = np.empty(dim, np.float32)
    for r in range(n):
        row = rows[r]
        rest = _factor(met[r] * lengths[k], summed, size)
        for d in range(dim):
            moved[d] = rest * total[r, d]
        for j in range(k):
            if met[r] * lengths[j] > np.float32(1e-5):  # else the factor is that of the others, to rounding
                dot = np.float32(0.0)
                for d in range(dim):
                    dot += total[r, d] * space[j, d]
                share = dot * (_factor(met[r] * lengths[j], summed, size) - rest)
                for d in range(dim):
                    moved[d] += share * space[j, d]
        if met[r] * lengths[0] > near:
            length, mean_length = np.float32(0.0), np.float32(0.0)
            for d in range(dim):
                length += (before[row, d] + moved[d]) ** 2
                mean_length += (before[row, d] + total[r, d] / size) ** 2
            if length > growth * growth * mean_length:
                for d in range(dim):
                    moved[d] = total[r, d] / size
        for d in range(dim):
            before[row, d] += moved[d]
            table[row, d] = before[row, d]
