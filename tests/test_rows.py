"""Rows of a mini-batch: the fast kernels against the definition, the definition against torch."""

import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from firth.errors import SettingError
from firth.kernels import pages, rows, rows_cpu, rows_reference
from firth.kernels.compare import assert_rows_equal
from firth.kernels.rows_reference import Source, Update

DIMS = [1, 7, 64, 100, 128, 300]
UPDATES = {
    "sgd": Update("sgd", 0.1),
    "momentum": Update("sgd", 0.1, momentum=0.9),
    "nesterov": Update("sgd", 0.1, momentum=0.9, nesterov=True),
    "adagrad": Update("adagrad", 0.1, eps=1e-10),
    "rowwise": Update("rowwise_adagrad", 0.1, eps=1e-10),
    "adam": Update("adam", 0.1, step=3),
    "sgd decay": Update("sgd", 0.1, weight_decay=0.2),
    "adagrad decay, clip": Update("adagrad", 0.1, weight_decay=0.2, clip=1.5),
    "rowwise decay, clip": Update("rowwise_adagrad", 0.1, weight_decay=0.2, clip=1.5),
    "adam decoupled": Update("adam", 0.1, weight_decay=0.2, decoupled=True, beta1=0.8, beta2=0.99),
    "momentum clip, maximize": Update("sgd", 0.1, momentum=0.5, clip=0.5, maximize=True),
}


@pytest.fixture(autouse=True)
def threads():
    """One thread, which is fastest for tables this small; afterwards as many as there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_ids(n_rows, n_places, seed=1):
    """Ids with many repeats: half of them from the first tenth of the table."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, n_rows, (n_places,), generator=generator)
    ids[::2] //= 10
    return ids


def assert_close(table, expected, tolerance=2e-5):
    """Row by row, against the row's length; number by number in short rows, whose sums may cancel."""
    expected = expected.double().reshape(len(expected), -1)
    table = table.reshape(len(table), -1)
    if table.dtype == torch.float64 or table.shape[1] < 64:
        tolerance = 1e-12 if table.dtype == torch.float64 else tolerance
        assert bool(table.isfinite().all())
        torch.testing.assert_close(table.double(), expected, rtol=tolerance, atol=tolerance)
    else:
        assert_rows_equal(table.numpy(), expected.numpy(), tolerance)


def filled_state(kind, n_rows, dim, momentum, dtype):
    """State as in the middle of a training; squares are positive."""
    shapes = rows_reference.state_shapes(kind, n_rows, dim, momentum)
    return {name: random(*shape, seed=len(name), dtype=dtype).abs() for name, shape in shapes.items()}


def run_update(kernels, table, ids, source, step, by_freq=False, padding_row=None):
    """Table and state after one step, by these kernels; grouped before or in one go."""
    results = []
    for at_once in (False, True):
        moved = table.clone()
        state = filled_state(step.kind, *table.shape, step.momentum, table.dtype)
        if at_once:
            kernels.step(moved, state, ids, source, step, padding_row, by_freq)
        else:
            kernels.update(moved, state, kernels.group(ids, len(table), padding_row), source, step, by_freq)
        results.append((moved, state))
    (moved, state), (moved_at_once, state_at_once) = results
    assert torch.equal(moved, moved_at_once)
    assert all(torch.equal(state[name], state_at_once[name]) for name in state)
    return moved, state


