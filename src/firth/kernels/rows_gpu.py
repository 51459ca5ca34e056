"""The work on rows for CUDA, in Triton: the twin of :mod:`firth.kernels.rows_reference`, which defines
every name, argument and result here.

How a step is made fast:

* One pass over the rows used: a program sums the gradients of its rows' places, and reads and writes
  weights and state once, so that no summed gradient goes to memory and back.
* A gradient that is not finite must leave everything untouched. A first pass looks for one; the second
  reads its verdict on the card and does nothing where it found one, so that both are under way before
  the host waits for the verdict.
* Rows with very many places (the frequent words of a text) would each keep one program busy long after
  all others are done: their places are first added up in tiles, in parallel.

Sums are deterministic: the same batch gives the same bits. Rows of fewer than ``TILE`` places are added
in input order, as in the reference; of others, tiles of that many.

Grouping is torch's radix sort; :func:`gather` is torch's ``index_select``, which runs at the speed of
the card's memory. Tensors that the kernels do not take (other dtypes than the four floats, strided
tables or state) go to the reference, which runs on the card as well.

With ``TRITON_INTERPRET=1`` in the environment before Triton is first imported, all this runs on the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from firth.errors import MissingExtra
from firth.kernels import rows_reference as reference
from firth.kernels.rows_reference import Groups, Source, Update, precision, state_shapes

__all__ = [
    "Groups",
    "Source",
    "Update",
    "first_not_finite",
    "first_outside",
    "gather",
    "group",
    "renorm",
    "state_shapes",
    "summed",
    "update",
]

TILE = 64
"""Places that are added up by themselves where they all belong to one row."""
WIDEST = 1024
"""Columns of a block, and about the elements of one."""
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@cache
def _triton() -> tuple[Any, Any]:
    """The kernels and Triton's language, imported when first needed.

    Raises:
        MissingExtra: Triton is not installed.
    """
    try:
        language = importlib.import_module("triton.language")
    except ImportError as error:
        raise MissingExtra(
            "kernels.rows_gpu needs Triton, which comes with torch for CUDA on Linux: pip install triton,"
            " or use kernels.rows_reference"
        ) from error
    return importlib.import_module("firth.kernels.rows_triton"), language


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current card: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _fits(*tensors: Tensor) -> bool:
    """Whether the kernels take these tables, states and gradients."""
    return all(one.dtype in FLOATS and one.is_contiguous() and one.numel() > 0 for one in tensors)


class _Block(NamedTuple):
    """The piece of rows that a program takes at a time."""

    rows: int
    columns: int

    @classmethod
    def of(cls, dim: int) -> _Block:
        # Not fewer than 8: Triton's compiler fails on blocks of one column.
        columns = min(max(1 << (dim - 1).bit_length(), 8), WIDEST)
        return cls(min(max(WIDEST // columns, 1), 64), columns)


# --- ids ----------------------------------------------------------------------------------------


def first_outside(ids: Tensor, n_rows: int) -> int:
    """The first place whose id is outside [0, n_rows), or -1; ids of any value.

    The ids within come back as two numbers: the host waits once, and looks for the place only if needed.
    """
    if not ids.numel():
        return -1
    low, high = torch.stack(torch.aminmax(ids)).tolist()
    return -1 if low >= 0 and high < n_rows else reference.first_outside(ids, n_rows)


def group(ids: Tensor, n_rows: int, padding_row: int | None = None) -> Groups:
    """Group the places by row; see :func:`firth.kernels.rows_reference.group`.

    The host waits once for the number of rows, and once more with a ``padding_row``.
    """
    # 32-bit keys take half the passes of the sort. Padding goes to the end, as row n_rows.
    keys = ids.to(torch.int32 if n_rows < 2**31 else torch.int64)
    if padding_row is not None:
        keys = torch.where(keys == padding_row, n_rows, keys)
    keys, order = torch.sort(keys, stable=True)
    begins = torch.cat([keys.new_full((1,), -1), keys])
    ends = torch.cat([keys, keys.new_full((1,), n_rows)])
    # A row begins where the key changes; the last change, to n_rows, is the end of the last row.
    starts = (begins != ends).nonzero()[:, 0]
    rows = keys[starts[:-1]].long()
    return Groups(rows, starts, order if padding_row is None else order[: int(starts[-1])])


# --- lookups ------------------------------------------------------------------------------------


@torch.no_grad()
def gather(table: Tensor, ids: Tensor, out: Tensor | None = None) -> Tensor:
    """The rows looked up, (B, D); see :func:`firth.kernels.rows_reference.gather`."""
    if out is None:
        return table.detach().index_select(0, ids)
    return torch.index_select(table.detach(), 0, ids, out=out)


@torch.no_grad()
def renorm(table: Tensor, ids: Tensor, max_norm: float, norm_type: float) -> None:
    """Shrink the rows looked up to at most ``max_norm``; see
    :func:`firth.kernels.rows_reference.renorm`.

    Norms other than the Euclidean and the sum of absolute values are left to the reference.
    """
    table = table.detach()
    if norm_type not in (1.0, 2.0) or not _fits(table) or not ids.numel():
        return reference.renorm(table, ids, max_norm, norm_type)
    kernels, language = _triton()
    rows = torch.unique(ids.long())
    block = _Block.of(table.shape[1])
    with _on(table):
        kernels.renorm[(-(-len(rows) // block.rows),)](
            table,
            rows,
            len(rows),
            float(max_norm),
            D=table.shape[1],
            SQUARE=norm_type == 2.0,
            WORK=_type(language, precision(table.dtype)),
            ROWS=block.rows,
            BLOCK=block.columns,
        )
    return None


# --- gradients ----------------------------------------------------------------------------------


class _Batch:
    """What all kernels over a batch take: pointers, and the constants they are compiled for."""

    def __init__(self, groups: Groups, source: Source) -> None:
        kernels, language = _triton()
        grads = source.grads
        self.n_groups = len(groups.rows)
        self.block = _Block.of(grads.shape[1])
        self.grid = -(-self.n_groups // self.block.rows)
        n_tiles = len(groups.order) // TILE
        # A pointer is needed even where nothing is read through it.
        row_of = groups.order if source.row_of is None else source.row_of.contiguous()
        factor = grads if source.factor is None else source.factor.contiguous()
        tiles = grads.new_empty((n_tiles, grads.shape[1]), dtype=precision(grads.dtype))
        self.pointers = (groups.starts, groups.order, row_of, factor, grads, tiles if n_tiles else grads)
        constants = {
            "D": grads.shape[1],
            "ROW_OF": source.row_of is not None,
            "FACTOR": source.factor is not None,
            "ACC": _type(language, precision(grads.dtype)),
            "BLOCK": self.block.columns,
            "TILE": TILE,
        }
        if n_tiles:
            grid = (n_tiles, -(-grads.shape[1] // self.block.columns))
            halvings = self.n_groups.bit_length()
            kernels.tile_sums[grid](*self.pointers, self.n_groups, halvings, **constants, num_warps=1)
        self.constants = constants | {"TILES": n_tiles > 0, "ROWS": self.block.rows}

    def wrong(self) -> Tensor:
        """(U,) int8: 1 where the summed gradient is not finite."""
        wrong = self.pointers[0].new_empty(self.n_groups, dtype=torch.int8)
        _triton()[0].not_finite[(self.grid,)](*self.pointers, wrong, self.n_groups, **self.constants)
        return wrong


def _type(language: Any, dtype: torch.dtype) -> Any:
    """Triton's name of a torch dtype."""
    return getattr(language, str(dtype).removeprefix("torch."))


