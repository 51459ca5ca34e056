"""docs/two-models.md keeps its word: its Python blocks run, its options and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "two-models.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "two-models.md", "exec"), names)


@pytest.mark.parametrize("verb", ["compare", "align", "merge", "reduce"])
def test_options_of_the_commands_exist(verb: str) -> None:
    lines = re.findall(rf"^firth {verb} .*$", PAGE, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", "firth", verb, "--help"],
        env={"COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert lines
    for option in {option for line in lines for option in re.findall(r"--[\w-]+", line)}:
        assert option in done.stdout, option


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"\b((?:docs|tests|bench)/[\w.-]+\w)", PAGE):
        assert (ROOT / name).exists(), name
