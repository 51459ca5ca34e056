"""Vectors in torch's and torchtext's terms: ``from_vectors`` with a padding row, ``get_vecs_by_tokens``."""

from typing import Any

import numpy as np
import pytest
import torch

import firth
from firth.errors import SettingError
from firth.nn import Embedding, EmbeddingBag, QuantizedEmbedding
from firth.subwords import DenseRows, FastTextSubwords

WORDS = ["hey", "there", "Paris", "lyon"]


@pytest.fixture
def vectors() -> firth.Vectors:
    matrix = np.random.default_rng(0).normal(size=(4, 3))
    return firth.Vectors(WORDS, matrix, counts=[4, 3, 2, 1])


# -- torchtext's names


def test_one_token_and_a_list_of_tokens(vectors: firth.Vectors) -> None:
    one = vectors.get_vecs_by_tokens("lyon")
    many = vectors.get_vecs_by_tokens(["lyon", "nowhere", "hey"])
    assert one.dtype == many.dtype == torch.float32 and one.shape == (3,) and many.shape == (3, 3)
    np.testing.assert_array_equal(one, vectors["lyon"])
    np.testing.assert_array_equal(many[[0, 2]], vectors[["lyon", "hey"]])
    assert not many[1].any()
    assert vectors.get_vecs_by_tokens([]).shape == (0, 3)
    many.zero_()  # a tensor of its own: the vectors stay as they are
    one.zero_()
    assert vectors["lyon"].all()


def test_lower_case_is_the_second_try_only(vectors: firth.Vectors) -> None:
    rows = vectors.get_vecs_by_tokens(["LYON", "Paris", "PARIS", "Nowhere"], lower_case_backup=True)
    np.testing.assert_array_equal(rows[0], vectors["lyon"])
    np.testing.assert_array_equal(rows[1], vectors["Paris"])
    assert not rows[2].any() and not rows[3].any()  # "paris" and "nowhere" are not there
    assert not vectors.get_vecs_by_tokens("LYON").any()
    both = firth.Vectors(["paris", "Paris"], np.eye(2))
    assert both.get_vecs_by_tokens(["Paris", "PARIS"], lower_case_backup=True).tolist() == [[0, 1], [1, 0]]


def test_words_that_only_subwords_know(vectors: firth.Vectors) -> None:
    table = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    spelled = firth.Vectors(WORDS, vectors.vectors, subwords=FastTextSubwords(DenseRows(table), 2, 3))
    found = spelled.get_vecs_by_tokens(["HEY", "unseen", "", "hey"])
    np.testing.assert_array_equal(found[:2], spelled[["HEY", "unseen"]])
    assert not found[2].any()
    lowered = spelled.get_vecs_by_tokens(["HEY", "Unseen"], lower_case_backup=True)
    np.testing.assert_array_equal(lowered, spelled[["hey", "Unseen"]])


def test_what_is_no_token_is_refused(vectors: firth.Vectors) -> None:
    with pytest.raises(SettingError, match=r"get_vecs_by_tokens\(\): 3 is no token"):
        vectors.get_vecs_by_tokens(["hey", 3])  # type: ignore[list-item]


def test_stoi_itos_and_dim(vectors: firth.Vectors) -> None:
    assert dict(vectors.stoi) == {"hey": 0, "there": 1, "Paris": 2, "lyon": 3}
    assert vectors.itos == WORDS and vectors.itos[vectors.stoi["lyon"]] == "lyon"
    assert vectors.dim == vectors.vector_size == 3


# -- the row of padding


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag, QuantizedEmbedding])
def test_padding_first(kind: Any, vectors: firth.Vectors) -> None:
    layer = kind.from_vectors(vectors, padding=True, padding_idx=0)
    assert layer.vocab.tokens == ["<pad>", *WORDS] and layer.padding_idx == 0 and layer.num_embeddings == 5
    assert layer.vocab.counts.tolist() == [0, 4, 3, 2, 1]
    found = layer.vectors().vectors
    assert not found[0].any()
    np.testing.assert_allclose(found[1:], vectors.vectors, atol=0.01 if kind is QuantizedEmbedding else 0)


def test_padding_fills_up_and_gets_no_gradient(vectors: firth.Vectors) -> None:
    layer = Embedding.from_vectors(vectors, freeze=False, padding=True, padding_idx=0)
    out = layer([["hey", "lyon", "there"], ["Paris"]])
    assert out.shape == (2, 3, 3) and not out[1, 1:].any()
    (out.sum() * 2).backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[0].any() and layer.weight.grad[1:].all()


def test_padding_between_and_with_shared_rows(vectors: firth.Vectors) -> None:
    layer = Embedding.from_vectors(
        vectors, padding="nil", padding_idx=2, unknown="hash", hash_rows=2, dtype=torch.float64
    )
    assert layer.vocab is not None and layer.vocab.tokens == ["hey", "there", "nil", "Paris", "lyon"]
    np.testing.assert_array_equal(layer.weight[[0, 1, 3, 4]], vectors.vectors)
    assert layer.padding_idx == 2 and not layer.weight[2].any()
    assert layer.weight[5].tolist() == layer.weight[6].tolist()
    assert layer.weight[5].tolist() == pytest.approx(vectors.vectors.mean(0).tolist(), abs=1e-6)


def test_padding_idx_alone_is_torchs(vectors: firth.Vectors) -> None:
    layer = Embedding.from_vectors(vectors, padding_idx=1)
    assert layer.padding_idx == 1 and layer.num_embeddings == 4
    np.testing.assert_array_equal(layer.weight, vectors.vectors)


def test_a_padding_row_that_does_not_fit_is_a_sentence(vectors: firth.Vectors) -> None:
    for row, last in ((5, 4), (-1, 4), (True, 4)):
        with pytest.raises(
            SettingError, match=f"padding_idx is {row}; the row of padding is one of 0 to {last}"
        ):
            Embedding.from_vectors(vectors, padding=True, padding_idx=row)
    with pytest.raises(SettingError, match="padding_idx is 4; the row of padding is one of 0 to 3"):
        Embedding.from_vectors(vectors, padding_idx=4)
    with pytest.raises(SettingError, match="'lyon' is a key already, in row 3, and padding_idx is 0"):
        Embedding.from_vectors(vectors, padding="lyon", padding_idx=0)
    assert Embedding.from_vectors(vectors, padding="lyon", padding_idx=3).padding_idx == 3


def test_vectors_without_keys_make_no_layer(vectors: firth.Vectors) -> None:
    table = DenseRows(np.ones((7, 3), np.float32))
    keyless = firth.Vectors([], np.zeros((0, 3)), subwords=FastTextSubwords(table, 2, 3))
    with pytest.raises(
        SettingError, match=r"no keys, only subwords; vectors\.vectors_for_all\(words\) has both"
    ):
        Embedding.from_vectors(keyless)
    assert Embedding.from_vectors(keyless.vectors_for_all(["a", "b"])).weight.shape == (2, 3)


# -- where the weight lies


def test_dtype_and_device(vectors: firth.Vectors) -> None:
    halved = Embedding.from_vectors(vectors, dtype=torch.bfloat16, device="cpu")
    assert halved.weight.dtype == torch.bfloat16 and halved.weight.device.type == "cpu"
    torch.testing.assert_close(halved.weight.float(), torch.tensor(vectors.vectors), rtol=0.01, atol=0.01)
    plain = Embedding.from_vectors(vectors)
    assert plain.weight.dtype == torch.float32
    bag = EmbeddingBag.from_vectors(vectors, device="meta", mode="max")
    assert bag.weight.device.type == "meta" and bag.mode == "max"
