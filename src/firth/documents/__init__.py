"""Documents to vectors: means of their words, plain or weighted, for scikit-learn and LangChain too.

``DocumentTransformer`` is a scikit-learn estimator and is loaded, with scikit-learn, when it is first
asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from firth.documents.encoder import TextEncoder as TextEncoder
from firth.documents.pooling import SIF as SIF
from firth.documents.pooling import Mean as Mean

if TYPE_CHECKING:
    from firth.documents.transformer import DocumentTransformer as DocumentTransformer

__all__ = ["SIF", "DocumentTransformer", "Mean", "TextEncoder"]


def __getattr__(name: str) -> object:
    if name != "DocumentTransformer":
        raise AttributeError(f"module 'firth.documents' has no attribute {name!r}")
    return importlib.import_module("firth.documents.transformer").DocumentTransformer


def __dir__() -> list[str]:
    return sorted(__all__)
