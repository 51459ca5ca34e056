"""Train on text that every machine with Python has: the source of Python's standard library.

    make demo        (or: python examples/demo.py [--output FILE])

Names and words of the code, its comments and its documentation strings are the tokens: about three
million with the library's own tests, fewer where a system leaves these out. Nothing is downloaded.
The vectors are saved, and asked what they have learned.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import firth
from firth.progress import pick

SKIPPED = {"site-packages", "dist-packages", "__pycache__"}
NAMES = ["list", "float", "socket", "raise", "json", "async"]
ANALOGY = ("encode", "decode", "dumps")


def standard_library() -> list[Path]:
    """The .py files of this interpreter's standard library that hold anything, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = (path for path in root.rglob("*.py") if not SKIPPED & set(path.relative_to(root).parts[:-1]))
    return sorted(path for path in found if path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build/demo/python.safetensors"))
    parser.add_argument("--epochs", type=int, default=10)
    settings = parser.parse_args()

    files = standard_library()
    progress = pick()
    # Names and words, a file after the other: lines of code are too short to be sentences.
    tokenizer = firth.Tokenizer(pattern=r"[^\W\d]\w*", lines=False)
    corpus = firth.Corpus.encode(
        files, min_count=25, tokenizer=tokenizer, errors="replace", progress=progress
    )
    print(f"{len(files):,} files of Python's standard library: {corpus}")

    vectors = firth.train(
        corpus, firth.SkipGram(window=5, negatives=5), dim=100, epochs=settings.epochs, progress=progress
    )
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    vectors.save(settings.output)
    print(f"saved to {settings.output}\n")

    for name in NAMES:
        found = vectors.most_similar(name, topn=5)
        print(f"{name:<8}", "  ".join(f"{key} {score:.2f}" for key, score in found))
    a, b, c = ANALOGY
    found = vectors.most_similar(positive=[b, c], negative=[a], topn=3)
    print(f"\n{a} is to {b} as {c} is to:", ", ".join(key for key, _ in found))
    print(f"\nAsk for more: firth similar {settings.output} yield")


if __name__ == "__main__":
    main()
