"""``merge``: one set of vectors from several, over all their words."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.comparison.alignment import procrustes
from firth.comparison.shared import Float32s, check_models, names_of, shared_keys, unit_rows
from firth.errors import SettingError
from firth.reductions import blocks
from firth.vectors import Vectors

Float64s = NDArray[np.float64]
METHODS = ("concat", "svd", "average", "align")
MISSING = ("map", "zero", "drop")
RIDGE = 0.01  # of the mean variance of a dimension, added to it


def merge(
    *models: Vectors,
    method: str = "concat",
    weights: Sequence[float] | None = None,
    dim: int | None = None,
    missing: str = "map",
    names: Sequence[str] | None = None,
) -> Vectors:
    """One set of vectors from several: a meta-embedding.

    Each model's rows are brought to length one and multiplied by its weight; then, by ``method``:

    ``"concat"``
        they stand one after the other, so that a cosine is the mean of the models' cosines weighted by
        the squares of ``weights`` (CONC of Yin and Schütze 2016, "Learning Word Meta-Embeddings").
    ``"svd"``
        the concatenation is reduced to ``dim`` numbers by its singular value decomposition; the
        coordinates keep their scale, U S (SVD of Yin and Schütze, who take U alone; ``bench/two_models.py``
        shows both). That is also the best that linear maps back to all models can do with ``dim``
        numbers, which is what their 1TON learns by gradient.
    ``"average"``
        shorter vectors are filled with zeros, and the sum is divided by the weights (Coates and Bollegala
        2018, "Frustratingly Easy Meta-Embedding").
    ``"align"``
        all models are first turned into the space of the longest one by an orthogonal map learned on
        their shared words, then averaged (as Jawanpuria et al. 2020, "Learning Geometric Word
        Meta-Embeddings", who learn a scaling too).

    **Words that a model lacks**, by ``missing``:

    ``"map"``
        its vector is predicted from the models that have the word, by linear maps, each learned on the
        words that two models have, averaged over these models and brought to length one: MutualLearning
        of Yin and Schütze 2016, whose maps are found by gradient and here by ridge regression.
    ``"zero"``
        its part is zeros; averages are over the models that have the word.
    ``"drop"``
        only words that all models have are kept.

    Subwords and context tables are left out, the former with a warning.

    Rows come in the order of the first model, then the words that are new in the second, and so on, so
    row numbers of the first model stay.

    Args:
        models: two or more.
        method: one of the above.
        weights: one a model, positive; all 1 by default. A weaker model helps with a smaller weight.
        dim: numbers in a vector, for ``"svd"`` only; by default those of the longest model.
        missing: one of the above.
        names: of the models for the metadata; by default those of their files.

    Returns:
        new ``Vectors``; counts are added up where all models have some.

    Raises:
        SettingError: fewer than two models, two that are the same or have no word in common, no such
            method, weights or a ``dim`` that do not fit, too few shared words to learn a map.
    """
    check_models("merge", models)
    named = names_of(models, names, "merge")
    _check_settings(models, method, weights, dim, missing)
    factors = [1.0] * len(models) if weights is None else [float(one) for one in weights]
    for name, one in zip(named, models, strict=True):
        if one.subwords is not None:
            warnings.warn(
                f"merge(): the subwords of {name} are left out; the result has vectors for keys only",
                UserWarning,
                stacklevel=2,
            )
    keys = list(dict.fromkeys(key for one in models for key in one))
    parts, known = _parts(models, keys)
    _check_common(models, named, known, method, missing)
    everywhere = np.logical_and.reduce(known)
    if missing == "drop":
        keys = [keys[place] for place in np.flatnonzero(everywhere).tolist()]
        parts = [part[everywhere] for part in parts]
        known = [have[everywhere] for have in known]
    turns = _turns(parts, known) if method == "align" else [None] * len(models)
    if missing == "map":
        _predict(parts, known)
        known = [np.ones(len(keys), bool)] * len(models)
    matrix = _combined(method, parts, known, factors, dim, turns)
    metadata: dict[str, Any] = {
        "merge": {
            "method": method,
            "models": [
                {"name": name, "keys": len(one), "dim": one.vector_size, "weight": weight}
                for name, one, weight in zip(named, models, factors, strict=True)
            ],
            "missing": missing,
            "shared": int(everywhere.sum()),
        }
    }
    return Vectors(keys, matrix, counts=_counts(models, keys), metadata=metadata)


def _check_settings(
    models: Sequence[Vectors], method: str, weights: Sequence[float] | None, dim: int | None, missing: str
) -> None:
    if method not in METHODS:
        raise SettingError(f"merge(): method is {method!r}; one of {', '.join(METHODS)} is expected")
    if missing not in MISSING:
        raise SettingError(f"merge(): missing is {missing!r}; one of {', '.join(MISSING)} is expected")
    if weights is not None and len(weights) != len(models):
        raise SettingError(f"merge(): {len(models)} models have {len(weights)} weights; give one a model")
    if weights is not None and not all(math.isfinite(one) and one > 0 for one in weights):
        raise SettingError(f"merge(): weights are {list(weights)}; they must be above 0")
    dims = [one.vector_size for one in models]
    if dim is None:
        return
    if method != "svd":
        number = {"concat": sum(dims)}.get(method, max(dims))
        raise SettingError(
            f"merge(): dim is for method='svd'; {method!r} of {' and '.join(map(str, dims))} numbers gives "
            f"{number}, which reduce({dim}) can make smaller"
        )
    if not 1 <= dim <= sum(dims):
        raise SettingError(f"merge(): dim is {dim}; models of {dims} numbers give 1 to {sum(dims)}")


# -- a row a word from each model


def _parts(models: Sequence[Vectors], keys: Sequence[str]) -> tuple[list[Float32s], list[NDArray[np.bool_]]]:
    """For each model its rows for ``keys``, of length one or zeros, and which keys it has."""
    parts, known = [], []
    for one in models:
        table = one.key_to_index
        places = np.array([table.get(key, -1) for key in keys], np.int64)
        have = places >= 0
        part = np.zeros((len(keys), one.vector_size), np.float32)
        part[have] = unit_rows(one.vectors[places[have]])
        parts.append(part)
        known.append(have)
    return parts, known


def _check_common(
    models: Sequence[Vectors],
    named: Sequence[str],
    known: Sequence[NDArray[np.bool_]],
    method: str,
    missing: str,
) -> None:
    """Every two models share a word, two where a map is learned; all share one where others are dropped."""
    for a, b in combinations(range(len(models)), 2):
        common = int((known[a] & known[b]).sum())
        if common == 0:
            shared_keys("merge", (models[a], models[b]))  # has the sentence
        if common == 1 and (missing == "map" or method == "align"):
            raise SettingError(
                f"merge(): {named[a]} and {named[b]} have one word in common, too few to learn a map; "
                "missing='zero' or 'drop' with concat, svd or average needs none"
            )
    if missing == "drop" and not np.logical_and.reduce(known).any():
        raise SettingError(
            f"merge(): there is no word that all {len(models)} models have; missing='map' or 'zero' keeps all"
        )


def _predict(parts: Sequence[Float32s], known: Sequence[NDArray[np.bool_]]) -> None:
    """Fill in the rows that models lack, from those of the models that have the word."""
    for target, part in enumerate(parts):
        lacking = ~known[target]
        if not lacking.any():
            continue
        total = np.zeros((len(part), part.shape[1]))
        for source, have in enumerate(known):
            useful = lacking & have
            if useful.any():
                both = _learnable(parts, known, source, target)
                total[useful] += parts[source][useful] @ _ridge(parts[source][both], part[both])
        part[lacking] = unit_rows(total[lacking].astype(np.float32))


def _learnable(
    parts: Sequence[Float32s], known: Sequence[NDArray[np.bool_]], one: int, other: int
) -> NDArray[np.bool_]:
    """The words that two models have, with finite numbers in both."""
    both = known[one] & known[other]
    return np.asarray(both & np.isfinite(parts[one]).all(axis=1) & np.isfinite(parts[other]).all(axis=1))


def _ridge(x: Float32s, y: Float32s) -> Float64s:
    """(D1, D2): the linear map of the least ``|x w - y|^2 + penalty |w|^2``."""
    square, product = np.zeros((x.shape[1], x.shape[1])), np.zeros((x.shape[1], y.shape[1]))
    for part in blocks(x):
        a = x[part].astype(np.float64)
        square += a.T @ a
        product += a.T @ y[part]
    penalty = RIDGE * np.trace(square) / len(square)
    return np.linalg.solve(square + max(penalty, 1e-12) * np.eye(len(square)), product)


# -- the methods


def _turns(parts: Sequence[Float32s], known: Sequence[NDArray[np.bool_]]) -> list[Float64s | None]:
    """The map of each model into the space of the longest, ``None`` for that one itself."""
    longest = max(range(len(parts)), key=lambda place: parts[place].shape[1])
    turns: list[Float64s | None] = []
    for place, part in enumerate(parts):
        both = _learnable(parts, known, place, longest)
        turns.append(None if place == longest else procrustes(part[both], parts[longest][both]))
    return turns


def _combined(
    method: str,
    parts: Sequence[Float32s],
    known: Sequence[NDArray[np.bool_]],
    weights: Sequence[float],
    dim: int | None,
    turns: Sequence[Float64s | None],
) -> Float32s:
    if method == "concat":
        return np.hstack([part * np.float32(weight) for part, weight in zip(parts, weights, strict=True)])
    width = max(part.shape[1] for part in parts)
    if method == "svd":
        return _svd(parts, weights, width if dim is None else dim)
    total = np.zeros((len(parts[0]), width))
    shares = np.zeros((len(parts[0]), 1))
    for part, have, weight, turn in zip(parts, known, weights, turns, strict=True):
        turned = part if turn is None else part @ turn
        total[:, : turned.shape[1]] += weight * turned
        shares += weight * have[:, None]
    return (total / shares).astype(np.float32)


def _svd(parts: Sequence[Float32s], weights: Sequence[float], dim: int) -> Float32s:
    """U S of the concatenation, its first ``dim`` columns, without making the concatenation."""
    scaled = [weight * part for part, weight in zip(parts, weights, strict=True)]
    ends = np.cumsum([0, *(part.shape[1] for part in parts)])
    square = np.zeros((ends[-1], ends[-1]))
    pieces = blocks(scaled[0])
    for rows in pieces:
        whole = np.hstack([part[rows] for part in scaled]).astype(np.float64)
        square += whole.T @ whole
    axes = np.linalg.eigh(square)[1][:, ::-1][:, :dim]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(dim)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)  # the sign must not hang on the solver
    result = np.empty((len(parts[0]), dim), np.float32)
    for rows in pieces:
        result[rows] = np.hstack([part[rows] for part in scaled]) @ axes
    return result


def _counts(models: Sequence[Vectors], keys: Sequence[str]) -> NDArray[np.int64] | None:
    total = np.zeros(len(keys), np.int64)
    for one in models:
        if one.counts is None:
            return None
        table = one.key_to_index
        places = np.array([table.get(key, -1) for key in keys], np.int64)
        total += np.where(places >= 0, one.counts[places], 0)
    return total
