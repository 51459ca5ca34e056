"""Two models: what merging gains, how well spaces are aligned, what smaller vectors lose.

::

    python bench/two_models.py [--text enwiki10M] [--parts merge align compare reduce]

Prints the figures of docs/two-models.md: GloVe (50,000 words, 50 numbers), vectors that firth trains on the
text (100 numbers, seed 1, one thread) and a small file of the C tool, from the data folder. Scores are
Spearman on WS-353 and SimLex-999, and analogies right among the first 30,000 rows. About two minutes of
CPU on one core with enwiki10M.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import firth
from common import WORK, cpu_seconds, data_folder, lines_file, run

RESTRICT = 30_000
FILES = ("EN-WS-353-ALL.txt", "EN-SIMLEX-999.txt", "questions-words.txt")
TRIALS = ("EN-MTurk-771.txt", "EN-RG-65.txt")  # on which a weight can be chosen without a look at the others
WEIGHTS = (1.5, 1.3, 1.0, 0.6, 0.4, 0.3, 0.2)


def trained(text: str) -> firth.Vectors:
    """Vectors of the text; made once and kept below build/."""
    path = WORK / f"two_models.{text}.safetensors"
    if not path.exists():
        print(f"training on {text}", file=sys.stderr)
        corpus = firth.Corpus.encode(lines_file(text), cache=WORK / "cache")
        firth.train(corpus, dim=100, epochs=5, seed=1, threads=1).save(path)
    return firth.Vectors.load(path)


def scores(vectors: firth.Vectors) -> list[float]:
    """WS-353, SimLex-999, analogies."""
    folder = data_folder() / "eval"
    pairs = [folder / name for name in FILES[:2]]
    report = firth.evaluate.evaluate(vectors, pairs=pairs, analogies=folder / FILES[2], restrict=RESTRICT)
    return [*(score.spearman for score in report.pairs), report.analogies[0].accuracy]


def trial(vectors: firth.Vectors) -> float:
    """The mean of Spearman on the sets for choosing."""
    folder = data_folder() / "eval"
    return float(np.mean([firth.evaluate.word_pairs(vectors, folder / name).spearman for name in TRIALS]))


def show(name: str, vectors: firth.Vectors, best: list[float] | None = None) -> list[float]:
    """A line of the table; with ``best``, which figures are at least as good."""
    found = scores(vectors)
    signs = "".join("+" if new >= old else "-" for new, old in zip(found, best or (), strict=False))
    figures = "  ".join(f"{figure:.4f}" for figure in found)
    print(f"{name:<58} {len(vectors):>7,} {vectors.vector_size:>4}  {figures}  {signs}", flush=True)
    return found


def head(title: str) -> None:
    print(f"\n{title:<58} {'rows':>7} {'dim':>4}  WS-353  SimLex  analogies")


def merging(glove: firth.Vectors, own: firth.Vectors, small: firth.Vectors) -> None:
    head("merge (+ or -: at least as good as the better parent, or not)")
    parents = [show("GloVe", glove), show("trained by firth", own), show("small file of the C tool", small)]
    best = [max(figures) for figures in zip(*parents[:2], strict=True)]
    trials = {}
    for weight in WEIGHTS:
        merged = firth.merge(glove, own, weights=[1, weight])
        show(f"concat, weights 1 and {weight}", merged, best)
        trials[weight] = trial(merged)
    listed = ", ".join(f"{weight}: {score:.3f}" for weight, score in trials.items())
    print(f"MTurk-771 and RG-65, mean: {listed}; they choose {max(trials, key=trials.__getitem__)}")
    for method in ("svd", "average", "align"):
        for weight in (1.0, 0.3):
            merged = firth.merge(glove, own, method=method, weights=[1, weight])
            show(f"{method}, weights 1 and {weight}", merged, best)
    merged = firth.merge(glove, own, method="svd", weights=[1, 0.3])
    lengths = np.linalg.norm(merged.vectors, axis=0)
    show(
        "svd, U alone, weights 1 and 0.3", firth.Vectors(merged.index_to_key, merged.vectors / lengths), best
    )
    show("concat, 1 and 0.3, missing='zero'", firth.merge(glove, own, weights=[1, 0.3], missing="zero"), best)
    show("three models, concat, 1, 0.3 and 0.1", firth.merge(glove, own, small, weights=[1, 0.3, 0.1]), best)
    shared = [key for key in glove if key in own]
    head("the same on the words that both have")
    alone = [show(name, one.subset(shared)) for name, one in (("GloVe", glove), ("firth", own))]
    best = [max(figures) for figures in zip(*alone, strict=True)]
    for weight in WEIGHTS:
        merged = firth.merge(glove, own, weights=[1, weight], missing="drop")
        show(f"concat, weights 1 and {weight}", merged.subset(shared), best)


def aligning(glove: firth.Vectors, own: firth.Vectors) -> None:
    print(f"\n{'align (held-out anchors)':<58} {'before':>17} {'after':>17}")
    print(f"{'':<58} {'cosine':>9} {'P@1':>7} {'cosine':>9} {'P@1':>7}")
    cases: tuple[tuple[str, firth.Vectors, firth.Vectors, dict[str, bool | int]], ...] = (
        ("firth (100) into GloVe (50)", own, glove, {}),
        ("the same, centre", own, glove, {"centre": True}),
        ("the same, normalize=False", own, glove, {"normalize": False}),
        ("GloVe (50) into firth (100)", glove, own, {}),
        ("the same, centre", glove, own, {"centre": True}),
        ("the same, centre, restrict=10000", glove, own, {"centre": True, "restrict": 10_000}),
    )
    for name, source, target, settings in cases:
        found = firth.align(source, target, **settings)  # type: ignore[arg-type]
        assert found.before is not None and found.after is not None
        figures = [(fit.cosine, fit.precision_at_1) for fit in (found.before, found.after)]
        print(f"{name:<58} " + " ".join(f"{cosine:9.4f} {precision:7.4f}" for cosine, precision in figures))


def comparing(glove: firth.Vectors, own: firth.Vectors) -> None:
    """Time of whole vocabularies: also 50,000 words that both have, GloVe beside itself with noise."""
    noise = np.random.default_rng(0).normal(size=(len(glove), 50)).astype(np.float32)
    noisy = firth.Vectors(glove.index_to_key, np.hstack([glove.vectors, 0.3 * noise]))
    print(f"\n{'compare':<58} {'shared':>7} {'judged':>7} {'CPU s':>7} {'wall s':>7}")
    for name, other, among in (
        ("GloVe and firth", own, 10_000),
        ("GloVe and GloVe with noise", noisy, 10_000),
        ("the same, every word judged", noisy, None),
    ):
        cpu, wall = cpu_seconds(), time.perf_counter()
        report = firth.compare(glove, other, among=among)
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
        print(f"{name:<58} {report.shared:7,} {report.pairs[0].words:7,} {cpu:7.1f} {wall:7.1f}", flush=True)


def reducing(glove: firth.Vectors, own: firth.Vectors) -> None:
    for title, vectors in (("GloVe", glove), ("trained by firth", own)):
        head(f"smaller and cleaner: {title}")
        best = show("as it is", vectors)
        for n in (0, 1, 2, 3):
            show(f"all_but_the_top({n})", vectors.all_but_the_top(n), best)
        whole = vectors.reduce(vectors.vector_size)
        for dim in (vectors.vector_size // 2, vectors.vector_size // 4):
            show(f"reduce({dim})", vectors.reduce(dim), best)
            show(f"reduce({vectors.vector_size}), then truncate({dim})", whole.truncate(dim), best)
            clean = vectors.all_but_the_top(1)
            show(f"all_but_the_top(1), then reduce({dim})", clean.reduce(dim), best)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                show(f"truncate({dim}) of what was not made so", vectors.truncate(dim), best)
        for kind in ("float16", "int8"):
            show(f"quantized({kind!r})", vectors.quantized(kind), best)
        _sizes(vectors)


LOAD = """
import json, re, sys
from pathlib import Path
import firth
import numpy as np

