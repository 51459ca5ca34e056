"""Training steps of one table on a CUDA card: fused layers against torch's sparse optimisers.

    python bench/layer_gpu.py                                    tables of 1,000,000 and 10,000,000 x 128
    python bench/layer_gpu.py --size 1000000x64x16384 --json     rows x dim x ids a step; one line of JSON

A step is forward, backward from a given output gradient, and the update; for torch also zero_grad. Both
take the same batches in turns, in one process, and are timed by CUDA events, median of many. Before that
both train the same table for three steps, and the rows must agree, or nothing is timed. "of copy" is the
time that the bytes which must move would take at the bandwidth of a copy on this card, by the time of
the step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firth import nn
from firth.kernels import rows

SIZES = ("1000000x128x16384", "10000000x128x262144")
BATCHES = 8  # different ones in turns, so that the rows of a batch are not in the cache from the last
STEPS = 60
WARM_UP = 10


@dataclass(frozen=True)
class Kind:
    """A recipe, torch's optimiser of the same mathematics, and the tables of state."""

    recipe: Callable[[], Any]
    rival: Callable[[Any], torch.optim.Optimizer] | None
    states: int
    row_states: int = 0


KINDS = {
    "sgd": Kind(lambda: nn.SGD(lr=0.1), lambda params: torch.optim.SGD(params, lr=0.1), 0),
    "rowwise_adagrad": Kind(lambda: nn.RowWiseAdagrad(lr=0.1), None, 0, 1),
    "adagrad": Kind(lambda: nn.Adagrad(lr=0.1), lambda params: torch.optim.Adagrad(params, lr=0.1), 1),
    "adam": Kind(lambda: nn.Adam(lr=0.001), lambda params: torch.optim.SparseAdam(params, lr=0.001), 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--size", action="append", help="rows x dim x ids, e.g. 1000000x128x16384; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON only")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/layer_gpu.py: torch sees no CUDA card here, nothing was measured")
    if not rows.pick(torch.zeros(1, 1, device="cuda")).__name__.endswith("rows_gpu"):
        sys.exit("bench/layer_gpu.py: Triton is not installed, nothing was measured: pip install triton")
    say = (lambda *_: None) if options.json else print
    copy = copy_bandwidth()
    card = torch.cuda.get_device_name()
    say(f"{card}, torch {torch.__version__}, copies at {copy / 1e9:,.0f} GB/s (read and written)")
    say(f"{'table':>16} {'ids':>8} {'drawn':>8} {'kind':<16} {'firth ms':>9} {'of copy':>8} {'torch ms':>9}")
    results = []
    for size in options.size or SIZES:
        n_rows, dim, n_ids = (int(part) for part in size.split("x"))
        for drawn in ("uniform", "zipf"):
            for name, kind in KINDS.items():
                need = 4 * n_rows * dim * (2 + 2 * kind.states) + 16 * 4 * n_ids * dim
                label = f"{n_rows:>10,} x {dim:<3} {n_ids:>8,} {drawn:>8} {name:<16}"
                if need > torch.cuda.mem_get_info()[0]:
                    say(f"{label} needs {need / 1e9:.0f} GB")
                    continue
                result = compare(kind, n_rows, dim, n_ids, drawn, copy)
                case = {"rows": n_rows, "dim": dim, "ids": n_ids, "drawn": drawn, "kind": name}
                results.append(case | result)
                rival = f"{result['torch_ms']:9.3f}" if result["torch_ms"] else f"{'-':>9}"
                say(f"{label} {result['firth_ms']:9.3f} {result['of_copy']:8.0%} {rival}")
                torch.cuda.empty_cache()
    if options.json:
        print(json.dumps({"card": card, "copy_gb_s": round(copy / 1e9), "results": results}))


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 1 GiB within the card's memory."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    took = timed([lambda: target.copy_(source)], 20)[0]
    return 2 * 4 * source.numel() / (took / 1e3)


def timed(steps: list[Callable[[], object]], times: int) -> list[float]:
    """Median milliseconds of each, taken in turns."""
    took: list[list[float]] = [[] for _ in steps]
    for turn in range(WARM_UP + times):
        for step, list_of_ms in zip(steps, took, strict=True):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            step()
            end.record()
            end.synchronize()
            if turn >= WARM_UP:
                list_of_ms.append(begin.elapsed_time(end))
    return [statistics.median(one) for one in took]


def batches(n_rows: int, n_ids: int, drawn: str) -> list[Tensor]:
    """Ids of several mini-batches; Zipf: the r-th most frequent id comes with probability ~ 1 / r."""
    if drawn == "uniform":
        return [torch.randint(n_rows, (n_ids,), device="cuda") for _ in range(BATCHES)]
    chance = torch.cumsum(1 / torch.arange(1, n_rows + 1, dtype=torch.float64, device="cuda"), 0)
    which = torch.randperm(n_rows, device="cuda")
    draws = [torch.rand(n_ids, dtype=torch.float64, device="cuda") * chance[-1] for _ in range(BATCHES)]
    return [which[torch.searchsorted(chance, one).clamp_(max=n_rows - 1)] for one in draws]


def compare(kind: Kind, n_rows: int, dim: int, n_ids: int, drawn: str, copy: float) -> dict[str, Any]:
    """Check, then time, one kind on one size."""
    torch.manual_seed(0)
    ids = batches(n_rows, n_ids, drawn)
    grad = torch.randn(n_ids, dim, device="cuda")
    table = torch.randn(n_rows, dim, device="cuda")
    ours = stepper(nn.Embedding(n_rows, dim, _weight=table.clone(), fused=kind.recipe()), None, ids, grad)
    steps = [ours]
    if kind.rival is not None:
        layer = torch.nn.Embedding(n_rows, dim, sparse=True, _weight=table)
        steps.append(stepper(layer, kind.rival(layer.parameters()), ids, grad))
    if len(steps) > 1:
        check(steps, ids)
    took = timed(steps, STEPS)
    used = statistics.mean(len(torch.unique(one)) for one in ids)
    row = 4 * dim
    must_move = used * row * (3 + 2 * kind.states) + 2 * n_ids * row + used * 64 * kind.row_states
    return {
        "firth_ms": took[0],
        "torch_ms": took[1] if len(took) > 1 else None,
        "of_copy": must_move / copy * 1e3 / took[0],
    }


def stepper(
    layer: torch.nn.Embedding, optimizer: torch.optim.Optimizer | None, ids: list[Tensor], grad: Tensor
) -> Callable[[], Tensor]:
    """A function that does one step with the next batch and returns the weights."""
    turn = 0

    def step() -> Tensor:
        nonlocal turn
        layer(ids[turn % len(ids)]).backward(grad)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        turn += 1
        return layer.weight.detach()

    return step


def check(steps: list[Callable[[], Tensor]], ids: list[Tensor]) -> None:
    """Three steps of each from the same table: the rows used must agree.

    To rounding, but for a few elements of Adam whose gradients cancel and whose sign rounding decides.
    """
    for turn in range(3):
        ours, theirs = (step()[ids[turn]] for step in steps)
        apart = (ours - theirs).abs()
        off = (apart > 1e-4 * (1 + theirs.abs())).double().mean().item()
        if not (off < 1e-3 and apart.mean().item() < 1e-5):
            sys.exit(
                f"bench/layer_gpu.py: results differ (mean {apart.mean():.2e}, {off:.2%} off): not timed"
            )


if __name__ == "__main__":
    main()
