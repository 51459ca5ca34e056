"""The threads of the row and bag kernels.

A kernel of these takes a quarter to half a millisecond; waking a thread takes a tenth of one, and so does
getting Python's lock from a thread that holds it. So a helper that has worked stays awake for ``AWAKE`` and
watches, outside Python, for more: a training step calls kernel after kernel. Only then it sleeps. The
caller offers the work, does it itself, and waits only for helpers that have begun. OpenMP's threads watch for
several milliseconds, and all of them must have come before a call may end.

Numba's own threads (``prange``) are not used: they end the process when two Python threads meet there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import os
import platform
import struct
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numba as nb
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

MOST_THREADS = 64

AWAKE = 3e-4
"""Seconds that a helper without work watches for more."""

T = TypeVar("T")

# --- what kernels read their arguments by -------------------------------------------------------

_INT64 = ir.IntType(64)
_NUMBERS = {torch.float32: types.float32, torch.float64: types.float64}
X86 = platform.machine() in ("x86_64", "AMD64", "i686")


def _at(builder: Any, address: Any, k: Any, kind: Any = _INT64) -> Any:
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [k])


@intrinsic
def integer(typing_context: Any, arguments: Any, k: Any) -> Any:
    """Argument ``k``, a whole number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_at(builder, args[0], args[1]))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def real(typing_context: Any, arguments: Any, k: Any) -> Any:
    """Argument ``k``, a float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_at(builder, args[0], args[1], ir.DoubleType()))

    return types.float64(types.int64, types.int64), codegen


@intrinsic
def zero(typing_context: Any, like: Any) -> Any:
    """0 of the dtype that the pointer ``like`` is of."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(like.dtype), 0.0)

    return like.dtype(like), codegen


