"""Arithmetic of the field of 65,536 elements, in Numba: sums of rows times constants.

An element is a uint16, a polynomial over GF(2) modulo x^16 + x^12 + x^3 + x + 1, which is primitive; so
every element but 0 is a power of 2, and a product is a sum of logarithms.
"""

from __future__ import annotations

from functools import cache

import numba as nb
import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x1100B
ORDER = 65535  # of the multiplicative group
LONG_ROW = 512  # words from which on two tables of 256 products a constant pay

Words = NDArray[np.uint16]
Logs = NDArray[np.int32]
Elements = NDArray[np.int64]


@cache
def tables() -> tuple[Logs, Words]:
    """Logarithms (65,536; that of 0 is no number) and powers of 2 (131,070: two turns)."""
    power = np.empty(2 * ORDER, np.uint16)
    log = np.zeros(ORDER + 1, np.int32)
    value = 1
    for exponent in range(ORDER):
        power[exponent] = power[exponent + ORDER] = value
        log[value] = exponent
        value <<= 1
        if value > ORDER:
            value ^= POLYNOMIAL
    return log, power


@nb.njit(cache=True, nogil=True)
def _add_product(
    into: Words, constant: int, row: Words, log: Logs, power: Words, low: Words, high: Words
) -> None:
    """into ^= constant * row."""
    if constant == 0:
        return
    shift = log[constant]
    if row.size < LONG_ROW:
        for at in range(row.size):
            if row[at] != 0:
                into[at] ^= power[shift + log[row[at]]]
        return
    low[0] = high[0] = 0
    for value in range(1, 256):
        low[value] = power[shift + log[value]]
        high[value] = power[shift + log[value << 8]]
    for at in range(row.size):
        word = row[at]
        into[at] ^= low[word & 255] ^ high[word >> 8]


@nb.njit(cache=True, nogil=True)
def add_products(into: Words, xs: Elements, ys: Elements, rows: Words, log: Logs, power: Words) -> None:
    """``into[i] ^= sum over j of rows[j] / (xs[i] ^ ys[j])``: a Cauchy matrix times rows.

    Args:
        into: (n, words) uint16, changed in place.
        xs, ys: (n,) and (m,) int64 elements; no x is a y.
        rows: (m, words) uint16.
        log, power: of :func:`tables`.
    """
    low = np.empty(256, np.uint16)
    high = np.empty(256, np.uint16)
    for i in range(xs.size):
        for j in range(ys.size):
            constant = power[ORDER - log[xs[i] ^ ys[j]]]
            _add_product(into[i], constant, rows[j], log, power, low, high)


@nb.njit(cache=True, nogil=True)
def solve(xs: Elements, ys: Elements, rows: Words, log: Logs, power: Words) -> Words:
    """The rows r with ``sum over j of r[j] / (xs[i] ^ ys[j]) = rows[i]``: the inverse of a Cauchy matrix.

    Its elements have a closed form (Schechter 1959), so that nothing is eliminated.

    Args:
        xs, ys: (n,) int64 elements, all different.
        rows: (n, words) uint16.

    Returns:
        (n, words) uint16.
    """
    n = xs.size
    scale_x = np.zeros(n, np.int64)
    scale_y = np.zeros(n, np.int64)
    for i in range(n):
        for k in range(n):
            scale_x[i] += log[xs[i] ^ ys[k]]
            scale_y[i] += log[xs[k] ^ ys[i]]
            if k != i:
                scale_x[i] -= log[xs[i] ^ xs[k]]
                scale_y[i] -= log[ys[i] ^ ys[k]]
    found = np.zeros((n, rows.shape[1]), np.uint16)
    low = np.empty(256, np.uint16)
    high = np.empty(256, np.uint16)
    for j in range(n):
        for i in range(n):
            exponent = (scale_x[i] + scale_y[j] - log[xs[i] ^ ys[j]]) % ORDER
            _add_product(found[j], power[exponent], rows[i], log, power, low, high)
    return found
