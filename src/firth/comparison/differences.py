"""Two models as wholes, over the words that both have: do they agree, and on which words least?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firth.comparison.report import Shift
from firth.comparison.shared import Float32s, Rows
from firth.evaluate import spearman
from firth.search import top_k

NEIGHBOURS = 25  # of a word in either model, as Hamilton et al. 2016 take
NAMED = 5  # of these, shown by name
PAIRS = 100_000  # of words, for the correlation of two models
BLOCK = 512  # words whose neighbours are gathered at once


class Table:
    """The shared words in one model: rows of length one, in the same order in each model.

    Args:
        matrix: (S, D) float32.
    """

    def __init__(self, matrix: Float32s) -> None:
        self.matrix = matrix
        squares = np.einsum("sd,sd->s", matrix, matrix)
        self.good: NDArray[np.bool_] = np.isfinite(squares) & (squares > 0)
        self._nearest: Rows | None = None

    def __len__(self) -> int:
        return len(self.matrix)

    def nearest(self, n_words: int) -> Rows:
        """(N, K) rows of the nearest of each of the first ``n_words``; -1 where there are fewer."""
        if self._nearest is None or len(self._nearest) != n_words:
            itself = np.arange(n_words)[:, None]
            self._nearest = top_k(self.matrix[:n_words], self.matrix, NEIGHBOURS, skip=itself)[0]
        return self._nearest


class Differences(NamedTuple):
    """See ``PairReport``, whose last fields these are."""

    words: int
    k: int
    overlap: float
    most: tuple[Shift, ...]
    least: tuple[Shift, ...]


def cosine_agreement(one: Table, other: Table, among: int | None, seed: int) -> tuple[float, int]:
    """Spearman's correlation of the cosines of pairs of words, and the number of pairs.

    All pairs of the first ``among`` words, or 100,000 drawn with repeats where there are more. NaN where
    fewer than three can be compared.
    """
    n_words = len(one) if among is None else min(among, len(one))
    if n_words * (n_words - 1) // 2 <= PAIRS:
        a, b = np.triu_indices(n_words, 1)
    else:
        draws = np.random.default_rng(seed)
        a = draws.integers(0, n_words, PAIRS)
        b = (a + draws.integers(1, n_words, PAIRS)) % n_words  # never the word itself
    good = (one.good & other.good)[a] & (one.good & other.good)[b]
    a, b = a[good], b[good]
    if len(a) < 3:
        return math.nan, len(a)
    cosines = (np.einsum("pd,pd->p", table.matrix[a], table.matrix[b]) for table in (one, other))
    x, y = (values.astype(np.float64) for values in cosines)
    return spearman(x, y), len(a)


def differences(one: Table, other: Table, keys: Sequence[str], differ: int, among: int | None) -> Differences:
    """The words whose company differs most, and least.

    Args:
        one, other: the same words in two models.
        keys: their names.
        differ: how many to name; 0 does nothing.
        among: of how many words, from the first; ``None``: of all.
    """
    n_words = len(keys) if among is None else min(among, len(keys))
    if differ == 0 or len(keys) < 2:
        return Differences(0, NEIGHBOURS, math.nan, (), ())
    near = one.nearest(n_words), other.nearest(n_words)
    distances, common = _distances(one, other, *near)
    judged = np.flatnonzero((one.good & other.good)[:n_words])
    order = judged[np.argsort(-distances[judged], kind="stable")]

    def shift(row: int) -> Shift:
        named = tuple(tuple(keys[int(id_)] for id_ in ids[row, :NAMED] if id_ >= 0) for ids in near)
        return Shift(keys[row], float(distances[row]), int(common[row]), (named[0], named[1]))

    k = near[0].shape[1]
    overlap = float(common[judged].mean() / k) if len(judged) else math.nan
    most = tuple(shift(int(row)) for row in order[:differ])
    least = tuple(shift(int(row)) for row in order[::-1][:differ])
    return Differences(len(judged), k, overlap, most, least)


def _distances(one: Table, other: Table, near_one: Rows, near_other: Rows) -> tuple[Float32s, Rows]:
    """(N,) one minus the cosine of the two lists of similarities, and how many neighbours are common."""
    n_words = len(near_one)
    distances, common = np.empty(n_words, np.float32), np.empty(n_words, np.int64)
    for start in range(0, n_words, BLOCK):
        words = slice(start, min(start + BLOCK, n_words))
        left, right = near_one[words], near_other[words]
        twice = (right[:, :, None] == left[:, None, :]).any(axis=2)
        ids = np.concatenate((left, right), axis=1)
        used = np.concatenate((left >= 0, ~twice & (right >= 0)), axis=1)
        a, b = (
            np.where(used, np.einsum("wkd,wd->wk", table.matrix[ids], table.matrix[words]), 0)
            for table in (one, other)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            product = np.einsum("wk,wk->w", a, b)
            size = np.sqrt(np.einsum("wk,wk->w", a, a) * np.einsum("wk,wk->w", b, b))
            distances[words] = 1 - np.where(size > 0, product / size, 0)
        common[words] = (twice & (right >= 0)).sum(axis=1)
    return distances, common
