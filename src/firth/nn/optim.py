"""Optimisers that touch only the rows used: for layers with ``sparse=True``.

::

    layer = firth.nn.Embedding(1_000_000, 128, sparse=True)
    optimizer = firth.nn.RowAdam(layer.parameters(), lr=1e-3)

They are ``torch.optim.Optimizer``s: parameter groups, schedulers, closures, hooks, ``GradScaler`` and
``state_dict`` work as with torch's. A gradient is a sparse COO tensor, coalesced or not; repeats of a
row (also of several backward passes) are summed once, in the order of the input, so that results do not
depend on the number of threads. The same updates run inside backward, without any gradient tensor, for
layers made with ``fused=``: see :mod:`firth.nn.fused`.

Skipped steps
    All are lazy: a row without a place in a step keeps its weight and its state in that step. Weight
    decay and momentum of a row wait until it is used again. Adam's bias corrections and Adagrad's
    ``lr_decay`` count every step.

Dense gradients
    are refused. A dense gradient does not tell which rows a step used: taking all rows would decay the
    state of each in every step, taking those that are not zero would skip rows that were used with a zero
    gradient; neither is what the sparse gradient of the same batch would do.

State
    is kept in the dtype of the table, in float32 for float16 and bfloat16; it follows a parameter that
    moved to another dtype or device. The ``state_dict`` of ``torch.optim.SparseAdam``, ``Adagrad`` and
    ``SGD`` without momentum can be loaded into ``RowAdam``, ``RowAdagrad`` and ``RowSGD``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from firth.errors import Diverged, SettingError
from firth.kernels import pages, rows
from firth.kernels.rows_reference import Groups, Source, precision
from firth.nn.recipes import SGD, Adagrad, Adam, Recipe, RowWiseAdagrad


class NonFiniteGradient(Diverged, FloatingPointError, RuntimeError):
    """A gradient with NaN or infinity; no table and no state was changed.

    A FloatingPointError as the kernels raise, and a RuntimeError so that handlers around
    ``loss.backward()`` and ``optimizer.step()`` catch it.
    """


class RowOptimizer(Optimizer):
    """What the row optimisers share: groups checked by a recipe, state by rows; not used by itself."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def recipe_of(self, group: Mapping[str, Any]) -> Recipe:
        """The recipe with the settings that a parameter group holds now."""
        raise TypeError(f"{type(self).__name__} is no optimiser by itself; use one of its subclasses")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own.

        Raises:
            SettingError: a setting outside its range (a ValueError).
            ValueError: a parameter that is no table of real numbers.
        """
        super().add_param_group(param_group)
        try:
            self.recipe_of(self.param_groups[-1])
            for param in self.param_groups[-1]["params"]:
                _check_table(type(self).__name__, param)
        except (ValueError, TypeError):
            del self.param_groups[-1]
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the rows that the gradients name.

        Args:
            closure: computes the loss anew and returns it.

        Returns:
            what ``closure`` returned, or ``None``.

        Raises:
            NonFiniteGradient: names the row; no table was changed, of no parameter.
            RuntimeError: a dense gradient, or one that is not by rows; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        jobs = [
            self._job(recipe, param)
            for group in self.param_groups
            for recipe in [self.recipe_of(group)]
            for param in group["params"]
            if param.grad is not None
        ]
        # The first update refuses its own gradient before it writes; the others are looked at before that.
        for job in jobs[1:]:
            row = int(job.kernel.first_not_finite(job.groups, job.source))
            if row >= 0:
                raise self._not_finite(row, job.param)
        for job in jobs:
            self._run(job)
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load settings and state.

        State is copied, into the tensors that are there where they fit, so that two optimisers never
        share one and memory-mapped state stays in its file.

        Raises:
            ValueError: other numbers of parameters, or state of another shape or kind; nothing was
                changed.
        """
        loaded = _loaded_tensors(self, state_dict)
        old = {param: dict(state) for param, state in self.state.items()}
        super().load_state_dict(state_dict)
        for param, tensors in loaded.items():
            self.state[param].update(
                {name: _kept(old.get(param, {}).get(name), value, param) for name, value in tensors.items()}
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # saved by another optimiser or version
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def state_of(self, param: Tensor, recipe: Recipe) -> dict[str, Tensor]:
        """The state tensors that a recipe needs: those there are, new ones for those there are not.

        New tensors are not put into ``self.state``; see :meth:`keep`.
        """
        table = _as_table(param)
        held = self.state.get(param, {})
        dtype = precision(table.dtype)
        state = {}
        for name, shape in recipe.state_shapes(*table.shape).items():
            tensor = held.get(name)
            if tensor is None:
                tensor = pages.zeros(shape, dtype, table)
                if recipe.initial(name):
                    tensor.fill_(recipe.initial(name))
            elif tuple(tensor.shape) != shape:
                raise RuntimeError(
                    f"{type(self).__name__}: the state {name!r} has the shape {tuple(tensor.shape)}, the "
                    f"table of now needs {shape}; was its data replaced? Make a new optimiser"
                )
            elif tensor.dtype != dtype or tensor.device != table.device:
                tensor = self._moved(name, tensor, dtype, table.device)
            state[name] = tensor
        return state

    def _moved(self, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A state tensor after its table has gone to another dtype or device."""
        return tensor.to(device=device, dtype=dtype)

    def steps_of(self, param: Tensor) -> int:
        """How many steps a parameter has seen."""
        return int(self.state.get(param, {}).get("step", 0))

    def keep(self, param: Tensor, state: Mapping[str, Tensor], step: int) -> None:
        """Put down what a finished step has left."""
        held = self.state[param]
        held.update(state)
        held["step"] = step
        # The kernels write behind autograd's back; a graph that saved the old rows must notice.
        torch.autograd.graph.increment_version(param)

    def _job(self, recipe: Recipe, param: Tensor) -> _Job:
        name, grad = type(self).__name__, param.grad
        assert grad is not None
        if grad.layout is not torch.sparse_coo:
            raise RuntimeError(
                f"{name} takes sparse gradients only, and a parameter of shape {tuple(param.shape)} has a "
                "dense one, which does not tell the rows used: make its layer with sparse=True, or give the "
                "parameter to an optimiser of torch.optim"
            )
        if grad.sparse_dim() != 1:
            raise RuntimeError(
                f"{name} takes gradients that are sparse by rows (sparse_dim 1), got sparse_dim "
                f"{grad.sparse_dim()} for a parameter of shape {tuple(param.shape)}"
            )
        table = _as_table(param)
        kernel = rows.pick(table)
        ids = grad._indices()[0].contiguous()
        place = kernel.first_outside(ids, table.shape[0])
        if place >= 0:
            raise RuntimeError(
                f"{name}: entry {place} of a gradient names row {int(ids[place])}, the table has "
                f"{table.shape[0]} rows"
            )
        values = grad._values().reshape(len(ids), table.shape[1]).contiguous()
        return _Job(param, table, recipe, kernel, kernel.group(ids, table.shape[0]), Source(values))

    def _run(self, job: _Job) -> None:
        step = self.steps_of(job.param) + 1
        state = self.state_of(job.param, job.recipe)
        try:
            job.kernel.update(job.table, state, job.groups, job.source, job.recipe.update(step), False)
        except FloatingPointError:
            row = int(job.kernel.first_not_finite(job.groups, job.source))
            raise self._not_finite(row, job.param) from None
        self.keep(job.param, state, step)

    def _not_finite(self, row: int, param: Tensor) -> NonFiniteGradient:
        return NonFiniteGradient(
            f"{type(self).__name__}: the gradient of row {row} of a table of shape {tuple(param.shape)} is "
            "not finite (NaN or infinity); nothing was updated; torch.autograd.detect_anomaly() finds "
            "the operation that made it"
        )


class _Job(NamedTuple):
    """A table and what a step does to it."""

    param: Tensor
    table: Tensor
    recipe: Recipe
    kernel: ModuleType
    groups: Groups
    source: Source


class RowSGD(RowOptimizer):
    """SGD over the rows used, with lazy momentum; see :class:`firth.nn.recipes.SGD`.

    Without momentum and weight decay the same as ``torch.optim.SGD`` on sparse gradients. torch's momentum
    there keeps a sparse buffer that grows by a batch in every step; this one is a dense tensor (N, D), and
    a row's momentum waits in steps that do not use it. Weight decay, which torch refuses for sparse
    gradients, is taken of the rows used.

    Args:
        params: tables, or groups of them.
        lr: learning rate, >= 0.
        momentum: >= 0. weight_decay: >= 0, L2. nesterov, maximize: as in torch.
        clip: largest L2 norm of a row's summed gradient, or ``None``.

    Raises:
        SettingError: a setting outside its range (a ValueError).
        ValueError: a parameter that is no table of real numbers.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        clip: float | None = None,
    ) -> None:
        recipe = SGD(
            float(lr), momentum, weight_decay=weight_decay, nesterov=nesterov, maximize=maximize, clip=clip
        )
        super().__init__(params, recipe.settings() | {"lr": lr})

    def recipe_of(self, group: Mapping[str, Any]) -> Recipe:
        """The SGD of a parameter group."""
        return SGD.of(group)


class RowAdagrad(RowOptimizer):
    """Adagrad over the rows used; see :class:`firth.nn.recipes.Adagrad` and ``RowWiseAdagrad``.

    The same as ``torch.optim.Adagrad`` on sparse gradients, with weight decay (of the rows used) besides.

    Args:
        params: tables, or groups of them.
        lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize: as in torch.
        rowwise: keep one number a row instead of one an element.
        clip: largest L2 norm of a row's summed gradient, or ``None``.

    Raises:
        SettingError: a setting outside its range (a ValueError).
        ValueError: a parameter that is no table of real numbers.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        rowwise: bool = False,
        maximize: bool = False,
        clip: float | None = None,
    ) -> None:
        recipe = Adagrad(
            float(lr), lr_decay, weight_decay, initial_accumulator_value, eps, maximize=maximize, clip=clip
        )
        super().__init__(params, recipe.settings() | {"lr": lr, "rowwise": rowwise})

    def recipe_of(self, group: Mapping[str, Any]) -> Recipe:
        """The Adagrad of a parameter group."""
        return (RowWiseAdagrad if group["rowwise"] else Adagrad).of(group)


class RowAdam(RowOptimizer):
    """Adam over the rows used; see :class:`firth.nn.recipes.Adam`.

    The same as ``torch.optim.SparseAdam``, with weight decay (of the rows used) besides.

    Args:
        params: tables, or groups of them.
        lr, betas, eps, maximize: as in torch. weight_decay: >= 0.
        decoupled_weight_decay: as in AdamW; else weight decay is added to the gradient.
        clip: largest L2 norm of a row's summed gradient, or ``None``.

    Raises:
        SettingError: a setting outside its range (a ValueError).
        ValueError: a parameter that is no table of real numbers.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip: float | None = None,
    ) -> None:
        recipe = Adam(
            float(lr),
            betas,
            eps,
            weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            clip=clip,
        )
        super().__init__(params, recipe.settings() | {"lr": lr})

    def recipe_of(self, group: Mapping[str, Any]) -> Recipe:
        """The Adam of a parameter group."""
        return Adam.of(group)


