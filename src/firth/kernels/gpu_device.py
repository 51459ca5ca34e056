"""A CUDA card: finding it, what it has room for, and getting arrays onto it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firth.errors import RunError, SettingError

CHUNK_BYTES = 64 << 20
"""Of an array that is copied at a time."""


def find_card(
    name: str, who: str = "train()", way_out: str = "use --device cpu (device='cpu')"
) -> torch.device:
    """The card of that name, ``cuda`` or ``cuda:NUMBER``.

    Args:
        name: ``cuda`` is the card of this process's number under torchrun (LOCAL_RANK), else the current one.
        who: the function that the user called, for the message.
        way_out: how it goes without a card, for the message.

    Raises:
        SettingError: there is none; the sentence says what was looked for.
    """
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise SettingError(f"{who}: device must be cuda or cuda:NUMBER, not {name!r}")
    if not torch.cuda.is_available():
        why = (
            f"torch {torch.__version__} is a build without CUDA"
            if torch.version.cuda is None
            else f"torch {torch.__version__} for CUDA {torch.version.cuda} sees no NVIDIA card or driver"
        )
        raise SettingError(f"{who}: device {name!r} needs a CUDA card, and {why}; {way_out}")
    count = torch.cuda.device_count()
    own = os.environ.get("LOCAL_RANK", "")
    index = int(number or own) if number or own.isdecimal() else torch.cuda.current_device()
    if index >= count:
        raise SettingError(f"{who}: device {name!r} is not there, {count} CUDA cards are; {way_out}")
    return torch.device("cuda", index)


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current card: make it this one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def memory_told(what: str, size: int) -> Iterator[None]:
    """A full card becomes a sentence."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        free = ""
        with contextlib.suppress(RuntimeError, AssertionError):
            left, whole = torch.cuda.mem_get_info()
            free = f", {left / 1e9:,.1f} of the card's {whole / 1e9:,.1f} GB are free"
        raise RunError(
            f"train(): no room on the card for {what} ({size / 1e9:,.2f} GB{free}); choose a smaller dim or "
            "vocabulary, end what else runs there, or use --device cpu (device='cpu')"
        ) from error


def uploaded(array: npt.NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy on the device, of another dtype if asked, in chunks, so that no second copy of a mapped file is
    made on the host."""
    if array.dtype == np.uint32:
        array = array.view(np.int32)
    flat = array.reshape(-1)
    made = torch.empty(len(flat), dtype=dtype or getattr(torch, array.dtype.name), device=device)
    step = CHUNK_BYTES // array.itemsize
    for start in range(0, len(flat), step):
        made[start : start + step] = torch.from_numpy(flat[start : start + step].copy())
    return made.reshape(array.shape)


class Lane(NamedTuple):
    """A stretch on its way to the card: pages that the card reads by itself, and where they go."""

    pinned: Tensor
    here: Tensor
    copied: Any  # an event, or None without a card

    @classmethod
    def of(cls, length: int, device: torch.device) -> Lane:
        on_card = device.type == "cuda"
        pinned = torch.empty(length, dtype=torch.int32, pin_memory=on_card)
        here = torch.empty(length, dtype=torch.int32, device=device)
        return cls(pinned, here, torch.cuda.Event() if on_card else None)  # type: ignore[no-untyped-call]

    def take(self, ids: npt.NDArray[np.int32]) -> Tensor:
        """``ids`` on the card, in order with what it does; the host waits for the lane's last copy only."""
        if self.copied is not None:
            self.copied.synchronize()
        self.pinned.numpy()[: len(ids)] = ids
        here = self.here[: len(ids)]
        here.copy_(self.pinned[: len(ids)], non_blocking=True)
        if self.copied is not None:
            self.copied.record()
        return here
