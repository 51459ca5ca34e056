"""The rows of a table that a mini-batch uses, on the CPU, in Numba.

Every public function has the name and the arguments of its twin in :mod:`firth.kernels.rows_reference`,
which defines it. Tables are float32
or float64, contiguous. All of this is bound by memory, so what counts is which bytes move and how early
they are asked for:

* Rows, their state and their gradients are prefetched some places ahead, since nobody but us knows which
  rows come next. Several misses are then under way at once.
* A row is read and written once a step: its gradient goes from the batch through registers into the row;
  only a row looked up more than once has its gradient summed first, in a buffer that stays in the cache.
* Ids are sorted by their digits (radix sort), in as few passes as the table's size and the batch allow;
  id and place travel as one number.
* Values of LLVM's vector type (``_load``, ``_add``, ...) rather than loops over scalars: the compiler
  would test before each row whether the arrays overlap.

Threads take the next stretch of rows that nobody has taken. A row belongs to one stretch and its sum is
taken in input order, so results do not depend on the number of threads. All functions that call each
other stand in this one file, but for single instructions of :mod:`firth.kernels.threads`, because Numba's
disk cache does not notice changes in other files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model
from torch import Tensor

from firth.kernels import pages, threads
from firth.kernels import rows_reference as reference
from firth.kernels.rows_reference import Groups, Source, Update, not_finite, outside, state_shapes
from firth.kernels.threads import integer, real, seen, show, take

__all__ = [
    "Groups",
    "Source",
    "Update",
    "first_not_finite",
    "first_outside",
    "gather",
    "group",
    "renorm",
    "state_shapes",
    "step",
    "summed",
    "update",
]

AHEAD_BYTES = 1 << 13  # what is prefetched before its turn, at most: a part of the first-level cache
DIGIT = 12  # the most bits that are sorted by at a time: 4,096 counters stay in the first-level cache
STREAM_BYTES = 1 << 22  # results from so many bytes on are written past the caches, which they would clear
STRETCH_BYTES = 1 << 17  # gradients or rows in a stretch; a thread more is not worth waking for less
SGD, ADAGRAD, ROWWISE, ADAM = range(4)
# Cells beside the counter, see _step; the last is what threads.Kernel.run returns.
SHARED_GROUPS, SHARED_SUM, SHARED_SUMMED, SHARED_MOVE, SHARED_REFUSED = 1, 2, 3, 4, 7
# Sums of absolute values below it tell that no sum of these numbers overflows.
_LIMIT = {dtype: torch.finfo(dtype).max / 2 for dtype in (torch.float32, torch.float64)}
_KIND = {"sgd": SGD, "adagrad": ADAGRAD, "rowwise_adagrad": ROWWISE, "adam": ADAM}
# 'contract' only: sums keep their order.
_FAST = {"nogil": True, "fastmath": {"contract"}, "boundscheck": False, "error_model": "numpy"}
_INLINE = {**_FAST, "forceinline": True}

# --- addresses and vector values ----------------------------------------------------------------
# Rows are named by their address, an int64: arrays as arguments of small functions would be counted in
# and out for every row. ``like`` is any number of the table's dtype; it says what stands at an address.

_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
LINE = 64  # bytes in a vector value, and in a cache line


class _Vector(types.Type):
    """A Numba type for LINE bytes of floats, LLVM's ``<16 x float>`` or ``<8 x double>``: registers only."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = 8 * LINE // dtype.bitwidth
        self.code = f"v{self.lanes}f{dtype.bitwidth}"
        super().__init__(name=f"rows_{self.code}")

    @property
    def scalar(self) -> Any:
        return ir.FloatType() if self.dtype == types.float32 else ir.DoubleType()

    @property
    def llvm(self) -> Any:
        return ir.VectorType(self.scalar, self.lanes)

    @property
    def align(self) -> int:
        return self.dtype.bitwidth // 8

    def repeat(self, builder: Any, vector_type: Any, value: Any) -> Any:
        """``value`` in every lane."""
        undefined = ir.Constant(vector_type, ir.Undefined)
        first = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
        zeros = ir.Constant(ir.VectorType(_INT32, self.lanes), [0] * self.lanes)
        return builder.shuffle_vector(first, undefined, zeros)

    def first_lanes(self, builder: Any, n: Any) -> Any:
        """The mask of the first ``n`` lanes."""
        number_type = ir.VectorType(_INT64, self.lanes)
        numbers = ir.Constant(number_type, list(range(self.lanes)))
        return builder.icmp_signed("<", numbers, self.repeat(builder, number_type, n))


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


def _llvm_function(builder: Any, name: str, returned: Any, arguments: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(returned, arguments), name)


@intrinsic
def _load(typing_context: Any, like: Any, address: Any) -> Any:
    """The vector at an address."""
    vector = _Vector(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.inttoptr(args[1], vector.llvm.as_pointer()))
        value.align = vector.align
        return value

    return vector(like, types.int64), codegen


@intrinsic
def _store(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a vector to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], value.llvm.as_pointer())).align = value.align
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def _stream(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a vector past the caches, to an address that is a multiple of LINE; see :func:`_streamed`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store = builder.store(args[1], builder.inttoptr(args[0], value.llvm.as_pointer()))
        store.align = LINE
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INT32, 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def _streamed(typing_context: Any) -> Any:
    """What was written by :func:`_stream` before it is there for whoever is told of it after it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if threads.X86:
            builder.call(_llvm_function(builder, "llvm.x86.sse.sfence", ir.VoidType(), []), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _load_some(typing_context: Any, like: Any, address: Any, n: Any) -> Any:
    """The first ``n`` lanes at an address, zeros in the rest; nothing beyond is touched."""
    vector = _Vector(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[1], vector.llvm.as_pointer())
        mask = vector.first_lanes(builder, args[2])
        name = f"llvm.masked.load.{vector.code}.p0"
        types_ = [pointer.type, _INT32, mask.type, vector.llvm]
        function = _llvm_function(builder, name, vector.llvm, types_)
        zeros = ir.Constant(vector.llvm, None)
        return builder.call(function, [pointer, ir.Constant(_INT32, vector.align), mask, zeros])

    return vector(like, types.int64, types.int64), codegen


@intrinsic
def _store_some(typing_context: Any, address: Any, value: Any, n: Any) -> Any:
    """Write the first ``n`` lanes to an address; nothing beyond is touched."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], value.llvm.as_pointer())
        mask = value.first_lanes(builder, args[2])
        name = f"llvm.masked.store.{value.code}.p0"
        types_ = [value.llvm, pointer.type, _INT32, mask.type]
        function = _llvm_function(builder, name, ir.VoidType(), types_)
        builder.call(function, [args[1], pointer, ir.Constant(_INT32, value.align), mask])
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), codegen


