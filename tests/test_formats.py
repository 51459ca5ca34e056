"""Formats of vectors: exact bytes both ways, round trips, and files that lie."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firth import formats
from firth.errors import FirthError, FormatError, SettingError, SourceError, StorageError
from firth.formats import text
from firth.textfiles import TextFile
from firth.vectors import Vectors

NAMES = ("safetensors", "word2vec", "word2vec-binary", "glove")
KEYS = ["</s>", "new york", "zürich"]
MATRIX = np.array([[0.5, -1.25], [0.1, 1e-5], [3.0, 16777216.0]], np.float32)
TEXT = "</s> 0.5 -1.25\nnew york 0.1 0.00001\nzürich 3 16777216\n"
# NEL, no-break space, line separator, quotes, "null" and a byte order mark are keys like others.
ODD_KEYS = [
    '"ab"',
    "\x85",
    "\u00a0",
    "\u2028",
    '"',
    "'a",
    "null",
    "NaN",
    "\ufeffx",
    "a\rb",
    "\r",
    "\x1c",
    ". . .",
    "#",
    "☃",
]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Waiting for the disk after each of many small files takes most of a test's time."""
    monkeypatch.setattr("firth.files.os.fsync", lambda _: None)


def save(tmp_path: Path, data: bytes, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def some(keys: list[str], dim: int = 3, seed: int = 0) -> Vectors:
    matrix = np.random.default_rng(seed).normal(size=(len(keys), dim)).astype(np.float32)
    return Vectors(keys, matrix)


@pytest.fixture(params=["by hand", "by pyarrow"])
def text_reader(request, monkeypatch):
    """Small blocks are parsed by hand unless told otherwise; both readers have to agree on everything."""
    monkeypatch.setattr(text, "SMALL", 0 if request.param == "by pyarrow" else 1 << 30)


def same(a: Vectors, b: Vectors) -> bool:
    return list(a) == list(b) and a.vectors.tobytes() == b.vectors.tobytes()


# -- golden bytes


def test_golden_word2vec_text(tmp_path):
    path = tmp_path / "v.txt"
    Vectors(KEYS, MATRIX).save(path)
    assert path.read_bytes() == ("3 2\n" + TEXT).encode()
    assert same(Vectors.load(path), Vectors(KEYS, MATRIX))


def test_golden_glove(tmp_path):
    path = tmp_path / "v.glove"
    Vectors(KEYS, MATRIX).save(path)
    assert path.read_bytes() == TEXT.encode()
    assert same(Vectors.load(path), Vectors(KEYS, MATRIX))


def test_golden_word2vec_binary(tmp_path):
    path = tmp_path / "v.bin"
    Vectors(["a", "ü"], [[1.0, -2.0], [0.5, 0.0]]).save(path)
    golden = (
        b"2 2\n"
        b"a \x00\x00\x80\x3f\x00\x00\x00\xc0\n"
        b"\xc3\xbc \x00\x00\x00\x3f\x00\x00\x00\x00\n"
    )  # fmt: skip
    assert path.read_bytes() == golden
    assert same(Vectors.load(path), Vectors(["a", "ü"], [[1.0, -2.0], [0.5, 0.0]]))


def test_golden_safetensors(tmp_path):
    path = tmp_path / "v.safetensors"
    vectors = Vectors(["a", "ü"], [[1.0], [0.5]], counts=[7, 3], context=[[2.0], [0.0]], metadata={"dim": 1})
    vectors.save(path)
    header = (
        b'{"__metadata__":{"format":"firth","version":"1","metadata":"{\\"dim\\": 1}"},'
        b'"vectors":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
        b'"context":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},'
        b'"key_offsets":{"dtype":"I64","shape":[3],"data_offsets":[16,40]},'
        b'"counts":{"dtype":"I64","shape":[2],"data_offsets":[40,56]},'
        b'"keys":{"dtype":"U8","shape":[3],"data_offsets":[56,59]}}'
    )
    header += b" " * (-(len(header) + 8) % 64)
    golden = struct.pack("<Q", len(header)) + header
    golden += struct.pack("<4f", 1, 0.5, 2, 0) + struct.pack("<5q", 0, 1, 3, 7, 3) + b"a\xc3\xbc"
    assert path.read_bytes() == golden
    again = Vectors.load(path)
    assert same(again, vectors)
    assert again.counts.tolist() == [7, 3] and again.metadata == {"dim": 1}
    assert again.context.vectors.tolist() == [[2.0], [0.0]]


def test_the_native_form_opens_elsewhere_and_is_mapped(tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    path = tmp_path / "v.safetensors"
    # An odd count of numbers puts the offsets at a place that is no multiple of 8.
    vectors = Vectors(["a", "bc", "d"], np.arange(9).reshape(3, 3), counts=[3, 2, 1])
    vectors.save(path)
    assert load_file(path)["vectors"].tolist() == vectors.vectors.tolist()
    assert load_file(path)["counts"].tolist() == [3, 2, 1]
    with safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "firth"
    again = Vectors.load(path)
    assert again.vectors.ctypes.data % 64 == 0
    base = again.vectors
    while not isinstance(base, np.memmap) and base is not None:
        base = base.base
    assert isinstance(base, np.memmap)
    assert Vectors.load(path, limit=2).counts.tolist() == [3, 2]


# -- round trips


def admitted(name: str, key: str) -> bool:
    if name == "word2vec-binary":
        return " " not in key and "\n" not in key
    if name == "glove" and " " in key and text.is_number(key.rsplit(" ", 1)[1].encode("utf-8", "ignore")):
        return False
    return name == "safetensors" or "\n" not in key


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True),
    dim=st.integers(2, 5),
    data=st.data(),
)
def test_round_trip(tmp_path, text_reader, name, keys, dim, data):
    keys = [key for key in keys if admitted(name, key)] or ["a"]
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(numbers, min_size=dim * len(keys), max_size=dim * len(keys)))
    vectors = Vectors(keys, np.array(values, np.float32).reshape(len(keys), dim))
    path = tmp_path / "v"
    vectors.save(path, name)
    again = Vectors.load(path, format=name)
    assert same(again, vectors)
    if name == "glove" and (" " in "".join(keys) or text.HEADER.fullmatch(path.read_bytes().split(b"\n")[0])):
        return  # a first line may look like a header: that is what header= is for
    assert same(Vectors.load(path), vectors)


