"""Are two tables the same, row by row? The judge of every fast kernel, in tests and before a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def worst_row(
    table: npt.NDArray[np.floating[Any]], expected: npt.NDArray[np.floating[Any]]
) -> tuple[int, float]:
    """The row that differs most and by how much, relative to the expected row's length.

    A row's difference is ||table - expected|| / max(||expected||, 1e-30), in float64, so that one
    wrong row among a million shows as it would alone.

    Args:
        table, expected: (V, D); ``expected`` may be float64 and without padding columns, which
            must then be zero in ``table``.

    Raises:
        AssertionError: another shape, a table that is not float32, or NaN or infinity in either.
    """
    assert table.dtype == np.float32, f"the table is {table.dtype}, not float32"
    rows, dim = expected.shape
    assert len(table) == rows and table.shape[1] >= dim, f"shapes {table.shape} and {expected.shape}"
    for name, values in (("table", table), ("expected", expected)):
        finite = np.isfinite(values).all(axis=1)
        assert finite.all(), f"row {int(np.argmin(finite))} of {name} is not finite"
    assert not table[:, dim:].any(), "the padding is not zero"
    wrong = np.linalg.norm(table[:, :dim].astype(np.float64) - expected, axis=1)
    wrong /= np.maximum(np.linalg.norm(expected.astype(np.float64), axis=1), 1e-30)
    row = int(np.argmax(wrong))
    return row, float(wrong[row])


def assert_rows_equal(
    table: npt.NDArray[np.floating[Any]],
    expected: npt.NDArray[np.floating[Any]],
    tolerance: float,
    what: str = "table",
) -> None:
    """Raise if a row differs by more than ``tolerance``; see :func:`worst_row`.

    Raises:
        AssertionError: names the worst row and its difference.
    """
    row, difference = worst_row(table, expected)
    assert difference <= tolerance, f"row {row} of {what} differs by {difference:.3g} > {tolerance:g}"
