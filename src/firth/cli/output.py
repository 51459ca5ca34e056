"""Results on stdout: aligned text for people, JSON for programs."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Sequence

# JSON may hold these as they are, but many a reader takes them for the end of a line.
_ENDS = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def print_json(value: object) -> None:
    """``value`` as one line of JSON; NaN, which JSON does not have, must not be in it."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_ENDS), flush=True)


def rounded(score: float) -> float | None:
    """A score for JSON: six digits; ``None`` where it is no number, as beside a row with NaN in it."""
    return round(score, 6) if math.isfinite(score) else None


def print_table(rows: Iterable[Sequence[str]], indent: str = "") -> None:
    """Rows of cells in aligned columns: the first to the left, the others to the right."""
    shown = [[printable(cell) for cell in row] for row in rows]
    if not shown:
        return
    widths = [max(width(cell) for cell in column) for column in zip(*shown, strict=True)]
    for row in shown:
        first = row[0] + " " * (widths[0] - width(row[0]))
        others = [" " * (space - width(cell)) + cell for cell, space in zip(row[1:], widths[1:], strict=True)]
        print((indent + "  ".join([first, *others])).rstrip())


def printable(text: str) -> str:
    """``text`` with characters that would move the cursor (controls, line separators) escaped."""
    if text.isprintable():
        return text
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text
    )


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal: wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )
