"""Tables in one or two bytes a number: as close as the mathematics says, as small, and only for lookups."""

import copy
import io

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import firth
from firth import quantize
from firth.errors import SettingError, ShapeError
from firth.nn.checks import OutsideTable
from firth.nn.embedding import Embedding
from firth.nn.quantized import QuantizedEmbedding

ROUNDING = 1 + 2**-20
SETTINGS = hypothesis.settings(deadline=None, max_examples=60)


def matrices(dtype, limit):
    width = np.dtype(dtype).itemsize * 8
    shapes = st.tuples(st.integers(0, 6), st.integers(0, 9))
    numbers = st.floats(-limit, limit, width=width, allow_subnormal=True)
    return hnp.arrays(dtype, shapes, elements=numbers)


# --- arrays --------------------------------------------------------------------------------------


@SETTINGS
@hypothesis.given(matrices(np.float32, 2.0**127) | matrices(np.float64, 3e38) | matrices(np.float16, 65_504))
def test_int8_is_as_close_as_stated(matrix):
    codes, scale = quantize.to_int8(matrix)
    assert codes.dtype == np.int8 and scale.dtype == np.float32 and (codes >= -127).all()
    back = quantize.from_int8(codes, scale)
    assert back.dtype == np.float32 and back.shape == matrix.shape
    wide = matrix.astype(np.float64)
    largest = np.abs(wide).max(axis=1, initial=0)
    error = np.abs(back.astype(np.float64) - wide)
    assert (error <= np.maximum(largest / 254 * ROUNDING, 1.5e-36)[:, None]).all()


@SETTINGS
@hypothesis.given(matrices(np.float32, 60_000.0) | matrices(np.float64, 60_000.0))
def test_float16_is_as_close_as_stated(matrix):
    half = quantize.to_half(matrix)
    assert half.dtype == np.float16
    error = np.abs(quantize.from_half(half) - matrix)
    assert (error <= np.maximum(np.abs(matrix) * 2**-11, 2**-25) * ROUNDING).all()


def test_dot_products_are_as_close_as_stated():
    chance = np.random.default_rng(0)
    rows, queries = chance.normal(size=(500, 100)), chance.normal(size=(20, 100))
    back = quantize.from_int8(*quantize.to_int8(rows)).astype(np.float64)
    error = np.abs(queries @ back.T - queries @ rows.T)
    largest = np.abs(rows).max(axis=1)
    assert (error <= np.outer(np.abs(queries).sum(axis=1), largest / 254) * ROUNDING).all()
    typical = np.outer(np.linalg.norm(queries, axis=1), largest / 440)
    assert 0.9 < np.sqrt((error**2).mean() / (typical**2).mean()) < 1.1
    other = quantize.from_int8(*quantize.to_int8(queries)).astype(np.float64)
    both = np.abs(other @ back.T - queries @ rows.T)
    bound = np.outer(np.abs(queries).sum(axis=1), largest / 254)
    bound += np.outer(np.abs(queries).max(axis=1) / 254, np.abs(back).sum(axis=1))
    assert (both <= bound * ROUNDING).all()


def test_pieces_make_no_difference(monkeypatch):
    matrix = np.random.default_rng(1).normal(size=(37, 5)).astype(np.float32)
    whole, half = quantize.to_int8(matrix), quantize.to_half(matrix)
    monkeypatch.setattr(quantize, "PIECE", 12)
    assert all(np.array_equal(*pair) for pair in zip(whole, quantize.to_int8(matrix), strict=True))
    assert np.array_equal(half, quantize.to_half(matrix))
    matrix[33, 2] = np.nan
    with pytest.raises(ShapeError, match=r"to_int8\(\): row 33 holds nan"):
        quantize.to_int8(matrix)


