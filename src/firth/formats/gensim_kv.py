"""gensim's own form of KeyedVectors, a Python pickle: only through an installed gensim, and only if asked.

Opening a pickle runs whatever code is in it. firth opens none: a file that looks like one is refused with
this to say, and ``format="gensim"`` hands it to ``gensim.models.KeyedVectors.load``, for those who trust it.
Arrays that gensim keeps in files beside (``.vectors.npy``) are gensim's to find. A whole model
(``Word2Vec.save``) is opened for its ``wv``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from firth.errors import FormatError, MissingExtra
from firth.files import replacing
from firth.formats.table import Format, Head, Options, Table, floats
from firth.keys import Keys

NAME = "gensim's KeyedVectors"


def recognise(head: Head) -> bool:
    """Never: a pickle is opened only where that was asked for."""
    return False


def _gensim() -> Any:
    try:
        return importlib.import_module("gensim.models").KeyedVectors
    except ImportError as error:
        raise MissingExtra(
            "gensim's own form is a pickle, which firth never opens itself, and gensim is not installed: "
            "pip install gensim, or save_word2vec_format where it is"
        ) from error


def _raised() -> tuple[type[Exception], ...]:
    """What opening a damaged pickle, or one of classes that are gone, comes to."""
    from pickle import PickleError  # the name of what gensim raises, nothing more

    lookups = (AttributeError, ImportError, IndexError, KeyError, NotImplementedError, RecursionError)
    return (*lookups, EOFError, MemoryError, OSError, OverflowError, PickleError, TypeError, ValueError)


def read(path: Path, options: Options) -> Table:
    """Have gensim load the file, and copy keys, numbers and counts.

    Raises:
        MissingExtra: gensim is not installed.
        FormatError: gensim cannot load it, or what it loads are no vectors.
    """
    keyed = _gensim()
    try:
        loaded = keyed.load(str(path))
    except _raised() as error:
        raise FormatError(f"gensim cannot load {path}: {type(error).__name__}: {str(error)[:120]}") from error
    loaded = getattr(loaded, "wv", loaded)
    names, matrix = getattr(loaded, "index_to_key", None), getattr(loaded, "vectors", None)
    if not isinstance(names, list) or not isinstance(matrix, np.ndarray) or len(names) != len(matrix):
        raise FormatError(f"{path} holds a {type(loaded).__name__}, which has no keys and vectors")
    first = len(names) if options.limit is None else min(len(names), options.limit)
    keys = Keys(str(name) for name in names[:first])
    extra = getattr(loaded, "expandos", {}).get("count")
    counts = None if extra is None or len(extra) != len(names) else np.asarray(extra[:first], np.int64)
    return Table(keys, floats(path, matrix, first), counts)


def write(path: Path, table: Table) -> None:
    """Have gensim save KeyedVectors into one file.

    Raises:
        MissingExtra: gensim is not installed.
        StorageError: the file cannot be written.
    """
    keyed = _gensim()
    made = keyed(table.matrix.shape[1], dtype=np.float32)
    made.add_vectors(table.keys.to_list(), np.asarray(table.matrix))
    if table.counts is not None:
        for key, count in zip(table.keys, table.counts.tolist(), strict=True):
            made.set_vecattr(key, "count", count)
    with replacing(path) as file:
        made.save(file)


def check(path: Path, keys: Iterable[str]) -> None:
    """Every key can be written."""


FORMAT = Format("gensim", (".kv",), recognise, read, write, check, holds=("counts",))
