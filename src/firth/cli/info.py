"""``firth info``: what a file of vectors holds, or what the cache keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from firth.cli.options import JSON
from firth.cli.output import print_json, print_table
from firth.errors import SettingError


def info(
    vectors: Annotated[
        Path | None, typer.Argument(metavar="[VECTORS]", help="A file of vectors in any known format.")
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
    for name, value in facts.items():
        if isinstance(value, dict):
            print(name)
            print_table(([key, _shown(one)] for key, one in value.items()), indent="  ")
        else:
            print_table([[f"{name:<12}{_shown(value)}"]])


def _vectors(path: Path) -> dict[str, Any]:
    from firth.formats import recognise
    from firth.vectors import Vectors

    form = recognise(path)
    loaded = Vectors.load(path)
    return {
        "file": str(path),
        "format": form.name,
        "bytes": path.stat().st_size,
        "vectors": len(loaded),
        "dim": loaded.vector_size,
        "counts": loaded.counts is not None,
        "context": loaded.context is not None,
        "first": loaded.index_to_key[:10],
        **loaded.metadata,
    }


def _cache() -> dict[str, Any]:
    from firth.cache import cache_folder, entries

    found = entries()
    return {
        "cache": str(cache_folder()),
        "texts": len(found),
        "bytes": sum(entry.size for entry in found),
        **{
            str(entry.folder): {
                "of": entry.description.get("source", "(work under way)"),
                "bytes": entry.size,
            }
            for entry in found
        },
    }


def _shown(value: object) -> str:
    """A value for a reader: numbers with commas, lists with spaces, yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)
