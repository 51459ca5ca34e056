"""``Vectors``: gensim's questions and answers, immutability, new ones from old."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.errors import KeyNotFound, SettingError, ShapeError
from firth.keys import Keys
from firth.vectors import Vectors

WORDS = ["king", "queen", "man", "woman", "apple", "zero"]
ROWS = [[3, 3, 0], [3, 0, 3], [1, 1, 0], [1, 0, 1], [0, 5, -1], [0, 0, 0]]


@pytest.fixture
def words() -> Vectors:
    return Vectors(WORDS, ROWS, counts=[9, 8, 7, 6, 5, 4], metadata={"dim": 3})


@pytest.fixture(params=["memory", "file"])
def many(request, tmp_path) -> Vectors:
    random = np.random.default_rng(0)
    keys = [f"key{row}" for row in range(300)]
    vectors = Vectors(keys, random.normal(size=(300, 8)), counts=range(300, 0, -1))
    if request.param == "memory":
        return vectors
    vectors.save(tmp_path / "v.safetensors")
    return Vectors.load(tmp_path / "v.safetensors")


def cosine(a, b):
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def names(neighbours):
    return [key for key, _ in neighbours]


# -- rows and keys


def test_rows_by_key(words):
    assert words["king"].tolist() == [3, 3, 0] and words[["man", "king"]].tolist() == [[1, 1, 0], [3, 3, 0]]
    assert words[1].tolist() == [3, 0, 3] and words[[]].shape == (0, 3)
    assert "king" in words and "emperor" not in words and 5 in words and 6 not in words and None not in words
    assert len(words) == 6 and list(words) == WORDS and words.vector_size == 3
    assert words.index_to_key == WORDS and words.index_to_key[1:3] == ["queen", "man"]
    assert words.index_to_key[-1] == "zero" and words.index_to_key.index("man") == 2
    assert words.key_to_index["woman"] == 3 and dict(words.key_to_index) == {
        k: i for i, k in enumerate(WORDS)
    }
    assert (
        words.get_index("man") == 2 and words.get_index("x", default=-7) == -7 and words.has_index_for("man")
    )
    np.testing.assert_allclose(words.get_vector("king", norm=True), [0.5**0.5, 0.5**0.5, 0], rtol=1e-6)
    assert words.get_vector("zero", norm=True).tolist() == [0, 0, 0]
    assert words.norms.tolist() == pytest.approx([math.hypot(*row) for row in ROWS])


def test_a_missing_key_names_the_closest(words):
    with pytest.raises(
        KeyNotFound, match=r"'kign' is not in the vectors of 6 keys; did you mean 'king'\?"
    ) as caught:
        words["kign"]
    assert isinstance(caught.value, KeyError)
    for call in (
        lambda: words.most_similar("kign"),
        lambda: words.similarity("king", "kign"),
        lambda: words.nearest(["king", "kign"]),
        lambda: words.distances("king", ["kign"]),
        lambda: words.subset(["kign"]),
        lambda: words.n_similarity(["kign"], ["king"]),
        lambda: words[["king", "kign"]],
    ):
        with pytest.raises(KeyNotFound, match="did you mean 'king'"):
            call()
    with pytest.raises(KeyNotFound):
        words[6]
    with pytest.raises(KeyNotFound):
        words[-1]


def test_immutable(words, tmp_path):
    words.save(tmp_path / "v.safetensors")
    for vectors in (words, Vectors.load(tmp_path / "v.safetensors")):
        for array in (
            vectors.vectors,
            vectors["king"],
            vectors.counts,
            vectors.get_vector("king", norm=True),
        ):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        with pytest.raises(TypeError):
            vectors.key_to_index["x"] = 1
        with pytest.raises(TypeError):
            vectors.index_to_key[0] = "x"
        vectors.metadata["dim"] = 99
        assert vectors.metadata == {"dim": 3}


@pytest.mark.parametrize(
    ("keys", "matrix", "extra", "words"),
    [
        (["a"], [[1.0], [2.0]], {}, "1 keys and 2 rows"),
        (["a", "a"], [[1.0], [2.0]], {}, "'a' occurs twice, in rows 0 and 1"),
        (["a", ""], [[1.0], [2.0]], {}, "key 1 is ''"),
        (["a", 3], [[1.0], [2.0]], {}, "key 1 is 3"),
        ([], np.zeros((0, 2)), {}, "one row"),
        (["a"], np.zeros((1, 0)), {}, "one row"),
        (["a"], [1.0], {}, "matrix is float64 of shape"),
        (["a"], [["x"]], {}, "numbers are expected"),
        (["a"], [[1j]], {}, "numbers are expected"),
        (["a"], [[1.0]], {"counts": [1, 2]}, "counts"),
        (["a"], [[1.0]], {"counts": [0.5]}, "counts"),
        (["a"], [[1.0]], {"context": [[1.0, 2.0]]}, "context"),
        (["a"], [[1.0]], {"metadata": {"x": object()}}, "no JSON"),
        (["a"], [[1.0]], {"metadata": {"x": math.nan}}, "no JSON"),
    ],
)
def test_what_makes_no_vectors(keys, matrix, extra, words):
    with pytest.raises((ShapeError, SettingError), match=words):
        Vectors(keys, matrix, **extra)


def test_a_float32_matrix_is_taken_over_without_a_copy():
    matrix = np.ones((2, 3), np.float32)
    assert np.shares_memory(Vectors(["a", "b"], matrix).vectors, matrix)
    assert matrix.flags.writeable


# -- neighbours


def test_most_similar_by_hand(words):
    found = words.most_similar("king", topn=2)
    assert found == [("man", pytest.approx(1)), ("apple", pytest.approx(15 / 26**0.5 / 18**0.5))]
    assert all(type(score) is float for _, score in found)
    # The inputs are brought to length one before they are added up: king - man + woman.
    assert words.most_similar(["king", "woman"], ["man"], topn=1) == [("queen", pytest.approx(1))]
    assert words.most_similar(positive=["king"], topn=0) == []
    assert len(words.most_similar("king", topn=99)) == 5
    assert names(words.most_similar("zero", topn=2)) == ["king", "queen"]  # all cosines are 0: low rows first


def test_most_similar_agrees_with_the_formula(many):
    unit = many.vectors / np.linalg.norm(many.vectors, axis=1, keepdims=True)
    query = 2 * unit[4] + unit[9] - unit[30] - 0.5 * unit[7]
    cosines = unit @ query / np.linalg.norm(query)
    given_items = (["key4", "key9"], ["key30", "key7"])
    found = many.most_similar([("key4", 2), "key9"], ["key30", ("key7", -0.5)], topn=None)
    assert found.dtype == np.float32 and found.shape == (300,)
    np.testing.assert_allclose(found, cosines, atol=1e-6)
    order = [row for row in np.argsort(-cosines) if row not in (4, 9, 30, 7)]
    best = many.most_similar([("key4", 2), 9], ["key30", ("key7", -0.5)], topn=12)
    assert names(best) == [f"key{row}" for row in order[:12]]
    assert [score for _, score in best] == pytest.approx(cosines[order[:12]], abs=1e-6)
    clipped = many.most_similar(
        [("key4", 2), "key9"], [30, ("key7", -0.5)], topn=5, clip_start=20, clip_end=90
    )
    assert names(clipped) == [f"key{row}" for row in order if 20 <= row < 90][:5]
    few = many.most_similar([("key4", 2), "key9"], ["key30", ("key7", -0.5)], topn=5, restrict_vocab=20)
    assert names(few) == [f"key{row}" for row in order if row < 20][:5]
    assert len(many.most_similar(*given_items, topn=None, restrict_vocab=20)) == 20
    array = many.most_similar([query.astype(np.float32)], topn=1)
    assert names(array) == [f"key{np.argmax(cosines)}"]  # an array has no row of its own to leave out


def test_similar_by(many):
    expected = many.most_similar("key5", topn=4, restrict_vocab=100)
    assert many.similar_by_word("key5", 4, 100) == expected == many.similar_by_key(5, 4, 100)
    assert many.similar_by_vector(many["key5"], 5, 100)[1:] == expected


def test_wrong_questions(words):
    for call, sentence in (
        (words.most_similar, "neither positive nor negative"),
        (lambda: words.most_similar_cosmul(negative="king"), "no positive"),
        (lambda: words.most_similar("king", restrict_vocab=2, clip_end=3), "not both"),
        (lambda: words.most_similar("king", restrict_vocab=0), "restrict_vocab is 0"),
        (lambda: words.most_similar("king", clip_start=4, clip_end=4), "no rows"),
        (lambda: words.most_similar([1.5]), r"1.5 is no key"),
        (lambda: words.most_similar(np.ones(4)), r"shape \(4,\), these vectors have 3"),
        (lambda: words.most_similar(np.full(3, np.nan)), "NaN"),
        (lambda: words.nearest("king"), r"try \['king'\]"),
        (lambda: words.nearest(["king"], topn=0), "topn is 0"),
        (lambda: words.nearest(np.ones((2, 4))), r"\(2, 4\); \(Q, 3\)"),
        (lambda: words.nearest(np.full((2, 3), np.inf)), "NaN or infinity"),
        (lambda: words.doesnt_match([]), "no keys"),
        (lambda: words.n_similarity([], ["king"]), "no keys"),
        (lambda: words.get_mean_vector(["king"], [1, 2]), "1 keys have 2 weights"),
        (lambda: words.most_similar_to_given("king", []), "no keys"),
        (lambda: words.reduce(4), "dim is 4; 1 to 3"),
    ):
        with pytest.raises((SettingError, ShapeError), match=sentence):
            call()


def test_the_batch_is_many_single_questions(many):
    keys = ["key3", "key250", "key3"]
    batch = many.most_similar_batch(keys, topn=6)
    assert batch == [many.most_similar(key, topn=6) for key in keys]
    ids, scores = many.nearest(keys, topn=6)
    assert ids.dtype == np.int64 and scores.dtype == np.float32 and ids.shape == scores.shape == (3, 6)
    assert [[f"key{row}" for row in row_ids] for row_ids in ids] == [names(found) for found in batch]
    by_array = many.nearest(5 * many[keys], topn=7)[0]
    assert by_array[:, 0].tolist() == [3, 250, 3] and by_array[:, 1:].tolist() == ids.tolist()
    assert names(many.most_similar_batch(["key250"], topn=99, restrict_vocab=9)[0]) == names(
        many.most_similar("key250", topn=99, restrict_vocab=9)
    )
    assert many.nearest(np.array([3, 250]), topn=6)[0].tolist() == ids[:2].tolist()


def test_a_batch_gives_each_query_all_its_answers(many):
    # A row that is searched is no answer to itself; one outside of the restriction loses nothing by that.
    keys = ["key2", "key250", "key0"]
    for topn, found in ((99, [8, 9, 8]), (9, [8, 9, 8]), (8, [8, 8, 8])):
        batch = many.most_similar_batch(keys, topn=topn, restrict_vocab=9)
        alone = [many.most_similar(key, topn=topn, restrict_vocab=9) for key in keys]
        assert [names(answers) for answers in batch] == [names(answers) for answers in alone]
        assert [len(answers) for answers in batch] == found
    ids, scores = many.nearest(keys, topn=99, restrict_vocab=9)
    assert ids.shape == (3, 9) and ids[:, -1].tolist()[::2] == [-1, -1] and ids[1].min() == 0
    assert np.isneginf(scores[[0, 2], -1]).all() and np.isfinite(scores[:, :-1]).all()
    assert many.nearest(["key2", "key0"], topn=99, restrict_vocab=9)[0].shape == (2, 8)


def test_one_string_is_no_list_of_keys(words):
    letters = Vectors(list("king"), np.eye(4))
    for call in (
        letters.get_mean_vector,
        letters.nearest,
        letters.most_similar_batch,
        letters.doesnt_match,
        letters.subset,
        lambda key: letters.n_similarity(key, ["k"]),
        lambda key: letters.distances("k", key),
    ):
        with pytest.raises(SettingError, match=r"a list of keys .* try \['king'\]"):
            call("king")


@pytest.mark.filterwarnings("error")
def test_rows_with_nan_come_last():
    vectors = Vectors(list("abcd"), [[1, 0], [1, 1], [np.nan, 1], [0, 1]])
    for found in (
        vectors.most_similar("a"),
        vectors.most_similar_cosmul("a"),
        vectors.most_similar_cosmul("a", "b"),
    ):
        assert found[-1] == ("c", -np.inf) and all(np.isfinite(score) for _, score in found[:-1])


def test_most_similar_cosmul_agrees_with_the_formula(many):
    unit = many.vectors / np.linalg.norm(many.vectors, axis=1, keepdims=True)
    a, b, c = ((1 + unit @ unit[row]) / 2 for row in (1, 2, 3))
    scores = a * b / (c + 1e-6)
    np.testing.assert_allclose(
        many.most_similar_cosmul(["key1", "key2"], ["key3"], topn=None), scores, rtol=1e-4
    )
    order = [row for row in np.argsort(-scores) if row not in (1, 2, 3)]
    found = many.most_similar_cosmul(["key1", 2], "key3", topn=7)
    assert names(found) == [f"key{row}" for row in order[:7]]
    limited = many.most_similar_cosmul(["key1", 2], "key3", topn=7, restrict_vocab=50)
    assert names(limited) == [f"key{row}" for row in order if row < 50][:7]
    assert many.most_similar_cosmul("key1", topn=0) == []


# -- similarities


def test_similarity_and_distance(words):
    assert words.similarity("king", "queen") == pytest.approx(0.5)
    assert words.distance("king", "queen") == pytest.approx(0.5)
    assert words.similarity("king", "zero") == 0 and type(words.similarity("king", "man")) is float
    distances = words.distances("king")
    assert distances.dtype == np.float32
    assert distances[:4].tolist() == pytest.approx([0, 0.5, 0, 0.5], abs=1e-6) and distances[5] == 1
    assert words.distances("king", ["queen", "zero"]).tolist() == pytest.approx([0.5, 1])
    assert words.distances(words["queen"])[1] == pytest.approx(0, abs=1e-6)


def test_means(words):
    unit_king, unit_queen = words.get_vector("king", norm=True), words.get_vector("queen", norm=True)
    np.testing.assert_allclose(
        words.get_mean_vector(["king", "queen"]), (unit_king + unit_queen) / 2, rtol=1e-6
    )
    weighted = words.get_mean_vector(["king", "queen"], [1, -3], pre_normalize=False)
    np.testing.assert_allclose(weighted, [-6 / 4, 3 / 4, -9 / 4], rtol=1e-6)
    assert np.linalg.norm(words.get_mean_vector(["king", "apple"], post_normalize=True)) == pytest.approx(1)
    np.testing.assert_allclose(words.get_mean_vector(["king", "nobody"]), unit_king, rtol=1e-6)
    with pytest.raises(KeyNotFound):
        words.get_mean_vector(["king", "nobody"], ignore_missing=False)
    expected = cosine(np.add(ROWS[0], ROWS[1]), np.add(ROWS[2], ROWS[4]))
    assert words.n_similarity(["king", "queen"], ["man", "apple"]) == pytest.approx(expected)


def test_doesnt_match_rank_and_friends(words):
    assert words.doesnt_match(["queen", "woman", "king", "apple"]) == "apple"
    with pytest.warns(UserWarning, match="nobody"):
        assert words.doesnt_match(["queen", "woman", "nobody", "apple"]) == "apple"
    with pytest.raises(KeyNotFound):
        words.doesnt_match(["nobody"])
    assert words.closer_than("queen", "apple") == ["king", "man", "woman", "zero"]
    assert words.rank("king", "man") == 1 and words.rank("queen", "apple") == 5
    assert words.most_similar_to_given("king", ["zero", "queen", "apple"]) == "apple"
    total = sum(score for _, score in words.most_similar("king", topn=3))
    assert words.relative_cosine_similarity("king", "queen", topn=3) == pytest.approx(0.5 / total)


def test_extreme_numbers_give_no_nan():
    vectors = Vectors(["big", "small", "zero", "tiny"], [[1e30, 1e30], [1e-30, 0], [0, 0], [1e-44, 0]])
    assert vectors.similarity("big", "small") == pytest.approx(0.5**0.5)
    found = vectors.most_similar("big", topn=None)
    assert np.isfinite(found).all() and found[1] == pytest.approx(0.5**0.5)
    spoilt = Vectors(["a", "b", "c"], [[1, 0], [np.nan, 1], [1, 1]])
    assert names(spoilt.most_similar("a", topn=1)) == ["c"]


# -- new ones from old


def test_with_vectors(words):
    changed = words.with_vectors({"man": [7, 7, 7], "prince": np.array([1.0, 2, 3])})
    assert list(changed) == [*WORDS, "prince"] and changed["man"].tolist() == [7, 7, 7]
    assert changed["prince"].tolist() == [1, 2, 3] and changed.counts.tolist() == [9, 8, 7, 6, 5, 4, 0]
    assert words["man"].tolist() == [1, 1, 0] and "prince" not in words
    assert changed.metadata == {"dim": 3, "changes": ["with_vectors: 2 rows, 1 new"]}
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        words.with_vectors({"man": [1, 2]})
    with_context = Vectors(WORDS, ROWS, context=np.ones((6, 3)))
    assert with_context.with_vectors({"man": [1, 2, 3]}).context is not None
    assert with_context.with_vectors({"prince": [1, 2, 3]}).context is None


def test_normalized(words):
    unit = words.normalized()
    assert (
        unit.norms.tolist() == pytest.approx([1, 1, 1, 1, 1, 0])
        and unit.counts.tolist() == words.counts.tolist()
    )
    assert dict(unit.most_similar("king")) == pytest.approx(dict(words.most_similar("king")), abs=1e-6)


def test_subset(tmp_path):
    vectors = Vectors(WORDS, ROWS, counts=[9, 8, 7, 6, 5, 4], context=np.arange(18).reshape(6, 3))
    vectors.save(tmp_path / "v")
    for source in (vectors, Vectors.load(tmp_path / "v")):
        part = source.subset(["apple", "king"])
        assert list(part) == ["apple", "king"] and part.vectors.tolist() == [ROWS[4], ROWS[0]]
        assert part.counts.tolist() == [5, 9] and part.context["king"].tolist() == [0, 1, 2]
    with pytest.raises(SettingError, match="occurs twice"):
        vectors.subset(["king", "king"])


def test_reduce_is_pca():
    random = np.random.default_rng(1)
    matrix = (
        random.normal(size=(400, 6)) * [9, 5, 3, 1, 0.5, 0.1] @ np.linalg.qr(random.normal(size=(6, 6)))[0]
        + 4
    )
    vectors = Vectors([str(row) for row in range(400)], matrix, counts=range(400))
    reduced = vectors.reduce(3)
    centred = matrix - matrix.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :3] * singular[:3]
    np.testing.assert_allclose(np.abs(reduced.vectors), np.abs(expected), atol=1e-3)
    assert reduced.vector_size == 3 and reduced.counts.tolist() == list(range(400))
    full = vectors.reduce(6)  # a rotation: all distances stay
    apart = np.linalg.norm(full.vectors[:50, None] - full.vectors[None, :50], axis=2)
    np.testing.assert_allclose(
        apart, np.linalg.norm(matrix[:50, None] - matrix[None, :50], axis=2), atol=1e-3
    )
    assert "% of the variance" in reduced.metadata["changes"][0]


# -- files and people


def test_everything_travels_in_the_native_file(tmp_path):
    metadata = {"dim": 3, "scores": {"ws353": 0.65}, "loss": [1.5, 1.25], "note": "ü"}
    vectors = Vectors(WORDS, ROWS, counts=[9, 8, 7, 6, 5, 4], context=np.eye(6, 3), metadata=metadata)
    vectors.save(tmp_path / "v")
    again = Vectors.load(tmp_path / "v")
    assert again.metadata == metadata and again.counts.tolist() == [9, 8, 7, 6, 5, 4]
    assert again.context.vectors.tolist() == np.eye(6, 3).tolist() and again.context["queen"].tolist() == [
        0,
        1,
        0,
    ]
    assert again.context is again.context and again.context.context is None
    assert again.source == tmp_path / "v" and vectors.source is None
    plain = Vectors(WORDS, ROWS)
    plain.save(tmp_path / "w")
    again = Vectors.load(tmp_path / "w")
    assert again.counts is None and again.context is None and again.metadata == {}


def test_gensim_names_for_files(tmp_path, words):
    for binary, header in ((False, True), (True, True), (False, False)):
        words.save_word2vec_format(tmp_path / "v", binary=binary, write_header=header)
        again = Vectors.load_word2vec_format(tmp_path / "v", binary=binary, no_header=not header, limit=2)
        assert list(again) == ["king", "queen"] and again.vectors.tolist() == ROWS[:2]
    with pytest.raises(SettingError):
        words.save_word2vec_format(tmp_path / "v", binary=True, write_header=False)
    with pytest.raises(SettingError):
        Vectors.load_word2vec_format(tmp_path / "v", binary=True, no_header=True)


def test_a_file_can_be_written_over_itself(tmp_path):
    path = tmp_path / "v.safetensors"
    Vectors(WORDS, ROWS).save(path)
    opened = Vectors.load(path)
    opened.subset(["king"]).save(path)
    assert opened["queen"].tolist() == [3, 0, 3] and list(Vectors.load(path)) == ["king"]


def test_repr(tmp_path, words):
    assert repr(words) == "Vectors(6 keys x 3, 'king' 'queen' 'man' 'woman' ..., with counts)"
    words.save(tmp_path / "my.safetensors")
    assert repr(Vectors.load(tmp_path / "my.safetensors")).endswith("with counts, my.safetensors)")
    page = Vectors(["<b>", "a"], [[1.0], [2.0]], metadata={"x<y": 1})._repr_html_()
    assert "&lt;b&gt;" in page and "x&lt;y" in page and "<b>" not in page


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=60, unique=True), st.randoms())
def test_keys_from_bytes_are_the_keys(keys, random):
    data, offsets = Keys(keys).to_bytes()
    rows = list(range(len(keys)))
    random.shuffle(rows)
    lazy = Keys.from_bytes(data, offsets, "test")
    assert [lazy.row(keys[row]) for row in rows] == rows
    lazy = Keys.from_bytes(data, offsets, "test")
    assert [lazy[row] for row in rows] == [keys[row] for row in rows]
    assert lazy[-1] == keys[-1] and lazy[:3] == keys[:3] and lazy[-2:] == keys[-2:] and len(lazy) == len(keys)
    absent = "".join(keys) + "x"
    assert lazy.row(absent) == -1 and absent not in lazy and lazy.row(None) == -1
    assert lazy == keys and lazy == Keys(keys) and lazy not in ([*keys, "x"], 3)
    assert list(lazy.take(np.array(rows))) == [keys[row] for row in rows]
    assert isinstance(lazy, collections.abc.Sequence) and repr(lazy).startswith("Keys([")