# --- ids ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), max_size=200))
    ),
    st.integers(0, 50),
    st.booleans(),
)
def test_group_equals_the_reference(case, shift, narrow):
    n_rows, ids = case[0] << min(shift, 24 if narrow else 50), torch.tensor(case[1], dtype=torch.int64)
    ids = (ids * n_rows // case[0]).to(torch.int32 if narrow else torch.int64)
    for padding_row in (None, 0, int(ids[-1]) if len(ids) else 0):
        found = rows_cpu.group(ids, n_rows, padding_row)
        for ours, expected in zip(found, rows_reference.group(ids, n_rows, padding_row), strict=True):
            assert ours.dtype == torch.int64
            assert torch.equal(ours, expected)


def test_group_of_a_large_batch_is_ordered():
    ids = random_ids(1_000_000, 20_000)
    for kernels in (rows_cpu, rows_reference):
        groups = kernels.group(ids, 1_000_000)
        assert torch.equal(groups.rows, ids.unique())
        assert torch.equal(ids[groups.order], groups.rows.repeat_interleave(groups.starts.diff()))
        same_row = ids[groups.order].diff() == 0
        assert bool((groups.order.diff()[same_row] > 0).all())


def test_group_where_id_and_place_do_not_fit_one_number():
    ids = torch.tensor([(1 << 62) - 1, 5, (1 << 62) - 1])
    groups = rows_cpu.group(ids, 1 << 62)
    assert groups.rows.tolist() == [5, (1 << 62) - 1]
    assert groups.order.tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_first_outside(dtype):
    for kernels in (rows_cpu, rows_reference):
        assert kernels.first_outside(torch.tensor([], dtype=dtype), 5) == -1
        assert kernels.first_outside(torch.tensor([0, 4, 2], dtype=dtype), 5) == -1
        assert kernels.first_outside(torch.tensor([0, 5, -1], dtype=dtype), 5) == 1
        assert kernels.first_outside(torch.tensor([0, -1, 5], dtype=dtype), 5) == 1
        assert kernels.first_outside(torch.tensor([0], dtype=dtype), 0) == 0
        ids = torch.zeros(5000, dtype=dtype)
        ids[4321] = 7
        assert kernels.first_outside(ids, 7) == 4321


# --- lookups ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, *DIMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gather_equals_indexing(dim, dtype):
    table = random(300, dim, dtype=dtype)
    for n_places in (0, 1, 2000):
        ids = random_ids(300, n_places)
        for kernels in (rows_cpu, rows_reference):
            assert torch.equal(kernels.gather(table, ids), table[ids])
            assert torch.equal(kernels.gather(table, ids.int()), table[ids])
            out = torch.full((n_places + 2, dim), 7.0, dtype=dtype)
            kernels.gather(table, ids, out[1:-1])
            assert torch.equal(out[1:-1], table[ids])
            assert bool((out[[0, -1]] == 7).all())  # nothing beyond is touched


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_results_equal_indexing(dtype):
    """Beyond STREAM_BYTES rows go past the caches, where their size and place allow it."""
    before = torch.get_num_threads()
    try:
        for dim in (16, 64, 100, 128):
            table = random(3000, dim, dtype=dtype)
            n_places = rows_cpu.STREAM_BYTES // (dim * table.element_size()) + 7
            ids = random_ids(3000, n_places)
            expected = table[ids]
            for n_threads in (1, 2, 4):
                torch.set_num_threads(n_threads)
                for _ in range(5):
                    assert torch.equal(rows_cpu.gather(table, ids), expected)
                memory = torch.full((n_places * dim + 2,), 7.0, dtype=dtype)
                rows_cpu.gather(table, ids, memory[1:-1].view(n_places, dim))  # on no boundary
                assert torch.equal(memory[1:-1].view(n_places, dim), expected)
                assert bool((memory[[0, -1]] == 7).all())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [-1, 300, -(2**62), 2**62])
