"""Text as ids: encoded once, in parallel, into memory-mapped files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from firth.cache import corpora_folder, new_folder, read_description
from firth.counting import Ints, Longs, Table, check_counting, check_threads, tokenised
from firth.encoding import (
    BLOCKS,
    FORMAT,
    IDS,
    SENTENCES,
    VOCAB,
    Given,
    Hashes,
    Writer,
    block_starts,
    is_whole,
    load_array,
)
from firth.errors import FirthError, SettingError, ShapeError, SourceError
from firth.files import remove_tree, sync_folder
from firth.progress import SILENT, Reporter
from firth.sources import Source, SourceLike, Tokenizer, check_tokenizer, find_source
from firth.textfiles import check_errors
from firth.vocab import Vocab

if TYPE_CHECKING:
    from firth.processes import Processes

_SLICE = 1 << 22  # ids that are looked at together


class Corpus:
    """An encoded text; made by ``Corpus.encode`` or ``Corpus.from_ids``.

    Attributes:
        vocab: the vocabulary of the ids.
        ids: int32 (N,), read-only, usually a memory map; tokens that have no id are left out.
        sentence_starts: int64 (S + 1,), ascending, the last entry is N; no sentence is empty.
        block_starts: int64 (B + 1,), from 0 to N; each border lies on the border of a piece.
        raw_tokens: tokens read, those without an id included.
        fingerprint: a hash of ids, sentences and vocabulary: equal texts have equal ones.
        folder: where the files are, ``None`` in memory.
        reused: whether an encoding of an earlier run was used.
    """

    def __init__(
        self,
        vocab: Vocab,
        ids: Ints,
        sentence_starts: Longs,
        block_starts: Longs,
        *,
        raw_tokens: int,
        fingerprint: str,
        folder: Path | None = None,
        reused: bool = False,
    ) -> None:
        self.vocab, self.ids = vocab, ids
        self.sentence_starts, self.block_starts = sentence_starts, block_starts
        self.raw_tokens, self.fingerprint = raw_tokens, fingerprint
        self.folder, self.reused = folder, reused
        self._remove: weakref.finalize[Any, Any] | None = None

    @classmethod
    def encode(
        cls,
        source: SourceLike,
        vocab: Vocab | None = None,
        *,
        min_count: int = 5,
        max_size: int | None = None,
        known: Iterable[str] | None = None,
        tokenizer: Tokenizer = Tokenizer(),
        errors: str = "strict",
        field: str = "text",
        cache: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: Reporter = SILENT,
        group: Processes | None = None,
    ) -> Corpus:
        """Encode a text; without ``vocab`` its tokens are counted in the same reading.

        Files are encoded once: the result is kept in the cache folder (see ``firth.cache``) under a
        hash of the files' paths, sizes and times and of the settings, and used again. Standard input,
        iterables and tokenizers with a function leave a folder that goes with the Corpus.

        Args:
            source: what ``firth.sources`` reads; an iterable is walked once.
            vocab: the tokens to keep; ids are its ids. Unknown tokens are left out, or get the row
                that the policy ``"unk"`` gives them (``"error"`` counts as ``"drop"`` here). If all
                its counts are zero, those of this text take their place.
            min_count, max_size: as in ``Vocab.count``, without ``vocab`` only. A token forgotten while
                counting with ``max_size`` and met again has in ``ids`` only what came after, as many
                as its count.
            known: tokens that have vectors already (``Vectors`` will do), to train on from them: they get
                the first ids in their order whether they occur or not, and the tokens of this text that
                are not among them come after, by ``min_count`` and ``max_size``. Counts are this text's.
            tokenizer: how text becomes tokens.
            errors: ``"strict"`` or ``"replace"``, for bytes that are not UTF-8.
            field: field or column of the text in .jsonl, .csv and .parquet files.
            cache: the cache folder; default ``$FIRTH_CACHE`` or the user's cache folder.
            threads: one for each core by default; the result does not depend on it.
            progress: told how much is read, and of an encoding that is reused.
            group: processes that share the reading (see ``firth.sharing``), each with the other arguments
                alike; the result is that of one process, except where tokens are forgotten while counting.

        Raises:
            SourceError: text that cannot be read, or of which less than two tokens are left.
            SettingError: a setting out of its range.
            StorageError: a file or the cache folder that cannot be read or written.
        """
        check_counting(min_count, max_size)
        check_errors(errors)
        check_threads(threads)
        check_tokenizer(tokenizer)
        _check_vocab(vocab, max_size, known)
        first = Vocab([] if known is None else list(known))
        found = find_source(source)
        settings = _settings(vocab, (min_count, max_size), tokenizer, errors, field)
        if len(first):
            settings["known"] = first.fingerprint
        key = _key(found, settings)
        if group is not None:
            from firth.sharing import Job, encode_shared

            job = Job(found, vocab, min_count, max_size, first, tokenizer, errors, field, threads, settings)
            return encode_shared(group, job, key, cache, progress)
        if key is not None:
            kept = open_entry(corpora_folder(cache) / key)
            if kept is not None:
                progress.start("encode", None, "tokens")
                progress.finish(f"reused {len(kept):,} tokens encoded before, in {kept.folder}")
                return kept
        batches = tokenised(
            found, tokenizer, errors=errors, field=field, threads=threads, progress=progress, stage="encode"
        )
        folder = new_folder(cache)
        with _removed_on_failure(folder), contextlib.closing(batches):
            writer = Writer(folder)
            if vocab is None:
                table = Table(tokenizer, max_size, first.tokens)
                writer.take(batches, table)
                raw_tokens = table.raw_tokens
                table.report(progress)
                vocab, final_ids = of_table(table, min_count, max_size, found.name)
            else:
                given = Given(vocab, tokenizer)
                writer.take(batches, given)
                raw_tokens = given.raw_tokens
                unknown_id = -1 if vocab.default_id is None else vocab.default_id
                final_ids = np.append(np.arange(len(vocab), dtype=np.int32), np.int32(unknown_id))
            writer.finish(final_ids, len(vocab))
            check_result(writer, vocab, raw_tokens, found.name)
            if not vocab.total_count:
                vocab = vocab.with_counts(writer.counts)
            facts = {"source": found.name, "raw_tokens": raw_tokens, "settings": settings}
            writer.describe(vocab, facts)
            writer.remove_leftovers()
            if key is not None and _key(found, settings) == key:
                return keep(folder, folder.parent / key)
            return cls.of_folder(folder, temporary=True)

    @classmethod
    def from_ids(cls, ids: npt.ArrayLike, sentence_starts: npt.ArrayLike, vocab: Vocab) -> Corpus:
        """A corpus in memory, of ids that are there already: walks on a graph, or a test.

        Args:
            ids: integers (N,) below ``len(vocab)``. sentence_starts: integers (S + 1,), from 0 to N,
                each greater than the one before.

        Raises:
            ShapeError: arrays of another shape or dtype.
            SettingError: an id or a start out of its range.
        """
        id_array, starts = _integers(ids, "ids"), _integers(sentence_starts, "sentence_starts")
        if id_array.size and not 0 <= int(id_array.min()) <= int(id_array.max()) < len(vocab):
            raise SettingError(
                f"Corpus.from_ids: ids go from {id_array.min()} to {id_array.max()}, "
                f"expected 0 to {len(vocab) - 1}, the rows of the vocabulary"
            )
        if not (
            starts.size and starts[0] == 0 and starts[-1] == id_array.size and (np.diff(starts) > 0).all()
        ):
            raise SettingError(
                f"Corpus.from_ids: sentence_starts must rise from 0 to {id_array.size}, the count of ids"
            )
        ids32, starts64 = id_array.astype(np.int32), starts.astype(np.int64)
        hashes = Hashes()
        hashes.add_ids(ids32)
        hashes.add_starts(starts64)
        return cls(
            vocab,
            ids32,
            starts64,
            block_starts(starts64),
            raw_tokens=len(ids32),
            fingerprint=hashes.result(vocab),
        )

    @classmethod
    def of_folder(cls, folder: Path, *, temporary: bool = False, reused: bool = False) -> Corpus:
        """The corpus whose files are in ``folder``, which goes with it if it is ``temporary``."""
        description = read_description(folder)
        corpus = cls(
            Vocab.load(folder / VOCAB),
            load_array(folder / IDS, "<i4"),
            load_array(folder / SENTENCES, "<i8"),
            load_array(folder / BLOCKS, "<i8"),
            raw_tokens=int(description["raw_tokens"]),
            fingerprint=str(description["fingerprint"]),
            folder=folder,
            reused=reused,
        )
        if temporary:
            corpus._remove = weakref.finalize(corpus, remove_tree, folder)
        return corpus

    def renumbered(self, vocab: Vocab) -> Corpus:
        """The same text with the ids of another vocabulary, in memory (4 bytes a token).

        Raises:
            KeyNotFound: ``vocab`` lacks a token of this corpus.
        """
        new_ids = np.array([vocab.id_of(token) for token in self.vocab.tokens], np.int32)
        ids, hashes = np.empty(len(self), np.int32), Hashes()
        for begin in range(0, len(self), _SLICE):
            ids[begin : begin + _SLICE] = new_ids[self.ids[begin : begin + _SLICE]]
        hashes.add_ids(ids)
        hashes.add_starts(self.sentence_starts)
        return Corpus(
            vocab,
            ids,
            self.sentence_starts,
            self.block_starts,
            raw_tokens=self.raw_tokens,
            fingerprint=hashes.result(vocab),
        )

    def count_ids(self) -> Longs:
        """How often each id occurs in this text, int64 (V,), whatever the vocabulary says."""
        counts = np.zeros(len(self.vocab), np.int64)
        for begin in range(0, len(self), _SLICE):
            counts += np.bincount(self.ids[begin : begin + _SLICE], minlength=len(counts))
        return counts

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        sentences = len(self.sentence_starts) - 1
        return f"Corpus({len(self):,} ids of {len(self.vocab):,} tokens in {sentences:,} sentences)"

    def close(self) -> None:
        """Remove the folder of a text that can only be read once; others stay. Arrays stay readable."""
        if self._remove is not None:
            self._remove()

    def contexts(self, word: str, window: int = 5, topn: int | None = 20) -> list[tuple[str, int]]:
        """The words that stand within ``window`` of ``word`` in its sentence, counted.

        Args:
            word: a token of the vocabulary.
            window: how many ids to each side count; tokens without an id were left out before.
            topn: how many to return, ``None`` for all.

        Returns:
            (token, count), by falling count, then by id.

        Raises:
            KeyNotFound: no such token; offers the closest.
            SettingError: window or topn below 1.
        """
        for name, value in (("window", window), ("topn", topn)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingError(f"Corpus.contexts: {name} must be a positive integer, got {value!r}")
        word_id = self.vocab.id_of(word)
        counts = np.zeros(len(self.vocab), np.int64)
        for begin in range(0, len(self), _SLICE):
            places = np.flatnonzero(self.ids[begin : begin + _SLICE] == word_id) + begin
            rows = np.searchsorted(self.sentence_starts, places, "right") - 1
            first, end = self.sentence_starts[rows], self.sentence_starts[rows + 1]
            for distance in range(1, min(window, len(self)) + 1):
                left, right = places - distance, places + distance
                near = np.concatenate([left[left >= first], right[right < end]])
                if not len(near):
                    break  # no sentence reaches farther
                counts += np.bincount(self.ids[near], minlength=len(counts))
        ranking = np.argsort(-counts, kind="stable")[:topn]
        return [(self.vocab.tokens[row], int(counts[row])) for row in ranking.tolist() if counts[row]]


def _check_vocab(vocab: object, max_size: int | None, known: object) -> None:
    if vocab is not None and not isinstance(vocab, Vocab):
        kind = type(vocab).__name__
        raise SettingError(f"Corpus.encode: vocab must be a Vocab, got {kind}; Vocab.load(path) reads one")
    if vocab is not None and max_size is not None:
        raise SettingError("Corpus.encode: max_size is for counting, leave it out where vocab is given")
    if vocab is not None and known is not None:
        raise SettingError(
            "Corpus.encode: known is for counting, leave it out where vocab is given; "
            "Vocab(known).add(tokens) puts known tokens first"
        )
    if isinstance(known, str) or not isinstance(known, Iterable | None):
        raise SettingError(f"Corpus.encode: known must be Vectors or a list of tokens, got {known!r:.60}")


def _settings(
    vocab: Vocab | None, limits: tuple[int, int | None], tokenizer: Tokenizer, errors: str, field: str
) -> dict[str, Any]:
    """What decides the result besides the text, as JSON holds it."""
    if vocab is None:
        counted: dict[str, Any] = {"min_count": int(limits[0]), "max_size": limits[1] and int(limits[1])}
    else:
        counted = {"vocab": vocab.fingerprint, "default_id": vocab.default_id}
    return {"tokenizer": tokenizer.settings(), "errors": errors, "field": field, **counted}


def _key(source: Source, settings: Mapping[str, Any]) -> str | None:
    """The name of the cache entry; ``None`` for what cannot be recognised when it comes again."""
    identity = source.identity()
    if identity is None or settings["tokenizer"] is None:
        return None
    decided = json.dumps([FORMAT, identity, settings], sort_keys=True)
    return hashlib.blake2b(decided.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def open_entry(folder: Path) -> Corpus | None:
    """The corpus of a cache entry, ``None`` where it is missing or damaged."""
    description = read_description(folder)
    if not is_whole(folder, description):
        return None
    try:
        corpus = Corpus.of_folder(folder, reused=True)
    except (FirthError, OSError, KeyError, ValueError):
        return None
    return corpus if len(corpus.vocab) == description["vocab"] else None


def keep(folder: Path, entry: Path) -> Corpus:
    """Give a finished folder its name in the cache; if another process was first, use its work."""
    for _ in range(3):
        try:
            os.rename(folder, entry)
        except OSError:
            corpus = open_entry(entry)
            if corpus is not None:
                remove_tree(folder)
                return corpus
            remove_tree(entry)
            continue
        sync_folder(entry.parent)
        return Corpus.of_folder(entry)
    return Corpus.of_folder(folder, temporary=True)


@contextlib.contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        remove_tree(folder)
        raise


def of_table(table: Table, min_count: int, max_size: int | None, what: str) -> tuple[Vocab, Ints]:
    vocab, rows = Vocab.of_table(table, min_count, max_size, what)
    final_ids = np.full(len(table.words), -1, np.int32)
    final_ids[rows] = np.arange(len(rows), dtype=np.int32)
    return vocab, final_ids


def check_result(writer: Writer, vocab: Vocab, raw_tokens: int, what: str) -> None:
    """Refuse what has no word with a context."""
    if raw_tokens == 0:
        raise SourceError(f"{what} holds no tokens")
    if writer.size == 0:
        raise SourceError(
            f"none of the {raw_tokens:,} tokens of {what} is in the vocabulary of {len(vocab):,} tokens"
        )
    if np.count_nonzero(writer.counts) == 1:
        only = vocab.tokens[int(np.argmax(writer.counts))]
        raise SourceError(
            f"of the {raw_tokens:,} tokens of {what} only {only!r:.60} is left, {writer.size:,} times: two "
            f"different ones are needed for one to be the context of another"
        )


def _integers(values: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ShapeError(
            f"Corpus.from_ids: {name} has shape {array.shape} and dtype {array.dtype}, "
            f"expected one row of integers"
        )
    return array
