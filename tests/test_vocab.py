"""Vocab: counting, ids, unknown tokens, growing, and a file that keeps every token exactly."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import firth
from firth import KeyNotFound, SettingError, ShapeError, SourceError, Tokenizer, Vocab, counting
from firth.errors import FormatError, StorageError
from firth.sources import find_source

TEXT = "the cat sat on the mat\nthe dog sat\n"


def by_hand(counts: Counter[str], min_count: int) -> list[tuple[str, int]]:
    """The definition: falling count, then code points."""
    kept = [(token, count) for token, count in counts.items() if count >= min_count]
    return sorted(kept, key=lambda pair: (-pair[1], pair[0]))


def pairs(vocab: Vocab) -> list[tuple[str, int]]:
    return list(zip(vocab.tokens, vocab.counts.tolist(), strict=True))


def test_counts_text_lists_and_mappings_alike() -> None:
    expected = by_hand(Counter(TEXT.split()), 1)
    assert expected[:2] == [("the", 3), ("sat", 2)]
    assert pairs(Vocab.count([TEXT], min_count=1)) == expected
    assert pairs(Vocab.count([line.split() for line in TEXT.splitlines()], min_count=1)) == expected
    assert pairs(Vocab.count(Counter(TEXT.split()), min_count=1)) == expected
    assert pairs(Vocab.count([TEXT], min_count=2)) == expected[:2]
    assert pairs(Vocab.count([TEXT], min_count=1, max_size=3)) == expected[:3]
    assert Vocab.count([TEXT], min_count=1).total_count == 9


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(alphabet="ab\u00e9\u4e2d \n\t\x1c\x85\xa0\u200b\u2028", max_size=30), max_size=6))
def test_counts_what_str_split_splits(texts: list[str]) -> None:
    counts = Counter(token for text in texts for token in text.split())
    if counts:
        assert pairs(Vocab.count(texts, min_count=1)) == by_hand(counts, 1)
    else:
        with pytest.raises(SourceError, match="holds no tokens"):
            Vocab.count(texts, min_count=1)


def test_same_table_for_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firth.textfiles.CHUNK", 300)
    monkeypatch.setattr(
        "firth.textfiles.cut_chunks.__kwdefaults__", {"size": 300, "lines": True, "anywhere": False}
    )
    rng = random.Random(1)
    words = [f"w{rng.randrange(50)}" for _ in range(3000)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words))
    tables = [Vocab.count(path, min_count=2, threads=threads) for threads in (1, 2, 4)]
    assert pairs(tables[0]) == by_hand(Counter(words), 2)
    assert tables[0] == tables[1] == tables[2]
    assert len(list(find_source(path).batches(Tokenizer()))) > 10


def test_look_up() -> None:
    vocab = Vocab(["the", "cat", "sat"], [5, 3, 1])
    assert vocab["cat"] == 1 and vocab[["sat", "the"]] == [2, 0]
    assert "cat" in vocab and "dog" not in vocab and 1 not in vocab
    assert len(vocab) == 3 and list(vocab) == vocab.tokens == vocab.index_to_key == ["the", "cat", "sat"]
    assert vocab.encode("the cat\n sat") == vocab.encode(["the", "cat", "sat"]) == [0, 1, 2]
    assert vocab.encode("THE Cat", Tokenizer(lower=True)) == [0, 1]
    assert vocab.decode([2, 0]) == vocab.decode(np.array([2, 0])) == ["sat", "the"]
    assert vocab.get("dog") is None and vocab.get("dog", 7) == 7 and vocab.get("the") == 0
    assert vocab.counts.dtype == np.int64 and not vocab.counts.flags.writeable
    assert repr(vocab) == "Vocab(3 tokens, 9 counted: 'the', 'cat', 'sat')"
    with pytest.raises(KeyNotFound, match=r"'catt' is not in the vocabulary of 3 tokens; did you mean 'cat'"):
        vocab["catt"]
    for wrong_id in (-1, 3):
        with pytest.raises(KeyNotFound, match="ids go from 0 to 2"):
            vocab.decode([wrong_id])


def test_unknown_tokens_as_the_caller_chooses() -> None:
    table = Vocab(["a", "b"], [2, 1])
    with pytest.raises(KeyNotFound):
        table.encode("a x b")
    dropping = table.with_unknown("drop")
    assert dropping.encode("a x b") == [0, 1] and dropping[["x"]] == []
    with pytest.raises(KeyNotFound):
        dropping["x"]
    unk = table.with_unknown("unk")
    assert unk.tokens == ["a", "b", "<unk>"] and unk.default_id == 2
    assert unk.encode("a x b") == [0, 2, 1] and unk["x"] == 2
    with pytest.raises(KeyNotFound):
        unk.id_of("x")
    assert table.tokens == ["a", "b"] and len(table.counts) == 2
    assert Vocab(["<unk>", "a"], unknown="unk").encode("x a") == [0, 1]
    assert Vocab(["a", "?"], unknown="unk", unk_token="?").encode("x a") == [1, 0]
    with pytest.raises(SettingError, match="'drop', 'unk', 'error', got 'skip'"):
        Vocab(["a"], unknown="skip")


def test_the_row_of_unknown_tokens_has_their_count() -> None:
    vocab = Vocab.count(["a a a b b c"], min_count=2, unknown="unk")
    assert pairs(vocab) == [("a", 3), ("b", 2), ("<unk>", 1)]
    assert pairs(Vocab.count({"a": 3, "b": 1}, min_count=2, unknown="unk")) == [("a", 3), ("<unk>", 1)]


def test_torchtext_names() -> None:
    vocab = Vocab(["a", "b", "c"])
    assert vocab.lookup_indices(["c", "a"]) == vocab(["c", "a"]) == [2, 0]
    assert vocab.lookup_tokens([1, 2]) == ["b", "c"] and vocab.lookup_token(0) == "a"
    assert vocab.get_stoi() == {"a": 0, "b": 1, "c": 2} and vocab.get_itos() == ["a", "b", "c"]
    assert vocab.get_default_index() is None
    vocab.set_default_index(1)
    assert vocab.lookup_indices(["x", "c"]) == [1, 2] and vocab["x"] == 1 and vocab.get_default_index() == 1
    vocab.set_default_index(None)
    with pytest.raises(KeyNotFound):
        vocab.lookup_indices(["x"])
    with pytest.raises(SettingError, match="from 0 to 2"):
        vocab.set_default_index(3)
    with pytest.raises(SettingError, match="got one string"):
        vocab.lookup_indices("abc")


def test_add_keeps_ids() -> None:
    vocab = Vocab(["a", "b"], [5, 1])
    grown = vocab.add(["c", "b", "c"], [1, 9, 2])
    assert pairs(grown) == [("a", 5), ("b", 10), ("c", 3)] and grown["c"] == 2
    assert pairs(vocab) == [("a", 5), ("b", 1)] and "c" not in vocab
    assert vocab.add(["z"]).counts.tolist() == [5, 1, 0]
    with pytest.raises(SettingError, match="one string"):
        vocab.add("abc")


def test_merge_is_the_vocabulary_of_both() -> None:
    one, two = Vocab.count(["b b a"], min_count=1), Vocab.count(["c a a a"], min_count=1)
    assert one.merge(two) == Vocab.count(["b b a", "c a a a"], min_count=1)
    unk = one.with_unknown("unk").merge(two)
    assert unk["zz"] == unk["<unk>"] and unk.unknown == "unk"


def test_fingerprint_and_equality() -> None:
    vocab = Vocab(["a", "b"], [2, 1])
    assert vocab == Vocab(["a", "b"], [2, 1]) and vocab.fingerprint == Vocab(["a", "b"], [2, 1]).fingerprint
    for other in (Vocab(["a", "b"], [2, 2]), Vocab(["b", "a"], [2, 1]), Vocab(["ab", ""[:0] or "c"], [2, 1])):
        assert vocab != other and vocab.fingerprint != other.fingerprint
    # Where one token ends and the next begins is part of it.
    assert Vocab(["ab", "c"]).fingerprint != Vocab(["a", "bc"]).fingerprint
    assert vocab.__eq__("a") is NotImplemented


@pytest.mark.parametrize(
    ("tokens", "counts", "error", "sentence"),
    [
        (["a", "a"], None, SettingError, "'a' occurs twice"),
        (["a", ""], None, SettingError, "token 1 is ''"),
        (["a", 3], None, SettingError, "token 1 is 3"),
        ("abc", None, SettingError, "got one string"),
        (["a"], [1, 2], ShapeError, r"shape \(2,\), expected \(1,\)"),
        (["a"], [1.5], ShapeError, "float64, expected integers"),
        (["a"], [-1], SettingError, "from 0 to"),
        (["a"], [2**63], SettingError, "from 0 to"),
    ],
)
def test_refuses_what_is_no_table(
    tokens: list[str], counts: object, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        Vocab(tokens, counts)  # type: ignore[arg-type]


HARD = [
    *("plain", "new york", " lead", "trail ", "a  b", "tab\tinside", "line\nbreak", "\r", "\r\n", "nel\x85"),
    *(
        "nbsp\xa0here",
        "ls\u2028ps\u2029",
        "\u3000",
        "\u200b",
        "\u200d",
        "\ufeff",
        "\ufeffbom",
        "\xad",
        "\x7f",
    ),
    *(
        "back\\slash",
        "\\n",
        "\\",
        "\\x41",
        "\\u0041",
        '"quoted"',
        "'",
        "#",
        "# firth vocabulary 1 {}",
        "\x00",
    ),
    *(
        "\x1c\x1f",
        "é",
        "e\u0301",
        "中文",
        "😀",
        "\ud800",
        "x\udcffy",
        "\U000e0041",
        "12",
        "a\t12",
        "\u202eabc",
    ),
]


def test_file_keeps_every_token(tmp_path: Path) -> None:
    vocab = Vocab(HARD, range(len(HARD)))
    vocab.save(tmp_path / "v.txt")
    loaded = Vocab.load(tmp_path / "v.txt")
    assert loaded.tokens == HARD and loaded == vocab
    text = (tmp_path / "v.txt").read_bytes().decode("utf-8")
    # Whatever splits lines, there is one a token; whatever strips them, nothing is lost.
    assert len(text.splitlines()) == len(HARD) + 1
    assert "new york\t1" in text and "\ntrail\\x20\t" in text and "\n\\x20lead\t" in text
    assert "中文" in text and "a\\t12\t" in text


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(st.characters(), min_size=1), st.integers(0, 2**63 - 1), max_size=8))
def test_file_round_trip(tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int]) -> None:
    path = tmp_path_factory.mktemp("vocab") / "v.txt"
    vocab = Vocab(list(counts), np.array(list(counts.values()), np.int64))
    vocab.save(path)
    assert Vocab.load(path) == vocab


def test_file_keeps_the_policy(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    for vocab in (
        Vocab(["a", "b"], unknown="drop"),
        Vocab(["a", "b"], unknown="unk"),
        Vocab(["a", "b"], unknown="unk", unk_token="a"),
    ):
        vocab.pruned, vocab.count_error = 7, 3
        vocab.save(path)
        loaded = Vocab.load(path)
        assert (loaded.unknown, loaded.unk_token, loaded.default_id) == (
            vocab.unknown,
            vocab.unk_token,
            vocab.default_id,
        )
        assert (loaded.pruned, loaded.count_error) == (7, 3)


def test_reads_plain_lists(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_bytes(b"the 12\nnew york 3\n2 1\n")
    assert pairs(Vocab.load(path)) == [("the", 12), ("new york", 3), ("2", 1)]
    path.write_bytes(b"the\r\nnew york\r\nroute 66\r\n")
    assert pairs(Vocab.load(path)) == [("the", 0), ("new york", 0), ("route 66", 0)]


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (b"", SourceError, "is empty"),
        (b"a\xff\n", SourceError, "not UTF-8 at byte 1"),
        (b"a\n\nb\n", FormatError, "line 2 is empty"),
        (b"a\na\n", FormatError, "'a' occurs twice"),
        (b'# firth vocabulary 2 {"tokens": 0}\n', FormatError, "version 2, this firth reads version 1"),
        (b"# firth vocabulary 1 {\n", FormatError, "line 1 is a damaged head"),
        (b'# firth vocabulary 1 {"tokens": 2}\na\t1\n', FormatError, "holds 1 tokens, its head says 2"),
        (
            b'# firth vocabulary 1 {"tokens": 1}\na 1\n',
            FormatError,
            "line 2 is wrong: expected a token, a tab",
        ),
        (b'# firth vocabulary 1 {"tokens": 1}\n\\q\t1\n', FormatError, "line 2 is wrong: no escape known"),
        (b'# firth vocabulary 1 {"tokens": 1}\na\t99999999999999999999\n', FormatError, "line 2 is wrong"),
        (b'# firth vocabulary 1 {"tokens": 1, "default_id": 5}\na\t1\n', FormatError, "from 0 to 0"),
        (
            b'# firth vocabulary 1 {"tokens": 1, "unknown": "x"}\na\t1\n',
            FormatError,
            "unknown must be one of",
        ),
    ],
)
def test_a_wrong_file_gets_a_sentence(
    tmp_path: Path, data: bytes, error: type[Exception], sentence: str
) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(data)
    with pytest.raises(error, match=sentence) as caught:
        Vocab.load(path)
    assert "v.txt" in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        Vocab.load(tmp_path / "none")
    with pytest.raises(StorageError, match="does not exist"):
        Vocab(["a"]).save(tmp_path / "no" / "v.txt")


def test_all_rare_says_what_was_found() -> None:
    with pytest.raises(SourceError) as caught:
        Vocab.count(["the the the a b"])
    assert "every one of 3 different tokens of the given list occurs fewer than min_count=5 times" in str(
        caught.value
    )
    assert "the most frequent is 'the' with 3: lower min_count" in str(caught.value)
    with pytest.raises(SourceError, match="the only token of the given mapping occurs fewer"):
        Vocab.count({"one": 1})


@pytest.mark.parametrize("settings_", [{"min_count": 0}, {"min_count": 1.5}, {"max_size": 0}, {"threads": 0}])
def test_wrong_settings(settings_: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="must be a positive integer"):
        Vocab.count(["a b"], **settings_)  # type: ignore[arg-type]


class Notes:
    """Keeps what a reporter is told at the end of each stage."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, stage: str, total: float | None, unit: str) -> None: ...

    def update(self, done: float, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None:
        self.notes.append(note)


def test_pruning_is_bounded_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PRUNE_ABOVE", 40)
    monkeypatch.setattr("firth.sources._BATCH_TOKENS", 30)
    largest: list[int] = []
    prune = counting.Table.prune
    monkeypatch.setattr(
        counting.Table, "prune", lambda self: (largest.append(len(self.words)), prune(self))[1]
    )
    rng = random.Random(3)
    sentences = [["often"] * 3 + [f"rare{rng.randrange(10**6)}" for _ in range(10)] for _ in range(200)]
    sentences += [["late"] * 5 for _ in range(5)]
    notes = Notes()
    vocab = Vocab.count(sentences, min_count=2, max_size=2, progress=notes)
    exact = Counter(token for sentence in sentences for token in sentence)
    assert pairs(vocab) == [("often", 600), ("late", 25)]
    assert len(exact) > 1900 and max(largest) < 120
    assert vocab.pruned > 1500 and vocab.count_error > 0
    assert any("were forgotten while counting" in note for note in notes.notes)
    assert Vocab.count(sentences, min_count=2).pruned == 0


def test_pruning_keeps_the_frequent_half_of_the_limit() -> None:
    table = counting.Table(Tokenizer())
    table._limit = 6
    table.add(counting.tokenise([list("abcdef")], Tokenizer()))
    assert table.prune() is None
    table.add(counting.tokenise([list("ggfb")], Tokenizer()))
    moved = table.prune()
    assert moved is not None and moved.tolist() == [-1, 0, -1, -1, -1, 1, 2]
    assert table.words == ["b", "f", "g"] and table.counts.tolist() == [2, 2, 2]
    assert (table.pruned, table.count_error, table.raw_tokens) == (4, 1, 10)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), max_size=12), max_size=30))
