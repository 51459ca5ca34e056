"""``firth merge``: one file of vectors from several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from firth.cli.models import load_all, output_format
from firth.cli.options import JSON, number
from firth.cli.output import print_json
from firth.errors import SettingError


def merge(
    models: Annotated[list[Path], typer.Argument(metavar="A B [C ...]", help="Files of vectors.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="concat, svd, average, or align (turn into one space, then average)."
        ),
    ] = "concat",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...", help="One a model, as 1,0.5; a weaker model helps with a smaller one."
        ),
    ] = None,
    dim: Annotated[int | None, number("--dim", low=1, help="Numbers in a vector, for svd.")] = None,
    missing: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="For words that a model lacks: map (predict them from the others), zero, or drop the word.",
        ),
    ] = "map",
    format_: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="As for firth convert.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """One set of vectors from several, over all their words (a meta-embedding).

    $ firth merge glove.txt wiki.safetensors --weights 1,0.4 -o both.safetensors
    $ firth compare glove.txt both.safetensors --pairs EN-WS-353-ALL.txt
    """
    from firth.comparison import merge as one_of

    form = output_format(output, models, format_)
    merged = one_of(
        *load_all(models, "firth merge"), method=method, weights=_numbers(weights), dim=dim, missing=missing
    )
    merged.save(output, format=form)
    if as_json:
        facts = {"output": str(output), "vectors": len(merged), "dim": merged.vector_size}
        print_json({**facts, **merged.metadata["merge"]})
        return
    print(f"{len(merged):,} vectors of {merged.vector_size} written to {output}", file=sys.stderr)


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingError(f"--weights is {text!r}; numbers with commas between them are expected") from error
