"""docs/fine-tuning.md keeps its word: its Python blocks run, its commands parse, and its names exist."""

import re
import shlex
from pathlib import Path

import pytest

from firth import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = blocks("python")
    assert len(python) == 2
    names = {"__name__": "page"}
    for block in python:
        exec(compile(block, "fine-tuning.md", "exec"), names)


def test_commands_fail_by_nothing_but_the_missing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.txt").write_text("a text\n")
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[0] == "firth"
        assert cli.run(words[1:]) == 1
        missing = words[words.index("--init") + 1]
        assert f"cannot read {missing}: no such file" in capsys.readouterr().err


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:docs|bench)/[\w.-]+)`", PAGE)
    assert named
    for name in named:
        assert (ROOT / name).exists(), name
