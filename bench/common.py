"""What the benches share: data, child processes and their CPU seconds, what the machine can do."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
WORK = REPOSITORY / "build" / "bench"
"""Unpacked texts and saved vectors; below build/, which git ignores."""

LINE_WORDS = 1000
"""gensim drops what a line has beyond 10,000 words, so every tool gets lines of 1,000."""


def data_folder() -> Path:
    """The folder of real data: ``$FIRTH_DATA``, else ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("FIRTH_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"no data in {folder}; set FIRTH_DATA to a folder that has text/ and eval/")
    return folder


def lines_file(name: str, limit: int | None = None) -> Path:
    """The text ``text/NAME.txt.xz`` unpacked into lines of 1,000 words, at most ``limit`` words of it."""
    target = WORK / f"{name}{f'.{limit}' if limit else ''}.lines.txt"
    if not target.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        print(f"unpacking {name}", file=sys.stderr)
        with lzma.open(data_folder() / "text" / f"{name}.txt.xz", "rt", encoding="utf-8") as file:
            words = file.read().split()[:limit]
        part = target.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            for start in range(0, len(words), LINE_WORDS):
                print(*words[start : start + LINE_WORDS], file=file)
        part.replace(target)
    return target


@dataclass(frozen=True)
class Run:
    """One child process: what it printed and what it took, all its threads together."""

    report: dict[str, Any]
    cpu_s: float
    wall_s: float
    peak_bytes: int
    peak_anonymous_bytes: int  # the largest seen, forty times a second; 0 where the system does not tell


def run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> Run:
    """Run ``command`` to its end; its last line on stdout may be a JSON report."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        text=True,
    )
    assert child.stdout is not None
    peaks = {"VmHWM": 0, "RssAnon": 0}
    watcher = threading.Thread(target=_watch, args=(child.pid, peaks), daemon=True)
    watcher.start()
    with child.stdout as output:
        printed = output.read().strip().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    watcher.join()
    if child.returncode:
        sys.exit(f"bench: exit code {child.returncode} from {' '.join(map(str, command))}")
    report = json.loads(printed[-1]) if printed and printed[-1].startswith("{") else {}
    # Linux counts the parent's peak into ru_maxrss of its child, so it is asked only where VmHWM is not.
    peak = peaks["VmHWM"] or usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(report, usage.ru_utime + usage.ru_stime, wall, peak, peaks["RssAnon"])


def _watch(process_id: int, peaks: dict[str, int]) -> None:
    """Keep the largest values of these fields of a process's status, in bytes, until it ends."""
    status = Path(f"/proc/{process_id}/status")
    while True:
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            return
        if "RssAnon" not in fields:  # it has ended and waits to be reaped
            return
        for name, largest in peaks.items():
            peaks[name] = max(largest, int(fields[name].split()[0]) * 1024)
        time.sleep(0.025)


def thread_settings(threads: int) -> dict[str, str]:
    """The environment in which numpy and torch compute with so many threads, whatever they are built on."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    return dict.fromkeys(names, str(threads))


def machine() -> str:
    """One line about the machine, for the head of a report."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")), model
            )
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, Python {platform.python_version()}, {platform.system()}"


def rival_python(given: str | None) -> Path | None:
    """The interpreter that has gensim and fastText: ``given``, else ``$FIRTH_RIVALS``."""
    name = given or os.environ.get("FIRTH_RIVALS")
    if not name:
        return None
    found = shutil.which(name)
    if found is None:
        sys.exit(f"bench: {name} is no interpreter; make one with: make build/rivals/.installed")
    # Not resolved: a link is how a virtual environment finds its packages.
    return Path(found).absolute()


def has(python: Path, module: str) -> bool:
    """Whether ``python`` can import ``module``."""
    command = [str(python), "-c", f"import importlib.util as u, sys; sys.exit(not u.find_spec({module!r}))"]
    return subprocess.run(command, check=False).returncode == 0


