"""Corpus: ids against a plain definition, sentences, blocks, the cache, failures that leave nothing."""

from __future__ import annotations

import gc
import json
import lzma
import os
import random
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth import (
    Corpus,
    KeyNotFound,
    SettingError,
    ShapeError,
    Tokenizer,
    Vocab,
    counting,
    encoding,
)
from firth.cache import cache_folder, clear_cache, corpora_folder, entries
from firth.encoding import block_starts

TEXT = "the cat sat on the mat\nrare\nthe dog sat on the cat\n\n the mat the mat\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FIRTH_CACHE", str(folder))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def by_hand(lines: list[list[str]], vocab: Vocab) -> tuple[list[int], list[int]]:
    """The definition: ids of known tokens, and where each sentence with at least one of them begins."""
    ids: list[int] = []
    starts = [0]
    for line in lines:
        ids += [vocab.id_of(token) for token in line if token in vocab]
        if len(ids) > starts[-1]:
            starts.append(len(ids))
    return ids, starts


def check(corpus: Corpus, lines: list[list[str]]) -> None:
    """Everything that must hold for a corpus of these sentences."""
    ids, starts = by_hand(lines, corpus.vocab)
    assert corpus.ids.dtype == np.int32 and corpus.ids.tolist() == ids
    assert corpus.sentence_starts.dtype == np.int64 and corpus.sentence_starts.tolist() == starts
    assert corpus.block_starts.tolist() == block_starts(np.array(starts)).tolist()
    assert corpus.raw_tokens == sum(map(len, lines)) and len(corpus) == len(ids)
    assert not corpus.ids.flags.writeable


def split(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("\n")]


def test_counts_and_encodes_a_file(text: Path) -> None:
    corpus = Corpus.encode(text, min_count=2)
    assert corpus.vocab == Vocab.count(text, min_count=2)
    assert corpus.vocab.tokens == ["the", "mat", "cat", "on", "sat"] and "rare" not in corpus.vocab
    check(corpus, split(TEXT))
    assert corpus.sentence_starts.tolist() == [0, 6, 11, 15]
    assert np.bincount(corpus.ids).tolist() == corpus.vocab.counts.tolist()
    assert repr(corpus) == "Corpus(15 ids of 5 tokens in 3 sentences)"


