"""``top_k``: the only place that ranks rows. Exact, for many queries at once, in bounded memory.

How it is fast: the product is made in tiles that stay in the cache. Of each tile only the greatest
score of every ``GROUP`` neighbouring rows is kept; the best ``k`` rows of a query are in the ``k``
groups of the greatest maxima, and only those are scored again and sorted. numpy does it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import RunError, SettingError, ShapeError

GROUP = 32  # neighbouring rows of which only the maximum is kept
TILE_ROWS = 4096
TILE_QUERIES = 512
MAXIMA = 1 << 24  # float32 numbers of maxima held at once: 64 MiB
SMALL = 1 << 22  # up to this many scores are made and partitioned directly
SCORES = 1 << 25  # cosines that best_answers holds at once: 128 MiB
# Two ways to add up a product differ by rounding; groups this close to the bound are looked at too.
SLACK = 1e-6
CARD_SLACK = 5e-6  # the same on a card, whose sums are in another order again
CARD_SCORES = 1 << 27  # scores that a card holds at once: 512 MiB
SHORTEST = 1.2e-38  # lengths below this are zero: their inverse is no float32


def top_k(
    queries: NDArray[np.float32],
    matrix: NDArray[np.float32],
    k: int,
    *,
    scale: NDArray[np.float32] | None = None,
    skip: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` rows of ``matrix`` with the greatest product with each query, exactly.

    Args:
        queries: (Q, D) float32.
        matrix: (V, D) float32.
        k: how many rows; fewer come back where there are not so many.
        scale: (V,) float32, a factor for each row's score: with ``1 / norm``, and queries of
            length one, scores are cosines.
        skip: (Q, S) int64, rows to leave out for each query; -1 stands for none.

    Returns:
        ids (Q, K) int64 and scores float32, by falling score and, among equals, rising id; K is k
        or the most rows that any query has left. Where a query has fewer, the id -1 and minus
        infinity fill up. A score that is NaN ranks last and is returned as minus infinity.

    Raises:
        ShapeError: shapes that do not fit.
        SettingError: ``k`` is less than 1.
    """
    queries, matrix = np.asarray(queries, np.float32), np.asarray(matrix, np.float32)
    if queries.ndim != 2 or matrix.ndim != 2 or queries.shape[1] != matrix.shape[1]:
        raise ShapeError(
            f"top_k(): queries have the shape {queries.shape} and the matrix {matrix.shape}; "
            "(Q, D) and (V, D) are expected"
        )
    if scale is not None and scale.shape != matrix.shape[:1]:
        raise ShapeError(f"top_k(): scale has the shape {scale.shape}; ({len(matrix)},) is expected")
    if k < 1:
        raise SettingError(f"top_k(): k is {k}; it must be 1 or more")
    extra = 0 if skip is None else skip.shape[1]
    most = min(k + extra, len(matrix))
    ids = np.empty((len(queries), most), np.int64)
    scores = np.empty((len(queries), most), np.float32)
    groups = -(-len(matrix) // GROUP)
    grouped = groups > 8 * most and len(queries) > 8
    step = max(1, MAXIMA // groups if grouped else SMALL // max(1, len(matrix)))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        find = _by_groups if grouped else _directly
        ids[start : start + step], scores[start : start + step] = find(part, matrix, most, scale)
    return (ids, scores) if skip is None else _leave_out(ids, scores, skip, k)


def _directly(
    queries: NDArray[np.float32], matrix: NDArray[np.float32], k: int, scale: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All scores at once; for few queries or short tables."""
    scores = products(queries, matrix, scale)
    wanted = _near_the_best(scores, k)
    rows = (_candidates(row, near, k) for row, near in zip(scores, wanted, strict=True))
    return _best_of(zip(rows, queries, strict=True), matrix, k, scale)


def products(
    queries: NDArray[np.float32], matrix: NDArray[np.float32], scale: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(Q, V) float32 products, times ``scale``; NaN becomes minus infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        # numpy multiplies a vector faster from this side.
        scores = (matrix @ queries[0])[None] if len(queries) == 1 else queries @ matrix.T
        if scale is not None:
            scores *= scale
    np.copyto(scores, -np.inf, where=np.isnan(scores))
    return scores


def _near_the_best(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """For each row, which scores reach the ``k``-th greatest, give or take rounding."""
    if k >= scores.shape[1]:
        return np.ones(scores.shape, bool)
    parted = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    bound, top = parted[:, 0], parted.max(axis=1)
    with np.errstate(invalid="ignore"):
        least = bound - SLACK * np.maximum(np.abs(bound), np.abs(top))
    return scores >= np.where(np.isnan(least), bound, least)[:, None]


def _candidates(scores: NDArray[np.float32], near: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """The ids in ``near``; where too many scores are equal, those of the lowest ids."""
    ids = np.flatnonzero(near)
    if ids.size > 4 * k + 64:
        ids = np.sort(ids[np.argsort(-scores[ids], kind="stable")[:k]])
    return ids


def _best_of(
    candidates: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    matrix: NDArray[np.float32],
    k: int,
    scale: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Score (row ids, query) again and sort.

    Here each row is summed up in the same order wherever it stands, unlike in a matrix product:
    equal rows get equal scores, and one query the same answer alone and among many.
    """
    ids, scores = [], []
    for rows, query in candidates:
        with np.errstate(invalid="ignore", over="ignore"):
            again = np.einsum("rd,d->r", matrix[rows], query)
            if scale is not None:
                again *= scale[rows]
        np.copyto(again, -np.inf, where=np.isnan(again))
        best = np.lexsort((rows, -again))[:k]
        ids.append(rows[best])
        scores.append(again[best])
    return np.array(ids, np.int64).reshape(-1, k), np.array(scores, np.float32).reshape(-1, k)


def _leave_out(
    ids: NDArray[np.int64], scores: NDArray[np.float32], skip: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first ``k`` of each row whose ids are not in ``skip``, filled up by -1 and minus infinity."""
    unwanted = (ids[:, :, None] == skip[:, None, :]).any(axis=2)
    left = np.count_nonzero(~unwanted, axis=1)
    order = np.argsort(unwanted, axis=1, kind="stable")[:, : min(k, int(left.max(initial=0)))]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    missing = np.arange(order.shape[1]) >= left[:, None]
    ids[missing], scores[missing] = -1, -np.inf
    return ids, scores


def _by_groups(
    queries: NDArray[np.float32], matrix: NDArray[np.float32], k: int, scale: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Scores in tiles, then the groups of the greatest maxima; for many queries in a long table."""
    maxima = np.ascontiguousarray(_maxima(queries, matrix, scale).T)  # (Q, G)
    wanted = _near_the_best(maxima, k)

    def members() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for row, near, query in zip(maxima, wanted, queries, strict=True):
            rows = (_candidates(row, near, k)[:, None] * GROUP + np.arange(GROUP)).ravel()
            yield rows[rows < len(matrix)], query

    return _best_of(members(), matrix, k, scale)


def _maxima(
    queries: NDArray[np.float32], matrix: NDArray[np.float32], scale: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """(G, Q): the greatest score of each group of rows with each query, NaN left aside."""
    groups = -(-len(matrix) // GROUP)
    maxima = np.empty((groups, len(queries)), np.float32)
    tile = np.empty((TILE_ROWS, min(TILE_QUERIES, len(queries))), np.float32)
    for start in range(0, len(matrix), TILE_ROWS):
        rows = matrix[start : start + TILE_ROWS]
        if scale is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                rows = rows * scale[start : start + TILE_ROWS, None]
        count = len(rows)
        first, full = start // GROUP, count // GROUP
        for left in range(0, len(queries), TILE_QUERIES):
            part = queries[left : left + TILE_QUERIES]
            width = len(part)
            scores = tile[:count, :width] if width == tile.shape[1] else np.empty((count, width), np.float32)
            with np.errstate(invalid="ignore", over="ignore"):
                np.matmul(rows, part.T, out=scores)
            target = maxima[first : first + full + (count % GROUP > 0), left : left + width]
            _reduce(scores, full, target)
            if np.isnan(target).any():
                np.copyto(scores, -np.inf, where=np.isnan(scores))
                _reduce(scores, full, target)
    return maxima


def _reduce(scores: NDArray[np.float32], full: int, target: NDArray[np.float32]) -> None:
    """Maxima of ``full`` whole groups and of the rest, if any, into ``target``."""
    cut = full * GROUP
    scores[:cut].reshape(full, GROUP, scores.shape[1]).max(axis=1, out=target[:full])
    if cut < len(scores):
        scores[cut:].max(axis=0, out=target[full])


class CardTable:
    """A matrix on a CUDA card, copied there once, and :func:`top_k` of it.

    The card makes the scores and finds which rows can be among the best; those few are scored and ranked
    by numpy, as everywhere, so that the answers are the same to the bit.

    Args:
        matrix: (V, D) float32. scale: (V,) float32, as for :func:`top_k`.
        device: a card, as torch names it.

    Raises:
        RunError: the card has no room for the matrix.
    """

    def __init__(self, matrix: NDArray[np.float32], scale: NDArray[np.float32], device: Any) -> None:
        import torch

        self._matrix, self._scale = matrix, scale
        try:
            self._here = torch.empty(matrix.shape, dtype=torch.float32, device=device)
            self._scale_here = torch.from_numpy(scale.copy()).to(device)
        except torch.cuda.OutOfMemoryError as error:
            raise RunError(
                f"nearest(): no room on the card for the matrix, float32 {matrix.shape} of "
                f"{matrix.nbytes / 1e9:,.1f} GB; leave device= out, or load fewer rows (Vectors.load(limit=))"
            ) from error
        step = max(1, (1 << 24) // max(1, matrix.shape[1]))  # 64 MiB: a mapped file is never held whole
        for start in range(0, len(matrix), step):
            self._here[start : start + step] = torch.from_numpy(matrix[start : start + step].copy())

    def top_k(
        self, queries: NDArray[np.float32], k: int, rows: int, skip: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """:func:`top_k` among the first ``rows`` rows."""
        extra = 0 if skip is None else skip.shape[1]
        most = min(k + extra, rows)
        ids = np.empty((len(queries), most), np.int64)
        scores = np.empty((len(queries), most), np.float32)
        step = max(1, CARD_SCORES // rows)
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            found = zip(self._near(part, most, rows), part, strict=True)
            best = _best_of(found, self._matrix, most, self._scale)
            ids[start : start + step], scores[start : start + step] = best
        return (ids, scores) if skip is None else _leave_out(ids, scores, skip, k)

    def _near(self, queries: NDArray[np.float32], k: int, rows: int) -> Iterator[NDArray[np.int64]]:
        """For each query the ids, rising, of the rows that can be among its best ``k``."""
        import torch

        asked = torch.from_numpy(queries.copy()).to(self._here.device)
        scores = asked @ self._here[:rows].T
        scores *= self._scale_here[:rows]
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        best = scores.topk(k, dim=1).values
        bound, top = best[:, -1:], best[:, :1]
        # Where the user lets torch multiply in tf32, ten bits of a product are right.
        slack = 4e-3 if torch.backends.cuda.matmul.allow_tf32 else CARD_SLACK
        least = bound - slack * torch.maximum(bound.abs(), top.abs())
        near = scores >= torch.where(least.isnan(), bound, least)
        counts = near.sum(1).tolist()
        enough = 4 * k + 64  # so many equal scores: those of the lowest ids are taken
        places = near.nonzero()[:, 1].cpu().numpy() if max(counts, default=0) <= enough else None
        first = 0
        for query, count in enumerate(counts):
            if places is not None:
                yield places[first : first + count]
            elif count <= enough:
                yield near[query].nonzero()[:, 0].cpu().numpy()
            else:
                order = scores[query].sort(descending=True, stable=True).indices[:k]
                yield order.sort().values.cpu().numpy()
            first += count


def best_answers(
    matrix: NDArray[np.float32],
    scale: NDArray[np.float32],
    questions: NDArray[np.int64],
    *,
    multiply: bool = False,
    positive: bool = False,
    variants: Mapping[int, Sequence[int]] | None = None,
    look: int | None = None,
) -> NDArray[np.int64]:
    """The best row for each question ``a : b = c : ?``, the three themselves left out.

    Cosines with the few distinct words of all questions are made once, by one matrix product; a
    question then costs two additions of its rows and an argmax.

    Args:
        matrix: (V, D) float32.
        scale: (V,) float32, one over the length of each row.
        questions: (N, 3) int64 rows a, b, c.
        multiply: 3CosMul ``b * c / (a + 1e-6)`` of cosines moved to 0..1, instead of 3CosAdd ``b - a + c``.
        positive: without a positive score (3CosAdd) there is no answer.
        variants: row -> other rows that are no answers either.
        look: how many neighbours are looked at, the three apart: if ``variants`` fill these
            places, there is no answer.

    Returns:
        (N,) int64 rows; -1 where there is no answer.
    """
    also: Mapping[int, Sequence[int]] = variants or {}
    words, places = np.unique(questions, return_inverse=True)
    places = places.reshape(questions.shape)
    queries = matrix[words] * scale[words, None]
    out = [sorted({row, *also.get(row, ())}) for row in words.tolist()]
    best = np.full(len(questions), -1, np.int64)
    score = np.full(len(questions), 0 if positive and not multiply else -np.inf, np.float32)
    step = max(1, min(1 << 15, SCORES // len(words)))  # a row of cosines that stays in the cache
    for start in range(0, len(matrix), step):
        stop = min(start + step, len(matrix))
        cosines = products(queries, matrix[start:stop], scale[start:stop])
        bad = np.flatnonzero(~np.isfinite(scale[start:stop]))  # rows with NaN are no answers
        cosines[:, bad] = 0
        unwanted = [[row - start for row in rows if start <= row < stop] for rows in out]
        if multiply:
            cosines += 1
            cosines /= 2
        total = np.empty(stop - start, np.float32)
        for place, (a, b, c) in enumerate(places):
            _combine(cosines[a], cosines[b], cosines[c], multiply, total)
            for rows in (unwanted[a], unwanted[b], unwanted[c], bad):
                total[rows] = -np.inf
            top = total.argmax()
            if total[top] > score[place]:
                score[place], best[place] = total[top], start + top

    for place, question in enumerate(questions.tolist() if look is not None and also else ()):
        others = sorted({row for word in question for row in also.get(word, ())} - {*question})
        if look is not None and len(others) >= look:
            near = products(queries[places[place]], matrix[others], scale[others])
            if multiply:
                near += 1
                near /= 2
            total = _combine(near[0], near[1], near[2], multiply, np.empty(len(others), np.float32))
            if np.count_nonzero(total > score[place]) >= look:
                best[place] = -1
    return best


def _combine(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    multiply: bool,
    total: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The scores of rows from their cosines with a, b and c, into ``total``."""
    if multiply:
        np.multiply(b, c, out=total)
        total /= a + np.float32(1e-6)
    else:
        np.add(b, c, out=total)
        total -= a
    return total


def rank_with_ties(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) ranks from 1, rising; equal values share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    ranks: NDArray[np.float64] = (last - (sizes - 1) / 2)[group]
    return ranks


def lengths(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """(V,) float32 Euclidean lengths of the rows, added up in float64."""
    result = np.empty(len(matrix), np.float32)
    step = max(1, (1 << 20) // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step].astype(np.float64)
        result[start : start + step] = np.sqrt(np.einsum("vd,vd->v", rows, rows))
    return result


def inverse(norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """One over each, and 0 for zero."""
    long = norms > SHORTEST
    return np.divide(1, norms, out=np.where(np.isnan(norms), norms, np.float32(0)), where=long)


def unit(vector: NDArray[Any]) -> NDArray[np.float32]:
    """A vector brought to length one, float32; one of zeros stays."""
    length = float(np.sqrt(np.dot(vector, vector)))
    return (vector / length if length > SHORTEST else vector).astype(np.float32)
