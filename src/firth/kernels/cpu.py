"""Fast kernels for the CPU, in Numba: the twins of :mod:`firth.kernels.reference`.

Every kernel here has the name, the arguments and the draws of its twin, which is the
definition; only precision (float32) and the order of additions differ. Tables are float32,
C-contiguous, rows padded with zeros to a multiple of LANES.

How the shared skip-gram is made fast (figures: ``docs/kernels.md``):

* A group's contexts meet a few targets, its negatives and its centres, so the group is three
  small matrix products: the scores, the targets' and the contexts' updates. Scores of a context
  with a centre outside its window are computed and then weighted by zero: a full product is
  faster than a ragged one. Only the targets are copied, since the contexts move last.
* The products run in register tiles of 6 (or 4) rows x LANES floats, the shape of a GEMM
  micro-kernel, written with values of LLVM's vector type (``_load``, ``_fma``, ...), because
  loops over scalars leave the choice of tiles to a compiler that does not find it.
* The targets are transposed as well, so that a score is summed down the dimension with one
  lane a target, and no horizontal sum is needed. Where there are registers for 16 dot products
  at once and rows are long, direct dot products are faster (``_scores_by_dots``).
* The rows of the next group are prefetched while this one is computed.

All functions that call each other stand in this one file, because Numba's disk cache does not
notice changes in other files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba as nb
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from firth.kernels.reference import CLIP, PIECE, SATURATED, SKIP, Draws, Step

LANES = 16  # floats in one vector value; LLVM splits it where registers are narrower
CHUNK = 128  # columns of the targets that are transposed at a time
DOTS = 4  # 4 x 4 dot products fill the 32 registers of AVX-512
DOTS_FROM = 192  # width from which their horizontal sums cost less than a transposition
HAS_32_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f"))
PARTS = 4  # stretches of a block that threads take one by one
ROWS = 6  # rows of the larger register tile: 6 x 16 floats fill the registers of AVX2
# Not 'nnan' and 'ninf': a kernel must see that a table has left the finite numbers.
FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
# NumPy's division: Python's raises on zero, and that branch alone keeps a loop from being vectorised.
_FAST = {"nogil": True, "fastmath": FASTMATH, "boundscheck": False, "error_model": "numpy"}

# --- vector values ------------------------------------------------------------------------------

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INT32 = ir.IntType(32)


class _Vector(types.Type):
    """A Numba type for LLVM's ``<16 x float>``: lives in registers only."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _FLOATS)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    from numba.np.arrayobj import make_array

    return builder.gep(make_array(array_type)(context, builder, array).data, [offset])


@intrinsic
def _load(typing_context: Any, array: Any, offset: Any) -> Any:
    """LANES floats of the flat array, from ``offset`` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        value = builder.load(builder.bitcast(address, _FLOATS.as_pointer()))
        value.align = 4
        return value

    return _vector(array, types.int64), codegen


@intrinsic
def _store(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write LANES floats into the flat array, from ``offset`` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        store = builder.store(args[2], builder.bitcast(address, _FLOATS.as_pointer()))
        store.align = 4
        return context.get_dummy_value()

    return types.void(array, types.int64, _vector), codegen


@intrinsic
def _splat(typing_context: Any, x: Any) -> Any:
    """The same float in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(_INT32, 0))
        return builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
        )

    return _vector(types.float32), codegen


@intrinsic
def _broadcast(typing_context: Any, array: Any, offset: Any) -> Any:
    """The float at ``offset`` of the flat array in every lane; no wrap-around of negative offsets."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_address(context, builder, signature.args[0], args[0], args[1]))
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
        return builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
        )

    return _vector(array, types.int64), codegen


@intrinsic
def _fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """``x * y + z``, lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{LANES}f32")
        return builder.call(function, args)

    return _vector(_vector, _vector, _vector), codegen