@pytest.mark.parametrize("name", NAMES)
def test_odd_keys_survive(tmp_path, text_reader, name):
    keys = [key for key in ODD_KEYS if admitted(name, key)]
    if name == "word2vec":
        keys.append("a 1 2 3\rb")  # one line, and to a reader of other line ends two
    for part in (keys, *([key] for key in keys)):
        vectors = some(part)
        vectors.save(tmp_path / "v", name)
        assert same(Vectors.load(tmp_path / "v"), vectors)


@pytest.mark.parametrize("name", ["word2vec", "glove"])
@pytest.mark.parametrize("oddity", ["", "spaces", "quotes", "crlf", "trailing"])
def test_blocks_by_pyarrow_and_by_hand_agree(tmp_path, monkeypatch, name, oddity):
    keys = [f"k{row}" for row in range(3000)]
    if oddity == "spaces":
        keys[1234] = "at name@example.org"
    if oddity == "quotes":
        keys[1234], keys[99] = '"', 'a"b,c'
    vectors = some(keys, 10)
    path = tmp_path / "v"
    vectors.save(path, name)
    if oddity == "crlf":
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    if oddity == "trailing":
        path.write_bytes(path.read_bytes().replace(b"\n", b" \n"))
    assert same(Vectors.load(path), vectors)
    monkeypatch.setattr(text, "BLOCK", 1 << 14)
    monkeypatch.setattr(text, "SMALL", 1 << 30)
    assert same(Vectors.load(path), vectors)


def test_lone_surrogates_survive_in_the_native_form(tmp_path):
    vectors = some(["\ud800", "\udc80x", "é\udcc3\udca9"])
    vectors.save(tmp_path / "v.safetensors")
    assert same(Vectors.load(tmp_path / "v.safetensors"), vectors)
    with pytest.raises(FormatError, match="no form in UTF-8"):
        vectors.save(tmp_path / "v.txt")


