"""The Triton kernels that :mod:`firth.kernels.gpu` launches; importing this needs Triton.

One section a step. Words and draws are those of :mod:`firth.kernels.reference`. A *stretch* is the part
of the corpus that one launch trains; ``base`` is the place of its first token, and positions within it are
32 bits. A *unit* is a few consecutive pieces, about PIECE tokens. A *program* takes the next unit that nobody
has taken and goes through its groups one after the other; programs that run side by side update the same
tables without locks, by atomic additions.

uint64 and uint32 arrays arrive as int64 and int32 of the same bits, which torch and Triton both know.
"""
# mypy: ignore-errors
# Kernels are a language of their own, and Triton ships no type hints.

import triton
import triton.language as tl

from firth.kernels import reference

# --- draws --------------------------------------------------------------------------------------


@triton.jit
def _draw(key, pos):
    """64 random bits for places; see ``reference.draw``. ``key`` uint64, ``pos`` int64."""
    z = key + pos.to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _key(keys, which):
    return tl.load(keys + which).to(tl.uint64, bitcast=True)


@triton.jit
def _negative(key, pos, threshold, alias, n_types, wanted):
    """Ids by the alias method, int32; 0 where not ``wanted``."""
    bits = _draw(key, pos)
    cell = ((bits >> 32) * n_types.to(tl.uint64) >> 32).to(tl.int64)
    bound = tl.load(threshold + cell, mask=wanted, other=0).to(tl.uint32, bitcast=True)
    other = tl.load(alias + cell, mask=wanted, other=0)
    own = (bits & 0xFFFFFFFF).to(tl.uint32) <= bound
    return tl.where(wanted, tl.where(own, cell.to(tl.int32), other), 0)


@triton.jit
def _reach(key, pos, WINDOW: tl.constexpr, SHRINK: tl.constexpr):
    """How many kept tokens the windows of the centres at ``pos`` reach to each side, int32."""
    if SHRINK:
        return (1 + ((_draw(key, pos) >> 32) * WINDOW >> 32)).to(tl.int32)
    else:
        return tl.full(pos.shape, WINDOW, tl.int32)


@triton.jit
def _rate(pos, first, slope, last):
    """The learning rate at a place, computed in float64, as float32."""
    return tl.maximum(last, first - slope * pos.to(tl.float64)).to(tl.float32)


# --- tables in bfloat16 -------------------------------------------------------------------------

ROUNDING = tl.constexpr(reference.ROUNDING)
ROW_STEP = tl.constexpr(reference.ROW_STEP)
COLUMN_STEP = tl.constexpr(reference.COLUMN_STEP)


