"""``firth train --init``: vectors to train on from, on the command line."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import firth
from firth import cli
from given import DIM, assert_equal, encode, lines, made

FAST = ("--epochs", "1", "--threads", "1", "--min-count", "1", "--quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("more.txt").write_text("\n".join(lines()))
    made(["w0", "absent", "w30"], counts=[3, 2, 1]).save("start.safetensors")
    made(["w0", "absent", "w30"]).save("start.txt")
    return tmp_path


@pytest.fixture
def call(here, capsys):
    def run(*arguments):
        code = cli.run(["train", "more.txt", *map(str, arguments), *FAST])
        return code, *capsys.readouterr()

    return run


def test_the_verb_trains_on(call):
    code, out, err = call("-o", "tuned.safetensors", "--init", "start.txt", "--context")
    assert code == 0, err
    assert "3 words from start.txt, 2 of them in the text; 238 new" in out
    tuned, start = firth.Vectors.load("tuned.safetensors"), firth.Vectors.load("start.txt")
    assert list(tuned)[:3] == list(start) and tuned.vector_size == DIM
    assert not Path("tuned.safetensors.run").exists()
    by_hand = firth.train(encode("more.txt", known=start), init=start, epochs=1, threads=1, keep_context=True)
    assert_equal(tuned, by_hand)
    code, out, err = call("-o", "on.safetensors", "--init", "tuned.safetensors", "--lr", "0.01", "--json")
    assert code == 0, err
    facts = json.loads(out)["init"]
    assert (facts["known"], facts["known_in_text"], facts["new"]) == (241, 240, 0)
    assert facts["context"] is True


def test_the_verb_freezes_and_takes_a_learning_rate_of_its_own(call):
    arguments = ("--init", "start.safetensors", "--freeze", "known", "--lr", "0.05", "--lr-last", "0.01")
    code, _, err = call("-o", "tuned.safetensors", *arguments)
    assert code == 0, err
    tuned, start = (firth.Vectors.load(f"{name}.safetensors") for name in ("tuned", "start"))
    assert np.array_equal(tuned.vectors[:3], start.vectors)
    assert tuned.metadata["lr"] == 0.05 and tuned.metadata["objective"]["lr_last"] == 0.01
    assert tuned.counts[1] == 2 and tuned.counts[0] > 3


def test_the_verb_adds_the_words_of_a_vocabulary(call):
    Path("words").write_text("w7\nw0\nnowhere\n")
    code, _, err = call("-o", "tuned.safetensors", "--init", "start.txt", "--vocab", "words", "--sample", "0")
    assert code == 0, err
    tuned = firth.Vectors.load("tuned.safetensors")
    assert list(tuned) == ["w0", "absent", "w30", "w7", "nowhere"]
    assert tuned.counts[3] > 0 and tuned.counts[4] == 0


def test_the_verb_starts_from_a_run_folder_and_resumes(call, here):
    code, _, err = call("-o", "first.safetensors", "--run", "first.run", "--dim", "16", "--context")
    assert code == 0, err
    second = ("-o", "second.safetensors", "--init", "first.run", "--run", "second.run")
    code, _, err = call(*second)
    assert code == 0, err
    first = firth.Vectors.load("first.safetensors")
    expected = firth.train(encode("more.txt", known=first), init=first, epochs=1, threads=1)
    assert_equal(firth.Vectors.load("second.safetensors"), expected)
    code, _, err = call(*second, "--resume")
    assert code == 0, err
    code, _, err = call("-o", "third", "--init", "first.safetensors", "--run", "second.run", "--resume")
    assert code == 0, err  # the same numbers under another name
    for path in Path("first.run").glob("checkpoint-*/state.json"):
        path.unlink()
    code, _, err = call("-o", "fourth.safetensors", "--init", "first.run")
    assert code == 1 and "holds no checkpoint" in err


@pytest.mark.parametrize(
    "arguments,code,sentence",
    [
        (("-o", "x", "--freeze", "known"), 2, "--freeze known needs --init FILE"),
        (
            ("-o", "x", "--init", "start.txt", "--freeze", "all"),
            2,
            "freeze must be none or known",
        ),
        (
            ("-o", "start.txt", "--init", "start.txt"),
            2,
            "-o start.txt would be written where start.txt is read",
        ),
        (
            ("-o", "x", "--init", "start.txt", "--dim", "5"),
            2,
            "has 16 numbers a vector, dim=5 was",
        ),
        (("-o", "x", "--init", "missing"), 1, "cannot read missing: no such file"),
        (("-o", "x", "--init", "more.txt"), 1, "more.txt"),
        (("-o", "x", "--init", "old", "--run", "old"), 2, "the run folder old would be written"),
    ],
)
def test_wrong_calls_are_one_sentence_before_the_text_is_read(call, monkeypatch, arguments, code, sentence):
    monkeypatch.setattr(firth.Corpus, "encode", lambda *_, **__: pytest.fail("the text was read"))
    found, out, err = call(*arguments)
    assert found == code and not out, err
    assert err.startswith("firth: ") and err.count("\n") == 1 and sentence in err


def test_no_word_in_common_is_a_warning(call):
    made(["W0", "W1"]).save("upper.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = call("-o", "x", "--init", "upper.txt")
    assert code == 0
    assert err.startswith("firth: warning: train(): none of the 2 words of init (upper.txt)")
