"""The threads of the row and bag kernels."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

MOST_THREADS = 64

_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def run(work: Callable[..., Any], arguments: tuple[Any, ...], items: int, stretch: int) -> None:
    """``work(*arguments)`` in as many threads as torch uses and as there are stretches of the items.

    Calls share the work among them by a counter in their arguments. Numba's own threads (``prange``) are
    not used: they end the process when two Python threads meet there.
    """
    threads = min(torch.get_num_threads(), -(-items // stretch))
    if threads <= 1:
        work(*arguments)
        return
    pool = _pools.get(os.getpid())
    if pool is None:  # it starts a thread only where none is idle
        pool = _pools.setdefault(os.getpid(), ThreadPoolExecutor(MOST_THREADS, "firth-kernels"))
    others = [pool.submit(work, *arguments) for _ in range(threads - 1)]
    try:
        work(*arguments)
    finally:
        for other in others:
            if not other.cancel():  # one that has not begun would find nothing left to do
                other.result()
