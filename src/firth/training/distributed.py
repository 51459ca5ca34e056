"""Training in several processes that take turns with runs of the text, on one machine or on several.

The text of an epoch is taken round by round. A round is a stretch of whole blocks; it is cut at borders
of pieces into runs, and of w ranks rank r trains the runs k*w + r. The ranks of a machine share its tables
(``firth.training.shared_tables``); each machine has its copy, and each card. After each run copies exchange
what has changed (``firth.training.exchange``); where there is one copy only, each rank takes the next run
that nobody has taken. After each round all agree on the loss, whether to stop, whether to save. ``place``
moves on by rounds, so a checkpoint is a border of blocks as everywhere, and another number of ranks can go
on from it. What is drawn hangs on the place in the text alone, so it is the same whatever the number of
ranks.

Only the first rank writes: checkpoints, vectors, progress.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from firth import kernels
from firth.encoding import BLOCK, PIECE
from firth.kernels.reference import STEPS
from firth.processes import Processes
from firth.training.checkpoint import State
from firth.training.exchange import Exchange, meetings, rows_due
from firth.training.sampling import zeros
from firth.training.shared_tables import can_share, deal, leaders_of, shared_tables
from firth.training.trainer import Folder, Trainer
from firth.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

SHORTEST = 4096
"""Tokens of a run at least, for each thread: shorter ones spend their time on exchanges."""

IN_FLIGHT = 16 * BLOCK
"""Tokens a thread of a copy between two exchanges at most, times the cube of copies: 131,072 for 2, 16,384
for 4. Longer runs cost analogies: 2 copies lose .013 of .393 with twice as many (``docs/scale.md``)."""

EXCHANGES = 64
"""Exchanges an epoch at least, where runs are not yet the shortest; with 12 two copies lose .02 of WS-353."""

ROUND = 8
"""Runs of each rank in a round, about."""

TOGETHER = 64 * BLOCK
"""Tokens a thread of a rank in a round where all ranks share one copy of the tables: a second or two."""

TAKEN = 2 * BLOCK
"""Tokens a thread that a rank takes of such a round at a time."""


def run_tokens(corpus_tokens: int, size: int, threads: int) -> int:
    """How many tokens go into each of ``size`` copies of the tables, by ``threads`` in all, between two
    exchanges: fewer where there are more copies or less text."""
    most = IN_FLIGHT * threads // size**3
    return max(SHORTEST * threads, min(most, corpus_tokens // (size * EXCHANGES)))


def cut(sentence_starts: npt.NDArray[np.int64], start: int, stop: int, parts: int) -> npt.NDArray[np.int64]:
    """Borders that cut places ``start`` to ``stop`` at borders of pieces into parts of nearly equal size.

    Args:
        sentence_starts: int64 (S + 1,). start, stop: borders of pieces.

    Returns:
        int64 (parts + 1,), from start to stop, not falling: a part may be empty.
    """
    wanted = start + (stop - start) * np.arange(parts + 1) // parts
    rows = np.searchsorted(sentence_starts, np.minimum(wanted, stop - 1), "right") - 1
    sentence = np.asarray(sentence_starts[rows], np.int64)
    borders = np.maximum(sentence + (wanted - sentence) // PIECE * PIECE, start)
    borders[0], borders[-1] = start, stop
    return np.maximum.accumulate(borders)


class Team(Trainer):
    """A trainer that is one of several processes; made and used collectively.

    Args:
        group: the processes. Others as for ``Trainer``.

    Raises:
        SettingError: the processes were given different things to do.
    """

    def __init__(self, group: Processes, *given: Any) -> None:
        self.group = group
        super().__init__(*given)
        self._agreed = threading.Event()  # to stop: set in all processes or in none
        self._asked: threading.Event | None = None
        self._folder: SharedFolder | None = None
        group.check_alike(
            {
                "the version of firth": __version__,
                "its steps": STEPS,
                "the device": type(self._kernels).__name__,
                **{_NAMES.get(name, name): value for name, value in self.settings().items()},
            }
        )
        self.prepare()

    def prepare(self) -> None:
        """What there is to do when the tables are there."""

    def run_round(self, epoch: int, pos: int) -> tuple[int, npt.NDArray[np.float64]]:
        """Train this process's part of the round that begins at ``pos`` of the epoch.

        Returns:
            where the round ends, a border of blocks; and loss, pairs and scores of this process's part.
        """
        raise NotImplementedError

    def settle(self, everything: bool) -> None:
        """Make the tables one again at the end of a round, or at least the part that is due."""

    def share_state(self, found: bool) -> bool:
        """Give all processes the first one's state; whether it had ``found`` a checkpoint."""
        raise NotImplementedError

    def shared_folder(self, path: Path, own: Folder | None) -> SharedFolder:
        """What stands for the run folder in this process."""
        return SharedFolder(self, path, own)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.group.rank == 0

    def listen(self, stop: threading.Event) -> threading.Event:
        """Ctrl-C in any process ends the round in all: the event that is set when that is agreed."""
        self._asked = stop
        return self._agreed

    @contextlib.contextmanager
    def folder(self, run: str | os.PathLike[str], resume: bool) -> Iterator[SharedFolder]:
        """The run folder, which the first process alone opens."""
        path = Path(run)
        if not self.writes:
            self._folder = self.shared_folder(path, None)
            yield self._folder
            return
        with super().folder(run, resume) as own:
            self._folder = self.shared_folder(path, own)
            yield self._folder

    def run(self, stop: threading.Event) -> bool:
        """Train the next round, this process its part of it; whether it ended an epoch.

        Raises:
            Diverged: a score of any process was not finite.
            PeerFailed: another process has ended.
        """
        import torch

        state = self.state
        self.begin()
        epoch, pos = divmod(state.place, len(self.corpus))
        end, stats = self.run_round(epoch, pos)
        told = np.zeros(5)  # loss, pairs, scores; who wants to stop, whether it is time to save
        told[:3] = stats
        told[3] = self._asked is not None and self._asked.is_set()
        told[4] = self._folder is not None and self._folder.is_time(state)
        told = self.group.sum(torch.from_numpy(told)).numpy()
        self.settle(end == len(self.corpus) or bool(told[3:].any()))
        state.place += end - pos
        self.account(told[:3])
        if told[3]:
            self._agreed.set()
        if self._folder is not None:
            self._folder.agreed = bool(told[4])
        return self.end_epoch()


