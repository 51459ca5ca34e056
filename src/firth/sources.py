"""What people train on -> chunks of text and lists of tokens, read once from start to end.

A source is one of:

- a path (``str`` or ``pathlib.Path``) of a text file, plain or compressed with gzip, bzip2, xz or
  Zstandard; of ``.jsonl``, ``.csv``, ``.tsv`` (these may be compressed too) or ``.parquet`` records,
  whose text stands in one field; of a folder, read with all below it in the order of the names;
- a glob pattern such as ``"texts/**/*.txt"``; a list of paths; ``"-"`` for standard input;
- any iterable of strings (each a text) or of lists of tokens (each a sentence), walked once.

A line of a text ends a sentence (at ``\\n``, or ``\\r\\n``); so does the end of a record or of an item.
"""

from __future__ import annotations

import bisect
import difflib
import glob
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any, NamedTuple

from firth.errors import SettingError, SourceError, did_you_mean
from firth.files import storage_error
from firth.records import Item, csv_items, jsonl_items, parquet_items, record_kind
from firth.textfiles import CHUNK, Checked, Chunk, TextFile, check_errors, cut_chunks, file_chunks

Path_ = str | os.PathLike[str]
SourceLike = Path_ | Iterable[str] | Iterable[Iterable[str]] | Iterable[os.PathLike[str]]
Batch = Chunk | list[list[str]]

