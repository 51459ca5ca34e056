"""Hiding that lives through a lossy encode: the profiles high, web and hard.

In each frame a few low-frequency coefficients of every block (:mod:`firth.video.carrier`) are moved to the
nearest points of the lattice that their bits choose in the codebook (:mod:`firth.video.codebook`). The bits
are codewords (:mod:`firth.video.ldpc`), each with one record (:mod:`firth.video.record`), which says by
itself which symbol it is. Codewords stand whole in a frame, or, if that is asked for, are spread over 16.
Dither, places and pilots follow from the key, in one of 16 patterns (:mod:`firth.video.layout`); a frame is
read without its number, because the pilots tell the pattern.

``repeat`` frames in a row carry the same bits over the same pattern. Each can be read alone; an encoder codes
what does not change once, and well, and skips it in the frames that it saves on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import SettingError
from firth.video.carrier import BlockCarrier
from firth.video.erasure import Cutter
from firth.video.frames import VideoInfo
from firth.video.layout import N_PATTERNS, SPREAD, Layout, layout_of, patterns
from firth.video.ldpc import code_for
from firth.video.profile import STRENGTHS, Change, Reader
from firth.video.record import rounded_down, seal

if TYPE_CHECKING:
    from firth.video.codebook import CosetTable

ROUNDED = 1 / 12  # mean square error of rounding to whole levels
FILLED = 0.8  # of the room at a rate: a payload that takes more gets the next higher rate

Floats = NDArray[np.float32]
Luma = NDArray[Any]


@dataclass(frozen=True)
class Robust:
    """A way of hiding that survives lossy encoding.

    Args:
        name: on the command line.
        carrier: the coefficients.
        step: of the lattice, in units of coefficients of 8-bit luma, at full strength, where all coefficients
            of the carrier are in use; fewer have larger steps.
        rate: information bits a coded bit.
        rates: those that a reader has to try; the largest carries most, the smallest lives through most.
        repeat: frames in a row that carry the same.
        spare: part of the symbols, rounded down, that may be lost at the encode which it is made for.
        scales: it is strong enough to be found after scaling.
        spread: frames that share codewords: 1 or ``SPREAD``.
        most_coded: bits of a codeword, at most; those at the end of a film may have up to twice as many.
        in_turn: coefficients of a block that frames use in turn; all of the carrier's by default.
        psnr: luma PSNR that it is turned down to, one of ``strengths``.
        strengths: what a reader has to try.
        fine: the same profile for higher PSNR, where other settings carry more.
        wide: the same profile with codewords spread over frames.
    """

    name: str
    carrier: BlockCarrier
    step: float
    rate: float
    rates: tuple[float, ...]
    repeat: int
    spare: float
    scales: bool = True
    spread: int = 1
    most_coded: int = 4096
    in_turn: tuple[int, ...] = ()
    psnr: float = STRENGTHS[0]
    strengths: tuple[float, ...] = STRENGTHS
    fine: Robust | None = None
    wide: Robust | None = None
    lossless: bool = field(default=False, init=False)

    @property
    def code_rate(self) -> float:
        """Information bits a coded bit."""
        return self.rate

    def holding(self, psnr: float, info: VideoInfo) -> Robust:
        """The same at the greatest strength that keeps a luma PSNR of ``psnr`` dB.

        Raises:
            SettingError: more than the weakest strength keeps.
        """
        fitting = [strength for strength in self.strengths if strength >= psnr]
        if not fitting and self.fine is not None:
            return self.fine.holding(psnr, info)
        if not fitting:
            raise SettingError(
                f"hide: profile {self.name} keeps a luma PSNR of {self.strengths[-1]:g} dB at most, "
                f"not {psnr:g}; ask for less, or use --profile lossless"
            )
        return replace(self, psnr=max(self.psnr, fitting[0]))

    def spread_out(self, info: VideoInfo) -> Robust:
        """The same with codewords spread over ``SPREAD`` frames.

        Raises:
            SettingError: the film is shorter.
        """
        if info.n_frames < SPREAD:
            raise SettingError(
                f"hide: --spread takes {SPREAD} frames for a codeword, and {info.path} has {info.n_frames}; "
                "leave it away"
            )
        return self if self.wide is None else replace(self.wide, psnr=max(self.psnr, self.wide.psnr))

    def ways(self, info: VideoInfo, blob_bytes: int) -> Sequence[Robust]:
        """Itself at every rate that holds a blob, in the order to try them.

        First the lowest rate that the blob fills to no more than ``FILLED``, since a low rate lives through
        a harder encode; then the higher ones, whose symbols are more and may be lost in part; then the lower.
        """
        at_rates = [replace(self, rate=rate) for rate in sorted(self.rates)]
        fitting = [one for one in at_rates if blob_bytes <= one.most_bytes(info)]
        roomy = (at for at, one in enumerate(fitting) if blob_bytes <= FILLED * one.most_bytes(info))
        first = next(roomy, len(fitting) - 1)
        return [*fitting[first:], *fitting[:first][::-1]]

    def step_for(self, psnr: float, n_coefs: int) -> float:
        """The step at a strength where so many coefficients of a block are in use: what full strength leaves
        of it, and no more than the error of that PSNR allows beside that of rounding pixels, which counts at
        45 dB and is a tenth of all at 48."""
        error = 255**2 / 10 ** (psnr / 10)
        most = math.sqrt(12 * self.carrier.block**2 / n_coefs * (error - ROUNDED))
        wider = math.sqrt(self.carrier.n_coefs / n_coefs)
        return min(self.step * wider * 10 ** ((STRENGTHS[0] - psnr) / 20), most)

    @property
    def coefs(self) -> tuple[int, ...]:
        """Coefficients of a block that frames use in turn."""
        return self.in_turn or (self.carrier.n_coefs,)

    def layout(self, height: int, width: int) -> Layout:
        """The layout of frames of a size."""
        return layout_of(self.carrier, self.coefs, self.rate, self.spread, self.most_coded, height, width)

    def n_groups(self, n_frames: int) -> int:
        """Times that all parts of codewords fit into ``n_frames`` frames."""
        return -(-n_frames // self.repeat) // self.spread

    def n_symbols(self, info: VideoInfo, n_frames: int) -> int:
        """Different symbols that ``n_frames`` frames carry whole."""
        layout, n_groups = self.layout(info.height, info.width), self.n_groups(n_frames)
        return (n_groups - 1) * layout.n_words + layout.lighter.n_words if n_groups else 0

    def most_bytes(self, info: VideoInfo) -> int:
        """The longest blob that a cover takes, ``spare`` set aside; 0 if frames are too small or few."""
        n_symbols = self.n_symbols(info, info.n_frames)
        usable = n_symbols - int(self.spare * n_symbols)
        size = self.layout(info.height, info.width).symbol_bytes
        return size * rounded_down(max(1, usable)) if info.n_frames >= self.spread else 0

    def symbol_bytes(self, info: VideoInfo, blob_bytes: int) -> int:
        """Bytes of a symbol, whatever the blob.

        Raises:
            SettingError: frames too small for any.
        """
        size = self.layout(info.height, info.width).symbol_bytes
        if not size:
            raise SettingError(
                f"hide: frames of {info.width}x{info.height} are too small for profile {self.name}; "
                "use a larger cover, or --profile lossless"
            )
        return size

    def marker(self, info: VideoInfo, cutter: Cutter, key: bytes) -> Change:
        """Writes the next symbols into every ``repeat`` frames (from 0 again after the last)."""
        return _Marker(self, info, cutter, key)

    def reader(self, key: bytes) -> Reader:
        """A reader of what :meth:`marker` wrote with ``key``: any strength, rate, spread and ``repeat``."""
        from firth.video.reading import EitherReader, RobustReader

        family = [one for one in (self, self.wide, self.fine) if one is not None]
        family += [self.fine.wide] if self.fine is not None and self.fine.wide is not None else []
        groups: dict[tuple[BlockCarrier, tuple[int, ...]], list[Robust]] = {}
        for one in family:
            groups.setdefault((one.carrier, one.coefs), []).append(one)
        readers = [RobustReader(group, key) for group in groups.values()]
        return readers[0] if len(readers) == 1 else EitherReader(readers)


class _Marker:
    """Changes frame after frame."""

    def __init__(self, profile: Robust, info: VideoInfo, cutter: Cutter, key: bytes) -> None:
        self._profile, self._depth, self._cutter, self._key = profile, info.depth, cutter, key
        self._last = profile.n_groups(info.n_frames) - 1
        self._turn = self._group = -1
        self._shift = np.zeros((0, 0), np.float32)
        self._coded = np.zeros((0, 0), np.uint8)

    def __call__(self, luma: Luma, frame_pos: int) -> Luma:
        turn = frame_pos // self._profile.repeat
        if turn != self._turn:
            self._shift = self._shift_of(turn, *luma.shape)
            self._turn = turn
        scale = np.float32(1 << self._depth - 8)
        n_coefs = self._shift.shape[1]
        carrier = replace(self._profile.carrier, n_coefs=n_coefs)
        step = np.float32(self._profile.step_for(self._profile.psnr, n_coefs))
        coefs = carrier.coefs(luma.astype(np.float32) / scale)
        off = coefs / step - self._shift
        pixels = carrier.change(luma.shape, (np.rint(off) - off) * step)
        top = (1 << self._depth) - 1
        return np.asarray(np.clip(np.rint(luma + pixels * scale), 0, top), luma.dtype)

    def _shift_of(self, turn: int, height: int, width: int) -> Floats:
        """(n_blocks, coefficients of the turn) where each lattice stands: its row and its dither."""
        layout, number = self._profile.layout(height, width), turn % N_PATTERNS
        pattern, n_coefs = patterns(self._key, self._profile.name, layout)[number], layout.n_coefs(number)
        group, part = divmod(turn, layout.spread)
        if group == self._last:
            layout = layout.lighter
        if group != self._group:
            first = group * self._profile.layout(height, width).n_words
            self._coded = self._codewords(first, layout)
            self._group = group
        bits = np.zeros(layout.n_blocks * n_coefs, np.int64)
        bits[pattern.data_pos[: layout.n_slots(part)]] = layout.slots(self._coded, part)
        bits[pattern.pilot_pos] = pattern.pilot_bits
        ids = bits.reshape(layout.n_blocks, n_coefs) << np.arange(n_coefs)
        return pattern.dither + _rows(ids.sum(1), n_coefs)

    def _codewords(self, first: int, layout: Layout) -> NDArray[np.uint8]:
        """(n_words, n_coded) the bits of a group of ``spread`` turns, whose symbols begin with ``first``."""
        records = [
            seal(self._cutter.symbol((first + word) % self._cutter.n_ids), self._key)
            for word in range(layout.n_words)
        ]
        info = np.unpackbits(np.frombuffer(b"".join(records), np.uint8)).reshape(layout.n_words, -1)
        return code_for(layout.n_info, layout.n_coded).encode(info)


def _rows(ids: NDArray[np.int64], n_coefs: int) -> Floats:
    """(n_blocks, n_coefs) the codebook's rows of the blocks' symbols."""
    import torch

    with torch.no_grad():
        return np.asarray(_table(n_coefs)(torch.from_numpy(ids)).numpy(), np.float32)


@lru_cache(maxsize=8)
def _table(n_coefs: int) -> CosetTable:
    from firth.video.codebook import CosetTable

    return CosetTable.product_binary(n_coefs)


# Spread over frames, good frames pay for bad ones, so that none needs to be like the one before.
_HIGH_WIDE = Robust(
    "high",
    BlockCarrier(16, 16),
    step=34.6,
    rate=0.6,
    rates=(0.4, 0.5, 0.6),
    repeat=1,
    spare=0.1,
    scales=False,
    spread=SPREAD,
)
HIGH = replace(_HIGH_WIDE, rate=0.5, rates=(0.35, 0.5), spread=1, wide=_HIGH_WIDE)
# Encoders with three B-frames code every fourth frame well: it has room for more than the others.
_WEB_FINE_WIDE = Robust(
    "web",
    BlockCarrier(16, 8),
    step=48.9,
    rate=0.275,
    rates=(0.12, 0.16, 0.2, 0.225, 0.25, 0.275),
    repeat=1,
    spare=0.02,
    scales=False,
    spread=SPREAD,
    most_coded=16384,
    in_turn=(8, 4, 4, 4),
    psnr=45.0,
    strengths=(45.0, 48.0),
)
# Four frames that carry the same are one period of an encoder with its usual three B-frames: each four hold
# one that is coded well. Above 42 dB that pays for web too.
_WEB_FINE = Robust(
    "web",
    BlockCarrier(16, 8),
    step=48.9,
    rate=0.37,
    rates=(0.25, 0.33, 0.37),
    repeat=4,
    spare=0.05,
    scales=False,
    most_coded=8192,
    psnr=45.0,
    strengths=(45.0, 48.0),
    wide=_WEB_FINE_WIDE,
)
_WEB_WIDE = Robust(
    "web",
    BlockCarrier(16, 8),
    step=48.9,
    rate=0.41,
    rates=(0.2, 0.28, 0.36, 0.41),
    repeat=1,
    spare=0.1,
    scales=False,
    spread=SPREAD,
    most_coded=8192,
    strengths=(40.0, 42.0),
)
WEB = Robust(
    "web",
    BlockCarrier(16, 4),
    step=69.2,
    rate=0.38,
    rates=(0.2, 0.28, 0.38),
    repeat=1,
    spare=0.1,
    strengths=(40.0, 42.0),
    fine=_WEB_FINE,
    wide=_WEB_WIDE,
)
_HARD_WIDE = Robust(
    "hard",
    BlockCarrier(32, 8),
    step=99.0,
    rate=0.34,
    rates=(0.11, 0.135, 0.18, 0.22, 0.27, 0.34),
    repeat=1,
    spare=0.05,
    spread=SPREAD,
    most_coded=16384,
)
HARD = replace(
    _HARD_WIDE,
    rate=0.5,
    rates=(0.2, 0.3, 0.41, 0.5),
    repeat=4,
    spare=0.05,
    spread=1,
    most_coded=4096,
    wide=_HARD_WIDE,
)
PROFILES: Mapping[str, Robust] = MappingProxyType({one.name: one for one in (HIGH, WEB, HARD)})
