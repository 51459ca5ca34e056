"""Training on from vectors: rows never shift, known ones start as given, and a chain of runs is exact."""

import fcntl
import json
import signal
import warnings

import numpy as np
import pytest

import firth
from firth import counting
from firth.errors import FirthError, Interrupted, RunError, SettingError, ShapeError
from firth.kernels import reference
from firth.subwords import DenseRows, FastTextSubwords
from firth.training import Callback, SkipGram, checkpoint, initial, load_start, loop
from firth.training.draws import Sampler
from given import DIM, assert_equal, encode, lines, made
from planted import CLUSTERS, SIZE

SETTINGS = {"epochs": 2, "threads": 1}


# --- the vocabulary -----------------------------------------------------------------------------

TEXT = ["b a new new x x zz zz zz Paris"] * 3 + ["rare a"]
KNOWN = ["new", "York", "Paris", "a"]


def test_known_words_come_first_and_limits_are_for_the_others():
    corpus = encode(TEXT, known=made(KNOWN), min_count=3)
    assert corpus.vocab.tokens == [*KNOWN, "zz", "x", "b"]
    assert corpus.vocab.counts.tolist() == [6, 0, 3, 4, 9, 6, 3]
    assert corpus.vocab.decode(corpus.ids) == " ".join(TEXT).replace("rare ", "").split()
    assert encode(TEXT, known=KNOWN, min_count=3, max_size=1).vocab.tokens == [*KNOWN, "zz"]
    # Nothing new: the rare known word is still there.
    assert encode(TEXT, known=KNOWN, min_count=100).vocab.counts.tolist() == [6, 0, 3, 4]


def test_a_folded_text_has_no_words_with_capitals():
    lower = firth.Tokenizer(lower=True)
    corpus = encode([*TEXT, "PARIS paris york"], known=KNOWN, tokenizer=lower)
    counts = dict(zip(corpus.vocab.tokens, corpus.vocab.counts.tolist(), strict=True))
    assert counts["Paris"] == 0 and counts["paris"] == 5
    assert counts["York"] == 0 and counts["york"] == 1
    assert corpus.vocab.tokens[:4] == KNOWN


def test_known_words_are_never_forgotten_while_counting(monkeypatch):
    monkeypatch.setattr(counting, "PRUNE_ABOVE", 8)
    text = [f"known0 w{row} w{row} known1" for row in range(40)] + ["known2 often often often often"]
    known = [f"known{row}" for row in range(3)]
    corpus = encode(text, known=known, max_size=2)
    assert corpus.vocab.pruned > 0
    assert corpus.vocab.tokens[:4] == [*known, "often"]
    assert corpus.vocab.counts[:4].tolist() == [40, 40, 1, 4]
    assert corpus.vocab.counts.tolist() == np.bincount(corpus.ids, minlength=len(corpus.vocab)).tolist()


def test_encoded_text_is_kept_for_each_set_of_known_words(tmp_path):
    path = tmp_path / "text"
    path.write_text("\n".join(TEXT))
    runs = [encode(path, known=known, cache=tmp_path) for known in (KNOWN, KNOWN, KNOWN[:2], None)]
    assert [corpus.reused for corpus in runs] == [False, True, False, False]
    assert [corpus.vocab.tokens[:2] for corpus in runs] == [["new", "York"]] * 3 + [["zz", "new"]]