def test_undecodable_keys(tmp_path):
    path = save(tmp_path, b"3 1\nab\xff 1\nok 2\nab\xfe 3\n")
    with pytest.raises(FormatError, match=r"line 2: the key .* is no UTF-8"):
        Vectors.load(path)
    with pytest.warns(UserWarning, match="1 rows repeat a key"):
        assert list(Vectors.load(path, errors="replace")) == ["ab\ufffd", "ok"]
    kept = Vectors.load(path, errors="surrogateescape")
    kept.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == path.read_bytes()
    with pytest.raises(SettingError, match="errors"):
        Vectors.load(path, errors="latin-1")


def test_characters_cut_by_the_end_of_a_key(tmp_path, text_reader):
    path = save(tmp_path, b"3 1\nab\xc3 1\n\xa9c 2\nok 3\n")  # end to end the first two would be UTF-8
    with pytest.raises(FormatError, match=r"line 2: the key .* is no UTF-8"):
        Vectors.load(path)
    assert list(Vectors.load(path, errors="replace")) == ["ab\ufffd", "\ufffdc", "ok"]
    with pytest.warns(UserWarning, match="last line has no line end"):
        assert list(Vectors.load(save(tmp_path, b"2 1\nab\xc3 1\n\xa9c 2"), errors="ignore")) == ["ab", "c"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_rounded_as_they_are_read(tmp_path, name, dtype):
    matrix = np.array([[0.1, 1 / 3], [65504, 1e-7]], np.float32)
    Vectors(["a", "b"], matrix).save(tmp_path / "v", name)
    again = Vectors.load(tmp_path / "v", dtype=dtype)
    assert again.vectors.dtype == np.float32 and (again.vectors == matrix.astype(dtype)).all()
    again.save(tmp_path / "w.safetensors")
    assert formats.inspect(tmp_path / "w.safetensors")[1].dtype == dtype
    Vectors(["a", "b"], 2 * matrix).save(tmp_path / "v", name)
    if dtype == "float16":
        with pytest.raises(FormatError, match="'b' holds a number beyond float16"):
            Vectors.load(tmp_path / "v", dtype=dtype)
    for wrong in ("float64", "int8", ""):
        with pytest.raises(SettingError, match="dtype"):
            Vectors.load(tmp_path / "v", dtype=wrong)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, "zstd"])
@pytest.mark.parametrize("name", ["word2vec", "word2vec-binary", "glove"])
def test_compressed(tmp_path, compress, name):
    if compress == "zstd":
        import pyarrow as pa

        def compress(data):
            return pa.Codec("zstd").compress(data, asbytes=True)

    vectors = some([f"k{row}" for row in range(50)])
    vectors.save(tmp_path / "v", name)
    packed = save(tmp_path, compress((tmp_path / "v").read_bytes()), "packed")
    assert same(Vectors.load(packed), vectors)
    assert len(Vectors.load(packed, limit=7)) == 7
    cut = save(tmp_path, packed.read_bytes()[:-20], "cut")
    with pytest.raises((FormatError, SourceError), match="cut"):
        Vectors.load(cut)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["word2vec", "glove"])
def test_text_is_written_compressed_by_its_ending(tmp_path, ending, name):
    vectors = some([f"k{row}" for row in range(500)])
    plain, path = tmp_path / "plain", tmp_path / f"v.txt{ending}"
    vectors.save(plain, name)
    vectors.save(path, name)
    assert path.stat().st_size < plain.stat().st_size
    with TextFile(path) as file:
        assert file.compression is not None and file.read() == plain.read_bytes()
    before = path.read_bytes()
    vectors.save(path, name)
    assert path.read_bytes() == before
    assert ending != ".gz" or before[3:8] == bytes(5)  # no name, no time
    with pytest.raises(FormatError, match="line end"):
        some(["a\nb"]).save(path, name)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    assert formats.format_for_writing(Path(f"v.glove{ending}"), None).name == "glove"


def test_compressed_safetensors_and_compressed_output_are_refused(tmp_path):
    some(["a"]).save(tmp_path / "v.safetensors")
    packed = save(tmp_path, gzip.compress((tmp_path / "v.safetensors").read_bytes()))
    with pytest.raises(FormatError, match="unpack it"):
        Vectors.load(packed)
    with pytest.raises(SettingError, match="uncompressed"):
        some(["a"]).save(tmp_path / "v.bin.gz")
    with pytest.raises(SettingError, match="uncompressed"):
        some(["a"]).save(tmp_path / "v.gz")


