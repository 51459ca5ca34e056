"""What the verbs for several models share: which arguments are files, and that none is written over."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from firth.errors import SettingError, StorageError, did_you_mean

if TYPE_CHECKING:
    from firth.vectors import Vectors


def split(arguments: Sequence[str], what: str) -> tuple[list[Path], list[str]]:
    """The models at the beginning of ``arguments``, and the words after them.

    The first two are models. Those that follow are, as long as they name a file or a folder that holds a
    ``model.safetensors``, or end as files of vectors do; the first that is none begins the words.

    Raises:
        SettingError: there are not two.
    """
    from firth.formats import FORMATS

    endings = {suffix for form in FORMATS.values() for suffix in form.suffixes}
    endings |= {".txt", ".gz", ".bz2", ".xz", ".zst"}

    def is_model(name: str) -> bool:
        path = Path(name)
        there = path.is_file() or (path / "model.safetensors").is_file()
        return there or path.suffix.lower() in endings

    if len(arguments) < 2:
        raise SettingError(f"{what} needs two files of vectors or more, then words, got {len(arguments)}")
    first_word = next(
        (place for place, name in enumerate(arguments) if place > 1 and not is_model(name)), len(arguments)
    )
    return [Path(name) for name in arguments[:first_word]], list(arguments[first_word:])


def load_all(paths: Sequence[Path], what: str) -> list[Vectors]:
    """Every model, after a look at all the names.

    Raises:
        SettingError: a file is named twice.
        StorageError: one is missing; what is there under a name like it is offered.
    """
    from firth.vectors import Vectors

    for path in paths:
        if not path.exists():
            near = difflib.get_close_matches(path.name, _names_beside(path), n=2)
            offered = did_you_mean(str(path.with_name(name)) for name in near)
            raise StorageError(f"cannot read {path}: there is no such file{offered}")
    for one, other in combinations(paths, 2):
        if os.path.samefile(one, other):
            raise SettingError(f"{what}: {one} and {other} are the same file; name two different ones")
    return [Vectors.load(path) for path in paths]


def check_apart(output: Path, inputs: Sequence[Path], what: str) -> None:
    """Refuse to write over a file that is read, before anything is.

    Raises:
        SettingError: ``output`` is one of ``inputs``.
    """
    for path in inputs:
        if output.exists() and path.exists() and os.path.samefile(output, path):
            raise SettingError(f"{what}: {output} is one of the files that are read; name another")


def output_format(output: Path, inputs: Sequence[Path], name: str | None) -> str:
    """The name of the format for ``-o OUT``, checked before long work.

    Raises:
        SettingError: ``output`` is one of ``inputs``; no such format.
        StorageError: it cannot be written.
    """
    from firth.formats import check_target, format_for_writing

    check_apart(output, inputs, "-o")
    form = format_for_writing(output, name)
    check_target(output, form)
    return form.name


def _names_beside(path: Path) -> list[str]:
    try:
        return os.listdir(path.parent)
    except OSError:
        return []
