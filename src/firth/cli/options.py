"""Arguments and options that several verbs share, and training's settings as options.

A training setting stands once, in ``firth.training``: a field of a dataclass with its type, its
default, its limits and its help. ``option`` and ``default`` read it from there.
"""

from __future__ import annotations

from dataclasses import Field, fields
from functools import cache
from typing import Any

import typer

from firth.errors import SettingError


def number(
    *flags: str,
    help: str,
    low: float | None = None,
    high: float | None = None,
    metavar: str = "N",
    panel: str | None = None,
    shown: object = None,
) -> Any:
    """An option that takes a number from ``low`` to ``high``.

    ``shown`` is the default for the help, where ``None`` stands in the signature for "not given".
    """

    def checked(value: float | None) -> float | None:
        if value is None or ((low is None or value >= low) and (high is None or value <= high)):
            return value
        limit = " and ".join(
            f"{word} {_plain(bound)}"
            for word, bound in (("at least", low), ("at most", high))
            if bound is not None
        )
        raise SettingError(f"{flags[0]} must be {limit}, got {value}")

    if shown is not None:
        help += f" \\[default: {shown}]"
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=panel, callback=checked)


def _plain(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


VECTORS = typer.Argument(
    metavar="VECTORS", help="A file or folder of vectors in any known format (see firth convert --help)."
)
FROM = typer.Option("--from", metavar="NAME", help="The format of IN; else what it holds decides.")
LIMIT = number("--limit", low=1, help="Read the first N rows only.")
HEADER = typer.Option(
    "--header/--no-header", help="Whether the first line of text is `rows dim`; else the content decides."
)
ERRORS = typer.Option(
    "--errors",
    metavar="HOW",
    help="Keys that are no UTF-8: strict refuses them; replace, ignore, surrogateescape.",
)
DTYPE = typer.Option(
    "--dtype", metavar="TYPE", help="float32, or float16 to round every number to the nearest float16."
)
TOP = number("--top", "-n", low=1, help="How many to show.")
RESTRICT = number("--restrict", low=1, help="Search the N most frequent words only.")
JSON = typer.Option("--json", help="Print JSON instead of a table.")
QUIET = typer.Option("--quiet", "-q", help="No progress on standard error.")


@cache
def settings() -> dict[str, Field[Any]]:
    """Every training setting by its name: those of the run, and those of the objectives."""
    from firth.training.config import TrainConfig
    from firth.training.objectives import OBJECTIVES

    found: dict[str, Field[Any]] = {}
    for owner in (*OBJECTIVES.values(), TrainConfig):
        found |= {field.name: field for field in fields(owner)}
    return found


def option(name: str, *, panel: str, shown: object = None) -> Any:
    """The command-line option for the training setting ``name``."""
    about = settings()[name].metadata
    flag = f"--{name.replace('_', '-')}"
    if "min" not in about and "max" not in about:
        return typer.Option(flag, metavar="NAME", help=about["help"], rich_help_panel=panel)
    return number(
        flag, low=about.get("min"), high=about.get("max"), help=about["help"], panel=panel, shown=shown
    )


def default(name: str) -> Any:
    """The default of the training setting ``name``."""
    return settings()[name].default
