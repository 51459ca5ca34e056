"""One training step of a large embedding table: firth's layers beside torch's and FBGEMM's.

    python bench/layer.py            # a table; --json prints one line for machines

A step is zero_grad, lookup, backward from a given gradient of the output, and the update. The table is
1,000,000 x 128 in float32, a batch 16,384 ids, uniform or Zipf (p ~ 1 / rank, ids shuffled). The tools
take turns within one process, in another order each round. A turn is two steps of a tool, as in training
one follows another, each with its own batch of the same draw. The second is timed: after the pause between
turns the first finds its code out of the caches and the core asleep, .6 ms whatever the tool. Printed are
medians of CPU ms (all threads together) and of wall ms, and the median over the rounds of the ratio of CPU
times. torch's dense Adam takes seconds a step and leaves the caches cold, so it takes two turns alone and is
set beside our median. Peak memory is that of a process of its own for each tool. What is not installed is
left out with a word.

The floor of a step is the bytes that must move, at the measured copy bandwidth: bytes read plus bytes
written, the median of eight copies of 256 MB, half before a case and half after it, for on a shared machine
it changes from minute to minute as the steps do. With U different rows among B ids, in rows::

    lookup U read, B written; backward B read, U read and written; state of adagrad 2 U, of adam 4 U;
    row-wise state: two cache lines of 64 bytes a row

Nothing is timed before every tool's step agrees with the definition in float64 on a small table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import common
from firth import nn
from firth.kernels import pages, rows_reference
from firth.kernels.rows_reference import Source, Update

ROWS, DIM, PLACES = 1_000_000, 128, 16_384
BAGS = 2_048
LR, EPS = 0.01, 1e-8
PAUSE = 0.01  # s before a turn: OpenMP's threads spin for some ms after their work, on the next one's account
BATCHES = 8  # different ones; together they touch more rows than the caches hold
Step = Callable[[Tensor, Tensor], object]  # ids, gradient of the output
BARS = {
    "torch SparseAdam": 4,
    "torch Adagrad": 3,
    "torch SGD": 1,
    "torch Adam": 200,
    "torch Adam fused": 80,
} | {f"FBGEMM EXACT_{name}": 3 for name in ("SGD", "ADAGRAD", "ROWWISE_ADAGRAD")}
"""How many times more CPU than ours each is wanted to take, at least."""


@dataclass(frozen=True)
class Tool:
    """One way to train a table: ``make(weight)`` gives the step that trains it in place."""

    name: str
    kind: str  # of rows_reference.KINDS: which definition it is held to
    make: Callable[[Tensor], Step]
    dense: bool = False  # moves every row, so it takes few turns


def recipes() -> dict[str, nn.recipes.Recipe]:
    return {
        "sgd": nn.SGD(lr=LR),
        "rowwise_adagrad": nn.RowWiseAdagrad(lr=LR, eps=EPS),
        "adagrad": nn.Adagrad(lr=LR, eps=EPS),
        "adam": nn.Adam(lr=LR, eps=EPS),
    }


def tools() -> list[Tool]:
    found = []
    optimizers: dict[str, dict[str, Any]] = {
        "sgd": {"firth RowSGD": nn.RowSGD, "torch SGD": torch.optim.SGD},
        "rowwise_adagrad": {"firth RowAdagrad rowwise": nn.RowAdagrad},
        "adagrad": {"firth RowAdagrad": nn.RowAdagrad, "torch Adagrad": torch.optim.Adagrad},
        "adam": {"firth RowAdam": nn.RowAdam, "torch SparseAdam": torch.optim.SparseAdam},
    }
    for kind, recipe in recipes().items():
        found.append(Tool(f"firth fused {type(recipe).__name__}", kind, _fused(recipe)))
        for name, optimizer in optimizers[kind].items():
            layer = nn.Embedding if name.startswith("firth") else torch.nn.Embedding
            extra = {} if kind == "sgd" else {"eps": EPS}
            extra |= {"rowwise": True} if name.endswith("rowwise") else {}
            found.append(Tool(name, kind, _optimized(layer, optimizer, sparse=True, **extra)))
    found += [
        Tool("torch Adam", "adam", _optimized(torch.nn.Embedding, torch.optim.Adam, eps=EPS), dense=True),
        Tool(
            "torch Adam fused",
            "adam",
            _optimized(torch.nn.Embedding, torch.optim.Adam, eps=EPS, fused=True),
            dense=True,
        ),
    ]
    if importlib.util.find_spec("fbgemm_gpu") is not None:
        names = {"sgd": "EXACT_SGD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD", "adagrad": "EXACT_ADAGRAD"}
        found += [Tool(f"FBGEMM {name}", kind, _fbgemm(name)) for kind, name in names.items()]
    return found


def _fused(recipe: nn.recipes.Recipe) -> Callable[[Tensor], Step]:
    def make(weight: Tensor) -> Step:
        layer = nn.Embedding(*weight.shape, _weight=weight, fused=recipe)
        return lambda ids, grad: layer(ids).backward(grad)

    return make


def _optimized(layer_class: Any, optimizer_class: Any, sparse: bool = False, **settings: Any) -> Any:
    def make(weight: Tensor) -> Step:
        layer = layer_class(*weight.shape, _weight=weight, sparse=sparse)
        optimizer = optimizer_class(layer.parameters(), lr=LR, **settings)

        def step(ids: Tensor, grad: Tensor) -> None:
            optimizer.zero_grad()
            layer(ids).backward(grad)
            optimizer.step()

        return step

    return make


def _fbgemm(name: str) -> Callable[[Tensor], Step]:
    def make(weight: Tensor) -> Step:
        from fbgemm_gpu import split_table_batched_embeddings_ops_training as training
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode

        table = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(*weight.shape, EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
            optimizer=EmbOptimType[name],
            learning_rate=LR,
            eps=EPS,
            pooling_mode=PoolingMode.NONE,
        )
        table.split_embedding_weights()[0].copy_(weight)

        def step(ids: Tensor, grad: Tensor) -> None:
            table(ids, torch.arange(len(ids) + 1)).backward(grad)
            if len(weight) < ROWS:
                weight.copy_(table.split_embedding_weights()[0])  # for the gate

        return step

    return make


# --- batches, time, bandwidth -------------------------------------------------------------------


def batches(draw: str, n_rows: int, n_places: int, n: int = BATCHES) -> list[Tensor]:
    """``n`` batches of ids, int64 (n_places,)."""
    generator = torch.Generator().manual_seed(1)
    if draw == "uniform":
        return [torch.randint(0, n_rows, (n_places,), generator=generator) for _ in range(n)]
    bounds = torch.cumsum(1 / torch.arange(1, n_rows + 1, dtype=torch.float64), 0)
    shuffled = torch.randperm(n_rows, generator=generator)
    drawn = torch.rand((n, n_places), generator=generator, dtype=torch.float64) * bounds[-1]
    return list(shuffled[torch.searchsorted(bounds, drawn).clamp_(max=n_rows - 1)])


def in_turns(works: dict[str, Callable[[int], object]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU and wall ms of each work in each round; a work is given the number of a batch."""
    found: dict[str, dict[str, list[float]]] = {name: {"cpu_ms": [], "wall_ms": []} for name in works}
    order, chance = list(works), random.Random(1)
    for turn in range(-1, rounds):  # the first one warms up
        chance.shuffle(order)
        for place, name in enumerate(order):
            time.sleep(PAUSE)
            works[name]((turn * 3 + place + 1) % BATCHES)
            cpu, wall = common.cpu_seconds_now(), time.perf_counter()
            works[name]((turn * 3 + place) % BATCHES)
            took = time.perf_counter() - wall
            times = (common.cpu_seconds_now() - cpu) * 1e3, took * 1e3
            if turn >= 0:
                for key, value in zip(found[name], times, strict=True):
                    found[name][key].append(value)
    return found


