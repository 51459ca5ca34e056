"""Tokens in parallel -> a table of the different ones and their counts, in bounded memory.

Chunks are tokenised by threads, each with a dictionary of its own (pyarrow, outside the GIL); the
dictionaries are merged in the order of the text, so that the numbers do not depend on the threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firth.errors import SettingError, SourceError
from firth.progress import SILENT, Reporter
from firth.sources import Batch, Source, Tokenizer
from firth.textfiles import Chunk

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]

PRUNE_ABOVE = 1_000_000  # a table of fewer different tokens is never pruned
MOST_THREADS = 8


class Tokens(NamedTuple):
    """One batch, tokenised.

    ``words``: its different tokens; ``ids``: int32 (n,), a number into ``words`` for each token;
    ``ends``: int64 (s,), the count of tokens up to the end of each sentence that ends here.
    """

    words: Sequence[str]
    ids: Ints
    ends: Longs


def tokenise(batch: Batch, tokenizer: Tokenizer) -> Tokens:
    """The tokens of one batch of a source; see ``Tokens``."""
    if not isinstance(batch, Chunk):
        return _number(batch, goes_on=False)
    if tokenizer.at_space:
        return _split_at_space(batch)
    return _number(tokenizer.sentences(batch.data.decode()), batch.goes_on)


def _split_at_space(chunk: Chunk) -> Tokens:
    import pyarrow as pa
    import pyarrow.compute as pc

    data = chunk.data
    borders = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    last = [] if borders.size and borders[-1] == len(data) else [len(data)]
    offsets = np.concatenate([[0], borders, last]).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    split = pc.utf8_split_whitespace(lines)
    coded = split.values.dictionary_encode()
    words: list[str] = coded.dictionary.to_pylist()
    ids = coded.indices.to_numpy()
    ends = split.offsets.to_numpy()[1:].astype(np.int64)
    if chunk.goes_on:
        ends = ends[:-1]
    # White space at either end of a line splits off an empty token.
    if "" in words:
        empty_id = words.index("")
        kept = ids != empty_id
        ends = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[ends]
        ids = ids[kept]
        ids = ids - (ids > empty_id)
        del words[empty_id]
    return Tokens(words, ids.astype(np.int32, copy=False), ends)


class _Numbers(dict[str, int]):
    def __missing__(self, token: str) -> int:
        self[token] = number = len(self)
        return number


def _number(sentences: Sequence[list[str]] | Iterator[list[str]], goes_on: bool) -> Tokens:
    numbers = _Numbers()
    ids: list[int] = []
    ends: list[int] = []
    for sentence in sentences:
        try:
            ids += [numbers[token] for token in sentence if token]
        except TypeError:
            raise _no_token(next(one for one in sentence if not isinstance(one, str))) from None
        ends.append(len(ids))
    for token in numbers:
        if not isinstance(token, str):
            raise _no_token(token)
    if goes_on:
        ends.pop()
    return Tokens(list(numbers), np.array(ids, np.int32), np.array(ends, np.int64))


def _no_token(token: object) -> SourceError:
    return SourceError(
        f"a token must be a string, got {token!r:.60} of type {type(token).__name__}; convert it by str()"
    )


def check_threads(threads: int | None) -> int:
    """The count of threads to use: as given, or one for each core this process may use, up to 8 each way.

    More would wait for the one that merges, and each holds about 30 MB.

    Raises:
        SettingError: not a positive integer.
    """
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MOST_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise SettingError(f"threads must be a positive integer or None, got {threads!r}")
    return min(threads, MOST_THREADS)


def tokenised(
    source: Source,
    tokenizer: Tokenizer,
    *,
    errors: str = "strict",
    field: str = "text",
    threads: int | None = None,
    progress: Reporter = SILENT,
    stage: str = "read",
) -> Generator[Tokens, None, None]:
    """The batches of ``source``, tokenised, in the order of the text; at most threads + 1 are held.

    A pattern or function of the tokenizer runs in the calling thread.

    Raises:
        SourceError, StorageError: as ``Source.batches``.
    """
    workers = check_threads(threads) if tokenizer.at_space else 1
    progress.start(stage, source.size, "bytes")
    count = 0
    for tokens in _in_order(source.batches(tokenizer, errors, field), tokenizer, workers):
        count += len(tokens.ids)
        yield tokens
        progress.update(source.done, f"{count:,} tokens")
    progress.finish(f"{count:,} tokens")


def _in_order(batches: Iterator[Batch], tokenizer: Tokenizer, workers: int) -> Iterator[Tokens]:
    if workers == 1:
        yield from (tokenise(batch, tokenizer) for batch in batches)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="firth-read")
    waiting: deque[Future[Tokens]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(tokenise, batch, tokenizer))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Table:
    """The different tokens so far, numbered as they come, and their counts.

    With ``max_size`` the table is pruned: when it holds more than
    ``max(4 * max_size, 1,000,000)`` tokens, the most frequent half of that number stay (of equals
    those that came first), the rest are forgotten. A token forgotten and met again starts at zero.

    Args:
        tokenizer: gives words that stand for one another the same number.
        max_size: see above.
        known: different words that have the first numbers from the start and are never forgotten; they
            count for nothing in these limits. Where the tokenizer folds words, one that does not fold
            to itself cannot occur.

    Attributes:
        words: list of str; counts: int64 (len(words),); n_known: how many of them are ``known``.
        raw_tokens: all tokens counted, also those of forgotten words.
        pruned: entries forgotten so far.
        count_error: by how much at most the count of a token is too low for that.
    """

    def __init__(self, tokenizer: Tokenizer, max_size: int | None = None, known: Sequence[str] = ()) -> None:
        self.words: list[str] = list(known)
        self.n_known = len(self.words)
        self._known = {word: number for number, word in enumerate(self.words)}
        self.raw_tokens = self.pruned = self.count_error = 0
        self.tokenizer = tokenizer
        self._limit = None if max_size is None else max(4 * max_size, PRUNE_ABOVE) + self.n_known
        self._ids = self._own_ids()
        self._counts = np.zeros(max(1024, self.n_known), np.int64)

    def _own_ids(self) -> dict[str, int]:
        """The number of each word under its own spelling, if the tokenizer can give that."""
        ids = {word: number for number, word in enumerate(self.words)}
        if self.tokenizer.folds:
            for word in self.words[: self.n_known]:
                if self.tokenizer.fold(word) != word:
                    del ids[word]
        return ids

    @property
    def counts(self) -> Longs:
        return self._counts[: len(self.words)]

    def add(self, tokens: Tokens) -> Ints:
        """Count one batch; the table's number of each of its ``words``, int32."""
        numbers = self._number(tokens.words)
        if len(self.words) > len(self._counts):
            grown = np.zeros(2 * len(self.words), np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        # Two words of a batch may fold to one number.
        np.add.at(self._counts, numbers, np.bincount(tokens.ids, minlength=len(tokens.words)))
        self.raw_tokens += len(tokens.ids)
        return numbers

    def _number(self, words: Sequence[str]) -> Ints:
        ids = self._ids
        numbers = np.fromiter(map(ids.get, words, repeat(-1)), np.int32, len(words))
        rows = np.flatnonzero(numbers < 0)
        fresh = [words[row] for row in rows.tolist()]
        if not self.tokenizer.folds:
            first = len(self.words)
            numbers[rows] = np.arange(first, first + len(fresh), dtype=np.int32)
            ids.update(zip(fresh, range(first, first + len(fresh)), strict=True))
            self.words += fresh
            return numbers
        for row, word in zip(rows.tolist(), fresh, strict=True):
            key = self.tokenizer.fold(word)
            number = ids.get(key, self._known.get(key))
            if number is None:
                number = ids[key] = len(self.words)
                self.words.append(key)
            ids[word] = numbers[row] = number
        return numbers

    def prune(self) -> Ints | None:
        """Prune where due: int32, the new number of each old one (-1: forgotten); ``None`` if not due."""
        if self._limit is None or len(self._ids) <= self._limit:
            return None
        if len(self.words) <= self._limit:  # it is the spellings that fold to one word which are many
            self._ids = self._own_ids()
            return None
        keep = (self._limit - self.n_known) // 2
        order = np.argsort(-self.counts[self.n_known :], kind="stable") + self.n_known
        kept = np.append(np.arange(self.n_known), np.sort(order[:keep]))
        lost = order[keep:]
        numbers = np.full(len(self.words), -1, np.int32)
        numbers[kept] = np.arange(len(kept), dtype=np.int32)
        self.pruned += len(lost)
        self.count_error += int(self.counts[lost].max(initial=0))
        new = numbers.tolist()
        self._ids = {word: new[number] for word, number in self._ids.items() if new[number] >= 0}
        self.words = [self.words[number] for number in kept.tolist()]
        self._counts = self._counts[kept]
        return numbers

    @classmethod
    def merged(
        cls, parts: Sequence[tuple[Sequence[str], Longs]], tokenizer: Tokenizer, known: Sequence[str] = ()
    ) -> tuple[Table, list[Ints]]:
        """One table of those of the parts of a text, and for each part the new numbers of its words.

        Args:
            parts: ``words`` and ``counts`` of each part's table, in the order of the text; each began with
                ``known``.
        """
        table = cls(tokenizer, None, known)
        own = {word: number for number, word in enumerate(table.words)}
        numbers = []
        for words, _ in parts:
            numbers.append(
                np.fromiter((own.setdefault(word, len(own)) for word in words), np.int32, len(words))
            )
        table.words = list(own)
        table._counts = np.zeros(max(1, len(own)), np.int64)
        for (_, counts), rows in zip(parts, numbers, strict=True):
            table._counts[rows] += counts
        return table, numbers

    def report(self, progress: Reporter) -> None:
        """Tell what pruning has cost, if there was any."""
        if self.pruned:
            progress.start("prune", None, "tokens")
            progress.finish(
                f"{self.pruned:,} rare tokens were forgotten while counting; "
                f"a count is too low by {self.count_error:,} at most"
            )


def ranked(
    words: Sequence[str], counts: Longs, min_count: int, max_size: int | None, what: str
) -> npt.NDArray[np.intp]:
    """The rows to keep, by falling count, equal counts in code point order.

    Raises:
        SourceError: none is left; says what was found in ``what``.
    """
    if len(words) == 0:
        raise SourceError(f"{what} holds no tokens")
    rows = sorted(np.flatnonzero(counts >= min_count).tolist(), key=words.__getitem__)
    if not rows:
        top_row = int(np.argmax(counts))
        every = (
            f"the only token of {what} occurs"
            if len(words) == 1
            else f"every one of {len(words):,} different tokens of {what} occurs"
        )
        raise SourceError(
            f"{every} fewer than min_count={min_count} times; the most frequent is {words[top_row]!r:.60} "
            f"with {int(counts[top_row]):,}: lower min_count (--min-count)"
        )
    order = np.array(rows, np.intp)
    return order[np.argsort(-counts[order], kind="stable")][:max_size]


def check_counting(min_count: int, max_size: int | None) -> None:
    """Refuse limits that are no positive integers by a SettingError."""
    for name, value in (("min_count", min_count), ("max_size", max_size)):
        if value is None and name == "max_size":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise SettingError(f"{name} must be a positive integer, got {value!r}")
