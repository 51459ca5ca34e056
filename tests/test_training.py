"""Training finds what was planted, stays finite, tells what it does, and refuses wrong calls."""

import dataclasses
import math
import re
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from planted import cluster_score, clusters, corpus_of, even_sentences, grid, grid_score

import firth
from firth import kernels
from firth.errors import Diverged, FirthError, Interrupted, SettingError, SourceError, StorageError
from firth.kernels import cpu
from firth.training import Callback, Moment, SkipGram, loop, train

PUBLISHED = {"word2vec": SkipGram.preset("word2vec"), "gensim": SkipGram.preset("gensim")}
OBJECTIVES = {"shared": SkipGram(), "pairs": SkipGram(share=0), **PUBLISHED}


def learn(corpus, objective=None, **settings):
    return train(corpus, objective, **{"dim": 32, "epochs": 10, "threads": 1, **settings})


@pytest.fixture(scope="module")
def planted():
    return clusters()


@pytest.fixture(scope="module")
def grids():
    return {mirrored: grid(mirrored=mirrored) for mirrored in (False, True)}


# --- planted structure --------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_clusters_are_recovered(planted, name, threads):
    found = cluster_score(learn(planted, OBJECTIVES[name], threads=threads))
    assert found.recovered, found


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("share", [6, 0])
def test_words_are_grouped_by_what_the_window_reaches(grids, share, mirrored):
    found = grid_score(learn(grids[mirrored], positional(share)))
    assert found.recovered, found


def positional(share):
    return SkipGram(window=3, shrink_windows=False, share=share, sample=0)


class Broken:
    """The fast kernels with one thing wrong: ``spoil`` changes the arguments of each run."""

    def __init__(self, spoil):
        self._spoil = spoil
        self.alias_table = cpu.alias_table

    def run(self, kernel, inputs, outputs, ids, sentence_starts, block_starts, step, draws, *rest):
        given = SimpleNamespace(
            inputs=inputs, outputs=outputs, ids=ids, starts=sentence_starts, step=step, draws=draws
        )
        self._spoil(given)
        stats, done = np.zeros(3), 0
        for borders in given.pieces if hasattr(given, "pieces") else [block_starts]:
            if hasattr(given, "before_each"):
                given.before_each()
            arrays = (given.inputs, given.outputs, given.ids, given.starts, np.asarray(borders))
            stats += cpu.run(kernel, *arrays, given.step, given.draws, *rest)[0]
        done = len(block_starts) - 1
        return stats, done


def wrong_sign(given):
    step = given.step
    given.step = step._replace(
        rate_first=-step.rate_first, rate_slope=-step.rate_slope, rate_last=-step.rate_first
    )


def wrong_sign_of_negatives(given):
    given.step = given.step._replace(weight=-given.step.weight)


def no_negatives(given):
    given.step = given.step._replace(weight=0.0)


def always_the_same_negative(given):
    nowhere = np.zeros_like(given.draws.threshold)
    given.draws = given.draws._replace(threshold=nowhere, alias=np.full_like(given.draws.alias, 7))


def ten_different_negatives(given):
    nowhere = np.zeros_like(given.draws.threshold)
    alias = (np.arange(len(nowhere)) % 10).astype(np.int32)
    given.draws = given.draws._replace(threshold=nowhere, alias=alias)


def lost_inputs(given):
    given.inputs = given.inputs.copy()


def lost_outputs(given):
    kept, given.outputs = given.outputs, given.outputs.copy()
    starts = given.starts  # lost after each sentence
    given.pieces = np.column_stack([starts[:-1], starts[1:]])
    given.before_each = lambda: np.copyto(given.outputs, kept)


SPOILT = [wrong_sign, always_the_same_negative, ten_different_negatives, lost_inputs, lost_outputs]


@pytest.mark.parametrize(
    "share,spoil",
    [
        (6, wrong_sign_of_negatives),
        (6, no_negatives),
        *[(share, spoil) for share in (6, 0) for spoil in SPOILT],
    ],
)
def test_broken_training_misses_the_clusters(planted, monkeypatch, share, spoil):
    monkeypatch.setattr(kernels, "pick", lambda _: Broken(spoil))
    epochs = 2 if spoil is lost_outputs else 10  # a call for each sentence takes its time
    try:
        found = cluster_score(learn(planted, SkipGram(share=share), epochs=epochs))
    except Diverged:
        assert spoil is wrong_sign
    else:
        assert not found.recovered, found


def too_wide(given):
    given.step = given.step._replace(window=given.step.window + 1)


def too_narrow(given):
    given.step = given.step._replace(window=given.step.window - 1)


def across_sentences(given):
    given.starts = np.array([0, len(given.ids)])


def a_token_early(given):
    given.starts = given.starts + np.r_[0, np.full(len(given.starts) - 2, -1), 0]
    given.pieces = [[0, len(given.ids)]]


