"""The definition of every step over bags of rows, in plain torch: any device, any float dtype.

:mod:`firth.kernels.bags_cpu` is its fast twin for float32 and float64 on the CPU: the same
functions, the same arguments.

Words used throughout
    *bag* b holds the places ``starts[b]`` to ``starts[b + 1]`` of ``ids``; a *place* p looks up the
    row ``ids[p]`` of the table. Places that hold ``padding_row`` count for nothing, and neither do
    places from ``starts[-1]`` on.

Shapes
    ``table`` (N, D) floats; ``ids`` (B,) int32 or int64, checked to be within [0, N); ``starts``
    (n_bags + 1,) int64, from 0, never falling, at most B; ``factor`` (B,) floats or ``None``, what
    each row is multiplied by; ``grads`` (n_bags, D), gradients of the bags; ``winner`` (n_bags, D)
    integers, the place that won each element of a maximum, or -1.

Sum and mean with a factor are linear in the table, the factor and (for gradients) the bags: with
T(table, factor, grads) = sum over p of factor[p] * <table[ids[p]], grads[bag of p]>, ``forward`` is
the derivative by ``grads``, ``source`` describes the one by ``table`` and ``dots`` is the one by
``factor``; so derivatives of any order need nothing else. For the maximum, with the winners held,
``picked`` and ``scattered`` are such a pair.

Numbers are added in float32 where the table is of a half type, and rounded once at the end.
Semantics follow torch.nn.EmbeddingBag (torch 2.13), except where its CPU code departs from its
documentation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firth.kernels.rows_reference import Source

MODES = ("sum", "mean", "max")


def first_bad_start(starts: Tensor, n_places: int) -> int:
    """The first entry of ``starts`` that is wrong, or -1.

    Wrong is an entry that is negative, below the one before it or above ``n_places``, and a first
    entry that is not 0.
    """
    before = torch.cat([starts.new_zeros(1), starts[:-1]])
    bad = (starts < before) | (starts > n_places)
    if len(starts):
        bad[0] = starts[0] != 0
    return int(bad.to(torch.uint8).argmax()) if bool(bad.any()) else -1


def bag_of(starts: Tensor, n_places: int) -> Tensor:
    """The bag of each of the first ``n_places`` places, int64; ``n_places`` is ``starts[-1]``."""
    bags = torch.arange(len(starts) - 1, device=starts.device)
    return torch.repeat_interleave(bags, starts.diff(), output_size=n_places)


def counts(ids: Tensor, starts: Tensor, padding_row: int | None) -> Tensor:
    """How many places each bag has, padding left out: (n_bags,) int64."""
    if padding_row is None:
        return starts.diff()
    kept = torch.zeros(len(ids) + 1, dtype=torch.int64, device=ids.device)
    kept[1:] = (ids != padding_row).cumsum(0)
    return kept[starts].diff()


def forward(
    table: Tensor,
    ids: Tensor,
    starts: Tensor,
    mode: str,
    factor: Tensor | None = None,
    padding_row: int | None = None,
    winners: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The sum, mean or maximum of the rows of each bag.

    Args:
        table, ids, starts, padding_row: see above. A bag without places gives zeros.
        mode: ``"sum"``: of ``factor[p] * table[ids[p]]``; ``"mean"``: the sum divided by the number
            of places; ``"max"``: element by element, the first of equals. A NaN wins only as the
            first of its bag, as in torch.
        factor: for sum and mean.
        winners: whether to return the winners of a maximum.

    Returns:
        (n_bags, D) of the table's dtype, and the winners or ``None``.
    """
    n_bags, dim = len(starts) - 1, table.shape[1]
    ids = ids[: _end(starts)]
    bag = bag_of(starts, len(ids))
    if mode == "max":
        found = _winners(table, ids, starts, padding_row)
        return picked(table, ids, found), found if winners else None
    rows = table[ids.long()].to(_sum_dtype(table.dtype))
    if factor is not None:
        rows = rows * factor[: len(ids), None]
    if padding_row is not None:
        rows = torch.where((ids == padding_row)[:, None], 0.0, rows)
    out = rows.new_zeros(n_bags, dim).index_add_(0, bag, rows)
    if mode == "mean":
        out /= counts(ids, starts, padding_row).clamp(min=1)[:, None]
    return out.to(table.dtype), None