def summary(found: dict[str, dict[str, list[float]]], ours: str) -> dict[str, dict[str, float]]:
    """Medians, the best wall time, and how many times more CPU each takes than ``ours`` in the same round."""
    return {
        name: {
            "cpu_ms": statistics.median(times["cpu_ms"]),
            "wall_ms": statistics.median(times["wall_ms"]),
            "best_wall_ms": min(times["wall_ms"]),
            "over_ours": statistics.median(
                theirs / own for theirs, own in zip(times["cpu_ms"], found[ours]["cpu_ms"], strict=True)
            ),
        }
        for name, times in found.items()
    }


def copies(n: int = 4) -> list[float]:
    """GB/s read plus written by copies of 256 MB with as many threads as torch uses now."""
    source, target = torch.ones(1 << 26), torch.zeros(1 << 26)
    found = []
    for _ in range(n):
        began = time.perf_counter()
        target.copy_(source)
        found.append(2 * source.nbytes / (time.perf_counter() - began) / 1e9)
    return found


def must_move(kind: str, ids: list[Tensor]) -> float:
    """Bytes of a step, the mean over these batches."""
    used = statistics.mean(len(batch.unique()) for batch in ids)
    state = {"sgd": 0.0, "rowwise_adagrad": 128.0, "adagrad": 2.0 * DIM * 4, "adam": 4.0 * DIM * 4}[kind]
    return (3 * used + 2 * len(ids[0])) * DIM * 4 + used * state


