"""``ShardedEmbedding``: a table whose rows are spread over the processes of torch.distributed.

Each process owns a range of rows and their optimiser state; nobody ever holds the table, or a gradient of
its size. A lookup is two all-to-all exchanges: the distinct ids of a process go to the owners of the
rows, the rows come back. Backward is one: the gradient of each row, summed within the process, goes to
its owner, which adds up what the processes sent and updates its rows at once. Traffic a step and process
is (8 + 2 * 4 D) bytes for each distinct id of another's, whatever the size of the table.

torch's own ``RowwiseParallel`` shards the same ranges, and makes a gradient of the size of the whole
table on every process (docs/large-tables.md has figures).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function

from firth.errors import FirthError, RunError, SettingError
from firth.kernels import pages, rows
from firth.kernels.rows_reference import Source
from firth.nn import checks, guards, shards
from firth.nn.fused import FusedOptimizer, attach
from firth.nn.optim import NonFiniteGradient
from firth.nn.recipes import Recipe
from firth.nn.renorm import renorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NAME = "firth.nn.ShardedEmbedding"
DRAWN = 4096
"""Rows drawn from one seed, so that the first values do not depend on the number of processes."""


class Route(NamedTuple):
    """Who asked whom for which rows; U distinct ids here, R ids asked of this process."""

    order: Any  # Groups of the ids here
    place: Tensor  # (B,) int64: which of the U rows each place gets
    sent: list[int]  # how many of the U ids go to each process
    asked: list[int]  # how many ids each process asked for
    rows: Tensor  # (R,) int64: local numbers of the rows asked for, by process, ascending within one
    places: Tensor | None  # (R,) int64: in how many places the asking process has the id, if that counts


class ShardedEmbedding(torch.nn.Module):
    """``firth.nn.Embedding`` with rows ``num_embeddings * rank // n`` on of ``n`` processes on each.

    Making it, a forward, a backward, :meth:`save` and :meth:`load` are collective: every process of the
    group must do them, in the same order; a batch may be empty. What a step does is what a layer in one
    process would do with the batches of all one after another: repeated ids in several processes are one
    gradient and one update, ``max_norm`` shortens the rows that any process looks up, and
    ``scale_grad_by_freq`` divides by the places in all batches together. As the gradient of a table in one
    process is that of the sum of all losses, so it is here: divide the loss by the number of processes
    where their mean is meant (DistributedDataParallel does so for its parameters). Results do not depend
    on timing; with another number of processes sums are taken in another order and differ by rounding.

    Args:
        num_embeddings, embedding_dim: of the whole table.
        padding_idx: a row that begins as zeros and is not updated; negative counts from the end.
        max_norm, norm_type, scale_grad_by_freq: as for ``firth.nn.Embedding``.
        _weight: (num_embeddings, embedding_dim) values of the whole table, of which each process copies its
            own rows; it may be memory-mapped (``read_table(path).weight``). Default: N(0, 1), drawn from
            a seed that the first process takes from torch's generator.
        device, dtype: of the weight; ids and gradients must be on the same device.
        fused: the recipe of the update, e.g. ``firth.nn.Adagrad(lr=0.1)``. ``None``: ``weight.grad`` is a
            sparse tensor of the local rows, for a row optimiser or ``torch.optim.SparseAdam``.
        process_group: the processes; all by default. On the CPU the backend is gloo.

    Attributes:
        weight: (rows of this process, embedding_dim).
        first_row, last_row: the rows of this process are those from the first to before the last.
        optimizer: of ``fused``, or ``None``. Set a new learning rate in every process.

    Raises:
        RunError: torch.distributed is not initialised, or this process is not in the group.
        Misfit: ``padding_idx`` or ``_weight`` do not fit (an AssertionError).
        SettingError: ``max_norm`` is not positive, or the sizes are not whole numbers.
    """

    held: Tensor  # first row, row after the last, rows in all
    sparse = True

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        _weight: Tensor | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        fused: Recipe | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self._group = process_group
        self.rank, self.processes = _place_in(process_group)
        for name, size in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise SettingError(f"{NAME}: {name} must be a whole number >= 0, got {size!r}")
        if _weight is not None:
            checks.check_weight(NAME, _weight, num_embeddings, embedding_dim)
            dtype = _weight.dtype if dtype is None else dtype
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = checks.check_padding(NAME, padding_idx, num_embeddings)
        self.max_norm, self.norm_type = checks.check_max_norm(max_norm, NAME), norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self._bounds = [num_embeddings * rank // self.processes for rank in range(self.processes + 1)]
        self.first_row, self.last_row = self._bounds[self.rank : self.rank + 2]
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in checks.FLOATS:
            raise TypeError(f"{NAME}: dtype must be float32, float64, float16 or bfloat16, got {dtype}")
        like = None if device is None else torch.empty(0, device=device)
        values = pages.empty((self.last_row - self.first_row, embedding_dim), dtype, like)
        self.weight = torch.nn.Parameter(values)
        # In the state_dict, so that no process takes the rows of another for its own.
        self.register_buffer("held", torch.tensor([self.first_row, self.last_row, num_embeddings]))
        self.reset_parameters(_weight)
        self.fused = fused
        self.optimizer: FusedOptimizer | None = None if fused is None else attach(self, fused)

    @torch.no_grad()
    def reset_parameters(self, values: Tensor | None = None) -> None:
        """Fill the rows of this process; collective without ``values``.

        Args:
            values: (num_embeddings, embedding_dim) to copy from; ``None``: draw N(0, 1), padding row zero.
        """
        if values is not None:
            self.weight.copy_(values[self.first_row : self.last_row])
            return
        seed = torch.randint(1 << 62, (1,), device="cpu").to(self.weight.device)
        dist.broadcast(seed, _first(self._group), group=self._group)
        generator = torch.Generator(self.weight.device)
        drawn = self.weight.new_empty(DRAWN, self.embedding_dim)
        for number in range(self.first_row // DRAWN, -(-self.last_row // DRAWN)):
            drawn.normal_(generator=generator.manual_seed(int(seed) + number))
            begin, end = max(self.first_row, number * DRAWN), min(self.last_row, (number + 1) * DRAWN)
            part = drawn[begin - number * DRAWN : end - number * DRAWN]
            self.weight[begin - self.first_row : end - self.first_row] = part
        if self._local_padding is not None:
            self.weight[self._local_padding] = 0

    @property
    def _local_padding(self) -> int | None:
        """The padding row, if this process owns it."""
        if self.padding_idx is None or not self.first_row <= self.padding_idx < self.last_row:
            return None
        return self.padding_idx - self.first_row

    def forward(self, input: Tensor) -> Tensor:
        """The rows of ids, from wherever they are; collective.

        Args:
            input: int32 or int64, any shape, empty too; its size may differ between processes.

        Returns:
            (*shape of the input, embedding_dim).

        Raises:
            OutsideTable: an id names no row (an IndexError).
            WrongIds: ids of another dtype, or no tensor (a TypeError and RuntimeError).
            RunError: another process raised one of these, or the layer is compiled.
        """
        if torch.compiler.is_compiling():
            raise RunError(f"{NAME}: exchanges between processes are not compiled; look rows up outside")
        error = self._check(input)
        if error is not None:
            self._counts(torch.full((self.processes,), -1))  # or the others would wait for ever
            raise error
        flat = input.reshape(-1).contiguous()
        route = self._route(flat)
        if self.max_norm is not None:
            renorm(self.weight, route.rows, self.max_norm, self.norm_type)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            if self.optimizer is not None:
                guards.check_forward(self, flat)
            apply: Callable[..., Any] = _ShardedLookup.apply
            found = cast(Tensor, apply(self.weight, route, self))
        else:
            found = self._fetch(route)
        return found.view(*input.shape, self.embedding_dim)

    def _check(self, input: Tensor) -> FirthError | None:
        try:
            if not isinstance(input, Tensor):
                raise checks.WrongIds(f"{NAME}: ids must be a Tensor, got {type(input).__name__}")
            checks.check_ids(NAME, input, self.num_embeddings)
        except FirthError as error:
            return error
        return None

    def _route(self, flat: Tensor) -> Route:
        """Ask every process for its rows; the first exchange."""
        kernel = rows.pick(self.weight.detach())
        groups = kernel.group(flat, self.num_embeddings)
        repeats = groups.starts.diff()
        place = torch.empty(len(flat), dtype=torch.int64, device=flat.device)
        place[groups.order] = torch.arange(len(groups.rows), device=flat.device).repeat_interleave(repeats)
        bounds = torch.tensor(self._bounds, device=flat.device)
        sent = torch.searchsorted(groups.rows, bounds).diff()
        asked = self._counts(sent)
        counts = [int(one) for one in sent]
        local = self._swap(groups.rows, counts, asked) - self.first_row
        places = self._swap(repeats, counts, asked) if self.scale_grad_by_freq else None
        return Route(groups, place, counts, asked, local, places)

    def _counts(self, sent: Tensor) -> list[int]:
        """How many ids each process asks for, given how many this one asks of each; -1: it cannot.

        Raises:
            RunError: another process cannot, and so nobody can.
        """
        asked = torch.empty(self.processes, dtype=torch.int64, device=self.weight.device)
        dist.all_to_all_single(asked, sent.to(asked.device), group=self._group)
        counts = [int(one) for one in asked]
        failed = [rank for rank, count in enumerate(counts) if count < 0]
        if failed and int(sent[0]) >= 0:
            raise RunError(
                f"{NAME}: process {failed[0]} of the group refused its ids; its own error tells why"
            )
        return counts

    def _swap(self, values: Tensor, sent: list[int], asked: list[int]) -> Tensor:
        """(sum of sent, ...) in the order of processes -> (sum of asked, ...) in the order of processes."""
        got = values.new_empty(sum(asked), *values.shape[1:])
        dist.all_to_all_single(got, values.contiguous(), asked, sent, group=self._group)
        return got

    def _fetch(self, route: Route) -> Tensor:
        """(B, D): the second exchange."""
        table = self.weight.detach()
        given: Tensor = rows.pick(table).gather(table, route.rows)
        return self._swap(given, route.asked, route.sent).index_select(0, route.place)

    def _collect(self, route: Route, grad: Tensor) -> Source:
        """The gradients of the rows asked of this process, (R, D), summed within each asking process."""
        kernel = rows.pick(grad)
        sums = kernel.summed(route.order, Source(grad), False)
        grads = self._swap(sums, route.sent, route.asked)
        if route.places is None:
            return Source(grads)
        total = torch.zeros(len(self.weight), dtype=torch.int64, device=grads.device)
        total.index_add_(0, route.rows, route.places)
        return Source(grads, factor=total[route.rows].to(grads.dtype).reciprocal())

    def _update(self, route: Route, source: Source) -> None:
        """The fused update, in all processes or in none.

        Raises:
            NonFiniteGradient: names the row of the whole table.
        """
        assert self.optimizer is not None
        kernel, padding = rows.pick(self.weight.detach()), self._local_padding
        groups = kernel.group(route.rows, len(self.weight), padding)
        bad = int(kernel.first_not_finite(groups, source))
        lowest = torch.tensor(self.num_embeddings if bad < 0 else bad + self.first_row)
        lowest = lowest.to(self.weight.device)
        dist.all_reduce(lowest, dist.ReduceOp.MIN, group=self._group)
        if int(lowest) == self.num_embeddings:
            self.optimizer.update_rows(route.rows, source, padding)
            return
        scaler = self.optimizer.scaler
        if scaler is None or not scaler.is_enabled():
            raise NonFiniteGradient(
                f"{NAME}: the gradient of row {int(lowest)} is not finite (NaN or infinity); no process "
                "updated anything"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the table and its optimiser state, a file a process; collective.

        Every process needs the folder, and all files must come together in one for :meth:`load`. A save that
        is cut leaves the one before as it was.

        Args:
            folder: made if it is not there.

        Raises:
            StorageError: this process cannot write. RunError: another one cannot.
        """
        shards.save(self, folder)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Read what :meth:`save` wrote with any number of processes; collective.

        Each process reads its own rows only. Settings such as the learning rate stay.

        Args:
            folder: with the files of all processes.

        Raises:
            FormatError: files that are missing, cut or of another table.
            SettingError: another size, dtype or recipe. StorageError: the folder cannot be read.
            RunError: another process raised one of these. Unless reading itself failed, nothing is changed.
        """
        shards.load(self, folder)

    def agree(self, error: FirthError | None) -> None:
        """Raise ``error``, or that another process has one; collective."""
        wrong = torch.tensor(int(error is not None), device=self.weight.device)
        dist.all_reduce(wrong, dist.ReduceOp.MAX, group=self._group)
        if error is not None:
            raise error
        if int(wrong):
            raise RunError(f"{NAME}: another process of the group failed; its own error tells why")

    def said_by_first(self, number: int) -> int:
        """The number that the first process of the group gives; collective."""
        told = torch.tensor(number, device=self.weight.device)
        dist.broadcast(told, _first(self._group), group=self._group)
        return int(told)

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
        """torch's, for the rows of this process only."""
        saved = state_dict.get(prefix + "held")
        if isinstance(saved, Tensor) and saved.tolist() != self.held.tolist():
            first, last, total = ([*saved.tolist(), 0, 0, 0])[:3]
            error_msgs.append(
                f"{prefix}weight holds rows {first:,} to {last - 1:,} of {total:,}, this process those from "
                f"{self.first_row:,} to {self.last_row - 1:,} of {self.num_embeddings:,}; save() and load() "
                "change the number of processes"
            )
            return
        super()._load_from_state_dict(
            cast(dict[str, Any], state_dict),
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{NAME}: a layer that is spread over processes cannot be copied or pickled; use save(folder)"
        )

    def extra_repr(self) -> str:
        """Sizes, settings, and the rows of this process."""
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.max_norm is not None:
            text += f", max_norm={self.max_norm}, norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            text += ", scale_grad_by_freq=True"
        return (
            text + f", rows {self.first_row} to {self.last_row - 1} in process {self.rank}/{self.processes}"
        )


