"""Formats that are folders: the files that others look for, round trips, and whose folder is replaced."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firth import files, formats
from firth.errors import FormatError, StorageError
from firth.formats import static_card
from firth.vectors import Vectors

KEYS = ["the", "new york", "zürich", ",", "don't"]
MATRIX = np.arange(10, dtype=np.float32).reshape(5, 2) / 8
NAMES = {
    "static-folder": {"README.md", "config.json", "model.safetensors", "modules.json", "tokenizer.json"},
    "projector": {"tensors.tsv", "metadata.tsv", "projector_config.pbtxt"},
}


def same(a: Vectors, b: Vectors) -> bool:
    return list(a) == list(b) and a.vectors.tobytes() == b.vectors.tobytes()


def tensors(path: Path, **arrays: tuple[str, list[int], bytes]) -> None:
    header, data = {}, b""
    for name, (dtype, shape, part) in arrays.items():
        header[name.replace("__", ".")] = {
            "dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]
        }  # fmt: skip
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def folder(path: Path, model: dict[str, object], **arrays: tuple[str, list[int], bytes]) -> Path:
    """A folder as somebody else might write it."""
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps({"model": model}))
    tensors(path / "model.safetensors", **arrays)
    return path


WORDS = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
THREE = struct.pack("<3f", 1, 2, 0)


# -- both


@pytest.fixture
def unsynced(monkeypatch):
    """Waiting for the disk after each of many small files takes most of a test's time."""
    monkeypatch.setattr("firth.files.os.fsync", lambda _: None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True),
    data=st.data(),
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*split by the folder")
def test_round_trip(tmp_path, unsynced, name, keys, data):
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(numbers, min_size=2 * len(keys), max_size=2 * len(keys)))
    vectors = Vectors(keys, np.array(values, np.float32).reshape(-1, 2), counts=range(len(keys)))
    vectors.save(tmp_path / "v", name)
    again = Vectors.load(tmp_path / "v")
    assert same(again, vectors)
    assert again.counts.tolist() == list(range(len(keys)))
    assert same(Vectors.load(tmp_path / "v", limit=1), vectors.subset(keys[:1]))


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_put_in_place_whole_and_only_ours_is_replaced(tmp_path, name, monkeypatch):
    path, vectors = tmp_path / "v", Vectors(KEYS, MATRIX)
    path.mkdir()  # an empty folder may be used
    vectors.save(path, name)
    assert {file.name for file in path.iterdir()} == NAMES[name]
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    vectors.save(path, name)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before  # two runs, the same bytes
    assert formats.recognise(path).name == name
    with monkeypatch.context() as patch:
        patch.setattr("firth.files._sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(StorageError, match=r"no space left .*nothing was overwritten"):
            Vectors(["x"], [[1.0]]).save(path, name)
    assert same(Vectors.load(path), vectors) and [one.name for one in tmp_path.iterdir()] == ["v"]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="did not put there"):
        vectors.save(path, name)
    (path / "notes.txt").unlink()
    for marked in ("README.md", "projector_config.pbtxt"):
        if marked in before:
            (path / marked).write_text("somebody else's")
    with pytest.raises(StorageError, match="did not put there"):
        vectors.save(path, name)
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(StorageError, match="a file has that name"):
        vectors.save(file, name)
    with pytest.raises(StorageError, match=f"{name} is a folder"):
        Vectors.load(file, format=name)
    with pytest.raises(StorageError, match="a file of vectors is needed"):
        Vectors.load(path, format="glove")


def test_a_folder_that_cannot_be_renamed_comes_back(tmp_path, monkeypatch):
    path = tmp_path / "v"
    Vectors(KEYS, MATRIX).save(path, "projector")

    def fails(source, target, real=files.os.rename):
        if Path(target) == path and str(source).endswith(".tmp"):
            raise OSError(5, "broken")
        real(source, target)

    monkeypatch.setattr("firth.files.os.rename", fails)
    with pytest.raises(StorageError, match="broken"):
        Vectors(["x"], [[1.0]]).save(path, "projector")
    assert list(Vectors.load(path)) == KEYS and [one.name for one in tmp_path.iterdir()] == ["v"]


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(StorageError, match=r"none of vectors .*static-folder, projector.*it is empty"):
        Vectors.load(tmp_path)
    (tmp_path / "x.txt").write_text("a 1\n")
    with pytest.raises(StorageError, match=r"it holds x\.txt"):
        Vectors.load(tmp_path)


