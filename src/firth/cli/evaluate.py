"""``firth evaluate``: scores on word pairs that people judged, and on analogies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from firth.cli.options import JSON, VECTORS, number
from firth.cli.output import print_json
from firth.errors import SettingError


def evaluate(
    vectors: Annotated[Path, VECTORS],
    pairs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Word pairs with a score, tab separated. May be given again."),
    ] = None,
    analogies: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Analogy questions (questions-words.txt). May be given again."),
    ] = None,
    restrict: Annotated[
        int | None, number("--restrict", low=1, help="Use the N most frequent words only.")
    ] = None,
    multiply: Annotated[
        bool, typer.Option("--multiply", help="Answer analogies by 3CosMul in place of 3CosAdd.")
    ] = False,
    convention: Annotated[
        str,
        typer.Option(metavar="NAME", help="Count analogies as gensim does, or as word2vec's C tool."),
    ] = "gensim",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """How well vectors agree with people: correlation on word pairs, analogies solved.

    $ firth evaluate vectors.safetensors --pairs EN-WS-353-ALL.txt
    $ firth evaluate vectors.txt --analogies questions-words.txt --restrict 30000
    """
    if not pairs and not analogies:
        raise SettingError("firth evaluate needs --pairs FILE or --analogies FILE, or both")
    from firth.evaluate import evaluate as score
    from firth.vectors import Vectors

    report = score(
        Vectors.load(vectors),
        pairs=pairs or (),
        analogies=analogies or (),
        restrict=restrict,
        method="3cosmul" if multiply else "3cosadd",
        convention=convention,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)
