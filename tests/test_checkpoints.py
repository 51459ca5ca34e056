"""Runs that stop and go on: Ctrl-C, kill -9, full disks, damaged files, and two runs in one folder."""

import errno
import fcntl
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from firth.errors import Interrupted, RunError, StorageError
from firth.training import Callback, SkipGram, checkpoint
from planted import clusters, corpus_of, learn

EPOCHS = 3
BLOCKS = 4  # of the corpus


@pytest.fixture(scope="module")
def corpus():
    made = clusters(2000)
    assert len(made.block_starts) == BLOCKS + 1
    return made


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    """A run is one block, and each run ends with a checkpoint."""
    monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", 1)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


def go(corpus, objective=None, **settings):
    return learn(corpus, objective, **{"epochs": EPOCHS, "keep_context": True, **settings})


@pytest.fixture(scope="module")
def whole(corpus):
    """What a run that never stopped gives."""
    return go(corpus)


def assert_equal(vectors, expected):
    assert np.array_equal(vectors.vectors, expected.vectors)
    assert np.array_equal(vectors.context.vectors, expected.context.vectors)
    assert vectors.metadata["loss"] == expected.metadata["loss"]


class At(Callback):
    """Does something after run number ``when``; knows where the run began."""

    def __init__(self, when, action):
        self.when, self.action, self.began = when, action, None

    def on_begin(self, moment):
        self.began = moment.place

    def on_progress(self, moment):
        self.when -= 1
        if self.when == 0:
            self.action()


def press():
    signal.raise_signal(signal.SIGINT)


def stopped_after(n_runs, corpus, run, **settings):
    with pytest.raises(Interrupted) as caught:
        go(corpus, run=run, callbacks=[At(n_runs, press)], **settings)
    return caught.value


def checkpoints(run):
    return sorted(path for path in Path(run).iterdir() if path.name.startswith("checkpoint-"))


def contents(run):
    return {file: file.read_bytes() for folder in checkpoints(run) for file in folder.iterdir()}


# --- Ctrl-C -------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [6, 0])
@pytest.mark.parametrize("n_runs", range(1, BLOCKS * EPOCHS))
def test_a_run_goes_on_from_any_border_as_if_it_had_never_stopped(corpus, tmp_path, n_runs, share):
    objective = SkipGram(share=share)
    run = tmp_path / "run"
    stopped = stopped_after(n_runs, corpus, run, objective=objective)
    assert (stopped.place, stopped.total) == (2000 * n_runs, len(corpus) * EPOCHS)
    assert stopped.run == run
    share_done = 100 * n_runs / (BLOCKS * EPOCHS)
    assert str(stopped) == f"training stopped at {share_done:.1f} %: saved in {run}; resume to go on"
    begin = At(0, press)
    assert_equal(
        go(corpus, objective, run=run, resume=True, callbacks=[begin]), go(corpus, objective=objective)
    )
    assert begin.began == stopped.place


def test_a_run_can_stop_again_and_again_and_its_runs_can_have_other_lengths(
    corpus, whole, tmp_path, monkeypatch
):
    for n_runs, length in enumerate((3, 1, 2), 1):
        monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", length)
        stopped_after(1, corpus, tmp_path / "run", resume=n_runs > 1)
    assert_equal(go(corpus, run=tmp_path / "run", resume=True), whole)


