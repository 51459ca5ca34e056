"""``firth train --pairs``: a score after each epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firth.evaluate import PairScore, read_pairs, score_pairs
from firth.training import Callback, Moment
from firth.vectors import Vectors


class PairScores(Callback):
    """Prints how well the vectors agree with a file of word pairs, epoch by epoch, on standard error.

    The file is read once, at the start: what happens to it later does not end a run.

    Args:
        path: the file of pairs.

    Raises:
        FormatError, SourceError, StorageError: from ``read_pairs``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pairs = read_pairs(path)
        self._scores: list[dict[str, Any]] = []

    def check(self, tokens: Sequence[str]) -> None:
        """Try the pairs on the words that will have vectors, before hours of training.

        Raises:
            SourceError: none of the pairs is among them.
        """
        self._score(Vectors(tokens, np.ones((len(tokens), 1), np.float32)))

    def _score(self, vectors: Vectors) -> PairScore:
        return score_pairs(vectors, self._path, self._pairs)

    def on_epoch_end(self, moment: Moment, vectors: Callable[[], Vectors]) -> None:
        score = self._score(vectors())
        epoch = len(moment.epoch_losses)
        self._scores.append({"epoch": epoch, "loss": moment.epoch_losses[-1], **score.to_dict()})
        print(f"epoch {epoch}: {_sentence(score)}", file=sys.stderr)

    def added_to(self, vectors: Vectors) -> Vectors:
        """The same vectors with the scores in their metadata."""
        context = vectors.context
        return Vectors(
            vectors.index_to_key,
            vectors.vectors,
            counts=vectors.counts,
            context=None if context is None else context.vectors,
            metadata={**vectors.metadata, "scores": self._scores},
        )


def _sentence(score: PairScore) -> str:
    return (
        f"{Path(score.name).name} Spearman {score.spearman:.4f}, Pearson {score.pearson:.4f} "
        f"({score.found:,} of {score.total:,} pairs found)"
    )
