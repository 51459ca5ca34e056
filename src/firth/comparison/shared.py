"""What comparing, aligning and merging need: the words that several models share, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from firth.errors import SettingError
from firth.search import inverse, lengths
from firth.vectors import Vectors

Float32s = NDArray[np.float32]
Rows = NDArray[np.int64]


def check_models(what: str, models: Sequence[Vectors]) -> None:
    """At least two, none without keys, and no two the same.

    Raises:
        SettingError: otherwise; the sentence says which.
    """
    if len(models) < 2:
        raise SettingError(f"{what}() needs two models or more, got {len(models)}")
    for place, one in enumerate(models, 1):
        if not len(one):
            raise SettingError(
                f"{what}(): model {place} has subwords and no keys; vectors_for_all(words) gives it some"
            )
    for (a, one), (b, other) in combinations(enumerate(models, 1), 2):
        same_file = one.source is not None and other.source is not None and one.source == other.source
        if one is other or (same_file and one.vectors.shape == other.vectors.shape):
            name = f" ({one.source})" if same_file else ""
            raise SettingError(
                f"{what}(): model {a} and model {b} are the same{name}; give two different ones"
            )


def names_of(models: Sequence[Vectors], names: Sequence[str] | None, what: str) -> tuple[str, ...]:
    """A name for each model: as given, else of its file, else ``model 1``; all different.

    Raises:
        SettingError: another number of names, or two that are equal.
    """
    if names is not None:
        if len(names) != len(models) or len(set(names)) != len(names):
            raise SettingError(
                f"{what}(): names are {list(names)}; {len(models)} different ones are expected, one a model"
            )
        return tuple(names)
    plain = [
        f"model {place}" if one.source is None else one.source.name for place, one in enumerate(models, 1)
    ]
    longer = [
        name if plain.count(name) == 1 or one.source is None else f"{one.source.parent.name}/{name}"
        for name, one in zip(plain, models, strict=True)
    ]
    # Folders may have the same name too.
    return tuple(
        name if longer.count(name) == 1 else f"{place}: {name}" for place, name in enumerate(longer, 1)
    )


def shared_keys(
    what: str, models: Sequence[Vectors], restrict: int | None = None
) -> tuple[list[str], list[Rows]]:
    """The keys that all models have, most frequent first, and their rows in each.

    Frequent is what stands early: keys are sorted by the mean of their row numbers, equal ones by the
    first model's.

    Args:
        what: the function's name, for messages.
        models: two or more.
        restrict: look at the first rows of each only.

    Raises:
        SettingError: there are none, or ``restrict`` is below 1.
    """
    if restrict is not None and restrict < 1:
        raise SettingError(f"{what}(): restrict is {restrict}; it is a number of rows, 1 or more")
    tables = [one.key_to_index for one in models]
    limits = [len(one) if restrict is None else min(restrict, len(one)) for one in models]
    keys = [
        key
        for key in models[0].index_to_key[: limits[0]]
        if all(0 <= table.get(key, -1) < limit for table, limit in zip(tables, limits, strict=True))
    ]
    if not keys:
        first = " and ".join(
            f"({', '.join(map(repr, one.index_to_key[:3]))}, ...)" for one in (models[0], models[-1])
        )
        raise SettingError(
            f"{what}(): the {len(models)} models have no word in common{_within(restrict)}: their keys begin "
            f"{first}; are they of one language, in the same letter case and written the same way?"
        )
    rows = [np.array([table[key] for key in keys], np.int64) for table in tables]
    order = np.argsort(np.sum(rows, axis=0), kind="stable")
    return [keys[place] for place in order.tolist()], [one[order] for one in rows]


def _within(restrict: int | None) -> str:
    return "" if restrict is None else f" among their first {restrict:,}"


def unit_rows(matrix: Float32s) -> Float32s:
    """Rows of length one, (N, D) float32, new; rows of zeros stay."""
    result: Float32s = matrix * inverse(lengths(matrix))[:, None]
    return result
