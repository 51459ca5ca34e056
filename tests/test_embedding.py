"""``firth.nn.Embedding`` against ``torch.nn.Embedding``, against its documentation, and on bad input."""

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import firth.nn
from firth.errors import FirthError
from firth.kernels import pages
from firth.nn import SGD, Embedding, checks, functional
from firth.nn.renorm import renorm
from firth.vocab import Vocab

N, D = 7, 3


@pytest.fixture(autouse=True, scope="module")
def our_kernels() -> Iterator[None]:
    """The tests' small lookups go to our kernels, as large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "SMALL", 0)
        yield


def pair(dtype: torch.dtype = torch.float32, **arguments: Any) -> tuple[Embedding, torch.nn.Embedding]:
    """Our layer and torch's, with the same weight."""
    ours = Embedding(N, D, dtype=dtype, **arguments)
    theirs = torch.nn.Embedding(N, D, _weight=ours.weight.detach().clone(), **arguments)
    return ours, theirs


# -- the same as torch


@settings(deadline=None, max_examples=80)
@given(
    ids=st.lists(st.integers(0, N - 1), max_size=12),
    shape=st.sampled_from(["flat", "rows", "last", "strided"]),
    ids_dtype=st.sampled_from([torch.int64, torch.int32]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    padding_idx=st.sampled_from([None, 0, 3, -1]),
    max_norm=st.sampled_from([None, 0.5, 1, 1.7]),
    norm_type=st.sampled_from([2.0, 1.0, math.inf, 3.0]),
    scale_grad_by_freq=st.booleans(),
    sparse=st.booleans(),
)
def test_same_values_gradients_and_weights(
    ids: list[int],
    shape: str,
    ids_dtype: torch.dtype,
    dtype: torch.dtype,
    padding_idx: int | None,
    max_norm: float | None,
    norm_type: float,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> None:
    arguments = {"padding_idx": padding_idx, "max_norm": max_norm, "norm_type": norm_type, "sparse": sparse}
    ours, theirs = pair(dtype, scale_grad_by_freq=scale_grad_by_freq, **arguments)
    theirs.sparse = sparse and not scale_grad_by_freq  # torch refuses the two together
    given_ids = torch.tensor(ids, dtype=ids_dtype)
    if shape == "rows":
        given_ids = given_ids.reshape(1, -1, 1)
    elif shape == "last" and ids:
        given_ids = given_ids[-1]
    elif shape == "strided":
        given_ids = given_ids[::2]
    # In torch a 0-d id with padding_idx and sparse breaks backward: give it one dimension there.
    found, expected = ours(given_ids), theirs(given_ids.reshape(-1)).reshape(*given_ids.shape, D)
    rounding = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=rounding, atol=rounding)
    gradient = torch.randn_like(expected)
    found.backward(gradient)
    expected.backward(gradient)
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    assert ours.weight.grad.is_sparse == sparse
    assert ours.weight.grad.dtype == dtype
    found_gradient, expected_gradient = ours.weight.grad.to_dense(), theirs.weight.grad.to_dense()
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=3 * rounding, atol=5 * rounding)


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(name, one.default) for name, one in inspect.signature(function).parameters.items()]


