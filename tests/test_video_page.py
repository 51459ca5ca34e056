"""docs/video.md keeps its word: its Python blocks run, its commands, options and files exist."""

import re
import shlex
from pathlib import Path

import pytest

from firth.cli.app import command
from firth.video.codecs import CONTAINERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "video.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "video.md", "exec"), names)


def test_commands_and_options_exist() -> None:
    verbs = command().commands["video"].commands
    lines = [line for line in PAGE.splitlines() if line.startswith("firth video ")]
    shown = set()
    for line in lines:
        verb, *arguments = shlex.split(line, comments=True)[2:]
        known = {flag for parameter in verbs[verb].params for flag in parameter.opts}
        assert {word for word in arguments if re.match("--?[a-z]", word)} <= known, line
        shown.add(verb)
    assert shown == verbs.keys()


def test_containers_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (`\.[^|]*) \| (`[^|]*) \|", PAGE, re.MULTILINE)
    told = {}
    for endings, encoders in rows:
        for ending in re.findall(r"`(\.\w+)`", endings):
            told[ending] = [
                name for name, away in re.findall(r"`(\w+)`(?: \(not (\.\w+)\))?", encoders) if away != ending
            ]
    assert told == {ending: list(container.lossless) for ending, container in CONTAINERS.items()}


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"`((?:docs|bench)/[\w.-]+)`", PAGE):
        assert (ROOT / name).exists(), name
