"""Speed and quality of ``firth train`` in several processes on this machine, each with one thread.

    python bench/distributed.py                      # 1 and 2 processes, enwiki10M, 5 rounds
    python bench/distributed.py --text enwiki100M --processes 1 2 4 --rounds 1 --scores
    python bench/distributed.py --partitioned --processes 1 2

Each run is started by torchrun as a user would, the numbers of processes in turns, round after round, so that
what else the machine does falls on all alike. Speed is words a second of wall clock while training (kernels
compiled and text encoded before); printed are medians over the rounds, and of the ratios within a round.
Beyond the machine's cores nothing can be gained; quality can still be seen there. With ``--partitioned`` the
runs of more than one process split the tables.
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

TORCHRUN = "import sys; from torch.distributed.run import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="enwiki10M", help="a text of the data folder")
    parser.add_argument("--words", type=int, help="only the first so many words of it")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--partitioned", action="store_true", help="split the tables over the processes")
    parser.add_argument("--scores", action="store_true", help="evaluate the vectors of the first round")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    common.gate((settings.dim,))
    text = common.lines_file(settings.text, settings.words)
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in settings.processes}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds + 1):  # the first one encodes and compiles
            for count in settings.processes:
                print(f"round {number} of {settings.rounds}, {count} process(es)", file=sys.stderr)
                run = _run(text, count, number, Path(folder), settings)
                if number:
                    found[count].append(run)
    report = {
        "machine": common.machine(),
        "text": text.name,
        "dim": settings.dim,
        "epochs": settings.epochs,
        "partitioned": settings.partitioned,
        "processes": {count: _summary(runs, found[settings.processes[0]]) for count, runs in found.items()},
    }
    print(json.dumps(report, indent=1)) if settings.json else _print(report)


def _run(text: Path, count: int, number: int, folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    from firth import Vectors

    output = folder / f"out{count}.safetensors"
    split = settings.partitioned and count > 1
    command = [sys.executable, "-c", TORCHRUN, "--standalone", "--nproc-per-node", str(count), "-m", "firth"]
    command += ["train", str(text), "-o", str(output), "--quiet", "--threads", "1", "--cache", str(folder)]
    command += ["--dim", str(settings.dim), "--epochs", str(settings.epochs), "--device", "cpu"]
    run = common.run([*command, *(["--partitioned"] if split else [])], common.thread_settings(1))
    vectors = Vectors.load(output.with_name(output.name + ".index.json") if split else output)
    facts = vectors.metadata
    return {
        "words_per_s": facts["words_per_second"],
        "bytes_a_word": facts.get("bytes_exchanged_per_word", 0.0),
        "cpu_s": run.cpu_s,
        **(_scores(vectors) if settings.scores and number == 1 else {}),
    }


def _scores(vectors: Any) -> dict[str, float]:
    from firth.evaluate import analogies, word_pairs

    folder = common.data_folder() / "eval"
    return {
        "ws353": word_pairs(vectors, folder / "EN-WS-353-ALL.txt").spearman,
        "simlex": word_pairs(vectors, folder / "EN-SIMLEX-999.txt").spearman,
        "analogies": analogies(vectors, folder / "questions-words.txt", restrict=30_000).accuracy,
    }


def _summary(runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [run["words_per_s"] / one["words_per_s"] for run, one in zip(runs, first, strict=True)]
    return {
        **runs[0],
        "words_per_s": statistics.median(run["words_per_s"] for run in runs),
        "cpu_s": statistics.median(run["cpu_s"] for run in runs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _print(report: dict[str, Any]) -> None:
    way = "partitioned" if report["partitioned"] else "replicated"
    print(f"{report['machine']}; {report['text']}, dim {report['dim']}, {report['epochs']} epochs, {way}")
    for count, row in report["processes"].items():
        line = f"{count:>3} processes  {row['words_per_s'] / 1e6:6.3f} M words/s  {row['ratio']:5.2f} times"
        line += (
            f" ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})  {row['bytes_a_word']:.0f} bytes a word"
        )
        if "ws353" in row:
            line += "".join(f"  {name} {row[name]:.4f}" for name in ("ws353", "simlex", "analogies"))
        print(line)


if __name__ == "__main__":
    main()
