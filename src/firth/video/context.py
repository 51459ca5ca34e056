"""What the frames around a frame tell about its bits.

An encoder predicts blocks from other frames and codes what differs enough. A coefficient that stands where
its neighbours in time predict it was most likely not coded, and says little; one that stands off from them
was coded, and is to be believed; and what was coded coarsely was pulled towards the prediction. A small
network judges that: it takes the log-likelihood ratio of the noise model (:mod:`firth.video.pilots`), which
sees a frame by itself, and adds what follows from up to ``REACH`` frames before and behind.

Both bits are treated alike by construction. Features are either ``even``, the same whichever bit is asked
about, or ``odd``, of the other sign for the other bit; with a network f of two layers

    log P(0) / P(1) = gain * llr + f(even, odd) - f(even, -odd).

Its weights were trained by ``bench/video_context.py`` on films that are made there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from firth.video import pilots
from firth.video.carrier import BlockCarrier

REACH = 4  # frames on each side
OFFSETS = tuple(offset for offset in range(-REACH, REACH + 1) if offset)
BETWEEN = tuple(
    (before, after, weight)
    for before, after in ((-1, 1), (-1, 2), (-2, 1), (-1, 3), (-3, 1), (-2, 2))
    for weight in sorted({after / (after - before), 0.5})
)
"""Pairs of frames that a frame may have been predicted from together, as B-frames are, and the share of the
first: by distance, or one half."""
FAR = 1.5  # steps beyond which a difference is the same
CHUNK = 8192  # coefficients at a time, so that what is between the layers stays in the caches
WEIGHTS = "context.npz"
SCALES = np.geomspace(0.4, 2.2, 18)
SCALE_SPREAD = 0.2  # of the logarithm of a scale, before any pilot was seen
KEPT = 0.98  # of what earlier frames told of scales, from one to the next

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """A frame as a reader saw it.

    Attributes:
        coefs: (n_blocks, n_coefs) of its carrier.
        activity: (n_blocks,) of its blocks.
        phases: (n_blocks, those that its pattern uses) in steps, [-1/2, 1/2], from the lattice of its
            pattern; ``None`` if no pattern was recognised.
        pattern: its number; -1 if none was recognised.
    """

    coefs: Floats
    activity: Floats
    phases: Floats | None
    pattern: int

    @cached_property
    def quality(self) -> Floats | None:
        """(n_blocks, those in use) 1 on a point of either bit, -1 between two."""
        return None if self.phases is None else np.cos(np.float32(4 * np.pi) * self.phases)

    @cached_property
    def toward_zero(self) -> Floats | None:
        """(n_blocks, those in use) 1 on a point of bit 0, -1 on one of bit 1."""
        return None if self.phases is None else np.cos(np.float32(2 * np.pi) * self.phases)

    @cached_property
    def mean_quality(self) -> float:
        """Of the frame; 0 if nothing is hidden in it."""
        return 0.0 if self.quality is None else float(self.quality.mean())


@dataclass(frozen=True)
class Features:
    """What the network is given.

    Attributes:
        even: (n_even, n_blocks * n_coefs).
        odd: (n_odd, n_blocks * n_coefs).
    """

    even: Floats
    odd: Floats


def features(
    seen: Seen, around: Mapping[int, Seen], llr: Floats, step: float, carrier: BlockCarrier, columns: int
) -> Features:
    """Features of every coefficient that a frame uses.

    Args:
        seen: the frame, with a pattern.
        around: offset in frames -> another frame of the same size, those of :data:`OFFSETS` there are.
        llr: (n_blocks, n_coefs) log P(0) / P(1) of the frame by itself.
        step: of the lattice.
        carrier, columns: the coefficients in use, and blocks in a row.
    """
    assert seen.phases is not None
    phases, coefs = seen.phases, seen.coefs[:, : carrier.n_coefs]
    even: list[Floats] = [*_place(seen, carrier, columns)]
    odd: list[Floats] = [*_own(seen, llr)]
    toward = -np.copysign(np.float32(1) / np.float32(step), phases)  # the point of bit 0 lies that way
    nothing = np.zeros_like(phases)
    for offset in OFFSETS:
        other = around.get(offset)
        even += _of_other(seen, other, nothing)
        alike = other.toward_zero if other is not None and other.pattern == seen.pattern else None
        odd.append(nothing if alike is None else alike)
        _add_difference(even, odd, coefs, None if other is None else other.coefs, toward)
    for before, after, weight in BETWEEN:
        first, second = around.get(before), around.get(after)
        mixed = None
        if first is not None and second is not None:
            mixed = np.float32(weight) * first.coefs + np.float32(1 - weight) * second.coefs
        _add_difference(even, odd, coefs, mixed, toward)
    return Features(_stacked(even), _stacked(odd))


def _own(seen: Seen, llr: Floats) -> list[Floats]:
    """What the coefficient says by itself: odd."""
    assert seen.phases is not None
    size = np.abs(seen.phases)
    waves = [np.cos(np.float32(2 * np.pi * k) * size) for k in (1, 3, 5)]
    return [np.tanh(llr / 4), 0.5 - 2 * size, *waves]


def _place(seen: Seen, carrier: BlockCarrier, columns: int) -> list[Floats]:
    """How well the frame, the block and those around it came through, and what kind they are: even."""
    quality = seen.quality
    assert quality is not None
    n_coefs = carrier.n_coefs
    grid = quality.mean(1).reshape(-1, columns)
    wide = np.pad(grid, 1, mode="edge")
    beside = (wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]) / 4
    rest = (quality.sum(1, keepdims=True) - quality) / max(1, n_coefs - 1)
    shape = quality.shape
    return [
        quality,
        2 * quality**2 - 1,
        rest,
        np.broadcast_to(beside.reshape(-1, 1), shape),
        np.full(shape, seen.mean_quality, np.float32),
        np.broadcast_to((seen.activity / 4 - 1)[:, None], shape),
        *(np.broadcast_to(axis.astype(np.float32) / 4, shape) for axis in carrier.places.T),
        np.full(shape, carrier.block / 16 - 1, np.float32),
    ]


def _of_other(seen: Seen, other: Seen | None, nothing: Floats) -> list[Floats]:
    """How well another frame came through, and whether it carries the same: even."""
    if other is None or other.quality is None:
        return [nothing, nothing, nothing]
    n_coefs = nothing.shape[1]
    quality: Floats = other.quality
    if quality.shape[1] < n_coefs:  # there the others are not in use
        quality = np.pad(quality, ((0, 0), (0, n_coefs - quality.shape[1])))
    return [
        quality[:, :n_coefs],
        np.full_like(nothing, other.mean_quality),
        np.full_like(nothing, other.pattern == seen.pattern),
    ]


def _add_difference(
    even: list[Floats], odd: list[Floats], coefs: Floats, others: Floats | None, toward: Floats
) -> None:
    """Where others would put the coefficient: which way (odd), and how far for the block (even)."""
    if others is None:
        odd.append(np.zeros_like(toward))
        even.append(np.ones_like(toward))
        return
    steps = (others[:, : coefs.shape[1]] - coefs) * toward
    odd.append(np.clip(steps, -FAR, FAR))
    even.append(np.broadcast_to(np.tanh(3 * np.abs(steps).mean(1, keepdims=True)), steps.shape))


def _stacked(rows: Sequence[Floats]) -> Floats:
    return np.stack([row.reshape(-1) for row in rows]).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Network:
    """The two layers, and the gain of what a frame says by itself.

    Attributes:
        from_even, from_odd: (n_hidden, n_even), (n_hidden, n_odd) of the first layer; ``bias`` (n_hidden,).
        between: (n_hidden, n_hidden) of the second, and its ``between_bias`` (n_hidden,).
        last: (n_hidden,).
        gain: ().
    """

    from_even: Floats
    from_odd: Floats
    bias: Floats
    between: Floats
    between_bias: Floats
    last: Floats
    gain: Floats

    def __call__(self, given: Features, llr: Floats) -> Floats:
        """(n_blocks, n_coefs) log P(0) / P(1), of the same in ``llr`` by the frame alone."""
        flat = llr.reshape(-1)
        result = self.gain * flat
        for start in range(0, flat.size, CHUNK):
            part = slice(start, start + CHUNK)
            shared = self.from_even @ given.even[:, part] + self.bias[:, None]
            own = self.from_odd @ given.odd[:, part]
            result[part] += self._rest(shared + own) - self._rest(shared - own)
        return np.asarray(result.reshape(llr.shape), np.float32)

    def _rest(self, hidden: Floats) -> Floats:
        np.maximum(hidden, 0, out=hidden)
        second = self.between @ hidden
        second += self.between_bias[:, None]
        np.maximum(second, 0, out=second)
        return np.asarray(self.last @ second)


class Trust:
    """How far what the network says is to be believed in a film: its pilots tell.

    Its ratios are multiplied by what makes the pilots of the frames so far most likely, in frames that say
    much and in those that say little each by itself.
    """

    def __init__(self) -> None:
        self._likely = np.tile(-((np.log(SCALES) / SCALE_SPREAD) ** 2) / 2, (2, 1))

    def scaled(self, llr: Floats, pilot_pos: NDArray[np.int64], pilot_bits: NDArray[np.uint8]) -> Floats:
        """(n_blocks, n_coefs) the ratios of the next frame, as they are to be believed."""
        right = llr.reshape(-1)[pilot_pos] * (1 - 2 * pilot_bits.astype(np.float32))
        likely = self._likely[int(pilots.information(llr) > 0.5)]
        likely -= np.logaddexp(0, -SCALES[:, None] * right).sum(1)
        scale = SCALES[likely.argmax()]
        likely *= KEPT
        return np.asarray(llr * np.float32(scale))


@lru_cache(maxsize=1)
def network() -> Network:
    """The trained one."""
    with files("firth.video").joinpath(WEIGHTS).open("rb") as file, np.load(file) as arrays:
        return Network(**{name: arrays[name].astype(np.float32) for name in arrays.files})
