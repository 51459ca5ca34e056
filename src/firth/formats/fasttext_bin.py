"""fastText's binary models: ``.bin`` (versions 11, 12 and the one before versions) and quantised ``.ftz``.

::

    int32 x 2   793712314, version; the oldest files lack both
    settings    int32 x 12: dim ws epoch minCount neg wordNgrams loss model bucket minn maxn lrUpdateRate;
                float64 t
    dictionary  int32 x 3: entries, words, labels; int64 tokens; int64 n-grams kept, or -1 for all (not in
                the oldest); an entry: bytes, 0, int64 count, int8 0 for a word or 1 for a label;
                int32 x 2 for each n-gram that is kept: its bucket, its row
    input       bool, whether it is quantised (not in the oldest); int64 x 2: m, n; m x n float32, first the
                words, then the buckets; or see ``fasttext_quant``
    output      the same again: a row for each word (m of them), or for each label of a classifier

Integers and floats are little-endian. The vector of a word is the mean of its own row and those of its
n-grams (``FastText::getWordVector``). The rows of n-grams stay mapped; nothing is allocated that a header
merely claims. Source: fastText, ``src/fasttext.cc``, ``src/args.cc``, ``src/dictionary.cc``,
``src/densematrix.cc``.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError, SettingError
from firth.formats import fasttext_write
from firth.formats.fasttext_quant import QuantRows, read_rows
from firth.formats.fasttext_source import Source
from firth.formats.table import PIECE, Facts, Format, Head, Options, Rows, Table, warn
from firth.subwords import BARE, LONGEST_NGRAM, DenseRows, FastTextSubwords

MAGIC = fasttext_write.MAGIC
VERSIONS = (11, 12)
LONGEST_WORD = 1 << 16
SETTINGS = "<12id"
SIZES = "<3iq"
LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
MODELS = {1: "cbow", 2: "skipgram", 3: "supervised"}
OLD_LOSSES = 3  # how many losses there were before versions
SHOWN = 10  # words that ``inspect`` names


class Settings(NamedTuple):
    """How a model was trained, as it stands in its file."""

    version: int
    dim: int
    ws: int
    epoch: int
    min_count: int
    neg: int
    word_ngrams: int
    loss: int
    model: int
    bucket: int
    minn: int
    maxn: int
    lr_update_rate: int
    t: float

    @property
    def supervised(self) -> bool:
        """Whether it is a classifier."""
        return MODELS[self.model] == "supervised"

    @property
    def longest(self) -> int:
        """``maxn``, or 0 for the classifiers that were made before they had n-grams."""
        return 0 if self.supervised and self.version < 12 else self.maxn

    def fault(self) -> str:
        """What cannot be, or an empty string."""
        values = self._asdict()
        negative = [name for name, value in values.items() if not value >= 0]
        if self.dim < 1 or negative or not math.isfinite(self.t):
            named = ", ".join(f"{name} {values[name]}" for name in ["dim", *negative][: 1 + len(negative)])
            return f"the settings hold {named}, which cannot be"
        if self.loss not in LOSSES or self.model not in MODELS:
            return f"the settings name loss {self.loss} and model {self.model}, which fastText does not have"
        if max(self.minn, self.maxn) > LONGEST_NGRAM:
            return f"the settings hold minn {self.minn} and maxn {self.maxn}; {LONGEST_NGRAM} is the most"
        if self.longest > 0 and self.longest >= self.minn and self.bucket < 1:
            return f"the settings hold n-grams of up to {self.maxn} characters and {self.bucket} buckets"
        return ""


class Sizes(NamedTuple):
    """What the dictionary says of itself; ``pruned`` is -1 where all n-grams are kept."""

    entries: int
    words: int
    labels: int
    tokens: int
    pruned: int


@dataclass
class Words:
    """The first words of the dictionary, end to end, and all labels."""

    data: bytearray
    ends: array[int]
    counts: array[int]
    places: array[int]  # the byte at which each entry begins
    labels: dict[bytes, int]

    def some(self, start: int, stop: int) -> list[bytes]:
        """Words ``start`` to ``stop``."""
        begins = [self.ends[start - 1] if start else 0, *self.ends[start : stop - 1]]
        return [bytes(self.data[a:b]) for a, b in zip(begins, self.ends[start:stop], strict=True)]


def recognise(head: Head) -> bool:
    """The magic number; or, in the oldest files, settings and sizes that could be some."""
    if head.data[:4] == struct.pack("<i", MAGIC):
        return True
    old = struct.Struct(SETTINGS + SIZES[1:])
    if len(head.data) < old.size:
        return False
    *values, entries, words, labels, tokens = old.unpack_from(head.data)
    settings = Settings(0, *values)
    return (
        not settings.fault()
        and settings.loss <= OLD_LOSSES
        and settings.dim < 1 << 16
        and 1 <= settings.word_ngrams <= LONGEST_NGRAM
        and settings.t <= 1
        and min(words, labels, tokens) >= 0
        and 1 <= entries == words + labels
    )


def read_settings(source: Source) -> Settings:
    """The beginning of a file, up to the dictionary."""
    version = 0
    if source.data[:4] == struct.pack("<i", MAGIC):
        _, version = source.unpack("<2i", "the version")
        if version not in VERSIONS:
            raise source.error(f"the model has version {version}; fastText's versions 11 and 12 are read")
    settings = Settings(version, *source.unpack(SETTINGS, "the settings"))
    if fault := settings.fault():
        raise source.error(f"{fault}; this is no fastText model, or it is damaged")
    return settings


def read_sizes(source: Source, settings: Settings) -> Sizes:
    """The head of the dictionary, checked against the size of the file."""
    entries, words, labels, tokens = source.unpack(SIZES, "the sizes of the dictionary")
    pruned = source.unpack("<q", "the number of n-grams")[0] if settings.version else -1
    sizes = Sizes(entries, words, labels, tokens, pruned)
    if min(words, labels, tokens) < 0 or entries != words + labels or pruned < -1:
        raise source.error(
            f"the dictionary claims {entries:,} entries, {words:,} words, {labels:,} labels, {tokens:,} "
            f"tokens and {pruned:,} n-grams kept, which do not fit together; it is damaged"
        )
    if words == 0:
        raise source.error("the dictionary has no words; there are no vectors in it")
    needed = entries * 10 + max(0, pruned) * 8
    if needed > source.left:
        raise source.error(
            f"the dictionary claims {entries:,} entries and {max(0, pruned):,} n-grams, which take "
            f"{needed:,} bytes at least, and {source.left:,} follow; it is cut or damaged"
        )
    return sizes


def read_words(source: Source, sizes: Sizes, wanted: int) -> Words:
    """Walk over the entries of the dictionary; the first ``wanted`` words are kept, and all labels."""
    words = Words(bytearray(), array("q"), array("q"), array("q"), {})
    data, place, total = source.data, source.place, len(source.data)
    facts = struct.Struct("<qb")
    for number in range(sizes.entries):
        end = data.find(b"\0", place, place + LONGEST_WORD)
        if end < 0 or end + 1 + facts.size > total:
            source.place = place
            long = end < 0 and place + LONGEST_WORD < total
            what = f"is longer than {LONGEST_WORD:,} bytes" if long else "is cut off"
            raise source.error(f"entry {number:,} of {sizes.entries:,} {what}; the dictionary is damaged")
        count, kind = facts.unpack_from(data, end + 1)
        if count < 0 or kind != int(number >= sizes.words):
            source.place = place
            raise source.error(
                f"entry {number:,} of the dictionary has the count {count:,} and the type {kind}; "
                f"{sizes.words:,} words (0) and then {sizes.labels:,} labels (1) are expected"
            )
        if kind:
            words.labels[data[place:end]] = count
        elif number < wanted:
            words.data += data[place:end]
            words.ends.append(len(words.data))
            words.counts.append(count)
            words.places.append(place)
        place = end + 1 + facts.size
    source.place = place
    return words


def read(path: Path, options: Options) -> Table:
    """Read a model: its words with their vectors, and its n-grams for all other words.

    Counts are kept; the output table of a model that was trained by predicting words (not by a tree) is the
    context; settings and labels go into the metadata.

    Raises:
        FormatError: cut, damaged, or of a version that is not known.
        StorageError: it cannot be opened.
    """
    source = Source(path)
    settings = read_settings(source)
    sizes = read_sizes(source, settings)
    wanted = sizes.words if options.limit is None else min(options.limit, sizes.words)
    words = read_words(source, sizes, wanted)
    pairs = source.array(2 * max(0, sizes.pruned), np.dtype("<i4"), "the n-grams that are kept")
    own, shared, quantised = _input(source, settings, sizes)
    subwords = _subwords(source, settings, sizes, pairs, shared)
    context = _output(source, settings, sizes, quantised)
    if source.left:
        raise source.error(f"{source.left:,} bytes follow the output table; the file is damaged")

    rows = Rows(path, settings.dim, wanted, options.errors)
    step = max(1, PIECE // settings.dim)
    for start in range(0, wanted, step):
        stop = min(start + step, wanted)
        names = words.some(start, stop)
        values = own.take(np.arange(start, stop))
        if subwords is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite gets its sentence below
                subwords.complete(names, values)
        named = [place for place, name in enumerate(names) if name]
        if len(named) < len(names):
            names, values = [names[place] for place in named], values[named]
        places = [words.places[start + place] for place in named]
        rows.add(names, values, lambda row, places=places: f"byte {places[row]:,}")  # type: ignore[misc]
    table = rows.table()

    kept = np.flatnonzero(np.diff(words.ends, prepend=0))
    if len(kept) < wanted:
        warn(f"{path}: words of the dictionary without a character are left out ({wanted - len(kept):,})")
    if rows.kept is not None:
        kept = kept[rows.kept]
    counts = np.frombuffer(words.counts, np.int64)
    if len(kept) < wanted:
        counts, context = counts[kept], None if context is None else context[kept]
    elif context is not None:
        context = context[:wanted]
    metadata = _metadata(path, settings, sizes, words.labels, options.errors)
    return Table(table.keys, table.matrix, counts, context, metadata, subwords=subwords)


class _Own:
    """The rows of the words, read from the file and not from its mapping: each is needed but once."""

    def __init__(self, path: Path, begin: int, rows: int, dim: int) -> None:
        self._path, self._begin, self.shape = path, begin, (rows, dim)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Neighbouring rows."""
        width = 4 * self.shape[1]
        out = np.empty((len(rows), self.shape[1]), np.dtype("<f4"))
        with open(self._path, "rb", buffering=0) as file:
            file.seek(self._begin + int(rows[0]) * width)
            view, done = out.view(np.uint8).reshape(-1).data, 0
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    raise FormatError(f"{self._path} became shorter while it was read; read it again")
                done += got
        return out.astype(np.float32, copy=False)