@torch.no_grad()
def summed(groups: Groups, source: Source, by_freq: bool) -> Tensor:
    """The gradient of each row used, (U, D); see :func:`firth.kernels.rows_reference.summed`."""
    source = source._replace(grads=source.grads.contiguous())
    if not _fits(source.grads) or not len(groups.rows):
        return reference.summed(groups, source, by_freq)
    dim = source.grads.shape[1]
    out = source.grads.new_empty((len(groups.rows), dim), dtype=precision(source.grads.dtype))
    with _on(out):
        batch = _Batch(groups, source)
        grid = (batch.grid, -(-dim // batch.block.columns))
        settings = batch.constants | {"BY_FREQ": bool(by_freq)}
        _triton()[0].summed[grid](*batch.pointers, out, batch.n_groups, **settings)
    return out


@torch.no_grad()
def first_not_finite(groups: Groups, source: Source) -> int:
    """The lowest row of the table whose summed gradient has NaN or infinity, or -1."""
    source = source._replace(grads=source.grads.contiguous())
    if not _fits(source.grads) or not len(groups.rows):
        return reference.first_not_finite(groups, source)
    with _on(source.grads):
        return _first_wrong(groups, _Batch(groups, source).wrong())


def _first_wrong(groups: Groups, wrong: Tensor) -> int:
    places = wrong.nonzero()
    return int(groups.rows[places[0, 0]]) if len(places) else -1


# --- updates ------------------------------------------------------------------------------------


@torch.no_grad()
def update(
    table: Tensor,
    state: Mapping[str, Tensor],
    groups: Groups,
    source: Source,
    step: Update,
    by_freq: bool,
) -> None:
    """Move the rows used, and their state, by one step; formulas, arguments and errors:
    :func:`firth.kernels.rows_reference.update`.

    Raises:
        FloatingPointError: a summed gradient is not finite; names the lowest such row of the table.
            Table and state are untouched.
        SettingError: an unknown kind.
        MissingExtra: Triton is not installed.
    """
    names = state_shapes(step.kind, len(table), table.shape[1], step.momentum)  # refuses an unknown kind
    table = table.detach()
    source = source._replace(grads=source.grads.contiguous())
    states = [state[name].detach() for name in names]
    if not _fits(table, source.grads, *states) or not len(groups.rows):
        return reference.update(table, state, groups, source, step, by_freq)
    kernels, language = _triton()
    with _on(table):
        batch = _Batch(groups, source)
        wrong = batch.wrong()
        refused = wrong.amax().reshape(1)
        kernels.update[(batch.grid,)](
            table,
            *[*states, table, table][:2],
            groups.rows,
            *batch.pointers,
            refused,
            batch.n_groups,
            reference.adam_rate(step) if step.kind == "adam" else float(step.lr),
            float(step.weight_decay),
            1.0 - step.lr * step.weight_decay,
            float(step.momentum),
            1.0 - step.beta1,
            1.0 - step.beta2,
            float(step.eps),
            float(step.clip),
            KIND=step.kind,
            MOMENTUM=bool(step.momentum),
            NESTEROV=bool(step.nesterov),
            DECAY=bool(step.weight_decay),
            DECOUPLED=bool(step.decoupled),
            CLIP=math.isfinite(step.clip),
            MAXIMIZE=bool(step.maximize),
            BY_FREQ=bool(by_freq),
            WORK=_type(language, precision(table.dtype)),
            **batch.constants,
        )
        if int(refused):
            raise reference.not_finite(_first_wrong(groups, wrong))
    return None


def step(
    table: Tensor,
    state: Mapping[str, Tensor],
    ids: Tensor,
    source: Source,
    step: Update,
    padding_row: int | None,
    by_freq: bool,
) -> None:
    """See :func:`firth.kernels.rows_reference.step`."""
    update(table, state, group(ids, len(table), padding_row), source, step, by_freq)