def test_signatures_begin_as_torchs() -> None:
    theirs = parameters(torch.nn.Embedding.__init__)
    assert parameters(Embedding.__init__)[: len(theirs)] == theirs
    assert parameters(Embedding.from_pretrained) == parameters(torch.nn.Embedding.from_pretrained)
    more = list(inspect.signature(Embedding).parameters.values())[len(theirs) - 1 :]
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in more)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding_idx": 0},
        {"padding_idx": -1, "max_norm": 1.0},
        {"max_norm": 2, "norm_type": 1.0},
        {"scale_grad_by_freq": True, "sparse": True},
        {"norm_type": 2, "_freeze": True},
    ],
)
def test_same_repr_attributes_and_state(arguments: dict[str, Any]) -> None:
    ours, theirs = pair(**arguments)
    assert isinstance(ours, torch.nn.Embedding)
    assert repr(ours) == repr(theirs)
    assert {name: getattr(ours, name) for name in theirs.__constants__} == {
        name: getattr(theirs, name) for name in theirs.__constants__
    }
    assert ours.weight.requires_grad == theirs.weight.requires_grad
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    ours.load_state_dict(torch.nn.Embedding(N, D).state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("huge", [False, True])
def test_same_initial_values_for_a_seed(
    dtype: torch.dtype, huge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if huge:
        monkeypatch.setattr(pages, "HUGE", 1000)
    torch.manual_seed(3)
    theirs = torch.nn.Embedding(400, 5, padding_idx=2, dtype=dtype)
    after = torch.rand(1)
    torch.manual_seed(3)
    ours = Embedding(400, 5, padding_idx=2, dtype=dtype)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(torch.rand(1), after)


def test_large_weights_ask_for_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    empty = pages.empty
    monkeypatch.setattr(pages, "HUGE", 1000)
    monkeypatch.setattr(pages, "empty", lambda *given: asked.append(given) or empty(*given))
    Embedding(1000, 5)
    assert asked == [((1000, 5), torch.float32)]
    Embedding(5, 5)
    Embedding(1000, 5, device="meta")
    with torch.device("meta"):
        assert Embedding(1000, 5).weight.is_meta
    assert len(asked) == 1
    assert torch.nn.utils.skip_init(Embedding, 1000, 5).weight.shape == (1000, 5)


def test_from_pretrained_shares_memory() -> None:
    values = torch.randn(4, 3)
    layer = Embedding.from_pretrained(values, padding_idx=1)
    assert layer.weight.data_ptr() == values.data_ptr()
    assert not layer.weight.requires_grad
    assert values[1].any()  # the padding row keeps its values
    assert Embedding.from_pretrained(values, freeze=False).weight.requires_grad
    columns = torch.randn(3, 4).T
    assert Embedding.from_pretrained(columns).weight.stride() == columns.stride()
    assert torch.equal(Embedding.from_pretrained(columns)(torch.tensor([2, 0])), columns[[2, 0]])
    whole = torch.arange(6).reshape(2, 3)
    assert torch.equal(Embedding.from_pretrained(whole)(torch.tensor(1)), whole[1])


@pytest.mark.parametrize("sizes", [(0, 3), (5, 0), (0, 0)])
@pytest.mark.parametrize("sparse", [False, True])
def test_empty_tables_and_batches(sizes: tuple[int, int], sparse: bool) -> None:
    layer = Embedding(*sizes, sparse=sparse)
    ids = torch.zeros(2 if sizes[0] else 0, 2, dtype=torch.int64)
    found = layer(ids)
    assert found.shape == (*ids.shape, sizes[1])
    found.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == sizes


def test_sparse_gradients_have_an_entry_a_place_in_input_order() -> None:
    layer = Embedding(N, D, sparse=True, padding_idx=5)
    ids = torch.tensor([[4, 1], [5, 4]], dtype=torch.int32)
    gradient = torch.randn(2, 2, D)
    layer(ids).backward(gradient)
    found = layer.weight.grad
    assert found is not None
    assert not found.is_coalesced()
    assert found._indices().tolist() == [[4, 1, 4]]
    assert found._indices().dtype == torch.int64
    assert torch.equal(found._values(), gradient.reshape(4, D)[[0, 1, 3]])
    ids = torch.tensor([4, 1])
    (found,) = torch.autograd.grad(layer(ids).sum(), layer.weight)
    ids[0] = 2  # the gradient does not see what becomes of the ids
    assert found._indices().tolist() == [[4, 1]]


def test_sparse_gradients_of_two_lookups_are_joined() -> None:
    for layer in pair(sparse=True):
        layer(torch.tensor([4, 1])).sum().backward()
        layer(torch.tensor([[2], [4]])).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad._indices().tolist() == [[4, 1, 2, 4]]


# -- what torch's own tests miss, and what torch gets wrong


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scale_grad_by_freq_divides_by_the_places_of_one_forward(sparse: bool, dtype: torch.dtype) -> None:
    layer = Embedding(N, D, scale_grad_by_freq=True, sparse=sparse, padding_idx=6, dtype=dtype)
    ids = torch.tensor([[0, 1, 0], [0, 6, 6]])
    gradient = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 9.0]).reshape(2, 3, 1).expand(2, 3, D).to(dtype)
    for times in (1, 2):  # a second call counts for itself
        layer(ids).backward(gradient)
        assert layer.weight.grad is not None
        expected = torch.tensor([3.0, 2.0, 0, 0, 0, 0, 0]) * times
        torch.testing.assert_close(layer.weight.grad.to_dense()[:, 0].float(), expected)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_scale_grad_by_freq_is_right_in_the_second_derivative(padding_idx: int | None) -> None:
    weight = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 0, 2, 0])
    factor = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def summed(factor: Tensor) -> Tensor:
        found = functional.lookup(weight, ids, padding_idx, scale_grad_by_freq=True)
        return torch.autograd.grad((found * factor).sum(), weight, create_graph=True)[0]

    assert torch.autograd.gradcheck(summed, (factor,))
    assert torch.autograd.gradgradcheck(summed, (factor,))


