"""The Triton kernels, each time in a process of their own: Triton reads TRITON_INTERPRET when it is imported,
and the rest of the tests shall not see it. The cases stand in ``rows_gpu_cases.py``."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed (it exists for Linux)")


def cases(folder: Path, *arguments: str, interpret: bool) -> None:
    """Run the cases; none may fail or be skipped."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "1"}
    if not interpret:
        del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        [*command, str(HERE / "rows_gpu_cases.py")],
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
    assert " skipped" not in done.stdout, said


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


def test_without_triton_the_module_loads_and_a_sentence_says_what_is_missing() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
from firth.errors import MissingExtra
from firth.kernels import rows_gpu
from firth.kernels.rows_reference import Source
groups = rows_gpu.group(torch.tensor([1, 0, 1]), 2)
assert groups.starts.tolist() == [0, 1, 3]
try:
    rows_gpu.summed(groups, Source(torch.ones(3, 2)), False)
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kernels.rows_gpu needs Triton"), done.stdout
