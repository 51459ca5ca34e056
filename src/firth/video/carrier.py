"""The carrier: low-frequency coefficients of the blocks of a luma plane, and how to change them.

Blocks of ``block`` x ``block`` pixels from the upper left corner on; each has the orthonormal DCT-II, of
which only a few low frequencies are computed, as two small matrix products a row of blocks. Few and large
changes of low frequencies live through the quantiser of a video codec, many small ones do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Luma = NDArray[Any]


@dataclass(frozen=True)
class BlockCarrier:
    """``n_coefs`` coefficients of every whole block: the first in zigzag order after the mean.

    Args:
        block: pixels along the side of a block.
        n_coefs: coefficients in use.
    """

    block: int
    n_coefs: int

    @property
    def places(self) -> NDArray[np.int64]:
        """(n_coefs, 2) vertical and horizontal frequency of each coefficient."""
        return _places(self.block, self.n_coefs)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of whole blocks in a plane of that shape."""
        return shape[0] // self.block, shape[1] // self.block

    def coefs(self, plane: Floats) -> Floats:
        """(n_blocks, n_coefs) coefficients of a plane (height, width) of float32."""
        rows, columns = self.grid(plane.shape)
        basis, size = self._basis, self.block
        whole = plane[: rows * size, : columns * size].reshape(rows, size, columns * size)
        halves = np.matmul(basis, whole).reshape(rows, len(basis), columns, size)
        both = np.matmul(halves, basis.T)  # rows, vertical, columns, horizontal
        chosen = both[:, self.places[:, 0], :, self.places[:, 1]]
        return np.ascontiguousarray(chosen.transpose(1, 2, 0)).reshape(rows * columns, self.n_coefs)

    def change(self, shape: tuple[int, ...], amounts: Floats) -> Floats:
        """The pixels to add so that coefficients change by ``amounts``; 0 outside of whole blocks.

        Args:
            shape: height and width of the plane.
            amounts: (n_blocks, n_coefs).
        """
        rows, columns = self.grid(shape)
        basis, size = self._basis, self.block
        both = np.zeros((rows, len(basis), columns, len(basis)), np.float32)
        both[:, self.places[:, 0], :, self.places[:, 1]] = amounts.reshape(rows, columns, -1).transpose(
            2, 0, 1
        )
        halves = np.matmul(both, basis).reshape(rows, len(basis), columns * size)
        pixels = np.zeros(shape, np.float32)
        pixels[: rows * size, : columns * size] = np.matmul(basis.T, halves).reshape(rows * size, -1)
        return pixels

    def activity(self, plane: Floats) -> Floats:
        """(n_blocks,) logarithm of the variance of the pixels of each block."""
        rows, columns = self.grid(plane.shape)
        size = self.block
        whole = plane[: rows * size, : columns * size].reshape(rows, size, columns, size)
        mean = whole.mean((1, 3))
        squares = np.einsum("iajb,iajb->ij", whole, whole) / size**2
        return np.asarray(np.log1p(np.maximum(squares - mean**2, 0)).reshape(-1))

    @property
    def _basis(self) -> Floats:
        return _dct(self.block, int(self.places.max()) + 1)


@lru_cache(maxsize=16)
def _dct(size: int, count: int) -> Floats:
    """(count, size) the lowest rows of the orthonormal DCT-II."""
    frequency = np.arange(count)[:, None]
    at = np.arange(size)[None]
    rows = np.cos(np.pi * (2 * at + 1) * frequency / (2 * size)) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, np.float32)


@lru_cache(maxsize=64)
def _places(block: int, n_coefs: int) -> NDArray[np.int64]:
    return np.array(_zigzag(block)[1 : 1 + n_coefs])


def _zigzag(size: int) -> list[tuple[int, int]]:
    """Frequencies of a block from low to high, as in JPEG."""
    every = [(i, j) for i in range(size) for j in range(size)]
    return sorted(every, key=lambda at: (sum(at), at[1] if sum(at) % 2 else at[0]))
