"""Quality of replicated training by the number of ranks, simulated: every rank is a thread of one process.

    python bench/distributed_simulated.py --ranks 1 2 4 16 64
    python bench/distributed_simulated.py --ranks 4 --combine damped sum mean

What runs is firth's own trainer; only the sums over ranks are taken in memory. So the vectors are those of
as many processes with one thread each, and time says nothing. Combinations of what the ranks changed:
``damped`` is firth's (``firth.training.exchange``), ``sum`` adds the differences, ``mean`` averages each row
over the ranks that changed it. Printed are the scores of ``bench/quality.py``, and the bytes that a rank
sends a word, by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

import common
import firth
from firth.training import distributed
from firth.training.exchange import Exchange

SCORES = ("ws353", "simlex", "analogies")


class Threads:
    """What ``Replicas`` asks of a group, among threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._given: list[Any] = [None] * size

    def member(self, rank: int) -> Member:
        return Member(self, rank)

    def all(self, rank: int, value: Any) -> list[Any]:
        self._given[rank] = value
        self._barrier.wait()
        return self._given

    def wait(self) -> None:
        self._barrier.wait()


class Member:
    """One rank of ``Threads``."""

    def __init__(self, threads: Threads, rank: int) -> None:
        self.rank, self.size, self._threads = rank, threads.size, threads
        self.launchers = [str(rank) for rank in range(threads.size)]  # each has a machine of its own

    def gather(self, value: Any) -> list[Any]:
        given = list(self._threads.all(self.rank, value))
        self._threads.wait()
        return given

    def sum(self, tensor: Any) -> Any:
        given = self._threads.all(self.rank, tensor)
        if self.rank == 0:
            for other in given[1:]:
                given[0] += other
        self._threads.wait()
        if self.rank:
            tensor.copy_(given[0])
        self._threads.wait()
        return tensor

    def check_alike(self, facts: Any) -> None:
        """They are."""


class Sum(Exchange):
    """Differences are added as they are."""

    fused = False

    def combined(self, which: int, begin: int, end: int, total: Any) -> Any:
        return total


class Mean(Exchange):
    """A row becomes the mean over the ranks that changed it."""

    fused = False

    def exchange(self, group: Any, rows: int, words: float, rate: float) -> None:
        self._group = group
        super().exchange(group, rows, words, rate)

    def collect(self, which: int, begin: int, end: int) -> Any:
        moved = super().collect(which, begin, end)
        self._changed = self._group.sum((moved != 0).any(dim=1).float())
        return moved

    def combined(self, which: int, begin: int, end: int, total: Any) -> Any:
        return total / self._changed.clamp(min=1)[:, None]


COMBINATIONS: dict[str, type[Exchange]] = {"damped": Exchange, "sum": Sum, "mean": Mean}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="enwiki10M", help="a text of the data folder")
    parser.add_argument("--words", type=int, help="only the first so many words of it")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 16, 64])
    parser.add_argument("--combine", nargs="+", default=["damped"], choices=COMBINATIONS)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    settings = parser.parse_args()

    corpus = firth.Corpus.encode(common.lines_file(settings.text, settings.words), threads=1)
    print(f"{common.machine()}; {settings.text}, dim {settings.dim}, {settings.epochs} epochs")
    for combine in settings.combine:
        for ranks in settings.ranks:
            for seed in settings.seeds:
                _show(_run(corpus, ranks, combine, seed, settings), settings.json)


def _run(
    corpus: firth.Corpus, ranks: int, combine: str, seed: int, settings: argparse.Namespace
) -> dict[str, Any]:
    threads, results = Threads(ranks), [None] * ranks
    distributed.Exchange = COMBINATIONS[combine]

    def work(rank: int) -> None:
        group: Any = threads.member(rank) if ranks > 1 else None
        results[rank] = firth.train(
            corpus, dim=settings.dim, epochs=settings.epochs, threads=1, seed=seed, group=group, device="cpu"
        )

    try:
        started = [threading.Thread(target=work, args=(rank,)) for rank in range(1, ranks)]
        for one in started:
            one.start()
        work(0)
        for one in started:
            one.join()
    except firth.errors.Diverged as error:
        return {"ranks": ranks, "combine": combine, "seed": seed, "failed": str(error)}
    vectors: Any = results[0]
    return {
        "ranks": ranks,
        "combine": combine,
        "seed": seed,
        **_scores(vectors),
        "loss": vectors.metadata["loss"][-1],
        "bytes_a_word": vectors.metadata.get("bytes_exchanged_per_word", 0.0),
    }


def _scores(vectors: firth.Vectors) -> dict[str, float]:
    from firth.evaluate import analogies, word_pairs

    folder = common.data_folder() / "eval"
    return {
        "ws353": word_pairs(vectors, folder / "EN-WS-353-ALL.txt").spearman,
        "simlex": word_pairs(vectors, folder / "EN-SIMLEX-999.txt").spearman,
        "analogies": analogies(vectors, folder / "questions-words.txt", restrict=30_000).accuracy,
    }


def _show(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    head = f"{row['ranks']:>3} ranks  {row['combine']:<7} seed {row['seed']}"
    if "failed" in row:
        print(f"{head}  {row['failed']}", flush=True)
        return
    scores = "  ".join(f"{name} {row[name]:.4f}" for name in SCORES)
    print(f"{head}  {scores}  loss {row['loss']:.4f}  {row['bytes_a_word']:.0f} bytes a word", flush=True)


if __name__ == "__main__":
    main()
