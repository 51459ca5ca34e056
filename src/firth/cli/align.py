"""``firth align``: one model turned into the space of another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firth.cli.models import load_all, output_format
from firth.cli.options import JSON, number
from firth.cli.output import print_json, print_table

if TYPE_CHECKING:
    from firth.comparison import Alignment


def align(
    source: Annotated[Path, typer.Argument(metavar="A", help="The file of vectors to turn.")],
    target: Annotated[Path, typer.Argument(metavar="B", help="The one whose space A is turned into.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="The file to write; without it the fit is shown."),
    ] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A word a line, or a word of A and one of B; else all words that both have."
        ),
    ] = None,
    centre: Annotated[
        bool, typer.Option("--centre", help="Subtract the mean of the anchors, and add that of B again.")
    ] = False,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Learn from vectors of length one.")
    ] = True,
    held_out: Annotated[
        float,
        number(
            "--held-out",
            low=0,
            high=0.9,
            metavar="SHARE",
            help="Of the anchors, to measure the fit and not to learn.",
        ),
    ] = 0.1,
    restrict: Annotated[
        int | None, number("--restrict", low=1, help="Take anchors among the N most frequent words only.")
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="As for firth convert.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Turn A into the space of B, so that words of both can be compared directly.

    $ firth align old.safetensors new.safetensors -o old-in-new.safetensors
    $ firth align french.vec english.vec --anchors fr-en.txt --centre -o fr.safetensors

    An orthogonal map (Procrustes) is learned on words that both have. The fit is
    that of anchors it was not learned on: mean cosine with their partner, and how
    often the partner is the nearest of all words of B.
    """
    from firth.comparison import align as turn
    from firth.comparison import read_anchors

    form = None
    if output is not None:
        form = output_format(output, [source, target, *([anchors] if anchors else [])], format_)
    given = None if anchors is None else read_anchors(anchors)
    models = load_all([source, target], "firth align")
    found = turn(
        *models, anchors=given, centre=centre, normalize=normalize, held_out=held_out, restrict=restrict
    )
    if output is not None:
        found.vectors.save(output, format=form)
    if as_json:
        print_json({**found.to_dict(), "output": None if output is None else str(output)})
        return
    _show(found)
    if output is not None:
        size = found.vectors.vector_size
        print(f"{len(found.vectors):,} vectors of {size} written to {output}", file=sys.stderr)


def _show(found: Alignment) -> None:
    rows = [["anchors learned from", f"{found.n_anchors:,}"]]
    if found.before is not None and found.after is not None:
        rows = [
            ["", "before", "after"],
            ["mean cosine", f"{found.before.cosine:.4f}", f"{found.after.cosine:.4f}"],
            ["nearest is the partner", *(f"{fit.precision_at_1:.4f}" for fit in (found.before, found.after))],
            ["anchors held out", "", f"{found.after.n_anchors:,}"],
            ["anchors learned from", "", f"{found.n_anchors:,}"],
        ]
    print_table(rows)