# -- sentence-transformers, model2vec


def test_golden_static_folder(tmp_path):
    path = tmp_path / "v"
    Vectors(["a b", "ü"], [[1.0], [-2.0]], metadata={"dim": 1}).save(path, "static-folder")
    data = (path / "model.safetensors").read_bytes()
    head = b'{"__metadata__": {"format": "pt"}, "embeddings": {"dtype": "F32", "shape": [3, 1], '
    head += b'"data_offsets": [0, 12]}}'
    assert data == struct.pack("<Q", 120) + head.ljust(120) + struct.pack("<3f", 1, -2, 0)
    read = {
        name: json.loads((path / name).read_text())
        for name in NAMES["static-folder"]
        if name.endswith("json")
    }
    assert read["config.json"] == {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "normalize": False,
        "hidden_dim": 1,
        "embedding_dtype": "float32",
        "firth": {"dim": 1},
    }
    assert read["modules.json"] == [
        {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}
    ]
    assert read["tokenizer.json"]["model"] == {
        "type": "WordLevel", "vocab": {"a b": 0, "ü": 1, "[UNK]": 2}, "unk_token": "[UNK]"
    }  # fmt: skip
    assert [(one["id"], one["content"]) for one in read["tokenizer.json"]["added_tokens"]] == [(0, "a b")]
    assert read["tokenizer.json"]["normalizer"] == {"type": "Lowercase"}
    again = Vectors.load(path)
    assert list(again) == ["a b", "ü"] and again.metadata == {"dim": 1}
    base = again.vectors
    while not isinstance(base, np.memmap) and base is not None:
        base = base.base
    assert isinstance(base, np.memmap)


def test_the_tokenizer_follows_the_keys():
    plain = static_card.Reading.of(["cat", "Dog", "don't"])
    assert (plain.lower, plain.marks, plain.added) == (False, False, ())
    cut = static_card.Reading.of(["cat", ",", "don't", "new york"])
    assert (cut.lower, cut.marks, cut.added, cut.never) == (True, True, (2, 3), 0)
    assert static_card.Reading.of([" "]).never == 1
    assert static_card.unknown_name(["[UNK]", "a"]) == "[[UNK]]"


def test_keys_that_the_tokenizer_never_makes_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(static_card, "ADDED", 1)
    with pytest.warns(UserWarning, match=r"1 keys \(as 'c-d'\) are split"):
        Vectors(["a-b", "c-d", ","], [[1.0], [2.0], [3.0]]).save(tmp_path / "v", "static-folder")
    assert list(Vectors.load(tmp_path / "v")) == ["a-b", "c-d", ","]


def test_unk_as_a_key_of_ours_stays(tmp_path):
    vectors = Vectors(["[UNK]", "a"], [[1.0], [2.0]])
    vectors.save(tmp_path / "v", "static-folder")
    assert same(Vectors.load(tmp_path / "v"), vectors)


@pytest.mark.parametrize("inner", ["", "0_StaticEmbedding"])
def test_what_sentence_transformers_writes(tmp_path, inner):
    made = folder(tmp_path / "v", WORDS)
    if inner:
        for name in ("tokenizer.json", "model.safetensors"):
            (made / name).unlink()
    folder(made / inner, WORDS, embedding__weight=("F32", [3, 1], THREE))
    modules = [{"idx": 0, "name": "0", "path": inner, "type": "..."}]
    (made / "modules.json").write_text(json.dumps(modules))
    assert list(Vectors.load(made)) == ["a", "b"] and Vectors.load(made)["b"].tolist() == [2]


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("F32", THREE),
        ("F16", struct.pack("<3e", 1, 2, 0)),
        ("F64", struct.pack("<3d", 1, 2, 0)),
        ("BF16", b"\x80\x3f\x00\x40\x00\x00"),
        ("I8", b"\x01\x02\x00"),
    ],
)
def test_every_number_type(tmp_path, dtype, data):
    made = folder(tmp_path / "v", WORDS, embeddings=(dtype, [3, 1], data))
    assert Vectors.load(made).vectors.tolist() == [[1], [2]]
    names = {"BF16": "bfloat16", "I8": "int8", "F16": "float16", "F32": "float32", "F64": "float64"}
    facts = formats.inspect(made)[1]
    assert (facts.rows, facts.dim, facts.dtype) == (2, 1, names[dtype])