def a_token_late(given):
    given.starts = given.starts + np.r_[0, np.full(len(given.starts) - 2, 1), 0]
    given.pieces = [[0, len(given.ids)]]


@pytest.mark.parametrize("spoil", [too_wide, too_narrow, across_sentences, a_token_early, a_token_late])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("share", [6, 0])
def test_broken_windows_miss_the_groups(grids, monkeypatch, share, mirrored, spoil):
    monkeypatch.setattr(kernels, "pick", lambda _: Broken(spoil))
    monkeypatch.setattr(loop, "RUN_BLOCKS", 10_000)  # an epoch is one run
    found = grid_score(learn(grids[mirrored], positional(share)))
    assert not found.recovered, found


def test_the_tampering_itself_changes_nothing(planted, grids, monkeypatch):
    monkeypatch.setattr(kernels, "pick", lambda _: Broken(lambda given: None))
    assert cluster_score(learn(planted)).recovered
    assert grid_score(learn(grids[False], positional(6))).recovered


# --- the same again -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [6, 0])
def test_one_thread_twice_gives_equal_bits(planted, share):
    first, again, other = (
        learn(planted, SkipGram(share=share), epochs=2, seed=seed, keep_context=True) for seed in (5, 5, 6)
    )
    assert np.array_equal(first.vectors, again.vectors)
    assert np.array_equal(first.context.vectors, again.context.vectors)
    assert not np.array_equal(first.vectors, other.vectors)
    assert first.metadata["loss"] == again.metadata["loss"] != other.metadata["loss"]


def test_the_seed_changes_the_start_too():
    corpus = corpus_of([0, 1] * 30, [0, 60])
    starts = [learn(corpus, SkipGram(sample=0), seed=seed, lr=1e-9, epochs=1).vectors for seed in (1, 2)]
    assert np.abs(starts[0]).max() <= 0.5 / 32 + 1e-6
    assert not np.allclose(starts[0], starts[1], atol=1e-3)


# --- stability ----------------------------------------------------------------------------------


def odd_corpora():
    rng = np.random.default_rng(0)
    baskets = np.minimum(rng.zipf(1.3, 20_000) - 1, 149)
    burst = np.concatenate([rng.integers(0, 300, 4000), np.full(2000, 5), rng.integers(0, 300, 4000)])
    return {
        "two words": corpus_of(rng.integers(0, 2, 10_000), even_sentences(10_000, 10)),
        "two words in turn": corpus_of(np.tile([0, 1], 5000), [0, 10_000]),
        "ten words": corpus_of(rng.integers(0, 10, 10_000), even_sentences(10_000, 1000)),
        "a burst": corpus_of(burst, [0, len(burst)]),
        "baskets": corpus_of(baskets, even_sentences(20_000, 4)),
        "one long basket": corpus_of(baskets, [0, 20_000]),
        "nearly one word": corpus_of([0] * 3000 + [1] + [0] * 3000, [0, 6001]),
        "five tokens": corpus_of([0, 1, 0, 1, 2], [0, 5]),
    }


WIDE = SkipGram(window=15, negatives=15)


@pytest.mark.parametrize(
    "objective",
    [
        SkipGram(sample=0),
        dataclasses.replace(WIDE, sample=0),
        dataclasses.replace(WIDE, sample=0, shrink_windows=False, share=64),
        dataclasses.replace(WIDE, sample=0, share=0),
        dataclasses.replace(SkipGram(window=15, negatives=15, sample=0), pool=4),
    ],
    ids=["default", "wide", "wide full windows", "wide pairs", "wide small pool"],
)
@pytest.mark.parametrize("name", odd_corpora())
def test_odd_corpora_stay_finite_and_small(name, objective):
    vectors = learn(odd_corpora()[name], objective, dim=16, keep_context=True)
    for table in (vectors.vectors, vectors.context.vectors):
        assert np.isfinite(table).all()
        assert np.linalg.norm(table, axis=1).max() < 25  # seen: 15
    # A table of zeros has the loss (1 + negatives) ln 2; whoever overshoots is worse.
    assert 0 < vectors.metadata["loss"][-1] < (1 + objective.negatives) * math.log(2)


def test_default_subsampling_of_small_corpora_stays_finite():
    for name in ("two words", "ten words", "a burst", "baskets"):
        for objective in (SkipGram(), WIDE):
            vectors = learn(odd_corpora()[name], objective, dim=16, keep_context=True)
            assert np.linalg.norm(vectors.vectors, axis=1).max() < 25
            assert np.linalg.norm(vectors.context.vectors, axis=1).max() < 25


def test_groups_that_are_too_large_for_the_corpus_explode(monkeypatch):
    # The reason for SkipGram.fitted, and the proof that the test above would notice its loss.
    monkeypatch.setattr(SkipGram, "fitted", lambda self, counts, lr: self)
    with pytest.raises((AssertionError, Diverged)):
        test_odd_corpora_stay_finite_and_small("two words", dataclasses.replace(WIDE, sample=0))


