"""What the kernels draw with in each epoch, for one objective and one vocabulary."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt

from firth.kernels.reference import Draws, stream_keys
from firth.training.objectives import SkipGram
from firth.training.sampling import keep_thresholds, noise_weights


class Sampler:
    """The draws of each epoch; thresholds are computed once.

    Args:
        counts: (V,) int64; a count of 0 is taken as 1.
        objective: gives sample, exponent and the number of draws.
        seed: of the run.
        kernels: the module that computes the alias table.
    """

    def __init__(
        self, counts: npt.NDArray[np.int64], objective: SkipGram, seed: int, kernels: ModuleType
    ) -> None:
        counts = np.maximum(counts, 1)
        self._n_keys = objective.n_keys
        self._seed = seed
        self._keep = keep_thresholds(counts, objective.sample)
        self._threshold, self._alias = kernels.alias_table(noise_weights(counts, objective.ns_exponent))

    def epoch(self, epoch: int) -> Draws:
        """Keys and thresholds for one epoch."""
        return Draws(stream_keys(self._seed, epoch, self._n_keys), self._keep, self._threshold, self._alias)
