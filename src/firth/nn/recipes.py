"""Recipes: which optimiser a fused layer runs inside backward, and with which settings.

::

    layer = firth.nn.Embedding(1_000_000, 128, fused=firth.nn.Adagrad(lr=0.1))

A recipe is a frozen value; what changes in training (the learning rate of a scheduler, moments, the
number of the step) lives in ``layer.optimizer``. The row optimisers of :mod:`firth.nn.optim` check
their settings and read their parameter groups through the same classes, so that both ways to an update
have the same settings, names and defaults. The names are those of torch's optimisers; the formulas
stand in :func:`firth.kernels.rows_reference.update`.

Settings that all recipes have
    ``lr``: learning rate, >= 0. ``weight_decay``: >= 0, L2, of the rows used only. ``maximize``: go up
    instead of down. ``clip``: largest L2 norm of the summed gradient of one row; a longer one is
    shortened to it, before weight decay; ``None``: never.

Every recipe is lazy: a row that a step does not use keeps its weight and its state in that step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import cache
from numbers import Real
from typing import Any, ClassVar, Self

from firth.errors import SettingError
from firth.kernels import rows_reference
from firth.kernels.rows_reference import Update


@dataclass(frozen=True)
class Recipe:
    """What all recipes share; not used by itself."""

    kind: ClassVar[str]

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        """The names of the settings, as they stand in a parameter group."""
        return tuple(field.name for field in fields(cls))

    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in self.names()}

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Self:
        """The recipe of a parameter group; entries that are no settings are passed over.

        Raises:
            SettingError: a setting outside its range.
        """
        settings = {name: group[name] for name in cls.names()}
        settings["lr"] = float(settings["lr"])  # torch's schedulers may keep it in a tensor
        return cls(**settings)

    def update(self, step: int, lr: float | None = None) -> Update:
        """What the kernels do in step number ``step`` (from 1).

        Args:
            lr: the learning rate of this step; ``None``: the recipe's.
        """
        raise TypeError(f"{type(self).__name__} is no recipe by itself; use one of its subclasses")

    def state_shapes(self, n_rows: int, dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state kept beside a table (n_rows, dim)."""
        return rows_reference.state_shapes(self.kind, n_rows, dim, getattr(self, "momentum", 0.0))

    def initial(self, name: str) -> float:
        """What the state tensor ``name`` of a new row is filled with."""
        return 0.0

    def _at_least_zero(self, name: str, called: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{type(self).__name__}: {name} must be a number, got {value!r}")
        if not 0.0 <= float(value) < math.inf:
            raise SettingError(
                f"Invalid {called}: {value}; {name} of {type(self).__name__} must be a finite number >= 0"
            )

    def _check_common(self) -> None:
        self._at_least_zero("lr", "learning rate")
        self._at_least_zero("weight_decay", "weight_decay value")
        clip = getattr(self, "clip", None)
        if clip is None:
            return
        if isinstance(clip, bool) or not isinstance(clip, Real):
            raise TypeError(f"{type(self).__name__}: clip must be a number or None, got {clip!r}")
        if not float(clip) > 0.0:
            raise SettingError(
                f"Invalid clip value: {clip}; clip of {type(self).__name__} is the largest norm of a row's "
                "gradient and must be > 0; use None not to clip"
            )


@dataclass(frozen=True)
class SGD(Recipe):
    """Stochastic gradient descent; the state is (N, D) with momentum, else nothing.

    Momentum is lazy: ``buffer = momentum * buffer + g`` for the rows used. The buffer of a row does not
    decay and does not move the row in steps that do not use it, where ``torch.optim.SGD`` goes on. A step
    in which all rows are used is the same as torch's (which has ``dampening`` too).

    Raises:
        SettingError: a setting outside its range, or ``nesterov`` without momentum (a ValueError).
        TypeError: no number.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    _: KW_ONLY
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    clip: float | None = None
    kind: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        self._check_common()
        self._at_least_zero("momentum", "momentum value")
        if self.nesterov and not self.momentum:
            raise SettingError("Nesterov momentum requires a momentum: set momentum > 0, or nesterov=False")

    def update(self, step: int, lr: float | None = None) -> Update:
        """One step of SGD; see :meth:`Recipe.update`."""
        return Update(
            self.kind,
            self.lr if lr is None else lr,
            self.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            step=step,
            clip=_limit(self.clip),
            maximize=self.maximize,
        )


@dataclass(frozen=True)
class Adagrad(Recipe):
    """Adagrad with a sum of squares for every element: the state is (N, D).

    Equal to ``torch.optim.Adagrad`` on sparse gradients, which is lazy too (there weight decay is
    refused; here it is added to the gradient of the rows used). The learning rate of step t is
    ``lr / (1 + (t - 1) * lr_decay)``.

    Raises:
        SettingError: a setting outside its range; ``eps=0`` with ``initial_accumulator_value=0``, which
            divides by zero where a gradient is zero (a ValueError).
        TypeError: no number.
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    _: KW_ONLY
    maximize: bool = False
    clip: float | None = None
    kind: ClassVar[str] = "adagrad"

    def __post_init__(self) -> None:
        self._check_common()
        self._at_least_zero("lr_decay", "lr_decay value")
        self._at_least_zero("initial_accumulator_value", "initial_accumulator_value value")
        self._at_least_zero("eps", "epsilon value")
        if not self.eps and not self.initial_accumulator_value:
            raise SettingError(
                f"Invalid epsilon value: {self.eps}; {type(self).__name__} divides by sqrt(sum) + eps, "
                "which is 0 for a zero gradient; set eps or initial_accumulator_value > 0"
            )

    def update(self, step: int, lr: float | None = None) -> Update:
        """One step of Adagrad; see :meth:`Recipe.update`."""
        return Update(
            self.kind,
            (self.lr if lr is None else lr) / (1.0 + (step - 1) * self.lr_decay),
            self.weight_decay,
            eps=self.eps,
            step=step,
            clip=_limit(self.clip),
            maximize=self.maximize,
        )

    def initial(self, name: str) -> float:
        """``initial_accumulator_value`` for the sum of squares."""
        return self.initial_accumulator_value


@dataclass(frozen=True)
class RowWiseAdagrad(Adagrad):
    """Adagrad with one number a row, the sum of the mean squares of its gradients: the state is (N,).

    Takes D times less memory than :class:`Adagrad`; the rule of FBGEMM's ``EXACT_ROWWISE_ADAGRAD``.
    Settings and errors are those of :class:`Adagrad`.
    """

    kind: ClassVar[str] = "rowwise_adagrad"


@dataclass(frozen=True)
class Adam(Recipe):
    """Adam over the rows used; the state is twice (N, D).

    Lazy as ``torch.optim.SparseAdam``, to which it is equal: moments of a row decay only in steps that
    use it, while the bias corrections count all steps. (Adam over dense gradients goes on moving rows
    with a zero gradient.)

    Args:
        betas: decay of the first and second moment, each in [0, 1).
        eps: > 0, added to the root of the second moment.
        weight_decay: L2, added to the gradient; with ``decoupled_weight_decay`` the row is multiplied by
            ``1 - lr * weight_decay`` instead, as AdamW does (arXiv 1711.05101).

    Raises:
        SettingError: a setting outside its range (a ValueError).
        TypeError: no number.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    _: KW_ONLY
    decoupled_weight_decay: bool = False
    maximize: bool = False
    clip: float | None = None
    kind: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        self._check_common()
        self._at_least_zero("eps", "epsilon value")
        if not self.eps:
            raise SettingError(
                "Invalid epsilon value: 0.0; Adam divides by sqrt(v) + eps, which is 0 for a zero gradient; "
                "set eps > 0"
            )
        if len(self.betas) != 2:
            raise SettingError(f"Invalid betas: {self.betas!r}; Adam takes two numbers in [0, 1)")
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                raise SettingError(f"Invalid beta parameter at index {index}: {beta}; it must be in [0, 1)")

    def update(self, step: int, lr: float | None = None) -> Update:
        """One step of Adam; see :meth:`Recipe.update`."""
        return Update(
            self.kind,
            self.lr if lr is None else lr,
            self.weight_decay,
            decoupled=self.decoupled_weight_decay,
            beta1=float(self.betas[0]),
            beta2=float(self.betas[1]),
            eps=self.eps,
            step=step,
            clip=_limit(self.clip),
            maximize=self.maximize,
        )


def _limit(clip: float | None) -> float:
    return math.inf if clip is None else float(clip)
