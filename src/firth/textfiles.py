"""Files of text -> chunks of checked UTF-8, cut at line ends or white space, in bounded memory.

Compression is recognised by content, whatever the name says: gzip, bzip2, xz, Zstandard.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, TextIO

from firth.errors import SettingError, SourceError, StorageError
from firth.files import storage_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as ReadBuffer
    from _typeshed import WriteableBuffer as Buffer

CHUNK = 4 << 20  # bytes read at a time: one unit of parallel work
LONGEST_TOKEN = 16 << 20  # bytes without white space that are still taken for text
READ_ERRORS = ("strict", "replace")
_REPLACE = "errors='replace' (--replace-bad-bytes)"

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
# The 29 characters at which str.split() splits, as UTF-8. A lead byte never occurs inside a
# character, so that a match is a whole character also in the middle of a file.
_SPACE = re.compile(
    rb"[\t-\r\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)


class Chunk(NamedTuple):
    """A stretch of text in which every ``\\n`` ends a sentence.

    ``data`` is valid UTF-8. ``goes_on``: the last sentence continues in the next chunk.
    """

    data: bytes
    goes_on: bool


class Bytes(Protocol):
    """Whatever hands out bytes: a file, a decompressor, ``io.BytesIO``."""

    def read(self, size: int = -1, /) -> bytes: ...


class TextFile:
    """A file, or standard input for ``None``, read as decompressed bytes from start to end.

    Use as a context manager. ``read(n)`` gives ``n`` bytes unless the file ends;
    ``place`` is the count of bytes taken from disk so far.

    Raises:
        StorageError: the file cannot be opened or read.
        SourceError: its compressed data is cut or damaged.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.name = "standard input" if path is None else str(path)
        self.place = 0
        self._given = 0
        self._file: IO[bytes] = standard_input().buffer if path is None else _open(path)
        self._head = self._raw_read(10)
        self.compression = recognise(self._head)
        self._stream: Bytes = _Raw(self) if self.compression is None else _inflate(self.compression, self)

    def __enter__(self) -> TextFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self._file.close()

    def read(self, size: int = -1, /) -> bytes:
        """The next ``size`` bytes of text, fewer only at the end; all that is left by default."""
        parts: list[bytes] = []
        wanted = size if size >= 0 else sys.maxsize
        while wanted > 0:
            part = self._read_some(min(wanted, CHUNK))
            if not part:
                break
            parts.append(part)
            wanted -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._given += len(data)
        return data

    def _read_some(self, size: int) -> bytes:
        import lzma
        import zlib

        try:
            return self._stream.read(size)
        except StorageError:
            raise
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise storage_error(error, self.name, "read") from error
            cut = isinstance(error, EOFError) or "Truncated" in str(error)
            reason = str(error).lower().rstrip(".")
            what = "ends too early: the file is cut" if cut else f"is damaged ({reason})"
            raise SourceError(
                f"cannot read {self.name}: its {self.compression} data {what}, "
                f"after {self._given:,} bytes of text; fetch or compress it again"
            ) from error

    def _raw_read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise storage_error(error, self.name, "read") from error
        self.place += len(data)
        return data

    def raw(self, size: int) -> bytes:
        """The next bytes as they lie on disk, those already looked at first."""
        if self._head:
            size = len(self._head) if size < 0 else size
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._raw_read(size)


class _Raw(io.RawIOBase):
    """The bytes on disk as a file object, for decompressors."""

    def __init__(self, source: TextFile) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._source.raw(size)

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.raw(len(view))
        view[: len(data)] = data
        return len(data)


def standard_input() -> TextIO:
    """``sys.stdin``.

    Raises:
        StorageError: it is closed.
    """
    if sys.stdin is None:
        raise StorageError("cannot read standard input: it is closed")
    return sys.stdin


def recognise(head: bytes) -> str | None:
    """The compression that the first ten bytes of a file tell: gzip, bzip2, xz, zstd or ``None``."""
    if _BZIP2.match(head):
        return "bzip2"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise storage_error(error, path, "read") from error


def _inflate(compression: str, source: TextFile) -> Bytes:
    raw = io.BufferedReader(_Raw(source), 1 << 18)
    if compression == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=raw, mode="rb")
    if compression == "bzip2":
        import bz2

        return bz2.BZ2File(raw)
    if compression == "xz":
        import lzma

        return lzma.LZMAFile(raw)
    import pyarrow as pa

    stream: Bytes = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return stream


ENDINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}


def compression_of(path: Path) -> str | None:
    """The compression that the ending of a file's name promises: gzip, bzip2, xz, zstd or ``None``."""
    return ENDINGS.get(path.suffix.lower())


