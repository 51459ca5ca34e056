"""How the coefficients of a frame are shared out among pilots and codewords, in keyed patterns.

A frame follows one of ``N_PATTERNS`` patterns, which say where its lattices stand, where the pilots are, and
in which order the coded bits come. Codewords either stand whole in a frame, or are spread over ``SPREAD``
frames, one of each pattern, so that a pattern also tells which part of its codewords a frame holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from firth.video.carrier import BlockCarrier
from firth.video.keyed import KeyStream, subkey
from firth.video.record import OVERHEAD_BYTES

N_PATTERNS = 16
SPREAD = N_PATTERNS  # frames that share codewords, where these are spread
PILOT_PART = 0.03
LEAST_PILOTS = 24

Floats = NDArray[np.float32]
Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """How the coefficients of a frame of one size are shared out.

    Attributes:
        n_blocks, n_coefs: of the carrier.
        n_pilots: bits that both sides know.
        n_words, n_coded, n_info: codewords, their length, and information bits in each, whole bytes.
        spread: frames that these codewords take: 1, or ``SPREAD``.
    """

    n_blocks: int
    n_coefs: int
    n_pilots: int
    n_words: int
    n_coded: int
    n_info: int
    spread: int

    @property
    def symbol_bytes(self) -> int:
        """Bytes of a symbol of the erasure code: even; 0 if frames are too small for any."""
        return max(0, self.n_info // 8 - OVERHEAD_BYTES)

    @property
    def n_slots(self) -> int:
        """Coded bits in a frame."""
        return self.n_words * self.n_coded // self.spread

    def slots(self, coded: Bits, part: int) -> Bits:
        """(n_slots,) the bits of codewords (n_words, n_coded) that frame ``part`` of ``spread`` holds."""
        return coded.reshape(self.n_words, -1, self.spread)[:, :, part].reshape(-1)

    def words(self, slots: Floats) -> Floats:
        """(n_words, n_coded) from (spread, n_slots or more): what :meth:`slots` took apart."""
        whole = slots[:, : self.n_slots].reshape(self.spread, self.n_words, -1)
        return np.ascontiguousarray(whole.transpose(1, 2, 0)).reshape(self.n_words, self.n_coded)


@dataclass(frozen=True)
class Pattern:
    """One of the keyed patterns of a frame size.

    Attributes:
        dither: (n_blocks, n_coefs) float32, in steps.
        pilot_pos, pilot_bits: places among all coefficients, flat, and what stands there.
        data_pos: places of the coded bits, in their order; the first ``n_slots`` are used.
    """

    dither: Floats
    pilot_pos: NDArray[np.int64]
    pilot_bits: Bits
    data_pos: NDArray[np.int64]


@lru_cache(maxsize=256)
def layout_of(
    carrier: BlockCarrier, rate: float, spread: int, most_coded: int, height: int, width: int
) -> Layout:
    """The layout of frames of a size.

    Args:
        carrier: the coefficients.
        rate: information bits a coded bit.
        spread: frames that share codewords: 1 or ``SPREAD``.
        most_coded: bits of a codeword, at most; more of them are cut into several codewords.
        height, width: of a frame.
    """
    rows, columns = carrier.grid((height, width))
    total = rows * columns * carrier.n_coefs
    n_pilots = max(LEAST_PILOTS, round(PILOT_PART * total))
    free = max(0, total - n_pilots)
    n_words = max(1, -(-free * spread // most_coded))
    n_coded = free // n_words * spread
    info_bytes = int(rate * n_coded) // 8
    n_info = 8 * (info_bytes - (info_bytes - OVERHEAD_BYTES) % 2)
    if n_info <= 8 * OVERHEAD_BYTES:
        n_info = 0
    return Layout(rows * columns, carrier.n_coefs, n_pilots, n_words, n_coded, n_info, spread)


def patterns(key: bytes, name: str, layout: Layout) -> tuple[Pattern, ...]:
    """The patterns of a key, a profile and a frame size, whatever its codewords."""
    return _patterns(key, name, layout.n_blocks, layout.n_coefs, layout.n_pilots)


@lru_cache(maxsize=8)
def _patterns(key: bytes, name: str, n_blocks: int, n_coefs: int, n_pilots: int) -> tuple[Pattern, ...]:
    return tuple(
        _pattern(subkey(key, f"pattern {name}", number), n_blocks, n_coefs, n_pilots)
        for number in range(N_PATTERNS)
    )


def _pattern(key: bytes, n_blocks: int, n_coefs: int, n_pilots: int) -> Pattern:
    stream = KeyStream(key)
    total = n_blocks * n_coefs
    dither = stream.uniform(total).reshape(n_blocks, n_coefs)
    order = stream.permutation(total)
    return Pattern(dither, order[:n_pilots], stream.bits(n_pilots), order[n_pilots:])