@intrinsic
def _number(typing_context: Any, like: Any, address: Any) -> Any:
    """The single number at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[1], _Vector(like).scalar.as_pointer()))

    return like(like, types.int64), codegen


@intrinsic
def _set_number(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a single number to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def _item(typing_context: Any, like: Any) -> Any:
    """Bytes of a number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_INT64, like.bitwidth // 8)

    return types.int64(like), codegen


@intrinsic
def _as(typing_context: Any, like: Any, x: Any) -> Any:
    """A number in the dtype of ``like``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[1], x, like)

    return like(like, x), codegen


@intrinsic
def _splat(typing_context: Any, x: Any) -> Any:
    """The same number in every lane."""
    vector = _Vector(x)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return vector.repeat(builder, vector.llvm, args[0])

    return vector(x), codegen


def _arithmetic(instruction: str) -> Any:
    @intrinsic
    def compute(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return a(a, b), codegen

    return compute


def _function(name: str) -> Any:
    @intrinsic
    def compute(typing_context: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.call(_llvm_function(builder, f"llvm.{name}.{x.code}", x.llvm, [x.llvm]), args)

        return x(x), codegen

    return compute


# Lane by lane.
_add, _sub, _mul, _div = (_arithmetic(name) for name in ("fadd", "fsub", "fmul", "fdiv"))
_sqrt, _abs = (_function(name) for name in ("sqrt", "fabs"))


@intrinsic
def _total(typing_context: Any, x: Any) -> Any:
    """The sum of all lanes, halves first."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, lanes = args[0], x.lanes
        while lanes > 1:
            lanes //= 2
            half = ir.VectorType(_INT32, lanes)
            low = builder.shuffle_vector(value, value, ir.Constant(half, list(range(lanes))))
            high = builder.shuffle_vector(value, value, ir.Constant(half, list(range(lanes, 2 * lanes))))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(_INT32, 0))

    return x.dtype(x), codegen


@intrinsic
def _prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line that holds an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        function = _llvm_function(
            builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, _INT32, _INT32, _INT32]
        )
        read, level_1, data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], pointer), read, level_1, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# --- rows: ``size`` is their length in bytes ----------------------------------------------------


@nb.njit(**_INLINE)
def _width(like: Any, size: int) -> int:
    """Numbers in so many bytes."""
    return size // _item(like)


@nb.njit(**_INLINE)
def _prefetch_row(at: int, size: int) -> None:
    for b in range(0, size, LINE):
        _prefetch(at + b)
    _prefetch(at + size - 1)  # a row that is not aligned reaches into one line more


@nb.njit(**_INLINE)
def _copy_row(like: Any, to: int, at: int, size: int) -> None:
    full = size // LINE * LINE
    for b in range(0, full, LINE):
        _store(to + b, _load(like, at + b))
    if full < size:
        n = _width(like, size - full)
        _store_some(to + full, _load_some(like, at + full, n), n)


@nb.njit(**_INLINE)
def _stream_row(like: Any, to: int, at: int, size: int) -> None:
    """:func:`_copy_row` past the caches; ``to`` and ``size`` are multiples of LINE."""
    for b in range(0, size, LINE):
        _stream(to + b, _load(like, at + b))


@nb.njit(**_INLINE)
def _scale_row(scale: Any, at: int, size: int) -> None:
    """Multiply a row in place."""
    full = size // LINE * LINE
    by = _splat(scale)
    for b in range(0, full, LINE):
        _store(at + b, _mul(_load(scale, at + b), by))
    if full < size:
        n = _width(scale, size - full)
        _store_some(at + full, _mul(_load_some(scale, at + full, n), by), n)


@nb.njit(**_INLINE)
def _add_row(scale: Any, to: int, at: int, size: int) -> None:
    """The row at ``to`` += ``scale`` times the row at ``at``."""
    full = size // LINE * LINE
    by = _splat(scale)
    for b in range(0, full, LINE):
        _store(to + b, _add(_load(scale, to + b), _mul(by, _load(scale, at + b))))
    if full < size:
        n = _width(scale, size - full)
        value = _add(_load_some(scale, to + full, n), _mul(by, _load_some(scale, at + full, n)))
        _store_some(to + full, value, n)


@nb.njit(**_INLINE)
def _square_sum(zero: Any, at: int, size: int) -> Any:
    """The sum of the squares of a row, in two vectors of partial sums."""
    even = _splat(zero)
    odd = even
    b = 0
    while b + 2 * LINE <= size:
        x = _load(zero, at + b)
        y = _load(zero, at + b + LINE)
        even = _add(even, _mul(x, x))
        odd = _add(odd, _mul(y, y))
        b += 2 * LINE
    while b < size:
        z = _load_some(zero, at + b, _width(zero, size - b))
        even = _add(even, _mul(z, z))
        b += LINE
    return _total(_add(even, odd))


@nb.njit(**_INLINE)
def _absolute_sum(zero: Any, at: int, size: int) -> Any:
    """The sum of the absolute values of a row, in four vectors of partial sums."""
    a = _splat(zero)
    b, c, d = a, a, a
    first = 0
    while first + 4 * LINE <= size:
        a = _add(a, _abs(_load(zero, at + first)))
        b = _add(b, _abs(_load(zero, at + first + LINE)))
        c = _add(c, _abs(_load(zero, at + first + 2 * LINE)))
        d = _add(d, _abs(_load(zero, at + first + 3 * LINE)))
        first += 4 * LINE
    while first < size:
        a = _add(a, _abs(_load_some(zero, at + first, _width(zero, size - first))))
        first += LINE
    return _total(_add(_add(a, b), _add(c, d)))


