"""Where a fused update cannot be right it is refused with a sentence; compiled and exported code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from firth.nn import fused
from firth.nn.recipes import SGD, Adagrad
from fused_layers import STARTS, Bags, D, Model, embedding, ids_of, loss_of, optimizer_of, steps


def test_differentiating_twice_is_refused() -> None:
    layer = embedding(SGD(lr=0.1))
    loss = layer(ids_of(0)).square().sum()
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice \(create_graph=True\)"):
        loss.backward(create_graph=True)
    assert torch.equal(layer.weight, embedding().weight)


def test_asking_for_the_gradient_of_the_weight_is_refused() -> None:
    layer = embedding(SGD(lr=0.1))
    with pytest.raises(RuntimeError, match=r"torch.autograd.grad\(\) was asked for the gradient of a fused"):
        torch.autograd.grad(layer(ids_of(0)).sum(), [layer.weight])
    assert torch.equal(layer.weight, embedding().weight)
    layer(ids_of(0)).sum().backward(inputs=[layer.weight])
    assert steps(layer) == 1


def test_gradients_from_elsewhere_are_not_lost_in_silence() -> None:
    layer = embedding(SGD(lr=0.1))
    (layer(ids_of(0)).sum() + layer.weight.sum()).backward()
    assert steps(layer) == 1
    with pytest.raises(
        RuntimeError, match=r"FusedOptimizer.step\(\): the weight of a fused layer has a .grad"
    ):
        optimizer_of(layer).step()
    with pytest.warns(UserWarning, match=r"the weight of a fused layer has a .grad"):
        layer(ids_of(0))
    layer(ids_of(0))  # once
    optimizer_of(layer).zero_grad()
    optimizer_of(layer).step()


def test_hooks_on_the_weight_are_refused() -> None:
    layer = embedding(SGD(lr=0.1))
    handle = layer.weight.register_hook(lambda gradient: gradient)
    with pytest.raises(RuntimeError, match="has gradient hooks"):
        layer(ids_of(0))
    handle.remove()
    layer.weight.register_post_accumulate_grad_hook(lambda _: None)
    with pytest.raises(RuntimeError, match="has gradient hooks"):
        layer(ids_of(0))


def test_functorch_is_refused_and_functional_call_works() -> None:
    layer = embedding(SGD(lr=0.1))
    with pytest.raises(RuntimeError, match=r"no functional gradient \(torch.func.grad, vmap, jvp\)"):
        torch.func.grad(lambda x: (layer(ids_of(0)) * x).sum())(torch.ones(D).double())
    with pytest.raises(RuntimeError, match="no functional gradient"):
        torch.func.vmap(layer)(ids_of(0, 2, 3))
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(layer)(ids_of(0, 2, 3)), layer(ids_of(0, 2, 3)))

    def loss(weight: Tensor) -> Tensor:
        return loss_of(torch.func.functional_call(layer, {"weight": weight}, (ids_of(0),)))

    outside = embedding()
    loss_of(outside(ids_of(0))).backward()
    assert outside.weight.grad is not None
    given_weight = layer.weight.detach().clone().requires_grad_()
    loss(given_weight).backward()
    for gradient in (given_weight.grad, torch.func.grad(loss)(layer.weight.detach())):
        torch.testing.assert_close(gradient, outside.weight.grad.to_dense(), rtol=1e-12, atol=1e-13)
    assert steps(layer) == 0
    loss(layer.weight).backward()  # its own Parameter, given back
    assert steps(layer) == 1


def test_replicas_and_computed_weights_are_refused() -> None:
    layer = embedding(SGD(lr=0.1))
    replica = layer._replicate_for_data_parallel()
    replica.weight = layer.weight.detach().clone().requires_grad_()  # as broadcast copies are
    with pytest.raises(RuntimeError, match=r"cannot be replicated by nn.DataParallel"):
        replica(ids_of(0))
    nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(
        RuntimeError, match=r"cannot be computed from another one \(parametrize, weight norm\)"
    ):
        layer(ids_of(0))


def test_nested_ids_are_refused() -> None:
    layer = embedding(SGD(lr=0.1))
    nested = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged)
    with pytest.raises(RuntimeError, match="takes plain tensors on cpu, got a nested tensor"):
        fused.lookup(layer, nested)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_is_refused_unless_it_ignores_the_table(one_process: None) -> None:
    model = Model(SGD(lr=0.1))
    replicated = nn.parallel.DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match=r"DistributedDataParallel averages gradients.*ShardedEmbedding"):
        replicated(ids_of(0))
    ignore = nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, ["table.weight"])
    nn.parallel.DistributedDataParallel(model)(ids_of(0)).sum().backward()
    assert steps(model.table) == 1
    assert model.out.weight.grad is not None


# --- compiled and exported -------------------------------------------------------------------------


# Where a graph breaks at a tensor inside of the graph, dynamo looks for its .grad.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_code_breaks_its_graph_and_updates_once() -> None:
    plain, model = Model(Adagrad(lr=0.1)), Model(Adagrad(lr=0.1))
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(3):
        plain(ids_of(seed)).sum().backward()
        compiled(ids_of(seed)).sum().backward()
    assert steps(model.table) == 3
    torch.testing.assert_close(model.table.weight, plain.table.weight, rtol=1e-12, atol=1e-13)
    torch._dynamo.reset()
    pooled, plain_bags = (Bags(SGD(lr=0.1), mode="mean") for _ in range(2))
    torch.compile(pooled, backend="aot_eager")(ids_of(0), STARTS).sum().backward()
    plain_bags(ids_of(0), STARTS).sum().backward()
    assert torch.equal(pooled.weight, plain_bags.weight) and not torch.equal(
        pooled.weight, embedding().weight
    )
    torch._dynamo.reset()
    whole = torch.compile(Model(SGD(lr=0.1)), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="firth: a fused layer updates its table inside backward"):
        whole(ids_of(0))
    with torch.no_grad():
        whole(ids_of(0))  # a plain lookup compiles
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_autograd_is_refused() -> None:
    layer = embedding(SGD(lr=0.1))
    with (
        torch._dynamo.config.patch(compiled_autograd=True),
        pytest.raises(RuntimeError, match="outside of it"),
    ):
        torch.compile(lambda: layer(ids_of(0)).sum().backward(), backend="eager")()
    assert torch.equal(layer.weight, embedding().weight)
    torch._dynamo.reset()


def test_export_looks_up() -> None:
    model = Model(SGD(lr=0.1))
    program = torch.export.export(model, (ids_of(0),))
    torch.testing.assert_close(program.module()(ids_of(1)), model(ids_of(1)))
    assert steps(model.table) == 0