def test_binary_of_google_news_style(tmp_path):
    rows = [(f"wörd{row}".encode(), struct.pack("<3f", row, 0.5, -row)) for row in range(20)]
    plain = b"20 3\n" + b"".join(key + b" " + row for key, row in rows)
    vectors = Vectors.load(save(tmp_path, plain))
    assert list(vectors)[7] == "wörd7" and vectors["wörd7"].tolist() == [7, 0.5, -7]
    assert same(vectors, Vectors.load(save(tmp_path, plain.replace(b"w\xc3\xb6rd", b"\nw\xc3\xb6rd"))))


def test_binary_rows_straddle_chunks(tmp_path, monkeypatch):
    from firth.formats import word2vec_binary

    vectors = some([f"wörter{row}" for row in range(200)], 7)
    vectors.save(tmp_path / "v.bin")
    for chunk in (8, 9, 31, 64):
        monkeypatch.setattr(word2vec_binary, "CHUNK", chunk)
        assert same(Vectors.load(tmp_path / "v.bin"), vectors)


def test_fasttext_vec_with_spaces_at_line_ends(tmp_path, text_reader):
    vectors = Vectors.load(save(tmp_path, b"2 2\n</s> 0.5 1 \nnew york 2 3 \n"))
    assert list(vectors) == ["</s>", "new york"] and vectors["new york"].tolist() == [2, 3]
    # A key that ends in a number, in a line without the space that the first line has.
    vectors = Vectors.load(save(tmp_path, b"2 2\n</s> 0.5 1 \nroute 66 2 3\n"))
    assert list(vectors) == ["</s>", "route 66"] and vectors["route 66"].tolist() == [2, 3]


def test_limit_reads_the_first_rows(tmp_path):
    for name in NAMES:
        vectors = some([f"k{row}" for row in range(30)])
        vectors.save(tmp_path / "v", name)
        assert same(Vectors.load(tmp_path / "v", limit=4), vectors.subset([f"k{row}" for row in range(4)]))
    with pytest.raises(SettingError, match="limit"):
        Vectors.load(tmp_path / "v", limit=0)


def test_files_that_others_wrote(data):
    """Stanford's GloVe and the C tool's text, against a plain parse of their lines."""
    glove = data / "pretrained" / "glove.6B.50d.first50k.txt.xz"
    vectors = Vectors.load(glove)
    lines = lzma.decompress(glove.read_bytes()).decode().rstrip("\n").split("\n")
    assert vectors.vectors.shape == (50_000, 50) and len(lines) == 50_000
    tool = Vectors.load(data / "pretrained" / "word2vec_c" / "vectors.txt")
    text_lines = (data / "pretrained" / "word2vec_c" / "vectors.txt").read_text("utf-8").split("\n")[1:-1]
    assert tool.vectors.shape == (2631, 200) and len(text_lines) == 2631
    for read, wanted in ((vectors, lines[:200] + lines[-200:]), (tool, text_lines[:200])):
        for line in wanted:
            key, *numbers = line.rstrip(" ").split(" ")
            assert read[key].tolist() == np.array(numbers, np.float64).astype(np.float32).tolist(), key


# -- recognition


def test_recognised_by_content(tmp_path):
    for name in NAMES:
        some(["a", "b"]).save(tmp_path / "v.dat", name)
        assert formats.recognise(tmp_path / "v.dat").name == name


def test_header_or_glove(tmp_path):
    one = save(tmp_path, b"1 2\n3 4\n5 6\n")  # GloVe of one number a row: a header would promise two
    assert list(Vectors.load(one)) == ["1", "3", "5"]
    both = save(tmp_path, b"2 1\n3 4\n5 6\n", "both")
    assert list(Vectors.load(both)) == ["3", "5"]
    assert list(Vectors.load(both, header=False)) == ["2", "3", "5"]
    assert list(Vectors.load(both, header=True)) == ["3", "5"]
    with pytest.raises(FormatError, match="line 2: 1 numbers follow the key; 2 are expected"):
        Vectors.load(one, header=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\n\n", "knows"),
        (b"hello world\nthis is text\n", "knows"),
        (b"\x80\x04\x95", "pickle"),
        (b"\xba\x16\x4f\x2f\x0c\x00\x00\x00", "the settings would take 56 bytes and 0 follow"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x93NUMPY\x01\x00", "numpy"),
        (bytes(range(256)) * 9, "knows"),
    ],
)
def test_what_is_none_of_them(tmp_path, data, words):
    with pytest.raises(FormatError, match=words) as caught:
        Vectors.load(save(tmp_path, data))
    assert "file" in str(caught.value)