# --- ids ----------------------------------------------------------------------------------------


@nb.njit(cache=True, **_FAST)
def _first_outside(ids: Any, n_rows: int) -> int:
    """See ``reference.first_outside``."""
    n = ids.shape[0]
    for first in range(0, n, 1024):
        wrong = np.int64(0)
        for p in range(first, min(first + 1024, n)):
            wrong += np.int64((ids[p] < 0) | (ids[p] >= n_rows))  # counted: a branch would not be vectorised
        if wrong:
            for p in range(first, n):
                if ids[p] < 0 or ids[p] >= n_rows:
                    return p
    return -1


@nb.njit(cache=True, **_FAST)
def _group(ids: Any, id_bits: int, padding_row: int, rows: Any, starts: Any, order: Any) -> int:
    """See ``reference.group``: fills the arrays, (B,), (B + 1,) and (B,), and returns U.

    Sorts numbers that hold the id above the place, by the id's digits, the lowest first. Passes over
    the batch are traded against passes over the counters.
    """
    n_ids = ids.shape[0]
    place_bits = 0
    while (np.int64(1) << place_bits) < n_ids:
        place_bits += 1
    n_passes = max((id_bits + DIGIT - 1) // DIGIT, 1)
    while n_passes < id_bits:
        # One pass more pays if the counters saved outnumber the ids of a pass.
        digit = (id_bits + n_passes - 1) // n_passes
        shorter = (id_bits + n_passes) // (n_passes + 1)
        if n_passes << digit <= 4 * n_ids + ((n_passes + 1) << shorter):
            break
        n_passes += 1
    digit = (id_bits + n_passes - 1) // n_passes
    mask = (np.int64(1) << digit) - 1
    keys = np.empty(n_ids, np.int64)
    n: Any = 0
    for p in range(n_ids):
        row = np.int64(ids[p])
        keys[n] = (row << place_bits) | p  # written always, counted if it is not padding
        n += np.int64(row != padding_row)
    spare = np.empty(n_ids, np.int64)
    count = np.empty(mask + 2, np.int32)
    for turn in range(n_passes):
        shift = place_bits + turn * digit
        count[:] = 0
        for k in range(n):
            count[((keys[k] >> shift) & mask) + 1] += 1
        for value in range(mask + 1):
            count[value + 1] += count[value]  # now where the keys with this digit begin
        for k in range(n):
            key = keys[k]
            value = (key >> shift) & mask
            to = count[value]
            count[value] = to + 1
            spare[to] = key
        keys, spare = spare, keys
    place_mask = (np.int64(1) << place_bits) - 1
    n_groups: Any = 0
    last = np.int64(-1)
    starts[0] = 0
    for k in range(n):
        row = keys[k] >> place_bits
        order[k] = keys[k] & place_mask
        n_groups += np.int64(row != last)
        rows[n_groups - 1] = row  # written again for each place: a branch would be mispredicted often
        starts[n_groups] = k + 1
        last = row
    return n_groups


# --- lookups ------------------------------------------------------------------------------------


@nb.njit(**_INLINE)
def _all_within(ids: int, first: int, end: int, n_rows: int) -> bool:
    """Whether the ids of these places name rows."""
    wrong = np.int64(0)
    for p in range(first, end):  # counted: a branch would not be vectorised
        wrong += np.int64((integer(ids, p) < 0) | (integer(ids, p) >= n_rows))
    return bool(wrong == 0)


@nb.njit(**_FAST)
def _gather(
    like: Any,
    table: int,
    n_rows: int,
    ids: int,
    n: int,
    out: int,
    size: int,
    ahead: int,
    stretch: int,
    streams: bool,
    counter: int,
) -> None:
    """See ``reference.gather``; takes stretches of so many places. SHARED_REFUSED: an id is outside."""
    while True:
        first = take(counter) * stretch
        if first >= n:
            break
        end = min(first + stretch, n)
        if not _all_within(ids, first, end, n_rows):
            show(counter, SHARED_REFUSED, 1)
            break
        for p in range(first, min(first + ahead, end)):
            _prefetch_row(table + integer(ids, p) * size, size)
        for p in range(first, end):
            if p + ahead < end:
                _prefetch_row(table + integer(ids, p + ahead) * size, size)
            if streams:
                _stream_row(like, out + p * size, table + integer(ids, p) * size, size)
            else:
                _copy_row(like, out + p * size, table + integer(ids, p) * size, size)
    if streams:
        _streamed()


@nb.njit(**_FAST)
def _norm(zero: Any, at: int, size: int, norm_type: Any) -> Any:
    """The p-norm of a row, in the dtype of ``zero``, which is also that of ``norm_type``."""
    one = _as(zero, 1)
    if norm_type == 2:
        return np.sqrt(_square_sum(zero, at, size))
    if norm_type == 1:
        return _absolute_sum(zero, at, size)
    step = _item(zero)
    total = zero
    if abs(norm_type) == math.inf:
        total = abs(_number(zero, at))
        for b in range(step, size, step):
            x = abs(_number(zero, at + b))
            if math.isnan(x) or (x > total if norm_type > 0 else x < total):
                total = x
            if math.isnan(total):
                break
        return total
    for b in range(0, size, step):
        x = abs(_number(zero, at + b))
        if norm_type == 0:
            total += one if x != zero else zero
        else:
            total += x**norm_type
    return total if norm_type == 0 else total ** (one / norm_type)


@nb.njit(**_FAST)
def _too_long(
    zero: Any,
    table: int,
    ids: int,
    n: int,
    max_norm: float,
    norm_type: Any,
    size: int,
    ahead: int,
    wrong: int,
    stretch: int,
    counter: int,
) -> None:
    """Sets byte p at the address ``wrong`` where the row of place p has a norm above ``max_norm``."""
    marks = nb.carray(threads.pointer(np.uint8(0), wrong), n)
    while True:
        first = take(counter) * stretch
        if first >= n:
            return
        end = min(first + stretch, n)
        for p in range(first, min(first + ahead, end)):
            _prefetch_row(table + integer(ids, p) * size, size)
        for p in range(first, end):
            if p + ahead < end:
                _prefetch_row(table + integer(ids, p + ahead) * size, size)
            norm = np.float64(_norm(zero, table + integer(ids, p) * size, size, norm_type))
            marks[p] = np.uint8(norm > max_norm)


@nb.njit(**_FAST)
def _shorten(
    zero: Any,
    table: int,
    rows: int,
    n: int,
    max_norm: float,
    norm_type: Any,
    size: int,
    stretch: int,
    counter: int,
) -> None:
    """Shrinks these rows, each of which must be there once."""
    while True:
        first = take(counter) * stretch
        if first >= n:
            return
        for u in range(first, min(first + stretch, n)):
            at = table + integer(rows, u) * size
            norm = np.float64(_norm(zero, at, size, norm_type))
            _scale_row(_as(zero, max_norm / (norm + 1e-7)), at, size)


# --- gradients ----------------------------------------------------------------------------------
# The gradient of place p stands at ``grads + row_of[p] * size`` and counts ``factor[p]`` times; the
# addresses ``row_of`` and ``factor`` are 0 if places have rows of their own and count once.


@nb.njit(**_FAST)
def _absolute_sums(zero: Any, grads: int, n: int, sums: int, stretch: int, counter: int) -> None:
    """The absolute values of ``n`` bytes of numbers, summed stretch by stretch to the address ``sums``."""
    while True:
        turn = take(counter)
        first = turn * stretch
        if first >= n:
            return
        _set_number(sums + turn * _item(zero), _absolute_sum(zero, grads + first, min(stretch, n - first)))


@nb.njit(**_INLINE)
def _gradient_at(grads: int, row_of: int, place: int, size: int) -> int:
    row = place
    if row_of:
        row = integer(row_of, place)
    return grads + row * size


@nb.njit(**_INLINE)
def _sum_row(
    one: Any,
    to: int,
    grads: int,
    row_of: int,
    factor: int,
    order: int,
    first: int,
    end: int,
    by_freq: bool,
    size: int,
) -> None:
    """The gradient of the places ``order[first:end]``, summed in that order, to the address ``to``."""
    step = _item(one)
    place = integer(order, first)
    _copy_row(one, to, _gradient_at(grads, row_of, place, size), size)
    if factor:
        _scale_row(_number(one, factor + place * step), to, size)
    for k in range(first + 1, end):
        place = integer(order, k)
        scale = one
        if factor:
            scale = _number(one, factor + place * step)
        _add_row(scale, to, _gradient_at(grads, row_of, place, size), size)
    if by_freq:
        _scale_row(one / _as(one, end - first), to, size)


@nb.njit(**_INLINE)
def _first_group(starts: int, n_groups: int, place: int) -> int:
    """The first group that begins at ``place`` (a number in ``order``) or later."""
    low = 0
    high = n_groups
    while low < high:
        middle = (low + high) // 2
        if integer(starts, middle) < place:
            low = middle + 1
        else:
            high = middle
    return low


@nb.njit(**_FAST)
def _summed(
    one: Any,
    out: int,
    n_groups: int,
    starts: int,
    order: int,
    grads: int,
    row_of: int,
    factor: int,
    by_freq: bool,
    size: int,
    ahead: int,
    stretch: int,
    counter: int,
) -> None:
    """See ``reference.summed``."""
    n = integer(starts, n_groups)
    while True:
        first = take(counter) * stretch
        if first >= n:
            return
        u_end = _first_group(starts, n_groups, first + stretch)
        k_end = integer(starts, u_end)
        for u in range(_first_group(starts, n_groups, first), u_end):
            begin = integer(starts, u)
            end = integer(starts, u + 1)
            for soon in range(begin + ahead, min(end + ahead, k_end)):
                _prefetch_row(_gradient_at(grads, row_of, integer(order, soon), size), size)
            _sum_row(one, out + u * size, grads, row_of, factor, order, begin, end, by_freq, size)


# --- updates of one row -------------------------------------------------------------------------


@nb.njit(**_INLINE)
def _sgd(rate: Any, at: int, g_at: int, size: int) -> None:
    """w -= rate * g."""
    full = size // LINE * LINE
    a = _splat(rate)
    for b in range(0, full, LINE):
        _store(at + b, _sub(_load(rate, at + b), _mul(a, _load(rate, g_at + b))))
    if full < size:
        n = _width(rate, size - full)
        w = _sub(_load_some(rate, at + full, n), _mul(a, _load_some(rate, g_at + full, n)))
        _store_some(at + full, w, n)


@nb.njit(**_INLINE)
def _momentum_step(w: Any, g: Any, b: Any, rate: Any, momentum: Any, fresh: Any, kept: Any) -> Any:
    b = _add(_mul(momentum, b), g)
    return _sub(w, _mul(rate, _add(_mul(fresh, g), _mul(kept, b)))), b


@nb.njit(**_INLINE)
def _momentum(
    rate: Any, momentum: Any, fresh: Any, kept: Any, at: int, buffer: int, g_at: int, size: int
) -> None:
    """``fresh`` and ``kept``: what gradient and buffer count in a step, 0 and 1; Nesterov's 1, momentum."""
    full = size // LINE * LINE
    a, m, f, k = _splat(rate), _splat(momentum), _splat(fresh), _splat(kept)
    for d in range(0, full, LINE):
        w, b = _momentum_step(_load(rate, at + d), _load(rate, g_at + d), _load(rate, buffer + d), a, m, f, k)
        _store(at + d, w)
        _store(buffer + d, b)
    if full < size:
        n = _width(rate, size - full)
        w, b = _momentum_step(
            _load_some(rate, at + full, n),
            _load_some(rate, g_at + full, n),
            _load_some(rate, buffer + full, n),
            a, m, f, k,
        )  # fmt: skip
        _store_some(at + full, w, n)
        _store_some(buffer + full, b, n)


@nb.njit(**_INLINE)
def _adagrad_step(w: Any, g: Any, s: Any, rate: Any, eps: Any) -> Any:
    s = _add(s, _mul(g, g))
    return _sub(w, _div(_mul(rate, g), _add(_sqrt(s), eps))), s


@nb.njit(**_INLINE)
def _adagrad(rate: Any, eps: Any, at: int, sums: int, g_at: int, size: int) -> None:
    full = size // LINE * LINE
    a, e = _splat(rate), _splat(eps)
    for b in range(0, full, LINE):
        w, s = _adagrad_step(_load(rate, at + b), _load(rate, g_at + b), _load(rate, sums + b), a, e)
        _store(at + b, w)
        _store(sums + b, s)
    if full < size:
        n = _width(rate, size - full)
        w, s = _adagrad_step(
            _load_some(rate, at + full, n),
            _load_some(rate, g_at + full, n),
            _load_some(rate, sums + full, n),
            a, e,
        )  # fmt: skip
        _store_some(at + full, w, n)
        _store_some(sums + full, s, n)


@nb.njit(**_INLINE)
def _adam_step(w: Any, g: Any, m: Any, v: Any, rate: Any, new1: Any, new2: Any, eps: Any) -> Any:
    m = _add(m, _mul(new1, _sub(g, m)))
    v = _add(v, _mul(new2, _sub(_mul(g, g), v)))
    return _sub(w, _div(_mul(rate, m), _add(_sqrt(v), eps))), m, v


@nb.njit(**_INLINE)
def _adam(
    rate: Any, new1: Any, new2: Any, eps: Any, at: int, means: int, squares: int, g_at: int, size: int
) -> None:
    full = size // LINE * LINE
    a, n1, n2, e = _splat(rate), _splat(new1), _splat(new2), _splat(eps)
    for b in range(0, full, LINE):
        w, m, v = _adam_step(
            _load(rate, at + b),
            _load(rate, g_at + b),
            _load(rate, means + b),
            _load(rate, squares + b),
            a, n1, n2, e,
        )  # fmt: skip
        _store(at + b, w)
        _store(means + b, m)
        _store(squares + b, v)
    if full < size:
        n = _width(rate, size - full)
        w, m, v = _adam_step(
            _load_some(rate, at + full, n),
            _load_some(rate, g_at + full, n),
            _load_some(rate, means + full, n),
            _load_some(rate, squares + full, n),
            a, n1, n2, e,
        )  # fmt: skip
        _store_some(at + full, w, n)
        _store_some(means + full, m, n)
        _store_some(squares + full, v, n)


# --- updates ------------------------------------------------------------------------------------


@nb.njit(**_INLINE)
def _prefetch_used(row: int, kind: int, table: int, first: int, second: int, size: int, item: int) -> None:
    """A row of the table and of its state."""
    _prefetch_row(table + row * size, size)
    if kind == ROWWISE:
        _prefetch(first + row * item)
    elif first:
        _prefetch_row(first + row * size, size)
        if second:
            _prefetch_row(second + row * size, size)


@nb.njit(**_FAST)
def _move(
    kind: int,
    numbers: Any,
    table: int,
    first_state: int,
    second_state: int,
    n_groups: int,
    rows: int,
    starts: int,
    order: int,
    grads: int,
    row_of: int,
    factor: int,
    by_freq: bool,
    width: int,
    ahead: int,
    stretch: int,
    counter: int,
) -> None:
    """The stretches of ``reference.update``; the addresses of state that a kind does not have are 0."""
    rate, sign, decay, shrink, clip, momentum, fresh, kept, new1, new2, eps = numbers
    zero = rate - rate
    one = _as(zero, 1)
    item = _item(rate)
    size = width * item
    clips = clip != math.inf
    # Whether the gradient of a row looked up once can be used where it stands.
    in_place = factor == 0 and not by_freq and sign == one and decay == zero and not clips
    buffer = np.empty(size + LINE, np.uint8)
    total: Any = (buffer.ctypes.data + LINE - 1) // LINE * LINE
    n = integer(starts, n_groups)
    while True:
        first = take(counter) * stretch
        if first >= n:
            break
        u_begin = _first_group(starts, n_groups, first)
        u_end = _first_group(starts, n_groups, first + stretch)
        k_begin = integer(starts, u_begin)
        k_end = integer(starts, u_end)
        for soon in range(u_begin, min(u_begin + ahead, u_end)):
            _prefetch_used(integer(rows, soon), kind, table, first_state, second_state, size, item)
        for soon in range(k_begin, min(k_begin + ahead, k_end)):
            _prefetch_row(_gradient_at(grads, row_of, integer(order, soon), size), size)
        for u in range(u_begin, u_end):
            begin = integer(starts, u)
            end = integer(starts, u + 1)
            row = integer(rows, u)
            at = table + row * size
            if u + ahead < u_end:
                _prefetch_used(integer(rows, u + ahead), kind, table, first_state, second_state, size, item)
            for soon in range(begin + ahead, min(end + ahead, k_end)):
                _prefetch_row(_gradient_at(grads, row_of, integer(order, soon), size), size)
            g_at = _gradient_at(grads, row_of, integer(order, begin), size)
            if not (in_place and end == begin + 1):
                g_at = total
                _sum_row(one, total, grads, row_of, factor, order, begin, end, by_freq, size)
                if sign != one:
                    _scale_row(sign, total, size)
                if clips:
                    norm = np.sqrt(_square_sum(zero, total, size))
                    if norm > clip:
                        _scale_row(clip / norm, total, size)
                if decay != zero:
                    _add_row(decay, total, at, size)
            if shrink != one:
                _scale_row(shrink, at, size)
            if kind == SGD:
                if first_state:
                    _momentum(rate, momentum, fresh, kept, at, first_state + row * size, g_at, size)
                else:
                    _sgd(rate, at, g_at, size)
            elif kind == ADAGRAD:
                _adagrad(rate, eps, at, first_state + row * size, g_at, size)
            elif kind == ROWWISE:
                state_at = first_state + row * item
                mean = _square_sum(zero, g_at, size) / _as(rate, width)
                level = _number(zero, state_at) + mean
                _set_number(state_at, level)
                _sgd(rate / (np.sqrt(level) + eps), at, g_at, size)
            else:
                means = first_state + row * size
                _adam(rate, new1, new2, eps, at, means, second_state + row * size, g_at, size)
    buffer[0] = 0  # so that it lives until here: nobody else knows of its address


@nb.njit(**_FAST)
def _step(
    kind: int,
    numbers: Any,
    table: int,
    first_state: int,
    second_state: int,
    ids: int,
    n_ids: int,
    id_bits: int,
    padding_row: int,
    rows: int,
    starts: int,
    order: int,
    sums: int,
    n_sums: int,
    n_bytes: int,
    times: float,
    limit: float,
    grads: int,
    row_of: int,
    factor: int,
    by_freq: bool,
    width: int,
    ahead: int,
    stretch: int,
    counter: int,
) -> None:
    """See ``reference.step``: all of it in one call of each thread.

    The first thread groups the ids, the others meanwhile sum the absolute values of the gradients; when
    both are done all move rows. If the sum times ``times`` is not below ``limit``, nobody moves any, and
    SHARED_REFUSED tells. Nobody waits for a thread that has not begun.

    Args:
        ids, n_ids, id_bits, padding_row, rows, starts, order: of ``_group``, int64.
        sums: ``n_sums`` numbers, one a stretch of STRETCH_BYTES in the ``n_bytes`` of the gradients.
        counter: of eight; the first thread is told by it, the others are named SHARED.
    """
    shared = counter
    if take(counter) == 0:
        n_groups = _group(
            _integers(ids, n_ids), id_bits, padding_row, _integers(rows, n_ids), _integers(starts, n_ids + 1),
            _integers(order, n_ids),
        )  # fmt: skip
        show(shared, SHARED_GROUPS, n_groups + 1)
    zero = numbers[0] - numbers[0]
    item = _item(zero)
    while True:
        turn = take(shared + 8 * SHARED_SUM)
        if turn >= n_sums:
            break
        first = turn * STRETCH_BYTES
        part = _absolute_sum(zero, grads + first, min(STRETCH_BYTES, n_bytes - first))
        _set_number(sums + turn * item, part)
        take(shared + 8 * SHARED_SUMMED)
    while seen(shared, SHARED_SUMMED) < n_sums or seen(shared, SHARED_GROUPS) == 0:
        pass
    bound = 0.0
    for turn in range(n_sums):
        bound += np.float64(_number(zero, sums + turn * item))
    if not bound * times < limit:
        show(shared, SHARED_REFUSED, 1)
        return
    _move(
        kind, numbers, table, first_state, second_state, seen(shared, SHARED_GROUPS) - 1, rows,
        starts, order, grads, row_of, factor, by_freq, width, ahead, stretch, shared + 8 * SHARED_MOVE,
    )  # fmt: skip


# --- entries ------------------------------------------------------------------------------------
# What threads call: they read the arguments of one kernel each, see threads.Kernel.


@nb.njit(**_INLINE)
def _integers(address: int, n: int) -> Any:
    """The ``n`` int64 at an address."""
    return nb.carray(threads.pointer(np.int64(0), address), n)


def _gather_entry(like: Any, a: Any, counter: Any) -> None:
    _gather(
        threads.zero(like), integer(a, 0), integer(a, 1), integer(a, 2), integer(a, 3), integer(a, 4),
        integer(a, 5), integer(a, 6), integer(a, 7), integer(a, 8) != 0, counter,
    )  # fmt: skip


def _too_long_entry(like: Any, a: Any, counter: Any) -> None:
    zero = threads.zero(like)
    _too_long(
        zero, integer(a, 0), integer(a, 1), integer(a, 2), real(a, 3), _as(zero, real(a, 4)), integer(a, 5),
        integer(a, 6), integer(a, 7), integer(a, 8), counter,
    )  # fmt: skip


def _shorten_entry(like: Any, a: Any, counter: Any) -> None:
    zero = threads.zero(like)
    _shorten(
        zero, integer(a, 0), integer(a, 1), integer(a, 2), real(a, 3), _as(zero, real(a, 4)), integer(a, 5),
        integer(a, 6), counter,
    )  # fmt: skip


def _absolute_sums_entry(like: Any, a: Any, counter: Any) -> None:
    _absolute_sums(threads.zero(like), integer(a, 0), integer(a, 1), integer(a, 2), integer(a, 3), counter)


def _summed_entry(like: Any, a: Any, counter: Any) -> None:
    one = _as(threads.zero(like), 1)
    _summed(
        one, integer(a, 0), integer(a, 1), integer(a, 2), integer(a, 3), integer(a, 4), integer(a, 5),
        integer(a, 6), integer(a, 7) != 0, integer(a, 8), integer(a, 9), integer(a, 10), counter,
    )  # fmt: skip


@nb.njit(**_INLINE)
def _numbers_at(zero: Any, a: int, k: int) -> Any:
    """The numbers of a step, see ``_numbers``, in the dtype of ``zero``."""
    return (
        _as(zero, real(a, k)), _as(zero, real(a, k + 1)), _as(zero, real(a, k + 2)),
        _as(zero, real(a, k + 3)), _as(zero, real(a, k + 4)), _as(zero, real(a, k + 5)),
        _as(zero, real(a, k + 6)), _as(zero, real(a, k + 7)), _as(zero, real(a, k + 8)),
        _as(zero, real(a, k + 9)), _as(zero, real(a, k + 10)),
    )  # fmt: skip


def _update_entry(like: Any, a: Any, counter: Any) -> None:
    """See ``reference.update``."""
    _move(
        integer(a, 0), _numbers_at(threads.zero(like), a, 1), integer(a, 12), integer(a, 13), integer(a, 14),
        integer(a, 15), integer(a, 16), integer(a, 17), integer(a, 18), integer(a, 19), integer(a, 20),
        integer(a, 21), integer(a, 22) != 0, integer(a, 23), integer(a, 24), integer(a, 25), counter,
    )  # fmt: skip


def _step_entry(like: Any, a: Any, counter: Any) -> None:
    _step(
        integer(a, 0), _numbers_at(threads.zero(like), a, 1), integer(a, 12), integer(a, 13), integer(a, 14),
        integer(a, 15), integer(a, 16), integer(a, 17), integer(a, 18), integer(a, 19), integer(a, 20),
        integer(a, 21), integer(a, 22), integer(a, 23), integer(a, 24), real(a, 25), real(a, 26),
        integer(a, 27), integer(a, 28), integer(a, 29), integer(a, 30) != 0, integer(a, 31), integer(a, 32),
        integer(a, 33), counter,
    )  # fmt: skip


_GATHER = threads.Kernel(_gather_entry, "9q")
_TOO_LONG = threads.Kernel(_too_long_entry, "3q2d4q")
_SHORTEN = threads.Kernel(_shorten_entry, "3q2d2q")
_ABSOLUTE_SUMS = threads.Kernel(_absolute_sums_entry, "4q")
_SUMMED = threads.Kernel(_summed_entry, "11q")
_UPDATE = threads.Kernel(_update_entry, "q11d14q")
_STEP = threads.Kernel(_step_entry, "q11d13q2d7q")


def _stretch(row_bytes: int) -> int:
    """How many rows are taken at a time."""
    return max(STRETCH_BYTES // max(row_bytes, 1), 16)


def _ahead(row_bytes: int) -> int:
    """How many rows are prefetched before their turn."""
    return min(max(AHEAD_BYTES // max(row_bytes, 1), 2), 16)


# --- the public functions -----------------------------------------------------------------------
# Addresses are taken of tensors that have a name until the kernel returns.


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _int64(ids: Tensor) -> Tensor:
    """The ids as int64 without gaps; themselves, if they are so: each call of torch takes a microsecond."""
    return ids if ids.dtype is torch.int64 and ids.is_contiguous() else ids.long().contiguous()


def _plain(groups: Groups, source: Source, dtype: torch.dtype) -> Source:
    """The source with contiguous tensors of the dtypes that the kernels take.

    Raises:
        ValueError: it has fewer places than were grouped; the kernels would read beyond it.
    """
    grads, row_of, factor = source
    n_places = min(len(one) for one in (grads if row_of is None else row_of, factor) if one is not None)
    if len(groups.order) > n_places or (len(groups.order) and int(groups.order.max()) >= n_places):
        raise ValueError(
            f"the gradients are of {n_places} places, but place {int(groups.order.max())} was grouped; group "
            "the ids that the gradients belong to"
        )
    return Source(
        grads.detach().to(dtype).contiguous(),
        None if row_of is None else row_of.long().contiguous(),
        None if factor is None else factor.detach().to(dtype).contiguous(),
    )


def first_outside(ids: Tensor, n_rows: int) -> int:
    """See :func:`firth.kernels.rows_reference.first_outside`."""
    return int(_first_outside(ids.numpy(), n_rows))


def group(ids: Tensor, n_rows: int, padding_row: int | None = None) -> Groups:
    """See :func:`firth.kernels.rows_reference.group`."""
    id_bits = max(n_rows - 1, 0).bit_length()
    if _too_many(ids.shape[0], id_bits):
        return reference.group(ids, n_rows, padding_row)
    rows, starts, order = (np.empty(len(ids) + more, np.int64) for more in (0, 1, 0))
    n = _group(ids.long().numpy(), id_bits, -1 if padding_row is None else padding_row, rows, starts, order)
    used = int(starts[n])
    return Groups(
        torch.from_numpy(rows[:n]), torch.from_numpy(starts[: n + 1]), torch.from_numpy(order[:used])
    )


def _too_many(n: int, id_bits: int) -> bool:
    """Whether id and place, of so many, do not fit one number."""
    return id_bits + n.bit_length() > 62 or n >= 1 << 31


def gather(table: Tensor, ids: Tensor, out: Tensor | None = None) -> Tensor:
    """See :func:`firth.kernels.rows_reference.gather`."""
    n, (n_rows, width) = ids.shape[0], table.shape
    size = width * table.element_size()
    if out is None:
        out = pages.result((n, width), table.dtype)
    if not size:
        if first_outside(ids, n_rows) >= 0:
            raise outside(n_rows)
    elif n:
        ids, stretch, to = _int64(ids), _stretch(size), out.data_ptr()
        streams = n * size >= STREAM_BYTES and size % LINE == 0 and to % LINE == 0
        places = table.data_ptr(), n_rows, ids.data_ptr(), n, to
        if _GATHER.run(table.dtype, (*places, size, _ahead(2 * size), stretch, streams), n, stretch):
            raise outside(n_rows)
    return out


def renorm(table: Tensor, ids: Tensor, max_norm: float, norm_type: float) -> None:
    """See :func:`firth.kernels.rows_reference.renorm`.

    The norm is taken at every place; only rows that are too long, few once a model has settled, are
    grouped.
    """
    n, size = len(ids), table.shape[1] * table.element_size()
    if not n or not size:
        return
    ids, stretch = _int64(ids), _stretch(size)
    wrong = torch.empty(n, dtype=torch.bool)
    places = table.data_ptr(), ids.data_ptr(), n, max_norm, norm_type, size
    _TOO_LONG.run(table.dtype, (*places, _ahead(2 * size), wrong.data_ptr(), stretch), n, stretch)
    if wrong.any():
        rows = group(ids[wrong], len(table)).rows
        found = table.data_ptr(), rows.data_ptr(), len(rows), max_norm, norm_type
        _SHORTEN.run(table.dtype, (*found, size, stretch), len(rows), stretch)


def summed(groups: Groups, source: Source, by_freq: bool) -> Tensor:
    """See :func:`firth.kernels.rows_reference.summed`."""
    source = _plain(groups, source, reference.precision(source.grads.dtype))
    grads = source.grads
    out = pages.result((len(groups.rows), grads.shape[1]), grads.dtype)
    if out.numel():
        size = grads.shape[1] * grads.element_size()
        places = len(groups.rows), groups.starts.data_ptr(), groups.order.data_ptr()
        gradients = (_address(tensor) for tensor in source)
        stretch = _stretch(size)
        arguments = (out.data_ptr(), *places, *gradients, by_freq, size, _ahead(2 * size), stretch)
        _SUMMED.run(grads.dtype, arguments, len(groups.order), stretch)
    return out


def first_not_finite(groups: Groups, source: Source) -> int:
    """See :func:`firth.kernels.rows_reference.first_not_finite`.

    If the absolute values of the whole batch have a finite sum, far from overflow, then no row's sum can
    be infinite or NaN; that test reads the gradients once, in their order. Only else rows are summed.
    """
    source = _plain(groups, source, reference.precision(source.grads.dtype))
    grads, row_of, factor = source
    if not grads.numel() or not len(groups.order):
        return -1
    n_bytes = grads.numel() * grads.element_size()
    sums = torch.empty(-(-n_bytes // STRETCH_BYTES), dtype=grads.dtype)
    arguments = grads.data_ptr(), n_bytes, sums.data_ptr(), STRETCH_BYTES
    _ABSOLUTE_SUMS.run(grads.dtype, arguments, n_bytes, STRETCH_BYTES)
    bound = float(sums.double().sum()) * (1.0 if factor is None else float(factor.abs().max()))
    if row_of is not None:  # a row may sum the same gradient as often as there are places
        bound *= len(groups.order)
    if bound < _LIMIT[grads.dtype]:
        return -1
    wrong = (~summed(groups, source, False).isfinite().all(1)).nonzero()
    return int(groups.rows[wrong[0, 0]]) if len(wrong) else -1


def update(
    table: Tensor,
    state: Mapping[str, Tensor],
    groups: Groups,
    source: Source,
    step: Update,
    by_freq: bool,
) -> None:
    """See :func:`firth.kernels.rows_reference.update`."""
    moved = _moved(table, state, step)
    if moved is None:
        reference.update(table, state, groups, source, step, by_freq)
        return
    source = _plain(groups, source, table.dtype)
    row = first_not_finite(groups, source)
    if row >= 0:
        raise not_finite(row)
    if not len(groups.order) or not table.shape[1]:
        return
    places = len(groups.rows), *(tensor.data_ptr() for tensor in groups)
    gradients = (_address(tensor) for tensor in source)
    arguments = (*moved.arguments, *places, *gradients, by_freq, table.shape[1], moved.ahead)
    _UPDATE.run(table.dtype, (*arguments, moved.stretch), len(groups.order), moved.stretch)


def step(
    table: Tensor,
    state: Mapping[str, Tensor],
    ids: Tensor,
    source: Source,
    step: Update,
    padding_row: int | None,
    by_freq: bool,
) -> None:
    """See :func:`firth.kernels.rows_reference.step`."""
    moved = _moved(table, state, step)
    n, (n_rows, width) = ids.shape[0], table.shape  # len() of a tensor is ten times slower
    id_bits = max(n_rows - 1, 0).bit_length()
    dtype, (grads, row_of, factor) = table.dtype, source
    n_grads = grads.shape[0]
    if (
        moved is None
        or grads.dtype != dtype
        or not grads.is_contiguous()
        or not n
        or (n_grads if row_of is None else row_of.shape[0]) < n
        or not n_grads * width
        or _too_many(n, id_bits)
    ):
        update(table, state, group(ids, n_rows, padding_row), source, step, by_freq)
        return
    ids = _int64(ids)
    times = 1.0  # as in first_not_finite()
    if row_of is not None:
        row_of, times = row_of.long().contiguous(), float(n)
    if factor is not None:
        factor = factor.detach().to(dtype).contiguous()
        times *= float(factor.abs().max())
    n_bytes = n_grads * width * dtype.itemsize
    n_sums = -(-n_bytes // STRETCH_BYTES)
    scratch = torch.empty(3 * n + 1 + n_sums, dtype=torch.int64)
    rows = scratch.data_ptr()
    grouping = rows, rows + 8 * n, rows + 8 * (2 * n + 1)
    checking = rows + 8 * (3 * n + 1), n_sums, n_bytes, times, _LIMIT[dtype]
    refused = _STEP.run(
        dtype,
        (
            *moved.arguments, ids.data_ptr(), n, id_bits, -1 if padding_row is None else padding_row,
            *grouping, *checking, grads.data_ptr(), _address(row_of), _address(factor), by_freq, width,
            moved.ahead, moved.stretch,
        ),
        n,
        moved.stretch,
    )  # fmt: skip
    if refused:
        update(table, state, group(ids, n_rows, padding_row), source, step, by_freq)


class _Moved(NamedTuple):
    """A table and its state, as the kernels take them."""

    arguments: tuple[Any, ...]
    ahead: int
    stretch: int


def _moved(table: Tensor, state: Mapping[str, Tensor], step: Update) -> _Moved | None:
    """``None`` for state that the kernels do not work on."""
    dtype, (n_rows, width) = table.dtype, table.shape
    size = width * dtype.itemsize
    states, tables = [], 2  # rows that a row takes, gradients counted
    for name, shape in state_shapes(step.kind, n_rows, width, step.momentum).items():
        one = state[name]
        if one.dtype != dtype or not one.is_contiguous():
            return None
        states.append(one.data_ptr())
        tables += len(shape) == 2
    first, second, *_ = (*states, 0, 0)
    arguments = _KIND[step.kind], *_numbers(step), table.data_ptr(), first, second
    return _Moved(arguments, _ahead(tables * size), _stretch(size))


def _numbers(step: Update) -> tuple[float, ...]:
    """The numbers of a step as the kernel takes them; it rounds them to the table's dtype."""
    nesterov = step.nesterov and step.momentum != 0
    return (
        reference.adam_rate(step) if step.kind == "adam" else step.lr,
        -1.0 if step.maximize else 1.0,
        0.0 if step.decoupled else step.weight_decay,
        1.0 - step.lr * step.weight_decay if step.decoupled else 1.0,
        step.clip,
        step.momentum,
        1.0 if nesterov else 0.0,
        step.momentum if nesterov else 1.0,
        1.0 - step.beta1,
        1.0 - step.beta2,
        step.eps,
    )
