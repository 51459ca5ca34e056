"""Sums, means and maxima of looked-up rows, differentiably: what ``EmbeddingBag`` calls.

With f the factors, W the table and G the gradients of the bags, the sums of bags are the derivative by G
of T(W, f, G) = sum over places p of f[p] * <W[ids[p]], G[bag of p]>. Its derivatives by W and f are two
functions of the same kind, and so are theirs: each of ``_Sum``, ``_Gradient`` and ``_Dots`` has the other
two as its backward, so that derivatives of every order are there (torch has the first). A mean is a sum
whose factors are divided by the number of places of the bag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as torch_functional

from firth.kernels import bags, pages, rows
from firth.kernels.rows_reference import Source
from firth.nn import checks, functional


class How(NamedTuple):
    """What is made of a bag's rows, and how their gradient is made."""

    mode: str  # "sum", "mean" or "max"
    padding_row: int | None = None  # places that count for nothing
    by_freq: bool = False  # divide a row's gradient by its number of places
    sparse: bool = False  # make it a sparse tensor
    places: int = 0  # of each bag, where all have as many; else 0


def bag(weight: Tensor, factor: Tensor | None, ids: Tensor, starts: Tensor, how: How) -> Tensor:
    """The sum, mean or maximum of the rows of each bag; zeros for a bag without places.

    Differentiable in ``weight`` and ``factor``, any number of times. The gradient of the weight is dense,
    each row's places summed in input order; or, with ``sparse``, a COO tensor with an entry for each
    place, in input order, not coalesced (see ``functional.sparse_gradient``). The gradient of a maximum
    goes to the first of equals.

    Args:
        weight: (N, D), of a dtype in ``checks.FLOATS``; all tensors must be :func:`eager`.
        factor: (B,), of the weight's dtype, by which rows are multiplied, for sums; or ``None``.
        ids: (B,) int32 or int64, contiguous, within the table: not checked here.
        starts: (n_bags + 1,) int64, where each bag begins: from 0, never falling, the last is B.

    Returns:
        (n_bags, D).
    """
    if not (
        torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (weight, factor))
    ):
        if how.mode == "max":
            table = weight.detach()
            found, _ = bags.pick(table).forward(
                table, ids, starts, "max", None, how.padding_row, winners=False
            )
            return cast(Tensor, found)
        return _summed(weight, factor, ids, starts, how)
    if how.mode == "max":
        return _apply(_Max, weight, ids, starts, how.padding_row)
    return _apply(_Sum, weight, factor, ids, starts, how)


def by_operator(weight: Tensor, how: How) -> bool:
    """Whether torch's operator does the forward part of :func:`bag`, which then checks the ids as well.

    It is made for the processor and takes less to start than our kernels; what it is slow at is ours.
    """
    return how.mode != "max" and how.padding_row is None and weight.device.type == "cpu"


def eager(weight: Tensor, *others: Tensor | None) -> bool:
    """Whether :func:`bag` may be called; else :func:`by_torch` must be."""
    given = [one for one in others if one is not None]
    return checks.eager(weight, *given) and weight.dim() == 2 and weight.dtype in checks.FLOATS


def _apply(function: type[Function], *arguments: object) -> Tensor:
    apply: Callable[..., Any] = function.apply
    return cast(Tensor, apply(*arguments))


# --- sums and means -----------------------------------------------------------------------------


def _summed(weight: Tensor, factor: Tensor | None, ids: Tensor, starts: Tensor, how: How) -> Tensor:
    """The sums or means, without a graph."""
    table = weight.detach()
    if by_operator(weight, how) and starts.size(0) > 1 and ids.size(0):
        factor = None if factor is None else factor.detach()
        mode = 0 if how.mode == "sum" else 1
        found = torch.embedding_bag(table, ids, starts.to(ids.dtype), False, mode, False, factor, True)[0]
    else:
        found, _ = bags.pick(table).forward(table, ids, starts, how.mode, factor, how.padding_row)
    return found


