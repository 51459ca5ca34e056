"""Processes that do one piece of work together under torchrun, and which of them it was that failed.

torch.distributed carries what they say to each other. Every call of a ``Processes`` but ``fail`` is
collective: all of them make it, in the same order. If one of them ends, the others' next call ends
in ``PeerFailed``, whose sentence names it: each tells the launcher's key-value store that it is alive
or why it gave up, and who tells nothing has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from firth.errors import FirthError, RunError, SettingError

if TYPE_CHECKING:
    from torch import Tensor
PATIENCE = timedelta(minutes=30)
"""A process that is alive may keep the others waiting so long: it may be writing a large file."""

MEETING = timedelta(minutes=5)
"""So long the others are waited for at the start."""

NAMING = 20.0
"""Seconds in which a process that is alive tells so after another has gone; it may be in a kernel."""

TOGETHER = 3.0
"""Seconds within which processes that fail for one reason do so; then the first tells it for all."""

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class PeerFailed(RunError):
    """Another process of the same work has ended, or cannot be reached.

    Attributes:
        speaks: whether this process is the first of those that are left, which tells it for all.
    """

    def __init__(self, sentence: str, speaks: bool = True) -> None:
        self.speaks = speaks
        super().__init__(sentence)


class Place(NamedTuple):
    """What torchrun tells a process by its environment."""

    rank: int
    size: int
    local_size: int  # processes on this machine
    restarts: int  # how often torchrun has started all of them again
    agent: str  # of this run of torchrun on this machine; the same after a restart


def place() -> Place | None:
    """Where this process stands among those that torchrun started; ``None`` if it was not torchrun.

    Raises:
        SettingError: variables of torchrun that cannot be, or some without the others.
    """
    given = {name: os.environ.get(name) for name in _ENVIRONMENT}
    if given["RANK"] is None or given["WORLD_SIZE"] is None:
        return None
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise SettingError(
            f"the environment has RANK and WORLD_SIZE but not {' and '.join(missing)}: start the processes "
            "by torchrun --nproc-per-node N -m firth train ..., or unset RANK"
        )
    numbers = {}
    for name, default in (("RANK", ""), ("WORLD_SIZE", ""), ("LOCAL_WORLD_SIZE", "1")):
        text = os.environ.get(name) or default
        if not text.isascii() or not text.isdigit():
            raise SettingError(f"the environment has {name}={text!r}, a whole number is expected of torchrun")
        numbers[name] = int(text)
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if not rank < size:
        raise SettingError(f"the environment has RANK={rank} and WORLD_SIZE={size}; a rank is below the size")
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    agent = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {socket.gethostname()} {os.getppid()}"
    return Place(rank, size, numbers["LOCAL_WORLD_SIZE"], int(restarts) if restarts.isdigit() else 0, agent)


_MARK = "torchrun"
"""A file in a run folder that says which torchrun has begun the run."""


def mark_start(run: str | os.PathLike[str]) -> None:
    """Leave a mark in a run folder, so that a restart by the same torchrun goes on there unasked."""
    here = place()
    if here is not None and not here.restarts:
        (Path(run) / _MARK).write_text(here.agent, encoding="utf-8")


def is_restart(run: str | os.PathLike[str]) -> bool:
    """Whether the torchrun that began the run there has started its processes again (--max-restarts)."""
    here = place()
    try:
        return (
            here is not None and bool(here.restarts) and (Path(run) / _MARK).read_text("utf-8") == here.agent
        )
    except OSError:
        return False


class Processes:
    """The processes that torchrun started; made by ``joined``.

    Attributes:
        place: of this process. rank, size: of it.
    """

    def __init__(self, place: Place, device: str = "cpu") -> None:
        from torch import distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        self.place, self.rank, self.size = place, place.rank, place.size
        self._closed = self._within = self._told = False
        self._under_way: list[Any] = []
        self._dealt = 0
        address = os.environ["MASTER_ADDR"]
        if place.local_size == place.size and address in ("localhost", "127.0.0.1", "::1"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name may lead nowhere
        try:
            store, _, _ = next(rendezvous("env://", timeout=MEETING))
            store.set_timeout(MEETING)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
                store=PrefixStore(f"firth/{place.restarts}/group", store),
                rank=self.rank,
                world_size=self.size,
                timeout=PATIENCE,
            )
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"rank {self.rank} of {self.size} has not met the others through {address}:"
                f"{os.environ['MASTER_PORT']} in {MEETING.seconds // 60} minutes ({_short(error)}); is "
                "torchrun running on every machine?"
            ) from error
        self._store: Any = PrefixStore(f"firth/{place.restarts}/told", store)
        told = json.dumps({**_self(), "launcher": place.agent})
        self._others = [json.loads(text) for text in self._gather_bytes(told.encode())]

    @property
    def launchers(self) -> list[str]:
        """Of each rank, the torchrun on its machine that started it."""
        return [other["launcher"] for other in self._others]

    # --- what they say to each other

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, as JSON has it, in the order of ranks."""
        return [json.loads(text) for text in self._gather_bytes(json.dumps(value).encode())]

    def gather_arrays(self, array: npt.NDArray[Any]) -> list[Any]:
        """The array of every process, one dimension and one dtype, of any lengths."""
        raw = np.ascontiguousarray(array).view(np.uint8)
        return [np.frombuffer(one, array.dtype) for one in self._gather_bytes(raw.tobytes())]

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        import torch
        from torch import distributed as dist

        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self.talking():
            dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(1, *(int(size) for size in sizes))
        padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        with self.talking():
            dist.all_gather(parts, padded)
        return [part.numpy()[: int(size)].tobytes() for part, size in zip(parts, sizes, strict=True)]

    def sum(self, tensor: Tensor, among: Any = None) -> Tensor:
        """The sum over all processes, put into ``tensor`` and returned; the same bits everywhere."""
        from torch import distributed as dist

        with self.talking():
            dist.all_reduce(tensor, group=among)
        return tensor

    def broadcast(self, tensor: Tensor, source: int = 0, among: Any = None) -> Tensor:
        """The tensor of ``source``, put into ``tensor`` and returned."""
        from torch import distributed as dist

        with self.talking():
            dist.broadcast(tensor, source, group=among)
        return tensor

    def deal(self, n: int) -> Iterator[int]:
        """Of the numbers below ``n`` those that nobody has taken when this process asks for the next.

        All make the call, in the same order as all else, and go through what they get.
        """
        self._dealt += 1
        key = f"dealt/{self._dealt}"
        while (taken := self._next(key)) < n:
            yield taken

    def _next(self, key: str) -> int:
        with self.talking():
            return int(self._store.add(key, 1)) - 1

    def circle(self, ranks: list[int]) -> Circle:
        """Some of the processes, which then speak among themselves; all make it."""
        from torch import distributed as dist

        with self.talking():
            return Circle(self, dist.new_group(ranks))

    def swap(self, give: Sequence[Tensor], take: Sequence[Tensor]) -> None:
        """To each rank its tensor of ``give``, from each rank one into its tensor of ``take``."""
        from torch import distributed as dist

        with self.talking():
            for step in range(1, self.size):
                to, of = (self.rank + step) % self.size, (self.rank - step) % self.size
                if give[to].numel():
                    self._under_way.append(dist.isend(give[to].contiguous(), to))
                if take[of].numel():
                    self._under_way.append(dist.irecv(take[of], of))
            take[self.rank].copy_(give[self.rank])
            self._finish()

    def hand_on(self, give: Tensor, take: Tensor) -> None:
        """``give`` to the rank before this one, ``take`` from the one after; the ranks stand in a ring."""
        from torch import distributed as dist

        with self.talking():
            self._under_way.append(dist.isend(give, (self.rank - 1) % self.size))
            self._under_way.append(dist.irecv(take, (self.rank + 1) % self.size))
            self._finish()

    def _finish(self) -> None:
        for work in self._under_way:
            if work is not None:
                work.wait()
        self._under_way.clear()

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Refuse processes that were not started alike.

        Args:
            facts: by the name that a reader knows them by; JSON-able.

        Raises:
            SettingError: names the first rank that differs from rank 0, and in what.
        """
        first, *others = self.gather(_flat(facts))
        for rank, there in enumerate(others, 1):
            differing = [
                f"{name} is {_short(there.get(name, 'not given'))} there and "
                f"{_short(first.get(name, 'not given'))} at rank 0"
                for name in {**first, **there}
                if there.get(name) != first.get(name)
            ]
            if differing:
                where = "" if self._others[rank]["host"] == self._others[0]["host"] else self._host(rank)
                raise SettingError(
                    f"rank {rank}{where} does not do the same work as rank 0: {'; '.join(differing)}; "
                    "start all with the same command, files and version"
                )

    # --- when one of them fails

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Around calls of torch.distributed: what goes wrong in them is another's end.

        Raises:
            PeerFailed: names it.
        """
        self._within = True
        try:
            yield
        except RuntimeError as error:  # also the errors of torch.distributed
            raise self._lost(error) from error
        finally:
            self._within = False
        if self._told:
            self._told = False
            signal.raise_signal(signal.SIGINT)

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """A handler of SIGTERM, which torchrun sends where it ends: as Ctrl-C, but never amid a call.

        It is also sent to those that are left when one has died, and these are to say who it was.
        """
        if self._within:
            self._told = True
        else:
            signal.raise_signal(signal.SIGINT)

    def fail(self, error: BaseException) -> bool:
        """Tell the others why this process ends; whether it is the first to tell just this."""
        self.close()
        sentence = str(error) or type(error).__name__
        try:
            self._store.set(f"failed/{self.rank}", sentence)
            deadline = time.monotonic() + (TOGETHER if self.rank else 0.0)
            while time.monotonic() < deadline:
                if sentence in [self._told_by(rank) for rank in range(self.rank)]:
                    return False
                time.sleep(0.02)
        except RuntimeError:  # without torchrun's, the store ends with rank 0, which has told why
            return self.rank == 0
        return True

    def close(self) -> None:
        """Leave; the others notice at their next call, unless they leave too."""
        from torch import distributed as dist

        if not self._closed:
            self._closed = True
            self._under_way.clear()
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _lost(self, error: RuntimeError) -> PeerFailed:
        """Who it was, and whether this process is the one to tell."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # there is something to tell first
        # Those who wait for this process are to stop waiting: its connections close when nothing holds them,
        # and the frames in which the error came do.
        traceback.clear_frames(error.__traceback__)
        self.close()
        try:
            self._store.set(f"answers/{self.rank}", "")
            silent = self._silent()
            failed = [rank for rank in range(self.size) if self._told_by(rank) is not None]
        except RuntimeError:
            silent, failed = [0], []  # the store itself is gone; without torchrun's it is rank 0's
        left = [rank for rank in range(self.size) if rank not in silent and rank not in failed]
        speaks = self.rank == min(left, default=self.rank)
        if silent:
            who = " and ".join(self._name(rank) for rank in silent)
            what = f"{who} {'has' if len(silent) == 1 else 'have'} died or cannot be reached"
        elif failed:
            what = f"rank {failed[0]}{self._host(failed[0])} gave up: {self._told_by(failed[0])}"
        else:
            what = f"the processes cannot reach each other ({_short(error)})"
        return PeerFailed(what, speaks)

    def _silent(self) -> list[int]:
        """The ranks that tell nothing; waits for those whose process may be alive."""
        deadline = time.monotonic() + NAMING
        while True:
            silent = [
                rank
                for rank in range(self.size)
                if self._told_by(rank) is None and not self._store.check([f"answers/{rank}"])
            ]
            here = socket.gethostname()
            gone = [
                rank
                for rank in silent
                if self._others[rank]["host"] == here and not _is_alive(self._others[rank]["process"])
            ]
            if silent == gone or time.monotonic() > deadline:
                return silent
            time.sleep(0.05)

    def _told_by(self, rank: int) -> str | None:
        """Why a rank gave up, if it told."""
        key = f"failed/{rank}"
        return self._store.get(key).decode(errors="replace") if self._store.check([key]) else None

    def _name(self, rank: int) -> str:
        return f"rank {rank} (process {self._others[rank]['process']}{self._host(rank, ' on ')})"

    def _host(self, rank: int, before: str = " on ") -> str:
        return f"{before}{self._others[rank]['host']}"


class Circle:
    """Some of a group's processes; its calls are collective among these."""

    def __init__(self, group: Processes, among: Any) -> None:
        self._group, self._among = group, among

    def sum(self, tensor: Tensor) -> Tensor:
        """As ``Processes.sum``."""
        return self._group.sum(tensor, self._among)

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """As ``Processes.broadcast``; ``source`` is a rank of the whole group."""
        return self._group.broadcast(tensor, source, self._among)


