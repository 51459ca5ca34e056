"""``DocumentTransformer``: a ``TextEncoder`` as an estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from firth.documents.encoder import Document, TextEncoder
from firth.documents.pooling import Mean, Pooling
from firth.errors import MissingExtra
from firth.sources import Tokenizer
from firth.vectors import Vectors

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise MissingExtra(
        "firth.documents.DocumentTransformer needs scikit-learn: pip install 'firth[sklearn]'; "
        "firth.documents.TextEncoder does without"
    ) from error


class DocumentTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Documents to the mean, plain or weighted, of the vectors of their words: (N, D) float32.

    A step of a ``Pipeline`` where ``TfidfVectorizer`` would stand. Words without a vector are left out;
    a document without a word that has one is zeros.

    Args:
        vectors: of the words; they cannot change, so clones of the estimator share them.
        pooling: ``None`` for ``firth.documents.Mean()``, or ``firth.documents.SIF(a=1e-3)``.
        tokenizer: how a text becomes words; ``None`` for ``firth.Tokenizer()``, at white space.

    Attributes:
        encoder_: the fitted ``TextEncoder``.
        components_: (k, D) float64, the directions that ``SIF`` takes out of each document.

    Raises:
        SettingError: from ``fit`` and ``transform``, as ``TextEncoder`` (a ValueError).
        NotFittedError: from ``transform`` before ``fit``.
    """

    def __init__(
        self, vectors: Vectors, pooling: Pooling | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        self.vectors = vectors
        self.pooling = pooling
        self.tokenizer = tokenizer

    def fit(self, X: Iterable[Document], y: object = None) -> Self:
        """Learn from documents; with the plain mean there is nothing to learn, and they are not read."""
        self._fitted(X)
        return self

    def transform(self, X: Iterable[Document]) -> NDArray[np.float32]:
        """(N, D) float32, a row for each text or list of words of ``X``."""
        check_is_fitted(self)
        return self.encoder_.encode(X)

    def fit_transform(self, X: Iterable[Document], y: object = None) -> NDArray[np.float32]:
        """``fit(X).transform(X)``, walking through ``X`` once."""
        documents = X if isinstance(X, str) else list(X)
        return self._fitted(documents).encode(documents)

    @property
    def components_(self) -> NDArray[np.float64]:
        """(k, D) float64, what ``fit`` found."""
        check_is_fitted(self)
        assert self.encoder_.learned is not None
        return self.encoder_.learned.components

    def _fitted(self, X: Iterable[Document]) -> TextEncoder:
        encoder = TextEncoder(
            self.vectors,
            Mean() if self.pooling is None else self.pooling,
            tokenizer=Tokenizer() if self.tokenizer is None else self.tokenizer,
        )
        if encoder.pooling.needs_fit or isinstance(X, str):
            encoder.fit(X)
        self.encoder_ = encoder
        self._n_features_out = self.vectors.vector_size
        return encoder

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.transformer_tags.preserves_dtype = []
        return tags
