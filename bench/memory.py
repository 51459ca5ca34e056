"""Peak memory: of counting and encoding a text and one ten times as long, and of a whole training run.

    python bench/memory.py

The long text is the short one ten times over: each time its lines come in another order, each turned
at another place, so that no two stretches are the same. min_count is ten times as high for it, so that
the same words survive and both vocabularies are equal: what is left to grow is what grows with the text.
The long text (1 GB) is removed at the end.

Counted is the peak of anonymous memory (RssAnon of /proc, sampled), for a file that is mapped is the
system's to keep or drop; of the training run also the peak of all resident memory (VmHWM).

No memory is printed unless the long text gave the same vocabulary and ten times the words. The exit code
is 1 where the peak grows by more than ``--slack``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

ENCODE = """
import hashlib, json, sys
import firth
text, cache, min_count, threads = sys.argv[1:]
corpus = firth.Corpus.encode(text, min_count=int(min_count), threads=int(threads), cache=cache)
tokens = hashlib.sha256("\\n".join(corpus.vocab.tokens).encode()).hexdigest()
print(json.dumps({"words": len(corpus), "vocab": len(corpus.vocab), "tokens": tokens}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="enwiki100M", help="a text of the data folder")
    parser.add_argument("--words", type=int, help="only the first so many words of it")
    parser.add_argument("--times", type=int, default=10, help="how much longer the long text is")
    parser.add_argument("--one-line", action="store_true", help="write the long text as one line")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--min-count", type=int, default=5)
    parser.add_argument("--dim", type=int, default=100, help="of the training run")
    parser.add_argument("--epochs", type=int, default=1, help="of the training run")
    parser.add_argument("--slack", type=float, default=0.2, help="how much growth is noise")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    short = common.lines_file(settings.text, settings.words)
    with tempfile.TemporaryDirectory(dir=common.WORK) as name:
        folder = Path(name)
        once = _encode(short, folder, settings.min_count, settings.threads)
        long = folder / "long.txt"
        repeat(short, long, settings.times, b" " if settings.one_line else b"\n")
        often = _encode(long, folder, settings.min_count * settings.times, settings.threads)
        long.unlink()
        gate(once.report, often.report, settings.times)
        trained = _train(short, folder, settings)
    growth = often.peak_anonymous_bytes / once.peak_anonymous_bytes - 1
    report = {
        "machine": common.machine(),
        "text": short.name,
        "settings": {name: getattr(settings, name) for name in ("times", "one_line", "threads")},
        "encode": {"once": _facts(once), "often": _facts(often), "growth": growth},
        "train": {"dim": settings.dim, "epochs": settings.epochs, **_facts(trained)},
    }
    print(json.dumps(report, indent=1)) if settings.json else _print(report)
    if growth > settings.slack:
        sys.exit(
            f"bench: the peak grows by {100 * growth:.0f} % with a text {settings.times} times as long; "
            f"at most {100 * settings.slack:.0f} % is expected"
        )


def repeat(source: Path, target: Path, times: int, end: bytes) -> None:
    """Write ``source`` so many times, the lines shuffled and each turned at a random place."""
    chance = random.Random(1)
    lines = source.read_bytes().splitlines()
    print(f"writing {source.name} {times} times", file=sys.stderr)
    with target.open("wb") as file:
        for _ in range(times):
            chance.shuffle(lines)
            for line in lines:
                cut = line.find(b" ", chance.randrange(len(line)))
                file.write(line if cut < 0 else line[cut + 1 :] + b" " + line[:cut])
                file.write(end)


def _encode(text: Path, folder: Path, min_count: int, threads: int) -> common.Run:
    print(f"encoding {text.name}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return common.run([sys.executable, "-c", ENCODE, text, cache, str(min_count), str(threads)])


def _train(text: Path, folder: Path, settings: argparse.Namespace) -> common.Run:
    print(f"training on {text.name}", file=sys.stderr)
    options = {
        "--dim": settings.dim,
        "--epochs": settings.epochs,
        "--threads": settings.threads,
        "--min-count": settings.min_count,
        "--cache": folder / "cache",
        "--output": folder / "vectors.safetensors",
    }
    flat = [str(part) for option in options.items() for part in option]
    return common.run([sys.executable, "-m", "firth", "train", "--quiet", text, *flat])


def gate(once: dict[str, Any], often: dict[str, Any], times: int) -> None:
    """Stop the bench where the long text is not the short one ``times`` over."""
    if once["tokens"] != often["tokens"] or often["words"] != times * once["words"]:
        sys.exit(
            f"bench: {often['words']:,} words of {often['vocab']:,} types were encoded, not {times} times "
            f"{once['words']:,} of the same {once['vocab']:,}; no memory is printed"
        )


def _facts(run: common.Run) -> dict[str, Any]:
    return {
        **{name: run.report[name] for name in ("words", "vocab") if name in run.report},
        "peak_anonymous_bytes": run.peak_anonymous_bytes,
        "peak_bytes": run.peak_bytes,
        "cpu_s": run.cpu_s,
    }


def _print(report: dict[str, Any]) -> None:
    settings, encode, train = report["settings"], report["encode"], report["train"]
    print(report["machine"])
    print(f"{report['text']}, {settings['threads']} threads; peak memory in MB")
    print(f"{'':32} {'M words':>8} {'anonymous':>9} {'all':>6} {'CPU s':>6}")
    rows = {
        "count and encode": encode["once"],
        f"count and encode, {settings['times']} times it": encode["often"],
        f"whole training, dim {train['dim']}, {train['epochs']} epochs": {**encode["once"], **train},
    }
    for what, row in rows.items():
        print(
            f"{what:32} {row['words'] / 1e6:>8.1f} {row['peak_anonymous_bytes'] / 1e6:>9.0f} "
            f"{row['peak_bytes'] / 1e6:>6.0f} {row['cpu_s']:>6.1f}"
        )
    line = " in one line" if settings["one_line"] else ""
    print(f"a text {settings['times']} times as long{line}: {100 * encode['growth']:+.0f} % anonymous memory")


if __name__ == "__main__":
    main()