_BATCH_TOKENS = 1 << 18


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes tokens; by default it is split at white space, as ``str.split()`` does.

    Args:
        lower: tokens in lower case, as ``str.lower()`` makes it.
        nfc: tokens in Unicode normal form C (after lower-casing).
        pattern: a regular expression; its matches (or those of its one group) are the tokens.
        function: a callable from the text of a sentence to its tokens; excludes ``pattern``.
        lines: sentences end at line ends; otherwise only where a file, record or item ends.

    ``pattern`` and ``function`` see one line at a time, in lower case and NFC if so set; of a line
    longer than 4 MiB they see pieces, cut at white space. Empty tokens are left out.

    Raises:
        SettingError: a wrong pattern, one of several groups, or both a pattern and a function.
    """

    lower: bool = False
    nfc: bool = False
    pattern: str | None = None
    function: Callable[[str], Iterable[str]] | None = None
    lines: bool = True

    def __post_init__(self) -> None:
        if self.pattern is not None and self.function is not None:
            raise SettingError("Tokenizer takes a pattern or a function, got both; leave one out")
        if self.function is not None and not callable(self.function):
            raise SettingError(f"Tokenizer function must be callable, got {type(self.function).__name__}")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except (re.error, TypeError) as error:
                raise SettingError(
                    f"Tokenizer pattern {self.pattern!r} is no regular expression: {error}"
                ) from None
            if groups > 1:
                raise SettingError(
                    f"Tokenizer pattern {self.pattern!r} has {groups} groups, expected at most one; "
                    f"write (?:...) for the others"
                )

    @property
    def at_space(self) -> bool:
        """Whether tokens are what stands between white space."""
        return self.pattern is None and self.function is None

    @property
    def folds(self) -> bool:
        """Whether tokens are changed after they were cut."""
        return self.lower or self.nfc

    def fold(self, text: str) -> str:
        """``text`` in lower case and NFC, as far as set."""
        text = text.lower() if self.lower else text
        return unicodedata.normalize("NFC", text) if self.nfc else text

    def split(self, text: str) -> list[str]:
        """The tokens of one text."""
        if self.at_space:
            return self.fold(text).split()
        return list(itertools.chain.from_iterable(self.sentences(text)))

    def sentences(self, text: str) -> Iterator[list[str]]:
        """The tokens of each line of ``text``, for a pattern or function."""
        find = self.function if self.function is not None else re.compile(self.pattern or "").findall
        for ended_line in self.fold(text).split("\n"):
            line = ended_line.removesuffix("\r")
            tokens = find(line) if line else []
            if isinstance(tokens, str) or not isinstance(tokens, Iterable):
                kind = type(tokens).__name__
                raise SettingError(f"the Tokenizer function gave a {kind}, expected a list of tokens")
            yield [token for token in tokens if token]

    def settings(self) -> dict[str, Any] | None:
        """What decides the tokens, as JSON holds it; ``None`` with a function, which has no name to trust."""
        if self.function is not None:
            return None
        return {"lower": self.lower, "nfc": self.nfc, "pattern": self.pattern, "lines": self.lines}


class Source:
    """One thing to read, found by ``find_source``.

    Attributes:
        name: for messages.
        files: the files in reading order, ``None`` for standard input and iterables.
        size: bytes on disk altogether, ``None`` where unknown.
    """

    def __init__(
        self, name: str, files: list[Path] | None = None, items: Iterable[Any] | None = None
    ) -> None:
        self.name, self.files, self._items = name, files, items
        stats = self._stats()
        self.size = None if stats is None else sum(stat.st_size for stat in stats)
        self._before = [0]  # bytes of the files that are read, in a list for the Parquet reader to count in
        self._file: TextFile | None = None

    @property
    def done(self) -> int:
        """Bytes taken from disk so far."""
        return self._before[0] + (self._file.place if self._file is not None else 0)

    def _stats(self) -> list[os.stat_result] | None:
        """The state of each file; ``None`` where there are none or one is a pipe or the like."""
        if self.files is None:
            return None
        stats = [_stat(path) for path in self.files]
        return stats if all(S_ISREG(stat.st_mode) for stat in stats) else None

    def identity(self) -> list[list[Any]] | None:
        """Real path, size and time of change of each file; ``None`` for what can only be read once."""
        stats = self._stats()
        if self.files is None or stats is None:
            return None
        return [
            [os.path.realpath(path), stat.st_size, stat.st_mtime_ns]
            for path, stat in zip(self.files, stats, strict=True)
        ]

    def batches(self, tokenizer: Tokenizer, errors: str = "strict", field: str = "text") -> Iterator[Batch]:
        """The text in chunks of about 4 MiB, or lists of tokens, one a sentence.

        Raises:
            SourceError: what is there cannot be read as asked.
            StorageError: a file that cannot be opened or read.
        """
        check_errors(errors)
        if self._items is not None:
            yield from _item_batches(self._items, tokenizer, errors, self.name)
        elif self.files is None:
            yield from self._file_batches(None, tokenizer, errors, field)
        else:
            for path in self.files:
                yield from self._file_batches(path, tokenizer, errors, field)

    def _file_batches(
        self, path: Path | None, tokenizer: Tokenizer, errors: str, field: str
    ) -> Iterator[Batch]:
        kind = None if path is None else record_kind(path)
        if path is not None and kind == "parquet":
            items = parquet_items(path, field, self._before)
            yield from _item_batches(items, tokenizer, errors, str(path))
            return
        with TextFile(path) as file:
            self._file = file
            if kind is None:
                yield from file_chunks(file, errors, lines=tokenizer.lines, anywhere=not tokenizer.at_space)
            elif kind == "jsonl":
                yield from _item_batches(jsonl_items(file, errors, field), tokenizer, errors, file.name)
            else:
                items = csv_items(file, errors, field, "," if kind == "csv" else "\t")
                yield from _item_batches(items, tokenizer, errors, file.name)
            self._before[0] += file.place
            self._file = None


class Part(NamedTuple):
    """Bytes ``begin`` to ``end`` of a plain file, whole lines; or all of a file, with ``end`` ``None``."""

    path: Path
    begin: int = 0
    end: int | None = None


class PartSource(Source):
    """Parts of files, in order; made by ``shared_out``."""

    def __init__(self, name: str, parts: list[Part]) -> None:
        super().__init__(name, [part.path for part in parts])
        self.parts = parts
        if self.size is not None:
            lengths = [
                _stat(part.path).st_size if part.end is None else part.end - part.begin for part in parts
            ]
            self.size = sum(lengths)

    def batches(self, tokenizer: Tokenizer, errors: str = "strict", field: str = "text") -> Iterator[Batch]:
        check_errors(errors)
        for part in self.parts:
            if part.end is None:
                yield from self._file_batches(part.path, tokenizer, errors, field)
                continue
            with _open_part(part) as file:
                lines = Checked(_Stretch(file, part), str(part.path), errors, part.begin)
                yield from cut_chunks(lines, str(part.path), lines=tokenizer.lines)
            self._before[0] += part.end - part.begin


class _Stretch:
    """The bytes of a part as a stream."""

    def __init__(self, file: IO[bytes], part: Part) -> None:
        self._file, self._part = file, part
        self._left = (part.end or 0) - part.begin
        file.seek(part.begin)

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._file.read(self._left if size < 0 else min(size, self._left))
        except OSError as error:
            raise storage_error(error, self._part.path, "read") from error
        self._left -= len(data)
        return data


def _open_part(part: Part) -> IO[bytes]:
    try:
        return open(part.path, "rb")
    except OSError as error:
        raise storage_error(error, part.path, "read") from error


def shared_out(source: Source, tokenizer: Tokenizer, count: int) -> list[PartSource]:
    """A source cut into ``count`` of about equal size, that one after another are the same text.

    Plain files whose lines are sentences are cut between two lines, others only between files.

    Raises:
        SourceError: standard input, or an iterable, which one process alone can read.
    """
    if source.files is None or source.size is None:
        raise SourceError(
            f"{source.name} cannot be read by several processes; write it to a file, or train in one process"
        )
    sizes = [_stat(path).st_size for path in source.files]
    starts = [0, *itertools.accumulate(sizes)]
    cuts = [(0, 0)]  # file and byte at which each part begins
    for number in range(1, count):
        target = starts[-1] * number // count
        row = min(bisect.bisect_right(starts, target) - 1, len(sizes) - 1)
        path, begin = source.files[row], target - starts[row]
        if begin and _is_cut_at_lines(path, tokenizer):
            begin = _next_line(path, begin)
        elif begin:  # to the nearer end of the file
            begin = 0 if 2 * begin < sizes[row] else sizes[row]
        cuts.append(max(cuts[-1], (row + 1, 0) if begin >= sizes[row] else (row, begin)))
    cuts.append((len(sizes), 0))
    return [
        PartSource(source.name, _between(source.files, sizes, *pair)) for pair in itertools.pairwise(cuts)
    ]


def _between(files: list[Path], sizes: list[int], begin: tuple[int, int], end: tuple[int, int]) -> list[Part]:
    parts = []
    for row in range(begin[0], min(end[0] + 1, len(files))):
        first = begin[1] if row == begin[0] else 0
        last = end[1] if row == end[0] else sizes[row]
        if first == 0 and last == sizes[row]:
            parts.append(Part(files[row]))
        elif first < last:
            parts.append(Part(files[row], first, last))
    return parts


def _is_cut_at_lines(path: Path, tokenizer: Tokenizer) -> bool:
    """Whether it makes no difference where between its lines a file is cut."""
    if not tokenizer.at_space or not tokenizer.lines or record_kind(path) is not None:
        return False
    with TextFile(path) as file:
        return file.compression is None


def _next_line(path: Path, begin: int) -> int:
    """The first byte after the next line end from ``begin - 1`` on; the file's size if there is none."""
    with _open_part(Part(path)) as file:
        file.seek(begin - 1)
        while block := file.read(CHUNK):
            at = block.find(b"\n")
            if at >= 0:
                return file.tell() - len(block) + at + 1
        return file.tell()