def test_count_error_bounds_what_pruning_loses(sentences: list[list[str]]) -> None:
    table = counting.Table(Tokenizer())
    table._limit = 6
    for sentence in sentences:
        table.add(counting.tokenise([sentence], Tokenizer()))
        table.prune()
    exact = Counter(token for sentence in sentences for token in sentence)
    held = dict(zip(table.words, table.counts.tolist(), strict=True))
    for token, count in exact.items():
        assert count - table.count_error <= held.get(token, 0) <= count
    assert table.raw_tokens == sum(exact.values())


def test_folding_while_counting() -> None:
    text = "The THE the E\u0301 \u00e9 \u00c9 \u039f\u0394\u039f\u03a3 \u0130"
    tokenizer = Tokenizer(lower=True, nfc=True)
    expected = by_hand(Counter(tokenizer.fold(token) for token in text.split()), 1)
    assert (
        ("the", 3) in expected and ("\u00e9", 3) in expected and ("\u03bf\u03b4\u03bf\u03c2", 1) in expected
    )
    assert pairs(Vocab.count([text], min_count=1, tokenizer=tokenizer)) == expected
    assert pairs(Vocab.count([text.split()], min_count=1, tokenizer=tokenizer)) == expected


def test_a_generator_is_walked_once() -> None:
    assert Vocab.count((line for line in ["a b", "a"]), min_count=1)["a"] == 0


def test_a_million_tokens() -> None:
    vocab = Vocab._sure([f"token{row}" for row in range(1_000_000)], np.ones(1_000_000, np.int64))
    assert "_ids" not in vocab.__dict__
    assert vocab["token999999"] == 999_999
    with pytest.raises(KeyNotFound, match="token"):
        vocab["tokn12345"]


def test_public() -> None:
    assert firth.Vocab is Vocab


def test_many_threads_are_no_more_than_are_of_use():
    assert counting.check_threads(100) == counting.MOST_THREADS and counting.check_threads(3) == 3
    assert 1 <= counting.check_threads(None) <= counting.MOST_THREADS
