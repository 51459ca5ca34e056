"""Tables that the processes of one machine hold together.

Threads share their process's tables; the processes that one torchrun started on a machine share theirs in
the same way, as memory without a name that the first of them makes and the others map. It goes with the last
of them, however they end. A machine then holds one copy of the tables, whose processes need not tell each
other anything, and copies are made one again only between machines (``firth.training.exchange``).
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firth.kernels import Holding, Kernels
from firth.processes import Circle, Processes
from firth.training.sampling import ROW_FLOATS

Table = npt.NDArray[np.float32]


class Copies(NamedTuple):
    """Which processes hold which copy of the tables.

    ``number``: copies in all. ``sharers``: processes of each. ``own``: the number of this process's copy.
    ``leads``: whether this process is the first of its copy. ``leaders``: the first ranks of all copies.
    """

    number: int
    sharers: int
    own: int
    leads: bool
    leaders: list[int]


def deal(launchers: list[str], rank: int, share: bool) -> Copies:
    """One copy for each launcher's processes, or for each process.

    Args:
        launchers: of each rank, what tells one torchrun on one machine from others.
        share: whether processes may share; where launchers have different numbers of them, none do, for
            copies are combined as if each had seen as much of the text.
    """
    groups = [
        [other for other, one in enumerate(launchers) if one == name] for name in dict.fromkeys(launchers)
    ]
    if not share or len({len(group) for group in groups}) > 1:
        groups = [[other] for other in range(len(launchers))]
    own = next(number for number, group in enumerate(groups) if rank in group)
    return Copies(len(groups), len(groups[0]), own, rank == groups[own][0], [group[0] for group in groups])


def can_share(kernels: Kernels, deterministic: bool) -> bool:
    """Whether processes of a machine may train the same tables.

    Not on cards, each of which has its own; not where the same bits are wanted again; and the system must
    have memory that other processes can be shown (Linux has).
    """
    shown = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
    return shown and not deterministic and not isinstance(kernels, Holding)


def shared_tables(group: Processes, copies: Copies, rows: int, dim: int) -> tuple[Table, Table] | None:
    """Both tables, zero, float32 (rows, padded dim), the same memory in all processes of a copy; collective.

    ``None``, in all processes, where one of them cannot map another's memory: then each needs its own.
    """
    width = -(-dim // ROW_FLOATS) * ROW_FLOATS
    files: list[int] = []
    try:
        if copies.leads:
            with contextlib.suppress(OSError):  # then it gives no files, and nobody has tables
                for name in ("inputs", "outputs"):
                    files.append(os.memfd_create(f"firth-{name}"))
                    os.ftruncate(files[-1], rows * width * 4)
        places = group.gather([os.getpid(), *files])
        maker, *numbers = places[copies.leaders[copies.own]]
        tables = _mapped([f"/proc/{maker}/fd/{number}" for number in numbers], rows, width)
        everywhere = all(group.gather(tables is not None))  # and from here on nobody needs the files
    finally:
        for file in files:
            os.close(file)
    return tables if everywhere else None


def _mapped(paths: list[str], rows: int, width: int) -> tuple[Table, Table] | None:
    tables = []
    for path in paths:
        try:
            file = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            # All pages at once: faults in two processes at a time cost a tenth of a short run.
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            memory = mmap.mmap(file, rows * width * 4, flags=flags)
        except OSError:
            return None
        finally:
            os.close(file)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # where the system gives shared memory huge pages, if asked
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        tables.append(np.frombuffer(memory, np.float32).reshape(rows, width))
    if len(tables) != 2:
        return None
    return tables[0], tables[1]


def leaders_of(group: Processes, copies: Copies) -> Processes | Circle:
    """Those who exchange: the first process of each copy."""
    return group if copies.sharers == 1 else group.circle(copies.leaders)