def find_source(source: SourceLike) -> Source:
    """The files, stream or items that ``source`` names (see the top of this module).

    Raises:
        SourceError: no such file, a pattern that no file fits, an empty folder, file or list.
        SettingError: something that is no source at all.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _find_path(os.fspath(source), pattern=isinstance(source, str))
    if isinstance(source, (bytes, bytearray, dict)) or not isinstance(source, Iterable):
        raise SettingError(
            f"cannot read text from a value of type {type(source).__name__}; expected a path, '-', "
            f"or an iterable of strings or lists of tokens"
        )
    if isinstance(source, (list, tuple)) and source and _is_path(source[0]):
        found = [_find_path(os.fspath(item), pattern=False) for item in source if _check_path(item)]
        return Source(f"{len(found)} paths", [path for one in found for path in one.files or []])
    return Source(f"the given {type(source).__name__}", items=source)


def check_tokenizer(tokenizer: object) -> None:
    """Refuse what is no Tokenizer by a SettingError that says how to make one."""
    if not isinstance(tokenizer, Tokenizer):
        hint = "; Tokenizer(function=...) wraps a callable" if callable(tokenizer) else ""
        raise SettingError(f"tokenizer must be a firth.Tokenizer, got {type(tokenizer).__name__}{hint}")


def _is_path(item: object) -> bool:
    """Whether the first item of a list makes it a list of paths: a Path, or a string that names a file."""
    if isinstance(item, str):
        return 0 < len(item) < 4096 and "\n" not in item and "\0" not in item and os.path.isfile(item)
    return isinstance(item, os.PathLike)


def _check_path(item: object) -> bool:
    if not isinstance(item, (str, os.PathLike)):
        kind = type(item).__name__
        raise SourceError(f"a list that begins with a path goes on with a {kind}: {item!r:.80}")
    return True


def _find_path(name: str, pattern: bool) -> Source:
    if name == "-":
        return Source("standard input")
    if not name or "\0" in name or len(name) > 4096:
        raise SourceError(f"{name[:60]!r} is no path; to read the text itself, give it in a list: [text]")
    path = Path(name)
    if path.is_dir():
        files = _folder_files(path)
        if not files:
            raise SourceError(f"the folder {name} holds no files (hidden ones are not read)")
    elif path.exists():
        files = [path]
        if path.is_file() and _stat(path).st_size == 0:
            raise SourceError(f"{name} is empty")
    elif pattern and glob.has_magic(name):
        files = [Path(found) for found in sorted(glob.glob(name, recursive=True)) if os.path.isfile(found)]
        if not files:
            raise SourceError(f"no file fits the pattern {name!r}")
    else:
        raise SourceError(f"there is no file {name[:200]!r}{_close_files(path)}")
    return Source(name, files)


def _folder_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        found += [Path(here, one) for one in files if not one.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _close_files(path: Path) -> str:
    """The end of the sentence about a file that is not there."""
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return f": the folder {path.parent} does not exist" if not path.parent.is_dir() else ""
    close = difflib.get_close_matches(path.name, names[:5000], n=3)
    if not close and any(space in path.name for space in " \n"):
        return "; to read the text itself, give it in a list: [text]"
    return did_you_mean([str(path.parent / one) for one in close])


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise storage_error(error, path, "read") from error


def _item_batches(items: Iterable[Item], tokenizer: Tokenizer, errors: str, name: str) -> Iterator[Batch]:
    """Texts joined to chunks, token lists gathered, in the order of the items."""
    texts: list[str] = []
    lists: list[list[str]] = []
    size = 0
    for item_number, item in enumerate(items):
        if isinstance(item, str):
            if lists:
                yield lists
                lists, size = [], 0
            texts.append(item if tokenizer.lines else item.replace("\n", " "))
            size += len(item)
            if size >= CHUNK:
                yield from _text_batches(texts, tokenizer, errors, name, item_number)
                texts, size = [], 0
            continue
        if texts:
            yield from _text_batches(texts, tokenizer, errors, name, item_number - 1)
            texts, size = [], 0
        lists.append(_token_list(item, name, item_number))
        size += len(lists[-1]) + 1
        if size >= _BATCH_TOKENS:
            yield lists
            lists, size = [], 0
    if lists:
        yield lists
    if texts:
        yield from _text_batches(texts, tokenizer, errors, name, item_number)


def _token_list(item: object, name: str, item_number: int) -> list[str]:
    if isinstance(item, (bytes, bytearray, dict, os.PathLike)) or not isinstance(item, Iterable):
        kind = type(item).__name__
        raise SourceError(
            f"item {item_number:,} of {name} is a {kind}, expected a string or a list of tokens"
        )
    return list(item)


def _text_batches(
    texts: list[str], tokenizer: Tokenizer, errors: str, name: str, last_number: int
) -> Iterator[Chunk]:
    joined = "\n".join(texts)
    try:
        data = joined.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            char = joined[error.start]
            row = next(row for row, text in enumerate(texts) if char in text)
            item_number = last_number - len(texts) + 1 + row
            raise SourceError(
                f"item {item_number:,} of {name} holds half a surrogate pair, {char!r}, which is no "
                f"character; read it with errors='replace'"
            ) from None
        data = joined.encode(errors="replace")
    yield from cut_chunks(io.BytesIO(data), name, anywhere=not tokenizer.at_space)
