"""Where a lookup cannot be updated inside backward, and the sentences that say so.

A fused layer (:mod:`firth.nn.fused`) does one update for each backward pass through a lookup, and passes
no gradient on. Each check here stands for a situation in which that would be a wrong update, or none, and
nobody would notice. docs/fused.md lists them with ways out.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

STRAY = (
    "the weight of a fused layer has a .grad, made by another use than the lookup (tied weights, a penalty "
    "on the weight), which the updates inside backward do not take; give the weight to an optimiser of "
    "torch.optim for that part and clear its .grad, or use fused=None"
)
NO_GRAPH = "firth: a fused layer updates its table inside backward, outside of compiled graphs"
RECOMPUTED = (
    "the table was updated between the forward pass of a checkpointed lookup and its recomputation, so that "
    "the gradients would not belong to the loss; look a fused table up once a step, or outside of the "
    "checkpoint"
)


class FusedLayer(Protocol):
    """What is asked of a layer: ``Embedding`` and ``EmbeddingBag`` have it."""

    weight: Any
    padding_idx: int | None
    scale_grad_by_freq: bool
    sparse: bool
    optimizer: Any


def name_of(layer: object) -> str:
    """``"firth.nn.Embedding"``, as in the layers' own sentences."""
    return f"firth.nn.{type(layer).__name__}"


def exporting() -> bool:
    """Whether torch.export is at work; what it makes looks rows up and is not trained."""
    asked = getattr(torch.compiler, "is_exporting", None)  # from torch 2.7 on
    return asked is not None and bool(asked())


def substituted(layer: FusedLayer) -> bool:
    """Whether ``torch.func.functional_call`` has put another weight in the place of the layer's own.

    Raises:
        RuntimeError: there is another weight for another reason.
    """
    weight = layer.weight
    if weight is layer.optimizer.weight:
        return False
    name = name_of(layer)
    if getattr(layer, "_is_replica", False):
        raise RuntimeError(
            f"{name}: a fused layer cannot be replicated by nn.DataParallel, whose copies would not update "
            "the table; use sparse=True with a row optimiser"
        )
    if "weight" not in getattr(layer, "_parameters", {}):
        raise RuntimeError(
            f"{name}: the weight of a fused layer cannot be computed from another one (parametrize, weight "
            "norm), since backward updates its rows in place; use fused=None"
        )
    if isinstance(weight, torch.nn.Parameter):
        raise RuntimeError(
            f"{name}: layer.weight is another Parameter than the one that layer.optimizer updates "
            "(load_state_dict(assign=True) replaces it, for one); call layer.optimizer.follow(layer.weight)"
        )
    return True


def check_forward(layer: FusedLayer, *tensors: Tensor | None) -> None:
    """Refuse a lookup whose backward could not do one right update.

    Raises:
        RuntimeError: says why, and what to do instead.
    """
    weight, optimizer = layer.weight, layer.optimizer
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{name_of(layer)}: a fused layer has no functional gradient (torch.func.grad, vmap, jvp); pass "
            "the weight by torch.func.functional_call, or look up under torch.no_grad()"
        )
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        raise RuntimeError(
            f"{name_of(layer)}: the weight of a fused layer has gradient hooks, and no gradient will ever "
            "reach them; remove them, or use sparse=True with a row optimiser"
        )
    for tensor in tensors:
        if tensor is not None and (tensor.is_nested or tensor.device != weight.device):
            kind = "a nested tensor" if tensor.is_nested else f"one on {tensor.device}"
            raise RuntimeError(
                f"{name_of(layer)}: a fused layer takes plain tensors on {weight.device}, got {kind}"
            )
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if ddp is not None and any(one is weight for one in getattr(ddp, "_module_parameters", ())):
        raise RuntimeError(
            f"{name_of(layer)}: DistributedDataParallel averages gradients, and a fused layer makes none, so "
            "that the copies would drift apart; use sparse=True with a row optimiser, or "
            "firth.nn.ShardedEmbedding"
        )
    here = torch._C._current_graph_task_id()  # -1 outside of backward; nested passes have higher numbers
    if 0 <= here <= optimizer.last_pass:
        raise RuntimeError(f"{name_of(layer)}: {RECOMPUTED}")
    if weight.grad is not None and not optimizer.warned:
        optimizer.warned = True
        warnings.warn(f"{name_of(layer)}: {STRAY}", UserWarning, stacklevel=5)


_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)
"""Whether what is saved for backward goes through anybody's hands; where torch does not tell, it may."""


def note_pass(ctx: Any, layer: FusedLayer) -> Tensor | None:
    """What every lookup notes in forward; gives the number of steps done, to be saved for backward, where a
    checkpoint may save it anew."""
    ctx.set_materialize_grads(False)
    ctx.optimizer, ctx.name = layer.optimizer, name_of(layer)
    ctx.padding_row, ctx.by_freq = layer.padding_idx, layer.scale_grad_by_freq
    if not _hooks(False):
        return None
    ctx.steps = layer.optimizer.steps
    return torch.tensor(ctx.steps, device="cpu")


def check_backward(ctx: Any, steps: Tensor | None) -> None:
    """Refuse a backward pass that could not do one right update.

    Args:
        ctx: of the autograd function; the first input of the function is the weight.
        steps: what :func:`note_pass` gave, as saved.

    Raises:
        RuntimeError: says why, and what to do instead.
    """
    if torch.compiler.is_compiling():
        ctx.optimizer.eager_refusal(ctx.name)
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{ctx.name}: a fused layer cannot be differentiated twice (create_graph=True), since its "
            "gradient is used up at once; use fused=None"
        )
    # Under non-reentrant checkpointing, what was saved is what the recomputed forward saved.
    if steps is not None and int(steps) != ctx.steps:
        raise RuntimeError(f"{ctx.name}: {RECOMPUTED}")
    try:
        torch._C._will_engine_execute_node(ctx.next_functions[0][0])
    except RuntimeError:  # of a leaf in torch.autograd.grad()
        raise RuntimeError(
            f"{ctx.name}: torch.autograd.grad() was asked for the gradient of a fused layer's weight, which "
            "is never made; leave the weight out, or use fused=None"
        ) from None


def refuse_compiled(name: str) -> None:
    """What compiled autograd meets in backward.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        f"{name}: compiled autograd cannot run the backward of a fused layer, which updates its table; call "
        "backward() outside of it"
    )
