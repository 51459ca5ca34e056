"""The codebook: an embedding table whose rows are read modulo the step of a lattice.

Hiding symbol ``i`` in a vector of coefficients moves the vector to the nearest point of the lattice shifted
by row ``i``; extracting finds the row whose shifted lattice is nearest (quantisation index modulation: Chen
and Wornell 2001). So a message symbol is an id, hiding is a lookup, and extracting is a search for the
nearest row on a torus. What hiding costs does not depend on the rows: step^2 / 12 a coefficient on average.
"""

from __future__ import annotations

import itertools
from typing import Self

import torch
from torch import Tensor

from firth.errors import SettingError
from firth.nn import Embedding

# Generator rows of the extended Hamming code of 8 bits; its lattice (construction A) is E8.
_HAMMING = (
    (1, 0, 0, 0, 0, 1, 1, 1),
    (0, 1, 0, 0, 1, 0, 1, 1),
    (0, 0, 1, 0, 1, 1, 0, 1),
    (0, 0, 0, 1, 1, 1, 1, 0),
)


class CosetTable(Embedding):
    """``num_embeddings`` symbols as shifts of a lattice of ``embedding_dim`` coefficients.

    Rows are in units of the step and count modulo 1. It is an :class:`firth.nn.Embedding`: ids look rows up,
    and gradients reach the rows used, through :meth:`hide` as well as through :meth:`distances`.
    """

    @classmethod
    def product_binary(cls, n_bits: int) -> Self:
        """2^n rows of n coefficients: bit k of the id, from the lowest on, moves number k by half a step.

        Args:
            n_bits: bits of a symbol, 1 to 16.

        Raises:
            SettingError: outside of these.
        """
        if not 1 <= n_bits <= 16:
            raise SettingError(f"CosetTable.product_binary: 1 to 16 bits a symbol, not {n_bits}")
        ids = torch.arange(1 << n_bits)
        return cls.from_pretrained((ids[:, None] >> torch.arange(n_bits) & 1).float() / 2)

    @classmethod
    def e8(cls) -> Self:
        """16 rows of 8 coefficients, the extended Hamming code: half the bits, twice the squared distance
        of each two, four times that of most."""
        words = [
            [sum(bit * row[k] for bit, row in zip(bits, _HAMMING, strict=True)) % 2 / 2 for k in range(8)]
            for bits in itertools.product((0, 1), repeat=4)
        ]
        return cls.from_pretrained(torch.tensor(words))

    @classmethod
    def random(cls, n_symbols: int, dim: int, generator: torch.Generator | None = None) -> Self:
        """Rows drawn evenly from the torus, to be learned."""
        return cls.from_pretrained(torch.rand(n_symbols, dim, generator=generator), freeze=False)

    def hide(self, values: Tensor, ids: Tensor, step: float | Tensor, dither: Tensor | float = 0.0) -> Tensor:
        """``values`` moved to the nearest points that mean ``ids``.

        Args:
            values: (..., embedding_dim) coefficients.
            ids: (...) symbols.
            step: of the lattice; a number, or (embedding_dim,).
            dither: a shift that both sides know, in units of the step; broadcast to ``values``.

        Returns:
            As ``values``. The gradient for rows and step is that with the chosen points held (straight
            through the rounding).
        """
        shift: Tensor = self(ids) + dither
        points = torch.round((values / step - shift).detach()) + shift
        return points * step

    def distances(self, values: Tensor, step: float | Tensor, dither: Tensor | float = 0.0) -> Tensor:
        """(..., num_embeddings) squared distances on the torus, in units of the step.

        Args:
            values, step, dither: as for :meth:`hide`.
        """
        off = (values / step - dither).unsqueeze(-2) - self.weight
        return (off - torch.round(off.detach())).square().sum(-1)

    def nearest(self, values: Tensor, step: float | Tensor, dither: Tensor | float = 0.0) -> Tensor:
        """(...) the symbols whose shifted lattices are nearest to ``values``."""
        return self.distances(values, step, dither).argmin(-1)
