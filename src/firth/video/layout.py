"""How the coefficients of a frame are shared out among pilots and codewords, in keyed patterns.

A frame follows one of ``N_PATTERNS`` patterns, which say where its lattices stand, where the pilots are, and
in which order the coded bits come. Codewords either stand whole in a frame, or are spread over ``SPREAD``
frames, one of each pattern, so that a pattern also tells which part of its codewords a frame holds. Patterns
may use more coefficients of a block or fewer, and then hold larger or smaller parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    """How the coefficients of frames of one size are shared out.

    Attributes:
        n_blocks: of the carrier.
        coefs: coefficients of a block that are used in each of a few patterns in turn, as many as divide 16.
        n_words, n_coded, n_info: codewords, their length, and information bits in each, whole bytes.
        spread: frames that these codewords take: 1, or ``SPREAD``.
    """

    n_blocks: int
    coefs: tuple[int, ...]
    n_words: int
    n_coded: int
    n_info: int
    spread: int

    @property
    def symbol_bytes(self) -> int:
        """Bytes of a symbol of the erasure code: even; 0 if frames are too small for any."""
        return max(0, self.n_info // 8 - OVERHEAD_BYTES)

    def n_coefs(self, pattern: int) -> int:
        """Coefficients of a block that a pattern uses."""
        return self.coefs[pattern % len(self.coefs)]

    def n_pilots(self, pattern: int) -> int:
        """Bits of a pattern that both sides know."""
        return max(LEAST_PILOTS, round(PILOT_PART * self.n_blocks * self.n_coefs(pattern)))

    def n_free(self, pattern: int) -> int:
        """Other bits of a pattern."""
        return max(0, self.n_blocks * self.n_coefs(pattern) - self.n_pilots(pattern))

    def share(self, part: int) -> int:
        """What frame ``part`` of ``spread`` holds of every :attr:`shares` bits of a word."""
        return 1 if self.spread == 1 else self.n_coefs(part) // math.gcd(*self.coefs)

    @property
    def shares(self) -> int:
        """The sum of all shares."""
        return sum(self.share(part) for part in range(self.spread))

    def n_slots(self, part: int) -> int:
        """Coded bits in frame ``part`` of ``spread``."""
        return self.n_words * (self.n_coded // self.shares) * self.share(part)

    def slots(self, coded: Bits, part: int) -> Bits:
        """(n_slots,) the bits of codewords (n_words, n_coded) that a frame holds."""
        start = sum(self.share(before) for before in range(part))
        whole = coded.reshape(self.n_words, -1, self.shares)
        return whole[:, :, start : start + self.share(part)].reshape(-1)

    def words(self, slots: Floats) -> Floats:
        """(n_words, n_coded) from (spread, n_slots or more): what :meth:`slots` took apart."""
        parts = [
            slots[part, : self.n_slots(part)].reshape(self.n_words, -1, self.share(part))
            for part in range(self.spread)
        ]
        return np.ascontiguousarray(np.concatenate(parts, 2)).reshape(self.n_words, self.n_coded)

    def cut(self, n_words: int) -> Layout:
        """The same with so many codewords, which then have other lengths."""
        rows = min(self.n_free(part) // (n_words * self.share(part)) for part in range(self.spread))
        return replace(self, n_words=n_words, n_coded=rows * self.shares)

    @property
    def lighter(self) -> Layout:
        """That of the last ``SPREAD`` frames of a film: a word less, where there are some, and longer ones
        therefore, up to twice as long. Encoders save at the end, since nothing is predicted from what stands
        there."""
        return self.cut(self.n_words - 1) if self.spread > 1 and self.n_words > 1 else self


@dataclass(frozen=True)
class Pattern:
    """One of the keyed patterns of a frame size.

    Attributes:
        dither: (n_blocks, n_coefs) float32, in steps, of the coefficients that it uses.
        pilot_pos, pilot_bits: places among these, flat, and what stands there.
        data_pos: places of the coded bits, in their order; the first ``n_slots`` are used.
    """

    dither: Floats
    pilot_pos: NDArray[np.int64]
    pilot_bits: Bits
    data_pos: NDArray[np.int64]


@lru_cache(maxsize=256)
def layout_of(
    carrier: BlockCarrier,
    coefs: tuple[int, ...],
    rate: float,
    spread: int,
    most_coded: int,
    height: int,
    width: int,
) -> Layout:
    """The layout of frames of a size.

    Args:
        carrier: the coefficients.
        coefs: those that patterns use in turn; all the same number if words are not spread.
        rate: information bits a coded bit.
        spread: frames that share codewords: 1 or ``SPREAD``.
        most_coded: bits of a codeword, at most (but :attr:`Layout.lighter`); more of them are cut into
            several codewords.
        height, width: of a frame.
    """
    rows, columns = carrier.grid((height, width))
    empty = Layout(rows * columns, coefs, 1, 0, 0, spread)
    free = sum(empty.n_free(part) for part in range(spread))
    layout = empty.cut(max(1, -(-free // most_coded)))
    info_bytes = int(rate * layout.n_coded) // 8
    n_info = 8 * (info_bytes - (info_bytes - OVERHEAD_BYTES) % 2)
    return replace(layout, n_info=n_info if n_info > 8 * OVERHEAD_BYTES else 0)


def patterns(key: bytes, name: str, layout: Layout) -> tuple[Pattern, ...]:
    """The patterns of a key, a profile and a frame size, whatever its codewords."""
    sizes = tuple((layout.n_coefs(number), layout.n_pilots(number)) for number in range(N_PATTERNS))
    if len(layout.coefs) > 1:  # else those with as many coefficients would be taken for another form's
        name = f"{name} {','.join(map(str, layout.coefs))}"
    return _patterns(key, name, layout.n_blocks, sizes)


@lru_cache(maxsize=16)  # five for each key: a password and none are tried together
def _patterns(
    key: bytes, name: str, n_blocks: int, sizes: tuple[tuple[int, int], ...]
) -> tuple[Pattern, ...]:
    return tuple(
        _pattern(subkey(key, f"pattern {name}", number), n_blocks, n_coefs, n_pilots)
        for number, (n_coefs, n_pilots) in enumerate(sizes)
    )


def _pattern(key: bytes, n_blocks: int, n_coefs: int, n_pilots: int) -> Pattern:
    stream = KeyStream(key)
    total = n_blocks * n_coefs
    dither = stream.uniform(total).reshape(n_blocks, n_coefs)
    order = stream.permutation(total)
    return Pattern(dither, order[:n_pilots], stream.bits(n_pilots), order[n_pilots:])
