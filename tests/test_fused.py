"""Updates inside backward: equal to a row optimiser over sparse gradients, and when they take place."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import firth.nn
from firth.kernels import bags, bags_reference, rows, rows_reference
from firth.nn import fused
from firth.nn.optim import RowAdagrad
from firth.nn.recipes import SGD, Adagrad, Adam, Recipe
from fused_layers import RECIPES, STARTS, Bags, D, N, embedding, ids_of, loss_of, optimizer_of, steps, train

# torch says this once a process where it makes sparse tensors itself, as in Adagrad.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")


# --- the same as a row optimiser -------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    "more", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}, {"max_norm": 1.5}], ids=str
)
def test_equal_to_the_row_optimiser(name: str, more: dict[str, Any]) -> None:
    recipe, make = RECIPES[name]
    inside, outside = embedding(recipe, **more), embedding(**more)
    optimizer = make(outside.parameters())
    train(inside, range(6))
    train(outside, range(6), optimizer)
    torch.testing.assert_close(inside.weight, outside.weight, rtol=1e-12, atol=1e-13)
    assert inside.weight.grad is None
    state = optimizer_of(inside).state[inside.weight]
    assert state["step"] == 6
    for key, value in optimizer.state[outside.weight].items():
        torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    recipe, make = RECIPES[name]
    inside, outside = embedding(recipe, dtype), embedding(None, dtype)
    train(inside, range(3))
    train(outside, range(3), make(outside.parameters()))
    # The sparse gradient of half types is rounded once more, to the dtype.
    close = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(inside.weight, outside.weight, rtol=close, atol=close)
    assert not torch.equal(inside.weight, embedding(None, dtype).weight)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("mode", ["lookup", "sum", "mean", "max"])
def test_equal_to_the_definition(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels against their plain torch twins, a row at a time."""

    def trained() -> Any:
        recipe = RECIPES[name][0]
        layer: Any = embedding(recipe) if mode == "lookup" else Bags(recipe, mode=mode, padding_idx=1)
        for seed in range(3):
            found = layer(ids_of(seed)) if mode == "lookup" else layer.pool(ids_of(seed), STARTS)
            loss_of(found).backward()
        return layer

    fast = trained()
    monkeypatch.setattr(rows, "pick", lambda _: rows_reference)
    monkeypatch.setattr(bags, "pick", lambda _: bags_reference)
    plain = trained()
    for row in range(N):
        torch.testing.assert_close(fast.weight[row], plain.weight[row], rtol=1e-12, atol=1e-13)
    state = plain.optimizer.state[plain.weight]
    torch.testing.assert_close(fast.optimizer.state[fast.weight], state, rtol=1e-12, atol=1e-13)


TORCH: dict[str, tuple[Recipe, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (SGD(0.2), lambda p: torch.optim.SGD(p, 0.2)),
    "adagrad": (Adagrad(0.2, eps=1e-8), lambda p: torch.optim.Adagrad(p, 0.2, eps=1e-8)),
    "adam": (Adam(0.05, (0.8, 0.95)), lambda p: torch.optim.SparseAdam(p, 0.05, (0.8, 0.95))),
}


@pytest.mark.parametrize("name", TORCH)
def test_equal_to_torchs_optimiser(name: str) -> None:
    recipe, make = TORCH[name]
    inside = embedding(recipe)
    theirs = nn.Embedding(N, D, _weight=embedding().weight.detach().clone(), sparse=True)
    train(inside, range(8))
    train(theirs, range(8), make(theirs.parameters()))
    torch.testing.assert_close(inside.weight, theirs.weight, rtol=1e-11, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, N - 1), max_size=40), st.sampled_from(sorted(RECIPES)), st.booleans())
def test_any_ids_of_both_dtypes_and_any_shape(ids: list[int], name: str, narrow: bool) -> None:
    recipe, make = RECIPES[name]
    inside, outside = embedding(recipe, padding_idx=0), embedding(padding_idx=0)
    given_ids = torch.tensor(ids, dtype=torch.int32 if narrow else torch.int64).reshape(1, -1, 1)
    found = inside(given_ids)
    assert torch.equal(found, outside(given_ids)) and found.shape == (1, len(ids), 1, D)
    loss_of(found).backward()
    loss_of(outside(given_ids)).backward()
    make(outside.parameters()).step()
    torch.testing.assert_close(inside.weight, outside.weight, rtol=1e-12, atol=1e-13)
    unused = sorted(set(range(N)) - set(ids) | {0})
    assert torch.equal(inside.weight[unused], embedding().weight[unused])


def test_no_gradient_of_the_tables_size_is_made() -> None:
    layer = firth.nn.Embedding(200_000, 8, fused=SGD(lr=0.1))
    ids = torch.arange(50)
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(ids).sum().backward()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated < layer.weight.nbytes / 10
    assert layer.weight.grad is None


