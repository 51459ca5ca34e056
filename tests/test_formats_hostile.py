"""Every reader on damaged files: cut at every byte, bits flipped, numbers replaced by absurd ones.

What is allowed: an error of firth's own, or vectors. What is not: another error, a crash, or memory
beyond what the size of the file allows. ``make fuzz`` does the same for longer, led by coverage.
"""

from __future__ import annotations

import random
import shutil
import struct
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from firth import formats
from firth.errors import FirthError
from firth.formats import FORMATS, Options, Table
from firth.keys import Keys

ENDINGS = {"npy": "v.npy", "static-folder": "v", "projector": "v"}
NAMES = [name for name in FORMATS if name not in ("gensim", "floret")]
MEMORY = 64 << 20  # bytes: thousands of times the size of the files here
ROWS = 8
FLIPS = 150  # damaged copies of a file


@pytest.fixture(scope="module", params=NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small file or folder of each format."""
    path = tmp_path_factory.mktemp(request.param) / ENDINGS.get(request.param, "v")
    matrix = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    keys = Keys([f"wörd{row}" for row in range(ROWS)])
    table = Table(keys, matrix, np.arange(ROWS, 0, -1, np.int64), matrix + 1, {"dim": 3})
    FORMATS[request.param].write(path, table)
    return request.param, path


def members(path: Path) -> list[Path]:
    """The files that make up a format."""
    return sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.iterdir())


def outcome(path: Path, name: str | None) -> bool:
    """Whether it is read; only errors of firth's own are caught."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = formats.read(path, name, Options(errors="replace"))
        except FirthError as error:
            assert "\n" not in str(error)
            return False
    assert len(table.keys) == len(table.matrix) > 0
    return True


def damaged(written: tuple[str, Path], tmp_path: Path) -> Iterator[tuple[Path, Path, bytes]]:
    """A copy, and in turn each of its files with the bytes in it."""
    _, source = written
    copy = tmp_path / "copy"
    shutil.copytree(source.parent, copy)
    for file in members(copy / source.name):
        if file.name == "README.md":  # nobody reads it
            continue
        data = file.read_bytes()
        yield copy / source.name, file, data
        file.write_bytes(data)


def test_undamaged(written: tuple[str, Path]) -> None:
    name, path = written
    assert outcome(path, None) and outcome(path, name)
    row, facts = formats.inspect(path)
    assert row.name == name and facts.rows == ROWS and facts.dim == 3
    assert facts.first == tuple(f"wörd{row}" for row in range(ROWS))


def test_cut_at_every_byte(written: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = written
    read = 0
    for path, file, data in damaged(written, tmp_path):
        for cut in sorted({*range(min(1024, len(data))), *range(max(0, len(data) - 1024), len(data))}):
            file.write_bytes(data[:cut])
            read += outcome(path, name)
    if name == "safetensors":
        assert read == 0


@pytest.mark.parametrize("seed", [1])
def test_flipped_and_replaced(written: tuple[str, Path], tmp_path: Path, seed: int) -> None:
    name, _ = written
    chance = random.Random(seed)
    tracemalloc.start()
    for path, file, data in damaged(written, tmp_path):
        for _ in range(FLIPS):
            bad = bytearray(data)
            place = chance.randrange(min(len(bad), chance.choice((16, 256, len(bad)))))
            match chance.randrange(5):
                case 0:
                    bad[place] ^= 1 << chance.randrange(8)
                case 1:
                    wrong = chance.choice((-1, 1 << 40, 1 << 62, -(1 << 63)))
                    bad[place : place + 8] = struct.pack("<q", wrong)
                case 2:
                    bad[place : place + 4] = struct.pack("<i", chance.choice((-1, 1 << 30, -(1 << 31))))
                case 3:
                    bad[place:place] = chance.choice((b"1099511627776", b"-1", b"\n", b" ", b"\t", b"\0"))
                case _:
                    del bad[place : place + chance.randrange(1, 64)]
            file.write_bytes(bad)
            outcome(path, chance.choice((name, None)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY
    assert pa.default_memory_pool().max_memory() < MEMORY


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("word2vec", b"1099511627776 4\na 1 2 3 4\n"),
        ("word2vec", b"2 1099511627776\na 1 2 3 4\n"),
        ("word2vec", b"-3 4\na 1 2 3 4\n"),
        ("word2vec", b"3 -4\na 1 2 3 4\n"),
        ("word2vec", b"1" * 200 + b" 4\na 1 2 3 4\n"),
        ("word2vec-binary", b"1099511627776 4\na " + bytes(16)),
        ("word2vec-binary", b"1 1099511627776\na " + bytes(16)),
        ("word2vec-binary", b"-3 4\na " + bytes(16)),
        ("word2vec-binary", b"3 -4\na " + bytes(16)),
        ("glove", b"a" + b" 1" * 20_000 + b"\nb 1\n"),
    ],
)
def test_headers_that_lie_allocate_nothing(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "v"
    path.write_bytes(data)
    tracemalloc.start()
    assert not outcome(path, name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY
