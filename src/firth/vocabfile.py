r"""The file of a vocabulary: UTF-8 text, one token a line, readable and exact.

::

    # firth vocabulary 1 {"tokens": 3, "unknown": "error", ...}
    the	1061396
    new york	70
    a\tb	1

A tab stands between token and count. Backslash, control characters and every white space but a
space inside a token are escaped as in Python (``\\ \t \n \r \x85 \u2028 \ud800``), so that no
editor and no line splitting can change a token. Without the first line the file is a plain list:
a token a line, or ``token count`` on every line, as the ``-save-vocab`` of word2vec.c writes it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firth.errors import FormatError, SourceError
from firth.files import replacing, storage_error

MARK = "# firth vocabulary "
VERSION = 1

# Control characters, white space that is not a space, characters without width, surrogates.
_ESCAPED = re.compile(
    "[\\\\\x00-\x1f\x7f-\xa0\xad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000"
    "\ud800-\udfff\ufeff\ufff9-\ufffb]|^ | $"
)
_ESCAPE = re.compile(r"\\(?:([\\tnr])|x([0-9a-f]{2})|u([0-9a-f]{4})|)")
_SHORT = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}
_TO_SHORT = {value: "\\" + key for key, value in _SHORT.items()}


class Contents(NamedTuple):
    """What a file holds; ``counts`` are int64 (V,), zeros where there are none."""

    tokens: list[str]
    counts: npt.NDArray[np.int64]
    header: dict[str, Any]


def write(
    path: str | os.PathLike[str],
    tokens: list[str],
    counts: npt.NDArray[np.int64],
    header: Mapping[str, Any],
) -> None:
    """Write the file, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    first = json.dumps({"tokens": len(tokens), **header})
    lines = [f"{MARK}{VERSION} {first}"]
    lines += [f"{_escape(token)}\t{count}" for token, count in zip(tokens, counts.tolist(), strict=True)]
    lines.append("")
    with replacing(path) as file:
        file.write("\n".join(lines).encode())


def read(path: str | os.PathLike[str]) -> Contents:
    """Read such a file, or a plain list of tokens.

    Raises:
        StorageError: it cannot be read.
        SourceError: it is not UTF-8, or empty.
        FormatError: it is cut, or a line is not as it must be; names the line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise storage_error(error, path, "read") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is no vocabulary: not UTF-8 at byte {error.start:,}") from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise SourceError(f"{path} is empty, expected a vocabulary: a token a line")
    if lines[0].startswith(MARK):
        return _read_own(path, lines)
    return _read_list(path, lines)


def _escape(token: str) -> str:
    return _ESCAPED.sub(_escaped, token) if _ESCAPED.search(token) else token


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    return _TO_SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _plain(match: re.Match[str]) -> str:
    short, byte, word = match.groups()
    if short:
        return _SHORT[short]
    if not (byte or word):
        raise ValueError(f"no escape known at {match.string[match.start() :][:6]!r}")
    return chr(int(byte or word, 16))


def _read_own(path: str | os.PathLike[str], lines: list[str]) -> Contents:
    version, _, rest = lines[0].removeprefix(MARK).partition(" ")
    try:
        header = json.loads(rest)
        count = header["tokens"]
    except (ValueError, TypeError, KeyError):
        raise FormatError(f"{path}, line 1 is a damaged head of a firth vocabulary") from None
    if version != str(VERSION):
        raise FormatError(
            f"{path} is a firth vocabulary of version {version}, this firth reads version {VERSION}"
        )
    if count != len(lines) - 1:
        raise FormatError(
            f"{path} holds {len(lines) - 1:,} tokens, its head says {count}: the file is cut or changed"
        )
    tokens: list[str] = []
    counts = np.zeros(len(lines) - 1, np.int64)
    for line_row, line in enumerate(lines[1:]):
        token, tab, number = line.rpartition("\t")
        try:
            if not tab or not number.isdecimal():
                raise ValueError("expected a token, a tab and a count")
            tokens.append(_ESCAPE.sub(_plain, token) if "\\" in token else token)
            counts[line_row] = int(number)
        except (ValueError, OverflowError) as error:
            raise FormatError(f"{path}, line {line_row + 2:,} is wrong: {error}; got {line!r:.60}") from None
    return Contents(tokens, counts, header)


def _read_list(path: str | os.PathLike[str], lines: list[str]) -> Contents:
    lines = [line.removesuffix("\r") for line in lines]
    pairs = [re.split(r"[ \t](?=[0-9]{1,18}$)", line) for line in lines]
    if all(len(pair) == 2 and pair[0] for pair in pairs):
        counts = np.array([int(pair[1]) for pair in pairs], np.int64)
        return Contents([pair[0] for pair in pairs], counts, {})
    for line_number, line in enumerate(lines, 1):
        if not line:
            raise FormatError(f"{path}, line {line_number:,} is empty, expected a token on every line")
    return Contents(lines, np.zeros(len(lines), np.int64), {})
