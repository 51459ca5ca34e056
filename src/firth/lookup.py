"""From a key to its row and its vector; the ground that ``queries`` and ``torchnames`` stand on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firth.errors import KeyNotFound, SettingError
from firth.keys import Keys
from firth.search import inverse, lengths
from firth.subwords import Subwords

Float32s: TypeAlias = NDArray[np.float32]
Key: TypeAlias = str | int | np.integer[Any]


class Lookup:
    """Keys, a row for each, and perhaps subwords, of which words that are no keys get vectors."""

    _keys: Keys
    _matrix: Float32s
    _inverse: Float32s | None
    _subwords: Subwords | None

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        """Whether there is such a key or row; with subwords too (gensim says yes to every word then)."""
        return self._row(key) >= 0

    def has_index_for(self, key: object) -> bool:
        """Whether there is such a key (or row number)."""
        return key in self

    def is_oov(self, word: str) -> bool:
        """Whether ``word`` is no key: it has a vector then only if there are subwords."""
        return self._row(word) < 0

    @property
    def subwords(self) -> Subwords | None:
        """The rows of character n-grams, of which the vector of any word is made; ``None`` without."""
        return self._subwords

    def get_index(self, key: Key, default: int | None = None) -> int:
        """The row of ``key``; a row number is its own row.

        Raises:
            KeyNotFound: there is none and no ``default``; the closest keys are named.
        """
        row = self._row(key)
        if row >= 0:
            return row
        if default is not None:
            return default
        raise KeyNotFound(key, self._where(), self._keys.close(key))

    def _row(self, key: object) -> int:
        if isinstance(key, str):
            return self._keys.row(key)
        is_row = (
            isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < len(self._keys)
        )
        return int(key) if is_row else -1  # type: ignore[call-overload]

    def _rows(self, keys: Iterable[Key]) -> NDArray[np.int64]:
        refuse_one(keys)
        return np.array([self.get_index(key) for key in keys], np.int64)

    def has_vector(self, key: object) -> bool:
        """Whether ``v[key]`` is a vector: of a key or row, or, with subwords, of any word."""
        return self._row(key) >= 0 or (self._subwords is not None and isinstance(key, str) and key != "")

    def _where(self) -> str:
        return f"vectors of {len(self._keys):,} keys"

    def __getitem__(self, keys: Key | Sequence[Key]) -> Float32s:
        """``v["word"]``: a read-only row (D,). ``v[["a", "b"]]``: a new array (2, D).

        With subwords, any word has a vector.

        Raises:
            KeyNotFound: there is no such key, and no subwords; the closest keys are named.
        """
        if isinstance(keys, (str, int, np.integer)):
            return self.get_vector(keys)
        return self._gather(keys)[0]

    def get_vector(self, key: Key, norm: bool = False) -> Float32s:
        """The vector of ``key``, (D,) float32, read-only; of length one if ``norm`` is set.

        That of a word that is no key is made of its subwords where there are some (zeros for a word that
        has no n-gram, as in fastText).

        Raises:
            KeyNotFound: there is no such key, and no subwords; the closest keys are named.
        """
        row = self._row(key)
        if row >= 0:
            vector: Float32s = self._matrix[row]
            if norm:
                vector = vector * self._inverse_norms(row, row + 1)[0]
        else:
            made = self._unseen([key])
            vector = (made * inverse(lengths(made))[:, None] if norm else made)[0]
        vector.flags.writeable = False
        return vector

    def _gather(self, keys: Iterable[Key]) -> tuple[Float32s, NDArray[np.int64]]:
        """The vectors of many keys (N, D), new, and their rows (N,), -1 for a word that is no key."""
        refuse_one(keys)
        names = list(keys)
        rows = np.array([self._row(key) for key in names], np.int64)
        unseen = np.flatnonzero(rows < 0)
        if not unseen.size:
            return self._matrix[rows], rows
        vectors = np.empty((len(names), self._matrix.shape[1]), np.float32)
        vectors[unseen] = self._unseen([names[place] for place in unseen.tolist()])
        known = np.flatnonzero(rows >= 0)
        vectors[known] = self._matrix[rows[known]]
        return vectors, rows

    def _unseen(self, words: Sequence[Key]) -> Float32s:
        """(N, D) vectors of words that are no keys, or ``KeyNotFound``."""
        for word in words:
            if not self.has_vector(word):
                raise KeyNotFound(word, self._where(), self._keys.close(word))
        assert self._subwords is not None
        return self._subwords.vectors([str(word) for word in words])

    @property
    def norms(self) -> Float32s:
        """(V,) float32: the length of each vector."""
        return lengths(self._matrix)

    def _inverse_norms(self, start: int = 0, stop: int | None = None) -> Float32s:
        # One over the length, 0 for a row of zeros, so that its cosine with anything is 0.
        if self._inverse is None and (stop is None or stop - start > 1):
            self._inverse = inverse(lengths(self._matrix))
        if self._inverse is None:
            return inverse(lengths(self._matrix[start:stop]))
        return self._inverse[start:stop]


def refuse_one(keys: object) -> None:
    """Refuse a string for a list of keys: it is a sequence too, of keys of one letter."""
    if isinstance(keys, str):
        raise SettingError(f"a list of keys is expected, not the one string {keys!r:.60}; try [{keys!r:.60}]")
