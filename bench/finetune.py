"""Vectors of others tuned on a text: against themselves, and against training from nothing.

    python bench/finetune.py

GloVe (6 B tokens, 50 numbers, the 50,000 most frequent words) is tuned on enwiki10M (1.7 M words) by
``firth.train(init=)``, at several learning rates. Printed are WS-353 and SimLex-999 (Spearman) and analogies
(3CosAdd among the first 30,000 rows), first over all words that a table has, then over the words that
every table has, so that the last three columns compare. Figures of trained tables are means over the seeds.

Then the choices that ``firth.training.initial`` makes, each against others: the start of the context
vectors, and of the words that are new. For the latter half of the words of both lists of pairs are taken
out of GloVe and learned from the text; scored are the pairs of which one word was taken out.

One thread, so that a run can be repeated to the bit. No figure is printed if a row that must stay moved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

import common
import firth
from firth.evaluate import analogies, read_pairs, score_pairs

GLOVE = "pretrained/glove.6B.50d.first50k.txt.xz"
PAIRS = {"ws353": "EN-WS-353-ALL.txt", "simlex": "EN-SIMLEX-999.txt"}
SCORES = (*PAIRS, "analogies")
COLUMNS = (*SCORES, *(f"{name}, common" for name in SCORES))
Scores = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="enwiki10M", help="a text of the data folder")
    parser.add_argument("--words", type=int, help="only the first so many words of it")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, nargs="+", default=[0.005, 0.01, 0.025, 0.05])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--restrict", type=int, default=30_000, help="analogies among so many rows")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    settings = parser.parse_args()

    bench = Bench(settings)
    report = {
        "machine": common.machine(),
        "text": bench.text.name,
        "epochs": settings.epochs,
        "seeds": settings.seeds,
        "tuned": bench.tuned(),
        "context_starts": bench.context_starts(),
        "new_words": bench.new_words(),
    }
    print(json.dumps(report, indent=1)) if settings.json else _print(report)


class Bench:
    """GloVe, the text under its words and alone, and what is measured of them."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings = settings
        self.text = common.lines_file(settings.text, settings.words)
        self.glove = firth.Vectors.load(common.data_folder() / GLOVE)
        self.corpus = firth.Corpus.encode(self.text, known=self.glove)
        self.alone = firth.Corpus.encode(self.text)
        self.common = [word for word in self.glove if word in self.alone.vocab]

    def train(self, corpus: firth.Corpus, **settings: Any) -> firth.Vectors:
        settings = {"epochs": self.settings.epochs, "threads": 1, **settings}
        vectors = firth.train(corpus, **settings)
        init = settings.get("init")
        if init is not None:
            gate(vectors, init, corpus, settings.get("freeze") == "known")
        return vectors

    def tuned(self) -> list[dict[str, Any]]:
        """GloVe alone, a training from nothing, and GloVe tuned at each learning rate."""
        dim = self.glove.vector_size
        rows = [{"name": "GloVe", **self.scores(self.glove)}]
        rows.append(self._mean("from nothing", lambda seed: self.train(self.alone, dim=dim, seed=seed)))
        for lr in self.settings.lr:
            rows.append(
                self._mean(
                    f"tuned, lr {lr:g}",
                    lambda seed, lr=lr: self.train(self.corpus, init=self.glove, lr=lr, seed=seed),
                )
            )
        return rows

    def context_starts(self) -> list[dict[str, Any]]:
        """Tables of context vectors to begin with, for a file that holds none; first seed."""
        matrix, keys = self.glove.vectors, list(self.glove)
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        fitted = self.train(self.corpus, init=self.glove, freeze="known", epochs=1, keep_context=True)
        assert fitted.context is not None
        starts = {
            "zeros": None,
            "a copy of the words": matrix,
            "the copy at length 1": matrix / lengths,
            "fitted first, words frozen": fitted.context.vectors[: len(keys)],
        }
        rows = []
        for lr in (0.01, 0.025):
            for name, context in starts.items():
                init = self.glove if context is None else firth.Vectors(keys, matrix, context=context)
                vectors = self.train(self.corpus, init=init, lr=lr, seed=self.settings.seeds[0])
                rows.append({"name": f"{name}, lr {lr:g}", **self.scores(vectors)})
        return rows

    def new_words(self) -> list[dict[str, Any]]:
        """Words that are taken out of GloVe and learned from the text; first seed."""
        pairs = [pair for name in PAIRS.values() for pair in read_pairs(_eval(name))]
        known = set(self.common)
        candidates = sorted({word.lower() for pair in pairs for word in (pair[0], pair[1])} & known)
        chance = np.random.default_rng(1)
        out = set(chance.permutation(candidates)[::2].tolist())
        asked = {
            name: [
                pair
                for pair in read_pairs(_eval(file))
                if (pair[0].lower() in out) != (pair[1].lower() in out)
                and {pair[0].lower(), pair[1].lower()} <= known
            ]
            for name, file in PAIRS.items()
        }
        rest = self.glove.subset([word for word in self.glove if word not in out])
        corpus = firth.Corpus.encode(self.text, known=rest)
        new = corpus.vocab.tokens[len(rest) :]
        mean, spread = rest.vectors.mean(axis=0), rest.vectors.std(axis=0)
        draws = np.random.default_rng(2).normal(size=(len(new), rest.vector_size))
        starts = {
            "random, as large as GloVe's": mean + spread * draws,
            "the mean of GloVe's": np.tile(mean, (len(new), 1)),
        }

        def row(name: str, vectors: firth.Vectors) -> dict[str, Any]:
            scores = {
                kind: score_pairs(vectors, _eval(PAIRS[kind]), chosen).spearman
                for kind, chosen in asked.items()
            }
            return {"name": name, **scores}

        seed = self.settings.seeds[0]
        rows = [row("GloVe's own rows", self.glove)]
        rows.append(row("from nothing", self.train(self.alone, dim=rest.vector_size, seed=seed)))
        for lr in (0.01, 0.025, 0.05):
            for freeze in ("none", "known"):
                vectors = self.train(corpus, init=rest, freeze=freeze, lr=lr, seed=seed)
                rows.append(row(f"freeze {freeze}, lr {lr:g}, small", vectors))
            for name, start in starts.items():
                both = firth.Vectors([*rest, *new], np.vstack([rest.vectors, start]))
                vectors = self.train(corpus, init=both, lr=lr, seed=seed)
                rows.append(row(f"freeze none, lr {lr:g}, {name}", vectors))
        longer = 3 * self.settings.epochs
        vectors = self.train(corpus, init=rest, freeze="known", lr=0.05, epochs=longer, seed=seed)
        rows.append(row(f"freeze known, lr 0.05, small, {longer} epochs", vectors))
        counts = {name: len(chosen) for name, chosen in asked.items()}
        return [{"name": "words taken out, pairs", "words": len(out), **counts}, *rows]

    def scores(self, vectors: firth.Vectors) -> Scores:
        """The columns for one table."""
        shared = vectors.subset(self.common)
        found = _score(vectors, self.settings.restrict)
        same = _score(shared, self.settings.restrict)
        return {**found, **{f"{name}, common": value for name, value in same.items()}}

    def _mean(self, name: str, train: Any) -> dict[str, Any]:
        print(name, file=sys.stderr)
        began, runs = time.process_time(), []
        for seed in self.settings.seeds:
            runs.append(self.scores(train(seed)))
        seconds = (time.process_time() - began) / len(runs)
        means = {column: statistics.mean(run[column] for run in runs) for column in COLUMNS}
        spans = {
            column: [min(run[column] for run in runs), max(run[column] for run in runs)] for column in COLUMNS
        }
        return {"name": name, **means, "spans": spans, "cpu_s_with_scoring": seconds}


