"""What training tells on its way, what it returns, and the calls that it refuses."""

import dataclasses
import math
import re
import signal
import threading

import numpy as np
import pytest

import firth
from firth.errors import FirthError, Interrupted, SettingError, SourceError, StorageError
from firth.training import Callback, Moment, SkipGram, train
from planted import clusters, corpus_of, learn


@pytest.fixture(scope="module")
def planted():
    return clusters(1000)  # two blocks


# --- callbacks and progress ---------------------------------------------------------------------


class Diary(Callback):
    """Notes each call."""

    def __init__(self):
        self.entries = []

    def on_begin(self, moment):
        self.entries.append(("begin", moment, None))

    def on_progress(self, moment):
        self.entries.append(("progress", moment, None))

    def on_epoch_end(self, moment, vectors):
        self.entries.append(("epoch", moment, vectors()))

    def on_checkpoint(self, moment, path):
        self.entries.append(("checkpoint", moment, path))

    def on_end(self, moment, vectors):
        self.entries.append(("end", moment, vectors))


class Notes:
    """A reporter that keeps what it was told."""

    def __init__(self):
        self.told = []

    def start(self, stage, total, unit):
        self.told.append(("start", stage, total, unit))

    def update(self, done, note=""):
        self.told.append(("update", done, note))

    def finish(self, note=""):
        self.told.append(("finish", note))

    def close(self):
        self.told.append(("close",))


FOUR_NUMBERS = r"words/s: [\d,]+ lr: 0\.\d{6} loss: \d+\.\d{4} ETA: \d+m \d\ds"


def test_callbacks_are_told_in_order(tmp_path, monkeypatch):
    corpus = clusters(1000)  # two blocks
    monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", 1)
    monkeypatch.setattr("firth.training.checkpoint.SHARE", 0.0)
    diary, notes = Diary(), Notes()
    result = learn(corpus, epochs=3, callbacks=(one for one in [diary]), progress=notes, run=tmp_path / "run")
    kinds = [kind for kind, *_ in diary.entries]
    epoch = ["progress", "progress", "epoch"]
    assert kinds == ["begin", *epoch, *epoch, *epoch, "checkpoint", "end"]
    moments = [moment for _, moment, _ in diary.entries]
    places = [moment.place for moment in moments]
    assert places == [0, 2000, 4000, 4000, 6000, 8000, 8000, 10000, 12000, 12000, 12000, 12000]
    assert {moment.total for moment in moments} == {12_000}
    assert [moment.epoch for kind, moment, _ in diary.entries if kind == "progress"] == [0, 1, 1, 2, 2, 2]
    assert [moment.epoch for kind, moment, _ in diary.entries if kind == "epoch"] == [0, 1, 2]
    assert [len(moment.epoch_losses) for kind, moment, _ in diary.entries if kind == "epoch"] == [1, 2, 3]
    assert all(early.lr > late.lr for early, late in zip(moments[:3], moments[4:7], strict=True))
    assert moments[0].lr == SkipGram().lr and moments[-1].lr == pytest.approx(SkipGram().lr * 1e-4)
    assert math.isnan(moments[0].loss) and moments[0].words_per_second == 0
    assert moments[0].seconds_left == math.inf and moments[-1].seconds_left == 0
    assert all(np.isfinite(moment.loss) and moment.words_per_second > 0 for moment in moments[1:])
    path, end = diary.entries[-2][2], diary.entries[-1][2]
    assert path.name == "checkpoint-000000000012000" and end is result
    # What on_epoch_end gets is a copy: the last one equals the result, the first one does not.
    epochs = [vectors for kind, _, vectors in diary.entries if kind == "epoch"]
    assert np.array_equal(epochs[-1].vectors, result.vectors)
    assert not np.array_equal(epochs[0].vectors, result.vectors)
    assert result.metadata["loss"] == list(moments[-1].epoch_losses)

    told = notes.told[notes.told.index(("start", "train", 12_000, "words")) :]
    assert [done for _, done, _ in told[1:-1]] == [2000, 4000, 6000, 8000, 10_000, 12_000]
    assert all(re.fullmatch(FOUR_NUMBERS, note) for *_, note in told[1:])
    assert told[-1] == ("finish", str(moments[-1]))


