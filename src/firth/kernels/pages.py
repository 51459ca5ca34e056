"""Memory for large tables, on huge pages where the system gives them, and for large results, used again."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HUGE = 32 << 20
"""Bytes from which on memory is asked for in huge pages; smaller pieces may be recycled ones."""

REUSED = 1 << 20
"""Bytes from which on results get memory that is kept here."""

KEPT = 256 << 20
"""Most bytes that are kept while no tensor is in them."""

_PAGE = 2 << 20  # of memory, a huge one

# A private mapping: Python's own choice would be shared with processes that are forked.
_PRIVATE: dict[str, Any] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)
_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


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


def result(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU whose values are not set, in memory that earlier results may have left.

    The allocator may give memory of some megabytes back to the system and ask for it anew in every step of
    training; each of its pages then costs a fault, together as much as a lookup. So large results, from
    ``REUSED`` bytes on and of float32 or float64, get memory that waits here for the next one when the last
    tensor has gone from it, ``KEPT`` bytes at most; they cannot be resized. Others are torch.empty.
    """
    kind = _NUMPY.get(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if kind is None or n_bytes < REUSED:
        return torch.empty(shape, dtype=dtype)
    block = _kept.take(n_bytes)
    if block is None:
        block = _new_block(n_bytes)
    if block is None:  # torch says what is wrong
        return torch.empty(shape, dtype=dtype)
    array = np.ndarray(shape, kind, block.memory)
    _kept.watch(array, block)
    return torch.from_numpy(array)


class _Block(NamedTuple):
    """A piece of memory."""

    n_bytes: int
    memory: Any  # uint8 (n_bytes,), from the beginning of a huge page on


class _Watch(weakref.ref[Any]):
    """Tells when an array goes; knows the block that it is in."""

    __slots__ = ("block",)
    block: _Block


class _Kept:
    """Blocks of memory that results were in, and those that they are in. Nothing here waits for a lock:
    a result may go at any moment, in the middle of these lines too."""

    def __init__(self) -> None:
        self._idle: list[_Block] = []  # no tensor is in them; the one left last at the end
        self._used: dict[int, _Watch] = {}  # a reference must live to be told

    def take(self, n_bytes: int) -> _Block | None:
        """A block of at least so many bytes and not much more, nobody else's; ``None``: there is none."""
        passed = []
        found = None
        try:
            while found is None:
                block = self._idle.pop()
                if n_bytes <= block.n_bytes <= 2 * n_bytes + _PAGE:
                    found = block
                else:
                    passed.append(block)
        except IndexError:
            pass
        if passed:
            self._idle += reversed(passed)
        return found

    def watch(self, array: Any, block: _Block) -> None:
        """Have the block back when the array goes, with the last tensor that is in it."""
        watch = _Watch(array, self._back)
        watch.block = block
        self._used[id(watch)] = watch

    def _back(self, watch: _Watch) -> None:
        del self._used[id(watch)]
        idle = self._idle
        idle.append(watch.block)
        while sum(block.n_bytes for block in tuple(idle)) > KEPT:
            del idle[:1]


_kept = _Kept()


def _new_block(n_bytes: int) -> _Block | None:
    """New memory, whole huge pages, or ``None`` where the system has none."""
    size = -(-n_bytes // _PAGE) * _PAGE
    try:
        memory = mmap.mmap(-1, size + _PAGE, **_PRIVATE)
    except (OSError, OverflowError, ValueError):
        return None
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    first = -whole.ctypes.data % _PAGE
    return _Block(size, whole[first : first + size])


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