class _ShardedLookup(Function):
    """(B, D) rows; backward sends gradients to the owners of the rows, which update or keep them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, route: Route, layer: ShardedEmbedding) -> Tensor:
        ctx.route, ctx.layer = route, layer
        if layer.optimizer is not None:
            ctx.save_for_backward(guards.note_pass(ctx, layer))
            ctx.set_materialize_grads(True)  # every process takes part, with zeros if need be
        return layer._fetch(route)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        layer, route = ctx.layer, ctx.route
        if layer.optimizer is not None:
            guards.check_backward(ctx, *ctx.saved_tensors)
            layer._update(route, layer._collect(route, grads[0].contiguous()))
            return None, None, None
        if torch.is_grad_enabled():
            raise RunError(f"{NAME}: exchanges between processes cannot be differentiated twice")
        source = layer._collect(route, grads[0].contiguous())
        values = source.grads if source.factor is None else source.grads * source.factor.unsqueeze(1)
        at = route.rows
        if layer._local_padding is not None:
            kept = (at != layer._local_padding).nonzero()[:, 0]
            at, values = at[kept], values[kept]
        shape = layer.weight.shape
        grad = torch.sparse_coo_tensor(
            at.unsqueeze(0), values.to(layer.weight.dtype), shape, check_invariants=False
        )
        return grad, None, None


def _place_in(group: ProcessGroup | None) -> tuple[int, int]:
    """Rank and size of the group."""
    if not dist.is_available() or not dist.is_initialized():
        raise RunError(
            f"{NAME}: torch.distributed is not initialised; start the program by torchrun and call "
            "torch.distributed.init_process_group('gloo') first, or use firth.nn.Embedding"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise RunError(f"{NAME}: this process is not in the process group given")
    return rank, dist.get_world_size(group)


def _first(group: ProcessGroup | None) -> int:
    """The global rank of the group's first process."""
    return 0 if group is None else dist.get_global_rank(group, 0)
