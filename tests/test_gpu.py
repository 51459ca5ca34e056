"""Training on a card: the kernels in a process of their own, since Triton reads TRITON_INTERPRET when it is
imported and other tests shall not see it (cases: ``gpu_cases.py``); and what is said without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import firth
import planted
from firth import kernels, queries, search
from firth.cli import run as firth_command
from firth.errors import RunError, SettingError
from firth.kernels import gpu, gpu_device, reference
from firth.kernels.gpu import Card, Design
from firth.training import memory
from firth.training.config import TrainConfig
from test_rows_gpu import needs_triton
from test_scripts import script

HERE = Path(__file__).parent
WITHOUT_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA card")


def cases(folder: Path, *arguments: str, interpret: bool) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        [*command, str(HERE / "gpu_cases.py")],
        env=environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    said = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert " passed" in done.stdout, said
    skipped = re.findall(r"^SKIPPED .*: (.*)$", done.stdout, re.MULTILINE)
    assert all(reason.startswith("the interpreter ") for reason in skipped), said


@needs_triton
def test_under_the_interpreter(tmp_path: Path) -> None:
    cases(tmp_path, "-k", "not compile", interpret=True)


@needs_triton
def test_kernels_compile_for_cards(tmp_path: Path) -> None:
    cases(tmp_path, "-k", "compile", interpret=False)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")
def test_on_the_card(tmp_path: Path) -> None:
    cases(tmp_path, "-k", "not compile", interpret=False)


# --- which device -------------------------------------------------------------------------------


@WITHOUT_CARD
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_without_a_card_a_sentence_says_what_was_looked_for(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "out.safetensors"
    text.write_text("a b a b\n")
    assert firth_command(["train", str(text), "-o", str(output), "--device", device]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"device '{device}' needs a CUDA card" in said, said
    assert f"torch {torch.__version__}" in said and "--device cpu" in said
    assert not output.exists()


def test_the_command_line_knows_deterministic(tmp_path: Path) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "out.safetensors"
    text.write_text("a b c a b d\n" * 20)
    options = ["--min-count", "1", "--dim", "4", "--threads", "2", "--device", "cpu", "--quiet"]
    assert firth_command(["train", str(text), "-o", str(output), "--deterministic", *options]) == 0
    assert firth.Vectors.load(output).metadata["deterministic"] is True


@pytest.mark.parametrize("device", ["tpu", "gpu", "", "mps:0"])
def test_unknown_devices_are_named(device: str) -> None:
    with pytest.raises(SettingError, match=f"one of auto, cpu, cuda, cuda:NUMBER, reference, not '{device}'"):
        kernels.pick(device)


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cuda:1:2"])
def test_odd_names_of_cards_are_refused(device: str) -> None:
    with pytest.raises(SettingError, match="device must be cuda or cuda:NUMBER"):
        kernels.pick(device)


def _cards(monkeypatch: pytest.MonkeyPatch, count: int, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(gpu, "_triton", lambda: None)


def test_a_card_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    _cards(monkeypatch, 2)
    assert str(Card("cuda").device) == "cuda:0"
    assert str(Card("cuda:1").device) == "cuda:1"
    with pytest.raises(
        SettingError, match="device 'cuda:2' is not there, 2 CUDA cards are; use --device cpu"
    ):
        Card("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")  # torchrun gives each process on a machine its number
    assert str(Card("cuda").device) == "cuda:1"
    assert str(Card("cuda:0").device) == "cuda:0"


@pytest.mark.parametrize(
    ("driver", "count", "capability", "expected"),
    [
        (True, 1, (9, 0), "Card"),
        (True, 1, (7, 5), "cpu"),
        (True, 0, (0, 0), "cpu"),
        (False, 1, (9, 0), "cpu"),
    ],
)
def test_auto_takes_a_card_where_there_is_a_fit_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: bool, count: int, capability: Any, expected: str
) -> None:
    _cards(monkeypatch, count, capability)
    if driver:
        (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(kernels, "_DRIVERS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    picked = kernels.pick("auto")
    assert (type(picked).__name__ if expected == "Card" else picked.__name__.rpartition(".")[2]) == expected  # type: ignore[attr-defined]


def test_auto_imports_no_torch_where_there_is_no_driver() -> None:
    program = (
        "import sys\nfrom firth import kernels\nkernels._DRIVERS = ('/nowhere',)\n"
        "kernels.pick('auto')\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_without_triton_a_sentence_says_what_is_missing() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
from firth.errors import MissingExtra
from firth.kernels import gpu
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
try:
    gpu.Card("cuda:0")
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("training on a CUDA card needs Triton"), done.stdout
    assert "--device cpu" in done.stdout


@pytest.mark.parametrize(
    "design", [Design(precision="fp8"), Design(columns=48), Design(columns=8), Design(warps=3)]
)
def test_designs_that_do_not_exist_are_refused(monkeypatch: pytest.MonkeyPatch, design: Design) -> None:
    _cards(monkeypatch, 1)
    with pytest.raises(SettingError, match=r"Design\(\): (precision|columns|warps) must be"):
        Card("cuda", design=design)


def test_so_many_programs_that_the_hottest_word_stays_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    _cards(monkeypatch, 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132)
    )
    card = Card("cuda")
    step = firth.SkipGram().step(0.025, 0.0, 0.0)
    text = (0.0131, 0.0189)  # of enwiki100M with sample 1e-3
    stable = card.programs(10**6, step, 0.025, text)
    assert 100 <= stable <= 200  # 256 were seen to be stable, 320 not quite, 512 to explode
    assert card.programs(10**6, step, 0.05, text) == pytest.approx(stable / 2, abs=1)
    assert card.programs(10**6, step, 1e-6, text) == 132 * card.design.programs
    assert card.programs(7, step, 0.025, text) == 7
    assert card.programs(10**6, step, 0.025, (1.0, 1.0)) < 8  # a tiny vocabulary
    assert card.programs(10**6, step._replace(share=0), 0.025, text) > stable  # a pair at a time
    assert Card("cuda", deterministic=True).programs(10**6, step, 0.025, text) == 1
    assert Card("cuda", design=Design(most=9)).programs(10**6, step, 0.025, text) == 9


def test_deterministic_on_the_cpu_is_one_thread() -> None:
    corpus = planted.clusters(n_sentences=400)
    same = [
        firth.train(corpus, dim=8, epochs=1, deterministic=True, threads=3, device="cpu") for _ in range(2)
    ]
    one = firth.train(corpus, dim=8, epochs=1, threads=1, device="cpu")
    assert np.array_equal(same[0].vectors, same[1].vectors) and np.array_equal(same[0].vectors, one.vectors)
    assert same[0].metadata["deterministic"] and same[0].metadata["threads"] == 1


# --- memory -------------------------------------------------------------------------------------


class Full:
    """Kernels of a card with so many bytes free."""

    run_blocks = 1

    def __init__(self, free: int | None) -> None:
        self._free = free

    def free_memory(self) -> int | None:
        return self._free

    def fetch(self) -> None: ...
    def forget(self) -> None: ...

    def run(self, *_: Any) -> Any:
        raise AssertionError("it was not to begin")

    alias_table = staticmethod(kernels.pick("cpu").alias_table)


def test_tables_that_the_card_cannot_hold_are_refused_with_what_would_fit() -> None:
    memory.check_card(Full(None), 10**9, 1000)
    memory.check_card(Full(memory.card_bytes(1_000_000, 300)), 1_000_000, 300)
    memory.check_card(kernels.pick("cpu"), 10**9, 1000)
    with pytest.raises(SettingError) as caught:
        memory.check_card(Full(3 * 10**9), 10_000_000, 300)
    said = str(caught.value)
    assert "float32 (10,000,000, 300) of 12.2 GB each" in said and "3.0 GB are free" in said
    dim, size = (int(said.partition(f"{flag} ")[2].partition(")")[0]) for flag in ("--dim", "--max-vocab"))
    assert memory.card_bytes(10_000_000, dim) <= 3 * 10**9 < memory.card_bytes(10_000_000, dim + 1)
    assert memory.card_bytes(size, 300) <= 3 * 10**9 < memory.card_bytes(size + 1, 300)


def test_a_card_without_room_for_float32_is_told_of_bfloat16() -> None:
    free = memory.card_bytes(1_000_000, 300, "bfloat16")
    memory.check_card(Full(free), 1_000_000, 300, "bfloat16")
    with pytest.raises(
        SettingError, match=r"float32 \(1,000,000, 300\).*tables in bfloat16 \(--table-dtype bf"
    ):
        memory.check_card(Full(free), 1_000_000, 300)
    with pytest.raises(SettingError, match=r"bfloat16 \(1,000,000, 300\) of 608 MB each") as caught:
        memory.check_card(Full(free - 1), 1_000_000, 300, "bfloat16")
    assert "a dim of 288 (" in str(caught.value) and "tables in" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cpu", "--table-dtype", "bfloat16"], "bfloat16 are for a CUDA card (--device cuda,"),
        (["--device", "cpu", "--table-dtype", "bf16"], "table_dtype must be float32 or bfloat16, got 'bf16'"),
    ],
)
def test_a_table_dtype_that_cannot_be_is_a_sentence(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "out.safetensors"
    text.write_text("a b a b\n")
    assert firth_command(["train", str(text), "-o", str(output), *options]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and said in printed, printed
    assert not output.exists()
    with pytest.raises(
        SettingError, match="freeze='known' keeps vectors to the bit, tables in bfloat16 do not"
    ):
        TrainConfig(freeze="known", table_dtype="bfloat16")


def test_train_asks_before_it_makes_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = firth.Corpus.encode([["a", "b", "c"]] * 9, min_count=1)
    monkeypatch.setattr(kernels, "pick", lambda *_: Full(10**6))
    with pytest.raises(SettingError, match="device cpu"):
        firth.train(corpus)


# --- search -------------------------------------------------------------------------------------


@pytest.fixture
def search_here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """``device="cuda"`` searches by torch on the CPU where there is no card; the tables made are listed."""
    made = []
    if not torch.cuda.is_available():
        monkeypatch.setattr(gpu_device, "find_card", lambda *_: torch.device("cpu"))

    def table(*arguments: Any) -> search.CardTable:
        made.append(search.CardTable(*arguments))
        return made[-1]

    monkeypatch.setattr(queries, "CardTable", table)
    return made


@pytest.mark.parametrize("restrict", [None, 200])
@pytest.mark.parametrize("topn", [1, 10, 5000])
def test_a_card_finds_what_numpy_finds(search_here: list[Any], topn: int, restrict: int | None) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(900, 20)).astype(np.float32)
    matrix[50:90] = matrix[10]  # equal rows, more than are asked for
    matrix[300] = 0
    matrix[301, 3] = np.nan
    vectors = firth.Vectors([f"w{row}" for row in range(900)], matrix)
    names = ["w3", "w10", "w301", "w899", "w300"]
    for asked in (names, rng.normal(size=(40, 20))):
        ids, cosines = vectors.nearest(asked, topn, restrict, "cuda")
        expected_ids, expected = vectors.nearest(asked, topn, restrict)
        assert ids.tolist() == expected_ids.tolist()
        assert cosines.tolist() == expected.tolist()
        assert (ids.dtype, cosines.dtype) == (np.int64, np.float32)
    assert vectors.most_similar_batch(names[:2], topn, restrict, "cuda") == vectors.most_similar_batch(
        names[:2], topn, restrict
    )
    assert len(search_here) == 1  # one copy, for all calls


def test_many_queries_in_parts_and_whole_numbers_with_ties(
    search_here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "CARD_SCORES", 2000)
    matrix = np.random.default_rng(0).integers(-3, 4, (600, 4)).astype(np.float32)
    vectors = firth.Vectors([f"w{row}" for row in range(600)], matrix)
    for got, wanted in zip(
        vectors.nearest(matrix[:50], 7, device="cuda"), vectors.nearest(matrix[:50], 7), strict=True
    ):
        assert got.tolist() == wanted.tolist()


@WITHOUT_CARD
def test_searching_without_a_card_is_refused() -> None:
    vectors = firth.Vectors(["a", "b"], np.eye(2, dtype=np.float32))
    with pytest.raises(
        SettingError, match=r"nearest\(\): device 'cuda' needs a CUDA card.*leave device= out"
    ):
        vectors.nearest(["a"], device="cuda")
    with pytest.raises(SettingError, match=r"nearest\(\): device must be cuda or cuda:NUMBER, not 'tpu'"):
        vectors.most_similar_batch(["a"], device="tpu")
    assert vectors.nearest(["a"], device="cpu")[0].tolist() == [[1]]


def test_no_room_for_the_matrix_is_a_sentence(
    search_here: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    vectors = firth.Vectors(["a", "b"], np.eye(2, dtype=np.float32))
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(RunError, match=r"no room on the card for the matrix, float32 \(2, 2\)"):
        vectors.nearest(["a"], device="cuda")


# --- the bench ----------------------------------------------------------------------------------


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE.parent / "bench" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@needs_triton
def test_the_bench_runs_through_under_the_interpreter() -> None:
    done = bench("--interpret", "--dim", "20", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["part"] for row in report["results"]} == {"speed", "designs", "whole"}
    assert "the figures mean nothing" in report["card"]
    speed = [row for row in report["results"] if row["part"] == "speed"]
    assert [row["tables"] for row in speed] == ["float32", "bfloat16"]
    assert all(row["words"] >= 200 and row["words_s"] > 0 for row in speed)
    whole = [(row["device"], row["tables"]) for row in report["results"] if row["part"] == "whole"]
    assert whole == [("cuda", "float32"), ("cpu", "float32"), ("cuda", "bfloat16")]
    losses = [row["loss"][0] for row in report["results"] if row["part"] == "whole"]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)  # the card's, and the CPU's
    assert losses[0] == pytest.approx(losses[2], rel=0.01)  # in bfloat16


@WITHOUT_CARD
def test_the_bench_without_a_card_is_a_sentence() -> None:
    done = bench()
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "nothing was measured" in done.stderr
    assert "ncu --set full" in bench("--ncu").stdout


@pytest.mark.parametrize("amount", [0.0, 0.05, np.nan])
def test_the_gate_of_the_bench_sees_a_wrong_row(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    script("bench/common.py", monkeypatch)
    module = script("bench/gpu.py", monkeypatch)

    class Wrong:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, kernel: str, inputs: Any, outputs: Any, *rest: Any) -> Any:
            done = reference.run(kernel, inputs, outputs, *rest)
            outputs[3, 2] += amount
            return done

    monkeypatch.setattr(gpu, "Card", Wrong)
    if amount == 0.0:
        module.gate("cpu", (8,))
    else:
        with pytest.raises(SystemExit, match="the correctness gate failed at dim 8, skipgram_shared"):
            module.gate("cpu", (8,))


# --- the page -----------------------------------------------------------------------------------

PAGE = (HERE.parent / "docs" / "gpu.md").read_text(encoding="utf-8")


@WITHOUT_CARD
def test_the_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "gpu.md", "exec"), names)


def test_the_page_has_the_numbers_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    script("bench/common.py", monkeypatch)
    monkeypatch.syspath_prepend(str(HERE.parent / "bench"))
    module = script("bench/gpu.py", monkeypatch)
    assert f"{module.group_bytes(128, 0.74076):,.0f} bytes" in PAGE
    assert f"{module.group_bytes(300, 0.74076):,.0f}\nbytes" in PAGE
    assert f"| tables in bfloat16 | {module.group_bytes(128, 0.74076, 'bfloat16'):,.0f} |" in PAGE
    limit = Design().in_flight
    assert f"`Card.programs` allows {limit:.0f}" in PAGE
    for name in re.findall(r"`(?:python )?((?:bench|tests|docs)/[\w.]+)", PAGE):
        assert (HERE.parent / name).exists(), name
