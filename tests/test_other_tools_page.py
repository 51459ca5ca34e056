"""docs/other-tools.md keeps its word: its Python blocks run where their packages are installed."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "other-tools.md").read_text(encoding="utf-8")


def packages(block: str) -> set[str]:
    """The packages that a block imports."""
    found = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.filterwarnings("ignore")  # what other libraries say at import
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {"__name__": "page"}
    n_run = 0
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if all(importlib.util.find_spec(package) for package in packages(block)):
            exec(compile(block, "other-tools.md", "exec"), names)
            n_run += 1
    assert n_run >= 9  # those that need nothing but firth, torch and numpy


def test_files_and_names_that_are_named_exist() -> None:
    import firth

    for name in re.findall(r"`(docs/[\w.-]+)`", PAGE):
        assert (ROOT / "docs" / Path(name).name).exists(), name
    for name in re.findall(r"`(firth(?:\.\w+)+)", PAGE):
        thing: object = firth
        for part in name.split(".")[1:]:
            if part == "DocumentTransformer" and not importlib.util.find_spec("sklearn"):
                break
            thing = getattr(thing, part)
