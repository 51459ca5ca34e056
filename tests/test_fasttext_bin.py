"""fastText's binary models: vectors by the definition, bytes both ways, and files that lie."""

from __future__ import annotations

import importlib.util
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from firth import formats
from firth.errors import FirthError, FormatError, KeyNotFound
from firth.formats import fasttext_bin, fasttext_write
from firth.subwords import FastTextSubwords
from firth.vectors import Vectors
from subword_models import UNSEEN, Model

LABELS = (b"__label__a", b"__label__b")
CLASSIFIER = Model(labels=LABELS, model=3, loss=3)
PRUNED = CLASSIFIER.but(quantised=True, kept=tuple(range(0, 50, 3)))
MODELS = {
    "version 12": Model(),
    "version 11": Model(version=11),
    "no version": Model(version=None),
    "cbow": Model(model=1, minn=1, maxn=6),
    "one-vs-all": Model(loss=4),
    "no n-grams": Model(maxn=0, minn=0, buckets=0),
    "classifier": CLASSIFIER,
    "classifier of version 11": CLASSIFIER.but(version=11),
    "classifier without version": CLASSIFIER.but(version=None),
    "quantised": CLASSIFIER.but(quantised=True),
    "quantised, even": CLASSIFIER.but(quantised=True, dim=4),
    "quantised with lengths": CLASSIFIER.but(quantised=True, lengths=True),
    "pruned": PRUNED,
    "pruned, output too": PRUNED.but(lengths=True, quantised_output=True),
}
SIZES_AT = 8 + struct.calcsize("<12id")  # where the dictionary begins


