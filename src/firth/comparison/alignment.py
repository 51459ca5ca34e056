"""``align``: one model turned into the space of another by an orthogonal map, learned on anchor words."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.comparison.shared import Float32s, Rows, check_models, shared_keys, unit_rows
from firth.errors import FormatError, KeyNotFound, SettingError, SourceError, StorageError
from firth.files import storage_error
from firth.reductions import blocks
from firth.subwords import RowTable, from_settings
from firth.vectors import Vectors

Float64s = NDArray[np.float64]
Anchor = str | tuple[str, str]
HELD_OUT = 0.1  # of the anchors
MOST_HELD_OUT = 2_000


@dataclass(frozen=True)
class Fit:
    """How near the anchors of one model lie to those of the other.

    Attributes:
        cosine: the mean cosine of an anchor's two vectors.
        precision_at_1: the share of anchors whose nearest word of the other model is their own partner.
        n_anchors: over how many.
    """

    cosine: float
    precision_at_1: float
    n_anchors: int

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {
            "cosine": round(self.cosine, 6),
            "precision_at_1": round(self.precision_at_1, 6),
            "n_anchors": self.n_anchors,
        }


@dataclass(frozen=True)
class Alignment:
    """One model in the space of another; made by ``firth.align``.

    Attributes:
        vectors: the first model, mapped; its keys, counts and order.
        map: (D1, D2) float64; where D1 <= D2 its rows are orthonormal, else its columns.
        centres: what was subtracted before and added after the map, (D1,) and (D2,) float64, or ``None``.
        n_anchors: words that the map was learned on.
        before: the fit of held-out anchors without the map (the shorter vectors filled with zeros);
            ``None`` where none was held out.
        after: the same with it.
    """

    vectors: Vectors
    map: Float64s
    centres: tuple[Float64s, Float64s] | None
    n_anchors: int
    before: Fit | None
    after: Fit | None

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON: all but the vectors and the map."""
        return {
            "n_anchors": self.n_anchors,
            "dims": list(self.map.shape),
            "centred": self.centres is not None,
            "before": None if self.before is None else self.before.to_dict(),
            "after": None if self.after is None else self.after.to_dict(),
        }


def align(
    source: Vectors,
    target: Vectors,
    *,
    anchors: Sequence[Anchor] | None = None,
    centre: bool = False,
    normalize: bool = True,
    held_out: float = HELD_OUT,
    restrict: int | None = None,
    seed: int = 0,
) -> Alignment:
    """Turn ``source`` into the space of ``target``, so that cosines between the two mean something.

    The map is the orthogonal W that brings the anchors' rows X of ``source`` nearest to their rows Y of
    ``target``, the least |X W - Y|: with the singular value decomposition X'Y = U S V', W = U V'
    (Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem"). All lengths and
    cosines within ``source`` stay as they are, if its dimension is not the greater one and ``centre`` is
    off. For models of different times see Hamilton et al. 2016, "Diachronic Word Embeddings Reveal
    Statistical Laws of Semantic Change"; of different languages Xing et al. 2015, "Normalized Word
    Embedding and Orthogonal Transform for Bilingual Word Translation".

    **Different dimensions.** The solution is that of the shorter vectors filled with zeros: W has
    orthonormal rows where ``source`` is the shorter (it fits whole into the longer space), and orthonormal
    columns where it is the longer (it is projected, and its own cosines change).

    Args:
        source: what is mapped.
        target: whose space it is mapped into; stays as it is.
        anchors: words that mean the same in both, or pairs ``(word of source, word of target)``; all
            words that both have by default.
        centre: subtract the mean of the anchors on both sides before learning, and map by
            ``(x - mean of source) W + mean of target`` (Artetxe et al. 2016, "Learning principled
            bilingual mappings of word embeddings while preserving monolingual invariance"). With
            ``normalize``, x is brought to length one first.
        normalize: learn from vectors of length one, so that each anchor counts the same (Xing et al.).
        held_out: share of the anchors that the map is not learned on and the fit is measured on, at most
            2,000 of them; 0 measures nothing. Drawn by ``seed``.
        restrict: take as anchors only words among the first rows of both.
        seed: of the choice of the held-out anchors.

    Returns:
        the mapped vectors, the map and the fit. Subwords are mapped too, except with ``centre``. For
        ``precision_at_1`` all words of ``target`` are looked at, or the first ``restrict``.

    Raises:
        SettingError: the same model twice, no word in common, too few anchors, a number out of range.
        KeyNotFound: a given anchor is in neither model or only one.
    """
    check_models("align", (source, target))
    if not 0 <= held_out < 1:
        raise SettingError(f"align(): held_out is {held_out}; a share from 0 to below 1 is expected")
    rows, partners = _anchor_rows(source, target, anchors, restrict)
    x, y = source.vectors[rows], target.vectors[partners]
    good = _usable(x) & _usable(y)
    rows, partners, x, y = rows[good], partners[good], x[good], y[good]
    n_held = min(round(held_out * len(x)), MOST_HELD_OUT)
    if len(x) - n_held < 2:
        raise SettingError(
            f"align(): {len(x)} anchors with vectors other than zero are too few: 2 are needed to learn from "
            f"and {n_held} are held out; give more anchors"
        )
    order = np.random.default_rng(seed).permutation(len(x))
    held, learned = np.sort(order[:n_held]), np.sort(order[n_held:])
    if len(learned) < min(source.vector_size, target.vector_size):
        warnings.warn(
            f"align(): {len(learned)} anchors do not determine a map between {source.vector_size} and "
            f"{target.vector_size} numbers; words unlike the anchors may land anywhere",
            UserWarning,
            stacklevel=2,
        )

    if normalize:
        x, y = unit_rows(x), unit_rows(y)
    centres = None
    if centre:
        centres = x[learned].mean(axis=0, dtype=np.float64), y[learned].mean(axis=0, dtype=np.float64)
    turn = procrustes(x[learned], y[learned], centres)
    matrix = _mapped(source.vectors, turn, centres, normalize and centre)
    before = after = None
    if n_held:
        wanted = partners[held]
        before = _fit(_padded(source.vectors[rows[held]], target.vector_size), target, wanted, restrict)
        after = _fit(matrix[rows[held]], target, wanted, restrict)
    vectors = _result(source, target, matrix, len(learned), turn if centres is None else None)
    return Alignment(vectors, turn, centres, len(learned), before, after)


