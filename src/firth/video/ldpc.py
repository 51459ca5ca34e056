"""Soft-decision error correction inside a frame: an irregular repeat-accumulate LDPC code of any size.

The information bits take part in 3 or more checks each, chosen by progressive edge growth; the parity bits
are the running sum of the checks (Jin, Khandekar, McEliece 2000), so that encoding takes linear time and
every length and rate has a code. Both sides build the same graph from the two sizes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from firth.errors import SettingError
from firth.video.keyed import KeyStream, subkey

ROUNDS = 50
_GRAPH_KEY = bytes(range(32))

Bits = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Mixture:
    """Edges of the information bits: of each pair in ``more``, that part of them has so many, all others
    have ``few``."""

    few: int
    more: tuple[tuple[int, float], ...]


_LOW = Mixture(3, ((12, 0.15), (30, 0.12)))
_UNEVEN, _EVEN, _GOOD = Mixture(3, ((24, 0.17),)), Mixture(3, ((12, 0.35),)), Mixture(3, ((8, 0.12),))
_MIXTURES = (
    (0.33, _LOW),
    (0.355, _EVEN),
    (0.365, _UNEVEN),  # web, spread
    (0.395, _EVEN),
    (0.65, _UNEVEN),
    (1.0, _GOOD),
)
"""Below which rate which degrees; each rate of a profile by what that profile meets."""


def mixture_for(rate: float) -> Mixture:
    """The degrees that decoded best at a rate, of ten to twenty tried on what came out of x264: frames of
    1,707 to 6,829 bits, and codewords of 8,192 to 17,060 spread over 16. Where a quarter of the bits comes
    well and the others badly, as from an encoder with three B-frames, few bits of many edges are best."""
    return next(mixture for limit, mixture in _MIXTURES if rate < limit)


class Code:
    """A code of ``n_info`` information bits in ``n_coded`` bits.

    Args:
        n_info: at least 16.
        n_coded: more than ``n_info``; the rate is 0.05 to 0.95.

    Raises:
        SettingError: sizes outside of these.
    """

    def __init__(self, n_info: int, n_coded: int) -> None:
        n_checks = n_coded - n_info
        if n_info < 16 or not 0.05 <= n_info / max(n_coded, 1) <= 0.95 or n_checks < 16:
            raise SettingError(
                f"a code has 16 information bits or more at a rate of 0.05 to 0.95, not {n_info} in {n_coded}"
            )
        self.n_info, self.n_coded = n_info, n_coded
        edges_of, checks = _graph(n_info, n_checks, mixture_for(n_info / n_coded))
        self._info, self._check = edges_of, checks
        parity = np.arange(n_checks)
        all_bits = np.concatenate([edges_of, n_info + parity, n_info + parity[:-1]])
        all_checks = np.concatenate([checks, parity, parity[1:]])
        order = np.lexsort((all_bits, all_checks))
        self._bits = all_bits[order].astype(np.int32)
        counts = np.bincount(all_checks, minlength=n_checks)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self._most = int(counts.max())

    def encode(self, info: Bits) -> Bits:
        """(..., n_info) bits -> (..., n_coded): the same, and the parity bits behind them."""
        flat = info.reshape(-1, self.n_info)
        sums = np.zeros((len(flat), self.n_coded - self.n_info), np.uint8)
        for word, own in zip(sums, flat, strict=True):
            word[:] = np.bincount(self._check, own[self._info], len(word)).astype(np.int64) & 1
        parity = np.bitwise_xor.accumulate(sums, axis=1)
        coded = np.concatenate([flat, parity], axis=1)
        return coded.reshape(*info.shape[:-1], self.n_coded)

    def decode(self, llr: Floats, rounds: int = ROUNDS) -> tuple[Bits, NDArray[np.bool_]]:
        """The most likely information bits.

        Args:
            llr: (n_words, n_coded) log P(bit is 0) / P(bit is 1).
            rounds: most passes over the graph.

        Returns:
            (n_words, n_info) bits, and (n_words,) whether all checks hold.
        """
        from firth.video import ldpc_cpu

        soft = np.array(llr, np.float32, ndmin=2, order="C")  # a copy: decoding works in place
        hard = np.zeros(soft.shape, np.uint8)
        needed = ldpc_cpu.decode(self._starts, self._bits, self._most, soft, rounds, hard)
        return hard[:, : self.n_info], np.asarray(needed >= 0)


@lru_cache(maxsize=32)
def code_for(n_info: int, n_coded: int) -> Code:
    """The code of two sizes, built once."""
    return Code(n_info, n_coded)


def _graph(n_info: int, n_checks: int, mixture: Mixture) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(information bit, check) of every edge, but those of the accumulator."""
    from firth.video import ldpc_cpu

    degrees = np.full(n_info, mixture.few, np.int32)
    end = n_info
    for edges, part in sorted(mixture.more, reverse=True):
        count = round(part * n_info)
        degrees[end - count : end] = edges
        end -= count
    degrees = np.minimum(degrees, n_checks // 2)
    draws = KeyStream(subkey(_GRAPH_KEY, "ldpc", n_info << 32 | n_checks)).words(int(degrees.sum()))
    checks = ldpc_cpu.spread_edges(degrees, n_checks, draws)
    return np.repeat(np.arange(n_info), degrees), checks.astype(np.int64)
