"""EmbeddingBag against torch's own, where torch is right; against its documentation where it is not."""

import copy
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import firth
from firth.nn.bag import EmbeddingBag
from firth.nn.recipes import SGD, Adagrad

N, D = 11, 6
MODES = ("sum", "mean", "max")


def pair(**settings: object) -> tuple[EmbeddingBag, torch.nn.EmbeddingBag]:
    """Our layer and torch's with the same values."""
    weight = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = EmbeddingBag(N, D, _weight=weight.clone(), **settings)
    return ours, torch.nn.EmbeddingBag(N, D, _weight=weight.clone(), **settings)


def run(layer: torch.nn.EmbeddingBag, *arguments: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Output and gradient of the weight for a fixed gradient of the output."""
    layer.weight.grad = None
    out = layer(*arguments)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    out.backward(grad)
    return out.detach(), layer.weight.grad


IDS = torch.tensor([1, 2, 2, 9, 4, 10, 2, 0, 1])
OFFSETS = torch.tensor([0, 3, 3, 8])


# --- equal to torch -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    sparse=st.booleans(),
    padding_idx=st.sampled_from([None, 2, -1]),
    max_norm=st.sampled_from([None, 1.5]),
    matrix=st.booleans(),
    int32=st.booleans(),
    weighted=st.booleans(),
    last=st.booleans(),
    data=st.data(),
)
def test_output_and_gradient_are_torchs(
    mode, sparse, padding_idx, max_norm, matrix, int32, weighted, last, data
):
    sparse = sparse and mode != "max"
    ours, torchs = pair(
        mode=mode, sparse=sparse, padding_idx=padding_idx, max_norm=max_norm, include_last_offset=last
    )
    dtype = torch.int32 if int32 else torch.int64
    id_ = st.integers(0, N - 1)
    offsets = None
    if matrix:
        n_bags, length = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 4))
        flat = data.draw(st.lists(id_, min_size=n_bags * length, max_size=n_bags * length))
        ids = torch.tensor(flat, dtype=dtype).reshape(n_bags, length)
    else:
        bags = data.draw(st.lists(st.lists(id_, max_size=4), min_size=1, max_size=4))
        ids = torch.tensor(list(itertools.chain(*bags)), dtype=dtype)
        ends = list(itertools.accumulate(map(len, bags), initial=0))
        offsets = torch.tensor(ends if last else ends[:-1], dtype=dtype)
    factor = torch.rand(ids.shape, dtype=torch.float64) if weighted and mode == "sum" else None
    out, grad = run(ours, ids, offsets, factor)
    expected, expected_grad = run(torchs, ids, offsets, factor)
    torch.testing.assert_close(out, expected)
    assert grad.is_sparse == expected_grad.is_sparse == sparse
    if sparse:
        assert grad.is_coalesced() == expected_grad.is_coalesced()
        assert torch.equal(grad._indices(), expected_grad._indices())
        torch.testing.assert_close(grad._values(), expected_grad._values())
    else:
        torch.testing.assert_close(grad, expected_grad)
    torch.testing.assert_close(ours.weight, torchs.weight)  # max_norm


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_gradient_of_per_sample_weights(frozen, padding_idx):
    ours, torchs = pair(mode="sum", padding_idx=padding_idx)
    grads = []
    for layer in (ours, torchs):
        layer.weight.requires_grad_(not frozen)
        factor = torch.linspace(-1, 1, len(IDS), dtype=torch.float64, requires_grad=True)
        layer(IDS, OFFSETS, factor).pow(2).sum().backward()
        grads.append((factor.grad, layer.weight.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert (grads[0][1] is None) == frozen
    if not frozen:
        torch.testing.assert_close(grads[0][1], grads[1][1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(mode, dtype):
    weight = torch.randn(N, D, generator=torch.Generator().manual_seed(2)).to(dtype)
    ours = EmbeddingBag.from_pretrained(weight, freeze=False, mode=mode)
    torchs = torch.nn.EmbeddingBag.from_pretrained(weight.clone(), freeze=False, mode=mode)
    out, grad = run(ours, IDS, OFFSETS)
    expected, expected_grad = run(torchs, IDS, OFFSETS)
    assert out.dtype == grad.dtype == dtype
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(out, expected, **near)
    torch.testing.assert_close(grad, expected_grad, **near)


def test_the_same_seed_gives_the_same_layer():
    for settings_ in ({}, {"padding_idx": 3, "mode": "max", "max_norm": 2.0, "norm_type": 1.0}):
        torch.manual_seed(5)
        ours = EmbeddingBag(N, D, **settings_)
        torch.manual_seed(5)
        torchs = torch.nn.EmbeddingBag(N, D, **settings_)
        assert torch.equal(ours.weight, torchs.weight)
        assert repr(ours) == repr(torchs)
        assert ours.state_dict().keys() == torchs.state_dict().keys() == {"weight"}
        assert isinstance(ours, torch.nn.EmbeddingBag)
    ours.load_state_dict(torchs.state_dict())


def test_positional_arguments_are_torchs():
    weight = torch.randn(3, 2)
    arguments = (3, 2, 1.5, 1.0, True, "sum", True, weight, True, 1, None, torch.float32)
    ours, torchs = EmbeddingBag(*arguments), torch.nn.EmbeddingBag(*arguments)
    names = [name for name in torchs.__constants__ if name not in ("num_embeddings", "embedding_dim")]
    assert [getattr(ours, name) for name in names] == [getattr(torchs, name) for name in names]
    assert ours.weight.data_ptr() == weight.data_ptr()


def test_from_pretrained_shares_memory_and_freezes():
    weight = torch.randn(4, 3)
    layer = EmbeddingBag.from_pretrained(weight, mode="sum", padding_idx=-1, include_last_offset=True)
    assert layer.weight.data_ptr() == weight.data_ptr() and not layer.weight.requires_grad
    assert (layer.mode, layer.padding_idx, layer.include_last_offset) == ("sum", 3, True)


def test_weights_that_are_not_contiguous():
    weight = torch.randn(D, N, dtype=torch.float64).T
    ours = EmbeddingBag.from_pretrained(weight, freeze=False, mode="max")
    torchs = torch.nn.EmbeddingBag.from_pretrained(weight, freeze=False, mode="max")
    for one, other in zip(run(ours, IDS, OFFSETS), run(torchs, IDS, OFFSETS), strict=True):
        torch.testing.assert_close(one, other)


def test_nested_input():
    ours, torchs = pair(mode="sum")
    nested = torch.nested.nested_tensor([IDS[:3], IDS[3:4], IDS[4:]], layout=torch.jagged)
    factor = torch.rand(len(IDS), dtype=torch.float64)
    weights = torch.nested.nested_tensor_from_jagged(factor, nested.offsets())
    torch.testing.assert_close(ours(nested), torchs(nested))
    torch.testing.assert_close(ours(nested, None, weights), torchs(nested, None, weights))


# --- where torch departs from its documentation -------------------------------------------------


def counted(ids: Tensor) -> Tensor:
    return torch.bincount(ids.reshape(-1), minlength=N)[ids].to(torch.float64)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_scale_grad_by_freq_divides_by_the_counts_of_the_batch(mode, sparse):
    ids = torch.tensor([[0, 0], [0, 1]])
    layer = EmbeddingBag(N, D, mode=mode, scale_grad_by_freq=True, sparse=sparse)
    layer(ids).sum().backward()
    grad = layer.weight.grad.to_dense()[:, 0]
    assert grad[:3].tolist() == ([1.0, 1.0, 0.0] if mode == "sum" else [0.5, 0.5, 0.0])


def test_scale_grad_by_freq_with_weights_and_padding():
    layer = pair(mode="sum", scale_grad_by_freq=True, padding_idx=2)[0]
    factor = torch.rand(len(IDS), dtype=torch.float64)
    _, grad = run(layer, IDS, OFFSETS, factor)
    plain = pair(mode="sum", padding_idx=2)[0]
    _, expected = run(plain, IDS, OFFSETS, factor / counted(IDS))
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_offsets_make_no_bags(mode, dtype):
    layer = EmbeddingBag(N, D, mode=mode, dtype=dtype)
    out = layer(torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64))
    assert out.shape == (0, D)
    out.sum().backward()
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_ids_in_no_bag_get_no_gradient(mode, sparse):
    layer = EmbeddingBag(N, D, mode=mode, sparse=sparse, include_last_offset=True)
    factor = torch.ones(5, requires_grad=True) if mode == "sum" else None
    layer(torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 2, 3]), factor).sum().backward()
    assert layer.weight.grad.to_dense().any(1).nonzero().flatten().tolist() == [0, 1, 2]
    if factor is not None:
        assert factor.grad[3:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("mode", "padding_idx", "last_bag"),
    [
        ("sum", None, [2]),
        ("mean", None, [2]),
        ("max", None, [2, 3, 4, 0]),
        ("sum", 4, [2, 3, 0]),
        ("mean", 4, [2, 3, 0]),
        ("max", 4, [2, 3, 0]),
    ],
)
def test_which_bag_ids_beyond_the_last_offset_are_in(mode, padding_idx, last_bag, dtype):
    weight = torch.randn(N, D, dtype=dtype)
    settings_ = {"mode": mode, "padding_idx": padding_idx, "include_last_offset": True, "freeze": False}
    ours = EmbeddingBag.from_pretrained(weight, **settings_)
    given = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 2, 3])
    out, grad = run(ours, *given)
    plain = torch.nn.EmbeddingBag.from_pretrained(weight, mode=mode, freeze=False)
    expected, expected_grad = run(plain, torch.tensor([0, 1, *last_bag]), torch.tensor([0, 2]))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad, expected_grad)
    if dtype == torch.float32:
        torch.compiler.reset()
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*given), expected)


def test_a_matrix_of_empty_bags_is_zeros():
    layer = EmbeddingBag(N, D)
    assert layer(torch.zeros(3, 0, dtype=torch.int64)).tolist() == [[0.0] * D] * 3


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparse", [False, True])
def test_repeats_of_half_types_do_not_saturate(dtype, mode, sparse):
    layer = EmbeddingBag(2, 1, mode=mode, dtype=dtype, sparse=sparse)
    layer(torch.zeros(4096, 1, dtype=torch.int64)).sum().backward()
    assert layer.weight.grad.to_dense()[0].item() == 4096.0


# --- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("mode", MODES)
def test_derivatives_of_every_order(mode, padding_idx):
    layer = pair(mode=mode, padding_idx=padding_idx)[0]
    weight = layer.weight.detach().clone().requires_grad_()
    factor = torch.rand(len(IDS), dtype=torch.float64, requires_grad=mode == "sum")

    def squared(weight: Tensor, factor: Tensor | None) -> Tensor:
        del layer.weight
        layer.weight = weight
        return layer(IDS, OFFSETS, factor).pow(2)

    arguments = weight, factor if mode == "sum" else None
    assert gradcheck(squared, arguments)
    assert gradgradcheck(squared, arguments)
    if mode == "sum":
        loss = layer(IDS, OFFSETS, factor).pow(3).sum()
        for _ in range(3):  # the third derivative goes through what the second one built
            loss = sum(
                one.sum() for one in torch.autograd.grad(loss, (layer.weight, factor), create_graph=True)
            )
        assert loss.requires_grad


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("by_freq", [False, True])
def test_second_derivative_of_sparse_gradients(mode, by_freq):
    found = []
    for sparse in (False, True):
        layer = pair(mode=mode, sparse=sparse, scale_grad_by_freq=by_freq, padding_idx=2)[0]
        factor = torch.linspace(0, 1, len(IDS), dtype=torch.float64, requires_grad=True)
        given = (IDS, OFFSETS, factor) if mode == "sum" else (IDS, OFFSETS)
        loss = layer(*given).pow(3).sum()
        (grad,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
        again = grad.to_dense().pow(2).sum()
        found.append(torch.autograd.grad(again, [layer.weight, *given[2:]]))
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse.to_dense())


def test_max_norm_before_backward_of_another_lookup():
    layer = EmbeddingBag(N, D, mode="sum", max_norm=0.5)
    first = layer(IDS, OFFSETS)
    version = layer.weight._version
    second = layer(IDS[:3].unsqueeze(0))
    assert layer.weight._version == version + 1
    (first.sum() + second.sum()).backward()
    assert layer.weight.detach()[IDS].norm(dim=1).max() <= 0.5
    factor = torch.ones(len(IDS), requires_grad=True)
    out = layer(IDS, OFFSETS, factor)
    layer(IDS, OFFSETS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_ids_changed_after_the_lookup_are_noticed():
    layer, ids = EmbeddingBag(N, D), IDS.clone()
    out = layer(ids, OFFSETS)
    ids.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.tensor([[0, N]]),), RuntimeError, r"id 11 at position \[0, 1\] is outside the table of 11"),
        ((torch.tensor([0, -1]), torch.tensor([0])), RuntimeError, r"id -1 at position \[1\]"),
        ((torch.tensor([0.0]), torch.tensor([0])), RuntimeError, "Long, Int"),
        ((torch.tensor([0]), torch.tensor([0.0])), RuntimeError, "Long, Int"),
        ((torch.tensor([[0]]), torch.tensor([0])), ValueError, "if input is 2D, then offsets has to be None"),
        ((torch.tensor([0]),), ValueError, "offsets has to be a 1D Tensor but got None"),
        ((torch.tensor([0]), torch.tensor([[0]])), ValueError, "offsets has to be a 1D Tensor"),
        ((torch.tensor(0),), ValueError, "input has to be 1D or 2D Tensor, but got Tensor of dimension 0"),
        ((torch.zeros(1, 1, 1, dtype=torch.int64),), ValueError, "of dimension 3"),
        ((torch.tensor([0, 1]), torch.tensor([1])), RuntimeError, r"offsets\[0\] has to be 0"),
        ((torch.tensor([0, 1]), torch.tensor([-1])), RuntimeError, r"offsets\[0\] has to be 0"),
        ((torch.tensor([0, 1]), torch.tensor([0, 3])), RuntimeError, r"offsets\[1\] can not be greater"),
        ((torch.tensor([0, 1]), torch.tensor([0, 2, 1])), RuntimeError, r"offsets\[2\] is 1, after 2"),
        ((torch.tensor([0, 1]), torch.tensor([0, -1])), RuntimeError, r"offsets\[1\] is -1, after 0"),
        ((torch.tensor([0]), [0]), TypeError, "offsets has to be a 1D Tensor, got list"),
        (([0, 1],), TypeError, "Tensor"),
        ((torch.tensor([[0]]), None, torch.ones(1)), ValueError, "same shape"),
        ((torch.tensor([[0]]), None, torch.ones(1, 1).double()), RuntimeError, "same type as weight"),
    ],
)
@pytest.mark.parametrize("mode", ["sum", "max"])
def test_bad_input_is_refused_with_a_sentence(mode, arguments, error, words):
    if mode == "max" and len(arguments) == 3:
        return
    with pytest.raises(error, match=words):
        EmbeddingBag(N, D, mode=mode)(*arguments)


def test_bad_settings_are_refused_with_torchs_types():
    with pytest.raises(ValueError, match="mode has to be one of sum, mean or max, got 'median'"):
        EmbeddingBag(N, D, mode="median")(IDS, OFFSETS)
    with pytest.raises(ValueError, match="max mode does not support sparse weights"):
        EmbeddingBag(N, D, mode="max", sparse=True)(IDS, OFFSETS)
    with pytest.raises(ValueError, match="max mode does not support scaling"):
        EmbeddingBag(N, D, mode="max", scale_grad_by_freq=True)(IDS, OFFSETS)
    for mode in ("mean", "max"):
        with pytest.raises(NotImplementedError, match="only supported for mode='sum'"):
            EmbeddingBag(N, D, mode=mode)(IDS, OFFSETS, torch.ones(len(IDS)))
    with pytest.raises(RuntimeError, match="number of offsets should be at least 1"):
        EmbeddingBag(N, D, include_last_offset=True)(IDS, torch.tensor([], dtype=torch.int64))
    with pytest.raises(AssertionError, match="padding_idx must be within num_embeddings"):
        EmbeddingBag(N, D, padding_idx=N)
    with pytest.raises(AssertionError, match="Shape of weight does not match"):
        EmbeddingBag(N, D, _weight=torch.zeros(N, D + 1))
    with pytest.raises(AssertionError, match="expected to be 2-dimensional"):
        EmbeddingBag.from_pretrained(torch.zeros(3))
    with pytest.raises(ValueError, match="max_norm=False"):
        EmbeddingBag(N, D, max_norm=False)
    with pytest.raises(RuntimeError):
        EmbeddingBag.from_pretrained(torch.zeros(3, 2, dtype=torch.int64), freeze=False)


def test_ids_and_offsets_of_different_integers():
    ours, torchs = pair(mode="sum")
    for ids_dtype, offsets_dtype in ((torch.int32, torch.int64), (torch.int16, torch.int64)):
        given = IDS.to(ids_dtype), OFFSETS.to(offsets_dtype)
        torch.testing.assert_close(ours(*given), torchs(*given))


# --- the rest of torch --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_compiled(mode):
    torch.compiler.reset()
    layer, _ = pair(mode=mode, include_last_offset=True)
    offsets = torch.tensor([0, 3, 3, 8])  # the last id is beyond
    expected, expected_grad = run(layer, IDS, offsets)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    layer.weight.grad = None
    out = compiled(IDS, offsets)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    out.backward(grad)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(layer.weight.grad, expected_grad)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("matrix", [False, True])
def test_compiled_with_scale_grad_by_freq(mode, matrix):
    torch.compiler.reset()
    layer, _ = pair(mode=mode, scale_grad_by_freq=True, padding_idx=2)
    given = (IDS.reshape(3, 3),) if matrix else (IDS, OFFSETS)
    expected, expected_grad = run(layer, *given)
    out, grad = run(torch.compile(layer, backend="aot_eager", fullgraph=True), *given)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_exported():
    layer, _ = pair(mode="mean")
    program = torch.export.export(layer, (IDS, OFFSETS))
    torch.testing.assert_close(program.module()(IDS, OFFSETS), layer(IDS, OFFSETS))


def test_functional_gradients():
    layer, _ = pair(mode="sum")

    def loss(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (IDS, OFFSETS)).pow(2).sum()

    weight = layer.weight.detach()
    expected = torch.autograd.grad(loss(weight.requires_grad_()), weight)[0]
    torch.testing.assert_close(torch.func.grad(loss)(weight.detach()), expected)


def test_copies_pickles_and_state():
    layer, _ = pair(mode="max", padding_idx=3)
    expected = layer(IDS, OFFSETS)
    assert torch.equal(copy.deepcopy(layer)(IDS, OFFSETS), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = EmbeddingBag(N, D, mode="max", padding_idx=3, dtype=torch.float64)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(IDS, OFFSETS), expected)


def test_meta_weights():
    layer = EmbeddingBag(N, D, device="meta")
    assert layer(torch.zeros(2, 3, dtype=torch.int64, device="meta")).shape == (2, D)


def test_no_gradient_wanted():
    layer, _ = pair(mode="max")
    expected = layer(IDS, OFFSETS)
    assert expected.requires_grad
    with torch.no_grad():
        assert torch.equal(layer(IDS, OFFSETS), expected)
    with torch.inference_mode():
        assert torch.equal(layer(IDS, OFFSETS), expected)


# --- words --------------------------------------------------------------------------------------


def test_bags_of_words():
    vocab = firth.Vocab(["hey", "there", "you"])
    layer = EmbeddingBag(vocab, 4, mode="sum")
    out = layer([["hey", "there"], ["you"], []])
    rows = layer.weight.detach()
    torch.testing.assert_close(out.detach(), torch.stack([rows[0] + rows[1], rows[2], torch.zeros(4)]))
    weighted = layer([["hey", "there"], ["you"]], None, torch.tensor([2.0, 1.0, -1.0]))
    torch.testing.assert_close(weighted.detach(), torch.stack([2 * rows[0] + rows[1], -rows[2]]))
    with pytest.raises(ValueError, match="leave offsets out"):
        layer([["hey"]], torch.tensor([0]))
    with pytest.raises(ValueError, match="a number for each of the 1 words"):
        layer([["hey"]], None, torch.ones(2))
    with pytest.raises(TypeError, match=r"made from a firth\.Vocab"):
        EmbeddingBag(3, 4)([["hey"]])


def test_dropped_words_count_for_nothing():
    vocab = firth.Vocab(["hey", "there"], unknown="drop")
    layer = EmbeddingBag(vocab, 4, mode="sum")
    rows = layer.weight.detach()
    found = layer([["hey", "zzz"], ["yyy", "there"]], None, torch.tensor([1.0, 5.0, 7.0, 2.0]))
    torch.testing.assert_close(found.detach(), torch.stack([rows[0], 2 * rows[1]]))
    with pytest.raises(ValueError, match="a number for each of the 2 words"):
        layer([["hey", "zzz"]], None, torch.ones(3))


# --- fused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by_freq", [False, True])
def test_fused_updates_are_those_of_the_gradient(mode, by_freq):
    if by_freq and mode == "max":
        return
    settings_ = {"mode": mode, "padding_idx": 2, "scale_grad_by_freq": by_freq}
    plain = pair(**settings_)[0]
    fused = EmbeddingBag(N, D, _weight=plain.weight.detach().clone(), fused=SGD(lr=0.1), **settings_)
    out, grad = run(plain, IDS, OFFSETS)
    expected = plain.weight.detach() - 0.1 * grad
    torch.testing.assert_close(run(fused, IDS, OFFSETS)[0], out)
    torch.testing.assert_close(fused.weight.detach(), expected)
    assert fused.weight.grad is None


def test_fused_with_weights_max_norm_and_ids_left_over():
    plain = pair(mode="sum", max_norm=1.0, include_last_offset=True)[0]
    fused = EmbeddingBag(
        N, D, 1.0, 2.0, False, "sum", False, plain.weight.detach().clone(), True, fused=SGD(lr=0.1)
    )
    factors = [
        torch.rand(len(IDS), dtype=torch.float64, generator=torch.Generator().manual_seed(3)) for _ in "ab"
    ]
    for layer, factor in zip((plain, fused), factors, strict=True):
        run(layer, IDS, OFFSETS, factor.requires_grad_())
    expected = plain.weight.detach() - 0.1 * plain.weight.grad
    torch.testing.assert_close(fused.weight.detach(), expected)
    torch.testing.assert_close(factors[0].grad, factors[1].grad)


def test_a_table_in_a_file_trains(tmp_path):
    path = tmp_path / "bag.table"
    layer = EmbeddingBag(N, D, mode="mean", fused=Adagrad(lr=0.1), storage=path)
    run(layer, IDS, OFFSETS)
    layer.file.flush()
    kept = layer.weight.detach().clone()
    layer.file.close()
    again = EmbeddingBag(N, D, mode="mean", fused=Adagrad(lr=0.1), storage=path)
    assert torch.equal(again.weight.detach(), kept) and again.file.steps == 1
    again.file.close()


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (4, 3), (3, 0), (0, 3)])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_even_bags_share_no_memory_with_what_comes_in(shape, mode):
    layer = EmbeddingBag(10, 4, mode=mode, sparse=True)
    torchs = torch.nn.EmbeddingBag(10, 4, mode=mode, sparse=True, _weight=layer.weight.detach().clone())
    ids, grad = torch.arange(shape[0] * shape[1]).reshape(shape) % 10, torch.randn(shape[0], 4)
    before = grad.clone()
    layer(ids).backward(grad)
    values = layer.weight.grad._values()
    if values.numel():
        torchs(ids).backward(grad)
        torch.testing.assert_close(layer.weight.grad.to_dense(), torchs.weight.grad.to_dense())
        values.add_(1)
        assert values.is_contiguous() and values.shape == (ids.numel(), 4)
    assert torch.equal(grad, before)
