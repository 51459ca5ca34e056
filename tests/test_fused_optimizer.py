"""The optimiser of a fused layer: schedulers, checkpoints, copies, given state, scaled gradients."""

import copy
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import firth.nn
from firth.nn import fused
from firth.nn.optim import NonFiniteGradient, RowAdam
from firth.nn.recipes import SGD, Adagrad, Adam, Recipe
from fused_layers import RECIPES, STARTS, Bags, D, N, embedding, ids_of, optimizer_of, steps, train


def test_the_optimiser_is_one() -> None:
    layer = embedding(Adam(lr=0.1, betas=(0.8, 0.99)))
    optimizer = optimizer_of(layer)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1 and optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    assert optimizer.param_groups[0]["params"][0] is layer.weight
    assert layer.fused == Adam(lr=0.1, betas=(0.8, 0.99))
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.step(lambda: 3.0) == 3.0
    with pytest.raises(RuntimeError, match="updates the table of one layer"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))]})
    with pytest.raises(AttributeError):
        layer.fused.lr = 1.0  # type: ignore[union-attr, misc]


def test_schedulers_set_the_rate_and_do_not_warn() -> None:
    layer = embedding(SGD(lr=1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer_of(layer), 1, gamma=0.1)
    ids = torch.tensor([5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            layer(ids).sum().backward()
            scheduler.step()
    assert (embedding().weight - layer.weight)[5].tolist() == pytest.approx([1.1] * D)
    optimizer_of(layer).param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        layer(ids).sum().backward()


@pytest.mark.parametrize("name", RECIPES)
def test_saved_and_loaded_goes_on_to_the_last_bit(name: str) -> None:
    recipe, _ = RECIPES[name]
    straight, first, second = embedding(recipe), embedding(recipe), embedding(recipe)
    train(straight, range(6))
    train(first, range(3))
    file = io.BytesIO()
    torch.save({"layer": first.state_dict(), "optimizer": optimizer_of(first).state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert list(saved["layer"]) == ["weight"]
    memory = second.weight.data_ptr()
    second.load_state_dict(saved["layer"])
    optimizer_of(second).load_state_dict(saved["optimizer"])
    assert second.weight.data_ptr() == memory
    train(second, range(3, 6))
    assert torch.equal(second.weight, straight.weight) and steps(second) == 6


def test_the_state_of_a_row_optimiser_can_be_loaded() -> None:
    """A layer may begin with sparse gradients and go on fused, and the other way round."""
    straight, outside, inside = (embedding(recipe) for recipe in (Adam(lr=0.1), None, Adam(lr=0.1)))
    train(straight, range(4))
    optimizer = RowAdam(outside.parameters(), 0.1)
    train(outside, range(2), optimizer)
    inside.load_state_dict(outside.state_dict())
    optimizer_of(inside).load_state_dict(optimizer.state_dict())
    train(inside, range(2, 4))
    torch.testing.assert_close(inside.weight, straight.weight, rtol=1e-12, atol=1e-13)
    RowAdam(outside.parameters()).load_state_dict(optimizer_of(inside).state_dict())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_have_an_optimiser_of_their_own(how: str) -> None:
    layer = embedding(Adam(lr=0.1))
    train(layer, range(2))
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert optimizer_of(twin).weight is twin.weight is not layer.weight
    before = layer.weight.detach().clone()
    train(twin, range(2, 4))
    assert torch.equal(layer.weight, before) and steps(layer) == 2 and steps(twin) == 4
    train(layer, range(2, 4))
    assert torch.equal(layer.weight, twin.weight)


def test_state_follows_a_cast_and_a_meta_layer_is_filled() -> None:
    layer = embedding(Adam(lr=0.1))
    train(layer, range(1))
    layer.float()
    train(layer, range(1, 2))
    assert steps(layer) == 2
    assert optimizer_of(layer).state[layer.weight]["exp_avg"].dtype == torch.float32
    layer.to(torch.bfloat16)
    train(layer, range(2, 3))
    assert optimizer_of(layer).state[layer.weight]["exp_avg"].dtype == torch.float32
    for fill in (
        lambda one: one.to_empty(device="cpu"),
        lambda one: one.load_state_dict({"weight": torch.ones(N, D)}, assign=True),
    ):
        late = firth.nn.Embedding(N, D, device="meta", fused=SGD(lr=1.0))
        fill(late)
        nn.init.ones_(late.weight)
        late(torch.tensor([3])).sum().backward()
        assert late.weight[3].tolist() == [0.0] * D and steps(late) == 1


def test_another_parameter_is_refused_until_it_is_followed() -> None:
    layer = embedding(Adagrad(lr=0.1))
    train(layer, range(1))
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"another Parameter.*layer.optimizer.follow\(layer.weight\)"):
        layer(ids_of(0))
    optimizer_of(layer).follow(layer.weight)
    train(layer, range(1, 2))
    straight = embedding(Adagrad(lr=0.1))
    train(straight, range(2))
    assert torch.equal(layer.weight, straight.weight) and steps(layer) == 2
    with pytest.raises(ValueError, match=r"must keep the shape \(13, 6\), got \(2, 2\)"):
        optimizer_of(layer).follow(nn.Parameter(torch.zeros(2, 2)))


def test_given_state_is_used_and_each_update_surrounded() -> None:
    layer = embedding()
    recipe = Adagrad(lr=0.1, initial_accumulator_value=0.5)
    state = {"sum": torch.zeros(N, D, dtype=torch.float64)}
    seen: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        seen.append("begin")
        yield
        seen.append("end")

    optimizer = fused.attach(layer, recipe, state=state, around=around)
    assert layer.optimizer is optimizer
    train(layer, range(2))
    assert seen == ["begin", "end"] * 2
    assert optimizer.state[layer.weight]["sum"] is state["sum"]
    straight = embedding(recipe)
    train(straight, range(2))
    assert torch.equal(layer.weight, straight.weight)
    optimizer.load_state_dict(optimizer_of(straight).state_dict())
    assert optimizer.state[layer.weight]["sum"] is state["sum"]
    optimizer = fused.attach(layer, recipe, state=state, step=2, around=around)
    train(layer, range(2, 3))
    train(straight, range(2, 3))
    assert torch.equal(layer.weight, straight.weight) and optimizer.steps == 3
    with pytest.raises(NonFiniteGradient):
        (layer(ids_of(0)) * float("nan")).sum().backward()
    assert seen == ["begin", "end"] * 3 + ["begin"]  # the context saw the error
    twin = copy.deepcopy(layer)
    assert twin.optimizer is not None and twin.optimizer.around is None
    layer.float()
    with pytest.raises(RuntimeError, match="whose table is in a file cannot be moved or cast"):
        layer(ids_of(0)).sum().backward()


@pytest.mark.parametrize(
    ("state", "has"),
    [
        ({}, "is missing"),
        ({"sum": torch.zeros(N, 1).double()}, r"\(13, 1\)"),
        ({"sum": torch.zeros(N, D)}, "float32"),
    ],
    ids=["none", "shape", "dtype"],
)
def test_given_state_that_does_not_fit(state: dict[str, Tensor], has: str) -> None:
    with pytest.raises(ValueError, match=rf"attach\(\): the state 'sum' of Adagrad must be .*{has}"):
        fused.attach(embedding(), Adagrad(), state=state)


def test_what_is_no_recipe_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes a recipe such as firth.nn.Adagrad\(lr=0.1\), got str"):
        fused.attach(embedding(), "adagrad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Invalid learning rate: -0\.1"):
        Adagrad(lr=-0.1)
    with pytest.raises(TypeError, match="no recipe by itself"):
        Recipe().update(1)


# --- gradients that are not finite, and scaled ones ------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("trained", [0, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, trained: int) -> None:
    layer = embedding(RECIPES[name][0])
    train(layer, range(trained))
    before = copy.deepcopy((layer.state_dict(), optimizer_of(layer).state_dict()))
    scale = torch.ones(4, 1, dtype=torch.float64)
    scale[2] = float("nan")
    with pytest.raises(
        NonFiniteGradient, match=r"the gradient of row 9 of a table .* layer.optimizer.scaler"
    ) as caught:
        (layer(torch.tensor([1, 9, 9, 12])) * scale).sum().backward()
    assert isinstance(caught.value, FloatingPointError) and isinstance(caught.value, RuntimeError)
    torch.testing.assert_close((layer.state_dict(), optimizer_of(layer).state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", [SGD(lr=0.1), Adagrad(lr=0.1)], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_grad_scaler_is_divided_out(recipe: Recipe, pooled: bool) -> None:
    def found_by(layer: Any) -> Tensor:
        factor = torch.linspace(0, 1, 17, dtype=torch.float64)
        found = layer.pool(ids_of(0), STARTS, factor) if pooled else layer(ids_of(0))
        assert isinstance(found, Tensor)
        return found

    scaled, plain = ((Bags(recipe, mode="sum") if pooled else embedding(recipe)) for _ in range(2))
    rest = nn.Linear(D, 1).double()
    other = torch.optim.SGD(rest.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    assert scaled.optimizer is not None
    scaled.optimizer.scaler = scaler
    rest(found_by(plain)).sum().backward()
    other.zero_grad()
    scaler.scale(rest(found_by(scaled)).sum()).backward()
    torch.testing.assert_close(scaled.weight, plain.weight, rtol=1e-12, atol=1e-13)
    before = scaled.weight.detach().clone()
    scaler.step(other)
    scaler.step(scaled.optimizer)
    scaler.update()
    scaler.scale(rest(found_by(scaled)).sum() * float("inf")).backward()
    scaler.step(other)
    scaler.update()
    assert scaler.get_scale() == 2.0**11
    assert torch.equal(scaled.weight, before) and scaled.optimizer.steps == 1


def test_a_grad_scaler_that_nobody_told_of_is_noticed() -> None:
    layer = embedding(Adagrad(lr=0.1))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(layer(ids_of(0)).sum()).backward()
    with pytest.raises(RuntimeError, match=r"took place in backward.*layer.optimizer.scaler = scaler"):
        scaler.step(optimizer_of(layer))


def test_the_page_keeps_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "fused.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/fused.md", "exec"), names)
