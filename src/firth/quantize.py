"""Rows in one or two bytes a number, for lookups: how, how far off, and back.

int8
    Row x becomes ``scale = max|x| / 127`` and ``code = round(x / scale)``, -127 to 127 (symmetric, one
    scale a row; ties to even). Back: ``code * scale``, so no element is off by more than::

        |x - y| <= max|x| / 254                                  (times 1 + 2^-20 for float32 rounding)

    and no dot product with a float vector q by more than ``|q|_1 * max|x| / 254``, where |q|_1 is the
    sum of absolute values; with another int8 row z of z', by ``|z'|_1 * max|x| / 254 +
    |y|_1 * max|z'| / 254``. For rows like N(0, 1) the errors are nearly independent, and a dot product is
    off by about ``|q|_2 * max|x| / 440``. Rows of zeros stay zeros; in rows below 1.5e-36 float32 scales
    lose digits, and the error may be as large as the numbers. A table of D columns takes D + 4 bytes a
    row, a quarter of float32.

float16
    Ten bits of fraction: ``|x - y| <= max(|x| * 2^-11, 2^-25)``, dot products within ``|q|_1`` times the
    largest of these. Numbers beyond 65,504 do not exist there. 2 D bytes a row.

Matrices are (N, D) of any float dtype of numpy. Work is done in pieces of rows, so that a memory-mapped
matrix may be larger than memory as long as its codes fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from firth.errors import ShapeError

Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.floating[Any]]

PIECE = 1 << 20
"""Elements worked on at once."""

LARGEST = 3.4e38
"""A little below the largest float32, so that what is read back is finite too."""

LARGEST_HALF = 65_504.0


def to_int8(matrix: Floats) -> tuple[Codes, npt.NDArray[np.float32]]:
    """Codes and scales of rows.

    Args:
        matrix: (N, D), finite.

    Returns:
        ``codes`` (N, D) int8 and ``scale`` (N,) float32.

    Raises:
        ShapeError: no matrix of floats; NaN or infinity, or a number beyond 3.4e38: the row is named.
    """
    _check(matrix, "to_int8")
    codes, scale = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)
    for rows in _pieces(matrix):
        piece = np.asarray(matrix[rows], np.float32 if matrix.dtype == np.float16 else None)
        largest = np.abs(piece).max(axis=1, initial=0.0).astype(np.float64)
        _check_numbers(largest, rows.start, LARGEST, "to_int8")
        scale[rows] = (largest / 127).astype(np.float32)
        divisor = np.where(scale[rows] > 0, scale[rows], np.inf).astype(piece.dtype)
        codes[rows] = np.clip(np.rint(piece / divisor[:, None]), -127, 127)
    return codes, scale


def from_int8(codes: Codes, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The rows that codes and scales stand for, (N, D) float32.

    Raises:
        ShapeError: the shapes or dtypes are not those of :func:`to_int8`.
    """
    if codes.ndim != 2 or codes.dtype != np.int8 or scale.shape != codes.shape[:1]:
        raise ShapeError(
            f"from_int8(): codes (N, D) int8 and scale (N,) are expected, got {codes.dtype} {codes.shape} "
            f"and {scale.shape}"
        )
    return codes * scale.astype(np.float32)[:, None]


def to_half(matrix: Floats) -> npt.NDArray[np.float16]:
    """Rows in float16.

    Raises:
        ShapeError: no matrix of floats; NaN, infinity or a number beyond 65,504: the row is named.
    """
    _check(matrix, "to_half")
    half = np.empty(matrix.shape, np.float16)
    for rows in _pieces(matrix):
        largest = np.abs(matrix[rows]).max(axis=1, initial=0.0).astype(np.float64)
        _check_numbers(largest, rows.start, LARGEST_HALF, "to_half")
        half[rows] = matrix[rows]
    return half


def from_half(half: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Rows of float16 as float32, exactly."""
    return half.astype(np.float32)


def _check(matrix: Floats, name: str) -> None:
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise ShapeError(f"{name}(): a matrix of floats is expected, got {matrix.dtype} {matrix.shape}")


def _check_numbers(largest: Floats, first: int, limit: float, name: str) -> None:
    """``largest``: of the absolute values of each row, from row ``first`` on."""
    wrong = np.flatnonzero(~(largest <= limit))  # NaN compares false
    if len(wrong):
        raise ShapeError(
            f"{name}(): row {first + int(wrong[0])} holds {float(largest[wrong[0]]):.4g}, numbers up to "
            f"{limit:.6g} can be kept; {'scale the table, use int8, or ' if limit < 1e6 else ''}"
            "check what made it"
        )


def _pieces(matrix: Floats) -> Iterator[slice]:
    step = max(PIECE // max(matrix.shape[1], 1), 1)
    for first in range(0, len(matrix), step):
        yield slice(first, min(first + step, len(matrix)))