def _input(
    source: Source, settings: Settings, sizes: Sizes
) -> tuple[_Own | QuantRows, DenseRows | QuantRows | None, bool]:
    """The rows of the words, those of the n-grams, and whether they are quantised."""
    quantised = settings.version > 0 and source.unpack("<?", "the input table")[0]
    shared = settings.bucket if sizes.pruned < 0 else sizes.pruned
    if quantised:
        table = read_rows(source, "input table")
        _check_shape(source, table.shape, settings, sizes.words, shared)
        rest = table.rest(sizes.words)
        return table, rest if len(rest._codes) else None, True
    if sizes.pruned >= 0:
        raise source.error("only some n-grams are kept and the input table is not quantised; it is damaged")
    shape = source.unpack("<2q", "the shape of the input table")
    _check_shape(source, shape, settings, sizes.words, shared)
    begin = source.place
    matrix = source.array(shape[0] * shape[1], np.dtype("<f4"), "the input table").reshape(shape)
    ngrams = matrix[sizes.words :]
    return _Own(source.path, begin, *shape), DenseRows(ngrams) if len(ngrams) else None, False


def _check_shape(source: Source, shape: Sequence[int], settings: Settings, words: int, shared: int) -> None:
    rows, dim = shape
    if dim != settings.dim or rows not in (
        {words, words + shared} if not settings.longest else {words + shared}
    ):
        raise source.error(
            f"the input table is {rows:,} x {dim:,}; {words:,} words and {shared:,} n-grams of "
            f"{settings.dim:,} numbers are expected; it is damaged, or of another program (floret's own "
            "binary is not read, its .floret table is)"
        )


