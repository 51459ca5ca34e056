"""Training processes that die by kill -9, at random moments and before each change on the disk."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import firth
from firth.errors import RunError
from planted import clusters, learn

# A process that forks a training process for each line "RUN OUT STEPS WAIT". That one dies by kill -9
# before call number STEPS of those that change the disk (stops there if STEPS is below 0). With WAIT 1 it
# is killed when a line says so; until then its id stays its own.
CHILD = """
import os, pathlib, signal, sys, traceback
from firth.training import Callback, checkpoint, trainer
from planted import clusters, learn

corpus = clusters(2000)
learn(corpus, epochs=1)  # compiled before the first fork
trainer.RUN_BLOCKS, checkpoint.SHARE = 1, 1e9
steps = 0

def counted(owner, name):
    function = getattr(owner, name)
    def call(*given, **named):
        global steps
        if steps < 0:
            steps += 1
            if steps == 0:
                print("stopped", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
        elif steps > 0:
            steps -= 1
            if steps == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)
    setattr(owner, name, call)

for owner, name in [(checkpoint, "_write_npy"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "replace"),
                    (pathlib.Path, "rename"), (pathlib.Path, "mkdir")]:
    counted(owner, name)

class Tell(Callback):
    def on_begin(self, moment):
        print("began", moment.place, flush=True)

def work(run, out):
    vectors = learn(corpus, epochs=3, keep_context=True, run=run, resume=True, callbacks=[Tell()])
    vectors.save(out, format="safetensors")

for line in sys.stdin:
    run, out, count, wait = line.split()
    pid = os.fork()
    if pid == 0:
        steps = int(count)
        if not steps and wait == "0":
            checkpoint.SHARE = 0.0  # only the end is saved
        try:
            work(run, out)
        except BaseException:
            traceback.print_exc()
            print("failed", flush=True)
            os._exit(1)
        os._exit(0)
    if wait == "1":
        sys.stdin.readline()
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)
"""


class Trainers:
    """Training processes, one after another."""

    def __init__(self, folder):
        paths = [str(Path(firth.__file__).parents[1]), str(Path(__file__).parent)]
        self.out = folder / "out"
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def start(self, run, steps=0, wait=False):
        """A new process; the place where it begins, or ``None`` if it was killed before."""
        self._process.stdin.write(f"{run} {self.out} {steps} {int(wait)}\n")
        word, number = self.told()
        assert (word, number) == ("ended", "-9") or word == "began", (word, number)
        return int(number) if word == "began" else None

    def told(self):
        return self._process.stdout.readline().split()

    def kill(self):
        self._process.stdin.write("kill\n")

    def killed(self):
        """Waits for the end of the process; whether it was killed."""
        word, code = self.told()
        assert word == "ended" and int(code) in (0, -signal.SIGKILL), (word, code)
        return int(code) != 0


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    with Trainers(tmp_path_factory.mktemp("trainers")) as started:
        yield started


@pytest.fixture(scope="module")
def whole():
    """What a run that was never killed gives."""
    return learn(clusters(2000), epochs=3, keep_context=True)


def assert_equal(vectors, expected):
    assert np.array_equal(vectors.vectors, expected.vectors)
    assert np.array_equal(vectors.context.vectors, expected.context.vectors)
    assert vectors.metadata["loss"] == expected.metadata["loss"]


def checkpoints(run):
    return sorted(run.glob("checkpoint-*"))


def test_kill_at_random_moments(whole, tmp_path, trainers):
    chance = random.Random(4)
    places, kills, finished = [], 0, 0
    longest = 0.05
    while kills < 15:
        run = tmp_path / f"run{finished}"
        places.append(trainers.start(run, wait=True))
        time.sleep(chance.uniform(0, longest))
        trainers.kill()
        if trainers.killed():
            kills += 1
            longest *= 1.1  # where a disk is slow, nothing may have been saved
        else:
            longest *= 0.7
            assert_equal(firth.Vectors.load(trainers.out), whole)
            finished += 1
    trainers.start(run)
    assert not trainers.killed()
    assert_equal(firth.Vectors.load(trainers.out), whole)
    assert sum(place > 0 for place in places) >= 3, places
    assert not any(run.glob(".*"))


def test_kill_before_each_change_on_the_disk(whole, tmp_path, trainers):
    # From the first folder made to the third checkpoint, which removes the first one.
    left, halves = [], 0
    for steps in range(1, 42):
        run = tmp_path / f"run{steps}"
        assert trainers.start(run, steps) is None or trainers.killed()
        found = checkpoints(run) if run.exists() else []
        for folder in found:  # whatever has the name is whole
            assert {file.name for file in folder.iterdir()} == {"inputs.npy", "outputs.npy", "state.json"}
        left.append(len(found))
        halves += any(run.glob(".*"))
        assert trainers.start(run) == (int(found[-1].name[-15:]) if found else 0)
        assert not trainers.killed()
        assert_equal(firth.Vectors.load(trainers.out), whole)
        assert len(checkpoints(run)) <= 2 and not any(run.glob(".*"))
    assert set(left) == {0, 1, 2, 3} and halves > 20, (left, halves)


def test_two_runs_in_one_folder(whole, tmp_path, trainers):
    run = tmp_path / "run"
    trainers.start(run, steps=-20, wait=True)
    assert trainers.told() == ["stopped"]
    with pytest.raises(RunError, match=f"another process is training in the run folder {run}; wait"):
        learn(clusters(2000), epochs=3, run=run, resume=True)
    trainers.kill()  # and its lock goes with it
    assert trainers.killed()
    again = learn(clusters(2000), epochs=3, run=run, resume=True, keep_context=True)
    assert_equal(again, whole)
