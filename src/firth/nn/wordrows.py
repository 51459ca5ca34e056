"""What the rows of a layer with words stand for, and their values where vectors are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from firth.errors import SettingError
from firth.vectors import Vectors
from firth.vocab import UNKNOWN_POLICIES, Vocab

PAD = "<pad>"
"""The name of a padding row that is added without another one."""


class Rows(NamedTuple):
    """The rows that a layer asks torch for, and what they stand for."""

    n_rows: int
    vocab: Vocab | None
    hash_rows: int


def rows_for(name: str, num_embeddings: int | Vocab, unknown: str | None, hash_rows: int) -> Rows:
    """What the first argument of a layer means.

    Args:
        name: the layer's class, for messages.
        num_embeddings: rows, or a vocabulary with a row for each token.
        unknown: ``"drop"``, ``"unk"`` or ``"error"`` in place of the vocabulary's own policy, or
            ``"hash"``: unknown words share ``hash_rows`` rows that come after those of the words.
        hash_rows: how many; 1 or more with ``"hash"``, else 0.

    Raises:
        SettingError: a policy without a vocabulary, no such policy, ``hash_rows`` that do not fit it.
        TypeError: a list or mapping of words where a vocabulary is meant.
    """
    if not isinstance(num_embeddings, Vocab):
        if isinstance(num_embeddings, (str, Mapping, list, tuple)):
            raise TypeError(
                f"{name}: num_embeddings must be a number of rows or a firth.Vocab, got "
                f"{type(num_embeddings).__name__}; firth.Vocab([...]) makes one of a list of words"
            )
        if unknown is not None or hash_rows:
            raise SettingError(
                f"{name}: unknown and hash_rows say what happens to words, and this layer has no "
                "vocabulary; give a firth.Vocab in place of the number of rows"
            )
        return Rows(num_embeddings, None, 0)
    if unknown not in (None, "hash", *UNKNOWN_POLICIES):
        allowed = ", ".join(map(repr, (*UNKNOWN_POLICIES, "hash")))
        raise SettingError(f"{name}: unknown must be one of {allowed}, got {unknown!r}")
    if isinstance(hash_rows, bool) or not isinstance(hash_rows, int) or hash_rows < (unknown == "hash"):
        raise SettingError(
            f"{name}: hash_rows is the number of rows that unknown words share, 1 or more, got {hash_rows!r}"
        )
    if hash_rows and unknown != "hash":
        raise SettingError(f"{name}: hash_rows={hash_rows} belongs to unknown='hash', got {unknown!r}")
    vocab = num_embeddings
    if unknown is not None and unknown != "hash":
        vocab = vocab.with_unknown(unknown, vocab.unk_token)
    return Rows(len(vocab) + hash_rows, vocab, hash_rows)


class Place(NamedTuple):
    """Where the row of padding is: the arguments ``padding`` and ``padding_idx`` of ``from_vectors``."""

    key: bool | str
    row: int | None

    def among(self, name: str, tokens: list[str]) -> tuple[str | None, int | None]:
        """The key to be added, if one is, and the row of padding.

        Args:
            name: the function, for messages.
            tokens: those of the vectors, a row each.

        Raises:
            SettingError: there is no such row, or it is another key's.
        """
        pad = PAD if self.key is True else self.key
        there = tokens.index(pad) if pad in tokens else None
        last = len(tokens) - (not pad or there is not None)
        if self.row is not None and (isinstance(self.row, bool) or not 0 <= self.row <= last):
            raise SettingError(
                f"{name}: padding_idx is {self.row!r}; the row of padding is one of 0 to {last}"
            )
        if not pad:
            return None, self.row
        if there is None:
            return pad, len(tokens) if self.row is None else self.row
        if self.row not in (None, there):
            raise SettingError(
                f"{name}: {pad!r} is a key already, in row {there}, and padding_idx is {self.row}; leave "
                "padding_idx out, or name another key"
            )
        return None, there


def table_of(
    name: str, vectors: Vectors, place: Place, unknown: str, hash_rows: int
) -> tuple[Rows, Tensor, int | None]:
    """The rows, the weight (rows, D) float32 and the padding row of a layer made from vectors.

    Arguments and errors as for :meth:`firth.nn.words.Words.from_vectors`.
    """
    name = f"{name}.from_vectors()"
    if not isinstance(vectors, Vectors):
        raise TypeError(
            f"{name}: firth.Vectors are expected, got {type(vectors).__name__}; "
            "firth.Vectors.load(path) reads them, and from_pretrained takes a tensor"
        )
    if not len(vectors):
        raise SettingError(
            f"{name}: the vectors have no keys, only subwords; vectors.vectors_for_all(words) has both"
        )
    tokens, counts = vectors.index_to_key.to_list(), vectors.counts
    new, padding_row = place.among(name, tokens)
    at = len(tokens) if new is None or padding_row is None else padding_row
    if new is not None:
        tokens = [*tokens[:at], new, *tokens[at:]]
        counts = None if counts is None else np.insert(counts, at, 0)
    rows = rows_for(name, Vocab(tokens, counts), unknown, hash_rows)
    matrix = vectors.vectors
    weight = np.empty((rows.n_rows, matrix.shape[1]), np.float32)
    weight[:at] = matrix[:at]
    weight[at + (new is not None) : len(tokens)] = matrix[at:]
    weight[len(tokens) :] = matrix.mean(axis=0, dtype=np.float64)
    if new is not None:
        weight[at] = 0
    return rows, torch.from_numpy(weight), padding_row