class Replicas(Team):
    """One of several processes that each have the whole tables; see the top of this module."""

    def start_state(self) -> State:
        rows, dim = len(self.corpus.vocab), self.config.dim
        share = all(self.group.gather(can_share(self._kernels, self.config.deterministic)))
        self._copies = deal(self.group.launchers, self.group.rank, share)
        tables = shared_tables(self.group, self._copies, rows, dim) if self._copies.sharers > 1 else None
        if tables is None:
            self._copies = deal(self.group.launchers, self.group.rank, False)
            return super().start_state()
        if self._copies.leads:
            own = super().start_state()
            tables[0][:] = own.inputs
            if self._start is not None:
                tables[1][:] = own.outputs
        return State(*tables)

    def prepare(self) -> None:
        self._exchanges = 0
        self._trained = 0.0  # tokens a copy, since the last exchange
        self._exchange: Exchange | None = None
        copies, threads = self._copies, self._threads * self._copies.sharers
        if copies.number == 1:
            self._round_tokens, self._run_tokens = TOGETHER * threads, TAKEN * self._threads
            return
        self._run_tokens = run_tokens(len(self.corpus), copies.number, threads) // copies.sharers
        self._round_tokens = self._run_tokens * self.group.size * ROUND
        self._leaders = leaders_of(self.group, copies)
        if copies.leads:
            counts, state = self.counts, self.state
            order = None if (np.diff(counts) <= 0).all() else np.argsort(-counts, kind="stable")
            tables = torch_tables(state.inputs, state.outputs)
            met = meetings(counts, self.objective)
            self._exchange = Exchange(tables, self.config.dim, met, order, copies.number)

    def compile(self) -> None:
        super().compile()
        if self._exchange is not None:
            # What torch imports when a function of it is first used takes longer than many exchanges.
            tables = torch_tables(zeros(2, 16), zeros(2, 16))
            met = meetings(np.ones(2, np.int64), self.objective)
            Exchange(tables, 16, met, None, self._copies.number).exchange(self._leaders, 2, 0, 0.0)

    def run_round(self, epoch: int, pos: int) -> tuple[int, npt.NDArray[np.float64]]:
        corpus, size, stats = self.corpus, self.group.size, np.zeros(3)
        self._gather_sharers()  # the one that writes may have been reading the tables
        first = int(np.searchsorted(corpus.block_starts, pos))
        last = int(np.searchsorted(corpus.block_starts, pos + self._round_tokens, "right")) - 1
        end = int(corpus.block_starts[max(first + 1, last)])
        if self._copies.number == 1:
            borders = cut(corpus.sentence_starts, pos, end, max(1, round((end - pos) / self._run_tokens)))
            for run in self.group.deal(len(borders) - 1):
                stats += self._train_run(epoch, borders[run], borders[run + 1])
            return end, stats
        turns = max(1, round((end - pos) / (self._run_tokens * size)))
        borders = cut(corpus.sentence_starts, pos, end, turns * size)
        for turn in range(turns):
            own = turn * size + self.group.rank
            stats += self._train_run(epoch, borders[own], borders[own + 1])
            self._trained = (borders[(turn + 1) * size] - borders[turn * size]) / self._copies.number
            if turn < turns - 1:
                self._gather_sharers()
                self.settle(False)
        return end, stats

    def _train_run(self, epoch: int, begin: int, until: int) -> npt.NDArray[np.float64]:
        if until == begin:
            return np.zeros(3)
        parts = np.unique(cut(self.corpus.sentence_starts, begin, until, self._threads))
        return self.train(epoch, parts, _NEVER)[0]

    def _gather_sharers(self) -> None:
        """Until all are here, where a table may be another's."""
        if self._copies.sharers > 1:
            self.group.wait()

    def settle(self, everything: bool) -> None:
        self._exchanges += 1
        if self._exchange is not None:
            rows = len(self.state.inputs)
            kernels.fetch(self._kernels)
            due = rows if everything else rows_due(self._exchanges, rows)
            self._exchange.exchange(self._leaders, due, self._trained, self.rate())
            kernels.forget(self._kernels)
        if self._copies.number > 1:
            self._gather_sharers()

    def share_state(self, found: bool) -> bool:
        import torch

        state = self.state
        facts = self.group.gather([found, state.place, state.losses, state.epoch_loss, state.epoch_pairs])[0]
        if not facts[0]:
            return False
        _, state.place, state.losses, state.epoch_loss, state.epoch_pairs = facts
        if self._exchange is not None:
            for table in (state.inputs, state.outputs):
                self._leaders.broadcast(torch.from_numpy(table))
            self._exchange.restart()
        return True

    @property
    def sharers(self) -> int:
        return self._copies.sharers

    def facts(self) -> dict[str, Any]:
        words = max(1, self.state.place - (self._began_place or 0)) / self._copies.number
        sent = 0.0 if self._exchange is None else self._exchange.sent
        return {
            "ranks": self.group.size,
            "copies": self._copies.number,
            "bytes_exchanged_per_word": round(sent / words, 1),
        }


def torch_tables(inputs: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Both tables as tensors of the same memory."""
    import torch

    return torch.from_numpy(inputs), torch.from_numpy(outputs)


_NEVER = threading.Event()
"""A stop that nobody asks for: a run is not left before its end, since all wait for each other."""

_NAMES = {"corpus": "the encoded text", "init": "the vectors to start from"}


class SharedFolder:
    """A run folder as the loop uses it, of which only the first process has more than the path."""

    def __init__(self, trainer: Team, path: Path, own: Folder | None) -> None:
        self.path, self._trainer, self._own = path, trainer, own
        self.agreed = False  # that it is time to save

    def load(self, state: State) -> bool:
        """Fill the state of all processes from the first one's last checkpoint; false if there is none."""
        return self._trainer.share_state(self._own is not None and self._own.load(state))

    def is_time(self, state: State) -> bool:
        """Whether the first process finds it time to save; false in the others."""
        return self._own is not None and self._own.due(state)

    def due(self, state: State) -> bool:
        """Whether all save now."""
        return self.agreed

    def save(self, state: State) -> Path:
        """Write a checkpoint, in the first process."""
        return self.path if self._own is None else self._own.save(state)