def _winners(table: Tensor, ids: Tensor, starts: Tensor, padding_row: int | None) -> Tensor:
    n_bags, dim = len(starts) - 1, table.shape[1]
    best = table.new_zeros(n_bags, dim)
    winner = torch.full((n_bags, dim), -1, dtype=torch.int64, device=table.device)
    lengths = starts.diff()
    # The k-th place of every bag that has one, so that a bag's places come one after the other.
    for k in range(int(lengths.max()) if n_bags else 0):
        bag = (lengths > k).nonzero()[:, 0]
        place = starts[:-1][bag] + k
        if padding_row is not None:
            used = ids[place] != padding_row
            bag, place = bag[used], place[used]
        row = table[ids[place].long()]
        wins = (winner[bag] < 0) | (row > best[bag])
        best[bag] = torch.where(wins, row, best[bag])
        winner[bag] = torch.where(wins, place[:, None], winner[bag])
    return winner


def picked(table: Tensor, ids: Tensor, winner: Tensor) -> Tensor:
    """``out[b, d] = table[ids[winner[b, d]], d]``, 0 where there is no winner: (n_bags, D)."""
    if not len(ids):
        return table.new_zeros(winner.shape)
    rows = ids.long()[winner.clamp(min=0)]
    return torch.where(winner < 0, 0.0, table.gather(0, rows)).to(table.dtype)


def scattered(grads: Tensor, ids: Tensor, winner: Tensor, n_rows: int) -> Tensor:
    """The gradient of a maximum: ``out[ids[winner[b, d]], d] += grads[b, d]``, dense (n_rows, D)."""
    dtype = _sum_dtype(grads.dtype)
    out = torch.zeros(n_rows, grads.shape[1], dtype=dtype, device=grads.device)
    if not len(ids):
        return out.to(grads.dtype)
    won = torch.where(winner < 0, 0.0, grads.to(dtype))
    return out.scatter_add_(0, ids.long()[winner.clamp(min=0)], won).to(grads.dtype)


def won(grads: Tensor, winner: Tensor, starts: Tensor) -> Tensor:
    """The gradient of a maximum by place: ``out[winner[b, d], d] = grads[b, d]``, (starts[-1], D)."""
    n_places = _end(starts)
    out = grads.new_zeros(n_places + 1, grads.shape[1])
    where = torch.where(winner < 0, n_places, winner)
    return out.scatter_(0, where, grads)[:n_places]


def source(
    grads: Tensor,
    ids: Tensor,
    starts: Tensor,
    mode: str,
    factor: Tensor | None = None,
    padding_row: int | None = None,
    winner: Tensor | None = None,
) -> Source:
    """Where the gradient of each place comes from, for ``rows.summed`` and ``rows.update``.

    For sum and mean each place takes its bag's gradient times its factor (divided by the count for
    mean); for max, each has a row of its own with what it won, so that (B, D) numbers are made.
    """
    if mode == "max":
        assert winner is not None
        return Source(won(grads, winner, starts))
    n_places = _end(starts)
    bag = bag_of(starts, n_places)
    scale = None if factor is None else factor[:n_places]
    if mode == "mean":
        shares = counts(ids, starts, padding_row).clamp(min=1).to(_sum_dtype(grads.dtype)).reciprocal()
        scale = shares[bag] if scale is None else scale * shares[bag]
    return Source(grads, bag, scale)


def expanded(origin: Source) -> Tensor:
    """The gradient of each place, written out: (B, D) of the dtype of ``origin.grads``."""
    grads = origin.grads if origin.row_of is None else origin.grads[origin.row_of]
    if origin.factor is None:
        return grads if origin.row_of is not None else grads.clone()
    return (grads.to(_sum_dtype(grads.dtype)) * origin.factor[:, None]).to(grads.dtype)


def dots(grads: Tensor, table: Tensor, ids: Tensor, starts: Tensor, padding_row: int | None = None) -> Tensor:
    """``out[p] = <table[ids[p]], grads[bag of p]>``, the gradient of the factors: (B,).

    0 for padding and for places from ``starts[-1]`` on.
    """
    n_places = _end(starts)
    out = torch.zeros(len(ids), dtype=table.dtype, device=table.device)
    ids = ids[:n_places]
    dtype = _sum_dtype(table.dtype)
    found = (table[ids.long()].to(dtype) * grads.to(dtype)[bag_of(starts, n_places)]).sum(1)
    if padding_row is not None:
        found = torch.where(ids == padding_row, 0.0, found)
    out[:n_places] = found.to(table.dtype)
    return out


def _end(starts: Tensor) -> int:
    return int(starts[-1])


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