def test_broadcast_and_strided_gradients_and_zero_dimensional_ids() -> None:
    inside, outside = embedding(SGD(lr=1.0)), embedding()
    for layer in (inside, outside):
        layer(torch.tensor([[3, 3], [1, 4]])).sum().backward()  # an expanded gradient
        layer(torch.tensor([[3, 2], [1, 4]]).T).transpose(0, 2).contiguous().square().sum().backward()
        layer(torch.tensor(7)).sum().backward()
        if layer is inside:
            continue
    # Without an optimiser state, three sums of SGD are one; only the second loss depends on the weight.
    assert (inside.weight[7] - embedding().weight[7]).tolist() == pytest.approx([-1.0] * D)
    assert outside.weight.grad is not None


def test_results_do_not_depend_on_threads() -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            layer = firth.nn.Embedding(50, 32, _weight=torch.ones(50, 32), fused=Adam(lr=0.1))
            for seed in range(3):
                ids = torch.randint(0, 50, (3000,), generator=torch.Generator().manual_seed(seed))
                loss_of(layer(ids)).backward()
            found.append(layer.weight.detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


# --- when an update takes place, and how often -----------------------------------------------------


def test_forward_alone_changes_nothing() -> None:
    layer = embedding(SGD(lr=1.0))
    with torch.no_grad():
        layer(ids_of(0))
    with torch.inference_mode():
        layer(ids_of(0))
    layer.eval()
    layer(ids_of(0))  # its backward never comes
    layer.requires_grad_(False)
    assert not layer(ids_of(0)).requires_grad
    assert torch.equal(layer.weight, embedding().weight) and steps(layer) == 0


def test_one_step_for_each_backward_of_each_lookup() -> None:
    layer = embedding(Adagrad(lr=0.1))
    (layer(ids_of(0)).sum() + layer(ids_of(1)).sum()).backward()
    assert steps(layer) == 2
    loss = layer(ids_of(0)).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert steps(layer) == 4
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()
    assert steps(layer) == 4


def test_an_output_that_no_loss_uses_is_no_step() -> None:
    layer = embedding(SGD(lr=0.1, momentum=0.9))
    used, unused = layer(ids_of(0)), layer(ids_of(1))
    used.sum().backward()
    assert steps(layer) == 1
    del unused
    x = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad((layer(ids_of(2)).sum() * x).sum(), [x])
    assert gradient.shape == (3,) and steps(layer) == 1
    loss = (layer(ids_of(2)).sum() * x).sum()
    loss.backward(inputs=[x])
    assert steps(layer) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_updates_once(reentrant: bool) -> None:
    plain, saved = embedding(Adam(lr=0.1), max_norm=2.0), embedding(Adam(lr=0.1), max_norm=2.0)
    linear = nn.Linear(D, D).double()

    def block(layer: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = linear(layer(ids)).tanh() * x
        return found

    for seed in range(3):
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        block(plain, x, ids_of(seed)).sum().backward()
        found = checkpoint(block, saved, x, ids_of(seed), use_reentrant=reentrant)
        assert isinstance(found, Tensor)
        found.sum().backward()
    assert steps(saved) == steps(plain) == 3
    assert torch.equal(saved.weight, plain.weight)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_after_an_update_is_refused(reentrant: bool) -> None:
    """The first block is recomputed when the second has updated the table."""
    layer = embedding(SGD(lr=0.1))
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def block(x: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = layer(ids).sum() * x
        return found.square()

    first = checkpoint(block, x, ids_of(0), use_reentrant=reentrant)
    second = checkpoint(block, first, ids_of(1), use_reentrant=reentrant)
    assert isinstance(second, Tensor)
    with pytest.raises(RuntimeError, match=r"firth.nn.Embedding: the table was updated between"):
        second.backward()
    assert steps(layer) == 1


def test_checkpointing_across_two_backward_passes_is_refused() -> None:
    layer = embedding(SGD(lr=0.1))
    losses = [
        checkpoint(lambda ids: layer(ids).square().sum(), ids_of(n), use_reentrant=False) for n in (0, 1)
    ]
    losses[0].backward()
    with pytest.raises(RuntimeError, match="the table was updated between"):
        losses[1].backward()
    assert steps(layer) == 1


def test_the_version_of_the_weight_tells_of_the_update() -> None:
    layer = embedding(SGD(lr=0.1))
    penalty = (layer.weight * layer.weight).sum()
    layer(ids_of(0)).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


class Blocked(torch.autograd.Function):
    """Passes a value on, and no gradient at all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None


def test_no_gradient_is_not_a_gradient_of_zeros() -> None:
    layer = embedding(SGD(lr=0.1, momentum=0.9))
    train(layer, range(1))
    before = layer.weight.detach().clone()
    apply: Callable[[Tensor], Tensor] = Blocked.apply
    apply(layer(ids_of(0))).sum().backward()
    pooled = Bags(SGD(lr=0.1), mode="mean")
    apply(pooled.pool(ids_of(0), STARTS)).sum().backward()
    assert steps(layer) == 1 and torch.equal(layer.weight, before)
    assert pooled.optimizer is not None and pooled.optimizer.steps == 0


def test_ids_that_changed_since_forward_are_noticed() -> None:
    layer, ids = embedding(SGD(lr=0.1)), ids_of(0)
    found = layer(ids)
    ids += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()
    assert steps(layer) == 0


def test_hooks_on_the_output_see_and_change_the_gradient() -> None:
    layer = embedding(SGD(lr=1.0))
    found = layer(torch.tensor([3]))
    found.register_hook(lambda gradient: gradient * 0)
    found.retain_grad()
    found.sum().backward()
    assert torch.equal(layer.weight, embedding().weight)
    assert found.grad is not None and not found.grad.any()


def test_threads_in_backward_at_once_lose_no_step() -> None:
    layer = embedding(Adagrad(lr=0.01))

    def work() -> None:
        for seed in range(20):
            loss_of(layer(ids_of(seed))).backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert steps(layer) == 80


def test_a_layer_is_freed() -> None:
    layer = embedding(SGD(lr=0.1))
    layer(ids_of(0)).sum().backward()
    weight = weakref.ref(layer.weight)
    del layer
    gc.collect()
    assert weight() is None


# --- bags ------------------------------------------------------------------------------------------


def torch_bags(**more: Any) -> nn.EmbeddingBag:
    weight = embedding().weight.detach().clone()
    return nn.EmbeddingBag(N, D, _weight=weight, include_last_offset=True, **more)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 4])
def test_bags_are_equal_to_dense_gradients(mode: str, padding: int | None) -> None:
    """SGD over torch's own dense gradients, in which rows without a place are zero."""
    inside = Bags(SGD(lr=0.3), mode=mode, padding_idx=padding)
    outside = torch_bags(mode=mode, padding_idx=padding)
    optimizer = torch.optim.SGD(outside.parameters(), 0.3)
    for seed in range(4):
        found = inside.pool(ids_of(seed), STARTS)
        expected = outside(ids_of(seed), STARTS)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        optimizer.zero_grad()
        loss_of(found).backward()
        loss_of(expected).backward()
        optimizer.step()
        torch.testing.assert_close(inside.weight, outside.weight, rtol=1e-12, atol=1e-13)
    assert inside.weight.grad is None


def test_weighted_bags_give_the_weights_their_gradient() -> None:
    inside, outside = Bags(Adagrad(lr=0.3), mode="sum"), torch_bags(mode="sum", sparse=True)
    optimizer = RowAdagrad(outside.parameters(), 0.3)
    for seed in range(3):
        factors = [torch.linspace(-1, 2, 17, dtype=torch.float64).requires_grad_() for _ in range(2)]
        loss_of(inside.pool(ids_of(seed), STARTS, factors[0])).backward()
        optimizer.zero_grad()
        loss_of(outside(ids_of(seed), STARTS, factors[1])).backward()
        optimizer.step()
        assert factors[0].grad is not None and factors[1].grad is not None
        torch.testing.assert_close(factors[0].grad, factors[1].grad, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(inside.weight, outside.weight, rtol=1e-11, atol=1e-12)


def test_bags_by_frequency_count_the_places_of_the_batch() -> None:
    layer = Bags(SGD(lr=1.0), mode="sum", scale_grad_by_freq=True)
    layer.pool(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 2, 4])).sum().backward()
    moved = embedding().weight.detach() - layer.weight.detach()
    assert moved[0].tolist() == pytest.approx([1.0] * D) and moved[1].tolist() == pytest.approx([1.0] * D)


def test_trailing_ids_are_in_no_bag(monkeypatch: pytest.MonkeyPatch) -> None:
    # The plain torch twins refuse places that a source does not have; the fast ones would read anything.
    monkeypatch.setattr(rows, "pick", lambda _: rows_reference)
    monkeypatch.setattr(bags, "pick", lambda _: bags_reference)
    layer = Bags(SGD(lr=1.0), mode="sum")
    fused.bag(layer, torch.tensor([1, 2, 3]), torch.tensor([0, 2]), "sum").sum().backward()
    assert torch.equal(layer.weight[3], embedding().weight[3])
    assert not torch.equal(layer.weight[2], embedding().weight[2])


def test_gradients_of_weights_after_an_update_are_refused() -> None:
    layer = Bags(SGD(lr=1.0), mode="sum")
    factor = torch.ones(17, dtype=torch.float64, requires_grad=True)
    found = layer.pool(ids_of(0), STARTS, factor)
    layer.pool(ids_of(1), STARTS).sum().backward()
    with pytest.raises(RuntimeError, match="per_sample_weights needs the rows as they were in forward"):
        found.sum().backward()
    assert layer.optimizer is not None and layer.optimizer.steps == 1


def test_bags_where_no_update_is_meant() -> None:
    layer = Bags(SGD(lr=1.0), mode="mean")
    layer.requires_grad_(False)
    assert not layer.pool(ids_of(0), STARTS).requires_grad
    layer.mode, factor = "sum", torch.ones(17, dtype=torch.float64, requires_grad=True)
    layer.pool(ids_of(0), STARTS, factor).sum().backward()
    assert factor.grad is not None
    assert torch.equal(layer.weight, embedding().weight)