def test_numbers_that_cannot_be_kept():
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(ShapeError, match=r"row 1 holds (nan|inf)"):
            quantize.to_int8(np.array([[1.0, 2], [3, wrong]]))
    with pytest.raises(ShapeError, match=r"row 0 holds 1e\+300, numbers up to 3\.4e\+38"):
        quantize.to_int8(np.array([[1e300]]))
    with pytest.raises(ShapeError, match=r"row 1 holds 7e\+04, numbers up to 65504 can be kept; scale the"):
        quantize.to_half(np.array([[1.0], [-70_000]]))
    for wrong in (np.zeros(3), np.zeros((2, 2), np.int64)):
        with pytest.raises(ShapeError, match=r"to_int8\(\): a matrix of floats is expected"):
            quantize.to_int8(wrong)
    with pytest.raises(ShapeError, match=r"from_int8\(\): codes \(N, D\) int8"):
        quantize.from_int8(np.zeros((2, 3), np.int8), np.zeros(3, np.float32))


# --- the layer -----------------------------------------------------------------------------------

IDS = torch.tensor([[0, 3, 3], [29, 1, 7]])


def bound(layer, kind):
    weight = layer.weight.detach().float()
    if kind == "float16":
        return (weight.abs() * 2**-11).clamp_min(2**-25) * ROUNDING
    return (weight.abs().amax(1, keepdim=True) / 254 * ROUNDING).expand_as(weight)


@pytest.mark.parametrize("kind", ["int8", "float16"])
@pytest.mark.parametrize("plain", [Embedding, torch.nn.Embedding])
def test_lookups_are_close(kind, plain):
    layer = plain(30, 8, padding_idx=3)
    small = QuantizedEmbedding.from_float(layer, kind)
    assert small.padding_idx == 3 and not small(torch.tensor(3)).any()
    for ids in (IDS, IDS.int(), IDS[0, 0], IDS[:0], torch.arange(30)):
        found, exact = small(ids), layer(ids).detach()
        assert found.shape == exact.shape and found.dtype == exact.dtype and not found.requires_grad
        assert ((found - exact).abs() <= bound(layer, kind)[ids]).all()
    assert torch.equal(small.dequantized(), small(torch.arange(30)))
    arrays = quantize.from_int8(small.codes.numpy(), small.scale.numpy()) if kind == "int8" else None
    assert arrays is None or np.array_equal(arrays, small.dequantized().numpy())


@pytest.mark.parametrize(("kind", "size"), [("int8", 68), ("float16", 128)])
def test_memory(kind, size):
    """Bytes a row of 64 numbers, float32: 256."""
    small = QuantizedEmbedding.from_float(Embedding(1000, 64), kind)
    assert sum(one.nbytes for one in small.state_dict().values()) == 1000 * size
    assert not list(small.parameters())
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    assert file.tell() < 1000 * size + 4000


def test_a_lookup_makes_floats_of_the_rows_looked_up_only():
    small = QuantizedEmbedding.from_float(Embedding(5000, 16), "int8")
    with torch.profiler.profile(profile_memory=True) as seen:
        small(torch.tensor([1, 2, 3]))
    assert sum(event.cpu_memory_usage for event in seen.events() if event.cpu_memory_usage > 0) < 16_000


def test_pieces_and_max_norm(monkeypatch):
    monkeypatch.setattr("firth.nn.quantized._PIECE", 40)
    layer = Embedding(31, 8, max_norm=0.5)
    before = layer.weight.detach().clone()
    small = QuantizedEmbedding.from_float(layer, "float16")
    assert torch.equal(layer.weight, before)
    assert ((small.dequantized() - layer(torch.arange(31))).abs() <= 2**-12).all()


def test_words():
    vectors = firth.Vectors(["hey", "there", "you"], np.eye(3, 4, dtype=np.float32) * 2)
    layer = Embedding.from_vectors(vectors, padding=True)
    small = QuantizedEmbedding.from_float(layer, "int8")
    assert torch.allclose(small(["you", "hey"]), layer(["you", "hey"]))
    assert small([["you"], ["hey", "there"]]).shape == (2, 2, 4)
    assert small.vectors().index_to_key[:3] == ["hey", "there", "you"]
    assert np.allclose(small.vectors()["there"], vectors["there"])
    assert [word for word, _ in small.most_similar("hey", topn=2)] == ["there", "you"]
    other = QuantizedEmbedding.from_vectors(vectors, padding=True, kind="float16")
    assert torch.equal(other("hey"), layer("hey")) and other.kind == "float16"
    with pytest.raises(SettingError, match="cannot be trained; leave freeze=True"):
        QuantizedEmbedding.from_vectors(vectors, freeze=False)
    fresh = QuantizedEmbedding(small.vocab, 4, padding_idx=3)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(["there"]), small(["there"]))
    with pytest.raises(RuntimeError, match="grow the layer it was made from"):
        small.grow(small.vocab)
    assert repr(small) == "QuantizedEmbedding(4, 4, padding_idx=3, kind='int8', vocab=4 tokens)"