@contextlib.contextmanager
def joined(device: str = "cpu") -> Iterator[Processes | None]:
    """The processes that torchrun started, met; ``None`` where there is one only.

    While inside, SIGTERM is as Ctrl-C. What the body raises is told to the others. A failure that
    another process tells for all ends this one without a word, by SystemExit.

    Args:
        device: where tables live; ``cuda`` brings nccl for what lies there.

    Raises:
        SettingError: see ``place``. RunError: the others did not come. PeerFailed: another one failed.
    """
    here = place()
    if here is None or here.size == 1:
        yield None
        return
    group = Processes(here, device)
    before = signal.signal(signal.SIGTERM, group.terminate)
    try:
        yield group
    except PeerFailed as error:
        if not error.speaks:
            raise SystemExit(error.exit_code) from None
        raise
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not group.fail(error) and isinstance(error, FirthError):
            raise SystemExit(error.exit_code) from None
        raise
    finally:
        group.close()
        if signal.getsignal(signal.SIGTERM) == group.terminate:  # else this process is ending
            signal.signal(signal.SIGTERM, before)


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with those of facts within facts beside them."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid()}


def _is_alive(process_id: int) -> bool:
    """Whether a process of this machine runs; one that waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        if not Path("/proc/self/stat").exists():  # a system without /proc
            try:
                os.kill(process_id, 0)
            except OSError:
                return False
            return True
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
