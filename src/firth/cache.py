"""The folder in which encoded corpora are kept between runs.

Below it stands ``corpora/``: one folder for each encoded text, named by a hash of all that decides
its content, and ``*.tmp`` folders of work under way or of text that can only be read once.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from firth.errors import StorageError
from firth.files import remove_tree, storage_error

ENVIRONMENT = "FIRTH_CACHE"
DESCRIPTION = "corpus.json"

_STALE_SECONDS = 7 * 24 * 3600


class Entry(NamedTuple):
    """One folder of the cache: an encoded text, or (``description`` is empty) work under way."""

    folder: Path
    size: int  # bytes
    description: Mapping[str, Any]


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Where encoded texts are kept: ``cache``, else ``$FIRTH_CACHE``, else the user's cache folder.

    The last is ``$XDG_CACHE_HOME/firth`` or ``~/.cache/firth``, on macOS ``~/Library/Caches/firth``,
    on Windows ``%LOCALAPPDATA%\\firth\\cache``. Nothing is created.
    """
    if cache is None:
        cache = os.environ.get(ENVIRONMENT) or None
    if cache is not None:
        return Path(cache).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "firth" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "firth"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firth"


def corpora_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of encoded texts below ``cache_folder(cache)``."""
    return cache_folder(cache) / "corpora"


def entries(cache: str | os.PathLike[str] | None = None) -> list[Entry]:
    """What the cache holds, in the order of the folders' names; empty where there is none.

    Raises:
        StorageError: it is there and cannot be read.
    """
    home = corpora_folder(cache)
    if not home.is_dir():
        return []
    try:
        return [_entry(folder) for folder in sorted(home.iterdir()) if folder.is_dir()]
    except OSError as error:
        raise storage_error(error, home, "read") from error


def clear_cache(cache: str | os.PathLike[str] | None = None) -> int:
    """Remove all encoded texts of the cache; returns the bytes freed.

    A run that reads one goes on: an open file stays until it is closed (not so on Windows).

    Raises:
        StorageError: the cache cannot be read.
    """
    found = entries(cache)
    for entry in found:
        remove_tree(entry.folder)
    return sum(entry.size for entry in found if not entry.folder.exists())


def new_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """A new ``*.tmp`` folder of the cache; old ones that nobody changed for a week are removed.

    Raises:
        StorageError: it cannot be created; names the ways to move the cache.
    """
    home = corpora_folder(cache)
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_stale(home)
        return Path(tempfile.mkdtemp(suffix=".tmp", dir=home))
    except OSError as error:
        sentence = storage_error(error, home, "use the cache folder")
        raise StorageError(f"{sentence}; name another with --cache, cache= or {ENVIRONMENT}") from error


def _remove_stale(home: Path) -> None:
    for folder in home.glob("*.tmp"):
        try:
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
        except OSError:
            continue  # another process has just removed it
        if time.time() - newest > _STALE_SECONDS:
            remove_tree(folder)


def _entry(folder: Path) -> Entry:
    size = 0
    for path in folder.iterdir():
        try:
            size += path.stat().st_size
        except OSError:
            continue  # removed meanwhile
    return Entry(folder, size, {} if folder.suffix == ".tmp" else read_description(folder))


def read_description(folder: Path) -> dict[str, Any]:
    """The JSON object beside the arrays of an encoded text; empty where missing or damaged."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}
