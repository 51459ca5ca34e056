"""How good vectors are: word pairs against people's judgements, and analogies.

The figures of different evaluators are not comparable, so the conventions are named and fixed:

- word pairs: as gensim's ``evaluate_word_pairs`` counts them;
- analogies, ``convention="gensim"``: as ``evaluate_word_analogies`` (case variants of the three
  words are no answers, but take up places among the five neighbours that are looked at);
- analogies, ``convention="word2vec"``: as ``compute-accuracy.c`` (only the three rows are left
  out; an answer needs a positive cosine; the 30,000 most frequent unless said otherwise).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError, SettingError, SourceError, StorageError
from firth.files import storage_error
from firth.search import best_answers, inverse, lengths, rank_with_ties
from firth.vectors import Vectors

PATH = str | os.PathLike[str]
Pair = tuple[str, str, float]
METHODS = ("3cosadd", "3cosmul")
CONVENTIONS = ("gensim", "word2vec")
RESTRICT = {"gensim": 300_000, "word2vec": 30_000}


@dataclass(frozen=True)
class PairScore:
    """Agreement with a file of word pairs.

    Attributes:
        name: the file.
        spearman: rank correlation; NaN where all values are equal.
        pearson: linear correlation; likewise.
        found: pairs of which both words are known.
        total: pairs in the file.
        oov_ratio: the share of pairs with an unknown word, in percent, as gensim returns it.
    """

    name: str
    spearman: float
    pearson: float
    found: int
    total: int
    oov_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON; NaN as ``None``."""
        return {
            "name": self.name,
            "spearman": _finite(self.spearman),
            "pearson": _finite(self.pearson),
            "found": self.found,
            "total": self.total,
            "oov_ratio": self.oov_ratio,
        }


@dataclass(frozen=True)
class Section:
    """One section of an analogy file: questions answered rightly, asked, and left out for unknown words."""

    name: str
    correct: int
    total: int
    skipped: int

    @property
    def accuracy(self) -> float:
        """``correct / total``; 0 where nothing could be asked, as in gensim."""
        return self.correct / self.total if self.total else 0.0

    @property
    def syntactic(self) -> bool:
        """Whether it is about grammar: the names of those sections begin with ``gram``."""
        return self.name.startswith("gram")

    def to_dict(self) -> dict[str, Any]:
        """The fields and the accuracy, for JSON."""
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class AnalogyScore:
    """Answers to a file of analogies, by section."""

    name: str
    method: str
    convention: str
    restrict: int
    sections: tuple[Section, ...]

    @property
    def overall(self) -> Section:
        """All sections together."""
        return _sum("total", self.sections)

    @property
    def semantic(self) -> Section:
        """The sections about meaning."""
        return _sum("semantic", [section for section in self.sections if not section.syntactic])

    @property
    def syntactic(self) -> Section:
        """The sections about grammar."""
        return _sum("syntactic", [section for section in self.sections if section.syntactic])

    @property
    def accuracy(self) -> float:
        """The share of all questions asked that were answered rightly."""
        return self.overall.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "name": self.name,
            "method": self.method,
            "convention": self.convention,
            "restrict": self.restrict,
            "overall": self.overall.to_dict(),
            "semantic": self.semantic.to_dict(),
            "syntactic": self.syntactic.to_dict(),
            "sections": [section.to_dict() for section in self.sections],
        }


@dataclass(frozen=True)
class Report:
    """The scores of several files."""

    pairs: tuple[PairScore, ...]
    analogies: tuple[AnalogyScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "pairs": [score.to_dict() for score in self.pairs],
            "analogies": [score.to_dict() for score in self.analogies],
        }

    def __str__(self) -> str:
        lines = []
        if self.pairs:
            lines.append(f"{'word pairs':<32} {'spearman':>9} {'pearson':>9} {'found':>13}")
            lines += [
                f"{Path(score.name).name:<32} {score.spearman:9.4f} {score.pearson:9.4f} "
                f"{f'{score.found:,} / {score.total:,}':>13}"
                for score in self.pairs
            ]
        for score in self.analogies:
            lines += [""] * bool(lines)
            name = f"analogies: {Path(score.name).name}, {score.method}"
            lines.append(f"{name:<46} {'right':>7} {'asked':>7} {'skipped':>8} {'accuracy':>9}")
            lines += [
                f"{part.name:<46} {part.correct:7,} {part.total:7,} {part.skipped:8,} {part.accuracy:9.4f}"
                for part in (*score.sections, score.semantic, score.syntactic, score.overall)
            ]
        return "\n".join(lines)


