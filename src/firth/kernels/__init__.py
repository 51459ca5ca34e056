"""Kernels: what runs inside the training loop, once for each kind of device.

``reference`` is the definition in float64, ``cpu`` its fast twin in Numba, ``gpu`` its twin in Triton.
All offer ``run`` and ``alias_table`` with the same arguments. The first two work on the caller's tables in
place; a card keeps copies between runs, which :func:`fetch` brings back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from firth.errors import SettingError

DEVICES = ("auto", "cpu", "cuda", "cuda:NUMBER", "reference")

_DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
"""What a system with an NVIDIA driver has (the last: Windows' Linux); asked before torch is imported."""

OLDEST = (8, 0)
"""The compute capability from which on ``auto`` takes a card: Ampere, the first with tf32."""


class Kernels(Protocol):
    """What trains: a module of this package, or a card."""

    @property
    def run(self) -> Callable[..., tuple[Any, int]]: ...
    @property
    def alias_table(self) -> Callable[[Any], tuple[Any, Any]]: ...


@runtime_checkable
class Holding(Protocol):
    """Kernels that keep the tables on a device between runs."""

    run_blocks: int  # of a run, whatever the number of threads

    def fetch(self) -> None: ...
    def forget(self) -> None: ...
    def free_memory(self) -> int | None: ...


def pick(device: str, deterministic: bool = False, table_dtype: str = "float32") -> Kernels:
    """The kernels for a device.

    ``"auto"`` takes the current CUDA card where torch sees one of Ampere or newer and Triton is installed,
    else the CPU. Without an NVIDIA driver it does not import torch to find out.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"reference"``.
        deterministic: on a card, the same bits every time; others are so with one thread.
        table_dtype: what the tables hold while they are trained: the CPU's kernels know float32 only.

    Raises:
        SettingError: an unknown device, or a card that is not there; says what was looked for. Tables that
            the device has no kernels for.
        MissingExtra: a card without Triton.
    """
    if device == "auto":
        device = "cuda" if _has_card() else "cpu"
    if device == "cpu":
        if table_dtype != "float32":
            raise SettingError(
                f"train(): tables in {table_dtype} are for a CUDA card (--device cuda, device='cuda'), not "
                "for the CPU; leave --table-dtype out"
            )
        from firth.kernels import cpu

        return cpu
    if device == "reference":
        from firth.kernels import reference

        return reference
    if device.partition(":")[0] == "cuda":
        from firth.kernels.gpu import Card

        return Card(device, deterministic=deterministic)
    raise SettingError(f"train(): device must be one of {', '.join(DEVICES)}, not {device!r}")


def _has_card() -> bool:
    if not any(Path(name).exists() for name in _DRIVERS) or importlib.util.find_spec("triton") is None:
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST


def fetch(kernels: Kernels) -> None:
    """Bring the tables back into the caller's arrays, where ``kernels`` trained copies of them."""
    if isinstance(kernels, Holding):
        kernels.fetch()


def forget(kernels: Kernels) -> None:
    """Tell ``kernels`` that the caller has changed the tables since the last run."""
    if isinstance(kernels, Holding):
        kernels.forget()


def run_blocks(kernels: Kernels, by_thread: int, threads: int) -> int:
    """How many blocks a run should have: ``by_thread`` for each thread, or what a card wants."""
    return kernels.run_blocks if isinstance(kernels, Holding) else by_thread * threads
