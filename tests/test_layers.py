"""Imports point down only: the floors of the house, held by reading every import statement."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "firth"

# Room -> floor. The longest name that fits a module decides; a room that is not here fails the test.
FLOORS = {
    "firth": 6,
    "firth.__main__": 6,
    "firth.cli": 6,
    "firth.comparison": 5,
    "firth.documents": 5,
    "firth.view": 5,
    "firth.video": 5,
    "firth.nn": 4,
    "firth.evaluate": 4,
    "firth.training": 3,
    "firth.corpus": 2,
    "firth.vectors": 2,
    "firth.vocab": 1,
    "firth.sources": 1,
    "firth.search": 1,
    "firth.formats": 1,
    "firth.kernels": 1,
    "firth.errors": 0,
    "firth.files": 0,
    "firth.version": 0,
    "firth.progress": 0,
    "firth.kernels.reference": 0,
    "firth.kernels.cpu": 0,
    "firth.kernels.gpu": 0,
}
# Parts of a room that stand in files of their own beside it.
FLOORS |= {
    "firth.encoding": 2,  # of corpus
    "firth.sharing": 2,  # of corpus
    "firth.queries": 2,  # of vectors
    "firth.torchnames": 2,  # of vectors
    "firth.hub": 1,  # of vectors
    "firth.lookup": 2,  # of vectors
    "firth.reductions": 2,  # of vectors
    "firth.cache": 1,
    "firth.processes": 1,  # of corpus and training
    "firth.counting": 1,  # of vocab and corpus
    "firth.keys": 1,  # of vectors and formats
    "firth.subwords": 1,  # of vectors and formats
    "firth.records": 1,  # of sources
    "firth.textfiles": 1,  # of sources and formats
    "firth.vocabfile": 1,  # of vocab
    "firth.quantize": 1,  # of vectors and nn
    "firth.kernels.rows_reference": 0,
    "firth.kernels.rows_cpu": 0,
    "firth.kernels.rows_gpu": 0,
    "firth.kernels.gpu_device": 0,  # of gpu
    "firth.kernels.gpu_triton": 0,  # the same
    "firth.kernels.rows_triton": 0,  # of rows_gpu
    "firth.kernels.pages": 0,  # of rows and bags
    "firth.kernels.threads": 0,  # the same
    "firth.kernels.bags_reference": 0,
    "firth.kernels.bags_cpu": 0,
    "firth.kernels.exchange_cpu": 0,  # of training.exchange
    "firth.ngrams": 0,  # of subwords
    "firth.suggest": 0,
}


def module_name(path: Path, root: Path) -> str:
    """``root/cli/train.py`` -> ``firth.cli.train``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(["firth", *(part for part in parts if part != "__init__")])


def floor(name: str) -> int | None:
    """The floor of a module, by the longest room name that it begins with; ``None`` if it has no room."""
    if name in FLOORS:
        return FLOORS[name]
    inner = name.rpartition(".")[0]
    return floor(inner) if inner.count(".") else None


def imports(path: Path, name: str) -> set[str]:
    """Every firth module that the file imports, inside functions and under TYPE_CHECKING too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*above, *([module] if module else [])])
            # ``from firth import errors`` names a module; ``from firth.errors import X`` a thing in one.
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {one for one in found if one == "firth" or one.startswith("firth.")}


def modules(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted(root.rglob("*.py"))}


def faults(root: Path) -> list[str]:
    """Every import that points up, and every module without a floor."""
    found = modules(root)
    wrong = []
    for name, path in found.items():
        own = floor(name)
        if own is None:
            wrong.append(f"{name} has no floor; give it one in {Path(__file__).name}")
            continue
        for target in imports(path, name):
            module = target if target in found else target.rpartition(".")[0]
            other = floor(module)
            if other is not None and other > own:
                wrong.append(f"{name} (floor {own}) imports {module} (floor {other})")
    return wrong


def test_imports_point_down() -> None:
    assert not faults(SOURCE)


def test_the_house_was_found() -> None:
    assert {"firth", "firth.errors", "firth.cli"} <= modules(SOURCE).keys()


def _house(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_checker_sees_upward_imports(tmp_path: Path) -> None:
    below = {"__init__.py": "", "vectors.py": "", "training/__init__.py": "", "vocab.py": ""}
    upward = {
        "from": "from firth.vectors import Vectors",
        "package": "from firth import vectors",
        "import": "import firth.vectors",
        "relative": "from .vectors import Vectors",
        "relative package": "from . import vectors",
        "the door": "import firth",
        "in a function": "def f():\n    from firth.training import train",
        "for types": "import typing\nif typing.TYPE_CHECKING:\n    from firth.vectors import Vectors",
    }
    for number, (kind, text) in enumerate(upward.items()):
        root = _house(tmp_path / str(number), below | {"vocab.py": text})
        assert len(faults(root)) == 1, kind


def test_the_checker_lets_downward_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from firth.vocab import Vocab",
        "vocab.py": "import os\nfrom firth.errors import FirthError\nfrom firth import files",
        "errors.py": "class FirthError(Exception): ...",
        "files.py": "from firth import errors",
        "cli/train.py": "from ..vocab import Vocab\nfrom firth.cli import options\nimport firth",
        "cli/options.py": "",
    }
    assert not faults(_house(tmp_path, files))


def test_the_checker_wants_a_floor_for_every_module(tmp_path: Path) -> None:
    assert faults(_house(tmp_path, {"attic.py": ""})) == [
        "firth.attic has no floor; give it one in test_layers.py"
    ]
