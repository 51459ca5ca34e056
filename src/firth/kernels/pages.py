"""Memory for large tables, on huge pages where the system gives them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 32 << 20
"""Bytes from which on memory is asked for in huge pages; smaller pieces may be recycled ones."""


def empty(shape: Sequence[int], dtype: torch.dtype, like: Tensor | None = None) -> Tensor:
    """A tensor whose values are not set, on huge pages where the system gives them.

    Rows of a large table lie far apart; with pages of 2 MB instead of 4 KB the processor finds their
    addresses in its tables, and a lookup is up to twice as fast. Linux gives huge pages to memory that
    asks for them before it is first written to; elsewhere, and below ``HUGE`` bytes, this is torch.empty.

    Args:
        shape: of any number of dimensions. like: a tensor on the wanted device; ``None``: the CPU.
    """
    device = torch.device("cpu") if like is None else like.device
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    if device.type == "cpu":
        _ask_for_huge_pages(tensor)
    return tensor


def zeros(shape: Sequence[int], dtype: torch.dtype, like: Tensor | None = None) -> Tensor:
    """:func:`empty`, filled with zeros."""
    return empty(shape, dtype, like).zero_()


def _ask_for_huge_pages(tensor: Tensor) -> None:
    """madvise(MADV_HUGEPAGE) for the whole pages of a tensor; it is advice, so failures do not matter."""
    size = tensor.numel() * tensor.element_size()
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if size < HUGE or advice is None:
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None:
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))