def load(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Vectors.load(path, **options)


# -- reading


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_vectors_are_those_of_the_definition(tmp_path, model):
    path = model.save(tmp_path)
    assert formats.recognise(path).name == "fasttext"
    vectors = load(path)
    words = [word.decode() for word in model.words]
    assert list(vectors) == words and vectors.counts.tolist() == model.counts[: len(words)]
    for word in words:
        np.testing.assert_allclose(vectors[word], model.vector(word.encode()), atol=1e-6)
    old_classifier = model.model == 3 and model.version != 12
    if model.maxn == 0 or old_classifier:
        assert vectors.subwords is None
        with pytest.raises(KeyNotFound, match="did you mean 'cat'"):
            vectors["cats"]
    else:
        for word in UNSEEN:
            np.testing.assert_allclose(vectors[word], model.vector(word.encode()), atol=1e-6)
    if model.model == 3:
        assert vectors.metadata["labels"] == {"__label__a": 985, "__label__b": 982}
        assert vectors.context is None and "__label__a" not in vectors
    else:
        np.testing.assert_array_equal(vectors.context.vectors, model.numbers["output"])
        assert "labels" not in vectors.metadata


def test_settings_are_kept(tmp_path):
    facts = load(Model(model=1, loss=4).save(tmp_path)).metadata["fasttext"]
    expected = {"version": 12, "dim": 5, "ws": 5, "epoch": 3, "min_count": 1, "neg": 4, "word_ngrams": 1}
    expected |= {"loss": "ova", "model": "cbow", "bucket": 50, "minn": 2, "maxn": 4, "lr_update_rate": 100}
    assert facts == expected | {"t": 1e-4, "tokens": 1_000_000}


def test_the_rows_of_a_tree_are_no_context(tmp_path):
    assert load(Model(loss=1).save(tmp_path)).context is None


def test_limit(tmp_path):
    model = Model()
    part = load(model.save(tmp_path), limit=2)
    assert list(part) == ["the", "cat"] and part.counts.tolist() == [1000, 997]
    assert len(part.context) == 2 and part.metadata["fasttext"]["tokens"] == 1_000_000
    # A word that was left out is unseen: its own row is not there.
    np.testing.assert_allclose(part["größen"], model.vector("größen".encode()), atol=1e-6)
    without = model.but(words=tuple(word for word in model.words if word != "größe".encode()))
    assert not np.allclose(part["größe"], model.vector("größe".encode()), atol=0.01)
    assert len(without.words) == 4


def test_words_that_are_no_utf8(tmp_path):
    words = (b"the", b"kter\xec", b"ji\x9e", b"cat")  # code page 852
    model = Model(words=words)
    path = model.save(tmp_path)
    with pytest.raises(
        FormatError, match=r"byte 105: the key b'kter\\xec' is no UTF-8; errors=.replace. reads it"
    ):
        load(path)
    kept = load(path, errors="surrogateescape")
    for word in words:
        np.testing.assert_allclose(kept[word.decode(errors="surrogateescape")], model.vector(word), atol=1e-6)
    # An unseen one is hashed by its bytes as well.
    np.testing.assert_allclose(kept["\udcec\udc9e"], model.vector(b"\xec\x9e"), atol=1e-6)
    replaced = load(path, errors="replace")
    np.testing.assert_allclose(replaced["kter\ufffd"], model.vector(b"kter\xec"), atol=1e-6)


def test_words_that_become_one_keep_their_rows_together(tmp_path):
    model = Model(words=(b"the", b"a\xec", b"a\x9e", b"cat"))
    with pytest.warns(UserWarning, match="1 rows repeat a key"):
        vectors = Vectors.load(model.save(tmp_path), errors="ignore")
    assert list(vectors) == ["the", "a", "cat"] and vectors.counts.tolist() == [1000, 997, 991]
    np.testing.assert_array_equal(vectors.context.vectors, model.numbers["output"][[0, 1, 3]])
    np.testing.assert_allclose(vectors["cat"], model.vector(b"cat"), atol=1e-6)


def test_a_word_without_a_character_is_left_out(tmp_path):
    # fastText makes one of an empty line of pretrained vectors.
    model = Model(words=(b"the", b"", b"cat"))
    with pytest.warns(UserWarning, match=r"without a character are left out \(1\)"):
        vectors = Vectors.load(model.save(tmp_path))
    assert list(vectors) == ["the", "cat"] and vectors.counts.tolist() == [1000, 994]
    np.testing.assert_array_equal(vectors.context["cat"], model.numbers["output"][2])


def test_labels_that_are_no_utf8(tmp_path):
    path = CLASSIFIER.but(labels=(b"__label__\xff",)).save(tmp_path)
    with pytest.raises(FormatError, match="a label is no UTF-8"):
        load(path)
    assert load(path, errors="replace").metadata["labels"] == {"__label__\ufffd": 985}


def test_what_is_inside_is_told_without_reading(tmp_path):
    row, facts = formats.inspect(Model().save(tmp_path))
    assert row.name == "fasttext" and (facts.rows, facts.dim, facts.dtype) == (5, 5, "float32")
    assert facts.first[:2] == ("the", "cat")
    assert set(facts.inside) == {"counts", "context", "subwords", "metadata"}
    facts = formats.inspect(PRUNED.save(tmp_path))[1]
    assert facts.dtype == "product-quantised" and "2 labels" in facts.inside and "context" not in facts.inside


def test_a_compressed_model_is_refused(tmp_path):
    import gzip

    path = tmp_path / "model.bin.gz"
    path.write_bytes(gzip.compress(Model().to_bytes()))
    with pytest.raises(FormatError, match=r"gzip-compressed fasttext.*unpack it"):
        load(path)


def test_many_words_over_several_blocks(tmp_path, monkeypatch):
    model = Model(words=tuple(f"word{number}".encode() for number in range(300)), buckets=400)
    monkeypatch.setattr(fasttext_bin, "PIECE", 64)
    monkeypatch.setattr(fasttext_write, "PIECE", 640)
    vectors = load(model.save(tmp_path))
    for number in (0, 12, 13, 299):
        word = f"word{number}"
        np.testing.assert_allclose(vectors[word], model.vector(word.encode()), atol=1e-6)
    vectors.save(tmp_path / "again.bin", format="fasttext")
    again = load(tmp_path / "again.bin")
    np.testing.assert_allclose(again.vectors, vectors.vectors, atol=1e-6)
    assert again.counts.tolist() == vectors.counts.tolist()


# -- writing


@pytest.mark.parametrize("name", ["version 12", "version 11", "no version", "cbow", "one-vs-all"])
def test_what_was_read_is_written_with_the_same_content(tmp_path, name):
    model = MODELS[name]
    vectors = load(model.save(tmp_path))
    vectors.save(tmp_path / "again.bin", format="fasttext")
    written, wanted = (tmp_path / "again.bin").read_bytes(), model.but(version=12).to_bytes()
    # The rows of the words are computed back from their vectors: to rounding; the rest is equal.
    place = wanted.index(model.numbers["input"].tobytes())
    own = 4 * model.dim * len(model.words)
    assert written[:place] == wanted[:place] and written[place + own :] == wanted[place + own :]
    rows = np.frombuffer(written[place : place + own], "<f4").reshape(-1, model.dim)
    expected = model.numbers["input"][: len(model.words)].copy()
    if model.version is None:
        expected[3] = vectors["</s>"]  # it has n-grams no more
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_golden_bytes(tmp_path):
    """Without n-grams nothing is rounded: to the last byte."""
    model = Model(words=(b"a", "ö".encode()), dim=1, minn=0, maxn=0, buckets=0)
    matrix = np.array([[0.5], [-2]], np.float32)
    Vectors(["a", "ö"], matrix, counts=[7, 3], context=matrix * 2).save(tmp_path / "m.bin", "fasttext")
    settings = struct.pack("<12id", 1, 5, 5, 1, 5, 1, 2, 2, 0, 0, 0, 100, 1e-4)
    dictionary = struct.pack("<3i2q", 2, 2, 0, 10, -1)
    dictionary += b"a\0" + struct.pack("<qb", 7, 0) + b"\xc3\xb6\0" + struct.pack("<qb", 3, 0)
    tables = struct.pack("<?2q2f", False, 2, 1, 0.5, -2) + struct.pack("<?2q2f", False, 2, 1, 1, -4)
    expected = struct.pack("<2i", 793712314, 12) + settings + dictionary + tables
    assert (tmp_path / "m.bin").read_bytes() == expected
    assert model.dim == 1 and load(tmp_path / "m.bin")["ö"].tolist() == [-2]


def test_a_classifier_becomes_a_model_of_its_words(tmp_path):
    vectors = load(MODELS["quantised with lengths"].save(tmp_path))
    vectors.save(tmp_path / "again.bin", format="fasttext")
    again = load(tmp_path / "again.bin")
    assert again.metadata["fasttext"]["model"] == "skipgram" and "labels" not in again.metadata
    np.testing.assert_allclose(again[[*vectors, *UNSEEN]], vectors[[*vectors, *UNSEEN]], atol=1e-6)
    assert not again.context.vectors.any()


def test_new_words_and_no_counts(tmp_path):
    vectors = load(Model().save(tmp_path)).with_vectors({"new york": np.arange(5)})
    vectors.save(tmp_path / "more.bin", format="fasttext")
    again = load(tmp_path / "more.bin")
    np.testing.assert_allclose(again["new york"], np.arange(5), atol=1e-6)
    np.testing.assert_allclose(again["unseen"], vectors["unseen"])
    Vectors(["a"], np.ones((1, 2))).save(tmp_path / "plain.bin", format="fasttext")
    assert load(tmp_path / "plain.bin").counts.tolist() == [1]


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (lambda: Vectors(["a\0b"], np.ones((1, 2))), "zero byte"),
        (lambda: Vectors(["x" * 65_536], np.ones((1, 2))), "65,536 bytes"),
        (lambda: Vectors(["\ud800"], np.ones((1, 2))), "no form in UTF-8"),
    ],
)
def test_keys_that_cannot_be_written(tmp_path, vectors, words):
    with pytest.raises(FormatError, match=words):
        vectors().save(tmp_path / "m.bin", format="fasttext")
    assert not list(tmp_path.iterdir())


