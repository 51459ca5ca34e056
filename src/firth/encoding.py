"""Text -> arrays on disk, in two passes: over the text, and over the numbers of its tokens.

Pass 1 appends the table's provisional number of every token to a file (a vocabulary that is given
has its ids at once). Pass 2 goes over that file in place and turns numbers into final ids, leaving
unknown tokens out. Neither holds more than a few pieces of the text in memory.

Files of a folder, all little-endian: ``ids.i32`` (N,), ``sentences.i64`` (S + 1,),
``blocks.i64`` (B + 1,), ``vocab.txt``, ``corpus.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from firth.cache import DESCRIPTION
from firth.counting import Ints, Longs, Tokens
from firth.errors import StorageError
from firth.files import storage_error, sync_folder, write_text
from firth.sources import Tokenizer
from firth.vocab import Vocab

FORMAT = 1  # of the files; a change makes old cache entries unknown
BLOCK = 65_536  # ids in a block, about
PIECE = 1_000  # ids of one sentence in a piece, at most

IDS, SENTENCES, BLOCKS, VOCAB = "ids.i32", "sentences.i64", "blocks.i64", "vocab.txt"
_ENDS, _MOVED = "ends.tmp", ".moved.tmp"
_SLICE = 1 << 21  # numbers handled at a time in pass 2


class Numbering(Protocol):
    """What gives the words of a batch their provisional numbers: a ``Table`` or ``Given``."""

    def add(self, tokens: Tokens, /) -> Ints: ...

    def prune(self) -> Ints | None: ...


class Given:
    """The ids of a vocabulary as provisional numbers; ``len(vocab)`` stands for unknown tokens."""

    def __init__(self, vocab: Vocab, tokenizer: Tokenizer) -> None:
        self._ids, self._tokenizer = vocab.get_stoi(), tokenizer
        self._unknown = len(vocab)
        self.raw_tokens = 0

    def add(self, tokens: Tokens, /) -> Ints:
        self.raw_tokens += len(tokens.ids)
        words: Sequence[str] = tokens.words
        if self._tokenizer.folds:
            words = [self._tokenizer.fold(word) for word in words]
        ids, unknown = self._ids, self._unknown
        return np.fromiter((ids.get(word, unknown) for word in words), np.int32, len(words))

    def prune(self) -> None:
        return None


class Hashes:
    """The hash of ids and sentence starts, whatever the pieces in which they come."""

    def __init__(self) -> None:
        self._ids = hashlib.blake2b(digest_size=16)
        self._starts = hashlib.blake2b(digest_size=16)

    def add_ids(self, ids: Ints) -> None:
        self._ids.update(np.ascontiguousarray(ids, "<i4").data)

    def add_starts(self, starts: Longs) -> None:
        self._starts.update(np.ascontiguousarray(starts, "<i8").data)

    def result(self, vocab: Vocab) -> str:
        """The fingerprint of the corpus of these ids and ``vocab``."""
        parts = self._ids.digest() + self._starts.digest() + bytes.fromhex(vocab.fingerprint)
        return hashlib.blake2b(parts, digest_size=16).hexdigest()


class Writer:
    """Writes the arrays of one text into ``folder``: ``take``, then ``finish``, then ``describe``.

    Every method raises StorageError where the disk is full or fails; the caller removes the folder.

    Attributes:
        counts: int64 (V,), how often each final id occurs; after ``finish``.
        size, sentences: ids and sentences written; after ``finish``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Longs = np.zeros(0, np.int64)
        self.size = self.sentences = 0
        self.hashes = Hashes()
        self._taken = self._last_start = 0
        self._pruned_at: list[int] = []  # counts of numbers in the file when the table was pruned

    def take(self, batches: Iterable[Tokens], table: Numbering) -> None:
        """Pass 1: the provisional number of every token, and where sentences end."""
        with _storage(self.folder), self._open(IDS) as ids_file, self._open(_ENDS) as ends_file:
            last_end = 0
            for tokens in batches:
                numbers = table.add(tokens)
                _write(ids_file, numbers[tokens.ids], "<i4")
                ends = tokens.ends + self._taken
                ends = ends[np.diff(ends, prepend=last_end) > 0]
                _write(ends_file, ends, "<i8")
                last_end = int(ends[-1]) if len(ends) else last_end
                self._taken += len(tokens.ids)
                moved = table.prune()
                if moved is not None:
                    with self._open(f"{len(self._pruned_at)}{_MOVED}") as file:
                        _write(file, moved, "<i4")
                    self._pruned_at.append(self._taken)
            _write(ends_file, np.array([self._taken]), "<i8")

    def finish(self, final_ids: Ints, vocab_size: int) -> None:
        """Pass 2: ids for numbers, in place; then the blocks.

        Args:
            final_ids: int32, the id of each number of the last table; -1 leaves it out.
            vocab_size: ids are below it.
        """
        self.counts = np.zeros(vocab_size, np.int64)
        with _storage(self.folder):
            with (
                open(self.folder / IDS, "r+b") as ids_file,
                open(self.folder / IDS, "rb", buffering=0) as source,
                self._open(SENTENCES) as starts_file,
            ):
                first = np.zeros(1, np.int64)
                self.hashes.add_starts(first)
                _write(starts_file, first, "<i8")
                for ids, ends in self._translated(source, final_ids):
                    _write(ids_file, ids, "<i4")
                    _write(starts_file, ends, "<i8")
                ids_file.truncate(4 * self.size)
                _sync(ids_file)
                _sync(starts_file)
            (self.folder / _ENDS).unlink()
            with self._open(BLOCKS) as file:
                _write(file, block_starts(load_array(self.folder / SENTENCES, "<i8")), "<i8")
                _sync(file)

    def describe(self, vocab: Vocab, facts: Mapping[str, Any]) -> str:
        """Write the vocabulary and ``corpus.json``; the fingerprint of the whole."""
        fingerprint = self.hashes.result(vocab)
        with _storage(self.folder):
            blocks = (self.folder / BLOCKS).stat().st_size // 8 - 1
        description = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "ids": self.size,
            "sentences": self.sentences,
            "blocks": blocks,
            "vocab": len(vocab),
            **facts,
        }
        vocab.save(self.folder / VOCAB)
        write_text(self.folder / DESCRIPTION, json.dumps(description, indent=1))
        sync_folder(self.folder)
        return fingerprint

    def _translated(self, source: IO[bytes], final_ids: Ints) -> Iterator[tuple[Ints, Longs]]:
        """Ids kept and ends of sentences that are not empty, slice by slice."""
        self._compose(final_ids)
        all_ends = load_array(self.folder / _ENDS, "<i8")
        place, end_row = 0, 0
        for segment, stop in enumerate([*self._pruned_at, self._taken]):
            ids_of = final_ids if segment == len(self._pruned_at) else self._moved(segment)
            while place < stop:
                numbers = np.fromfile(source, "<i4", min(_SLICE, stop - place))
                ids = ids_of[numbers]
                kept = ids >= 0
                stop_row = int(np.searchsorted(all_ends, place + len(ids), "right"))
                before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
                ends = self.size + before[all_ends[end_row:stop_row] - place]
                ends = ends[np.diff(ends, prepend=self._last_start) > 0]
                ids = ids[kept]
                self.counts += np.bincount(ids, minlength=len(self.counts))
                self.hashes.add_ids(ids)
                self.hashes.add_starts(ends)
                self.size += len(ids)
                self.sentences += len(ends)
                self._last_start = int(ends[-1]) if len(ends) else self._last_start
                yield ids, ends
                place, end_row = place + len(numbers), stop_row

    def _compose(self, final_ids: Ints) -> None:
        """Make the numbers before each pruning point at final ids instead of at the next table's numbers."""
        later = final_ids
        for segment in reversed(range(len(self._pruned_at))):
            moved = self._moved(segment)
            later = np.where(moved >= 0, later[moved], np.int32(-1))
            with self._open(f"{segment}{_MOVED}") as file:
                _write(file, later, "<i4")

    def _moved(self, segment: int) -> Ints:
        return np.fromfile(self.folder / f"{segment}{_MOVED}", "<i4").astype(np.int32, copy=False)

    def remove_leftovers(self) -> None:
        """Remove what only the two passes needed."""
        for segment in range(len(self._pruned_at)):
            (self.folder / f"{segment}{_MOVED}").unlink(missing_ok=True)

    def _open(self, name: str) -> IO[bytes]:
        return open(self.folder / name, "wb")