def test_a_moment_reads_like_fasttext():
    moment = Moment(500, 1000, 0, 10.0, 0.0125, 1.5, (), 50.0)
    assert str(moment) == "words/s: 10 lr: 0.012500 loss: 1.5000 ETA: 0m 50s"
    late = dataclasses.replace(moment, total=500 + 10 * 7384)
    assert str(late).endswith("ETA: 2h 03m 04s")
    assert str(dataclasses.replace(moment, words_per_second=0.0)).endswith("ETA: -")


# --- wrong calls --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"dim": 0}, "dim must be at least 1 and at most 65536, got 0"),
        ({"dim": -1}, "dim must be at least 1"),
        ({"dim": 1.5}, "dim must be a whole number, got 1.5"),
        ({"dim": True}, "dim must be a whole number, got True"),
        ({"dim": "100"}, "dim must be a whole number, got '100'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": -1}, "lr must be at least 1e-09 and at most 10, got -1"),
        ({"lr": 0}, "lr must be at least"),
        ({"lr": math.nan}, "lr must be .* got nan"),
        ({"lr": math.inf}, "lr must be .* got inf"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 1.0}, "threads must be a whole number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, cuda:NUMBER, reference, not 'tpu'"),
        ({"device": "cuda"}, "device='cpu'"),
        ({"device": "cuda:1"}, "device='cpu'"),
        ({"device": None}, "device must be a string"),
        ({"resume": True}, "resume=True needs run="),
        ({"objective": "skipgram"}, r"objective must be a SkipGram\(\.\.\.\), got 'skipgram'"),
        ({"objective": SkipGram}, "objective must be a SkipGram"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(planted, settings, message):
    refused(SettingError, message, lambda: train(planted, **settings))


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"window": 0}, "window must be at least 1"),
        ({"window": 2.0}, "window must be a whole number, got 2.0"),
        ({"window": None}, "window must be a whole number, got None"),
        ({"negatives": 0}, "negatives must be at least 1"),
        ({"sample": -1e-3}, "sample must be at least 0 and at most 1"),
        ({"sample": math.nan}, "sample must be"),
        ({"sample": "1e-3"}, "sample must be a number"),
        ({"sample": 1j}, "sample must be a number"),
        ({"ns_exponent": math.inf}, "ns_exponent must be"),
        ({"shrink_windows": "no"}, "shrink_windows must be True or False, got 'no'"),
        ({"share": -1}, "share must be at least 0"),
        ({"pool": 0}, "pool must be at least 1"),
        ({"saturation": "hard"}, "saturation must be one of exact, clip, skip, got 'hard'"),
        ({"saturation": 3}, "saturation must be a string"),
        ({"saturation": "clip"}, "saturation='clip' belongs to share=0, got share="),
        ({"share": 2, "saturation": "skip"}, "belongs to share=0, got share=2"),
        ({"lr": 0}, "lr must be at least"),
        ({"lr_last": -1}, "lr_last must be at least 0"),
    ],
    ids=str,
)
def test_wrong_objectives_are_refused(settings, message):
    refused(SettingError, r"^SkipGram\(\): .*" + message, lambda: SkipGram(**settings))


def test_presets_are_what_the_published_codes_do():
    assert SkipGram.preset("firth") == SkipGram()
    word2vec = SkipGram(share=0, saturation="clip", lr=0.025)
    assert SkipGram.preset("word2vec") == word2vec
    gensim = SkipGram(share=0, saturation="skip", lr=0.025, lr_last=1e-4, init=1.0)
    assert SkipGram.preset("gensim") == gensim


def test_unknown_preset_is_refused():
    refused(SettingError, "did you mean 'word2vec'", lambda: SkipGram.preset("wrod2vec"))
    refused(SettingError, "one of firth, word2vec, gensim is expected", lambda: SkipGram.preset("x"))


@pytest.mark.parametrize(
    "corpus,error,message",
    [
        (lambda: corpus_of([0, 0, 0], [0, 3]), SourceError, "3 tokens of 1 types"),
        (lambda: corpus_of([0], [0, 1]), SourceError, "1 tokens of 1 types"),
        (
            lambda: firth.Corpus.from_ids([], [0], firth.Vocab(["a", "b"], [1, 1])),
            SourceError,
            "0 tokens of 2 types",
        ),
        (lambda: corpus_of([0, 1, 2], [0, 1, 2, 3]), SourceError, "3 sentences of one token each"),
        (lambda: corpus_of([0, 1, 0, 1, 2], [0, 5]), SourceError, "sample=0.001 left no word beside another"),
        (lambda: "corpus.txt", SettingError, r"corpus must be a Corpus, got str; Corpus\.encode"),
        (lambda: None, SettingError, "corpus must be a Corpus, got NoneType"),
    ],
    ids=["one type", "one token", "empty", "lone tokens", "thinned out", "a path", "None"],
)
def test_corpora_with_nothing_to_learn_from_are_refused(corpus, error, message):
    given = corpus()
    refused(error, message, lambda: learn(given, epochs=1))