class _Sum(Function):
    """(N, D) rows and (B,) factors -> (n_bags, D)."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, factor: Tensor | None, ids: Tensor, starts: Tensor, how: How
    ) -> Tensor:
        # The table is needed for the factors' gradient only; not saved otherwise, so that max_norm may
        # change it before backward.
        ctx.save_for_backward(weight if ctx.needs_input_grad[1] else None, factor, ids, starts)
        ctx.n_rows, ctx.how = weight.shape[0], how
        return _summed(weight, factor, ids, starts, how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, factor, ids, starts = ctx.saved_tensors
        by_weight = by_factor = None
        if ctx.needs_input_grad[0]:
            by_weight = _gradient(grads[0], factor, ids, starts, ctx.how, ctx.n_rows)
        if ctx.needs_input_grad[1]:
            by_factor = _apply(_Dots, grads[0], weight, ids, starts, ctx.how)
        return by_weight, by_factor, None, None, None


def _gradient(
    grad: Tensor, factor: Tensor | None, ids: Tensor, starts: Tensor, how: How, n_rows: int
) -> Tensor:
    """The gradient of the table, (n_rows, D)."""
    if not how.sparse:
        return _apply(_Gradient, grad, factor, ids, starts, how, n_rows)
    if how.padding_row is None and not torch.is_grad_enabled():
        kernel = bags.pick(grad)
        if how.mode == "mean":
            grad = grad / kernel.counts(ids, starts, None).clamp(min=1).to(grad.dtype).unsqueeze(1)
        if factor is not None:
            grad = grad.contiguous()
            source = Source(grad, kernel.bag_of(starts, ids.size(0)), factor)
            values = bags.pick(grad).expanded(source)
        elif how.places:
            values = grad.repeat_interleave(how.places, 0)
        else:
            values = grad.index_select(0, kernel.bag_of(starts, ids.size(0)))
    else:
        values = _apply(_Expanded, grad, factor, ids, starts, how)
    return functional.sparse_gradient(values, ids, n_rows, how.padding_row, how.by_freq)


class _Gradient(Function):
    """(n_bags, D) gradients of the bags and (B,) factors -> (N, D), dense."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        factor: Tensor | None,
        ids: Tensor,
        starts: Tensor,
        how: How,
        n_rows: int,
    ) -> Tensor:
        ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, factor, ids, starts)
        ctx.how = how
        grad = grad.detach().contiguous()
        source = bags.pick(grad).source(grad, ids, starts, how.mode, factor, how.padding_row)
        kernel = rows.pick(grad)
        groups = kernel.group(ids, n_rows, how.padding_row)
        sums = kernel.summed(groups, source, how.by_freq)
        out = pages.zeros((n_rows, grad.shape[1]), grad.dtype, grad)
        return out.index_copy_(0, groups.rows, sums.to(grad.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, factor, ids, starts = ctx.saved_tensors
        second, how = grads[0].contiguous(), ctx.how._replace(by_freq=False)
        shares = _shares(ids, second) if ctx.how.by_freq else None
        by_grad = by_factor = None
        if ctx.needs_input_grad[0]:
            scale = factor if shares is None else shares if factor is None else factor * shares
            by_grad = _apply(_Sum, second, scale, ids, starts, how)
        if ctx.needs_input_grad[1]:
            by_factor = _apply(_Dots, grad, second, ids, starts, how)
            by_factor = by_factor if shares is None else by_factor * shares
        return by_grad, by_factor, None, None, None, None


class _Expanded(Function):
    """(n_bags, D) gradients of the bags and (B,) factors -> (B, D), the gradient of each place."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, factor: Tensor | None, ids: Tensor, starts: Tensor, how: How
    ) -> Tensor:
        ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, factor, ids, starts)
        ctx.how = how
        grad = grad.detach().contiguous()
        kernel = bags.pick(grad)
        source = kernel.source(grad, ids, starts, how.mode, factor, how.padding_row)
        return cast(Tensor, kernel.expanded(source))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, factor, ids, starts = ctx.saved_tensors
        second = grads[0].contiguous()
        if ctx.how.mode == "mean":
            factor = _mean_factor(ids, starts, ctx.how.padding_row, second)
        own = torch.arange(len(ids), device=ids.device)  # place p looks up row p of what comes in
        by_grad = by_factor = None
        if ctx.needs_input_grad[0]:
            by_grad = _apply(_Sum, second, factor, own, starts, How("sum"))
        if ctx.needs_input_grad[1]:
            by_factor = _apply(_Dots, grad, second, own, starts, How("sum"))
        return by_grad, by_factor, None, None, None


class _Dots(Function):
    """(n_bags, D) gradients of the bags and (N, D) rows -> (B,), the gradient of the factors of sums."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, ids: Tensor, starts: Tensor, how: How) -> Tensor:
        of_grad, of_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(grad if of_weight else None, weight if of_grad else None, ids, starts)
        ctx.n_rows, ctx.how = weight.shape[0], how
        table, grad = weight.detach(), grad.detach().contiguous()
        return cast(Tensor, bags.pick(table).dots(grad, table, ids, starts, how.padding_row))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight, ids, starts = ctx.saved_tensors
        factor = grads[0].contiguous()
        by_grad = by_weight = None
        if ctx.needs_input_grad[0]:
            by_grad = _apply(_Sum, weight, factor, ids, starts, ctx.how)
        if ctx.needs_input_grad[1]:
            by_weight = _gradient(grad, factor, ids, starts, ctx.how, ctx.n_rows)
        return by_grad, by_weight, None, None, None


def _shares(ids: Tensor, like: Tensor) -> Tensor:
    """(B,): 1 / the number of places that hold the same id."""
    _, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    found: Tensor = counts[inverse].to(like.dtype).reciprocal()
    return found


def _mean_factor(ids: Tensor, starts: Tensor, padding_row: int | None, like: Tensor) -> Tensor:
    """(B,): 1 / the number of places of the bag, the factors of a mean written as a sum."""
    kernel = bags.pick(like)
    counts, bag_of = kernel.counts(ids, starts, padding_row), kernel.bag_of(starts, len(ids))
    found: Tensor = counts.clamp(min=1).to(like.dtype).reciprocal()[bag_of]
    return found


# --- maxima -------------------------------------------------------------------------------------


class _Max(Function):
    """(N, D) rows -> (n_bags, D)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, starts: Tensor, padding_row: int | None) -> Tensor:
        out, winner = bags.pick(weight).forward(weight.detach(), ids, starts, "max", None, padding_row)
        ctx.save_for_backward(ids, winner)
        ctx.n_rows = weight.shape[0]
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ids, winner = ctx.saved_tensors
        return _apply(_Scattered, grads[0], ids, winner, ctx.n_rows), None, None, None


class _Scattered(Function):
    """(n_bags, D) gradients of maxima -> (N, D)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, ids: Tensor, winner: Tensor, n_rows: int) -> Tensor:
        ctx.save_for_backward(ids, winner)
        grad = grad.detach().contiguous()
        return cast(Tensor, bags.pick(grad).scattered(grad, ids, winner, n_rows))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ids, winner = ctx.saved_tensors
        return _apply(_Picked, grads[0].contiguous(), ids, winner), None, None, None


class _Picked(Function):
    """(N, D) rows -> (n_bags, D), the elements that won."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, winner: Tensor) -> Tensor:
        ctx.save_for_backward(ids, winner)
        ctx.n_rows = weight.shape[0]
        return cast(Tensor, bags.pick(weight).picked(weight.detach(), ids, winner))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ids, winner = ctx.saved_tensors
        return _apply(_Scattered, grads[0], ids, winner, ctx.n_rows), None, None


# --- by torch's operators -----------------------------------------------------------------------


def by_torch(
    weight: Tensor,
    factor: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    include_last_offset: bool,
    how: How,
) -> Tensor:
    """The same by torch's operators, which every transform and compiler knows; values are not looked at.

    Args:
        weight: (N, D).
        factor: of the shape of ``ids``, or ``None``.
        ids: (n_bags, L); or (B,) with ``offsets``.
        offsets: (n_bags,); with ``include_last_offset`` (n_bags + 1,), and ids after the last are in no bag.
    """
    # torch gives ids in no bag a gradient out of memory that was never set: they go into a bag of their
    # own, which nobody sees.
    surplus = offsets is not None and include_last_offset
    if how.by_freq and how.mode != "max":
        found = _by_lookup(weight, factor, ids, offsets, how)
    else:
        found = torch_functional.embedding_bag(
            ids, weight, offsets, None, 2.0, how.by_freq, how.mode, how.sparse, factor, False, how.padding_row
        )
    return found[:-1] if surplus else found


def _by_lookup(
    weight: Tensor, factor: Tensor | None, ids: Tensor, offsets: Tensor | None, how: How
) -> Tensor:
    """By a lookup whose rows are then added: torch's own bag divides by wrong counts on the CPU."""
    found = functional.lookup(weight, ids, how.padding_row, True, how.sparse)
    kept = torch.ones_like(ids) if how.padding_row is None else ids != how.padding_row
    kept = kept.to(found.dtype)
    scaled = found * (kept if factor is None else kept * factor).unsqueeze(-1)
    if offsets is None:
        total, counts = scaled.sum(1), kept.sum(1)
    else:
        places = torch.arange(ids.size(0), device=ids.device, dtype=offsets.dtype)
        bag_of = torch.searchsorted(offsets, places, right=True) - 1
        total = scaled.new_zeros(offsets.size(0), weight.size(1)).index_add(0, bag_of, scaled)
        counts = kept.new_zeros(offsets.size(0)).index_add(0, bag_of, kept)
    return total / counts.clamp(min=1).unsqueeze(-1) if how.mode == "mean" else total
