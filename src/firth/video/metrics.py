"""How far marked frames are from the cover's: PSNR, SSIM and flicker of the luma plane."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from firth.errors import ShapeError
from firth.video.frames import Luma

_TAPS, _SIGMA = 11, 1.5  # the window of Wang et al. 2004
_K1, _K2 = 0.01, 0.03

Plane = NDArray[np.float32]


def psnr(before: Luma, after: Luma, depth: int = 8) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(peak^2 / mean squared error); infinite if they are equal.

    Args:
        before, after: planes of one shape.
        depth: bits of a sample.

    Raises:
        ShapeError: shapes differ.
    """
    return decibels(mean_square(before, after), depth)


def mean_square(before: Luma, after: Luma) -> float:
    """Mean of the squared differences of two planes.

    Raises:
        ShapeError: shapes differ.
    """
    return _mean_square(difference(before, after))


def decibels(error: float, depth: int = 8) -> float:
    """The PSNR of a mean squared error."""
    peak = float((1 << depth) - 1)
    return 10 * math.log10(peak * peak / error) if error else math.inf


def ssim(before: Luma, after: Luma, depth: int = 8) -> float:
    """Structural similarity (Wang et al. 2004, Gaussian window of 11 and sigma 1.5), mean over the plane.

    Args:
        before, after: planes of one shape, at least 11 x 11.
        depth: bits of a sample.

    Raises:
        ShapeError: shapes differ, or a side is shorter than the window.
    """
    _same(before, after)
    if min(before.shape) < _TAPS:
        raise ShapeError(f"ssim: planes of at least {_TAPS} x {_TAPS} are needed, got {before.shape}")
    peak = (1 << depth) - 1
    x, y = before.astype(np.float32), after.astype(np.float32)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x * mean_x
    var_y = _blurred(y * y) - mean_y * mean_y
    common = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * common + c2)
    below = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    return float(np.mean(above / below))


class Quality:
    """Quality over a film, frame by frame: PSNR of all, SSIM and flicker of one in so many.

    Flicker is the root mean square of what the change itself changes from one frame to the next, in luma
    levels: the change of a still mark is the same in both, and gives 0. That of the cover stands beside it.

    Args:
        depth: bits of a luma sample.
        every: SSIM and flicker are measured on one frame in so many, drawn by chance (always the same), so
            that no rhythm of the mark goes unseen.

    Attributes:
        n_pixels: compared so far.
    """

    def __init__(self, depth: int, every: int = 10) -> None:
        self._depth, self._share = depth, 1 / every
        self._chance = random.Random(0)
        self._worst = 0.0
        self._total = 0.0
        self._n_frames = 0
        self.n_pixels = 0
        self._ssims: list[float] = []
        self._flickers: list[tuple[float, float]] = []
        self._last: tuple[Luma, Plane] | None = None

    def add(self, before: Luma, after: Luma) -> None:
        """Compare a frame; frames come in order."""
        change = difference(before, after)
        error = _mean_square(change)
        self._total += error
        self._worst = max(self._worst, error)
        if self._last is not None:
            earlier, earlier_change = self._last
            self._flickers.append(
                (_mean_square(change - earlier_change), _mean_square(difference(earlier, before)))
            )
            self._last = None
        if self._chance.random() < self._share or not self._n_frames:
            self._last = (before.copy(), change)
            if min(before.shape) >= _TAPS:
                self._ssims.append(ssim(before, after, self._depth))
        self._n_frames += 1
        self.n_pixels += before.size

    @property
    def psnr(self) -> float:
        """In dB, of the mean squared error of all frames."""
        return decibels(self._total / max(1, self._n_frames), self._depth)

    @property
    def psnr_least(self) -> float:
        """In dB, of the frame that changed most."""
        return decibels(self._worst, self._depth)

    @property
    def ssim(self) -> float | None:
        """Mean of the frames measured; ``None`` without any."""
        return float(np.mean(self._ssims)) if self._ssims else None

    @property
    def flicker(self) -> tuple[float, float] | None:
        """Of the change and of the cover, in luma levels; ``None`` with fewer than two frames."""
        if not self._flickers:
            return None
        change, cover = np.sqrt(np.mean(self._flickers, axis=0)).tolist()
        return change, cover


def difference(before: Luma, after: Luma) -> Plane:
    """``after - before`` in float32.

    Raises:
        ShapeError: shapes differ.
    """
    _same(before, after)
    return np.subtract(after, before, dtype=np.float32)


def _same(before: Luma, after: Luma) -> None:
    if before.shape != after.shape:
        raise ShapeError(f"planes of one shape are compared, got {before.shape} and {after.shape}")


def _mean_square(plane: Plane) -> float:
    flat = plane.reshape(-1)
    return float(flat @ flat) / flat.size


def _blurred(plane: Plane) -> Plane:
    """The part of ``plane`` that the whole window fits over, weighted by the window."""
    places = np.arange(_TAPS) - _TAPS // 2
    window = np.exp(-(places**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).astype(np.float32)
    height, width = plane.shape
    rows = sum(window[tap] * plane[tap : height - _TAPS + 1 + tap] for tap in range(_TAPS))
    return np.asarray(sum(window[tap] * rows[:, tap : width - _TAPS + 1 + tap] for tap in range(_TAPS)))
