"""What ``compare`` found: plain data, JSON by ``to_dict``, a page by ``to_html``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from firth.comparison.page import body, document

Pair = tuple[str, float]


@dataclass(frozen=True)
class Coverage:
    """What of one model's vocabulary the others have.

    Attributes:
        name: of the model.
        keys: in the model (among the rows searched).
        dim: numbers in a vector.
        shared: keys that all models have.
        only: keys that no other model has.
        tokens: the share of the model's text that the shared keys make up; ``None`` without counts.
        first_only: the most frequent of the keys that only it has.
    """

    name: str
    keys: int
    dim: int
    shared: int
    only: int
    tokens: float | None
    first_only: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {**self.__dict__, "tokens": _rounded(self.tokens), "first_only": list(self.first_only)}


@dataclass(frozen=True)
class Company:
    """The neighbours of one word in one model.

    Attributes:
        model: its name.
        row: of the word, 0 for the most frequent; ``None`` where it is no key of the model.
        count: how often it occurred, if the model says.
        neighbours: key and cosine, best first; empty where the word is missing. Where ``row`` is
            ``None`` they are those of a vector made of subwords.
        only: of these the keys that are neighbours in no other model that has the word.
        unknown: of these the keys that another model does not have at all.
        close: where the word is missing, keys that look like it.
    """

    model: str
    row: int | None
    count: int | None
    neighbours: tuple[Pair, ...]
    only: tuple[str, ...]
    unknown: tuple[str, ...]
    close: tuple[str, ...]

    @property
    def missing(self) -> bool:
        """Whether the model has no vector for the word."""
        return self.row is None and not self.neighbours

    def heading(self) -> str:
        """The model's name, and whether the word is missing there or made of subwords."""
        if self.row is not None:
            return self.model
        return f"{self.model} ({'missing' if self.missing else 'from subwords'})"

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        neighbours = [[key, _rounded(score)] for key, score in self.neighbours]
        lists = {name: list(getattr(self, name)) for name in ("only", "unknown", "close")}
        return {"model": self.model, "row": self.row, "count": self.count, "neighbours": neighbours, **lists}


@dataclass(frozen=True)
class WordReport:
    """One word in all models.

    Attributes:
        word: the word asked for.
        companies: one a model.
        shared: keys that are neighbours in every model that has the word, best mean place first.
        correlations: model, model, Spearman's correlation of the word's cosines with all shared words.
    """

    word: str
    companies: tuple[Company, ...]
    shared: tuple[str, ...]
    correlations: tuple[tuple[str, str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {
            "word": self.word,
            "models": [one.to_dict() for one in self.companies],
            "shared": list(self.shared),
            "correlations": [[a, b, _rounded(value)] for a, b, value in self.correlations],
        }


@dataclass(frozen=True)
class Shift:
    """How far the company of a word differs between two models.

    Attributes:
        word: the word.
        distance: one minus the cosine of its two lists of similarities, to the neighbours in either
            model: 0 for the same company.
        common: how many of its neighbours are the same.
        neighbours: the nearest in the first model, and in the second.
    """

    word: str
    distance: float
    common: int
    neighbours: tuple[tuple[str, ...], tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {
            "word": self.word,
            "distance": _rounded(self.distance),
            "common": self.common,
            "neighbours": [list(side) for side in self.neighbours],
        }


@dataclass(frozen=True)
class PairReport:
    """Two models as wholes.

    Attributes:
        models: their names.
        spearman: correlation of the cosines of pairs of shared words; NaN where there is none to tell.
        n_pairs: how many pairs of words it is over.
        words: how many words were judged for the two lists.
        k: neighbours of each word in each model that were looked at, among the shared words.
        overlap: the mean share of these that are the same.
        most: the words whose company differs most, the most first.
        least: those whose company differs least, the least first.
    """

    models: tuple[str, str]
    spearman: float
    n_pairs: int
    words: int
    k: int
    overlap: float
    most: tuple[Shift, ...]
    least: tuple[Shift, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {
            **self.__dict__,
            "models": list(self.models),
            "spearman": _rounded(self.spearman),
            "overlap": _rounded(self.overlap),
            "most": [one.to_dict() for one in self.most],
            "least": [one.to_dict() for one in self.least],
        }


@dataclass(frozen=True)
class ScoreRow:
    """One test file and one vocabulary: a score a model.

    Attributes:
        name: of the file.
        measure: ``"spearman"`` or ``"accuracy"``.
        vocabulary: ``"own"``, each model with all its words, or ``"shared"``, with those that all have:
            only there do the scores stand on the same pairs and questions.
        values: one a model; NaN where it knows no pair or question.
        found: pairs found or questions asked, one a model.
        total: pairs or questions in the file.
    """

    name: str
    measure: str
    vocabulary: str
    values: tuple[float, ...]
    found: tuple[int, ...]
    total: int

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        values = [_rounded(value) for value in self.values]
        return {**self.__dict__, "values": values, "found": list(self.found)}


@dataclass(frozen=True)
class Comparison:
    """Two or more models side by side; made by ``firth.compare``.

    Attributes:
        names: of the models.
        coverage: one a model.
        shared: how many keys all models have.
        words: one for each word asked for.
        pairs: one for each two models.
        scores: one for each file and vocabulary.
    """

    names: tuple[str, ...]
    coverage: tuple[Coverage, ...]
    shared: int
    words: tuple[WordReport, ...]
    pairs: tuple[PairReport, ...]
    scores: tuple[ScoreRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; NaN as ``None``."""
        return {
            "models": list(self.names),
            "shared": self.shared,
            "coverage": [one.to_dict() for one in self.coverage],
            "words": [one.to_dict() for one in self.words],
            "pairs": [one.to_dict() for one in self.pairs],
            "scores": [one.to_dict() for one in self.scores],
        }

    def to_html(self) -> str:
        """A whole page in one string: nothing is loaded from elsewhere, every key is escaped."""
        return document("Models compared: " + ", ".join(self.names), self._repr_html_())

    def _repr_html_(self) -> str:
        return body(self)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)
