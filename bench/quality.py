"""Quality and cost of whole runs, from text to saved vectors: firth and gensim.

    python bench/quality.py --rival-python build/rivals/bin/python

Every run is a process of its own that reads the text, trains and saves. Printed are the scores of the
saved vectors (WS-353 and SimLex-999 by Spearman, analogies over the 30,000 most frequent words by
3CosAdd; one evaluator for all), their mean over the seeds, CPU seconds of the whole process with all
its threads, and its peak memory: anonymous memory where the system tells, for a memory-mapped text
is not held. Settings: dim 100, 5 epochs, window 5, 5 negatives, sample 1e-3, min_count 5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

PAIRS = {"ws353": "EN-WS-353-ALL.txt", "simlex": "EN-SIMLEX-999.txt"}
ANALOGIES = "questions-words.txt"
SCORES = [*PAIRS, "analogies"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival-python", help="an interpreter with gensim (or $FIRTH_RIVALS)")
    parser.add_argument("--text", default="enwiki100M", help="a text of the data folder")
    parser.add_argument("--words", type=int, help="only the first so many words of it")
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of firth's runs")
    parser.add_argument("--rival-seeds", type=int, nargs="*", default=[1], help="seeds of gensim's runs")
    parser.add_argument("--restrict", type=int, default=30_000, help="analogies over so many words")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    rivals = common.rival_python(settings.rival_python)
    text = common.lines_file(settings.text, settings.words)
    runs = [_run("firth", None, text, seed, settings) for seed in settings.seeds]
    if rivals is not None and common.has(rivals, "gensim"):
        runs += [_run("gensim", rivals, text, seed, settings) for seed in settings.rival_seeds]
    elif settings.rival_seeds:
        print("bench: gensim is left out, it is not installed (see --rival-python)", file=sys.stderr)
    report = {
        "machine": common.machine(),
        "text": text.name,
        "settings": {name: getattr(settings, name) for name in ("dim", "epochs", "threads", "restrict")},
        "runs": runs,
        "means": {tool: _mean(runs, tool) for tool in dict.fromkeys(run["tool"] for run in runs)},
    }
    print(json.dumps(report, indent=1)) if settings.json else _print(report)


def _run(
    tool: str, rivals: Path | None, text: Path, seed: int, settings: argparse.Namespace
) -> dict[str, Any]:
    print(f"{tool}, seed {seed}", file=sys.stderr)
    options = ["--dim", settings.dim, "--epochs", settings.epochs, "--threads", settings.threads]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / ("vectors.bin" if rivals else "vectors.safetensors")
        if rivals:
            command = [rivals, common.HERE / "rivals" / "gensim_run.py"]
        else:
            # An empty cache: the text is read and encoded, as on the first run.
            command = [sys.executable, "-m", "firth", "train", "--quiet", "--cache", Path(folder) / "cache"]
        run = common.run([*command, text, "--output", output, *map(str, options), "--seed", str(seed)])
        scores = _scores(output, settings.restrict)
    return {
        "tool": tool,
        "seed": seed,
        **scores,
        "cpu_s": run.cpu_s,
        "wall_s": run.wall_s,
        "peak_bytes": run.peak_bytes,
        "peak_anonymous_bytes": run.peak_anonymous_bytes,
    }


def _scores(vectors: Path, restrict: int) -> dict[str, float]:
    from firth import Vectors
    from firth.evaluate import analogies, word_pairs

    loaded, folder = Vectors.load(vectors), common.data_folder() / "eval"
    scores = {name: word_pairs(loaded, folder / file).spearman for name, file in PAIRS.items()}
    return {**scores, "analogies": analogies(loaded, folder / ANALOGIES, restrict=restrict).accuracy}


def _mean(runs: list[dict[str, Any]], tool: str) -> dict[str, float]:
    own = [run for run in runs if run["tool"] == tool]
    names = [*SCORES, "cpu_s", "wall_s", "peak_bytes", "peak_anonymous_bytes"]
    return {name: statistics.mean(run[name] for run in own) for name in names}


def _print(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['text']}")
    print(", ".join(f"{name} {value}" for name, value in report["settings"].items()))
    columns = {
        "WS-353": lambda row: f"{row['ws353']:.3f}",
        "SimLex": lambda row: f"{row['simlex']:.3f}",
        "analogies": lambda row: f"{row['analogies']:.3f}",
        "CPU s": lambda row: f"{row['cpu_s']:.1f}",
        "wall s": lambda row: f"{row['wall_s']:.1f}",
        "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}",
        "of it anonymous": lambda row: f"{row['peak_anonymous_bytes'] / 1e6:.0f}",
    }
    print(f"{'':16}", *(f"{name:>9}" for name in columns))
    rows = [(f"{run['tool']}, seed {run['seed']}", run) for run in report["runs"]]
    rows += [(f"{tool}, mean", mean) for tool, mean in report["means"].items()]
    for name, row in rows:
        print(f"{name:16}", *(f"{show(row):>{max(9, len(column))}}" for column, show in columns.items()))


if __name__ == "__main__":
    main()
