"""What is done to the rows of a table that a mini-batch uses: the definition, in plain torch.

This module is the documentation of the mathematics and the judge of the fast kernels, which take the
same arguments: :mod:`firth.kernels.rows_cpu` (Numba) and :mod:`firth.kernels.rows_gpu` (Triton). It
runs on every device and with every float dtype, and is never optimised.

Words used throughout
    *table*: (N, D), N rows of D numbers. *ids*: (B,) int32 or int64, which row each place of the batch
    looks up; checked by the caller to lie within [0, N) unless a function says otherwise. *place*: a
    position in ``ids``. *group*: the places that look up the same row. *U*: how many different rows the
    batch uses. Sums over a group are taken in the order of the input, so that results are the same to
    the last bit however many threads there are.

Precision
    Sums, norms and updates are computed in the table's dtype, but in float32 for half and bfloat16
    (whose sums stand still: 256 + 1 is 256 in bfloat16); what is stored is rounded once. State tensors
    may have another dtype than the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from firth.errors import SettingError

KINDS = ("sgd", "adagrad", "rowwise_adagrad", "adam")


class Groups(NamedTuple):
    """The places of a batch by the row that they look up."""

    rows: Tensor  # (U,) int64: the different rows, ascending
    starts: Tensor  # (U + 1,) int64: row rows[u] is looked up at order[starts[u]:starts[u + 1]]
    order: Tensor  # (starts[-1],) int64: places in ids, in input order within a row


class Source(NamedTuple):
    """The gradient of every place: ``factor[p] * grads[row_of[p]]``."""

    grads: Tensor  # (R, D): gradients of the output rows
    row_of: Tensor | None = None  # (B,) int64: the row of grads that place p gets; None: its own (R == B)
    factor: Tensor | None = None  # (B,) float: what it is multiplied by; None: 1


class Update(NamedTuple):
    """One step of an optimiser on the rows used; see :func:`update` for the formulas."""

    kind: str  # one of KINDS
    lr: float
    weight_decay: float = 0.0
    decoupled: bool = False  # weight decay apart from the gradient, as in AdamW (arXiv 1711.05101)
    momentum: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    step: int = 1  # number of this step, from 1, for Adam's bias correction; the same for all rows
    clip: float = math.inf  # largest L2 norm of a row's summed gradient, before weight decay
    maximize: bool = False


def precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over rows of this dtype are taken."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# --- ids ----------------------------------------------------------------------------------------


def first_outside(ids: Tensor, n_rows: int) -> int:
    """The first place whose id is outside [0, n_rows), or -1; ids of any value."""
    places = ((ids < 0) | (ids >= n_rows)).nonzero()
    return int(places[0]) if len(places) else -1


def group(ids: Tensor, n_rows: int, padding_row: int | None = None) -> Groups:
    """Group the places by row.

    Args:
        ids: (B,) int32 or int64.
        n_rows: N of the table.
        padding_row: places with this id are left out.

    Returns:
        ``rows`` ascending, places in input order within a row; all on the device of ``ids``.
    """
    places = torch.arange(len(ids), device=ids.device)
    if padding_row is not None:
        places = places[ids != padding_row]
        ids = ids[places]
    ordered, by_row = torch.sort(ids.long(), stable=True)
    rows, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = torch.zeros(len(rows) + 1, dtype=torch.int64, device=ids.device)
    starts[1:] = torch.cumsum(counts, 0)
    return Groups(rows, starts, places[by_row])


# --- lookups ------------------------------------------------------------------------------------


def outside(n_rows: int) -> IndexError:
    """What is raised for an id that names no row."""
    return IndexError(f"an id is outside the table of {n_rows} rows")


@torch.no_grad()
def gather(table: Tensor, ids: Tensor, out: Tensor | None = None) -> Tensor:
    """The rows looked up, (B, D): ``out[p] = table[ids[p]]``.

    Args:
        out: (B, D) to write into, contiguous, of the table's dtype; a new tensor if ``None``.

    Raises:
        IndexError: an id names no row; ``out`` may hold anything then. A GPU's kernels do not look.
    """
    if table.device.type == "cpu" and first_outside(ids, table.shape[0]) >= 0:
        raise outside(table.shape[0])
    rows = table.detach().index_select(0, ids)
    return rows if out is None else out.copy_(rows)


@torch.no_grad()
def renorm(table: Tensor, ids: Tensor, max_norm: float, norm_type: float) -> None:
    """Shrink the rows looked up to at most ``max_norm``, in place, each row once.

    A row with ``norm > max_norm`` is multiplied by ``max_norm / (norm + 1e-7)``, the formula of
    ``torch.embedding_renorm_``. A row that holds NaN stays as it is.

    Args:
        norm_type: p of the p-norm; 0 counts what is not zero, +-inf takes the largest or smallest.
    """
    rows = torch.unique(ids.long())
    values = table.detach()[rows].to(precision(table.dtype))
    norms = torch.linalg.vector_norm(values, norm_type, dim=1)
    over = norms > max_norm
    scale = max_norm / (norms[over].double() + 1e-7)
    table.detach()[rows[over]] = (values[over] * scale.to(values.dtype)[:, None]).to(table.dtype)


# --- gradients ----------------------------------------------------------------------------------


@torch.no_grad()
def summed(groups: Groups, source: Source, by_freq: bool) -> Tensor:
    """The gradient of each row used, (U, D): the sum over its places, in input order.

    Args:
        by_freq: divide by the number of places of the row (``scale_grad_by_freq``).

    Returns:
        float32 for half types, else the dtype of ``source.grads``.
    """
    grads = source.grads
    counts = groups.starts.diff()
    total = torch.zeros(len(counts), grads.shape[1], dtype=precision(grads.dtype), device=grads.device)
    for turn in range(int(counts.max()) if len(counts) else 0):
        has_more = (counts > turn).nonzero()[:, 0]
        places = groups.order[groups.starts[has_more] + turn]
        values = grads[places if source.row_of is None else source.row_of[places]].to(total.dtype)
        if source.factor is not None:
            values = values * source.factor[places].to(total.dtype)[:, None]
        total[has_more] += values
    return total / counts[:, None].to(total.dtype) if by_freq else total


def first_not_finite(groups: Groups, source: Source) -> int:
    """The lowest row of the table whose summed gradient has NaN or infinity, or -1."""
    wrong = (~summed(groups, source, False).isfinite().all(1)).nonzero()
    return int(groups.rows[wrong[0, 0]]) if len(wrong) else -1


# --- updates ------------------------------------------------------------------------------------


def state_shapes(kind: str, n_rows: int, dim: int, momentum: float) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state that an update keeps beside a table (n_rows, dim); all begin as zeros.

    The names are those of torch's optimisers.

    Raises:
        SettingError: an unknown kind.
    """
    table = (n_rows, dim)
    if kind == "sgd":
        return {"momentum_buffer": table} if momentum else {}
    if kind == "adagrad":
        return {"sum": table}
    if kind == "rowwise_adagrad":
        return {"sum": (n_rows,)}
    if kind == "adam":
        return {"exp_avg": table, "exp_avg_sq": table}
    raise SettingError(f"update(): the kind must be one of {', '.join(KINDS)}, not {kind!r}")


