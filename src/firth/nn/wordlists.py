"""Words as people hand them over: nested lists, numpy arrays, Arrow columns -> one flat list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Longs: TypeAlias = NDArray[np.int64]
Lookup: TypeAlias = str | Sequence[Any] | NDArray[Any]
"""A word, or a list, tuple, numpy array or Arrow column of words, or lists of such lists."""


def flat(words: Any, name: str) -> tuple[list[list[int]], list[str]]:
    """Nested lists as the lengths of the lists of each level, outermost first, and the words in order.

    A word alone has no levels. Lists without words end the nesting: ``[[], []]`` has two levels.

    Args:
        words: a :data:`Lookup`. name: the layer, for messages.

    Raises:
        TypeError: something else than words, or words beside lists of words.
    """
    sizes: list[list[int]] = []
    level = [_listed(words)]
    while True:
        n_words = sum(isinstance(item, str) for item in level)
        if n_words == len(level):
            return sizes, cast("list[str]", level)
        wrong = next((item for item in level if not isinstance(item, (str, list))), None)
        if n_words or not all(isinstance(item, list) for item in level):
            beside = all(isinstance(item, (str, list)) for item in level)
            found = "words and lists of words side by side" if beside else _described(wrong)
            raise TypeError(
                f"{name}: words must be str, or lists of them to any depth, got {found}; "
                "ids come as an integer tensor, torch.tensor([...])"
            )
        sizes.append([len(item) for item in level])
        level = [_listed(item) for inner in level for item in inner]


def arrow_column(words: Any) -> tuple[list[str], Longs] | None:
    """An Arrow column of strings as its distinct values and which of them each is; else ``None``.

    A column with nulls, or of lists, is ``None`` too: :func:`flat` takes it.
    """
    if not type(words).__module__.startswith("pyarrow"):
        return None
    import pyarrow as pa

    if isinstance(words, pa.ChunkedArray):
        words = pa.concat_arrays(words.unify_dictionaries().chunks or [pa.array([], words.type)])
    if not isinstance(words, pa.Array) or words.null_count:
        return None
    kind = words.type.value_type if pa.types.is_dictionary(words.type) else words.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    if not pa.types.is_dictionary(words.type):
        words = words.dictionary_encode()
    # A dictionary may hold words that the column does not use, and nobody asks about those.
    used, codes = np.unique(words.indices.to_numpy(zero_copy_only=False), return_inverse=True)
    distinct = words.dictionary.take(pa.array(used))
    return None if distinct.null_count else (distinct.to_pylist(), codes.astype(np.int64))


def counted(kept: NDArray[np.bool_], lengths: Iterable[int]) -> Longs:
    """(L,) how many of the words of each list are kept; ``lengths`` says how many each has."""
    ends = np.cumsum([0, *lengths])
    sums = np.concatenate(([0], np.cumsum(kept)))
    counts: Longs = np.diff(sums[ends])
    return counts


def hash_row(word: str, hash_rows: int) -> int:
    """Which of ``hash_rows`` rows an unknown word shares: BLAKE2b of its UTF-8 bytes, the same everywhere."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % hash_rows


def _described(item: object) -> str:
    if isinstance(item, bytes):
        return f"bytes, {item!r:.40}, of which .decode() makes a str"
    return f"{type(item).__name__}, {item!r:.40}"


def _listed(item: Any) -> Any:
    """A list of anything that holds words in an order; everything else as it is."""
    if isinstance(item, (str, list, bytes, Tensor)):
        return item
    # numpy arrays and scalars, pandas; Arrow columns and scalars; polars
    for method in ("tolist", "to_pylist", "as_py", "to_list"):
        if hasattr(item, method):
            return getattr(item, method)()
    return list(item) if isinstance(item, Sequence) else item