# --- the gate -----------------------------------------------------------------------------------


def gate(tools: list[Tool]) -> None:
    """Stop where a tool's steps are not those of the definition: no speed is printed for wrong work."""
    n_rows, dim, n_places = 500, 100, 2000
    for tool in tools:
        weight = torch.randn(n_rows, dim, generator=torch.Generator().manual_seed(2))
        expected, state = weight.double(), {}
        for name, shape in rows_reference.state_shapes(tool.kind, n_rows, dim, 0.0).items():
            state[name] = torch.zeros(shape, dtype=torch.float64)
        step = tool.make(weight)
        every_row = torch.arange(n_rows if tool.dense else 0)  # what moves every row must use every row
        for number, drawn in enumerate(batches("zipf", n_rows, n_places, 3), start=1):
            ids = torch.cat([drawn, every_row])
            grad = torch.randn(len(ids), dim, generator=torch.Generator().manual_seed(number))
            step(ids, grad)
            groups = rows_reference.group(ids, n_rows)
            update = Update(tool.kind, LR, eps=EPS, step=number)
            rows_reference.update(expected, state, groups, Source(grad.double()), update, False)
        lengths = expected.norm(dim=1)
        worst = float(((weight.detach().double() - expected).norm(dim=1) / lengths).max())
        if not worst <= 1e-4:  # NaN is refused too
            sys.exit(
                f"bench: the correctness gate failed: a row of {tool.name} is off by {worst:.2g} of its "
                f"length (at most 1e-4); no speed is printed"
            )
    print("correctness gate passed: every tool's steps agree with the definition", file=sys.stderr)


# --- steps --------------------------------------------------------------------------------------


def table_of(tool: Tool, n_rows: int = ROWS, dim: int = DIM) -> Tensor:
    """A table not yet filled, as the tool's own layer would get it: firth's are on huge pages."""
    shape = (n_rows, dim)
    return pages.empty(shape, torch.float32) if tool.name.startswith("firth") else torch.empty(shape)


