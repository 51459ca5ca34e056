"""gensim's own files: never opened here, handed to gensim where that is asked for and possible."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from firth.errors import FormatError, MissingExtra
from firth.vectors import Vectors


class Bomb:
    """Opening it would leave a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type:
    """A gensim of a few lines, with the names that are used of the real one."""

    class KeyedVectors:
        def __init__(self, size: int, dtype: type) -> None:
            self.index_to_key: list[str] = []
            self.vectors = np.zeros((0, size), dtype)
            self.expandos: dict[str, np.ndarray] = {}

        def add_vectors(self, keys: list[str], vectors: np.ndarray) -> None:
            self.index_to_key, self.vectors = list(keys), np.array(vectors)

        def set_vecattr(self, key: str, name: str, value: int) -> None:
            counts = self.expandos.setdefault(name, np.zeros(len(self.index_to_key), np.int64))
            counts[self.index_to_key.index(key)] = value

        def save(self, file: object) -> None:
            pickle.dump(vars(self), file)

        @classmethod
        def load(cls, path: str) -> object:
            with open(path, "rb") as file:
                state = pickle.load(file)
            if not isinstance(state, dict):
                return state
            made = cls.__new__(cls)
            vars(made).update(state)
            return made

    models = types.ModuleType("gensim.models")
    models.KeyedVectors = KeyedVectors
    monkeypatch.setitem(sys.modules, "gensim", types.ModuleType("gensim"))
    monkeypatch.setitem(sys.modules, "gensim.models", models)
    return KeyedVectors


def test_a_pickle_is_not_opened_by_recognition(tmp_path: Path, fake: type) -> None:
    path, trace = tmp_path / "v.kv", tmp_path / "trace"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Bomb(trace), protocol))
        for name in (None, "word2vec", "glove", "word2vec-binary", "npy", "parquet", "safetensors"):
            with pytest.raises(FormatError):
                Vectors.load(path, format=name)
        with pytest.raises(FormatError, match=r"never opened.*format='gensim'"):
            Vectors.load(path)
    assert not trace.exists()


def test_without_gensim_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim", None)
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    (tmp_path / "v.kv").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(MissingExtra, match="gensim is not installed"):
        Vectors.load(tmp_path / "v.kv", format="gensim")
    with pytest.raises(MissingExtra, match="gensim is not installed"):
        Vectors(["a"], [[1.0]]).save(tmp_path / "w.kv")
    assert [path.name for path in tmp_path.iterdir()] == ["v.kv"]


def test_there_and_back_through_gensim(tmp_path: Path, fake: type) -> None:
    vectors = Vectors(["the", "new york", "ü"], np.eye(3), counts=[3, 2, 1])
    vectors.save(tmp_path / "v.kv")
    again = Vectors.load(tmp_path / "v.kv", format="gensim")
    assert list(again) == list(vectors) and again.counts.tolist() == [3, 2, 1]
    assert again.vectors.tolist() == vectors.vectors.tolist()
    assert list(Vectors.load(tmp_path / "v.kv", format="gensim", limit=2)) == ["the", "new york"]


def test_what_gensim_cannot_load(tmp_path: Path, fake: type) -> None:
    path = tmp_path / "v.kv"
    for data in (b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps({}), b"a 1 2\nb 3 4\n"):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"v\.kv"):
            Vectors.load(path, format="gensim")


def run_with_gensim(folder: Path, script: str) -> None:
    """With the gensim of this interpreter, or of the one that FIRTH_RIVALS names."""
    own = sys.executable if importlib.util.find_spec("gensim") else None
    python = shutil.which(os.environ.get("FIRTH_RIVALS") or own or "")
    if python is None:
        pytest.skip("gensim is not installed (FIRTH_RIVALS may name an interpreter that has it)")
    source = Path(__file__).parents[1] / "src"
    done = subprocess.run(
        [Path(python).absolute(), "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_files_in_gensims_wheel(tmp_path: Path) -> None:
    """What others wrote, read as gensim reads it."""
    run_with_gensim(
        tmp_path,
        """
import os
import gensim
import numpy as np
from gensim.models import KeyedVectors
from firth.formats import text
from firth.vectors import Vectors
text.SMALL = 1 << 40  # by hand: pyarrow may not be there
folder = os.path.join(os.path.dirname(gensim.__file__), "test", "test_data")
files = {
    "euclidean_vectors.bin": dict(binary=True),
    "poincare_vectors.bin": dict(binary=True),
    "high_precision.kv.bin": dict(binary=True),
    "high_precision.kv.txt": dict(),
    "word2vec_pre_kv_c": dict(),
    "test_glove.txt": dict(no_header=True),
    "lee_fasttext.vec": dict(),
    "crime-and-punishment.vec": dict(),
    "toy-model.vec": dict(),
    "pang_lee_polarity_fasttext.vec": dict(unicode_errors="replace"),
    "w2v_keyedvectors_load_test.modeldata": dict(unicode_errors="replace"),
}
for name, options in files.items():
    theirs = KeyedVectors.load_word2vec_format(os.path.join(folder, name), **options)
    ours = Vectors.load(os.path.join(folder, name), errors=options.get("unicode_errors", "strict"))
    assert list(ours) == theirs.index_to_key, name
    assert (ours.vectors == theirs.vectors).all(), name
""",
    )


@pytest.mark.parametrize("kind", ["vectors", "model"])
def test_the_real_gensim(tmp_path: Path, kind: str) -> None:
    script = f"""
import sys
import numpy as np
from gensim.models import KeyedVectors, Word2Vec
from firth.vectors import Vectors
model = Word2Vec([["a", "b", "new york"] * 9] * 5, vector_size=8, min_count=1)
(model if {kind!r} == "model" else model.wv).save("theirs")
read = Vectors.load("theirs", format="gensim")
assert list(read) == model.wv.index_to_key and (read.vectors == model.wv.vectors).all()
assert read.counts.tolist() == [45, 45, 45]
read.save("ours.kv")
again = KeyedVectors.load("ours.kv")
assert again.index_to_key == list(read) and again.get_vecattr("a", "count") == 45
assert (again.vectors == read.vectors).all()
"""
    run_with_gensim(tmp_path, script)
