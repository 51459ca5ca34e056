"""``search.top_k`` against the plain definition, and the closest keys."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth import search
from firth.errors import SettingError, ShapeError
from firth.search import rank_with_ties, top_k
from firth.suggest import FAR, close_keys, edit_distances


def plainly(queries, matrix, k, scale=None, skip=None):
    """The definition: all scores in float64, a full sort by falling score and rising id."""
    scores = queries.astype(np.float64) @ matrix.astype(np.float64).T
    if scale is not None:
        scores = scores * scale
    scores[np.isnan(scores)] = -np.inf
    if skip is not None:
        for row, ids in zip(scores, skip, strict=True):
            row[ids[ids >= 0]] = -np.inf
    ids = np.lexsort((np.broadcast_to(np.arange(len(matrix)), scores.shape), -scores), axis=1)[:, :k]
    return ids, np.take_along_axis(scores, ids, axis=1)


def table(rows, dim, seed=0):
    """Whole numbers, so that every product is exact and ties abound."""
    return np.random.default_rng(seed).integers(-3, 4, (rows, dim)).astype(np.float32)


@pytest.mark.parametrize("queries", [1, 8, 40, 520])
@pytest.mark.parametrize("rows", [1, 31, 33, 4097, 9000])
def test_exact_with_ties(queries, rows):
    matrix, asked = table(rows, 4), table(queries, 4, 1)
    for k in (1, 7, 10_000 if queries < 100 else 9):
        ids, scores = top_k(asked, matrix, k)
        expected_ids, expected = plainly(asked, matrix, k)
        assert ids.dtype == np.int64 and scores.dtype == np.float32
        assert ids.tolist() == expected_ids.tolist()
        assert scores.tolist() == expected.tolist()


@pytest.mark.parametrize("rows", [50, 9000])
@pytest.mark.parametrize("queries", [2, 30])
def test_scale_and_skip(rows, queries):
    matrix, asked = table(rows, 4), table(queries, 4, 1)
    scale = np.float32(2) ** np.random.default_rng(2).integers(-2, 3, rows).astype(np.float32)
    best = plainly(asked, matrix, 3, scale)[0]
    skip = np.stack([best[:, 0], best[:, 2], np.full(queries, -1)], axis=1)
    ids, scores = top_k(asked, matrix, 5, scale=scale, skip=skip)
    expected_ids, expected = plainly(asked, matrix, 5, scale, skip)
    assert ids.tolist() == expected_ids.tolist() and scores.tolist() == expected.tolist()
    assert top_k(asked, matrix[:4], 9, skip=np.zeros((queries, 1), np.int64))[0].shape == (queries, 3)


def test_where_only_some_queries_skip():
    matrix, asked = table(5, 4), table(3, 4, 1)
    skip = np.array([[2], [-1], [4]])
    ids, scores = top_k(asked, matrix, 5, skip=skip)
    expected_ids, expected = plainly(asked, matrix, 5, skip=skip)
    expected_ids[[0, 2], 4] = -1
    assert ids.tolist() == expected_ids.tolist() and scores.tolist() == expected.tolist()


def test_real_numbers_agree_to_rounding():
    random = np.random.default_rng(3)
    matrix = random.normal(size=(20_000, 24)).astype(np.float32)
    asked = random.normal(size=(50, 24)).astype(np.float32)
    ids, scores = top_k(asked, matrix, 10)
    expected_ids, expected = plainly(asked, matrix, 10)
    assert (ids == expected_ids).mean() > 0.99  # two scores closer than rounding may change places
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    alone = [top_k(query[None], matrix, 10) for query in asked]
    assert np.concatenate([one[0] for one in alone]).tolist() == ids.tolist()
    assert np.concatenate([one[1] for one in alone]).tolist() == scores.tolist()


@pytest.mark.parametrize("queries", [1, 30])
def test_nan_never_wins(queries):
    matrix, asked = table(9000, 4), table(queries, 4, 1)
    matrix[[0, 17, 4500, 8999], 2] = np.nan
    matrix[33] = np.inf
    matrix[34, 0] = np.nan
    matrix[33, 1] = -np.inf
    with np.errstate(invalid="ignore"):
        expected_ids, expected = plainly(asked, matrix, 6)
    ids, scores = top_k(asked, matrix, 6)
    assert ids.tolist() == expected_ids.tolist() and scores.tolist() == expected.tolist()
    assert np.isnan(top_k(asked, np.full((9000, 4), np.nan), 2)[1]).sum() == 0


def test_equal_rows_come_in_the_order_of_their_ids():
    asked = np.random.default_rng(4).normal(size=(20, 33)).astype(np.float32)
    matrix = np.repeat(np.random.default_rng(5).normal(size=(1, 33)).astype(np.float32), 10_007, axis=0)
    for part in (asked, asked[:1]):
        assert top_k(part, matrix, 5)[0].tolist() == [list(range(5))] * len(part)


def test_queries_beyond_one_block(monkeypatch):
    monkeypatch.setattr(search, "MAXIMA", 5000)
    monkeypatch.setattr(search, "SMALL", 5000)
    matrix, asked = table(9000, 3), table(45, 3, 1)
    assert top_k(asked, matrix, 4)[0].tolist() == plainly(asked, matrix, 4)[0].tolist()
    assert top_k(asked[:5], matrix, 4)[0].tolist() == plainly(asked[:5], matrix, 4)[0].tolist()


def test_wrong_calls():
    with pytest.raises(ShapeError, match=r"\(2, 3\) and the matrix \(4, 5\)"):
        top_k(np.zeros((2, 3)), np.zeros((4, 5)), 1)
    with pytest.raises(SettingError, match="k is 0"):
        top_k(np.zeros((2, 3)), np.zeros((4, 3)), 0)
    with pytest.raises(ShapeError, match="scale"):
        top_k(np.zeros((2, 3)), np.zeros((4, 3)), 1, scale=np.ones(3, np.float32))


def test_best_answers_are_the_plain_ones(monkeypatch):
    random = np.random.default_rng(6)
    matrix = random.normal(size=(500, 8)).astype(np.float32)
    matrix[7] = 0
    scale = np.where(np.arange(500) == 7, 0, 1 / np.linalg.norm(np.where(matrix == 0, 1, matrix), axis=1))
    scale = scale.astype(np.float32)
    unit = matrix * scale[:, None]
    questions = random.integers(0, 500, (200, 3))
    for multiply in (False, True):
        cosines = unit[questions] @ unit.T  # (N, 3, V)
        if multiply:
            a, b, c = ((1 + cosines[:, place]) / 2 for place in range(3))
            total = b * c / (a + 1e-6)
        else:
            total = cosines[:, 1] + cosines[:, 2] - cosines[:, 0]
        np.put_along_axis(total, questions, -np.inf, axis=1)
        for size in (1 << 25, 1 << 12):
            monkeypatch.setattr(search, "SCORES", size)
            best = search.best_answers(matrix, scale, questions, multiply=multiply)
            assert best.tolist() == total.argmax(axis=1).tolist()


def test_ranks_with_ties():
    assert rank_with_ties(np.array([3.0, 1, 3, 2, 3])).tolist() == [4, 1, 4, 2, 4]


# -- the closest keys


def by_the_book(a: str, b: str) -> int:
    a, b = a.lower(), b.lower()
    rows = [[max(i, j) for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            same = a[i - 1] == b[j - 1]
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (not same))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


@settings(max_examples=200, deadline=None)
@given(
    wanted=st.text("abC", max_size=7),
    others=st.lists(st.text("abcé\0", max_size=8), min_size=1, max_size=9),
    limit=st.integers(1, 3),
)
def test_edit_distances(wanted, others, limit):
    expected = [
        distance if distance <= limit else FAR for distance in (by_the_book(wanted, o) for o in others)
    ]
    assert edit_distances(wanted, others, limit).tolist() == expected


def test_close_keys_are_sorted_by_distance_then_row():
    keys = ["queen", "kong", "king", "kings", "ring", "K" * 200]
    assert close_keys("kng", keys) == ["kong", "king"]
    assert close_keys("Knig", keys) == ["king", "kong", "kings"]
    assert close_keys("k" * 205, keys) == ["K" * 200]
    assert close_keys("zzzzzz", keys) == [] and close_keys("", keys) == [] and close_keys("a", []) == []


def test_close_keys_beyond_one_block():
    keys = [f"x{row:06}" for row in range(70_000)] + ["parliament"]
    assert close_keys("parliamnet", keys) == ["parliament"]


def test_asking_needs_no_heavy_library(tmp_path):
    code = """
import sys
from firth.vectors import Vectors
Vectors(["a", "b", "c"], [[1.0, 2.0], [2.0, 1.0], [0.5, 0.5]]).save(sys.argv[1])
vectors = Vectors.load(sys.argv[1])
vectors.most_similar("a"), vectors.most_similar_batch(["a", "b"]), vectors.similarity("a", "b"), repr(vectors)
print([name for name in ("torch", "numba", "pyarrow", "scipy", "safetensors", "rich") if name in sys.modules])
"""
    call = [sys.executable, "-c", code, str(tmp_path / "v.safetensors")]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip() == "[]"
