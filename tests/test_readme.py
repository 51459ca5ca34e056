"""README keeps its word: Python blocks run, and commands in shell blocks exist."""

import re
import shlex
from pathlib import Path

import pytest

from firth.cli.app import VERBS, command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
LINES = [
    line
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def test_the_blocks_were_found() -> None:
    assert PYTHON
    assert any(line.startswith("make ") for line in LINES)
    assert any(line.startswith("firth ") for line in LINES)


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(LINES)))
    assert {"demo", "test"} <= named <= targets


def test_verbs_and_options_exist() -> None:
    verbs = command().commands
    assert verbs.keys() == VERBS.keys()
    shown = set()
    for line in LINES:
        name, *words = shlex.split(line, comments=True)
        if name != "firth":
            continue
        verb, *arguments = words
        known = {flag for parameter in verbs[verb].params for flag in parameter.opts}
        assert {word for word in arguments if re.match("--?[a-z]", word)} <= known, line
        shown.add(verb)
    assert shown == VERBS.keys()


def test_files_that_readme_names_exist() -> None:
    for name in re.findall(r"`((?:bench|docs|examples)/[\w/.]+|[A-Z]+\.md)`", README):
        assert (ROOT / name).exists(), name