def cpu_seconds() -> float:
    """CPU seconds of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_seconds_now() -> float:
    """What all threads of this process have used, those that run at the moment included up to now.

    ``time.process_time()`` counts a thread that runs elsewhere only up to its last tick of some ms.
    """
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return time.process_time()
    total = 0.0
    for thread in threads:
        with contextlib.suppress(OSError):  # it has just ended
            total += time.clock_gettime(
                ~int(thread) << 3 | 6
            )  # its clock: CPUCLOCK_PERTHREAD, CPUCLOCK_SCHED
    return total


def gate(dims: Sequence[int] = (100, 300), tolerance: float = 1e-3) -> None:
    """Stop the bench where the fast kernel is wrong: no speed is printed for wrong work.

    Trains on a small made-up text with the fast kernel (float32) and with the reference that defines
    it (float64), the same draws in both, and compares both tables row by row. The tolerance is far
    above rounding, which grows as the later updates build on the earlier, and far below one update.
    """
    import numpy as np

    import firth

    chance = np.random.default_rng(1)
    words = [f"w{word}" for word in np.minimum(chance.zipf(1.5, 3000), 200)]
    text = [words[start : start + 50] for start in range(0, len(words), 50)]
    with tempfile.TemporaryDirectory() as folder:
        corpus = firth.Corpus.encode(text, min_count=1, cache=folder)
        for dim in dims:
            fast, exact = (
                firth.train(corpus, dim=dim, epochs=1, threads=1, device=device, keep_context=True)
                for device in ("cpu", "reference")
            )
            assert fast.context is not None and exact.context is not None
            for ours, theirs in ((fast, exact), (fast.context, exact.context)):
                worst = _worst_row(ours.vectors, theirs.vectors)
                if not worst <= tolerance:  # NaN is refused too
                    sys.exit(
                        f"bench: the correctness gate failed at dim {dim}: a row of the fast kernel is off "
                        f"by {worst:.2g} of its length (at most {tolerance:g}); no speed is printed"
                    )
    print("correctness gate passed: the fast kernel agrees with the reference", file=sys.stderr)


def _worst_row(ours: Any, theirs: Any) -> float:
    """The largest distance of two rows, as a share of the length of the second."""
    import numpy as np

    lengths = np.maximum(np.linalg.norm(theirs, axis=1), 1e-9)
    return float(np.max(np.linalg.norm(ours - theirs, axis=1) / lengths))


def peaks() -> dict[str, float]:
    """What one core does at best: ``gfma_s`` float32 multiply-adds in registers, ``copy_gb_s`` from memory.

    The best of five, each in CPU seconds: the faster of a Numba loop (a 4 x 3 block of dot products over rows
    that stay in the first cache; compilers take half of an AVX-512 register for it) and of torch's product
    of two 1,024 x 1,024 matrices; and a copy of 256 MB (bytes read plus bytes written).
    """
    import numba
    import numpy as np
    import torch

    @numba.njit(fastmath=True)
    def dots(a: Any, b: Any, times: int) -> Any:
        a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
        b0, b1, b2 = b[0], b[1], b[2]
        total = zero = np.float32(0)
        for _ in range(times):
            c0 = c1 = c2 = d0 = d1 = d2 = e0 = e1 = e2 = f0 = f1 = f2 = zero
            for place in range(a0.shape[0]):
                x, y, z = b0[place], b1[place], b2[place]
                p, q, r, t = a0[place], a1[place], a2[place], a3[place]
                c0, c1, c2 = c0 + p * x, c1 + p * y, c2 + p * z
                d0, d1, d2 = d0 + q * x, d1 + q * y, d2 + q * z
                e0, e1, e2 = e0 + r * x, e1 + r * y, e2 + r * z
                f0, f1, f2 = f0 + t * x, f1 + t * y, f2 + t * z
            total += c0 + c1 + c2 + d0 + d1 + d2 + e0 + e1 + e2 + f0 + f1 + f2
            a0[0] = total * np.float32(1e-20)  # each turn hangs on the last, none can be left out
        return total

    @numba.njit
    def copy(source: Any, target: Any) -> None:
        for place in range(source.shape[0]):
            target[place] = source[place]

    width, times = 512, 100_000
    a, b = np.ones((4, width), np.float32), np.ones((3, width), np.float32)
    source, target = np.ones(1 << 26, np.float32), np.zeros(1 << 26, np.float32)
    dots(a, b, 1)
    copy(source[:1], target[:1])
    multiplied, copied = [], []
    matrix, threads = torch.ones(1024, 1024), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.mm(matrix, matrix)
    for _ in range(5):
        began = time.thread_time()
        torch.mm(matrix, matrix)
        multiplied.append(1024**3 / (time.thread_time() - began) / 1e9)
        began = time.thread_time()
        dots(a, b, times)
        multiplied.append(12 * width * times / (time.thread_time() - began) / 1e9)
        began = time.thread_time()
        copy(source, target)
        copied.append(2 * source.nbytes / (time.thread_time() - began) / 1e9)
    torch.set_num_threads(threads)
    return {"gfma_s": max(multiplied), "copy_gb_s": max(copied)}
