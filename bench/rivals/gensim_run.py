"""One skip-gram run of gensim, measured from inside; started by bench/speed.py and bench/quality.py.

Runs under an interpreter that has gensim (firth is not needed there). Reads the text through
``corpus_file``, gensim's fastest path, and prints one line of JSON:

    words           raw words of the vocabulary, times epochs
    train_cpu_s     CPU seconds of ``train()`` alone, all threads together
    train_wall_s    wall seconds of the same
    read_cpu_s      CPU seconds of ``build_vocab()``
"""

import argparse
import json
import time

import gensim
from gensim.models import Word2Vec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="a text file with lines of at most 10,000 words (gensim drops the rest)")
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--sample", type=float, default=1e-3)
    parser.add_argument("--min-count", type=int, default=5)
    parser.add_argument("--output", help="save the vectors here, in word2vec's binary format")
    settings = parser.parse_args()

    model = Word2Vec(
        sg=1,
        vector_size=settings.dim,
        window=settings.window,
        negative=settings.negatives,
        sample=settings.sample,
        min_count=settings.min_count,
        workers=settings.threads,
        seed=settings.seed,
    )
    began = time.process_time()
    model.build_vocab(corpus_file=settings.text)
    read = time.process_time()
    wall = time.perf_counter()
    effective, raw = model.train(
        corpus_file=settings.text,
        total_examples=model.corpus_count,
        total_words=model.corpus_total_words,
        epochs=settings.epochs,
    )
    trained = time.process_time()
    known = sum(model.wv.get_vecattr(key, "count") for key in model.wv.index_to_key)
    if settings.output:
        model.wv.save_word2vec_format(settings.output, binary=True)
    print(
        json.dumps(
            {
                "tool": f"gensim {gensim.__version__}",
                "words": int(known) * settings.epochs,
                "raw_words": int(raw),
                "effective_words": int(effective),
                "train_cpu_s": trained - read,
                "train_wall_s": time.perf_counter() - wall,
                "read_cpu_s": read - began,
            }
        )
    )


if __name__ == "__main__":
    main()
