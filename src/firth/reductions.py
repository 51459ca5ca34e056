"""Vectors made smaller or cleaner: fewer numbers, fewer bytes a number, without what all rows share."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firth import quantize
from firth.errors import SettingError
from firth.keys import Keys
from firth.subwords import Subwords

if TYPE_CHECKING:
    from firth.vectors import Vectors

Float32s = NDArray[np.float32]
STORAGES = ("float32", "float16", "int8")
NESTED = "nested"  # the note in the metadata that a beginning of a vector is a vector too
BLOCK = 1 << 22  # numbers handled at once where a copy in float64 is needed


class Reductions:
    """The methods of ``Vectors`` that trade quality for size; each gives new ``Vectors``."""

    _keys: Keys
    _matrix: Float32s
    _counts: NDArray[np.int64] | None
    _context_matrix: Float32s | None
    _metadata: dict[str, Any]
    _storage: str
    _subwords: Subwords | None

    def _derived(
        self,
        keys: Keys,
        matrix: Float32s,
        counts: NDArray[np.int64] | None,
        context: Float32s | None,
        change: str,
        subwords: Subwords | None = None,
    ) -> Vectors:
        raise NotImplementedError

    def reduce(self, dim: int) -> Vectors:
        """New ``Vectors`` of ``dim`` numbers: the first principal components of the centred rows.

        Computed in float64; of each component the largest entry is made positive, so that the
        result does not depend on the solver. Without the context table. The numbers come by falling
        variance, so ``truncate`` may cut the result again: ``reduce(vector_size)`` is a rotation that
        loses nothing, and its first numbers are those of a smaller ``reduce``. Rows of subwords are turned
        like the others, into memory.

        Raises:
            SettingError: ``dim`` is not between 1 and ``vector_size``.
        """
        own = self._matrix.shape[1]
        if not 1 <= dim <= own:
            raise SettingError(f"reduce(): dim is {dim}; 1 to {own} is possible")
        mean, variances, components = principal(self._matrix)
        components = components[:, :dim]

        def turned(part: Float32s) -> NDArray[np.float64]:
            found: NDArray[np.float64] = (part - mean) @ components
            return found

        matrix = np.empty((len(self._matrix), dim), np.float32)
        for rows in blocks(self._matrix):
            matrix[rows] = turned(self._matrix[rows])
        subwords = None if self._subwords is None else self._subwords.mapped(turned)
        kept = float(variances[:dim].sum() / max(variances.sum(), np.finfo(float).tiny))
        note = f"reduce: {own} to {dim} numbers, {100 * kept:.1f} % of the variance"
        result = self._derived(self._keys, matrix, self._counts, None, note, subwords)
        result._metadata[NESTED] = "principal components"
        return result

    def all_but_the_top(self, n: int | None = None) -> Vectors:
        """New ``Vectors`` without what all rows share: the mean, and the first ``n`` principal components.

        The dimension stays. Without the context table; rows of subwords are changed alike, into memory.
        Source: Mu and Viswanath 2018, "All-but-the-Top: Simple and Effective Postprocessing for Word
        Representations", algorithm 1.

        Args:
            n: components to remove; by default one for each 100 numbers of a vector, at least 1, as the
                paper advises; 0 removes the mean only.

        Raises:
            SettingError: ``n`` is not between 0 and ``vector_size - 1``.
        """
        own = self._matrix.shape[1]
        if n is None:
            n = min(max(round(own / 100), 1), own - 1)
        if not 0 <= n < own:
            raise SettingError(f"all_but_the_top(): n is {n}; 0 to {own - 1} components can be removed")
        mean, variances, components = principal(self._matrix)
        top = components[:, :n]

        def cleaned(part: Float32s) -> NDArray[np.float64]:
            centred = part - mean
            found: NDArray[np.float64] = centred - (centred @ top) @ top.T
            return found

        matrix = np.empty(self._matrix.shape, np.float32)
        for rows in blocks(self._matrix):
            matrix[rows] = cleaned(self._matrix[rows])
        subwords = None if self._subwords is None else self._subwords.mapped(cleaned)
        share = float(variances[:n].sum() / max(variances.sum(), np.finfo(float).tiny))
        note = f"all_but_the_top: the mean and {n} components removed, {100 * share:.1f} % of the variance"
        result = self._derived(self._keys, matrix, self._counts, None, note, subwords)
        result._metadata.pop(NESTED, None)  # the first numbers may be the ones that were removed
        return result

    def truncate(self, dim: int) -> Vectors:
        """New ``Vectors`` of the first ``dim`` numbers of each row.

        That keeps the best part only where the numbers are ordered by weight: after ``reduce``, or in
        vectors that were trained so (Kusupati et al. 2022, "Matryoshka Representation Learning"), which
        their metadata say by the entry ``"nested"``. firth does not train so. Of other vectors the first
        numbers are a part like any other, and a warning says so. The context table and the rows
        of subwords are cut too.

        Raises:
            SettingError: ``dim`` is not between 1 and ``vector_size``.
        """
        own = self._matrix.shape[1]
        if not 1 <= dim <= own:
            raise SettingError(f"truncate(): dim is {dim}; 1 to {own} is possible")
        if dim < own and not self._metadata.get(NESTED):
            warnings.warn(
                f"truncate(): these vectors were not made so that their first {dim} numbers stand for all "
                f"{own}; reduce({dim}) keeps the most of their variance",
                UserWarning,
                stacklevel=2,
            )
        context = None if self._context_matrix is None else self._context_matrix[:, :dim]
        note = f"truncate: the first {dim} of {own} numbers"
        subwords = None if self._subwords is None else self._subwords.mapped(lambda rows: rows[:, :dim])
        return self._derived(self._keys, self._matrix[:, :dim], self._counts, context, note, subwords)

    def quantized(self, kind: str) -> Vectors:
        """New ``Vectors`` whose numbers are those that ``kind`` can hold, saved in that size.

        In memory they are float32 as ever. The native file holds one byte a number and a float32 scale a
        row (``"int8"``, the row's largest number is 127), or two bytes (``"float16"``); what is loaded
        from it is equal to this to the last bit, and saves as small again. ``firth.quantize`` tells how
        far off numbers and products are; rows of subwords are left as they are. To keep int8 in memory
        too, make a ``firth.nn.QuantizedEmbedding`` of them.

        Args:
            kind: ``"int8"``, ``"float16"``, or ``"float32"`` to save these at full size again.

        Raises:
            SettingError: no such kind.
            ShapeError: NaN or infinity, or a number beyond what the kind holds: the row is named.
        """
        if kind not in STORAGES:
            raise SettingError(f"quantized(): kind is {kind!r}; one of {', '.join(STORAGES)} is expected")
        context = None if self._context_matrix is None else _rounded(self._context_matrix, kind)
        matrix = _rounded(self._matrix, kind)
        note = f"quantized: {kind}"
        result = self._derived(self._keys, matrix, self._counts, context, note, self._subwords)
        result._storage = kind
        return result

    @property
    def storage(self) -> str:
        """What a number takes in the native file: ``"float32"``, ``"float16"`` or ``"int8"``.

        Other than float32 after ``quantized``, or where they were loaded from such a file: the numbers
        are then those that survived the rounding.
        """
        return self._storage


def principal(matrix: Float32s) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,), variances (D,) times the number of rows, falling, and components (D, D), a column each.

    Of each component the largest entry is positive.
    """
    dim = matrix.shape[1]
    if not len(matrix):
        raise SettingError("there are no rows to find components of; vectors_for_all(words) gives some")
    mean: NDArray[np.float64] = matrix.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((dim, dim))
    for rows in blocks(matrix):
        part = matrix[rows] - mean
        scatter += part.T @ part
    variances, components = np.linalg.eigh(scatter)  # rising
    variances, components = np.maximum(variances[::-1], 0), components[:, ::-1]
    largest = components[np.abs(components).argmax(axis=0), np.arange(dim)]
    return mean, variances, components * np.where(largest < 0, -1.0, 1.0)


def blocks(matrix: Float32s) -> list[slice]:
    """Slices of rows of about ``BLOCK`` numbers each."""
    step = max(1, BLOCK // max(1, matrix.shape[1]))
    return [slice(start, min(start + step, len(matrix))) for start in range(0, len(matrix), step)]


def _rounded(matrix: Float32s, kind: str) -> Float32s:
    if kind == "int8":
        return quantize.from_int8(*quantize.to_int8(matrix))
    return quantize.from_half(quantize.to_half(matrix)) if kind == "float16" else matrix