def test_subwords_that_cannot_be_written(tmp_path):
    vectors = load(PRUNED.save(tmp_path))
    assert isinstance(vectors.subwords, FastTextSubwords)
    with pytest.raises(FormatError, match=r"pruned model.*use safetensors"):
        vectors.save(tmp_path / "m.bin", format="fasttext")
    assert not (tmp_path / "m.bin").exists()
    vectors.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "m.safetensors")[list(UNSEEN)], vectors[list(UNSEEN)])


# -- files that are cut, or lie


@pytest.mark.parametrize("name", ["version 12", "no version", "pruned, output too"])
def test_cut_at_every_byte(tmp_path, name):
    data = MODELS[name].but(words=(b"cat", b"dog"), buckets=3, **_small(name)).to_bytes()
    path = tmp_path / "cut.bin"
    step = max(1, len(data) // 700)
    for size in [
        *range(min(len(data), 300)),
        *range(300, len(data) - 300, step),
        *range(len(data) - 300, len(data)),
    ]:
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match=r"cut|empty"):
            fasttext_bin.read(path, formats.Options())


def _small(name):
    return {"kept": (0, 2)} if "pruned" in name else {}


@pytest.mark.parametrize("name", ["version 12", "no version", "pruned, output too"])
@pytest.mark.parametrize("flip", [1, 128])
def test_every_byte_changed(tmp_path, name, flip):
    """Refused by a sentence, or read as what the bytes say; never anything else."""
    data = MODELS[name].but(words=(b"cat", b"dog"), buckets=3, **_small(name)).to_bytes()
    path = tmp_path / "changed.bin"
    refused = 0
    for place in range(min(len(data), 420)):
        path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # repeated and empty words
            try:
                table = fasttext_bin.read(path, formats.Options(errors="replace"))
                assert len(table.keys) <= 2 and table.matrix.nbytes < 1000
            except FirthError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 60


