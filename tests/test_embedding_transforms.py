"""``firth.nn.Embedding`` under what torch does to modules: compilers, transforms, copies, pickles."""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import firth.nn
from firth.nn import Embedding, checks, functional

N, D = 7, 3
IDS = torch.tensor([[1, 2, 1], [6, 0, 2]])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"padding_idx": 2},
    {"sparse": True},
    {"scale_grad_by_freq": True},
    {"scale_grad_by_freq": True, "sparse": True},
    {"max_norm": 0.5},
    {"max_norm": 0.5, "sparse": True, "padding_idx": 2},
    {"scale_grad_by_freq": True, "sparse": True, "padding_idx": 1},
]
every_setting = pytest.mark.parametrize("arguments", SETTINGS, ids=lambda one: "-".join(one) or "plain")


@pytest.fixture(autouse=True, scope="module")
def our_kernels() -> Iterator[None]:
    """The tests' small lookups go to our kernels, as large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "SMALL", 0)
        yield


def gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad.to_dense()


def twin(layer: Embedding) -> Embedding:
    return copy.deepcopy(layer)


# torch warns of itself when it compiles and differentiates.
of_its_own = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@of_its_own
@every_setting
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_a_graph_break(arguments: dict[str, Any], backend: str) -> None:
    torch.compiler.reset()
    layer = Embedding(N, D, **arguments)
    plain = twin(layer)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    factor = torch.randn(*IDS.shape, D)
    for _ in range(2):
        found = compiled(IDS)
        torch.testing.assert_close(found, plain(IDS))
        found.backward(factor)
        plain(IDS).backward(factor)
    torch.testing.assert_close(layer.weight, plain.weight)
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_sparse == layer.sparse
    torch.testing.assert_close(gradient(layer.weight), gradient(plain.weight))


@of_its_own
@every_setting
@pytest.mark.parametrize("strict", [False, True])
def test_exported(arguments: dict[str, Any], strict: bool) -> None:
    layer = Embedding(N, D, **arguments)
    plain = twin(layer)
    program = torch.export.export(layer, (IDS,), strict=strict)
    torch.testing.assert_close(program.module()(IDS), plain(IDS))


@every_setting
def test_functional_call_and_functorch(arguments: dict[str, Any]) -> None:
    layer = Embedding(N, D, dtype=torch.float64, **arguments)
    weight = layer.weight.detach().clone()
    factor = torch.randn(*IDS.shape, D, dtype=torch.float64)
    layer(IDS).backward(factor)

    def loss(weight: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, {"weight": weight}, (IDS,))
        return (found * factor).sum()

    leaf = weight.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(gradient(leaf), gradient(layer.weight))
    if layer.max_norm is None:
        torch.testing.assert_close(torch.func.grad(loss)(weight).to_dense(), gradient(layer.weight))
    if not layer.sparse and layer.max_norm is None:
        found = torch.func.vmap(lambda ids: torch.func.functional_call(layer, {"weight": weight}, (ids,)))(
            IDS
        )
        torch.testing.assert_close(found, weight[IDS])


def test_vmap_over_tables() -> None:
    layer = Embedding(N, D)
    tables = torch.randn(4, N, D)
    found = torch.func.vmap(lambda table: torch.func.functional_call(layer, {"weight": table}, (IDS,)))(
        tables
    )
    assert torch.equal(found, tables[:, IDS])


@of_its_own
def test_forward_mode() -> None:
    layer, tangent = Embedding(N, D), torch.randn(N, D)

    def looked_up(weight: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, {"weight": weight}, (IDS,))
        return found

    _, found = torch.func.jvp(looked_up, (layer.weight.detach(),), (tangent,))
    assert torch.equal(found, tangent[IDS])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(layer.weight.detach(), tangent)
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(looked_up(dual)).tangent, tangent[IDS])


@pytest.mark.parametrize(
    "arguments", [{}, {"padding_idx": 2}, {"sparse": True}, {"scale_grad_by_freq": True}]
)
def test_first_and_second_derivatives(arguments: dict[str, Any]) -> None:
    weight = torch.randn(N, D, dtype=torch.float64, requires_grad=True)

    def looked_up(weight: Tensor) -> Tensor:
        return functional.lookup(weight, IDS, **arguments).sin()

    if "padding_idx" in arguments or "scale_grad_by_freq" in arguments:
        # Not the derivative of the lookup by design: test the derivative of what it gives instead.
        factor = torch.randn(*IDS.shape, D, dtype=torch.float64, requires_grad=True)

        def back(factor: Tensor) -> Tensor:
            found = functional.lookup(weight, IDS, **arguments)
            return torch.autograd.grad(found, weight, factor, create_graph=True)[0]

        assert torch.autograd.gradcheck(back, (factor,))
        return
    if not arguments.get("sparse"):
        assert torch.autograd.gradcheck(looked_up, (weight,))
        assert torch.autograd.gradgradcheck(looked_up, (weight,))
        return
    (first,) = torch.autograd.grad(looked_up(weight).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.to_dense().sum(), weight)
    counts = torch.bincount(IDS.reshape(-1), minlength=N).unsqueeze(1)
    torch.testing.assert_close(second.to_dense(), -weight.detach().sin() * counts)


@every_setting
def test_copies_and_pickles(arguments: dict[str, Any]) -> None:
    layer = Embedding(N, D, **arguments)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    expected = layer(IDS).detach()
    for other in (twin(layer), loaded):
        assert type(other) is Embedding
        assert repr(other) == repr(layer)
        assert torch.equal(other(IDS), expected)
        assert other.weight.data_ptr() != layer.weight.data_ptr()
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    other = Embedding(N, D, **arguments)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(other(IDS), expected)


def test_automatic_mixed_precision() -> None:
    layer = Embedding(N, D, sparse=True)
    head = torch.nn.Linear(D, 2)
    optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = layer.weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(IDS)
        loss = head(found).float().square().sum()
    assert found.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    moved = (layer.weight != before).any(1)
    assert moved.tolist() == [True, True, True, False, False, False, True]


@pytest.mark.parametrize("reentrant", [False, True])
@every_setting
def test_gradient_checkpointing(arguments: dict[str, Any], reentrant: bool) -> None:
    layer = Embedding(N, D, **arguments)
    plain = twin(layer)
    head = torch.nn.Linear(D, 2)

    def model(start: Tensor, table: Embedding) -> Tensor:
        found: Tensor = head(table(IDS) + start).tanh()
        return found

    start = torch.zeros(D, requires_grad=True)  # reentrant checkpoints want an input that needs a gradient
    checkpoint(model, start, layer, use_reentrant=reentrant).sum().backward()
    model(start, plain).sum().backward()
    torch.testing.assert_close(gradient(layer.weight), gradient(plain.weight))


def test_meta_and_fake_tensors() -> None:
    layer = Embedding(N, D, device="meta")
    assert layer(IDS).is_meta
    assert layer(IDS.to("meta")).shape == (*IDS.shape, D)
    with torch._subclasses.FakeTensorMode():
        assert Embedding(N, D, max_norm=1.0)(torch.zeros(4, dtype=torch.int64)).shape == (4, D)


def test_nested_ids() -> None:
    layer = Embedding(N, D)
    ids = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged)
    found = layer(ids)
    assert [one.tolist() for one in found.unbind()] == [layer(one).tolist() for one in ids.unbind()]


def test_traced() -> None:
    layer = Embedding(N, D)
    with pytest.warns(DeprecationWarning):
        traced = torch.jit.trace(layer, (IDS,))
    other = torch.tensor([[5, 5]])
    assert torch.equal(traced(other), layer(other))


@every_setting
def test_symbolically_traced(arguments: dict[str, Any]) -> None:
    layer = Embedding(N, D, **arguments)
    expected = layer(IDS)
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    torch.testing.assert_close(traced(IDS), expected)
    with pytest.raises(IndexError, match="id 7 at position"):
        traced(torch.tensor([N]))


@pytest.mark.parametrize("arguments", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}])
def test_batched_gradients(arguments: dict[str, Any]) -> None:
    layer = Embedding(N, D, **arguments)
    found = layer(IDS)
    factors = torch.randn(4, *found.shape)
    (batched,) = torch.autograd.grad(found, layer.weight, factors, is_grads_batched=True, retain_graph=True)
    for one, factor in zip(batched, factors, strict=True):
        torch.testing.assert_close(one, *torch.autograd.grad(found, layer.weight, factor, retain_graph=True))


def test_wrapped_modules_find_it() -> None:
    model = torch.nn.Sequential(Embedding(N, D), torch.nn.Linear(D, 2))
    found = [one for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    assert len(found) == 1
    torch.nn.utils.parametrize.register_parametrization(found[0], "weight", torch.nn.Tanh())
    assert found[0](IDS).abs().max() <= 1
    model(IDS).sum().backward()


def test_a_context_for_factories_changes_nothing() -> None:
    layer = Embedding(N, D)
    with torch.device("cpu"):
        assert torch.equal(layer(IDS), layer.weight[IDS])


WATCHED: list[tuple[str, Callable[[], Any]]] = [
    ("a device context", lambda: torch.device("cpu")),
    ("forward differentiation", torch.autograd.forward_ad.dual_level),
    ("fake tensors", torch._subclasses.FakeTensorMode),
]


@pytest.mark.parametrize("watch", [one for _, one in WATCHED], ids=[name for name, _ in WATCHED])
def test_kernels_stay_out_of_watched_code(watch: Callable[[], Any]) -> None:
    layer = Embedding(N, D)
    assert checks.eager(layer.weight, IDS)
    with watch():
        assert not checks.eager(layer.weight, IDS)
    assert checks.eager(layer.weight, IDS)
    assert not checks.eager(layer.weight.to("meta"), IDS)
    assert not checks.eager(torch.ones(2, 2).to_sparse(), IDS)
    assert not checks.eager(torch.ones(2, 2, dtype=torch.complex64), IDS)


@every_setting
def test_the_plain_path_and_the_fast_path_agree(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Embedding(N, D, **arguments)
    plain = twin(layer)
    factor = torch.randn(*IDS.shape, D)
    found = layer(IDS)
    found.backward(factor)
    monkeypatch.setattr(checks, "eager", lambda *tensors: False)
    expected = plain(IDS)
    expected.backward(factor)
    assert found.grad_fn is not None
    assert expected.grad_fn is not None
    assert type(found.grad_fn) is not type(expected.grad_fn)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer.weight, plain.weight)
    torch.testing.assert_close(gradient(layer.weight), gradient(plain.weight))


def test_the_rows_of_a_fused_layer_move_in_backward() -> None:
    layer = Embedding(N, D, max_norm=1.0, padding_idx=0, scale_grad_by_freq=True, fused=firth.nn.SGD(lr=1.0))
    before = layer.weight.detach().clone().renorm(2, 0, 1.0)
    layer(torch.tensor([0, 4, 4, 2])).sum().backward()
    assert layer.weight.grad is None
    expected = before - torch.tensor([0.0, 0, 1, 0, 1, 0, 0]).unsqueeze(1)
    torch.testing.assert_close(layer.weight[[0, 2, 4]].detach(), expected[[0, 2, 4]], rtol=1e-5, atol=1e-5)
