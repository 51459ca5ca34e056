"""docs/large-tables.md keeps its word: its Python blocks run, and what it names exists."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "large-tables.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *blocks, _ = BLOCKS
    assert len(blocks) == 3
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "large-tables.md", "exec"), names)


def test_the_program_for_several_processes_runs_with_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[-1]],
        env={**os.environ, **place, "GLOO_SOCKET_IFNAME": "lo"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table" / "table.json").exists()


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"\b((?:docs|tests|bench)/[\w.-]+\w)", PAGE):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(firth/[\w./]+\.py)`", PAGE):
        assert (ROOT / "src" / name).exists(), name