def _subwords(
    source: Source,
    settings: Settings,
    sizes: Sizes,
    pairs: NDArray[np.int32],
    shared: DenseRows | QuantRows | None,
) -> FastTextSubwords | None:
    """How words find their n-grams; ``None`` where no word has any."""
    if shared is None or settings.longest < max(1, settings.minn):
        return None
    kept = None
    if sizes.pruned >= 0:
        buckets, rows = pairs.reshape(-1, 2).T.astype(np.int64)
        if not np.array_equal(np.sort(rows), np.arange(sizes.pruned)):
            raise source.error(f"the n-grams that are kept do not name {sizes.pruned:,} rows, each once")
        kept = np.empty(sizes.pruned, np.int64)
        kept[rows] = buckets
    bare = BARE if settings.version else ()  # before versions `</s>` had n-grams like any word
    try:
        return FastTextSubwords(
            shared, settings.minn, settings.longest, buckets=settings.bucket, kept=kept, bare=bare
        )
    except SettingError as error:
        raise source.error(f"the n-grams that are kept do not fit: {error}") from error


def _output(source: Source, settings: Settings, sizes: Sizes, quantised: bool) -> NDArray[np.float32] | None:
    """Step over the output table; returned, mapped, where its rows belong to the words."""
    expected = sizes.labels if settings.supervised else sizes.words
    if settings.version and source.unpack("<?", "the output table")[0] and quantised:
        shape = read_rows(source, "output table").shape
        matrix = None
    else:
        shape = source.unpack("<2q", "the shape of the output table")
        size = shape[0] * shape[1] if min(shape) >= 0 else -1
        if size < 0:
            raise source.error(f"the output table has the impossible shape {shape[0]:,} x {shape[1]:,}")
        matrix = source.array(size, np.dtype("<f4"), "the output table").reshape(shape)
    if shape != (expected, settings.dim):
        raise source.error(
            f"the output table is {shape[0]:,} x {shape[1]:,}; {expected:,} x {settings.dim:,} is expected"
        )
    # The rows of a tree are its inner nodes, and those of a classifier its labels.
    return None if settings.supervised or LOSSES[settings.loss] == "hs" else matrix


