"""What the kernels draw with in each epoch, for one objective and one vocabulary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firth.kernels import Kernels
from firth.kernels.reference import Draws, stream_keys
from firth.training.objectives import SkipGram
from firth.training.sampling import keep_thresholds, noise_weights


class Sampler:
    """The draws of each epoch; thresholds are computed once.

    Args:
        counts: (V,) int64; a count of 0 is taken as 1.
        objective: gives sample, exponent and the number of draws.
        seed: of the run.
        kernels: they compute the alias table.
        drawn: the words that may be drawn as negatives, as row numbers; all by default. The others
            count for nothing (of 2**32 draws an alias table still gives them one, at most).
    """

    def __init__(
        self,
        counts: npt.NDArray[np.int64],
        objective: SkipGram,
        seed: int,
        kernels: Kernels,
        drawn: npt.NDArray[np.intp] | None = None,
    ) -> None:
        rows: npt.NDArray[np.intp] | slice = slice(None) if drawn is None else drawn
        own_counts = np.maximum(counts[rows], 1)
        self._n_keys = objective.n_keys
        self._seed = seed
        self._keep = np.full(len(counts), 0xFFFFFFFF, np.uint32)
        self._keep[rows] = keep_thresholds(own_counts, objective.sample)
        weights = np.zeros(len(counts))
        weights[rows] = noise_weights(own_counts, objective.ns_exponent)
        self._threshold, self._alias = kernels.alias_table(weights)

    def epoch(self, epoch: int) -> Draws:
        """Keys and thresholds for one epoch."""
        return Draws(stream_keys(self._seed, epoch, self._n_keys), self._keep, self._threshold, self._alias)
