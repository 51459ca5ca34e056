"""The questions one asks of vectors, under the names that people know from gensim's KeyedVectors.

Meaning and return shapes are gensim's; where they differ, the docstring says so. Everything here
is numpy: no torch, no numba, no pyarrow.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from firth.errors import KeyNotFound, SettingError, ShapeError
from firth.lookup import Float32s, Key, Lookup, refuse_one
from firth.search import CardTable, inverse, lengths, products, top_k, unit

Item: TypeAlias = Key | NDArray[Any] | tuple[Key | NDArray[Any], float]
Items: TypeAlias = Item | Sequence[Item] | None
Neighbours: TypeAlias = list[tuple[str, float]]


class Queries(Lookup):
    """What can be asked of keys and a matrix; ``Vectors`` adds where they come from and go to.

    Where there are subwords, every word that is asked about has a vector; answers are keys all the same.
    """

    _card_table: tuple[Any, CardTable] | None = None

    # -- means of several keys

    def get_mean_vector(
        self,
        keys: Sequence[Key | NDArray[Any]],
        weights: Sequence[float] | NDArray[Any] | None = None,
        pre_normalize: bool = True,
        post_normalize: bool = False,
        ignore_missing: bool = True,
    ) -> Float32s:
        """The weighted mean of keys and vectors, (D,) float32, divided by the sum of ``abs(weights)``.

        Args:
            keys: keys, row numbers or (D,) arrays.
            weights: one for each; all 1 by default.
            pre_normalize: bring the vectors of keys to length one first (arrays are taken as they are).
            post_normalize: bring the mean to length one.
            ignore_missing: leave out keys that are not there, rather than raise.

        Raises:
            SettingError: no keys, one string for a list of keys, or another number of weights.
            KeyNotFound: a key is missing and ``ignore_missing`` is off.
        """
        refuse_one(keys)
        if len(keys) == 0:
            raise SettingError("get_mean_vector(): no keys are given, and there is no mean of nothing")
        factors = np.ones(len(keys)) if weights is None else np.asarray(weights, np.float64)
        if factors.shape != (len(keys),):
            raise SettingError(f"get_mean_vector(): {len(keys)} keys have {factors.size} weights")
        mean, total = np.zeros(self._matrix.shape[1]), 0.0
        for key, factor in zip(keys, factors, strict=True):
            if isinstance(key, np.ndarray):
                mean += factor * self._vector(key)
            elif ignore_missing and not self.has_vector(key):
                continue
            else:
                mean += factor * self.get_vector(key, norm=pre_normalize)
            total += abs(factor)
        if total > 0:
            mean /= total
        return unit(mean) if post_normalize else mean.astype(np.float32)

    def _vector(self, array: NDArray[Any]) -> Float32s:
        vector = np.asarray(array, np.float32)
        if vector.shape != self._matrix.shape[1:]:
            raise ShapeError(
                f"a query has the shape {vector.shape}, these vectors have {self._matrix.shape[1]} numbers"
            )
        if not np.isfinite(vector).all():
            raise ShapeError("a query holds NaN or infinity")
        return vector

    def _split(self, positive: Items, negative: Items, what: str) -> tuple[list[Any], list[float]]:
        """Keys or arrays and their weights: 1 for the positive, -1 for the negative, or as given."""
        keys: list[Any] = []
        weights: list[float] = []
        for items, sign in ((positive, 1.0), (negative, -1.0)):
            for item in _as_list(items):
                key, weight = item if isinstance(item, tuple) and len(item) == 2 else (item, sign)
                if not isinstance(key, (str, int, np.integer, np.ndarray)):
                    raise SettingError(f"{what}(): {key!r} is no key, row number, array or (key, weight)")
                keys.append(key)
                weights.append(float(weight))
        if not keys:
            raise SettingError(f"{what}(): neither positive nor negative keys are given")
        return keys, weights

    def _range(self, start: int, stop: int | None, restrict_vocab: int | None, what: str) -> tuple[int, int]:
        if restrict_vocab is not None:
            if start or stop:
                raise SettingError(f"{what}(): give restrict_vocab or clip_start and clip_end, not both")
            if restrict_vocab < 1:
                raise SettingError(f"{what}(): restrict_vocab is {restrict_vocab}; it must be 1 or more")
            stop = min(restrict_vocab, len(self))
        if not len(self):
            raise SettingError(f"{what}(): there are no keys to choose from; vectors_for_all(words) has some")
        first, last, _ = slice(start, stop or None).indices(len(self))
        if first >= last:
            raise SettingError(f"{what}(): no rows lie between clip_start {start} and clip_end {stop}")
        return first, last

    # -- neighbours

    @overload
    def most_similar(
        self,
        positive: Items = ...,
        negative: Items = ...,
        topn: int = ...,
        clip_start: int = ...,
        clip_end: int | None = ...,
        restrict_vocab: int | None = ...,
    ) -> Neighbours: ...
    @overload
    def most_similar(
        self,
        positive: Items = ...,
        negative: Items = ...,
        *,
        topn: None,
        clip_start: int = ...,
        clip_end: int | None = ...,
        restrict_vocab: int | None = ...,
    ) -> Float32s: ...
    @overload
    def most_similar(
        self,
        positive: Items = ...,
        negative: Items = ...,
        topn: int | None = ...,
        clip_start: int = ...,
        clip_end: int | None = ...,
        restrict_vocab: int | None = ...,
    ) -> Neighbours | Float32s: ...
    def most_similar(
        self,
        positive: Items = None,
        negative: Items = None,
        topn: int | None = 10,
        clip_start: int = 0,
        clip_end: int | None = None,
        restrict_vocab: int | None = None,
    ) -> Neighbours | Float32s:
        """The keys of the greatest cosine with the mean of ``positive`` minus ``negative`` (3CosAdd).

        Args:
            positive: a key, row number or array, or a list of them, or of ``(key, weight)``.
            negative: the same; their weight is -1 unless given.
            topn: how many; ``None`` gives all cosines instead.
            clip_start: search from this row on.
            clip_end: search up to this row.
            restrict_vocab: search the first rows only. (gensim lets it override the two others;
                here giving both is an error.)

        Returns:
            ``[(key, cosine), ...]``, best first, without the keys asked about; or for
            ``topn=None`` (N,) float32, the cosines of all rows searched.

        Raises:
            KeyNotFound: a key is not there.
            SettingError: nothing is given.
        """
        keys, weights = self._split(positive, negative, "most_similar")
        first, last = self._range(clip_start, clip_end, restrict_vocab, "most_similar")
        query = self.get_mean_vector(keys, weights, post_normalize=True, ignore_missing=False)
        if topn is None:
            return self._cosines(query, first, last)
        if topn < 1:
            return []
        asked = sorted({self._row(key) - first for key in keys if not isinstance(key, np.ndarray)})
        skip = np.array([row if row < last - first else -1 for row in asked], np.int64)
        ids, scores = top_k(
            query[None],
            self._matrix[first:last],
            topn,
            scale=self._inverse_norms(first, last),
            skip=skip[skip >= 0][None],
        )
        return self._named(ids[0] + first, scores[0])

    def _cosines(self, query: Float32s, first: int = 0, last: int | None = None) -> Float32s:
        # (N,) cosines of rows first to last with a query of length one
        scores: Float32s = products(query[None], self._matrix[first:last], self._inverse_norms(first, last))[
            0
        ]
        return scores

    def _named(self, rows: NDArray[np.int64], scores: Float32s) -> Neighbours:
        return [(self._keys[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]

    def similar_by_key(
        self, key: Key, topn: int | None = 10, restrict_vocab: int | None = None
    ) -> Neighbours | Float32s:
        """``most_similar`` of one key."""
        return self.most_similar([key], topn=topn, restrict_vocab=restrict_vocab)

    def similar_by_word(
        self, word: Key, topn: int | None = 10, restrict_vocab: int | None = None
    ) -> Neighbours | Float32s:
        """``most_similar`` of one key."""
        return self.most_similar([word], topn=topn, restrict_vocab=restrict_vocab)

    def similar_by_vector(
        self, vector: NDArray[Any], topn: int | None = 10, restrict_vocab: int | None = None
    ) -> Neighbours | Float32s:
        """``most_similar`` of a (D,) array."""
        return self.most_similar([np.asarray(vector)], topn=topn, restrict_vocab=restrict_vocab)

    def nearest(
        self,
        queries: Sequence[Key] | NDArray[Any],
        topn: int = 10,
        restrict_vocab: int | None = None,
        device: str | None = None,
    ) -> tuple[NDArray[np.int64], Float32s]:
        """The nearest rows of many queries at once, as arrays, at the speed of a matrix product.

        Args:
            queries: keys, which are left out of their own answers, or a (Q, D) array.
            topn: how many for each, 1 or more.
            restrict_vocab: search the first rows only.
            device: ``"cuda"`` or ``"cuda:1"`` searches on that card, where the matrix is kept from the first
                such call on, one copy of it; ``None`` or ``"cpu"`` searches with numpy. The answers are
                the same.

        Returns:
            row numbers (Q, K) int64 and cosines (Q, K) float32, best first; K is ``topn`` or, where
            that is less, the most that a query has. One that has fewer, being a row that is searched
            among queries that are not, ends in the row number -1 with the cosine minus infinity.

        Raises:
            SettingError: ``topn`` below 1, one string for a list of keys, or no such card.
            KeyNotFound: a key is not there.
            ShapeError: an array of another width, or with NaN or infinity in it.
            RunError: the card has no room for the matrix.
        """
        if topn < 1:
            raise SettingError(f"nearest(): topn is {topn}; it must be 1 or more")
        table = None if device in (None, "cpu") else self._on_card(str(device))
        last = self._range(0, None, restrict_vocab, "nearest")[1]
        skip = None
        if isinstance(queries, np.ndarray) and queries.dtype.kind == "f":
            vectors = np.asarray(queries, np.float32)
            if vectors.ndim != 2 or vectors.shape[1] != self._matrix.shape[1]:
                raise ShapeError(
                    f"nearest(): queries have the shape {vectors.shape}; "
                    f"(Q, {self._matrix.shape[1]}) is expected"
                )
            if not np.isfinite(vectors).all():
                raise ShapeError("nearest(): a query holds NaN or infinity")
            vectors = vectors * inverse(lengths(vectors))[:, None]
        else:
            vectors, rows = self._gather(queries)
            vectors *= inverse(lengths(vectors))[:, None]
            if ((rows >= 0) & (rows < last)).any():
                skip = np.where(rows < last, rows, -1)[:, None]
        if table is not None:
            return table.top_k(vectors, topn, last, skip)
        return top_k(vectors, self._matrix[:last], topn, scale=self._inverse_norms()[:last], skip=skip)

    def _on_card(self, name: str) -> CardTable:
        """The matrix on that card; the copy on another card is given up."""
        from firth.kernels.gpu_device import find_card

        found = find_card(name, "nearest()", "leave device= out")
        if self._card_table is None or self._card_table[0] != found:
            self._card_table = None
            self._card_table = found, CardTable(self._matrix, self._inverse_norms(), found)
        return self._card_table[1]

    def most_similar_batch(
        self,
        queries: Sequence[Key] | NDArray[Any],
        topn: int = 10,
        restrict_vocab: int | None = None,
        device: str | None = None,
    ) -> list[Neighbours]:
        """``nearest`` with names: for each query ``[(key, cosine), ...]``."""
        ids, scores = self.nearest(queries, topn, restrict_vocab, device)
        self._keys.to_list()  # many names are wanted: decode them once
        found = (ids >= 0).sum(axis=1)
        return [
            self._named(row[:count], score[:count])
            for row, score, count in zip(ids, scores, found, strict=True)
        ]

    def most_similar_cosmul(
        self,
        positive: Items = None,
        negative: Items = None,
        topn: int | None = 10,
        restrict_vocab: int | None = None,
    ) -> Neighbours | Float32s:
        """The keys of the greatest product of similarities (3CosMul).

        Similarities are moved to 0..1 first; those to ``negative`` divide. Weights are not used.
        ``restrict_vocab`` is obeyed (gensim ignores it here). Source: Levy and Goldberg 2014,
        "Linguistic Regularities in Sparse and Explicit Word Representations", equation 4.

        Returns:
            ``[(key, score), ...]``, or all scores (N,) float32 for ``topn=None``.

        Raises:
            KeyNotFound: a key is not there.
            SettingError: no positive key is given.
        """
        keys, _ = self._split(positive, negative, "most_similar_cosmul")
        n_positive = len(_as_list(positive))
        if not n_positive:
            raise SettingError("most_similar_cosmul(): no positive keys are given")
        first, last = self._range(0, None, restrict_vocab, "most_similar_cosmul")
        if topn is not None and topn < 1:
            return []
        above, below = products_of = np.ones((2, last - first), np.float32)
        for place, key in enumerate(keys):
            query = self.get_mean_vector([key], post_normalize=True, ignore_missing=False)
            products_of[int(place >= n_positive)] *= (1 + self._cosines(query, first, last)) / 2
        # The cosine with a row that holds NaN is minus infinity: such rows come last.
        scores = np.full(last - first, -np.inf, np.float32)
        good = np.isfinite(above) & np.isfinite(below)
        np.divide(above, below + np.float32(1e-6), out=scores, where=good)
        if topn is None:
            return scores
        asked = sorted({self._row(key) for key in keys if not isinstance(key, np.ndarray)})
        skip = np.array([row for row in asked if row < last], np.int64)[None]
        ids, best = top_k(np.ones((1, 1), np.float32), scores[:, None], topn, skip=skip)
        return self._named(ids[0], best[0])

    # -- similarities and distances

    def similarity(self, w1: Key, w2: Key) -> float:
        """The cosine of two keys; 0 where one is a row of zeros. ``KeyNotFound`` where one is missing."""
        a, b = (unit(self.get_vector(key).astype(np.float64)) for key in (w1, w2))
        return float(a @ b)

    def distance(self, w1: Key, w2: Key) -> float:
        """``1 - similarity(w1, w2)``."""
        return 1 - self.similarity(w1, w2)

    def distances(self, word_or_vector: Key | NDArray[Any], other_words: Sequence[Key] = ()) -> Float32s:
        """(N,) float32: ``1 - cosine`` to each of ``other_words``, or to all keys if none are given."""
        query = self.get_mean_vector([word_or_vector], post_normalize=True, ignore_missing=False)
        if len(other_words) == 0:
            return 1 - self._cosines(query)
        part = self._gather(other_words)[0]
        distances: Float32s = 1 - products(query[None], part, inverse(lengths(part)))[0]
        return distances

    def n_similarity(self, ws1: Sequence[Key], ws2: Sequence[Key]) -> float:
        """The cosine of the means of two sets of keys. (gensim skips missing keys here; this raises.)"""
        a, b = (
            self.get_mean_vector(keys, pre_normalize=False, post_normalize=True, ignore_missing=False)
            for keys in (ws1, ws2)
        )
        return float(a @ b)

    def doesnt_match(self, words: Sequence[Key]) -> str:
        """The key that is farthest from the mean of all; missing keys are left out, with a warning.

        Raises:
            KeyNotFound: none of them is there.
            SettingError: none is given, or one string for a list of keys.
        """
        refuse_one(words)
        known = [word for word in words if self.has_vector(word)]
        if len(known) < len(words):
            missing = [word for word in words if not self.has_vector(word)]
            if not known:
                raise KeyNotFound(missing[0] if missing else "", self._where(), self._keys.close(missing[0]))
            warnings.warn(
                f"doesnt_match(): {missing} are not there and are left out", UserWarning, stacklevel=2
            )
        if not known:
            raise SettingError("doesnt_match(): no keys are given")
        vectors, rows = self._gather(known)
        vectors *= inverse(lengths(vectors))[:, None]
        cosines = vectors @ unit(vectors.mean(axis=0, dtype=np.float64))
        named = zip(known, rows.tolist(), strict=True)
        names = [str(word) if row < 0 else self._keys[row] for word, row in named]
        return min(zip(cosines.tolist(), names, strict=True))[1]

    def closer_than(self, key1: Key, key2: Key) -> list[str]:
        """The keys that are closer to ``key1`` than ``key2`` is."""
        row, other = self._row(key1), self._row(key2)
        distances = self.distances(key1)
        bound = distances[other] if other >= 0 else self.distances(key1, [key2])[0]
        return [self._keys[int(place)] for place in np.flatnonzero(distances < bound) if place != row]

    def rank(self, key1: Key, key2: Key) -> int:
        """The place of ``key2`` among the neighbours of ``key1``, from 1."""
        return len(self.closer_than(key1, key2)) + 1

    def most_similar_to_given(self, key1: Key, keys_list: Sequence[Key]) -> Key:
        """The one of ``keys_list`` that is closest to ``key1``.

        Raises:
            KeyNotFound: a key is not there.
            SettingError: ``keys_list`` is empty.
        """
        if len(keys_list) == 0:
            raise SettingError("most_similar_to_given(): no keys are given to choose from")
        return keys_list[int(np.argmin(self.distances(key1, keys_list)))]

    def relative_cosine_similarity(self, wa: Key, wb: Key, topn: int = 10) -> float:
        """``similarity(wa, wb)`` divided by the sum of those of the ``topn`` neighbours of ``wa``.

        Above 0.10 with ``topn=10``, the two are closer than neighbours usually are.
        Source: Leeuwenberg et al. 2016, "A Minimally Supervised Approach for Synonym Extraction".

        Raises:
            KeyNotFound: a key is not there.
            SettingError: ``wa`` is a row of zeros, similar to nothing.
        """
        total = float(self.nearest([wa], topn)[1].sum())
        if total == 0:
            raise SettingError(f"relative_cosine_similarity(): {wa!r} has no similar keys")
        return self.similarity(wa, wb) / total


def _as_list(items: Items) -> list[Any]:
    if items is None:
        return []
    if isinstance(items, (str, int, np.integer)) or (isinstance(items, np.ndarray) and items.ndim == 1):
        return [items]
    return list(items)
