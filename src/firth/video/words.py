"""Codewords out of the soft bits of frames: those that stand whole in a frame, and those spread over 16.

Both kinds take frame after frame, each with the pattern that was recognised in it. At first they try every
rate that a profile may have been written with, then the one that a word was read at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firth.video import pilots
from firth.video.layout import N_PATTERNS, SPREAD, Layout
from firth.video.ldpc import ROUNDS, Code, code_for
from firth.video.record import Symbol, unseal

HOPELESS = 0.85  # of the rate: words that say less are not decoded; they need some 1.15 times the rate
LIKELY = 1.1  # of the rate: words that say more may well be read
MOST_ALIKE = 8  # frames of one pattern that are kept, however long a film stands still; profiles repeat four
SAME_WORD = 0.6  # share of equal bits from which on a word is the one of the frame before
ADDED = 0.7  # what a sum of likelihoods of frames alike counts, since their errors are alike too
NO_NEWS = 2.0  # of two copies that differ more in what they say, the better one counts alone
SURELY_OTHERS = 50.0  # bits that would be alike if they were the same: 7 standard deviations
PATIENCE = 2  # times as many rounds for spread words of which all is known: often they only just say enough
WORTH_IT = 1.07  # times what was known at the last attempt: then a spread word is tried again

Floats = NDArray[np.float32]
Bits = NDArray[np.uint8]
Words = dict[int, tuple[Symbol, Bits]]
"""Number of a codeword -> its symbol, and its information bits."""


def read_words(
    llr: Floats, layout: Layout, key: bytes, *, all_of_them: bool = True, rounds: int = ROUNDS
) -> Words:
    """Those of a few codewords that can be read.

    Args:
        llr: (n, n_coded) log P(0) / P(1).
        layout: of the codewords.
        key: that records are checked by.
        all_of_them: go on where the one that says most cannot be read.
        rounds: of decoding, at most.
    """
    code = code_for(layout.n_info, layout.n_coded)
    found: Words = {}
    everything = list(range(len(llr)))
    best = [max(everything, key=lambda at: pilots.information(llr[at]))]
    others = [at for at in everything if at not in best]
    for numbers in [everything] if all_of_them else [best, others]:
        if not numbers:
            continue
        info, held = code.decode(llr[numbers], rounds)
        for at in np.flatnonzero(held):
            symbol = unseal(np.packbits(info[at]).tobytes(), key)
            if symbol is not None:
                found[numbers[at]] = symbol, info[at]
        if not found:
            break
    return found


class WholeWords:
    """Codewords that stand whole in each frame. Frames alike that cannot be read alone are added up.

    Args:
        layouts: one for each rate that they may have.
        key: of the records.

    Attributes:
        known: a word was read, and with it the rate of all.
    """

    def __init__(self, layouts: Sequence[Layout], key: bytes) -> None:
        self._layouts, self._key = list(layouts), key
        self.known = False
        self._pattern = -1
        self._alike: list[tuple[float, Floats]] = []  # frames of that pattern: what each says, and its bits
        self._read: Words = {}  # with coded bits

    def miss(self) -> None:
        """A frame without a pattern: what comes next is not like what was."""
        self._pattern = -1

    def finish(self) -> list[Symbol]:
        """After the last frame: nothing, each was tried at once."""
        self._pattern = -1
        return []

    def add(self, pattern: int, alone: Floats, joint: Callable[[], Floats]) -> list[Symbol]:
        """The symbols of a frame.

        Args:
            pattern: of the frame.
            alone: (at least n_slots,) log P(0) / P(1) of its coded bits, without what other frames tell: of
                frames alike, these are added up.
            joint: gives the same with what others tell; asked where the frame alone is not read.
        """
        if pattern != self._pattern or (self._alike and alone.shape != self._alike[0][1].shape):
            self._pattern, self._alike, self._read = pattern, [], {}
        self._forget_others(alone)
        self._alike = [*self._alike[1 - MOST_ALIKE :], (pilots.information(alone), alone)]
        for layout in self._layouts:
            found = self._attempt(layout, alone, joint)
            if found:
                self._layouts, self.known = [layout], True
                break
        return [symbol for symbol, _ in self._read.values()]

    def _forget_others(self, alone: Floats) -> None:
        """Words that were read in the frame before count for this one if its bits are mostly the same."""
        if not self._read:
            return
        layout = self._layouts[0]
        words = layout.words(alone[None])
        for at, (_, coded) in list(self._read.items()):
            if ((words[at] < 0) == coded).mean() < SAME_WORD:
                del self._read[at]
                for _, before in self._alike:
                    before[: layout.n_slots(0)].reshape(layout.n_words, -1)[at] = 0

    def _attempt(self, layout: Layout, alone: Floats, joint: Callable[[], Floats]) -> bool:
        code = code_for(layout.n_info, layout.n_coded)
        rate = layout.n_info / layout.n_coded
        # Alone first: frames in another order mislead each other, and asking them takes time.
        self._read_from(layout, code, alone, LIKELY * rate)
        if len(self._read) < layout.n_words:
            slots = joint()
            most = LIKELY * rate if slots is alone else math.inf  # of words that were not tried yet
            self._read_from(layout, code, slots, HOPELESS * rate, most)
        if len(self._read) < layout.n_words and len(self._alike) > 1:
            self._read_from(layout, code, self._sum(), HOPELESS * rate)
        return bool(self._read)

    def _read_from(
        self, layout: Layout, code: Code, slots: Floats, least: float, most: float = math.inf
    ) -> None:
        """Read those missing words that say more than ``least``, and no more than ``most``."""
        words = layout.words(slots[None])
        worth = [
            at
            for at in range(layout.n_words)
            if at not in self._read and least < pilots.information(words[at]) <= most
        ]
        if worth:
            found = read_words(words[worth], layout, self._key, all_of_them=self.known)
            for number, (symbol, info) in found.items():
                self._read[worth[number]] = symbol, code.encode(info)

    def _sum(self) -> Floats:
        """What the frames alike say together; those that say less, mostly copies of the best, count less."""
        most = max(says for says, _ in self._alike)
        weights = [ADDED * max(says, 0.0) / max(most, 1e-9) for says, _ in self._alike]
        return np.asarray(sum(w * slots for w, (_, slots) in zip(weights, self._alike, strict=True)))


@dataclass
class _Group:
    """What is known of the codewords of 16 patterns in a row."""

    llr: Floats  # (SPREAD, slots of the frame that has most)
    says: NDArray[np.float64]  # (SPREAD,) bits that each bit of a frame says
    tried: dict[Layout, tuple[float, bool]]  # what the last attempt knew, and whether it was final
    read: Words
    layout: Layout | None  # of the words that were read


class SpreadWords:
    """Codewords of which each of 16 frames in a row holds a part.

    Args:
        layouts: one for each rate that they may have, all of the same frames.
        key: of the records.

    Attributes:
        known: a word was read, and with it the rate of all.

    The pattern of a frame is its place among the 16; what is missing says nothing. Patterns go on from frame
    to frame, so that a step of up to eight forward or seven back tells which sixteen a frame belongs to. Any
    sixteen may be the last of a film, which carries a word less.
    """

    def __init__(self, layouts: Sequence[Layout], key: bytes) -> None:
        self._layouts = list(dict.fromkeys([*layouts, *(one.lighter for one in layouts)]))
        self._key = key
        self._shares = np.array([layouts[0].share(part) for part in range(SPREAD)], np.float64)
        self._n_words = layouts[0].n_words
        self._most = max(layouts[0].n_free(part) for part in range(SPREAD))
        self.known = False
        self._at: int | None = None  # pattern of the last frame, counted on from sixteen to sixteen
        self._groups: dict[int, _Group] = {}

    def miss(self) -> None:
        """A frame without a pattern changes nothing."""

    def add(self, pattern: int, alone: Floats, joint: Callable[[], Floats]) -> list[Symbol]:
        """The symbols that a frame completes.

        Args:
            pattern: of the frame.
            alone: (at least n_slots,) log P(0) / P(1) of its coded bits, without what other frames tell; not
                used.
            joint: gives the same with what others tell.
        """
        slots = joint()
        back = N_PATTERNS // 2 - 1
        last = pattern if self._at is None else self._at
        self._at = last + (pattern - last + back) % N_PATTERNS - back
        number = self._at // SPREAD
        began = number not in self._groups
        group = self._group(number)
        part = self._at % SPREAD
        self._add_to(group, part, slots)
        found = self._tried(group, final=part == SPREAD - 1)
        if began:  # whatever could still come to the sixteen before came
            for other in [one for one in self._groups if one != number]:
                found += self._tried(self._groups[other], final=True)
                if abs(other - number) > 1:
                    del self._groups[other]
        return found

    def finish(self) -> list[Symbol]:
        """After the last frame: the symbols of sixteens that are not complete."""
        found = [symbol for group in self._groups.values() for symbol in self._tried(group, final=True)]
        self._groups, self._at = {}, None
        return found

    def _group(self, number: int) -> _Group:
        if number not in self._groups:
            llr = np.zeros((SPREAD, self._most), np.float32)
            self._groups[number] = _Group(llr, np.zeros(SPREAD), {}, {}, None)
        return self._groups[number]

    def _add_to(self, group: _Group, part: int, slots: Floats) -> None:
        """A part may come again: the same bits, or others where the film was cut and all begins anew."""
        before, says = group.llr[part, : slots.size], pilots.information(slots)
        if group.says[part]:
            old, new = np.tanh(before / 2), np.tanh(slots / 2)
            alike, if_same = float(old @ new), float((old * old) @ (new * new))
            same = 2 * alike > if_same
            if not same and if_same > SURELY_OTHERS:
                group.llr[:], group.says[:] = 0, 0
                group.read, group.tried, group.layout = {}, {}, None
            elif same and 1 / NO_NEWS < says / group.says[part] < NO_NEWS:
                slots = ADDED * (before + slots)
                says = pilots.information(slots)
            elif says < group.says[part]:  # a poor copy, or taken for this pattern by chance
                return
        group.llr[part, : slots.size], group.says[part] = slots, says

    def _tried(self, group: _Group, *, final: bool) -> list[Symbol]:
        says = float(np.average(group.says, weights=self._shares))
        layouts = self._layouts if final else [one for one in self._layouts if one.n_words == self._n_words]
        for layout in layouts if group.layout is None else [group.layout]:
            missing = [at for at in range(layout.n_words) if at not in group.read]
            before = group.tried.get(layout, (0.0, False))
            least = HOPELESS if final else 1.0
            if not missing or says < least * layout.n_info / layout.n_coded:
                continue
            if (says, True) <= before if final else says <= before[0] * WORTH_IT:
                continue
            group.tried[layout] = says, final
            words = layout.words(group.llr)[missing]
            rounds = PATIENCE * ROUNDS if final else ROUNDS
            found = read_words(words, layout, self._key, all_of_them=final and self.known, rounds=rounds)
            if found:
                self._layouts = [one for one in self._layouts if one.n_info == layout.n_info]
                self.known, group.layout = True, layout
                group.read |= {missing[number]: one for number, one in found.items()}
                return [symbol for symbol, _ in found.values()]
        return []
