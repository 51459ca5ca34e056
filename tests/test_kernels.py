"""The fast kernels against the reference, the reference against finite differences."""

import itertools

import numpy as np
import pytest

from firth.kernels import cpu, reference
from firth.kernels.compare import assert_rows_equal, worst_row
from firth.kernels.reference import PIECE, Draws, Step, stream_keys
from firth.training.draws import Sampler
from firth.training.objectives import SkipGram
from firth.training.sampling import zeros

# float32 keeps 24 bits; a row takes up to some hundred updates here, each of which rounds anew.
TOLERANCE = 5e-5


def make_corpus(n_tokens=2300, n_types=60, seed=0):
    """Zipf-like ids with repeats, sentences of all lengths: one longer than a piece, one of a token."""
    rng = np.random.default_rng(seed)
    ids = np.minimum(rng.zipf(1.3, n_tokens) - 1, n_types - 1).astype(np.int32)
    lengths = [1, 2, 5, 1200]
    while sum(lengths) < n_tokens:
        lengths.append(int(rng.integers(1, 40)))
    starts = np.minimum(np.cumsum([0, *lengths]), n_tokens).astype(np.int64)
    return ids, np.unique(starts), np.bincount(ids, minlength=n_types) + 1


def make_tables(n_types, dim, seed=1):
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(2):
        table = zeros(n_types, dim)
        table[:, :dim] = rng.normal(0, 0.5 / np.sqrt(dim), (n_types, dim))
        tables.append(table)
    return tables


def run_both(objective, dim, n_tokens=2300, lr=0.025, seed=7, **fixed):
    ids, starts, counts = make_corpus(n_tokens)
    inputs, outputs = make_tables(len(counts), dim)
    exact_inputs, exact_outputs = inputs[:, :dim].astype(np.float64), outputs[:, :dim].astype(np.float64)
    # The wider the window, the smaller the steps: in a run that explodes, rounding explodes too.
    lr = min(lr, 1 / (max(objective.share, 1) * objective.window * (1 + objective.negatives) * 0.1))
    step = objective.step(lr, lr / 1e5, lr * 1e-4)._replace(**fixed)
    draws = Sampler(counts, objective, seed, reference).epoch(3)
    borders = np.array([0, n_tokens], np.int64)
    stats, _ = cpu.run(objective.kernel, inputs, outputs, ids, starts, borders, step, draws)
    exact, _ = reference.run(objective.kernel, exact_inputs, exact_outputs, ids, starts, borders, step, draws)
    return (inputs, outputs, stats), (exact_inputs, exact_outputs, exact)


def check(fast, exact):
    assert_rows_equal(fast[0], exact[0], TOLERANCE, "inputs")
    assert_rows_equal(fast[1], exact[1], TOLERANCE, "outputs")
    assert fast[2][1] == exact[2][1], "pairs"
    assert fast[2][0] == pytest.approx(exact[2][0], rel=1e-5), "loss"


@pytest.mark.parametrize("dim", [1, 7, 64, 100, 128, 300])
@pytest.mark.parametrize("share", [6, 0])
def test_fast_kernel_agrees_with_reference_for_all_dims(dim, share):
    check(*run_both(SkipGram(sample=1e-2, share=share), dim))


@pytest.mark.parametrize("window,negatives", list(itertools.product([1, 5, 15], [1, 5, 15])))
@pytest.mark.parametrize("share", [1, 6, 0])
def test_fast_kernel_agrees_with_reference_for_all_windows(window, negatives, share):
    objective = SkipGram(window=window, negatives=negatives, sample=1e-2, share=share)
    check(*run_both(objective, 20, n_tokens=1500 if share else 1200))


@pytest.mark.parametrize(
    "objective",
    [
        SkipGram(share=16, pool=16),
        SkipGram(share=3, pool=40, sample=0),
        SkipGram(share=1, pool=5, shrink_windows=False),
        SkipGram(share=40, pool=7, window=2),
        SkipGram(sample=0),
        SkipGram(share=0, saturation="clip"),
        SkipGram(share=0, saturation="skip"),
    ],
    ids=str,
)
def test_fast_kernel_agrees_with_reference_for_odd_groups(objective):
    check(*run_both(objective, 24, n_tokens=1500))


