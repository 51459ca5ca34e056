"""``firth convert``: vectors from one format into another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from firth.cli.options import JSON, VECTORS
from firth.cli.output import print_json
from firth.files import check_writable


def convert(
    vectors: Annotated[Path, VECTORS],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="safetensors, word2vec, word2vec-binary or glove; else the ending of OUT decides.",
        ),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Write vectors in another format; that of IN is recognised by what the file holds.

    $ firth convert glove.6B.50d.txt glove.safetensors
    $ firth convert vectors.safetensors vectors.bin --format word2vec-binary
    """
    from firth.formats import format_for_writing
    from firth.vectors import Vectors

    # A wrong name or folder is told before a large file is read.
    check_writable(output)
    form = format_for_writing(output, format_)
    loaded = Vectors.load(vectors)
    loaded.save(output, format=form.name)
    if as_json:
        facts = {"output": str(output), "format": form.name, "vectors": len(loaded)}
        print_json({**facts, "dim": loaded.vector_size})
        return
    print(f"{len(loaded):,} vectors of {loaded.vector_size} written to {output}", file=sys.stderr)
