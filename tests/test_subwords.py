"""Subwords: n-grams and hashes against plain loops, words without a key, and where they go."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth import cli
from firth import ngrams as fast
from firth.errors import FirthError, FormatError, KeyNotFound, SettingError, ShapeError
from firth.subwords import (
    DenseRows,
    FastTextSubwords,
    FloretSubwords,
    encode,
    from_settings,
    sum_rows,
)
from firth.vectors import Vectors
from subword_models import UNSEEN, Model, floret_lines, floret_vector, fnv1a, murmur3, ngrams

TABLE = np.random.default_rng(0).standard_normal((61, 6)).astype(np.float32)
WORDS = [b"", b"a", b"cat", "größe".encode(), "日本語".encode(), b"\xff\xfe", b"a\x80\x80b", b"long" * 20]


def spans(words, minn, maxn):
    found = fast.ngrams(words, minn, maxn, b"<", b">")
    pieces = [found.data[a:b].tobytes() for a, b in zip(found.begins, found.ends, strict=True)]
    return [sorted(pieces[a:b]) for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


@pytest.fixture
def vectors(tmp_path):
    """A few words of a small model with all its n-grams."""
    return Vectors.load(Model().save(tmp_path))


# -- n-grams and their hashes


@pytest.mark.parametrize(("minn", "maxn"), [(1, 1), (1, 3), (2, 4), (3, 6), (5, 5), (4, 3)])
def test_ngrams_are_those_of_the_loop(minn, maxn):
    assert spans(WORDS, minn, maxn) == [sorted(ngrams(b"<" + word + b">", minn, maxn)) for word in WORDS]


@given(st.lists(st.binary(max_size=12), max_size=8), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_ngrams_and_hashes_of_any_bytes(words, minn, maxn):
    wanted = [sorted(ngrams(b"<" + word + b">", minn, maxn)) for word in words]
    assert spans(words, minn, maxn) == wanted
    hashes, offsets = fast.fnv1a(words, minn, maxn, b"<", b">")
    found = fast.ngrams(words, minn, maxn, b"<", b">")
    assert offsets.tolist() == found.offsets.tolist()
    for value, begin, end in zip(hashes.tolist(), found.begins, found.ends, strict=True):
        assert value == fnv1a(found.data[begin:end].tobytes())


def test_known_hashes():
    # FNV-1a of ASCII by http://www.isthe.com/chongo/tech/comp/fnv/, and what fastText 0.9.2 says of
    # others: get_subword_id in a model of 20,000 buckets.
    assert fnv1a(b"foobar") == 0xBF9CF968
    for piece, bucket in {"ße>": 19_512, "<日": 12_687, "cat": 9_031}.items():
        assert fnv1a(piece.encode()) % 20_000 == bucket
    # MurmurHash3_x64_128 of "foo" with seed 0 is 6145f501578671e2877dba2be487af7e.
    words = fast.murmur3(fast.whole([b"o"], b"f", b"o"), 0)[0]
    assert words.astype("<u4").tobytes().hex() == "6145f501578671e2877dba2be487af7e"


@given(st.lists(st.binary(max_size=70), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_murmur3_of_any_bytes(words, seed):
    found = fast.murmur3(fast.whole(words, b"<", b">"), seed)
    assert found.tolist() == [murmur3(b"<" + word + b">", seed) for word in words]


# -- words to vectors


def test_vectors_are_means_of_ngrams():
    subwords = FastTextSubwords(DenseRows(TABLE), 2, 4)
    words = ["cat", "größe", "日本語", "x" * 3000, "\udcff\udcfe", "</s>"]
    for word, vector in zip(words, subwords.vectors(words), strict=True):
        rows = [fnv1a(piece) % 61 for piece in ngrams(b"<" + encode(word) + b">", 2, 4)]
        expected = np.zeros(6) if word == "</s>" else TABLE[rows].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_many_words_at_once_are_each_by_itself():
    subwords = FastTextSubwords(DenseRows(TABLE), 3, 5)
    words = [f"word{number}" * (1 + number % 3) for number in range(20_000)]
    together = subwords.vectors(words)
    for place in (0, 1, 4_711, 19_999):
        np.testing.assert_allclose(together[place], subwords.vectors([words[place]])[0], atol=1e-6)


def test_own_rows_and_back():
    subwords = FastTextSubwords(DenseRows(TABLE), 2, 4)
    words = [b"cat", b"</s>", b"", "größe".encode()]
    own = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    vectors = own.copy()
    subwords.complete(words, vectors)
    np.testing.assert_array_equal(vectors[1], own[1])  # no n-grams
    assert not np.allclose(vectors[0], own[0], atol=0.1)
    np.testing.assert_allclose(subwords.own_rows(words, vectors), own, atol=1e-5)


def test_buckets_that_are_not_kept_do_not_count():
    kept = np.array([40, 3, 17], np.int64)
    subwords = FastTextSubwords(DenseRows(TABLE[:3]), 1, 2, buckets=50, kept=kept)
    for word, vector in zip(UNSEEN, subwords.vectors(UNSEEN), strict=True):
        found = [fnv1a(piece) % 50 for piece in ngrams(b"<" + word.encode() + b">", 1, 2)]
        rows = [[40, 3, 17].index(bucket) for bucket in found if bucket in (40, 3, 17)]
        expected = TABLE[rows].astype(np.float64).mean(axis=0) if rows else np.zeros(6)
        np.testing.assert_allclose(vector, expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("marks", [("<", ">"), ("^^", "ß")])
def test_floret_vectors(count, marks):
    settings = {"hash_count": count, "hash_seed": 7, "bow": marks[0], "eow": marks[1]}
    subwords = FloretSubwords(DenseRows(TABLE), 2, 3, **settings)
    for word, vector in zip(UNSEEN, subwords.vectors(UNSEEN), strict=True):
        np.testing.assert_allclose(vector, floret_vector(TABLE, word, 2, 3, count, 7, *marks), atol=1e-5)


def test_sums_of_words_with_and_without_rows():
    rows = np.array([5, 5, 1], np.int64)
    sums = sum_rows(DenseRows(TABLE), rows, np.array([0, 0, 2, 2, 3, 3]))
    np.testing.assert_allclose(sums, [TABLE[0] * 0, 2 * TABLE[5], TABLE[0] * 0, TABLE[1], TABLE[0] * 0])


def test_rows_at_an_odd_byte():
    data = np.zeros(TABLE.nbytes + 1, np.uint8)
    data[1:] = TABLE.reshape(-1).view(np.uint8)
    odd = data[1:].view(np.float32).reshape(TABLE.shape)
    taken = DenseRows(odd).take(np.array([3, 60]))
    assert not odd.flags.aligned and taken.flags.aligned
    np.testing.assert_array_equal(taken, TABLE[[3, 60]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: FastTextSubwords(DenseRows(TABLE), 2, 101),
        lambda: FastTextSubwords(DenseRows(TABLE), -1, 3),
        lambda: FastTextSubwords(DenseRows(TABLE), 2, 3, buckets=60),
        lambda: FastTextSubwords(DenseRows(TABLE[:2]), 2, 3, buckets=5, kept=np.array([1, 1])),
        lambda: FastTextSubwords(DenseRows(TABLE[:2]), 2, 3, buckets=5, kept=np.array([1, 5])),
        lambda: FastTextSubwords(DenseRows(TABLE[:0]), 2, 3),
        lambda: FloretSubwords(DenseRows(TABLE), 2, 3, hash_count=5),
        lambda: FloretSubwords(DenseRows(TABLE), 2, 3, hash_seed=2**32),
        lambda: from_settings({"kind": "fasttext", "minn": 2, "maxn": 3}, DenseRows(TABLE), None),
        lambda: from_settings({"kind": "odd", "minn": 2, "maxn": 3}, DenseRows(TABLE), None),
        lambda: from_settings({"kind": "floret", "minn": 2, "maxn": "3"}, DenseRows(TABLE), None),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(SettingError):
        make()


def test_tables_of_another_shape():
    with pytest.raises(ShapeError, match="float32 in C order"):
        DenseRows(TABLE.T)
    with pytest.raises(ShapeError, match="6 numbers a row, the matrix 5"):
        Vectors(["a"], np.ones((1, 5)), subwords=FastTextSubwords(DenseRows(TABLE), 2, 3))


# -- questions about words that are no keys


def test_only_keys_are_in(vectors):
    assert "cat" in vectors and "unseen" not in vectors
    assert vectors.is_oov("unseen") and not vectors.is_oov("cat")
    assert vectors.has_vector("unseen") and not vectors.has_vector("") and not vectors.has_vector(99)
    assert not vectors.has_index_for("unseen") and len(vectors) == 5
    with pytest.raises(KeyNotFound, match="'unseen'"):
        vectors.get_index("unseen")


def test_without_subwords_close_keys_are_named():
    plain = Vectors(["paris", "rome"], np.eye(2))
    with pytest.raises(KeyNotFound, match="did you mean 'paris'"):
        plain["parsi"]
    with pytest.raises(KeyNotFound, match="did you mean 'paris'"):
        plain[["rome", "parsi"]]
    with pytest.raises(KeyNotFound, match="''"):
        Vectors(["a"], TABLE[:1], subwords=FastTextSubwords(DenseRows(TABLE), 2, 3))[""]


def test_one_and_many(vectors):
    mixed = vectors[["cat", "unseen", "the", "größer"]]
    np.testing.assert_array_equal(mixed[0], vectors["cat"])
    np.testing.assert_array_equal(mixed[1], vectors["unseen"])
    np.testing.assert_array_equal(mixed[3], vectors["größer"])
    assert np.isclose(np.linalg.norm(vectors.get_vector("unseen", norm=True)), 1)
    with pytest.raises(ValueError, match="read-only"):
        vectors["unseen"][0] = 1


def test_neighbours_of_an_unseen_word(vectors):
    word = vectors["unseen"].astype(np.float64)
    cosines = {
        key: float(vectors[key] @ word / np.linalg.norm(word) / np.linalg.norm(vectors[key]))
        for key in vectors
    }
    best = sorted(cosines, key=cosines.__getitem__, reverse=True)
    for found in (
        vectors.most_similar("unseen", topn=5),
        vectors.similar_by_word("unseen", topn=5),
        vectors.most_similar_batch(["cat", "unseen"], topn=5)[1],
    ):
        assert [key for key, _ in found] == best
        assert found[0][1] == pytest.approx(cosines[best[0]], abs=1e-6)
    assert {key for key, _ in vectors.most_similar(["unseen", "cat"], ["größer"])} == set(vectors) - {"cat"}
    assert {key for key, _ in vectors.most_similar_cosmul(["unseen", "cat"], ["nothing"])} == set(vectors) - {
        "cat"
    }
    rows, scores = vectors.nearest(["cat", "unseen"], topn=5)
    assert rows.shape == (2, 5) and rows[0, -1] == -1 and np.isneginf(scores[0, -1]) and rows[1].min() == 0


def test_similarities_of_unseen_words(vectors):
    direct = float(vectors.get_vector("unseen", True) @ vectors.get_vector("cat", True))
    assert vectors.similarity("unseen", "cat") == pytest.approx(direct, abs=1e-6)
    assert vectors.distance("unseen", "cat") == pytest.approx(1 - direct, abs=1e-6)
    assert vectors.distances("unseen", ["cat", "other"])[0] == pytest.approx(1 - direct, abs=1e-6)
    assert vectors.distances("unseen").shape == (5,)
    assert vectors.n_similarity(["unseen"], ["cat"]) == pytest.approx(direct, abs=1e-6)
    assert vectors.rank("unseen", "cat") == 1 + len(vectors.closer_than("unseen", "cat"))
    assert vectors.closer_than("cat", "unseen") == [
        key
        for key in vectors
        if key != "cat" and vectors.similarity("cat", key) > vectors.similarity("cat", "unseen")
    ]
    assert vectors.most_similar_to_given("unseen", ["cat", "unseens"]) == "unseens"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vectors.doesnt_match(["unseen", "unseens", "unseenly", "cat"]) == "cat"
        words = ["cat", "cats", "catty", "qqqqqq"]
        units = np.array([vectors.get_vector(word, True) for word in words])
        assert vectors.doesnt_match(words) == words[int(np.argmin(units @ units.mean(axis=0)))]
    mean = vectors.get_mean_vector(["unseen", "cat"], pre_normalize=False)
    np.testing.assert_allclose(mean, (vectors["unseen"] + vectors["cat"]) / 2, atol=1e-6)
    tokens = vectors.get_vecs_by_tokens(["unseen", "cat"])
    np.testing.assert_array_equal(tokens.numpy(), vectors[["unseen", "cat"]])


# -- new ones from old, and files


def test_vectors_for_all(vectors):
    more = vectors.vectors_for_all(["unseen", "cat", "größer"])
    assert list(more) == ["unseen", "cat", "größer"] and more.counts.tolist() == [0, vectors.counts[1], 0]
    np.testing.assert_array_equal(more.vectors, vectors[["unseen", "cat", "größer"]])
    assert more.subwords is vectors.subwords and more.context is None
    known = vectors.vectors_for_all(["größe", "cat"])
    np.testing.assert_array_equal(known.context["cat"], vectors.context["cat"])
    with pytest.raises(KeyNotFound):
        Vectors(["a"], np.ones((1, 2))).vectors_for_all(["b"])


def test_what_keeps_subwords_and_what_does_not(vectors):
    for kept in (
        vectors.subset(["cat"]),
        vectors.with_vectors({"new": np.ones(5)}),
        vectors.quantized("int8"),
    ):
        np.testing.assert_array_equal(kept["unseen"], vectors["unseen"])
    lost = vectors.normalized()
    assert lost.subwords is None and "subwords left out" in lost.metadata["changes"][-1]
    with pytest.raises(KeyNotFound):
        lost["unseen"]
    assert "subwords" in repr(vectors) and "fasttext" in vectors._repr_html_()


@pytest.mark.parametrize(
    "model", [Model(), Model(model=3, labels=(b"__label__a",), quantised=True, kept=(3, 4, 7))]
)
def test_unseen_words_follow_when_vectors_are_turned(tmp_path, monkeypatch, model):
    """Seen and unseen words stay to one another as they were, and may be written again."""
    monkeypatch.setattr("firth.subwords.BLOCK", 40)  # several blocks
    vectors = Vectors.load(model.save(tmp_path))
    whole = vectors.reduce(5)  # a rotation
    apart = np.linalg.norm(vectors["unseen"] - vectors["cat"])
    assert np.linalg.norm(whole["unseen"] - whole["cat"]) == pytest.approx(apart, abs=1e-5)
    np.testing.assert_allclose(vectors.reduce(2)["unseen"], whole["unseen"][:2], atol=1e-5)
    np.testing.assert_allclose(whole.truncate(2)["unseen"], whole["unseen"][:2], atol=1e-6)
    mean = vectors.vectors.mean(axis=0)
    np.testing.assert_allclose(vectors.all_but_the_top(0)["unseen"], vectors["unseen"] - mean, atol=1e-5)
    if model.kept is None:
        whole.save(tmp_path / "turned.bin", format="fasttext")
        again = Vectors.load(tmp_path / "turned.bin")
        np.testing.assert_allclose(again[["cat", *UNSEEN]], whole[["cat", *UNSEEN]], atol=1e-5)


@pytest.mark.parametrize(
    "subwords",
    [
        FastTextSubwords(DenseRows(TABLE), 2, 4),
        FastTextSubwords(DenseRows(TABLE[:3]), 1, 2, buckets=50, kept=np.array([40, 3, 17])),
        FloretSubwords(DenseRows(TABLE), 2, 3, hash_count=3, hash_seed=9, bow="^", eow="ß"),
    ],
    ids=["all", "pruned", "floret"],
)
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_the_native_file_keeps_them(tmp_path, subwords, storage):
    vectors = Vectors(["cat", "dog"], TABLE[:2] * 3, subwords=subwords).quantized(storage)
    vectors.save(tmp_path / "v.safetensors")
    again = Vectors.load(tmp_path / "v.safetensors")
    assert list(again) == ["cat", "dog"] and again.subwords.settings() == subwords.settings()
    np.testing.assert_array_equal(again[["cat", *UNSEEN]], vectors[["cat", *UNSEEN]])
    again.save(tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == (tmp_path / "v.safetensors").read_bytes()
    part = Vectors.load(tmp_path / "v.safetensors", limit=1)
    np.testing.assert_array_equal(part[["cat", "dogs"]], vectors[["cat", "dogs"]])


def test_the_native_file_opens_in_its_own_library(tmp_path, vectors):
    from safetensors.numpy import load_file

    vectors.save(tmp_path / "v.safetensors")
    tensors = load_file(tmp_path / "v.safetensors")
    np.testing.assert_array_equal(tensors["ngrams"], vectors.subwords.table.matrix)


def test_no_keys_at_all(tmp_path):
    vectors = Vectors([], np.empty((0, 6)), subwords=FloretSubwords(DenseRows(TABLE), 2, 3))
    assert len(vectors) == 0 and "0 keys" in repr(vectors)
    assert vectors["cat"].shape == (6,) and vectors.similarity("cat", "cat") == pytest.approx(1)
    for ask in (vectors.most_similar, vectors.similar_by_word):
        with pytest.raises(SettingError, match="no keys to choose from"):
            ask("cat")
    for reduce in (vectors.reduce, vectors.all_but_the_top):
        with pytest.raises(SettingError, match="no rows"):
            reduce(2)
    vectors.save(tmp_path / "v.safetensors")
    np.testing.assert_array_equal(Vectors.load(tmp_path / "v.safetensors")["cat"], vectors["cat"])
    for name in ("v.txt", "v.bin", "v.glove"):
        with pytest.raises(FormatError, match="there are no keys"):
            vectors.save(tmp_path / name)
        assert not (tmp_path / name).exists()
    with pytest.raises(ShapeError, match="one row and number is the least"):
        Vectors([], np.empty((0, 6)))


def test_a_native_file_whose_subwords_lie(tmp_path):
    """Every byte of the header of a small file, changed: refused, or read as something that works."""
    vectors = Vectors(
        ["cat"], TABLE[:1, :2], subwords=FastTextSubwords(DenseRows(TABLE[:4, :2].copy()), 2, 3)
    )
    vectors.save(tmp_path / "v.safetensors")
    data = (tmp_path / "v.safetensors").read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    begin = 8 + header.index(b'\\"kind')
    refused = 0
    for place in range(begin, 8 + header.rindex(b"}}") + 2):
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert Vectors.load(bad)["dogs"].shape == (2,)
        except FirthError:
            refused += 1
    assert refused > 50


# -- on the command line


def test_unseen_words_on_the_command_line(tmp_path, capsys, monkeypatch):
    path = str(Model().save(tmp_path))
    assert cli.run(["similar", path, "unseen", "--json"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("unseen\n日本語\n".encode()), "utf-8"))
    assert cli.run(["similar", path, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == ["unseen", "unseen", "日本語"] and lines[0] == lines[1]
    plain = Vectors.load(path)
    assert lines[2]["neighbours"][0][0] == plain.most_similar("日本語")[0][0]


def test_converting_on_the_command_line(tmp_path, capsys):
    path = str(Model().save(tmp_path))
    assert cli.run(["convert", path, str(tmp_path / "again.bin"), "--format", "fasttext"]) == 0
    assert Vectors.load(tmp_path / "again.bin").has_vector("unseen")
    assert cli.run(["convert", path, str(tmp_path / "v.vec")]) == 0
    assert "does not keep" in (said := capsys.readouterr().err) and "subwords" in said
    (tmp_path / "t.floret").write_bytes(floret_lines(TABLE))
    assert cli.run(["convert", str(tmp_path / "t.floret"), str(tmp_path / "t.vec")]) == 1
    said = capsys.readouterr().err
    assert "there are no keys" in said and not (tmp_path / "t.vec").exists()