def lie(place, layout, value):
    data = bytearray(Model().to_bytes())
    struct.pack_into(layout, data, place, value)
    return bytes(data)


INPUT_AT = Model().to_bytes().index(Model().numbers["input"].tobytes()) - 16
OUTPUT_AT = Model().to_bytes().index(Model().numbers["output"].tobytes()) - 16


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lie(4, "<i", 13), "version 13; fastText's versions 11 and 12 are read"),
        (lie(4, "<i", -1), "version -1"),
        (lie(8, "<i", 0), "dim 0, which cannot be"),
        (lie(8, "<i", -5), "dim -5"),
        (lie(8, "<i", 2**31 - 1), "5 x 5; 5 words and 50 n-grams of 2,147,483,647 numbers"),
        (lie(8 + 24, "<i", 9), "loss 9"),
        (lie(8 + 28, "<i", 0), "model 0"),
        (lie(8 + 32, "<i", -1), "bucket -1"),
        (lie(8 + 32, "<i", 0), "0 buckets"),
        (lie(8 + 40, "<i", 101), "maxn 101; 100 is the most"),
        (lie(8 + 48, "<d", float("nan")), "t nan"),
        (lie(SIZES_AT, "<i", 2**31 - 1), "do not fit together"),
        (lie(SIZES_AT + 8, "<i", -1), "do not fit together"),
        (lie(SIZES_AT + 20, "<q", 2**40), "1,099,511,627,776 n-grams, which take"),
        (lie(SIZES_AT + 20, "<q", -2), "do not fit together"),
        (lie(INPUT_AT, "<q", 2**40), "1,099,511,627,776 x 5"),
        (lie(INPUT_AT, "<q", -1), "-1 x 5"),
        (lie(OUTPUT_AT, "<q", 2**40), "would take 21,990,232,555,520 bytes"),
        (lie(OUTPUT_AT, "<q", -1), "impossible shape -1 x 5"),
        (lie(OUTPUT_AT, "<q", 4), "20 bytes follow|4 x 5; 5 x 5 is expected"),
        (Model().to_bytes() + b"\0", "1 bytes follow the output table"),
    ],
)
def test_headers_that_lie(tmp_path, data, words):
    path = tmp_path / "lie.bin"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=words) as caught:
        Vectors.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_two_billion_words_are_not_allocated(tmp_path):
    data = bytearray(Model().to_bytes())
    struct.pack_into("<2i", data, SIZES_AT, 2**31 - 1, 2**31 - 1)
    (tmp_path / "lie.bin").write_bytes(data)
    with pytest.raises(FormatError, match=r"2,147,483,647 entries.*cut or damaged"):
        Vectors.load(tmp_path / "lie.bin")


def test_a_model_without_words(tmp_path):
    data = struct.pack("<2i", 793712314, 12) + struct.pack(
        "<12id", 1, 5, 5, 1, 5, 1, 2, 2, 0, 0, 0, 100, 1e-4
    )
    (tmp_path / "none.bin").write_bytes(data + struct.pack("<3i2q", 0, 0, 0, 0, -1) + bytes(100))
    with pytest.raises(FormatError, match="no words"):
        Vectors.load(tmp_path / "none.bin")


def test_numbers_that_are_not_finite(tmp_path):
    model = Model(maxn=0, minn=0, buckets=0)
    model.numbers["input"][1, 2] = np.nan
    with pytest.raises(FormatError, match="byte 105: the vector holds NaN"):
        Vectors.load(model.save(tmp_path))


# -- files by the C++ program, where gensim brings them along


@pytest.fixture(scope="module")
def by_others() -> Path:
    """gensim's test data: ``$FIRTH_GENSIM_DATA``, else those of an installed gensim."""
    named = os.environ.get("FIRTH_GENSIM_DATA")
    found = importlib.util.find_spec("gensim") if named is None else None
    folder = Path(named) if named else Path(found.origin).parent / "test/test_data" if found else None
    if folder is None or not folder.is_dir():
        pytest.skip("no gensim with its test data (set FIRTH_GENSIM_DATA to gensim/test/test_data)")
    return folder


@pytest.mark.parametrize(
    ("binary", "text"),
    [
        ("crime-and-punishment.bin", "crime-and-punishment.vec"),
        ("lee_fasttext.bin", "lee_fasttext.vec"),
        ("toy-model.bin", "toy-model.vec"),
    ],
)
def test_the_program_says_the_same_of_its_words(by_others, binary, text):
    mine, theirs = Vectors.load(by_others / binary), Vectors.load(by_others / text)
    assert list(mine) == list(theirs)
    # The text has five digits.
    np.testing.assert_allclose(mine.vectors, theirs.vectors, rtol=1e-4, atol=1e-5)


def test_other_models_of_the_program(by_others, tmp_path):
    with pytest.raises(FormatError, match="no UTF-8"):
        Vectors.load(by_others / "cp852_fasttext.bin")
    assert "kter\udcec" in Vectors.load(by_others / "cp852_fasttext.bin", errors="surrogateescape")
    assert "který" in Vectors.load(by_others / "non_ascii_fasttext.bin")
    classifier = Vectors.load(by_others / "pang_lee_polarity_fasttext.bin", errors="replace")
    assert len(classifier.metadata["labels"]) == 2 and classifier.subwords is None
    with pytest.warns(UserWarning, match="without a character"):
        Vectors.load(by_others / "toy-model-pretrained.bin")
    old = Vectors.load(by_others / "lee_fasttext.bin")
    old.save(tmp_path / "new.bin", format="fasttext")
    np.testing.assert_allclose(
        Vectors.load(tmp_path / "new.bin")[["the", *UNSEEN]], old[["the", *UNSEEN]], atol=1e-6
    )
