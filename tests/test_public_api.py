"""The door: what ``import firth`` gives, and what it does not do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import firth

HEAVY = {"torch", "numba", "pyarrow", "rich", "typer", "numpy"}


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints; its home and working folder are ``folder``."""
    environment = {
        "HOME": str(folder),
        "PATH": "",
        "PYTHONPATH": str(Path(firth.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert firth.__all__ == sorted(firth.__all__)
    for name in firth.__all__:
        assert getattr(firth, name) is not None
        assert getattr(firth, name) is getattr(firth, name)


def test_all_is_the_table_of_homes() -> None:
    assert set(firth.__all__) == firth._HOME.keys() | {"__version__"}


def test_dir_shows_the_public_names_only() -> None:
    assert dir(firth) == firth.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'firth' has no attribute 'Vocabulary'"):
        _ = firth.Vocabulary  # type: ignore[attr-defined]


def test_names_stand_where_type_checkers_look() -> None:
    """The imports under TYPE_CHECKING name exactly what __getattr__ loads."""
    text = Path(firth.__file__).read_text(encoding="utf-8")
    for name, home in firth._HOME.items():
        assert f"from {home or 'firth'} import {name} as {name}\n" in text


def test_import_loads_nothing_heavy_and_writes_nothing(tmp_path: Path) -> None:
    code = "import sys, json, firth; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(python(code, tmp_path))}
    assert not loaded & HEAVY
    assert not list(tmp_path.iterdir())


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert version("firth") == firth.__version__


@pytest.mark.parametrize("verb", [[], ["--version"], ["--help"], ["train", "--help"]])
def test_the_command_line_starts_without_torch_and_numba(verb: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys\nfrom firth.cli import run\nassert run({verb!r}) == 0\n"
        "print(sorted(sys.modules.keys() & {'torch', 'numba', 'pyarrow'}))"
    )
    assert python(code, tmp_path).splitlines()[-1] == "[]"
