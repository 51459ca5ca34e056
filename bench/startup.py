"""How long a fresh process takes: importing firth, and opening vectors to ask one question.

    python bench/startup.py --rival-python build/rivals/bin/python

Counted are wall and CPU seconds of whole processes, the start of Python included, in turn, round after
round; printed are the medians. Measured are ``python -c pass``, ``import firth``, opening a file of
400,000 x 50 in firth's own format and asking for 10 neighbours of one key, the same with the file
dropped from the page cache before (where the system can), and where gensim is installed the same in
gensim from its own format, memory-mapped.

No time is printed unless the neighbours are those of a plain numpy product and neither torch nor numba
nor pyarrow was imported. The exit code is 1 where the import takes longer than 0.3 s of wall time or
the question longer than 1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import common
import firth

HEAVY = ("torch", "numba", "pyarrow")
TOPN = 10
KEY = "word1234"

IMPORT = f"""
import sys
import firth
sys.exit(any(name in sys.modules for name in {HEAVY}) and "one of {HEAVY} was imported")
"""
ASK = f"""
import json, sys
import firth
found = firth.Vectors.load(sys.argv[1]).most_similar({KEY!r}, topn={TOPN})
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps({{"keys": [key for key, _ in found], "heavy": heavy}}))
"""
GENSIM_SAVE = """
import sys
from gensim.models import KeyedVectors
KeyedVectors.load_word2vec_format(sys.argv[1]).save(sys.argv[2])
"""
GENSIM_ASK = f"""
import json, sys
from gensim.models import KeyedVectors
found = KeyedVectors.load(sys.argv[1], mmap="r").most_similar({KEY!r}, topn={TOPN})
print(json.dumps({{"keys": [key for key, _ in found]}}))
"""
BUDGETS = {"import firth": 0.3, "firth, one query": 1.0, "firth, one query, file not cached": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival-python", help="an interpreter with gensim (or $FIRTH_RIVALS)")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    rivals = common.rival_python(settings.rival_python)
    if rivals is not None and not common.has(rivals, "gensim"):
        rivals = None
    common.WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=common.WORK) as name:
        commands, expected = _prepare(Path(name), settings.rows, settings.dim, rivals)
        found: dict[str, list[common.Run]] = {what: [] for what in commands}
        for number in range(settings.rounds):
            print(f"round {number + 1}", file=sys.stderr)
            for what, command in commands.items():
                if "not cached" in what:
                    drop(Path(command[-1]))
                found[what].append(common.run(command))
                gate(what, found[what][-1].report, expected)
    rows = {
        what: {name: statistics.median(getattr(run, name) for run in runs) for name in ("cpu_s", "wall_s")}
        for what, runs in found.items()
    }
    sizes = {name: getattr(settings, name) for name in ("rows", "dim", "rounds")}
    report = {"machine": common.machine(), "sizes": sizes, "processes": rows}
    print(json.dumps(report, indent=1)) if settings.json else _print(report)
    late = [
        f"{what} takes {rows[what]['wall_s']:.2f} s, more than {budget} s"
        for what, budget in BUDGETS.items()
        if what in rows and rows[what]["wall_s"] > budget
    ]
    if late:
        sys.exit(f"bench: {'; '.join(late)}")


def _prepare(
    folder: Path, rows: int, dim: int, rivals: Path | None
) -> tuple[dict[str, list[str | Path]], list[str]]:
    """Write the files; what is measured -> its command, and the neighbours that all must find."""
    matrix = np.random.default_rng(1).standard_normal((rows, dim), np.float32)
    vectors = firth.Vectors([f"word{row}" for row in range(rows)], matrix)
    vectors.save(folder / "vectors.safetensors")
    python: list[str | Path] = [sys.executable, "-c"]
    ask = [*python, ASK, folder / "vectors.safetensors"]
    commands = {
        "python -c pass": [*python, "pass"],
        "import firth": [*python, IMPORT],
        "firth, one query": ask,
    }
    if hasattr(os, "posix_fadvise"):
        commands["firth, one query, file not cached"] = ask
    if rivals is not None:
        vectors.save(folder / "vectors.txt")
        own = folder / "vectors.gensim"
        common.run([rivals, "-c", GENSIM_SAVE, folder / "vectors.txt", own])
        commands["gensim, one query"] = [rivals, "-c", GENSIM_ASK, own]
    else:
        print("bench: gensim is left out, it is not installed (see --rival-python)", file=sys.stderr)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    best = np.argsort(-(unit @ unit[vectors.get_index(KEY)]))[: TOPN + 1]
    return commands, [vectors.index_to_key[row] for row in best if vectors.index_to_key[row] != KEY]


def drop(path: Path) -> None:
    """Drop a file from the page cache; what was written must be on the disk for that."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def gate(what: str, report: dict[str, Any], expected: list[str]) -> None:
    """Stop the bench where a process answered wrongly or imported what it must not."""
    if report.get("heavy"):
        sys.exit(f"bench: {what}: {', '.join(report['heavy'])} was imported; no time is printed")
    if report.get("keys", expected) != expected:
        sys.exit(f"bench: {what}: these are not the nearest keys; no time is printed")


def _print(report: dict[str, Any]) -> None:
    sizes = report["sizes"]
    print(report["machine"])
    print(f"whole processes; a file of {sizes['rows']:,} x {sizes['dim']}; {sizes['rounds']} rounds, median")
    print(f"{'':34} {'CPU s':>6} {'wall s':>6} {'budget':>6}")
    for what, row in report["processes"].items():
        budget = f"{BUDGETS[what]:>6.1f}" if what in BUDGETS else ""
        print(f"{what:34} {row['cpu_s']:>6.3f} {row['wall_s']:>6.3f} {budget}")


if __name__ == "__main__":
    main()