def test_no_such_file_and_folder(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        Vectors.load(tmp_path / "missing.txt")
    with pytest.raises(StorageError, match="folder"):
        Vectors.load(tmp_path)
    with pytest.raises(SettingError, match="format"):
        Vectors.load(tmp_path, format="json")


# -- lies and damage


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"3 2\na 1 2\nb 3 4\n", "promises 3 rows and 2 follow.*limit=2"),
        (b"1 2\na 1 2\nb 3 4\n", "promises 1 rows and 2 follow.*limit=1"),
        (b"1099511627776 2\na 1 2\n", "promises 1,099,511,627,776 rows and 1 follow"),
        (b"1 1099511627776\na 1 2\n", "no file holds"),
        (b"1 30000000\na 1 2\n", "line 2: 2 numbers follow the key; 30000000 are expected"),
        (b"-2 2\na 1 2\n", "-2 rows"),
        (b"2 -2\na 1 2\n", "-2 numbers"),
        (b"0 2\na 1 2\n", "0 rows"),
        (b"2 2\n", "promises 2 rows and 0 follow"),
        (b"2 2\n\n", "promises 2 rows and 0 follow"),
        (b"2 3\na 1 2\nb 1 2\n", "line 2: 2 numbers follow the key; 3 are expected"),
        (b"2 2\na 1 2\nb 1 x\n", "line 3: 'x' is no number"),
        (b"2 2\na 1 2\n 1 2\n", "line 3: the key is empty"),
        (b"2 2\na 1 2\nb 1 nan\n", "line 3: the vector holds NaN"),
        (b"2 2\na 1 2\nb 1 1e39\n", "line 3: .* beyond float32"),
        (b"2 2\na 1 1_0\nb 1 2\n", "line 2"),
        (b"2 2\na 1 2\n\nb 1 2\n", "line 3: the line is blank"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_word2vec_text_that_lies(tmp_path, text_reader, data, words, packed):
    with pytest.raises(FormatError, match=words) as caught:
        Vectors.load(save(tmp_path, gzip.compress(data) if packed else data))
    assert str(tmp_path) in str(caught.value)


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    assert len(Vectors.load(save(tmp_path, b"1 2\na 1 2\n\n\r\n"))) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a 1 2\nb 1 2\nc 1\nd 1 2\n", "line 3: 1 numbers follow the key; 2 are expected"),
        (b"a 1 2\nb 1 2\nc 1 2 3\nd 1 2\n", "line 3: 3 numbers follow the key; 2 are expected"),
        (b"a 1 2\nb 1 2\nc 1 inf\n", "line 3: .* infinity"),
        (b"a 1 2\nb 1 2\nc 1 z\n", "line 3: 'z' is no number"),
    ],
)
def test_glove_that_lies(tmp_path, text_reader, data, words):
    with pytest.raises(FormatError, match=words):
        Vectors.load(save(tmp_path, data))


def test_glove_keys_with_spaces(tmp_path, text_reader):
    vectors = Vectors.load(save(tmp_path, b"the 1 2\n. . . 3 4\nat name@domain.com 5 6\n"))
    assert list(vectors) == ["the", ". . .", "at name@domain.com"]
    with pytest.raises(FormatError, match="'route 66'"):
        some(["route 66"]).save(tmp_path / "v.glove")
    some(["route 66"]).save(tmp_path / "v.txt")
    assert list(Vectors.load(tmp_path / "v.txt")) == ["route 66"]


