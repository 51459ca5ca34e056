"""``firth analogy``: a is to b as c is to ?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from firth.cli.options import JSON, RESTRICT, TOP, VECTORS
from firth.cli.output import print_json, print_table, rounded


def analogy(
    vectors: Annotated[Path, VECTORS],
    a: Annotated[str, typer.Argument(metavar="A", help="The first word of the pair that is known.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The second.")],
    c: Annotated[str, typer.Argument(metavar="C", help="The first word of the pair to complete.")],
    top: Annotated[int, TOP] = 5,
    restrict: Annotated[int | None, RESTRICT] = None,
    multiply: Annotated[
        bool, typer.Option("--multiply", help="3CosMul (cosines multiplied) in place of 3CosAdd (added).")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """A is to B as C is to ...?

    $ firth analogy vectors.safetensors man king woman
    """
    from firth.vectors import Vectors

    loaded = Vectors.load(vectors)
    if multiply:
        found = loaded.most_similar_cosmul(positive=[b, c], negative=[a], topn=top, restrict_vocab=restrict)
    else:
        found = loaded.most_similar(positive=[b, c], negative=[a], topn=top, restrict_vocab=restrict)
    if as_json:
        print_json({"query": [a, b, c], "answers": [[key, rounded(score)] for key, score in found]})
    else:
        print_table([key, f"{score:.4f}"] for key, score in found)