def test_ctrl_c_saves_even_if_saving_is_not_due(corpus, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", 0.0)
    stopped_after(5, corpus, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-000000000010000"]
    assert_equal(go(corpus, run=tmp_path / "run", resume=True), whole)


def test_ctrl_c_in_the_last_run_lets_it_end(corpus, whole, tmp_path):
    last = At(BLOCKS * EPOCHS, press)
    assert_equal(go(corpus, run=tmp_path / "run", callbacks=[last]), whole)


def test_a_finished_run_gives_its_vectors_again(corpus, whole, tmp_path):
    go(corpus, run=tmp_path / "run")
    begin = At(1, lambda: pytest.fail("trained again"))
    again = go(corpus, run=tmp_path / "run", resume=True, callbacks=[begin])
    assert_equal(again, whole)
    assert begin.began == len(corpus) * EPOCHS


def test_resume_without_a_checkpoint_starts_afresh(corpus, whole, tmp_path):
    assert_equal(go(corpus, run=tmp_path / "run", resume=True), whole)


def test_another_number_of_threads_goes_on(corpus, tmp_path):
    stopped_after(5, corpus, tmp_path / "run", threads=2)
    begin = At(0, press)
    vectors = go(corpus, run=tmp_path / "run", resume=True, threads=3, callbacks=[begin])
    assert begin.began > 0 and begin.began % 2000 == 0
    assert len(vectors.metadata["loss"]) == EPOCHS and vectors.metadata["threads"] == 3


# --- two runs in one folder ----------------------------------------------------------------------


def test_the_first_of_two_runs_is_not_disturbed(corpus, whole, tmp_path):
    run, refusals = tmp_path / "run", []

    def second():
        with pytest.raises(RunError) as caught:
            go(corpus, run=run, resume=True, seed=99)
        refusals.append(str(caught.value))

    assert_equal(go(corpus, run=run, callbacks=[At(5, second)]), whole)
    assert len(refusals) == 1 and "another process is training" in refusals[0]
    assert json.loads((run / "settings.json").read_text())["seed"] == 1


def test_a_file_system_without_locks_is_named(corpus, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=r"cannot lock the run folder .*run: no locks available"):
        go(corpus, run=tmp_path / "run")


# --- what may go on -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings,difference",
    [
        ({"dim": 16}, "dim is 32 there, 16 was asked"),
        ({"epochs": 4}, "epochs is 3 there, 4 was asked"),
        ({"seed": 2}, "seed is 1 there, 2 was asked"),
        ({"lr": 0.05}, f"lr is {SkipGram().lr} there, 0.05 was asked"),
        ({"objective": SkipGram(window=4)}, "objective.window is 5 there, 4 was asked"),
        ({"objective": SkipGram(negatives=4, share=0)}, "objective.negatives is 5 there, 4 was asked; "),
        ({"objective": SkipGram(pool=16)}, "objective.pool is None there, 16 was asked"),
    ],
    ids=str,
)
def test_other_settings_are_refused_by_name(corpus, whole, tmp_path, settings, difference):
    stopped_after(2, corpus, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(RunError, match="made by other settings") as caught:
        go(corpus, run=tmp_path / "run", resume=True, **settings)
    assert difference in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path / "run") == before
    assert_equal(go(corpus, run=tmp_path / "run", resume=True), whole)


def test_another_corpus_is_refused(corpus, tmp_path):
    stopped_after(2, corpus, tmp_path / "run")
    other = corpus_of(np.asarray(corpus.ids)[::-1], corpus.sentence_starts)
    with pytest.raises(RunError, match="the text, its vocabulary or how it is read has changed"):
        go(other, run=tmp_path / "run", resume=True)


def test_the_same_learning_rate_may_be_given_or_left_out(corpus, whole, tmp_path):
    stopped_after(2, corpus, tmp_path / "run")
    assert_equal(go(corpus, run=tmp_path / "run", resume=True, lr=SkipGram().lr), whole)


def test_a_checkpoint_is_not_overwritten_unasked(corpus, whole, tmp_path):
    stopped_after(2, corpus, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(RunError, match=r"holds a checkpoint: add --resume \(resume=True\) to go on"):
        go(corpus, run=tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_other_settings_may_use_a_folder_without_checkpoints(corpus, whole, tmp_path):
    with pytest.raises(ZeroDivisionError):
        go(corpus, run=tmp_path / "run", dim=8, callbacks=[At(1, lambda: 1 // 0)])
    assert_equal(go(corpus, run=tmp_path / "run", resume=True), whole)


# --- the files ----------------------------------------------------------------------------------


def test_the_last_two_checkpoints_stay_and_leftovers_go(corpus, tmp_path):
    run = tmp_path / "run"
    (run / ".tmp-checkpoint-000000000000007").mkdir(parents=True)
    (run / ".tmp-checkpoint-000000000000007" / "inputs.npy").write_bytes(b"half")
    (run / ".settings.json.abc.tmp").write_text("half")
    (run / "checkpoint-of-mine").mkdir()
    (run / "checkpoint-of-mine" / "state.json").write_text("{}")
    seen = []
    at_each = Callback()
    at_each.on_checkpoint = lambda moment, path: seen.append((moment.place, path.name, len(checkpoints(run))))
    go(corpus, run=run, callbacks=[at_each])
    places = range(2000, 24_001, 2000)
    assert [place for place, *_ in seen] == list(places)
    assert [name for _, name, _ in seen] == [f"checkpoint-{place:015d}" for place in places]
    assert [count for *_, count in seen] == [2, *[3] * 11]  # one of them is mine
    names = ["checkpoint-000000000022000", "checkpoint-000000000024000", "checkpoint-of-mine"]
    assert sorted(path.name for path in run.iterdir()) == [*names, "lock", "run.vocab", "settings.json"]


@pytest.mark.parametrize(
    "damage,what",
    [
        (lambda folder: os.truncate(folder / "inputs.npy", 1000), "ValueError"),
        (lambda folder: os.truncate(folder / "outputs.npy", 0), "EOFError"),
        (lambda folder: (folder / "outputs.npy").unlink(), "FileNotFoundError"),
        (lambda folder: (folder / "inputs.npy").write_bytes(b"\x93NUMPY" + b"?" * 99), "ValueError"),
        (lambda folder: np.save(folder / "inputs.npy", np.zeros((1, 32), np.float32)), r"not float32 \(240"),
        (lambda folder: np.save(folder / "inputs.npy", np.zeros((240, 32))), "float64"),
        (lambda folder: (folder / "state.json").write_text('{"place": 4'), "JSONDecodeError"),
        (lambda folder: (folder / "state.json").write_text("[]"), "TypeError"),
        (lambda folder: (folder / "state.json").write_text("{}"), "KeyError"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_can_be_used(corpus, whole, tmp_path, damage, what):
    run = tmp_path / "run"
    stopped_after(3, corpus, run)
    older, last = checkpoints(run)
    damage(last)
    sentence = rf"the checkpoint {last} cannot be read \(.*{what}.*\); remove it to go on from the one before"
    with pytest.raises(RunError, match=sentence) as caught:
        go(corpus, run=run, resume=True)
    assert "\n" not in str(caught.value)
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    begin = At(0, press)
    assert_equal(go(corpus, run=run, resume=True, callbacks=[begin]), whole)
    assert begin.began == int(older.name[-15:])


def test_the_only_checkpoint_damaged_or_its_settings(corpus, tmp_path):
    run = tmp_path / "run"
    stopped_after(1, corpus, run)
    os.truncate(checkpoints(run)[0] / "inputs.npy", 0)
    with pytest.raises(RunError, match="remove it to start again"):
        go(corpus, run=run, resume=True)
    (run / "settings.json").write_text("{")
    with pytest.raises(RunError, match=r"has checkpoints but no readable settings\.json"):
        go(corpus, run=run, resume=True)


@pytest.mark.parametrize("place", [4001, -2000, 10**9])
def test_a_place_within_a_block_is_refused(corpus, tmp_path, place):
    run = tmp_path / "run"
    stopped_after(2, corpus, run)
    file = checkpoints(run)[-1] / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "place": place}))
    with pytest.raises(RunError, match=f"checkpoint at place {place:,} of 24,000, which is no border"):
        go(corpus, run=run, resume=True)


def test_a_damaged_checkpoint_of_the_same_place_is_replaced(corpus, tmp_path):
    state = checkpoint.State(np.ones((2, 16), np.float32), np.ones((2, 16), np.float32), place=7)
    with checkpoint.RunFolder(tmp_path / "run", {}, resume=True) as folder:
        path = folder.save(state)
        os.truncate(path / "inputs.npy", 10)
        assert folder.save(state) == path
        loaded = checkpoint.State(np.zeros((2, 16), np.float32), np.zeros((2, 16), np.float32))
        assert folder.load(loaded) and loaded.place == 7 and (loaded.inputs == 1).all()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-000000000000007",
        "lock",
        "settings.json",
    ]


@pytest.mark.parametrize("writes", [1, 6, 7])
def test_a_full_disk_leaves_the_checkpoints_that_are_there(corpus, whole, tmp_path, monkeypatch, writes):
    write, left = checkpoint._write_npy, [writes]

    def full(file, table):
        left[0] -= 1
        if left[0] == 0:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, table)

    monkeypatch.setattr(checkpoint, "_write_npy", full)
    run, seen = tmp_path / "run", []
    at_each = Callback()
    at_each.on_checkpoint = lambda moment, path: seen.append((moment.place, contents(run)))
    with pytest.raises(StorageError, match=r"cannot write .*: no space left .*; nothing was overwritten"):
        go(corpus, run=run, callbacks=[at_each])
    assert len(seen) == (writes - 1) // 2
    assert contents(run) == (seen[-1][1] if seen else {})
    assert not any(run.glob(".*"))
    monkeypatch.undo()
    assert_equal(go(corpus, run=run, resume=True), whole)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_called_so():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        checkpoint._write_npy(full, np.zeros((50, 16), np.float32))


# --- when to save -------------------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.mark.parametrize("cost,total", [(0.001, 200), (0.5, 6000), (30.0, 12_000)])
def test_saving_takes_at_most_two_hundredths_of_the_time(tmp_path, monkeypatch, cost, total):
    monkeypatch.setattr(checkpoint, "SHARE", 0.02)
    clock = Clock(monkeypatch)

    def slow(*_):
        clock.now += cost / 3  # three files

    table = np.zeros((2, 16), np.float32)
    saved_at = []
    with checkpoint.RunFolder(tmp_path / "run", {}, resume=False) as folder:
        monkeypatch.setattr(os, "fsync", slow)
        monkeypatch.setattr(checkpoint, "sync_folder", lambda _: None)
        began = clock.now
        while clock.now < began + total:
            clock.now += 1.0  # a run
            state = checkpoint.State(table, table, place=int(clock.now))
            if folder.due(state):
                folder.save(state)
                saved_at.append(clock.now)
            # What the first one takes is not known before.
            assert cost * len(saved_at) <= max(0.02 * (clock.now - began) + 1e-6, cost)
    assert cost * len(saved_at) > 0.015 * total or len(saved_at) == total


def test_large_tables_are_not_saved_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", 0.02)
    clock = Clock(monkeypatch)
    large = SimpleNamespace(nbytes=1_000_000_000)
    with checkpoint.RunFolder(tmp_path / "run", {}, resume=False) as folder:
        state = SimpleNamespace(inputs=large, outputs=large)
        clock.now += 199  # 4 s of writing are due after 200 s
        assert not folder.due(state)
        clock.now += 2
        assert folder.due(state)