def test_a_line_without_end_is_read_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="may|was cut"):
        assert len(Vectors.load(save(tmp_path, b"a 1 2\nb 1 2"))) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"1099511627776 2\na \0\0\0\0\0\0\0\0", "promises 1,099,511,627,776 rows"),
        (b"1 1099511627776\na \0\0\0\0\0\0\0\0", "no file holds"),
        (b"1 30000000\na \0\0\0\0\0\0\0\0", "promises 1 rows|ends in row 1"),
        (b"-1 2\na \0\0\0\0\0\0\0\0", "-1 rows"),
        (b"2 2\na \0\0\0\0\0\0\0\0", "promises 2 rows"),
        (b"1 2\na \0\0\0\0\0\0\0\0b \0\0\0\0\0\0\0\0", "more bytes follow"),
        (b"1 2\n \0\0\0\0\0\0\0\0\n", "key is empty"),
        (b"1 2\na \0\0\xc0\x7f\0\0\0\0", "byte 4: the vector holds NaN"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_word2vec_binary_that_lies(tmp_path, data, words, packed):
    with pytest.raises(FormatError, match=words) as caught:
        Vectors.load(save(tmp_path, gzip.compress(data) if packed else data))
    assert str(tmp_path) in str(caught.value)


def test_word2vec_binary_refuses_what_it_would_corrupt(tmp_path):
    for key in ("new york", "a\nb"):
        with pytest.raises(FormatError, match="safetensors"):
            some(["a", key]).save(tmp_path / "v.bin")
    assert not (tmp_path / "v.bin").exists()


def test_numbers_that_are_none_are_not_written_as_text(tmp_path):
    vectors = Vectors(["a", "b"], [[1.0, 2.0], [1.0, np.nan]])
    for name in ("word2vec", "glove"):
        with pytest.raises(FormatError, match="'b' holds NaN"):
            vectors.save(tmp_path / "v", name)


@pytest.mark.parametrize("name", ["word2vec", "glove"])
def test_duplicates_keep_the_first(tmp_path, name):
    data = b"a 1 2\nb 3 4\na 5 6\nb 7 8\nc 9 0\n"
    path = save(tmp_path, (b"5 2\n" if name == "word2vec" else b"") + data)
    with pytest.warns(UserWarning, match=r"2 rows repeat a key \(first 'a'\)"):
        vectors = Vectors.load(path)
    assert list(vectors) == ["a", "b", "c"] and vectors.vectors.tolist() == [[1, 2], [3, 4], [9, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_every_byte_of_the_first_and_last_kilobyte(tmp_path, name):
    vectors = some([f"wörd{row}" for row in range(12)])
    path = tmp_path / "v"
    vectors.save(path, name)
    data = path.read_bytes()
    cuts = {*range(min(1024, len(data))), *range(max(0, len(data) - 1024), len(data))}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                again = Vectors.load(path)
            except FormatError as error:
                assert str(path) in str(error)
                continue
        # GloVe cut at a line end is a shorter file; a cut inside a line is told by a warning.
        assert len(again) <= len(vectors)
        whole = len(again) - (1 if caught else 0)
        assert again.vectors[:whole].tobytes() == vectors.vectors[:whole].tobytes()
        assert name in ("glove", "word2vec-binary") or caught
        if name == "word2vec-binary":
            assert cut == len(data) - 1  # only the last line end is missing


def rebuilt(header: dict[str, object], data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


HEADER = {
    "__metadata__": {"format": "firth", "version": "1", "metadata": "{}"},
    "vectors": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "key_offsets": {"dtype": "I64", "shape": [3], "data_offsets": [8, 32]},
    "keys": {"dtype": "U8", "shape": [2], "data_offsets": [32, 34]},
}
DATA = struct.pack("<2f3q", 1, 2, 0, 1, 2) + b"ab"


def test_hostile_safetensors_start_from_a_good_one(tmp_path):
    assert list(Vectors.load(save(tmp_path, rebuilt(HEADER, DATA)))) == ["a", "b"]


@pytest.mark.parametrize(
    ("tensor", "change", "words"),
    [
        ("vectors", {"shape": [1 << 40, 1]}, "offsets span 8"),
        ("vectors", {"shape": [1 << 31, 1 << 31, 1 << 31, 1 << 31]}, "offsets span"),
        ("vectors", {"shape": [-2, -1]}, "cannot be"),
        ("vectors", {"shape": [2.0, 1]}, "cannot be"),
        ("vectors", {"shape": [True, 2]}, "cannot be"),
        ("vectors", {"shape": [1, 2]}, "key_offsets"),
        ("vectors", {"shape": [2]}, "F32 any x any is expected"),
        ("vectors", {"dtype": "I32"}, "F32 any x any is expected"),
        ("vectors", {"dtype": "F12"}, "cannot be"),
        ("vectors", {"data_offsets": [0]}, "cannot be"),
        ("vectors", {"data_offsets": [8, 0]}, "offsets span"),
        ("vectors", {"data_offsets": [8, 16]}, "overlaps|gap"),
        ("key_offsets", {"data_offsets": [4, 28]}, "overlaps"),
        ("keys", {"data_offsets": [33, 35]}, "gap"),
        ("keys", {"shape": [1 << 40], "data_offsets": [32, 32 + (1 << 40)]}, "it is cut"),
    ],
)
def test_hostile_safetensors_header(tmp_path, tensor, change, words):
    header = HEADER | {tensor: HEADER[tensor] | change}
    with pytest.raises(FormatError, match=words) as caught:
        Vectors.load(save(tmp_path, rebuilt(header, DATA)))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<Q", 1 << 60) + b'{"dtype"', "cut or damaged"),
        (struct.pack("<Q", 99) + b'{"a": 1}', "cut or damaged"),
        (struct.pack("<Q", 8) + b"{" + b"[" * 7, "no JSON"),
        (struct.pack("<Q", 200_001) + b"{" + b"[" * 200_000, "no JSON"),
        (struct.pack("<Q", 16) + b'{"a": 1, "a": 2}', "no JSON"),
        (struct.pack("<Q", 22) + b'{"__metadata__": "abc"}'[:22], "no JSON"),
        (struct.pack("<Q", 23) + b'{"__metadata__": "abc"}', "no table of strings"),
        (rebuilt({}, b""), "not one of vectors that firth wrote"),
        (rebuilt({"a": None}, b""), "cannot be"),
        (rebuilt(HEADER, DATA + b"x"), "damaged"),
        (rebuilt(HEADER, DATA[:-2] + b"\x80b"), "no UTF-8"),
        (rebuilt(HEADER, DATA[:-2] + b"\xc3\xa9"), "inside a character"),
        (rebuilt(HEADER, struct.pack("<2f3q", 1, 2, 0, 9, 2) + b"ab"), "do not run"),
        (rebuilt(HEADER, struct.pack("<2f3q", 1, 2, 0, 0, 2) + b"ab"), "empty"),
        (rebuilt(HEADER, struct.pack("<2f3q", 1, 2, -(1 << 63), 1, 2) + b"ab"), "do not run"),
        (rebuilt(HEADER | {"__metadata__": {"format": "firth", "version": "2"}}, DATA), "version 2"),
        (
            rebuilt(HEADER | {"__metadata__": {"format": "firth", "version": "1", "metadata": "["}}, DATA),
            "no JSON",
        ),
        (rebuilt(HEADER | {"__metadata__": {"format": "pt"}}, DATA), "not one of vectors"),
    ],
)
def test_damaged_safetensors(tmp_path, data, words):
    with pytest.raises(FormatError, match=words) as caught:
        Vectors.load(save(tmp_path, data))
    assert str(tmp_path) in str(caught.value)


def test_keys_that_repeat_in_the_native_form_are_found_when_asked(tmp_path):
    vectors = Vectors.load(save(tmp_path, rebuilt(HEADER, DATA[:-2] + b"aa")))
    with pytest.raises(FormatError, match="occurs twice"):
        len(vectors.key_to_index)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), name=st.sampled_from(NAMES), place=st.floats(0, 1))
def test_rubbish_raises_a_sentence_or_is_read(tmp_path, data, name, place):
    path = tmp_path / "v"
    some(["aa", "b b" if name in ("word2vec", "glove") else "bb", "cc"]).save(path, name)
    good = path.read_bytes()
    cut = int(place * len(good))
    path.write_bytes(good[:cut] + data + good[cut + len(data) // 2 :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert len(list(Vectors.load(path).key_to_index)) > 0
        except FirthError:
            return


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "v.bin"
    some(["a"]).save(path)
    before = path.read_bytes()
    with pytest.raises(FormatError):
        some(["a", "b c"]).save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["v.bin"]
