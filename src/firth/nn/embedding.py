"""``Embedding``: ``torch.nn.Embedding``, and what it lacks for large tables and for words."""

from __future__ import annotations

import os
from typing import Self

import torch
from torch import Tensor
from torch.fx import Proxy

from firth.nn import checks, functional
from firth.nn.fused import lookup as fused_lookup
from firth.nn.recipes import Recipe
from firth.nn.table import TableLayer, begin
from firth.nn.wordlists import Lookup
from firth.nn.wordrows import rows_for
from firth.vocab import Vocab

NAME = "firth.nn.Embedding"


class Embedding(TableLayer, torch.nn.Embedding):
    """A table of ``num_embeddings`` rows of ``embedding_dim`` numbers, looked up by id or by word.

    Arguments up to ``dtype``, attributes, ``repr``, ``state_dict``, initial values for a seed and types
    of exceptions are those of ``torch.nn.Embedding`` of torch 2.13, of which this is a subclass.
    ``docs/layer.md`` lists what differs, and why.

    Args:
        num_embeddings: rows of the table; or a vocabulary, for a row for each of its tokens, and a
            layer that takes words.
        embedding_dim: numbers in a row.
        padding_idx: a row that begins as zeros and gets no gradient; negative counts from the end.
        max_norm: rows that are looked up and longer than this are shortened to it in place, before
            the lookup; positive.
        norm_type: the p of the norm for ``max_norm``.
        scale_grad_by_freq: divide a row's gradient by how often the mini-batch looks it up; also
            with ``sparse`` and ``fused``.
        sparse: make the weight's gradient a sparse tensor.
        _weight: (num_embeddings, embedding_dim) values to use as they are; memory is shared.
        _freeze: the weight needs no gradient.
        device, dtype: of the weight.
        fused: a recipe such as ``firth.nn.Adagrad(lr=0.1)``: backward updates the rows used at once
            and makes no gradient; see ``docs/fused.md``.
        storage: a file that holds the table, memory-mapped, and the state of ``fused``; made if it is
            not there. Without ``fused`` it is opened for lookups only. See ``docs/large-tables.md``.
        unknown: with a vocabulary: ``"drop"``, ``"unk"`` or ``"error"`` in place of its own policy for
            unknown words, or ``"hash"``: they share ``hash_rows`` rows at the end of the table.
        hash_rows: how many.

    Attributes:
        weight: the table, (num_embeddings, embedding_dim); N(0, 1) at first.
        vocab, hash_rows: the words of the rows (``None`` without), and how many rows hash.
        fused, optimizer: the recipe and the optimiser that it made, or ``None``.
        file: the open ``TableFile`` of ``storage``, or ``None``.

    Raises:
        Misfit: ``padding_idx`` or ``_weight`` do not fit the table (an AssertionError).
        SettingError: ``max_norm`` is not positive, or ``False``; a policy for words without words.
        TypeError, RuntimeError: as torch for sizes that are none.
    """

    weight: torch.nn.Parameter

    def __init__(
        self,
        num_embeddings: int | Vocab,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        fused: Recipe | None = None,
        storage: str | os.PathLike[str] | None = None,
        unknown: str | None = None,
        hash_rows: int = 0,
    ) -> None:
        table = rows_for(NAME, num_embeddings, unknown, hash_rows)
        max_norm = checks.check_max_norm(max_norm, NAME)
        start = begin(NAME, table, embedding_dim, padding_idx, _weight, device, dtype, fused, storage)
        super().__init__(
            table.n_rows,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            start.weight,
            _freeze,
            device,
            dtype,
        )
        self._finish(start, table, fused)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Self:
        """A layer with these values, as ``torch.nn.Embedding.from_pretrained``.

        Args:
            embeddings: (N, D); memory is shared, so ``max_norm`` and training change it.
            freeze: the weight needs no gradient.
            padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse: as for the layer; the padding
                row keeps its values.

        Raises:
            Misfit: not two-dimensional (an AssertionError), or ``padding_idx`` names no row.
            TypeError: no tensor.
        """
        n_rows, dim = checks.pretrained_shape(f"{NAME}.from_pretrained", embeddings)
        return cls(
            num_embeddings=n_rows,
            embedding_dim=dim,
            _weight=embeddings,
            _freeze=freeze,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
        )

    def forward(self, input: Tensor | Lookup) -> Tensor:
        """The rows of ids or words.

        Args:
            input: int32 or int64, any shape; in a layer with a vocabulary also a word, a list of
                words or lists of such lists (``ids_of``).

        Returns:
            (*shape of the input, embedding_dim).

        Raises:
            OutsideTable: an id names no row (an IndexError).
            WrongIds: ids of another dtype (a RuntimeError).
            TypeError: neither a tensor nor words, or words in a layer without a vocabulary.
            KeyNotFound: an unknown word, where the policy is to refuse it.
        """
        # A Proxy stands for a tensor while torch.fx traces.
        ids = input if isinstance(input, (Tensor, Proxy)) else self.ids_of(input)
        if self.max_norm is not None:
            if checks.readable(ids):  # before any row is shortened
                checks.check_ids(NAME, ids, self.weight.size(0))
            self._renorm(ids)
        if self.optimizer is not None:
            return fused_lookup(self, ids)
        return functional.lookup(
            self.weight, ids, self.padding_idx, self.scale_grad_by_freq, self.sparse, NAME
        )
