"""firth: a table that gives every symbol a vector.

::

    import firth

    vocab = firth.Vocab.count("wiki.txt", min_count=5)
    corpus = firth.Corpus.encode("wiki.txt", vocab)
    vectors = firth.train(corpus, firth.SkipGram(window=5, negatives=5), dim=100, epochs=5)
    vectors.most_similar("paris", topn=5)
    vectors.save("wiki.safetensors")

Importing firth imports nothing else: a name is loaded from its module when it is first asked
for, and torch, numba and pyarrow only by the functions that need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from firth.version import __version__ as __version__

if TYPE_CHECKING:
    from firth import documents as documents
    from firth import errors as errors
    from firth import evaluate as evaluate
    from firth import nn as nn
    from firth import video as video
    from firth.comparison import align as align
    from firth.comparison import compare as compare
    from firth.comparison import merge as merge
    from firth.corpus import Corpus as Corpus
    from firth.errors import Diverged as Diverged
    from firth.errors import FirthError as FirthError
    from firth.errors import FormatError as FormatError
    from firth.errors import Interrupted as Interrupted
    from firth.errors import KeyNotFound as KeyNotFound
    from firth.errors import MissingExtra as MissingExtra
    from firth.errors import RunError as RunError
    from firth.errors import SettingError as SettingError
    from firth.errors import ShapeError as ShapeError
    from firth.errors import SourceError as SourceError
    from firth.errors import StorageError as StorageError
    from firth.sources import Tokenizer as Tokenizer
    from firth.training import SkipGram as SkipGram
    from firth.training import train as train
    from firth.vectors import Vectors as Vectors
    from firth.vocab import Vocab as Vocab

# Public name -> the module that holds it; "" where the name is itself a module.
_HOME = {
    "align": "firth.comparison",
    "compare": "firth.comparison",
    "Corpus": "firth.corpus",
    "Diverged": "firth.errors",
    "FirthError": "firth.errors",
    "FormatError": "firth.errors",
    "Interrupted": "firth.errors",
    "KeyNotFound": "firth.errors",
    "MissingExtra": "firth.errors",
    "RunError": "firth.errors",
    "SettingError": "firth.errors",
    "ShapeError": "firth.errors",
    "SkipGram": "firth.training",
    "SourceError": "firth.errors",
    "StorageError": "firth.errors",
    "Tokenizer": "firth.sources",
    "Vectors": "firth.vectors",
    "Vocab": "firth.vocab",
    "documents": "",
    "errors": "",
    "evaluate": "",
    "merge": "firth.comparison",
    "nn": "",
    "train": "firth.training",
    "video": "",
}

__all__ = [  # what _HOME lists, spelt out for tools that read and do not run
    "Corpus",
    "Diverged",
    "FirthError",
    "FormatError",
    "Interrupted",
    "KeyNotFound",
    "MissingExtra",
    "RunError",
    "SettingError",
    "ShapeError",
    "SkipGram",
    "SourceError",
    "StorageError",
    "Tokenizer",
    "Vectors",
    "Vocab",
    "__version__",
    "align",
    "compare",
    "documents",
    "errors",
    "evaluate",
    "merge",
    "nn",
    "train",
    "video",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'firth' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name) if home else importlib.import_module(f"firth.{name}")
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
