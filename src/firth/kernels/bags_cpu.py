"""Fast kernels over bags of rows for the CPU, in Numba: the twins of :mod:`firth.kernels.bags_reference`.

Same names, arguments and results; for contiguous float32 and float64 tables. A bag is summed in the
order of its places, so that results do not depend on the number of threads.

How they are made fast:

* A bag's rows are added in registers, four vectors of 64 bytes at a time, and its result is stored
  once; loops over scalars store after every row.
* The row ``AHEAD`` places further on is prefetched, line by line, while one is added: rows of a large
  table come from memory, whose latency is otherwise paid row by row.
* The winners of a maximum are kept in registers beside it, as integers of the same width, so that both
  have the same number of lanes.
* Threads take the next stretch of bags that nobody has taken; where they write to rows of a table (the
  gradient of a maximum) they take stretches of columns, so that no two write to the same number and
  the order of additions is that of the input.

All functions that call each other stand in this one file, but for single instructions of
:mod:`firth.kernels.threads`, because Numba's disk cache does not notice changes in other files.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model
from torch import Tensor

from firth.kernels import bags_reference as reference
from firth.kernels import pages, threads
from firth.kernels.bags_reference import MODES
from firth.kernels.rows_reference import Source
from firth.kernels.threads import integer, take

__all__ = [
    "MODES",
    "bag_of",
    "counts",
    "dots",
    "expanded",
    "first_bad_start",
    "forward",
    "picked",
    "scattered",
    "source",
    "won",
]

BYTES = 64  # of one vector value, a cache line; LLVM splits it where registers are narrower
AHEAD = 16  # places between a row in use and the one prefetched
STRETCH_BYTES = 1 << 17  # rows in a stretch; a thread more is not worth waking for less

# Additions stay in their order ('reassoc' is not among the flags).
_FAST = {
    "nogil": True,
    "cache": True,
    "fastmath": {"contract", "nsz"},
    "boundscheck": False,
    "error_model": "numpy",
}

_KERNEL = {**_FAST, "cache": False}  # compiled into what threads call

# --- vector values ------------------------------------------------------------------------------

_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)


class _Vector(types.Type):
    """A Numba type for LLVM's vectors of ``count`` lanes: lives in registers only."""

    def __init__(self, lane: Any, count: int) -> None:
        self.lane, self.count = lane, count
        super().__init__(name=f"vector({lane} x {count})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _llvm(fe_type))


def _llvm(vector: _Vector) -> Any:
    lanes = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.boolean: ir.IntType(1)}
    lane = lanes[vector.lane] if vector.lane in lanes else ir.IntType(vector.lane.bitwidth)
    return ir.VectorType(lane, vector.count)


def _vector_of(lane: Any) -> _Vector:
    return _Vector(lane, BYTES * 8 // lane.bitwidth)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    from numba.np.arrayobj import make_array

    return builder.gep(make_array(array_type)(context, builder, array).data, [offset])


@intrinsic
def _load(typing_context: Any, array: Any, offset: Any) -> Any:
    """A vector from the flat array, from ``offset`` on; no wrap-around of negative offsets."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        value = builder.load(builder.bitcast(address, _llvm(signature.return_type).as_pointer()))
        value.align = signature.return_type.lane.bitwidth // 8
        return value

    return _vector_of(array.dtype)(array, types.int64), codegen


@intrinsic
def _store(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write a vector into the flat array, from ``offset`` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        store = builder.store(args[2], builder.bitcast(address, _llvm(signature.args[2]).as_pointer()))
        store.align = signature.args[2].lane.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def _splat(typing_context: Any, x: Any) -> Any:
    """The same number in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _llvm(signature.return_type)
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(_INT32, 0))
        zeros = ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count)
        return builder.shuffle_vector(first, undefined, zeros)

    return _vector_of(x)(x), codegen


