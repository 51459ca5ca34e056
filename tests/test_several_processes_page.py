"""docs/several-processes.md: its Python runs, and the commands that it shows are understood."""

import re
import shlex
from pathlib import Path

import pytest

from firth import cli

PAGE = (Path(__file__).parents[1] / "docs" / "several-processes.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRTH_CACHE", str(tmp_path / "cache"))
    (block,) = blocks("python")
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(block, "several-processes.md", "exec"), names)
    assert len(names["vectors"]) == 4  # type: ignore[arg-type]


def test_commands_fail_by_nothing_but_the_missing_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (sh,) = blocks("sh")
    lines = [line for line in sh.replace("\\\n", " ").splitlines() if line.startswith("torchrun")]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        call = words[words.index("firth") + 1 :]
        if "cuda" in call:
            call[call.index("cuda")] = "cpu"
        assert cli.run(call) == 1
        assert "wiki" in capsys.readouterr().err