@pytest.mark.parametrize("dim", [0, 5, 64])
def test_gather_refuses_ids_outside(wrong, dim):
    table = random(300, dim)
    for n_places in (1, 5000):
        for place in {0, n_places // 2, n_places - 1}:
            ids = random_ids(300, n_places)
            ids[place] = wrong
            for kernels in (rows_cpu, rows_reference):
                with pytest.raises(IndexError, match="300 rows"):
                    kernels.gather(table, ids)
    for kernels in (rows_cpu, rows_reference):
        with pytest.raises(IndexError):
            kernels.gather(table[:0], torch.zeros(3, dtype=torch.int64))
        assert kernels.gather(table[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, dim)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 0.0, 3.0, 0.5, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("dim", [1, 7, 64, 100])
def test_renorm(norm_type, dim):
    """Like torch's own, each row once, and no other row."""
    for dtype in (torch.float32, torch.float64):
        before = random(500, dim, dtype=dtype) * random(500, 1, seed=3, dtype=dtype)
        ids = random_ids(400, 1500)
        max_norm = float(torch.linalg.vector_norm(before, norm_type, dim=1).median()) * 0.7
        expected = torch.embedding_renorm_(before.clone(), ids, max_norm, norm_type)
        for kernels in (rows_cpu, rows_reference):
            table = before.clone()
            kernels.renorm(table, ids, max_norm, norm_type)
            assert_close(table, expected, 1e-6)
            assert torch.equal(table[400:], before[400:])
            assert not torch.equal(table, before)
            once = table.clone()
            kernels.renorm(table, ids.int(), 2 * max_norm + 1, norm_type)
            assert torch.equal(table, once)  # nothing is too long: not a bit moves


def test_renorm_of_rows_that_are_not_finite():
    for kernels in (rows_cpu, rows_reference):
        table = torch.tensor([[math.nan, 1.0], [3.0, 4.0], [0.0, 0.0]])
        kernels.renorm(table, torch.tensor([0, 1, 1, 2]), 1.0, 2.0)
        assert torch.isnan(table[0, 0])
        assert table[0, 1] == 1.0
        torch.testing.assert_close(table[1:], torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
        kernels.renorm(table, torch.tensor([], dtype=torch.int64), 1.0, 2.0)


# --- gradients ----------------------------------------------------------------------------------


def sources(dim, dtype, n_places):
    """Rows of their own, shared rows, factors, and both."""
    own, few = random(n_places, dim, dtype=dtype), random(max(n_places // 8, 1), dim, seed=5, dtype=dtype)
    row_of = torch.arange(n_places) // 8 % len(few)
    factor = random(n_places, seed=6, dtype=dtype)
    return [Source(own), Source(few, row_of), Source(own, None, factor), Source(few, row_of, factor)]


def in_double(source):
    grads, row_of, factor = source
    return Source(grads.double(), row_of, None if factor is None else factor.double())


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_summed(dim, dtype):
    for n_places, padding_row in ((900, None), (900, 3), (1, None), (0, None)):
        ids = random_ids(200, n_places)
        groups = rows_reference.group(ids, 200, padding_row)
        for source in sources(dim, dtype, n_places):
            for by_freq in (False, True):
                expected = rows_reference.summed(groups, in_double(source), by_freq)
                for kernels in (rows_cpu, rows_reference):
                    found = kernels.summed(groups, source, by_freq)
                    assert found.dtype == dtype
                    assert found.shape == (len(groups.rows), dim)
                    if len(found):
                        # Sums that cancel are small beside what was added.
                        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def test_summed_is_the_gradient_of_a_lookup():
    table = random(50, 12, dtype=torch.float64).requires_grad_()
    ids, grads = random_ids(50, 300), random(300, 12, seed=2, dtype=torch.float64)
    for by_freq in (False, True):
        (expected,) = torch.autograd.grad(
            F.embedding(ids, table, padding_idx=4, scale_grad_by_freq=by_freq), table, grads
        )
        groups = rows_reference.group(ids, 50, 4)
        found = torch.zeros_like(expected)
        found[groups.rows] = rows_reference.summed(groups, Source(grads), by_freq)
        torch.testing.assert_close(found, expected)


def test_summed_is_the_gradient_of_bags():
    """``row_of`` and ``factor``: the gradient of weighted sums, and of means."""
    table = random(50, 12, dtype=torch.float64).requires_grad_()
    ids, grads = random_ids(50, 300), random(60, 12, seed=2, dtype=torch.float64)
    weights = random(300, seed=3, dtype=torch.float64)
    groups, row_of = rows_reference.group(ids, 50), torch.arange(300) // 5
    for mode, factor in (("sum", weights), ("mean", torch.full((300,), 0.2, dtype=torch.float64))):
        bags = F.embedding_bag(
            ids, table, torch.arange(0, 300, 5), mode=mode,
            per_sample_weights=weights if mode == "sum" else None,
        )  # fmt: skip
        (expected,) = torch.autograd.grad(bags, table, grads)
        found = torch.zeros_like(expected)
        found[groups.rows] = rows_reference.summed(groups, Source(grads, row_of, factor), False)
        torch.testing.assert_close(found, expected)


def test_half_types_are_summed_in_float32():
    """4,096 ones: bfloat16 would stand still at 256."""
    ids = torch.zeros(4096, dtype=torch.int64)
    for dtype in (torch.float16, torch.bfloat16):
        table = torch.zeros(3, 5, dtype=dtype)
        kernels = rows.pick(table)
        groups, source = kernels.group(ids, 3), Source(torch.ones(4096, 5, dtype=dtype))
        for module in (kernels, rows_cpu):
            total = module.summed(groups, source, False)
            assert total.dtype == torch.float32
            assert total.tolist() == [[4096.0] * 5]
        kernels.update(table, {}, groups, source, Update("sgd", 0.5), False)
        assert table[0].tolist() == [-2048.0] * 5


# --- updates: the fast kernels ------------------------------------------------------------------


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("dim", DIMS)
def test_update_equals_the_reference(name, dim):
    step, n_rows = UPDATES[name], 200
    for dtype in (torch.float32, torch.float64):
        table = random(n_rows, dim, seed=9, dtype=dtype)
        for n_places, padding_row, by_freq in ((700, None, False), (700, 2, True), (1, None, False)):
            ids = random_ids(n_rows, n_places)
            for source in sources(dim, dtype, n_places)[:: 1 if dtype == torch.float32 else 3]:
                case = ids, source, step, by_freq, padding_row
                moved, state = run_update(rows_cpu, table, *case)
                # The reference computes in float64, from the same numbers.
                expected, expected_state = table.double().clone(), {}
                for key, values in filled_state(step.kind, n_rows, dim, step.momentum, dtype).items():
                    expected_state[key] = values.double()
                groups = rows_reference.group(ids, n_rows, padding_row)
                rows_reference.update(expected, expected_state, groups, in_double(source), step, by_freq)
                assert_close(moved, expected)
                for key, values in state.items():
                    assert_close(values, expected_state[key])
                unused = torch.ones(n_rows, dtype=torch.bool)
                unused[groups.rows] = False
                assert torch.equal(moved[unused], table[unused])  # not a bit
                assert not torch.equal(moved[groups.rows], table[groups.rows])


@pytest.mark.parametrize("name", ["sgd", "momentum", "rowwise", "adam decoupled"])
def test_any_number_of_threads_gives_the_same_bits(name):
    dim, n_places = 100, 9000
    table, ids = random(4000, dim), random_ids(4000, n_places)
    ids[:3000] = 17  # one row takes a third of the work
    found = []
    for n_threads in (1, 2, 4, 7):
        torch.set_num_threads(n_threads)
        source = Source(random(n_places, dim, seed=2), None, random(n_places, seed=3))
        moved, state = run_update(rows_cpu, table, ids, source, UPDATES[name])
        groups = rows_cpu.group(ids, 4000)
        shortened = table.clone()
        rows_cpu.renorm(shortened, ids, 5.0, 2.0)
        looked_up = rows_cpu.gather(table, ids)
        total = rows_cpu.summed(groups, source, True)
        found.append([moved, *state.values(), shortened, looked_up, total])
    for other in found[1:]:
        for ours, first in zip(other, found[0], strict=True):
            assert torch.equal(ours, first)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_a_step_refuses_what_an_update_refuses(bad):
    torch.set_num_threads(2)
    table, ids = random(4000, 100), random_ids(4000, 9000)
    grads = random(9000, 100, seed=2)
    grads[8999, 99] = bad  # 3e38 is finite, though the sum of all absolute values may be not
    for kernels in (rows_cpu, rows_reference):
        moved = table.clone()
        arguments = {}, ids, Source(grads), Update("sgd", 0.1)
        if math.isfinite(bad):
            kernels.step(moved, *arguments, None, False)
            assert not torch.equal(moved, table)
            continue
        with pytest.raises(FloatingPointError, match=f"row {int(ids[8999])} is not finite"):
            kernels.step(moved, *arguments, None, False)
        assert torch.equal(moved, table)
        kernels.step(moved, *arguments, int(ids[8999]), False)  # padding gets no gradient
        assert not torch.equal(moved, table)


def test_a_step_on_no_places_on_padding_and_on_too_few_gradients():
    table, grads = random(30, 8), random(5, 8, seed=2)
    for kernels in (rows_cpu, rows_reference):
        moved = table.clone()
        kernels.step(
            moved, {}, torch.tensor([], dtype=torch.int64), Source(grads), Update("sgd", 1.0), None, False
        )
        assert torch.equal(moved, table)
        kernels.step(moved, {}, torch.tensor([7, 7]), Source(grads[:2]), Update("sgd", 1.0), 7, False)
        assert torch.equal(moved, table)
    with pytest.raises(ValueError, match="gradients are of 5 places"):
        rows_cpu.step(moved, {}, torch.arange(6), Source(grads), Update("sgd", 1.0), None, False)


def test_state_of_another_dtype_and_gradients_of_any_layout():
    table, ids = random(20, 6), random_ids(20, 30)
    expanded, turned = torch.ones(6).expand(30, 6), random(6, 30).t()
    step = Update("adagrad", 0.1)
    for grads in (expanded, turned, turned.double(), turned.to(torch.bfloat16)):
        for state_dtype in (torch.float32, torch.float64):
            results = []
            for kernels in (rows_cpu, rows_reference):
                moved, sums = table.clone(), torch.zeros(20, 6, dtype=state_dtype)
                kernels.update(moved, {"sum": sums}, kernels.group(ids, 20), Source(grads), step, False)
                results.append((moved, sums))
            assert_close(results[0][0], results[1][0])
            assert torch.allclose(results[0][1], results[1][1])


def test_a_parameter_is_moved_in_place():
    for kernels in (rows_cpu, rows_reference):
        weight = torch.nn.Parameter(torch.ones(3, 4))
        groups = kernels.group(torch.tensor([1, 1]), 3)
        kernels.update(weight, {}, groups, Source(torch.ones(2, 4)), Update("sgd", 0.5), False)
        kernels.renorm(weight, torch.tensor([0]), 1.0, 2.0)
        assert weight.requires_grad
        assert weight.tolist()[1:] == [[0.0] * 4, [1.0] * 4]
        torch.testing.assert_close(weight[0], torch.full((4,), 0.5))
        assert not kernels.gather(weight, torch.tensor([0])).requires_grad


def test_nothing_to_do():
    none = torch.tensor([], dtype=torch.int64)
    for kernels in (rows_cpu, rows_reference):
        for ids, padding_row in ((none, None), (torch.tensor([2, 2]), 2)):
            for step in UPDATES.values():
                table = random(5, 7)
                state = filled_state(step.kind, 5, 7, step.momentum, torch.float32)
                before = {name: values.clone() for name, values in state.items()}
                groups = kernels.group(ids, 5, padding_row)
                kernels.update(table, state, groups, Source(random(len(ids), 7)), step, False)
                assert torch.equal(table, random(5, 7))
                assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize("kernels", [rows_cpu, rows_reference])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused(kernels, wrong):
    n_rows, dim, ids = 900, 70, random_ids(900, 1000)
    grads = random(1000, dim)
    grads[[7, 950], [69, 3]] = wrong
    row = int(ids[[7, 950]].min())
    groups = kernels.group(ids, n_rows)
    assert kernels.first_not_finite(groups, Source(grads)) == row
    for step in UPDATES.values():
        table, state = random(n_rows, dim), filled_state(step.kind, n_rows, dim, step.momentum, torch.float32)
        before = {name: values.clone() for name, values in state.items()}
        with pytest.raises(FloatingPointError, match=rf"row {row} is not finite"):
            kernels.update(table, state, groups, Source(grads), step, True)
        assert torch.equal(table, random(n_rows, dim))
        assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize("kernels", [rows_cpu, rows_reference])
def test_only_gradients_that_are_used_must_be_finite(kernels):
    ids = torch.tensor([0, 3, 1])
    grads = torch.ones(3, 20)
    grads[1] = math.nan
    padded, whole = kernels.group(ids, 5, padding_row=3), kernels.group(ids, 5)
    assert kernels.first_not_finite(padded, Source(grads)) == -1
    assert kernels.first_not_finite(whole, Source(grads)) == 3
    assert kernels.first_not_finite(whole, Source(grads, torch.tensor([0, 2, 2]))) == -1
    assert kernels.first_not_finite(whole, Source(grads, torch.tensor([0, 0, 1]))) == 1
    factor = torch.tensor([1.0, 1.0, math.inf])
    assert kernels.first_not_finite(padded, Source(grads, None, factor)) == 1
    assert kernels.first_not_finite(padded, Source(torch.zeros(3, 20), None, factor)) == 1  # inf * 0


@pytest.mark.parametrize("kernels", [rows_cpu, rows_reference])
def test_sums_that_overflow_are_refused_and_large_ones_that_do_not_are_taken(kernels):
    grads, largest = torch.full((2, 3), 3e38), torch.finfo(torch.float32).max
    groups = kernels.group(torch.tensor([4, 4]), 5)
    assert kernels.first_not_finite(groups, Source(grads)) == 4
    grads[1] = -3e38
    assert kernels.first_not_finite(groups, Source(grads)) == -1
    assert kernels.first_not_finite(groups, Source(torch.full((2, 3), largest / 4))) == -1
    factor = torch.full((2,), 1e30)
    assert kernels.first_not_finite(groups, Source(torch.full((2, 3), 1e30), None, factor)) == 4


def test_an_unknown_kind_is_refused():
    groups = rows_reference.group(torch.tensor([1]), 3)
    for kernels in (rows_cpu, rows_reference):
        with pytest.raises(SettingError, match=r"one of sgd, adagrad, .* not 'adamw'"):
            kernels.update(random(3, 2), {}, groups, Source(random(1, 2)), Update("adamw", 0.1), False)


# --- updates: the definition against torch's optimisers -----------------------------------------


def train_both(make_optimizer, step, *, sparse, n_rows=30, n_places=80, n_steps=4, every_row=False):
    """The table after some steps by torch's optimiser and by ours, float64."""
    table = random(n_rows, 6, dtype=torch.float64)
    weight = torch.nn.Parameter(table.clone())
    optimizer = make_optimizer([weight])
    state = {
        name: torch.zeros(shape, dtype=torch.float64)
        for name, shape in rows_reference.state_shapes(step.kind, n_rows, 6, step.momentum).items()
    }
    for number in range(1, n_steps + 1):
        ids = random_ids(n_rows, n_places, seed=number)
        if every_row:
            ids = torch.cat([ids, torch.arange(n_rows)])
        grads = random(len(ids), 6, seed=number, dtype=torch.float64)
        optimizer.zero_grad()
        F.embedding(ids, weight, sparse=sparse).backward(grads)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # torch warns if not asked
            optimizer.step()
        groups = rows_reference.group(ids, n_rows)
        rows_reference.update(table, state, groups, Source(grads), step._replace(step=number), False)
    return table, weight.detach()


@pytest.mark.parametrize("maximize", [False, True])
def test_steps_are_those_of_torch_on_sparse_gradients(maximize):
    """Rows that a step leaves out are left alone in both."""
    cases = [
        (lambda p: torch.optim.SGD(p, 0.1, maximize=maximize), Update("sgd", 0.1)),
        (lambda p: torch.optim.Adagrad(p, 0.1, maximize=maximize), Update("adagrad", 0.1, eps=1e-10)),
        (
            lambda p: torch.optim.SparseAdam(p, 0.1, betas=(0.8, 0.95), eps=1e-3, maximize=maximize),
            Update("adam", 0.1, beta1=0.8, beta2=0.95, eps=1e-3),
        ),
    ]
    for make_optimizer, step in cases:
        ours, theirs = train_both(make_optimizer, step._replace(maximize=maximize), sparse=True, n_places=20)
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_steps_are_those_of_torch_where_every_row_is_used():
    """Weight decay and momentum, which torch has for dense gradients."""
    adam = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-30}
    cases = [
        (
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
            Update("sgd", 0.1, momentum=0.9, weight_decay=0.1),
        ),
        (
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
            Update("sgd", 0.1, momentum=0.9, nesterov=True),
        ),
        (
            lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1),
            Update("adagrad", 0.1, weight_decay=0.1, eps=1e-10),
        ),
        (lambda p: torch.optim.Adam(p, **adam), Update("adam", **adam)),
        (lambda p: torch.optim.AdamW(p, **adam), Update("adam", **adam, decoupled=True)),
    ]
    for make_optimizer, step in cases:
        ours, theirs = train_both(make_optimizer, step, sparse=False, every_row=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_rowwise_adagrad_by_hand():
    table, state = torch.zeros(2, 2, dtype=torch.float64), {"sum": torch.zeros(2, dtype=torch.float64)}
    groups = rows_reference.group(torch.tensor([1, 1]), 2)
    source = Source(torch.tensor([[1.0, 4.0], [2.0, 0.0]], dtype=torch.float64))  # sum: (3, 4)
    rows_reference.update(table, state, groups, source, Update("rowwise_adagrad", 0.5, eps=0.0), False)
    assert state["sum"].tolist() == [0.0, 12.5]
    torch.testing.assert_close(table[1], -0.5 * torch.tensor([3.0, 4.0], dtype=torch.float64) / 12.5**0.5)


def test_clipping_is_torchs_row_by_row():
    grads, ids = random(4, 6, dtype=torch.float64) * torch.tensor([[0.01], [1], [10], [1]]), torch.arange(4)
    expected = []
    for row in grads:
        parameter = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_(parameter, 1.5)
        expected.append(-parameter.grad)
    table = torch.zeros(4, 6, dtype=torch.float64)
    groups = rows_reference.group(ids, 4)
    rows_reference.update(table, {}, groups, Source(grads), Update("sgd", 1.0, clip=1.5), False)
    torch.testing.assert_close(table, torch.stack(expected), rtol=1e-5, atol=1e-5)  # torch adds 1e-6


# --- tables, threads, processes -----------------------------------------------------------------


def test_pick():
    assert rows.pick(torch.zeros(2, 2)) is rows_cpu
    assert rows.pick(torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))) is rows_cpu
    assert rows.pick(torch.zeros(2, 2, dtype=torch.bfloat16)) is rows_reference
    assert rows.pick(torch.zeros(3, 2).t()) is rows_reference


def test_memory_for_large_tables():
    shape = (pages.HUGE // 64 // 4 + 1, 64)
    for table in (pages.zeros(shape, torch.float32), pages.zeros((3, 5), torch.float64, torch.ones(1))):
        assert not table.any()
    table = pages.empty(shape, torch.float32)
    assert table.shape == shape
    assert table.is_contiguous()


def test_offsets_beyond_32_bits(tmp_path):
    """A table of more than 2**31 numbers, on a file with holes."""
    n_rows, dim = (1 << 31) // 64 + 100, 64
    table = torch.from_file(str(tmp_path / "table"), shared=True, size=n_rows * dim).view(n_rows, dim)
    ids = torch.tensor([n_rows - 1, 3, n_rows - 1, n_rows - 7], dtype=torch.int32)
    table[[n_rows - 1, 3]] = random(2, dim)
    before = rows_cpu.gather(table, ids)
    assert torch.equal(before, random(2, dim)[[0, 1, 0]].new_zeros(4, dim) + table[ids.long()])
    grads = random(4, dim, seed=4)
    rows_cpu.update(table, {}, rows_cpu.group(ids, n_rows), Source(grads), Update("sgd", 1.0), False)
    torch.testing.assert_close(table[n_rows - 1], before[0] - grads[0] - grads[2])
    torch.testing.assert_close(table[[3, n_rows - 7]], before[[1, 3]] - grads[[1, 3]])


def test_two_threads_may_train_two_tables_at_once():
    torch.set_num_threads(4)
    table, ids, grads = random(3000, 64), random_ids(3000, 8000), random(8000, 64, seed=2)
    expected, _ = run_update(rows_cpu, table, ids, Source(grads), UPDATES["adam"])
    found = []

    def work():
        for _ in range(10):
            found.append(run_update(rows_cpu, table, ids, Source(grads), UPDATES["adam"])[0])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert all(torch.equal(one, expected) for one in found)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own():
    script = """
import os, sys, torch
from firth.kernels import rows_cpu
torch.set_num_threads(4)
table, ids = torch.ones(3000, 64), torch.arange(3000)
assert rows_cpu.gather(table, ids).numpy().all()
child = os.fork()
if child == 0:  # torch's own threads do not survive a fork, numpy asks the question
    os._exit(0 if rows_cpu.gather(table, ids).numpy().all() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_the_judge_refuses_nan():
    table = random(5, 3).numpy()
    table[2, 1] = np.nan
    with pytest.raises(AssertionError, match="row 2 of table is not finite"):
        assert_rows_equal(table, random(5, 3).numpy(), 1.0)


def test_gradients_of_fewer_places_than_were_grouped_are_refused() -> None:
    groups = rows_cpu.group(torch.tensor([3, 1, 3]), 5)
    table = torch.zeros(5, 4)
    sources = (
        rows_reference.Source(torch.ones(2, 4)),
        rows_reference.Source(torch.ones(3, 4), factor=torch.ones(2)),
        rows_reference.Source(torch.ones(9, 4), torch.tensor([0, 1])),
    )
    for source in sources:
        with pytest.raises(ValueError, match="of 2 places, but place 2 was grouped"):
            rows_cpu.update(table, {}, groups, source, rows_reference.Update("sgd", 0.1), False)
        with pytest.raises(ValueError, match="of 2 places"):
            rows_cpu.summed(groups, source, False)
    assert not table.any()


def test_a_gradient_that_overflows_by_being_summed_often_is_refused() -> None:
    # One bag of the same row four times: each gradient is finite, their sum is not.
    groups = rows_cpu.group(torch.tensor([2, 2, 2, 2]), 5)
    grads = torch.zeros(1, 4)
    grads[0, 1] = 1.5e38
    source = rows_reference.Source(grads, torch.zeros(4, dtype=torch.int64))
    assert rows_cpu.first_not_finite(groups, source) == 2
    assert rows_reference.first_not_finite(groups, source) == 2
