"""``firth reduce``: vectors made smaller, or cleaner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from firth.cli.models import output_format
from firth.cli.options import JSON, VECTORS, number
from firth.cli.output import print_json
from firth.errors import SettingError


def reduce(
    vectors: Annotated[Path, VECTORS],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")],
    remove_top: Annotated[
        int | None,
        number(
            "--remove-top", low=0, help="Remove the mean and the N greatest components (all-but-the-top)."
        ),
    ] = None,
    dim: Annotated[
        int | None, number("--dim", low=1, help="Keep N numbers of a vector: its principal components.")
    ] = None,
    truncate: Annotated[
        int | None, number("--truncate", low=1, help="Keep the first N numbers as they are, after --dim.")
    ] = None,
    storage: Annotated[
        str, typer.Option(metavar="NAME", help="A number takes: float32, float16, or int8 and a scale a row.")
    ] = "float32",
    format_: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="As for firth convert.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Smaller or cleaner vectors; what is asked for is done in the order of the options.

    $ firth reduce glove.txt --remove-top 1 -o clean.safetensors
    $ firth reduce glove.txt --dim 25 --storage int8 -o small.safetensors
    """
    from firth.reductions import STORAGES
    from firth.vectors import Vectors

    if remove_top is None and dim is None and truncate is None and storage == "float32":
        raise SettingError(
            "firth reduce needs --remove-top, --dim, --truncate or --storage; else use convert"
        )
    if storage not in STORAGES:
        raise SettingError(f"--storage is {storage!r}; one of {', '.join(STORAGES)} is expected")
    form = output_format(output, [vectors], format_)
    if storage != "float32" and form != "safetensors":
        raise SettingError(f"--storage {storage} is for safetensors; {form} does not keep it")
    made = Vectors.load(vectors)
    if remove_top is not None:
        made = made.all_but_the_top(remove_top)
    if dim is not None:
        made = made.reduce(dim)
    if truncate is not None:
        made = made.truncate(truncate)
    if storage != "float32":
        made = made.quantized(storage)
    made.save(output, format=form)
    if as_json:
        facts = {
            "output": str(output),
            "vectors": len(made),
            "dim": made.vector_size,
            "storage": made.storage,
        }
        print_json({**facts, "changes": made.metadata["changes"]})
        return
    kept = "" if made.storage == "float32" else f", stored as {made.storage}"
    print(f"{len(made):,} vectors of {made.vector_size}{kept} written to {output}", file=sys.stderr)
