"""``firth similar``: the nearest neighbours of words."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firth.cli.options import JSON, RESTRICT, TOP, VECTORS
from firth.cli.output import print_json, print_table, printable, rounded
from firth.errors import KeyNotFound
from firth.textfiles import standard_input

if TYPE_CHECKING:
    from firth.vectors import Vectors

_BATCH = 1000  # words of a pipe that are answered by one matrix product


def similar(
    vectors: Annotated[Path, VECTORS],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD", help="The words; without any, standard input, one a line."),
    ] = None,
    top: Annotated[int, TOP] = 10,
    restrict: Annotated[int | None, RESTRICT] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """The words whose vectors point the same way, with their cosine.

    $ firth similar vectors.safetensors paris london
    $ cat words.txt | firth similar vectors.safetensors --json

    With --json each word gives one line: the query and its \\[word, cosine] pairs.
    A word of standard input that has no vector is reported and the next one
    answered; the exit code is then 1.
    """
    from firth.vectors import Vectors

    loaded = Vectors.load(vectors)
    if words:
        _answer(loaded, words, top, restrict, as_json)
        return
    failed = False
    given = standard_input()
    lines = (line.strip("\n\r") for line in given)
    # A person at a terminal wants the answer to each line at once.
    size = 1 if given.isatty() else _BATCH
    wanted = filter(None, lines)
    while batch := list(itertools.islice(wanted, size)):
        known = []
        for word in batch:
            try:
                loaded.get_vector(word)
                known.append(word)
            except KeyNotFound as error:
                failed = True
                print(f"firth: {printable(str(error))}", file=sys.stderr)
        _answer(loaded, known, top, restrict, as_json)
    if failed:
        raise typer.Exit(1)


def _answer(vectors: Vectors, words: Iterable[str], top: int, restrict: int | None, as_json: bool) -> None:
    asked = list(words)
    if not asked:
        return
    found = vectors.most_similar_batch(asked, topn=top, restrict_vocab=restrict)
    for word, neighbours in zip(asked, found, strict=True):
        if as_json:
            print_json({"query": word, "neighbours": [[key, rounded(score)] for key, score in neighbours]})
            continue
        print_table([[word]])
        print_table(([key, f"{score:.4f}"] for key, score in neighbours), indent="  ")
