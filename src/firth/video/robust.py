"""Hiding that lives through a lossy encode: the profiles high, web and hard.

In each frame a few low-frequency coefficients of every block (:mod:`firth.video.carrier`) are moved to the
nearest points of the lattice that their bits choose in the codebook (:mod:`firth.video.codebook`). The bits
are whole codewords (:mod:`firth.video.ldpc`), each with one record (:mod:`firth.video.record`), so that a
frame says by itself which symbols it carries. Dither, places and pilots follow from the key, in one of
``N_PATTERNS`` patterns; a frame is read without its number, because the pilots tell the pattern.

``repeat`` frames in a row carry the same codewords over the same pattern. Each can be read alone; an encoder
codes what does not change once, and well, and skips it in the frames that it saves on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import SettingError
from firth.video.carrier import BlockCarrier
from firth.video.erasure import Cutter
from firth.video.frames import VideoInfo
from firth.video.keyed import KeyStream, subkey
from firth.video.ldpc import code_for
from firth.video.profile import Change, Reader
from firth.video.record import OVERHEAD_BYTES, rounded_down, seal

N_PATTERNS = 16
PILOT_PART = 0.03
LEAST_PILOTS = 24
MOST_CODED = 4096  # bits of a codeword; larger frames carry several
N_PROBES = 2048  # coefficients that a pattern is recognised by, at most
STRENGTHS = (40.0, 42.0, 45.0, 48.0)  # dB of luma PSNR, the least first

Floats = NDArray[np.float32]
Luma = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How the coefficients of a frame of one size are shared out.

    Attributes:
        n_blocks, n_coefs: of the carrier.
        n_pilots: bits that both sides know.
        n_words, n_coded, n_info: codewords, their length, and information bits in each, whole bytes.
    """

    n_blocks: int
    n_coefs: int
    n_pilots: int
    n_words: int
    n_coded: int
    n_info: int

    @property
    def symbol_bytes(self) -> int:
        """Bytes of a symbol of the erasure code: even; 0 if frames are too small for any."""
        return max(0, self.n_info // 8 - OVERHEAD_BYTES)


@dataclass(frozen=True)
class Pattern:
    """One of the keyed patterns of a frame size.

    Attributes:
        dither: (n_blocks, n_coefs) float32, in steps.
        pilot_pos, pilot_bits: places among all coefficients, flat, and what stands there.
        data_pos: (n_words * n_coded,) places of the coded bits.
    """

    dither: Floats
    pilot_pos: NDArray[np.int64]
    pilot_bits: NDArray[np.uint8]
    data_pos: NDArray[np.int64]


@dataclass(frozen=True)
class Robust:
    """A way of hiding that survives lossy encoding.

    Args:
        name: on the command line.
        carrier: the coefficients.
        step: of the lattice, in units of coefficients of 8-bit luma, at full strength.
        rate: information bits a coded bit.
        repeat: frames in a row that carry the same.
        spare: part of the symbols that may be lost at the encode which the profile is made for.
        scales: it is strong enough to be found after scaling.
        psnr: luma PSNR that it is turned down to, one of ``strengths``.
        strengths: what a reader has to try.
        fine: the same profile for higher PSNR, where other settings carry more.
    """

    name: str
    carrier: BlockCarrier
    step: float
    rate: float
    repeat: int
    spare: float
    scales: bool = True
    psnr: float = STRENGTHS[0]
    strengths: tuple[float, ...] = STRENGTHS
    fine: Robust | None = None
    lossless: bool = field(default=False, init=False)

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

    def step_for(self, psnr: float) -> float:
        """The step at a strength."""
        return self.step * 10 ** ((STRENGTHS[0] - psnr) / 20)

    def layout(self, height: int, width: int) -> Layout:
        """The layout of frames of a size."""
        return _layout(self.carrier, self.rate, height, width)

    def n_symbols(self, info: VideoInfo, n_frames: int) -> int:
        """Different symbols that ``n_frames`` frames carry."""
        return -(-n_frames // self.repeat) * self.layout(info.height, info.width).n_words

    def most_bytes(self, info: VideoInfo) -> int:
        """The longest blob that a cover takes, ``spare`` set aside; 0 if frames are too small."""
        usable = int(self.n_symbols(info, info.n_frames) * (1 - self.spare))
        size = self.layout(info.height, info.width).symbol_bytes
        return size * rounded_down(max(1, usable)) if info.n_frames else 0

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
        return _Marker(self, info.depth, cutter, key)

    def reader(self, key: bytes) -> Reader:
        """A reader of what :meth:`marker` wrote with ``key``, at any strength and ``repeat``."""
        from firth.video.reading import EitherReader, RobustReader

        own = RobustReader(self, key)
        return own if self.fine is None else EitherReader([own, RobustReader(self.fine, key)])


class _Marker:
    """Changes frame after frame."""

    def __init__(self, profile: Robust, depth: int, cutter: Cutter, key: bytes) -> None:
        from firth.video.codebook import CosetTable

        self._profile, self._depth, self._cutter, self._key = profile, depth, cutter, key
        self._table = CosetTable.product_binary(profile.carrier.n_coefs)
        self._group = -1
        self._shift = np.zeros((0, 0), np.float32)

    def __call__(self, luma: Luma, frame_pos: int) -> Luma:
        group = frame_pos // self._profile.repeat
        if group != self._group:
            self._shift = self._shift_of(group, *luma.shape)
            self._group = group
        scale = np.float32(1 << self._depth - 8)
        carrier = self._profile.carrier
        step = np.float32(self._profile.step_for(self._profile.psnr))
        coefs = carrier.coefs(luma.astype(np.float32) / scale)
        off = coefs / step - self._shift
        pixels = carrier.change(luma.shape, (np.rint(off) - off) * step)
        top = (1 << self._depth) - 1
        return np.asarray(np.clip(np.rint(luma + pixels * scale), 0, top), luma.dtype)

    def _shift_of(self, group: int, height: int, width: int) -> Floats:
        """(n_blocks, n_coefs) where the lattice of each coefficient stands: its row and its dither."""
        layout = self._profile.layout(height, width)
        pattern = patterns(self._key, self._profile.name, layout)[group % N_PATTERNS]
        code = code_for(layout.n_info, layout.n_coded)
        first = group * layout.n_words
        records = [
            seal(self._cutter.symbol((first + word) % self._cutter.n_ids), self._key)
            for word in range(layout.n_words)
        ]
        info = np.unpackbits(np.frombuffer(b"".join(records), np.uint8)).reshape(layout.n_words, -1)
        bits = np.zeros(layout.n_blocks * layout.n_coefs, np.int64)
        bits[pattern.data_pos] = code.encode(info).reshape(-1)
        bits[pattern.pilot_pos] = pattern.pilot_bits
        ids = bits.reshape(layout.n_blocks, layout.n_coefs) << np.arange(layout.n_coefs)
        return pattern.dither + self._rows(ids.sum(1))

    def _rows(self, ids: NDArray[np.int64]) -> Floats:
        """(n_blocks, n_coefs) the codebook's rows of the blocks' symbols."""
        import torch

        with torch.no_grad():
            return np.asarray(self._table(torch.from_numpy(ids)).numpy(), np.float32)


@lru_cache(maxsize=64)
def _layout(carrier: BlockCarrier, rate: float, height: int, width: int) -> Layout:
    rows, columns = carrier.grid((height, width))
    total = rows * columns * carrier.n_coefs
    n_pilots = max(LEAST_PILOTS, round(PILOT_PART * total))
    n_words = max(1, -(-(total - n_pilots) // MOST_CODED))
    n_coded = max(0, total - n_pilots) // n_words
    info_bytes = int(rate * n_coded) // 8
    n_info = 8 * (info_bytes - (info_bytes - OVERHEAD_BYTES) % 2)
    if n_info <= 8 * OVERHEAD_BYTES:
        n_info = 0
    return Layout(rows * columns, carrier.n_coefs, n_pilots, n_words, n_coded, n_info)


@lru_cache(maxsize=8)
def patterns(key: bytes, name: str, layout: Layout) -> tuple[Pattern, ...]:
    """The patterns of a key, a profile and a frame size."""
    return tuple(_pattern(subkey(key, f"pattern {name}", number), layout) for number in range(N_PATTERNS))


def _pattern(key: bytes, layout: Layout) -> Pattern:
    stream = KeyStream(key)
    total = layout.n_blocks * layout.n_coefs
    dither = stream.uniform(total).reshape(layout.n_blocks, layout.n_coefs)
    order = stream.permutation(total)
    end = layout.n_pilots + layout.n_words * layout.n_coded
    return Pattern(
        dither, order[: layout.n_pilots], stream.bits(layout.n_pilots), order[layout.n_pilots : end]
    )


HIGH = Robust("high", BlockCarrier(16, 16), step=34.6, rate=0.5, repeat=1, spare=0.1, scales=False)
# Four frames that carry the same are one period of an encoder with its usual three B-frames: each four hold
# one that is coded well. Above 42 dB that pays for web too.
_WEB_FINE = Robust(
    "web",
    BlockCarrier(16, 8),
    step=48.9,
    rate=0.36,
    repeat=4,
    spare=0.2,
    scales=False,
    psnr=45.0,
    strengths=(45.0, 48.0),
)
WEB = Robust(
    "web",
    BlockCarrier(16, 4),
    step=69.2,
    rate=0.38,
    repeat=1,
    spare=0.1,
    strengths=(40.0, 42.0),
    fine=_WEB_FINE,
)
HARD = Robust("hard", BlockCarrier(32, 8), step=99.0, rate=0.41, repeat=4, spare=0.05)
PROFILES: Mapping[str, Robust] = MappingProxyType({one.name: one for one in (HIGH, WEB, HARD)})
