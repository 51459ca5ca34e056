"""The matrix of a product-quantised fastText model (``.ftz``): codes and the centroids they stand for.

::

    bool      whether the length of a row is quantised by itself
    int64 x 2 rows m, numbers in a row n
    int32     bytes of codes: m times the parts of a row
    codes     m x parts uint8
    quantiser int32 x 4: n, parts, numbers in a part, numbers in the last part; 256 x n float32 centroids
    and where lengths are quantised: m uint8 codes, and a quantiser of one number

Source: fastText, ``src/quantmatrix.cc`` and ``src/productquantizer.cc``; Jégou et al. 2011, "Product
Quantization for Nearest Neighbor Search".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firth.formats.fasttext_source import Source

CENTROIDS = 256


class QuantRows:
    """Rows that are put together from centroids when they are fetched.

    Args:
        codes: (R, P) uint8.
        centroids: P arrays (256, numbers in that part) float32.
        lengths: (R,) float32 factors, or ``None``.
    """

    def __init__(
        self,
        codes: NDArray[np.uint8],
        centroids: list[NDArray[np.float32]],
        lengths: tuple[NDArray[np.uint8], NDArray[np.float32]] | None,
    ) -> None:
        self._codes, self._centroids, self._lengths = codes, centroids, lengths
        self._dim = sum(part.shape[1] for part in centroids)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, numbers in a row."""
        return len(self._codes), self._dim

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of these numbers as a new (N, D) float32 array."""
        out = np.empty((len(rows), self._dim), np.float32)
        codes = self._codes[rows]
        begin = 0
        for part, centroids in enumerate(self._centroids):
            end = begin + centroids.shape[1]
            out[:, begin:end] = centroids[codes[:, part]]
            begin = end
        if self._lengths is not None:
            chosen, values = self._lengths
            out *= values[chosen[rows]][:, None]
        return out

    def rest(self, start: int) -> QuantRows:
        """The rows from ``start`` on."""
        lengths = None if self._lengths is None else (self._lengths[0][start:], self._lengths[1])
        return QuantRows(self._codes[start:], self._centroids, lengths)


def read_rows(source: Source, what: str) -> QuantRows:
    """Read a quantised matrix where ``source`` stands; codes stay mapped.

    Args:
        source: the file.
        what: the matrix's name, for messages.

    Raises:
        FormatError: it is cut, or its sizes do not fit one another.
    """
    (quantised_lengths,) = source.unpack("<?", f"the {what}")
    rows, dim, size = source.unpack("<qqi", f"the sizes of the {what}")
    if rows < 1 or dim < 1 or size < 0:
        raise source.error(f"the {what} has the impossible shape {rows:,} x {dim:,} and {size:,} codes")
    codes = source.array(size, np.dtype("u1"), f"the codes of the {what}")
    centroids = _quantiser(source, dim, what)
    if size != rows * len(centroids):
        raise source.error(f"the {what} has {size:,} codes for {rows:,} rows of {len(centroids):,} parts")
    lengths = None
    if quantised_lengths:
        chosen = source.array(rows, np.dtype("u1"), f"the lengths of the {what}")
        lengths = chosen, _quantiser(source, 1, f"{what}'s lengths")[0][:, 0]
    return QuantRows(codes.reshape(rows, len(centroids)), centroids, lengths)


def _quantiser(source: Source, dim: int, what: str) -> list[NDArray[np.float32]]:
    """The centroids of each part."""
    claimed, parts, width, last = source.unpack("<4i", f"the quantiser of the {what}")
    if (
        claimed != dim
        or parts < 1
        or width < 1
        or not 1 <= last <= width
        or (parts - 1) * width + last != dim
    ):
        raise source.error(
            f"the quantiser of the {what} has {parts:,} parts of {width:,} numbers, the last of {last:,}, "
            f"for {claimed:,} numbers; they do not make up rows of {dim:,}"
        )
    values = np.array(
        source.array(CENTROIDS * dim, np.dtype("<f4"), f"the centroids of the {what}"), np.float32
    )
    cut = CENTROIDS * width
    return [
        values[part * cut : part * cut + CENTROIDS * size].reshape(CENTROIDS, size)
        for part, size in enumerate([width] * (parts - 1) + [last])
    ]