@intrinsic
def take(typing_context: Any, counter: Any) -> Any:
    """The int64 at the address ``counter``, which goes up by one: each thread gets another number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = builder.inttoptr(args[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", at, ir.Constant(_INT64, 1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic
def pointer(typing_context: Any, like: Any, address: Any) -> Any:
    """The address of numbers of the dtype that ``like`` is a number or a pointer of."""
    kind = like if isinstance(like, types.CPointer) else types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(kind))

    return kind(like, types.int64), codegen


# --- watching, outside Python -------------------------------------------------------------------
# A helper's box: int64 in a cache line.

_STATE, _ENTRY, _ARGUMENTS, _COUNTER = range(4)
_EMPTY, _OFFERED, _TAKEN = range(3)
_LINE = 8  # int64 in a cache line
_SLOTS = 64  # arguments that a kernel has at most


@intrinsic
def seen(typing_context: Any, cells: Any, k: Any) -> Any:
    """Cell ``k``, read anew; what was written before it can be read from here on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_at(builder, args[0], args[1]), "acquire", 8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def show(typing_context: Any, cells: Any, k: Any, value: Any) -> Any:
    """Write cell ``k``, after all that was written before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _at(builder, args[0], args[1]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _swap(typing_context: Any, box: Any, old: Any, new: Any) -> Any:
    """Whether the box's state was ``old`` and is ``new`` now: of two that ask, one is told so."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        state = _at(builder, args[0], ir.Constant(_INT64, _STATE))
        found = builder.cmpxchg(state, args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def _call(typing_context: Any, entry: Any, arguments: Any, counter: Any) -> Any:
    """Call a compiled kernel."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT64] * 3)
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, [ir.Constant(_INT64, 0), *args[1:]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def _pause(typing_context: Any) -> Any:
    """Leave the core's units to its other thread for a moment, where the processor knows how."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@nb.njit(nogil=True, cache=True)
def _serve(box: int, turns: int) -> None:
    """A helper's work, until it has looked so many times in vain."""
    idle = 0
    while idle < turns:
        if seen(box, _STATE) == _OFFERED and _swap(box, _OFFERED, _TAKEN):
            _call(seen(box, _ENTRY), seen(box, _ARGUMENTS), seen(box, _COUNTER))
            show(box, _STATE, _EMPTY)
            idle = 0
        idle += 1
        _pause()


@nb.njit(nogil=True, cache=True)
def _settle(boxes: int, n: int, turns: int) -> bool:
    """Take back what nobody has begun, and wait for the rest; whether it has ended."""
    for k in range(n):
        box = integer(boxes, k)
        if not _swap(box, _OFFERED, _EMPTY):
            while seen(box, _STATE) != _EMPTY:
                turns -= 1
                if turns < 0:
                    return False
                _pause()
    return True


@nb.njit(nogil=True, cache=True)
def _lead(entry: int, arguments: int, counter: int, boxes: int, n: int, turns: int) -> int:
    """Offer the work to the helpers of so many boxes and do it; the last cell, or -1: they have not ended."""
    for k in range(_LINE):
        show(counter, k, 0)
    for k in range(n):
        box = integer(boxes, k)
        show(box, _ENTRY, entry)
        show(box, _ARGUMENTS, arguments)
        show(box, _COUNTER, counter)
        show(box, _STATE, _OFFERED)
    _call(entry, arguments, counter)
    return seen(counter, _LINE - 1) if _settle(boxes, n, turns) else -1


# --- helpers ------------------------------------------------------------------------------------


class _Helper:
    """A thread that takes a share of what is offered in its box."""

    def __init__(self, turns: int) -> None:
        self._cells, self.box = _aligned(_LINE)
        self._turns = turns
        self.asleep = False
        self._bell = threading.Lock()
        self._bell.acquire()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="firth-kernels", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ring the bell. On the core that the caller keeps busy it would sleep on: that one is forbidden."""
        self.asleep = False
        tid, own_core = self._thread.native_id, _own_core()
        if own_core is not None and tid is not None:
            others = os.sched_getaffinity(0) - {own_core()}
            if others:
                with contextlib.suppress(OSError):  # a system that does not let us
                    os.sched_setaffinity(tid, others)
        with contextlib.suppress(RuntimeError):  # rung before
            self._bell.release()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self.wake()
        self._thread.join(1.0)

    def _work(self) -> None:
        while not self._closed:
            _serve(self.box, self._turns)
            self.asleep = True
            if self._cells[_STATE] != _OFFERED:  # by one who thought it awake
                self._bell.acquire()
            self.asleep = False


class _Place:
    """Where a call that is under way keeps its counter, its arguments and its helpers' boxes."""

    def __init__(self) -> None:
        self.cells, self.counter = _aligned(_LINE + _SLOTS + MOST_THREADS)
        self.slots = self.cells[_LINE:].data
        self.arguments = self.counter + 8 * _LINE
        self.boxes = self.arguments + 8 * _SLOTS


class _Crew:
    """The helpers of a process."""

    def __init__(self) -> None:
        self._idle: list[_Helper] = []
        self._all: list[_Helper] = []
        self._places: list[_Place] = []  # nobody's at the moment
        self._made: list[_Place] = []  # all, kept for good: a call may be left by Ctrl-C, its helpers later
        self._lock = threading.Lock()
        self._turns = _turns(AWAKE)
        atexit.register(self._close)

    def run(self, entry: int, layout: struct.Struct, values: tuple[Any, ...], n_helpers: int) -> int:
        """A compiled kernel here and, as far as they come in time, in helpers; the last of its cells."""
        place = _taken(self._places)
        if place is None:
            place = _Place()
            self._made.append(place)
        layout.pack_into(place.slots, 0, *values)
        helpers: list[_Helper] = []
        while len(helpers) < n_helpers:
            helper = _taken(self._idle) or self._another()
            if helper is None:
                break
            if helper.asleep:
                helper.wake()
            place.slots[_SLOTS + len(helpers)] = helper.box
            helpers.append(helper)
        n = len(helpers)
        told = -1
        try:
            told = _lead(entry, place.arguments, place.counter, place.boxes, n, self._turns)
        finally:
            if told < 0:
                while not _settle(place.boxes, n, self._turns):
                    time.sleep(AWAKE / 10)  # its core may be another's at the moment
                told = int(place.cells[_LINE - 1])
            self._idle += helpers
            self._places.append(place)
        return told

    def _another(self) -> _Helper | None:
        with self._lock:
            if len(self._all) >= MOST_THREADS:
                return None
            helper = _Helper(self._turns)
            self._all.append(helper)
            return helper

    def _close(self) -> None:
        for helper in self._all:
            helper.close()


_crews: list[_Crew] = []  # that of this process, once there is one


@cache
def _forget_at_fork() -> None:
    """Threads do not survive a fork: the child begins without helpers."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_crews.clear)


def _crew() -> _Crew:
    _forget_at_fork()
    _crews.append(_Crew())
    return _crews[0]  # of two that begin at once one is never used


class Kernel:
    """A compiled function that several threads may call at once to share its work.

    Args:
        function: ``function(like, arguments, counter)``. ``like`` is a null pointer of the dtype that it is
            compiled for; ``arguments`` the address of what :meth:`run` was given, see :func:`integer` and
            :func:`real`; ``counter`` that of eight int64, 0 at first, by which the threads share the work.
        layout: of the arguments, in the letters of :mod:`struct`, eight bytes each: ``q`` and ``d``.
    """

    def __init__(self, function: Callable[[Any, Any, Any], None], layout: str) -> None:
        self._function = function
        self._layout = struct.Struct(layout)
        self._compiled: dict[torch.dtype, Any] = {}

    def run(self, dtype: torch.dtype, values: tuple[Any, ...], items: int, stretch: int) -> int:
        """Call it in as many threads as torch uses and as there are stretches of the items.

        Args:
            dtype: float32 or float64. values: the arguments, numbers.
            items, stretch: how many there are, and how many are taken at a time.

        Returns:
            The eighth number at ``counter``, which the function may set to tell something, 0 or more.
        """
        compiled = self._compiled.get(dtype) or self._compile(dtype)
        crew = _crews[0] if _crews else _crew()
        threads = min(torch.get_num_threads(), -(-items // stretch), MOST_THREADS)
        return crew.run(compiled.address, self._layout, values, threads - 1)

    def _compile(self, dtype: torch.dtype) -> Any:
        signature = types.void(types.CPointer(_NUMBERS[dtype]), types.int64, types.int64)
        made = self._compiled[dtype] = nb.cfunc(signature, cache=True)(self._function)
        return made


def _taken(things: list[T]) -> T | None:
    """The last, which nobody else gets then; ``None`` if there is none."""
    try:
        return things.pop()
    except IndexError:
        return None


def _aligned(n: int) -> tuple[npt.NDArray[np.int64], int]:
    """``n`` zeros from the beginning of a cache line on, and their address."""
    memory = np.zeros(n + 2 * _LINE, np.int64)
    first = -memory.ctypes.data // 8 % _LINE
    return memory[first : first + n], memory.ctypes.data + 8 * first


def _turns(seconds: float) -> int:
    """How often :func:`_serve` looks in so much time."""
    _, box = _aligned(_LINE)
    turns, best = 1000, math.inf
    _serve(box, turns)
    for _ in range(5):
        began = time.perf_counter()
        _serve(box, turns)
        best = min(best, time.perf_counter() - began)
    return max(int(seconds / max(best, 1e-9) * turns), 1)


@cache
def _own_core() -> Callable[[], int] | None:
    """What tells the number of the core that the calling thread is on, where there is such a thing."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)