def test_the_same_from_every_kind_of_source(text: Path, tmp_path: Path) -> None:
    records = "\n".join(json.dumps({"text": line}) for line in TEXT.split("\n"))
    (tmp_path / "text.jsonl").write_text(records)
    (tmp_path / "text.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    expected = Corpus.encode(text, min_count=2)
    for source in (
        tmp_path / "text.jsonl",
        str(tmp_path / "text.txt.xz"),
        [TEXT],
        TEXT.split("\n"),
        (line.split() for line in TEXT.split("\n")),
    ):
        corpus = Corpus.encode(source, min_count=2)
        check(corpus, split(TEXT))
        assert corpus.fingerprint == expected.fingerprint


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "\u00e9", "\u4e2d"]), max_size=8), max_size=12),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
)
def test_any_text_any_chunks_any_slices(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], min_count: int, threads: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a"
    path.write_text("\n".join(" ".join(line) for line in [*lines, ["x", "y"], ["x", "y"], ["x", "y"]]))
    lines = split(path.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("firth.textfiles.CHUNK", 6)
        patch.setattr(encoding, "_SLICE", 5)
        corpus = Corpus.encode(path, min_count=min_count, threads=threads, cache=path.parent)
        assert corpus.vocab.tokens == Vocab.count(lines, min_count=min_count).tokens
        check(corpus, lines)
        given_vocab = Corpus.encode(path, Vocab(["x", "c", "y"]), threads=threads, cache=path.parent)
        check(given_vocab, lines)
        again = Corpus.from_ids(corpus.ids, corpus.sentence_starts, corpus.vocab)
        assert again.fingerprint == corpus.fingerprint


def test_one_long_line_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firth.textfiles.CHUNK", 1000)
    rng = random.Random(5)
    words = [f"w{rng.randrange(30)}" for _ in range(150_000)]
    (tmp_path / "a").write_text(" ".join(words))
    corpus = Corpus.encode(tmp_path / "a")
    check(corpus, [words])
    assert corpus.sentence_starts.tolist() == [0, 150_000]
    assert corpus.block_starts.tolist() == [0, 50_000, 100_000, 150_000]


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firth.textfiles.CHUNK", 500)
    rng = random.Random(6)
    lines = [[f"w{rng.randrange(99)}" for _ in range(rng.randrange(20))] for _ in range(500)]
    (tmp_path / "a").write_text("\n".join(" ".join(line) for line in lines))
    made = [Corpus.encode(tmp_path / "a", threads=n, cache=tmp_path / str(n)) for n in (1, 2, 5)]
    check(made[0], lines)
    assert len({corpus.fingerprint for corpus in made}) == 1
    assert len({(corpus.folder or tmp_path).joinpath("vocab.txt").read_bytes() for corpus in made}) == 1


def test_tokenizers(text: Path) -> None:
    text.write_text("Le CAF\u00c9 caf\u00e9 cafe\u0301\nle Le")
    folded = Corpus.encode(text, min_count=1, tokenizer=Tokenizer(lower=True, nfc=True))
    assert folded.vocab.tokens == ["caf\u00e9", "le"] and folded.ids.tolist() == [1, 0, 0, 0, 1, 1]
    given_vocab = Corpus.encode(text, folded.vocab, tokenizer=Tokenizer(lower=True, nfc=True))
    assert given_vocab.ids.tolist() == folded.ids.tolist()
    whole = Corpus.encode(text, min_count=1, tokenizer=Tokenizer(lower=True, lines=False))
    assert whole.sentence_starts.tolist() == [0, 6]
    letters = Corpus.encode(text, min_count=1, tokenizer=Tokenizer(function=list))
    assert "L" in letters.vocab and letters.sentence_starts.tolist()[1] == 18


def test_unknown_tokens_of_a_given_vocabulary(text: Path) -> None:
    dropped = Corpus.encode(text, Vocab(["the", "cat"], [7, 9]))
    check(dropped, split(TEXT))
    assert dropped.vocab.counts.tolist() == [7, 9]
    assert (
        Corpus.encode(text, Vocab(["the", "cat"], [7, 9], unknown="drop")).fingerprint == dropped.fingerprint
    )
    unk = Corpus.encode(text, Vocab(["the", "cat"], [7, 9], unknown="unk"))
    assert len(unk) == unk.raw_tokens == 17 and np.bincount(unk.ids).tolist() == [6, 2, 9]
    assert unk.vocab.default_id == 2 and unk.sentence_starts.tolist() == [0, 6, 7, 13, 17]
    # The same table with another policy is another corpus, also for the cache.
    assert len(Corpus.encode(text, unk.vocab.with_unknown("drop"))) == 8
    # A plain list of words knows no counts: it gets those of the text.
    assert Corpus.encode(text, Vocab(["the", "cat", "dog"])).vocab.counts.tolist() == [6, 2, 1]
    with pytest.raises(SettingError, match=r"vocab must be a Vocab, got str; Vocab.load"):
        Corpus.encode(text, "vocab.txt")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"must be a firth.Tokenizer, got .*Tokenizer\(function="):
        Corpus.encode(text, tokenizer=str.split)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="max_size is for counting"):
        Corpus.encode(text, Vocab(["the"]), max_size=3)


def test_pruning_keeps_ids_and_counts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PRUNE_ABOVE", 30)
    monkeypatch.setattr("firth.sources._BATCH_TOKENS", 40)
    monkeypatch.setattr(encoding, "_SLICE", 100)
    rng = random.Random(3)
    lines = [["often"] * 2 + [f"r{rng.randrange(10**6)}" for _ in range(9)] + ["and"] for _ in range(300)]
    lines += [["late", "often"]] * 40
    corpus = Corpus.encode(iter(lines), min_count=2, max_size=3)
    assert corpus.vocab.tokens == ["often", "and", "late"] and corpus.vocab.pruned > 1000
    check(corpus, lines)
    assert np.bincount(corpus.ids).tolist() == corpus.vocab.counts.tolist()
    assert corpus.vocab.counts.tolist() == [640, 300, 40]
    assert sorted(path.name for path in (corpus.folder or Path()).iterdir()) == sorted(
        ["ids.i32", "sentences.i64", "blocks.i64", "vocab.txt", "corpus.json"]
    )


