"""Tables that grow: the rows of a weight, and of what an optimiser keeps for it, at new places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from firth.errors import SettingError


class Move(NamedTuple):
    """Where the rows of a table go when it grows."""

    to: Tensor  # (old rows,) int64: the new row of each
    n_rows: int  # how many there are then

    def fresh_rows(self) -> Tensor:
        """(n,) int64: the rows that come from nowhere, ascending."""
        free = torch.ones(self.n_rows, dtype=torch.bool, device=self.to.device)
        free[self.to] = False
        return free.nonzero().squeeze(1)

    def moved(self, table: Tensor, start: float) -> Tensor:
        """A table (old rows, ...) as (n_rows, ...), with ``start`` in the fresh rows; dense or sparse COO."""
        shape = (self.n_rows, *table.shape[1:])
        to = self.to.to(table.device)
        if table.is_sparse:
            table = table.coalesce()
            places = table.indices().clone()
            places[0] = to[places[0]]
            return torch.sparse_coo_tensor(places, table.values(), shape, check_invariants=True).coalesce()
        moved = torch.full(shape, start, dtype=table.dtype, device=table.device)
        moved[to] = table
        return moved


def rows_like(weight: Tensor, n: int) -> Tensor:
    """(n, D) new rows like those of ``weight``, normal: the mean of each column, one standard deviation.

    The deviation is the root mean square about the means. Less than two rows tell nothing: 0 and 1 then.
    """
    fresh = torch.empty(n, weight.shape[1], dtype=weight.dtype, device=weight.device).normal_()
    if len(weight) < 2:
        return fresh
    mean = weight.mean(0)
    return fresh * (weight - mean).square().mean().sqrt() + mean


def grown_state(name: str, weight: Tensor, optimizer: torch.optim.Optimizer, move: Move) -> dict[str, Tensor]:
    """What changes in an optimiser's state when ``weight`` grows; nothing is changed here.

    Fresh rows start with zero, in Adagrad's ``sum`` with the group's ``initial_accumulator_value``.

    Args:
        name: who asks, for messages. weight: (old rows, D), as it is before.

    Raises:
        SettingError: the optimiser does not train this weight, or keeps state that is not by rows.
    """
    kind = type(optimizer).__name__
    groups = [group for group in optimizer.param_groups if any(one is weight for one in group["params"])]
    if not groups:
        raise SettingError(f"{name}: the {kind} given does not train the weight of this layer")
    grown = {}
    for key, value in optimizer.state.get(weight, {}).items():
        if isinstance(value, Tensor) and value.ndim and len(value) == len(weight):
            start = groups[0].get("initial_accumulator_value", 0.0) if key == "sum" else 0.0
            grown[key] = move.moved(value, start)
        elif (isinstance(value, Tensor) and value.ndim) or isinstance(value, (list, tuple, dict)):
            raise SettingError(
                f"{name}: the state {key!r} of {kind} is not kept by rows and cannot grow; make a new "
                f"{kind} after growing and do not give this one"
            )
    return grown