def test_model2vec_mapping_and_weights(tmp_path):
    made = folder(
        tmp_path / "v",
        WORDS,
        embeddings=("F32", [2, 1], struct.pack("<2f", 3, 0)),
        mapping=("I64", [3], struct.pack("<3q", 0, 0, 1)),
        weights=("F64", [3], struct.pack("<3d", 0.5, 2, 1)),
    )
    assert Vectors.load(made).vectors.tolist() == [[1.5], [6.0]]


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "unk_id": 2, "vocab": [["a", 0.0], ["b", -1.0], ["<unk>", -2.0]]},
        {"type": "WordPiece", "unk_token": "?", "vocab": {"?": 2, "b": 1, "a": 0}},
        {"type": "BPE", "unk_token": None, "vocab": {"a": 0, "b": 1}, "merges": []},
    ],
)
@pytest.mark.filterwarnings("ignore:.*rows have no token")
def test_other_tokenizers(tmp_path, model):
    assert list(Vectors.load(folder(tmp_path / "v", model, embeddings=("F32", [3, 1], THREE)))) == ["a", "b"]


def test_a_trained_row_of_unknown_words_is_a_key(tmp_path):
    made = folder(tmp_path / "v", WORDS, embeddings=("F32", [3, 1], struct.pack("<3f", 1, 2, 3)))
    assert list(Vectors.load(made)) == ["a", "b", "[UNK]"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"vocab": {"a": 0, "b": 3}}, "'b' has the number 3; 0 to 2"),
        ({"vocab": {"a": 0, "b": -1}}, "number -1"),
        ({"vocab": {"a": 1 << 40}}, "number 1099511627776"),
        ({"vocab": {"a": 0.5}}, "number 0.5"),
        ({"vocab": {"a": 0, "b": 0}}, "the same number 0"),
        ({"vocab": [["a", 0], ["a", 0], ["c", 0]]}, "'a' of row 1 occurs twice"),
        ({"vocab": [[], 3]}, "None"),
        ({"vocab": {}}, "holds no tokens"),
        ({"vocab": 3}, "no vocabulary"),
        ({}, "no vocabulary"),
        (None, "no vocabulary"),
    ],
)
def test_a_tokenizer_that_lies(tmp_path, model, words):
    made = folder(tmp_path / "v", model, embeddings=("F32", [3, 1], THREE))
    with pytest.raises(FormatError, match=words):
        Vectors.load(made)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": ("F32", [3, 1], THREE)}, "'embeddings' is expected"),
        ({"embeddings": ("F32", [3], THREE)}, "rows of floats"),
        ({"embeddings": ("I32", [3, 1], THREE)}, "rows of floats"),
        ({"embeddings": ("F32", [1 << 40, 1], THREE)}, "offsets span"),
        ({"embeddings": ("F32", [0, 1], b"")}, "rows of floats"),
        ({"embeddings": ("F64", [3, 1], struct.pack("<3d", 1, 1e300, 0))}, "beyond float32"),
        (
            {"embeddings": ("F32", [3, 1], THREE), "mapping": ("I64", [3], struct.pack("<3q", 0, 9, 0))},
            "'mapping' names rows",
        ),
        (
            {"embeddings": ("F32", [3, 1], THREE), "mapping": ("I64", [3], struct.pack("<3q", 0, -1, 0))},
            "'mapping' names rows",
        ),
        ({"embeddings": ("F32", [3, 1], THREE), "weights": ("F32", [2], THREE[:8])}, "'weights' are 2; 3"),
        ({"embeddings": ("F32", [3, 1], THREE), "weights": ("I8", [2], b"ab")}, "'weights' is I8"),
    ],
)
def test_weights_that_lie(tmp_path, arrays, words):
    with pytest.raises(FormatError, match=words):
        Vectors.load(folder(tmp_path / "v", WORDS, **arrays))