def test_numbers_move_at_every_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PRUNE_ABOVE", 40)
    monkeypatch.setattr("firth.sources._BATCH_TOKENS", 60)
    monkeypatch.setattr(encoding, "_SLICE", 50)
    # Every 40 lines a new key begins, behind rare tokens that are forgotten later.
    lines = [
        [f"r{row}_{place}" for place in range(4)] + [f"key{key}" for key in range(row // 40 + 1)] * 2
        for row in range(240)
    ]
    corpus = Corpus.encode(lines, min_count=2, max_size=6)
    assert corpus.vocab.tokens == [f"key{key}" for key in range(6)] and corpus.vocab.pruned > 500
    check(corpus, lines)


def test_a_token_pruned_and_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PRUNE_ABOVE", 8)
    monkeypatch.setattr("firth.sources._BATCH_TOKENS", 6)
    lines = [["a", "b", "c", "d", "e", "f"] * 2 + ["x"]]
    lines += [["a", "b", f"r{row}", f"q{row}"] for row in range(20)]
    lines += [["x"] * 5]
    three = Corpus.encode(lines, min_count=2, max_size=3)
    assert three.vocab.tokens == ["a", "b", "x"] and three.vocab.counts.tolist() == [22, 22, 5]
    assert np.bincount(three.ids).tolist() == [22, 22, 5] and three.raw_tokens == 98
    assert three.vocab.count_error >= 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=40), st.integers(1, 3000), st.integers(1, 1000))
