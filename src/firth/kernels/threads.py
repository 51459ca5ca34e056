"""The threads of the row and bag kernels.

A kernel of these takes half a millisecond, and waking a sleeping thread a tenth to a fifth of one. So a
helper that has just worked stays awake for ``AWAKE`` and watches, outside Python, for the next call to begin;
a training step calls kernel after kernel. Only then it sleeps. OpenMP's threads do the same for several
milliseconds and must all have come before a call may end; here nobody waits for a helper that has not begun.

Numba's own threads (``prange``) are not used: they end the process when two Python threads meet there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numba as nb
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

MOST_THREADS = 64

AWAKE = 3e-4
"""Seconds that a helper without work watches for more."""

_LINE = 8
"""int64 in a cache line, of which nobody else writes while a helper watches it."""

_SIGNAL, _WHOM, _DONE = 0, _LINE, 2 * _LINE
"""Where in a helper's box stand: the address of a number that is not 0 once there is work to take part in;
the address of the next; and 1 where its part is done."""

_X86 = platform.machine() in ("x86_64", "AMD64", "i686")

T = TypeVar("T")
Work = tuple[Callable[..., Any], tuple[Any, ...]]


@intrinsic
def _seen(typing_context: Any, address: Any) -> Any:
    """The int64 at an address, read anew; what was written before it can be read from here on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _pause(typing_context: Any) -> Any:
    """Leave the core's units to its other thread for a moment, where the processor knows how."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@nb.njit(nogil=True, cache=True)
def _watch(signal: int, turns: int) -> bool:
    """Whether the number that ``signal`` leads to was set while looking so many times."""
    for _ in range(turns):
        number = _seen(signal)
        if number != 0 and _seen(number) > 0:
            return True
        _pause()
    return False


class _Helper:
    """A thread that takes a share of a call of a kernel."""

    def __init__(self) -> None:
        self._box, self._at = _aligned(3)
        self._offers: list[Work] = []  # one or none; who pops it has it
        self._error: BaseException | None = None
        self._asleep = False
        self._bell = threading.Lock()
        self._bell.acquire()
        self._closed = False
        self._box[_WHOM] = self._at + 8 * _DONE
        self._thread = threading.Thread(target=self._serve, name="firth-kernels", daemon=True)
        self._thread.start()

    def offer(self, work: Work, counter: int) -> None:
        """Let it take part in a call, which begins when the number at the address ``counter`` is not 0."""
        self._box[_DONE] = 0
        self._offers.append(work)
        self._box[_SIGNAL] = counter
        if self._asleep:
            self._asleep = False
            self._wake()

    def finish(self) -> BaseException | None:
        """Take the offer back, or wait until it is carried out; what was raised there."""
        self._box[_SIGNAL] = 0
        if _taken(self._offers) is None:
            while not _watch(self._at + 8 * _WHOM, self._turns):
                time.sleep(AWAKE / 10)  # its core may be another's at the moment
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake()
        self._thread.join(1.0)

    def _wake(self) -> None:
        """Ring the bell. On the core that the caller keeps busy it would sleep on: that one is forbidden."""
        tid = self._thread.native_id
        if _own_core is not None and tid is not None:
            others = os.sched_getaffinity(0) - {_own_core()}
            if others:
                os.sched_setaffinity(tid, others)
        with contextlib.suppress(RuntimeError):  # rung before
            self._bell.release()

    def _serve(self) -> None:
        self._turns = _turns(AWAKE)
        while not self._closed:
            if not self._offers and not _watch(self._at + 8 * _SIGNAL, self._turns):
                self._asleep = True
                if not self._offers:
                    self._bell.acquire()
                self._asleep = False
            offer = _taken(self._offers)
            if offer is None:  # taken back
                continue
            self._box[_SIGNAL] = 0
            try:
                offer[0](*offer[1])
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                self._error = error
            del offer
            self._box[_DONE] = 1


class _Crew:
    """The helpers of a process, and the counters of calls under way."""

    def __init__(self) -> None:
        self._idle: list[_Helper] = []
        self._all: list[_Helper] = []
        self._counters: list[tuple[npt.NDArray[np.int64], int]] = []  # kept for good: a helper may look late
        atexit.register(self._close)

    def run(self, work: Callable[..., Any], arguments: tuple[Any, ...], n_helpers: int) -> None:
        """``work(*arguments, counter)`` here and, as far as they come in time, in helpers."""
        counter, at = _taken(self._counters) or _aligned(1)
        counter[0] = 0
        arguments = (*arguments, at)
        helpers = []
        for _ in range(n_helpers):
            helper = _taken(self._idle)
            if helper is None:
                if len(self._all) >= MOST_THREADS:
                    break
                helper = _Helper()
                self._all.append(helper)
            helper.offer((work, arguments), at)
            helpers.append(helper)
        errors: list[BaseException | None] = []
        try:
            work(*arguments)
        finally:
            for helper in helpers:
                errors.append(helper.finish())
                self._idle.append(helper)
            self._counters.append((counter, at))
        for error in errors:
            if error is not None:
                raise error

    def _close(self) -> None:
        for helper in self._all:
            helper.close()


_crews: dict[int, _Crew] = {}  # by process: threads do not survive a fork


def run(work: Callable[..., Any], arguments: tuple[Any, ...], items: int, stretch: int) -> None:
    """``work(*arguments, counter)`` in as many threads as torch uses and as there are stretches of the items.

    Args:
        work: shares the items among its calls by ``counter``, the address of an int64 that is 0 at first and
            goes up before anything else is done. It runs without Python's lock.
        items, stretch: how many there are, and how many are taken at a time.
    """
    crew = _crews.get(os.getpid()) or _crews.setdefault(os.getpid(), _Crew())
    crew.run(work, arguments, min(torch.get_num_threads(), -(-items // stretch)) - 1)


def _getcpu() -> Callable[[], int] | None:
    """What tells the number of the core that the calling thread is on, where there is such a thing."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_own_core = _getcpu()


def _taken(things: list[T]) -> T | None:
    """The last, which nobody else gets then; ``None`` if there is none."""
    try:
        return things.pop()
    except IndexError:
        return None


def _aligned(lines: int) -> tuple[npt.NDArray[np.int64], int]:
    """Zeros in cache lines that nothing else uses, and their address."""
    memory = np.zeros((lines + 1) * _LINE, np.int64)
    first = -memory.ctypes.data // 8 % _LINE
    zeros = memory[first : first + lines * _LINE]
    return zeros, zeros.ctypes.data


def _turns(seconds: float) -> int:
    """How often :func:`_watch` looks in so much time."""
    box, at = _aligned(1)
    turns, best = 1000, math.inf
    _watch(at, turns)
    for _ in range(5):
        began = time.perf_counter()
        _watch(at, turns)
        best = min(best, time.perf_counter() - began)
    return max(int(seconds / max(best, 1e-9) * turns), 1) + int(box[0])
