"""Arrays with a vocabulary and Parquet: exact bytes, round trips, what others write, files that lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from firth import formats
from firth.errors import FormatError, StorageError
from firth.vectors import Vectors

KEYS = ["</s>", "new york", "zürich", "a\tb", "\x85", '"', "null"]
MATRIX = np.arange(21, dtype=np.float32).reshape(7, 3) / 8
GOLDEN = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }"
    + b" " * 58
    + b"\n\x00\x00\x80\x3f\x00\x00\x00\xc0"
)


def same(a: Vectors, b: Vectors) -> bool:
    return list(a) == list(b) and a.vectors.tobytes() == b.vectors.tobytes()


def with_keys(path: Path, array: np.ndarray, keys: str = "a\nb\n") -> Path:
    np.save(path, array)
    path.with_suffix(".vocab.txt").write_bytes(keys.encode())
    return path


@pytest.fixture
def unsynced(monkeypatch):
    """Waiting for the disk after each of many small files takes most of a test's time."""
    monkeypatch.setattr("firth.files.os.fsync", lambda _: None)


# -- arrays


def test_golden_npy(tmp_path):
    path = tmp_path / "v.npy"
    Vectors(["a", "ü"], [[1.0], [-2.0]]).save(path)
    assert path.read_bytes() == GOLDEN
    assert (tmp_path / "v.vocab.txt").read_bytes() == b"a\n\xc3\xbc\n"
    assert len(list(tmp_path.iterdir())) == 2
    again = Vectors.load(path)
    assert list(again) == ["a", "ü"] and again.vectors.tolist() == [[1], [-2]]
    assert np.load(path).tolist() == [[1], [-2]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True),
    data=st.data(),
)
@pytest.mark.parametrize("name", ["npy", "parquet"])
def test_round_trip(tmp_path, unsynced, name, keys, data):
    if name == "npy":
        keys = [key for key in keys if "\n" not in key and not key.endswith("\r")] or ["a"]
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(numbers, min_size=2 * len(keys), max_size=2 * len(keys)))
    vectors = Vectors(keys, np.array(values, np.float32).reshape(-1, 2), counts=range(len(keys)))
    path = tmp_path / f"v.{name}"
    vectors.save(path)
    again = Vectors.load(path)
    assert same(again, vectors)
    assert (again.counts is None) == (name == "npy")
    assert same(Vectors.load(path, limit=1), vectors.subset(keys[:1]))


def test_npy_is_mapped(tmp_path):
    Vectors(KEYS, MATRIX).save(tmp_path / "v.npy")
    base = Vectors.load(tmp_path / "v.npy").vectors
    while not isinstance(base, np.memmap) and base is not None:
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_every_float(tmp_path, dtype, order):
    array = np.asarray(MATRIX[:2], dtype, order=order)
    again = Vectors.load(with_keys(tmp_path / "v.npy", array))
    assert again.vectors.dtype == np.float32 and again.vectors.tolist() == MATRIX[:2].tolist()


@pytest.mark.parametrize("name", ["v.vocab.json", "v.txt", "v.json", "vocab.txt", "vocab.json"])
def test_the_vocabulary_is_found_under_usual_names(tmp_path, name):
    np.save(tmp_path / "v.npy", MATRIX[:2])
    with pytest.raises(FormatError, match=r"array without keys: put them beside it into v\.vocab\.txt"):
        Vectors.load(tmp_path / "v.npy")
    text = json.dumps(["a", "b\nc"]) if name.endswith("json") else "a\r\nb c\r\n"
    (tmp_path / name).write_bytes(text.encode())
    assert list(Vectors.load(tmp_path / "v.npy")) == ["a", "b\nc" if name.endswith("json") else "b c"]
    assert formats.inspect(tmp_path / "v.npy")[1].inside == (f"keys in {name}",)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("a\n", "2 rows and .* 1 keys"),
        ("a\nb\nc\n", "2 rows and .* 3 keys"),
        ("a\n\n", "line 2: the key is empty"),
        ("a\na\n", "'a' of row 1 occurs twice"),
        ("", "is empty"),
    ],
)
def test_a_vocabulary_that_does_not_fit(tmp_path, keys, words):
    path = with_keys(tmp_path / "v.npy", MATRIX[:2], keys)
    with pytest.raises(FormatError, match=words):
        Vectors.load(path)


