"""``SkipGramBatches``: the pairs and negatives that ``firth.train`` sees, for loops of one's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from firth import kernels
from firth.corpus import Corpus
from firth.encoding import IDS, SENTENCES, load_array
from firth.errors import SettingError, SourceError
from firth.nn.windows import Pairs, pairs_in, piece_starts
from firth.training.draws import Sampler
from firth.training.objectives import SkipGram

STRETCH = 8192
"""The fewest tokens, but at the end of a block, that are cut into batches together."""


class Batch(NamedTuple):
    """What ``firth.nn.SkipGram`` takes: ``model(*batch)``."""

    pos_u: Tensor  # (P,) int64: context words, rows of the input table
    pos_v: Tensor  # (P,) int64: centre words, rows of the output table
    neg_v: Tensor  # (P, K) int64: drawn words for each pair; (K,) where all pairs share them
    weights: Tensor  # (P, K) float: of each negative; 0 for one that is the centre itself


class SkipGramBatches(IterableDataset[Batch]):
    """Skip-gram pairs of a corpus as batches, the same words drawn as by ``firth.train``.

    Subsampling, the reach of each window and the negatives are functions of the seed, the epoch and
    the place in the text, as :mod:`firth.kernels.reference` defines them, and equal to those of
    ``firth.train(corpus, objective, seed=seed)``. Two walks over it are the same. The text is walked
    in its order.

    Through ``torch.utils.data.DataLoader(batches, batch_size=None, num_workers=n)`` the worker
    processes share the batches out: each is made once, whatever their number, and only the order
    depends on it. A corpus in files is mapped by each worker anew, not copied.

    Args:
        corpus: the encoded text.
        objective: what ``firth.train`` takes; ``SkipGram()`` by default. ``share`` is brought down for
            small vocabularies as there (``SkipGram.fitted``).
        batch_size: pairs in a batch; less at the end of each stretch of some thousand tokens. ``None``:
            one group of ``share`` centre words a batch, with the negatives that they share as (K,);
            with ``share=1`` one window, with ``share=0`` one pair.
        epochs: passes over the text, one after the other; see also :meth:`epoch`.
        seed: of every draw.
        lr: the learning rate that ``share`` must fit, the objective's by default.
        dtype: of the weights.

    Attributes:
        objective: what is drawn by, ``share`` fitted.

    Raises:
        SettingError: a setting out of its range; ``saturation`` other than ``"exact"``, which is a
            matter of the kernels of ``firth.train``.
        SourceError: less than two tokens.
    """

    def __init__(
        self,
        corpus: Corpus,
        objective: SkipGram | None = None,
        *,
        batch_size: int | None = 1024,
        epochs: int = 1,
        seed: int = 1,
        lr: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        objective = SkipGram() if objective is None else objective
        _check(corpus, objective, lr)
        for name, value, low in (("batch_size", batch_size, 1), ("epochs", epochs, 1), ("seed", seed, 0)):
            if value is None and name == "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise SettingError(
                    f"SkipGramBatches(): {name} must be a whole number from {low} on, got {value!r}"
                )
        self._corpus: Corpus | None = corpus  # a corpus in a folder of its own lives as long as it is held
        self._text = _Text(corpus)
        counts = corpus.vocab.counts
        if not counts.any():  # a vocabulary made of a list of tokens
            counts = np.bincount(corpus.ids, minlength=len(corpus.vocab))
        self.objective = objective.fitted(counts, objective.lr if lr is None else lr)
        self._sampler = Sampler(counts, self.objective, seed, kernels.pick("auto"))
        self._batch_size, self._dtype = batch_size, dtype
        self._epochs = range(epochs)

    def epoch(self, number: int) -> Self:
        """The batches of one epoch, counted from 0; also of one that ``epochs`` does not reach.

        Raises:
            SettingError: below 0.
        """
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise SettingError(
                f"SkipGramBatches.epoch(): a whole number from 0 on is expected, got {number!r}"
            )
        one = copy.copy(self)
        one._epochs = range(number, number + 1)
        return one

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        step = self.objective.step(0.0, 0.0, 0.0)
        size = max(STRETCH, 8 * (self._batch_size or 0))
        for epoch in self._epochs:
            draws = self._sampler.epoch(epoch)
            for number, starts in enumerate(self._text.stretches(size)):
                if number % n_workers == worker:
                    yield from self._cut(pairs_in(self._text.ids, starts, step, draws), step.weight)

    def _cut(self, pairs: Pairs, weight: float) -> Iterator[Batch]:
        n_pairs = len(pairs.center_ids)
        if self._batch_size is None:
            ends = np.flatnonzero(np.diff(pairs.group_rows, append=-1)) + 1
            borders = [0, *ends.tolist()] if n_pairs else []
        else:
            borders = [*range(0, n_pairs, self._batch_size), n_pairs]
        for begin, end in pairwise(borders):
            rows = pairs.group_rows[begin : begin + 1 if self._batch_size is None else end]
            negatives = pairs.negatives[rows]
            centers = pairs.center_ids[begin:end]
            weights = np.where(negatives != centers[:, None], weight, 0.0)
            yield Batch(
                torch.from_numpy(pairs.context_ids[begin:end].copy()),
                torch.from_numpy(centers.copy()),
                torch.from_numpy(negatives[0] if self._batch_size is None else negatives),
                torch.from_numpy(weights).to(self._dtype),
            )

    def __getstate__(self) -> dict[str, Any]:
        # What a worker that is not forked gets; the folder of the corpus is not its to remove.
        return {**self.__dict__, "_corpus": None}


class _Text:
    """Ids, sentences and blocks of a corpus; pickled as the name of its folder where it has one."""

    def __init__(self, corpus: Corpus) -> None:
        self.ids, self.sentence_starts = corpus.ids, corpus.sentence_starts
        self.block_starts, self.folder = corpus.block_starts, corpus.folder

    def stretches(self, size: int) -> Iterator[Any]:
        """The starts of pieces, with the end of the last, of stretches of about ``size`` tokens."""
        for start, stop in zip(self.block_starts[:-1].tolist(), self.block_starts[1:].tolist(), strict=True):
            starts = piece_starts(self.sentence_starts, start, stop)
            ends = np.searchsorted(starts, np.arange(start + size, stop, size), "left")
            for first, last in zip([0, *ends.tolist()], [*ends.tolist(), len(starts) - 1], strict=True):
                if first < last:
                    yield starts[first : last + 1]

    def __getstate__(self) -> dict[str, Any]:
        arrays = {} if self.folder else {"ids": self.ids, "sentence_starts": self.sentence_starts}
        return {"folder": self.folder, "block_starts": np.array(self.block_starts), **arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.folder is not None:
            folder = Path(self.folder)
            self.ids, self.sentence_starts = (
                load_array(folder / IDS, "<i4"),
                load_array(folder / SENTENCES, "<i8"),
            )


def _check(corpus: object, objective: object, lr: object) -> None:
    if not isinstance(corpus, Corpus):
        raise SettingError(
            f"SkipGramBatches(): corpus must be a Corpus, got {type(corpus).__name__}; "
            "Corpus.encode(text) makes one"
        )
    if not isinstance(objective, SkipGram):
        raise SettingError(
            f"SkipGramBatches(): objective must be a firth.SkipGram(...), got {objective!r:.60}"
        )
    if objective.saturation != "exact":
        raise SettingError(
            f"SkipGramBatches(): saturation={objective.saturation!r} is a matter of firth.train's kernels; "
            "a module's loss is exact"
        )
    if lr is not None and not (isinstance(lr, (int, float)) and 0 < lr < float("inf")):
        raise SettingError(f"SkipGramBatches(): lr must be a positive number, got {lr!r}")
    if len(corpus) < 2:
        raise SourceError(
            f"SkipGramBatches(): nothing to learn from {len(corpus):,} tokens; at least 2 are needed"
        )
