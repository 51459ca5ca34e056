"""From the words of a document to one vector: the mean, and the weighted mean of Arora et al.

A pooling says how; what it learns from documents is a ``Learned``, which the encoder keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from firth.errors import SettingError

Floats = NDArray[np.float64]


class Learned(NamedTuple):
    """What a pooling needs besides the word vectors.

    Attributes:
        weights: (V,) float64, of the word in each row; ``None``: all 1.
        components: (k, D) float64, orthonormal directions taken out of every document's vector.
    """

    weights: Floats | None
    components: Floats


class Pooling(Protocol):
    """How the vectors of words become that of a document."""

    @property
    def needs_fit(self) -> bool:
        """Whether anything is learned from documents."""
        ...

    def weights(self, counts: NDArray[np.int64], total: int) -> Floats | None:
        """(V,) the weight of each word, from how often it occurs among ``total`` words."""
        ...

    def directions(self, blocks: Iterable[Floats], dim: int) -> Floats:
        """(k, D) what to take out, from the documents' weighted means (N, D), a block at a time."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of the vectors of a document's words, a word counting as often as it occurs."""

    @property
    def needs_fit(self) -> bool:
        """Nothing is learned."""
        return False

    def weights(self, counts: NDArray[np.int64], total: int) -> Floats | None:
        """All words alike."""
        return None

    def directions(self, blocks: Iterable[Floats], dim: int) -> Floats:
        """None."""
        return np.zeros((0, dim))


@dataclass(frozen=True)
class SIF:
    """Smooth inverse frequency: rare words count more, and what all documents share is taken out.

    A word of probability p has the weight a / (a + p); from each document's mean of weighted vectors its
    projection on the first singular vectors of the documents given to ``fit`` (not centred) is subtracted.
    Source: Arora, Liang and Ma 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings",
    algorithm 1.

    Args:
        a: smaller ones favour rare words more; the paper's range is 1e-4 to 1e-3.
        components: how many singular vectors are taken out; 1 in the paper, 0 leaves all in.

    Raises:
        SettingError: ``a`` is not positive, or ``components`` is negative.
    """

    a: float = 1e-3
    components: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.a < float("inf"):
            raise SettingError(f"SIF(): a is {self.a!r}; a positive number is expected, 1e-3 say")
        if isinstance(self.components, bool) or not isinstance(self.components, int) or self.components < 0:
            raise SettingError(f"SIF(): components is {self.components!r}; 0 or a few, 1 in the paper")

    @property
    def needs_fit(self) -> bool:
        """The directions to take out are learned."""
        return True

    def weights(self, counts: NDArray[np.int64], total: int) -> Floats | None:
        """(V,) a / (a + p); a word that never occurred counts 1."""
        weights: Floats = self.a / (self.a + counts / max(total, 1))
        return weights

    def directions(self, blocks: Iterable[Floats], dim: int) -> Floats:
        """The first right singular vectors of all blocks as one matrix, through its Gram matrix (D, D).

        Raises:
            SettingError: more components than there are dimensions.
        """
        if self.components > dim:
            raise SettingError(f"SIF(): components is {self.components}, and the vectors have {dim} numbers")
        gram = np.zeros((dim, dim))
        for block in blocks:
            gram += block.T @ block
        squares, vectors = np.linalg.eigh(gram)  # rising
        squares, vectors = squares[::-1][: self.components], vectors[:, ::-1][:, : self.components]
        # Directions in which nothing lies are left out: few or empty documents have fewer.
        real = squares > squares.max(initial=0) * dim * np.finfo(float).eps
        return np.ascontiguousarray(vectors[:, real].T)


def sums(
    matrix: NDArray[np.float32], rows: NDArray[np.int64], owners: NDArray[np.int64], weights: Floats, n: int
) -> Floats:
    """(n, D) float64: the weighted sum of the rows that each document owns.

    Args:
        matrix: (V, D). rows: (T,) of ``matrix``. owners: (T,) the document of each, rising.
        weights: (T,) of each.
        n: how many documents.
    """
    dim = matrix.shape[1]
    out = np.zeros((n, dim))
    step = max(1, (1 << 20) // dim)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        terms = matrix[rows[part]] * weights[part, None]
        begins = np.flatnonzero(np.diff(owners[part], prepend=-1))
        out[owners[part][begins]] += np.add.reduceat(terms, begins, axis=0)
    return out
