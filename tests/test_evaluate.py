"""Word pairs and analogies: by hand, by the formulas, and on real files where they are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from firth import evaluate
from firth.errors import FormatError, SettingError, SourceError, StorageError
from firth.vectors import Vectors


def planted() -> Vectors:
    """Countries and capitals, and comparatives, whose differences are the same."""
    pairs = [
        ("paris", "france"),
        ("rome", "italy"),
        ("oslo", "norway"),
        ("big", "bigger"),
        ("tall", "taller"),
    ]
    keys, rows = [], []
    for place, (a, b) in enumerate(pairs):
        base = np.zeros(8)
        base[place] = 2
        step = np.eye(8)[5 if place < 3 else 6]
        keys += [a, b]
        rows += [base - step, base + step]
    return Vectors(keys, np.array(rows))


QUESTIONS = """: capitals
Paris France Rome Italy
paris france oslo norway
rome italy oslo Sweden
: gram1-comparative
big bigger tall taller
tall taller big bigger
"""


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(QUESTIONS)
    return path


def write(tmp_path, text, name="pairs.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- correlation


def test_correlations_by_hand():
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    assert evaluate.pearson(x, y) == pytest.approx(0.8) == evaluate.spearman(x, 10**y)
    # Ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2.
    assert evaluate.spearman(np.array([5.0, 5, 9]), np.array([1.0, 2, 3])) == pytest.approx(
        1.5 / math.sqrt(3)
    )
    assert math.isnan(evaluate.pearson(np.ones(3), np.arange(3.0)))


# -- word pairs


def test_word_pairs_by_hand(tmp_path):
    vectors = Vectors(["a", "b", "c", "A"], [[1, 0], [1, 1], [0, 1], [0, -1]])
    path = write(tmp_path, "# comment\nword1\tword2\tscore\na\tB\t7\na\tc\t1.5\nb\tc\t9\r\na\tnobody\t3\n\n")
    score = evaluate.word_pairs(vectors, path)
    gold, cosines = np.array([7, 1.5, 9]), np.array([0.5**0.5, 0, 0.5**0.5])
    assert score.pearson == pytest.approx(np.corrcoef(gold, cosines)[0, 1])
    assert score.spearman == pytest.approx(math.sqrt(3) / 2)
    assert (score.found, score.total, score.oov_ratio) == (3, 4, 25.0) and score.name == str(path)
    zeros = evaluate.word_pairs(vectors, path, dummy4unknown=True)
    assert zeros.pearson == pytest.approx(np.corrcoef([*gold, 3], [*cosines, 0])[0, 1])
    assert (zeros.found, zeros.total, zeros.oov_ratio) == (3, 4, 25.0)
    exact = evaluate.word_pairs(vectors, path, case_insensitive=False)
    assert (exact.found, exact.total) == (2, 4)
    assert evaluate.word_pairs(vectors, path, restrict=2).found == 1
    assert (
        json.loads(json.dumps(evaluate.word_pairs(vectors, path, restrict=2).to_dict()))["spearman"] is None
    )


@pytest.mark.parametrize("separator", ["\t", ",", ", ", " ", "   "])
def test_word_pairs_separators(tmp_path, separator):
    vectors = Vectors(["a", "b", "c"], [[1, 0], [1, 1], [0, 1]])
    lines = [("a", "b", "7"), ("a", "c", "2"), ("b", "c", "5")]
    score = evaluate.word_pairs(vectors, write(tmp_path, "\n".join(separator.join(line) for line in lines)))
    assert score.found == 3


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("a\tb\t1\na\tb\n", FormatError, "line 2: 'a.tb' is not two words and a number"),
        ("a\tb\t1\na\tb\tc\n", FormatError, "line 2"),
        ("a\tb\t1\na\tb\tnan\n", FormatError, "line 2"),
        ("w1\tw2\ts\nw1\tw2\ts\n", FormatError, "line 2"),
        (b"a\tb\t1\n\xff\tb\t1\n", FormatError, "line 2: byte 0"),
        ("", SourceError, "no pairs in it"),
        ("x\ty\t1\n", SourceError, "none of its 1 pairs"),
    ],
)
def test_pair_files_that_are_none(tmp_path, text, error, words):
    path = write(tmp_path, text)
    with pytest.raises(error, match=words) as caught:
        evaluate.word_pairs(Vectors(["a", "b"], [[1, 0], [1, 1]]), path)
    assert str(path) in str(caught.value)


def test_missing_files(tmp_path):
    vectors = planted()
    for call in (evaluate.word_pairs, evaluate.analogies):
        with pytest.raises(StorageError, match="no such file"):
            call(vectors, tmp_path / "missing")
        with pytest.raises(StorageError, match="folder"):
            call(vectors, tmp_path)
        with pytest.raises(SettingError, match="restrict"):
            call(vectors, tmp_path / "missing", restrict=0)


# -- analogies


@pytest.mark.parametrize("method", evaluate.METHODS)
@pytest.mark.parametrize("convention", evaluate.CONVENTIONS)
def test_planted_analogies(questions, method, convention):
    score = evaluate.analogies(planted(), questions, method=method, convention=convention)
    assert [part.name for part in score.sections] == ["capitals", "gram1-comparative"]
    assert [(part.correct, part.total, part.skipped) for part in score.sections] == [(2, 2, 1), (2, 2, 0)]
    assert (score.semantic.total, score.syntactic.total, score.overall.total, score.overall.skipped) == (
        2,
        2,
        4,
        1,
    )
    assert score.accuracy == 1 and score.method == method and score.convention == convention
    assert evaluate.analogies(planted(), questions, restrict=4).overall.total == 1


def test_a_broken_sign_is_noticed(questions):
    spoilt = planted()
    turned = spoilt.with_vectors({"rome": spoilt["italy"], "italy": spoilt["rome"]})
    assert evaluate.analogies(turned, questions).sections[0].correct < 2


def test_conventions_differ_in_case_variants(tmp_path):
    # "Berlin", a case variant of a word of the question, is nearer to the target than the answer.
    keys = ["paris", "france", "berlin", "germany", "Berlin"]
    rows = [[1, 0, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0.8, 0.4], [0, 1, 1, 0]]
    path = write(tmp_path, ": capitals\nparis france berlin germany\n")
    assert evaluate.analogies(Vectors(keys, rows), path).accuracy == 1
    assert evaluate.analogies(Vectors(keys, rows), path, convention="word2vec").accuracy == 0
    # gensim looks at five neighbours: five variants in front of the answer hide it.
    variants = ["Berlin", "BERLIN", "BErlin", "BERlin", "BERLin"]
    for count, expected in ((4, 1), (5, 0)):
        hidden = Vectors([*keys[:4], *variants[:count]], [*rows[:4], *[[0, 1, 1, 0]] * count])
        assert evaluate.analogies(hidden, path).accuracy == expected
    # A case variant of the expected word is right in both.
    again = Vectors([*keys[:4], "GERMANY"], rows)
    for convention in evaluate.CONVENTIONS:
        assert evaluate.analogies(again, path, convention=convention).accuracy == 1


def test_the_c_tool_needs_a_positive_cosine(tmp_path):
    vectors = Vectors(["a", "b", "c", "d"], [[1, 0], [1, 0], [1, 0], [-1, 0]])
    path = write(tmp_path, ": s\na b c d\n")
    assert evaluate.analogies(vectors, path).accuracy == 1
    assert evaluate.analogies(vectors, path, convention="word2vec").accuracy == 0


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (": s\na b c\n", FormatError, "line 2: 'a b c' is not four words"),
        ("a b c d\n", FormatError, "line 1: a question comes before"),
        ("", SourceError, "no questions"),
        (": s\n", SourceError, "no questions"),
        (": s\nx y z w\n", SourceError, "no question of 1"),
    ],
)
def test_analogy_files_that_are_none(tmp_path, text, error, words):
    with pytest.raises(error, match=words) as caught:
        evaluate.analogies(planted(), write(tmp_path, text))
    assert "pairs.txt" in str(caught.value)


def test_wrong_calls(questions):
    with pytest.raises(SettingError, match="3cosadd, 3cosmul"):
        evaluate.analogies(planted(), questions, method="cosine")
    with pytest.raises(SettingError, match="gensim, word2vec"):
        evaluate.analogies(planted(), questions, convention="c")
    with pytest.raises(SettingError, match="neither"):
        evaluate.evaluate(planted())


def test_the_report(tmp_path, questions):
    pairs = write(tmp_path, "paris\tfrance\t9\nbig\tfrance\t1\nrome\titaly\t8\n")
    report = evaluate.evaluate(planted(), pairs=[pairs], analogies=questions, method="3cosmul")
    content = json.loads(json.dumps(report.to_dict()))
    assert content["pairs"][0]["found"] == 3 and content["analogies"][0]["overall"]["accuracy"] == 1
    assert content["analogies"][0]["sections"][0] == {
        "name": "capitals",
        "accuracy": 1.0,
        "correct": 2,
        "total": 2,
        "skipped": 1,
    }
    shown = str(report)
    assert "pairs.txt" in shown and "gram1-comparative" in shown and "3 / 3" in shown
    assert len({len(line) for line in shown.splitlines()[3:]}) == 1


# -- real files


def test_figures_of_gensim_on_glove(data):
    """The figures that gensim 4.4 gives on the same vectors (bench/evaluate_vs_gensim.py)."""
    vectors = Vectors.load(data / "pretrained" / "glove.6B.50d.first50k.txt.xz", limit=30_000)
    pairs = evaluate.word_pairs(vectors, data / "eval" / "EN-WS-353-ALL.txt")
    assert (pairs.found, pairs.total) == (340, 353)
    assert (pairs.spearman, pairs.pearson) == pytest.approx((0.538271, 0.561969), abs=1e-4)
    score = evaluate.analogies(vectors, data / "eval" / "questions-words.txt")
    assert (score.semantic.correct, score.semantic.total) == (3053, 6002)
    assert (score.syntactic.correct, score.syntactic.total) == (4340, 8875)
    assert score.accuracy == pytest.approx(0.49694, abs=1e-4)
