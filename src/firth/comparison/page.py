"""A comparison as HTML: one string, no scripts, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firth.comparison.report import Company, Comparison, PairReport, Shift, WordReport

POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is loaded, no script runs
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table.firth { border-collapse: collapse; margin: .6rem 0 1.4rem; }
table.firth th, table.firth td { border-bottom: 1px solid #8884; padding: .25rem .7rem; }
table.firth th, table.firth td { text-align: left; vertical-align: top; }
table.firth caption { text-align: left; font-weight: 600; padding: .3rem 0; }
.firth td.n { text-align: right; font-variant-numeric: tabular-nums; }
.firth .only { background: #f6c34455; border-radius: 3px; padding: 0 .2em; }
.firth .unknown { border-bottom: 1px dotted; }
.firth .quiet { color: #888; }
"""


def document(title: str, content: str) -> str:
    """A page around ``content``, which is HTML already; ``title`` is not."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(_clean(title))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(_clean(title))}</h1>\n{content}\n</body>\n</html>\n"
    )


def body(report: Comparison) -> str:
    """The tables of a comparison."""
    parts = [_coverage(report), *(_word(one) for one in report.words)]
    parts += [_pair(one) for one in report.pairs]
    if report.scores:
        parts.append(_scores(report))
    return '<div class="firth">\n' + "\n".join(parts) + "\n</div>"


def _coverage(report: Comparison) -> str:
    rows = [
        [
            _text(one.name),
            _number(one.keys),
            _number(one.dim),
            _number(one.shared),
            _number(f"{100 * one.shared / one.keys:.1f} %"),
            _number("" if one.tokens is None else f"{100 * one.tokens:.1f} %"),
            _number(one.only),
            _text(" ".join(one.first_only), "quiet"),
        ]
        for one in report.coverage
    ]
    heads = ("model", "words", "dim", "shared", "of its words", "of its text", "only here", "for instance")
    return _table("Vocabularies", heads, rows)


def _word(report: WordReport) -> str:
    longest = max((len(one.neighbours) for one in report.companies), default=0)
    rows = [[_neighbour(one, place) for one in report.companies] for place in range(longest)]
    heads = [
        one.heading() if one.row is None else f"{one.model} (word {one.row + 1:,})"
        for one in report.companies
    ]
    facts = [f"shared neighbours: {' '.join(report.shared) or 'none'}"] if report.shared or rows else []
    facts += [f"rank correlation {a} / {b}: {_decimal(value)}" for a, b, value in report.correlations]
    facts += [
        f"not in {one.model}; close: {' '.join(one.close) or 'nothing'}"
        for one in report.companies
        if one.missing
    ]
    notes = "".join(f"<p>{_escape(fact)}</p>" for fact in facts)
    return _table(report.word, heads, rows) + notes


def _neighbour(company: Company, place: int) -> str:
    if place >= len(company.neighbours):
        return "<td></td>"
    key, cosine = company.neighbours[place]
    kinds = [name for name in ("only", "unknown") if key in getattr(company, name)]
    marked = f'<span class="{" ".join(kinds)}">{_escape(key)}</span>' if kinds else _escape(key)
    return f'<td>{marked} <span class="quiet">{_decimal(cosine)}</span></td>'


def _pair(report: PairReport) -> str:
    one, other = report.models
    head = f"<h2>{_escape(one)} and {_escape(other)}</h2>\n"
    facts = (
        f"Rank correlation of the cosines of {report.n_pairs:,} pairs of words: {_decimal(report.spearman)}."
    )
    if report.words:
        facts += (
            f" Of the {report.k} nearest shared words of a word, {100 * report.overlap:.1f} % are the same "
            f"(mean over {report.words:,} words)."
        )
    heads = ("word", "distance", f"same of {report.k}", one, other)
    tables = [
        _table(f"Company differs {name}", heads, [_shift(shift) for shift in shifts])
        for name, shifts in (("most", report.most), ("least", report.least))
        if shifts
    ]
    return f"{head}<p>{_escape(facts)}</p>\n" + "\n".join(tables)


def _shift(shift: Shift) -> list[str]:
    sides = [_text(" ".join(side), "quiet") for side in shift.neighbours]
    return [_text(shift.word), _number(_decimal(shift.distance)), _number(shift.common), *sides]


def _scores(report: Comparison) -> str:
    rows = [
        [
            _text(Path(row.name).name),
            _text(row.measure),
            _text(row.vocabulary),
            *(
                _number(f"{_decimal(value, 4)} ({found:,} of {row.total:,})")
                for value, found in zip(row.values, row.found, strict=True)
            ),
        ]
        for row in report.scores
    ]
    return _table("Scores", ("file", "measure", "words", *report.names), rows)


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{_escape(head)}</th>" for head in heads)
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<table class="firth"><caption>{_escape(caption)}</caption>\n<tr>{top}</tr>\n{lines}\n</table>'


def _text(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{_escape(text)}</td>' if kind else f"<td>{_escape(text)}</td>"


def _number(value: int | str) -> str:
    return f'<td class="n">{_escape(f"{value:,}" if isinstance(value, int) else value)}</td>'


def _escape(text: str) -> str:
    return html.escape(_clean(text))


def _clean(text: str) -> str:
    """Without what no HTML can hold: lone surrogates, and controls other than white space."""
    return "".join(
        char
        if char >= " " and not 0x7F <= ord(char) < 0xA0 and not 0xD800 <= ord(char) < 0xE000
        else "\ufffd"
        for char in text
    )


def _decimal(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