@pytest.mark.parametrize("text", ["[", "{}", "[1, 2]", '["a", "a"]', '["a", ""]', "[" * 100_000])
def test_a_damaged_vocabulary_in_json(tmp_path, text):
    np.save(tmp_path / "v.npy", MATRIX[:2])
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(FormatError, match=r"v\.json"):
        Vectors.load(tmp_path / "v.npy")


def test_objects_are_never_unpickled(tmp_path):
    path = with_keys(tmp_path / "v.npy", np.array([[1.0, "x"]], object))
    with pytest.raises(FormatError, match="pickle that is never opened"):
        Vectors.load(path)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, np.float32), r"shape \(3,\)"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.zeros((0, 2), np.float32), "0 x 2"),
        (np.full((2, 2), 1e300), "beyond float32"),
        (np.full((2, 2), np.nan), "NaN"),
    ],
)
def test_npy_of_what_is_no_table_of_vectors(tmp_path, array, words):
    with pytest.raises(FormatError, match=words):
        Vectors.load(with_keys(tmp_path / "v.npy", array))


@pytest.mark.parametrize(
    "shape", ["(1099511627776, 1)", "(-2, 1)", "(2, -1)", "(3, 1)", "(2.0, 1)", "(True, 2)"]
)
def test_npy_that_lies(tmp_path, shape):
    path = tmp_path / "v.npy"
    Vectors(["a", "b"], [[1.0], [2.0]]).save(path)
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape.encode() + b", }"
    path.write_bytes(GOLDEN[:10] + head.ljust(117) + b"\n" + GOLDEN[128:])
    with pytest.raises(FormatError, match=r"v\.npy"):
        Vectors.load(path)


def test_a_pair_is_replaced_so_that_it_never_mixes(tmp_path, monkeypatch):
    """A crash between the two renames leaves numbers without keys, not the new beside the old."""
    path = tmp_path / "v.npy"
    Vectors(["a", "b"], MATRIX[:2]).save(path)
    with pytest.raises(FormatError, match="line end"):
        Vectors(["x", "y\nz"], MATRIX[:2]).save(path)
    assert list(Vectors.load(path)) == ["a", "b"]

    def fails(source, target, real=os.replace):
        if str(target).endswith(".txt"):
            raise OSError(5, "broken")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("firth.files.os.replace", fails)
        with pytest.raises(StorageError, match="broken"):
            Vectors(["x", "y"], 2 * MATRIX[:2]).save(path)
    with pytest.raises(FormatError, match="without keys"):
        Vectors.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["v.npy"]
    with pytest.raises(StorageError, match=r"ends in \.npy"):
        Vectors(["x"], MATRIX[:1]).save(tmp_path / "v", "npy")


# -- Parquet


def test_parquet_has_the_columns_that_it_says(tmp_path):
    path = tmp_path / "v.parquet"
    vectors = Vectors(KEYS, MATRIX, counts=range(7), metadata={"dim": 3})
    vectors.save(path)
    table = pq.read_table(path)
    assert table.schema.names == ["token", "count", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.field("element", pa.float32(), False), 3)
    assert table.column("token").to_pylist() == KEYS
    assert table.column("vector").to_pylist() == MATRIX.tolist()
    before = path.read_bytes()
    vectors.save(path)
    assert path.read_bytes() == before
    again = Vectors.load(path)
    assert same(again, vectors) and again.counts.tolist() == list(range(7)) and again.metadata == {"dim": 3}
    facts = formats.inspect(path)[1]
    assert (facts.rows, facts.dim, facts.dtype) == (7, 3, "float32") and facts.first == tuple(KEYS)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("listed", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 3)])