def evaluate(
    vectors: Vectors,
    *,
    pairs: Sequence[PATH] | PATH = (),
    analogies: Sequence[PATH] | PATH = (),
    restrict: int | None = None,
    method: str = "3cosadd",
    convention: str = "gensim",
) -> Report:
    """Score vectors on any number of files; see ``word_pairs`` and ``analogies`` for the arguments.

    Returns:
        a report that prints as a table and has ``to_dict()`` for JSON.

    Raises:
        SettingError: no file is given, or a setting is out of its range.
        FormatError, SourceError, StorageError: as ``word_pairs`` and ``analogies``.
    """
    if not _paths(pairs) and not _paths(analogies):
        raise SettingError("evaluate(): neither a file of word pairs nor one of analogies is given")
    scores = tuple(word_pairs(vectors, path, restrict=restrict) for path in _paths(pairs))
    answers = tuple(
        _answer(vectors, path, restrict=restrict, method=method, convention=convention)
        for path in _paths(analogies)
    )
    return Report(scores, answers)


def word_pairs(
    vectors: Vectors,
    path: PATH,
    *,
    restrict: int | None = None,
    case_insensitive: bool = True,
    dummy4unknown: bool = False,
) -> PairScore:
    """Correlate cosines with people's judgements of pairs.

    Args:
        vectors: what to score.
        path: lines ``word word number``, separated by tabs, commas or white space; ``#`` begins a
            comment; the first line may be a heading.
        restrict: use the first rows only; all by default.
        case_insensitive: compare words in upper case; of case variants the first row counts.
        dummy4unknown: let a pair with an unknown word count as cosine 0, instead of leaving it out.

    Raises:
        SettingError: ``restrict`` is below 1.
        FormatError: a line is not two words and a number.
        SourceError: no pair is known.
        StorageError: the file cannot be read.
    """
    _check_restrict(restrict)
    pairs = read_pairs(path)
    return score_pairs(vectors, path, pairs, restrict, case_insensitive, dummy4unknown)


def score_pairs(
    vectors: Vectors,
    path: PATH,
    pairs: Sequence[Pair],
    restrict: int | None = None,
    case_insensitive: bool = True,
    dummy4unknown: bool = False,
) -> PairScore:
    """``word_pairs`` for pairs that were read before from ``path``.

    Raises:
        SourceError: no pair is known.
    """
    fold: Callable[[str], str] = str.upper if case_insensitive else str
    rows = _rows_of(vectors, restrict, fold)
    gold, cosines = [], []
    known = 0
    for a, b, score in pairs:
        row_a, row_b = rows.get(fold(a)), rows.get(fold(b))
        if row_a is not None and row_b is not None:
            known += 1
            cosines.append(vectors.similarity(row_a, row_b))
        elif dummy4unknown:
            cosines.append(0.0)
        else:
            continue
        gold.append(score)
    total = len(pairs)
    if not gold:
        raise SourceError(
            f"word_pairs(): {path}: none of its {total:,} pairs has both words among {len(rows):,} keys"
        )
    x, y = np.array(gold), np.array(cosines)
    return PairScore(str(path), spearman(x, y), pearson(x, y), known, total, 100 * (total - known) / total)


def read_pairs(path: PATH) -> list[Pair]:
    """The pairs of a file (see ``word_pairs``): word, word, number.

    Raises:
        FormatError: a line is not two words and a number.
        SourceError: there are no pairs.
        StorageError: the file cannot be read.
    """
    pairs = list(_read_pairs(Path(path)))
    if not pairs:
        raise SourceError(f"word_pairs(): {path}: there are no pairs in it")
    return pairs