def measure_steps(tools: list[Tool], threads: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """One case for each kind, draw and number of threads; few rounds for what moves every row."""
    grads = [torch.randn(PLACES, DIM) for _ in range(BATCHES)]
    for kind in dict.fromkeys(tool.kind for tool in tools):
        sparse = [tool for tool in tools if tool.kind == kind and not tool.dense]
        dense = [[tool] for tool in tools if tool.kind == kind and tool.dense]
        ours: dict[tuple[str, int], float] = {}
        for together in [sparse, *dense]:
            few = any(tool.dense for tool in together)
            steps = {tool.name: tool.make(table_of(tool).normal_()) for tool in together}
            for draw in ("zipf",) if few else ("zipf", "uniform"):
                ids = batches(draw, ROWS, PLACES)
                for n_threads in threads:
                    print(f"{kind}, {draw}, {n_threads} thread(s)", file=sys.stderr)
                    torch.set_num_threads(n_threads)
                    works = {
                        name: lambda turn, step=step, ids=ids: step(ids[turn], grads[turn])
                        for name, step in steps.items()
                    }
                    copied = copies()
                    found = in_turns(works, 2 if few else rounds)
                    copied += copies()
                    bandwidth, bytes_moved = statistics.median(copied), must_move(kind, ids)
                    case = {"kind": kind, "draw": draw, "threads": n_threads}
                    case |= {"copy_gb_s": bandwidth, "best_copy_gb_s": max(copied)}
                    case |= {"must_move_bytes": bytes_moved, "floor_ms": bytes_moved / bandwidth / 1e6}
                    times = summary(found, together[0].name)
                    row = times[together[0].name]
                    if few:
                        row["over_ours"] = row["cpu_ms"] / ours[draw, n_threads]
                    else:
                        ours[draw, n_threads] = row["cpu_ms"]
                    yield case | {"tools": times}
            del steps  # the tables of one kind at a time


# --- lookups and bags ---------------------------------------------------------------------------


def measure_lookups(threads: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """Forward alone: the layer, torch's layer, a bare gather into a reused buffer, and max_norm."""
    ours, theirs = pages.empty((ROWS, DIM), torch.float32).normal_(), torch.randn(ROWS, DIM)
    out = torch.empty(PLACES, DIM)
    layers = {
        "firth Embedding": nn.Embedding(ROWS, DIM, _weight=ours),
        "torch Embedding": torch.nn.Embedding(ROWS, DIM, _weight=theirs),
        "firth max_norm": nn.Embedding(ROWS, DIM, max_norm=100.0, _weight=ours),
        "torch max_norm": torch.nn.Embedding(ROWS, DIM, max_norm=100.0, _weight=theirs),
    }
    for draw in ("zipf", "uniform"):
        ids = batches(draw, ROWS, PLACES)
        works: dict[str, Callable[[int], object]] = {
            name: lambda turn, layer=layer, ids=ids: layer(ids[turn]) for name, layer in layers.items()
        }
        works["bare gather"] = lambda turn, ids=ids: torch.index_select(theirs, 0, ids[turn], out=out)
        for name in ("Embedding", "max_norm"):
            if not torch.equal(layers[f"firth {name}"](ids[0]), ours[ids[0]]):
                sys.exit(f"bench: firth's lookup with {name} is wrong; no speed is printed")
        for n_threads in threads:
            torch.set_num_threads(n_threads)
            found = summary(in_turns(works, rounds), "firth Embedding")
            yield {"draw": draw, "threads": n_threads, "tools": found}


def measure_bags(threads: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """2,048 bags of 8 ids: forward in every mode, with padding and max_norm; backward to sparse gradients.

    The gradient of ``max`` is dense in torch; it is measured on a table of 100,000 rows.
    """
    ids = [batch.view(BAGS, -1) for batch in batches("zipf", ROWS, PLACES)]
    few_ids = [batch % 100_000 for batch in ids]
    grad, factor = torch.randn(BAGS, DIM), torch.randn(BAGS, PLACES // BAGS)
    tables = pages.empty((ROWS, DIM), torch.float32).normal_(), torch.randn(ROWS, DIM)
    few_tables = [table[:100_000] for table in tables]
    padding = {"padding_idx": int(ids[0][0, 0])}
    cases: list[tuple[str, str, dict[str, Any], bool]] = [
        (mode + name, mode, extra, False)
        for mode in ("sum", "mean", "max")
        for name, extra in (("", {}), (", padding_idx", padding), (", max_norm", {"max_norm": 100.0}))
    ]
    cases += [("weighted sum", "sum", {}, False)]
    cases += [(f"{mode}, backward", mode, {"sparse": mode != "max"}, True) for mode in ("sum", "mean", "max")]
    cases += [("weighted sum, backward", "sum", {"sparse": True}, True)]
    for name, mode, extra, backward in cases:
        is_few = name == "max, backward"
        layers = [
            cls(*table.shape, mode=mode, _weight=table, **extra)
            for cls, table in zip(
                (nn.EmbeddingBag, torch.nn.EmbeddingBag), few_tables if is_few else tables, strict=True
            )
        ]
        weights = factor if name.startswith("weighted") else None

        def work(
            turn: int, layer: Any, is_few: bool = is_few, weights: Any = weights, back: bool = backward
        ) -> Any:
            bags = layer((few_ids if is_few else ids)[turn], per_sample_weights=weights)
            if back:
                layer.weight.grad = None
                bags.backward(grad)
            return bags

        check = layers[0](few_ids[0] if is_few else ids[0], per_sample_weights=weights)
        with torch.no_grad():
            layers[1].weight.copy_(layers[0].weight)
        if not torch.allclose(
            check, layers[1](few_ids[0] if is_few else ids[0], per_sample_weights=weights), atol=1e-4
        ):
            sys.exit(f"bench: firth's bag, {name}, is wrong; no speed is printed")
        works = {
            f"{who}": lambda turn, layer=layer, work=work: work(turn, layer)
            for who, layer in zip(("firth", "torch"), layers, strict=True)
        }
        for n_threads in threads:
            torch.set_num_threads(n_threads)
            yield {"case": name, "threads": n_threads, "tools": summary(in_turns(works, rounds), "firth")}


# --- memory -------------------------------------------------------------------------------------


def train_alone(name: str, n_rows: int, dim: int) -> None:
    """A few steps of one tool, for a process whose memory is measured; prints its CPU and wall ms."""
    torch.set_num_threads(2)
    tool = next(tool for tool in tools() if tool.name == name)
    step = tool.make(table_of(tool, n_rows, dim).fill_(0.1))
    ids = batches("zipf", n_rows, PLACES)
    grad = torch.randn(PLACES, dim)
    rounds = 20 if n_rows > ROWS else 2
    times = in_turns({name: lambda turn: step(ids[turn], grad)}, rounds)
    print(json.dumps(summary(times, name)[name]))


def measure_memory(tools: list[Tool]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--alone"]
    base = common.run([*command, "nothing"]).peak_bytes
    found: dict[str, Any] = {"imports_bytes": base}
    for tool in tools:
        print(f"memory: {tool.name}", file=sys.stderr)
        found[tool.name] = common.run([*command, tool.name]).peak_bytes - base
    return found


def measure_large(names: list[str]) -> dict[str, Any]:
    """10,000,000 x 64: peak memory and ms a step with two threads, Zipf."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--alone", name, "--rows", "10000000", "--dim", "64"]
        run = common.run(command)
        found[name] = run.report | {"peak_bytes": run.peak_bytes}
    return found


# --- report -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only", nargs="+", default=["steps", "lookups", "bags", "memory", "large"],
        choices=["steps", "lookups", "bags", "memory", "large"],
    )  # fmt: skip
    parser.add_argument("--no-dense", action="store_true", help="leave torch's dense Adam out")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, default=DIM, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.alone:
        if settings.alone != "nothing":
            train_alone(settings.alone, settings.rows, settings.dim)
        return
    print(json.dumps(measure(settings))) if settings.json else _print(measure(settings))


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    # torch warns once that sparse tensors are not checked; said here, it does not.
    torch.sparse.check_sparse_tensor_invariants.disable()
    chosen = [tool for tool in tools() if not (tool.dense and settings.no_dense)]
    if not any(tool.name.startswith("FBGEMM") for tool in chosen):
        print("bench: FBGEMM is left out, it is not installed (fbgemm-gpu-cpu)", file=sys.stderr)
    gate(chosen)
    report: dict[str, Any] = {
        "machine": common.machine(),
        "torch": torch.__version__,
        "table": [ROWS, DIM],
        "places": PLACES,
    }
    if "memory" in settings.only:
        report["memory"] = measure_memory(chosen)
    if "large" in settings.only:
        report["large"] = measure_large(["firth fused SGD", "firth fused RowWiseAdagrad", "firth fused Adam"])
    if "steps" in settings.only:
        report["steps"] = list(measure_steps(chosen, settings.threads, settings.rounds))
    if "lookups" in settings.only:
        report["lookups"] = list(measure_lookups(settings.threads, settings.rounds))
    if "bags" in settings.only:
        report["bags"] = list(measure_bags(settings.threads, settings.rounds))
    return report


def _print(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; torch {report['torch']}")
    print(f"table {report['table']}, {report['places']} ids")
    head = f"{'CPU ms':>9} {'wall ms':>9} {'best':>9} {'x ours':>8}"
    for case in report.get("steps", []):
        print(
            f"\n{case['kind']}, {case['draw']}, {case['threads']} thread(s); floor {case['floor_ms']:.2f} ms "
            f"at {case['copy_gb_s']:.1f} GB/s (best copy {case['best_copy_gb_s']:.1f})"
        )
        print(f"  {'':<28} {head}  over floor")
        for name, row in case["tools"].items():
            bar = BARS.get(name)
            note = f"  (bar {bar})" if bar else ""
            print(f"  {name:<28} {_row(row)} {row['wall_ms'] / case['floor_ms']:>8.2f}{note}")
    for key in ("lookups", "bags"):
        for case in report.get(key, []):
            label = case.get("case", case.get("draw"))
            print(f"\n{key}: {label}, {case['threads']} thread(s)\n  {'':<28} {head}")
            for name, row in case["tools"].items():
                print(f"  {name:<28} {_row(row)}")
    for name, value in report.get("memory", {}).items():
        print(f"memory  {name:<28} {value / 1e6:>9.0f} MB")
    for name, row in report.get("large", {}).items():
        print(
            f"10,000,000 x 64  {name:<28} {row['cpu_ms']:.2f} CPU ms, {row['wall_ms']:.2f} wall ms, "
            f"{row['peak_bytes'] / 1e9:.2f} GB"
        )


def _row(row: dict[str, float]) -> str:
    return (
        f"{row['cpu_ms']:>9.3f} {row['wall_ms']:>9.3f} {row['best_wall_ms']:>9.3f} {row['over_ours']:>7.1f}x"
    )


if __name__ == "__main__":
    main()
