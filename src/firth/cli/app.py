"""All verbs in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import firth
from firth.cli import align, analogy, compare, convert, evaluate, info, merge, similar, train

VERBS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "similar": similar.similar,
    "analogy": analogy.analogy,
    "evaluate": evaluate.evaluate,
    "compare": compare.compare,
    "align": align.align,
    "merge": merge.merge,
    "convert": convert.convert,
    "info": info.info,
}


def command() -> Any:
    """The whole command line as one command object (click's)."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
    )
    app.callback(invoke_without_command=True)(_firth)
    for name, verb in VERBS.items():
        app.command(name)(verb)
    return typer.main.get_command(app)


def _firth(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Vectors for words, learned from the company they keep.

    Begin with:

    $ firth train corpus.txt -o vectors.safetensors
    $ firth similar vectors.safetensors paris
    """
    if version:
        print(f"firth {firth.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
