"""Looking rows up, differentiably: what ``Embedding`` calls once its ids are checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as torch_functional

from firth.kernels import rows
from firth.nn import checks

SMALL = 1 << 16
"""Numbers looked up below which calling torch's one operator is faster than starting our kernels."""


def lookup(
    weight: Tensor,
    ids: Tensor,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    name: str = "firth.nn.functional.lookup",
) -> Tensor:
    """The row of ``weight`` for each id: ``torch.nn.functional.embedding`` without ``max_norm``.

    The gradient of the weight is dense, or a sparse COO tensor with an entry for each place, in
    the order of the ids and not coalesced. Both may be differentiated again. Repeats of float16 and
    bfloat16 rows are summed in float32; their sparse gradient has one entry for each distinct row,
    in the order of first places.

    Under ``torch.compile``, functorch and the like (``checks.eager``) torch's own operator is
    called instead. In a compiled sparse gradient the places of ``padding_idx`` have entries of zeros.

    Args:
        weight: (N, D).
        ids: int32 or int64, any shape, within ``[0, N)``.
        padding_idx: a row that gets no gradient.
        scale_grad_by_freq: divide the gradient of a row by the number of its places in ``ids``.
        sparse: which kind of gradient.
        name: what to call the function in messages.

    Returns:
        (*ids.shape, D).

    Raises:
        OutsideTable: an id names no row (an IndexError).
        WrongIds: ids of another dtype (a RuntimeError).
        Misfit: ``padding_idx`` names no row (an AssertionError).
    """
    if weight.dim() == 2:
        padding_idx = checks.check_padding(name, padding_idx, weight.size(0))
    if not checks.eager(weight, ids) or weight.dim() != 2 or weight.dtype not in checks.FLOATS:
        if weight.dim() == 2 and checks.readable(ids):
            checks.check_ids(name, ids, weight.size(0))
        return _by_torch(weight, ids, padding_idx, scale_grad_by_freq, sparse)
    if (
        ids.numel() * weight.size(1) < SMALL
        and weight.dtype in (torch.float32, torch.float64)
        and not scale_grad_by_freq
        and ids.dim()
    ):  # here torch is right as well
        checks.check_ids(name, ids, weight.size(0))
        return torch_functional.embedding(ids, weight, padding_idx, sparse=sparse)
    if torch.is_grad_enabled() and weight.requires_grad:
        return _apply(_Lookup, weight, ids, padding_idx, scale_grad_by_freq, sparse, name)
    return gather(weight, ids, name)


# Graphs of torch.fx call it as a whole.
torch.fx.wrap("lookup")


def _by_torch(
    weight: Tensor, ids: Tensor, padding_idx: int | None, scale_grad_by_freq: bool, sparse: bool
) -> Tensor:
    """The same by torch's operators, which every transform and compiler knows."""
    # Leaving the places of padding out of a sparse gradient gives it a size that compilers cannot know.
    masked = sparse and padding_idx is not None and torch.compiler.is_compiling()
    if not sparse or not (scale_grad_by_freq or masked):
        return torch_functional.embedding(
            ids, weight, padding_idx, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse
        )
    # torch refuses scale_grad_by_freq in a sparse backward: scale what flows back into the lookup instead.
    found = torch_functional.embedding(ids, weight, None if masked else padding_idx, sparse=True)
    places = ids.reshape(-1).long()
    factor = torch.ones_like(places, dtype=torch.float64 if weight.dtype is torch.float64 else torch.float32)
    if scale_grad_by_freq:
        none = torch.zeros(weight.size(0), dtype=factor.dtype, device=ids.device)
        factor = none.scatter_add(0, places, factor)[places].reciprocal()
    if masked and padding_idx is not None:
        factor = factor.masked_fill(places == padding_idx, 0)
    return _apply(_ScaledGradient, found, factor.to(weight.dtype).reshape(*ids.shape, 1))


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    found: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return found


def gather(weight: Tensor, ids: Tensor, name: str) -> Tensor:
    """The rows of ``ids``, without a gradient.

    Args:
        weight: (N, D), of a dtype in ``checks.FLOATS``; ids: of any shape; both as ``checks.eager`` asks.
        name: what to call the function in messages.

    Raises:
        OutsideTable, WrongIds: as :func:`lookup`.
    """
    checks.check_dtype(name, ids)
    if not weight.is_cpu:
        checks.check_ids(name, ids, weight.size(0))
    places = flat(ids)
    try:
        found: Tensor = rows.pick(weight).gather(weight, places)
    except IndexError:
        checks.check_ids(name, ids, weight.size(0))  # says it better
        raise
    return found if places is ids else found.view(*ids.shape, weight.size(1))


def flat(ids: Tensor) -> Tensor:
    """The ids one after another, contiguous; themselves, if they are so."""
    return ids if ids.dim() == 1 and ids.is_contiguous() else ids.reshape(-1).contiguous()


