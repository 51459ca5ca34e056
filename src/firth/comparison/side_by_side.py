"""``compare``: what two or more models say of the same words."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from firth.comparison.differences import Table, cosine_agreement, differences
from firth.comparison.report import Company, Comparison, Coverage, PairReport, ScoreRow, WordReport
from firth.comparison.shared import Rows, check_models, names_of, shared_keys, unit_rows
from firth.errors import KeyNotFound, SettingError, SourceError
from firth.evaluate import analogies as answer
from firth.evaluate import spearman, word_pairs
from firth.search import products
from firth.vectors import Vectors

PATH = str | os.PathLike[str]
SHOWN_ONLY = 10  # keys that one model alone has, shown as examples


def compare(
    *models: Vectors,
    words: Sequence[str] = (),
    names: Sequence[str] | None = None,
    topn: int = 10,
    restrict: int | None = None,
    differ: int = 10,
    among: int | None = 10_000,
    pairs: Sequence[PATH] | PATH = (),
    analogies: Sequence[PATH] | PATH = (),
    seed: int = 0,
) -> Comparison:
    """Two or more models side by side, of any dimension, corpus and vocabulary.

    Nothing is aligned: only words and cosines within one model are compared.

    - For each word: its neighbours in each model, among all of its own words; which are shared and which
      stand in one list only; Spearman's correlation of its cosines with all shared words.
    - For each two models: Spearman's correlation of the cosines of up to 100,000 random pairs of shared
      words; the words whose company differs most and least. How far it differs is the local
      neighbourhood measure: take the 25 nearest shared words in either model, the word's cosines with
      these in the one and in the other, and one minus the cosine of the two lists. Source: Hamilton,
      Leskovec and Jurafsky 2016, "Cultural Shift or Linguistic Drift? Comparing Two Computational
      Measures of Semantic Change", the local neighborhood measure.
    - For each model: how much of it the others cover, and scores on test files, both with all words it
      has and with the shared ones only.

    Args:
        models: two or more.
        words: asked for one by one; a model may lack some, not all.
        names: of the models; by default those of their files.
        topn: neighbours shown of each word, 1 or more.
        restrict: use the first rows of each model only.
        differ: how many words to list that differ most, and least; 0 leaves that part out.
        among: judge the most frequent of the shared words only, since of rare words mostly chance is
            seen; ``None`` judges all.
        pairs: files of word pairs, see ``firth.evaluate.word_pairs``.
        analogies: files of questions, see ``firth.evaluate.analogies``.
        seed: of the random pairs of words.

    Raises:
        SettingError: fewer than two models, two that are the same, no word in common, or a number out
            of its range.
        KeyNotFound: a word is in none of the models.
        FormatError, SourceError, StorageError: a test file cannot be read, or no model knows its words.
    """
    check_models("compare", models)
    named = names_of(models, names, "compare")
    for name, value, least in (("topn", topn, 1), ("differ", differ, 0), ("among", among, 1)):
        if value is not None and value < least:
            raise SettingError(f"compare(): {name} is {value}; it must be {least} or more")
    if isinstance(words, str):
        raise SettingError(f"compare(): words is the one string {words!r}; a list is expected, [{words!r}]")
    sets = [_Model(name, model, restrict) for name, model in zip(named, models, strict=True)]
    for word in words:
        _check_somewhere(sets, word)
    keys, rows = shared_keys("compare", models, restrict)

    tables = [Table(unit_rows(model.vectors[row])) for model, row in zip(models, rows, strict=True)]
    whole = []
    for (a, one), (b, other) in combinations(enumerate(tables), 2):
        agreement, n_pairs = cosine_agreement(one, other, among, seed)
        found = differences(one, other, keys, differ, among)
        whole.append(PairReport((named[a], named[b]), agreement, n_pairs, *found))
    return Comparison(
        names=named,
        coverage=tuple(_coverage(sets, place, len(keys), row) for place, row in enumerate(rows)),
        shared=len(keys),
        words=tuple(_word(sets, word, topn, rows) for word in dict.fromkeys(words)),
        pairs=tuple(whole),
        scores=tuple(_scores(sets, keys, _paths(pairs), _paths(analogies), restrict)),
    )


class _Model(NamedTuple):
    """A model, its name, and how many of its rows are used."""

    name: str
    vectors: Vectors
    restrict: int | None

    def row(self, key: str) -> int:
        """The row of ``key`` among those used, or -1."""
        row = self.vectors.get_index(key, -1)
        return row if self.restrict is None or row < self.restrict else -1

    def has(self, key: str) -> bool:
        return self.row(key) >= 0

    def knows(self, word: str) -> bool:
        """Whether it has a vector for ``word``: its own, or one made of subwords."""
        return self.has(word) or (word not in self.vectors and self.vectors.subwords is not None)

    @property
    def keys(self) -> list[str]:
        return self.vectors.index_to_key[: self.restrict]


def _check_somewhere(sets: Sequence[_Model], word: str) -> None:
    if not any(one.knows(word) for one in sets):
        close = dict.fromkeys(key for one in sets for key in one.vectors.index_to_key.close(word))
        raise KeyNotFound(word, f"vocabulary of any of the {len(sets)} models", list(close)[:4])


def _coverage(sets: Sequence[_Model], place: int, shared: int, rows: Rows) -> Coverage:
    own = sets[place]
    others = [one for one in sets if one is not own]
    only = [key for key in own.keys if not any(one.has(key) for one in others)]
    counts, tokens = own.vectors.counts, None
    if counts is not None and (total := int(counts[: own.restrict].sum())):
        tokens = int(counts[rows].sum()) / total
    first = tuple(only[:SHOWN_ONLY])
    return Coverage(own.name, len(own.keys), own.vectors.vector_size, shared, len(only), tokens, first)


# -- one word


def _word(sets: Sequence[_Model], word: str, topn: int, rows: Sequence[Rows]) -> WordReport:
    having = [one for one in sets if one.knows(word)]
    lists = {one.name: one.vectors.most_similar_batch([word], topn, one.restrict)[0] for one in having}
    seen = [{key for key, _ in found} for found in lists.values()]
    shared = set.intersection(*seen)
    places = {
        key: sum(place for found in lists.values() for place, (other, _) in enumerate(found) if other == key)
        for key in shared
    }
    correlations = [
        (a.name, b.name, _correlation(a, b, word, rows[sets.index(a)], rows[sets.index(b)]))
        for a, b in combinations(having, 2)
    ]
    return WordReport(
        word,
        tuple(_company(one, sets, word, lists) for one in sets),
        tuple(sorted(shared, key=lambda key: (places[key], key))) if len(having) > 1 else (),
        tuple(correlations),
    )


def _company(
    own: _Model, sets: Sequence[_Model], word: str, lists: dict[str, list[tuple[str, float]]]
) -> Company:
    if own.name not in lists:
        close = tuple(own.vectors.index_to_key.close(word))
        return Company(own.name, None, None, (), (), (), close)
    row = own.row(word)
    counts = own.vectors.counts
    found = lists[own.name]
    others = {key for name, other in lists.items() if name != own.name for key, _ in other}
    only = tuple(key for key, _ in found if key not in others) if len(lists) > 1 else ()
    unknown = tuple(key for key, _ in found if not all(one.has(key) for one in sets))
    count = None if counts is None or row < 0 else int(counts[row])
    return Company(own.name, None if row < 0 else row, count, tuple(found), only, unknown, ())


def _correlation(a: _Model, b: _Model, word: str, rows_a: Rows, rows_b: Rows) -> float:
    """Of the word's cosines with the shared words, itself left out; NaN where there are fewer than three."""
    cosines = []
    for one, rows in ((a, rows_a), (b, rows_b)):
        others = rows[rows != one.row(word)]
        query = one.vectors.get_vector(word, norm=True)
        cosines.append(products(query[None], unit_rows(one.vectors.vectors[others]))[0])
    x, y = (one.astype(np.float64) for one in cosines)
    good = np.isfinite(x) & np.isfinite(y)
    return spearman(x[good], y[good]) if np.count_nonzero(good) > 2 else math.nan


