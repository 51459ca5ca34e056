"""Exact nearest neighbours: firth against a plain torch matrix product and ``topk``.

    python bench/search.py

The 10 best of 100,000 rows of 128 numbers for each of 1,000 queries, all in one call. Rows and
queries are random and of length one, so that products are cosines and one answer is right for all:
``firth.search.top_k``, ``Vectors.nearest`` and ``torch.topk(queries @ matrix.T, 10)``.

Each measurement is a process of its own, told how many threads to use; the tools take turns, round
after round. A process makes one call that is not counted and then a few that are; its figure is their
median, and what is printed is the median over the rounds and that of the ratios within a round.

No speed is printed unless all answers are those of a float64 product, up to scores that are equal
to rounding. The exit code is 1 where firth is slower than torch by more than ``--slack``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import common

TOPN = 10
TOOLS = ("firth top_k", "firth nearest", "torch")
CALLS = 3  # timed in each process
EQUAL = 1e-6  # cosines this close are one to float32 sums of 128 products
MEASURES = {"cpu_s": "CPU", "wall_s": "wall"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slack", type=float, default=0.1, help="how much slower than torch is noise")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    # How a child process is told its part.
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.tool:
        return _measure(settings.tool, settings.folder, settings.threads[0])

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        matrix, queries = _data(settings.rows, settings.queries, settings.dim)
        np.save(folder / "matrix.npy", matrix)
        np.save(folder / "queries.npy", queries)
        cases = [_case(folder, threads, settings.rounds) for threads in settings.threads]
        best = best_scores(matrix, queries)
        for tool in TOOLS:
            for threads in settings.threads:
                gate(tool, np.load(folder / f"{tool}.{threads}.npy"), matrix, queries, best)
    report = {
        "machine": common.machine(),
        "sizes": {name: getattr(settings, name) for name in ("rows", "dim", "queries", "rounds")},
        "cases": cases,
    }
    print(json.dumps(report, indent=1)) if settings.json else _print(report)
    slower = [
        f"{tool} takes {ratio:.2f} times torch's {MEASURES[measure]} seconds with {case['threads']} threads"
        for case in cases
        for tool, ratios in case["over_torch"].items()
        for measure, ratio in ratios.items()
        if ratio > 1 + settings.slack
    ]
    if slower:
        sys.exit(f"bench: {'; '.join(slower)}")


def _data(rows: int, queries: int, dim: int) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    tables = (random.standard_normal((count, dim), np.float32) for count in (rows, queries))
    matrix, asked = (table / np.linalg.norm(table, axis=1, keepdims=True) for table in tables)
    return matrix, asked


def best_scores(matrix: Any, queries: Any) -> Any:
    """(Q, 10) float64: the greatest products of each query, falling."""
    rows, best = matrix.astype(np.float64).T, np.empty((len(queries), TOPN))
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100].astype(np.float64) @ rows
        best[start : start + 100] = np.sort(np.partition(scores, -TOPN)[:, -TOPN:])[:, ::-1]
    return best


def gate(tool: str, ids: Any, matrix: Any, queries: Any, best: Any) -> None:
    """Stop the bench where ``ids`` (Q, 10) are not the rows of the ``best`` scores; equal ones may swap."""
    scores = np.einsum("qkd,qd->qk", matrix[ids].astype(np.float64), queries.astype(np.float64))
    twice = (np.diff(np.sort(ids), axis=1) == 0).any()
    if twice or not np.abs(scores - best).max() <= EQUAL:  # NaN is refused too
        sys.exit(f"bench: the answers of {tool} are not the best rows; no speed is printed")


def _case(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    command = [sys.executable, __file__, "--folder", folder, "--threads", str(threads)]
    for number in range(rounds):
        print(f"{threads} thread(s), round {number + 1}", file=sys.stderr)
        for tool, runs in found.items():
            runs.append(common.run([*command, "--tool", tool], common.thread_settings(threads)).report)
    return {
        "threads": threads,
        "tools": {
            tool: {measure: statistics.median(run[measure] for run in runs) for measure in MEASURES}
            for tool, runs in found.items()
        },
        "over_torch": {
            tool: {
                measure: statistics.median(
                    ours[measure] / theirs[measure] for ours, theirs in zip(runs, found["torch"], strict=True)
                )
                for measure in MEASURES
            }
            for tool, runs in found.items()
            if tool != "torch"
        },
    }


def _measure(tool: str, folder: Path, threads: int) -> None:
    """The child process: time one tool, leave its answers in ``folder`` and print the seconds."""
    matrix, queries = np.load(folder / "matrix.npy"), np.load(folder / "queries.npy")
    call = _caller(tool, matrix, queries, threads)
    np.save(folder / f"{tool}.{threads}.npy", call())
    seconds: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for _ in range(CALLS):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        seconds["cpu_s"].append(time.process_time() - cpu)
        seconds["wall_s"].append(time.perf_counter() - wall)
    print(json.dumps({measure: statistics.median(values) for measure, values in seconds.items()}))


def _caller(tool: str, matrix: Any, queries: Any, threads: int) -> Callable[[], Any]:
    if tool == "torch":
        import torch

        torch.set_num_threads(threads)
        table, asked = torch.from_numpy(matrix), torch.from_numpy(queries)

        def by_torch() -> Any:
            return torch.topk(asked @ table.T, TOPN).indices.numpy()

        return by_torch
    if tool == "firth nearest":
        import firth

        vectors = firth.Vectors([f"key {row}" for row in range(len(matrix))], matrix)
        return lambda: vectors.nearest(queries, TOPN)[0]
    from firth.search import top_k

    return lambda: top_k(queries, matrix, TOPN)[0]


def _print(report: dict[str, Any]) -> None:
    sizes = report["sizes"]
    print(report["machine"])
    print(
        f"top {TOPN} of {sizes['queries']:,} queries in {sizes['rows']:,} x {sizes['dim']}, "
        f"{sizes['rounds']} rounds, median"
    )
    print(f"{'threads':>7}  {'tool':<14} {'CPU s':>7} {'wall s':>7}   over torch: CPU, wall")
    for case in report["cases"]:
        for tool, row in case["tools"].items():
            ratios = case["over_torch"].get(tool, {}).values()
            print(
                f"{case['threads']:>7}  {tool:<14} {row['cpu_s']:>7.3f} {row['wall_s']:>7.3f}   "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}"
            )


if __name__ == "__main__":
    main()