def procrustes(x: Float32s, y: Float32s, centres: tuple[Float64s, Float64s] | None = None) -> Float64s:
    """The orthogonal or semi-orthogonal W, (D1, D2) float64, of the least |X W - Y|.

    Args:
        x: (N, D1).
        y: (N, D2).
        centres: (D1,) and (D2,), subtracted first.
    """
    product = np.zeros((x.shape[1], y.shape[1]))
    for part in blocks(x):
        a, b = x[part].astype(np.float64), y[part].astype(np.float64)
        if centres is not None:
            a, b = a - centres[0], b - centres[1]
        product += a.T @ b
    left, _, right = np.linalg.svd(product, full_matrices=False)
    result: Float64s = left @ right
    return result


def read_anchors(path: str | os.PathLike[str]) -> list[Anchor]:
    """Anchors from a file: a word a line, or two separated by a tab or, without a tab, by white space.

    Empty lines are passed over; the dictionaries of MUSE have this form.

    Raises:
        FormatError: a line has more than two words, or is no UTF-8.
        SourceError: there is nothing in it.
        StorageError: it cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        raise StorageError(f"cannot read {place}: it is a folder, a file of anchor words is needed")
    try:
        data = place.read_bytes()
    except OSError as error:
        raise storage_error(error, place, "read") from error
    anchors: list[Anchor] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{place}, line {number}: byte {error.start} of the line is no UTF-8"
            ) from error
        words = [word.strip() for word in text.split("\t")] if "\t" in text else text.split()
        if len(words) > 2 or (words and not all(words)):
            raise FormatError(f"{place}, line {number}: {text[:60]!r} is not one anchor word or two")
        if words:
            anchors.append((words[0], words[-1]))
    if not anchors:
        raise SourceError(f"{place}: there are no anchor words in it")
    return anchors


def _anchor_rows(
    source: Vectors, target: Vectors, anchors: Sequence[Anchor] | None, restrict: int | None
) -> tuple[Rows, Rows]:
    """Row in ``source`` and in ``target`` of each anchor."""
    if anchors is None:
        _, (rows, partners) = shared_keys("align", (source, target), restrict)
        return rows, partners
    if isinstance(anchors, str):
        raise SettingError(f"align(): anchors is the one string {anchors!r}; a list of words is expected")
    found = dict.fromkeys((one, one) if isinstance(one, str) else one for one in anchors)
    pairs = [(source.get_index(a), target.get_index(b)) for a, b in _known(found, source, target)]
    limit = max(len(source), len(target)) if restrict is None else restrict
    kept = [pair for pair in pairs if max(pair) < limit]
    if not kept:
        raise SettingError(
            f"align(): none of the {len(found)} anchors is among the first {limit:,} rows of both"
        )
    rows, partners = np.array(kept, np.int64).T
    return rows, partners


def _known(found: dict[tuple[str, str], None], source: Vectors, target: Vectors) -> list[tuple[str, str]]:
    """The anchors that both models have; those that are missing are counted in a warning."""
    known = [(a, b) for a, b in found if a in source and b in target]
    if not known:
        a, b = next(iter(found))
        side, word = (source, a) if a not in source else (target, b)
        raise KeyNotFound(
            word, f"model, as are all {len(found)} anchors; {side!r}", side.index_to_key.close(word)
        )
    if len(known) < len(found):
        a, b = next(pair for pair in found if pair[0] not in source or pair[1] not in target)
        warnings.warn(
            f"align(): {len(found) - len(known)} of {len(found)} anchors are not in both models (first "
            f"{a!r} - {b!r}) and are left out",
            UserWarning,
            stacklevel=4,
        )
    return known


def _usable(matrix: Float32s) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(matrix).all(axis=1) & matrix.any(axis=1))


def _mapped(
    matrix: Float32s, turn: Float64s, centres: tuple[Float64s, Float64s] | None, unit: bool
) -> Float32s:
    result = np.empty((len(matrix), turn.shape[1]), np.float32)
    for rows in blocks(matrix):
        part = unit_rows(matrix[rows]) if unit else matrix[rows]
        result[rows] = part @ turn if centres is None else (part - centres[0]) @ turn + centres[1]
    return result


def _padded(matrix: Float32s, dim: int) -> Float32s:
    """Cut or filled with zeros to ``dim`` numbers: what the spaces have in common without a map."""
    result = np.zeros((len(matrix), dim), np.float32)
    width = min(dim, matrix.shape[1])
    result[:, :width] = matrix[:, :width]
    return result


def _fit(matrix: Float32s, target: Vectors, partners: Rows, restrict: int | None) -> Fit:
    last = len(target) if restrict is None else min(restrict, len(target))
    queries, wanted = unit_rows(matrix), unit_rows(target.vectors[partners])
    cosines = np.einsum("nd,nd->n", queries, wanted, dtype=np.float64)
    nearest, _ = target.nearest(matrix, topn=1, restrict_vocab=last)
    return Fit(float(cosines.mean()), float(np.mean(nearest[:, 0] == partners)), len(partners))


class _TurnedRows:
    """A table of n-gram rows, each mapped when it is fetched.

    A word's vector is the mean of its rows, so that mapping them maps the word.
    """

    def __init__(self, table: RowTable, turn: Float64s) -> None:
        self._table, self._turn = table, turn

    @property
    def shape(self) -> tuple[int, int]:
        return self._table.shape[0], self._turn.shape[1]

    def take(self, rows: Rows) -> Float32s:
        return (self._table.take(rows) @ self._turn).astype(np.float32)


def _result(
    source: Vectors, target: Vectors, matrix: Float32s, n_anchors: int, linear: Float64s | None
) -> Vectors:
    """``linear``: the map, where it is one and can be applied to the rows of n-grams too."""
    where = target.source.name if target.source else f"{len(target):,} vectors of {target.vector_size}"
    metadata = source.metadata
    metadata.pop("nested", None)  # the numbers are no longer ordered
    note = f"align: turned into the space of {where} by {n_anchors:,} anchors"
    subwords = source.subwords
    if subwords is not None and linear is None:
        subwords, note = None, f"{note}; subwords left out"
    elif subwords is not None and linear is not None:
        kept = getattr(subwords, "kept", None)
        subwords = from_settings(subwords.settings(), _TurnedRows(subwords.table, linear), kept)
    metadata["changes"] = [*metadata.get("changes", []), note]
    return Vectors(source.index_to_key, matrix, counts=source.counts, metadata=metadata, subwords=subwords)
