"""Fuzz every reader in turn: ``python fuzz/run.py --seconds 120``, or ``make fuzz``.

The corpus of each is begun with a file by our own writer and grows below ``build/fuzz``, which git ignores.
The exit code is 1 where a reader crashed, hung or took too much memory; the input lies beside its corpus.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import targets

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "fuzz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("formats", nargs="*", help=f"which readers ({', '.join(targets.names())}); else all")
    parser.add_argument("--seconds", type=int, default=120, help="for each reader")
    settings = parser.parse_args()
    failed = [name for name in settings.formats or targets.names() if not fuzz(name, settings.seconds)]
    if failed:
        sys.exit(f"fuzz: {', '.join(failed)} failed; see {WORK}")


def fuzz(name: str, seconds: int) -> bool:
    """Run one reader for so long; whether it survived."""
    corpus = WORK / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(targets.make(name, Path(folder)).seeds()):
            (corpus / f"seed-{number}").write_bytes(data)
    command = [
        sys.executable,
        str(HERE / "read.py"),
        name,
        str(corpus),
        f"-max_total_time={seconds}",
        f"-max_len={targets.LARGEST}",
        f"-artifact_prefix={WORK / name}-",
        "-print_final_stats=1",
    ]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    peak = re.search(r"stat::peak_rss_mb:\s*(\d+)", done.stderr)
    count = f"{int(runs[1]):,}" if runs else "?"
    verdict = "ok" if done.returncode == 0 else f"FAILED, exit code {done.returncode}"
    print(
        f"{name:16} {verdict}: {count} inputs in {time.monotonic() - began:.0f} s, "
        f"{covered[-1] if covered else '?'} places covered, peak {peak[1] if peak else '?'} MB",
        flush=True,
    )
    if done.returncode:
        print("\n".join([*done.stdout.splitlines()[-40:], *done.stderr.splitlines()[-12:]]), file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    main()
