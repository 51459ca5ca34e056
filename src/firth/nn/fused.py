"""Updates inside backward: the rows that a lookup used are moved as soon as their gradient is there.

::

    layer = firth.nn.Embedding(1_000_000, 128, fused=firth.nn.Adagrad(lr=0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(layer.optimizer, 1000)
    for ids, target in batches:
        loss = criterion(model(layer(ids)), target)
        rest.zero_grad()
        loss.backward()        # moves the rows of layer.weight; layer.weight.grad stays None
        rest.step()            # the optimiser of all other parameters
        scheduler.step()

No gradient of the table is ever made, neither dense nor sparse. One backward pass through one lookup is
one step. What follows from that, and what is refused with a sentence, stands in docs/fused.md.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, overload

import torch
from torch import Tensor
from torch.autograd import Function

from firth.errors import SettingError
from firth.kernels import bags, rows
from firth.kernels.rows_reference import Source, precision
from firth.nn import bagging, functional, guards
from firth.nn.guards import FusedLayer
from firth.nn.optim import NonFiniteGradient, RowOptimizer
from firth.nn.recipes import Recipe

Around = Callable[[], AbstractContextManager[object]]
_NOTHING = nullcontext()


class Scaler(Protocol):
    """What is asked of a ``torch.amp.GradScaler``."""

    def get_scale(self) -> float: ...

    def is_enabled(self) -> bool: ...


class FusedOptimizer(RowOptimizer):
    """The optimiser of one table, whose steps take place in backward; made by :func:`attach`.

    It looks like any optimiser to schedulers (``param_groups[0]["lr"]`` is read at each update),
    checkpoints (``state_dict`` holds the settings, the state tensors and the number of the step) and
    ``Embedding.grow``. ``step()`` has nothing left to do and may be called or not.

    Attributes:
        recipe: the settings it was made with; ``param_groups[0]`` holds those of now.
        scaler: the ``torch.amp.GradScaler`` that scales the loss, or ``None``. With it, gradients are
            divided by its scale, and updates whose gradient is not finite are skipped, as it does for
            other optimisers. Not copied and not saved.
        around: makes a context that is entered around each update, such as ``TableFile.step``, or ``None``.
            Not copied and not saved.
    """

    recipe: Recipe
    scaler: Scaler | None = None
    around: Around | None = None
    _step_supports_amp_scaling = True  # GradScaler.step() then does not look for gradients

    def __init__(self, weight: Tensor, recipe: Recipe) -> None:
        self.recipe = recipe
        self._begin()
        super().__init__([weight], recipe.settings())

    def _begin(self) -> None:
        self._lock = threading.Lock()  # two threads may be in backward at once
        self._last: Recipe | None = None  # the recipe made last
        self._read: list[Any] = []  # and the settings it was made of
        self.last_pass = -1  # autograd's number of the backward pass of the last update
        self.warned = False
        # Compiled code must call it ready-made; made here, since importing firth shall not import dynamo.
        self.eager_lookup: Any = _outside_graphs(_compiled_lookup)
        self.eager_bag: Any = _outside_graphs(_compiled_bag)
        self.eager_refusal: Any = _outside_graphs(guards.refuse_compiled)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "recipe": self.recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_lock" not in self.__dict__:  # a copy or unpickled; load_state_dict comes here too
            self._begin()
        super().__setstate__(state)

    @property
    def weight(self) -> Tensor:
        """The table."""
        weight: Tensor = self.param_groups[0]["params"][0]
        return weight

    @property
    def steps(self) -> int:
        """How many updates have taken place."""
        return self.steps_of(self.weight)

    def recipe_of(self, group: Mapping[str, Any]) -> Recipe:
        """The recipe with the settings that the parameter group holds now."""
        kind = type(self.recipe)
        settings = [group[name] for name in kind.names()]
        if self._last is not None and settings == self._read:
            return self._last
        recipe = kind.of(group)  # seldom: making one checks the settings
        if not any(isinstance(value, Tensor) for value in settings):  # which may change in place
            self._last, self._read = recipe, settings
        return recipe

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: the optimiser belongs to one table.

        Raises:
            RuntimeError: always, once it is made.
        """
        if self.param_groups:
            raise RuntimeError(
                "FusedOptimizer.add_param_group(): it updates the table of one layer, inside backward; give "
                "other parameters to an optimiser of their own"
            )
        super().add_param_group(param_group)

    def follow(self, weight: Tensor) -> None:
        """Update another Parameter from now on, with the state that is there.

        Args:
            weight: what the layer's weight was replaced by, of the same shape.

        Raises:
            ValueError: it has another shape.
        """
        old = self.weight
        if weight.shape != old.shape:
            raise SettingError(
                f"FusedOptimizer.follow(): the weight must keep the shape {tuple(old.shape)}, got "
                f"{tuple(weight.shape)}; firth.nn.fused.attach(layer, recipe) starts with new state"
            )
        self.param_groups[0]["params"] = [weight]
        if weight is not old and old in self.state:
            self.state[weight] = self.state.pop(old)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Nothing but calling the closure: the updates took place in its backward.

        Raises:
            RuntimeError: the table has a ``.grad``, from another use than the lookup (tied weights, a
                penalty on the weight), which would be lost; or a ``GradScaler`` calls whose scale was
                not known in backward.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.scaler is None and hasattr(self, "grad_scale"):  # called by GradScaler.step()
            raise RuntimeError(
                "FusedOptimizer.step(): the loss is scaled by a GradScaler, and the updates took place in "
                "backward with scaled gradients; set layer.optimizer.scaler = scaler before training"
            )
        if self.weight.grad is not None:
            raise RuntimeError(f"FusedOptimizer.step(): {guards.STRAY}")
        return loss

    def update_rows(
        self, ids: Tensor, source: Source, padding_row: int | None = None, by_freq: bool = False
    ) -> None:
        """One step: move the rows named by ``ids``.

        Args:
            ids: (B,) int32 or int64, contiguous, within the table.
            source: the gradient of each place.
            padding_row: a row that is left alone.
            by_freq: divide the gradient of a row by the number of its places.

        Raises:
            NonFiniteGradient: names the row; table, state and number of steps are unchanged.
        """
        weight, recipe = self.weight, self.recipe_of(self.param_groups[0])
        table = weight.detach()
        kernel = rows.pick(table)
        if self.scaler is not None and self.scaler.is_enabled():
            source = _unscaled(source, 1.0 / self.scaler.get_scale())
        with self._lock:
            step, state = self.steps + 1, self.state_of(weight, recipe)
            try:
                with self.around() if self.around is not None else _NOTHING:
                    kernel.step(table, state, ids, source, recipe.update(step), padding_row, by_freq)
            except FloatingPointError:
                if self.scaler is not None and self.scaler.is_enabled():
                    return
                groups = kernel.group(ids, table.shape[0], padding_row)
                raise self._not_finite(int(kernel.first_not_finite(groups, source)), weight) from None
            self.keep(weight, state, step)
            self.last_pass = torch._C._current_graph_task_id()
            self._opt_called = True  # what schedulers look at before they warn of a missing step()

    def _not_finite(self, row: int, param: Tensor) -> NonFiniteGradient:
        error = super()._not_finite(row, param)
        error.args = (f"{error.args[0]}; with a GradScaler, set layer.optimizer.scaler",)
        return error

    def _moved(self, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.around is not None:
            raise RuntimeError(
                f"FusedOptimizer: the state {name!r} should move from {tensor.device} ({tensor.dtype}) to "
                f"{device} ({dtype}) with its table; a layer whose table is in a file cannot be moved or cast"
            )
        return super()._moved(name, tensor, dtype, device)


def attach(
    layer: FusedLayer,
    recipe: Recipe,
    *,
    state: Mapping[str, Tensor] | None = None,
    step: int = 0,
    around: Around | None = None,
) -> FusedOptimizer:
    """Make the optimiser of a layer and set it as ``layer.optimizer``.

    Layers call this themselves for ``fused=``.

    Args:
        layer: its ``weight`` is a Parameter, (N, D).
        state: tensors to keep the state in, such as those of a memory-mapped file: the names and shapes
            of ``recipe.state_shapes(N, D)``, in the dtype of the table (float32 for half types).
            ``None``: made at the first update.
        step: how many steps that state has seen.
        around: makes a context entered around each update, e.g. ``file.step``.

    Raises:
        TypeError: ``recipe`` is no recipe.
        SettingError: a state tensor that is missing or does not fit (a ValueError).
        ValueError: ``weight`` is no table of real numbers.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"fused= takes a recipe such as firth.nn.Adagrad(lr=0.1), got {type(recipe).__name__}; "
            "optimisers made of parameters (RowAdagrad, torch.optim) are for layers with sparse=True"
        )
    weight = layer.weight
    if not isinstance(weight, torch.nn.Parameter) or weight.dim() != 2:
        raise SettingError(
            f"fused= takes a layer whose weight is a Parameter (rows, dim), got {type(weight).__name__} of "
            f"shape {tuple(weight.shape)}"
        )
    optimizer = FusedOptimizer(weight, recipe)
    if state is not None:
        _take_state(optimizer, state, step)
    if step:
        optimizer.state[weight]["step"] = step
    optimizer.around = around
    layer.optimizer = optimizer
    return optimizer


def _take_state(optimizer: FusedOptimizer, state: Mapping[str, Tensor], step: int) -> None:
    weight, recipe = optimizer.weight, optimizer.recipe
    dtype = precision(weight.dtype)
    for name, shape in recipe.state_shapes(*weight.shape).items():
        tensor = state.get(name)
        if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
            has = "is missing" if tensor is None else f"is {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise SettingError(
                f"attach(): the state {name!r} of {type(recipe).__name__} must be {dtype} of shape {shape}; "
                f"it {has}"
            )
        if not step and recipe.initial(name):
            tensor.fill_(recipe.initial(name))
        optimizer.state[weight][name] = tensor


def lookup(layer: FusedLayer, ids: Tensor) -> Tensor:
    """The rows of ``ids``; backward updates them.

    The plain lookup where no update can be meant; see :func:`updates`. ``torch.compile`` breaks its graph
    here.

    Args:
        layer: with an ``optimizer`` made by :func:`attach`.
        ids: int32 or int64, any shape.

    Returns:
        (*ids.shape, D).

    Raises:
        OutsideTable: an id names no row (an IndexError).
        WrongIds: ids of another dtype (a RuntimeError).
        RuntimeError: where backward could not do one right update; see docs/fused.md.
    """
    if not updates(layer):
        return _plain_lookup(layer, ids)
    work = layer.optimizer.eager_lookup if torch.compiler.is_compiling() else _lookup
    found: Tensor = work(layer, ids)
    return found


def bag(layer: FusedLayer, ids: Tensor, starts: Tensor, mode: str, factor: Tensor | None = None) -> Tensor:
    """The sum, mean or maximum of the rows of each bag; backward updates the rows.

    The gradient of ``factor`` is made as usual. As :func:`lookup` in all else.

    Args:
        layer: with an ``optimizer`` made by :func:`attach`.
        ids: (B,) int32 or int64, contiguous, checked to be within the table.
        starts: (n_bags + 1,) int64, checked: where each bag begins, and the end.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        factor: (B,) floats of the table's dtype by which rows are multiplied, for sums; or ``None``.

    Returns:
        (n_bags, D).

    Raises:
        RuntimeError: where backward could not do one right update; see docs/fused.md.
    """
    if not updates(layer):
        return _plain_bag(layer, ids, starts, mode, factor)
    work = layer.optimizer.eager_bag if torch.compiler.is_compiling() else _bag
    found: Tensor = work(layer, ids, starts, mode, factor)
    return found


def updates(layer: FusedLayer) -> bool:
    """Whether backward of a lookup made now updates the table.

    Not without gradients (``torch.no_grad``, a frozen weight), in ``torch.export`` and
    ``torch.jit.trace``, on the meta device, and for a weight substituted by
    ``torch.func.functional_call``, which gets its gradient as usual.

    Raises:
        RuntimeError: it should, and cannot.
    """
    weight, optimizer = layer.weight, layer.optimizer
    if optimizer is None or not (torch.is_grad_enabled() and weight.requires_grad):
        return False
    if torch.compiler.is_compiling():
        return torch.compiler.is_dynamo_compiling() and not guards.exporting()
    if torch._C._get_tracing_state() is not None or weight.is_meta:
        return False
    if weight is optimizer.weight:
        return True
    if optimizer.weight.is_meta and isinstance(weight, torch.nn.Parameter):
        optimizer.follow(weight)  # what to_empty() or load_state_dict(assign=True) put in its place
    return not guards.substituted(layer)


def _outside_graphs(work: Callable[..., object]) -> Callable[..., object]:
    """A function at which torch.compile breaks its graph and which then runs as it is."""
    disable: Callable[..., Any] = torch.compiler.disable
    if "reason" in inspect.signature(disable).parameters:  # from torch 2.7 on
        disable = functools.partial(disable, reason=guards.NO_GRAPH)
    outside: Callable[..., object] = disable(work)
    return outside


def _compiled_lookup(layer: FusedLayer, ids: Tensor) -> Tensor:
    # In compiled code nobody has looked yet.
    return _plain_lookup(layer, ids) if guards.substituted(layer) else _lookup(layer, ids)


def _compiled_bag(layer: FusedLayer, ids: Tensor, starts: Tensor, mode: str, factor: Tensor | None) -> Tensor:
    work = _plain_bag if guards.substituted(layer) else _bag
    return work(layer, ids, starts, mode, factor)


def _lookup(layer: FusedLayer, ids: Tensor) -> Tensor:
    guards.check_forward(layer, ids)
    apply: Callable[..., Any] = _Lookup.apply
    found: Tensor = apply(layer.weight, ids, layer)
    return found


def _bag(layer: FusedLayer, ids: Tensor, starts: Tensor, mode: str, factor: Tensor | None) -> Tensor:
    guards.check_forward(layer, ids, starts, factor)
    apply: Callable[..., Any] = _Bag.apply
    found: Tensor = apply(layer.weight, factor, ids, starts, layer, mode)
    return found


def _plain_lookup(layer: FusedLayer, ids: Tensor) -> Tensor:
    return functional.lookup(
        layer.weight, ids, layer.padding_idx, layer.scale_grad_by_freq, layer.sparse, guards.name_of(layer)
    )


def _plain_bag(layer: FusedLayer, ids: Tensor, starts: Tensor, mode: str, factor: Tensor | None) -> Tensor:
    how = bagging.How(mode, layer.padding_idx, layer.scale_grad_by_freq, layer.sparse)
    return bagging.bag(layer.weight, factor, ids, starts, how)


class _Lookup(Function):
    """(*, D) rows of a table; backward updates them and passes no gradient on."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, layer: FusedLayer) -> Tensor:
        ctx.save_for_backward(ids, guards.note_pass(ctx, layer))
        return functional.gather(weight, ids, ctx.name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        (grad,) = grads
        if grad is not None:
            ids, steps = ctx.saved_tensors
            guards.check_backward(ctx, steps)
            if grad.dim() != 2 or not grad.is_contiguous():
                grad = grad.reshape(ids.numel(), grad.shape[-1]).contiguous()
            ctx.optimizer.update_rows(functional.flat(ids), Source(grad), ctx.padding_row, ctx.by_freq)
        return None, None, None


class _Bag(Function):
    """(n_bags, D) sums, means or maxima of rows; backward updates the rows; the factor gets a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        factor: Tensor | None,
        ids: Tensor,
        starts: Tensor,
        layer: FusedLayer,
        mode: str,
    ) -> Tensor:
        steps = guards.note_pass(ctx, layer)
        table = weight.detach()
        kernel = bags.pick(table)
        out, winner = kernel.forward(table, ids, starts, mode, factor, ctx.padding_row)
        ctx.save_for_backward(ids, starts, factor, winner, steps)
        ctx.mode, ctx.version = mode, weight._version
        found: Tensor = out
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        factor_grad = None
        if grad is not None:
            ids, starts, factor, winner, steps = ctx.saved_tensors
            guards.check_backward(ctx, steps)
            grad = grad.contiguous()
            weight = ctx.optimizer.weight
            table = weight.detach()
            kernel = bags.pick(table)
            if factor is not None and ctx.needs_input_grad[1]:
                if weight._version != ctx.version:
                    raise RuntimeError(
                        f"{ctx.name}: the gradient of per_sample_weights needs the rows as they were in "
                        "forward, and the table was changed since (a second lookup in the step was updated "
                        "first, or max_norm); look the table up once a step"
                    )
                factor_grad = kernel.dots(grad, table, ids, starts, ctx.padding_row)
            source = kernel.source(grad, ids, starts, ctx.mode, factor, ctx.padding_row, winner)
            used = ids[: int(starts[-1])]
            ctx.optimizer.update_rows(used, source, ctx.padding_row, ctx.by_freq)
        return None, factor_grad, None, None, None, None


def _unscaled(source: Source, factor: float) -> Source:
    """The gradients divided by the scale of a GradScaler, in the precision of sums."""
    grads = source.grads
    if source.factor is not None:
        return source._replace(factor=source.factor.to(precision(grads.dtype)) * factor)
    n_places = len(grads) if source.row_of is None else len(source.row_of)
    return source._replace(
        factor=torch.full((n_places,), factor, dtype=precision(grads.dtype), device=grads.device)
    )
