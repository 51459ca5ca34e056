"""Our evaluation figures beside gensim's on the same vectors: every difference has to be under 1e-4.

::

    python bench/evaluate_vs_gensim.py [VECTORS.txt] [--gensim PYTHON]

Without VECTORS, GloVe 50d is unpacked from ``$FIRTH_DATA`` (by default ``../shared/data``).
PYTHON is an interpreter that has gensim, by default this one; where it has none, only our own
figures are printed. Exit code 1 if a figure differs.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

DATA = Path(os.environ.get("FIRTH_DATA", "../shared/data"))
PAIRS = ("EN-WS-353-ALL.txt", "EN-SIMLEX-999.txt", "EN-MTurk-771.txt", "EN-RG-65.txt")
TOLERANCE = 1e-4
RESTRICT = 30_000
Result = TypeVar("Result")
Figures = dict[str, float]


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of ``work`` and the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return result, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def ours(path: Path) -> Figures:
    """Our figures by name."""
    from firth import evaluate
    from firth.vectors import Vectors

    vectors = Vectors.load(path)
    figures: Figures = {}
    for name in PAIRS:
        score = evaluate.word_pairs(vectors, DATA / "eval" / name)
        figures |= {f"{name} spearman": score.spearman, f"{name} pearson": score.pearson}
        figures[f"{name} oov %"] = score.oov_ratio
    questions = DATA / "eval" / "questions-words.txt"
    answers, seconds = timed(lambda: evaluate.analogies(vectors, questions, restrict=RESTRICT))
    figures |= {f"analogies {part.name}": part.accuracy for part in (*answers.sections, answers.overall)}
    return figures | {"analogies CPU s": seconds}


def theirs(path: Path) -> Figures:
    """gensim's figures by the same names."""
    from gensim.models import KeyedVectors  # type: ignore[import-not-found, unused-ignore]

    with path.open("rb") as file:
        no_header = len(file.readline().split()) > 2
    vectors = KeyedVectors.load_word2vec_format(str(path), no_header=no_header)
    figures: Figures = {}
    for name in PAIRS:
        pearson, spearman, oov = vectors.evaluate_word_pairs(
            str(DATA / "eval" / name), restrict_vocab=len(vectors)
        )
        figures |= {
            f"{name} spearman": float(spearman[0]),
            f"{name} pearson": float(pearson[0]),
            f"{name} oov %": oov,
        }
    questions = str(DATA / "eval" / "questions-words.txt")
    (total, sections), seconds = timed(
        lambda: vectors.evaluate_word_analogies(questions, restrict_vocab=RESTRICT)
    )
    for section in sections[:-1]:
        asked = len(section["correct"]) + len(section["incorrect"])
        figures[f"analogies {section['section']}"] = len(section["correct"]) / asked if asked else 0.0
    return figures | {"analogies total": total, "analogies CPU s": seconds}


def theirs_elsewhere(path: Path, python: str) -> Figures:
    """``theirs`` by another interpreter; empty where it has no gensim."""
    call = [python, __file__, str(path), "--only-gensim"]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 3:
        print(f"{python} has no gensim: our figures only")
        return {}
    if done.returncode:
        sys.exit(f"gensim failed, exit code {done.returncode}")
    figures: Figures = json.loads(done.stdout)
    return figures


def compare(path: Path, python: str) -> int:
    """Print both columns; the number of figures that differ."""
    mine, other = ours(path), theirs_elsewhere(path, python)
    wrong = 0
    print(f"{'':<42} {'firth':>10} {'gensim':>10}")
    for name, value in mine.items():
        bad = name in other and "CPU" not in name and not abs(value - other[name]) <= TOLERANCE
        wrong += bad
        shown = f"{other[name]:10.5f}" if name in other else f"{'':>10}"
        print(f"{name:<42} {value:10.5f} {shown} {'DIFFERS' if bad else ''}".rstrip())
    print(f"{wrong} of {len(mine) - 1} figures differ by more than {TOLERANCE}")
    return wrong


def main() -> int:
    """Compare on the file named, or on GloVe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "vectors",
        nargs="?",
        type=Path,
        help="word2vec or GloVe text, which both read (firth convert makes it)",
    )
    parser.add_argument("--gensim", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--only-gensim", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.only_gensim:
        try:
            print(json.dumps(theirs(given.vectors)))
        except ImportError:
            return 3
        return 0
    if given.vectors:
        return int(compare(given.vectors, given.gensim) > 0)
    packed = DATA / "pretrained" / "glove.6B.50d.first50k.txt.xz"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "glove.txt"
        with lzma.open(packed) as file:
            path.write_bytes(file.read())
        return int(compare(path, given.gensim) > 0)


if __name__ == "__main__":
    sys.exit(main())