@pytest.mark.parametrize("names", [("word", "embedding"), ("text", "numbers"), ("key", "vectors")])
def test_parquet_of_others(tmp_path, kind, listed, names):
    rows = [[np.float16(x) for x in row] for row in MATRIX] if kind == pa.float16() else MATRIX.tolist()
    columns = {names[0]: pa.array(KEYS), "n": pa.array(range(7)), names[1]: pa.array(rows, listed(kind))}
    pq.write_table(pa.table(columns), tmp_path / "v", row_group_size=2)
    assert same(Vectors.load(tmp_path / "v"), Vectors(KEYS, MATRIX))
    assert same(Vectors.load(tmp_path / "v", limit=3), Vectors(KEYS[:3], MATRIX[:3]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"token": ["a"], "n": [1]}, "lists of floats called 'vector' is expected"),
        ({"n": [1], "vector": [[1.0]]}, "strings called 'token' is expected"),
        ({"x": ["a"], "y": ["b"], "vector": [[1.0]]}, "strings called 'token'"),
        ({"token": ["a", None], "vector": [[1.0], [2.0]]}, "row 1: the token is missing"),
        ({"token": ["a", "b"], "vector": [[1.0], None]}, "row 1: the vector is missing"),
        ({"token": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}, "row 1: the vector has 2 numbers; 1 are"),
        ({"token": ["a", "b"], "vector": [[1.0], [None]]}, "row 1: a number of the vector is missing"),
        ({"token": ["a", "b"], "vector": [[1.0], [float("nan")]]}, "row 1: the vector holds NaN"),
        ({"token": ["a", "b"], "vector": [[1.0], [1e300]]}, "row 1: .* beyond float32"),
        ({"token": ["a", ""], "vector": [[1.0], [2.0]]}, "row 1: the key is empty"),
        ({"token": ["a"], "vector": [[]]}, "empty|lists of floats"),
        (
            {"token": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32(), 2))},
            "no vectors",
        ),
    ],
)
def test_parquet_that_is_no_table_of_vectors(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "v")
    with pytest.raises(FormatError, match=words):
        Vectors.load(tmp_path / "v")


def test_parquet_repeats_keep_the_first_and_their_counts(tmp_path):
    table = pa.table({"token": ["a", "b", "a"], "count": [5, 3, 1], "vector": [[1.0], [2.0], [3.0]]})
    pq.write_table(table, tmp_path / "v")
    with pytest.warns(UserWarning, match="1 rows repeat a key"):
        again = Vectors.load(tmp_path / "v")
    assert (
        list(again) == ["a", "b"] and again.counts.tolist() == [5, 3] and again.vectors.tolist() == [[1], [2]]
    )


def test_parquet_with_a_name_of_a_column_that_is_no_text(tmp_path):
    Vectors(["a"], [[1.0]]).save(tmp_path / "v.parquet")
    data = (tmp_path / "v.parquet").read_bytes()
    (tmp_path / "v.parquet").write_bytes(data.replace(b"token", b"tok\xc7n"))
    with pytest.raises(FormatError, match="damaged Parquet"):
        Vectors.load(tmp_path / "v.parquet")


def test_parquet_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(FormatError, match="no form in UTF-8"):
        Vectors(["\ud800"], [[1.0]]).save(tmp_path / "v.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [b"PAR1 0.5 1\nx 0.5 1\n", b"PK 0.5 1\nx 0.5 1\n", b"\x80 0.5 1\nx 0.5 1\n"])
def test_a_key_that_looks_like_the_beginning_of_another_format(tmp_path, text):
    (tmp_path / "v").write_bytes(text)
    assert len(Vectors.load(tmp_path / "v", errors="replace")) == 2
