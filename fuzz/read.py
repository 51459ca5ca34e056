"""Fuzz one reader: ``python fuzz/read.py FORMAT CORPUS [options of libFuzzer]``; ``fuzz/run.py`` runs all.

Needs atheris (``pip install -e '.[fuzz]'``). Anything that is no error of firth's own ends the run, and so
does a single input that takes 10 s, or more memory than 512 MiB beyond that of the start.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["firth"]):
    import targets

MEMORY = 512 << 20
SECONDS = 10


def main() -> None:
    name = sys.argv.pop(1)
    warnings.simplefilter("ignore")
    # Files are written once an input: in memory where the system has such a folder.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        target = targets.make(name, Path(folder))
        originals = {file: file.read_bytes() for file in target.members}
        for data in target.seeds():
            target.once(data, originals)  # all that is imported late is there before memory is measured
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, -1))
        atheris.Setup([*sys.argv, f"-timeout={SECONDS}"], lambda data: target.once(data, originals))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
