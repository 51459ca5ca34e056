"""``firth convert`` between any two formats and ``firth info`` of each; what is lost is told."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import firth
from firth import cli
from firth.cli.convert import convert
from firth.cli.info import info
from firth.formats import FORMATS

NAMES = [name for name in FORMATS if name not in ("gensim", "floret", "fasttext")]
ENDINGS = {"npy": ".npy"}
KEYS = ["the", "zürich", ",", "don't"]
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3) / 8 - 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("firth.files.os.fsync", lambda _: None)
    counts, metadata = [9, 8, 7, 6], {"dim": 3, "note": "x"}
    firth.Vectors(KEYS, ROWS, counts=counts, context=ROWS, metadata=metadata).save("v.safetensors")
    return tmp_path


def test_between_any_two(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        assert (
            cli.run(["convert", "v.safetensors", f"{name}-0{ENDINGS.get(name, '')}", "--format", name]) == 0
        )
    capsys.readouterr()
    for one, other in itertools.product(NAMES, NAMES):
        source, target = f"{one}-0{ENDINGS.get(one, '')}", f"{one}-{other}{ENDINGS.get(other, '')}"
        convert(Path(source), Path(target), format_=other)
        told = capsys.readouterr().err
        assert told.startswith(f"4 vectors of 3 written to {target}") and told.count("\n") == 1
        again = firth.Vectors.load(target)
        assert list(again) == KEYS and again.vectors.tolist() == ROWS.tolist()
        info(Path(target), as_json=True)
        facts = json.loads(capsys.readouterr().out)
        assert (facts["format"], facts["vectors"], facts["dim"]) == (other, 4, 3)
        assert facts["first"] == KEYS and facts["bytes"] > 0
        assert facts["dtype"] == ("text" if other in ("word2vec", "glove", "projector") else "float32")
        holds = FORMATS[other].complete or "counts" in FORMATS[other].holds
        there = FORMATS[one].complete or "counts" in FORMATS[one].holds
        assert facts["counts"] == (holds and there) == (again.counts is not None)


def test_what_is_lost_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {
        "v.txt": "; word2vec does not keep the counts, the context vectors and the metadata\n",
        "v.parquet": "; parquet does not keep the context vectors\n",
        "w.safetensors": "w.safetensors\n",
    }
    for output, end in told.items():
        assert cli.run(["convert", "v.safetensors", output]) == 0
        assert capsys.readouterr().err.endswith(end)
    assert cli.run(["convert", "v.safetensors", "v.bin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lost"] == ["counts", "context", "metadata"]


def test_spaces_in_keys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    firth.Vectors(["new york", "a b c", "x"], np.eye(3)).save("s")
    assert cli.run(["convert", "s", "s.bin"]) == 1 and not Path("s.bin").exists()
    assert "--space-as" in capsys.readouterr().err
    assert cli.run(["convert", "s", "s.bin", "--space-as", "_"]) == 0
    assert list(firth.Vectors.load("s.bin")) == ["new_york", "a_b_c", "x"]
    firth.Vectors(["a b", "a_b"], np.eye(2)).save("s")
    assert cli.run(["convert", "s", "s2.bin", "--space-as", "_"]) == 1
    assert "'a b' and 'a_b' would both become 'a_b'" in capsys.readouterr().err
    assert cli.run(["convert", "s", "s2.bin", "--space-as", " "]) == 2


def test_options_of_reading(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.txt").write_bytes(b"2 1\n3 4\n5 6\n\xff 0.1\n")
    assert cli.run(["convert", "t.txt", "t.safetensors", "--no-header"]) == 1
    assert 'errors="replace"' in capsys.readouterr().err
    options = ["--no-header", "--errors", "replace", "--dtype", "float16"]
    assert cli.run(["convert", "t.txt", "t.safetensors", *options]) == 0
    again = firth.Vectors.load("t.safetensors")
    assert list(again) == ["2", "3", "5", "\ufffd"] and again.vectors[3, 0] == np.float32(np.float16(0.1))
    assert cli.run(["info", "t.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float16"
    assert cli.run(["convert", "v.safetensors", "two.txt.gz", "--limit", "2"]) == 0
    assert list(firth.Vectors.load("two.txt.gz")) == KEYS[:2]
    assert cli.run(["convert", "v.safetensors", "x.txt", "--dtype", "float64"]) == 2
    assert cli.run(["convert", "v.safetensors", "x.txt", "--limit", "0"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["v.safetensors", "v.safetensors"], 2, "written over what is read"),
        (["v.safetensors", "x", "--format", "json"], 2, "one of safetensors"),
        (["v.safetensors", "x.txt", "--from", "json"], 2, "one of safetensors"),
        (["v.safetensors", "x.txt", "--from", "glove"], 1, "its content is that of format='safetensors'"),
        (["v.safetensors", "x.txt", "--from", "projector"], 1, "projector is a folder"),
        (["v.safetensors", "file", "--format", "projector"], 1, "a file has that name"),
        (["v.safetensors", "folder", "--format", "static-folder"], 1, "did not put there"),
        (["v.safetensors", "folder"], 1, "it is a folder"),
        (["v.safetensors", "missing/x", "--format", "projector"], 1, "does not exist"),
        (["folder", "x.txt"], 1, "none of vectors"),
        (["rubbish", "x.txt"], 1, "begins with the bytes 00 01 02"),
    ],
)
def test_wrong_calls(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    Path("file").write_text("mine")
    Path("rubbish").write_bytes(bytes(range(256)))
    Path("folder").mkdir()
    Path("folder/notes").write_text("mine")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert cli.run(["convert", *arguments]) == code
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and told.startswith("firth: ")
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_info_of_large_text_without_a_header_estimates(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = b"".join(b"k%06d 0.25 -0.5\n" % number for number in range(100_000))
    Path("g.txt").write_bytes(row)
    assert cli.run(["info", "g.txt", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["vectors"] == 100_000 and "estimated" not in facts
    monkeypatch.setattr("firth.formats.glove.COUNTED", 1000)
    assert cli.run(["info", "g.txt", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert abs(facts["vectors"] - 100_000) < 1000 and facts["estimated"]


@pytest.mark.parametrize("text", ["2 1\na 1\nb 2\n", "a 1\nb 2\n"])
def test_a_file_that_changes_while_it_is_read(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    Path("t.txt").write_text(text)
    real = firth.formats.text.blocks

    def blocks(*arguments: object) -> object:
        with open("t.txt", "ab") as file:
            file.write(b"c 3\n")
        return real(*arguments)

    monkeypatch.setattr("firth.formats.text.blocks", blocks)
    assert cli.run(["convert", "t.txt", "x.safetensors"]) == 1 and not Path("x.safetensors").exists()
    assert "t.txt changed while it was read" in capsys.readouterr().err
