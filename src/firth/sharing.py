"""Encoding a text in several processes: each reads a share once, and the files are those of one process.

Every rank counts and numbers its share of the text (``sources.shared_out``) in a folder of its own. The
tables of words are merged in the order of the text, every rank turns its numbers into the ids of the merged
vocabulary, and the shares are put together: once in each cache folder that there is. Ranks that see the same
folder (one machine, or a file system that they share) have one copy; others are sent what they lack.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firth.cache import corpora_folder, new_folder
from firth.corpus import Corpus, check_result, keep, of_table, open_entry
from firth.counting import Ints, Longs, Table, tokenised
from firth.encoding import BLOCKS, IDS, SENTENCES, Given, Writer, block_starts, load_array
from firth.errors import SourceError, StorageError
from firth.files import remove_tree, storage_error
from firth.processes import Processes
from firth.progress import Reporter
from firth.sources import Source, Tokenizer, shared_out
from firth.vocab import Vocab

SENT = 1 << 24
"""Numbers that are copied or sent at a time."""


class Job(NamedTuple):
    """The arguments of ``Corpus.encode``, checked."""

    source: Source
    vocab: Vocab | None
    min_count: int
    max_size: int | None
    known: Vocab
    tokenizer: Tokenizer
    errors: str
    field: str
    threads: int | None
    settings: dict[str, Any]


class Share(NamedTuple):
    """What the others know of a rank's share."""

    folder: str
    home: int  # the first rank that sees the same cache folder
    ids: int
    sentences: int
    raw_tokens: int


def encode_shared(
    group: Processes, job: Job, key: str | None, cache: str | os.PathLike[str] | None, progress: Reporter
) -> Corpus:
    """``Corpus.encode`` in all processes of ``group``; collective.

    Raises:
        SourceError: text that one process alone can read. Others as for ``Corpus.encode``.
        PeerFailed: another process could not read its share.
    """
    if key is None:
        raise SourceError(
            f"{job.source.name} cannot be read by several processes (standard input, an iterable, or a "
            "tokenizer with a function); write it to a file, or train in one process"
        )
    entry = corpora_folder(cache) / key
    kept = open_entry(entry)
    found = group.gather(None if kept is None else kept.fingerprint)
    if kept is not None and all(one == found[0] for one in found):
        progress.start("encode", None, "tokens")
        progress.finish(f"reused {len(kept):,} tokens encoded before, in {kept.folder}")
        return kept
    folder = new_folder(cache)
    try:
        home = _home(group, folder.parent)
        writer, vocab, raw_tokens = _own_share(group, job, folder, progress)
        share = Share(str(folder), home, writer.size, writer.sentences, raw_tokens)
        shares = [Share(*one) for one in group.gather(share)]
        counts = _summed(group, writer.counts)
        if not vocab.total_count:
            vocab = vocab.with_counts(counts)
        place = _put_together(group, job, shares, vocab, counts, folder.parent, key)
        group.wait()
    finally:
        remove_tree(folder)
    return Corpus.of_folder(Path(place))


def _home(group: Processes, folder: Path) -> int:
    """The first rank whose cache folder is this one's."""
    mark = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        mark.touch()
        marks = group.gather(mark.name)
        home = next(rank for rank, name in enumerate(marks) if (folder / name).exists())
        group.wait()
    except OSError as error:
        raise storage_error(error, folder, "use the cache folder") from error
    finally:
        mark.unlink(missing_ok=True)
    return home


def _own_share(group: Processes, job: Job, folder: Path, progress: Reporter) -> tuple[Writer, Vocab, int]:
    """Read and encode this rank's share; the vocabulary is that of all."""
    source = shared_out(job.source, job.tokenizer, group.size)[group.rank]
    batches = tokenised(
        source,
        job.tokenizer,
        errors=job.errors,
        field=job.field,
        threads=job.threads,
        progress=progress,
        stage="encode",
    )
    writer = Writer(folder)
    if job.vocab is not None:
        given = Given(job.vocab, job.tokenizer)
        writer.take(batches, given)
        unknown_id = -1 if job.vocab.default_id is None else job.vocab.default_id
        writer.finish(
            np.append(np.arange(len(job.vocab), dtype=np.int32), np.int32(unknown_id)), len(job.vocab)
        )
        return writer, job.vocab, given.raw_tokens
    table = Table(job.tokenizer, job.max_size, job.known.tokens)
    writer.take(batches, table)
    merged, numbers = _merged(group, table, job)
    merged.report(progress)
    vocab, ids = of_table(merged, job.min_count, job.max_size, job.source.name)
    writer.finish(ids[numbers], len(vocab))
    return writer, vocab, table.raw_tokens


