"""Encoding by several processes: files that are those of one process, read once in all."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from firth import Corpus, Tokenizer, Vocab, sources
from firth.errors import FirthError, SourceError
from firth.sources import find_source, shared_out
from teams import Workers

FILES = ("ids.i32", "sentences.i64", "blocks.i64", "vocab.txt", "corpus.json")


@pytest.fixture(scope="module")
def three():
    workers = Workers(3, __name__)
    yield workers
    workers.end()


def encoded(group, source, caches, settings):
    """The folder and what it holds, and the bytes that this rank read."""
    read = []
    batches = sources.PartSource.batches

    def counted(self, *given):
        read.append(self.size)
        return batches(self, *given)

    sources.PartSource.batches = counted
    try:
        corpus = Corpus.encode(source, cache=caches[group.rank], threads=1, group=group, **settings)
    finally:
        sources.PartSource.batches = batches
    return str(corpus.folder), corpus.fingerprint, sum(read), corpus.reused


def refused(group, source, cache):
    try:
        Corpus.encode(source, cache=cache, group=group)
    except FirthError as error:
        return str(error)
    return ""


@pytest.fixture
def texts(tmp_path):
    """Files of several kinds and sizes."""
    folder = tmp_path / "texts"
    folder.mkdir()
    chance = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(300)] + ["é", "中文", "Straße", "ÉCLAIR"])
    for number, lines in enumerate((4, 900, 0, 300, 40)):
        text = "\n".join(
            " ".join(words[np.minimum(chance.zipf(1.3, chance.integers(0, 12)), len(words)) - 1])
            for _ in range(lines)
        )
        (folder / f"{number}.txt").write_text(text + ("\n" if number % 2 else ""), encoding="utf-8")
    (folder / "5.jsonl").write_text("\n".join(json.dumps({"text": f"w1 w2 w{n} w3"}) for n in range(200)))
    shutil.copy(folder / "1.txt", folder / "6.txt")
    return folder


def same_files(one, other):
    for name in FILES:
        assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes(), name


@pytest.mark.parametrize(
    "settings",
    [
        {"min_count": 2},
        {"min_count": 1, "tokenizer": Tokenizer(lower=True, nfc=True)},
        {"min_count": 1, "tokenizer": Tokenizer(pattern=r"\w+")},
        {"min_count": 1, "tokenizer": Tokenizer(lines=False)},
        {"min_count": 2, "known": ["w7", "none", "w1"]},
        {"vocab": Vocab(["w1", "w2", "w9", "é"])},
        {"max_size": 20},
    ],
)
def test_the_files_are_those_of_one_process(settings, texts, three, tmp_path):
    alone = Corpus.encode(texts, cache=tmp_path / "alone", threads=1, **settings)
    results = three.run(encoded, texts, [tmp_path / "all"] * 3, settings)
    for folder, fingerprint, _, _ in results:
        assert folder == results[0][0] and fingerprint == alone.fingerprint
        same_files(folder, alone.folder)
    total = sum(path.stat().st_size for path in texts.iterdir())
    assert sum(read for _, _, read, _ in results) == total  # each byte once, by one of them
    assert max(read for _, _, read, _ in results) < 0.7 * total
    assert [path.name for path in (tmp_path / "all" / "corpora").iterdir()] == [Path(results[0][0]).name]
    assert all(reused for _, _, _, reused in three.run(encoded, texts, [tmp_path / "all"] * 3, settings))


def test_each_cache_folder_gets_a_copy(texts, three, tmp_path):
    alone = Corpus.encode(texts, cache=tmp_path / "alone", threads=1)
    caches = [tmp_path / "here", tmp_path / "there", tmp_path / "here"]
    results = three.run(encoded, texts, caches, {})
    assert results[0][0] == results[2][0] != results[1][0]
    for folder, _, _, _ in results:
        same_files(folder, alone.folder)


def test_one_file_is_cut_between_lines(texts):
    path, tokenizer = texts / "1.txt", Tokenizer()
    whole = path.read_bytes()
    for count in (1, 2, 5, 40):
        parts = shared_out(find_source(path), tokenizer, count)
        assert len(parts) == count
        got = [whole[part.begin : part.end] for one in parts for part in one.parts]
        assert b"".join(got) == whole
        assert all(piece.endswith(b"\n") for piece in got[:-1])
        if count == 5:
            assert max(map(len, got)) < len(whole) / 4


def test_what_may_not_be_cut_is_not(texts):
    for tokenizer in (Tokenizer(lines=False), Tokenizer(pattern="x")):
        parts = shared_out(find_source(texts / "1.txt"), tokenizer, 3)
        assert sorted(len(one.parts) for one in parts) == [0, 0, 1]
    names = Counter(
        part.path.name for one in shared_out(find_source(texts), Tokenizer(), 3) for part in one.parts
    )
    assert names["5.jsonl"] == 1 and set(names) >= {path.name for path in texts.iterdir()} - {"2.txt"}


def test_a_bad_byte_is_told_with_its_place(three, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a b a b\n" * 1000 + b"a \xff b\n" + b"a b\n" * 10)
    with pytest.raises(SourceError, match="at byte 8,002"):
        list(shared_out(find_source(path), Tokenizer(), 3)[2].batches(Tokenizer()))


def test_what_one_process_alone_can_read(three, tmp_path):
    for sentence in three.run(refused, "-", tmp_path):
        assert "cannot be read by several processes" in sentence