def _read_pairs(path: Path) -> Iterator[Pair]:
    heading = True
    for number, line in _lines(path):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        pieces = [
            piece.strip() for piece in text.split("\t" if "\t" in text else "," if "," in text else None)
        ]
        try:
            a, b, score = pieces[0], pieces[1], float(pieces[2])
            good = len(pieces) == 3 and bool(a) and bool(b) and math.isfinite(score)
        except (ValueError, IndexError):
            good = False
            if heading and len(pieces) >= 3:
                heading = False
                continue
        heading = False
        if not good:
            raise FormatError(f"{path}, line {number}: {text[:60]!r} is not two words and a number")
        yield a, b, score


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two (N,) arrays; equal values share the mean of their ranks."""
    return pearson(rank_with_ties(x), rank_with_ties(y))


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson's correlation of two (N,) arrays; NaN where one of them is constant."""
    a, b = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def analogies(
    vectors: Vectors,
    path: PATH,
    *,
    restrict: int | None = None,
    method: str = "3cosadd",
    convention: str = "gensim",
) -> AnalogyScore:
    """Answer questions ``a is to b as c is to ?``.

    Args:
        vectors: what to score.
        path: lines of four words; a line ``: name`` begins a section.
        restrict: ask and search among the first rows only; by default 300,000 (gensim) or 30,000 (word2vec).
        method: ``"3cosadd"`` or ``"3cosmul"``.
        convention: ``"gensim"`` or ``"word2vec"``, see the head of this module.

    Returns:
        the counts of each section. Questions with an unknown word are left out and counted.

    Raises:
        SettingError: no such method or convention, or ``restrict`` is below 1.
        FormatError: a line is not four words.
        SourceError: there are no questions, or all hold unknown words.
        StorageError: the file cannot be read.
    """
    if method not in METHODS:
        raise SettingError(f"analogies(): method is {method!r}; one of {', '.join(METHODS)} is expected")
    if convention not in CONVENTIONS:
        raise SettingError(
            f"analogies(): convention is {convention!r}; one of {', '.join(CONVENTIONS)} is expected"
        )
    place = Path(path)
    most = min(RESTRICT[convention] if restrict is None else restrict, len(vectors))
    # The C tool raises the case of ASCII letters only.
    fold: Callable[[str], str] = str.upper if convention == "gensim" else _ascii_upper
    rows = _rows_of(vectors, most, fold)

    names, asked = _read_questions(place)
    if not asked:
        raise SourceError(f"analogies(): {place}: there are no questions in it")
    known, sections = [], []
    for section, words in asked:
        question = [rows.get(fold(word), -1) for word in words]
        if min(question) >= 0:
            known.append(question)
            sections.append(section)
    if not known:
        raise SourceError(
            f"analogies(): {place}: no question of {len(asked):,} has all its words among {len(rows):,} keys"
        )
    questions = np.array(known, np.int64)
    variants = _variants(vectors, most, fold) if convention == "gensim" else {}
    matrix = vectors.vectors[:most]
    answers = best_answers(
        matrix,
        inverse(lengths(matrix)),
        questions[:, :3],
        multiply=method == "3cosmul",
        positive=convention == "word2vec",
        variants=variants,
        look=5 if convention == "gensim" else None,
    )
    # An answer counts by its name: any case variant of the expected word is right.
    expected = [fold(vectors.index_to_key[int(row)]) for row in questions[:, 3]]
    right = [
        row >= 0 and fold(vectors.index_to_key[row]) == name
        for row, name in zip(answers.tolist(), expected, strict=True)
    ]
    return AnalogyScore(str(place), method, convention, most, tuple(_count(names, asked, sections, right)))


# The keyword ``analogies`` of ``evaluate`` hides the function of that name.
_answer = analogies


def _count(
    names: list[str], asked: list[tuple[int, list[str]]], sections: list[int], right: list[bool]
) -> Iterator[Section]:
    size = len(names)
    everything = np.bincount([section for section, _ in asked], minlength=size)
    total = np.bincount(sections, minlength=size)
    correct = np.bincount(sections, weights=right, minlength=size).astype(int)
    for place, name in enumerate(names):
        yield Section(name, int(correct[place]), int(total[place]), int(everything[place] - total[place]))


def _read_questions(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the sections, and for each question its section and four words."""
    names: list[str] = []
    asked: list[tuple[int, list[str]]] = []
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        if words[0].startswith(":"):
            names.append(line.strip().lstrip(": "))
            continue
        if len(words) != 4:
            raise FormatError(f"{path}, line {number}: {line.strip()[:60]!r} is not four words")
        if not names:
            raise FormatError(
                f"{path}, line {number}: a question comes before the first section, a line `: name`"
            )
        asked.append((len(names) - 1, words))
    return names, asked


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a small text file with their numbers from 1; only ``\\n`` ends a line."""
    if path.is_dir():
        raise StorageError(f"cannot read {path}: it is a folder, a text file is needed")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise storage_error(error, path, "read") from error
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}, line {number}: byte {error.start} of the line is no UTF-8") from error


def _check_restrict(restrict: int | None) -> None:
    if restrict is not None and restrict < 1:
        raise SettingError(f"restrict is {restrict}; it is a number of rows, 1 or more")


def _rows_of(vectors: Vectors, restrict: int | None, fold: Callable[[str], str]) -> dict[str, int]:
    """Folded key -> the first row that has it, among the first ``restrict`` rows."""
    _check_restrict(restrict)
    rows: dict[str, int] = {}
    for row, key in enumerate(vectors.index_to_key[:restrict]):
        rows.setdefault(fold(key), row)
    return rows


def _variants(vectors: Vectors, restrict: int, fold: Callable[[str], str]) -> dict[int, list[int]]:
    """For the first row of each folded key that several rows share: the others."""
    first: dict[str, int] = {}
    others: dict[int, list[int]] = {}
    for row, key in enumerate(vectors.index_to_key[:restrict]):
        leader = first.setdefault(fold(key), row)
        if leader != row:
            others.setdefault(leader, []).append(row)
    return others


def _ascii_upper(word: str) -> str:
    return word.encode("utf-8", "surrogatepass").upper().decode("utf-8", "surrogatepass")


def _sum(name: str, sections: Sequence[Section]) -> Section:
    return Section(
        name,
        sum(section.correct for section in sections),
        sum(section.total for section in sections),
        sum(section.skipped for section in sections),
    )


def _paths(paths: Sequence[PATH] | PATH) -> list[PATH]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