@intrinsic
def _marks(typing_context: Any, low: Any, high: Any, own: Any, x: Any) -> Any:
    """-1 in the lanes where ``low <= x < high`` and ``x != own``, 0 elsewhere."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low, high, own, x = args
        within = builder.and_(builder.fcmp_ordered("<=", low, x), builder.fcmp_ordered("<", x, high))
        marked = builder.and_(within, builder.fcmp_ordered("!=", x, own))
        return builder.select(
            marked, ir.Constant(_FLOATS, [-1.0] * LANES), ir.Constant(_FLOATS, [0.0] * LANES)
        )

    return _vector(_vector, _vector, _vector, _vector), codegen


@intrinsic
def _take_tile(
    typing_context: Any,
    turned: Any,
    turned_at: Any,
    turned_step: Any,
    copy: Any,
    copy_at: Any,
    width: Any,
    table: Any,
    rows_at: Any,
    first: Any,
    column: Any,
) -> Any:
    """LANES x LANES floats out of a table, once as they are and once transposed.

    With x[i, j] = table[rows_at[first + i] + column + j]: ``copy[copy_at + i * width + j] = x[i, j]``
    and ``turned[turned_at + j * turned_step + i] = x[i, j]``.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        turned, turned_at, turned_step, copy, copy_at, width, table, rows_at, first, column = args

        def vector_at(position: int, array: Any, offset: Any) -> Any:
            address = _address(context, builder, signature.args[position], array, offset)
            return builder.bitcast(address, _FLOATS.as_pointer())

        tile = []
        for i in range(LANES):
            row = builder.add(first, ir.Constant(first.type, i))
            offset = builder.load(_address(context, builder, signature.args[7], rows_at, row))
            load = builder.load(vector_at(6, table, builder.add(offset, column)))
            load.align = 4
            builder.store(load, vector_at(3, copy, copy_at)).align = 4
            copy_at = builder.add(copy_at, width)
            tile.append(load)
        # A butterfly: each pass interleaves rows that lie half a tile apart.
        picks = [
            [k for i in range(LANES // 2) for k in (i + half, i + half + LANES)] for half in (0, LANES // 2)
        ]
        low, high = (ir.Constant(ir.VectorType(_INT32, LANES), pick) for pick in picks)
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(tile[: LANES // 2], tile[LANES // 2 :], strict=True)
            tile = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in (low, high)]
        for row in tile:
            builder.store(row, vector_at(0, turned, turned_at)).align = 4
            turned_at = builder.add(turned_at, turned_step)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(
        turned, integer, integer, copy, integer, integer, table, rows_at, integer, integer
    ), codegen


@intrinsic
def _sum_lanes(
    typing_context: Any,
    a0: Any,
    a1: Any,
    a2: Any,
    a3: Any,
    a4: Any,
    a5: Any,
    a6: Any,
    a7: Any,
    a8: Any,
    a9: Any,
    a10: Any,
    a11: Any,
    a12: Any,
    a13: Any,
    a14: Any,
    a15: Any,
) -> Any:
    """The vector of the sums over the lanes of LANES vectors, in their order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums = list(args)
        # Each pass folds two vectors into one: left halves of their stretches onto right halves.
        while len(sums) > 1:
            half = len(sums) // 2
            stretches = range(0, LANES, len(sums))
            left = [lane + at for at in stretches for lane in (*range(half), *range(LANES, LANES + half))]
            lanes_type = ir.VectorType(_INT32, LANES)
            picks = (ir.Constant(lanes_type, left), ir.Constant(lanes_type, [lane + half for lane in left]))
            sums = [
                builder.fadd(*(builder.shuffle_vector(a, b, pick) for pick in picks))
                for a, b in zip(sums[:half], sums[half:], strict=True)
            ]
        return sums[0]

    return _vector(*[_vector] * LANES), codegen


@intrinsic
def _store_rows(typing_context: Any, array: Any, offset: Any, step: Any, value: Any) -> Any:
    """Write a vector as DOTS rows of DOTS floats, ``step`` apart."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, offset, step, value = args
        row_type = ir.VectorType(ir.FloatType(), DOTS)
        for first in range(0, LANES, DOTS):
            pick = ir.Constant(ir.VectorType(_INT32, DOTS), list(range(first, first + DOTS)))
            address = _address(context, builder, signature.args[0], array, offset)
            row = builder.shuffle_vector(value, value, pick)
            builder.store(row, builder.bitcast(address, row_type.as_pointer())).align = 4
            offset = builder.add(offset, step)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, _vector), codegen


@intrinsic
def _prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    """Ask for the cache line at ``offset`` of the flat array, into the second-level cache.

    The tiles of a group fill the first level; rows that come too early would push them out.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, level_2, data = (ir.Constant(_INT32, value) for value in (0, 2, 1))
        builder.call(function, [builder.bitcast(address, pointer), read, level_2, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def _as_bits(typing_context: Any, x: Any) -> Any:
    """The 32 bits of a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _INT32)

    return types.int32(types.float32), codegen


# --- scalar functions ---------------------------------------------------------------------------


@nb.njit(inline="always")
def _draw(key: np.uint64, pos: int) -> np.uint64:
    """64 random bits for a place; see ``reference.draw``."""
    z = key + np.uint64(pos) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@nb.njit(inline="always")
def _exp(x: np.float32) -> np.float32:
    """e^x for |x| <= 60 to 2e-7, as a polynomial that LLVM vectorises."""
    z = x * np.float32(1.4426950408889634)
    whole = np.floor(z + np.float32(0.5))
    r = z - whole
    p = np.float32(1.5403530e-4)
    p = p * r + np.float32(1.3333558e-3)
    p = p * r + np.float32(9.6181291e-3)
    p = p * r + np.float32(5.5504109e-2)
    p = p * r + np.float32(2.4022651e-1)
    p = p * r + np.float32(6.9314718e-1)
    p = p * r + np.float32(1.0)
    return p * _as_float((np.int32(whole) + np.int32(127)) << np.int32(23))


@nb.njit(inline="always")
def _log(y: np.float32) -> np.float32:
    """ln y for y >= 1, to 1e-6 absolute, as a polynomial that LLVM vectorises."""
    bits = _as_bits(y)
    exponent = np.float32((bits >> np.int32(23)) - np.int32(127))
    m = _as_float((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000))
    s = (m - np.float32(1.0)) / (m + np.float32(1.0))  # ln m = 2 artanh s, s in [0, 1/3]
    q = s * s
    p = np.float32(0.14545454) * q + np.float32(0.14285715)
    p = p * q + np.float32(0.2)
    p = p * q + np.float32(0.33333334)
    p = p * q + np.float32(1.0)
    return exponent * np.float32(0.6931471805599453) + np.float32(2.0) * s * p


# --- products of tiles --------------------------------------------------------------------------


@nb.njit(**_FAST)
def _add_tile_6(
    table: Any,
    table_at: Any,
    r: int,
    n: int,
    rate: Any,
    slopes: Any,
    by_row: int,
    by_k: int,
    rows: Any,
    rows_at: Any,
    n_k: int,
    width: int,
) -> None:
    """The rows ``r`` to ``r + n`` of :func:`_add_product`, for n <= 6."""
    zero = _splat(np.float32(0.0))
    step = _splat(rate)
    t0 = table_at[r]
    t1 = table_at[r + 1]
    t2 = table_at[r + 2]
    t3 = table_at[r + 3]
    t4 = table_at[r + 4]
    t5 = table_at[r + 5]
    for d in range(0, width, LANES):
        a0 = zero
        a1 = zero
        a2 = zero
        a3 = zero
        a4 = zero
        a5 = zero
        c = r * by_row
        for k in range(n_k):
            x = _load(rows, rows_at[k] + d)
            a0 = _fma(_broadcast(slopes, c), x, a0)
            a1 = _fma(_broadcast(slopes, c + by_row), x, a1)
            a2 = _fma(_broadcast(slopes, c + 2 * by_row), x, a2)
            a3 = _fma(_broadcast(slopes, c + 3 * by_row), x, a3)
            a4 = _fma(_broadcast(slopes, c + 4 * by_row), x, a4)
            a5 = _fma(_broadcast(slopes, c + 5 * by_row), x, a5)
            c += by_k
        _store(table, t0 + d, _fma(step, a0, _load(table, t0 + d)))
        if n > 1:
            _store(table, t1 + d, _fma(step, a1, _load(table, t1 + d)))
        if n > 2:
            _store(table, t2 + d, _fma(step, a2, _load(table, t2 + d)))
        if n > 3:
            _store(table, t3 + d, _fma(step, a3, _load(table, t3 + d)))
        if n > 4:
            _store(table, t4 + d, _fma(step, a4, _load(table, t4 + d)))
        if n > 5:
            _store(table, t5 + d, _fma(step, a5, _load(table, t5 + d)))


@nb.njit(**_FAST)
def _add_tile_4(
    table: Any,
    table_at: Any,
    r: int,
    n: int,
    rate: Any,
    slopes: Any,
    by_row: int,
    by_k: int,
    rows: Any,
    rows_at: Any,
    n_k: int,
    width: int,
) -> None:
    """The rows ``r`` to ``r + n`` of :func:`_add_product`, for n <= 4."""
    zero = _splat(np.float32(0.0))
    step = _splat(rate)
    t0 = table_at[r]
    t1 = table_at[r + 1]
    t2 = table_at[r + 2]
    t3 = table_at[r + 3]
    for d in range(0, width, LANES):
        a0 = zero
        a1 = zero
        a2 = zero
        a3 = zero
        c = r * by_row
        for k in range(n_k):
            x = _load(rows, rows_at[k] + d)
            a0 = _fma(_broadcast(slopes, c), x, a0)
            a1 = _fma(_broadcast(slopes, c + by_row), x, a1)
            a2 = _fma(_broadcast(slopes, c + 2 * by_row), x, a2)
            a3 = _fma(_broadcast(slopes, c + 3 * by_row), x, a3)
            c += by_k
        _store(table, t0 + d, _fma(step, a0, _load(table, t0 + d)))
        if n > 1:
            _store(table, t1 + d, _fma(step, a1, _load(table, t1 + d)))
        if n > 2:
            _store(table, t2 + d, _fma(step, a2, _load(table, t2 + d)))
        if n > 3:
            _store(table, t3 + d, _fma(step, a3, _load(table, t3 + d)))


@nb.njit(**_FAST)
def _add_product(
    table: Any,
    table_at: Any,
    n_rows: int,
    rate: Any,
    slopes: Any,
    by_row: int,
    by_k: int,
    rows: Any,
    rows_at: Any,
    n_k: int,
    width: int,
) -> None:
    """``table[r] += rate * sum over k < n_k of slopes[r * by_row + k * by_k] * rows[k]``.

    Rows begin at the offsets ``table_at[r]`` and ``rows_at[k]`` of the flat arrays. Row after row
    within a tile, so that a row named twice gets both sums.
    """
    r = 0
    while r < n_rows:
        left = n_rows - r
        if left <= 4 or 7 <= left <= 8:
            _add_tile_4(table, table_at, r, left, rate, slopes, by_row, by_k, rows, rows_at, n_k, width)
            r += 4
        else:
            _add_tile_6(table, table_at, r, left, rate, slopes, by_row, by_k, rows, rows_at, n_k, width)
            r += 6


@nb.njit(**_FAST)
def _score_tile_6(
    out: Any, rows: Any, rows_at: Any, r: int, turned: Any, t: int, lanes: int, d_from: int, n_d: int
) -> None:
    """6 rows from ``r`` on and LANES columns from ``t`` on of :func:`_scores`."""
    zero = _splat(np.float32(0.0))
    a0 = zero
    a1 = zero
    a2 = zero
    a3 = zero
    a4 = zero
    a5 = zero
    at = r * lanes + t
    if d_from:
        a0 = _load(out, at)
        a1 = _load(out, at + lanes)
        a2 = _load(out, at + 2 * lanes)
        a3 = _load(out, at + 3 * lanes)
        a4 = _load(out, at + 4 * lanes)
        a5 = _load(out, at + 5 * lanes)
    t0 = rows_at[r] + d_from
    t1 = rows_at[r + 1] + d_from
    t2 = rows_at[r + 2] + d_from
    t3 = rows_at[r + 3] + d_from
    t4 = rows_at[r + 4] + d_from
    t5 = rows_at[r + 5] + d_from
    column = t
    for d in range(n_d):
        x = _load(turned, column)
        a0 = _fma(_broadcast(rows, t0 + d), x, a0)
        a1 = _fma(_broadcast(rows, t1 + d), x, a1)
        a2 = _fma(_broadcast(rows, t2 + d), x, a2)
        a3 = _fma(_broadcast(rows, t3 + d), x, a3)
        a4 = _fma(_broadcast(rows, t4 + d), x, a4)
        a5 = _fma(_broadcast(rows, t5 + d), x, a5)
        column += lanes
    _store(out, at, a0)
    _store(out, at + lanes, a1)
    _store(out, at + 2 * lanes, a2)
    _store(out, at + 3 * lanes, a3)
    _store(out, at + 4 * lanes, a4)
    _store(out, at + 5 * lanes, a5)


@nb.njit(**_FAST)
def _score_tile_4(
    out: Any, rows: Any, rows_at: Any, r: int, turned: Any, t: int, lanes: int, d_from: int, n_d: int
) -> None:
    """4 rows from ``r`` on and LANES columns from ``t`` on of :func:`_scores`."""
    zero = _splat(np.float32(0.0))
    a0 = zero
    a1 = zero
    a2 = zero
    a3 = zero
    at = r * lanes + t
    if d_from:
        a0 = _load(out, at)
        a1 = _load(out, at + lanes)
        a2 = _load(out, at + 2 * lanes)
        a3 = _load(out, at + 3 * lanes)
    t0 = rows_at[r] + d_from
    t1 = rows_at[r + 1] + d_from
    t2 = rows_at[r + 2] + d_from
    t3 = rows_at[r + 3] + d_from
    column = t
    for d in range(n_d):
        x = _load(turned, column)
        a0 = _fma(_broadcast(rows, t0 + d), x, a0)
        a1 = _fma(_broadcast(rows, t1 + d), x, a1)
        a2 = _fma(_broadcast(rows, t2 + d), x, a2)
        a3 = _fma(_broadcast(rows, t3 + d), x, a3)
        column += lanes
    _store(out, at, a0)
    _store(out, at + lanes, a1)
    _store(out, at + 2 * lanes, a2)
    _store(out, at + 3 * lanes, a3)


@nb.njit(**_FAST)
def _scores(
    out: Any,
    rows: Any,
    rows_at: Any,
    n_rows: int,
    target: Any,
    table: Any,
    table_at: Any,
    turned: Any,
    lanes: int,
    width: int,
) -> None:
    """``target[t] = table[t]`` and ``out[r, t] = rows[r] . target[t]`` for ``lanes`` targets.

    Rows begin at the offsets ``rows_at[r]`` and ``table_at[t]``. The targets are turned a stretch of
    CHUNK columns at a time, so that what is worked on stays in the first-level cache.
    """
    for d_from in range(0, width, CHUNK):
        n_d = min(CHUNK, width - d_from)
        for t in range(0, lanes, LANES):
            for d in range(0, n_d, LANES):
                _take_tile(
                    turned,
                    d * lanes + t,
                    lanes,
                    target,
                    t * width + d_from + d,
                    width,
                    table,
                    table_at,
                    t,
                    d_from + d,
                )
        for t in range(0, lanes, LANES):
            r = 0
            while r < n_rows:
                left = n_rows - r
                if left <= 4 or 7 <= left <= 8:
                    _score_tile_4(out, rows, rows_at, r, turned, t, lanes, d_from, n_d)
                    r += 4
                else:
                    _score_tile_6(out, rows, rows_at, r, turned, t, lanes, d_from, n_d)
                    r += 6


@nb.njit(**_FAST)
def _dot_tile(
    out: Any,
    rows: Any,
    rows_at: Any,
    r: int,
    target: Any,
    table: Any,
    table_at: Any,
    t: int,
    copy: bool,
    lanes: int,
    width: int,
) -> None:
    """Rows ``r`` to ``r + DOTS`` with targets ``t`` to ``t + DOTS`` of :func:`_scores_by_dots`."""
    zero = _splat(np.float32(0.0))
    a00 = zero
    a01 = zero
    a02 = zero
    a03 = zero
    a10 = zero
    a11 = zero
    a12 = zero
    a13 = zero
    a20 = zero
    a21 = zero
    a22 = zero
    a23 = zero
    a30 = zero
    a31 = zero
    a32 = zero
    a33 = zero
    r0 = rows_at[r]
    r1 = rows_at[r + 1]
    r2 = rows_at[r + 2]
    r3 = rows_at[r + 3]
    t0 = table_at[t]
    t1 = table_at[t + 1]
    t2 = table_at[t + 2]
    t3 = table_at[t + 3]
    to = np.int64(t) * width
    for d in range(0, width, LANES):
        x0 = _load(table, t0 + d)
        x1 = _load(table, t1 + d)
        x2 = _load(table, t2 + d)
        x3 = _load(table, t3 + d)
        if copy:
            _store(target, to + d, x0)
            _store(target, to + width + d, x1)
            _store(target, to + 2 * width + d, x2)
            _store(target, to + 3 * width + d, x3)
        y = _load(rows, r0 + d)
        a00 = _fma(y, x0, a00)
        a01 = _fma(y, x1, a01)
        a02 = _fma(y, x2, a02)
        a03 = _fma(y, x3, a03)
        y = _load(rows, r1 + d)
        a10 = _fma(y, x0, a10)
        a11 = _fma(y, x1, a11)
        a12 = _fma(y, x2, a12)
        a13 = _fma(y, x3, a13)
        y = _load(rows, r2 + d)
        a20 = _fma(y, x0, a20)
        a21 = _fma(y, x1, a21)
        a22 = _fma(y, x2, a22)
        a23 = _fma(y, x3, a23)
        y = _load(rows, r3 + d)
        a30 = _fma(y, x0, a30)
        a31 = _fma(y, x1, a31)
        a32 = _fma(y, x2, a32)
        a33 = _fma(y, x3, a33)
    sums = _sum_lanes(
        a00, a01, a02, a03, a10, a11, a12, a13, a20, a21, a22, a23, a30, a31, a32, a33
    )  # fmt: skip
    _store_rows(out, r * lanes + t, lanes, sums)


@nb.njit(**_FAST)
def _scores_by_dots(
    out: Any,
    rows: Any,
    rows_at: Any,
    n_rows: int,
    target: Any,
    target_at: Any,
    table: Any,
    table_at: Any,
    lanes: int,
    width: int,
) -> None:
    """What :func:`_scores` does, by dot products; ``target_at[t]`` is ``t * width``."""
    for t in range(0, lanes, DOTS):
        _dot_tile(out, rows, rows_at, 0, target, table, table_at, t, True, lanes, width)
    for r in range(DOTS, n_rows, DOTS):
        for t in range(0, lanes, DOTS):
            _dot_tile(out, rows, rows_at, r, target, target, target_at, t, False, lanes, width)


@nb.njit(**_FAST)
def _floats(n: int) -> Any:
    """``n`` zeros that begin on a cache line, so that no vector load crosses two."""
    block = np.zeros(n + LANES, np.float32)
    skip = (-(block.ctypes.data // 4)) % LANES
    return block[skip : skip + n]


@nb.njit(**_FAST)
def _prefetch_row(table: Any, row: int, width: int) -> None:
    at = np.int64(row) * width
    for d in range(0, width, LANES):
        _prefetch(table, at + d)


# --- skip-gram, negatives shared by a group -----------------------------------------------------


@nb.njit(**_FAST)
def _slopes(scores: Any, weights: Any, n: int) -> Any:
    """Turn scores into slopes in place; the loss and the sum of the scores.

    A weight w > 0 marks a negative (loss ``w softplus(x)``), w < 0 a positive (``-w softplus(-x)``);
    the slope is minus the derivative of the loss.
    """
    loss = np.float32(0.0)
    total = np.float32(0.0)
    for k in range(n):
        w = weights[k]
        x = scores[k]
        total += x
        signed = x if w > np.float32(0.0) else -x
        e = _exp(min(max(signed, np.float32(-30.0)), np.float32(30.0)))
        loss += abs(w) * _log(np.float32(1.0) + e)
        scores[k] = -w * e / (np.float32(1.0) + e)
    return loss, total


@nb.njit(**_FAST)
def _open_targets(
    thinned: Any, slopes: Any, target_at: Any, n_targets: int, span: int, lanes: int, fixed_end: int
) -> int:
    """Move the targets at offsets from ``fixed_end`` on together, their slopes into ``thinned``; how many."""
    n = 0
    for t in range(n_targets):
        if target_at[t] >= fixed_end:
            target_at[n] = target_at[t]
            for c in range(span):
                thinned[c * lanes + n] = slopes[c * lanes + t]
            n += 1
    return n


@nb.njit(**_FAST)
def _open_contexts(slopes: Any, context_at: Any, span: int, lanes: int, fixed_end: int) -> int:
    """Move the contexts at offsets from ``fixed_end`` on together, and their slopes with them; how many."""
    n = 0
    for c in range(span):
        if context_at[c] >= fixed_end:
            context_at[n] = context_at[c]
            for t in range(lanes):
                slopes[n * lanes + t] = slopes[c * lanes + t]
            n += 1
    return n


@nb.njit(cache=True, **_FAST)
def skipgram_shared(
    inputs: Any,
    outputs: Any,
    ids: Any,
    sentence_starts: Any,
    start_pos: Any,
    stop_pos: Any,
    step: Step,
    draws: Draws,
    stats: Any,
) -> None:
    """Skip-gram with shared negatives over ``ids[start_pos:stop_pos]``; see the reference."""
    width = inputs.shape[1]
    inputs = inputs.reshape(-1)
    outputs = outputs.reshape(-1)
    window = step.window
    share = step.share
    pool = step.pool
    weight = np.float32(step.weight)
    n_types = np.uint64(draws.keep.shape[0])
    # Buffers have spare rows, because products work on whole register tiles.
    lanes = (pool + share + LANES - 1) // LANES * LANES
    most = share + 2 * window + ROWS
    target = _floats((lanes + ROWS) * width)  # the negatives, then the centres
    turned = _floats(CHUNK * lanes)
    weights = _floats(most * lanes)
    slopes = _floats(most * lanes + ROWS)
    thinned = _floats(most * lanes + ROWS)
    is_negative = np.zeros(lanes, np.float32)
    is_negative[:pool] = np.float32(1.0)
    windows = np.empty(most, np.float32)
    window_low = np.zeros(lanes, np.float32)  # of the centre in a lane; none in a negative's lane
    window_high = np.zeros(lanes, np.float32)
    window_own = np.zeros(lanes, np.float32)
    target_id = np.zeros(lanes, np.int32)
    # Where rows begin in the flat tables; entries beyond those in use stay valid.
    context_at = np.zeros(most, np.int64)
    target_at = np.zeros(lanes + ROWS, np.int64)
    tile_at = np.arange(lanes + ROWS) * width

    kept_id = np.zeros(PIECE + ROWS, np.int32)
    kept_pos = np.empty(PIECE + 1, np.int64)
    reach = np.empty(PIECE + 1, np.int32)
    negative_id = np.zeros((PIECE + 2 * share) // share * pool + pool, np.int32)

    loss_sum: Any = 0.0
    score_sum: Any = 0.0
    n_pairs = 0
    sentence: Any = np.searchsorted(sentence_starts, start_pos, side="right") - 1
    piece_pos = np.int64(start_pos)
    while piece_pos < stop_pos:
        while sentence_starts[sentence + 1] <= piece_pos:
            sentence += 1
        piece_end = min(piece_pos + PIECE, sentence_starts[sentence + 1], stop_pos)
        # The piece after subsampling, its windows and the negatives of its groups.
        n_kept: Any = 0
        for pos in range(piece_pos, piece_end):
            # Written always, counted if kept: a branch here would be mispredicted often.
            token_id = ids[pos]
            kept_id[n_kept] = token_id
            kept_pos[n_kept] = pos
            reach[n_kept] = window
            if step.shrink:
                high = _draw(draws.keys[1], pos) >> np.uint64(32)
                reach[n_kept] = 1 + np.int32((high * np.uint64(window)) >> np.uint64(32))
            n_kept += np.int64(np.uint32(_draw(draws.keys[0], pos) >> np.uint64(32)) <= draws.keep[token_id])
        n_drawn = 0
        for first in range(0, n_kept, share):
            for n in range(pool):
                bits = _draw(draws.keys[2 + n], kept_pos[first])
                cell = np.int64(((bits >> np.uint64(32)) * n_types) >> np.uint64(32))
                # Both are read: a branch here would be mispredicted every other time.
                other = draws.alias[cell]
                own = np.uint32(bits & np.uint64(0xFFFFFFFF)) <= draws.threshold[cell]
                negative_id[n_drawn + n] = np.int32(cell) if own else other
            n_drawn += pool

        n_drawn = 0
        for first in range(0, n_kept, share):
            last = min(first + share, n_kept)
            for k in range(min(last + window, n_kept), min(last + share + window, n_kept)):
                _prefetch_row(inputs, kept_id[k], width)
            # The context rows that the group's windows reach.
            low = first
            above = last
            for i in range(first, last):
                low = min(low, i - reach[i])
                above = max(above, i + reach[i] + 1)
            low = max(low, 0)
            span = min(above, n_kept) - low
            n_targets = pool + last - first
            for c in range(span):
                context_at[c] = np.int64(kept_id[low + c]) * width
            for n in range(pool):
                target_id[n] = negative_id[n_drawn + n]
            n_drawn += pool
            for i in range(first, last):
                target_id[pool + i - first] = kept_id[i]
            for t in range(n_targets):
                target_at[t] = np.int64(target_id[t]) * width

            # Each context meets a negative once a window, unless the negative is the centre.
            for c in range(span + 1):
                windows[c] = np.float32(0.0)
            for t in range(pool, pool + share):  # the last group may have fewer centres
                window_high[t] = np.float32(0.0)
            for i in range(first, last):
                t = pool + i - first
                lo = max(i - reach[i], 0) - low
                hi = min(i + reach[i] + 1, n_kept) - low
                n_pairs += hi - lo - 1
                window_low[t] = np.float32(lo)
                window_high[t] = np.float32(hi)
                window_own[t] = np.float32(i - low)
                # Steps up and down, whose running sum is the number of windows that hold a context.
                windows[lo] += np.float32(1.0)
                windows[hi] -= np.float32(1.0)
                windows[i - low] -= np.float32(1.0)
                windows[i - low + 1] += np.float32(1.0)
            held = np.float32(0.0)
            for c in range(span):
                held += windows[c]
                shares = _splat(held * weight)
                at = _splat(np.float32(c))
                for t in range(0, lanes, LANES):
                    marks = _marks(_load(window_low, t), _load(window_high, t), _load(window_own, t), at)
                    _store(weights, c * lanes + t, _fma(shares, _load(is_negative, t), marks))
            for i in range(first, last):
                same: Any = 0  # counted first: a branch for each would cost more than the rare repair
                for n in range(pool):
                    same += np.int64(target_id[n] == kept_id[i])
                if same:
                    for n in range(pool):
                        if target_id[n] == kept_id[i]:
                            for c in range(max(i - reach[i], 0) - low, min(i + reach[i] + 1, n_kept) - low):
                                if c != i - low:
                                    weights[c * lanes + n] -= weight

            if HAS_32_REGISTERS and width >= DOTS_FROM:
                _scores_by_dots(
                    slopes, inputs, context_at, span, target, tile_at, outputs, target_at, lanes, width
                )
            else:
                _scores(slopes, inputs, context_at, span, target, outputs, target_at, turned, lanes, width)
            for k in range(last, min(last + share, n_kept)):
                _prefetch_row(outputs, kept_id[k], width)
            loss, total = _slopes(slopes, weights, span * lanes)
            loss_sum += loss
            score_sum += total

            # All slopes are known: the updates, from the contexts as they were and the copied targets.
            rate = np.float32(max(step.rate_last, step.rate_first - step.rate_slope * kept_pos[first]))
            # Rows that are fixed have played their part by now and are left out of the products.
            n_moved, moving = n_targets, slopes
            if step.fixed_outputs > 0:
                n_moved = _open_targets(
                    thinned, slopes, target_at, n_targets, span, lanes, step.fixed_outputs * width
                )
                moving = thinned
            _add_product(outputs, target_at, n_moved, rate, moving, 1, lanes, inputs, context_at, span, width)
            for n in range(n_drawn, n_drawn + pool):
                _prefetch_row(outputs, negative_id[n], width)
            n_moved = span
            if step.fixed_inputs > 0:
                n_moved = _open_contexts(slopes, context_at, span, lanes, step.fixed_inputs * width)
            _add_product(
                inputs, context_at, n_moved, rate, slopes, lanes, 1, target, tile_at, n_targets, width
            )
        piece_pos = piece_end
    stats[0] += loss_sum
    stats[1] += n_pairs
    stats[2] += score_sum


# --- skip-gram, fresh negatives for each pair ---------------------------------------------------


@nb.njit(**_FAST)
def _pair_slope(x: Any, positive: bool, saturation: int) -> Any:
    label = np.float32(1.0) if positive else np.float32(0.0)
    if saturation == SKIP and abs(x) >= np.float32(SATURATED):
        return np.float32(0.0)
    if saturation == CLIP and abs(x) > np.float32(SATURATED):
        return label - (np.float32(1.0) if x > np.float32(0.0) else np.float32(0.0))
    return label - np.float32(1.0) / (
        np.float32(1.0) + _exp(min(max(-x, np.float32(-30.0)), np.float32(30.0)))
    )


@nb.njit(cache=True, **_FAST)
def skipgram_pairs(
    inputs: Any,
    outputs: Any,
    ids: Any,
    sentence_starts: Any,
    start_pos: Any,
    stop_pos: Any,
    step: Step,
    draws: Draws,
    stats: Any,
) -> None:
    """Skip-gram as published over ``ids[start_pos:stop_pos]``; see the reference."""
    width = inputs.shape[1]
    window = step.window
    pool = step.pool
    n_types = np.uint64(draws.keep.shape[0])
    moved = np.zeros(width, np.float32)
    kept_id = np.empty(PIECE + 1, np.int32)
    kept_pos = np.empty(PIECE + 1, np.int64)
    loss_sum: Any = 0.0
    score_sum: Any = 0.0
    n_pairs = 0
    sentence: Any = np.searchsorted(sentence_starts, start_pos, side="right") - 1
    piece_pos = np.int64(start_pos)
    while piece_pos < stop_pos:
        while sentence_starts[sentence + 1] <= piece_pos:
            sentence += 1
        piece_end = min(piece_pos + PIECE, sentence_starts[sentence + 1], stop_pos)
        n_kept: Any = 0
        for pos in range(piece_pos, piece_end):
            kept_id[n_kept] = ids[pos]
            kept_pos[n_kept] = pos
            n_kept += np.int64(np.uint32(_draw(draws.keys[0], pos) >> np.uint64(32)) <= draws.keep[ids[pos]])
        for i in range(n_kept):
            pos = kept_pos[i]
            center_id = kept_id[i]
            reach: Any = window
            if step.shrink:
                high = _draw(draws.keys[1], pos) >> np.uint64(32)
                reach = 1 + np.int64((high * np.uint64(window)) >> np.uint64(32))
            rate = np.float32(max(step.rate_last, step.rate_first - step.rate_slope * pos))
            for c in range(max(i - reach, 0), min(i + reach + 1, n_kept)):
                if c == i:
                    continue
                context = inputs[kept_id[c]]
                for d in range(width):
                    moved[d] = np.float32(0.0)
                for n in range(-1, pool):
                    target_id: Any = np.int64(center_id)
                    if n >= 0:
                        bits = _draw(draws.keys[2 + (c - i + window) * pool + n], pos)
                        target_id = np.int64(((bits >> np.uint64(32)) * n_types) >> np.uint64(32))
                        if np.uint32(bits & np.uint64(0xFFFFFFFF)) > draws.threshold[target_id]:
                            target_id = np.int64(draws.alias[target_id])
                        if target_id == center_id:
                            continue
                    target = outputs[target_id]
                    x: Any = np.float32(0.0)
                    for d in range(width):
                        x += context[d] * target[d]
                    score_sum += x
                    signed = -x if n < 0 else x
                    e = _exp(min(max(signed, np.float32(-30.0)), np.float32(30.0)))
                    loss_sum += _log(np.float32(1.0) + e)
                    slope = rate * _pair_slope(x, n < 0, step.saturation)
                    if target_id < step.fixed_outputs:
                        for d in range(width):
                            moved[d] += slope * target[d]
                    else:
                        for d in range(width):
                            moved[d] += slope * target[d]
                            target[d] += slope * context[d]
                if kept_id[c] >= step.fixed_inputs:
                    for d in range(width):
                        context[d] += moved[d]
                n_pairs += 1
        piece_pos = piece_end
    stats[0] += loss_sum
    stats[1] += n_pairs
    stats[2] += score_sum


# --- sampling tables ----------------------------------------------------------------------------


@nb.njit(cache=True, error_model="numpy")
def alias_table(weights: Any) -> Any:
    """Thresholds and aliases for drawing by weight; see ``reference.alias_table``, bit for bit."""
    n = len(weights)
    share = weights.astype(np.float64) * (n / np.sum(weights))
    threshold = np.full(n, 0xFFFFFFFF, np.uint32)
    alias = np.arange(n).astype(np.int32)
    small = np.empty(n, np.int64)
    large = np.empty(n, np.int64)
    n_small = 0
    n_large = 0
    for i in range(n):
        if share[i] < 1.0:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small > 0 and n_large > 0:
        n_small -= 1
        low = small[n_small]
        high = large[n_large - 1]
        threshold[low] = np.uint32(min(max(share[low] * 4294967296.0 - 1.0, 0.0), 4294967295.0))
        alias[low] = high
        share[high] -= 1.0 - share[low]
        if share[high] < 1.0:
            n_large -= 1
            small[n_small] = high
            n_small += 1
    return threshold, alias


# --- runs ---------------------------------------------------------------------------------------

KERNELS = {"skipgram_shared": skipgram_shared, "skipgram_pairs": skipgram_pairs}


def _read_only(array: Any) -> Any:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def run(
    kernel: str,
    inputs: Any,
    outputs: Any,
    ids: Any,
    sentence_starts: Any,
    block_starts: Any,
    step: Step,
    draws: Draws,
    threads: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Any, int]:
    """One run of blocks with all threads; see ``reference.run``.

    Threads take the next block that nobody has taken and update the same tables without locks
    (Recht et al. 2011, "Hogwild!", arXiv 1106.5730). The kernels hold no GIL.
    """
    function = KERNELS[kernel]
    # One compiled variant for corpora on disk, which are read-only, and in memory.
    ids, sentence_starts = _read_only(ids), _read_only(sentence_starts)
    parts = _parts(block_starts, sentence_starts)
    stats = np.zeros((len(parts), 3))
    lock = threading.Lock()
    n_taken = n_done = 0

    def work(_: int) -> None:
        nonlocal n_taken, n_done
        while True:
            with lock:  # so that the blocks taken are always the first ones
                part = n_taken
                if part == len(parts):
                    return
                start, stop, begins_block = parts[part]
                if begins_block:
                    if part and stopped():
                        return
                    n_done += 1
                n_taken += 1
            function(inputs, outputs, ids, sentence_starts, start, stop, step, draws, stats[part])

    workers = min(threads, len(parts))
    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return stats.sum(axis=0), n_done


def _parts(block_starts: Any, sentence_starts: Any) -> list[tuple[int, int, bool]]:
    """The blocks cut into up to PARTS stretches of whole pieces: (start, stop, begins a block).

    The last blocks of a run are shared out more evenly that way.
    """
    parts = []
    for start, stop in zip(block_starts[:-1].tolist(), block_starts[1:].tolist(), strict=True):
        wanted = np.linspace(start, stop, PARTS + 1).astype(np.int64)[1:-1]
        sentence = sentence_starts[np.searchsorted(sentence_starts, wanted, side="right") - 1]
        cuts = np.unique(np.maximum(sentence + (wanted - sentence) // PIECE * PIECE, start))
        borders = [start, *cuts[cuts > start].tolist(), stop]
        parts += [(low, high, low == start) for low, high in pairwise(borders)]
    return parts
