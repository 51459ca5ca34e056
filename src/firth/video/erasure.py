"""The erasure code over frames: any ``n_source`` symbols of a blob give it back, whichever they are.

A systematic Cauchy Reed-Solomon code over GF(65536) (Bloemer et al. 1995): symbols 0 to n_source - 1 are
the blob, cut; the others are sums of them over a Cauchy matrix, every square part of which has an
inverse. Blobs of more than 2,048 symbols are cut into generations, whose symbols alternate; then each
generation needs as many symbols as it has.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from firth.errors import SettingError
from firth.video.record import MOST_SOURCE, N_SYMBOL_IDS, Symbol, rounded_up

MOST_IN_GENERATION = 2048
FIELD_SIZE = 65536

Words = NDArray[np.uint16]


def count_source(blob_bytes: int, symbol_bytes: int) -> int:
    """Source symbols of a blob: what :class:`Cutter` makes, and the least that gives it back.

    Raises:
        SettingError: more than 2^20 of them, or symbols of an odd size.
    """
    if symbol_bytes < 2 or symbol_bytes % 2:
        raise SettingError(f"symbols have an even number of bytes, not {symbol_bytes}")
    return rounded_up(max(1, -(-blob_bytes // symbol_bytes)))


class Cutter:
    """A blob as a stream of symbols.

    Args:
        blob: the bytes; zeros are added up to a whole number of symbols.
        symbol_bytes: of each symbol; even.

    Attributes:
        n_source: symbols that are needed to get the blob back.
        n_ids: symbols there are; frames beyond this number begin again at 0.

    Raises:
        SettingError: as :func:`count_source`.
    """

    def __init__(self, blob: bytes, symbol_bytes: int) -> None:
        self.n_source = count_source(len(blob), symbol_bytes)
        self._plan = _Generations(self.n_source)
        self.n_ids = self._plan.n_ids
        padded = blob.ljust(self.n_source * symbol_bytes, b"\0")
        self._source = np.frombuffer(padded, "<u2").reshape(self.n_source, -1).astype(np.uint16)

    def symbol(self, symbol_id: int) -> Symbol:
        """The symbol of a number, 0 <= ``symbol_id`` < ``n_ids``."""
        if not 0 <= symbol_id < self.n_ids:
            raise SettingError(f"symbols have numbers 0 to {self.n_ids - 1:,}, not {symbol_id:,}")
        if symbol_id < self.n_source:
            words = self._source[symbol_id]
        else:
            generation, row = self._plan.place(symbol_id)
            own = np.ascontiguousarray(self._source[generation :: self._plan.n_generations])
            words = np.zeros((1, own.shape[1]), np.uint16)
            _add_products(words, [FIELD_SIZE - 1 - (row - len(own))], np.arange(len(own)), own)
        return Symbol(self.n_source, symbol_id, words.astype("<u2").tobytes())


class Joiner:
    """Symbols in any order, until the blob is there.

    Symbols of different blobs may come mixed, as when clips are joined: those with the same count and
    size are taken together, and the largest such set is the one asked about.
    """

    def __init__(self) -> None:
        self._sets: defaultdict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)

    def add(self, symbol: Symbol) -> bool:
        """Take a symbol; ``False`` if it was there already or cannot be one."""
        if not 1 <= symbol.n_source <= MOST_SOURCE or len(symbol.data) % 2:
            return False
        if not 0 <= symbol.symbol_id < _Generations(symbol.n_source).n_ids:
            return False
        held = self._sets[symbol.n_source, len(symbol.data)]
        if symbol.symbol_id in held:
            return False
        held[symbol.symbol_id] = symbol.data
        return True

    @property
    def found(self) -> int:
        """Different symbols of the blob."""
        return len(self._largest()[1])

    @property
    def needed(self) -> int:
        """Symbols that give the blob back; 0 while nothing is known of it."""
        return self._largest()[0][0]

    @property
    def missing(self) -> int:
        """Symbols that must still come, at least; 0 when the blob is there, and 1 when nothing is."""
        (n_source, _), held = self._largest()
        if not n_source:
            return 1
        plan = _Generations(n_source)
        have = np.zeros(plan.n_generations, np.int64)
        for symbol_id in held:
            have[plan.place(symbol_id)[0]] += 1
        return int(np.maximum(0, plan.sizes - have).sum())

    def blob(self) -> bytes | None:
        """The blob with zeros behind it, or ``None`` while too few symbols are there."""
        if self.missing:
            return None
        (n_source, symbol_bytes), held = self._largest()
        plan = _Generations(n_source)
        source = np.zeros((n_source, symbol_bytes // 2), np.uint16)
        rows: list[dict[int, bytes]] = [{} for _ in range(plan.n_generations)]
        for symbol_id, data in held.items():
            generation, row = plan.place(symbol_id)
            rows[generation][row] = data
        for generation, own in enumerate(rows):
            source[generation :: plan.n_generations] = _decoded(own, int(plan.sizes[generation]))
        return source.astype("<u2").tobytes()

    def _largest(self) -> tuple[tuple[int, int], dict[int, bytes]]:
        return max(self._sets.items(), key=lambda item: len(item[1]), default=((0, 0), {}))


class _Generations:
    """Which generation and row of it a symbol is."""

    def __init__(self, n_source: int) -> None:
        self.n_source = n_source
        self.n_generations = -(-n_source // MOST_IN_GENERATION)
        first = np.arange(self.n_generations)
        self.sizes = (n_source - first + self.n_generations - 1) // self.n_generations
        self.n_ids = min(N_SYMBOL_IDS, self.n_generations * FIELD_SIZE)
        if self.n_generations > 1:  # generations differ by one symbol; no row runs out of the field
            self.n_ids = min(self.n_ids, self.n_generations * (FIELD_SIZE - 2))

    def place(self, symbol_id: int) -> tuple[int, int]:
        """(generation, row in it); rows from the size of the generation on are repair symbols."""
        if symbol_id < self.n_source:
            return symbol_id % self.n_generations, symbol_id // self.n_generations
        later = symbol_id - self.n_source
        generation = later % self.n_generations
        return generation, int(self.sizes[generation]) + later // self.n_generations


def _decoded(rows: dict[int, bytes], n_source: int) -> Words:
    """(n_source, words): the source symbols of a generation, from any ``n_source`` rows of it."""
    known = np.array(sorted(row for row in rows if row < n_source), np.int64)
    missing = np.setdiff1d(np.arange(n_source), known)
    words = len(next(iter(rows.values()))) // 2
    source = np.zeros((n_source, words), np.uint16)
    for row in known.tolist():
        source[row] = np.frombuffer(rows[row], "<u2")
    if missing.size:
        repair = sorted(row for row in rows if row >= n_source)[: missing.size]
        xs = [FIELD_SIZE - 1 - (row - n_source) for row in repair]
        sums = np.stack([np.frombuffer(rows[row], "<u2").astype(np.uint16) for row in repair])
        _add_products(sums, xs, known, source[known])
        source[missing] = _solved(xs, missing, sums)
    return source


def _add_products(into: Words, xs: list[int], ys: NDArray[np.int64], rows: Words) -> None:
    from firth.video import gf16

    gf16.add_products(into, np.array(xs, np.int64), ys, rows, *gf16.tables())


def _solved(xs: list[int], ys: NDArray[np.int64], rows: Words) -> Words:
    from firth.video import gf16

    return np.asarray(gf16.solve(np.array(xs, np.int64), ys, rows, *gf16.tables()))