def status(name):
    found = re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1e3

np.zeros(1).sum(), firth.Vectors
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS"), status("RssAnon")
vectors = firth.Vectors.load(sys.argv[1])
vectors.vectors.sum()
print(json.dumps({"peak": status("VmHWM") - before[0], "private": status("RssAnon") - before[1]}))
"""


def _sizes(vectors: firth.Vectors) -> None:
    """Bytes on disk, and what loading takes in a process of its own (Linux)."""
    print(f"{'stored as':<58} {'file MB':>8} {'loaded: at most MB, file included':>34} {'private MB':>11}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("float32", "float16", "int8"):
            path = Path(folder) / f"{kind}.safetensors"
            vectors.quantized(kind).save(path)
            took = run([sys.executable, "-c", LOAD, path]).report
            size = path.stat().st_size / 1e6
            print(f"{kind:<58} {size:8.2f} {took['peak']:34.2f} {took['private']:11.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="enwiki10M", help="the text to train on (enwiki10M, enwiki100M)")
    parts = ("merge", "align", "compare", "reduce")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to run")
    options = parser.parse_args()
    folder = data_folder() / "pretrained"
    glove = firth.Vectors.load(folder / "glove.6B.50d.first50k.txt.xz")
    small = firth.Vectors.load(folder / "word2vec_c" / "vectors.txt")
    own = trained(options.text)
    print(f"GloVe {glove!r}\nfirth, {options.text}: {own!r}")
    if "merge" in options.parts:
        merging(glove, own, small)
    if "align" in options.parts:
        aligning(glove, own)
    if "compare" in options.parts:
        comparing(glove, own)
    if "reduce" in options.parts:
        reducing(glove, own)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"\n{cpu_seconds():.0f} CPU seconds, peak {peak:.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
