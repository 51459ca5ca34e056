"""What is learned: each objective is a frozen dataclass that names its kernel and its numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firth.errors import SettingError, did_you_mean
from firth.kernels.reference import CLIP, EXACT, SKIP, Step
from firth.training.config import check, setting
from firth.training.sampling import keep_thresholds

_SATURATION = {"exact": EXACT, "clip": CLIP, "skip": SKIP}


@dataclass(frozen=True)
class SkipGram:
    """Skip-gram with negative sampling (Mikolov et al. 2013, arXiv 1310.4546).

    A word's vector learns to score high with the words around it and low with words drawn at
    random. By default the random words are shared by a few consecutive tokens, which makes a
    step a small matrix product; ``share=0`` is the algorithm as published.

    Raises:
        SettingError: a value outside its limits.
    """

    window: int = setting(5, "Context words on each side, at most.", low=1, high=500)
    negatives: int = setting(5, "Random words that a pair is held against.", low=1, high=500)
    sample: float = setting(
        1e-3, "Thin out words more frequent than this share of the text (0: none).", low=0.0, high=1.0
    )
    ns_exponent: float = setting(0.75, "Draw negatives by count to this power.", low=-4.0, high=4.0)
    shrink_windows: bool = setting(True, "Draw each window's reach from 1 to window.")
    share: int = setting(
        4, "Consecutive tokens that share their negatives (0: fresh ones for each pair).", low=0, high=512
    )
    pool: int | None = setting(None, "Negatives such a group draws; 2.4 times `negatives`.", low=1, high=512)
    saturation: str = setting("exact", "Scores beyond 6 with share=0: exact, clip or skip.")
    init: float = setting(0.5, "Word vectors start uniform in +-init/dim.", low=0.0, high=100.0)
    lr: float = setting(0.025, "Learning rate where none is given.", low=1e-9, high=10.0)
    lr_last: float | None = setting(
        None, "Learning rate at the end; by default lr / 10,000.", low=0.0, high=10.0
    )

    def __post_init__(self) -> None:
        check(self, "SkipGram()")
        if self.saturation not in _SATURATION:
            raise SettingError(
                f"SkipGram(): saturation must be one of {', '.join(_SATURATION)}, got {self.saturation!r}"
            )
        if self.saturation != "exact" and self.share != 0:
            raise SettingError(
                f"SkipGram(): saturation={self.saturation!r} belongs to share=0, got share={self.share}"
            )

    @classmethod
    def preset(cls, name: str) -> SkipGram:
        """The details in which the published codes disagree, settled as one of them does.

        * ``"firth"``: the defaults.
        * ``"word2vec"``: word2vec.c: fresh negatives, start +-0.5/dim, scores beyond 6 count as
          certain, learning rate .025 down to a ten-thousandth of it.
        * ``"gensim"``: gensim 4: fresh negatives, start +-1/dim, pairs with scores beyond 6 are left
          out, learning rate .025 down to .0001.

        Raises:
            SettingError: another name.
        """
        published = {"share": 0}
        presets: dict[str, dict[str, Any]] = {
            "firth": {},
            "word2vec": {**published, "saturation": "clip"},
            "gensim": {**published, "saturation": "skip", "init": 1.0, "lr_last": 1e-4},
        }
        if name not in presets:
            import difflib

            close = difflib.get_close_matches(name, presets, 1)
            raise SettingError(
                f"SkipGram.preset(): no preset {name!r}, one of {', '.join(presets)} is expected"
                f"{did_you_mean(close)}"
            )
        return cls(**presets[name])

    @property
    def kernel(self) -> str:
        """The name of the kernel that trains this, the same on every device."""
        return "skipgram_shared" if self.share else "skipgram_pairs"

    @property
    def drawn(self) -> int:
        """Negatives drawn at a time: for a group, or for a pair where ``share`` is 0."""
        if not self.share:
            return self.negatives
        if self.pool is not None:
            return self.pool
        # In groups of 4 so many keep SimLex within .01 of gensim's; 2.2 times in 5 lose .004 (docs/log.md).
        return round(2.4 * self.negatives)

    def fitted(self, counts: npt.NDArray[np.int64], lr: float) -> SkipGram:
        """This objective with ``share`` so small that a group's step is stable; often itself.

        A group moves each row once by the sum of its slopes. That sum grows with the word's share
        of the text, the window and the negatives; where it could pass the size of the rows
        themselves, steps overshoot and tables explode. Small vocabularies with wide windows
        therefore get smaller groups, in the end fresh negatives for each pair.

        Args:
            counts: (V,) int64. lr: the learning rate at the start.
        """
        if not self.share:
            return self
        kept = counts * ((keep_thresholds(counts, self.sample) + 1.0) / 2.0**32)
        # Words come in bursts: a tenth of a stretch may be one word in any text.
        top = max(float(kept.max() / kept.sum()), 0.1)
        contexts = self.window + 1 if self.shrink_windows else 2 * self.window
        largest = int(1.0 / (lr * top * contexts * (1 + self.negatives)))
        return self if self.share <= largest else dataclasses.replace(self, share=largest, pool=None)

    @property
    def n_keys(self) -> int:
        """How many kinds of draws the kernel makes at a place."""
        slots = 1 if self.share else 2 * self.window + 1
        return 2 + slots * self.drawn

    def step(self, rate_first: float, rate_slope: float, rate_last: float) -> Step:
        """This objective and a learning rate as the kernel's plain numbers."""
        return Step(
            window=self.window,
            shrink=self.shrink_windows,
            share=self.share,
            pool=self.drawn,
            weight=self.negatives / self.drawn,
            saturation=_SATURATION[self.saturation],
            rate_first=rate_first,
            rate_slope=rate_slope,
            rate_last=rate_last,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings with the objective's name, for files."""
        return {"name": "skipgram", **dataclasses.asdict(self)}


OBJECTIVES = {"skipgram": SkipGram}
"""Every objective by its name on the command line."""
