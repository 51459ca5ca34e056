"""``firth train --pairs``: a score after each epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firth.evaluate import PairScore, word_pairs
from firth.training import Callback, Moment
from firth.vectors import Vectors


class PairScores(Callback):
    """Prints how well the vectors agree with a file of word pairs, epoch by epoch, on standard error.

    Args:
        path: the file of pairs.
        tokens: the words that will have vectors. The file is tried on them at once, so that a bad
            one is told before hours of training.

    Raises:
        FormatError, SourceError, StorageError: from ``word_pairs``.
    """

    def __init__(self, path: Path, tokens: Sequence[str]) -> None:
        self._path = path
        self._scores: list[dict[str, Any]] = []
        word_pairs(Vectors(tokens, np.ones((len(tokens), 1), np.float32)), path)

    def on_epoch_end(self, moment: Moment, vectors: Callable[[], Vectors]) -> None:
        score = word_pairs(vectors(), self._path)
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
