"""Reading the robust profiles: recognise the pattern of a frame, believe its bits as far as they deserve.

A frame waits for those behind it, as many as :data:`firth.video.context.REACH`, which with those before tell
how it was coded; a frame that is alone in a film is read by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firth.video import context, geometry, pilots
from firth.video.layout import N_PATTERNS, Layout, Pattern, patterns
from firth.video.record import Symbol
from firth.video.turns import Turns
from firth.video.words import SpreadWords, WholeWords

if TYPE_CHECKING:
    from firth.video.robust import Robust

ENOUGH = 0.8  # of a bit that each bit of a frame says by itself: then those around are not asked
N_PROBES = 2048  # coefficients that a pattern is recognised by, at most
THRESHOLD = 5.0  # of the match, normal with variance 1: by chance in one frame of 50,000, 64 matches each
SEARCHES = (2, 24)  # frames without any match after which other sizes are tried
EXPECTED = 1.5  # the same for the patterns that may come next, at the strength of the frame before
EXPECTING = 4  # frames after the last sure match up to which that is so

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


@dataclass(frozen=True)
class _View:
    """A frame, taken for one that has a pattern."""

    match: Match
    seen: context.Seen


@dataclass(frozen=True)
class _Frame:
    """A frame that waits for those behind it.

    Attributes:
        coefs, activity: of the carrier.
        shape: height and width, as they were when something was hidden.
        scores: strength -> how well each pattern fits.
        best: with the pattern that was recognised in it, if there is one: whole codewords are of it.
        in_turn: with the pattern whose turn it is, recognised or not: spread codewords are of it.
    """

    coefs: Floats
    activity: Floats
    shape: tuple[int, ...]
    scores: Mapping[float, Floats]
    best: _View | None
    in_turn: _View | None

    @property
    def nothing(self) -> context.Seen:
        """The frame without a pattern."""
        return context.Seen(self.coefs, self.activity, None, -1)


class RobustReader:
    """Reads the symbols of frames that a robust profile wrote.

    Args:
        forms: what may have been written on one carrier: settings of one profile that differ in rate, spread,
            strength and ``repeat``, which are found out.
        key: 32 bytes, of :func:`firth.video.payload.locator_key`.

    Attributes:
        n_matched: frames in which a pattern of the key was recognised, whether they could be read or not.
        strength: the luma PSNR that was hidden at, once a symbol was read, or ``None``.

    Frames may have been scaled since: where none matches, the sizes of :mod:`firth.video.geometry` are tried
    on the first, and once more on a later one.
    """

    def __init__(self, forms: Sequence[Robust], key: bytes) -> None:
        self._forms, self._key = list(forms), key
        self._profile = self._forms[0]  # carrier, name and step are the same in all
        self._strengths = sorted({strength for form in self._forms for strength in form.strengths})
        self._kinds: list[WholeWords | SpreadWords] = []
        self._shape: tuple[int, ...] = ()
        self._scales = any(form.scales for form in self._forms)
        self._before: Match | None = None  # the last one above the threshold
        self._since = 0  # frames since then
        self._n_read = 0
        self._first: Floats | None = None
        self._frames: list[_Frame] = []  # in a row: some that were read, and those that wait
        self._n_done = 0  # of these
        self._trust = {spread: context.Trust() for spread in (False, True)}
        self._turns: Turns | None = None  # from the first frame on that is recognised
        self._size: geometry.Size | None = None
        self._wrong = self._asked = 0
        self.n_matched = 0
        self.strength: float | None = None

    @property
    def bit_error_rate(self) -> float | None:
        """The share of pilots that came wrong in the frames recognised; ``None`` without any."""
        return self._wrong / self._asked if self._asked else None

    def read(self, luma: NDArray[Any]) -> list[Symbol]:
        """The symbols, whose checks fit, of the frame that now has enough others behind it; where the size
        changes, of all that waited."""
        plane = in_8_bits(luma)
        if self.n_matched == 0:
            self._search_size(plane)
        if self._size is not None:
            plane = geometry.resized(plane, self._size).astype(np.float32)
        found = []
        if self._frames and self._frames[-1].shape != plane.shape:
            found = [symbol for symbols in self.finish() for symbol in symbols]
        if self._profile.layout(*plane.shape).n_coded:
            self._frames.append(self._recognised(plane))
            if len(self._frames) - self._n_done > context.REACH:
                found += self._read_next()
        return found

    def finish(self) -> list[list[Symbol]]:
        """The symbols of each frame that still waited; after the last one."""
        found = [self._read_next() for _ in range(len(self._frames) - self._n_done)]
        for kind in self._kinds if found else []:
            found[-1] += kind.finish()
        self._frames, self._n_done, self._turns = [], 0, None
        return found

    def _recognised(self, plane: Floats) -> _Frame:
        """A frame and the pattern that is recognised in it."""
        layout = self._profile.layout(*plane.shape)
        coefs, activity = self._profile.carrier.coefs(plane), self._profile.carrier.activity(plane)
        scores = self._scores(coefs, layout)
        matches = self._matches(scores)
        surely = bool(matches) and matches[0].score > THRESHOLD
        self._before, self._since = (matches[0], 0) if surely else (self._before, self._since + 1)
        self.n_matched += bool(matches)
        frame = _Frame(coefs, activity, plane.shape, scores, None, None)
        return replace(frame, best=self._view(frame, matches[0])) if matches else frame

    def _view(self, frame: _Frame, match: Match) -> _View:
        phases = self._phases(frame.coefs, self._profile.layout(*frame.shape), match)
        return _View(match, context.Seen(frame.coefs, frame.activity, phases, match.pattern))

    def _read_next(self) -> list[Symbol]:
        """The symbols of the first frame that waits."""
        at = self._n_done
        self._follow()
        found = self._decoded(at)
        self._frames = self._frames[max(0, at + 1 - context.REACH) :]
        self._n_done = min(at + 1, context.REACH)
        return found

    def _follow(self) -> None:
        """Give the frames that wait the patterns whose turn it is, from the first that is recognised on."""
        waiting = self._frames[self._n_done :]
        first = waiting[0].best
        if self._turns is None and first is not None and first.match.score > THRESHOLD:
            self._turns = Turns((first.match.pattern - 1) % N_PATTERNS)
        spread = any(isinstance(one, SpreadWords) for one in self._kinds_for(waiting[0].shape))
        if self._turns is None or self._before is None or not spread:
            return
        strength = self.strength or self._before.strength
        scores = [frame.scores[strength] for frame in waiting]
        for at, number in enumerate(self._turns.path(scores)):
            frame, match = waiting[at], Match(float(scores[at][number]), strength, number)
            views = [one for one in (frame.in_turn, frame.best) if one is not None]
            same = [one for one in views if one.match == match]
            waiting[at] = replace(frame, in_turn=same[0] if same else self._view(frame, match))
        self._frames[self._n_done :] = waiting
        self._turns.next(scores[0])

    @property
    def size(self) -> geometry.Size | None:
        """Height and width that frames were scaled back to, or ``None`` if they are read as they come."""
        return self._size

    def _search_size(self, plane: Floats) -> None:
        """Try other sizes, at a few moments, as long as nothing matches."""
        if self._n_read == 0:
            self._first = plane  # after a cut films begin with a frame that is coded well
        elif self._n_read in SEARCHES and self._scales and self._first is not None:
            self._size = geometry.find_size(self._first, self._score)
            self._first = plane
        self._n_read += 1

    def _score(self, plane: NDArray[Any]) -> float:
        layout = self._profile.layout(*plane.shape)
        if not layout.n_coded:
            return 0.0
        matches = self.matches(self._profile.carrier.coefs(plane.astype(np.float32)), layout)
        return matches[0].score if matches else 0.0

    def matches(self, coefs: Floats, layout: Layout) -> list[Match]:
        """The patterns above the threshold, best first."""
        return self._matches(self._scores(coefs, layout))

    def _scores(self, coefs: Floats, layout: Layout) -> dict[float, Floats]:
        """Strength -> (N_PATTERNS,) how well each pattern fits."""
        probes = _probes(patterns(self._key, self._profile.name, layout), self._profile.carrier.n_coefs)
        values = coefs.reshape(-1)[probes.pos]
        n_coefs = [layout.n_coefs(number) for number in range(N_PATTERNS)]
        scores = {}
        for strength in self._strengths if self.strength is None else (self.strength,):
            steps = {n: self._profile.step_for(strength, n) for n in set(n_coefs)}
            step = np.array([[steps[n]] for n in n_coefs], np.float32)
            phases: Floats = values / step - probes.dither
            phases -= np.rint(phases)
            scores[strength] = pilots.match(phases, phases[:, : probes.bits.shape[1]], probes.bits)
        return scores

    def _matches(self, scores_at: Mapping[float, Floats]) -> list[Match]:
        """Those above the threshold, best first."""
        found = []
        for strength, scores in scores_at.items():
            least = np.full(N_PATTERNS, THRESHOLD)
            if self._before is not None and self._before.strength == strength and self._since < EXPECTING:
                least[self._expected(self._before.pattern)] = EXPECTED
            found += [
                Match(float(scores[number]), strength, int(number))
                for number in np.flatnonzero(scores > least)
            ]
        return sorted(found, key=lambda one: -one.score)

    def _expected(self, before: int) -> list[int]:
        """Patterns that may come next: the one in turn, and where frames may be alike its neighbours."""
        return [before, (before + 1) % N_PATTERNS, (before + self._since + 1) % N_PATTERNS]

    def _decoded(self, at: int) -> list[Symbol]:
        """The symbols of the frame at a place among those in a row."""
        frame, found = self._frames[at], list[Symbol]()
        for kind in self._kinds_for(frame.shape):
            spread = isinstance(kind, SpreadWords)
            view = frame.in_turn if spread else frame.best
            if view is None or self.strength not in (None, view.match.strength):
                kind.miss()
                continue
            alone, joint = self._slots(at, view, spread=spread)
            found += kind.add(view.match.pattern, alone, joint)
            if kind.known:
                self._kinds, self.strength = [kind], view.match.strength
                break
        return found

    def _slots(self, at: int, view: _View, *, spread: bool) -> tuple[Floats, Callable[[], Floats]]:
        """log P(0) / P(1) of the coded bits of a frame alone, and what gives it with those around.

        Args:
            at: its place among those in a row.
            view: with its pattern.
            spread: take the others for those whose turn it is, not for what was recognised in them.
        """
        frame, match, seen = self._frames[at], view.match, view.seen
        assert seen.phases is not None
        pattern = patterns(self._key, self._profile.name, self._profile.layout(*frame.shape))[match.pattern]
        if match.score > EXPECTED and (not spread or len(self._kinds) == 1):  # each frame once
            wrong = (np.abs(seen.phases.reshape(-1)[pattern.pilot_pos]) > 0.25) != pattern.pilot_bits
            self._wrong += int(wrong.sum())
            self._asked += wrong.size
        alone = pilots.log_likelihoods(seen.phases, seen.activity, pattern.pilot_pos, pattern.pilot_bits)
        slots: Floats = alone.reshape(-1)[pattern.data_pos]

        @cache
        def joint() -> Floats:
            around = self._around(at, spread=spread)
            if not around or pilots.information(alone) >= ENOUGH:
                return slots
            carrier = replace(self._profile.carrier, n_coefs=alone.shape[1])
            step = self._profile.step_for(match.strength, carrier.n_coefs)
            given = context.features(seen, around, alone, step, carrier, carrier.grid(frame.shape)[1])
            llr = context.network()(given, alone)
            llr = self._trust[spread].scaled(llr, pattern.pilot_pos, pattern.pilot_bits)
            found: Floats = llr.reshape(-1)[pattern.data_pos]
            return found

        return slots, joint

    def _around(self, at: int, *, spread: bool) -> dict[int, context.Seen]:
        """Offset -> the frames before and behind one."""
        around = {}
        for offset in context.OFFSETS:
            if 0 <= at + offset < len(self._frames):
                other = self._frames[at + offset]
                view = other.in_turn if spread else other.best
                around[offset] = other.nothing if view is None else view.seen
        return around

    def _phases(self, coefs: Floats, layout: Layout, match: Match) -> Floats:
        """(n_blocks, coefficients of a pattern) in steps from its points of bit 0, [-1/2, 1/2]."""
        pattern = patterns(self._key, self._profile.name, layout)[match.pattern]
        n_coefs = pattern.dither.shape[1]
        step = np.float32(self._profile.step_for(match.strength, n_coefs))
        phases: Floats = coefs[:, :n_coefs] / step - pattern.dither
        phases -= np.rint(phases)
        return phases

    def _kinds_for(self, shape: tuple[int, ...]) -> list[WholeWords | SpreadWords]:
        """The kinds of codewords that frames of a size may have; one of them, once a symbol was read."""
        if shape != self._shape:
            spreads: dict[int, list[Layout]] = {}
            for form in self._forms:
                height, width = shape
                for rate in form.rates:
                    layout = replace(form, rate=rate).layout(height, width)
                    if layout.symbol_bytes:
                        spreads.setdefault(layout.spread, []).append(layout)
            self._shape = shape
            self._kinds = [
                (WholeWords if spread == 1 else SpreadWords)(layouts, self._key)
                for spread, layouts in sorted(spreads.items())
            ]
        return self._kinds


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
        """The symbols, whose checks fit, of the frame whose turn it is."""
        for reader in self._readers:
            found = reader.read(luma)
            if found:
                self._readers = [reader]
                return found
        return []

    def finish(self) -> list[list[Symbol]]:
        """The symbols of each frame that still waited; after the last one."""
        for reader in self._readers:
            found = reader.finish()
            if any(found):
                self._readers = [reader]
                return found
        return []


def in_8_bits(luma: NDArray[Any]) -> Floats:
    """A luma plane as float32 of the range of 8 bits; uint16 planes have 10 bits, or 12 if that is seen."""
    if luma.dtype == np.uint8:
        return luma.astype(np.float32)
    top = int(luma.max(initial=0))
    return luma.astype(np.float32) / np.float32(4 if top < 1024 else 16 if top < 4096 else 256)


def _probes(every: tuple[Pattern, ...], n_coefs: int) -> _Probes:
    """Args: n_coefs: of a block, whether a pattern uses them or not."""
    n_pilots = min(len(one.pilot_pos) for one in every)
    count = min(N_PROBES, *(len(one.data_pos) for one in every))
    own = [np.concatenate([one.pilot_pos[:n_pilots], one.data_pos[:count]]) for one in every]
    dither = np.stack([one.dither.reshape(-1)[at] for one, at in zip(every, own, strict=True)])
    used = [one.dither.shape[1] for one in every]
    pos = np.stack([at // n * n_coefs + at % n for at, n in zip(own, used, strict=True)])
    return _Probes(pos, dither, np.stack([one.pilot_bits[:n_pilots] for one in every]))
