"""``max_norm``: rows that are looked up are shortened in place before the lookup, on one process or many."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch import distributed as dist

from firth.kernels import rows
from firth.nn import checks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def renorm(weight: Tensor, ids: Tensor, max_norm: float, norm_type: float = 2.0) -> None:
    """Shorten, in place, each distinct row of ``ids`` whose p-norm exceeds ``max_norm``.

    As ``torch.embedding_renorm_``: the row is multiplied by ``max_norm / (norm + 1e-7)``, gradients
    do not see it, and the version of ``weight`` rises by one, also where nothing changed, so that
    autograd refuses graphs that still need the old values.

    Args:
        weight: (N, D).
        ids: int32 or int64, any shape, within ``[0, N)``.
        max_norm: largest norm, positive.
        norm_type: the p of the norm.

    Raises:
        OutsideTable: an id names no row (an IndexError).
        WrongIds: ids of another dtype (a RuntimeError).
    """
    if checks.readable(ids):
        checks.check_ids("firth.nn.renorm.renorm", ids, weight.size(0))
    if not checks.eager(weight, ids) or weight.dtype not in checks.FLOATS:
        with torch.no_grad():
            torch.embedding_renorm_(weight.detach(), ids.contiguous(), max_norm, norm_type)
        return
    with torch.no_grad():
        # .data has a version counter of its own: the kernels may write as often as they like.
        table = weight.data
        rows.pick(table).renorm(table, ids.reshape(-1).contiguous(), float(max_norm), float(norm_type))
    if not weight.is_inference():
        torch.autograd.graph.increment_version(weight)


# Graphs of torch.fx call it as a whole.
torch.fx.wrap("renorm")


class SyncedNorm(torch.nn.Module):
    """Mixin for layers with ``max_norm``: what happens to replicas in several processes.

    Under DistributedDataParallel each process looks up ids of its own, so each would shorten
    different rows, and nothing brings the replicas together again: DDP sends gradients, not
    weights. ``sync_max_norm`` decides what to do; undecided, the layer warns once.
    """

    weight: torch.nn.Parameter
    max_norm: float | None
    norm_type: float
    _sync: bool | None = None  # None: not decided
    _sync_group: str | None = None  # a name, so that the layer can be copied and pickled
    _warned: bool = False

    def sync_max_norm(self, sync: bool = True, group: ProcessGroup | None = None) -> Self:
        """Choose whether the processes of a group shorten the same rows.

        Args:
            sync: ``True``: before each lookup the processes exchange the ids that they look up (a
                collective call: every process of the group must look up equally often, in
                evaluation too), and each shortens the rows of all. ``False``: each shortens its
                own, and replicas drift apart; right where the copies need not stay equal, or
                where all processes look up the same ids.
            group: the processes that hold replicas; all by default.

        Returns:
            the layer itself.
        """
        self._sync = sync
        self._sync_group = None if group is None else group.group_name
        return self

    def _renorm(self, ids: Tensor) -> None:
        """Apply ``max_norm`` to the rows of ``ids`` (checked, any shape), once a forward."""
        max_norm = checks.check_max_norm(self.max_norm, f"firth.nn.{type(self).__name__}")
        if max_norm is None:
            return
        if not checks.readable(ids):
            if self._sync:
                raise RuntimeError(
                    f"firth.nn.{type(self).__name__}: sync_max_norm() exchanges ids between processes, which "
                    "cannot be traced, compiled or transformed; leave the layer out (torch.compiler.disable) "
                    "or call sync_max_norm(False)"
                )
        elif dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            ids = self._shared(ids)
        renorm(self.weight, ids, max_norm, self.norm_type)

    def _shared(self, ids: Tensor) -> Tensor:
        """The ids of all processes where that was asked for, else ``ids``."""
        name = type(self).__name__
        if self._sync is None and self.training and not self._warned:
            self._warned = True
            warnings.warn(
                f"firth.nn.{name}: {dist.get_world_size()} processes run and each renormalises the rows that "
                "it looks up itself (max_norm), so replicas of this table drift apart; call sync_max_norm() "
                "on the layer to renormalise the rows of all, or sync_max_norm(False) to accept this",
                UserWarning,
                stacklevel=6,
            )
        return gathered(ids, self._sync_group) if self._sync else ids


def _group(name: str) -> ProcessGroup:
    """The process group of a name; torch has no public way to it."""
    from torch.distributed import distributed_c10d

    group: ProcessGroup = getattr(distributed_c10d, "_resolve_process_group")(name)  # noqa: B009
    return group


def gathered(ids: Tensor, group_name: str | None = None) -> Tensor:
    """The ids of every process of a group, one after the other; a collective call.

    Args:
        ids: any shape, int32 or int64; the number may differ between processes.
        group_name: ``ProcessGroup.group_name``; all processes by default.

    Returns:
        (sum of the sizes,) int64, the same on every process.
    """
    group = None if group_name is None else _group(group_name)
    own = ids.detach().reshape(-1).to(torch.int64)
    size = torch.tensor([own.numel()], device=own.device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group=group)
    counts = [int(one) for one in sizes]
    # Every process sends the same number of ids: gloo and NCCL want equal sizes.
    padded = own.new_zeros(max(counts))
    padded[: own.numel()] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