@torch.no_grad()
def update(
    table: Tensor,
    state: Mapping[str, Tensor],
    groups: Groups,
    source: Source,
    step: Update,
    by_freq: bool,
) -> None:
    """Move the rows used, and their state, by one step; all other rows stay as they are.

    With w a row and g its gradient of :func:`summed`, negated if ``maximize``::

        g = g * clip / |g|             if its L2 norm |g| exceeds clip
        g = g + weight_decay * w       or, if decoupled, w = w - lr * weight_decay * w

        sgd               w -= lr * g                                   without momentum
                          b = momentum * b + g;  w -= lr * b            or, with nesterov,
                                                 w -= lr * (g + momentum * b)
        adagrad           s += g * g;            w -= lr * g / (sqrt(s) + eps)
        rowwise_adagrad   s += mean(g * g);      w -= lr * g / (sqrt(s) + eps), s one number a row
        adam              m += (1 - beta1) * (g - m);  v += (1 - beta2) * (g * g - v)
                          w -= lr * sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(v) + eps)

    State and weight decay are lazy: in steps that do not use a row nothing of it decays.

    Args:
        table: (N, D), changed in place. state: the tensors of :func:`state_shapes`, changed in place.
        groups, source: the batch. by_freq: see :func:`summed`.

    Raises:
        FloatingPointError: a summed gradient is not finite; names the lowest such row of the table.
            Table and state are untouched.
        SettingError: an unknown kind.

    Source: Duchi et al. 2011 (Adagrad); Kingma and Ba 2015, arXiv 1412.6980 (Adam), with the lazy rows
    and the place of eps of ``torch.optim.SparseAdam``; row-wise Adagrad as in FBGEMM's
    ``EXACT_ROWWISE_ADAGRAD``; momentum as in ``torch.optim.SGD``.
    """
    state_shapes(step.kind, len(table), table.shape[1], step.momentum)  # refuses an unknown kind
    rows = groups.rows
    grads = summed(groups, source, by_freq)
    finite = grads.isfinite().all(1)
    if not bool(finite.all()):
        raise not_finite(int(rows[(~finite).nonzero()[0, 0]]))
    table = table.detach()
    weights = table[rows].to(precision(table.dtype))
    grads = grads.to(weights.dtype)
    if step.maximize:
        grads = -grads
    if math.isfinite(step.clip):
        norms = torch.linalg.vector_norm(grads, 2, dim=1, keepdim=True)
        grads = torch.where(norms > step.clip, grads * (step.clip / norms), grads)
    if step.decoupled:
        weights = weights * (1.0 - step.lr * step.weight_decay)
    elif step.weight_decay:
        grads = grads + step.weight_decay * weights
    table[rows] = (weights - _change(state, rows, grads, step)).to(table.dtype)


