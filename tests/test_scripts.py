"""The scripts around the package: the bench's correctness gate has teeth, and the demo runs."""

import importlib.util
import itertools
import subprocess
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


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> None:
    """``common`` can be imported, as it can by a bench that is run."""
    script("bench/common.py", monkeypatch)


@pytest.mark.parametrize(
    "name", ["finetune", "formats", "memory", "quality", "search", "speed", "startup", "subwords"]
)
def test_each_bench_has_help_and_json(name: str) -> None:
    call = [sys.executable, ROOT / "bench" / f"{name}.py", "--help"]
    shown = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert "--json" in shown and f"python bench/{name}.py" in shown


def test_the_search_bench_sees_a_wrong_row(benches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    search = script("bench/search.py", monkeypatch)
    matrix, queries = search._data(300, 7, 16)
    matrix[200] = matrix[100]  # an equal score may stand in the other's place
    queries[0] = matrix[100]
    best = search.best_scores(matrix, queries)
    right = np.argsort(-(queries @ matrix.T), axis=1, kind="stable")[:, :10]
    search.gate("right", right, matrix, queries, best)
    swapped = right.copy()
    swapped[0, :2] = swapped[0, 1::-1]
    search.gate("swapped", swapped, matrix, queries, best)
    worst = np.argmin(queries[5] @ matrix.T)
    for query, place, row in ((3, 9, right[3, 8]), (0, 0, right[0, 1]), (5, 9, worst)):
        wrong = right.copy()
        wrong[query, place] = row
        with pytest.raises(SystemExit, match="no speed is printed"):
            search.gate("wrong", wrong, matrix, queries, best)


def test_the_startup_bench_sees_wrong_answers(benches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    startup = script("bench/startup.py", monkeypatch)
    startup.gate("python", {}, ["a"])
    startup.gate("firth", {"keys": ["a"], "heavy": []}, ["a"])
    with pytest.raises(SystemExit, match="torch was imported"):
        startup.gate("firth", {"keys": ["a"], "heavy": ["torch"]}, ["a"])
    with pytest.raises(SystemExit, match="not the nearest"):
        startup.gate("firth", {"keys": ["b"], "heavy": []}, ["a"])


def test_the_subwords_bench_writes_a_model_and_sees_a_wrong_number(
    benches: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subwords = script("bench/subwords.py", monkeypatch)
    words = subwords.write(tmp_path / "model.bin", 30, 50, 4)
    asked = [*words[:5], "größe", "unseen"]
    expected = subwords.plain(tmp_path / "model.bin", words, asked, 50, 4)
    found = firth.Vectors.load(tmp_path / "model.bin")[asked]
    subwords.gate("firth", found, expected)
    found[6, 3] += 1e-4
    with pytest.raises(SystemExit, match="no figure is printed"):
        subwords.gate("firth", found, expected)


@pytest.mark.parametrize("end", [b"\n", b" "])
def test_the_long_text_of_the_memory_bench(
    benches: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: bytes
) -> None:
    memory = script("bench/memory.py", monkeypatch)
    lines = [" ".join(f"w{number % 7}" for number in range(row, row + 12)) for row in range(5)]
    source, target = tmp_path / "once.txt", tmp_path / "often.txt"
    source.write_text("\n".join([*lines, "single", ""]))
    memory.repeat(source, target, 3, end)
    words = target.read_text().split()
    assert sorted(words) == sorted(source.read_text().split() * 3)
    assert words[:61] != words[61:122]
    assert target.read_bytes().count(b"\n") == (18 if end == b"\n" else 0)
    facts = {"words": 10, "vocab": 2, "tokens": "hash"}
    memory.gate(facts, {**facts, "words": 30}, 3)
    for wrong in ({"words": 29}, {"words": 30, "tokens": "other"}):
        with pytest.raises(SystemExit, match="no memory is printed"):
            memory.gate(facts, {**facts, **wrong}, 3)


@pytest.mark.parametrize(("window", "share"), [(1, 1), (3, 2), (2, 4), (5, 3)])
def test_the_span_of_a_group_is_the_mean_over_all_windows(
    benches: None, monkeypatch: pytest.MonkeyPatch, window: int, share: int
) -> None:
    speed = script("bench/speed.py", monkeypatch)
    # Far from the borders of a piece; the group stands at 0 .. share - 1.
    spans = [
        1 + max(i + reach for i, reach in enumerate(drawn)) - min(i - reach for i, reach in enumerate(drawn))
        for drawn in itertools.product(range(1, window + 1), repeat=share)
    ]
    assert speed.span(window, share) == pytest.approx(np.mean(spans))


def test_the_memory_of_a_child_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    common = script("bench/common.py", monkeypatch)
    if not Path("/proc/self/status").exists():
        pytest.skip("the system has no /proc that tells")
    ours = np.ones(1 << 25)  # 256 MiB that the child has not
    run = common.run([sys.executable, "-c", "import time; time.sleep(0.2)"])
    assert 0 < run.peak_anonymous_bytes < run.peak_bytes < ours.nbytes / 2


def test_the_demo_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = script("examples/demo.py", monkeypatch)
    library, left_out = tmp_path / "lib", tmp_path / "lib" / "site-packages" / "other"
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