def test_groups_shrink_where_a_corpus_needs_it_and_say_so():
    vectors = learn(odd_corpora()["two words"], WIDE, epochs=1)
    assert vectors.metadata["objective"]["share"] < WIDE.share
    assert learn(clusters(600), epochs=1).metadata["objective"]["share"] == SkipGram().share


def test_vocabulary_without_counts_is_counted():
    corpus = clusters(400)
    bare = firth.Corpus.from_ids(corpus.ids, corpus.sentence_starts, firth.Vocab(corpus.vocab.tokens))
    bare.block_starts = corpus.block_starts
    counted, uncounted = learn(corpus, epochs=1), learn(bare, epochs=1)
    assert np.array_equal(counted.vectors, uncounted.vectors)
    assert np.array_equal(uncounted.counts, corpus.vocab.counts)


# --- divergence ---------------------------------------------------------------------------------


class Poison(Callback):
    """Writes a NaN into a table once a share of the work is done."""

    def __init__(self, table="inputs", share=0.5):
        self.table, self.share, self.state = table, share, None

    def on_progress(self, moment):
        if moment.share >= self.share and self.state is not None:
            getattr(self.state, self.table)[3, 1] = np.nan

    def watch(self, monkeypatch):
        made = loop.State

        def state(**tables):
            self.state = made(**tables)
            return self.state

        monkeypatch.setattr(loop, "State", state)
        return self


@pytest.mark.parametrize("table", ["inputs", "outputs"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_table_that_is_not_finite_stops_the_run(planted, tmp_path, monkeypatch, table, share):
    monkeypatch.setattr(loop, "RUN_BLOCKS", 4)
    poison = Poison(table, share).watch(monkeypatch)
    with pytest.raises(
        Diverged, match=r"diverged at \d+\.\d % \(epoch \d, learning rate [\d.e-]+\)"
    ) as caught:
        learn(planted, epochs=2, callbacks=[poison], run=tmp_path / "run")
    assert "row 3 ('w3') of the " + table in str(caught.value) and "smaller lr than 0.03" in str(caught.value)
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert checkpoints
    for file in (file for folder in checkpoints for file in folder.glob("*.npy")):
        assert np.isfinite(np.load(file)).all()


def test_an_absurd_learning_rate_is_named(monkeypatch):
    monkeypatch.setattr(SkipGram, "fitted", lambda self, counts, lr: self)
    corpus = odd_corpora()["two words"]
    with pytest.raises(Diverged, match=r"learning rate [\d.]+\): .*; try a smaller lr than 10"):
        learn(corpus, dataclasses.replace(WIDE, sample=0, share=64), lr=10.0)


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


FOUR_NUMBERS = r"words/s: [\d,]+ lr: 0\.\d{6} loss: \d+\.\d{4} ETA: \d+m \d\ds"


def test_callbacks_are_told_in_order(tmp_path, monkeypatch):
    corpus = clusters(1000)  # two blocks
    monkeypatch.setattr(loop, "RUN_BLOCKS", 1)
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
    assert moments[0].lr == 0.03 and moments[-1].lr == pytest.approx(0.03e-4)
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

    assert notes.told[0] == ("start", "train", 12_000, "words")
    assert [done for kind, done, *_ in notes.told[1:-1]] == [2000, 4000, 6000, 8000, 10_000, 12_000]
    assert all(re.fullmatch(FOUR_NUMBERS, note) for *_, note in notes.told[1:])
    assert notes.told[-1] == ("finish", str(moments[-1]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_epoch_losses_fall(planted, name):
    losses = learn(planted, OBJECTIVES[name], epochs=4).metadata["loss"]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * losses[0]


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
        ({"dim": None}, "dim must be a whole number, got None"),
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
        ({"device": "tpu"}, "device must be one of auto, cpu, reference, not 'tpu'"),
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
        ({"saturation": "clip"}, "saturation='clip' belongs to share=0, got share=6"),
        ({"share": 2, "saturation": "skip"}, "belongs to share=0, got share=2"),
        ({"lr": 0}, "lr must be at least"),
        ({"lr_last": -1}, "lr_last must be at least 0"),
    ],
    ids=str,
)
def test_wrong_objectives_are_refused(settings, message):
    refused(SettingError, r"^SkipGram\(\): .*" + message, lambda: SkipGram(**settings))


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
        "lr": 0.03,
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


def test_positive_contexts_stand_in_the_output_table(planted):
    # u . v is high for words of one cluster and low for others: the tables belong together.
    vectors = learn(planted, keep_context=True)
    scores = vectors.vectors @ vectors.context.vectors.T
    label = np.arange(len(scores)) % 30
    same = label[:, None] == label[None, :]
    assert scores[same].mean() > 2 and scores[~same].mean() < -1


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
    monkeypatch.setattr(loop, "RUN_BLOCKS", 2)
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
