"""``SkipGram``: the two-table model as a module, for people who write their own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from firth.errors import SettingError, ShapeError
from firth.nn.embedding import Embedding
from firth.vectors import Vectors
from firth.vocab import Vocab

if TYPE_CHECKING:
    from firth.nn.recipes import Recipe

_REDUCTIONS = ("sum", "mean")


class SkipGram(torch.nn.Module):
    """Skip-gram with negative sampling: scores are dot products of rows of two tables, u and v.

    The loss of a pair is ``-log sigmoid(u . v) - sum of weight * log sigmoid(-u . v_n)`` over its
    negatives n. In ``firth.train``, ``u`` is looked up for context words and becomes the word
    vectors, ``v`` for centre words and negatives (word2vec.c's direction);
    :class:`firth.nn.SkipGramBatches` gives batches in that order.

    Args:
        vocab_size: rows of each table; or a vocabulary, and ``u`` takes words and finds similar ones.
        dim: numbers in a vector.
        sparse: make sparse gradients, for ``firth.nn.RowSGD`` and the like, ``torch.optim.SGD``,
            ``Adagrad`` and ``SparseAdam``. ``False`` for all other optimisers of torch.
        reduction: ``"sum"`` of the pairs' losses, or their ``"mean"``.
        fused: a recipe such as ``firth.nn.SGD(lr=0.025)``: backward updates the rows at once, see
            ``docs/fused.md``. Each table is looked up once a step.
        device, dtype: of the tables.

    Attributes:
        u, v: :class:`firth.nn.Embedding` tables, rows of u uniform in +-0.5/dim, v zero.

    Raises:
        SettingError: ``dim`` below 1 or no such reduction.

    Source: Mikolov et al. 2013, arXiv 1310.4546, eq. 4; start values as word2vec.c.
    """

    def __init__(
        self,
        vocab_size: int | Vocab,
        dim: int,
        sparse: bool = True,
        *,
        reduction: str = "sum",
        fused: Recipe | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise SettingError(f"firth.nn.SkipGram: reduction must be 'sum' or 'mean', got {reduction!r}")
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise SettingError(f"firth.nn.SkipGram: dim must be a whole number from 1 on, got {dim!r}")
        n_rows = len(vocab_size) if isinstance(vocab_size, Vocab) else vocab_size
        self.reduction = reduction
        self.u = Embedding(vocab_size, dim, sparse=sparse, fused=fused, device=device, dtype=dtype)
        self.v = Embedding(n_rows, dim, sparse=sparse, fused=fused, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """u uniform in +-0.5/dim, v zero, as before the first step."""
        limit = 0.5 / self.u.embedding_dim
        torch.nn.init.uniform_(self.u.weight, -limit, limit)
        torch.nn.init.zeros_(self.v.weight)

    def forward(self, pos_u: Tensor, pos_v: Tensor, neg_v: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of a batch, a tensor of shape ().

        Args:
            pos_u: rows of u, int64 or int32, any shape S; one pair is ``(1,)`` or ``()``.
            pos_v: S; the row of v that belongs to each.
            neg_v: (*S, K), rows of v drawn for each pair, or (K,) that all pairs share; K may be 0.
            weights: of each negative, broadcast to (*S, K); 1 by default. 0 leaves one out, such as a
                negative that is the row of ``pos_v`` itself.

        Raises:
            ShapeError: shapes that do not fit each other (a ValueError).
            IndexError: an id that names no row.
        """
        pairs = pos_u.shape
        shared = neg_v.ndim == 1 and pos_u.ndim > 0
        if pos_v.shape != pairs or neg_v.shape[:-1] != (() if shared else pairs) or neg_v.ndim == 0:
            raise ShapeError(
                f"firth.nn.SkipGram: pos_u {tuple(pos_u.shape)}, pos_v {tuple(pos_v.shape)} and neg_v "
                f"{tuple(neg_v.shape)} do not fit; for pairs of shape S, neg_v is (*S, K) or (K,)"
            )
        u = self.u(pos_u)
        # One look-up for both: a fused table is updated once for each look-up.
        rows = self.v(torch.cat([pos_v.reshape(-1), neg_v.reshape(-1)]))
        positive, negative = rows.tensor_split([pos_v.numel()])
        score = (u * positive.view(u.shape)).sum(-1)
        if shared:
            noise = u @ negative.mT
        else:
            noise = (negative.view(*neg_v.shape, u.shape[-1]) @ u.unsqueeze(-1)).squeeze(-1)
        against = logsigmoid(-noise)
        if weights is not None:
            against = against * weights.to(against.dtype)
        loss = -(logsigmoid(score) + against.sum(-1))
        return loss.sum() if self.reduction == "sum" else loss.mean()

    def vectors(self, vocab: Vocab | Sequence[str] | None = None) -> Vectors:
        """The word vectors as they are now, copied: the rows of u, with those of v as ``context``.

        Args:
            vocab: the keys of the rows; by default the vocabulary that the model was made from.

        Raises:
            SettingError: no vocabulary is known. ShapeError: it has another size.
        """
        vocab = self.u.vocab if vocab is None else vocab
        if vocab is None:
            raise SettingError("firth.nn.SkipGram.vectors(): give the vocabulary whose ids were trained on")
        keys = vocab.tokens if isinstance(vocab, Vocab) else vocab
        counts = vocab.counts if isinstance(vocab, Vocab) and vocab.counts.any() else None
        u, v = (table.weight.detach().to("cpu", torch.float32).numpy().copy() for table in (self.u, self.v))
        return Vectors(keys, u, counts=counts, context=v)

    def extra_repr(self) -> str:
        """The reduction."""
        return f"reduction={self.reduction!r}"