def test_blocks(lengths: list[int], block: int, piece: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    piece = min(piece, block)
    blocks = block_starts(starts, block, piece)
    pieces = {
        start + k for start, length in zip(starts, lengths, strict=False) for k in range(0, length, piece)
    }
    assert blocks.dtype == np.int64 and blocks[0] == 0 and blocks[-1] == starts[-1]
    assert (np.diff(blocks) > 0).all() and np.diff(blocks).max() <= block + piece - 1
    assert set(blocks[:-1].tolist()) <= pieces


def test_blocks_of_the_default_size() -> None:
    blocks = block_starts(np.array([0, 1_000_000]))
    assert len(blocks) == 17 and np.diff(blocks).max() <= 65_536 + 999 and np.diff(blocks).min() > 60_000
    assert block_starts(np.array([0, 3])).tolist() == [0, 3]


# ---- from ids, contexts ----


def test_from_ids() -> None:
    vocab = Vocab(["a", "b", "c"], [2, 2, 1])
    corpus = Corpus.from_ids([0, 1, 2, 0, 1], [0, 3, 5], vocab)
    assert len(corpus) == corpus.raw_tokens == 5 and corpus.folder is None
    assert corpus.ids.dtype == np.int32 and corpus.sentence_starts.dtype == np.int64
    assert corpus.block_starts.tolist() == [0, 5]
    assert corpus.fingerprint != Corpus.from_ids([0, 1, 2, 0, 1], [0, 5], vocab).fingerprint
    assert len(Corpus.from_ids([], [0], vocab)) == 0


@pytest.mark.parametrize(
    ("ids", "starts", "error", "sentence"),
    [
        ([0, 3], [0, 2], SettingError, "ids go from 0 to 3, expected 0 to 2"),
        ([0, -1], [0, 2], SettingError, "ids go from -1 to 0"),
        ([0, 1], [0, 1], SettingError, "must rise from 0 to 2"),
        ([0, 1], [0, 1, 1, 2], SettingError, "must rise"),
        ([0, 1], [], SettingError, "must rise"),
        ([[0, 1]], [0, 2], ShapeError, r"ids has shape \(1, 2\)"),
        ([0.5, 1], [0, 2], ShapeError, "dtype float64"),
    ],
)
def test_from_ids_refuses(ids: list[int], starts: list[int], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        Corpus.from_ids(ids, starts, Vocab(["a", "b", "c"]))


def contexts_by_hand(corpus: Corpus, word: str, window: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    tokens = [corpus.vocab.tokens[row] for row in corpus.ids.tolist()]
    starts = corpus.sentence_starts.tolist()
    for begin, end in pairwise(starts):
        for pos in range(begin, end):
            if tokens[pos] == word:
                counts.update(
                    tokens[max(begin, pos - window) : pos] + tokens[pos + 1 : min(end, pos + window + 1)]
                )
    return counts


def test_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firth.corpus._SLICE", 7)
    rng = random.Random(8)
    lines = [[rng.choice("abcde") for _ in range(rng.randrange(1, 9))] for _ in range(60)]
    corpus = Corpus.encode(lines, min_count=1)
    for word in "abcde":
        for window in (1, 2, 5, 100):
            found = corpus.contexts(word, window, None)
            assert dict(found) == contexts_by_hand(corpus, word, window)
            assert found == sorted(found, key=lambda pair: (-pair[1], corpus.vocab[pair[0]]))
    assert len(corpus.contexts("a", topn=2)) == 2
    with pytest.raises(KeyNotFound, match="'aa' is not in the vocabulary of 5 tokens; did you mean"):
        corpus.contexts("aa")
    for arguments in ({"window": 0}, {"topn": 0}, {"window": 1.5}):
        with pytest.raises(SettingError, match="must be a positive integer"):
            corpus.contexts("a", **arguments)  # type: ignore[arg-type]


# ---- the cache ----


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, stage: str, total: float | None, unit: str) -> None: ...

    def update(self, done: float, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None:
        self.notes.append(note)


def test_a_second_run_reuses_the_first(text: Path, cache: Path) -> None:
    first, notes = Corpus.encode(text, min_count=2), Notes()
    second = Corpus.encode(str(text), min_count=2, progress=notes)
    assert not first.reused and second.reused and second.folder == first.folder
    assert second.fingerprint == first.fingerprint and second.vocab == first.vocab
    assert second.raw_tokens == first.raw_tokens and isinstance(second.ids, np.memmap)
    assert notes.notes == [f"reused 15 tokens encoded before, in {first.folder}"]
    assert first.folder is not None and first.folder.parent == corpora_folder() == cache / "corpora"
    # Other settings, another text: another entry.
    for arguments in (
        {"min_count": 1},
        {"min_count": 2, "max_size": 3},
        {"min_count": 2, "tokenizer": Tokenizer(lower=True)},
        {"vocab": Vocab(["the", "cat"])},
        {"min_count": 2, "errors": "replace"},
    ):
        assert not Corpus.encode(text, **arguments).reused  # type: ignore[arg-type]
        assert Corpus.encode(text, **arguments).reused  # type: ignore[arg-type]
    text.write_text(TEXT + TEXT)
    assert not Corpus.encode(text, min_count=2).reused


def test_what_can_be_read_only_once_leaves_nothing(cache: Path, text: Path) -> None:
    corpus = Corpus.encode([TEXT], min_count=2)
    by_function = Corpus.encode(text, min_count=2, tokenizer=Tokenizer(function=str.split))
    assert [entry.folder for entry in entries()] == sorted([corpus.folder, by_function.folder])  # type: ignore[type-var]
    ids = corpus.ids
    corpus.close()
    assert ids[0] == 0 and len(entries()) == 1
    del by_function
    gc.collect()
    assert entries() == []


def test_the_folder_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache and cache_folder(tmp_path / "here") == tmp_path / "here"
    monkeypatch.setenv("FIRTH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "firth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "firth"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "firth"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "firth" / "cache"


def test_nothing_is_written_to_the_current_folder(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Corpus.encode(text, min_count=1)
    assert list(Path().iterdir()) == []


def test_listing_and_clearing(text: Path, cache: Path) -> None:
    assert entries() == [] and clear_cache() == 0
    corpus = Corpus.encode(text, min_count=2)
    (entry,) = entries()
    assert entry.folder == corpus.folder and entry.description["source"] == str(text)
    assert entry.size == sum(path.stat().st_size for path in entry.folder.iterdir()) > 100
    assert clear_cache() == entry.size and entries() == []
    assert corpus.ids[0] == 0


@pytest.mark.parametrize("name", ["ids.i32", "sentences.i64", "blocks.i64", "vocab.txt", "corpus.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_entry_is_made_again(text: Path, name: str, damage: str) -> None:
    first = Corpus.encode(text, min_count=2)
    assert first.folder is not None
    path = first.folder / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] if damage == "cut" else b"")
    second = Corpus.encode(text, min_count=2)
    assert not second.reused and second.folder == first.folder and second.fingerprint == first.fingerprint
    check(second, split(TEXT))
    assert Corpus.encode(text, min_count=2).reused and len(entries()) == 1


def test_a_text_that_changes_while_it_is_read(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = encoding.Writer.finish

    def slow(self: encoding.Writer, final_ids: npt.NDArray[np.int32], size: int) -> None:
        text.write_text(TEXT + "more")
        finish(self, final_ids, size)

    monkeypatch.setattr(encoding.Writer, "finish", slow)
    corpus = Corpus.encode(text, min_count=2)
    assert corpus.folder is not None and corpus.folder.suffix == ".tmp"
    corpus.close()
    assert entries() == []


def test_two_processes_at_once(text: Path) -> None:
    program = (
        "import sys; from firth import Corpus;"
        "corpus = Corpus.encode(sys.argv[1], min_count=2); print(corpus.fingerprint, corpus.ids.sum())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(text)], stdout=subprocess.PIPE) for _ in range(3)
    ]
    printed = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1 and len(entries()) == 1 and Corpus.encode(text, min_count=2).reused


def test_another_process_was_first(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = encoding.Writer.describe
    others: list[Corpus] = []

    def late(self: encoding.Writer, vocab: Vocab, facts: dict[str, object]) -> str:
        monkeypatch.setattr(encoding.Writer, "describe", describe)
        others.append(Corpus.encode(text, min_count=2))
        return describe(self, vocab, facts)

    monkeypatch.setattr(encoding.Writer, "describe", late)
    corpus = Corpus.encode(text, min_count=2)
    assert corpus.folder == others[0].folder and corpus.reused and len(entries()) == 1


def test_leftovers_of_killed_runs_go_after_a_week(text: Path, cache: Path) -> None:
    for name, age in (("old", 8), ("new", 1)):
        folder = cache / "corpora" / f"{name}.tmp"
        folder.mkdir(parents=True)
        (folder / "ids.i32").write_bytes(b"1234")
        then = time.time() - age * 24 * 3600
        os.utime(folder / "ids.i32", (then, then))
        os.utime(folder, (then, then))
    Corpus.encode(text, min_count=2)
    names = {entry.folder.name for entry in entries()}
    assert "new.tmp" in names and "old.tmp" not in names and len(names) == 2
    clear_cache()
    assert entries() == []


def test_real_text(data: Path) -> None:
    path = data / "text" / "enwiki10M.txt.xz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    words = lzma.decompress(path.read_bytes()).decode().split()
    corpus = Corpus.encode(path)
    expected = sorted(((-n, word) for word, n in Counter(words).items() if n >= 5))
    assert corpus.vocab.tokens == [word for _, word in expected]
    assert corpus.vocab.counts.tolist() == [-n for n, _ in expected]
    ids = [id_ for word in words if (id_ := corpus.vocab.get(word)) is not None]
    assert np.array_equal(corpus.ids, np.array(ids)) and corpus.raw_tokens == len(words)
    near = corpus.contexts("england", topn=None)
    assert dict(near) == contexts_by_hand(corpus, "england", 5)
