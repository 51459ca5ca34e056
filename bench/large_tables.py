"""Large tables: memory and time of a table in a file, of rows in one or two bytes, of rows over processes.

::

    python bench/large_tables.py [--folder DIR]

Prints the figures of docs/large-tables.md; half a minute, 1.1 GB of disk, 1.5 GB of memory. Every part runs
in a process of its own. Memory is what the process holds beyond what it held before: private (RssAnon, what
the system cannot take back), or at most during a step (VmHWM, the file's pages included).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, DIM, IDS, STEPS = 2_000_000, 64, 16_384, 20
SHARED_ROWS, PROCESSES = 1_000_000, 2
MB = 1e6


def status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def median_ms(step: Callable[[], object], steps: int = STEPS) -> float:
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def peak_of(step: Callable[[], object]) -> float:
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step()
    return (status("VmHWM") - before) / MB


def stepper(layer: Any, rows: int) -> Callable[[], None]:
    import torch

    def step() -> None:
        layer(torch.randint(rows, (IDS,))).sum().backward()

    return step


def storage(path: str | None) -> dict[str, float]:
    import torch

    from firth import nn

    torch.set_num_threads(1)
    stepper(nn.Embedding(100, DIM, fused=nn.Adagrad()), 100)()  # compiled
    before, began = status("RssAnon"), time.perf_counter()
    layer = nn.Embedding(ROWS, DIM, fused=nn.Adagrad(), storage=path)
    made = time.perf_counter() - began
    step = stepper(layer, ROWS)
    for _ in range(STEPS):
        step()
    found = {"made s": made, "step ms": median_ms(step, 5 * STEPS)}
    found["private MB"] = (status("RssAnon") - before) / MB
    if layer.file is not None:
        began = time.perf_counter()
        layer.file.flush()
        found["flush s"] = time.perf_counter() - began
        found["file MB"] = os.path.getsize(str(path)) / MB
    return found


def quantized(kind: str | None) -> dict[str, float]:
    import torch

    from firth import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.Embedding(ROWS, DIM)
    layer.weight.requires_grad_(False)
    small = layer if kind is None else nn.QuantizedEmbedding.from_float(layer, kind)
    ids = torch.randint(ROWS, (IDS,))
    exact = layer(ids)
    sizes = sum(one.nbytes for one in small.state_dict().values())
    off = (small(ids) - exact).abs()
    query = torch.randn(DIM)
    dots = ((small(ids) - exact) @ query).abs()
    return {
        "table MB": sizes / MB,
        "largest error": float(off.max()),
        "mean error of a dot product": float(dots.mean()),
        "lookup ms": median_ms(lambda: small(torch.randint(ROWS, (IDS,))), 5 * STEPS),
    }


def sharded(job: tuple[str, int, str]) -> dict[str, float]:
    kind, rank, store = job
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    from torch import distributed as dist
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    from firth import nn

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    if kind == "ours":
        layer: Any = nn.ShardedEmbedding(SHARED_ROWS, DIM, fused=nn.Adagrad())
        step = stepper(layer, SHARED_ROWS)
    else:
        plan = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
        mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu")
        layer = parallelize_module(nn.Embedding(SHARED_ROWS, DIM), mesh, plan)
        optimizer = torch.optim.Adagrad(layer.parameters(), lr=0.01)

        def step() -> None:
            torch.manual_seed(0)  # Replicate: every process gives the same ids
            layer(torch.randint(SHARED_ROWS, (PROCESSES * IDS,))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    step()
    found = {"most MB in a step": peak_of(step)}
    steps = 5 * STEPS if kind == "ours" else 5
    found["step ms"] = median_ms(step, steps)
    held = layer.weight if kind == "ours" else layer.weight.to_local()
    found["weight MB"] = held.numel() * 4 / MB
    dist.destroy_process_group()
    return found


def report(name: str, found: dict[str, float]) -> None:
    print(f"{name:34}", "  ".join(f"{what} {value:,.4g}" for what, value in found.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", help="where the table file goes; default: the temporary folder")
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        path = str(Path(folder) / "table.bin")
        for name, place in (
            ("Adagrad, in memory", None),
            ("in a new file", path),
            ("in that file again", path),
        ):
            with start.Pool(1) as pool:
                report(name, pool.apply(storage, (place,)))
        for kind in (None, "float16", "int8"):
            with start.Pool(1) as pool:
                report(f"lookups, {kind or 'float32'}", pool.apply(quantized, (kind,)))
        for kind in ("ours", "torch"):
            jobs = [(kind, rank, str(Path(folder) / f"store-{kind}")) for rank in range(PROCESSES)]
            with start.Pool(PROCESSES) as pool:
                for rank, found in enumerate(pool.map(sharded, jobs, chunksize=1)):
                    report(f"{kind}, process {rank} of {PROCESSES}", found)


if __name__ == "__main__":
    main()
