"""docs/formats.md keeps its word: its Python runs, and it names every format and what each keeps."""

import re
import shlex
from pathlib import Path

import pytest

from firth.formats import FORMATS

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "formats.md", "exec"), {"__name__": "page"})


def test_every_format_is_named_with_what_it_keeps() -> None:
    rows = dict(re.findall(r"^\| (`[a-z0-9-]+`(?:, `[a-z]+`)*) \| (.*) \|$", PAGE, re.MULTILINE))
    named = {name: row for names, row in rows.items() for name in re.findall(r"`([a-z0-9-]+)`", names)}
    assert named.keys() == FORMATS.keys()
    for name, row in named.items():
        if name in ("fasttext", "floret"):
            continue
        endings, kept, *_ = row.split(" | ")
        form = FORMATS[name]
        assert set(re.findall(r"`(\.[a-z0-9]+)`", endings)) == (set(form.suffixes) - {".safetensors"})
        wanted = {"counts", "context", "subwords", "metadata"} if form.complete else set(form.holds)
        assert set(re.findall(r"[a-z]+", kept)) - {"nothing"} == wanted, name


def test_the_commands_have_the_options_that_are_shown(tmp_path: Path) -> None:
    from firth.cli.app import command

    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = command().commands
    for line in block.splitlines():
        _, verb, *arguments = shlex.split(line, comments=True)
        commands[verb].make_context(verb, arguments)