def block_starts(sentence_starts: Longs, block: int = BLOCK, piece: int = PIECE) -> Longs:
    """Where blocks begin, and at the end where the last one ends: int64 (B + 1,).

    ``ceil(N / block)`` blocks of nearly equal size; each border is moved back to the border of a
    piece, so that a block holds at most ``block + piece - 1`` ids. A piece begins every ``piece``
    ids from the start of each sentence.

    Args:
        sentence_starts: int64 (S + 1,), the last entry is N.
    """
    count = int(sentence_starts[-1])
    blocks = max(1, -(-count // block))
    targets = np.array([count * row // blocks for row in range(blocks)], np.int64)
    rows = np.searchsorted(sentence_starts, targets, "right") - 1
    starts = np.asarray(sentence_starts[rows], np.int64)
    borders = starts + (targets - starts) // piece * piece
    # A border before N that is 0 twice is one border.
    return np.append(np.unique(borders), count)


def load_array(path: Path, dtype: str) -> npt.NDArray[Any]:
    """A file of numbers as a read-only memory map (an array where it is empty)."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")


def is_whole(folder: Path, description: Mapping[str, Any]) -> bool:
    """Whether the files of a cache entry have the sizes that its description tells."""
    try:
        return bool(
            description["format"] == FORMAT
            and (folder / IDS).stat().st_size == 4 * description["ids"] > 0
            and (folder / SENTENCES).stat().st_size == 8 * (description["sentences"] + 1)
            and (folder / BLOCKS).stat().st_size == 8 * (description["blocks"] + 1)
            and (folder / VOCAB).is_file()
        )
    except (OSError, KeyError, TypeError):
        return False


def _write(file: IO[bytes], array: npt.NDArray[Any], dtype: str) -> None:
    file.write(np.ascontiguousarray(array, dtype).data)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _storage(folder: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        sentence = storage_error(error, folder, "encode text into")
        raise StorageError(f"{sentence}; name another folder with --cache, cache= or FIRTH_CACHE") from error