def gate(vectors: firth.Vectors, init: firth.Vectors, corpus: firth.Corpus, frozen: bool) -> None:
    """Stop the bench where a row that must stay has moved: of words that the text lacks, or all if frozen."""
    rows = np.arange(len(init))
    if not frozen:
        rows = rows[corpus.vocab.counts[: len(init)] == 0]
    if list(vectors)[: len(init)] != list(init) or not np.array_equal(
        vectors.vectors[rows], init.vectors[rows]
    ):
        sys.exit("bench: a row that must stay has moved; no figure is printed")


def _eval(name: str) -> Any:
    return common.data_folder() / "eval" / name


def _score(vectors: firth.Vectors, restrict: int) -> Scores:
    scores = {
        name: score_pairs(vectors, _eval(file), read_pairs(_eval(file))).spearman
        for name, file in PAIRS.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores["analogies"] = analogies(vectors, _eval("questions-words.txt"), restrict=restrict).accuracy
    return scores


def _print(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['text']}, {report['epochs']} epochs, seeds {report['seeds']}")
    _table(report["tuned"], COLUMNS)
    print("\ncontext vectors start as")
    _table(report["context_starts"], COLUMNS)
    words, *rows = report["new_words"]
    print(
        f"\n{words['words']} words taken out; {words['ws353']} pairs of WS-353, {words['simlex']} of SimLex"
    )
    _table(rows, tuple(PAIRS))


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    width = max(len(row["name"]) for row in rows)
    print(f"{'':{width}}", *(f"{column:>{max(8, len(column))}}" for column in columns))
    for row in rows:
        print(f"{row['name']:{width}}", *(f"{row[column]:>{max(8, len(column))}.3f}" for column in columns))


if __name__ == "__main__":
    main()
