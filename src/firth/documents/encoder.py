"""``TextEncoder``: documents to vectors in numpy, under LangChain's names too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firth.documents.pooling import Floats, Learned, Mean, Pooling, sums
from firth.errors import SettingError
from firth.sources import Tokenizer
from firth.vectors import Vectors

Document: TypeAlias = str | list[str] | tuple[str, ...]
"""A text, or its tokens."""

BATCH = 1 << 18  # tokens held at once


class _Batch(NamedTuple):
    """Some documents as rows of the vectors; words without a vector are left out."""

    n_documents: int
    n_tokens: int  # those without a vector too
    rows: NDArray[np.int64]  # (T,)
    owners: NDArray[np.int64]  # (T,) which document each row belongs to, rising
    unseen: list[str]  # (U,) words that are no keys but have subwords; row -1 - u stands for word u


class TextEncoder:
    """Texts to vectors of the same dimension as the words'.

    A document's vector is a mean of the vectors of its words, as ``pooling`` says. Words without a vector
    are left out and do not count; a document without a word that has one, an empty text say, is zeros.

    It has the methods of LangChain's ``Embeddings`` (``embed_documents``, ``embed_query`` and their
    ``a...`` forms), so that it can be given where one of these is expected; LangChain is not imported.

    Args:
        vectors: of the words.
        pooling: ``Mean()``, or ``SIF()`` which has to see documents first (``fit``).
        tokenizer: how a text becomes words; at white space by default, which leaves case and punctuation
            as they are: choose what the vectors were trained with.

    Attributes:
        learned: what ``fit`` learned, or ``None`` before.

    Raises:
        SettingError: something else than ``Vectors``.
    """

    def __init__(
        self, vectors: Vectors, pooling: Pooling = Mean(), *, tokenizer: Tokenizer = Tokenizer()
    ) -> None:
        if not isinstance(vectors, Vectors):
            raise SettingError(
                f"TextEncoder(): firth.Vectors are expected, got {type(vectors).__name__}; "
                "firth.Vectors.load(path) reads them"
            )
        self.vectors, self.pooling, self.tokenizer = vectors, pooling, tokenizer
        self.learned: Learned | None = None
        if not pooling.needs_fit:
            self.learned = Learned(None, np.zeros((0, vectors.vector_size)))

    def fit(self, documents: Iterable[Document]) -> Self:
        """Learn what the pooling needs: for ``SIF`` the components that are taken out.

        The probabilities of ``SIF`` come from ``vectors.counts``, or where there are none from these
        documents.

        Raises:
            SettingError: no documents, or something else than texts or lists of words.
        """
        if isinstance(documents, str):
            _refuse_one("fit", documents)
        batches = list(self._batches(documents, "fit"))
        if not batches:
            raise SettingError("TextEncoder.fit(): there are no documents to learn from")
        weights = self._weights(batches)
        means = (self._means(batch, weights) for batch in batches)
        self.learned = Learned(weights, self.pooling.directions(means, self.vectors.vector_size))
        return self

    def encode(self, documents: Iterable[Document]) -> NDArray[np.float32]:
        """(N, D) float32: the vector of each document; zeros for one without a known word.

        Args:
            documents: texts, or lists of words, which are taken as they are.

        Raises:
            SettingError: ``fit`` has to come first, one string for a list of them, or something else than
                texts.
        """
        if isinstance(documents, str):
            _refuse_one("encode", documents)
        if self.learned is None:
            raise SettingError(
                f"TextEncoder.encode(): {self.pooling} learns from documents; call fit(documents) first"
            )
        weights, components = self.learned
        found = [np.zeros((0, self.vectors.vector_size), np.float32)]
        for batch in self._batches(documents, "encode"):
            means = self._means(batch, weights)
            means -= (means @ components.T) @ components
            found.append(means.astype(np.float32))
        return np.concatenate(found)

    # -- LangChain's names

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """``encode`` as lists of floats."""
        lists: list[list[float]] = self.encode(texts).tolist()
        return lists

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text as a list of floats."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """``embed_documents`` in a thread, so that an event loop goes on meanwhile."""
        import asyncio

        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """``embed_query`` in a thread."""
        import asyncio

        return await asyncio.to_thread(self.embed_query, text)

    # -- the parts

    def _tokens(self, document: object, place: int, caller: str) -> list[str]:
        if isinstance(document, str):
            return self.tokenizer.split(document)
        if isinstance(document, (list, tuple)) and all(isinstance(token, str) for token in document):
            return list(document)
        raise SettingError(
            f"TextEncoder.{caller}(): document {place} is {type(document).__name__} {document!r:.60}; "
            "a str or a list of words is expected"
        )

    def _batches(self, documents: Iterable[Document], caller: str) -> Iterator[_Batch]:
        texts: list[list[str]] = []
        n_tokens = 0
        for place, document in enumerate(documents):
            texts.append(self._tokens(document, place, caller))
            n_tokens += len(texts[-1])
            if n_tokens >= BATCH:
                yield self._batch(texts, n_tokens)
                texts, n_tokens = [], 0
        if texts:
            yield self._batch(texts, n_tokens)

    def _batch(self, texts: list[list[str]], n_tokens: int) -> _Batch:
        row_of = self.vectors.key_to_index
        owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        tokens = list(chain.from_iterable(texts))
        rows = np.fromiter(map(row_of.get, tokens, repeat(-1)), np.int64, n_tokens)
        if self.vectors.subwords is None:
            known = rows >= 0
            return _Batch(len(texts), n_tokens, rows[known], owners[known], [])
        numbers: dict[str, int] = {}
        for place in np.flatnonzero(rows < 0).tolist():
            rows[place] = -1 - numbers.setdefault(tokens[place], len(numbers))
        return _Batch(len(texts), n_tokens, rows, owners, list(numbers))

    def _weights(self, batches: list[_Batch]) -> Floats | None:
        counts = self.vectors.counts
        if counts is not None and counts.any():
            return self.pooling.weights(counts, int(counts.sum()))
        counts = np.zeros(len(self.vectors), np.int64)
        for batch in batches:
            counts += np.bincount(batch.rows[batch.rows >= 0], minlength=len(counts))
        return self.pooling.weights(counts, sum(batch.n_tokens for batch in batches))

    def _means(self, batch: _Batch, weights: Floats | None) -> Floats:
        of_token = np.ones(len(batch.rows))
        seen = batch.rows >= 0
        if weights is not None:
            of_token[seen] = weights[batch.rows[seen]]  # a word that never occurred counts 1
        parts = [(self.vectors.vectors, batch.rows[seen], seen)]
        if batch.unseen:
            parts.append((self.vectors[batch.unseen], -1 - batch.rows[~seen], ~seen))
        means = np.zeros((batch.n_documents, self.vectors.vector_size))
        for matrix, rows, which in parts:
            means += sums(matrix, rows, batch.owners[which], of_token[which], batch.n_documents)
        means /= np.maximum(np.bincount(batch.owners, minlength=batch.n_documents), 1)[:, None]
        return means


def _refuse_one(caller: str, text: str) -> None:
    raise SettingError(
        f"TextEncoder.{caller}(): a list of documents is expected, not the one text {text!r:.60}"
    )
