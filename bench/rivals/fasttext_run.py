"""One skip-gram run of fastText without subwords, measured from inside; started by bench/speed.py.

Runs under an interpreter that has fasttext. ``train_unsupervised`` reads, trains and returns in
one call, so the reading is measured by a call with no epoch and taken off. Prints the same
line of JSON as gensim_run.py.
"""

import argparse
import importlib.metadata
import json
import time

import fasttext


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="a text file")
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)  # taken and not used: its Python door has no seed
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--sample", type=float, default=1e-3)
    parser.add_argument("--min-count", type=int, default=5)
    parser.add_argument("--output", help="save the vectors here, in word2vec's text format")
    settings = parser.parse_args()

    def call(epochs: int) -> tuple[object, float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        model = fasttext.train_unsupervised(
            settings.text,
            model="skipgram",
            dim=settings.dim,
            ws=settings.window,
            neg=settings.negatives,
            t=settings.sample,
            minCount=settings.min_count,
            epoch=epochs,
            thread=settings.threads,
            lr=0.025,
            minn=0,
            maxn=0,
            verbose=0,
        )
        return model, time.process_time() - cpu, time.perf_counter() - wall

    # In this order: with fewer than ten threads fastText leaves most of its table as memory comes, and
    # memory that an earlier call gave back is not zero (it then stops with "Encountered NaN").
    model, cpu, wall = call(settings.epochs)
    _, read_cpu, read_wall = call(0)
    words, counts = model.get_words(include_freq=True)
    known = sum(int(count) for word, count in zip(words, counts, strict=True) if word != "</s>")
    if settings.output:
        with open(settings.output, "w", encoding="utf-8") as file:
            print(len(words), settings.dim, file=file)
            for word in words:
                print(word, *model.get_word_vector(word), file=file)
    print(
        json.dumps(
            {
                "tool": "fastText " + _version(),
                "words": known * settings.epochs,
                "train_cpu_s": cpu - read_cpu,
                "train_wall_s": wall - read_wall,
                "read_cpu_s": read_cpu,
            }
        )
    )


def _version() -> str:
    for name in ("fasttext-numpy2-wheel", "fasttext", "fasttext-wheel"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


if __name__ == "__main__":
    main()
