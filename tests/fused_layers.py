"""Fused layers for tests: the same weights each time, ids and losses by seed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import firth.nn
from firth.nn import fused
from firth.nn.bag import EmbeddingBag
from firth.nn.optim import RowAdagrad, RowAdam, RowOptimizer, RowSGD
from firth.nn.recipes import SGD, Adagrad, Adam, Recipe, RowWiseAdagrad

N, D = 13, 6
STARTS = torch.tensor([0, 3, 3, 9, 17])
RECIPES: dict[str, tuple[Recipe, Callable[[Any], RowOptimizer]]] = {
    "sgd": (SGD(lr=0.1), lambda p: RowSGD(p, 0.1)),
    "momentum": (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1, clip=1.0),
        lambda p: RowSGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True, clip=1.0),
    ),
    "adagrad": (
        Adagrad(0.1, lr_decay=0.1, initial_accumulator_value=0.2, maximize=True),
        lambda p: RowAdagrad(p, 0.1, lr_decay=0.1, initial_accumulator_value=0.2, maximize=True),
    ),
    "rowwise": (RowWiseAdagrad(0.1, weight_decay=0.1), lambda p: RowAdagrad(p, 0.1, 0, 0.1, rowwise=True)),
    "adam": (
        Adam(0.1, weight_decay=0.1, decoupled_weight_decay=True),
        lambda p: RowAdam(p, 0.1, weight_decay=0.1, decoupled_weight_decay=True),
    ),
}


def embedding(
    recipe: Recipe | None = None, dtype: torch.dtype = torch.float64, **more: Any
) -> firth.nn.Embedding:
    """A layer with the same weights each time."""
    weight = torch.randn(N, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    return firth.nn.Embedding(N, D, _weight=weight, fused=recipe, sparse=recipe is None, **more)


def ids_of(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, N, shape or (17,), generator=torch.Generator().manual_seed(seed))


def loss_of(found: Tensor) -> Tensor:
    """Its gradients differ from place to place."""
    return (found * torch.linspace(-1, 1, found.numel(), dtype=found.dtype).reshape(found.shape)).tanh().sum()


def train(layer: nn.Module, seeds: range, optimizer: torch.optim.Optimizer | None = None) -> Tensor:
    for seed in seeds:
        if optimizer is not None:
            optimizer.zero_grad()
        loss_of(layer(ids_of(seed))).backward()
        if optimizer is not None:
            optimizer.step()
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight.detach()


def optimizer_of(layer: firth.nn.Embedding) -> fused.FusedOptimizer:
    assert layer.optimizer is not None
    return layer.optimizer


def steps(layer: firth.nn.Embedding) -> int:
    return optimizer_of(layer).steps


class Bags(EmbeddingBag):
    def __init__(self, recipe: Recipe, **more: Any) -> None:
        weight = embedding().weight.detach().clone()
        super().__init__(N, D, _weight=weight, include_last_offset=True, fused=recipe, **more)

    def pool(self, ids: Tensor, starts: Tensor, factor: Tensor | None = None) -> Tensor:
        return self(ids, starts, per_sample_weights=factor)


class Model(nn.Module):
    def __init__(self, recipe: Recipe | None) -> None:
        super().__init__()
        self.table = embedding(recipe)
        self.out = nn.Linear(D, 2).double()
        nn.init.constant_(self.out.weight, 0.3)
        nn.init.constant_(self.out.bias, 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.out(self.table(ids + 0).tanh()).sin()
        return found
