"""Documents to vectors: plain and weighted means against their definitions, and LangChain's names."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firth
from firth.documents import SIF, Mean, TextEncoder
from firth.documents.pooling import sums
from firth.errors import SettingError
from firth.subwords import DenseRows, FastTextSubwords

WORDS = ["the", "cat", "sat", "mat", "dog", "ran"]
TEXTS = ["the cat sat", "the dog ran ran", "the mat", "zzz", "", "cat zzz dog"]


def made(counts: list[int] | None = None) -> firth.Vectors:
    matrix = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    return firth.Vectors(WORDS, matrix, counts=counts)


def defined(vectors: firth.Vectors, texts: list[str], weight: Callable[[str], float]) -> Any:
    """The mean of the weighted vectors of the known words, a document at a time, in float64."""
    rows = []
    for text in texts:
        words = [word for word in text.split() if word in vectors]
        total = sum((weight(word) * vectors[word].astype(float) for word in words), np.zeros(4))
        rows.append(total / max(len(words), 1))
    return np.array(rows)


def without_components(documents: Any, fitted: Any, k: int) -> Any:
    """Each document less its projection on the first k right singular vectors of ``fitted``."""
    _, _, right = np.linalg.svd(fitted)
    return documents - documents @ right[:k].T @ right[:k]


def test_the_mean_of_known_words() -> None:
    vectors = made()
    found = TextEncoder(vectors).encode(TEXTS)
    assert found.dtype == np.float32 and found.shape == (6, 4)
    np.testing.assert_allclose(found, defined(vectors, TEXTS, lambda word: 1), rtol=1e-6)
    assert not found[3].any() and not found[4].any()  # unknown words only; nothing at all
    np.testing.assert_array_equal(found[5], TextEncoder(vectors).encode(["cat dog"])[0])


@pytest.mark.parametrize("k", [0, 1, 2])
def test_sif_is_the_papers(k: int) -> None:
    counts = [50, 10, 8, 5, 9, 3]
    vectors = made(counts)
    means = defined(vectors, TEXTS, lambda word: 1e-2 / (1e-2 + counts[WORDS.index(word)] / sum(counts)))
    encoder = TextEncoder(vectors, SIF(a=1e-2, components=k)).fit(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), without_components(means, means, k), atol=1e-7)
    # What was learned stays: other documents lose the same direction, each on its own.
    other = ["dog sat", "mat"]
    means_there = defined(
        vectors, other, lambda word: 1e-2 / (1e-2 + counts[WORDS.index(word)] / sum(counts))
    )
    expected = without_components(means_there, means, k)
    np.testing.assert_allclose(encoder.encode(other), expected, atol=1e-7)
    np.testing.assert_array_equal(encoder.encode(other[1:])[0], encoder.encode(other)[1])


def test_sif_counts_the_documents_where_the_vectors_have_no_counts() -> None:
    vectors = made()
    tokens = [word for text in TEXTS for word in text.split()]
    means = defined(vectors, TEXTS, lambda word: 1e-2 / (1e-2 + tokens.count(word) / len(tokens)))
    encoder = TextEncoder(vectors, SIF(a=1e-2)).fit(iter(TEXTS))
    np.testing.assert_allclose(encoder.encode(TEXTS), without_components(means, means, 1), atol=1e-7)


def test_few_documents_have_few_components() -> None:
    encoder = TextEncoder(made(), SIF(components=3)).fit(["cat sat", "", "zzz"])
    assert encoder.learned is not None and encoder.learned.components.shape == (1, 4)
    assert TextEncoder(made(), SIF()).fit([""]).encode(["cat"]).any()


def test_lists_of_words_and_tokenizers() -> None:
    vectors = made()
    plain, folded = (
        TextEncoder(vectors, tokenizer=tokenizer)
        for tokenizer in (firth.Tokenizer(), firth.Tokenizer(lower=True, pattern=r"\w+"))
    )
    assert not plain.encode(["The CAT."]).any()
    np.testing.assert_array_equal(folded.encode(["The CAT."]), plain.encode(["the cat"]))
    np.testing.assert_array_equal(
        plain.encode([["the", "cat"], ("the", "cat")]), plain.encode(["the cat"] * 2)
    )
    assert not folded.encode([["The", "CAT."]]).any()  # words are taken as they are
    np.testing.assert_array_equal(plain.encode(np.array(["the cat"])), plain.encode(["the cat"]))


def test_many_documents_at_once_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(1)
    texts = [" ".join(chance.choice([*WORDS, "zzz"], size=size)) for size in chance.integers(0, 30, 200)]
    encoder = TextEncoder(made(), SIF()).fit(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-9)
    monkeypatch.setattr("firth.documents.encoder.BATCH", 17)
    np.testing.assert_allclose(encoder.encode(iter(texts)), alone, atol=1e-9)
    again = TextEncoder(made(), SIF()).fit(texts)
    np.testing.assert_allclose(again.encode(texts), alone, atol=1e-6)


def test_a_document_longer_than_a_block_is_summed_in_pieces() -> None:
    matrix = np.ones((2, 1 << 19), np.float32)
    rows, owners = np.array([0, 1, 1, 0, 0]), np.array([0, 0, 0, 2, 2])
    found = sums(matrix, rows, owners, np.arange(1.0, 6.0), 3)  # two rows a piece
    assert found[:, 0].tolist() == found[:, -1].tolist() == [6.0, 0.0, 9.0]


def test_words_with_subwords_count_too() -> None:
    table = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    plain = made([5, 4, 3, 2, 1, 0])
    vectors = firth.Vectors(
        WORDS, plain.vectors, counts=plain.counts, subwords=FastTextSubwords(DenseRows(table), 2, 3)
    )
    expected = (vectors["cat"] + vectors["zzz"] + vectors["zzz"] + vectors["yy"]) / 4
    found = TextEncoder(vectors).encode(["cat zzz zzz yy", "yy"])
    np.testing.assert_allclose(found, [expected, vectors["yy"]], atol=1e-6)
    weighted = TextEncoder(vectors, SIF(a=1e-2, components=0)).fit(TEXTS).encode(["cat zzz"])[0]
    share = 1e-2 / (1e-2 + 4 / 15)
    np.testing.assert_allclose(weighted, (share * vectors["cat"] + vectors["zzz"]) / 2, atol=1e-6)


def test_langchains_names() -> None:
    encoder = TextEncoder(made())
    documents, query = encoder.embed_documents(TEXTS), encoder.embed_query("the cat")
    assert type(documents) is type(query) is list and type(documents[0]) is list
    assert {type(number) for number in query} == {float} and len(query) == 4
    np.testing.assert_array_equal(np.array(documents, np.float32), encoder.encode(TEXTS))
    np.testing.assert_array_equal(np.array(query, np.float32), encoder.encode(["the cat"])[0])
    assert encoder.embed_documents([]) == []

    async def both() -> tuple[Any, Any]:
        return await encoder.aembed_documents(TEXTS), await encoder.aembed_query("the cat")

    assert asyncio.run(both()) == (documents, query)


def test_wrong_calls_are_sentences() -> None:
    vectors = made()
    encoder = TextEncoder(vectors)
    for wrong, what in (
        ([1.5], r"document 0 is float 1\.5; a str or a list of words"),
        (["cat", None], "document 1 is NoneType None"),
        ([["cat", 3]], r"document 0 is list \['cat', 3\]"),
        ("the cat", "a list of documents is expected, not the one text 'the cat'"),
    ):
        with pytest.raises(SettingError, match=what):
            encoder.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"SIF\(a=0\.001, components=1\) learns from documents; call fit"):
        TextEncoder(vectors, SIF()).encode(["cat"])
    with pytest.raises(SettingError, match="there are no documents to learn from"):
        TextEncoder(vectors, SIF()).fit([])
    with pytest.raises(SettingError, match="not the one text"):
        TextEncoder(vectors, SIF()).fit("cat")
    with pytest.raises(SettingError, match="components is 5, and the vectors have 4 numbers"):
        TextEncoder(vectors, SIF(components=5)).fit(TEXTS)
    with pytest.raises(SettingError, match="a is 0; a positive number"):
        SIF(a=0)
    with pytest.raises(SettingError, match="components is -1; 0 or a few"):
        SIF(components=-1)
    with pytest.raises(SettingError, match=r"TextEncoder\(\): firth\.Vectors are expected, got ndarray"):
        TextEncoder(np.eye(3))  # type: ignore[arg-type]
    assert encoder.encode([]).shape == (0, 4) and Mean().directions([], 4).shape == (0, 4)


def test_without_scikit_learn_there_is_a_sentence(tmp_path: Path) -> None:
    """A folder named sklearn that cannot be imported stands before the real one."""
    (tmp_path / "sklearn.py").write_text("raise ImportError('not here')")
    code = (
        "import firth, sys\n"
        "firth.documents.TextEncoder(firth.Vectors(['a'], [[1.0]])).encode(['a'])\n"
        "assert 'sklearn' not in sys.modules and 'torch' not in sys.modules\n"
        "try:\n    firth.documents.DocumentTransformer\n"
        "except firth.MissingExtra as error:\n    print(error)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(firth.__file__).parents[1]}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "needs scikit-learn: pip install 'firth[sklearn]'" in done.stdout


def test_names_of_the_room() -> None:
    assert dir(firth.documents) == sorted(firth.documents.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Documents'"):
        _ = firth.documents.Documents  # type: ignore[attr-defined]
