"""``firth info``: what a file of vectors holds, or what the cache keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from firth.cli.options import JSON
from firth.cli.output import print_json, print_table, printable, width
from firth.errors import SettingError


def info(
    vectors: Annotated[
        Path | None, typer.Argument(metavar="VECTORS", help="A file of vectors in any known format.")
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Show the cache of encoded texts instead.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """What a file of vectors holds: size, first words, the settings and scores of its run.

    $ firth info vectors.safetensors
    $ firth info --cache
    """
    if cache == (vectors is not None):
        raise SettingError("firth info takes either a file of vectors or --cache")
    facts = _cache() if vectors is None else _vectors(vectors)
    if as_json:
        print_json(facts)
        return
    single = [[name, _shown(value)] for name, value in facts.items() if not _nested(value)]
    space = max(width(name) for name, _ in single) + 2
    for name, value in single:
        print(printable(name.ljust(space) + value))
    for name, value in facts.items():
        if _nested(value):
            print(printable(name))
            print_table(_rows(value), indent="  ")


def _vectors(path: Path) -> dict[str, Any]:
    from firth.formats import recognise
    from firth.vectors import Vectors

    form = recognise(path)
    loaded = Vectors.load(path)
    facts = {
        "file": str(path),
        "format": form.name,
        "bytes": path.stat().st_size,
        "vectors": len(loaded),
        "dim": loaded.vector_size,
        "counts": loaded.counts is not None,
        "context": loaded.context is not None,
        "first": loaded.index_to_key[:10],
    }
    # What is counted here is truer than what somebody noted: reduce() changes the dim of a run.
    return {**facts, **{name: value for name, value in loaded.metadata.items() if name not in facts}}


def _cache() -> dict[str, Any]:
    from firth.cache import cache_folder, entries

    found = entries()
    return {
        "cache": str(cache_folder()),
        "texts": len(found),
        "bytes": sum(entry.size for entry in found),
        "entries": [
            {
                "source": entry.description.get("source", "(work under way)"),
                "bytes": entry.size,
                "folder": str(entry.folder),
            }
            for entry in found
        ],
    }


def _nested(value: object) -> bool:
    """Whether it is shown as a table of its own: a dict, or a list of dicts."""
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(one, dict) for one in value)
    )


def _rows(value: dict[str, Any] | list[Any]) -> list[list[str]]:
    """The rows of such a table: key and value, or the values of each dict below their keys."""
    if isinstance(value, dict):
        return [[key, _shown(one)] for key, one in value.items()]
    keys = list(dict.fromkeys(key for row in value for key in row))
    return [keys, *([_shown(row.get(key)) for key in keys] for row in value)]


def _shown(value: object) -> str:
    """A value for a reader: yes and no, numbers short and with commas, lists with spaces."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return str(value)
