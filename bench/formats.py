"""What reading files of vectors costs: CPU seconds and peak memory, beside gensim.

    python bench/formats.py --rival-python build/rivals/bin/python

A table of 400,000 x 50 random numbers is written in each format; fresh processes read it, in turn. Memory is
anonymous memory (what is not a mapped file) at its peak, less that of a process that imported the same and
read nothing, over the size of the matrix. Then ``firth info`` is timed, the start of Python included, on
files of 1 GB. No figure is printed unless what was read is what was written.

The exit code is 1 where GloVe or word2vec text takes more than 3 CPU seconds, reading more than 1.3 times the
matrix, or info more than 1 s of CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import common
import firth

CPU_BUDGET, MEMORY_BUDGET, INFO_BUDGET = 3.0, 1.3, 1.0
TEXTS = ("glove", "word2vec")
BINARIES = ("word2vec-binary", "parquet", "projector", "npy", "static-folder", "safetensors")
GIGABYTE = 1_000_000_000

IMPORTS = """
import json, sys
import numpy, pyarrow.csv, pyarrow.compute, pyarrow.parquet
import firth.vectors
"""
READ = f"""{IMPORTS}
vectors = firth.vectors.Vectors.load(sys.argv[1], format=sys.argv[2])
last = len(vectors) - 1
keys = [vectors.index_to_key[0], vectors.index_to_key[last]]
print(json.dumps({{"shape": vectors.vectors.shape, "keys": keys, "row": vectors.vectors[last].tolist()}}))
"""
GENSIM_IMPORTS = """
import json, sys
from gensim.models import KeyedVectors
"""
GENSIM = f"""{GENSIM_IMPORTS}
kind = sys.argv[2]
load = KeyedVectors.load_word2vec_format
kv = load(sys.argv[1], binary=kind == "word2vec-binary", no_header=kind == "glove")
keys = [kv.index_to_key[0], kv.index_to_key[-1]]
print(json.dumps({{"shape": kv.vectors.shape, "keys": keys, "row": kv.vectors[-1].tolist()}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival-python", help="an interpreter with gensim (or $FIRTH_RIVALS)")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    rivals = common.rival_python(settings.rival_python)
    if rivals is not None and not common.has(rivals, "gensim"):
        rivals = None
    if rivals is None:
        print("bench: gensim is left out, it is not installed (see --rival-python)", file=sys.stderr)
    common.WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=common.WORK) as name:
        rows = _readers(Path(name), settings, rivals)
        infos = dict(_infos(Path(name)))
    report = {
        "machine": common.machine(),
        "rows": settings.rows,
        "dim": settings.dim,
        "readers": rows,
        "info": infos,
    }
    print(json.dumps(report, indent=1)) if settings.json else _print(report)
    late = _late(rows, infos)
    if late:
        sys.exit(f"bench: {'; '.join(late)}")


def _readers(folder: Path, settings: argparse.Namespace, rivals: Path | None) -> dict[str, dict[str, float]]:
    """What is measured -> its medians."""
    matrix = np.random.default_rng(1).standard_normal((settings.rows, settings.dim), np.float32)
    # Five digits, as GloVe's own files have.
    matrix = np.array([f"{number:.5g}" for number in matrix.ravel()], np.float32).reshape(matrix.shape)
    vectors = firth.Vectors([f"word{row}" for row in range(settings.rows)], matrix)
    expected = {
        "shape": list(matrix.shape),
        "keys": ["word0", f"word{settings.rows - 1}"],
        "row": matrix[-1].tolist(),
    }
    ours: list[str | Path] = [sys.executable, "-c"]
    commands: dict[str, list[str | Path]] = {}
    for name in (*TEXTS, *BINARIES):
        path = folder / ("v.npy" if name == "npy" else name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a browser would not show so many points
            vectors.save(path, name)
        commands[f"firth, {name}"] = [*ours, READ, path, name]
        if rivals is not None and name in (*TEXTS, "word2vec-binary"):
            commands[f"gensim, {name}"] = [rivals, "-c", GENSIM, path, name]
    idle = {"firth": common.run([*ours, IMPORTS]).peak_anonymous_bytes}
    if rivals is not None:
        idle["gensim"] = common.run([rivals, "-c", GENSIM_IMPORTS]).peak_anonymous_bytes
    found: dict[str, list[common.Run]] = {what: [] for what in commands}
    for number in range(settings.rounds):
        print(f"round {number + 1}", file=sys.stderr)
        for what, command in commands.items():
            if what.startswith("gensim") and number:
                continue  # half a minute each; once is enough to see the order of magnitude
            found[what].append(common.run(command, common.thread_settings(1)))
            if found[what][-1].report != expected:
                sys.exit(f"bench: {what}: what was read is not what was written; no figure is printed")
    return {
        what: {
            "cpu_s": statistics.median(run.cpu_s for run in runs),
            "wall_s": statistics.median(run.wall_s for run in runs),
            "memory": max(run.peak_anonymous_bytes - idle[what.split(",")[0]] for run in runs)
            / matrix.nbytes,
            "peak_mb": max(run.peak_bytes for run in runs) / 1e6,
        }
        for what, runs in found.items()
    }


def _infos(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """``firth info`` on files of a gigabyte."""
    block = (folder / "glove").read_bytes()[: 1 << 24]
    block = block[: block.rfind(b"\n") + 1]
    with open(folder / "glove.1G", "wb") as file:
        for _ in range(GIGABYTE // len(block)):
            file.write(block)
    with open(folder / "binary.1G", "wb") as file:  # nobody looks at the numbers, so they may be a hole
        row = b"word0 " + bytes(400)
        file.write(b"%d 100\n" % (GIGABYTE // len(row)) + row)
        file.truncate(GIGABYTE)
    rows = 2_400_000
    keys = [f"w{row}" for row in range(rows)]
    firth.Vectors(keys, np.zeros((rows, 100), np.float32)).save(folder / "native.1G", "safetensors")
    for name in ("glove.1G", "binary.1G", "native.1G"):
        runs = [common.run([sys.executable, "-m", "firth", "info", folder / name]) for _ in range(3)]
        yield (
            name,
            {
                "cpu_s": statistics.median(run.cpu_s for run in runs),
                "wall_s": statistics.median(run.wall_s for run in runs),
                "gb": (folder / name).stat().st_size / 1e9,
            },
        )
        (folder / name).unlink()


def _late(rows: dict[str, dict[str, float]], infos: dict[str, dict[str, float]]) -> list[str]:
    late = [
        f"{what} takes {row['cpu_s']:.1f} CPU s, more than {CPU_BUDGET:g}"
        for what, row in rows.items()
        if what in {f"firth, {name}" for name in TEXTS} and row["cpu_s"] > CPU_BUDGET
    ]
    late += [
        f"{what} takes {row['memory']:.2f} times the matrix, more than {MEMORY_BUDGET:g}"
        for what, row in rows.items()
        if what.startswith("firth") and row["memory"] > MEMORY_BUDGET
    ]
    late += [
        f"info of {name} takes {row['cpu_s']:.2f} CPU s, more than {INFO_BUDGET:g}"
        for name, row in infos.items()
        if row["cpu_s"] > INFO_BUDGET
    ]
    return late


def _print(report: dict[str, Any]) -> None:
    print(report["machine"])
    print(f"whole processes reading {report['rows']:,} x {report['dim']}; memory as times the matrix")
    print(f"{'':26} {'CPU s':>6} {'wall s':>6} {'memory':>6} {'peak MB':>7}")
    for what, row in report["readers"].items():
        print(
            f"{what:26} {row['cpu_s']:>6.2f} {row['wall_s']:>6.2f} {row['memory']:>6.2f} "
            f"{row['peak_mb']:>7.0f}"
        )
    for name, row in report["info"].items():
        print(f"{f'firth info, {name}':26} {row['cpu_s']:>6.2f} {row['wall_s']:>6.2f}")


if __name__ == "__main__":
    main()
