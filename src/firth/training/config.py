"""Every setting of training, once: its type, default, limits and help.

A setting is a field of a frozen dataclass, made by :func:`setting`. The Python keyword, the
command-line option, the check and the stored settings of a run all come from it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

import numpy as np

from firth.errors import SettingError
from firth.processes import place

_KINDS: dict[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a string"),
}


FREEZE = ("none", "known")

TABLE_DTYPES = {"float32": 4, "bfloat16": 2}
"""What tables can hold while they are trained, and the bytes of a number of it."""


def setting(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with limits: a number from ``low`` to ``high``, or what its type allows."""
    limits = {name: limit for name, limit in (("min", low), ("max", high)) if limit is not None}
    return field(default=default, metadata={"help": help, **limits})


def check(settings: Any, where: str) -> None:
    """Hold each field of a dataclass against its type and limits; numpy's numbers become Python's.

    Args:
        settings: a dataclass whose fields were made by :func:`setting`.
        where: the function that the user called, for the message.

    Raises:
        SettingError: a value of another type, no finite number or outside the limits.
    """
    for item in fields(settings):
        low, high = item.metadata.get("min"), item.metadata.get("max")
        value = getattr(settings, item.name)
        kind, *other = str(item.type).split(" | ")
        if value is None and other:
            continue
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(settings, item.name, value)  # frozen, and not yet in anyone's hands
        expected, what = _KINDS[kind]
        if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
            raise SettingError(f"{where}: {item.name} must be {what}, got {value!r}")
        if not (low is None or value >= low) or not (high is None or value <= high):
            bounds = [f"at least {low:g}"] if low is not None else []
            bounds += [f"at most {high:g}"] if high is not None else []
            raise SettingError(f"{where}: {item.name} must be {' and '.join(bounds)}, got {value!r}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of :func:`firth.train` that belong to the run and not to the objective."""

    dim: int = setting(100, "Numbers in a vector.", low=1, high=65_536)
    freeze: str = setting("none", "Of the vectors to start from, what stays as it is: none or known.")
    epochs: int = setting(5, "Passes over the text.", low=1, high=1_000_000)
    lr: float | None = setting(
        None, "Learning rate at the start; it falls in a straight line.", low=1e-9, high=10.0
    )
    threads: int | None = setting(None, "Threads; all cores of this process by default.", low=1, high=4096)
    seed: int = setting(1, "Same seed and one thread: same vectors, bit for bit.", low=0, high=2**63 - 1)
    device: str = setting(
        "auto", "Where to train: cpu, cuda, cuda:1, or auto, a CUDA card if there is one, else the CPU."
    )
    deterministic: bool = setting(False, "Same seed, same device: same bits, at one thread's speed.")
    table_dtype: str = setting(
        "float32", "Of the tables while they are trained: float32, or on a card bfloat16 in half the memory."
    )

    def __post_init__(self) -> None:
        check(self, "train()")
        if self.freeze not in FREEZE:
            raise SettingError(f"train(): freeze must be {' or '.join(FREEZE)}, got {self.freeze!r}")
        if self.table_dtype not in TABLE_DTYPES:
            dtypes = " or ".join(TABLE_DTYPES)
            raise SettingError(f"train(): table_dtype must be {dtypes}, got {self.table_dtype!r}")
        if self.table_dtype != "float32" and self.freeze != "none":
            raise SettingError(
                f"train(): freeze={self.freeze!r} keeps vectors to the bit, tables in {self.table_dtype} do "
                "not; leave table_dtype (--table-dtype) out"
            )


def available_threads() -> int:
    """The number of cores that this process may use: under torchrun its share of the machine's."""
    here = place()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (here.local_size if here else 1))
