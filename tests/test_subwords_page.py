"""docs/subwords.md keeps its word: its Python blocks run, and its table of questions is right."""

import re
from pathlib import Path

import numpy as np
import pytest

from firth import Vectors
from firth.errors import KeyNotFound
from firth.subwords import DenseRows, FastTextSubwords

PAGE = (Path(__file__).parents[1] / "docs" / "subwords.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "subwords.md", "exec"), names)


def test_every_name_of_the_page_is_there() -> None:
    for name in re.findall(r"`v\.(\w+)\(", PAGE):
        assert hasattr(Vectors, name), name


def test_what_keeps_subwords() -> None:
    table = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    vectors = Vectors(["a", "b"], table[:2], subwords=FastTextSubwords(DenseRows(table), 2, 3))
    lost = vectors.normalized()
    with pytest.raises(KeyNotFound):
        lost["unseen"]
    assert "subwords left out" in lost.metadata["changes"][-1]
    kept = (vectors.subset(["b"]), vectors.with_vectors({"c": np.ones(4)}), vectors.quantized("float16"))
    turned = vectors.reduce(2)
    moved = (turned, turned.truncate(1), vectors.all_but_the_top(1), vectors.vectors_for_all(["unseen"]))
    for one in (*kept, *moved):
        assert one.has_vector("another")
