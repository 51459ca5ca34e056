"""Words per CPU second of skip-gram training: firth, gensim (``corpus_file``) and fastText.

    python bench/speed.py --rival-python build/rivals/bin/python

Each run is a process of its own; the tools take turns, round after round, so that what else the
machine does falls on all alike, and what is printed is the median of the rounds and of the ratios
within a round. Counted are CPU seconds of training alone, all threads together (compiling and
reading left out), and raw words of the vocabulary (words that subsampling skips are counted, words
under min_count are not). Settings: window 5, 5 negatives, sample 1e-3, min_count 5, one epoch.

No speed is printed unless firth's kernels agree with their reference first.

The shares of the core's peak are arithmetic, not counters, and counted twice.

"useful" is the algorithm as published: a kept word meets window + 1 contexts on average and takes

    3 * (window + 1) * (negatives + 1) * dim    multiply-adds, and
    (negatives + 2) * dim * 4 * 2               bytes, its rows read and written back.

"computed" is what the kernel does: ``share`` kept words in a row are a group, share ``drawn`` negatives
and meet the ``span`` contexts that any of their windows reaches, in three full matrix products (scores,
both updates) of rows padded to 16 numbers. A group takes

    3 * span * (share + drawn) * padded_dim     multiply-adds, and
    (2 * share + drawn) * padded_dim * 4 * 2    bytes: a context and a centre row a word, the negatives,

with span = share + 2 * overhang, how far the windows reach beyond the group on each side: the sum over
m = 0 .. window - 1 of 1 - product over i = 0 .. share - 1 of min(1, (m + i) / window), for the window of
the i-th word from the border ends within m words of it with the chance (m + i) / window.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import common
import firth
from firth.training.sampling import ROW_FLOATS

WINDOW, NEGATIVES = 5, 5
RIVALS = {"gensim": "gensim_run.py", "fasttext": "fasttext_run.py"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival-python", help="an interpreter with gensim and fasttext (or $FIRTH_RIVALS)")
    parser.add_argument("--text", default="enwiki10M", help="a text of the data folder")
    parser.add_argument("--words", type=int, help="only the first so many words of it")
    parser.add_argument("--dims", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", nargs="+", default=["firth", *RIVALS], choices=["firth", *RIVALS])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    if "firth" in settings.tools:
        common.gate()
    commands = _commands(settings.tools, common.rival_python(settings.rival_python))
    text = common.lines_file(settings.text, settings.words)
    peaks = common.peaks()
    cases = [
        _case(commands, text, dim, threads, settings.rounds)
        for dim in settings.dims
        for threads in settings.threads
    ]
    for case in cases:
        case["shares"] = _shares(case, peaks)
    report = {
        "machine": common.machine(),
        "text": text.name,
        "rounds": settings.rounds,
        "peaks": peaks,
        "cases": cases,
        "threads_2_over_1": _scaling(cases),
    }
    print(json.dumps(report, indent=1)) if settings.json else _print(report)


def _commands(tools: list[str], rivals: Path | None) -> dict[str, list[str | Path]]:
    """Tool -> the beginning of its command; rivals that are not installed are named and left out."""
    commands: dict[str, list[str | Path]] = {}
    for tool in tools:
        if tool == "firth":
            commands[tool] = [sys.executable, common.HERE / "firth_run.py"]
        elif rivals is not None and common.has(rivals, tool):
            commands[tool] = [rivals, common.HERE / "rivals" / RIVALS[tool]]
        else:
            print(f"bench: {tool} is left out, it is not installed (see --rival-python)", file=sys.stderr)
    if not commands:
        sys.exit("bench: nothing to measure")
    return commands


def _case(
    commands: dict[str, list[str | Path]], text: Path, dim: int, threads: int, rounds: int
) -> dict[str, Any]:
    found: dict[str, list[common.Run]] = {tool: [] for tool in commands}
    for number in range(rounds):
        for tool, command in commands.items():
            print(f"dim {dim}, {threads} thread(s), round {number + 1}: {tool}", file=sys.stderr)
            run = common.run([*command, text, "--dim", str(dim), "--threads", str(threads)])
            found[tool].append(run)
    speeds = {tool: [_speed(run) for run in runs] for tool, runs in found.items()}
    case: dict[str, Any] = {"dim": dim, "threads": threads, "tools": {}}
    for tool, runs in found.items():
        case["tools"][tool] = {
            "tool": runs[0].report["tool"],
            "words_per_cpu_s": statistics.median(speeds[tool]),
            "words_per_wall_s": statistics.median(
                run.report["words"] / run.report["train_wall_s"] for run in runs
            ),
            "process_cpu_s": statistics.median(run.cpu_s for run in runs),
            "peak_bytes": max(run.peak_bytes for run in runs),
            "rounds": speeds[tool],
        }
    if "firth" in found:
        case["kept_share"] = found["firth"][0].report["kept_share"]
        case["ratios"] = {
            tool: statistics.median(
                ours / theirs for ours, theirs in zip(speeds["firth"], speeds[tool], strict=True)
            )
            for tool in found
            if tool != "firth"
        }
    return case


def _speed(run: common.Run) -> float:
    return float(run.report["words"] / run.report["train_cpu_s"])


def _shares(case: dict[str, Any], peaks: dict[str, float]) -> dict[str, dict[str, float]] | None:
    """firth's shares of one core's multiply-adds and memory traffic, useful and computed."""
    if "firth" not in case["tools"]:
        return None
    kept_s = case["tools"]["firth"]["words_per_cpu_s"] * case["kept_share"]
    shares = {}
    for name, count in (("useful", useful), ("computed", computed)):
        multiply_adds, moved = (kept_s * number / 1e9 for number in count(case["dim"]))
        shares[name] = {
            "gfma_s": multiply_adds,
            "of_multiply_add_peak": multiply_adds / peaks["gfma_s"],
            "gb_s": moved,
            "of_copy_bandwidth": moved / peaks["copy_gb_s"],
        }
    return shares


def useful(dim: int) -> tuple[float, float]:
    """Multiply-adds and bytes that a kept word takes in the published algorithm."""
    return 3.0 * (WINDOW + 1) * (NEGATIVES + 1) * dim, (NEGATIVES + 2) * dim * 4.0 * 2


def computed(dim: int) -> tuple[float, float]:
    """Multiply-adds and bytes that a kept word takes in firth's kernel."""
    objective = firth.SkipGram(window=WINDOW, negatives=NEGATIVES)
    share, drawn = objective.share, objective.drawn
    padded_dim = -(-dim // ROW_FLOATS) * ROW_FLOATS
    multiply_adds = 3 * span(WINDOW, share) * (share + drawn) * padded_dim
    moved = (2 * share + drawn) * padded_dim * 4 * 2
    return multiply_adds / share, moved / share


def span(window: int, share: int) -> float:
    """How many contexts a group of ``share`` words reaches, on average."""
    overhang = sum(1 - math.prod(min(1.0, (m + i) / window) for i in range(share)) for m in range(window))
    return share + 2 * overhang


def _scaling(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Wall speed of firth with two threads over one, by dim."""
    wall = {
        (case["dim"], case["threads"]): case["tools"]["firth"]["words_per_wall_s"]
        for case in cases
        if "firth" in case["tools"]
    }
    return {
        str(dim): wall[dim, 2] / wall[dim, 1] for dim, threads in wall if threads == 2 and (dim, 1) in wall
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['text']}, {report['rounds']} rounds, median")
    peaks = report["peaks"]
    print(f"one core: {peaks['gfma_s']:.1f} G multiply-adds/s, copies {peaks['copy_gb_s']:.1f} GB/s")
    print(f"{'dim':>4} {'threads':>7}  {'tool':<14} {'M words/CPU s':>13} {'M words/s':>10} {'firth is':>10}")
    for case in report["cases"]:
        for tool, row in case["tools"].items():
            ratio = case.get("ratios", {}).get(tool)
            print(
                f"{case['dim']:>4} {case['threads']:>7}  {row['tool']:<14} "
                f"{row['words_per_cpu_s'] / 1e6:>13.3f} {row['words_per_wall_s'] / 1e6:>10.3f} "
                f"{f'{ratio:.1f} x' if ratio else '':>10}"
            )
        for name, shares in (case["shares"] or {}).items():
            print(
                f"{'':14}{name}: {shares['gfma_s']:.1f} G multiply-adds/s, "
                f"{100 * shares['of_multiply_add_peak']:.0f} % of the peak; {shares['gb_s']:.1f} GB/s, "
                f"{100 * shares['of_copy_bandwidth']:.0f} % of the copy"
            )
    for dim, factor in report["threads_2_over_1"].items():
        print(f"dim {dim}: 2 threads do {factor:.2f} times the words/s of 1")


if __name__ == "__main__":
    main()