# -- test files


def _scores(
    sets: Sequence[_Model],
    keys: Sequence[str],
    pairs: Sequence[PATH],
    questions: Sequence[PATH],
    restrict: int | None,
) -> list[ScoreRow]:
    if not pairs and not questions:
        return []
    found = []
    shared = [one.vectors.subset(keys) for one in sets]
    own = [one.vectors for one in sets]
    for path in (*pairs, *questions):
        measure = _pair_score if path in pairs else _question_score
        for vocabulary, tables, limit in (("own", own, restrict), ("shared", shared, None)):
            row = _score_row(path, measure, vocabulary, tables, limit)
            found += [] if row is None else [row]
    return found


_Measured = tuple[float, int, int]  # the score, what was found, what there is


def _score_row(
    path: PATH,
    measure: Callable[[Vectors, PATH, int | None], _Measured],
    vocabulary: str,
    tables: Sequence[Vectors],
    restrict: int | None,
) -> ScoreRow | None:
    """A score a model; ``None`` where the words shared by all give nothing to ask."""
    scores: list[_Measured] = []
    missed: SourceError | None = None
    for one in tables:
        try:
            scores.append(measure(one, path, restrict))
        except SourceError as error:  # none of its words is known
            missed = error
            scores.append((math.nan, 0, 0))
    values, counted, totals = zip(*scores, strict=True)
    if missed is not None and not any(counted):
        if vocabulary == "shared":
            return None
        raise missed
    name = "spearman" if measure is _pair_score else "accuracy"
    return ScoreRow(str(path), name, vocabulary, values, counted, max(totals))


def _pair_score(model: Vectors, path: PATH, restrict: int | None) -> _Measured:
    score = word_pairs(model, path, restrict=restrict)
    return score.spearman, score.found, score.total


def _question_score(model: Vectors, path: PATH, restrict: int | None) -> _Measured:
    score = answer(model, path, restrict=restrict)
    return score.accuracy, score.overall.total, score.overall.total + score.overall.skipped


def _paths(paths: Sequence[PATH] | PATH) -> list[PATH]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
