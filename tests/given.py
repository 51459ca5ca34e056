"""Vectors that somebody else may have made, and a text to train on from them."""

import numpy as np

import firth
from planted import clusters

DIM = 16


def lines(seed=0, count=400):
    """Lines whose words come from one planted cluster each."""
    corpus = clusters(count, seed=seed)
    words = corpus.vocab.decode(corpus.ids)
    return [" ".join(words[start : start + 4]) for start in range(0, len(words), 4)]


def made(keys, dim=DIM, seed=1, **more):
    """Vectors as somebody else may have made them."""
    rows = np.random.default_rng(seed).normal(0, 0.3, (len(keys), dim)).astype(np.float32)
    return firth.Vectors(keys, rows, **more)


def encode(text, **settings):
    return firth.Corpus.encode(text, **{"min_count": 1, **settings})


def assert_equal(vectors, expected):
    assert list(vectors) == list(expected)
    assert np.array_equal(vectors.vectors, expected.vectors)
    if expected.context is not None:
        assert np.array_equal(vectors.context.vectors, expected.context.vectors)