def test_run_in_a_missing_folder_is_refused(planted, tmp_path):
    run = tmp_path / "no" / "run"
    refused(StorageError, "no does not exist", lambda: learn(planted, run=run))
    (tmp_path / "file").write_text("mine")
    refused(StorageError, "cannot make the run folder", lambda: learn(planted, run=tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def refused(kind, message, call):
    with pytest.raises(kind, match=message) as caught:
        call()
    sentence = str(caught.value)
    assert isinstance(caught.value, FirthError)
    assert "\n" not in sentence and not sentence.endswith(".") and len(sentence) < 300


def test_numbers_of_numpy_are_numbers(planted):
    objective = SkipGram(window=np.int64(3), sample=np.float32(0.5), shrink_windows=np.bool_(False))
    vectors = learn(
        planted, objective, dim=np.int32(8), epochs=np.int8(1), lr=np.float32(0.5), seed=np.uint64(3)
    )
    assert vectors.vector_size == 8
    assert vectors.metadata["objective"]["window"] == 3 and vectors.metadata["lr"] == 0.5


# --- what comes back ----------------------------------------------------------------------------


def test_result_has_context_counts_and_metadata_and_keeps_them(planted, tmp_path):
    vectors = learn(planted, epochs=2, keep_context=True, seed=9)
    assert vectors.context.index_to_key == vectors.index_to_key == planted.vocab.tokens
    assert vectors.context.vectors.shape == vectors.vectors.shape == (len(planted.vocab), 32)
    assert not np.array_equal(vectors.context.vectors, vectors.vectors)
    assert learn(planted, epochs=1).context is None
    expected = {
        "firth": firth.__version__,
        "dim": 32,
        "epochs": 2,
        "lr": SkipGram().lr,
        "threads": 1,
        "seed": 9,
        "device": "auto",
        "tokens": len(planted),
        "raw_tokens": len(planted),
        "objective": SkipGram().to_dict(),
    }
    assert {key: vectors.metadata[key] for key in expected} == expected
    vectors.save(tmp_path / "saved")
    loaded = firth.Vectors.load(tmp_path / "saved")
    assert loaded.metadata == vectors.metadata and len(loaded.metadata["loss"]) == 2
    assert np.array_equal(loaded.counts, planted.vocab.counts)
    assert np.array_equal(loaded.context.vectors, vectors.context.vectors)


# --- threads and signals ------------------------------------------------------------------------


def test_training_works_outside_the_main_thread(planted):
    before, found = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: found.append(learn(planted, epochs=1)))
    thread.start()
    assert signal.getsignal(signal.SIGINT) is before
    thread.join()
    assert np.array_equal(found[0].vectors, learn(planted, epochs=1).vectors)


class Press(Callback):
    """Ctrl-C at the given call of on_progress."""

    def __init__(self, when=1, times=1):
        self.left, self.times = when, times

    def on_progress(self, moment):
        self.left -= 1
        if self.left == 0:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def test_the_handler_of_ctrl_c_is_put_back(planted, monkeypatch):
    monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", 2)
    before = signal.getsignal(signal.SIGINT)

    def mine(*_):
        raise AssertionError

    try:
        signal.signal(signal.SIGINT, mine)
        learn(planted, epochs=1)
        assert signal.getsignal(signal.SIGINT) is mine
        with pytest.raises(Interrupted) as caught:
            learn(planted, callbacks=[Press()])
        assert signal.getsignal(signal.SIGINT) is mine
        assert caught.value.run is None and "nothing was saved" in str(caught.value)
        with pytest.raises(KeyboardInterrupt) as again:
            learn(planted, callbacks=[Press(times=2)])
        assert not isinstance(again.value, Interrupted)
        assert signal.getsignal(signal.SIGINT) is mine
        with pytest.raises(SettingError):
            learn(planted, dim=0)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)