def step(
    table: Tensor,
    state: Mapping[str, Tensor],
    ids: Tensor,
    source: Source,
    step: Update,
    padding_row: int | None,
    by_freq: bool,
) -> None:
    """:func:`group` and :func:`update` in one: a step on the rows that ``ids`` name.

    Args:
        ids: (B,) int32 or int64, contiguous. The rest as there.

    Raises:
        FloatingPointError, SettingError: as :func:`update`.
    """
    update(table, state, group(ids, len(table), padding_row), source, step, by_freq)


def _change(state: Mapping[str, Tensor], rows: Tensor, grads: Tensor, step: Update) -> Tensor:
    """What is taken off the weights, (U, D); moves the state of the rows."""

    def keep(name: str, values: Tensor) -> Tensor:
        state[name].detach()[rows] = values.to(state[name].dtype)
        return values

    old = {name: tensor.detach()[rows].to(grads.dtype) for name, tensor in state.items()}
    if step.kind == "sgd":
        if not step.momentum:
            return step.lr * grads
        buffer = keep("momentum_buffer", step.momentum * old["momentum_buffer"] + grads)
        return step.lr * (grads + step.momentum * buffer if step.nesterov else buffer)
    if step.kind == "adagrad":
        total = keep("sum", old["sum"] + grads * grads)
        return step.lr * grads / (total.sqrt() + step.eps)
    if step.kind == "rowwise_adagrad":
        total = keep("sum", old["sum"] + (grads * grads).mean(1))
        return step.lr * grads / (total.sqrt() + step.eps)[:, None]
    first = keep("exp_avg", old["exp_avg"] + (1.0 - step.beta1) * (grads - old["exp_avg"]))
    second = keep("exp_avg_sq", old["exp_avg_sq"] + (1.0 - step.beta2) * (grads * grads - old["exp_avg_sq"]))
    return adam_rate(step) * first / (second.sqrt() + step.eps)


def adam_rate(step: Update) -> float:
    """Adam's learning rate with both bias corrections."""
    return step.lr * math.sqrt(1.0 - step.beta2**step.step) / (1.0 - step.beta1**step.step)


def not_finite(row: int) -> FloatingPointError:
    """The error of :func:`update` for a row whose summed gradient is not finite."""
    return FloatingPointError(
        f"update(): the gradient of row {row} is not finite (NaN or infinity); table and state are unchanged"
    )