@pytest.mark.parametrize("text", ["", "[", "{" * 10, "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", ["tokenizer.json", "modules.json", "config.json"])
def test_damaged_json_in_the_folder(tmp_path, name, text):
    made = folder(tmp_path / "v", WORDS, embeddings=("F32", [3, 1], THREE))
    (made / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=name):
        Vectors.load(made)


# -- the projector


def test_golden_projector(tmp_path):
    path = tmp_path / "v"
    Vectors(["a b", "ü"], [[1.0, 0.5], [-2.0, 1e-5]]).save(path, "projector")
    assert (path / "tensors.tsv").read_bytes() == b"1\t0.5\n-2\t0.00001\n"
    assert (path / "metadata.tsv").read_text() == "a b\nü\n"  # one column has no header
    assert (path / "projector_config.pbtxt").read_text() == (
        '# Written by firth\nembeddings {\n  tensor_name: "vectors"\n'
        '  tensor_path: "tensors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'
    )
    Vectors(["a b", "ü"], [[1.0], [-2.0]], counts=[7, 3]).save(path, "projector")
    assert (path / "metadata.tsv").read_text() == "token\tcount\na b\t7\nü\t3\n"  # several have one
    assert Vectors.load(path).counts.tolist() == [7, 3]


def test_projector_keys_that_would_shift_rows(tmp_path):
    keys = ["a\tb", "c\nd", "\\t", " x", "\u00a0", "\r", "\x1c", "\ufeff", "é\\"]
    for part in (keys, *([key] for key in keys)):
        vectors = Vectors(part, np.ones((len(part), 1)), counts=range(len(part)))
        vectors.save(tmp_path / "v", "projector")
        lines = (tmp_path / "v" / "metadata.tsv").read_text().split("\n")
        assert len(lines) == len(part) + 2 and all(
            line.strip() and line.count("\t") == 1 for line in lines[:-1]
        )
        assert same(Vectors.load(tmp_path / "v"), vectors)


def test_projector_of_others(tmp_path):
    (tmp_path / "tensors.tsv").write_text("1\t2\r\n3\t4\r\n")
    (tmp_path / "metadata.tsv").write_text("colour\tword\tcount\r\nred\ta\\tb\t9\r\nblue\tc\t8\r\n")
    again = Vectors.load(tmp_path)
    assert list(again) == ["a\\tb", "c"] and again.counts.tolist() == [
        9,
        8,
    ]  # nothing says that it is escaped
    assert again.vectors.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(StorageError, match="did not put there"):
        again.save(tmp_path, "projector")


@pytest.mark.parametrize(
    ("numbers", "words", "expected"),
    [
        ("1\t2\n", "a\nb\n", "2 keys and .* 1 rows"),
        ("1\t2\n3\t4\n", "a\n", "1 keys and .* more rows"),
        ("1\t2\n3\n", "a\nb\n", "line 2: 1 numbers; 2 numbers"),
        ("1\t2\n3\tx\n", "a\nb\n", "line 2: 'x'; 2 numbers"),
        ("1\t2\n3\t1e39\n", "a\nb\n", "line 2: .* beyond float32"),
        ("1\t2\n\n", "a\nb\n", "line 2"),
        ("", "a\n", "empty|no numbers"),
        ("1\n", "", "is empty"),
        ("1\n2\n", "a\n\n", "line 2: the key is empty"),
        ("1\n", "token\tcount\na\t-1\n", "the count b'-1' is no number"),
        ("1\n", "token\tcount\na\n", "line 2: 1 columns; 2 are expected"),
    ],
)
def test_projector_that_lies(tmp_path, numbers, words, expected):
    (tmp_path / "tensors.tsv").write_text(numbers)
    (tmp_path / "metadata.tsv").write_text(words)
    with pytest.raises(FormatError, match=expected):
        Vectors.load(tmp_path)