def _merged(group: Processes, table: Table, job: Job) -> tuple[Table, Ints]:
    """The table of the whole text, and in it the numbers of this rank's words."""
    data = [word.encode("utf-8", "surrogatepass") for word in table.words]
    lengths = group.gather_arrays(np.array([len(word) for word in data], np.int64))
    texts = group.gather_arrays(np.frombuffer(b"".join(data), np.uint8))
    counts = group.gather_arrays(table.counts)
    parts = [
        (_words(text.tobytes(), length), count)
        for text, length, count in zip(texts, lengths, counts, strict=True)
    ]
    merged, numbers = Table.merged(parts, job.tokenizer, job.known.tokens)
    facts = group.gather([table.raw_tokens, table.pruned, table.count_error])
    merged.raw_tokens, merged.pruned, merged.count_error = (
        sum(column) for column in zip(*facts, strict=True)
    )
    return merged, numbers[group.rank]


def _words(text: bytes, lengths: Longs) -> list[str]:
    ends = np.cumsum(lengths).tolist()
    begins = [0, *ends]
    return [
        text[begin:end].decode("utf-8", "surrogatepass") for begin, end in zip(begins, ends, strict=False)
    ]


def _summed(group: Processes, counts: Longs) -> Longs:
    import torch

    total: Longs = group.sum(torch.from_numpy(counts.copy())).numpy()
    return total


def _put_together(
    group: Processes,
    job: Job,
    shares: Sequence[Share],
    vocab: Vocab,
    counts: Longs,
    home_folder: Path,
    key: str,
) -> str:
    """The corpus in each cache folder, made by the first rank that sees it; where it is in this rank's."""
    own_home = shares[group.rank].home
    homes = sorted({share.home for share in shares})
    folder = new_folder(home_folder.parent) if own_home == group.rank else None
    try:
        writer = Writer(folder or Path(shares[group.rank].folder))
        writer.counts, writer.size = counts, sum(share.ids for share in shares)
        writer.sentences = sum(share.sentences for share in shares)
        raw_tokens = sum(share.raw_tokens for share in shares)
        check_result(writer, vocab, raw_tokens, job.source.name)
        ids = _pieces(group, shares, homes, IDS)
        starts = _pieces(group, shares, homes, SENTENCES)
        if folder is None:
            for _ in (*ids, *starts):
                pass
            place = ""
        else:
            _write(writer, ids, starts)
            facts = {"source": job.source.name, "raw_tokens": raw_tokens, "settings": job.settings}
            writer.describe(vocab, facts)
            place = str(keep(folder, home_folder / key).folder)
    except BaseException:
        if folder is not None:
            remove_tree(folder)
        raise
    return str(group.gather(place)[own_home])


def _pieces(
    group: Processes, shares: Sequence[Share], homes: Sequence[int], name: str
) -> Iterator[npt.NDArray[Any]]:
    """A file of all shares, piece by piece in the order of the text; empty pieces in ranks that do not write.

    Of the sentences' starts these are the ends, counted from the start of the whole text.
    """
    import torch

    dtype = np.dtype("<i4" if name == IDS else "<i8")
    writes, before = group.rank in homes, 0
    for share in shares:
        size = share.ids if name == IDS else share.sentences
        holds = share.home == shares[group.rank].home and writes
        array = load_array(Path(share.folder) / name, dtype.str)[0 if name == IDS else 1 :] if holds else None
        for begin in range(0, size, SENT):
            count = min(SENT, size - begin)
            if array is not None:
                piece = np.array(array[begin : begin + count])
            else:
                piece = np.empty(count if len(homes) > 1 else 0, dtype)
            if len(homes) > 1:
                group.broadcast(torch.from_numpy(piece), share.home)
            yield piece if name == IDS or not writes else piece + before
        before += share.ids


def _write(writer: Writer, ids: Iterator[npt.NDArray[Any]], starts: Iterator[npt.NDArray[Any]]) -> None:
    folder = writer.folder
    try:
        with (folder / IDS).open("wb") as file:
            for piece in ids:
                writer.hashes.add_ids(piece)
                file.write(piece.tobytes())
            _sync(file)
        first = np.zeros(1, "<i8")
        with (folder / SENTENCES).open("wb") as file:
            writer.hashes.add_starts(first)
            file.write(first.tobytes())
            for piece in starts:
                writer.hashes.add_starts(piece)
                file.write(piece.tobytes())
            _sync(file)
        with (folder / BLOCKS).open("wb") as file:
            file.write(block_starts(load_array(folder / SENTENCES, "<i8")).astype("<i8").tobytes())
            _sync(file)
    except OSError as error:
        sentence = storage_error(error, folder, "encode text into")
        raise StorageError(f"{sentence}; name another folder with --cache, cache= or FIRTH_CACHE") from error


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
