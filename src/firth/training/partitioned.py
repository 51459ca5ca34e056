"""Training tables that no process holds whole: rows are split, and parts of one table go round.

Row i stands in part i mod P, so that each of P ranks has as many frequent words as the others. Rank r keeps
part r of the input table. The text is taken stretch by stretch, every rank the same one; for a stretch, P
episodes: in episode e rank r trains the pairs that have their context in its part and their target (a centre
or a negative) in part r + e of the output table, then hands that part to the rank before it. After P
episodes every pair was trained once and the parts are at home. No two ranks ever hold the same row, so there
is nothing to average; the draws are those of one process, only the order within a stretch differs.

Why rows and not columns, with V rows of D numbers and a stretch of S tokens: a rank sends V D 4 bytes a
stretch, V D 4 P / S for each of the S / P words that are its share, which a longer stretch makes as small as
one likes (``BYTES_A_WORD``). Had each
rank D / P columns of all rows, every score would be a sum over ranks: 35 scores a kept word, some 280 bytes
in a ring whatever D and P, and a group of five words could not begin before the sums of the one before had
come, one latency of the network for each. Reckoned in ``docs/scale.md``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firth import kernels
from firth.corpus import Corpus
from firth.encoding import BLOCK
from firth.errors import Diverged, RunError, SettingError
from firth.files import storage_error
from firth.formats import safetensors_shards as shards
from firth.processes import Processes
from firth.progress import SILENT, Reporter
from firth.training.callbacks import Moment
from firth.training.checkpoint import RunFolder, State, read_state
from firth.training.config import TrainConfig
from firth.training.distributed import SharedFolder, Team, cut
from firth.training.loop import carry_out, check_corpus
from firth.training.objectives import SkipGram
from firth.training.sampling import initial_inputs, zeros
from firth.training.trainer import Folder
from firth.vectors import Vectors

BYTES_A_WORD = 64
"""What a rank sends for each word of its share at most, where the text is long enough for such stretches."""

STRETCHES = 25
"""Stretches an epoch at least."""

SAVED = 1 << 20
"""Numbers that come together at a time where tables are written."""


def stretch_tokens(corpus_tokens: int, rows: int, dim: int, size: int) -> int:
    """Tokens between two turns of the parts among ``size`` ranks."""
    wanted = max(rows * dim * 4 * size // BYTES_A_WORD, BLOCK)
    return max(1, min(wanted, corpus_tokens // STRETCHES))


class Partitions(Team):
    """A trainer that holds one part of each table; made and used collectively.

    Its state's tables are the parts: rows ``rank``, ``rank + size``, ... of the whole.

    Raises:
        SettingError: vectors to start from, fresh negatives for each pair, or a card: these train
            whole tables only.
    """

    def start_state(self) -> State:
        if self._start is not None:
            raise SettingError(
                "train(): partitioned tables do not start from other vectors; leave out init (--init), or "
                "train replicated"
            )
        rows, config, part = len(self.corpus.vocab), self.config, (self.group.rank, self.group.size)
        inputs = initial_inputs(rows, config.dim, self.asked.init, config.seed, *part)
        self._spare = zeros(len(inputs), config.dim)
        return State(inputs=inputs, outputs=zeros(len(inputs), config.dim))

    def prepare(self) -> None:
        if self.objective.kernel != "skipgram_shared":
            raise SettingError(
                "train(): partitioned tables need negatives that are shared by a group, and share is 0 "
                "(asked, or because so few words need it); train replicated"
            )
        from firth.kernels import cpu

        if self._kernels is not cpu:
            raise SettingError(
                "train(): partitioned tables train on the CPU only in this version; use --device cpu "
                "(device='cpu')"
            )
        self._stretch = stretch_tokens(
            len(self.corpus), len(self.corpus.vocab), self.config.dim, self.group.size
        )
        self._sent = 0

    def compile(self) -> None:
        self._bucket(0, np.zeros(2, np.int64), 0)

    def run_round(self, epoch: int, pos: int) -> tuple[int, npt.NDArray[np.float64]]:
        import torch

        corpus, state, size = self.corpus, self.state, self.group.size
        last = np.searchsorted(corpus.block_starts, pos + self._stretch, "right") - 1
        first = int(np.searchsorted(corpus.block_starts, pos))
        end = int(corpus.block_starts[max(first + 1, int(last))])
        borders = np.unique(cut(corpus.sentence_starts, pos, end, 4 * self._threads))
        stats = np.zeros(3)
        for episode in range(size):
            stats += self._bucket(epoch, borders, (self.group.rank + episode) % size)
            self.group.hand_on(torch.from_numpy(state.outputs), torch.from_numpy(self._spare))
            state.outputs, self._spare = self._spare, state.outputs
            self._sent += state.outputs.nbytes
        return end, stats

    def _bucket(self, epoch: int, borders: npt.NDArray[np.int64], part: int) -> npt.NDArray[np.float64]:
        """Train the pairs of one bucket, the threads on stretches of the text in turn."""
        from firth.kernels.cpu import skipgram_shared

        step, draws = self.step(epoch), self.draws(epoch)
        ids, starts = _read_only(self.corpus.ids), _read_only(self.corpus.sentence_starts)
        stats = np.zeros((len(borders) - 1, 3))

        def work(row: int) -> None:
            skipgram_shared(
                self.state.inputs,
                self.state.outputs,
                ids,
                starts,
                borders[row],
                borders[row + 1],
                step,
                draws,
                stats[row],
                0,
                0,
                self.group.size,
                self.group.rank,
                part,
            )

        if self._threads == 1:
            for row in range(len(stats)):
                work(row)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(work, range(len(stats))))
        total: npt.NDArray[np.float64] = stats.sum(axis=0)
        return total

    def check_tables(self) -> None:
        for name in ("inputs", "outputs"):
            bad = np.flatnonzero(~np.isfinite(getattr(self.state, name)).all(axis=1))
            if len(bad):
                row = int(bad[0]) * self.group.size + self.group.rank
                word = self.corpus.vocab.tokens[row]
                raise Diverged(self._diverged(f"row {row} ({word!r}) of the {name} is not finite"))

    def shared_folder(self, path: Path, own: Folder | None) -> SharedFolder:
        return PartsFolder(self, path, own)

    def facts(self) -> dict[str, Any]:
        words = max(1, self.state.place - (self._began_place or 0)) / self.group.size
        return {
            "ranks": self.group.size,
            "partitioned": True,
            "bytes_exchanged_per_word": round(self._sent / words, 1),
        }

    def pieces(self, table: npt.NDArray[np.float32], width: int) -> Iterator[npt.NDArray[np.float32]]:
        """The rows of this rank's share of a file, one behind the other; collective, to the end.

        Args:
            table: the part that is held here. width: numbers of a row that are wanted.

        Yields:
            (n, width); together rows ``bounds[rank]`` to ``bounds[rank + 1]`` of the whole table.
        """
        import torch

        group, rows = self.group, len(self.corpus.vocab)
        bounds = shards.bounds(rows, group.size)
        longest = bounds[1] - bounds[0]
        step = max(1, SAVED // width)
        for at in range(0, longest, step):
            spans = [(min(low + at, high), min(low + at + step, high)) for low, high in pairwise(bounds)]
            give = [torch.from_numpy(table[self._local(*span), :width].copy()) for span in spans]
            begin, end = spans[group.rank]
            parts = [len(range(begin + (rank - begin) % group.size, end, group.size)) for rank in _all(group)]
            take = [torch.empty(count, width) for count in parts]
            group.swap(give, take)
            piece = np.empty((end - begin, width), np.float32)
            for rank, rows_of in enumerate(take):
                piece[(rank - begin) % group.size :: group.size] = rows_of.numpy()
            yield piece

    def _local(self, begin: int, end: int) -> slice:
        """Where rows ``begin`` to ``end`` that are of this part stand in it."""
        rank, size = self.group.rank, self.group.size
        return slice(-((rank - begin) // size), -((rank - end) // size))

    def save(self, path: Path, keep_context: bool, moment: Moment) -> Path:
        """Write the tables over as many files as there are ranks, and the index; collective.

        Raises:
            StorageError: this rank cannot write. PeerFailed: another one cannot.
        """
        group, vocab, dim = self.group, self.corpus.vocab, self.config.dim
        rows, tables = len(vocab), shards.TABLES if keep_context else shards.TABLES[:1]
        bounds = shards.bounds(rows, group.size)
        own = bounds[group.rank + 1] - bounds[group.rank]
        for number, name in enumerate(tables):
            file = shards.shard_path(path, number * group.size + group.rank + 1, len(tables) * group.size)
            table = self.state.inputs if name == "vectors" else self.state.outputs
            first = number == 0 and group.rank == 0
            keys = Vectors(vocab.tokens, np.zeros((rows, 1), np.float32)).index_to_key if first else None
            counts = self._result_counts() if first else None
            shards.write_shard(file, name, group.rank + 1, (own, dim), self.pieces(table, dim), keys, counts)
        group.wait()
        index = shards.index_path(path)
        if self.writes:
            metadata = self.metadata(moment)
            shards.write_index(path, rows, dim, group.size, keep_context, True, metadata)
        group.wait()
        return index


class PartsFolder(SharedFolder):
    """A run folder that all ranks see: each reads its rows of a checkpoint and writes a share of it."""

    _trainer: Partitions

    def load(self, state: State) -> bool:
        trainer = self._trainer
        found = self._own.checkpoints()[-1:] if isinstance(self._own, RunFolder) else []
        last = trainer.group.gather([str(path) for path in found])[0]
        if not last:
            return False
        saved = read_state(Path(last[0]), "remove it to go on from the one before, or to start again")
        rank, size = trainer.group.rank, trainer.group.size
        for name in ("inputs", "outputs"):
            rows, table = getattr(saved, name), getattr(state, name)
            if rows.shape != (len(trainer.corpus.vocab), table.shape[1]):
                raise RunError(f"the checkpoint {last[0]} cannot be read ({name}.npy is {rows.shape})")
            own = rows[rank::size]
            table[: len(own)] = own
        for name in ("place", "losses", "epoch_loss", "epoch_pairs"):
            setattr(state, name, getattr(saved, name))
        return True

    def save(self, state: State) -> Path:
        if isinstance(self._own, RunFolder):
            return self._own.save(state, self._write)
        self._write(None, state)
        return self.path

    def _write(self, folder: Path | None, state: State) -> None:
        """Every rank its share of both tables, into the files that the first one makes."""
        trainer = self._trainer
        group, rows = trainer.group, len(trainer.corpus.vocab)
        begins = []
        for name in ("inputs", "outputs"):
            if folder is not None:
                shape = (rows, state.inputs.shape[1])
                with (folder / f"{name}.npy").open("wb") as file:
                    facts = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, facts)
                    begins.append(file.tell())
                    file.truncate(begins[-1] + 4 * shape[0] * shape[1])
        place, begins = group.gather([None if folder is None else str(folder), begins])[0]
        for name, begin in zip(("inputs", "outputs"), begins, strict=True):
            self._fill(Path(place) / f"{name}.npy", begin, getattr(state, name))
        group.wait()

    def _fill(self, path: Path, begin: int, table: npt.NDArray[np.float32]) -> None:
        trainer, width = self._trainer, table.shape[1]
        first = shards.bounds(len(trainer.corpus.vocab), trainer.group.size)[trainer.group.rank]
        try:
            with path.open("r+b") as file:
                file.seek(begin + 4 * first * width)
                for piece in trainer.pieces(table, width):
                    file.write(piece.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, path) from error


def train_partitioned(
    corpus: Corpus,
    output: str | os.PathLike[str],
    objective: SkipGram | None = None,
    *,
    group: Processes,
    dim: int = TrainConfig.dim,
    epochs: int = 5,
    lr: float | None = None,
    threads: int | None = None,
    seed: int = 1,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    keep_context: bool = False,
    progress: Reporter = SILENT,
    device: str = "cpu",
) -> Vectors:
    """``firth.train`` for tables larger than the memory of one process; collective.

    Args:
        output: the vectors are written to files beside it: for ``X.safetensors``
            ``X-00001-of-00004.safetensors`` and so on, and ``X.safetensors.index.json``.
        group: the processes, each of which holds a part of the rows. Others as for ``firth.train``; the run
            folder and the folder of ``output`` must be the same for all.

    Returns:
        Vectors, mapped from the files.

    Raises:
        SettingError: what partitioned tables cannot do, see ``Partitions``. Others as for ``firth.train``.
    """
    check_corpus(corpus)
    config = TrainConfig(dim=dim, epochs=epochs, lr=lr, threads=threads, seed=seed, device=device)
    objective = SkipGram() if objective is None else objective
    trainer = Partitions(group, corpus, objective, config, kernels.pick(device), None)
    moment = carry_out(trainer, run, resume, (), progress)
    return Vectors.load(trainer.save(Path(output), keep_context, moment))


def _all(group: Processes) -> Sequence[int]:
    return range(group.size)


def _read_only(array: Any) -> Any:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def check_partitioned(output: Path, form: str, scored: bool, started: bool, table_dtype: str) -> None:
    """Refuse what a call of the command line asks of partitioned tables and they cannot do.

    Args:
        output, form: the file, and the name of its format. scored: whether scores are asked after each epoch.
        started: whether there are vectors to start from. table_dtype: of the tables while they are trained.

    Raises:
        SettingError: names the option.
    """
    if form != "safetensors":
        raise SettingError(
            f"partitioned tables are written as sharded safetensors: -o {output} would be {form}; name it "
            ".safetensors"
        )
    if table_dtype != TrainConfig.table_dtype:
        raise SettingError(
            f"tables that are split train in {TrainConfig.table_dtype}: leave --table-dtype {table_dtype} out"
        )
    for asked, option in ((scored, "--pairs"), (started, "--init")):
        if asked:
            raise SettingError(
                f"{option} needs whole tables in one process; leave it out where they are split"
            )
