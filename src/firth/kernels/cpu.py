"""Fast kernels for the CPU, in Numba: the twins of :mod:`firth.kernels.reference`.

Every kernel here has the name, the arguments and the draws of its twin, which is the
definition; only precision (float32) and the order of additions differ. Tables are float32,
C-contiguous, rows padded with zeros to a multiple of LANES.

How the shared skip-gram is made fast (figures: ``docs/kernels.md``):

* A group's contexts meet a few targets, its negatives and its centres, so the group is three
  small matrix products: the scores, the contexts' and the targets' updates. Scores of a context
  with a centre outside its window are computed and then weighted by zero: a full product is
  faster than a ragged one. The contexts are copied while they are scored, for they move first.
* The products run in register tiles, the micro-kernels of a GEMM. Each is written in LLVM's own
  language, for every number of rows (``_dot_tile``, ``_add_tile``), because loops over scalars
  leave the choice of tiles to a compiler that does not find it.
* While a row moves, a row of the next group is prefetched, line by line.
* Several threads would take the lines of the most frequent rows from each other's caches all the time.
  So each trains copies of these rows for some pieces of text and then gives back what changed.

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
from numba.extending import intrinsic

from firth.kernels.reference import CLIP, PIECE, SATURATED, SKIP, Draws, Step

LANES = 16  # floats in one vector value; LLVM splits it where registers are narrower
DOTS = 4  # targets of a tile of dot products
HAS_32_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f"))
DOT_LANES = 16 if HAS_32_REGISTERS else 8  # floats in one register
DOT_ROWS = 4 if HAS_32_REGISTERS else 3  # 4 x 4 sums of 32 registers, 3 x 4 of 16
PARTS = 4  # stretches of a block that threads take one by one
OWN_ROWS = 64  # most frequent rows of both tables that each of several threads copies
# Learning rate x pairs x share of the most frequent word, that threads together may train on their copies
# before they give them back. Stable were all cases tried up to 280, and not at 570; 100 costs .003 of SimLex
# with two threads, 25 nothing that shows (docs/log.md).
OWN_PULL = 25.0
BESIDE = 2 if HAS_32_REGISTERS else 1  # vectors of columns that a tile of sums takes at a time
ROWS = 6  # of a tile of sums: 6 x 16 floats fill the registers of AVX2
# Not 'nnan' and 'ninf': a kernel must see that a table has left the finite numbers.
FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
# NumPy's division: Python's raises on zero, and that branch alone keeps a loop from being vectorised.
_FAST = {"nogil": True, "fastmath": FASTMATH, "boundscheck": False, "error_model": "numpy"}

# --- values of LLVM -----------------------------------------------------------------------------

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INT32 = ir.IntType(32)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    from numba.np.arrayobj import make_array

    return builder.gep(make_array(array_type)(context, builder, array).data, [offset])


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


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
def _log1p(e: np.float32) -> np.float32:
    """ln(1 + e) for 0 <= e <= 1, to 1.2e-7, as a polynomial that LLVM vectorises."""
    p = np.float32(0.005253457929939032)
    p = p * e + np.float32(-0.02958850748836994)
    p = p * e + np.float32(0.07836166769266129)
    p = p * e + np.float32(-0.13674770295619965)
    p = p * e + np.float32(0.19111430644989014)
    p = p * e + np.float32(-0.24844369292259216)
    p = p * e + np.float32(0.33319270610809326)
    p = p * e + np.float32(-0.49999502301216125)
    p = p * e + np.float32(1.0)
    return p * e


# --- products of tiles --------------------------------------------------------------------------


def _add_tile(n_rows: int) -> Any:
    """An intrinsic: the rows ``r`` to ``r + n_rows`` of :func:`_add_product`, all columns.

    LANES columns at a time are summed in ``n_rows`` accumulators, the micro-kernel of a GEMM.
    """

    @intrinsic
    def add_tile(
        typing_context: Any,
        table: Any,
        table_at: Any,
        r: Any,
        slopes: Any,
        by_row: Any,
        by_k: Any,
        rows: Any,
        rows_at: Any,
        n_k: Any,
        width: Any,
        soon: Any,
        first: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            table, table_at, r, slopes, by_row, by_k, rows, rows_at, n_k, width, soon, first = args
            at = _Places(context, builder, signature.args)
            tops = [at.offset(1, table_at, builder.add(r, _int(i))) for i in range(n_rows)]
            tops = [at.address(0, table, top) for top in tops]
            slope = at.address(3, slopes, builder.mul(r, by_row))
            slope_rows = [slope]
            for _ in range(n_rows - 1):
                slope_rows.append(builder.gep(slope_rows[-1], [by_row]))
            source = at.address(6, rows, _int(0))
            coming = [at.offset(10, soon, builder.add(first, builder.add(r, _int(i)))) for i in range(n_rows)]
            coming = [builder.inttoptr(one, ir.FloatType().as_pointer()) for one in coming]
            sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(BESIDE)] for _ in range(n_rows)]

            def columns(begin: Any, end: Any, beside: int) -> None:
                """Columns ``begin`` to ``end``, ``beside`` vectors of them at a time."""
                shifts = [_int(LANES * v) for v in range(beside)]
                with cgutils.for_range_slice(builder, begin, end, _int(LANES * beside)) as (d, _):
                    for one in (one for row in sums for one in row[:beside]):
                        builder.store(ir.Constant(_FLOATS, [0.0] * LANES), one)
                    places = [builder.add(d, shift) for shift in shifts]
                    for one in coming:
                        for place in places:
                            at.prefetch(builder.gep(one, [place]))
                    column = builder.gep(source, [d])
                    with cgutils.for_range(builder, n_k) as loop:
                        top = builder.gep(column, [at.offset(7, rows_at, loop.index)])
                        xs = [at.load(builder.gep(top, [shift]), _FLOATS) for shift in shifts]
                        place = builder.mul(loop.index, by_k)
                        for row, base in zip(sums, slope_rows, strict=True):
                            weight = at.splat(builder.load(builder.gep(base, [place])), LANES)
                            for one, x in zip(row, xs, strict=False):
                                builder.store(at.fma(weight, x, builder.load(one)), one)
                    for row, top in zip(sums, tops, strict=True):  # in turn: a row may be named twice
                        for one, place in zip(row, places, strict=False):
                            to = builder.gep(top, [place])
                            at.store(builder.fadd(at.load(to, _FLOATS), builder.load(one)), to)

            whole = builder.sub(width, builder.srem(width, _int(LANES * BESIDE)))
            columns(_int(0), whole, BESIDE)
            if BESIDE > 1:
                columns(whole, width, 1)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            table, table_at, integer, slopes, integer, integer, rows, rows_at, integer, integer, soon, integer
        ), codegen

    return add_tile


def _dot_tile(n_rows: int, keep: bool) -> Any:
    """An intrinsic: rows ``r`` to ``r + n_rows`` with targets ``t`` to ``t + DOTS`` of :func:`_scores`.

    With ``keep`` the rows are copied as they pass by, which costs next to nothing here.
    """

    @intrinsic
    def dot_tile(
        typing_context: Any,
        out: Any,
        rows: Any,
        rows_at: Any,
        r: Any,
        table: Any,
        table_at: Any,
        t: Any,
        lanes: Any,
        width: Any,
        kept: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, rows, rows_at, r, table, table_at, t, lanes, width, kept = args
            at = _Places(context, builder, signature.args)
            lefts = [at.offset(2, rows_at, builder.add(r, _int(i))) for i in range(n_rows)]
            lefts = [at.address(1, rows, left) for left in lefts]
            rights = [at.offset(5, table_at, builder.add(t, _int(i))) for i in range(DOTS)]
            rights = [at.address(4, table, right) for right in rights]
            vector = ir.VectorType(ir.FloatType(), DOT_LANES)
            sums = [[cgutils.alloca_once(builder, vector) for _ in range(DOTS)] for _ in range(n_rows)]
            for row in sums:
                for one in row:
                    builder.store(ir.Constant(vector, [0.0] * DOT_LANES), one)
            with cgutils.for_range_slice(builder, _int(0), width, _int(DOT_LANES)) as (d, _):
                ys = [at.load(builder.gep(left, [d]), vector) for left in lefts]
                if keep:
                    place = builder.add(builder.mul(r, width), d)
                    for y in ys:
                        at.store(y, at.address(9, kept, place))
                        place = builder.add(place, width)
                for column, right in enumerate(rights):
                    x = at.load(builder.gep(right, [d]), vector)
                    for y, row in zip(ys, sums, strict=True):
                        builder.store(at.fma(y, x, builder.load(row[column])), row[column])
            for i, row in enumerate(sums):
                place = builder.add(builder.mul(builder.add(r, _int(i)), lanes), t)
                at.store(at.sums([builder.load(one) for one in row]), at.address(0, out, place))
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            out, rows, rows_at, integer, table, table_at, integer, integer, integer, kept
        ), codegen

    return dot_tile


class _Places:
    """What the tiles are written with: addresses in flat arrays and values of LLVM's vector types."""

    def __init__(self, context: Any, builder: Any, arg_types: Any) -> None:
        self._context, self._builder, self._types = context, builder, arg_types

    def address(self, position: int, array: Any, offset: Any) -> Any:
        """Of element ``offset`` of the argument at ``position``."""
        return _address(self._context, self._builder, self._types[position], array, offset)

    def offset(self, position: int, array: Any, index: Any) -> Any:
        """The integer at ``index`` of the argument at ``position``."""
        return self._builder.load(self.address(position, array, index))

    def load(self, address: Any, vector: Any) -> Any:
        value = self._builder.load(self._builder.bitcast(address, vector.as_pointer()))
        value.align = 4
        return value

    def store(self, value: Any, address: Any) -> None:
        self._builder.store(value, self._builder.bitcast(address, value.type.as_pointer())).align = 4

    def prefetch(self, address: Any) -> None:
        """Ask for a cache line, to be written: another core's cache may have it."""
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(self._builder.module, function_type, "llvm.prefetch.p0")
        write, level_2, data = (ir.Constant(_INT32, value) for value in (1, 2, 1))
        self._builder.call(function, [self._builder.bitcast(address, pointer), write, level_2, data])

    def splat(self, x: Any, lanes: int) -> Any:
        undefined = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
        first = self._builder.insert_element(undefined, x, ir.Constant(_INT32, 0))
        return self._builder.shuffle_vector(first, undefined, _lanes([0] * lanes))

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        vector = x.type
        function = cgutils.get_or_insert_function(
            self._builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{vector.count}f32"
        )
        return self._builder.call(function, [x, y, z])

    def sums(self, values: list[Any]) -> Any:
        """The sums over the lanes of DOTS vectors, as one vector of DOTS lanes."""
        n = values[0].type.count
        # Within each quarter of four lanes first: shuffles across them are slow.
        for order, step in (([0, n, 1, n + 1], 2), ([0, 1, n, n + 1], 2)):
            left = [at + lane for at in range(0, n, DOTS) for lane in order]
            values = [
                self._fold(a, b, left, [lane + step for lane in left])
                for a, b in zip(values[::2], values[1::2], strict=True)
            ]
        (total,) = values
        while total.type.count > DOTS:
            half = total.type.count // 2
            total = self._fold(total, total, list(range(half)), list(range(half, 2 * half)))
        return total

    def _fold(self, a: Any, b: Any, left: list[int], right: list[int]) -> Any:
        pick = self._builder.shuffle_vector
        return self._builder.fadd(pick(a, b, _lanes(left)), pick(a, b, _lanes(right)))


