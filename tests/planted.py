"""Corpora whose structure is known, and how much of it a table of vectors has."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import firth
from firth.encoding import block_starts

CLUSTERS, SIZE = 30, 8
SIDE, FILLERS = 8, 20


class Score(NamedTuple):
    """How well vectors tell planted groups apart."""

    precision: float  # of the nearest neighbours, as many as a group has others
    margin: float  # mean cosine within groups minus that between them

    @property
    def recovered(self) -> bool:
        # Sound training reaches 1.0 and .45 to .6; the nearest broken variant tried .9 and .1.
        return self.precision >= 0.95 and self.margin >= 0.4


def corpus_of(ids: Any, sentence_starts: Any, block: int = 2000) -> firth.Corpus:
    """A corpus with counts, in small blocks."""
    ids = np.asarray(ids, np.int32)
    counts = np.bincount(ids)
    vocab = firth.Vocab([f"w{row}" for row in range(len(counts))], counts)
    corpus = firth.Corpus.from_ids(ids, sentence_starts, vocab)
    corpus.block_starts = block_starts(corpus.sentence_starts, block)
    return corpus


def even_sentences(count: int, length: int) -> Any:
    """Sentence starts of ``count`` ids in sentences of ``length``, the last one maybe shorter."""
    return np.append(np.arange(0, count, length), count)


def clusters(n_sentences: int = 8000, length: int = 4, seed: int = 0) -> firth.Corpus:
    """Sentences whose words come from one cluster each; word w is in cluster w mod CLUSTERS."""
    rng = np.random.default_rng(seed)
    words = CLUSTERS * rng.integers(0, SIZE, (n_sentences, length))
    ids = (np.arange(n_sentences)[:, None] % CLUSTERS + words).reshape(-1)
    return corpus_of(ids, even_sentences(len(ids), length))


def learn(corpus: firth.Corpus, objective: firth.SkipGram | None = None, **settings: Any) -> firth.Vectors:
    """``firth.train`` with small tables and one thread."""
    return firth.train(corpus, objective, **{"dim": 32, "epochs": 10, "threads": 1, **settings})


def cluster_score(vectors: firth.Vectors) -> Score:
    return score(vectors.vectors, np.arange(CLUSTERS * SIZE) % CLUSTERS)


def grid(window: int = 3, n_sentences: int = 6000, mirrored: bool = False) -> firth.Corpus:
    """Words with two labels, of which only one lies within the window.

    Sentence i is ``x f ... f y z z'``: x of the grid with the labels (c, d), ``window - 1`` fillers, y
    that tells c, at the distance ``window`` from x, then z that tells d, one step too far, and z' that
    tells the d of the next sentence, one step too early for it. A window that is too wide, too narrow
    or crosses sentences sees d in place of c, or neither. Mirrored, the contexts stand on the left.
    """
    rng = np.random.default_rng(0)
    c, d = rng.integers(0, SIDE, (2, n_sentences))
    x, y, z = c * SIDE + d, SIDE**2 + c, SIDE**2 + SIDE + d
    fillers = rng.integers(SIDE**2 + 2 * SIDE, SIDE**2 + 2 * SIDE + FILLERS, (n_sentences, window - 1))
    ids = np.column_stack([x, fillers, y, z, np.roll(z, -1)]).reshape(-1)
    return corpus_of(ids[::-1] if mirrored else ids, even_sentences(len(ids), window + 3))


def grid_score(vectors: firth.Vectors) -> Score:
    return score(vectors.vectors[: SIDE**2], np.arange(SIDE**2) // SIDE)


def score(matrix: Any, labels: Sequence[int] | Any) -> Score:
    rows = np.asarray(matrix, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosines = rows @ rows.T
    same = labels[:, None] == labels[None, :]
    itself = np.eye(len(rows), dtype=bool)
    others = int(same.sum(axis=1).min()) - 1
    near = np.argsort(np.where(itself, 2.0, -cosines), axis=1)[:, :others]
    precision = float(np.mean(labels[near] == labels[:, None]))
    return Score(precision, float(cosines[same & ~itself].mean() - cosines[~same].mean()))