@triton.jit
def _rounding_base(key, pos):
    """The lower half of a draw at the place of a group, uint32; see ``reference.rounding_bits``."""
    return (_draw(key ^ ROUNDING, pos) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def _rounded(values, base, row_id, columns, SHIFT: tl.constexpr):
    """Rows rounded to numbers of bfloat16 by chance, float32; see ``reference.to_bfloat16``.

    SHIFT: 16 for the input table, 0 for the output table.
    """
    z = base + row_id.to(tl.uint32)[:, None] * ROW_STEP + columns.to(tl.uint32)[None, :] * COLUMN_STEP
    z = (z ^ (z >> 16)) * 0x85EBCA6B
    z = (z ^ (z >> 13)) * 0xC2B2AE35
    z = ((z ^ (z >> 16)) >> SHIFT) & 0xFFFF
    raised = ((values.to(tl.uint32, bitcast=True) + z) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(values == values, raised, values)  # noqa: PLR0124 - not a number stays so


# --- subsampling --------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["base"])
def keep_tokens(
    ids,
    firsts,
    ends,
    keep,
    keys,
    base: "tl.int64",
    kept_id,
    kept_pos,
    n_kept,
    LANES: tl.constexpr,
):
    """The kept tokens of each piece, moved together: a program a piece of at most LANES tokens.

    Those of the piece that begins at ``first`` stand from ``kept_id[first]`` on, ``n_kept`` of them;
    ``kept_pos`` holds their places in the stretch.
    """
    piece = tl.program_id(0)
    first = tl.load(firsts + piece)
    pos = first + tl.arange(0, LANES)
    inside = pos < tl.load(ends + piece)
    token_id = tl.load(ids + pos, mask=inside, other=0)
    bound = tl.load(keep + token_id, mask=inside, other=0).to(tl.uint32, bitcast=True)
    high = (_draw(_key(keys, 0), base + pos.to(tl.int64)) >> 32).to(tl.uint32)
    is_kept = inside & (high <= bound)
    flag = is_kept.to(tl.int32)
    to = first + tl.cumsum(flag, 0) - flag
    tl.store(kept_id + to, token_id, mask=is_kept)
    tl.store(kept_pos + to, pos, mask=is_kept)
    tl.store(n_kept + piece, tl.sum(flag, 0))


# --- skip-gram, negatives shared by a group -----------------------------------------------------


@triton.jit
def _rows_of_group(
    kept_id,
    kept_pos,
    first,
    start,
    count,
    base,
    reach_key,
    negative_key,
    threshold,
    alias,
    n_types,
    WINDOW: tl.constexpr,
    SHRINK: tl.constexpr,
    SHARE: tl.constexpr,
    POOL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """What a group reads and where it stands; nothing if ``start`` is beyond the piece.

    Returns:
        ids of the M context slots, and which of them some window reaches; ids of the N target slots, first
        the centres, then the negatives; the reach of each centre; the place of the group's first token.
    """
    slot = tl.arange(0, N)
    center_rank = start + slot
    is_center = (slot < SHARE) & (center_rank < count)
    center_id = tl.load(kept_id + first + center_rank, mask=is_center, other=0)
    center_pos = base + tl.load(kept_pos + first + center_rank, mask=is_center, other=0).to(tl.int64)
    reach = _reach(reach_key, center_pos, WINDOW, SHRINK)
    low = tl.min(tl.where(is_center, center_rank - reach, 0x7FFFFFFF), 0)
    high = tl.max(tl.where(is_center, center_rank + reach, -1), 0)

    rank = start - WINDOW + tl.arange(0, M)
    is_read = (rank >= low) & (rank <= high) & (rank >= 0) & (rank < count)
    context_id = tl.load(kept_id + first + rank, mask=is_read, other=0)

    exists = start < count
    own_pos = base + tl.load(kept_pos + first + start, mask=exists, other=0).to(tl.int64)
    is_negative = (slot >= SHARE) & (slot < SHARE + POOL) & exists
    negative_id = _negative(
        negative_key, own_pos + tl.zeros([N], tl.int64), threshold, alias, n_types, is_negative
    )
    target_id = tl.where(is_center, center_id, negative_id)
    return context_id, is_read, target_id, reach, own_pos


@triton.jit
def _load_rows(table, row_id, is_read, columns, WIDTH: tl.constexpr):
    # From the second-level cache: the first level does not see what other programs add.
    at = row_id.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    mask = is_read[:, None] & (columns < WIDTH)[None, :]
    return tl.load(table + at, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def _add_rows(
    table,
    row_id,
    moves,
    columns,
    old,
    delta,
    base,
    WIDTH: tl.constexpr,
    BF16: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Add to rows. In bfloat16, where the addition rounds to the nearest, what is added is the way from the
    ``old`` number to one rounded by chance: some times the spacing of such numbers, mostly none, which the
    addition keeps also where other programs have moved the row in the meantime."""
    at = row_id.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    mask = moves[:, None] & (columns < WIDTH)[None, :]
    if BF16:
        delta = (_rounded(old + delta, base, row_id, columns, SHIFT) - old).to(tl.bfloat16)
    tl.atomic_add(table + at, delta, mask=mask, sem="relaxed")


@triton.jit
def _store_rows(
    table, row_id, moves, columns, value, base, WIDTH: tl.constexpr, BF16: tl.constexpr, SHIFT: tl.constexpr
):
    at = row_id.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    if BF16:
        value = _rounded(value, base, row_id, columns, SHIFT).to(tl.bfloat16)
    tl.store(table + at, value, mask=moves[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def _merged(slopes, row_id, is_read, slot, PRECISION: tl.constexpr):
    """Slopes of a row that is named more than once, summed into its first slot; and which those are."""
    same = (row_id[:, None] == row_id[None, :]) & is_read[:, None] & is_read[None, :]
    earlier = tl.sum((same & (slot[None, :] < slot[:, None])).to(tl.int32), 1)
    return tl.dot(same.to(tl.float32), slopes, input_precision="ieee"), is_read & (earlier == 0)


@triton.jit(do_not_specialize=["n_units", "base", "n_types", "fixed_inputs", "fixed_outputs"])
def skipgram_shared(
    inputs,
    outputs,
    kept_id,
    kept_pos,
    firsts,
    n_kept,
    borders,
    n_units,
    queue,
    keys,
    threshold,
    alias,
    stats,
    base: "tl.int64",
    n_types: "tl.int64",
    rate_first: "tl.float64",
    rate_slope: "tl.float64",
    rate_last: "tl.float64",
    weight: "tl.float32",
    fixed_inputs: "tl.int32",
    fixed_outputs: "tl.int32",
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SHRINK: tl.constexpr,
    SHARE: tl.constexpr,
    POOL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    N_CHUNKS: tl.constexpr,
    HELD: tl.constexpr,
    PRECISION: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    BF16: tl.constexpr,
):
    """Programs take units from the ``queue`` in the text's order: the pieces ``borders[unit]`` to
    ``borders[unit + 1]``, group after group.

    A group is three products: scores (M, N) = contexts (M, D) . targets (N, D)', the contexts' update
    slopes (M, N) . targets, the targets' update slopes' . contexts. Rows are read in N_CHUNKS stretches
    of CHUNK columns; with HELD they stay in registers between the products, else they are read twice.
    ``stats`` (programs, 3) float64: loss, pairs, scores.
    """
    program = tl.program_id(0)
    slot = tl.arange(0, N)
    context_slot = tl.arange(0, M)
    is_negative = (slot >= SHARE) & (slot < SHARE + POOL)
    reach_key = _key(keys, 1)
    negative_key = tl.load(keys + 2 + slot - SHARE, mask=is_negative, other=0).to(tl.uint64, bitcast=True)
    sign = tl.where(is_negative, 1.0, -1.0)[None, :]
    # Context slot c stands WINDOW - c before the group's first token, target slot t is t behind it.
    apart = context_slot[:, None] - WINDOW - slot[None, :]
    loss_sum = tl.zeros([1], tl.float64)
    pair_sum = tl.zeros([1], tl.float64)
    score_sum = tl.zeros([1], tl.float64)

    unit = tl.atomic_add(queue, 1, sem="relaxed")
    while unit < n_units:
        for piece in range(tl.load(borders + unit), tl.load(borders + unit + 1)):
            first = tl.load(firsts + piece)
            count = tl.load(n_kept + piece)
            context_id, is_read, target_id, reach, own_pos = _rows_of_group(
                kept_id, kept_pos, first, 0, count, base, reach_key, negative_key, threshold, alias, n_types,
                WINDOW, SHRINK, SHARE, POOL, M, N,
            )  # fmt: skip
            for start in range(0, count, SHARE):
                is_center = (slot < SHARE) & (start + slot < count)
                is_target = is_center | is_negative
                # The rows are on their way while the next group is looked up and this one's weights are made.
                scores = tl.zeros([M, N], tl.float32)
                contexts = ()
                targets = ()
                for chunk in tl.static_range(N_CHUNKS):
                    columns = chunk * CHUNK + tl.arange(0, CHUNK)
                    x = _load_rows(inputs, context_id, is_read, columns, WIDTH)
                    y = _load_rows(outputs, target_id, is_target, columns, WIDTH)
                    if HELD:
                        contexts = contexts + (x,)  # noqa: RUF005 - Triton has no unpacking
                        targets = targets + (y,)  # noqa: RUF005
                    x, y = x.to(tl.float32), y.to(tl.float32)
                    scores = tl.dot(x, tl.trans(y), scores, input_precision=PRECISION)
                next_context_id, next_is_read, next_target_id, next_reach, next_pos = _rows_of_group(
                    kept_id, kept_pos, first, start + SHARE, count, base, reach_key, negative_key, threshold,
                    alias, n_types, WINDOW, SHRINK, SHARE, POOL, M, N,
                )  # fmt: skip

                near = (apart != 0) & (tl.abs(apart) <= reach[None, :])
                pairs = (near & is_center[None, :] & is_read[:, None]).to(tl.float16)
                # (t, n): centre t is held against negative n, unless they are the same word.
                differs = target_id[:, None] != target_id[None, :]
                against = (is_center[:, None] & is_negative[None, :] & differs).to(tl.float16)
                shares = tl.dot(pairs, against)  # windows of the group in which context c meets negative n
                pairs = pairs.to(tl.float32)
                weights = pairs + weight * shares

                signed = sign * scores
                e = tl.exp(-tl.abs(signed))
                loss = weights * (tl.maximum(signed, 0.0) + tl.log(1.0 + e))
                sigmoid = tl.where(signed >= 0.0, 1.0, e) / (1.0 + e)
                loss_sum += tl.sum(loss).to(tl.float64)
                pair_sum += tl.sum(pairs).to(tl.float64)
                score_sum += tl.sum((pairs + shares) * scores).to(tl.float64)
                rate = _rate(own_pos, rate_first, rate_slope, rate_last)
                slopes = -sign * weights * sigmoid * rate
                chance = _rounding_base(_key(keys, 0), own_pos) if BF16 else 0
                turned = tl.trans(slopes)

                context_moves = is_read & (context_id >= fixed_inputs)
                target_moves = is_target & (target_id >= fixed_outputs)
                if DETERMINISTIC:
                    slopes, is_first = _merged(slopes, context_id, is_read, context_slot, PRECISION)
                    context_moves = context_moves & is_first
                    turned, is_first = _merged(turned, target_id, is_target, slot, PRECISION)
                    target_moves = target_moves & is_first
                for chunk in tl.static_range(N_CHUNKS):
                    columns = chunk * CHUNK + tl.arange(0, CHUNK)
                    if HELD:
                        x = contexts[chunk]
                        y = targets[chunk]
                    else:
                        x = _load_rows(inputs, context_id, is_read, columns, WIDTH)
                        y = _load_rows(outputs, target_id, is_target, columns, WIDTH)
                        tl.debug_barrier()  # all of this is read before any of it moves
                    x, y = x.to(tl.float32), y.to(tl.float32)
                    if DETERMINISTIC:
                        moved = x + tl.dot(slopes, y, input_precision=PRECISION)
                        _store_rows(
                            inputs, context_id, context_moves, columns, moved, chance, WIDTH, BF16, 16
                        )
                        moved = y + tl.dot(turned, x, input_precision=PRECISION)
                        _store_rows(outputs, target_id, target_moves, columns, moved, chance, WIDTH, BF16, 0)
                    else:
                        moved = tl.dot(slopes, y, input_precision=PRECISION)
                        _add_rows(
                            inputs, context_id, context_moves, columns, x, moved, chance, WIDTH, BF16, 16
                        )
                        moved = tl.dot(turned, x, input_precision=PRECISION)
                        _add_rows(outputs, target_id, target_moves, columns, y, moved, chance, WIDTH, BF16, 0)
                tl.debug_barrier()  # the next group reads what this one has written
                context_id, is_read, target_id = next_context_id, next_is_read, next_target_id
                reach, own_pos = next_reach, next_pos
        unit = tl.atomic_add(queue, 1, sem="relaxed")
    at = stats + program * 3 + tl.arange(0, 1)
    tl.store(at, loss_sum)
    tl.store(at + 1, pair_sum)
    tl.store(at + 2, score_sum)


# --- skip-gram, fresh negatives for each pair ---------------------------------------------------


@triton.jit(do_not_specialize=["n_units", "base", "n_types", "fixed_inputs", "fixed_outputs"])
def skipgram_pairs(
    inputs,
    outputs,
    kept_id,
    kept_pos,
    firsts,
    n_kept,
    borders,
    n_units,
    queue,
    keys,
    threshold,
    alias,
    stats,
    base: "tl.int64",
    n_types: "tl.int64",
    rate_first: "tl.float64",
    rate_slope: "tl.float64",
    rate_last: "tl.float64",
    weight: "tl.float32",
    fixed_inputs: "tl.int32",
    fixed_outputs: "tl.int32",
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SHRINK: tl.constexpr,
    POOL: tl.constexpr,
    SATURATION: tl.constexpr,
    SATURATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each pair updated before the next; a program's threads share out the columns of a row.

    SATURATION: 0 exact, 1 clip, 2 skip. Each element of a row is read and added to by one thread at a
    time, so that a single program gives the same bits each time.
    """
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    reach_key = _key(keys, 1)
    loss_sum = tl.zeros([1], tl.float64)
    pair_sum = tl.zeros([1], tl.float64)
    score_sum = tl.zeros([1], tl.float64)
    unit = tl.atomic_add(queue, 1, sem="relaxed")
    while unit < n_units:
        for piece in range(tl.load(borders + unit), tl.load(borders + unit + 1)):
            first = tl.load(firsts + piece)
            count = tl.load(n_kept + piece)
            for i in range(count):
                center_id = tl.load(kept_id + first + i)
                pos = base + tl.load(kept_pos + first + i).to(tl.int64)
                reach = tl.max(_reach(reach_key, pos + tl.zeros([1], tl.int64), WINDOW, SHRINK), 0)
                rate = _rate(pos, rate_first, rate_slope, rate_last)
                for c in range(tl.maximum(i - reach, 0), tl.minimum(i + reach + 1, count)):
                    if c != i:
                        context_id = tl.load(kept_id + first + c)
                        own = inputs + context_id.to(tl.int64) * WIDTH + columns
                        context = tl.load(own, mask=inside, other=0.0, cache_modifier=".cg")
                        moved = tl.zeros([BLOCK], tl.float32)
                        for n in range(-1, POOL):
                            key = _key(keys, 2 + tl.maximum((c - i + WINDOW) * POOL + n, 0))
                            negative_id = _negative(key, pos, threshold, alias, n_types, n >= 0)
                            target_id = tl.where(n < 0, center_id, negative_id)
                            counts = (n < 0) | (target_id != center_id)
                            at = outputs + target_id.to(tl.int64) * WIDTH + columns
                            target = tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
                            x = tl.sum(context * target, 0)
                            signed = tl.where(n < 0, -x, x)
                            e = tl.exp(-tl.abs(signed))
                            loss = tl.maximum(signed, 0.0) + tl.log(1.0 + e)
                            label = tl.where(n < 0, 1.0, 0.0)
                            wrong = tl.where(signed >= 0.0, 1.0, e) / (1.0 + e)  # sigmoid(signed)
                            slope = tl.where(n < 0, wrong, -wrong)
                            if SATURATION == 1:
                                certain = label - tl.where(x > 0.0, 1.0, 0.0)
                                slope = tl.where(tl.abs(x) > SATURATED, certain, slope)
                            if SATURATION == 2:
                                slope = tl.where(tl.abs(x) >= SATURATED, 0.0, slope)
                            slope = tl.where(counts, slope * rate, 0.0)
                            loss_sum += tl.where(counts, loss, 0.0).to(tl.float64)
                            score_sum += tl.where(counts, x, 0.0).to(tl.float64)
                            moved += slope * target
                            open_row = inside & counts & (target_id >= fixed_outputs)
                            tl.atomic_add(at, slope * context, mask=open_row, sem="relaxed")
                            tl.debug_barrier()  # the next target may be the same row
                        tl.atomic_add(own, moved, mask=inside & (context_id >= fixed_inputs), sem="relaxed")
                        tl.debug_barrier()
                        pair_sum += 1.0
        unit = tl.atomic_add(queue, 1, sem="relaxed")
    at_stats = stats + program * 3 + tl.arange(0, 1)
    tl.store(at_stats, loss_sum)
    tl.store(at_stats + 1, pair_sum)
    tl.store(at_stats + 2, score_sum)
