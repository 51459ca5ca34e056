"""``firth train`` and its files: texts are never written over, and a run folder stays while it is of use."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import firth
from firth import cli
from firth.cli import places
from firth.cli.pairs import PairScores
from firth.errors import Diverged, RunError, SourceError, StorageError
from firth.training import Moment

SUBJECTS = ("cat dog horse mouse", "red green blue yellow", "one two three four")
FAST = ("--dim", "8", "--epochs", "2", "--threads", "1", "--min-count", "1", "--quiet")
Train = Callable[..., tuple[int, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``text``, ``texts/a`` and a cache elsewhere."""
    chance = np.random.default_rng(1)
    lines = [" ".join(chance.choice(SUBJECTS[chance.integers(3)].split(), 12)) for _ in range(200)]
    folder = tmp_path / "here"
    (folder / "texts").mkdir(parents=True)
    for name in ("text", "texts/a"):
        (folder / name).write_text("\n".join(lines))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FIRTH_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def train(here: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs ``firth train ... FAST``; the exit code and what went to standard error."""

    def call(*arguments: str) -> tuple[int, str]:
        return cli.run(["train", *arguments, *FAST]), capsys.readouterr().err

    return call


def old_run(output: str) -> Path:
    """The run folder beside ``output`` with something like a checkpoint in it."""
    checkpoint = Path(f"{output}.run") / "checkpoint-000000000000001"
    checkpoint.mkdir(parents=True)
    for name in ("lock", "settings.json"):
        (checkpoint.parent / name).write_text("{}")
    (checkpoint / "state.json").write_text("{}")
    return checkpoint


# -- what is read is not written over


@pytest.mark.parametrize(
    "arguments",
    [
        ("text", "-o", "text"),
        ("texts/a", "text", "-o", "../here/text"),
        ("t*t", "-o", "text"),
        ("text", "-o", "link"),
        ("texts", "-o", "texts/out"),
        (".", "-o", "out"),
        ("texts", "-o", "out", "--run", "texts/run"),
        ("texts", "-o", "out", "--cache", "texts/cache"),
        ("texts/a", "-o", "out", "--run", "texts"),
        ("text", "-o", "pairs", "--pairs", "pairs"),
        ("text", "-o", "words", "--vocab", "words"),
    ],
)
def test_what_is_read_is_not_written_over(train: Train, here: Path, arguments: tuple[str, ...]) -> None:
    Path("pairs").write_text("cat dog 3\n")
    Path("words").write_text("cat\ndog\n")
    Path("link").symlink_to("text")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    code, told = train(*arguments)
    assert code == 2 and ("is read" in told) and told.count("\n") == 1, told
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_place_apart_is_fine(train: Train) -> None:
    assert train("texts", "-o", "out")[0] == 0
    assert train("texts", "-o", "texts/.out")[0] == 0  # hidden files are not read
    assert train("texts", "-o", "out")[0] == 0


# -- the run folder


def test_only_what_the_run_made_is_removed(train: Train) -> None:
    Path("out.run").mkdir()
    Path("out.run/precious").write_text("mine")
    assert train("text", "-o", "out")[0] == 0
    assert [path.name for path in Path("out.run").iterdir()] == ["precious"]


def test_a_folder_that_another_process_holds_stays(here: Path) -> None:
    checkpoint = old_run("out")
    with (checkpoint.parent / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with places.run_kept(checkpoint.parent, own=True):
            pass
        assert checkpoint.is_dir()
    with places.run_kept(checkpoint.parent, own=False):
        pass
    assert checkpoint.is_dir()
    with places.run_kept(checkpoint.parent, own=True):
        pass
    assert not checkpoint.parent.exists()


def test_a_run_that_could_learn_nothing_leaves_no_folder(train: Train) -> None:
    code, told = train("text", "-o", "out", "--sample", "1e-12")
    assert code == 1 and "nothing was learned" in told
    assert not Path("out.run").exists() and not Path("out").exists()


@pytest.mark.parametrize(
    "error", [SourceError("bad"), StorageError("full"), Diverged("nan"), RunError("held")]
)
def test_the_checkpoints_of_an_earlier_run_stay(here: Path, error: Exception) -> None:
    checkpoint = old_run("out")
    with pytest.raises(type(error)), places.run_kept(checkpoint.parent, own=True):
        raise error
    assert (checkpoint / "state.json").is_file()


def test_a_bad_text_does_not_cost_the_run(train: Train) -> None:
    checkpoint = old_run("out")
    Path("empty").write_text("\n")
    assert train("empty", "-o", "out", "--resume")[0] == 1
    assert (checkpoint / "state.json").is_file()


@pytest.mark.parametrize("fails", ["full", "Ctrl-C"])
def test_when_saving_fails_the_run_can_go_on(
    train: Train, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def save(*_: object) -> None:
        raise StorageError("cannot write out: full") if fails == "full" else KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["firth", "train", "text", "-o", "out", *FAST])
    with monkeypatch.context() as patch:
        patch.setattr(firth.Vectors, "save", save)
        code, told = train("text", "-o", "out")
    assert code == (1 if fails == "full" else cli.INTERRUPTED)
    assert "out.run has the run" in told and "--resume" in told
    assert ("firth train text -o out" in told) == (fails == "Ctrl-C")
    assert train("text", "-o", "out", "--resume") == (0, "")
    assert Path("out").is_file() and not Path("out.run").exists()


def test_a_diverged_run_says_what_to_remove(here: Path) -> None:
    with (
        pytest.raises(Diverged, match=r"nan; out\.run keeps the last good checkpoint: remove it"),
        places.run_kept(Path("out.run"), own=True),
    ):
        old_run("out")
        raise Diverged("nan")
    assert Path("out.run").exists()


def test_ctrl_c_before_training(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(firth.Corpus, "encode", encode)
    code, told = train("text", "-o", "out")
    assert code == cli.INTERRUPTED and told == "firth: stopped before there was anything to save\n"


def test_ctrl_c_while_the_command_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("firth.cli.app.command", command)
    assert cli.run(["--version"]) == cli.INTERRUPTED


# -- told before training


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("-o", "out.gz"), 2, "safetensors is written uncompressed"),
        (("-o", "out.txt", "--context"), 2, "name it .safetensors"),
        (("-o", "out.bin", "--pattern", "[a-z]+ [a-z]+"), 1, "holds a space"),
        (("-o", "out", "--pairs", "no pairs"), 1, "no such file"),
        (("-o", "out", "--pairs", "/dev/null"), 1, "no pairs in it"),
    ],
)
def test_told_before_training(
    train: Train, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    monkeypatch.setattr("firth.training.train", lambda *_, **__: pytest.fail("training began"))
    if code == 2 or "--pairs" in arguments:
        monkeypatch.setattr(firth.Corpus, "encode", lambda *_, **__: pytest.fail("the text was read"))
    found, told = train("text", *arguments)
    assert found == code and sentence in told
    assert not Path("out.run").exists()


def test_pairs_are_read_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs").write_text("cat dog 3\ncat red 1\n")
    scores = PairScores(Path("pairs"))
    Path("pairs").unlink()
    vectors = firth.Vectors(["cat", "dog", "red"], [[1, 0], [1, 1], [0, 1]])
    scores.check(vectors.index_to_key)
    with pytest.raises(SourceError, match="none of its 2 pairs"):
        scores.check(["blue", "green"])
    moment = Moment(1, 1, 0, 1.0, 0.1, 1.0, (1.0,), 1.0)
    scores.on_epoch_end(moment, lambda: vectors)
    assert scores.added_to(vectors).metadata["scores"][0]["found"] == 2
    assert "Spearman 1.0000" in capsys.readouterr().err


# -- odd input and output


def test_rows_with_nan_are_null_in_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.array([[1, 0], [1, 1], [np.nan, 1], [0, 1]], np.float32)
    firth.Vectors(list("abcd"), rows).save("v")
    for arguments in (["similar", "v", "a"], ["analogy", "v", "a", "b", "d"]):
        for more in ([], ["--multiply"]) if arguments[0] == "analogy" else ([],):
            assert cli.run([*arguments, *more, "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert (found.get("neighbours") or found["answers"])[-1] == ["c", None]


def test_standard_input_closed_or_not_utf8(here: Path) -> None:
    firth.Vectors(["a", "b"], [[1, 0], [1, 1]]).save("v")
    command = [sys.executable, "-m", "firth"]
    paths = {"PYTHONPATH": str(Path(firth.__file__).parents[1]), "PYTHONIOENCODING": "utf-8:strict"}
    environment = {**os.environ, **paths}
    for verb in (["similar", "v"], ["train", "-", "-o", "out"]):
        closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command, *verb]
        done = subprocess.run(closed, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr == "firth: cannot read standard input: it is closed\n"
    done = subprocess.run(
        [*command, "similar", "v"], input=b"a\n\xff\nb\n", env=environment, capture_output=True, check=False
    )
    assert done.returncode == 1 and done.stdout == b"a\n  b  0.7071\nb\n  a  0.7071\n"
    assert done.stderr.startswith(b"firth: '\\udcff' is not in")


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("twice.txt").write_text("2 2\na 1 2\na 3 4\n")
    assert cli.run(["convert", "twice.txt", "once.txt", "--json"]) == 0
    told = capsys.readouterr().err
    assert told == (
        "firth: warning: twice.txt: 1 rows repeat a key (first 'a'); of each key the first is kept\n"
    )


def test_info_tells_what_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 6))
    firth.Vectors(list("abcdefghi"), rows, metadata={"dim": 6, "lr": 0.1}).reduce(2).save("v")
    assert cli.run(["info", "v", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dim"] == 2 and facts["lr"] == 0.1 and "reduce" in facts["changes"][0]
    firth.Corpus.encode("text", min_count=1)
    assert cli.run(["info", "--cache", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert entry["source"] == "text" and Path(entry["folder"]).is_dir() and entry["bytes"] > 0


def test_convert_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    firth.Vectors(["a", "b"], [[1, 0], [1, 1]]).save("v")
    assert cli.run(["convert", "v", "w.bin", "--json"]) == 0
    facts = {"output": "w.bin", "format": "word2vec-binary", "vectors": 2, "dim": 2}
    assert json.loads(capsys.readouterr().out) == facts
    assert cli.run(["convert", "v", "w.bin.gz"]) == 2 and not Path("w.bin.gz").exists()


def test_limits_are_plain_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value, limit in (
        ("--epochs", 2_000_000, "1,000,000"),
        ("--seed", -1, "9,223,372,036,854,775,807"),
    ):
        assert cli.run(["train", "text", "-o", "out", flag, str(value)]) == 2
        assert f"at most {limit}, got" in capsys.readouterr().err
