"""Rows of another model's embedding table from our vectors: Hugging Face's transformers and their like.

Nothing is imported for it: a model is what has ``get_input_embeddings()``, a tokenizer what has
``get_vocab()``; ``all_special_tokens``, ``get_added_vocab()`` and ``convert_tokens_to_string()`` are used
where they are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firth.errors import SettingError, ShapeError
from firth.search import inverse, lengths, top_k
from firth.vectors import Vectors

_MARKS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write the space before a word
_PIECE = "##"  # how WordPiece writes that a token goes on with a word


class Model(Protocol):
    """A model with a table of input embeddings."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The module whose ``weight`` has a row for each token id."""
        ...


class Tokenizer(Protocol):
    """A tokenizer with a vocabulary."""

    def get_vocab(self) -> Mapping[str, int]:
        """The id of each token, tokens written as the tokenizer writes them."""
        ...


class Filled(NamedTuple):
    """Which rows were set.

    Attributes:
        ids: (N,) int64, the token ids; words: the key that each row was made from.
        missing: words that were asked for and are no token of their own, or have no vector.
    """

    ids: Tensor
    words: list[str]
    missing: list[str]


def init_model_embeddings(
    model: Model,
    tokenizer: Tokenizer,
    vectors: Vectors,
    words: Iterable[str] | None = None,
    *,
    lower_case_backup: bool = False,
    std: float | None = None,
) -> Filled:
    """Copy the vectors of words into the rows of their tokens, in place.

    For models that are to be trained from the start, and for tables that hold these vectors already.
    In a trained model the rows of other words live in another space:
    :func:`extend_model_embeddings` makes rows for that. Tokens that are whole words are set: those with
    the mark of a word's beginning where the tokenizer has one, those without ``##``, and added tokens;
    special tokens and the padding row are left alone. Output embeddings that are tied follow.

    Args:
        model, tokenizer: of transformers, after ``model.resize_token_embeddings(len(tokenizer))``.
        vectors: as many numbers as the model's rows.
        words: only these, such as those that were added; ``None``: all that have a token and a vector.
        lower_case_backup: take the vector of the lower-cased word where the word has none.
        std: scale the copied numbers to this root mean square, such as the model's
            ``config.initializer_range``; ``None`` copies them as they are.

    Raises:
        ShapeError: the vectors have another number of numbers than the model's rows.
        SettingError: the table has fewer rows than the tokenizer has ids, no word has both a token and
            a vector, or ``std`` is not positive.
    """
    name = "init_model_embeddings()"
    weight, pairs, missing = _matched(name, model, tokenizer, vectors, words, lower_case_backup)
    if weight.shape[1] != vectors.vector_size:
        raise ShapeError(
            f"{name}: the model's rows have {weight.shape[1]} numbers and the vectors {vectors.vector_size}; "
            "extend_model_embeddings() carries words over between tables of different widths"
        )
    if not pairs:
        raise SettingError(f"{name}: no word has both a token of the tokenizer and a vector")
    found = vectors[[word for word, _ in pairs]]
    if std is not None:
        if not std > 0:
            raise SettingError(f"{name}: std is {std!r}; a positive number is expected")
        found = found * np.float32(std / max(np.sqrt(np.mean(found**2, dtype=np.float64)), 1e-30))
    return _set(weight, pairs, found, missing)


