"""What a run of training holds, and what one run of blocks does to it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from firth import kernels
from firth.corpus import Corpus
from firth.errors import Diverged, RunError, SourceError
from firth.kernels.reference import STEPS, Draws, Step, to_bfloat16
from firth.processes import is_restart, mark_start
from firth.training.callbacks import Moment
from firth.training.checkpoint import RunFolder, State
from firth.training.config import TrainConfig, available_threads
from firth.training.draws import Sampler
from firth.training.initial import Pretrained
from firth.training.memory import check_card
from firth.training.objectives import SkipGram
from firth.training.sampling import initial_inputs, zeros
from firth.vectors import Vectors
from firth.version import __version__
from firth.vocab import Vocab

RUN_BLOCKS = 32
"""Blocks a thread in one run: about a second of work between two looks at the clock."""


class Folder(Protocol):
    """What the loop asks of a run folder: a ``RunFolder``, or one that several processes share."""

    path: Path

    def load(self, state: State) -> bool: ...
    def due(self, state: State) -> bool: ...
    def save(self, state: State) -> Path: ...


class Trainer:
    """The state of a run and what one run of blocks does to it."""

    def __init__(
        self,
        corpus: Corpus,
        objective: SkipGram,
        config: TrainConfig,
        device: kernels.Kernels,
        start: Pretrained | None,
    ) -> None:
        self.corpus = corpus = corpus if start is None else start.encoded(corpus)
        self.config = config
        check_card(device, len(corpus.vocab), config.dim, config.table_dtype)
        self.total = len(corpus) * config.epochs
        self._kernels = device
        self._threads = 1 if config.deterministic else config.threads or available_threads()
        self._lr, self._lr_last = _rates(objective, config, start)
        self.asked = objective
        counts = corpus.vocab.counts
        if start is not None or not counts.any():  # none: a vocabulary made of a list of tokens
            counts = corpus.count_ids()
        self.counts = counts
        self.objective = objective.fitted(counts, self._lr)
        # Words that only the start knows are no part of this text.
        drawn = None if start is None else np.flatnonzero(counts)
        self._sampler = Sampler(counts, self.objective, config.seed, device, drawn)
        self._start = start
        self.state = self.start_state()
        if config.table_dtype == "bfloat16":  # as the card holds them, so that checkpoints lose nothing
            for table in (self.state.inputs, self.state.outputs):
                table[:] = to_bfloat16(table, 0x8000)
        self.state.tokens = len(corpus)
        frozen = len(start) if start is not None and config.freeze == "known" else 0
        self._fixed_inputs = frozen
        self._fixed_outputs = frozen if start is not None and start.has_context else 0
        self._began = time.monotonic()
        self._began_place: int | None = None
        self._stretch_loss = float("nan")

    def start_state(self) -> State:
        """The tables before the first run."""
        vocab, dim, spread, seed = self.corpus.vocab, self.config.dim, self.asked.init, self.config.seed
        if self._start is not None:
            return self._start.state(vocab, spread, seed)
        rows = len(vocab)
        return State(inputs=initial_inputs(rows, dim, spread, seed), outputs=zeros(rows, dim))

    def settings(self) -> dict[str, Any]:
        """What decides the result; a run can only be resumed by the same. Threads may differ."""
        config = dataclasses.asdict(self.config)
        del config["threads"], config["device"], config["freeze"], config["deterministic"]
        if config["table_dtype"] == "float32":
            del config["table_dtype"]  # runs of versions without this setting go on
        settings = {
            **config,
            "lr": self._lr,
            "objective": self.asked.to_dict(),
            "steps": STEPS,
            "corpus": self.corpus.fingerprint,
        }
        if self._start is not None:
            settings["init"] = self._start.fingerprint
            settings["freeze"] = self.config.freeze
            settings["epochs_before"] = self._start.epochs
            settings["lr_last"] = self._lr_last  # may come from the run that this one goes on with
        return settings

    def vocab(self) -> Vocab:
        """The words of the rows, with the counts of the result."""
        return self.corpus.vocab.with_counts(self._result_counts())

    def _result_counts(self) -> npt.NDArray[np.int64]:
        return self.counts if self._start is None else self._start.merged_counts(self.counts)

    @property
    def writes(self) -> bool:
        """Whether this process writes and tells; of several, one does."""
        return True

    @contextlib.contextmanager
    def folder(self, run: str | os.PathLike[str], resume: bool) -> Iterator[Folder]:
        """The run folder, held while inside; restarted by torchrun, a run goes on."""
        with RunFolder(run, self.settings(), resume or is_restart(run), self.vocab()) as folder:
            mark_start(run)
            yield folder

    def listen(self, stop: threading.Event) -> threading.Event:
        """The event that ends the loop, where ``stop`` tells of Ctrl-C."""
        return stop

    def facts(self) -> dict[str, Any]:
        """What the metadata of the vectors say beside settings and losses."""
        return {}

    def run(self, stop: threading.Event) -> bool:
        """Train the next run of blocks; whether it ended an epoch.

        Raises:
            Diverged: a score was not finite.
        """
        state, corpus = self.state, self.corpus
        self.begin()
        epoch, pos = divmod(state.place, len(corpus))
        first = int(np.searchsorted(corpus.block_starts, pos))
        n_blocks = kernels.run_blocks(self._kernels, RUN_BLOCKS, self._threads)
        borders = corpus.block_starts[first : first + n_blocks + 1]
        stats, n_done = self.train(epoch, borders, stop)
        state.place += int(borders[n_done] - borders[0])
        self.account(stats)
        return self.end_epoch()

    def begin(self) -> None:
        """Start the clock, if it does not run yet."""
        if self._began_place is None:
            self._began, self._began_place = time.monotonic(), self.state.place

    def account(self, stats: npt.NDArray[np.float64]) -> None:
        """Add the loss and the pairs of a run.

        Raises:
            Diverged: a score was not finite.
        """
        state = self.state
        loss, pairs, scores = stats.tolist()
        if not np.isfinite(loss + scores):
            self.check_tables()
            raise Diverged(self._diverged("a score is not finite"))
        state.epoch_loss += loss
        state.epoch_pairs += pairs
        self._stretch_loss = loss / pairs if pairs else float("nan")

    def end_epoch(self) -> bool:
        """Whether an epoch ends here; if so, its mean loss is kept."""
        state = self.state
        if state.place % len(self.corpus):
            return False
        state.losses.append(state.epoch_loss / state.epoch_pairs if state.epoch_pairs else 0.0)
        state.epoch_loss = state.epoch_pairs = 0.0
        return True

    @property
    def sharers(self) -> int:
        """Processes that train these same tables, at the same memory."""
        return 1

    def compile(self) -> None:
        """Have the kernel ready, by training nothing."""
        self.train(0, np.zeros(2, np.int64), threading.Event())

    def train(
        self, epoch: int, borders: npt.NDArray[np.int64], stop: threading.Event
    ) -> tuple[npt.NDArray[np.float64], int]:
        """The kernel over the blocks between ``borders``: summed stats, and blocks done."""
        stats: npt.NDArray[np.float64]
        stats, n_done = self._kernels.run(
            self.objective.kernel,
            self.state.inputs,
            self.state.outputs,
            self.corpus.ids,
            self.corpus.sentence_starts,
            borders,
            self.step(epoch),
            self.draws(epoch),
            self._threads,
            stop.is_set,
            self.sharers,
        )
        return stats, int(n_done)

    def step(self, epoch: int) -> Step:
        """The objective, the learning rate and what is fixed, as the kernel takes it."""
        slope = (self._lr - self._lr_last) / self.total
        step = self.objective.step(self._lr - slope * epoch * len(self.corpus), slope, self._lr_last)
        return step._replace(
            fixed_inputs=self._fixed_inputs,
            fixed_outputs=self._fixed_outputs,
            bfloat16=self.config.table_dtype == "bfloat16",
        )

    def draws(self, epoch: int) -> Draws:
        """What is drawn in an epoch."""
        return self._sampler.epoch(epoch + (0 if self._start is None else self._start.epochs))

    def check_tables(self) -> None:
        """Refuse tables that hold NaN or infinity.

        Raises:
            Diverged: names the first such row, the learning rate and the place.
        """
        kernels.fetch(self._kernels)
        for name in ("inputs", "outputs"):
            table = getattr(self.state, name)
            with np.errstate(over="ignore", invalid="ignore"):
                suspect = not np.isfinite(table.sum())
            if suspect:
                bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
                if len(bad):
                    word = self.corpus.vocab.tokens[int(bad[0])]
                    raise Diverged(self._diverged(f"row {bad[0]} ({word!r}) of the {name} is not finite"))

    def check_learned(self) -> None:
        """Refuse a run in which no pair was trained.

        Raises:
            SourceError: subsampling left no two words side by side.
        """
        if not any(self.state.losses):
            raise SourceError(
                f"train(): nothing was learned from {len(self.corpus):,} tokens: thinning by "
                f"sample={self.objective.sample:g} left no word beside another; give sample=0 or more text"
            )

    def check_place(self, run: Path) -> None:
        """Refuse a checkpoint from within a block.

        Raises:
            RunError: another version of firth cut the blocks, or the file was changed.
        """
        place, starts = self.state.place, self.corpus.block_starts
        if not 0 <= place <= self.total or place % len(self.corpus) not in starts:
            raise RunError(
                f"the run folder {run} holds a checkpoint at place {place:,} of {self.total:,}, which is no "
                "border of blocks here; remove the folder to start again"
            )

    def _diverged(self, what: str) -> str:
        moment = self.moment()
        return (
            f"train(): diverged at {100 * moment.share:.1f} % (epoch {moment.epoch + 1}, learning rate "
            f"{moment.lr:.4g}): {what}; try a smaller lr than {self._lr:g}"
        )

    def rate(self) -> float:
        """The learning rate at the place that was reached."""
        return max(self._lr_last, self._lr - (self._lr - self._lr_last) * self.state.place / self.total)

    def moment(self) -> Moment:
        """Where the run stands now."""
        state = self.state
        seconds = time.monotonic() - self._began
        trained = state.place - (state.place if self._began_place is None else self._began_place)
        per_second = trained / seconds if trained and seconds > 0 else 0.0
        return Moment(
            place=state.place,
            total=self.total,
            epoch=min(state.place // len(self.corpus), self.config.epochs - 1),
            words_per_second=per_second,
            lr=self.rate(),
            loss=self._stretch_loss,
            epoch_losses=tuple(state.losses),
            seconds=seconds,
        )

    def vectors(self, keep_context: bool = False, moment: Moment | None = None) -> Vectors:
        """The vectors as they are now, copied."""
        kernels.fetch(self._kernels)
        dim = self.config.dim
        return Vectors(
            self.corpus.vocab.tokens,
            self._rows(self.state.inputs, dim),
            counts=self._result_counts(),
            context=self._rows(self.state.outputs, dim) if keep_context else None,
            metadata=self.metadata(self.moment() if moment is None else moment),
        )

    def metadata(self, moment: Moment) -> dict[str, Any]:
        """Settings and losses, for the vectors."""
        metadata = {
            "firth": __version__,
            "objective": self.objective.to_dict(),
            **dataclasses.asdict(self.config),
            "lr": self._lr,
            "threads": self._threads,
            "tokens": len(self.corpus),
            "raw_tokens": self.corpus.raw_tokens,
            "loss": list(self.state.losses),
            "words_per_second": round(moment.words_per_second),
            **self.facts(),
        }
        if self._start is None:
            del metadata["freeze"]
        else:
            metadata |= {"init": self._start.facts(self.counts), "epochs_before": self._start.epochs}
        return metadata

    @staticmethod
    def _rows(table: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
        return np.array(table[:, :dim], np.float32, order="C")


def _rates(objective: SkipGram, config: TrainConfig, start: Pretrained | None) -> tuple[float, float]:
    """The learning rate at the start and at the end of the run."""
    if config.lr is None and start is not None and start.lr is not None and start.lr_last is not None:
        return start.lr, start.lr_last  # the run that it comes from was not finished: on from there
    lr = objective.lr if config.lr is None else config.lr
    return lr, lr * 1e-4 if objective.lr_last is None else min(objective.lr_last, lr)
