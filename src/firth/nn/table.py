"""What ``Embedding`` and ``EmbeddingBag`` share: where the weight comes from and who updates it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from firth.errors import SettingError
from firth.kernels import pages
from firth.nn import checks
from firth.nn.linear import LinearView
from firth.nn.renorm import SyncedNorm
from firth.nn.wordrows import Rows
from firth.nn.words import Words
from firth.vocab import Vocab

if TYPE_CHECKING:
    from firth.nn.fused import FusedOptimizer
    from firth.nn.recipes import Recipe
    from firth.nn.storage import TableFile

Device = torch.device | str | int | None


class Start(NamedTuple):
    """How a layer begins."""

    weight: Tensor | None  # (N, D), to be given to torch as _weight; None: torch allocates and draws
    draw: bool  # whether reset_parameters() has to fill it
    file: TableFile | None


class TableLayer(Words, SyncedNorm):
    """Mixin over torch's layer: ``fused``, ``storage`` and ``as_linear``, besides words and ``max_norm``.

    Attributes:
        fused, optimizer: the recipe of a fused layer and the optimiser made of it, or ``None``.
        file: the open table file, or ``None``.
    """

    fused: Recipe | None = None
    optimizer: FusedOptimizer | None = None
    file: TableFile | None = None
    weight: torch.nn.Parameter
    scale_grad_by_freq: bool
    sparse: bool
    reset_parameters: Callable[[], None]

    def as_linear(self) -> LinearView:
        """The same table as a matrix: ``as_linear()(x)`` is ``x @ weight``.

        Its ``weight`` is this layer's Parameter, not a copy.
        """
        return LinearView(self.weight)

    def grow(
        self,
        vocab: Vocab,
        *optimizers: torch.optim.Optimizer,
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        """See :meth:`Words.grow`; a table in a file has the size of its file.

        Raises:
            SettingError: the table is in a file, or as there.
        """
        if self.file is not None:
            raise SettingError(
                f"{self._name()}.grow(): the table is in the file {self.file.path}, which does not grow; "
                "make a layer with the larger vocabulary and another file, and copy the rows"
            )
        super().grow(vocab, *optimizers, init=init)

    def _finish(self, start: Start, table: Rows, fused: Recipe | None) -> None:
        """The rest of a constructor, once torch's has run."""
        if start.draw:
            self.reset_parameters()
        if table.vocab is not None:
            self.vocab, self.hash_rows = table.vocab, table.hash_rows
        if start.file is not None:
            self.file = start.file
            self.weight.requires_grad_(not start.file.read_only and self.weight.requires_grad)
        if fused is None:
            return
        from firth.nn.fused import attach

        self.fused = fused
        if start.file is None:
            attach(self, fused)
        else:
            attach(self, fused, state=start.file.state, step=start.file.steps, around=start.file.step)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """torch's; a table in a file stays where it is.

        Raises:
            RuntimeError: to another device or dtype.
        """
        if self.file is None:
            moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return moved
        probe = fn(torch.empty(0, dtype=self.weight.dtype, device=self.weight.device))
        if (probe.dtype, probe.device) != (self.weight.dtype, self.weight.device):
            raise RuntimeError(
                f"{self._name()}: the table is in the file {self.file.path} and cannot go to {probe.device} "
                f"({probe.dtype}); from_pretrained(layer.weight) makes a layer in memory of it"
            )
        return self

    def _renorm(self, ids: Tensor) -> None:
        with self._writing():
            super()._renorm(ids)

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Around a change of the weight that is no step of training."""
        if self.file is None or self.file.read_only:
            return contextlib.nullcontext()
        return self.file.writing()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """torch's; a table in a file takes the values over into the file."""
        with self._writing():
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )


def begin(
    name: str,
    table: Rows,
    dim: int,
    padding_idx: int | None,
    weight: Tensor | None,
    device: Device,
    dtype: torch.dtype | None,
    fused: Recipe | None,
    storage: str | os.PathLike[str] | None,
) -> Start:
    """Where the weight of a new layer comes from.

    Args:
        name: of the layer's class, for messages.
        table: what ``rows_for`` made of ``num_embeddings``.
        dim, padding_idx, weight, device, dtype, fused, storage: the layer's arguments.

    Raises:
        Misfit: ``weight`` or ``padding_idx`` do not fit the table.
        SettingError: ``storage`` together with initial values for a file that exists, or on a device.
        FormatError, RunError, StorageError: from the file.
    """
    padding_row = checks.check_padding(name, padding_idx, table.n_rows)
    if weight is not None:
        checks.check_weight(name, weight, table.n_rows, dim)
    if storage is not None:
        return _from_file(name, table, dim, padding_row, weight, device, dtype, fused, storage)
    if weight is not None:
        return Start(weight, False, None)
    large = _large(table.n_rows, dim, device, dtype)
    return Start(large, large is not None, None)


def _from_file(
    name: str,
    table: Rows,
    dim: int,
    padding_row: int | None,
    weight: Tensor | None,
    device: Device,
    dtype: torch.dtype | None,
    fused: Recipe | None,
    storage: str | os.PathLike[str],
) -> Start:
    from firth.nn.storage import open_table, read_table
    from firth.nn.tablespec import TableSpec

    if device is not None and torch.device(device).type != "cpu":
        raise SettingError(
            f"{name}: a table in a file stays in the CPU's memory; leave device={device!r} out"
        )
    if weight is not None and os.path.exists(storage):
        raise SettingError(
            f"{name}: {os.fspath(storage)!r} holds a table already, and initial values were given; leave "
            "them out, or choose another file"
        )
    if dtype is None:
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
    spec = TableSpec.of(table.n_rows, dim, dtype, fused, _identity(table))
    if fused is None:
        file = read_table(storage, spec)
    else:
        file = open_table(storage, spec, initial=weight, padding_row=padding_row)
    return Start(file.weight, False, file)


def _identity(table: Rows) -> str:
    """A digest of what the rows stand for; empty without words."""
    if table.vocab is None:
        return ""
    digest = hashlib.sha256(str(table.hash_rows).encode())
    for token in table.vocab.tokens:
        data = token.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _large(n_rows: int, dim: int, device: Device, dtype: torch.dtype | None) -> Tensor | None:
    """Unset memory on huge pages for a large table on the CPU, or ``None`` where torch may allocate it."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    place = torch.get_default_device() if device is None else torch.device(device)
    sizes: Any = (n_rows, dim)
    if place.type != "cpu" or not checks.plain() or not all(type(size) is int and size > 0 for size in sizes):
        return None
    return pages.empty(sizes, dtype) if n_rows * dim * dtype.itemsize >= pages.HUGE else None
