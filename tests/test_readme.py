"""README and the guide keep their word: Python blocks run, and commands in shell blocks exist."""

import re
import shlex
from pathlib import Path

import pytest

from firth.cli.app import GROUPS, VERBS, command

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md")}
every_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of one kind, each below as many empty lines as it takes to keep its line numbers."""
    found = re.finditer(rf"^```{kind}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return ["\n" * PAGES[page].count("\n", 0, match.start(1)) + match[1] for match in found]


def shell_lines(page: str) -> list[str]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@every_page
def test_the_blocks_were_found(page: str) -> None:
    assert blocks(page, "python")
    assert any(line.startswith("firth ") for line in shell_lines(page))


@every_page
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(shell_lines("README.md"))))
    assert {"demo", "test"} <= named <= targets


@every_page
def test_verbs_and_options_exist(page: str) -> None:
    verbs = command().commands
    assert verbs.keys() == VERBS.keys() | GROUPS.keys()
    shown = set()
    for line in shell_lines(page):
        name, *words = shlex.split(line, comments=True)
        if name != "firth":
            continue
        verb, *arguments = words
        called = verbs[verb].commands[arguments.pop(0)] if verb in GROUPS else verbs[verb]
        known = {flag for parameter in called.params for flag in parameter.opts}
        assert {word for word in arguments if re.match("--?[a-z]", word)} <= known, line
        shown.add(verb)
    assert shown == VERBS.keys() | GROUPS.keys()


@every_page
def test_files_that_are_named_exist(page: str) -> None:
    for name in re.findall(r"`((?:bench|docs|examples)/[\w/.]+|[A-Z]+\.md)`", PAGES[page]):
        assert (ROOT / name).exists(), name
