"""Frames that were scaled: which size did they have when something was hidden in them?

The blocks of a scaled frame lie elsewhere, so that no pattern fits. Sizes that films are made in, and simple
ratios of the size at hand, are tried one after another on a frame; where a pattern of the key fits, the size
is right, since nothing but the right size makes one fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

HEIGHTS = (
    *(144, 180, 240, 270, 288, 320, 360, 404, 432, 450, 480, 540, 576, 600, 648, 720, 768, 800, 900),
    *(1024, 1080, 1152, 1200, 1440, 1600, 2160),
)
RATIOS = (0.5, 0.6, 2 / 3, 0.75, 0.8, 0.9, 10 / 9, 1.25, 4 / 3, 1.5, 1.6, 1.75, 2.0, 2.5, 3.0, 4.0)
SMALLEST, LARGEST = 0.4, 4.0  # times the height at hand
REFINED = 4  # pixels around a size that fits, within which a better one is sought
SURE = 7.0  # of the match: some 3,000 patterns are tried on a frame

Size = tuple[int, int]
"""Height and width."""


def candidates(height: int, width: int) -> list[Size]:
    """Sizes of the same shape that frames of a size may have been scaled from, the nearest first."""
    aspect = width / height
    found = {(_even(height * ratio), _even(width * ratio)) for ratio in RATIOS}
    found |= {(other, _even(other * aspect)) for other in HEIGHTS}
    if height > width:  # upright films have their usual sizes the other way round
        found |= {(_even(other / aspect), other) for other in HEIGHTS}
    fitting = [size for size in found if SMALLEST <= size[0] / height <= LARGEST and size != (height, width)]
    return sorted(fitting, key=lambda size: abs(np.log(size[0] / height)))


def resized(plane: NDArray[Any], size: Size) -> NDArray[np.uint8]:
    """A plane of 8-bit luma in another size, by bicubic interpolation (FFmpeg's scaler)."""
    import av

    grey = np.ascontiguousarray(np.clip(np.rint(plane), 0, 255), np.uint8)
    frame = av.VideoFrame.from_ndarray(grey, format="gray")
    scaled = frame.reformat(width=size[1], height=size[0], interpolation="BICUBIC")
    return np.asarray(scaled.to_ndarray(), np.uint8)


def find_size(plane: NDArray[Any], score: Callable[[NDArray[np.uint8]], float]) -> Size | None:
    """The size that a plane was scaled from, or ``None`` if no candidate fits.

    Args:
        plane: 8-bit luma as it came.
        score: how well the best pattern fits a plane, in standard deviations.
    """
    for size in candidates(*plane.shape):
        if score(resized(plane, size)) > SURE:
            return _refined(plane, size, score)
    return None


def _refined(plane: NDArray[Any], size: Size, score: Callable[[NDArray[np.uint8]], float]) -> Size:
    """The best size within a few pixels: first the width, then the height."""
    height, width = size
    around = range(-REFINED, REFINED + 1)
    width += max(around, key=lambda more: score(resized(plane, (height, width + more))))
    height += max(around, key=lambda more: score(resized(plane, (height + more, width))))
    return height, width


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
