"""``EmbeddingBag``: ``torch.nn.EmbeddingBag``, and what it lacks for large tables and for words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from firth.errors import FirthError
from firth.kernels import bags as bag_kernels
from firth.nn import bagging, checks
from firth.nn.bagging import How
from firth.nn.fused import bag as fused_bag
from firth.nn.fused import updates
from firth.nn.table import TableLayer, begin
from firth.nn.wordlists import Lookup
from firth.nn.wordrows import rows_for
from firth.vectors import Vectors
from firth.vocab import Vocab

if TYPE_CHECKING:
    from firth.nn.recipes import Recipe

NAME = "firth.nn.EmbeddingBag"
MODES = ("sum", "mean", "max")


class WrongBags(FirthError, ValueError):
    """Arguments of a lookup that do not fit each other (torch: ValueError)."""

    exit_code = 2


class WrongOffsets(FirthError, RuntimeError):
    """Offsets that do not cut the ids into bags (torch: RuntimeError)."""

    exit_code = 2


class SumOnly(FirthError, NotImplementedError):
    """``per_sample_weights`` in another mode than ``"sum"`` (torch: NotImplementedError)."""

    exit_code = 2


class _Input(NamedTuple):
    """One call's arguments, in one of torch's forms: a matrix of ids, or ids with offsets."""

    ids: Tensor  # (B, L), or (B,) with offsets
    offsets: Tensor | None
    factor: Tensor | None  # of the shape of ids
    include_last: bool


class EmbeddingBag(TableLayer, torch.nn.EmbeddingBag):
    """Sums, means or maxima of bags of rows of a table, without the rows in between.

    Arguments up to ``dtype``, attributes, ``repr``, ``state_dict``, initial values for a seed and types
    of exceptions are those of ``torch.nn.EmbeddingBag`` of torch 2.13, of which this is a subclass. What
    differs: gradients may be differentiated again; ``scale_grad_by_freq`` divides by the right counts on
    the CPU, and works with ``sparse``; a matrix of bags without ids, (B, 0), gives zeros; offsets that
    fall or leave the ids are refused; ids that no bag holds get no gradient (torch's is memory that was
    never set). In all modes a bag without ids (or with padding only) gives zeros.

    Args:
        num_embeddings: rows of the table; or a vocabulary, for a row for each of its tokens, and a
            layer that takes words.
        embedding_dim: numbers in a row.
        max_norm: rows that are looked up and longer than this are shortened to it in place, before
            the lookup; positive.
        norm_type: the p of the norm for ``max_norm``.
        scale_grad_by_freq: divide a row's gradient by how often the mini-batch looks it up; not for
            ``mode="max"``.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        sparse: make the weight's gradient a sparse tensor; not for ``mode="max"``.
        _weight: (num_embeddings, embedding_dim) values to use as they are; memory is shared.
        include_last_offset: offsets have one entry more, the end of the last bag.
        padding_idx: a row that begins as zeros, counts for nothing in its bags and gets no gradient;
            negative counts from the end.
        device, dtype: of the weight.
        fused: a recipe such as ``firth.nn.Adagrad(lr=0.1)``: backward updates the rows used at once
            and makes no gradient, in every mode; see ``docs/fused.md``.
        storage: a file that holds the table, memory-mapped, and the state of ``fused``; see
            ``docs/large-tables.md``.
        unknown, hash_rows: with a vocabulary: what happens to unknown words, as in ``Embedding``.

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
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
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
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            start.weight,
            include_last_offset,
            padding_idx,
            device,
            dtype,
        )
        self._finish(start, table, fused)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Self:
        """A layer with these values, as ``torch.nn.EmbeddingBag.from_pretrained``.

        Args:
            embeddings: (N, D); memory is shared, so ``max_norm`` and training change it.
            freeze: the weight needs no gradient.
            max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset, padding_idx: as
                for the layer; the padding row keeps its values.

        Raises:
            Misfit: not two-dimensional (an AssertionError), or ``padding_idx`` names no row.
            TypeError: no tensor.
        """
        n_rows, dim = checks.pretrained_shape(f"{NAME}.from_pretrained", embeddings)
        layer = cls(
            num_embeddings=n_rows,
            embedding_dim=dim,
            _weight=embeddings,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            sparse=sparse,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
        layer.weight.requires_grad = not freeze
        return layer

    @classmethod
    def from_vectors(
        cls,
        vectors: Vectors,
        freeze: bool = True,
        *,
        padding: bool | str = False,
        unknown: str = "error",
        hash_rows: int = 0,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        mode: str = "mean",
    ) -> Self:
        """See :meth:`Words.from_vectors`; and ``mode``: as for the layer."""
        layer = super().from_vectors(
            vectors,
            freeze,
            padding=padding,
            unknown=unknown,
            hash_rows=hash_rows,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            device=device,
            dtype=dtype,
        )
        layer.mode = mode
        return layer

    def forward(
        self,
        input: Tensor | Lookup,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """The sum, mean or maximum of each bag.

        Args:
            input: int32 or int64 ids: (B, L), B bags of L ids; or (B,) with ``offsets``; or a jagged
                nested tensor. In a layer with a vocabulary also lists of words, a bag each, of any
                lengths; one list is one bag. Words that the policy drops count for nothing.
            offsets: (n_bags,) where each bag begins in ``input``, the first 0, never falling; the last bag
                ends with the input. With ``include_last_offset`` (n_bags + 1,), the last entry being
                the end of the last bag; ids after that are in no bag. (They are in the last bag with
                ``padding_idx`` or ``mode="max"``, which a test of torch's pins.)
            per_sample_weights: of the shape of ``input`` (for words: one number a word, in their order)
                and the weight's dtype, what each row is multiplied by; for ``mode="sum"``.

        Returns:
            (n_bags, embedding_dim).

        Raises:
            OutsideTable: an id names no row (a RuntimeError).
            WrongIds: ids or offsets that are no integers (a RuntimeError).
            WrongOffsets: offsets that fall, do not begin with 0, or leave the input (a RuntimeError).
            WrongBags: shapes that do not fit, a mode that is none or does not go with ``sparse`` or
                ``scale_grad_by_freq`` (a ValueError).
            SumOnly: ``per_sample_weights`` in another mode (a NotImplementedError).
            TypeError: neither a tensor nor words, or words in a layer without a vocabulary.
            KeyNotFound: an unknown word, where the policy is to refuse it.
        """
        if isinstance(input, Tensor):
            given = self._given(input, offsets, per_sample_weights)
        else:
            given = self._words(input, offsets, per_sample_weights)
        self._check_mode(given.factor)
        if not all(checks.readable(one) for one in (given.ids, given.offsets) if one is not None):
            return self._traced(given)
        ids, starts, factor = self._checked(given)
        weight, mode = self.weight, self.mode
        shown = ids if given.offsets is not None else given.ids  # for positions in messages
        places = 0 if given.offsets is not None else given.ids.size(1)
        how = How(mode, self.padding_idx, bool(self.scale_grad_by_freq), bool(self.sparse), places)
        if self.max_norm is None and self.optimizer is None and bagging.by_operator(weight, how):
            try:
                return self._eagerly(weight, factor, ids, starts, how)
            except (IndexError, RuntimeError):
                checks.check_ids(NAME, shown, weight.size(0))  # says it better
                raise
        checks.check_ids(NAME, shown, weight.size(0))
        if self.max_norm is not None:
            self._renorm(ids)
        if self.optimizer is not None and updates(self):
            return fused_bag(self, ids, starts, mode, factor)
        return self._eagerly(weight, factor, ids, starts, how)

    def _eagerly(
        self, weight: Tensor, factor: Tensor | None, ids: Tensor, starts: Tensor, how: How
    ) -> Tensor:
        if not bagging.eager(weight, ids, starts, factor):
            return self._by_torch(_Input(ids, starts, factor, True))
        return bagging.bag(weight, factor, ids, starts, how)

    # -- what was given

    def _words(self, words: Lookup, offsets: Tensor | None, factor: Tensor | None) -> _Input:
        bags = self.bags_of(words)
        if offsets is not None:
            raise WrongBags(f"{NAME}: lists of words are bags themselves; leave offsets out")
        if factor is not None:
            factor = factor.reshape(-1)
            n_words = len(bags.ids) if bags.places is None else len(self._rows_in(words)[1])
            if len(factor) != n_words:
                raise WrongBags(
                    f"{NAME}: per_sample_weights must hold a number for each of the {n_words} words, got "
                    f"{len(factor)}"
                )
            factor = factor if bags.places is None else factor[bags.places]
        return _Input(bags.ids, bags.starts, factor, True)

    def _given(self, ids: Tensor, offsets: Tensor | None, factor: Tensor | None) -> _Input:
        """The arguments, with what can be refused by their shapes."""
        if factor is not None and ids.size() != factor.size():
            raise WrongBags(
                f"{NAME}: per_sample_weights must have the same shape as the input, {tuple(ids.shape)}, got "
                f"{tuple(factor.shape)}"
            )
        if ids.is_nested and ids.dim() == 2:
            if ids.layout is not torch.jagged or offsets is not None:
                raise WrongBags(f"{NAME}: a nested input must have the layout torch.jagged, and no offsets")
            jagged: Any = ids
            values = None if factor is None else factor.values().reshape(-1)
            return _Input(jagged.values().reshape(-1), jagged.offsets(), values, True)
        if ids.dim() == 2:
            if offsets is not None:
                raise WrongBags(
                    f"{NAME}: if input is 2D, then offsets has to be None, as each of its rows is a bag; got "
                    f"offsets of type {type(offsets)}"
                )
            return _Input(ids, None, factor, False)
        if ids.dim() != 1:
            raise WrongBags(
                f"{NAME}: input has to be 1D or 2D Tensor, but got Tensor of dimension {ids.dim()}"
            )
        if offsets is None:
            raise WrongBags(
                f"{NAME}: offsets has to be a 1D Tensor but got None; it says where in a 1D input each bag "
                "begins (input.unsqueeze(0) is one bag)"
            )
        if not isinstance(offsets, Tensor):
            raise TypeError(f"{NAME}: offsets has to be a 1D Tensor, got {type(offsets).__name__}")
        if offsets.dim() != 1:
            raise WrongBags(f"{NAME}: offsets has to be a 1D Tensor, got {offsets.dim()} dimensions")
        if self.include_last_offset and not offsets.size(0):
            raise WrongOffsets(
                f"{NAME}: include_last_offset: number of offsets should be at least 1 (the end of the last "
                "bag), got none"
            )
        return _Input(ids, offsets, factor, self.include_last_offset)

    def _check_mode(self, factor: Tensor | None) -> None:
        mode = self.mode
        if mode not in MODES:
            raise WrongBags(f"{NAME}: mode has to be one of sum, mean or max, got {mode!r}")
        if mode == "max" and self.scale_grad_by_freq:
            raise WrongBags(f"{NAME}: max mode does not support scaling the gradient by the frequency")
        if mode == "max" and self.sparse and self.optimizer is None:
            raise WrongBags(
                f"{NAME}: max mode does not support sparse weights; fused=... updates only the rows used"
            )
        if factor is not None and mode != "sum":
            raise SumOnly(
                f"{NAME}: per_sample_weights is only supported for mode='sum' (got mode={mode!r}); for a "
                "weighted mean divide the weights by their sum in each bag"
            )

    # -- with values that can be looked at

    def _checked(self, given: _Input) -> tuple[Tensor, Tensor, Tensor | None]:
        """ids (B,), starts (n_bags + 1,) and factors (B,) without what no bag holds; ids are not checked."""
        ids, offsets, factor, include_last = given
        n_rows = self.weight.size(0)
        if factor is not None and factor.dtype != self.weight.dtype:
            raise RuntimeError(
                f"{NAME}: per_sample_weights must have the same type as weight, {self.weight.dtype}, got "
                f"{factor.dtype}; use per_sample_weights.to(layer.weight.dtype)"
            )
        if offsets is None:
            return ids.reshape(-1), _even(ids), None if factor is None else factor.reshape(-1)
        if ids.dtype != offsets.dtype:
            both = torch.promote_types(ids.dtype, offsets.dtype)
            ids, offsets = ids.to(both), offsets.to(both)
        if offsets.dtype not in (torch.int32, torch.int64):
            checks.check_ids(NAME, ids, n_rows)
        n_places = ids.size(0)
        starts = offsets.long().contiguous()
        wrong = int(bag_kernels.pick(self.weight).first_bad_start(starts, n_places))
        if wrong >= 0:
            raise _wrong_offset(starts, wrong, n_places)
        if include_last:
            end = int(starts[-1])
        else:
            # Without an offset there is no bag that the ids could be in.
            end = n_places if len(starts) else 0
            starts = torch.nn.functional.pad(starts, (0, 1), value=end)
        if end < n_places and len(starts) > 1 and self._takes_rest():
            starts, end = torch.cat([starts[:-1], starts.new_tensor([n_places])]), n_places
        if end < n_places:
            ids, factor = ids[:end], None if factor is None else factor[:end]
        return ids.contiguous(), starts, factor

    # -- by torch

    def _traced(self, given: _Input) -> Tensor:
        """Under torch.compile, functorch and the like, where values cannot be looked at."""
        if self.max_norm is not None:
            self._renorm(given.ids)
        if self.optimizer is not None and updates(self):
            ids, offsets, factor, include_last = given
            if offsets is None:
                flat = None if factor is None else factor.reshape(-1)
                return fused_bag(self, ids.reshape(-1), _even(ids), self.mode, flat)
            starts = offsets.long()
            if not include_last or self._takes_rest():
                starts = starts[: len(starts) - include_last]
                starts = torch.cat([starts, starts.new_tensor([ids.size(0)])])
            return fused_bag(self, ids, starts, self.mode, factor)
        return self._by_torch(given)

    def _by_torch(self, given: _Input) -> Tensor:
        ids, offsets, factor, include_last = given
        if offsets is not None and include_last and self._takes_rest():
            offsets, include_last = offsets[:-1], False
        how = How(self.mode, self.padding_idx, bool(self.scale_grad_by_freq), bool(self.sparse))
        return bagging.by_torch(self.weight, factor, ids, offsets, include_last, how)

    def _takes_rest(self) -> bool:
        """Whether ids beyond the last offset belong to the last bag: torch's two codes differ in that."""
        return self.mode == "max" or self.padding_idx is not None


def _even(ids: Tensor) -> Tensor:
    """Where the bags of a matrix of ids, (n_bags, L), begin and end."""
    n_bags, width = ids.shape
    if not width:
        return torch.zeros(n_bags + 1, dtype=torch.int64, device=ids.device)
    return torch.arange(0, n_bags * width + 1, width, device=ids.device)


def _wrong_offset(starts: Tensor, wrong: int, n_places: int) -> WrongOffsets:
    value = int(starts[wrong])
    if wrong == 0:
        said = f"offsets[0] has to be 0, where the first bag begins, got {value}"
    elif value > n_places:
        said = f"offsets[{wrong}] can not be greater than input's length {n_places}, got {value}"
    else:
        said = f"offsets must never fall: offsets[{wrong}] is {value}, after {int(starts[wrong - 1])}"
    return WrongOffsets(f"{NAME}: {said}")


__all__ = ["EmbeddingBag", "SumOnly", "WrongBags", "WrongOffsets"]
