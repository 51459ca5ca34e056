"""Corpus: text that cannot be used, a full disk, an interruption; nothing is left behind."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pytest

from firth import Corpus, SourceError, StorageError, Vocab, encoding
from firth.cache import entries

TEXT = "the cat sat on the mat\nthe dog sat on the cat\n"


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


@pytest.mark.parametrize(
    ("content", "arguments", "sentence"),
    [
        ("one", {}, "the only token of .* occurs fewer than min_count=5 times"),
        ("one " * 9, {}, "of the 9 tokens of .* only 'one' is left, 9 times: two different ones are needed"),
        ("a b c", {}, "every one of 3 different tokens of .* most frequent is 'a' with 1: lower min_count"),
        (" \n\n\t", {}, "holds no tokens"),
        ("", {}, "is empty"),
        ("a b", {"vocab": Vocab(["x", "y"])}, "none of the 2 tokens of .* is in the vocabulary of 2 tokens"),
        ("a b", {"vocab": Vocab(["a", "y"])}, "of the 2 tokens of .* only 'a' is left"),
    ],
)
def test_nothing_to_learn_from(text: Path, content: str, arguments: dict[str, Vocab], sentence: str) -> None:
    text.write_text(content)
    with pytest.raises(SourceError, match=sentence):
        Corpus.encode(text, **arguments)  # type: ignore[arg-type]
    assert entries() == []


def test_bad_bytes_leave_nothing(text: Path) -> None:
    text.write_bytes(TEXT.encode() + b"\xff")
    with pytest.raises(SourceError, match=f"is not UTF-8: 0xff at byte {len(TEXT)}"):
        Corpus.encode(text)
    assert entries() == []
    assert "\ufffd" in Corpus.encode(text, min_count=1, errors="replace").vocab


@pytest.mark.parametrize("name", ["ids.i32", "ends.tmp", "sentences.i64"])
def test_a_full_disk(text: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write = encoding._write

    def full(file: IO[bytes], array: npt.NDArray[np.int64], dtype: str) -> None:
        if file.name.endswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, array, dtype)

    monkeypatch.setattr(encoding, "_write", full)
    with pytest.raises(
        StorageError, match=r"cannot encode text into .*: no space left .*--cache, cache= or FIRTH_CACHE"
    ):
        Corpus.encode(text, min_count=1)
    assert entries() == []


def test_a_cache_that_cannot_be_made(text: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot use the cache folder .*text.txt.*FIRTH_CACHE"):
        Corpus.encode(text, cache=text)


def test_an_iterable_that_raises_leaves_nothing() -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield TEXT
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Corpus.encode(texts(), min_count=1)
    assert entries() == []


def test_interrupted(cache: Path) -> None:
    program = (
        "import itertools, sys; from firth import Corpus;"
        "lines = (print('go', flush=True) or 'a b ' * 100_000 for _ in itertools.count());"
        "Corpus.encode(lines)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(30):
        process.stdout.readline()
    assert len(entries()) == 1
    process.send_signal(signal.SIGINT)
    # The pipe must be emptied, or the generator waits to print.
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert entries() == []
