"""The scripts around the package: the bench's correctness gate has teeth, and the demo runs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import firth

ROOT = Path(__file__).parents[1]


def script(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the repository, imported."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_gate_passes_as_things_are(monkeypatch: pytest.MonkeyPatch) -> None:
    script("bench/common.py", monkeypatch).gate(dims=(20,))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-2])
@pytest.mark.parametrize("table", ["matrix", "context"])
def test_the_gate_sees_one_wrong_number(monkeypatch: pytest.MonkeyPatch, value: float, table: str) -> None:
    common = script("bench/common.py", monkeypatch)
    train = firth.train

    def wrong(*arguments: Any, device: str, **settings: Any) -> firth.Vectors:
        vectors = train(*arguments, device="reference", **settings)
        if device == "reference":
            return vectors
        assert vectors.context is not None
        matrix, context = vectors.vectors.copy(), vectors.context.vectors.copy()
        (matrix if table == "matrix" else context)[3, 2] += value
        return firth.Vectors(vectors.index_to_key, matrix, context=context)

    monkeypatch.setattr(firth, "train", wrong)
    with pytest.raises(SystemExit, match="no speed is printed"):
        common.gate(dims=(20,))


def test_the_demo_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = script("examples/demo.py", monkeypatch)
    library, left_out = tmp_path / "lib", tmp_path / "lib" / "json" / "tests"
    left_out.mkdir(parents=True)
    names = [*demo.NAMES, *demo.ANALOGY, "other", "names"]
    (library / "module.py").write_text(" ".join(names * 100))
    (left_out / "test_it.py").write_text("unseen " * 100)
    monkeypatch.setattr(demo.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    output = tmp_path / "build" / "out.safetensors"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(output), "--epochs", "1"])
    demo.main()
    shown = capsys.readouterr().out
    assert "1 files of Python's standard library" in shown and all(name in shown for name in demo.NAMES)
    assert "unseen" not in firth.Vectors.load(output)
