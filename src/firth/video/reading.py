"""Reading the robust profiles: recognise the pattern of a frame, believe its bits as far as they deserve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firth.video import geometry, pilots
from firth.video.ldpc import code_for
from firth.video.record import Symbol, unseal
from firth.video.robust import N_PATTERNS, N_PROBES, Layout, Pattern, patterns

if TYPE_CHECKING:
    from firth.video.robust import Robust

THRESHOLD = 5.0  # of the match, normal with variance 1: by chance in one frame of 50,000, 64 matches each
SEARCHES = (2, 24)  # frames without any match after which other sizes are tried
EXPECTED = 2.0  # the same for the pattern of the frame before and the next, once a symbol was read
HOPELESS = 0.85  # of the rate: words that say less are not decoded; they need some 1.15 times the rate
SAME_WORD = 0.6  # share of equal bits from which on a word is the one of the frame before

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Probes:
    """What patterns are recognised by: (N_PATTERNS, n) places, their dither, and the pilots among them."""

    pos: NDArray[np.int64]
    dither: Floats
    bits: NDArray[np.uint8]


@dataclass(frozen=True)
class Match:
    """A pattern that may be in a frame.

    Attributes:
        score: how well it fits, in standard deviations.
        strength: of the profile's.
        pattern: its number.
    """

    score: float
    strength: float
    pattern: int


@dataclass
class _Last:
    """What the frame before gave: to know it again, or to be added to."""

    pattern: int
    llr: Floats
    coded: NDArray[np.uint8]
    symbols: list[Symbol | None]


class RobustReader:
    """Reads the symbols of frames that a robust profile wrote.

    Args:
        profile: its settings; strength and ``repeat`` are found out.
        key: 32 bytes, of :func:`firth.video.payload.locator_key`.

    Attributes:
        n_matched: frames in which a pattern of the key was recognised, whether they could be read or not.
        strength: the luma PSNR that was hidden at, once a symbol was read, or ``None``.

    Frames may have been scaled since: where none matches, the sizes of :mod:`firth.video.geometry` are tried
    on the first, and once more on a later one.
    """

    def __init__(self, profile: Robust, key: bytes) -> None:
        self._profile, self._key = profile, key
        self._last: _Last | None = None
        self._pattern = 0
        self._n_read = 0
        self._first: Floats | None = None
        self._size: geometry.Size | None = None
        self._wrong = self._asked = 0
        self.n_matched = 0
        self.strength: float | None = None

    @property
    def bit_error_rate(self) -> float | None:
        """The share of pilots that came wrong in the frames recognised; ``None`` without any."""
        return self._wrong / self._asked if self._asked else None

    def read(self, luma: NDArray[Any]) -> list[Symbol]:
        """The symbols of a frame whose checks fit."""
        plane = in_8_bits(luma)
        if self.n_matched == 0:
            self._search_size(plane)
        if self._size is not None:
            plane = geometry.resized(plane, self._size).astype(np.float32)
        layout = self._profile.layout(*plane.shape)
        if not layout.symbol_bytes:
            return []
        coefs = self._profile.carrier.coefs(plane)
        matches = self.matches(coefs, layout)
        if not matches:
            self._last = None
            return []
        best = matches[0]
        self._pattern = best.pattern
        self.n_matched += 1
        found = self._decoded(plane, coefs, layout, best)
        if found and self.strength is None:
            self.strength = best.strength
        return found

    @property
    def size(self) -> geometry.Size | None:
        """Height and width that frames were scaled back to, or ``None`` if they are read as they come."""
        return self._size

    def _search_size(self, plane: Floats) -> None:
        """Try other sizes, at a few moments, as long as nothing matches."""
        if self._n_read == 0:
            self._first = plane  # after a cut films begin with a frame that is coded well
        elif self._n_read in SEARCHES and self._profile.scales and self._first is not None:
            self._size = geometry.find_size(self._first, self._score)
            self._first = plane
        self._n_read += 1

    def _score(self, plane: NDArray[Any]) -> float:
        layout = self._profile.layout(*plane.shape)
        if not layout.symbol_bytes:
            return 0.0
        matches = self.matches(self._profile.carrier.coefs(plane.astype(np.float32)), layout)
        return matches[0].score if matches else 0.0

    def matches(self, coefs: Floats, layout: Layout) -> list[Match]:
        """The patterns above the threshold, best first."""
        probes = _probes(patterns(self._key, self._profile.name, layout))
        values = coefs.reshape(-1)[probes.pos]
        found = []
        for strength in self._profile.strengths if self.strength is None else (self.strength,):
            phases = values / np.float32(self._profile.step_for(strength)) - probes.dither
            phases -= np.rint(phases)
            scores = pilots.match(phases, phases[:, : layout.n_pilots], probes.bits)
            least = np.full(N_PATTERNS, THRESHOLD)
            if self.strength is not None:
                least[[self._pattern, (self._pattern + 1) % N_PATTERNS]] = EXPECTED
            found += [
                Match(float(scores[number]), strength, int(number))
                for number in np.flatnonzero(scores > least)
            ]
        return sorted(found, key=lambda one: -one.score)

    def _decoded(self, plane: Floats, coefs: Floats, layout: Layout, match: Match) -> list[Symbol]:
        pattern = patterns(self._key, self._profile.name, layout)[match.pattern]
        phases = coefs / np.float32(self._profile.step_for(match.strength)) - pattern.dither
        phases -= np.rint(phases)
        pilot_wrong = (np.abs(phases.reshape(-1)[pattern.pilot_pos]) > 0.25) != pattern.pilot_bits
        self._wrong += int(pilot_wrong.sum())
        self._asked += pilot_wrong.size
        activity = self._profile.carrier.activity(plane)
        llr = pilots.log_likelihoods(phases, activity, pattern.pilot_pos, pattern.pilot_bits)
        words = llr.reshape(-1)[pattern.data_pos].reshape(layout.n_words, layout.n_coded)
        last = self._known(match.pattern, words)
        code = code_for(layout.n_info, layout.n_coded)
        open_words = [at for at, symbol in enumerate(last.symbols) if symbol is None]
        for attempt in (words, 0.7 * (words + last.llr)):
            if not open_words or (attempt is not words and not last.llr.any()):
                break
            worth = [
                at for at in open_words if pilots.information(attempt[at]) > HOPELESS * self._profile.rate
            ]
            if not worth:
                continue
            info, held = code.decode(attempt[worth])
            for at, bits, holds in zip(worth, info, held, strict=True):
                symbol = unseal(np.packbits(bits).tobytes(), self._key) if holds else None
                if symbol is not None:
                    last.symbols[at] = symbol
                    last.coded[at] = code.encode(bits)
                    open_words.remove(at)
        last.llr = last.llr + words
        self._last = last
        return [symbol for symbol in last.symbols if symbol is not None]

    def _known(self, pattern: int, words: Floats) -> _Last:
        """What is known of these words from frames before: those that were read, if they are the same."""
        last = self._last
        if last is None or last.pattern != pattern or last.llr.shape != words.shape:
            empty: list[Symbol | None] = [None] * len(words)
            return _Last(pattern, np.zeros_like(words), np.zeros(words.shape, np.uint8), empty)
        for at, symbol in enumerate(last.symbols):
            if symbol is not None and ((words[at] < 0) == last.coded[at]).mean() < SAME_WORD:
                last.symbols[at] = None
                last.llr[at] = 0
        return last


class EitherReader:
    """Reads with several readers, until one of them finds something; then with that alone.

    Args:
        readers: of the settings that a profile may have been written with.
    """

    def __init__(self, readers: Sequence[RobustReader]) -> None:
        self._readers = list(readers)

    @property
    def bit_error_rate(self) -> float | None:
        """Of the reader that recognised most frames."""
        return max(self._readers, key=lambda one: one.n_matched).bit_error_rate

    @property
    def n_matched(self) -> int:
        """Frames in which a pattern of the key was recognised."""
        return max(one.n_matched for one in self._readers)

    @property
    def size(self) -> geometry.Size | None:
        """Height and width that frames were scaled back to, or ``None``."""
        return next((one.size for one in self._readers if one.size is not None), None)

    def read(self, luma: NDArray[Any]) -> list[Symbol]:
        """The symbols of a frame whose checks fit."""
        for reader in self._readers:
            found = reader.read(luma)
            if found:
                self._readers = [reader]
                return found
        return []


def in_8_bits(luma: NDArray[Any]) -> Floats:
    """A luma plane as float32 of the range of 8 bits; uint16 planes have 10 bits, or 12 if that is seen."""
    if luma.dtype == np.uint8:
        return luma.astype(np.float32)
    top = int(luma.max(initial=0))
    return luma.astype(np.float32) / np.float32(4 if top < 1024 else 16 if top < 4096 else 256)


def _probes(every: tuple[Pattern, ...]) -> _Probes:
    first = every[0]
    count = min(N_PROBES, len(first.data_pos))
    pos = np.stack([np.concatenate([one.pilot_pos, one.data_pos[:count]]) for one in every])
    dither = np.stack([one.dither.reshape(-1)[at] for one, at in zip(every, pos, strict=True)])
    return _Probes(pos, dither, np.stack([one.pilot_bits for one in every]))
