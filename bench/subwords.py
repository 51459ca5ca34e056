"""fastText's binary models: how long and how much memory loading takes, and vectors of unseen words.

    python bench/subwords.py --rival-python build/rivals/bin/python

A model of random numbers is written into a temporary folder, by default 300,000 words and 1,000,000
buckets x 100 (650 MB). Each tool loads it in a process of its own, in turn, round after round, and says its
CPU seconds and its memory right after loading: the peak, and how much of it is anonymous (Linux; the pages
of a mapped file are not, and can be dropped by the system). Then it is asked for 100,000 words of eight
letters (26 n-grams each) that it has never seen: firth in one call, the others word by word, as they can.
Printed are the medians.

No figure is printed unless the vectors of 200 words and 200 unseen ones are those of a plain loop over
n-grams to 1e-5, from every tool.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import common

TOLERANCE = 1e-5
ASKED = 200
UNSEEN = 100_000

# Each program loads sys.argv[1], then answers; `load` and `ask` are what differs.
PROGRAM = """
import json, re, sys, time
import numpy as np
{imports}
def memory():
    try:
        text = open("/proc/self/status").read()
    except OSError:
        return 0, 0
    return [int(re.search(name + r":\\s+(\\d+)", text)[1]) * 1024 for name in ("VmHWM", "RssAnon")]
