"""Processes under torchrun that die, are stopped, start again and go on in other numbers."""

import json
import signal
import time

import pytest

import firth
from planted import cluster_score, clusters
from teams import start, torchrun

SOON = 30  # seconds within which the end of one process ends all


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text with planted clusters, one sentence a line."""
    corpus = clusters(4000)
    ids = corpus.ids.reshape(-1, 4)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(f"w{word}" for word in line) for line in ids.tolist()))
    return path


def arguments(text, output, *more):
    return ["train", text, "-o", output, "--dim", 32, "--threads", 1, *more]


def in_order(vectors):
    """The rows by the number of the word, as planted.cluster_score wants them."""
    keys = sorted(vectors.index_to_key, key=lambda key: int(key[1:]))
    return vectors.subset(keys)


def test_killed_resumed_by_others_stopped_and_finished(text, tmp_path):
    output, run = tmp_path / "out.safetensors", tmp_path / "out.safetensors.run"
    given = arguments(text, output, "--epochs", 700)
    with start(3, given, tmp_path / "first", machines=3) as three:  # the next two share their tables
        three.wait_for(run, "checkpoint-*/state.json")
        three.processes[1].kill()
        began = time.monotonic()
        assert three.codes() == [1, -signal.SIGKILL, 1]
        assert time.monotonic() - began < SOON
        assert len(three.said()) == 1  # by one for all
        assert three.said()[0].startswith(f"firth: rank 1 (process {three.processes[1].pid} on ")
        assert "has died" in three.said()[0] and "--resume" in three.said()[0]
    before = sorted(run.glob("checkpoint-*"))
    with start(2, [*given, "--resume"], tmp_path / "second") as two:
        two.wait_for(run, "checkpoint-*/state.json", [path / "state.json" for path in before])
        two.processes[1].send_signal(signal.SIGTERM)  # any of them
        assert two.codes() == [130, 130]
        assert len(two.said()) == 1 and "training stopped at" in two.said()[0]
    after = sorted(run.glob("checkpoint-*"))
    assert after[-1] > before[-1]
    with start(1, [*given, "--resume", "--json"], tmp_path / "third") as one:
        assert one.codes() == [0]
    vectors = firth.Vectors.load(output)
    assert cluster_score(in_order(vectors)).recovered and len(vectors.metadata["loss"]) == 700
    assert not run.exists()


FAILING = """
import os, signal, sys
from firth.cli import main
from firth.training import distributed

after = distributed.SharedFolder.save
def save(self, state):
    path = after(self, state)
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return path
distributed.SharedFolder.save = save

begin = distributed.Replicas.share_state
def share_state(self, found):
    print("found", found, flush=True)
    return begin(self, found)
distributed.Replicas.share_state = share_state
main()
"""


def test_torchrun_starts_them_again(text, tmp_path):
    output, program = tmp_path / "out.safetensors", tmp_path / "failing.py"
    program.write_text(FAILING)
    given = [program, *arguments(text, output, "--epochs", 150, "--json", "-q")]
    with torchrun(2, given, tmp_path / "logs", "--max-restarts", "1") as launched:
        assert launched.codes() == [0]
        log = launched.logs[0].read_text()
    assert log.count("found True") == 1  # the first process of the second start
    assert "rank 1 (process " in log and "has died" in log
    facts = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert len(facts) == 1 and facts[0]["output"] == str(output)
    vectors = firth.Vectors.load(output)
    assert vectors.metadata["ranks"] == 2 and cluster_score(in_order(vectors)).recovered


def test_other_options_are_refused_once(text, tmp_path):
    differing = {1: ["--window", "3"]}
    with start(2, arguments(text, tmp_path / "out.txt"), tmp_path / "differing", differing) as two:
        assert two.codes() == [2, 2]
        (said,) = two.said()
        assert said.startswith("firth: rank 1 does not do the same work as rank 0: ")
        assert "window is 3 there and 5 at rank 0" in said
    assert not (tmp_path / "out.txt").exists()


def test_partitioned_from_the_command_line(text, tmp_path):
    output = tmp_path / "out.safetensors"
    given = arguments(text, output, "--epochs", 10, "--partitioned", "--context", "--json")
    with start(2, given, tmp_path / "logs") as two:
        assert two.codes() == [0, 0], two.said()
        facts = [line for log in two.logs for line in log.read_text().splitlines() if line[:1] == "{"]
    assert len(facts) == 1 and json.loads(facts[0])["vectors"] == 240
    vectors = firth.Vectors.load(tmp_path / "out.safetensors.index.json")
    assert cluster_score(in_order(vectors)).recovered and vectors.context is not None
    assert not (tmp_path / "out.safetensors.run").exists()
    with start(2, arguments(text, tmp_path / "out.txt", "--partitioned"), tmp_path / "txt") as two:
        assert two.codes() == [2, 2]
        assert len(two.said()) == 1 and "sharded safetensors" in two.said()[0]
