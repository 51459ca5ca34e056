"""Vectors to the Hugging Face hub and back: the real client, a hub of our own on this machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import firth
from firth.errors import SettingError, StorageError
from firth.subwords import DenseRows, FastTextSubwords
from small_hub import small_hub

Python = Callable[..., str]


def vectors() -> firth.Vectors:
    matrix = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return firth.Vectors(
        ["cat", "dog", "new york", "ärger"],
        matrix,
        counts=[4, 3, 2, 1],
        context=matrix * 2,
        metadata={"a": 1},
    )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Path, list[str], Python]]:
    """The folder of the hub, the requests it got, and a fresh interpreter that knows no other hub."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    root = tmp_path / "hub"
    root.mkdir()
    with small_hub(root) as (address, requests):

        def python(code: str, **environment: str) -> str:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", f"import firth\n{code}"],
                cwd=tmp_path,
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "PYTHONPATH": str(Path(firth.__file__).parents[1]),
                    "HF_HOME": str(tmp_path / "home"),
                    "HF_ENDPOINT": address,
                    "HF_HUB_DISABLE_TELEMETRY": "1",
                    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                    "NO_PROXY": "*",
                    **environment,
                },
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        yield root, requests, python


def test_a_folder_is_loaded_without_asking_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it fails
    given = vectors()
    given.save(tmp_path / "words", "static-folder")
    given.save(tmp_path / "words.txt")
    for place in (tmp_path / "words", str(tmp_path / "words"), tmp_path / "words.txt"):
        again = firth.Vectors.from_pretrained(place)
        assert again.index_to_key == given.index_to_key
        np.testing.assert_array_equal(again.vectors, given.vectors)
    assert firth.Vectors.from_pretrained(tmp_path, filename="words.txt").index_to_key == given.index_to_key
    with pytest.raises(firth.MissingExtra, match=r"huggingface_hub: pip install 'firth\[hub\]'"):
        firth.Vectors.from_pretrained("user/words")
    with pytest.raises(firth.MissingExtra, match=r"push_to_hub\(\): the Hugging Face hub needs"):
        given.push_to_hub("user/words")
    with pytest.raises(StorageError, match="there is no such file or folder"):
        firth.Vectors.from_pretrained(tmp_path / "nothing")


def test_there_and_back(hub: tuple[Path, list[str], Python], tmp_path: Path) -> None:
    root, requests, python = hub
    given = vectors()
    given.save(tmp_path / "given.safetensors")
    out = python(
        "print(firth.Vectors.load('given.safetensors').push_to_hub('me/words', commit_message='first'))\n"
        "found = firth.Vectors.from_pretrained('me/words')\n"
        "print(found.index_to_key.to_list(), found.counts.tolist(), found.metadata)\n"
        "found.save('found.safetensors')\n"
    )
    assert "/me/words/commit/" in out.splitlines()[0]
    assert out.splitlines()[1] == "['cat', 'dog', 'new york', 'ärger'] [4, 3, 2, 1] {'a': 1}"
    assert {file.name for file in (root / "me/words").iterdir()} == {
        "config.json", "modules.json", "model.safetensors", "tokenizer.json", "README.md",
    }  # fmt: skip
    assert "# words\n" in (root / "me/words/README.md").read_text(encoding="utf-8")
    np.testing.assert_array_equal(firth.Vectors.load(tmp_path / "found.safetensors").vectors, given.vectors)
    # The cache is enough from now on.
    asked = len(requests)
    offline = "print(firth.Vectors.from_pretrained('me/words').similarity('cat', 'dog'))"
    assert float(python(offline, HF_HUB_OFFLINE="1")) == pytest.approx(given.similarity("cat", "dog"))
    assert len(requests) == asked


def test_the_native_file_keeps_everything(hub: tuple[Path, list[str], Python], tmp_path: Path) -> None:
    root, _, python = hub
    vectors().save(tmp_path / "given.safetensors")
    python(
        "firth.Vectors.load('given.safetensors').push_to_hub('me/all', format='safetensors', private=True)\n"
        "firth.Vectors.from_pretrained('me/all').save('found.safetensors')"
    )
    assert [file.name for file in (root / "me/all").iterdir()] == ["vectors.safetensors"]
    assert (tmp_path / "found.safetensors").read_bytes() == (tmp_path / "given.safetensors").read_bytes()


def test_one_file_and_nothing_else_is_fetched(hub: tuple[Path, list[str], Python]) -> None:
    root, requests, python = hub
    (root / "them/glove").mkdir(parents=True)
    vectors().save(root / "them/glove/small.txt")
    (root / "them/glove/pytorch_model.bin").write_bytes(b"\x80pickle")
    code = "print(firth.Vectors.from_pretrained('them/glove', filename='small.txt').index_to_key[1])"
    assert python(code) == "dog\n"
    assert not [request for request in requests if "pytorch_model" in request]
    sentence = (
        "for name, file in (('them/glove', None), ('them/glove', 'large.txt'), ('them/nothing', None)):\n"
        "    try:\n        firth.Vectors.from_pretrained(name, filename=file)\n"
        "    except firth.FirthError as error:\n        print(type(error).__name__, error)"
    )
    no_file, no_large, no_repo = python(sentence).splitlines()
    assert no_file == (
        "StorageError 'them/glove' on the hub has neither vectors.safetensors nor model.safetensors; "
        "filename= names another file of it"
    )
    assert no_large.startswith("StorageError the hub does not give or take 'them/glove': ")
    assert no_repo.startswith("StorageError the hub does not give or take 'them/nothing': ")
    assert not [request for request in requests if "pytorch_model" in request]
    out = python(sentence, HF_HUB_OFFLINE="1").splitlines()
    assert out[2].startswith("StorageError the hub does not give or take 'them/nothing': ")


def test_wrong_calls_are_sentences() -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    with pytest.raises(SettingError, match="format is 'glove'; 'static-folder' or 'safetensors'"):
        vectors().push_to_hub("me/words", format="glove")
    with pytest.raises(SettingError, match=r"'a//b\?' is neither a file or folder that is there nor a repos"):
        firth.Vectors.from_pretrained("a//b?")


def test_a_hub_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

    def unreachable(*names: object, **settings: object) -> None:
        raise package.errors.HTTPError("no route\nto host")

    monkeypatch.setattr(package, "snapshot_download", unreachable)
    with pytest.raises(StorageError, match=r"the hub does not give or take 'me/words': no route to host$"):
        firth.Vectors.from_pretrained("me/words")


def test_subwords_that_stay_behind_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given = vectors()
    table = DenseRows(np.ones((7, 3), np.float32))
    spelled = firth.Vectors(given.index_to_key, given.vectors, subwords=FastTextSubwords(table, 3, 6))
    written: list[str] = []

    def pushed(save: object, repo_id: str, format: str, *settings: object) -> str:
        written.append(format)
        return "address"

    monkeypatch.setattr("firth.hub.pushed", pushed)
    with pytest.warns(
        UserWarning, match="subwords do not go along in the folder; format='safetensors' keeps"
    ):
        spelled.push_to_hub("me/words")
    assert spelled.push_to_hub("me/words", format="safetensors") == "address"
    assert written == ["static-folder", "safetensors"]