@pytest.mark.parametrize("ids", [[N], [-1], [0, 1, N + 90], [-(2**40)], [2**40]])
@pytest.mark.parametrize("arguments", [{}, {"max_norm": 1.0}, {"sparse": True}, {"padding_idx": 0}])
def test_ids_outside_are_refused_not_clamped(ids: list[int], arguments: dict[str, Any]) -> None:
    layer = Embedding(N, D, **arguments)
    before = layer.weight.detach().clone()
    with pytest.raises(IndexError, match=f"id {ids[-1]} at position .*table of 7 rows"):
        layer(torch.tensor(ids))
    with torch.no_grad(), pytest.raises(RuntimeError):  # EmbeddingBag raises this one in torch
        layer(torch.tensor(ids))
    assert torch.equal(layer.weight, before)


def test_functions_check_ids_themselves() -> None:
    weight = torch.ones(3, 2)
    for ids in (torch.tensor([3]), torch.nn.Parameter(torch.tensor([3]), requires_grad=False)):
        with pytest.raises(IndexError, match=r"functional\.lookup: id 3 at position"):
            functional.lookup(weight, ids)
        with pytest.raises(IndexError, match="renorm: id 3 at position"):
            renorm(weight, ids, 1.0)
    with pytest.raises(RuntimeError, match="'weight' must be 2-D"):
        functional.lookup(torch.ones(3), torch.tensor([0]))
    with pytest.raises(AssertionError, match="padding_idx must be within"):
        functional.lookup(weight, torch.tensor([0]), padding_idx=3)


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 256), (torch.float16, 2048)])
@pytest.mark.parametrize("sparse", [False, True])
def test_half_types_sum_repeats_in_float32(dtype: torch.dtype, most: int, sparse: bool) -> None:
    ours, theirs = pair(dtype, sparse=sparse)
    ids = torch.full((4096,), 2)
    for layer in (ours, theirs):
        layer(ids).sum().backward()
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    assert ours.weight.grad.to_dense()[2].tolist() == [4096.0] * D
    assert theirs.weight.grad.to_dense()[2].tolist() == [float(most)] * D  # why this differs