def _metadata(
    path: Path, settings: Settings, sizes: Sizes, labels: dict[bytes, int], errors: str
) -> dict[str, Any]:
    facts: dict[str, Any] = settings._asdict()
    facts |= {"loss": LOSSES[settings.loss], "model": MODELS[settings.model], "tokens": sizes.tokens}
    metadata: dict[str, Any] = {"fasttext": facts}
    if labels:
        try:
            metadata["labels"] = {label.decode("utf-8", errors): count for label, count in labels.items()}
        except UnicodeDecodeError as error:
            raise FormatError(f'{path}: a label is no UTF-8; errors="replace" reads it') from error
    return metadata


def inspect(path: Path, options: Options) -> Facts:
    """What a model says of itself at its beginning."""
    source = Source(path)
    settings = read_settings(source)
    sizes = read_sizes(source, settings)
    some = read_words(source, sizes._replace(entries=min(SHOWN, sizes.words)), SHOWN)
    first = [word.decode("utf-8", "replace") for word in some.some(0, len(some.ends))]
    inside = ["counts"]
    if not settings.supervised and LOSSES[settings.loss] != "hs":
        inside.append("context")
    if settings.longest >= max(1, settings.minn) and sizes.pruned != 0:
        inside.append("subwords")
    if sizes.labels:
        inside.append(f"{sizes.labels:,} labels")
    inside.append("metadata")
    # Whether it is quantised stands behind the dictionary; that its numbers would not fit says so at once.
    dense = 4 * settings.dim * (sizes.words + (settings.bucket if settings.longest else 0)) <= source.left
    dtype = "float32" if dense and sizes.pruned < 0 else "product-quantised"
    metadata = _metadata(path, settings, sizes, {}, options.errors)
    return Facts(sizes.words, settings.dim, dtype, tuple(first), tuple(inside), metadata)


FORMAT = Format(
    "fasttext",
    (),
    recognise,
    read,
    fasttext_write.write,
    fasttext_write.check,
    holds=("counts", "context", "subwords"),
    inspect=inspect,
)