class _ScaledGradient(Function):
    """The identity whose gradient is multiplied by ``factor``, and zero where that is zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return torch.where(factor == 0, 0, grads[0] * factor), None


class _Lookup(Function):
    """Rows of a table; backward is ``_DenseGradient`` or a sparse tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        ids: Tensor,
        padding_row: int | None,
        by_freq: bool,
        sparse: bool,
        name: str,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.n_rows, ctx.padding_row, ctx.by_freq, ctx.sparse = weight.size(0), padding_row, by_freq, sparse
        return gather(weight, ids, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (ids,) = ctx.saved_tensors
        if ctx.sparse:
            gradient = sparse_gradient(grads[0], ids, ctx.n_rows, ctx.padding_row, ctx.by_freq)
        elif not checks.eager(grads[0], ids):  # compiled autograd, batched gradients
            padding = -1 if ctx.padding_row is None else ctx.padding_row
            gradient = torch.ops.aten.embedding_dense_backward(
                grads[0], ids, ctx.n_rows, padding, ctx.by_freq
            )
        else:
            gradient = _apply(_DenseGradient, grads[0], ids, ctx.n_rows, ctx.padding_row, ctx.by_freq)
        return gradient, None, None, None, None, None


class _DenseGradient(Function):
    """(*ids.shape, D) gradients of looked-up rows -> (N, D), each row's places summed in input order."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, ids: Tensor, n_rows: int, padding_row: int | None, by_freq: bool
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.n_rows, ctx.padding_row, ctx.by_freq = n_rows, padding_row, by_freq
        values = grad.reshape(ids.numel(), grad.size(-1)).contiguous()  # -1 would not do for D = 0
        kernel = rows.pick(values)
        groups = kernel.group(ids.reshape(-1).contiguous(), n_rows, padding_row)
        sums = kernel.summed(groups, kernel.Source(values), by_freq)
        gradient = torch.zeros(n_rows, grad.size(-1), dtype=grad.dtype, device=grad.device)
        return gradient.index_copy_(0, groups.rows, sums.to(grad.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (ids,) = ctx.saved_tensors
        second = lookup(grads[0], ids)
        if ctx.padding_row is not None:
            second = second.masked_fill((ids == ctx.padding_row).unsqueeze(-1), 0)
        if ctx.by_freq:
            second = second / _counts(ids).to(second.dtype).unsqueeze(-1)
        return second, None, None, None, None


def sparse_gradient(
    grad: Tensor, ids: Tensor, n_rows: int, padding_row: int | None = None, by_freq: bool = False
) -> Tensor:
    """The sparse COO gradient of a lookup, differentiable in ``grad``.

    Args:
        grad: (*ids.shape, D).
        ids: int32 or int64.
        n_rows: rows of the table.
        padding_row: its places are left out.
        by_freq: divide each entry by the number of places of its row.

    Returns:
        (n_rows, D), not coalesced: an entry for each place in the order of ``ids``, or, for
        float16 and bfloat16, one for each distinct row in the order of first places.
    """
    values, flat = grad.reshape(ids.numel(), grad.size(-1)), ids.reshape(-1).to(torch.int64, copy=True)
    if by_freq:
        values = (values / _counts(flat).unsqueeze(-1)).to(grad.dtype)
    if padding_row is not None:
        kept = (flat != padding_row).nonzero().reshape(-1)
        if kept.numel() < flat.numel():
            values, flat = values.index_select(0, kept), flat.index_select(0, kept)
    if values.dtype in (torch.float16, torch.bfloat16):
        values, flat = _merged(values, flat)
    return torch.sparse_coo_tensor(
        flat.unsqueeze(0), values, (n_rows, grad.size(-1)), check_invariants=False, is_coalesced=False
    )


def _merged(values: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Repeats summed in float32: adding 1 to 256 in bfloat16, as coalesce() would, changes nothing."""
    distinct, entry = torch.unique(flat, return_inverse=True)
    if distinct.numel() == flat.numel():
        return values, flat
    places = torch.arange(flat.numel(), device=flat.device)
    first = places.new_full(distinct.shape, flat.numel()).scatter_reduce(0, entry, places, "amin")
    order = first.argsort()
    wide = values.new_zeros(distinct.numel(), values.size(-1), dtype=torch.float32)
    sums = wide.index_add(0, entry, values.to(torch.float32))
    return sums.to(values.dtype).index_select(0, order), distinct.index_select(0, order)


def _counts(ids: Tensor) -> Tensor:
    """How many places hold the same id, for each place; the shape of ``ids``."""
    entry, counts = torch.unique(ids, return_inverse=True, return_counts=True)[1:]
    found: Tensor = counts[entry]
    return found
