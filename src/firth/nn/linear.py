"""The linear view of a table: a one-hot vector times the matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module, Parameter


class LinearView(Module):
    """``x @ weight`` with the very parameter of an embedding layer.

    Looking ids up is the same as ``LinearView(weight)(one_hot(ids))``, forward and backward; what
    one changes the other sees. ``torch.nn.Linear`` would hold the transpose.

    Args:
        weight: (N, D) parameter, shared, not copied.

    Shape:
        input (..., N), of the weight's dtype; integers and booleans, as ``one_hot`` gives them, are
        converted. Output (..., D).
    """

    weight: Parameter

    def __init__(self, weight: Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) -> (..., D): ``x @ weight``; counts or weights of ids work as well as one-hot vectors."""
        if not (x.dtype.is_floating_point or x.dtype.is_complex):
            x = x.to(self.weight.dtype)
        return torch.matmul(x, self.weight)

    def extra_repr(self) -> str:
        """The sizes, as ``nn.Linear`` shows them."""
        rows, dim = self.weight.shape
        return f"in_features={rows}, out_features={dim}, bias=False"
