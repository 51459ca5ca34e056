"""``firth info``: what a file of vectors holds, or what the cache keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from firth.cli.options import HEADER, JSON
from firth.cli.output import print_json, print_table, printable, width
from firth.errors import SettingError

FORMAT = typer.Option("--format", metavar="NAME", help="The format; else what it holds decides.")


def info(
    vectors: Annotated[
        Path | None,
        typer.Argument(metavar="VECTORS", help="A file or folder of vectors in any known format."),
    ] = None,
    format_: Annotated[str | None, FORMAT] = None,
    header: Annotated[bool | None, HEADER] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Show the cache of encoded texts instead.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """What a file of vectors holds: size, first words, the settings and scores of its run.

    The numbers are not read. A text without a header does not say how many rows it has: of a large one
    the number is estimated from the length of the first lines.

    $ firth info vectors.safetensors
    $ firth info --cache
    """
    if cache == (vectors is not None):
        raise SettingError("firth info takes either a file of vectors or --cache")
    facts = _cache() if vectors is None else _vectors(vectors, format_, header)
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


def _vectors(path: Path, format_: str | None, header: bool | None) -> dict[str, Any]:
    from firth.formats import Options, inspect

    form, found = inspect(path, format_, Options(header, errors="replace"))
    facts: dict[str, Any] = {
        "file": str(path),
        "format": form.name,
        "bytes": _size(path),
        "vectors": found.rows,
        "dim": found.dim,
        "dtype": found.dtype,
        "counts": "counts" in found.inside,
        "context": "context" in found.inside,
    }
    if not found.exact:
        facts["estimated"] = True  # the number of vectors, which this format does not say
    others = [part for part in found.inside if part not in ("counts", "context", "metadata")]
    if others:
        facts["also"] = others
    facts["first"] = list(found.first)
    # What is counted here is truer than what somebody noted: reduce() changes the dim of a run.
    return {**facts, **{name: value for name, value in found.metadata.items() if name not in facts}}


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


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