def test_sparse_half_gradients_keep_the_order_of_first_places() -> None:
    layer = Embedding(N, D, sparse=True, dtype=torch.bfloat16)
    layer(torch.tensor([6, 1, 3, 1, 6, 1])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad._indices().tolist() == [[6, 1, 3]]
    assert layer.weight.grad._values()[:, 0].tolist() == [2, 3, 1]


@pytest.mark.parametrize("sparse", [False, True])
def test_small_lookups_are_torchs(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(sparse=sparse, padding_idx=1)
    ids = torch.tensor([[1, 2], [2, 0]])
    kinds = []
    for small in (0, 1000):
        monkeypatch.setattr(functional, "SMALL", small)
        found = ours(ids)
        found.sum().backward()
        kinds.append(type(found.grad_fn).__name__)
        assert torch.equal(found, theirs(ids))
    assert kinds == ["_LookupBackward", "EmbeddingBackward0"]
    assert ours.weight.grad is not None
    assert ours.weight.grad.to_dense()[:, 0].tolist() == [2, 0, 4, 0, 0, 0, 0]
    with pytest.raises(IndexError, match="id 7 at position"):
        ours(torch.tensor([7]))


# -- max_norm


def test_max_norm_shortens_the_rows_looked_up_once_a_forward() -> None:
    layer = Embedding.from_pretrained(torch.tensor([[3.0, 4.0]] * 5), freeze=False, max_norm=1.0)
    version = layer.weight._version
    found = layer(torch.tensor([[1, 3], [3, 1]]))
    assert layer.weight._version == version + 1
    torch.testing.assert_close(found.detach(), torch.tensor([0.6, 0.8]).expand(2, 2, 2))
    torch.testing.assert_close(layer.weight[[1, 3]].detach(), torch.tensor([[0.6, 0.8]] * 2))
    assert layer.weight[[0, 2, 4]].tolist() == [[3, 4]] * 3
    layer(torch.tensor([], dtype=torch.int64))
    assert layer.weight._version == version + 2
    found.sum().backward()  # the norm is no part of the graph
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[0, 0], [2, 2], [0, 0], [2, 2], [0, 0]]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_max_norm_holds_in_evaluation_and_without_gradients(mode: Any) -> None:
    layer = Embedding.from_pretrained(torch.tensor([[3.0, 4.0]] * 5), max_norm=1.0).eval()
    with mode():
        assert layer(torch.tensor(2)).norm() <= 1
    assert layer.weight[2].norm() <= 1
    with torch.inference_mode():
        made_there = Embedding(N, D, max_norm=0.01)
        assert made_there(torch.arange(N)).norm(dim=1).max() <= 0.011


def test_max_norm_and_a_weight_used_before() -> None:
    """The example of torch's documentation: the weight must be cloned before it is used in the same graph."""
    n, dim, m = 3, 5, 7
    layer = Embedding(n, dim, max_norm=1.0)
    matrix = torch.randn((m, dim), requires_grad=True)
    ids = torch.tensor([1, 2])
    first = layer.weight.clone() @ matrix.t()
    second = layer(ids) @ matrix.t()
    (first.unsqueeze(0) + second.unsqueeze(1)).sigmoid().prod().backward()
    assert layer.weight.grad is not None
    first = layer.weight @ matrix.t()
    second = layer(ids) @ matrix.t()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (first.unsqueeze(0) + second.unsqueeze(1)).sigmoid().prod().backward()


def test_max_norm_true_is_one_and_false_is_refused() -> None:
    with pytest.warns(UserWarning, match=r"True is taken as 1\.0"):
        layer = Embedding(N, D, max_norm=True)
    assert layer.max_norm == 1.0
    assert type(layer.max_norm) is float
    with pytest.raises(ValueError, match="max_norm=None for no limit"):
        Embedding(N, D, max_norm=False)
    layer.max_norm = False
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="wipes every row"):
        layer(torch.tensor([1]))
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("max_norm", [0, 0.0, -1.0, math.nan, -math.inf])
def test_max_norm_must_be_positive(max_norm: float) -> None:
    with pytest.raises(ValueError, match="max_norm must be positive"):
        Embedding(N, D, max_norm=max_norm)
    with pytest.raises(ValueError, match="max_norm must be positive"):
        Embedding.from_pretrained(torch.ones(2, 2), max_norm=max_norm)


def test_max_norm_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="must be a float or None, not str"):
        Embedding(N, D, max_norm="1")  # type: ignore[arg-type]
    assert Embedding(N, D, max_norm=np.float32(2)).max_norm == 2


# -- bad input


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.uint8, torch.bool])
def test_ids_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match="must be int64 or int32, got torch"):
        Embedding(N, D)(torch.tensor([1], dtype=dtype))
    with pytest.raises(RuntimeError, match="scalar types: Long, Int"):  # torch's words
        Embedding(N, D, max_norm=1.0)(torch.tensor([], dtype=dtype))


@pytest.mark.parametrize("ids", [[1, 2], 1, np.array([1, 2]), "word", None, (1,), 1.5])
def test_ids_that_are_no_tensor(ids: Any) -> None:
    with pytest.raises(TypeError, match="Tensor"):
        Embedding(N, D)(ids)


def test_the_position_of_a_wrong_id() -> None:
    layer = Embedding(5, 2)
    with pytest.raises(IndexError) as caught:
        layer(torch.tensor([[0, 1, 2, 3], [3, 2, 1, 7]]))
    assert isinstance(caught.value, FirthError)
    assert str(caught.value) == (
        "firth.nn.Embedding: id 7 at position [1, 3] is outside the table of 5 rows (0 to 4)"
    )
    with pytest.raises(IndexError, match=r"id 5 is outside the table of 5 rows \(0 to 4\)"):
        layer(torch.tensor(5))
    with pytest.raises(IndexError, match=r"id -2 at position \[1\].*do not count from the end"):
        layer(torch.tensor([0, -2]))
    with pytest.raises(IndexError, match=r"id 0 at position \[0\] is outside the table of 0 rows"):
        Embedding(0, 2)(torch.tensor([0]))
    with pytest.raises(IndexError, match="table of 1 row "):
        Embedding(1, 2)(torch.tensor([1]))