@intrinsic
def _fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """``x * y + z``, lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _llvm(signature.return_type)
        name = f"llvm.fma.v{vector.count}f{signature.return_type.lane.bitwidth}"
        function_type = ir.FunctionType(vector, [vector] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)

    return x(x, x, x), codegen


@intrinsic
def _over(typing_context: Any, x: Any, y: Any) -> Any:
    """``x / y``, lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fdiv(*args)

    return x(x, x), codegen


@intrinsic
def _above(typing_context: Any, x: Any, y: Any) -> Any:
    """``x > y``, lane by lane; false for NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fcmp_ordered(">", *args)

    return _Vector(types.boolean, x.count)(x, x), codegen


@intrinsic
def _choose(typing_context: Any, condition: Any, x: Any, y: Any) -> Any:
    """``x`` where the condition holds, else ``y``, lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(*args)

    return x(condition, x, x), codegen


@intrinsic
def _total(typing_context: Any, x: Any) -> Any:
    """The sum of all lanes, by halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, count = args[0], signature.args[0].count
        while count > 1:
            count //= 2
            low, high = (
                ir.Constant(ir.VectorType(_INT32, count), list(range(first, first + count)))
                for first in (0, count)
            )
            undefined = ir.Constant(value.type, ir.Undefined)
            value = builder.fadd(
                builder.shuffle_vector(value, undefined, low), builder.shuffle_vector(value, undefined, high)
            )
        return builder.extract_element(value, ir.Constant(_INT32, 0))

    return x.lane(x), codegen


@intrinsic
def _prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    """Ask for the cache line at ``offset`` of the flat array, into the first-level cache."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, level_1, data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
        builder.call(function, [builder.bitcast(address, pointer), read, level_1, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


# --- compiled kernels ---------------------------------------------------------------------------
# Flat arrays: row r of a table of width D begins at r * D. ``padding_row`` is -1 for none, ``factor``
# empty for none. Each takes stretches of so many bags (or what it says) until none is left.


@nb.njit(**_FAST)
def _n_kept(ids: Any, low: int, high: int, padding_row: int) -> int:
    n = high - low
    if padding_row >= 0:
        for p in range(low, high):
            n -= ids[p] == padding_row
    return n


@nb.njit(**_KERNEL)
def _sum(
    table: Any,
    width: int,
    ids: Any,
    starts: Any,
    factor: Any,
    padding_row: int,
    mean: bool,
    out: Any,
    n_bags: int,
    stretch: int,
    counter: int,
) -> None:
    """Sums or means of the bags; see ``bags_reference.forward``."""
    number = table.dtype.type
    lanes = BYTES // table.itemsize
    zero = _splat(number(0))
    one = number(1)
    last = starts[n_bags] - 1
    weighted = factor.size > 0
    while True:
        first = take(counter) * stretch
        if first >= n_bags:
            return
        for b in range(first, min(first + stretch, n_bags)):
            low, high = starts[b], starts[b + 1]
            n = number(max(_n_kept(ids, low, high, padding_row), 1)) if mean else one
            share = _splat(n)
            d = 0
            while d + 4 * lanes <= width:
                a0 = zero
                a1 = zero
                a2 = zero
                a3 = zero
                for p in range(low, high):
                    ahead = ids[min(p + AHEAD, last)] * width + d
                    _prefetch(table, ahead)
                    _prefetch(table, ahead + lanes)
                    _prefetch(table, ahead + 2 * lanes)
                    _prefetch(table, ahead + 3 * lanes)
                    if ids[p] == padding_row:
                        continue
                    f = _splat(factor[p] if weighted else one)
                    at = ids[p] * width + d
                    a0 = _fma(f, _load(table, at), a0)
                    a1 = _fma(f, _load(table, at + lanes), a1)
                    a2 = _fma(f, _load(table, at + 2 * lanes), a2)
                    a3 = _fma(f, _load(table, at + 3 * lanes), a3)
                at = b * width + d
                if mean:
                    a0 = _over(a0, share)
                    a1 = _over(a1, share)
                    a2 = _over(a2, share)
                    a3 = _over(a3, share)
                _store(out, at, a0)
                _store(out, at + lanes, a1)
                _store(out, at + 2 * lanes, a2)
                _store(out, at + 3 * lanes, a3)
                d += 4 * lanes
            while d + lanes <= width:
                a0 = zero
                for p in range(low, high):
                    _prefetch(table, ids[min(p + AHEAD, last)] * width + d)
                    if ids[p] != padding_row:
                        f = _splat(factor[p] if weighted else one)
                        a0 = _fma(f, _load(table, ids[p] * width + d), a0)
                _store(out, b * width + d, _over(a0, share))
                d += lanes
            if d < width:
                for c in range(d, width):
                    out[b * width + c] = 0
                for p in range(low, high):
                    _prefetch(table, ids[min(p + AHEAD, last)] * width + d)
                    if ids[p] != padding_row:
                        x = factor[p] if weighted else one
                        at = ids[p] * width
                        for c in range(d, width):
                            out[b * width + c] += x * table[at + c]
                for c in range(d, width):
                    out[b * width + c] /= n


@nb.njit(**_KERNEL)
def _max(
    table: Any,
    width: int,
    ids: Any,
    starts: Any,
    padding_row: int,
    out: Any,
    winner: Any,
    n_bags: int,
    stretch: int,
    counter: int,
) -> None:
    """Maxima, and their winners if ``winner`` is not empty; see ``bags_reference.forward``.

    Winners are integers as wide as the floats.
    """
    number = table.dtype.type
    place = winner.dtype.type
    lanes = BYTES // table.itemsize
    last = starts[n_bags] - 1
    wanted = winner.size > 0
    while True:
        first = take(counter) * stretch
        if first >= n_bags:
            return
        for b in range(first, min(first + stretch, n_bags)):
            low, high = starts[b], starts[b + 1]
            while low < high and ids[low] == padding_row:
                low += 1
            to = b * width
            if low == high:
                for c in range(to, to + width):
                    out[c] = number(0)
                if wanted:
                    for c in range(to, to + width):
                        winner[c] = place(-1)
                continue
            d = 0
            while d + 2 * lanes <= width:
                ahead = ids[min(low + AHEAD, last)] * width + d
                _prefetch(table, ahead)
                _prefetch(table, ahead + lanes)
                at = ids[low] * width + d
                a0 = _load(table, at)
                a1 = _load(table, at + lanes)
                w0 = _splat(place(low))
                w1 = w0
                for p in range(low + 1, high):
                    ahead = ids[min(p + AHEAD, last)] * width + d
                    _prefetch(table, ahead)
                    _prefetch(table, ahead + lanes)
                    if ids[p] == padding_row:
                        continue
                    k = _splat(place(p))
                    at = ids[p] * width + d
                    x0 = _load(table, at)
                    x1 = _load(table, at + lanes)
                    c0 = _above(x0, a0)
                    c1 = _above(x1, a1)
                    a0 = _choose(c0, x0, a0)
                    a1 = _choose(c1, x1, a1)
                    w0 = _choose(c0, k, w0)
                    w1 = _choose(c1, k, w1)
                _store(out, to + d, a0)
                _store(out, to + d + lanes, a1)
                if wanted:
                    _store(winner, to + d, w0)
                    _store(winner, to + d + lanes, w1)
                d += 2 * lanes
            while d < width:
                best = table[ids[low] * width + d]
                won_at = low
                for p in range(low + 1, high):
                    x = table[ids[p] * width + d]
                    if x > best and ids[p] != padding_row:
                        best = x
                        won_at = p
                out[to + d] = best
                if wanted:
                    winner[to + d] = place(won_at)
                d += 1


@nb.njit(**_KERNEL)
def _scatter(
    grads: Any, width: int, ids: Any, winner: Any, n_bags: int, out: Any, stretch: int, counter: int
) -> None:
    """``out[ids[winner[b, d]], d] += grads[b, d]``, in stretches of columns."""
    while True:
        first = take(counter) * stretch
        if first >= width:
            return
        for b in range(n_bags):
            at = b * width
            for d in range(first, min(first + stretch, width)):
                if winner[at + d] >= 0:
                    out[ids[winner[at + d]] * width + d] += grads[at + d]


@nb.njit(**_KERNEL)
def _pick(
    table: Any, width: int, ids: Any, winner: Any, out: Any, n_bags: int, stretch: int, counter: int
) -> None:
    while True:
        first = take(counter) * stretch
        if first >= n_bags:
            return
        for b in range(first, min(first + stretch, n_bags)):
            for c in range(b * width, (b + 1) * width):
                p = winner[c]
                out[c] = table[ids[p] * width + c - b * width] if p >= 0 else 0


@nb.njit(**_KERNEL)
def _by_place(
    grads: Any, width: int, starts: Any, winner: Any, out: Any, n_bags: int, stretch: int, counter: int
) -> None:
    while True:
        first = take(counter) * stretch
        if first >= n_bags:
            return
        for b in range(first, min(first + stretch, n_bags)):
            for c in range(starts[b] * width, starts[b + 1] * width):
                out[c] = 0
            for c in range(b * width, (b + 1) * width):
                if winner[c] >= 0:
                    out[winner[c] * width + c - b * width] = grads[c]


@nb.njit(**_KERNEL)
def _expand(
    grads: Any, width: int, row_of: Any, factor: Any, out: Any, n_places: int, stretch: int, counter: int
) -> None:
    """``out[p] = factor[p] * grads[row_of[p]]``, in stretches of places."""
    lanes = BYTES // grads.itemsize
    zero = _splat(grads.dtype.type(0))
    one = grads.dtype.type(1)
    weighted = factor.size > 0
    while True:
        first = take(counter) * stretch
        if first >= n_places:
            return
        for p in range(first, min(first + stretch, n_places)):
            x = factor[p] if weighted else one
            f = _splat(x)
            at = row_of[p] * width
            d = 0
            while d + lanes <= width:
                _store(out, p * width + d, _fma(f, _load(grads, at + d), zero))
                d += lanes
            while d < width:
                out[p * width + d] = x * grads[at + d]
                d += 1


@nb.njit(**_KERNEL)
def _dot(
    grads: Any,
    table: Any,
    width: int,
    ids: Any,
    starts: Any,
    padding_row: int,
    out: Any,
    n_bags: int,
    stretch: int,
    counter: int,
) -> None:
    """``out[p] = <table[ids[p]], grads[b]>`` for the places of the bags."""
    lanes = BYTES // table.itemsize
    zero = _splat(table.dtype.type(0))
    last = starts[n_bags] - 1
    while True:
        first = take(counter) * stretch
        if first >= n_bags:
            return
        for b in range(first, min(first + stretch, n_bags)):
            for p in range(starts[b], starts[b + 1]):
                ahead = ids[min(p + AHEAD, last)] * width
                at = ids[p] * width
                of = b * width
                a0 = zero
                a1 = zero
                d = 0
                while d + 2 * lanes <= width:
                    _prefetch(table, ahead + d)
                    _prefetch(table, ahead + d + lanes)
                    a0 = _fma(_load(table, at + d), _load(grads, of + d), a0)
                    a1 = _fma(_load(table, at + d + lanes), _load(grads, of + d + lanes), a1)
                    d += 2 * lanes
                total = _total(a0) + _total(a1)
                while d < width:
                    total += table[at + d] * grads[of + d]
                    d += 1
                out[p] = 0 if ids[p] == padding_row else total


@nb.njit(**_FAST)
def _count(ids: Any, starts: Any, padding_row: int, out: Any) -> None:
    for b in range(out.size):
        out[b] = _n_kept(ids, starts[b], starts[b + 1], padding_row)


@nb.njit(**_FAST)
def _bags(starts: Any, out: Any) -> None:
    for b in range(starts.size - 1):
        for p in range(starts[b], starts[b + 1]):
            out[p] = b


@nb.njit(**_FAST)
def _scales(starts: Any, factor: Any, counts: Any, out: Any) -> None:
    """``out[p] = factor[p] / counts[b]``, the factors of a mean's gradient."""
    one = out.dtype.type(1)
    weighted = factor.size > 0
    for b in range(starts.size - 1):
        share = out.dtype.type(1.0 / max(counts[b], 1))
        for p in range(starts[b], starts[b + 1]):
            out[p] = share * (factor[p] if weighted else one)


@nb.njit(**_FAST)
def _first_bad(starts: Any, n_places: int) -> int:
    before = 0
    for b in range(starts.size):
        if starts[b] < before or starts[b] > n_places or (b == 0 and starts[b] != 0):
            return b
        before = starts[b]
    return -1


# --- entries ------------------------------------------------------------------------------------
# What threads call: they read the arguments of one kernel each, see threads.Kernel. A flat array is two of
# them, its address and its length.


@intrinsic
def _places_at(typing_context: Any, like: Any, address: Any) -> Any:
    """The address of integers as wide as the floats that the pointer ``like`` is of."""
    kind = nb.types.CPointer(types.int32 if like.dtype == types.float32 else types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(kind))

    return kind(like, types.int64), codegen


@nb.njit(**_KERNEL)
def _floats(like: Any, a: int, k: int) -> Any:
    return nb.carray(threads.pointer(like, integer(a, k)), integer(a, k + 1))


@nb.njit(**_KERNEL)
def _integers(a: int, k: int) -> Any:
    return nb.carray(threads.pointer(np.int64(0), integer(a, k)), integer(a, k + 1))


@nb.njit(**_KERNEL)
def _winners(like: Any, a: int, k: int) -> Any:
    """Integers as wide as the floats."""
    return nb.carray(_places_at(like, integer(a, k)), integer(a, k + 1))


def _sum_entry(like: Any, a: Any, counter: Any) -> None:
    _sum(
        _floats(like, a, 0), integer(a, 2), _integers(a, 3), _integers(a, 5), _floats(like, a, 7),
        integer(a, 9), integer(a, 10) != 0, _floats(like, a, 11), integer(a, 13), integer(a, 14), counter,
    )  # fmt: skip


def _max_entry(like: Any, a: Any, counter: Any) -> None:
    _max(
        _floats(like, a, 0), integer(a, 2), _integers(a, 3), _integers(a, 5), integer(a, 7),
        _floats(like, a, 8), _winners(like, a, 10), integer(a, 12), integer(a, 13), counter,
    )  # fmt: skip


def _scatter_entry(like: Any, a: Any, counter: Any) -> None:
    _scatter(
        _floats(like, a, 0), integer(a, 2), _integers(a, 3), _winners(like, a, 5), integer(a, 7),
        _floats(like, a, 8), integer(a, 10), counter,
    )  # fmt: skip


def _pick_entry(like: Any, a: Any, counter: Any) -> None:
    _pick(
        _floats(like, a, 0), integer(a, 2), _integers(a, 3), _winners(like, a, 5), _floats(like, a, 7),
        integer(a, 9), integer(a, 10), counter,
    )  # fmt: skip


def _by_place_entry(like: Any, a: Any, counter: Any) -> None:
    _by_place(
        _floats(like, a, 0), integer(a, 2), _integers(a, 3), _winners(like, a, 5), _floats(like, a, 7),
        integer(a, 9), integer(a, 10), counter,
    )  # fmt: skip


def _expand_entry(like: Any, a: Any, counter: Any) -> None:
    _expand(
        _floats(like, a, 0), integer(a, 2), _integers(a, 3), _floats(like, a, 5), _floats(like, a, 7),
        integer(a, 9), integer(a, 10), counter,
    )  # fmt: skip


def _dot_entry(like: Any, a: Any, counter: Any) -> None:
    _dot(
        _floats(like, a, 0), _floats(like, a, 2), integer(a, 4), _integers(a, 5), _integers(a, 7),
        integer(a, 9), _floats(like, a, 10), integer(a, 12), integer(a, 13), counter,
    )  # fmt: skip


_SUM = threads.Kernel(_sum_entry, "15q")
_MAX = threads.Kernel(_max_entry, "14q")
_SCATTER = threads.Kernel(_scatter_entry, "11q")
_PICK = threads.Kernel(_pick_entry, "11q")
_BY_PLACE = threads.Kernel(_by_place_entry, "11q")
_EXPAND = threads.Kernel(_expand_entry, "11q")
_DOT = threads.Kernel(_dot_entry, "14q")


# --- the functions of bags_reference ------------------------------------------------------------


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().numpy().reshape(-1)


def _stretch(row_bytes: int, n_bags: int, n_places: int) -> int:
    """How many bags are taken at a time."""
    bag_bytes = row_bytes * (1 + n_places // max(n_bags, 1))
    return max(STRETCH_BYTES // max(bag_bytes, 1), 1)


def _span(tensor: Tensor | None) -> tuple[int, int]:
    """Address and length of a contiguous tensor, which must have a name until the kernel returns."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


def _factors(factor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if factor is None else factor.detach().to(dtype).contiguous()


def first_bad_start(starts: Tensor, n_places: int) -> int:
    """See :func:`firth.kernels.bags_reference.first_bad_start`."""
    return int(_first_bad(starts.numpy(), n_places))


def bag_of(starts: Tensor, n_places: int) -> Tensor:
    """See :func:`firth.kernels.bags_reference.bag_of`."""
    out = torch.empty(n_places, dtype=torch.int64)
    _bags(_flat(starts), out.numpy())
    return out


def counts(ids: Tensor, starts: Tensor, padding_row: int | None) -> Tensor:
    """See :func:`firth.kernels.bags_reference.counts`."""
    out = torch.empty(len(starts) - 1, dtype=torch.int64)
    padding = -1 if padding_row is None else padding_row
    _count(ids.long().numpy(), starts.numpy(), padding, out.numpy())
    return out


def forward(
    table: Tensor,
    ids: Tensor,
    starts: Tensor,
    mode: str,
    factor: Tensor | None = None,
    padding_row: int | None = None,
    winners: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`firth.kernels.bags_reference.forward`."""
    n_bags, width = len(starts) - 1, table.shape[1]
    out = pages.result((n_bags, width), table.dtype)
    ids, starts, n_places = ids.long().contiguous(), starts.contiguous(), int(starts[-1])
    winner = None
    if mode == "max":
        integer = torch.int32 if table.dtype == torch.float32 else torch.int64
        if n_places > torch.iinfo(integer).max:
            return reference.forward(table, ids, starts, mode, factor, padding_row, winners)
        winner = torch.empty((n_bags, width) if winners else (0, 0), dtype=integer)
    if not out.numel():
        return out, winner if winners else None
    stretch = _stretch(width * table.element_size(), n_bags, n_places)
    bags = *_span(table), width, *_span(ids), *_span(starts)
    padding = -1 if padding_row is None else padding_row
    if winner is not None:
        found = *_span(out), *_span(winner)
        _MAX.run(table.dtype, (*bags, padding, *found, n_bags, stretch), n_bags, stretch)
        return out, winner if winners else None
    factor = _factors(factor, table.dtype)
    how = *_span(factor), padding, mode == "mean"
    _SUM.run(table.dtype, (*bags, *how, *_span(out), n_bags, stretch), n_bags, stretch)
    return out, None


def picked(table: Tensor, ids: Tensor, winner: Tensor) -> Tensor:
    """See :func:`firth.kernels.bags_reference.picked`."""
    n_bags, width = winner.shape
    out = pages.result((n_bags, width), table.dtype)
    if out.numel():
        stretch = _stretch(width * table.element_size(), n_bags, n_bags)
        ids, winner = ids.long().contiguous(), winner.contiguous()
        tensors = *_span(table), width, *_span(ids), *_span(winner), *_span(out)
        _PICK.run(table.dtype, (*tensors, n_bags, stretch), n_bags, stretch)
    return out


def scattered(grads: Tensor, ids: Tensor, winner: Tensor, n_rows: int) -> Tensor:
    """See :func:`firth.kernels.bags_reference.scattered`."""
    n_bags, width = winner.shape
    out = pages.zeros((n_rows, width), grads.dtype)
    if winner.numel() and out.numel():
        # A cache line of columns or more, and enough bags for a second thread to pay.
        line = BYTES // grads.element_size()
        columns = line if width * n_bags * grads.element_size() > STRETCH_BYTES else width
        grads, ids, winner = grads.contiguous(), ids.long().contiguous(), winner.contiguous()
        arguments = *_span(grads), width, *_span(ids), *_span(winner), n_bags, *_span(out), columns
        _SCATTER.run(grads.dtype, arguments, width, columns)
    return out


def won(grads: Tensor, winner: Tensor, starts: Tensor) -> Tensor:
    """See :func:`firth.kernels.bags_reference.won`."""
    n_bags, width = winner.shape
    out = pages.result((int(starts[-1]), width), grads.dtype)
    if out.numel():
        stretch = _stretch(width * grads.element_size(), n_bags, len(out))
        grads, starts, winner = grads.contiguous(), starts.contiguous(), winner.contiguous()
        tensors = *_span(grads), width, *_span(starts), *_span(winner), *_span(out)
        _BY_PLACE.run(grads.dtype, (*tensors, n_bags, stretch), n_bags, stretch)
    return out


def source(
    grads: Tensor,
    ids: Tensor,
    starts: Tensor,
    mode: str,
    factor: Tensor | None = None,
    padding_row: int | None = None,
    winner: Tensor | None = None,
) -> Source:
    """See :func:`firth.kernels.bags_reference.source`."""
    if mode == "max":
        assert winner is not None
        return Source(won(grads, winner, starts))
    n_places = int(starts[-1])
    scale = None if factor is None else factor.detach()[:n_places].contiguous()
    if mode == "mean":
        scale = torch.empty(n_places, dtype=grads.dtype)
        share = counts(ids, starts, padding_row).numpy()
        factors = _factors(factor, grads.dtype)
        factors = torch.empty(0, dtype=grads.dtype) if factors is None else factors
        _scales(_flat(starts), factors.numpy(), share, scale.numpy())
    return Source(grads, bag_of(starts, n_places), scale)


def expanded(origin: Source) -> Tensor:
    """See :func:`firth.kernels.bags_reference.expanded`."""
    if origin.row_of is None:
        return reference.expanded(origin)
    n_places, width = len(origin.row_of), origin.grads.shape[1]
    out = pages.result((n_places, width), origin.grads.dtype)
    if out.numel():
        grads, factor = origin.grads.detach().contiguous(), _factors(origin.factor, out.dtype)
        stretch = _stretch(width * out.element_size(), n_places, 0)
        row_of = origin.row_of.long().contiguous()
        tensors = *_span(grads), width, *_span(row_of), *_span(factor), *_span(out)
        _EXPAND.run(out.dtype, (*tensors, n_places, stretch), n_places, stretch)
    return out


def dots(grads: Tensor, table: Tensor, ids: Tensor, starts: Tensor, padding_row: int | None = None) -> Tensor:
    """See :func:`firth.kernels.bags_reference.dots`."""
    n_bags, width = len(starts) - 1, table.shape[1]
    out = torch.zeros(len(ids), dtype=table.dtype)
    n_places = int(starts[-1])
    if n_places and width:
        grads, ids, starts = grads.contiguous(), ids.long().contiguous(), starts.contiguous()
        stretch = _stretch(width * table.element_size(), n_bags, n_places)
        places = width, *_span(ids), *_span(starts), -1 if padding_row is None else padding_row
        arguments = *_span(grads), *_span(table), *places, *_span(out), n_bags, stretch
        _DOT.run(table.dtype, arguments, n_bags, stretch)
    return out