def extend_model_embeddings(
    model: Model,
    tokenizer: Tokenizer,
    vectors: Vectors,
    words: Iterable[str],
    *,
    neighbours: int = 10,
    temperature: float = 0.1,
    lower_case_backup: bool = False,
) -> Filled:
    """Give words that were added to a trained model rows that lie among those of similar words, in place.

    The row of a word becomes the mean of the model's own rows of the ``neighbours`` words that are most
    similar to it by ``vectors``, weighted by exp(cosine / ``temperature``). So it lies in the model's
    space, and the widths of the tables need not agree. Source: Minixhofer, Paischer and Rekabsaz 2022,
    "WECHSEL", section 3, with its 10 neighbours and temperature .1.

    Args:
        model, tokenizer: of transformers, after ``tokenizer.add_tokens(words)`` and
            ``model.resize_token_embeddings(len(tokenizer))``.
        vectors: of the words and of those that the model knows.
        words: whose rows are made; all other words that have a token and a vector are the model's own.
        neighbours: how many words a row is made of.
        temperature: the smaller, the more the most similar word decides.
        lower_case_backup: take the vector of the lower-cased word where the word has none.

    Raises:
        SettingError: the table has fewer rows than the tokenizer has ids, no word of the model has a
            vector, or ``neighbours`` or ``temperature`` is not positive.
    """
    name = "extend_model_embeddings()"
    if neighbours < 1 or not temperature > 0:
        raise SettingError(
            f"{name}: neighbours is {neighbours!r} and temperature {temperature!r}; both are positive"
        )
    asked = _listed(name, words)
    weight, pairs, missing = _matched(name, model, tokenizer, vectors, asked, lower_case_backup)
    _, known, _ = _matched(name, model, tokenizer, vectors, None, lower_case_backup)
    new = {token_id for _, token_id in pairs}
    anchors = [(word, token_id) for word, token_id in known if token_id not in new]
    if not anchors:
        raise SettingError(f"{name}: no other word of the tokenizer has a vector, so none is a neighbour")
    if not pairs:
        return _set(weight, [], np.zeros((0, weight.shape[1]), np.float32), missing)

    queries, targets = (vectors[[word for word, _ in some]] for some in (pairs, anchors))
    places, cosines = top_k(
        queries * inverse(lengths(queries))[:, None], targets, neighbours, scale=inverse(lengths(targets))
    )
    shares = np.where(places >= 0, np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature), 0)
    shares /= shares.sum(axis=1, keepdims=True)
    ids = torch.tensor([token_id for _, token_id in anchors], device=weight.device)
    rows = weight[ids].to("cpu", torch.float32).numpy()
    made = np.einsum("nk,nkd->nd", shares, rows[places]).astype(np.float32)
    return _set(weight, pairs, made, missing)


def _set(
    weight: Tensor, pairs: list[tuple[str, int]], rows: NDArray[np.float32], missing: list[str]
) -> Filled:
    ids = torch.tensor([token_id for _, token_id in pairs], dtype=torch.int64)
    with torch.no_grad():
        weight[ids.to(weight.device)] = torch.from_numpy(rows).to(weight.device, weight.dtype)
    return Filled(ids, [word for word, _ in pairs], missing)


def _listed(name: str, words: Iterable[str]) -> list[str]:
    if isinstance(words, str):
        raise SettingError(f"{name}: a list of words is expected, not the one string {words!r:.60}")
    return list(words)


def _matched(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    vectors: Vectors,
    words: Iterable[str] | None,
    lower_case_backup: bool,
) -> tuple[Tensor, list[tuple[str, int]], list[str]]:
    """The table, the keys of the vectors with the ids of their tokens, and the words left without."""
    layer = model.get_input_embeddings()
    weight = layer.weight
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ShapeError(f"{name}: the input embeddings of the model are no table of rows")
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= weight.shape[0]:
        raise SettingError(
            f"{name}: the tokenizer has the id {last} and the model's table {weight.shape[0]} rows; "
            "call model.resize_token_embeddings(len(tokenizer)) first"
        )
    tokens = whole_words(tokenizer)
    wanted = None if words is None else dict.fromkeys(_listed(name, words))
    pairs, done = [], set()
    padding_row = getattr(layer, "padding_idx", None)
    for word, token_id in tokens:
        if token_id == padding_row or (wanted is not None and word not in wanted):
            continue
        key = vectors.spelling(word, lower_case_backup)
        if key is not None:
            pairs.append((key, token_id))
            done.add(word)
    return weight.detach(), pairs, [word for word in wanted or () if word not in done]


def whole_words(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """The tokens that stand for a whole word, as (word, id), by id; a word may have several tokens."""
    table = tokenizer.get_vocab()
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    added = set(tokenizer.get_added_vocab()) if hasattr(tokenizer, "get_added_vocab") else set()
    n_marked = sum(token.startswith(_MARKS) and len(token) > 1 for token in table)
    n_pieces = sum(token.startswith(_PIECE) and token[2:3].isalnum() for token in table)
    spell = getattr(tokenizer, "convert_tokens_to_string", None)
    words = []
    for token, token_id in sorted(table.items(), key=lambda item: item[1]):
        if token in special:
            continue
        word = token
        if token in added:
            word = token.strip()
        elif n_marked > n_pieces:
            if not token.startswith(_MARKS):
                continue
            word = token[1:] if spell is None else str(spell([token])).strip()
        elif n_pieces and token.startswith(_PIECE):
            continue
        if word:
            words.append((word, token_id))
    return words
