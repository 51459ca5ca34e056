"""``firth compare``: two or more models side by side."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firth.cli.models import check_apart, load_all, split
from firth.cli.options import JSON, TOP, number
from firth.cli.output import print_json, printable
from firth.files import check_writable, write_text

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from firth.comparison import Comparison
    from firth.comparison.report import Company, PairReport, WordReport


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...] [WORD ...]", help="Files of vectors, then words.", show_default=False
        ),
    ],
    word: Annotated[
        list[str] | None,
        typer.Option(
            "--word", "-w", metavar="WORD", help="A word that is a file's name too. May be given again."
        ),
    ] = None,
    top: Annotated[int, TOP] = 10,
    restrict: Annotated[
        int | None, number("--restrict", low=1, help="Use the N most frequent words of each model only.")
    ] = None,
    differ: Annotated[
        int, number("--differ", low=0, help="How many words to list that differ most, and least; 0: none.")
    ] = 10,
    among: Annotated[
        int,
        number(
            "--among", low=0, help="Judge the N most frequent words that all models have; 0: all of them."
        ),
    ] = 10_000,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Word pairs with a score, tab separated. May be given again."),
    ] = None,
    analogies: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Analogy questions (questions-words.txt). May be given again."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page, which needs no network.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Two models or more side by side, of any dimension, corpus and vocabulary.

    $ firth compare glove.txt wiki.safetensors bank cell
    $ firth compare a.safetensors b.bin --pairs EN-WS-353-ALL.txt --html report.html

    The first two arguments are files of vectors. Those that follow are too, as
    long as they name a file, or end as one (.txt, .vec, .bin, .safetensors ...);
    the first that does not begins the words. After a -- words may begin with -.

    For each word: its neighbours, * where no other model has them among its own,
    and ~ where another does not know the word at all. For each two models: do
    their similarities agree, and which words keep the most different company.
    """
    paths, words = split(arguments, "firth compare")
    if html is not None:
        check_apart(html, paths, "--html")
        check_writable(html)
    models = load_all(paths, "firth compare")
    from firth.comparison import compare as side_by_side

    report = side_by_side(
        *models,
        words=[*words, *(word or [])],
        topn=top,
        restrict=restrict,
        differ=differ,
        among=among or None,
        pairs=pairs or (),
        analogies=analogies or (),
    )
    if html is not None:
        write_text(html, report.to_html())
        print(f"page written to {html}", file=sys.stderr)
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)


def _show(report: Comparison) -> None:
    from rich.console import Console

    if sys.stdout.isatty():
        console = Console(highlight=False)
        for part in _parts(report):
            console.print(part)
        return
    # What does not go to a terminal is not cut to the width of one, and needs no spaces at the ends.
    page = io.StringIO()
    console = Console(file=page, width=10_000, highlight=False)
    for part in _parts(report):
        console.print(part)
    print("\n".join(line.rstrip() for line in page.getvalue().splitlines()))


def _parts(report: Comparison) -> list[Table | Text]:
    parts: list[Table | Text] = [_coverage(report)]
    for word in report.words:
        parts += _word(word)
    for pair in report.pairs:
        parts += _pair(pair)
    return [*parts, *([_scores(report)] if report.scores else [])]


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """All texts as they are: keys may hold what rich would read as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title), style="bold"),
        title_justify="left",
        show_header=any(heads),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for head in heads:
        table.add_column(Text(printable(head)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _coverage(report: Comparison) -> Table:
    heads = ("model", "words", "dim", "shared", "of its words", "of its text", "only here", "for instance")
    rows = [
        [
            one.name,
            f"{one.keys:,}",
            str(one.dim),
            f"{one.shared:,}",
            f"{100 * one.shared / one.keys:.1f} %",
            "-" if one.tokens is None else f"{100 * one.tokens:.1f} %",
            f"{one.only:,}",
            " ".join(one.first_only[:4]),
        ]
        for one in report.coverage
    ]
    return _table("Vocabularies", heads, rows)


def _word(report: WordReport) -> list[Table | Text]:
    from rich.text import Text

    longest = max(len(one.neighbours) for one in report.companies)
    rows = [[_neighbour(one, place) for one in report.companies] for place in range(longest)]
    heads = [one.heading() for one in report.companies]
    facts = [f"{a} / {b}: rank correlation {_decimal(value)}" for a, b, value in report.correlations]
    if report.correlations:
        facts.insert(0, f"shared: {' '.join(report.shared) or 'none'}")
    facts += [
        f"not in {one.model}; close there: {' '.join(one.close) or 'nothing'}"
        for one in report.companies
        if one.missing
    ]
    return [_table(report.word, heads, rows), *(Text(printable(fact)) for fact in facts), Text("")]


def _neighbour(company: Company, place: int) -> str:
    if place >= len(company.neighbours):
        return ""
    key, cosine = company.neighbours[place]
    mark = ("*" if key in company.only else "") + ("~" if key in company.unknown else "")
    return f"{cosine:.3f} {key}{mark}"


def _pair(report: PairReport) -> list[Table | Text]:
    one, other = report.models
    facts = [
        ["rank correlation of similarities", _decimal(report.spearman), f"{report.n_pairs:,} pairs of words"]
    ]
    if report.words:
        share = f"{100 * report.overlap:.1f} %"
        facts.append([f"same among the {report.k} nearest", share, f"mean of {report.words:,} words"])
    tables: list[Table | Text] = [_table(f"{one} and {other}", ("", "", ""), facts)]
    heads = ("word", "distance", f"same of {report.k}", one, other)
    for name, shifts in (("most", report.most), ("least", report.least)):
        rows = [
            [shift.word, _decimal(shift.distance), str(shift.common), *map(" ".join, shift.neighbours)]
            for shift in shifts
        ]
        tables += [_table(f"Company differs {name}", heads, rows)] if rows else []
    return tables


def _scores(report: Comparison) -> Table:
    rows = [
        [
            Path(row.name).name,
            row.measure,
            row.vocabulary,
            *(
                f"{_decimal(value, 4)} ({found:,} of {row.total:,})"
                for value, found in zip(row.values, row.found, strict=True)
            ),
        ]
        for row in report.scores
    ]
    return _table("Scores", ("file", "measure", "words", *report.names), rows)


def _decimal(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
