"""All verbs in one table."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import typer

import firth
from firth.cli import align, analogy, compare, convert, evaluate, info, merge, reduce, similar, train, video

VERBS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "similar": similar.similar,
    "analogy": analogy.analogy,
    "evaluate": evaluate.evaluate,
    "compare": compare.compare,
    "align": align.align,
    "merge": merge.merge,
    "reduce": reduce.reduce,
    "convert": convert.convert,
    "info": info.info,
}

# Words with verbs of their own behind them: files that have a table VERBS.
GROUPS = {"video": video}


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
    for name, group in GROUPS.items():
        app.add_typer(_group(group), name=name)
    return typer.main.get_command(app)


def _group(module: ModuleType) -> typer.Typer:
    """The verbs of a file behind the word that names it; the word alone shows them."""

    def show(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    about = str(module.__doc__).partition(": ")[2]
    group = typer.Typer(rich_markup_mode="rich")
    group.callback(invoke_without_command=True, help=about[:1].upper() + about[1:])(show)
    for name, verb in module.VERBS.items():
        group.command(name)(verb)
    return group


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
