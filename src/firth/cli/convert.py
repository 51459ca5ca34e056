"""``firth convert``: vectors from one format into another."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firth.cli.options import DTYPE, ERRORS, FROM, HEADER, JSON, LIMIT, VECTORS
from firth.cli.output import print_json
from firth.errors import FormatError, SettingError

if TYPE_CHECKING:
    from firth.formats import Table

# What a format may not keep, for people.
_PARTS = {
    "counts": "the counts",
    "context": "the context vectors",
    "subwords": "the subwords, and so vectors for unseen words",
    "metadata": "the metadata",
}


def convert(
    vectors: Annotated[Path, VECTORS],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write.")],
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="The format of OUT; else its ending decides."),
    ] = None,
    from_: Annotated[str | None, FROM] = None,
    limit: Annotated[int | None, LIMIT] = None,
    header: Annotated[bool | None, HEADER] = None,
    errors: Annotated[str, ERRORS] = "strict",
    dtype: Annotated[str, DTYPE] = "float32",
    space_as: Annotated[
        str | None,
        typer.Option("--space-as", metavar="TEXT", help="Replace each space in a key by this, often _."),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Write vectors in another format; that of IN is recognised by what it holds.

    Formats: safetensors, word2vec, word2vec-binary, glove, fasttext, floret, npy, parquet, static-folder
    (sentence-transformers and model2vec open it), projector, gensim. Text is compressed where OUT
    ends in .gz, .bz2, .xz or .zst. What the format of OUT does not keep is told.

    $ firth convert glove.6B.50d.txt glove.safetensors
    $ firth convert vectors.safetensors vectors.txt.gz
    $ firth convert vectors.safetensors folder --format static-folder
    """
    from firth import formats

    # A wrong name or folder is told before a large file is read.
    form = formats.format_for_writing(output, format_)
    if os.path.realpath(vectors) == os.path.realpath(output):
        raise SettingError(f"{output} would be written over what is read; name another OUT")
    formats.check_target(output, form)
    table = formats.read(vectors, from_, formats.Options(header, limit, errors, dtype))
    if space_as is not None:
        table = _without_spaces(table, vectors, space_as)
    form.check(output, table.keys)
    formats.write(output, table, form.name)
    rows, dim = table.matrix.shape
    lost = formats.lost(formats.parts_of(table), form)
    if as_json:
        facts = {"output": str(output), "format": form.name, "vectors": rows, "dim": dim}
        print_json({**facts, **({"lost": lost} if lost else {})})
        return
    said = f"{rows:,} vectors of {dim} written to {output}"
    if lost:
        said += f"; {form.name} does not keep {_list([_PARTS[part] for part in lost])}"
    print(said, file=sys.stderr)


def _without_spaces(table: Table, path: Path, other: str) -> Table:
    """The table with keys whose spaces are replaced; two that become one are refused."""
    from firth.keys import Keys

    if any(char.isspace() for char in other) or not other:
        raise SettingError(f"--space-as is {other!r}; a text without white space is expected")
    old: dict[str, str] = {}
    for key in table.keys:
        new = key.replace(" ", other)
        if new in old:
            raise FormatError(
                f"{path}: {old[new]!r} and {key!r} would both become {new!r}; give --space-as another text"
            )
        old[new] = key
    return replace(table, keys=Keys(old))


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