@pytest.mark.parametrize("padding_idx", [N, -N - 1, 25])
def test_padding_outside(padding_idx: int) -> None:
    with pytest.raises(AssertionError, match=f"within num_embeddings, -7 to 6, got {padding_idx}"):
        Embedding(N, D, padding_idx=padding_idx)
    with pytest.raises(AssertionError):
        Embedding.from_pretrained(torch.ones(N, D), padding_idx=padding_idx)


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(AssertionError, match=r"does not match .*: \(2, 3\) is not \(7, 3\)"):
        Embedding(N, D, _weight=torch.ones(2, 3))
    with pytest.raises(AssertionError, match=r"2-dimensional .* got the shape \(4,\)"):
        Embedding.from_pretrained(torch.ones(4))
    with pytest.raises(TypeError, match=r"must be a Tensor, got ndarray; torch\.as_tensor"):
        Embedding.from_pretrained(np.ones((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="negative dimension"):
        Embedding(-1, 3)
    with pytest.raises(TypeError):
        Embedding(1.5, 3)  # type: ignore[arg-type]


# -- words


def test_words_are_looked_up() -> None:
    layer = Embedding(Vocab(["hey", "there"]), 3)
    assert layer.weight.shape == (2, 3)
    assert torch.equal(layer(["there", "hey"]), layer(torch.tensor([1, 0])))
    assert torch.equal(layer("hey"), layer.weight[0])
    layer([["hey"], ["hey"]]).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[2, 2, 2], [0, 0, 0]]
    with pytest.raises(KeyError, match="hey"):
        layer(["hej"])


# -- tables in files


def test_a_table_in_a_file(tmp_path: Path) -> None:
    path, recipe = tmp_path / "table.bin", firth.nn.Adagrad(lr=0.1)
    torch.manual_seed(3)
    theirs = torch.nn.Embedding(N, D, padding_idx=1)
    torch.manual_seed(3)
    layer = Embedding(N, D, padding_idx=1, max_norm=1.0, fused=recipe, storage=path)
    assert torch.equal(layer.weight, theirs.weight)
    assert layer.file is not None
    layer(torch.tensor([0, 2, 2])).sum().backward()
    values = layer.weight.detach().clone()
    layer.load_state_dict({"weight": values * 2})
    layer.file.close()
    reader = Embedding(N, D, storage=path)
    assert torch.equal(reader.weight, values * 2)
    assert not reader.weight.requires_grad
    again = Embedding(N, D, fused=recipe, storage=path)
    assert again.optimizer is not None
    assert again.optimizer.steps == 1
    again.file.close()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="holds a table already"):
        Embedding(N, D, storage=path, fused=recipe, _weight=values)
    with pytest.raises(ValueError, match="leave device='cuda' out"):
        Embedding(N, D, storage=path, fused=recipe, device="cuda")


LARGE_IDS = torch.arange(24_000).remainder(1000).view(3, 8000)  # more than functional.SMALL


@pytest.mark.parametrize("wrong", [-1, 1000, 2**31 - 1])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sparse": True},
        {"_freeze": True},
        {"scale_grad_by_freq": True},
        {"max_norm": 1e9},
        {"fused": SGD(1.0)},
    ],
)
def test_an_id_outside_among_many_is_named(wrong: int, arguments: dict[str, Any]) -> None:
    """Here the kernel looks, and checks.check_ids says it."""
    layer = Embedding(1000, 128, **arguments)
    before = layer.weight.detach().clone()
    for dtype in (torch.int64, torch.int32):
        ids = LARGE_IDS.to(dtype, copy=True)
        assert torch.equal(layer(ids), before[ids.long()])
        ids[1, 17] = wrong
        for form in (ids, ids.T.contiguous().T):
            with pytest.raises(
                checks.OutsideTable, match=rf"id {wrong} at position \[1, 17\] is outside the table"
            ):
                layer(form)
    assert torch.equal(layer.weight.detach(), before)


@pytest.mark.parametrize("arguments", [{}, {"fused": SGD(1.0)}])
def test_many_float_ids_are_refused(arguments: dict[str, Any]) -> None:
    layer = Embedding(1000, 128, **arguments)
    for dtype in (torch.float32, torch.bool, torch.int16):
        with pytest.raises(checks.WrongIds, match="must be int64 or int32"):
            layer(LARGE_IDS.to(dtype))
