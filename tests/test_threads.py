"""The helpers of the row and bag kernels: who takes part, who sleeps, and whom nobody waits for."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from firth.kernels import threads
from firth.kernels.rows_cpu import _set_number
from firth.kernels.threads import integer, take, zero

N = 400


def _mark(like, a, counter):  # type: ignore[no-untyped-def]
    """Adds one to each of ``n`` numbers, slowly; tells 7."""
    out, n, rounds = integer(a, 0), integer(a, 1), integer(a, 2)
    while True:
        k = take(counter)
        if k >= n:
            break
        total = zero(like)
        for _ in range(rounds):
            total += 1
        at = out + 8 * k
        _set_number(at, integer(at, 0) + np.int64(total / rounds))
    _set_number(counter + 56, np.int64(7))


KERNEL = threads.Kernel(_mark, "3q")


@pytest.fixture(params=[1, 2, 4, 9])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def run(n: int = N, rounds: int = 10) -> np.ndarray:
    out = np.zeros(n, np.int64)
    assert KERNEL.run(torch.float64, (out.ctypes.data, n, rounds), n, 1) == 7
    return out


def crew() -> threads._Crew:
    return threads._crews[0]


def test_every_item_is_done_once(n_threads: int) -> None:
    for rounds in (1, 3000):
        for _ in range(20):
            assert (run(rounds=rounds) == 1).all()
    assert (run(1) == 1).all()


def test_helpers_sleep_and_are_woken() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run()
        helpers = crew()._all
        assert len(helpers) >= 2
        for pause in (0.0, threads.AWAKE / 2, 0.05):
            for _ in range(5):
                time.sleep(pause)
                assert (run() == 1).all()
        deadline = time.monotonic() + 10
        while not all(helper.asleep for helper in helpers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(helper.asleep for helper in helpers)
        used = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - used < 0.15  # nobody watches any more
        woken = False
        for _ in range(50):  # a call of some ms, with helpers asleep at its beginning
            time.sleep(0.01)
            assert (run(rounds=30_000) == 1).all()
            woken |= not all(helper.asleep for helper in helpers)
        assert woken
    finally:
        torch.set_num_threads(before)


def test_a_helper_takes_its_share() -> None:
    """All of a long call but what the caller does; a helper that did nothing would leave it all to it."""
    box, at = threads._aligned(threads._LINE)
    place = threads._Place()
    out = np.zeros(N, np.int64)
    entry = KERNEL._compiled.get(torch.float64) or KERNEL._compile(torch.float64)
    KERNEL._layout.pack_into(place.slots, 0, out.ctypes.data, N, 100)
    box[[threads._STATE, threads._ENTRY, threads._ARGUMENTS, threads._COUNTER]] = (
        threads._OFFERED,
        entry.address,
        place.arguments,
        place.counter,
    )
    threads._serve(at, 1)
    assert (out == 1).all() and box[threads._STATE] == threads._EMPTY


def test_nobody_waits_for_a_helper_that_has_not_begun() -> None:
    class Absent:
        asleep = False

        def __init__(self) -> None:
            self.cells, self.box = threads._aligned(threads._LINE)

    own = threads._Crew()
    absent = Absent()
    own._idle.append(absent)  # type: ignore[arg-type]
    out = np.zeros(N, np.int64)
    entry = KERNEL._compiled.get(torch.float64) or KERNEL._compile(torch.float64)
    assert own.run(entry.address, KERNEL._layout, (out.ctypes.data, N, 10), 1) == 7
    assert (out == 1).all() and absent.cells[threads._STATE] == threads._EMPTY
    assert own._idle == [absent]


def test_one_that_has_begun_is_waited_for() -> None:
    box, at = threads._aligned(threads._LINE)
    boxes, boxes_at = threads._aligned(1)
    boxes[0] = at
    box[threads._STATE] = threads._TAKEN
    assert not threads._settle(boxes_at, 1, 1000)
    done = threading.Timer(0.05, lambda: box.__setitem__(threads._STATE, threads._EMPTY))
    done.start()
    began = time.monotonic()
    while not threads._settle(boxes_at, 1, 1000):
        time.sleep(0.001)
    assert time.monotonic() - began > 0.03


def test_more_callers_than_helpers() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads.MOST_THREADS + 8)
    try:
        found: list[bool] = []

        def call() -> None:
            found.extend(bool((run(rounds=50) == 1).all()) for _ in range(10))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(found) == 40 and all(found)
        assert len(crew()._all) <= threads.MOST_THREADS
    finally:
        torch.set_num_threads(before)


def test_a_program_ends_while_helpers_watch() -> None:
    program = """
import torch
torch.set_num_threads(4)
from firth.nn import Embedding, SGD
layer = Embedding(2000, 64, fused=SGD(lr=0.1))
for _ in range(3):
    layer(torch.arange(2000)).sum().backward()
"""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell")
def test_a_caller_bound_to_one_core_still_gets_its_result() -> None:
    allowed = os.sched_getaffinity(0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        for _ in range(5):
            time.sleep(0.01)
            assert (run() == 1).all()
        assert os.sched_getaffinity(0) == {min(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run()
        parents = crew()
        child = os.fork()
        if not child:
            right = bool((run(rounds=3000) == 1).all()) and crew() is not parents and len(crew()._all) == 2
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert (run() == 1).all() and crew() is parents
    finally:
        torch.set_num_threads(before)
