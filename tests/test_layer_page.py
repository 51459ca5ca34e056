"""docs/layer.md keeps its word: its Python blocks run, and it names every parameter."""

import inspect
import re
from pathlib import Path

import pytest

import firth.nn

PAGE = (Path(__file__).parents[1] / "docs" / "layer.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "layer.md", "exec"), names)


@pytest.mark.parametrize("layer", [firth.nn.Embedding, firth.nn.EmbeddingBag])
def test_every_parameter_is_named(layer: type) -> None:
    for name in inspect.signature(layer).parameters:
        assert re.search(rf"\b{name}\b", PAGE), name


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"`(docs/[\w.-]+)`", PAGE):
        assert (Path(__file__).parents[1] / name).exists(), name