def _int(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _lanes(order: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_INT32, len(order)), order)


_add_tile_1, _add_tile_2, _add_tile_3 = (_add_tile(n) for n in (1, 2, 3))
_add_tile_4, _add_tile_5, _add_tile_6 = (_add_tile(n) for n in (4, 5, ROWS))
_dot_tile_1, _dot_tile_2, _dot_tile_3, _dot_tile_4 = (_dot_tile(n, False) for n in range(1, 5))
_keep_tile_1, _keep_tile_2, _keep_tile_3, _keep_tile_4 = (_dot_tile(n, True) for n in range(1, 5))


@nb.njit(**_FAST)
def _add_product(
    table: Any,
    table_at: Any,
    n_rows: int,
    slopes: Any,
    by_row: int,
    by_k: int,
    rows: Any,
    rows_at: Any,
    n_k: int,
    width: int,
    soon: Any,
    first: int,
) -> None:
    """``table[r] += sum over k < n_k of slopes[r * by_row + k * by_k] * rows[k]``.

    While row r moves, the row at the address ``soon[first + r]`` is prefetched.

    Rows begin at the offsets ``table_at[r]`` and ``rows_at[k]`` of the flat arrays. Row after row
    within a tile, so that a row named twice gets both sums.
    """
    r = 0
    for tiles in range((n_rows + ROWS - 1) // ROWS, 0, -1):  # as even as they can be
        n = (n_rows - r + tiles - 1) // tiles
        if n == 6:
            _add_tile_6(table, table_at, r, slopes, by_row, by_k, rows, rows_at, n_k, width, soon, first)
        elif n == 5:
            _add_tile_5(table, table_at, r, slopes, by_row, by_k, rows, rows_at, n_k, width, soon, first)
        elif n == 4:
            _add_tile_4(table, table_at, r, slopes, by_row, by_k, rows, rows_at, n_k, width, soon, first)
        elif n == 3:
            _add_tile_3(table, table_at, r, slopes, by_row, by_k, rows, rows_at, n_k, width, soon, first)
        elif n == 2:
            _add_tile_2(table, table_at, r, slopes, by_row, by_k, rows, rows_at, n_k, width, soon, first)
        else:
            _add_tile_1(table, table_at, r, slopes, by_row, by_k, rows, rows_at, n_k, width, soon, first)
        r += n


@nb.njit(**_FAST)
def _scores(
    out: Any,
    rows: Any,
    rows_at: Any,
    n_rows: int,
    table: Any,
    table_at: Any,
    n_targets: int,
    lanes: int,
    width: int,
    kept: Any,
) -> None:
    """``out[r * lanes + t] = rows[r] . table[t]`` for ``n_targets`` targets or up to DOTS - 1 more, and
    ``kept[r] = rows[r]``.

    Rows begin at the offsets ``rows_at[r]`` and ``table_at[t]`` of the flat arrays, in ``kept`` at
    ``r * width``.
    """
    r = 0
    for tiles in range((n_rows + DOT_ROWS - 1) // DOT_ROWS, 0, -1):  # as even as they can be
        n = (n_rows - r + tiles - 1) // tiles
        if n == 4:
            _keep_tile_4(out, rows, rows_at, r, table, table_at, 0, lanes, width, kept)
            for t in range(DOTS, n_targets, DOTS):
                _dot_tile_4(out, rows, rows_at, r, table, table_at, t, lanes, width, kept)
        elif n == 3:
            _keep_tile_3(out, rows, rows_at, r, table, table_at, 0, lanes, width, kept)
            for t in range(DOTS, n_targets, DOTS):
                _dot_tile_3(out, rows, rows_at, r, table, table_at, t, lanes, width, kept)
        elif n == 2:
            _keep_tile_2(out, rows, rows_at, r, table, table_at, 0, lanes, width, kept)
            for t in range(DOTS, n_targets, DOTS):
                _dot_tile_2(out, rows, rows_at, r, table, table_at, t, lanes, width, kept)
        else:
            _keep_tile_1(out, rows, rows_at, r, table, table_at, 0, lanes, width, kept)
            for t in range(DOTS, n_targets, DOTS):
                _dot_tile_1(out, rows, rows_at, r, table, table_at, t, lanes, width, kept)
        r += n


@nb.njit(**_FAST)
def _floats(n: int) -> Any:
    """``n`` zeros that begin on a cache line, so that no vector load crosses two."""
    block = np.zeros(n + LANES, np.float32)
    skip = (-(block.ctypes.data // 4)) % LANES
    return block[skip : skip + n]


# --- skip-gram, negatives shared by a group -----------------------------------------------------


@nb.njit(**_FAST)
def _slopes(scores: Any, weights: Any, n: int, rate: Any) -> Any:
    """Turn scores into slopes in place; the loss and the sum of the scores.

    A weight w > 0 marks a negative (loss ``w softplus(x)``), w < 0 a positive (``-w softplus(-x)``);
    the slope is minus the derivative of the loss.
    """
    loss = np.float32(0.0)
    total = np.float32(0.0)
    minus_rate = -rate
    for k in range(n):
        w = weights[k]
        x = scores[k]
        total += x
        signed = x if w > np.float32(0.0) else -x
        e = _exp(-min(abs(signed), np.float32(60.0)))
        share = np.float32(1.0) / (np.float32(1.0) + e)
        loss += abs(w) * (max(signed, np.float32(0.0)) + _log1p(e))
        scores[k] = w * minus_rate * share * (np.float32(1.0) if signed > np.float32(0.0) else e)
    return loss, total


@nb.njit(**_FAST)
def _open_contexts(thinned: Any, slopes: Any, context_at: Any, span: int, lanes: int, fixed_end: int) -> int:
    """Move the contexts at offsets from ``fixed_end`` on together, their slopes to ``thinned``; how many."""
    n = 0
    for c in range(span):
        if context_at[c] >= fixed_end:
            context_at[n] = context_at[c]
            for t in range(lanes):
                thinned[n * lanes + t] = slopes[c * lanes + t]
            n += 1
    return n


@nb.njit(**_FAST)
def _open_targets(slopes: Any, target_at: Any, n_targets: int, span: int, lanes: int, fixed_end: int) -> int:
    """Move the targets at offsets from ``fixed_end`` on together, and their slopes with them; how many."""
    n = 0
    for t in range(n_targets):
        if target_at[t] >= fixed_end:
            target_at[n] = target_at[t]
            for c in range(span):
                slopes[c * lanes + n] = slopes[c * lanes + t]
            n += 1
    return n


@nb.njit(**_FAST)
def _copies(table: Any, n: int) -> Any:
    """Two copies of the first ``n`` numbers of a flat table, and the offset that leads to the first copy."""
    copy = _floats(n)
    copy[:] = table[:n]
    return copy, copy.copy(), (np.int64(copy.ctypes.data) - np.int64(table.ctypes.data)) // 4


@nb.njit(**_FAST)
def _place(row_id: Any, width: int, own_rows: int, shift: int) -> Any:
    """The offset of a row, or of its copy."""
    return np.int64(row_id) * width + (shift if row_id < own_rows else np.int64(0))


@nb.njit(**_FAST)
def _give_back(table: Any, own: Any, before: Any) -> None:
    """Add to the first numbers of a flat table what their copies moved by; copies are as these again."""
    for k in range(len(own)):
        now = table[k] + (own[k] - before[k])
        table[k] = now
        own[k] = now
        before[k] = now


@nb.njit(**_FAST)
def _is_of(row_id: Any, size: int, part: int) -> Any:
    return np.uint32(row_id) % np.uint32(size) == np.uint32(part)


@nb.njit(**_FAST)
def _row_of(row_id: Any, size: int) -> Any:
    """Where a row stands in its part."""
    return np.int64(np.uint32(row_id) // np.uint32(size))


@nb.njit(**_FAST)
def _any_of(ids: Any, begin: int, end: int, size: int, part: int) -> Any:
    """Whether a row of ``ids[begin:end]`` is of a part."""
    found = False
    for k in range(begin, end):
        found |= _is_of(ids[k], size, part)
    return found


@nb.njit(**_FAST)
def _soon_of(
    soon: Any, n: int, ids: Any, begin: int, end: int, base: int, width: int, size: int, part: int
) -> Any:
    """Put addresses of the rows of ``ids[begin:end]`` that are of a part behind the ``n`` that are there."""
    for k in range(begin, end):
        if _is_of(ids[k], size, part):
            soon[n] = base + 4 * _row_of(ids[k], size) * width
            n += 1
    return n


@nb.njit(**_FAST)
def _pairs_of(weights: Any, span: int, lanes: int, begin: int, end: int) -> Any:
    """How many of the targets ``begin`` to ``end`` are centres of a context."""
    n: Any = 0
    for c in range(span):
        for t in range(begin, end):
            n += np.int64(weights[c * lanes + t] < np.float32(0.0))
    return n


@nb.njit(**_FAST)
def _contexts_of(
    weights: Any,
    context_at: Any,
    kept_id: Any,
    low: int,
    span: int,
    lanes: int,
    width: int,
    size: int,
    part: int,
) -> Any:
    """Move the contexts of a part and their weights together; how many they are."""
    n = 0
    for c in range(span):
        if _is_of(kept_id[low + c], size, part):
            context_at[n] = _row_of(kept_id[low + c], size) * width
            for t in range(lanes):
                weights[n * lanes + t] = weights[c * lanes + t]
            n += 1
    for t in range(ROWS):  # what tiles read beyond them is a row of this part
        context_at[n + t] = context_at[0]
    return n


@nb.njit(**_FAST)
def _targets_of(
    weights: Any,
    target_at: Any,
    target_id: Any,
    n_targets: int,
    pool: int,
    span: int,
    lanes: int,
    width: int,
    size: int,
    part: int,
) -> Any:
    """Move the targets of a part and their weights together; how many these are, and pairs with centres."""
    n = 0
    n_pairs: Any = 0
    for t in range(n_targets):
        if _is_of(target_id[t], size, part):
            target_at[n] = _row_of(target_id[t], size) * width
            for c in range(span):
                n_pairs += np.int64(t >= pool and weights[c * lanes + t] < np.float32(0.0))
                weights[c * lanes + n] = weights[c * lanes + t]
            n += 1
    for t in range(n, lanes):
        target_at[t] = target_at[0]
        for c in range(span):
            weights[c * lanes + t] = np.float32(0.0)
    return n, n_pairs


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
    own_rows: int,
    own_tokens: int,
    size: int,
    input_part: int,
    output_part: int,
) -> None:
    """Skip-gram with shared negatives over ``ids[start_pos:stop_pos]``; see the reference.

    Args:
        own_rows: so many first rows of both tables are copied, and the copies move. own_tokens: after so many
            tokens, and in the end, what they moved by is added to the rows.
        size, input_part, output_part: a bucket. Tables have the rows i with i mod ``size`` equal to the part,
            at i // ``size``, and trained are the pairs whose rows both are there; ``stats`` tells of these.
            With size 1 these are all. Buckets that share no part can be trained at the same time by processes
            that do not know of each other (Lerer et al. 2019, arXiv 1903.12287, PyTorch-BigGraph; Zhu et al.
            2019, arXiv 1903.00757, GraphVite). Unlike theirs, negatives are those that are drawn for the
            place in the text, whatever part they are in.
    """
    width = inputs.shape[1]
    inputs = inputs.reshape(-1)
    outputs = outputs.reshape(-1)
    inputs_at = np.int64(inputs.ctypes.data)
    outputs_at = np.int64(outputs.ctypes.data)
    own_inputs, inputs_before, inputs_shift = _copies(inputs, own_rows * width)
    own_outputs, outputs_before, outputs_shift = _copies(outputs, own_rows * width)
    window = step.window
    share = step.share
    pool = step.pool
    weight = np.float32(step.weight)
    n_types = np.uint64(draws.keep.shape[0])
    # Buffers have spare rows, because products work on whole register tiles.
    lanes = (pool + share + LANES - 1) // LANES * LANES
    most = share + 2 * window + ROWS
    contexts = _floats(most * width)  # as they were, for the update of the targets
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
    soon = np.zeros(2 * (most + lanes), np.int64)  # addresses of rows
    target_at = np.zeros(lanes + ROWS, np.int64)
    kept_at = np.arange(most) * width

    kept_id = np.zeros(PIECE + ROWS, np.int32)
    kept_pos = np.empty(PIECE + 1, np.int64)
    reach = np.empty(PIECE + 1, np.int32)
    negative_id = np.zeros((PIECE + 2 * share) // share * pool + pool, np.int32)

    loss_sum: Any = 0.0
    score_sum: Any = 0.0
    n_pairs = 0
    sentence: Any = np.searchsorted(sentence_starts, start_pos, side="right") - 1
    piece_pos = np.int64(start_pos)
    given_pos = piece_pos
    while piece_pos < stop_pos:
        if own_rows > 0 and piece_pos - given_pos >= own_tokens:
            _give_back(inputs, own_inputs, inputs_before)
            _give_back(outputs, own_outputs, outputs_before)
            given_pos = piece_pos
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
            # The context rows that the group's windows reach.
            low = first
            above = last
            for i in range(first, last):
                low = min(low, i - reach[i])
                above = max(above, i + reach[i] + 1)
            low = max(low, 0)
            span = min(above, n_kept) - low
            if size > 1 and not _any_of(kept_id, low, low + span, size, input_part):
                n_drawn += pool
                continue
            n_targets = pool + last - first
            for c in range(span):
                context_at[c] = _place(kept_id[low + c], width, own_rows, inputs_shift)
            for n in range(pool):
                target_id[n] = negative_id[n_drawn + n]
            n_drawn += pool
            for i in range(first, last):
                target_id[pool + i - first] = kept_id[i]
            for t in range(n_targets):
                target_at[t] = _place(target_id[t], width, own_rows, outputs_shift)

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
                shares = held * weight
                at = np.float32(c)
                row = weights[c * lanes : (c + 1) * lanes]
                for t in range(lanes):  # bitwise, not 'and': a branch would keep it from being vectorised
                    within = (window_low[t] <= at) & (at < window_high[t]) & (at != window_own[t])
                    row[t] = shares * is_negative[t] - np.float32(within)
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

            if size > 1:
                n_pairs -= _pairs_of(weights, span, lanes, pool, n_targets)
                span = _contexts_of(weights, context_at, kept_id, low, span, lanes, width, size, input_part)
                n_targets, n_positive = _targets_of(
                    weights, target_at, target_id, n_targets, pool, span, lanes, width, size, output_part
                )
                n_pairs += n_positive
                if n_targets == 0:
                    continue
            _scores(slopes, inputs, context_at, span, outputs, target_at, n_targets, lanes, width, contexts)
            rate = np.float32(max(step.rate_last, step.rate_first - step.rate_slope * kept_pos[first]))
            loss, total = _slopes(slopes, weights, span * lanes, rate)
            loss_sum += loss
            score_sum += total

            # All slopes are known: the updates, from the contexts as they were and the copied targets.
            # What the next group needs besides: its negatives, the contexts it adds, its centres.
            n_soon = 0
            if size > 1:
                end = min(last + share, n_kept)
                n_soon = _soon_of(
                    soon, 0, negative_id, n_drawn, n_drawn + pool, outputs_at, width, size, output_part
                )
                n_soon = _soon_of(soon, n_soon, kept_id, last, end, outputs_at, width, size, output_part)
                end = min(end + window, n_kept)
                begin = min(last + window, n_kept)
                n_soon = _soon_of(soon, n_soon, kept_id, begin, end, inputs_at, width, size, input_part)
            else:
                for n in range(n_drawn, n_drawn + pool):
                    soon[n_soon] = outputs_at + 4 * _place(negative_id[n], width, own_rows, outputs_shift)
                    n_soon += 1
                for k in range(min(last + window, n_kept), min(last + share + window, n_kept)):
                    soon[n_soon] = inputs_at + 4 * _place(kept_id[k], width, own_rows, inputs_shift)
                    n_soon += 1
                for k in range(last, min(last + share, n_kept)):
                    soon[n_soon] = outputs_at + 4 * _place(kept_id[k], width, own_rows, outputs_shift)
                    n_soon += 1
            for n in range(n_soon, span + n_targets):
                soon[n] = inputs_at
            # Rows that are fixed have played their part by now and are left out of the products.
            n_moved, moving = span, slopes
            if step.fixed_inputs > 0:
                n_moved = _open_contexts(thinned, slopes, context_at, span, lanes, step.fixed_inputs * width)
                moving = thinned
            _add_product(
                inputs, context_at, n_moved, moving, lanes, 1, outputs, target_at, n_targets, width, soon, 0
            )
            n_moved = n_targets
            if step.fixed_outputs > 0:
                n_moved = _open_targets(slopes, target_at, n_targets, span, lanes, step.fixed_outputs * width)
            _add_product(
                outputs, target_at, n_moved, slopes, 1, lanes, contexts, kept_at, span, width, soon, span
            )
        piece_pos = piece_end
    _give_back(inputs, own_inputs, inputs_before)
    _give_back(outputs, own_outputs, outputs_before)
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
                    e = _exp(-min(abs(signed), np.float32(60.0)))
                    loss_sum += max(signed, np.float32(0.0)) + _log1p(e)
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
    sharers: int = 1,
) -> tuple[Any, int]:
    """One run of blocks with all threads; see ``reference.run``.

    Threads take the next block that nobody has taken and update the same tables without locks
    (Recht et al. 2011, "Hogwild!", arXiv 1106.5730). The kernels hold no GIL. The most frequent rows, which
    all of them move all the time, are each thread's own for a while, and what it moved them by is added.
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
            function(inputs, outputs, ids, sentence_starts, start, stop, step, draws, stats[part], *own)

    workers = min(threads, len(parts))
    own: tuple[int, ...] = ()
    if kernel == "skipgram_shared":
        movers = workers * sharers
        own = *((0, 0) if movers == 1 else _own(ids[parts[0][0] :], step, draws, movers)), 1, 0, 0
    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return stats.sum(axis=0), n_done


def _own(ids: Any, step: Step, draws: Draws, threads: int) -> tuple[int, int]:
    """How many rows each of several threads copies, and for how many tokens; see OWN_PULL.

    None where some rows are fixed, where frequent words are not first, or where copying would cost more than
    it saves, since only a few tokens are allowed.
    """
    n = min(OWN_ROWS, len(draws.keep) // 4)
    if step.fixed_inputs or step.fixed_outputs or (np.diff(draws.keep[:n].astype(np.int64)) < 0).any():
        return 0, 0
    found, counts = np.unique(ids[:65_536], return_counts=True)
    kept = counts * ((draws.keep[found] + 1.0) / 2.0**32)
    contexts = step.window + 1 if step.shrink else 2 * step.window
    pull = step.rate_first * contexts * (1.0 + step.pool * step.weight) * kept.max() / counts.sum()
    tokens = int(OWN_PULL / (threads * max(pull, 1e-9)))
    return (n, tokens) if tokens >= PIECE else (0, 0)


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
