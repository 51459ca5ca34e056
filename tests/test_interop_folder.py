"""What others open of ours: the folder by sentence-transformers and model2vec, text by spaCy.

Each test is skipped where the package is not installed (the extra ``interop``); all of them are offline.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import firth
from firth.errors import FormatError
from firth.subwords import DenseRows, FloretSubwords

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries say at import

WORDS = ["the", "king", "queen", "new york", "don't", "Paris", ".", "a/b", "ärger", "日本"]
TEXTS = ["king", "the king", "new york Paris.", "don't a/b", "ärger 日本", "zzz", "", "king zzz"]


@pytest.fixture
def vectors() -> firth.Vectors:
    matrix = np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32)
    return firth.Vectors(WORDS, matrix, counts=range(20, 10, -1), metadata={"epochs": 5})


@pytest.fixture
def folder(vectors: firth.Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    vectors.save(tmp_path / "words", "static-folder")
    return tmp_path / "words"


def expected(vectors: firth.Vectors) -> Any:
    """The means of the known words of TEXTS, as the folder's tokenizer finds them."""
    found = [
        ["king"], ["the", "king"], ["new york", "Paris", "."], ["don't", "a/b"], ["ärger", "日本"],
        [], [], ["king"],
    ]  # fmt: skip
    return np.array([vectors[words].mean(axis=0) if words else np.zeros(6) for words in found])


