"""Which pattern each frame of a film has, told from all frames in a row.

Patterns take turns, so that mostly the next frame has the next one; frames may be missing, come twice, or be
followed by another part of the film. A frame that an encoder leaves empty shows no pattern, or that of the
frame it was predicted from; so a single frame is not believed against what those around it say. The path of
patterns that fits best is found by dynamic programming (Viterbi 1967).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firth.video.layout import N_PATTERNS

SAID = 4.0  # what scores count for, which grows slowly: a pattern may be that of another frame
STEPS = {1: 0.0, 2: -3.0, 3: -5.0, 4: -6.0, 0: -7.0, 5: -7.0, 6: -7.0, 7: -7.0, 8: -7.0}
"""Turns from a frame to the next, and the logarithm of how likely they are beside a single one."""
JUMP = -9.0  # any other

Array = NDArray[np.float64]


def _steps() -> Array:
    steps = np.full((N_PATTERNS, N_PATTERNS), JUMP)
    for first in range(N_PATTERNS):
        for step, likely in STEPS.items():
            steps[first, (first + step) % N_PATTERNS] = likely
    return steps


class Turns:
    """Follows the turns of a film.

    Args:
        pattern: of the frame before the first that is asked about.
    """

    def __init__(self, pattern: int) -> None:
        self._steps = _steps()
        self._likely = np.full(N_PATTERNS, JUMP)
        self._likely[pattern] = 0

    def path(self, scores: Sequence[NDArray[np.float32]]) -> list[int]:
        """The patterns of the next frames.

        Args:
            scores: of each frame, how well every pattern fits, in standard deviations: (N_PATTERNS,).
        """
        likely, before = self._likely, []
        for score in scores:
            paths = likely[:, None] + self._steps
            before.append(paths.argmax(0))
            likely = paths.max(0) + _said(score)
        path = [int(likely.argmax())]
        for back in before[:0:-1]:
            path.append(int(back[path[-1]]))
        return path[::-1]

    def next(self, score: NDArray[np.float32]) -> None:
        """The first of these frames is done with."""
        likely = (self._likely[:, None] + self._steps).max(0) + _said(score)
        self._likely = likely - likely.max()


def _said(score: NDArray[np.float32]) -> Array:
    return np.asarray(SAID * np.log1p((np.maximum(score, 0) / 3) ** 2), np.float64)
