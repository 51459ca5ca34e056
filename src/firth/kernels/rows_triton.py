"""The Triton kernels that :mod:`firth.kernels.rows_gpu` launches; importing this needs Triton.

They stand apart so that everything else can be imported without Triton, whose decorators work at
import, and whose interpreter (``TRITON_INTERPRET=1``) looks for ``tl`` among a kernel's globals.

A program takes a block of ROWS different rows by BLOCK columns, and walks along the columns where a row
is longer than a block. Rows belong to one program each, so nothing is added atomically and results do
not depend on timing. The places of a row are added in input order; where a row has so many that whole
tiles of TILE places belong to it (the frequent words of a text), ``tile_sums`` has added those up
beforehand, in parallel, and the row's program adds the tiles' sums in order. Offsets are 64-bit.

Words and symbols are those of :mod:`firth.kernels.rows_reference`. ACC and WORK are the dtypes of sums
and of updates. Settings come as float64 and are rounded to WORK once, as torch does with numbers.
"""
# mypy: ignore-errors
# Kernels are a language of their own, and Triton ships no type hints.

import triton
import triton.language as tl

# --- sums over the places of rows ---------------------------------------------------------------


@triton.jit
def _add_places(
    acc,
    begin,
    count,
    order,
    row_of,
    factor,
    grads,
    columns,
    D: tl.constexpr,
    ROW_OF: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """``acc`` (ROWS, BLOCK) plus the gradients of places order[begin : begin + count], in order."""
    inside = columns < D
    for first in range(0, tl.max(count, 0), 4):
        # Unrolled, so that loads of one place may begin before the addition of the last.
        for ahead in tl.static_range(4):
            here = first + ahead < count
            place = tl.load(order + begin + first + ahead, mask=here, other=0)
            row = place
            if ROW_OF:
                row = tl.load(row_of + place, mask=here, other=0).to(tl.int64)
            mask = here[:, None] & inside[None, :]
            value = tl.load(grads + row[:, None] * D + columns[None, :], mask=mask, other=0.0).to(acc.dtype)
            if FACTOR:
                value *= tl.load(factor + place, mask=here, other=0.0).to(acc.dtype)[:, None]
            acc += value
    return acc


@triton.jit
def _gradient(
    group,
    n_groups,
    starts,
    order,
    row_of,
    factor,
    grads,
    tiles,
    columns,
    D: tl.constexpr,
    ROW_OF: tl.constexpr,
    FACTOR: tl.constexpr,
    TILES: tl.constexpr,
    BY_FREQ: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """The summed gradients (ROWS, BLOCK) of ``group`` (ROWS,) in ``columns`` (BLOCK,)."""
    exists = group < n_groups
    begin = tl.load(starts + group, mask=exists, other=0)
    end = tl.load(starts + group + 1, mask=exists, other=0)
    acc = tl.zeros([ROWS, BLOCK], dtype=ACC)
    if TILES:
        first_tile = (begin + TILE - 1) // TILE
        n_tiles = tl.maximum(end // TILE - first_tile, 0)
        has_tiles = n_tiles > 0
        head_end = tl.where(has_tiles, first_tile * TILE, end)
        acc = _add_places(
            acc, begin, head_end - begin, order, row_of, factor, grads, columns, D, ROW_OF, FACTOR
        )
        inside = columns < D
        for first in range(0, tl.max(n_tiles, 0), 4):
            for ahead in tl.static_range(4):
                mask = (first + ahead < n_tiles)[:, None] & inside[None, :]
                at = (first_tile + first + ahead)[:, None] * D + columns[None, :]
                acc += tl.load(tiles + at, mask=mask, other=0.0)
        tail = tl.where(has_tiles, (first_tile + n_tiles) * TILE, end)
        acc = _add_places(acc, tail, end - tail, order, row_of, factor, grads, columns, D, ROW_OF, FACTOR)
    else:
        acc = _add_places(acc, begin, end - begin, order, row_of, factor, grads, columns, D, ROW_OF, FACTOR)
    if BY_FREQ:
        acc = acc / tl.maximum(end - begin, 1).to(ACC)[:, None]
    return acc


@triton.jit(do_not_specialize=["n_groups", "n_halvings"])
def tile_sums(
    starts,
    order,
    row_of,
    factor,
    grads,
    tiles,
    n_groups,
    n_halvings,
    D: tl.constexpr,
    ROW_OF: tl.constexpr,
    FACTOR: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """``tiles[t]`` = the sum over places order[t * TILE : (t + 1) * TILE], if they all are of one row."""
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    # The group that holds the first place: the last with starts[group] <= first.
    low = tl.zeros([1], dtype=tl.int64)
    high = low + n_groups
    for _ in range(n_halvings):
        middle = (low + high) // 2
        before = tl.load(starts + middle) <= first
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    end = tl.load(starts + low + 1)
    count = tl.where(end >= first + TILE, TILE, 0)
    if tl.max(count, 0) > 0:
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        acc = tl.zeros([1, BLOCK], dtype=ACC)
        begin = tl.zeros([1], dtype=tl.int64) + first
        acc = _add_places(acc, begin, count, order, row_of, factor, grads, columns, D, ROW_OF, FACTOR)
        tl.store(tiles + tile * D + columns[None, :], acc, mask=(columns < D)[None, :])


@triton.jit(do_not_specialize=["n_groups"])
def summed(
    starts,
    order,
    row_of,
    factor,
    grads,
    tiles,
    out,
    n_groups,
    D: tl.constexpr,
    ROW_OF: tl.constexpr,
    FACTOR: tl.constexpr,
    TILES: tl.constexpr,
    BY_FREQ: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """``out`` (U, D): the summed gradient of every group."""
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = _gradient(
        group, n_groups, starts, order, row_of, factor, grads, tiles, columns,
        D, ROW_OF, FACTOR, TILES, BY_FREQ, ACC, ROWS, BLOCK, TILE,
    )  # fmt: skip
    mask = (group < n_groups)[:, None] & (columns < D)[None, :]
    tl.store(out + group[:, None] * D + columns[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["n_groups"])
def not_finite(
    starts,
    order,
    row_of,
    factor,
    grads,
    tiles,
    wrong,
    n_groups,
    D: tl.constexpr,
    ROW_OF: tl.constexpr,
    FACTOR: tl.constexpr,
    TILES: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """``wrong`` (U,) int8: 1 where the summed gradient of a group has NaN or infinity."""
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    found = tl.zeros([ROWS], dtype=tl.int32)
    for first in range(0, D, BLOCK):
        acc = _gradient(
            group, n_groups, starts, order, row_of, factor, grads, tiles, first + tl.arange(0, BLOCK),
            D, ROW_OF, FACTOR, TILES, False, ACC, ROWS, BLOCK, TILE,
        )  # fmt: skip
        finite = tl.abs(acc) < float("inf")  # false for NaN
        found = tl.maximum(found, tl.max(1 - finite.to(tl.int32), 1))
    tl.store(wrong + group, found.to(tl.int8), mask=group < n_groups)


# --- updates ------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_groups"])
def update(
    table,
    state_1,
    state_2,
    rows,
    starts,
    order,
    row_of,
    factor,
    grads,
    tiles,
    refused,
    n_groups,
    lr: "tl.float64",
    weight_decay: "tl.float64",
    keep: "tl.float64",
    momentum: "tl.float64",
    rest_1: "tl.float64",
    rest_2: "tl.float64",
    eps: "tl.float64",
    clip: "tl.float64",
    D: tl.constexpr,
    KIND: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    CLIP: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    ROW_OF: tl.constexpr,
    FACTOR: tl.constexpr,
    TILES: tl.constexpr,
    BY_FREQ: tl.constexpr,
    ACC: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """One step on the rows used, unless ``refused`` (1,) is set.

    ``lr`` holds Adam's bias corrections; ``keep`` = 1 - lr * weight_decay of decoupled decay; ``rest_1``,
    ``rest_2`` = 1 - beta1, 1 - beta2. ``state_1``, ``state_2``: the state in the order of
    ``state_shapes``; what a kind lacks is never touched.
    """
    if tl.load(refused) != 0:
        return
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = group < n_groups
    row = tl.load(rows + group, mask=exists, other=0)
    lr = tl.full([1, 1], lr, WORK)
    weight_decay = tl.full([1, 1], weight_decay, WORK)
    eps = tl.full([1, 1], eps, WORK)
    # A row that fits into one block is summed once; a longer one again in every pass over its columns.
    g = _gradient(
        group, n_groups, starts, order, row_of, factor, grads, tiles, tl.arange(0, BLOCK),
        D, ROW_OF, FACTOR, TILES, BY_FREQ, ACC, ROWS, BLOCK, TILE,
    ).to(WORK)  # fmt: skip

    scale = tl.full([ROWS, 1], 1.0, WORK)
    if CLIP:
        squares = tl.zeros([ROWS], dtype=WORK)
        for first in range(0, D, BLOCK):
            if D > BLOCK:
                g = _gradient(
                    group, n_groups, starts, order, row_of, factor, grads, tiles, first + tl.arange(0, BLOCK),
                    D, ROW_OF, FACTOR, TILES, BY_FREQ, ACC, ROWS, BLOCK, TILE,
                ).to(WORK)  # fmt: skip
            squares += tl.sum(g * g, 1)
        norm = tl.sqrt(squares)[:, None]
        limit = tl.full([1, 1], clip, WORK)
        over = norm > limit
        scale = tl.where(over, limit / tl.where(over, norm, 1.0), scale)
    if MAXIMIZE:
        scale = -scale

    total = tl.zeros([ROWS, 1], dtype=WORK)
    if KIND == "rowwise_adagrad":
        squares = tl.zeros([ROWS], dtype=WORK)
        for first in range(0, D, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            if D > BLOCK:
                g = _gradient(
                    group, n_groups, starts, order, row_of, factor, grads, tiles, columns,
                    D, ROW_OF, FACTOR, TILES, BY_FREQ, ACC, ROWS, BLOCK, TILE,
                ).to(WORK)  # fmt: skip
            moved = g * scale
            if DECAY and not DECOUPLED:
                mask = exists[:, None] & (columns < D)[None, :]
                w = tl.load(table + row[:, None] * D + columns[None, :], mask=mask, other=0.0).to(WORK)
                moved = moved + weight_decay * w
            squares += tl.sum(moved * moved, 1)
        mean = squares / D
        sum_of_row = tl.load(state_1 + row, mask=exists, other=0.0).to(WORK) + mean
        tl.store(state_1 + row, sum_of_row.to(state_1.dtype.element_ty), mask=exists)
        total = sum_of_row[:, None]

    for first in range(0, D, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        if D > BLOCK:
            g = _gradient(
                group, n_groups, starts, order, row_of, factor, grads, tiles, columns,
                D, ROW_OF, FACTOR, TILES, BY_FREQ, ACC, ROWS, BLOCK, TILE,
            ).to(WORK)  # fmt: skip
        mask = exists[:, None] & (columns < D)[None, :]
        at = row[:, None] * D + columns[None, :]
        w = tl.load(table + at, mask=mask, other=0.0).to(WORK)
        moved = g * scale
        if DECAY:
            if DECOUPLED:
                w = w * tl.full([1, 1], keep, WORK)
            else:
                moved = moved + weight_decay * w
        change = lr * moved
        if KIND == "sgd":
            if MOMENTUM:
                pull = tl.full([1, 1], momentum, WORK)
                buffer = pull * tl.load(state_1 + at, mask=mask, other=0.0).to(WORK) + moved
                tl.store(state_1 + at, buffer.to(state_1.dtype.element_ty), mask=mask)
                change = lr * (moved + pull * buffer) if NESTEROV else lr * buffer
        elif KIND == "adagrad":
            sums = tl.load(state_1 + at, mask=mask, other=0.0).to(WORK) + moved * moved
            tl.store(state_1 + at, sums.to(state_1.dtype.element_ty), mask=mask)
            change = change / (tl.sqrt(sums) + eps)
        elif KIND == "rowwise_adagrad":
            change = change / (tl.sqrt(total) + eps)
        else:
            m = tl.load(state_1 + at, mask=mask, other=0.0).to(WORK)
            v = tl.load(state_2 + at, mask=mask, other=0.0).to(WORK)
            m += tl.full([1, 1], rest_1, WORK) * (moved - m)
            v += tl.full([1, 1], rest_2, WORK) * (moved * moved - v)
            tl.store(state_1 + at, m.to(state_1.dtype.element_ty), mask=mask)
            tl.store(state_2 + at, v.to(state_2.dtype.element_ty), mask=mask)
            change = lr * m / (tl.sqrt(v) + eps)
        tl.store(table + at, (w - change).to(table.dtype.element_ty), mask=mask)


# --- renorm -------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_rows"])
def renorm(
    table,
    rows,
    n_rows,
    max_norm: "tl.float64",
    D: tl.constexpr,
    SQUARE: tl.constexpr,
    WORK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows longer than ``max_norm`` are shrunk to it; Euclidean norm if SQUARE, else sum of absolutes."""
    at_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = at_row < n_rows
    row = tl.load(rows + at_row, mask=exists, other=0)
    total = tl.zeros([ROWS], dtype=WORK)
    for first in range(0, D, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = exists[:, None] & (columns < D)[None, :]
        w = tl.load(table + row[:, None] * D + columns[None, :], mask=mask, other=0.0).to(WORK)
        total += tl.sum(w * w if SQUARE else tl.abs(w), 1)
    norm = tl.sqrt(total) if SQUARE else total
    over = norm > tl.full([1], max_norm, WORK)
    scale = (tl.full([1], max_norm, tl.float64) / (norm.to(tl.float64) + 1e-7)).to(WORK)
    for first in range(0, D, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = over[:, None] & (columns < D)[None, :]
        at = row[:, None] * D + columns[None, :]
        w = tl.load(table + at, mask=mask, other=0.0).to(WORK)
        tl.store(table + at, (w * scale[:, None]).to(table.dtype.element_ty), mask=mask)