def test_sentence_transformers_opens_the_folder(vectors: firth.Vectors, folder: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = package.SentenceTransformer(str(folder), device="cpu")
    found = model.encode(TEXTS)
    wanted = expected(vectors)
    np.testing.assert_allclose(found[:-1], wanted[:-1], atol=1e-6)
    np.testing.assert_allclose(found[-1], wanted[-1] / 2, atol=1e-6)  # it counts the unknown word, as zeros
    # What it writes itself is read again, and opens in model2vec.
    model.save(str(tmp_path / "again"))
    again = firth.Vectors.load(tmp_path / "again")
    assert again.index_to_key == WORDS
    np.testing.assert_array_equal(again.vectors, vectors.vectors)


def test_model2vec_opens_the_folder(vectors: firth.Vectors, folder: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("model2vec", reason="model2vec is not installed")
    model = package.StaticModel.from_pretrained(str(folder))
    np.testing.assert_allclose(model.encode(TEXTS), expected(vectors), atol=1e-6)
    model.save_pretrained(str(tmp_path / "again"))
    again = firth.Vectors.load(tmp_path / "again")
    assert again.index_to_key == WORDS
    np.testing.assert_array_equal(again.vectors, vectors.vectors)


def test_a_model_that_sentence_transformers_trained_comes_back(vectors: firth.Vectors, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = package.SentenceTransformer(str(folder), device="cpu")
    features = model.tokenize(["king queen"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(features)["sentence_embedding"].sum().backward()
    optimizer.step()
    model.save(str(folder.parent / "tuned"))
    tuned = firth.Vectors.load(folder.parent / "tuned")
    moved = ~np.isclose(tuned.vectors, vectors.vectors).all(axis=1)
    assert [word for word, there in zip(WORDS, moved, strict=True) if there] == ["king", "queen"]
    np.testing.assert_allclose(tuned["king"], vectors["king"] - 0.5, atol=1e-6)


def test_tokenizers_reads_the_folders_tokenizer(folder: Path) -> None:
    package = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    tokenizer = package.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, words in (
        ("the king", ["the", "king"]),
        ("in new york, Paris", ["[UNK]", "new york", "[UNK]", "Paris"]),
        ("don't a/b.", ["don't", "a/b", "."]),
    ):
        encoded = tokenizer.encode(text)
        assert encoded.tokens == words
        assert encoded.ids == [WORDS.index(word) if word in WORDS else len(WORDS) for word in words]


def test_counts_go_along_where_others_do_not_look(
    vectors: firth.Vectors, folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == {"counts", "embeddings"}
    assert tensors["counts"].dtype == np.int64 and tensors["counts"].tolist() == list(range(20, 10, -1))
    np.testing.assert_array_equal(tensors["embeddings"], [*vectors.vectors, np.zeros(6)])
    again, first = firth.Vectors.load(folder), firth.Vectors.load(folder, limit=2)
    assert again.counts is not None and again.counts.tolist() == list(range(20, 10, -1))
    assert first.counts is not None and first.counts.tolist() == [20, 19]
    plain = firth.Vectors(WORDS, vectors.vectors)
    plain.save(tmp_path / "plain", "static-folder")
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == {"embeddings"}
    assert firth.Vectors.load(tmp_path / "plain").counts is None
    save_file({**tensors, "counts": tensors["counts"][:4]}, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"'counts' are 4; one for each token is expected"):
        firth.Vectors.load(folder)
    save_file({**tensors, "counts": tensors["embeddings"]}, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"'counts' is F32 \[11, 6\], which it cannot be"):
        firth.Vectors.load(folder)


def test_the_card_has_what_the_hub_reads(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    head = text.split("---\n")[1]
    assert "library_name: model2vec\n" in head and "- sentence-transformers\n" in head
    assert json.loads((folder / "modules.json").read_text())[0]["type"].endswith("StaticEmbedding")


def pipeline(source: Path, *options: str) -> Any:
    """``python -m spacy init vectors`` in a process of its own, then ``spacy.load``."""
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    target = source.with_suffix(".spacy")
    done = subprocess.run(
        [sys.executable, "-m", "spacy", "init", "vectors", "en", str(source), str(target), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return spacy.load(target)


@pytest.mark.parametrize(
    ("name", "format"), [("words.txt", "word2vec"), ("words.glove", "glove"), ("words.vec.gz", "word2vec")]
)
def test_spacy_opens_our_text(name: str, format: str, vectors: firth.Vectors, tmp_path: Path) -> None:
    pytest.importorskip("spacy", reason="spaCy is not installed")
    vectors.save(tmp_path / name, format)
    nlp = pipeline(tmp_path / name)
    assert nlp.vocab.vectors.shape == (len(WORDS), 6)
    for word in WORDS:
        np.testing.assert_array_equal(nlp.vocab.get_vector(word), vectors[word])
    document = nlp("the king")
    assert document[1].has_vector
    np.testing.assert_allclose(document.vector, vectors[["the", "king"]].mean(axis=0), rtol=1e-6)


def test_spacy_opens_our_floret_table(tmp_path: Path) -> None:
    pytest.importorskip("spacy", reason="spaCy is not installed")
    table = np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32)
    subwords = FloretSubwords(DenseRows(table), 3, 5, hash_count=2, hash_seed=7)
    vectors = firth.Vectors([], np.zeros((0, 6)), subwords=subwords)
    vectors.save(tmp_path / "words.floret")
    nlp = pipeline(tmp_path / "words.floret", "--mode", "floret")
    for word in ("king", "unseen", "ärger", "日本"):
        np.testing.assert_allclose(nlp.vocab.get_vector(word), vectors[word], atol=1e-5)


def test_langchain_takes_a_text_encoder(vectors: firth.Vectors) -> None:
    core = pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    assert core
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    encoder = firth.documents.TextEncoder(vectors)
    store = InMemoryVectorStore(encoder)
    store.add_texts(["the king", "Paris", "ärger"])
    best, score = store.similarity_search_with_score("king", k=1)[0]
    assert best.page_content == "the king"
    query, text = encoder.encode(["king", "the king"]).astype(float)
    assert score == pytest.approx(query @ text / np.linalg.norm(query) / np.linalg.norm(text), rel=1e-5)
    methods = [name for name in dir(Embeddings) if not name.startswith("_")]
    assert {"embed_documents", "embed_query", "aembed_documents", "aembed_query"} <= set(methods)
    for name in methods:
        assert name == "register" or callable(getattr(encoder, name)), name
    Embeddings.register(firth.documents.TextEncoder)
    assert isinstance(encoder, Embeddings)