@contextlib.contextmanager
def compressing(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """Write through this to have ``file`` compressed as the ending of ``path`` says, or not at all.

    The same bytes in give the same bytes out: gzip is given no time and no name. ``file`` stays open.
    """
    compression = compression_of(path)
    if compression is None:
        yield file
        return
    if compression == "gzip":
        import gzip

        packed: IO[bytes] = gzip.GzipFile("", "wb", 6, file, mtime=0)  # type: ignore[assignment]
    elif compression == "bzip2":
        import bz2

        packed = bz2.BZ2File(file, "wb")
    elif compression == "xz":
        import lzma

        packed = lzma.LZMAFile(file, "wb")  # noqa: SIM115
    else:
        import pyarrow as pa

        packed = pa.CompressedOutputStream(pa.PythonFile(_Kept(file), mode="w"), "zstd")
    try:
        yield packed
    except BaseException:
        # What is still held back is lost with the file; a full disk must not fail a second time.
        with contextlib.suppress(OSError):
            packed.close()
        raise
    packed.close()


class _Kept(io.RawIOBase):
    """A file that stays open when a compressor closes it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: ReadBuffer, /) -> int:
        return self._file.write(data)


def check_errors(errors: str) -> None:
    """Refuse an ``errors`` other than ``"strict"`` or ``"replace"`` by a SettingError."""
    if errors not in READ_ERRORS:
        raise SettingError(f"errors must be one of {', '.join(map(repr, READ_ERRORS))}, got {errors!r}")


class Checked:
    """A stream of bytes made valid UTF-8: bad bytes raise, or become U+FFFD; a BOM is left out.

    Offsets in errors count from the first byte of the decompressed text, in which the stream begins at
    byte ``offset``.
    """

    def __init__(self, stream: Bytes, name: str, errors: str, offset: int = 0) -> None:
        check_errors(errors)
        self._stream, self._name, self._errors = stream, name, errors
        self._tail = b""
        self._offset = offset
        self._ended = False

    def read(self, size: int = -1, /) -> bytes:
        """About ``size`` bytes, whole characters (more if bad bytes were replaced); ``b""`` at the end."""
        while not self._ended:
            data = self._stream.read(size)
            self._ended = not data
            data = self._tail + data
            cut = len(data) if self._ended else _whole(data)
            data, self._tail = data[:cut], data[cut:]
            offset, self._offset = self._offset, self._offset + cut
            checked = self.check(data, offset)
            if checked:
                return checked
        return b""

    def check(self, data: bytes, offset: int) -> bytes:
        """``data``, which begins at byte ``offset`` of the text, with its bad bytes raised or replaced."""
        if self._errors == "replace":
            data = data if data.isascii() else data.decode(errors="replace").encode()
        else:
            zero_pos = data.find(b"\0")
            if zero_pos >= 0:
                raise SourceError(
                    f"{self._name} holds a zero byte at byte {offset + zero_pos:,}: a binary file or UTF-16, "
                    f"not text in UTF-8; convert it, or read it as it is with {_REPLACE}"
                )
            if not data.isascii():
                self._check_strict(data, offset)
        return data[3:] if offset == 0 and data.startswith(b"\xef\xbb\xbf") else data

    def _check_strict(self, data: bytes, offset: int) -> None:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            utf16 = offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff")
            hint = " (it begins like UTF-16)" if utf16 else ""
            raise SourceError(
                f"{self._name} is not UTF-8{hint}: 0x{data[error.start]:02x} at byte "
                f"{offset + error.start:,}, {error.reason}; convert it, or read it with {_REPLACE}"
            ) from None


def _whole(data: bytes) -> int:
    """The length of ``data`` without a character that its end may have cut."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:  # the lead byte of a character of 2 to 4 bytes
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if length > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def cut_chunks(stream: Bytes, name: str, *, lines: bool = True, anywhere: bool = False) -> Iterator[Chunk]:
    """Cut a stream of valid UTF-8 at its last line end, or inside a long line at white space.

    Args:
        stream: gives valid UTF-8 in whole characters.
        name: of the file, for errors.
        lines: whether sentences end at line ends; otherwise the whole stream is one sentence.
        anywhere: a stretch of a chunk without white space is cut between two characters
            (for tokenisers that split inside it); otherwise more than 16 MiB of it is an error.

    Raises:
        SourceError: a token longer than 16 MiB.
    """
    tail, offset, goes_on = b"", 0, False
    while block := stream.read(CHUNK):
        data = tail + block
        cut = data.rfind(b"\n") + 1 or _space_cut(data) or (len(data) if anywhere else 0)
        if cut == 0 and len(data) > LONGEST_TOKEN:
            raise SourceError(
                f"{name} holds no white space in the {len(data):,} bytes from byte {offset:,} on: "
                f"is it text? Tokens are split at white space; give a tokenizer with a pattern or "
                f"function for other text"
            )
        tail = data[cut:]
        offset += cut
        if cut:
            chunk = _chunk(data[:cut], lines, True)
            goes_on = chunk.goes_on
            yield chunk
    if tail or goes_on:  # also where nothing is left: it ends the sentence
        yield _chunk(tail, lines, False)


def _chunk(data: bytes, lines: bool, more: bool) -> Chunk:
    if not lines:
        return Chunk(data.replace(b"\n", b" "), more)
    return Chunk(data, more and not data.endswith(b"\n"))


def _space_cut(data: bytes) -> int:
    """The end of the last white space in ``data``, 0 where there is none."""
    reach = 1 << 10
    while True:
        begin = max(0, len(data) - reach)
        ends = [match.end() for match in _SPACE.finditer(data, begin)]
        if ends or begin == 0:
            return ends[-1] if ends else 0
        reach *= 16


def file_chunks(file: TextFile, errors: str, *, lines: bool, anywhere: bool) -> Iterator[Chunk]:
    """The chunks of one plain or compressed text file (see ``cut_chunks``, ``Checked``)."""
    yield from cut_chunks(Checked(file, file.name, errors), file.name, lines=lines, anywhere=anywhere)


def text_lines(stream: Bytes) -> Iterator[bytes]:
    """The lines of a stream without their line ends; a line is held whole."""
    parts: list[bytes] = []
    while block := stream.read(CHUNK):
        first, *rest = block.split(b"\n")
        parts.append(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    if last := b"".join(parts):
        yield last