def _check_table(name: str, param: Tensor) -> None:
    if param.layout is not torch.strided or not param.dtype.is_floating_point or param.dim() < 1:
        raise ValueError(
            f"{name} takes dense tables of real numbers, (rows, ...), got a parameter of shape "
            f"{tuple(param.shape)}, {param.dtype} and {param.layout}"
        )


def _as_table(param: Tensor) -> Tensor:
    """(N, D) on the memory of a parameter of any number of dimensions."""
    table = param.detach()
    if table.dim() == 2:
        return table
    return table.unsqueeze(1) if table.dim() == 1 else table.view(table.shape[0], math.prod(table.shape[1:]))


def _loaded_tensors(optimizer: RowOptimizer, state_dict: StateDict) -> dict[Tensor, dict[str, Tensor]]:
    """The state tensors in a ``state_dict`` by parameter, in their own dtype, checked for shape.

    Optimizer.load_state_dict would round float32 state of float16 and bfloat16 tables to their dtype.
    """
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved]:
        return {}  # Optimizer.load_state_dict has the sentence
    found: dict[Tensor, dict[str, Tensor]] = {}
    for group, other in zip(groups, saved, strict=True):
        settings = optimizer.defaults | {name: value for name, value in other.items() if name != "params"}
        recipe = optimizer.recipe_of(settings)
        for param, key in zip(group["params"], other["params"], strict=True):
            state = state_dict["state"].get(key, {})
            shapes = recipe.state_shapes(*_as_table(param).shape)
            found[param] = {name: state[name] for name in shapes if state.get(name) is not None}
            _check_loaded(type(optimizer).__name__, state, shapes)
    return found


def _check_loaded(name: str, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    foreign = any(
        isinstance(value, Tensor) and value.dim() for key, value in state.items() if key not in shapes
    )
    for key, shape in shapes.items():
        value = state.get(key)
        if value is None and not foreign:
            continue  # saved before the setting that needs it: begins as in a new row
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.layout is not torch.strided:
            has = (
                f"{value.layout} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "not there"
            )
            raise SettingError(
                f"{name}.load_state_dict(): the state {key!r} must be a dense tensor of shape {shape}, it is "
                f"{has}; was it saved by another optimiser or for another table?"
            )


def _kept(old: Tensor | None, value: Tensor, param: Tensor) -> Tensor:
    """``value`` copied, into ``old`` where it fits."""
    dtype = precision(param.dtype)
    if old is None or old.shape != value.shape or old.dtype != dtype or old.device != param.device:
        old = pages.empty(tuple(value.shape), dtype, param)
    return old.copy_(value)
