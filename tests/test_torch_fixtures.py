"""The fixtures that the torch wheel ships for its own layers, run through ours: operator samples, modules."""

import copy
import io
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import firth.nn

try:
    # A private interface, and it wants the package expecttest.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_nn
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
except ImportError as error:
    pytest.skip(f"torch's test fixtures cannot be loaded: {error}", allow_module_level=True)

OPS = {op.name: op for op in op_db if op.name in ("nn.functional.embedding", "nn.functional.embedding_bag")}
MODULES = [info for info in module_db if info.name in ("nn.Embedding", "nn.EmbeddingBag")]
CASES = [
    case
    for case in common_nn.get_new_module_tests()
    if str(case.get("module_name") or case.get("fullname")).startswith(("Embedding", "EmbeddingBag"))
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OURS = {"Embedding": firth.nn.Embedding, "EmbeddingBag": getattr(firth.nn, "EmbeddingBag", None)}


def same(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    """Equal to rounding; torch sums repeats of half types in their own precision, we in float32."""
    ours, theirs = ours.to_dense(), theirs.to_dense()
    assert ours.dtype == theirs.dtype
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(dtype)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_the_fixtures_were_found() -> None:
    assert set(OPS) == {"nn.functional.embedding", "nn.functional.embedding_bag"}
    assert MODULES
    assert len(CASES) >= 11


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("trained", [False, True])
def test_operator_samples_of_embedding(dtype: torch.dtype, trained: bool) -> None:
    samples = list(OPS["nn.functional.embedding"].sample_inputs("cpu", dtype, requires_grad=False))
    assert len(samples) >= 10
    for sample in samples:
        weight, (ids, *rest), settings = sample.input, sample.args, sample.kwargs
        # In these samples the table is the argument and the ids are the input, or the other way round.
        ids, weight = (ids, weight) if weight.dtype == dtype else (weight, ids)
        assert not rest
        theirs = weight.detach().clone().requires_grad_(trained)
        # torch refuses scale_grad_by_freq together with sparse in its backward.
        sparse = settings.get("sparse", False) and not settings.get("scale_grad_by_freq", False)
        expected = F.embedding(ids, theirs, **(settings | {"sparse": sparse}))
        layer = firth.nn.Embedding(
            *weight.shape, _weight=weight.detach().clone(), _freeze=not trained, **settings
        )
        found = layer(ids)
        same(found.detach(), expected.detach(), dtype)
        same(layer.weight.detach(), theirs.detach(), dtype)
        assert found.requires_grad == expected.requires_grad
        if trained:
            gradient = torch.randn_like(expected)
            expected.backward(gradient)
            found.backward(gradient)
            assert layer.weight.grad is not None
            assert theirs.grad is not None
            assert layer.weight.grad.is_sparse == settings.get("sparse", False)
            same(layer.weight.grad, theirs.grad, dtype)


def reduced(ids: Tensor, weight: Tensor, settings: dict[str, Any]) -> Tensor:
    """A bag as its documentation says: look up, then reduce each bag. What torch gets wrong is right here:
    ``scale_grad_by_freq`` divides by the number of places in the mini-batch."""
    offsets, mode = settings.get("offsets"), settings.get("mode", "mean")
    padding = settings.get("padding_idx")
    factors = settings.get("per_sample_weights")
    flat = ids.reshape(-1)
    starts = list(range(0, ids.numel() + 1, ids.size(1))) if offsets is None else offsets.tolist()
    if offsets is not None and not settings.get("include_last_offset"):
        starts.append(ids.numel())
    looked_up = {
        name: settings[name] for name in ("max_norm", "norm_type", "scale_grad_by_freq") if name in settings
    }
    rows = F.embedding(flat, weight, padding, **looked_up)
    if factors is not None:
        rows = rows * factors.reshape(-1, 1)
    bags = []
    for start, end in itertools.pairwise(starts):
        bag = rows[start:end]
        if padding is not None:
            bag = bag[flat[start:end] != padding % len(weight)]
        if mode == "max":
            bags.append(bag.max(0).values if len(bag) else weight.new_zeros(weight.size(1)))
        else:
            bags.append(bag.sum(0) if mode == "sum" or not len(bag) else bag.mean(0))
    return torch.stack(bags)


@pytest.mark.skipif(OURS["EmbeddingBag"] is None, reason="no EmbeddingBag")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("trained", [False, True])
def test_operator_samples_of_embedding_bag(dtype: torch.dtype, trained: bool) -> None:
    samples = list(OPS["nn.functional.embedding_bag"].sample_inputs("cpu", dtype, requires_grad=False))
    assert len(samples) >= 40
    for sample in samples:
        weight, ids = sample.input, sample.args[0]
        ids, weight = (ids, weight) if weight.dtype == dtype else (weight, ids)
        settings = dict(sample.kwargs)
        offsets, factors = settings.pop("offsets", None), settings.pop("per_sample_weights", None)
        theirs = weight.detach().clone().requires_grad_(trained)
        if settings.get("scale_grad_by_freq"):
            expected = reduced(ids, theirs, sample.kwargs)
        else:
            expected = F.embedding_bag(ids, theirs, offsets, per_sample_weights=factors, **settings)
        layer = firth.nn.EmbeddingBag(*weight.shape, _weight=weight.detach().clone(), **settings)
        layer.requires_grad_(trained)
        found = layer(ids, offsets, factors)
        same(found.detach(), expected.detach(), dtype)
        same(layer.weight.detach(), theirs.detach(), dtype)
        if trained:
            gradient = torch.randn_like(expected)
            expected.backward(gradient)
            found.backward(gradient)
            assert layer.weight.grad is not None
            assert theirs.grad is not None
            same(layer.weight.grad, theirs.grad, dtype)


@pytest.mark.parametrize("info", MODULES, ids=lambda info: info.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_modules(info: Any, dtype: torch.dtype) -> None:
    ours = OURS[info.module_cls.__name__]
    if ours is None:
        pytest.skip("no EmbeddingBag")
    for sample in info.module_inputs_func(info, "cpu", dtype, True, True):
        arguments, settings = sample.constructor_input.args, sample.constructor_input.kwargs
        check_module(ours(*arguments, **settings, dtype=dtype), info.module_cls, sample.forward_input.args[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.get("fullname") or case["module_name"])
def test_module_cases(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(case.get("fullname") or case.get("module_name")).partition("_")[0]
    theirs, ours = getattr(torch.nn, name), OURS[name]
    if ours is None:
        pytest.skip("no EmbeddingBag")
    monkeypatch.setattr(torch.nn, name, ours)  # some cases come as functions that make the layer
    make: Callable[..., Any] = case.get("constructor") or ours
    dtype = case.get("default_dtype", torch.float32)
    layer = make(*case.get("constructor_args", ())).to(dtype)
    assert type(layer) is ours
    check_module(layer, theirs, case["input_fn"]())


def check_module(layer: Any, base: type[torch.nn.Module], ids: Tensor) -> None:
    """Against torch's class with the same weight: values, gradients, repr, state_dict, copies, pickles."""
    settings = {key: getattr(layer, key) for key in base.__constants__}  # type: ignore[attr-defined]
    other: Any = base(**settings, _weight=layer.weight.detach().clone())
    assert isinstance(layer, base)
    assert repr(layer) == repr(other)
    assert layer.state_dict().keys() == other.state_dict().keys()
    gradient = torch.randn_like(other(ids))
    other(ids).backward(gradient)
    pickled = io.BytesIO()
    torch.save(layer, pickled)
    pickled.seek(0)
    for one in (layer, copy.deepcopy(layer), torch.load(pickled, weights_only=False)):
        one.zero_grad()
        found = one(ids)
        found.backward(gradient)
        same(found.detach(), other(ids).detach(), found.dtype)
        same(one.weight.grad, other.weight.grad, found.dtype)
    if layer.weight.dtype == torch.float64 and layer.padding_idx is None and ids.numel() < 100:

        def looked_up(weight: Tensor) -> Tensor:
            return torch.func.functional_call(layer, {"weight": weight}, (ids,))  # type: ignore[no-any-return]

        assert torch.autograd.gradcheck(looked_up, (layer.weight,), masked=layer.sparse)