before = memory()[1]
start = time.process_time()
model = {load}
report = dict(load_s=time.process_time() - start)
report["peak"], anonymous = memory()
report["anonymous"] = anonymous - before
words = json.load(open(sys.argv[2]))
asked = ["un%06d" % number for number in range({unseen})]  # 26 n-grams each
start = time.process_time()
{ask}
report["words_per_s"] = len(asked) / (time.process_time() - start)
np.save(sys.argv[3], np.array([model[word] for word in words]))
print(json.dumps(report))
"""
FIRTH = {"imports": "import firth", "load": "firth.Vectors.load(sys.argv[1])", "ask": "model[asked]"}
ONE_BY_ONE = "for word in asked: model[word]"
GENSIM = {
    "imports": "from gensim.models.fasttext import load_facebook_vectors",
    "load": "load_facebook_vectors(sys.argv[1])",
    "ask": ONE_BY_ONE,
}
FASTTEXT = {
    "imports": "import fasttext\nfasttext.FastText.eprint = lambda *_: None",
    "load": "fasttext.load_model(sys.argv[1])",
    "ask": ONE_BY_ONE,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival-python", help="an interpreter with gensim and fastText (or $FIRTH_RIVALS)")
    parser.add_argument("--words", type=int, default=300_000)
    parser.add_argument("--buckets", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    rivals = common.rival_python(settings.rival_python)
    programs: dict[str, tuple[str | Path, dict[str, str]]] = {"firth": (sys.executable, FIRTH)}
    for name, program in (("gensim", GENSIM), ("fasttext", FASTTEXT)):
        if rivals is not None and common.has(rivals, name):
            programs[name] = (rivals, program)
        else:
            print(f"bench: {name} is left out, it is not installed (see --rival-python)", file=sys.stderr)
    common.WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=common.WORK) as name:
        folder = Path(name)
        words = write(folder / "model.bin", settings.words, settings.buckets, settings.dim)
        asked = words[:: -(-len(words) // ASKED)] + [f"größe{number}" for number in range(ASKED)]
        (folder / "words.json").write_text(json.dumps(asked))
        expected = plain(folder / "model.bin", words, asked, settings.buckets, settings.dim)
        found: dict[str, list[dict[str, Any]]] = {what: [] for what in programs}
        for number in range(settings.rounds):
            print(f"round {number + 1}", file=sys.stderr)
            for what, (python, program) in programs.items():
                source = PROGRAM.format(**program, unseen=UNSEEN)
                arguments = [folder / "model.bin", folder / "words.json", folder / "found.npy"]
                call = [python, "-c", source, *arguments]
                found[what].append(common.run(call, common.thread_settings(1)).report)
                gate(what, np.load(folder / "found.npy"), expected)
    tools = {
        what: {name: statistics.median(report[name] for report in reports) for name in reports[0]}
        for what, reports in found.items()
    }
    sizes = {name: getattr(settings, name) for name in ("words", "buckets", "dim", "rounds")}
    matrix = 4 * settings.dim * (settings.words + settings.buckets)
    report = {"machine": common.machine(), "sizes": sizes, "input_table": matrix, "tools": tools}
    print(json.dumps(report, indent=1)) if settings.json else _print(report)


def write(path: Path, words: int, buckets: int, dim: int) -> list[str]:
    """A model of version 12 with random rows, block by block; returns its words."""
    chance = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
    sizes = chance.integers(2, 10, words)
    made = letters[chance.integers(0, 26, int(sizes.sum()))].tobytes().decode()
    ends = np.cumsum(sizes).tolist()
    names = [
        f"{made[end - size : end]}{row}" for row, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]
    with path.open("wb") as file:
        file.write(struct.pack("<2i", 793712314, 12))
        file.write(struct.pack("<12id", dim, 5, 5, 1, 5, 1, 2, 2, buckets, 3, 6, 100, 1e-4))
        file.write(struct.pack("<3i2q", words, words, 0, 10**10, -1))
        for row, name in enumerate(names):
            file.write(name.encode() + b"\0" + struct.pack("<qb", 10**9 // (row + 1) + 1, 0))
        for rows in (words + buckets, words):
            file.write(struct.pack("<?2q", False, rows, dim))
            for start in range(0, rows, 50_000):
                count = min(50_000, rows - start)
                file.write(chance.standard_normal((count, dim), np.float32).astype("<f4").tobytes())
    return names


def plain(path: Path, words: list[str], asked: list[str], buckets: int, dim: int) -> np.ndarray[Any, Any]:
    """The vectors that are asked for, by the definition: a loop over n-grams."""
    places = {word: row for row, word in enumerate(words)}
    begin = path.stat().st_size - 4 * dim * (2 * len(words) + buckets) - 17
    shape = (len(words) + buckets, dim)
    table = np.ndarray(shape, "<f4", np.memmap(path, np.uint8, "r"), begin)
    vectors = []
    for word in asked:
        marked = f"<{word}>"
        rows = [places[word]] if word in places else []
        for start in range(len(marked)):
            for end in range(start + 3, min(start + 6, len(marked)) + 1):
                rows.append(len(words) + _hash(marked[start:end].encode()) % buckets)
        vectors.append(table[rows].astype(np.float64).mean(axis=0))
    return np.array(vectors)


def _hash(data: bytes) -> int:
    value = 2166136261
    for byte in data:
        value = ((value ^ (byte - 256 * (byte > 127)) & 0xFFFFFFFF) * 16777619) & 0xFFFFFFFF
    return value


def gate(what: str, found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Stop the bench where a vector is another."""
    worst = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    if not worst <= TOLERANCE:
        sys.exit(f"bench: {what} is off by {worst:.2g}, no figure is printed")


def _print(report: dict[str, Any]) -> None:
    sizes, table = report["sizes"], report["input_table"]
    print(report["machine"])
    print(
        f"{sizes['words']:,} words and {sizes['buckets']:,} buckets x {sizes['dim']}, an input table of "
        f"{table / 1e6:,.0f} MB; medians of {sizes['rounds']}"
    )
    print(
        f"{'':10} {'load, CPU s':>12} {'peak, MB':>10} {'/ table':>8} {'anonymous, MB':>14} {'unseen/s':>10}"
    )
    for what, row in report["tools"].items():
        print(
            f"{what:10} {row['load_s']:12.1f} {row['peak'] / 1e6:10,.0f} {row['peak'] / table:8.2f} "
            f"{row['anonymous'] / 1e6:14,.0f} {row['words_per_s']:10,.0f}"
        )


if __name__ == "__main__":
    main()
