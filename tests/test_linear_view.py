"""``as_linear``: the table of an embedding layer as the matrix that one-hot vectors are multiplied with."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from firth.nn import Embedding, LinearView

N, D = 7, 3


def one_hot(ids: Tensor, dtype: torch.dtype) -> Tensor:
    return F.one_hot(ids.long(), N).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ids", [[3, 0, 6, 1], [2], [5, 5, 0, 5, 5, 5, 1]])
def test_a_lookup_is_a_one_hot_vector_times_the_matrix(dtype: torch.dtype, ids: list[int]) -> None:
    """Forward to the last bit; backward too where no id repeats, else in whatever order BLAS adds."""
    layer = Embedding(N, D, dtype=dtype)
    linear = layer.as_linear()
    assert linear.weight is layer.weight
    found, product = layer(torch.tensor(ids)), linear(one_hot(torch.tensor(ids), dtype))
    assert torch.equal(found, product)
    gradient = torch.randn_like(found)
    (by_id,) = torch.autograd.grad(found, layer.weight, gradient)
    (by_product,) = torch.autograd.grad(product, layer.weight, gradient)
    if len(set(ids)) == len(ids):
        assert torch.equal(by_id, by_product)
    torch.testing.assert_close(by_id, by_product, rtol=1e-6, atol=1e-6)


def test_the_linear_view_takes_what_one_hot_gives_and_counts() -> None:
    layer = Embedding(N, D)
    linear = layer.as_linear()
    assert isinstance(linear, LinearView)
    assert repr(linear) == f"LinearView(in_features={N}, out_features={D}, bias=False)"
    ids = torch.tensor([[1, 2], [2, 2]])
    assert torch.equal(linear(F.one_hot(ids, N)), layer(ids))
    counts = F.one_hot(ids, N).sum(1)
    torch.testing.assert_close(linear(counts), layer(ids).sum(1))
    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    with pytest.raises(RuntimeError):
        linear(torch.ones(2, N + 1))
