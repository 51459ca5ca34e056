"""One skip-gram run of firth, measured from inside; started by bench/speed.py.

Prints the same line of JSON as bench/rivals/gensim_run.py, and ``kept_share``: the share of the words
that subsampling keeps. Timed is the loop over the text: gensim makes its tables in
``build_vocab()``, firth in ``train()`` before the loop begins.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable

import numpy as np

import firth
import firth.training
from firth.training.callbacks import Moment


class Loop(firth.training.Callback):
    """CPU and wall seconds of the loop, from its begin to the end of its last epoch."""

    def on_begin(self, moment: Moment) -> None:
        self.cpu_began, self.wall_began = time.process_time(), time.perf_counter()

    def on_epoch_end(self, moment: Moment, vectors: Callable[[], firth.Vectors]) -> None:
        self.cpu_s = time.process_time() - self.cpu_began
        self.wall_s = time.perf_counter() - self.wall_began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="a text file")
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--sample", type=float, default=1e-3)
    parser.add_argument("--min-count", type=int, default=5)
    settings = parser.parse_args()

    objective = firth.SkipGram(window=settings.window, negatives=settings.negatives, sample=settings.sample)
    with tempfile.TemporaryDirectory() as folder:
        # Kernels are compiled on first use and kept on disk: not what is measured here.
        warm = firth.Corpus.encode([["a", "b", "c", "d"]] * 100, min_count=1, cache=folder)
        firth.train(warm, objective, dim=settings.dim, epochs=1, threads=settings.threads)

        began = time.process_time()
        corpus = firth.Corpus.encode(
            settings.text, min_count=settings.min_count, threads=settings.threads, cache=folder
        )
        read_cpu_s, loop = time.process_time() - began, Loop()
        firth.train(
            corpus,
            objective,
            dim=settings.dim,
            epochs=settings.epochs,
            threads=settings.threads,
            seed=settings.seed,
            callbacks=[loop],
        )
    share = corpus.vocab.counts / corpus.vocab.counts.sum()
    kept = np.minimum(1.0, np.sqrt(settings.sample / share) + settings.sample / share)
    print(
        json.dumps(
            {
                "tool": f"firth {firth.__version__}",
                "words": len(corpus) * settings.epochs,
                "train_cpu_s": loop.cpu_s,
                "train_wall_s": loop.wall_s,
                "read_cpu_s": read_cpu_s,
                "kept_share": float((kept * share).sum()),
            }
        )
    )


if __name__ == "__main__":
    main()
