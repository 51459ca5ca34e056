"""Kernels over bags: the definition against loops, the fast twin against the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from firth.kernels import bags, bags_cpu, bags_reference, rows_reference

N_ROWS = 23
MODES = ("sum", "mean", "max")


def make_bags(
    seed: int, width: int, dtype: torch.dtype = torch.float32, ids_dtype: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A table, ids with some left over at the end, starts of bags (some empty) and factors."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 7, (19,), generator=draw)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(0, N_ROWS, (int(starts[-1]) + 4,), generator=draw).to(ids_dtype)
    # Small whole numbers, so that maxima have ties and sums are exact.
    table = torch.randint(-4, 5, (N_ROWS, width), generator=draw).to(dtype)
    return table, ids, starts, torch.randint(-3, 4, (len(ids),), generator=draw).to(dtype)


def by_loops(
    table: Tensor, ids: Tensor, starts: Tensor, mode: str, factor: Tensor | None, padding_row: int | None
) -> Tensor:
    out = torch.zeros(len(starts) - 1, table.shape[1], dtype=torch.float64)
    for b in range(len(out)):
        places = [p for p in range(int(starts[b]), int(starts[b + 1])) if int(ids[p]) != padding_row]
        found = [table[int(ids[p])].double() * (1.0 if factor is None else float(factor[p])) for p in places]
        if found:
            stacked = torch.stack(found)
            out[b] = {"sum": stacked.sum(0), "mean": stacked.mean(0), "max": stacked.max(0).values}[mode]
    return out


@pytest.mark.parametrize("padding_row", [None, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernels", [bags_reference, bags_cpu])
def test_forward_is_what_loops_say(kernels, mode, padding_row):
    table, ids, starts, factor = make_bags(0, 5)
    for one in (None, factor) if mode != "max" else (None,):
        found, _ = kernels.forward(table, ids, starts, mode, one, padding_row)
        expected = by_loops(table, ids, starts, mode, one, padding_row)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernels", [bags_reference, bags_cpu])
def test_of_equals_the_first_wins_and_nan_only_as_the_first(kernels):
    nan = float("nan")
    table = torch.tensor([[1.0], [1.0], [nan], [-float("inf")]])
    ids = torch.tensor([0, 1, 1, 0, 2, 0, 0, 2, 3])
    starts = torch.tensor([0, 2, 4, 6, 8, 8, 9])
    out, winner = kernels.forward(table, ids, starts, "max")
    assert winner[:, 0].tolist() == [0, 2, 4, 6, -1, 8]
    torch.testing.assert_close(
        out[:, 0], torch.tensor([1.0, 1.0, nan, 1.0, 0.0, -float("inf")]), equal_nan=True
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([0, 1, 7, 16, 33, 64, 100, 130]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    ids_dtype=st.sampled_from([torch.int32, torch.int64]),
    padding_row=st.sampled_from([None, 0, 5]),
    mode=st.sampled_from(MODES),
    weighted=st.booleans(),
)
def test_the_fast_twin_does_what_the_definition_says(
    seed, width, dtype, ids_dtype, padding_row, mode, weighted
):
    table, ids, starts, factor = make_bags(seed, width, dtype, ids_dtype)
    one = factor if weighted and mode != "max" else None
    arguments = table, ids, starts, mode, one, padding_row
    out, winner = bags_cpu.forward(*arguments)
    expected, expected_winner = bags_reference.forward(*arguments)
    torch.testing.assert_close(out, expected)
    if winner is not None:
        assert torch.equal(winner.long(), expected_winner)
        assert torch.equal(bags_cpu.picked(table, ids, winner), out)
        assert bags_cpu.forward(*arguments, winners=False)[1] is None
    grads = torch.randn(out.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    fast = bags_cpu.source(grads, ids, starts, mode, one, padding_row, winner)
    slow = bags_reference.source(grads, ids, starts, mode, one, padding_row, expected_winner)
    torch.testing.assert_close(bags_cpu.expanded(fast), bags_reference.expanded(slow))
    if winner is not None:
        torch.testing.assert_close(
            bags_cpu.scattered(grads, ids, winner, N_ROWS),
            bags_reference.scattered(grads, ids, expected_winner, N_ROWS),
        )
    torch.testing.assert_close(
        bags_cpu.dots(grads, table, ids, starts, padding_row),
        bags_reference.dots(grads, table, ids, starts, padding_row),
    )
    assert torch.equal(
        bags_cpu.counts(ids, starts, padding_row), bags_reference.counts(ids, starts, padding_row)
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_source_is_the_derivative(mode):
    """Gradients through rows.summed are those of autograd through plain indexing."""
    table, ids, starts, factor = make_bags(3, 6, torch.float64)
    table = torch.randn(table.shape, dtype=torch.float64, requires_grad=True)
    one = None if mode == "max" else factor
    kept = ids[: int(starts[-1])]
    out, winner = bags_reference.forward(table.detach(), ids, starts, mode, one, 3)
    grads = torch.randn_like(out)
    source = bags_reference.source(grads, ids, starts, mode, one, 3, winner)
    groups = rows_reference.group(kept, N_ROWS, 3)
    found = torch.zeros_like(table).index_copy(0, groups.rows, rows_reference.summed(groups, source, False))
    total = table.new_zeros(())
    for b in range(len(out)):
        places = [p for p in range(int(starts[b]), int(starts[b + 1])) if int(ids[p]) != 3]
        if places:
            rows = table[ids[places]] * (1.0 if one is None else one[places, None])
            reduced = {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.max(0).values}[mode]
            total = total + (reduced * grads[b]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, table)[0])


@pytest.mark.parametrize("mode", MODES)
def test_results_do_not_depend_on_the_number_of_threads(mode):
    draw = torch.Generator().manual_seed(1)
    table = torch.randn(500, 96, generator=draw)
    ids = torch.randint(0, 500, (6000,), generator=draw)
    starts = torch.arange(0, 6001, 6)
    grads = torch.randn(1000, 96, generator=draw)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            out, winner = bags_cpu.forward(table, ids, starts, mode)
            source = bags_cpu.source(grads, ids, starts, mode, None, None, winner)
            results = [out, bags_cpu.expanded(source), bags_cpu.dots(grads, table, ids, starts)]
            if winner is not None:
                results += [winner, bags_cpu.scattered(grads, ids, winner, 500)]
            found.append(results)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype):
    table = torch.ones(1, 2, dtype=dtype)
    ids, starts = torch.zeros(4096, dtype=torch.int64), torch.tensor([0, 4096])
    for mode, expected in (("sum", 4096.0), ("mean", 1.0), ("max", 1.0)):
        out, _ = bags_reference.forward(table, ids, starts, mode)
        assert out.dtype == dtype and out.tolist() == [[expected, expected]]
    source = bags_reference.source(torch.ones(1, 2, dtype=dtype), ids, starts, "sum")
    groups = rows_reference.group(ids, 1)
    assert rows_reference.summed(groups, source, False).tolist() == [[4096.0, 4096.0]]


@pytest.mark.parametrize("kernels", [bags_reference, bags_cpu])
@pytest.mark.parametrize(
    ("starts", "wrong"),
    [([0, 2, 2, 5], -1), ([1, 2], 0), ([-1, 2], 0), ([0, 3, 2], 2), ([0, 2, 6], 2), ([], -1), ([0], -1)],
)
def test_the_first_bad_start(kernels, starts, wrong):
    assert kernels.first_bad_start(torch.tensor(starts, dtype=torch.int64), 5) == wrong


def test_no_bags_and_no_places():
    table = torch.randn(4, 3)
    for kernels in (bags_reference, bags_cpu):
        for mode in MODES:
            nothing = torch.zeros(0, dtype=torch.int64)
            out, _ = kernels.forward(table, nothing, torch.zeros(1, dtype=torch.int64), mode)
            assert out.shape == (0, 3)
            out, _ = kernels.forward(table, nothing, torch.zeros(3, dtype=torch.int64), mode)
            assert out.tolist() == [[0.0] * 3] * 2


def test_which_kernels_are_picked():
    assert bags.pick(torch.zeros(2, 3)) is bags_cpu
    assert bags.pick(torch.zeros(2, 3, dtype=torch.float64)) is bags_cpu
    assert bags.pick(torch.zeros(3, 2).T) is bags_reference
    assert bags.pick(torch.zeros(2, 3, dtype=torch.bfloat16)) is bags_reference


def test_threads_of_python_may_meet_in_the_kernels():
    table, ids, starts, _ = make_bags(5, 64)
    expected, _ = bags_cpu.forward(table, ids, starts, "sum")
    found = []

    def work() -> None:
        found.extend(bags_cpu.forward(table, ids, starts, "sum")[0] for _ in range(20))

    import threading

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60 and all(np.array_equal(one, expected) for one in found)


@pytest.mark.parametrize("mode", MODES)
def test_ids_starts_and_factors_may_have_gaps_between_them(mode):
    """Kernels go by addresses: what is not contiguous must be copied, not misread."""
    table, generator = torch.randn(20, 6), torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (24,), generator=generator)[::2]
    starts = torch.tensor([0, 9, 3, 9, 7, 9, 12, 9])[::2]
    factor = torch.randn(24)[::2] if mode == "sum" else None
    found = bags_cpu.forward(table, ids, starts, mode, factor)
    wanted = bags_reference.forward(table, ids, starts, mode, factor)
    torch.testing.assert_close(found[0], wanted[0])
    grads = torch.randn(3, 6)
    if mode == "max":
        winner = found[1].repeat_interleave(2, 1)[:, ::2]
        assert torch.equal(bags_cpu.won(grads, winner, starts), bags_reference.won(grads, winner, starts))
        assert torch.equal(bags_cpu.picked(table, ids, winner), bags_reference.picked(table, ids, winner))
        torch.testing.assert_close(
            bags_cpu.scattered(grads, ids, winner, 20), bags_reference.scattered(grads, ids, winner, 20)
        )
    else:
        torch.testing.assert_close(
            bags_cpu.dots(grads, table, ids, starts), bags_reference.dots(grads, table, ids, starts)
        )
