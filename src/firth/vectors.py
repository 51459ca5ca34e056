"""``Vectors``: a key and a vector a row. Immutable; memory-mapped when loaded; asked by gensim's names."""

from __future__ import annotations

import copy
import html
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from firth import formats, hub
from firth.errors import SettingError, ShapeError
from firth.formats import Options, Table
from firth.keys import Keys
from firth.lookup import Float32s
from firth.queries import Queries
from firth.reductions import Reductions
from firth.search import inverse, lengths
from firth.subwords import Subwords
from firth.torchnames import TorchNames

PATH = str | os.PathLike[str]


class Vectors(Reductions, TorchNames, Queries):
    """Keys and a matrix of one row each.

    Args:
        keys: (V,) distinct, non-empty strings, most frequent first by custom.
        matrix: (V, D); float32 in C order is taken over without a copy, so do not change it later.
        counts: (V,) how often each key occurred, or ``None``.
        context: (V, D) the second table of the training (the context vectors), or ``None``.
        metadata: what there is to say about the vectors, as JSON has it: settings, scores, loss.
        subwords: rows of n-grams, of which words that are no keys get their vectors. With them there may
            be no keys at all, and a matrix of shape (0, D).

    Raises:
        ShapeError: the shapes do not fit, or the matrix is empty or not of numbers.
        SettingError: a key is empty or occurs twice, or the metadata are no JSON.
    """

    def __init__(
        self,
        keys: Sequence[str],
        matrix: NDArray[Any],
        *,
        counts: Sequence[int] | NDArray[Any] | None = None,
        context: NDArray[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        subwords: Subwords | None = None,
    ) -> None:
        self._keys = keys if isinstance(keys, Keys) else Keys(keys)
        self._matrix = _frozen(matrix, "matrix")
        self._inverse: Float32s | None = None
        self._context_matrix = None if context is None else _frozen(context, "context")
        self._context: Vectors | None = None
        self._source: Path | None = None
        self._storage = "float32"
        self._subwords = subwords
        self._counts = None if counts is None else _counts(counts, len(self._keys))
        self._metadata = _jsonable(metadata or {})
        if len(self._keys) != len(self._matrix):
            raise ShapeError(f"Vectors(): {len(self._keys):,} keys and {len(self._matrix):,} rows do not fit")
        if subwords is not None and subwords.dim != self._matrix.shape[1]:
            raise ShapeError(
                f"Vectors(): subwords have {subwords.dim} numbers a row, the matrix {self._matrix.shape[1]}"
            )
        if self._matrix.size == 0 and subwords is None:
            raise ShapeError(
                f"Vectors(): the matrix has the shape {self._matrix.shape}; one row and number is the least"
            )
        if self._context_matrix is not None and self._context_matrix.shape != self._matrix.shape:
            raise ShapeError(
                f"Vectors(): context has the shape {self._context_matrix.shape}, "
                f"the matrix {self._matrix.shape}"
            )

    # -- files

    @classmethod
    def load(
        cls,
        path: PATH,
        *,
        format: str | None = None,
        header: bool | None = None,
        limit: int | None = None,
        errors: str = "strict",
        dtype: str = "float32",
    ) -> Vectors:
        """Read a file of vectors; safetensors is mapped, so that opening costs next to nothing.

        Args:
            path: a file or folder of any format that firth knows: safetensors as ``save`` writes it,
                word2vec text (also fastText's ``.vec``), word2vec binary, GloVe text, fastText's ``.bin``
                and ``.ftz`` with their subwords, a floret table, and those of ``firth.formats.FORMATS``;
                text also compressed by gzip, bzip2, xz or Zstandard. The content decides, not the name.
            format: a name of ``firth.formats.FORMATS`` (``"word2vec"``, ``"fasttext"``, ...), to choose it.
            header: for text that reads both ways, whether the first line is ``rows dim``.
            limit: read the first rows only; rows of n-grams are kept all the same.
            errors: what to do with keys that are no UTF-8: ``"strict"`` refuses; ``"replace"``,
                ``"ignore"`` and ``"surrogateescape"`` mean what they mean to ``bytes.decode``.
            dtype: ``"float32"``, or ``"float16"`` to round each number to the nearest float16. Whatever
                the file holds and this says, ``Vectors`` keeps float32; the native file that they are
                saved to then takes two bytes a number.

        Raises:
            SettingError: no such format, or a setting out of its range.
            FormatError: the file is cut, lies or is none of these; the sentence says where.
            SourceError: its compressed data is damaged.
            StorageError: it cannot be opened.
        """
        place = Path(path)
        table = formats.read(place, format, Options(header, limit, errors, dtype))
        vectors = cls(
            table.keys,
            table.matrix,
            counts=table.counts,
            context=table.context,
            metadata=table.metadata,
            subwords=table.subwords,
        )
        vectors._source, vectors._storage = place, table.storage
        return vectors

    def save(self, path: PATH, format: str | None = None) -> None:
        """Write a file, whole or not at all.

        Only safetensors holds counts, context, subwords and metadata; fastText's ``.bin`` the first three;
        the others hold keys and numbers.

        Args:
            path: the ending chooses: ``.txt`` and ``.vec`` word2vec text, ``.bin`` word2vec binary,
                ``.glove`` GloVe text, ``.floret`` a floret table, and so on as each format says;
                anything else safetensors.
            format: the name of a format, to choose it here: ``"fasttext"`` for fastText's own ``.bin``.

        Raises:
            SettingError: no such format, or an ending that promises compression.
            FormatError: a key cannot be written in the format.
            StorageError: the file cannot be written; what stood there is untouched.
        """
        table = Table(
            self._keys,
            self._matrix,
            self._counts,
            self._context_matrix,
            self._metadata,
            self._storage,
            self._subwords,
        )
        formats.write(Path(path), table, format)

    @classmethod
    def load_word2vec_format(
        cls,
        fname: PATH,
        binary: bool = False,
        unicode_errors: str = "strict",
        limit: int | None = None,
        no_header: bool = False,
    ) -> Vectors:
        """gensim's name for ``load`` with ``format="word2vec"``, ``"word2vec-binary"`` or ``"glove"``.

        Raises:
            SettingError: ``binary`` and ``no_header``; else as ``load``.
        """
        if binary and no_header:
            raise SettingError("load_word2vec_format(): the binary form always has a header; drop no_header")
        name = "word2vec-binary" if binary else "glove" if no_header else "word2vec"
        return cls.load(fname, format=name, limit=limit, errors=unicode_errors)

    def save_word2vec_format(self, fname: PATH, binary: bool = False, write_header: bool = True) -> None:
        """gensim's name for ``save`` with ``format="word2vec"``, ``"word2vec-binary"`` or ``"glove"``.

        Raises:
            SettingError: ``binary`` without ``write_header``; else as ``save``.
        """
        if binary and not write_header:
            raise SettingError(
                "save_word2vec_format(): the binary form always has a header; drop write_header=False"
            )
        self.save(fname, "word2vec-binary" if binary else "word2vec" if write_header else "glove")

    # -- the Hugging Face hub

    @classmethod
    def from_pretrained(
        cls, name: PATH, *, filename: str | None = None, revision: str | None = None, token: str | None = None
    ) -> Vectors:
        """Vectors in a file or folder that is there, or else in a repository of the Hugging Face hub.

        Args:
            name: a path, which is loaded without asking anybody; or a repository's name, ``"user/name"``,
                which huggingface_hub fetches into its cache (``HF_HUB_OFFLINE=1`` takes the cache alone).
            filename: one file there, in any format that ``load`` reads: ``"model.bin"``, say. By default
                the folder that ``push_to_hub``, sentence-transformers and model2vec write.
            revision: a branch, tag or commit; the main branch by default.
            token: of the account; huggingface_hub's own by default.

        Raises:
            MissingExtra: huggingface_hub is not installed, and there is no such path.
            SettingError: ``name`` is no path that is there and cannot be a repository's name.
            StorageError: the hub cannot be asked, or has no such thing.
            FormatError: what is there holds no vectors.
        """
        return cls.load(hub.fetched(name, filename, revision, token))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        format: str = "static-folder",
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Vectors written by firth",
    ) -> str:
        """Upload them to a repository of the Hugging Face hub, which is made if it is not there.

        Args:
            repo_id: ``"user/name"``.
            format: ``"static-folder"``, which sentence-transformers and model2vec open and which leaves
                context and subwords behind; or ``"safetensors"``, the native file with everything.
            private: whether a repository that is made now is private; the account's custom by default.
            revision: the branch; the main branch by default.
            token: of the account; huggingface_hub's own by default.
            commit_message: says what changed.

        Returns:
            The address of the commit.

        Raises:
            MissingExtra: huggingface_hub is not installed.
            SettingError: no such format, or a name that cannot be a repository's.
            StorageError: the hub cannot be asked, or refuses.
        """
        if format == hub.FOLDER and self._subwords is not None:
            warnings.warn(
                f"push_to_hub(): subwords do not go along in the folder; format={hub.NATIVE!r} keeps them",
                UserWarning,
                stacklevel=2,
            )
        return hub.pushed(self.save, repo_id, format, private, revision, token, commit_message)

    # -- what is in them

    @property
    def vectors(self) -> Float32s:
        """The matrix, (V, D) float32, read-only."""
        return self._matrix

    @property
    def vector_size(self) -> int:
        """D, how many numbers a vector has."""
        return int(self._matrix.shape[1])

    @property
    def index_to_key(self) -> Keys:
        """The keys in the order of the rows: a read-only sequence of ``str``; a slice is a list."""
        return self._keys

    @property
    def key_to_index(self) -> Mapping[str, int]:
        """A read-only mapping of key to row."""
        return self._keys.mapping()

    @property
    def counts(self) -> NDArray[np.int64] | None:
        """(V,) int64, read-only: how often each key occurred; ``None`` where nobody said."""
        return self._counts

    @property
    def context(self) -> Vectors | None:
        """The second table under the same keys, if it was kept."""
        if self._context is None and self._context_matrix is not None:
            self._context = Vectors(self._keys, self._context_matrix, counts=self._counts)
            self._context._source = self._source
        return self._context

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known about the vectors (settings of the run, scores, loss); a copy."""
        return copy.deepcopy(self._metadata)

    @property
    def source(self) -> Path | None:
        """The file they were loaded from."""
        return self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Nothing in them changes, so that models that hold them are copied without copying the matrix.
        return self

    # -- new ones from old

    def with_vectors(self, changes: Mapping[str, NDArray[Any] | Sequence[float]]) -> Vectors:
        """New ``Vectors`` with some rows replaced and keys that are new put at the end.

        New keys have the count 0. The context table is kept while no key is new, subwords always.

        Raises:
            ShapeError: a vector of another length, or with NaN or infinity in it.
        """
        new = [key for key in changes if key not in self._keys]
        matrix = np.empty((len(self) + len(new), self.vector_size), np.float32)
        matrix[: len(self)] = self._matrix
        keys = Keys([*self._keys, *new]) if new else self._keys
        for key, vector in changes.items():
            matrix[keys.row(key)] = self._vector(np.asarray(vector))
        counts = self._counts
        if counts is not None:
            counts = np.concatenate((counts, np.zeros(len(new), np.int64)))
        context = None if new else self._context_matrix
        note = f"with_vectors: {len(changes)} rows, {len(new)} new"
        return self._derived(keys, matrix, counts, context, note, self._subwords)

    def normalized(self) -> Vectors:
        """New ``Vectors`` of length one (rows of zeros stay); without the context table and subwords."""
        matrix = self._matrix * inverse(lengths(self._matrix))[:, None]
        return self._derived(self._keys, matrix, self._counts, None, "normalized")

    def subset(self, keys: Sequence[str]) -> Vectors:
        """New ``Vectors`` of these keys in this order, with their counts, context and the subwords.

        Raises:
            KeyNotFound: one is not there.
        """
        rows = self._rows(keys)
        context = None if self._context_matrix is None else self._context_matrix[rows]
        counts = None if self._counts is None else self._counts[rows]
        note = f"subset: {len(rows)} of {len(self)} keys"
        result = self._derived(
            self._keys.take(rows), self._matrix[rows], counts, context, note, self._subwords
        )
        result._storage = self._storage
        return result

    def vectors_for_all(self, keys: Sequence[str]) -> Vectors:
        """New ``Vectors`` of these keys in this order, also of those that only subwords have a vector for.

        gensim's name; keys without a vector are left out there, here they are refused. Counts, 0 for
        new keys, and subwords are kept, context only where no key is new.

        Raises:
            KeyNotFound: a key is not there, and there are no subwords.
        """
        matrix, rows = self._gather(keys)
        known = rows >= 0
        counts = None if self._counts is None else np.where(known, self._counts[rows], 0)
        context = self._context_matrix[rows] if self._context_matrix is not None and known.all() else None
        note = f"vectors_for_all: {len(rows)} keys, {int((~known).sum())} new"
        return self._derived(Keys(keys), matrix, counts, context, note, self._subwords)

    def _derived(
        self,
        keys: Keys,
        matrix: Float32s,
        counts: NDArray[np.int64] | None,
        context: Float32s | None,
        change: str,
        subwords: Subwords | None = None,
    ) -> Vectors:
        metadata = self.metadata
        metadata["changes"] = [*metadata.get("changes", []), change]
        if self._subwords is not None and subwords is None:
            metadata["changes"][-1] += "; subwords left out"
        return Vectors(keys, matrix, counts=counts, context=context, metadata=metadata, subwords=subwords)

    # -- for people

    def _where(self) -> str:
        return f"vectors of {len(self):,} keys" + (f" ({self._source.name})" if self._source else "")

    def __repr__(self) -> str:
        words = " ".join(repr(key) for key in self._keys[:4]) + (" ..." if len(self) > 4 else "")
        extras = [
            name
            for name, value in (
                ("counts", self._counts),
                ("context", self._context_matrix),
                ("subwords", self._subwords),
            )
            if value is not None
        ]
        parts = [
            f"{len(self):,} keys x {self.vector_size}",
            words,
            *([f"with {' and '.join(extras)}"] if extras else []),
            *([f"stored as {self._storage}"] if self._storage != "float32" else []),
        ]
        if self._source:
            parts.append(self._source.name)
        return f"Vectors({', '.join(parts)})"

    def _repr_html_(self) -> str:
        facts = {
            "keys": f"{len(self):,}",
            "dimensions": str(self.vector_size),
            "stored as": self._storage,
            "first keys": " ".join(self._keys[:8]),
            "counts": "yes" if self._counts is not None else "no",
            "context": "yes" if self._context_matrix is not None else "no",
            "subwords": "no" if self._subwords is None else self._subwords.kind,
            "file": self._source.name if self._source else "none",
            **{name: str(value)[:80] for name, value in list(self._metadata.items())[:8]},
        }
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table><caption>Vectors</caption>{rows}</table>"


def _frozen(array: NDArray[Any], name: str) -> Float32s:
    """A read-only (V, D) float32 view of ``array``, copied only if it is something else."""
    values = np.asarray(array)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ShapeError(
            f"Vectors(): {name} is {values.dtype} of shape {values.shape}; (V, D) numbers are expected"
        )
    view = np.ascontiguousarray(values, np.float32).view()
    view.flags.writeable = False
    return view


def _counts(counts: Sequence[int] | NDArray[Any], rows: int) -> NDArray[np.int64]:
    values = np.array(counts)
    if values.shape != (rows,) or values.dtype.kind not in "iu":
        raise ShapeError(
            f"Vectors(): counts are {values.dtype} of shape {values.shape}; ({rows},) int64 is expected"
        )
    values = values.astype(np.int64)
    values.flags.writeable = False
    return values


def _jsonable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingError(f"Vectors(): the metadata are no JSON: {error}") from error
    assert isinstance(result, dict)
    return result
