"""Sources: every kind of input, and one sentence for every kind of bad one."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth import SettingError, SourceError, StorageError, Tokenizer
from firth.counting import tokenise
from firth.sources import SourceLike, find_source
from firth.textfiles import Checked, cut_chunks

TEXT = "the cat sat\non the mat\r\n\n  caf\u00e9 \u4e2d\u6587 \n"
SENTENCES = [["the", "cat", "sat"], ["on", "the", "mat"], ["caf\u00e9", "\u4e2d\u6587"]]


def sentences(
    source: SourceLike, tokenizer: Tokenizer = Tokenizer(), errors: str = "strict", field: str = "text"
) -> list[list[str]]:
    """All sentences of a source, put together from its batches; empty ones left out."""
    found: list[list[str]] = []
    open_: list[str] = []
    for batch in find_source(source).batches(tokenizer, errors, field):
        tokens = tokenise(batch, tokenizer)
        words = [tokens.words[row] for row in tokens.ids.tolist()]
        begin = 0
        for end in tokens.ends.tolist():
            found.append(open_ + words[begin:end])
            open_, begin = [], end
        open_ += words[begin:]
    return [sentence for sentence in [*found, open_] if sentence]


def zstd(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return compressed


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firth.textfiles.CHUNK", 7)
    monkeypatch.setattr("firth.sources.CHUNK", 7)


@pytest.mark.parametrize("suffix", PACK)
def test_plain_and_compressed_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text.txt{suffix}"
    path.write_bytes(PACK[suffix](TEXT.encode()))
    assert sentences(path) == sentences(str(path)) == SENTENCES
    # The content decides, not the name.
    path.rename(tmp_path / "text")
    assert sentences(tmp_path / "text") == SENTENCES


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_two_compressed_streams_in_one_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACK[suffix](b"a b\n") + PACK[suffix](b"c\n"))
    assert sentences(path) == [["a", "b"], ["c"]]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_cut_and_damaged_compression(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    packed = PACK[suffix](os.urandom(30_000).hex().encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(
        SourceError, match=r"data ends too early: the file is cut, after [\d,]+ bytes of text"
    ):
        sentences(path)
    # A frame of Zstandard need not have a checksum, but its head must be right.
    middle = 4 if suffix == ".zst" else len(packed) // 2
    path.write_bytes(packed[:middle] + b"rubbish!" + packed[middle + 8 :])
    with pytest.raises(SourceError, match=r"(is damaged \(|ends too early)"):
        sentences(path)


def test_text_that_only_begins_like_bzip2(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("BZh9 is how a bzip2 file begins")
    assert sentences(tmp_path / "a")[0][:2] == ["BZh9", "is"]


def test_several_files_folder_and_glob(tmp_path: Path) -> None:
    for name, text in {
        "b.txt": "b",
        "a.txt": "a\n",
        "deep/c.txt": "c d",
        ".hidden": "x",
        ".git/x": "x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sentences(tmp_path) == [["a"], ["b"], ["c", "d"]]
    assert sentences(str(tmp_path / "*.txt")) == [["a"], ["b"]]
    assert sentences(f"{tmp_path}/**/*.txt") == [["a"], ["b"], ["c", "d"]]
    assert sentences([tmp_path / "b.txt", tmp_path / "a.txt"]) == [["b"], ["a"]]
    assert sentences([str(tmp_path / "b.txt"), str(tmp_path / "deep")]) == [["b"], ["c", "d"]]
    # A sentence never goes on in the next file, whether or not the first ends its line.
    (tmp_path / "a.txt").write_text("a ")
    assert sentences(tmp_path)[0] == ["a"]
    assert find_source(tmp_path).size == 6


def test_a_file_whose_name_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("here")
    assert sentences(str(tmp_path / "a[1].txt")) == [["here"]]


def test_standard_input() -> None:
    program = (
        "from firth.sources import *; import sys;"
        "print([bytes(b.data) for b in find_source('-').batches(Tokenizer())])"
    )
    for data in (TEXT.encode(), gzip.compress(TEXT.encode())):
        result = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
        assert result.stdout.decode().strip() == repr([TEXT.encode()])


def test_iterables(small_chunks: None) -> None:
    assert sentences(["a b", "c\nd"]) == [["a", "b"], ["c"], ["d"]]
    assert sentences(("a b", "c\nd"), Tokenizer(lines=False)) == [["a", "b"], ["c", "d"]]
    assert sentences([["a b", "c"], ("d",), []]) == [["a b", "c"], ["d"]]
    assert sentences(iter(["long " * 9, "x"])) == [["long"] * 9, ["x"]]
    assert sentences(["one two", ["three four"], "five"]) == [["one", "two"], ["three four"], ["five"]]
    with io.StringIO("a b\nc\n") as file:
        assert sentences(file) == [["a", "b"], ["c"]]
    assert sentences([["x\ud800"]]) == [["x\ud800"]]


def test_an_iterable_is_walked_once_and_not_ahead() -> None:
    taken: list[int] = []

    def texts() -> Iterator[str]:
        for row in range(3):
            taken.append(row)
            yield f"text {row}"

    source = texts()
    assert len(sentences(source)) == 3 and taken == [0, 1, 2] and list(source) == []


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([1, 2], "item 0 of the given list is a int, expected a string or a list of tokens"),
        ([b"bytes"], "item 0 of the given list is a bytes"),
        ([["a"], ["b", 3]], "a token must be a string, got 3 of type int"),
        ([["a"], [["b"]]], "a token must be a string, got .*of type list"),
        (["fine", "x\ud800"], "item 1 of the given list holds half a surrogate pair"),
    ],
)
def test_items_that_are_no_text(items: list[object], sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        sentences(items)  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", [b"bytes", 3, None, {"a": 1}])
def test_what_is_no_source(thing: object) -> None:
    with pytest.raises(SettingError, match="expected a path, '-', or an iterable"):
        find_source(thing)  # type: ignore[arg-type]


# ---- records ----


@pytest.mark.parametrize("suffix", PACK)
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    records = [{"text": "a b\nc", "n": 1}, {"text": None}, {"text": ["new york", "d"]}, {"text": "caf\u00e9"}]
    data = "\n".join(json.dumps(record, ensure_ascii=bool(row)) for row, record in enumerate(records))
    path.write_bytes(PACK[suffix](data.encode() + b"\n\n"))
    assert sentences(path) == [["a", "b"], ["c"], ["new york", "d"], ["caf\u00e9"]]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{'text': 1}", "line 2 is not JSON"),
        ("[1]", "line 2 holds a JSON list, expected an object"),
        ('{"body": "x", "id": 1}', "line 2 has no field 'text'; it has 'body', 'id': name the field"),
        ('{"text": 3}', "line 2: field 'text' holds a JSON int"),
        (
            '{"text": ["a", 3]}',
            "line 2: field 'text' holds a JSON list, expected a string or a list of strings",
        ),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_jsonl_that_is_wrong(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(SourceError, match=sentence):
        sentences(tmp_path / "x.jsonl")


@pytest.mark.parametrize("suffix", PACK)
def test_csv(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.csv{suffix}"
    text = '\ufeffid,body\n1,"a, ""b""\nc"\n2,\n3,12\n4,NA\n5,caf\u00e9\n'
    path.write_bytes(PACK[suffix](text.encode()))
    expected = [["a,", '"b"'], ["c"], ["12"], ["NA"], ["caf\u00e9"]]
    assert sentences(path, field="body") == expected
    (tmp_path / "x.tsv").write_text("id\tbody\n1\ta, b\n")
    assert sentences(tmp_path / "x.tsv", field="body") == [["a,", "b"]]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"id,body\n1,a\n", "has no column 'text'; name the column"),
        (b"id,text\n1,a\n2\n", "as CSV: .*Expected 2 columns, got 1"),
        (b"id,text\n1,a\xff\n", "is not UTF-8: 0xff at byte 11"),
    ],
)
def test_csv_that_is_wrong(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(SourceError, match=sentence):
        sentences(tmp_path / "x.csv")


def test_csv_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firth.records._CSV_BLOCK", 64)
    lines = [f"a{row}\nb{row} c" for row in range(40)]
    (tmp_path / "x.csv").write_text("text\n" + "".join(f'"{line}"\n' for line in lines))
    assert sentences(tmp_path / "x.csv") == [part.split() for line in lines for part in line.split("\n")]


def test_csv_with_replaced_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"id,text\n1,a\xff\n")
    assert sentences(tmp_path / "x.csv", errors="replace") == [["a\ufffd"]]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table(
        {"text": ["a b\nc", None, "caf\u00e9"], "tokens": [["new york"], [], ["x", "y"]], "n": [1, 2, 3]}
    )
    pq.write_table(table, path)
    assert sentences(path) == [["a", "b"], ["c"], ["caf\u00e9"]]
    assert sentences(path, field="tokens") == [["new york"], ["x", "y"]]
    pq.write_table(table.set_column(0, "text", table["text"].dictionary_encode()), path)
    assert sentences(path) == [["a", "b"], ["c"], ["caf\u00e9"]]
    with pytest.raises(SourceError, match="column 'n' holds int64, expected strings"):
        sentences(path, field="n")
    with pytest.raises(SourceError, match="no column 'body'; it has 'text', 'tokens', 'n'"):
        sentences(path, field="body")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SourceError, match="as Parquet"):
        sentences(path)


# ---- tokenizers ----


def test_white_space_is_that_of_str_split(tmp_path: Path, small_chunks: None) -> None:
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    assert len(spaces) == 29
    others = "\u200b\u200c\u2060\ufeff\u180e\xad"
    text = "".join(f"a{char}b" for char in [*spaces, *others]) + "".join(f" {char}" for char in spaces)
    (tmp_path / "a").write_bytes(text.encode())
    expected = [line.split() for line in text.split("\n") if line.split()]
    assert sentences(tmp_path / "a") == sentences([text]) == expected
    assert [text.split()] == sentences(tmp_path / "a", Tokenizer(lines=False))


@settings(deadline=None, max_examples=100)
@given(
    st.text(alphabet="ab\u00e9\u4e2d\U0001f600 \n\r\t\x1c\x85\xa0\u2028\u3000", max_size=60), st.booleans()
)
def test_chunks_change_nothing(tmp_path_factory: pytest.TempPathFactory, text: str, lines: bool) -> None:
    path = tmp_path_factory.mktemp("text") / "a"
    path.write_bytes(text.encode() + b"\nend")
    expected = [line.split() for line in f"{text}\nend".split("\n")] if lines else [[*text.split(), "end"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("firth.textfiles.CHUNK", 5)
        found = sentences(path, Tokenizer(lines=lines))
    assert found == [sentence for sentence in expected if sentence]


def test_one_line_is_cut_and_goes_on(tmp_path: Path, small_chunks: None) -> None:
    (tmp_path / "a").write_text("word " * 50 + "\nnext")
    batches = list(find_source(tmp_path / "a").batches(Tokenizer()))
    assert len(batches) > 20
    assert sentences(tmp_path / "a") == [["word"] * 50, ["next"]]


def test_lower_and_nfc() -> None:
    text = "Caf\u0065\u0301 \u0130 \u039f\u0394\u039f\u03a3 \u212b"
    for tokenizer in (Tokenizer(lower=True), Tokenizer(nfc=True), Tokenizer(lower=True, nfc=True)):
        assert tokenizer.split(text) == [tokenizer.fold(token) for token in text.split()]
    assert Tokenizer(nfc=True).split(text)[0] == "Caf\u00e9"
    assert Tokenizer(lower=True, nfc=True, pattern=r"\w+").split("CAFE\u0301!") == ["caf\u00e9"]


def test_pattern_and_function(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("Don't stop, \u4e2d\u6587!\r\nNow. Then")
    assert sentences(tmp_path / "a", Tokenizer(pattern=r"\w+")) == [
        ["Don", "t", "stop", "\u4e2d\u6587"],
        ["Now", "Then"],
    ]
    assert sentences(tmp_path / "a", Tokenizer(pattern=r"(\w+)[,.!]")) == [["stop", "\u4e2d\u6587"], ["Now"]]
    assert sentences(tmp_path / "a", Tokenizer(pattern=r"[a-z]*"))[1] == ["ow", "hen"]
    seen: list[str] = []

    def by_comma(text: str) -> list[str]:
        seen.append(text)
        return text.split(",")

    assert sentences(tmp_path / "a", Tokenizer(function=by_comma))[1] == ["Now. Then"]
    assert seen == ["Don't stop, \u4e2d\u6587!", "Now. Then"]


def test_a_pattern_on_text_without_white_space(tmp_path: Path, small_chunks: None) -> None:
    (tmp_path / "a").write_text("\u4e2d\u6587" * 20)
    assert sentences(tmp_path / "a", Tokenizer(pattern=".")) == [["\u4e2d", "\u6587"] * 20]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": 3}, "is no regular expression"),
        ({"pattern": "(a)(b)"}, "has 2 groups, expected at most one"),
        ({"pattern": "a", "function": str.split}, "got both"),
        ({"function": "split"}, "must be callable, got str"),
    ],
)
def test_wrong_tokenizers(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        Tokenizer(**arguments)  # type: ignore[arg-type]


def test_a_function_that_gives_no_list() -> None:
    for function in (str.lower, len):
        with pytest.raises(SettingError, match="expected a list of tokens"):
            sentences(["a b"], Tokenizer(function=function))  # type: ignore[arg-type]


# ---- bad input ----


@pytest.mark.parametrize("offset", [0, 5, 7, 40, 99])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_utf8_has_its_offset(tmp_path: Path, small_chunks: None, offset: int, suffix: str) -> None:
    clean = "caf\u00e9 \u4e2d ".encode() * 9 + b"a" * 19
    while (clean[offset] & 0xC0) == 0x80:
        offset += 1
    data = bytes(clean[:offset] + b"\xff" + clean[offset:])
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](data))
    with pytest.raises(SourceError, match=f"is not UTF-8.*: 0xff at byte {offset}, .*errors='replace'"):
        sentences(path)
    assert sentences(path, errors="replace") == [data.decode(errors="replace").split()]


def test_a_cut_character_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("ab \u4e2d".encode()[:-1])
    with pytest.raises(SourceError, match="0xe4 at byte 3, unexpected end of data"):
        sentences(tmp_path / "a")
    assert sentences(tmp_path / "a", errors="replace") == [["ab", "\ufffd"]]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40), st.integers(1, 9))
def test_replaced_as_python_replaces(data: bytes, size: int) -> None:
    checked = Checked(io.BytesIO(b"x" + data), "data", "replace")
    parts = iter(lambda: checked.read(size), b"")
    # Where a bad sequence is cut, U+FFFD may come once more or less; all else is the same.
    found, expected = b"".join(parts).decode(), (b"x" + data).decode(errors="replace")
    assert found.replace("\ufffd", "") == expected.replace("\ufffd", "")
    assert ("\ufffd" in found) == ("\ufffd" in expected)


def test_binary_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes("text\n".encode("utf-16"))
    with pytest.raises(SourceError, match=r"(begins like UTF-16|zero byte)"):
        sentences(path)
    path.write_bytes(b"abc" + bytes(100))
    with pytest.raises(SourceError, match="zero byte at byte 3: a binary file or UTF-16"):
        sentences(path)
    assert sentences(path, errors="replace")
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(SourceError):
        sentences(path)


def test_byte_order_mark(tmp_path: Path, small_chunks: None) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfthe \xef\xbb\xbfcat")
    assert sentences(tmp_path / "a") == [["the", "\ufeffcat"]]


def test_no_white_space_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firth.textfiles.CHUNK", 100)
    monkeypatch.setattr("firth.textfiles.LONGEST_TOKEN", 1000)
    assert len(list(cut_chunks(io.BytesIO(b"x" * 900), "it"))) == 1
    with pytest.raises(SourceError, match="no white space in the 1,097 bytes from byte 3 on: is it text"):
        list(cut_chunks(io.BytesIO(b"ab " + b"x" * 3000), "it"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(SourceError, match=r"there is no file '.*corpsu.txt'; did you mean '.*corpus.txt'"):
        find_source(str(tmp_path / "corpsu.txt"))
    with pytest.raises(SourceError, match=r"the folder .*none does not exist"):
        find_source(tmp_path / "none" / "a.txt")
    with pytest.raises(SourceError, match="no file fits the pattern"):
        find_source(str(tmp_path / "*.csv"))
    with pytest.raises(SourceError, match="give it in a list"):
        find_source("the cat sat on the mat")
    with pytest.raises(SourceError, match="is no path"):
        find_source("")
    with pytest.raises(SourceError, match="there is no file"):
        find_source([str(tmp_path / "corpus.txt"), str(tmp_path / "missing.txt")])
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(SourceError, match="empty is empty"):
        find_source(tmp_path / "empty")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match="holds no files"):
        find_source(tmp_path / "folder")
    with pytest.raises(SettingError, match="'strict', 'replace', got 'ignore'"):
        sentences(["a"], errors="ignore")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(StorageError, match=r"cannot read .*: permission denied"):
        sentences(tmp_path / "a")


def test_a_pipe_has_no_identity(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    source = find_source(tmp_path / "pipe")
    assert source.identity() is None and source.size is None
