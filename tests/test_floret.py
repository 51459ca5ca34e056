"""floret tables: vectors by the definition, bytes both ways, and files that lie."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pytest

from firth import formats
from firth.errors import FirthError, FormatError
from firth.formats import Options, floret
from firth.subwords import DenseRows, FloretSubwords
from firth.vectors import Vectors
from subword_models import UNSEEN, floret_lines, floret_vector

TABLE = np.random.default_rng(3).standard_normal((30, 4)).astype(np.float32)
SEED = 2166136261


def save(tmp_path, data, name="table.floret"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(("minn", "maxn"), [(1, 1), (2, 4), (3, 6), (4, 3)])
def test_vectors_are_those_of_the_definition(tmp_path, count, minn, maxn):
    path = save(tmp_path, floret_lines(TABLE, minn, maxn, count))
    assert formats.recognise(path).name == "floret"
    vectors = Vectors.load(path)
    assert len(vectors) == 0 and vectors.vector_size == 4 and "cat" not in vectors and vectors.is_oov("cat")
    for word in ["cat", "</s>", *UNSEEN]:
        expected = floret_vector(TABLE, word, minn, maxn, count, SEED, "<", ">")
        np.testing.assert_allclose(vectors[word], expected, atol=1e-6)


def test_seed_and_marks_come_from_the_file(tmp_path):
    vectors = Vectors.load(save(tmp_path, floret_lines(TABLE, 2, 3, 2, 7, "^ ß")))
    expected = floret_vector(TABLE, "größe", 2, 3, 2, 7, "^", "ß")
    np.testing.assert_allclose(vectors["größe"], expected, atol=1e-6)
    assert vectors.subwords.settings() == {
        "kind": "floret", "minn": 2, "maxn": 3, "hash_count": 2, "hash_seed": 7, "bow": "^", "eow": "ß",
    }  # fmt: skip


def test_words_are_chosen_for_neighbours(tmp_path):
    vectors = Vectors.load(save(tmp_path, floret_lines(TABLE)))
    some = vectors.vectors_for_all(["cat", "cats", "zebra"])
    assert [key for key, _ in some.most_similar("cat")] == [
        key
        for key, _ in sorted(
            (("cats", -some.similarity("cat", "cats")), ("zebra", -some.similarity("cat", "zebra"))),
            key=lambda item: item[1],
        )
    ]
    assert len(some.most_similar("catty", topn=5)) == 3


def test_golden_bytes_both_ways(tmp_path):
    table = np.array([[0.5, -1.25], [3, 1e-5]], np.float32)
    data = b"2 2 3 6 2 2166136261 < >\n0 0.5 -1.25\n1 3 0.00001\n"
    subwords = FloretSubwords(DenseRows(table), 3, 6, hash_count=2)
    Vectors([], np.empty((0, 2)), subwords=subwords).save(tmp_path / "a.floret")
    assert (tmp_path / "a.floret").read_bytes() == data
    again = Vectors.load(save(tmp_path, data))
    np.testing.assert_array_equal(again.subwords.table.matrix, table)
    again.save(tmp_path / "b.txt", format="floret")
    assert (tmp_path / "b.txt").read_bytes() == data


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2", ".zst"])
def test_compressed_both_ways(tmp_path, ending):
    vectors = Vectors.load(save(tmp_path, gzip.compress(floret_lines(TABLE))))
    vectors.save(tmp_path / f"t.floret{ending}")
    np.testing.assert_array_equal(Vectors.load(tmp_path / f"t.floret{ending}")[[*UNSEEN]], vectors[[*UNSEEN]])


def test_keys_are_not_written(tmp_path):
    vectors = Vectors.load(save(tmp_path, floret_lines(TABLE))).vectors_for_all(["cat"])
    vectors.save(tmp_path / "again.floret")
    again = Vectors.load(tmp_path / "again.floret")
    assert len(again) == 0
    np.testing.assert_array_equal(again["cat"], vectors["cat"])


def test_inspect(tmp_path):
    row, facts = formats.inspect(save(tmp_path, floret_lines(TABLE)))
    assert (row.name, facts.rows, facts.dim, facts.dtype) == ("floret", 0, 4, "text")
    assert facts.inside == ("subwords", "30 rows of n-grams")


def test_other_text_is_no_table(tmp_path):
    # A line of GloVe whose key is a number, and one whose key has words.
    for data in (b"1 2 3 4 5 6 7 8\n2 2 3 4 5 6 7 8\n", b"1 2 3 4 5 6 a 8\n"):
        path = save(tmp_path, data)
        assert not floret.recognise(formats.table.read_head(path))


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (lambda: Vectors(["a"], np.ones((1, 2))), "no subwords"),
        (
            lambda: Vectors([], np.empty((0, 4)), subwords=FloretSubwords(DenseRows(TABLE), 2, 3, bow=" ")),
            "marks of a word",
        ),
        (
            lambda: Vectors([], np.empty((0, 4)), subwords=FloretSubwords(DenseRows(TABLE), 2, 3, eow="")),
            "marks of a word",
        ),
        (
            lambda: Vectors([], np.empty((0, 4)), subwords=FloretSubwords(DenseRows(TABLE * np.nan), 2, 3)),
            "NaN",
        ),
    ],
)
def test_what_cannot_be_written(tmp_path, vectors, words):
    with pytest.raises(FormatError, match=words):
        vectors().save(tmp_path / "t.floret")
    assert not list(tmp_path.iterdir())


def test_fasttext_subwords_cannot_be_written(tmp_path):
    from subword_models import Model

    vectors = Vectors.load(Model().save(tmp_path))
    with pytest.raises(FormatError, match="fasttext's kind"):
        vectors.save(tmp_path / "t.floret")
    floret_vectors = Vectors.load(save(tmp_path, floret_lines(TABLE))).vectors_for_all(["cat"])
    with pytest.raises(FormatError, match=r"floret's kind.*use safetensors"):
        floret_vectors.save(tmp_path / "t.bin", format="fasttext")


def line(index, value):
    """The table with one number of its first line changed."""
    first, rest = floret_lines(TABLE).split(b"\n", 1)
    pieces = first.split(b" ")
    pieces[index] = value
    return b" ".join(pieces) + b"\n" + rest


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (line(0, b"31"), "promises 31 rows and 30 follow"),
        (line(0, b"29"), "promises 29 rows and 30 follow"),
        (line(0, b"1099511627776"), "1,099,511,627,776 rows of 4 numbers cannot be"),
        (line(0, b"1999999999"), "promises 1,999,999,999 rows and 30 follow"),
        (line(0, b"0"), "0 rows"),
        (line(1, b"0"), "0 numbers"),
        (line(1, b"5"), "line 2"),
        (line(1, b"2000000000"), "line 2"),
        (line(3, b"101"), "maxn 101"),
        (line(4, b"5"), "hash_count is 5"),
        (line(4, b"0"), "hash_count is 0"),
        (line(5, b"4294967296"), "hash_seed 4294967296"),
        (line(6, b"\xff"), "settings cannot be"),
        (floret_lines(TABLE).replace(b"\n3 ", b"\n4 "), "named"),
        (floret_lines(TABLE).replace(b"\n3 ", b"\ncat "), "row 3 is named 'cat'"),
        (b"30 4 2 4 2 2166136261 < >\n", "holds no vectors|0 follow"),
        (b"30 4 2 4 2 2166136261 < >\n\n\n", "holds no vectors|0 follow"),
    ],
)
def test_headers_that_lie(tmp_path, data, words):
    path = save(tmp_path, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # repeated rows
        with pytest.raises(FormatError, match=words) as caught:
            Vectors.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_named_but_another_format(tmp_path):
    with pytest.raises(FormatError, match="its content is that of format='glove'"):
        Vectors.load(save(tmp_path, b"a 1 2\nb 2 3\n"), format="floret")
    with pytest.raises(FormatError, match="does not begin with a line"):
        floret.read(save(tmp_path, b"2 2 3 6 2 1 < >"), Options())


def test_cut_and_changed_at_every_byte(tmp_path):
    data = floret_lines(TABLE[:5])
    path = tmp_path / "t.floret"
    refused = 0
    for place in range(len(data)):
        for bad in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
            path.write_bytes(bad)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                try:
                    table = floret.read(path, Options())
                    assert table.subwords is not None and table.subwords.table.shape[0] < 10
                except FirthError:
                    refused += 1
    assert refused > len(data)
