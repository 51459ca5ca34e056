"""One target a reader: how a seed file is made by our writer, and how bytes are read.

A format that is several files is fuzzed one file at a time, the others as the writer left them; the first
byte of an input says which.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firth import formats
from firth.errors import FirthError
from firth.formats import FORMATS, Options, Table, text
from firth.keys import Keys

FLORET = b"3 2 3 5 2 2166136261 < >\n0 0.5 -1\n1 2 0.25\n2 1e-3 4\n"
LARGEST = 1 << 16
"""Bytes of an input that are looked at."""


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        name: of the format.
        path: the file or folder that is read.
        members: the files that inputs are written to.
    """

    name: str
    path: Path
    members: tuple[Path, ...]

    def seeds(self) -> list[bytes]:
        """Inputs that are read without an error."""
        several = len(self.members) > 1
        files = enumerate(self.members)
        return [(bytes([number]) if several else b"") + file.read_bytes() for number, file in files]

    def once(self, data: bytes, originals: dict[Path, bytes]) -> None:
        """Read one input; errors of firth's own are what is expected."""
        member = self.members[0]
        if len(self.members) > 1:
            member = self.members[data[0] % len(self.members)] if data else member
            data = data[1:]
        member.write_bytes(data[:LARGEST])
        text.SMALL = 0 if len(data) % 2 else 1 << 30  # small blocks by pyarrow or by hand
        try:
            with contextlib.suppress(FirthError):
                table = formats.read(self.path, self.name, Options(errors="replace"))
                assert len(table.keys) == len(table.matrix) and (len(table.keys) or table.subwords)
                assert all(table.keys)  # keys are decoded late
            if len(data) % 16 == 0:  # recognising and looking without reading are readers of their own
                with contextlib.suppress(FirthError):
                    formats.inspect(self.path)
        finally:
            member.write_bytes(originals[member])


def names() -> list[str]:
    """The formats that have a reader of our own."""
    return [name for name in FORMATS if name != "gensim"]


def make(name: str, folder: Path) -> Target:
    """Write a small table of format ``name`` into ``folder``."""
    path = folder / ("v.npy" if name == "npy" else "v")
    if name == "floret":  # its writer wants rows that n-grams share, and those have no words
        path.write_bytes(FLORET)
        return Target(name, path, (path,))
    matrix = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    keys = Keys(["</s>", "zürich", "a.b", "日本", "x", "NaN"])
    table = Table(keys, matrix, np.arange(6, 0, -1, np.int64), matrix + 1, {"dim": 3})
    FORMATS[name].write(path, table)
    if path.is_dir():
        members = [file for file in path.iterdir() if file.name != "README.md"]
    else:
        members = [file for file in folder.iterdir() if file.is_file()]
    return Target(name, path, tuple(sorted(members)))