@pytest.mark.parametrize("fixed_inputs,fixed_outputs", [(20, 0), (0, 20), (3, 55), (60, 60)])
@pytest.mark.parametrize("share", [6, 0])
def test_fixed_rows_take_part_and_never_move(share, fixed_inputs, fixed_outputs):
    fixed = {"fixed_inputs": fixed_inputs, "fixed_outputs": fixed_outputs}
    fast, exact = run_both(SkipGram(sample=1e-2, share=share), 24, n_tokens=1500, **fixed)
    check(fast, exact)
    before = make_tables(60, 24)
    for table, start, n_fixed in zip(fast[:2], before, fixed.values(), strict=True):
        assert np.array_equal(table[:n_fixed], start[:n_fixed])
        moved = (table[n_fixed:] != start[n_fixed:]).any(axis=1)
        assert n_fixed == 60 or moved.mean() > 0.75  # of the others, those that the text names
    free, _ = run_both(SkipGram(sample=1e-2, share=share), 24, n_tokens=1500)
    assert free[2][1] == fast[2][1] and free[2][0] < fast[2][0]  # as many pairs, learned less well


@pytest.mark.parametrize("width,lanes", [(16, 16), (112, 32), (304, 16)])
def test_scores_are_all_dot_products_and_keep_the_rows(width, lanes):
    rng = np.random.default_rng(width)
    rows, table = rng.normal(size=(2, 40, width)).astype(np.float32)
    rows_at, table_at = rng.integers(0, 40, (2, lanes + cpu.ROWS)) * width
    exact = rows.astype(np.float64)[rows_at // width] @ table.astype(np.float64)[table_at // width].T
    for n_rows in range(1, 15):  # every size of tile
        out = np.full((n_rows + 1) * lanes, np.nan, np.float32)
        kept = np.full((n_rows + 1) * width, np.nan, np.float32)
        flat = table.reshape(-1)
        cpu._scores(out, rows.reshape(-1), rows_at, n_rows, flat, table_at, lanes, lanes, width, kept)
        got = out[: n_rows * lanes].reshape(n_rows, lanes)
        np.testing.assert_allclose(got, exact[:n_rows, :lanes], atol=1e-4)
        assert np.array_equal(kept[: n_rows * width].reshape(n_rows, width), rows[rows_at[:n_rows] // width])
        assert np.isnan(out[n_rows * lanes :]).all() and np.isnan(kept[n_rows * width :]).all()


@pytest.mark.parametrize("n_rows", range(1, 15))
def test_products_are_added_to_rows_named_once_or_twice(n_rows):
    rng = np.random.default_rng(n_rows)
    width, n_k = 48, 9
    table, rows = rng.normal(size=(2, 30, width)).astype(np.float32)
    slopes = rng.normal(size=(n_rows, n_k)).astype(np.float32)
    named = rng.integers(0, 30 if n_rows % 2 else 3, n_rows)
    rows_named = rng.integers(0, 30, n_k)
    exact = table.astype(np.float64)
    np.add.at(exact, named, slopes.astype(np.float64) @ rows.astype(np.float64)[rows_named])
    soon = np.full(2 + n_rows, rows.ctypes.data)
    for turned in (False, True):  # the slopes as they are, and transposed
        got = table.copy()
        flat, by = (slopes.T.copy(), (1, n_rows)) if turned else (slopes, (n_k, 1))
        cpu._add_product(
            got.reshape(-1),
            named * width,
            n_rows,
            flat.reshape(-1),
            *by,
            rows.reshape(-1),
            rows_named * width,
            n_k,
            width,
            soon,
            2,
        )
        np.testing.assert_allclose(got, exact, atol=1e-4)


def test_learning_rate_is_a_function_of_position():
    # Two calls with half of the blocks each, and one call, are the same to the last bit.
    objective = SkipGram(sample=1e-2)
    ids, _, counts = make_corpus(3000)
    starts = np.array([0, 3000], np.int64)
    draws = Sampler(counts, objective, 1, cpu).epoch(0)
    step = objective.step(0.1, 0.1 / 3000, 1e-5)
    results = []
    for borders in ([0, 3000], [0, 1000, 3000]):
        inputs, outputs = make_tables(len(counts), 30)
        cpu.run("skipgram_shared", inputs, outputs, ids, starts, np.array(borders), step, draws)
        results.append((inputs, outputs))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


# --- the reference itself -----------------------------------------------------------------------


def group_loss(inputs, outputs, ids, starts, step, draws):
    stats = np.zeros(3)
    frozen = step._replace(rate_first=0.0, rate_slope=0.0, rate_last=0.0)
    reference.skipgram_shared(inputs.copy(), outputs.copy(), ids, starts, 0, len(ids), frozen, draws, stats)
    return stats[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_reference_gradient_agrees_with_finite_differences(seed):
    # One group holds the whole piece, so that one step of rate 1 is minus the gradient.
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 6, 12).astype(np.int32)  # words repeat within windows
    starts = np.array([0, 12], np.int64)
    objective = SkipGram(share=12, pool=4, sample=0, window=3)
    draws = Sampler(np.bincount(ids, minlength=6) + 1, objective, seed, reference).epoch(0)
    step = objective.step(1.0, 0.0, 0.0)
    tables = [rng.normal(0, 0.5, (6, 3)) for _ in range(2)]
    moved = [table.copy() for table in tables]
    reference.skipgram_shared(*moved, ids, starts, 0, 12, step, draws, np.zeros(3))
    for which, (row, col) in itertools.product((0, 1), itertools.product(range(6), range(3))):
        losses = []
        for sign in (1, -1):
            shifted = [table.copy() for table in tables]
            shifted[which][row, col] += sign * 1e-5
            losses.append(group_loss(*shifted, ids, starts, step, draws))
        numeric = (losses[0] - losses[1]) / 2e-5
        analytic = tables[which][row, col] - moved[which][row, col]
        assert analytic == pytest.approx(numeric, abs=1e-6, rel=1e-5), (which, row, col)


def test_pair_reference_takes_gradient_steps_one_by_one():
    # A sentence of two words, one negative: the four updates by hand.
    ids, starts = np.array([0, 1], np.int32), np.array([0, 2], np.int64)
    draws = Draws(
        stream_keys(1, 0, 8),
        np.full(3, 0xFFFFFFFF, np.uint32),
        np.zeros(3, np.uint32),
        np.full(3, 2, np.int32),  # every negative is id 2
    )
    step = SkipGram(window=1, negatives=1, share=0, sample=0).step(0.5, 0.0, 0.5)
    u, v = np.array([[0.1], [0.2], [0.3]]), np.array([[0.4], [0.5], [0.6]])
    expected_u, expected_v = u.copy(), v.copy()
    loss = 0.0
    for center, context in ((0, 1), (1, 0)):
        moved = 0.0
        for target, label in ((center, 1.0), (2, 0.0)):
            x = expected_u[context, 0] * expected_v[target, 0]
            loss += np.log1p(np.exp(-x if label else x))
            slope = 0.5 * (label - 1 / (1 + np.exp(-x)))
            moved += slope * expected_v[target, 0]
            expected_v[target, 0] += slope * expected_u[context, 0]
        expected_u[context, 0] += moved
    stats, done = reference.run("skipgram_pairs", u, v, ids, starts, np.array([0, 2]), step, draws)
    # Drawing id 0 or 1 itself happens where a draw is exactly 0; the thresholds here are 0.
    np.testing.assert_allclose(u, expected_u, rtol=1e-12)
    np.testing.assert_allclose(v, expected_v, rtol=1e-12)
    assert stats[0] == pytest.approx(loss, rel=1e-12)
    assert (stats[1], done) == (2, 1)


def test_mean_loss_on_a_case_computed_by_hand():
    # Two words, each other's only context, all scores 0: each of 2 pairs costs ln 2, and each of
    # its negatives another ln 2 (weight 1): (1 + 1) ln 2 a pair.
    ids, starts = np.array([0, 1], np.int32), np.array([0, 2], np.int64)
    draws = Draws(
        stream_keys(1, 0, 4),
        np.full(3, 0xFFFFFFFF, np.uint32),
        np.zeros(3, np.uint32),
        np.full(3, 2, np.int32),
    )
    step = SkipGram(window=1, negatives=1, share=2, pool=1, sample=0).step(0.1, 0.0, 0.1)
    for kernels in (reference, cpu):
        inputs, outputs = zeros(3, 4), zeros(3, 4)
        inputs[:, :4] = 1.0
        stats, _ = kernels.run("skipgram_shared", inputs, outputs, ids, starts, np.array([0, 2]), step, draws)
        assert stats[1] == 2
        assert stats[0] / stats[1] == pytest.approx(2 * np.log(2), rel=1e-6)


def test_draws_are_as_defined():
    # splitmix64's published first outputs from state 1234567 (rosettacode's check values).
    state = 1234567
    first = [reference.mix(state + (i + 1) * 0x9E3779B97F4A7C15) for i in range(3)]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_have_the_right_frequencies():
    objective = SkipGram(negatives=4, window=4)
    counts = np.array([1000, 300, 100, 10, 1])
    draws = Sampler(counts, objective, 5, cpu).epoch(0)
    step = objective.step(0.1, 0, 0.1)
    reaches = np.bincount([reference.reach_at(step, draws, pos) for pos in range(8000)], minlength=5)[1:]
    assert np.abs(reaches / 8000 - 0.25).max() < 0.02
    drawn = np.bincount([reference.negative_at(draws, 1, pos) for pos in range(20000)], minlength=5)
    wanted = counts**0.75 / np.sum(counts**0.75)
    assert np.abs(drawn / 20000 - wanted).max() < 0.015
    ratio = 1e-3 / (counts[0] / counts.sum())
    kept = np.mean([reference.is_kept(draws, 0, pos) for pos in range(20000)])
    assert kept == pytest.approx(np.sqrt(ratio) + ratio, abs=0.01)


def test_alias_table_is_the_same_to_the_bit_in_both():
    weights = np.random.default_rng(0).zipf(1.2, 5000).astype(np.float64) ** 0.75
    for fast, slow in zip(cpu.alias_table(weights), reference.alias_table(weights), strict=True):
        assert fast.dtype == slow.dtype
        assert np.array_equal(fast, slow)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [1e9, 1.0], [1.0] * 7])
def test_alias_table_gives_each_id_its_share(weights):
    weights = np.array(weights)
    threshold, alias = reference.alias_table(weights)
    got = np.zeros(len(weights))
    for cell in range(len(weights)):
        own = (int(threshold[cell]) + 1) / 2**32
        got[cell] += own
        got[alias[cell]] += 1 - own
    np.testing.assert_allclose(got / len(weights), weights / weights.sum(), atol=1e-9)


def test_draws_are_the_same_for_any_number_of_threads():
    # With a learning rate of 0 the tables stand still, so the loss tells windows, kept words and
    # negatives apart, and must not depend on who trained which block.
    objective = SkipGram(sample=1e-2)
    ids, _, counts = make_corpus(20_000)
    starts = np.arange(0, 20_001, 50)
    borders = np.arange(0, 20_001, 1000)
    draws = Sampler(counts, objective, 1, cpu).epoch(0)
    step = objective.step(0.0, 0.0, 0.0)
    inputs, outputs = make_tables(len(counts), 16)
    found = {
        tuple(cpu.run("skipgram_shared", inputs, outputs, ids, starts, borders, step, draws, threads)[0])
        for threads in (1, 2, 4)
    }
    assert len(found) == 1


@pytest.mark.parametrize("own_rows, own_tokens", [(1, 1), (7, 100), (60, 10**6)])
def test_copies_of_frequent_rows_give_back_all_that_they_moved_by(own_rows, own_tokens):
    # A thread that is alone cannot tell its copies from the rows.
    objective = SkipGram(sample=1e-2)
    ids, starts, counts = make_corpus()
    inputs, outputs = make_tables(len(counts), 100)
    exact = [table[:, :100].astype(np.float64) for table in (inputs, outputs)]
    step = objective.step(0.025, 0.0, 0.025)
    draws = Sampler(counts, objective, 1, cpu).epoch(0)
    stats, told = np.zeros((2, 3))
    reference.skipgram_shared(*exact, ids, starts, 0, len(ids), step, draws, told)
    ids, starts = cpu._read_only(ids), cpu._read_only(starts)
    cpu.skipgram_shared(
        inputs, outputs, ids, starts, 0, len(ids), step, draws, stats, own_rows, own_tokens, 1, 0, 0
    )
    check((inputs, outputs, stats), (*exact, told))


def test_several_threads_copy_rows_where_that_is_sound():
    ids = (100 ** np.random.default_rng(1).random(30_000)).astype(np.int32)
    counts = np.sort(np.bincount(ids, minlength=100) + 1)[::-1]

    def own(threads, rate=0.025, counts=counts, **fixed):
        objective = SkipGram()
        draws = Sampler(counts, objective, 1, cpu).epoch(0)
        return cpu._own(ids, objective.step(rate, 0.0, rate)._replace(**fixed), draws, threads)

    rows, tokens = own(2, 0.002)
    assert rows == 25 and tokens >= PIECE
    assert own(4, 0.002) == (25, tokens // 2) and own(2, 0.004) == (25, tokens // 2)
    assert (
        own(2, 1.0)
        == own(2, fixed_inputs=1)
        == own(2, fixed_outputs=1)
        == own(2, counts=counts[::-1])
        == (0, 0)
    )


def test_blocks_done_are_the_first_ones_when_stopped():
    objective = SkipGram(sample=1e-2)
    ids, _, counts = make_corpus(20_000)
    starts, borders = np.arange(0, 20_001, 50), np.arange(0, 20_001, 1000)
    draws = Sampler(counts, objective, 1, cpu).epoch(0)
    step = objective.step(0.0, 0.0, 0.0)
    for kernels, threads in ((cpu, 1), (cpu, 3)):
        asked = iter([False] * 4 + [True] * 100)
        inputs, outputs = make_tables(len(counts), 16)
        stats, done = kernels.run(
            "skipgram_shared",
            inputs,
            outputs,
            ids,
            starts,
            borders,
            step,
            draws,
            threads,
            asked.__next__,
        )
        whole, _ = kernels.run(
            "skipgram_shared", inputs, outputs, ids, starts, borders[: done + 1], step, draws
        )
        assert 1 <= done < 20
        assert stats[1] == whole[1]


def test_a_window_never_crosses_a_piece():
    # Two pieces of one sentence: the pairs are those of each piece alone.
    ids = np.arange(PIECE + 3, dtype=np.int32) % 50
    objective = SkipGram(sample=0, shrink_windows=False, window=2)
    draws = Sampler(np.full(50, 20), objective, 1, cpu).epoch(0)
    step = objective.step(0.0, 0.0, 0.0)
    inputs, outputs = make_tables(50, 4)
    whole = np.array([0, PIECE + 3], np.int64)
    stats, _ = cpu.run("skipgram_shared", inputs, outputs, ids, whole, whole, step, draws)
    assert stats[1] == (4 * PIECE - 6) + (2 + 2 + 2)


# --- the comparator -----------------------------------------------------------------------------


def test_comparator_fails_on_one_wrong_row_among_many():
    expected = np.ones((100_000, 4))
    table = expected.astype(np.float32)
    table[77_777] = 2.0
    assert worst_row(table, expected)[0] == 77_777
    with pytest.raises(AssertionError, match="row 77777 of table differs"):
        assert_rows_equal(table, expected, 1e-3)


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda t: t.__setitem__((3, 1), np.nan), "row 3 of table is not finite"),
        (lambda t: t.__setitem__((4, 0), np.inf), "row 4 of table is not finite"),
        (lambda t: t.__setitem__((0, 5), 1e-9), "padding"),
    ],
)
def test_comparator_fails_on_what_is_not_finite_or_not_padding(spoil, message):
    expected = np.ones((10, 4))
    table = np.zeros((10, 6), np.float32)
    table[:, :4] = 1
    assert_rows_equal(table, expected, 0.0)
    spoil(table)
    with pytest.raises(AssertionError, match=message):
        assert_rows_equal(table, expected, 1e9)


def test_comparator_fails_on_wrong_dtype_and_shape():
    with pytest.raises(AssertionError, match="float64"):
        assert_rows_equal(np.ones((2, 2)), np.ones((2, 2)), 1.0)
    with pytest.raises(AssertionError, match="shapes"):
        assert_rows_equal(np.ones((2, 2), np.float32), np.ones((3, 2)), 1.0)


def test_step_is_what_the_objective_says():
    assert SkipGram(negatives=5).step(0.1, 0.2, 0.3) == Step(5, True, 4, 12, 5 / 12, 0, 0.1, 0.2, 0.3)