@pytest.mark.parametrize(
    "settings,sentence",
    [
        ({"known": "abc"}, "known must be Vectors or a list of tokens, got 'abc'"),
        ({"known": 3}, "known must be Vectors or a list of tokens, got 3"),
        ({"known": ["a", "a"]}, "'a' occurs twice"),
        ({"known": ["a"], "vocab": firth.Vocab(["b"])}, "known is for counting"),
    ],
)
def test_known_words_that_are_none_are_refused(settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        encode(TEXT, **settings)


# --- the start ----------------------------------------------------------------------------------


def test_rows_stay_where_they_were_and_words_of_the_text_move():
    start = made([*KNOWN, "w0", "w30", "absent"], counts=[9, 8, 7, 6, 5, 4, 3])
    corpus = encode(lines(), known=start)
    tuned = firth.train(corpus, init=start, keep_context=True, **SETTINGS)
    assert list(tuned)[: len(start)] == list(start)
    assert len(tuned) == len(start) + CLUSTERS * SIZE - 2
    moved = (tuned.vectors[: len(start)] != start.vectors).any(axis=1)
    assert moved.tolist() == [False] * 4 + [True, True, False]
    in_text = np.array(corpus.vocab.counts)
    assert tuned.counts.tolist() == (in_text + np.r_[start.counts, np.zeros(len(tuned) - 7, int)]).tolist()
    # Words that the text does not have are no negatives either.
    assert not tuned.context.vectors[[0, 1, 2, 3, 6]].any()
    assert tuned.context.vectors[[4, 5, *range(7, len(tuned))]].any(axis=1).all()
    facts = tuned.metadata["init"]
    assert (facts["known"], facts["known_in_text"], facts["new"]) == (7, 2, len(tuned) - 7)
    assert facts["context"] is False and tuned.metadata["freeze"] == "none"


def test_only_words_of_the_text_are_drawn():
    counts = np.array([5, 0, 0, 40, 1, 0])
    draws = Sampler(counts, SkipGram(), 1, reference, np.flatnonzero(counts)).epoch(0)
    drawn = np.bincount([reference.negative_at(draws, 0, pos) for pos in range(20_000)], minlength=6)
    wanted = counts**0.75 / np.sum(counts**0.75)
    assert not drawn[counts == 0].any()
    assert np.abs(drawn / 20_000 - wanted).max() < 0.015


def test_any_corpus_will_do():
    start = made(["w30", "absent", "w0"])
    text = lines()
    as_known, as_is = encode(text, known=start), encode(text)
    assert as_is.vocab.tokens != as_known.vocab.tokens
    assert_equal(
        firth.train(as_is, init=start, keep_context=True, **SETTINGS),
        firth.train(as_known, init=start, keep_context=True, **SETTINGS),
    )


def test_new_words_start_small_or_from_their_ngrams(monkeypatch):
    monkeypatch.setattr(loop.Trainer, "run", stand_still)
    subwords = FastTextSubwords(
        DenseRows(np.random.default_rng(0).normal(size=(50, DIM)).astype(np.float32)), 2, 3, buckets=50
    )
    corpus = encode(lines(), known=["w0"])
    plain = firth.train(corpus, init=made(["w0"]), **SETTINGS)
    bound = SkipGram().init / DIM
    assert plain.vectors[1:].any(axis=1).all() and np.abs(plain.vectors[1:]).max() <= bound
    start = made(["w0"], subwords=subwords)
    some = firth.train(corpus, init=start, **SETTINGS)
    assert np.array_equal(some.vectors[0], start["w0"])
    np.testing.assert_allclose(some["w7"], subwords.vectors(["w7"])[0], rtol=1e-6)
    # Where subwords are all there is, every word is new.
    none = firth.Vectors([], np.zeros((0, DIM), np.float32), subwords=subwords)
    made_all = firth.train(encode(lines()), init=none, **SETTINGS)
    np.testing.assert_allclose(made_all["w0"], subwords.vectors(["w0"])[0], rtol=1e-6)


def stand_still(trainer, stop):
    """A run that moves on without training."""
    trainer.state.place = trainer.total
    trainer.state.losses = [1.0]
    return False


def test_counts_of_the_text_decide_what_is_left_out():
    # Counts that the vectors came with would thin the text out to nothing.
    start = made(["w0", "w30"], counts=[10**9, 10**9])
    corpus = encode(lines(), known=start)
    without = firth.Vectors(list(start), start.vectors)
    one, two = (firth.train(corpus, init=vectors, **SETTINGS) for vectors in (start, without))
    assert np.array_equal(one.vectors, two.vectors)
    assert one.counts[0] == 10**9 + two.counts[0]


# --- exactness ----------------------------------------------------------------------------------

STEADY = {"shared": SkipGram(lr_last=0.025), "pairs": SkipGram(share=0, lr_last=0.025)}


@pytest.fixture(scope="module")
def corpus():
    return encode(lines(count=1000))


def once(corpus, objective=None, **settings):
    return firth.train(corpus, objective, **{"dim": DIM, "threads": 1, "keep_context": True, **settings})


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("through", ["memory", "file", "run folder"])
def test_an_epoch_and_one_more_are_two_to_the_bit(corpus, tmp_path, name, through):
    objective = STEADY[name]
    whole = once(corpus, objective, epochs=2)
    start = first = once(corpus, objective, epochs=1, run=tmp_path / "run")
    if through == "file":
        first.save(tmp_path / "first.safetensors")
        start = tmp_path / "first.safetensors"
    elif through == "run folder":
        start = tmp_path / "run"
    second = once(corpus, objective, epochs=1, init=start, dim=None)
    assert_equal(second, whole)
    assert second.counts.tolist() == (2 * whole.counts).tolist()
    third = once(corpus, objective, epochs=1, init=second, dim=None)
    assert_equal(third, once(corpus, objective, epochs=3))


def test_without_the_context_table_it_is_not_exact(corpus):
    # The test above can fail: here is what it would see.
    first = once(corpus, STEADY["shared"], epochs=1, keep_context=False)
    second = once(corpus, STEADY["shared"], epochs=1, init=first, dim=None)
    assert not np.allclose(second.vectors, once(corpus, STEADY["shared"], epochs=2).vectors, atol=1e-3)


class Press(Callback):
    """Ctrl-C after the run of blocks number ``when``."""

    def __init__(self, when):
        self.when = when

    def on_progress(self, moment):
        self.when -= 1
        if not self.when:
            signal.raise_signal(signal.SIGINT)


def test_the_schedule_of_an_unfinished_run_goes_on(corpus, tmp_path):
    with pytest.raises(Interrupted):
        once(corpus, epochs=2, run=tmp_path / "run", callbacks=[Press(1)])
    start = load_start(tmp_path / "run")
    rate = SkipGram().lr
    assert start.metadata["lr_reached"] == pytest.approx(rate - (rate - rate * 1e-4) / 2)
    on = once(corpus, epochs=1, init=start, dim=None)
    resumed = once(corpus, epochs=2, run=tmp_path / "run", resume=True)
    # Only the rounding of the learning rate differs.
    np.testing.assert_allclose(on.vectors, resumed.vectors, atol=1e-6)
    np.testing.assert_allclose(on.context.vectors, resumed.context.vectors, atol=1e-6)
    # Stopped again, it still knows where the first run would have ended.
    with pytest.raises(Interrupted):
        once(corpus, epochs=2, init=start, dim=None, run=tmp_path / "on", callbacks=[Press(1)])
    again = load_start(tmp_path / "on").metadata
    assert again["lr_last"] == rate * 1e-4 < again["lr_reached"] < start.metadata["lr_reached"]
    asked = once(corpus, epochs=1, lr=0.01, init=start, dim=None)
    assert asked.metadata["lr"] == 0.01
    done = load_start(tmp_path / "run")
    assert "lr_reached" not in done.metadata
    assert_equal(done, resumed)
    assert done.counts.tolist() == resumed.counts.tolist()


@pytest.mark.parametrize("freeze", ["none", "known"])
def test_a_run_that_trains_on_goes_on_after_ctrl_c(corpus, tmp_path, monkeypatch, freeze):
    monkeypatch.setattr("firth.training.trainer.RUN_BLOCKS", 1)
    start = made(["w0", "absent", "w5"], context=made(["w0", "absent", "w5"], seed=2).vectors)
    settings = {"epochs": 3, "init": start, "dim": None, "freeze": freeze}
    whole = once(corpus, **settings)
    with pytest.raises(Interrupted):
        once(corpus, run=tmp_path / "run", callbacks=[Press(2)], **settings)
    other = made(["w0", "absent", "w5"], seed=3)
    for wrong, sentence in (
        ({"init": other}, "the vectors to start from have changed"),
        ({"init": None, "dim": DIM, "freeze": "none"}, "were given there, none were asked"),
        ({"freeze": "known" if freeze == "none" else "none"}, "freeze is"),
    ):
        with pytest.raises(RunError, match=sentence):
            once(corpus, run=tmp_path / "run", resume=True, **{**settings, **wrong})
    assert_equal(once(corpus, run=tmp_path / "run", resume=True, **settings), whole)
    assert (
        json.loads((tmp_path / "run" / "settings.json").read_text())["init"]
        == (whole.metadata["init"]["fingerprint"])
    )


def test_new_words_again_and_again_never_shift_old_ones(tmp_path):
    vectors, seen = None, []
    for step, words in enumerate(("a b", "c d e f a", "h b", "a h", "i j a")):
        text = [f"{words} {words}"] * 30
        corpus = encode(text, known=vectors)
        settings = {"dim": None, "epochs": 1, "init": vectors, "run": tmp_path / str(step)}
        vectors = once(corpus, SkipGram(sample=0), **settings)
        seen += [word for word in words.split() if word not in seen]
        assert list(vectors) == seen
        vectors.save(tmp_path / "vectors.safetensors")
        vectors = firth.Vectors.load(tmp_path / "vectors.safetensors")
    assert vectors.counts.tolist() == [240, 120, *[60] * 4, 120, 60, 60]


def test_a_run_folder_keeps_the_strangest_words(tmp_path):
    keys = ["new york", "a\nb", "\udcff", "#", " ", "w0"]
    start = made(keys)
    vectors = once(encode(lines(), known=start), dim=None, epochs=1, init=start, run=tmp_path / "run")
    assert_equal(load_start(tmp_path / "run"), vectors)


# --- freezing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [6, 0])
@pytest.mark.parametrize("with_context", [True, False])
def test_new_words_are_learned_into_a_frozen_space(share, with_context):
    corpus = encode(lines(count=8000))
    learned = once(corpus, dim=32, epochs=10)
    new = [f"w{row}" for row in range(CLUSTERS)]  # one of each cluster
    old = [word for word in learned if word not in new]
    start = learned.subset(old)
    if not with_context:
        start = firth.Vectors(old, start.vectors)
    text = encode(lines(seed=5, count=4000), known=start)
    frozen = once(text, SkipGram(share=share), dim=None, init=start, freeze="known", lr=0.05, epochs=20)
    assert np.array_equal(frozen.vectors[: len(old)], start.vectors)
    if with_context:
        assert np.array_equal(frozen.context.vectors[: len(old)], start.context.vectors)
    else:
        assert frozen.context.vectors[: len(old)].any(axis=1).all()
    assert sorted(list(frozen)[len(old) :]) == sorted(new)
    right = 0
    for word in new:
        near = [key for key, _ in frozen.most_similar(word, topn=SIZE - 1)]
        right += sum(int(key[1:]) % CLUSTERS == int(word[1:]) for key in near)
    assert right >= 0.9 * len(new) * (SIZE - 1), right


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v.safetensors", "v.txt", "v.bin", "v.glove"])
def test_every_format_starts_the_same(corpus, tmp_path, name):
    start = made(["w0", "absent", "w30"])
    start.save(tmp_path / name)
    expected = once(corpus, epochs=1, init=start, dim=None)
    assert_equal(once(corpus, epochs=1, init=tmp_path / name, dim=None), expected)
    assert_equal(once(corpus, epochs=1, init=str(tmp_path / name), dim=None), expected)


# --- what cannot be -----------------------------------------------------------------------------


def broken(value):
    rows = made(["w0", "w1"]).vectors.copy()
    rows[1, 3] = value
    return rows


@pytest.mark.parametrize(
    "kind,settings,sentence",
    [
        (ShapeError, {"dim": 32}, r"init \(vectors\) has 16 numbers a vector, dim=32 was asked"),
        (ShapeError, {"init": firth.Vectors(["w0", "w1"], broken(np.nan))}, r"row 1 \('w1'\) of the vectors"),
        (
            ShapeError,
            {"init": made(["w0", "w1"], context=broken(np.inf))},
            r"row 1 \('w1'\) of the context vectors of init holds NaN or infinity",
        ),
        (SettingError, {"init": {"w0": [1.0]}}, "init must be Vectors or the path of a file, got dict"),
        (SettingError, {"freeze": "all"}, "freeze must be none or known, got 'all'"),
        (SettingError, {"init": None, "freeze": "known"}, "freeze='known' needs init="),
        (SettingError, {"dim": 1.5, "init": None}, "dim must be a whole number, got 1.5"),
        (FirthError, {"init": "missing.txt"}, "cannot read missing.txt: no such file"),
    ],
)
def test_wrong_starts_are_refused(corpus, kind, settings, sentence):
    with pytest.raises(kind, match=sentence):
        firth.train(corpus, **{"init": made(["w0", "w1"]), **SETTINGS, **settings})


def test_freezing_everything_is_refused(corpus):
    start = once(corpus, epochs=1)
    with pytest.raises(SettingError, match="leaves nothing to learn"):
        once(corpus, epochs=1, init=start, dim=None, freeze="known")
    without = firth.Vectors(list(start), start.vectors)
    with pytest.raises(SettingError, match="leaves nothing to learn"):
        once(corpus, epochs=1, init=without, dim=None, freeze="known", keep_context=False)
    fitted = once(corpus, epochs=1, init=without, dim=None, freeze="known")  # context vectors for given ones
    assert np.array_equal(fitted.vectors, start.vectors) and fitted.context.vectors.any()


def test_no_word_in_common_is_told(corpus):
    start = made(["W0", "W1"])
    with pytest.warns(UserWarning, match="none of the 2 words of init .* is it the case of the letters"):
        tuned = firth.train(corpus, init=start, **SETTINGS)
    assert np.array_equal(tuned.vectors[:2], start.vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        firth.train(corpus, init=made(["w0", "W1"]), **SETTINGS)


def test_run_folders_that_give_no_start(corpus, tmp_path):
    run = tmp_path / "run"
    once(corpus, epochs=1, run=run)
    with (run / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is training"):
            load_start(run)
    (run / "run.vocab").rename(run / "away")
    with pytest.raises(RunError, match="made by an older firth"):
        load_start(run)
    firth.Vocab(["a", "b"]).save(run / "run.vocab")
    with pytest.raises(RunError, match=r"has 2 words in run\.vocab and tables of 240 rows"):
        load_start(run)
    (run / "away").replace(run / "run.vocab")
    settings = (run / "settings.json").read_text()
    for wrong in ("[]", "{", '{"dim": null}', json.dumps({**json.loads(settings), "objective": 3})):
        (run / "settings.json").write_text(wrong)
        with pytest.raises(RunError, match=r"no readable settings\.json"):
            load_start(run)
    (run / "settings.json").write_text(json.dumps({**json.loads(settings), "dim": 99}))
    with pytest.raises(RunError, match="tables that do not fit"):
        load_start(run)
    (run / "settings.json").write_text(settings)
    (last,) = checkpoint.checkpoints_in(run)
    table = (last / "inputs.npy").read_bytes()
    (last / "inputs.npy").write_bytes(table[:-5])
    with pytest.raises(RunError, match=r"cannot be read .*; train anew"):
        load_start(run)
    (last / "state.json").unlink()
    with pytest.raises(RunError, match="holds no checkpoint to start from"):
        load_start(run)


def test_metadata_that_lie_are_not_believed(corpus):
    for metadata in (
        {"epochs": "5", "lr_reached": True},
        {"epochs": -3, "lr_reached": -1.0},
        {"epochs": 1.5},
    ):
        start = initial.Pretrained(made(["w0"], metadata=metadata))
        assert (start.epochs, start.lr, start.lr_last) == (0, None, None)