def test_state_dicts():
    small = QuantizedEmbedding.from_float(Embedding(30, 8), "int8")
    assert list(small.state_dict()) == ["codes", "scale"]
    half = QuantizedEmbedding.from_float(Embedding(30, 8), "float16")
    assert list(half.state_dict()) == ["codes"]
    fresh = QuantizedEmbedding(30, 8)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(IDS), small(IDS))
    with pytest.raises(
        RuntimeError, match=r"codes is torch\.float16 there, torch\.int8 in this layer of kind"
    ):
        fresh.load_state_dict(half.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        QuantizedEmbedding(31, 8).load_state_dict(small.state_dict())
    for again in (copy.deepcopy(small), _pickled(small)):
        assert torch.equal(again(IDS), small(IDS))


def _pickled(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_change_of_dtype_is_for_what_comes_out():
    small = QuantizedEmbedding.from_float(Embedding(30, 8), "int8")
    exact = small(IDS)
    for kind in ("int8", "float16"):
        model = torch.nn.Sequential(QuantizedEmbedding.from_float(Embedding(30, 8), kind)).to(torch.bfloat16)
        assert model(IDS).dtype == torch.bfloat16
        assert model[0].codes.dtype == (torch.int8 if kind == "int8" else torch.float16)
        assert model.double()(IDS).dtype == torch.float64
    assert torch.equal(small.half().float()(IDS), exact)
    assert QuantizedEmbedding.from_float(Embedding(30, 8), "float16").float().codes.dtype == torch.float16
    assert QuantizedEmbedding(3, 2, dtype=torch.float64)(torch.tensor([1])).dtype == torch.float64
    wide = QuantizedEmbedding.from_float(Embedding(3, 2, dtype=torch.bfloat16), "float16")
    assert wide(torch.tensor([1])).dtype == torch.bfloat16
    assert small.to("meta")(IDS.to("meta")).shape == (2, 3, 8)


def test_under_compile():
    small = QuantizedEmbedding.from_float(Embedding(30, 8), "int8")
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IDS), small(IDS))


def test_what_is_refused():
    small = QuantizedEmbedding.from_float(Embedding(30, 8), "int8")
    assert small.requires_grad_(False) is small
    with pytest.raises(
        RuntimeError, match=r"rows of int8 have no gradient; train the layer it was made from"
    ):
        small.requires_grad_()
    with pytest.raises(OutsideTable, match=r"QuantizedEmbedding: id 30 at position \[1\] is outside"):
        small(torch.tensor([0, 30]))
    with pytest.raises(RuntimeError, match=r"use ids\.long"):
        small(torch.tensor([0.5]))
    with pytest.raises(TypeError, match=r"made from a firth\.Vocab"):
        small(["hey"])
    with pytest.raises(SettingError, match="kind must be 'int8' or 'float16', got 'int4'"):
        QuantizedEmbedding(3, 2, kind="int4")
    with pytest.raises(AssertionError, match="padding_idx must be within num_embeddings"):
        QuantizedEmbedding(3, 2, padding_idx=3)
    with pytest.raises(TypeError, match=r"must be a floating point dtype, got torch\.int32"):
        QuantizedEmbedding(3, 2, dtype=torch.int32)
    for wrong in (torch.nn.Linear(2, 2), torch.nn.EmbeddingBag(3, 2), "layer"):
        with pytest.raises(TypeError, match=r"from_float\(\): a layer of floats like"):
            QuantizedEmbedding.from_float(wrong)
    broken = Embedding(30, 8)
    with torch.no_grad():
        broken.weight[17, 3] = torch.nan
    with pytest.raises(ShapeError, match=r"row 17 holds nan"):
        QuantizedEmbedding.from_float(broken)
