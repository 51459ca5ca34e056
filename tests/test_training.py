"""Training finds what was planted, stays finite, tells what it does, and refuses wrong calls."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

import firth
from firth import kernels
from firth.errors import Diverged
from firth.kernels import cpu
from firth.kernels.reference import rate_at
from firth.training import Callback, SkipGram, trainer
from planted import cluster_score, clusters, corpus_of, even_sentences, grid, grid_score, learn

PUBLISHED = {"word2vec": SkipGram.preset("word2vec"), "gensim": SkipGram.preset("gensim")}
OBJECTIVES = {"shared": SkipGram(), "pairs": SkipGram(share=0), **PUBLISHED}


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
        if block_starts[0] == block_starts[-1]:  # to compile the kernel
            return np.zeros(3), 1
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
    "share,spoil", [(6, wrong_sign_of_negatives), *[(share, spoil) for share in (6, 0) for spoil in SPOILT]]
)
def test_broken_training_misses_the_clusters(planted, monkeypatch, share, spoil):
    monkeypatch.setattr(kernels, "pick", lambda *_: Broken(spoil))
    # A wrong sign diverges later on; a call for each sentence takes its time.
    epochs = 2 if spoil in (wrong_sign, lost_outputs) else 10
    found = cluster_score(learn(planted, SkipGram(share=share), epochs=epochs))
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
    monkeypatch.setattr(kernels, "pick", lambda *_: Broken(spoil))
    monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", 10_000)  # an epoch is one run
    found = grid_score(learn(grids[mirrored], positional(share)))
    assert not found.recovered, found


def test_the_tampering_itself_changes_nothing(planted, grids, monkeypatch):
    monkeypatch.setattr(kernels, "pick", lambda *_: Broken(lambda given: None))
    assert cluster_score(learn(planted)).recovered
    assert grid_score(learn(grids[False], positional(6))).recovered


@pytest.mark.parametrize("name", OBJECTIVES)
def test_epoch_losses_fall(planted, name):
    losses = learn(planted, OBJECTIVES[name], epochs=4).metadata["loss"]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * losses[0]


def test_positive_contexts_stand_in_the_output_table(planted):
    # u . v is high for words of one cluster and low for others: the tables belong together.
    vectors = learn(planted, keep_context=True)
    scores = vectors.vectors @ vectors.context.vectors.T
    label = np.arange(len(scores)) % 30
    same = label[:, None] == label[None, :]
    assert scores[same].mean() > 1 and scores[~same].mean() < -4


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


def test_seed_and_epoch_decide_the_draws_and_the_seed_the_start(planted):
    # Hardly anything moves, so the losses tell only which negatives were drawn.
    first, again, other = (learn(planted, seed=seed, lr=1e-9, epochs=2) for seed in (1, 1, 2))
    losses = {loss for vectors in (first, other) for loss in vectors.metadata["loss"]}
    assert len(losses) == 4 and first.metadata["loss"] == again.metadata["loss"]
    assert all(loss == pytest.approx(6 * math.log(2), rel=0.01) for loss in losses)
    for vectors in (first, other):
        assert 0.49 / 32 < np.abs(vectors.vectors).max() < 0.51 / 32  # word2vec's start
    assert np.abs(first.vectors - other.vectors).mean() > 0.2 / 32


class Recorder:
    """The fast kernels; keeps the learning rate at the begin and at the end of each run."""

    def __init__(self):
        self.rates = []
        self.alias_table = cpu.alias_table

    def run(self, kernel, inputs, outputs, ids, sentence_starts, block_starts, step, *rest):
        if block_starts[0] < block_starts[-1]:
            self.rates.append([rate_at(step, int(pos)) for pos in block_starts[[0, -1]]])
        return cpu.run(kernel, inputs, outputs, ids, sentence_starts, block_starts, step, *rest)


@pytest.mark.parametrize(
    "objective,lr,last",
    [(SkipGram(), None, 0.025e-4), (SkipGram(lr_last=0.01), 0.05, 0.01), (PUBLISHED["gensim"], None, 1e-4)],
    ids=["default", "floor", "gensim"],
)
def test_learning_rate_falls_in_one_line_through_all_epochs(planted, monkeypatch, objective, lr, last):
    recorder, shown = Recorder(), []
    monkeypatch.setattr(kernels, "pick", lambda *_: recorder)
    monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", 4)
    callback = Callback()
    callback.on_progress = lambda moment: shown.append(moment.lr)
    learn(planted, objective, lr=lr, epochs=3, callbacks=[callback])
    first = objective.lr if lr is None else lr
    wanted = np.linspace(first, last, 13)  # 16 blocks in runs of 4, three times
    np.testing.assert_allclose(recorder.rates, np.column_stack([wanted[:-1], wanted[1:]]), rtol=1e-9)
    np.testing.assert_allclose(shown, wanted[1:], rtol=1e-9)


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
    vectors = learn(odd_corpora()[name], objective, dim=16, epochs=5, keep_context=True)
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
        test_odd_corpora_stay_finite_and_small("two words", dataclasses.replace(WIDE, sample=0, share=8))


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
        made = trainer.State

        def state(**tables):
            self.state = made(**tables)
            return self.state

        monkeypatch.setattr("firth.training.trainer.State", state)
        return self


@pytest.mark.parametrize("table", ["inputs", "outputs"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_table_that_is_not_finite_stops_the_run(planted, tmp_path, monkeypatch, table, share):
    monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", 4)
    due = "firth.training.trainer.RunFolder.due"
    monkeypatch.setattr(due, lambda self, state: state.place < len(planted))
    poison = Poison(table, share).watch(monkeypatch)
    where = r"diverged at \d+\.\d % \(epoch 2, learning rate [\d.e-]+\): "
    # Half-way, more rows are poisoned before anyone looks; at the end it is this one.
    what = r"row \d+ \('w\d+'\) of the inputs" if share < 1 else rf"row 3 \('w3'\) of the {table}"
    with pytest.raises(Diverged, match=where + what + " is not finite; try a smaller lr than 0.0"):
        learn(planted, epochs=2, callbacks=[poison], run=tmp_path / "run")
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert checkpoints
    for file in (file for folder in checkpoints for file in folder.glob("*.npy")):
        assert np.isfinite(np.load(file)).all()


def test_an_absurd_learning_rate_is_named(monkeypatch):
    monkeypatch.setattr(SkipGram, "fitted", lambda self, counts, lr: self)
    corpus = odd_corpora()["two words"]
    with pytest.raises(Diverged, match=r"learning rate [\d.]+\): .*; try a smaller lr than 10"):
        learn(corpus, dataclasses.replace(WIDE, sample=0, share=64), lr=10.0)
