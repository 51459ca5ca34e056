"""Row optimisers over sparse gradients: equal to torch's own where the mathematics is, lazy, restartable."""

import copy
import io
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from firth.errors import Diverged, FirthError
from firth.nn.optim import NonFiniteGradient, RowAdagrad, RowAdam, RowOptimizer, RowSGD

# torch says this once a process where it makes sparse tensors itself, as in Adagrad.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")

N, D = 11, 5
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
ALL: dict[str, Make] = {
    "sgd": lambda p: RowSGD(p, lr=0.1),
    "momentum": lambda p: RowSGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adagrad": lambda p: RowAdagrad(p, lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1),
    "rowwise": lambda p: RowAdagrad(p, lr=0.1, rowwise=True),
    "adam": lambda p: RowAdam(p, lr=0.01, weight_decay=0.02, decoupled_weight_decay=True),
}


def table(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(N, D, generator=torch.Generator().manual_seed(seed)).to(dtype))


def sparse_gradient(ids: list[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """An entry for every id, repeats and all."""
    values = torch.randn(len(ids), D, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return torch.sparse_coo_tensor(
        torch.tensor([ids], dtype=torch.int64), values, (N, D), check_invariants=True
    )


def batches(count: int, all_rows: bool = False, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, N, (17,), generator=generator).tolist() for _ in range(count)]
    return [ids + list(range(N)) if all_rows else ids for ids in drawn]


def train(
    param: nn.Parameter, optimizer: torch.optim.Optimizer, ids: list[list[int]], seed: int = 0
) -> Tensor:
    for number, batch in enumerate(ids):
        param.grad = sparse_gradient(batch, seed + number, param.dtype)
        optimizer.step()
    return param.detach()


def both(
    ours: Make, theirs: Make, ids: list[list[int]], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    a, b = table(dtype), table(dtype)
    return train(a, ours([a]), ids), train(b, theirs([b]), ids)


SAME: dict[str, tuple[Make, Make]] = {
    "sgd": (lambda p: RowSGD(p, lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    "sgd up": (
        lambda p: RowSGD(p, lr=0.3, maximize=True),
        lambda p: torch.optim.SGD(p, lr=0.3, maximize=True),
    ),
    "adagrad": (lambda p: RowAdagrad(p, lr=0.3), lambda p: torch.optim.Adagrad(p, lr=0.3)),
    "adagrad settings": (
        lambda p: RowAdagrad(p, 0.3, lr_decay=0.1, initial_accumulator_value=0.5, eps=1e-3, maximize=True),
        lambda p: torch.optim.Adagrad(
            p, 0.3, lr_decay=0.1, initial_accumulator_value=0.5, eps=1e-3, maximize=True
        ),
    ),
    "adam": (lambda p: RowAdam(p, lr=0.3), lambda p: torch.optim.SparseAdam(p, lr=0.3)),
    "adam settings": (
        lambda p: RowAdam(p, 0.1, betas=(0.7, 0.95), eps=1e-3, maximize=True),
        lambda p: torch.optim.SparseAdam(p, 0.1, betas=(0.7, 0.95), eps=1e-3, maximize=True),
    ),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_torch_over_sparse_gradients_with_repeats(name: str, dtype: torch.dtype) -> None:
    mine, other = both(*SAME[name], batches(8), dtype)
    rtol, atol = (1e-12, 1e-13) if dtype == torch.float64 else (1e-4, 1e-5)
    torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)
    assert not torch.equal(mine, table(dtype).detach())


DENSE: dict[str, tuple[Make, Make]] = {
    "momentum": (lambda p: RowSGD(p, 0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "nesterov": (
        lambda p: RowSGD(p, 0.1, 0.9, weight_decay=0.05, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, 0, 0.05, nesterov=True),
    ),
    "adagrad decay": (
        lambda p: RowAdagrad(p, 0.1, weight_decay=0.05),
        lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.05),
    ),
    # Adam adds eps after the second bias correction, SparseAdam before; a tiny eps makes no difference.
    "adam decay": (
        lambda p: RowAdam(p, 0.1, eps=1e-16, weight_decay=0.05),
        lambda p: torch.optim.Adam(p, 0.1, eps=1e-16, weight_decay=0.05),
    ),
    "adamw": (
        lambda p: RowAdam(p, 0.1, eps=1e-16, weight_decay=0.05, decoupled_weight_decay=True),
        lambda p: torch.optim.AdamW(p, 0.1, eps=1e-16, weight_decay=0.05),
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_equal_to_torch_over_dense_gradients_when_all_rows_are_used(name: str) -> None:
    a, b = table(), table()
    mine, other = DENSE[name][0]([a]), DENSE[name][1]([b])
    for number, ids in enumerate(batches(6, all_rows=True)):
        a.grad = sparse_gradient(ids, number)
        b.grad = a.grad.to_dense()
        mine.step()
        other.step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rowwise_adagrad_is_its_formula() -> None:
    param = table()
    optimizer = RowAdagrad([param], lr=0.2, rowwise=True, initial_accumulator_value=0.3, eps=1e-4)
    weight, total = param.detach().clone(), torch.full((N,), 0.3, dtype=torch.float64)
    for number, ids in enumerate(batches(5)):
        gradient = sparse_gradient(ids, number)
        dense = gradient.to_dense()
        for row in set(ids):
            total[row] += dense[row].square().mean()
            weight[row] -= 0.2 * dense[row] / (total[row].sqrt() + 1e-4)
        param.grad = gradient
        optimizer.step()
    torch.testing.assert_close(param.detach(), weight, rtol=1e-12, atol=1e-13)
    assert optimizer.state[param]["sum"].shape == (N,)


@pytest.mark.parametrize("name", ALL)
def test_rows_not_used_keep_weight_and_state(name: str) -> None:
    param = table()
    optimizer = ALL[name]([param])
    train(param, optimizer, [list(range(N))])
    before = param.detach().clone()
    state = {key: value.clone() for key, value in optimizer.state[param].items() if isinstance(value, Tensor)}
    train(param, optimizer, [[2, 2, 5]], seed=7)
    changed = [row for row in range(N) if not torch.equal(before[row], param[row])]
    assert changed == [2, 5]
    for key, value in state.items():
        moved = [row for row in range(N) if not torch.equal(value[row], optimizer.state[param][key][row])]
        assert moved == [2, 5], key


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, N - 1), max_size=30), st.sampled_from(sorted(ALL)), st.booleans())
def test_coalesced_or_not_is_the_same_step(ids: list[int], name: str, coalesce: bool) -> None:
    """Sums, and the order of the entries of different rows, do not matter."""
    a, b = table(), table()
    gradient = sparse_gradient(ids, 3)
    a.grad, b.grad = gradient, gradient.coalesce() if coalesce else gradient.to_dense().to_sparse(1)
    # A dense detour drops rows whose gradient is exactly zero; none is here.
    ALL[name]([a]).step()
    ALL[name]([b]).step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_two_backward_passes_accumulate() -> None:
    layer = nn.Embedding(N, D, sparse=True, dtype=torch.float64)
    other = copy.deepcopy(layer)
    for ids in ([1, 2, 2], [2, 3]):
        (layer(torch.tensor(ids)) ** 2).sum().backward()
    (other(torch.tensor([1, 2, 2, 2, 3])) ** 2).sum().backward()
    RowAdam(layer.parameters()).step()
    RowAdam(other.parameters()).step()
    torch.testing.assert_close(layer.weight, other.weight, rtol=1e-12, atol=1e-12)


def test_clip_shortens_the_summed_gradient_of_a_row() -> None:
    param = table()
    before = param.detach().clone()
    values = torch.tensor([[30.0] * D, [10.0] * D, [0.01] * D], dtype=torch.float64)
    param.grad = torch.sparse_coo_tensor(torch.tensor([[4, 4, 6]]), values, (N, D), check_invariants=True)
    RowSGD([param], lr=1.0, clip=2.0).step()
    moved = (before - param.detach()).norm(dim=1)
    assert moved[4].item() == pytest.approx(2.0)
    assert moved[6].item() == pytest.approx(0.01 * math.sqrt(D))


def test_half_tables_keep_float32_state_and_sum_in_float32() -> None:
    param = nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
    ids = torch.zeros(1, 4096, dtype=torch.int64)
    param.grad = torch.sparse_coo_tensor(
        ids, torch.ones(4096, 1, dtype=torch.bfloat16), (2, 1), check_invariants=True
    )
    RowSGD([param], lr=1.0).step()
    assert param[0].item() == -4096.0
    optimizer = RowAdam([param])
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == torch.float32
    again = RowAdam([param])
    again.load_state_dict(optimizer.state_dict())
    assert again.state[param]["exp_avg"].dtype == torch.float32
    assert torch.equal(again.state[param]["exp_avg"], optimizer.state[param]["exp_avg"])


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_goes_on_to_the_last_bit(name: str) -> None:
    straight, ids = table(), batches(6)
    train(straight, ALL[name]([straight]), ids)
    first = table()
    optimizer = ALL[name]([first])
    train(first, optimizer, ids[:3])
    file = io.BytesIO()
    torch.save({"weight": first.detach(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = nn.Parameter(saved["weight"])
    resumed = ALL[name]([second])
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, ids[3:], seed=3)
    assert torch.equal(straight, second)
    assert resumed.state[second]["step"] == 6


def test_loaded_state_is_a_copy() -> None:
    first, second = table(), table()
    one = RowAdagrad([first])
    train(first, one, batches(1))
    two = RowAdagrad([second])
    two.load_state_dict(one.state_dict())
    before = one.state[first]["sum"].clone()
    train(second, two, batches(1))
    assert torch.equal(one.state[first]["sum"], before)


@pytest.mark.parametrize("name", ["adagrad", "adam", "sgd"])
def test_state_of_torchs_optimiser_can_be_loaded(name: str) -> None:
    ours, theirs = SAME[name]
    first, ids = table(), batches(6)
    optimizer = theirs([first])
    train(first, optimizer, ids[:3])
    second = nn.Parameter(first.detach().clone())
    mine = ours([second])
    mine.load_state_dict(optimizer.state_dict())
    train(first, optimizer, ids[3:], seed=3)
    train(second, mine, ids[3:], seed=3)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-13)


def test_state_that_does_not_fit_is_refused() -> None:
    param = table()
    optimizer = RowAdagrad([param])
    train(param, optimizer, batches(1))
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"RowAdam.load_state_dict\(\): the state 'exp_avg'.*not there"):
        RowAdam([param]).load_state_dict(saved)
    small = nn.Parameter(torch.zeros(3, D))
    with pytest.raises(ValueError, match=r"the state 'sum' must be .* shape \(3, 5\).* \(11, 5\)"):
        RowAdagrad([small]).load_state_dict(saved)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        RowAdagrad([{"params": [small]}, {"params": [param]}]).load_state_dict(saved)


def test_groups_schedulers_closure_and_hooks() -> None:
    first, second = table(), table(seed=1)
    optimizer = RowSGD([first], lr=1.0)
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    assert optimizer.param_groups[1]["momentum"] == 0.0
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    start = [first.detach().clone(), second.detach().clone()]

    def closure() -> float:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        for param in (first, second):
            param.grad = torch.sparse_coo_tensor(
                [[3]], torch.ones(1, D).double(), (N, D), check_invariants=True
            )
        return 5.0

    assert optimizer.step(closure) == 5.0
    scheduler.step()
    optimizer.step(closure)
    assert (start[0] - first)[3].tolist() == pytest.approx([1.1] * D)
    assert (start[1] - second)[3].tolist() == pytest.approx([0.55] * D)
    assert len(called) == 2
    optimizer.zero_grad()
    assert first.grad is None
    optimizer.step()  # nothing to do


def test_one_cycle_turns_momentum_and_lr() -> None:
    param = table()
    optimizer = RowSGD([param], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    for number, ids in enumerate(batches(5)):
        param.grad = sparse_gradient(ids, number)
        optimizer.step()
        scheduler.step()
    assert param.isfinite().all()


def test_a_gradient_with_a_graph() -> None:
    param = table()
    param.grad = sparse_gradient([1, 1], 0).requires_grad_()
    RowSGD([param]).step()
    assert not torch.equal(param, table())


def test_a_tensor_learning_rate() -> None:
    a, b = table(), table()
    train(a, RowAdam([a], lr=torch.tensor(0.25)), batches(2))
    train(b, RowAdam([b], lr=0.25), batches(2))
    assert torch.equal(a, b)


def test_tables_of_other_shapes() -> None:
    flat, deep = nn.Parameter(torch.zeros(N)), nn.Parameter(torch.zeros(N, 2, 3))
    ids = torch.tensor([[1, 1]])
    flat.grad = torch.sparse_coo_tensor(ids, torch.ones(2), (N,), check_invariants=True)
    deep.grad = torch.sparse_coo_tensor(ids, torch.ones(2, 2, 3), (N, 2, 3), check_invariants=True)
    RowSGD([flat, deep], lr=1.0).step()
    assert flat[1] == -2 and flat.sum() == -2
    assert torch.equal(deep[1], torch.full((2, 3), -2.0)) and deep.sum() == -12


def test_no_places_and_no_rows() -> None:
    param, none = table(), nn.Parameter(torch.zeros(0, D).double())
    param.grad = sparse_gradient([], 0)
    none.grad = torch.sparse_coo_tensor(torch.zeros(1, 0).long(), torch.zeros(0, D).double(), (0, D))
    optimizer = RowAdam([param, none])
    optimizer.step()
    assert torch.equal(param, table())
    assert optimizer.state[param]["step"] == 1  # as SparseAdam counts


def test_a_graph_that_saved_the_rows_notices_the_step() -> None:
    param = table()
    product = (param * param).sum()
    train(param, RowSGD([param]), batches(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_state_follows_a_cast() -> None:
    param = table()
    optimizer = RowAdam([param])
    train(param, optimizer, batches(1))
    param.data = param.data.float()
    train(param, optimizer, batches(1))
    assert optimizer.state[param]["exp_avg"].dtype == torch.float32
    param.data = torch.cat([param.data, param.data])
    param.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, D), (2 * N, D), check_invariants=True)
    with pytest.raises(RuntimeError, match=r"RowAdam: the state 'exp_avg' has the shape \(11, 5\)"):
        optimizer.step()


def test_grad_scaler() -> None:
    a, b = nn.Embedding(N, D, sparse=True), nn.Embedding(N, D, sparse=True)
    b.load_state_dict(a.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ids = torch.tensor([1, 1, 4])
    optimizer = RowAdam(a.parameters())
    scaler.scale(a(ids).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    b(ids).square().sum().backward()
    RowAdam(b.parameters()).step()
    torch.testing.assert_close(a.weight, b.weight)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, bad: float) -> None:
    first, second = table(), table(seed=1)
    optimizer = ALL[name]([first, second])
    for param in (first, second):
        param.grad = sparse_gradient([0, 1, 7, 7], 0)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    weights = first.detach().clone(), second.detach().clone()
    second.grad._values()[3, 1] = bad  # type: ignore[union-attr]
    with pytest.raises(
        NonFiniteGradient, match=r"the gradient of row 7 of a table of shape \(11, 5\)"
    ) as caught:
        optimizer.step()
    for kind in (FloatingPointError, ArithmeticError, RuntimeError, Diverged, FirthError):
        assert isinstance(caught.value, kind)
    assert torch.equal(first, weights[0]) and torch.equal(second, weights[1])
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_a_first_gradient_that_is_not_finite_leaves_no_state() -> None:
    param = table()
    param.grad = sparse_gradient([2], 0)
    param.grad._values()[0, 0] = float("nan")
    optimizer = RowAdam([param])
    with pytest.raises(RuntimeError, match="row 2"):
        optimizer.step()
    assert not optimizer.state


def test_dense_gradients_are_refused_before_anything_moves() -> None:
    first, second = table(), table()
    first.grad = sparse_gradient([1], 0)
    second.grad = torch.ones(N, D).double()
    with pytest.raises(RuntimeError, match=r"RowAdam takes sparse gradients only.*sparse=True"):
        RowAdam([first, second]).step()
    assert torch.equal(first, table())


def test_gradients_sparse_in_both_dimensions_are_refused() -> None:
    param = table()
    param.grad = torch.eye(N, D).double().to_sparse()
    with pytest.raises(RuntimeError, match=r"sparse by rows \(sparse_dim 1\), got sparse_dim 2"):
        RowSGD([param]).step()


def test_a_row_outside_the_table_is_refused() -> None:
    param = table()
    param.grad = sparse_gradient([1, 2], 0)
    param.grad._indices()[0, 1] = N
    with pytest.raises(RuntimeError, match="entry 1 of a gradient names row 11, the table has 11 rows"):
        RowSGD([param]).step()


BAD: list[tuple[Callable[[list[nn.Parameter]], RowOptimizer], str]] = [
    (lambda p: RowSGD(p, lr=-1), "Invalid learning rate: -1"),
    (lambda p: RowAdam(p, lr=math.nan), "Invalid learning rate: nan"),
    (lambda p: RowAdagrad(p, lr=math.inf), "Invalid learning rate: inf"),
    (lambda p: RowSGD(p, momentum=-0.1), "Invalid momentum value: -0.1"),
    (lambda p: RowSGD(p, weight_decay=-0.1), "Invalid weight_decay value: -0.1"),
    (lambda p: RowSGD(p, nesterov=True), "Nesterov momentum requires a momentum"),
    (lambda p: RowAdagrad(p, lr_decay=-1), "Invalid lr_decay value: -1"),
    (lambda p: RowAdagrad(p, initial_accumulator_value=-1), "Invalid initial_accumulator_value value: -1"),
    (lambda p: RowAdagrad(p, eps=-1), "Invalid epsilon value: -1"),
    (lambda p: RowAdagrad(p, eps=0), "Invalid epsilon value: 0"),
    (lambda p: RowAdam(p, eps=0.0), "Invalid epsilon value: 0"),
    (lambda p: RowAdam(p, betas=(1.0, 0.9)), "Invalid beta parameter at index 0: 1.0"),
    (lambda p: RowAdam(p, betas=(0.9, -0.1)), "Invalid beta parameter at index 1: -0.1"),
    (lambda p: RowAdam(p, betas=(0.9,)), "takes two numbers"),  # type: ignore[arg-type]
    (lambda p: RowSGD(p, clip=0.0), "Invalid clip value: 0.0"),
    (lambda p: RowSGD([{"params": p, "lr": -2.0}]), "Invalid learning rate: -2.0"),
    (lambda p: RowSGD([nn.Parameter(torch.zeros(3, 2, dtype=torch.complex64))]), "tables of real numbers"),
    (lambda p: RowSGD([nn.Parameter(torch.zeros(()))]), "tables of real numbers"),
    (lambda p: RowSGD([]), "empty parameter list"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_settings(make: Callable[[list[nn.Parameter]], RowOptimizer], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        make([table()])


def test_a_bad_group_is_not_added() -> None:
    optimizer = RowSGD([table()])
    with pytest.raises(ValueError, match="Invalid learning rate"):
        optimizer.add_param_group({"params": [table()], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_a_setting_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"momentum must be a number, got '0\.9'"):
        RowSGD([table()], momentum="0.9")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clip must be a number or None, got True"):
        RowAdam([table()], clip=True)


def test_schedulers_do_not_warn() -> None:
    param = table()
    optimizer = RowAdam([param])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(param, optimizer, batches(1))
        scheduler.step()
