"""Replicated training: the same work by several processes, and quality that does not depend on how many."""

import numpy as np
import pytest
import torch

from firth.encoding import PIECE
from firth.errors import SettingError
from firth.kernels.compare import assert_rows_equal
from firth.processes import place
from firth.training import SkipGram, shared_tables
from firth.training.config import available_threads
from firth.training.distributed import cut, run_tokens
from firth.training.exchange import Exchange, bytes_sent, meetings, rows_due
from firth.training.loop import Trainer
from firth.training.shared_tables import deal
from planted import cluster_score, clusters, corpus_of, even_sentences, learn
from teams import Workers

# --- in worker processes ------------------------------------------------------------------------


def trained(group, settings):
    """The vectors, and the pairs that all processes trained together."""
    pairs = []
    account = Trainer.account
    Trainer.account = lambda self, stats: (pairs.append(stats[1]), account(self, stats))[1]
    try:
        vectors = learn(clusters(), keep_context=True, group=group, **settings)
    finally:
        Trainer.account = account
    return vectors.vectors, vectors.context.vectors, sum(pairs), vectors.metadata


def refused(group, rank, name, value):
    """The sentence with which a setting that differs at one rank is refused."""
    settings = {name: value} if group.rank == rank else {}
    try:
        learn(clusters(200), epochs=1, group=group, **settings)
    except SettingError as error:
        return str(error)
    return ""


def other_text(group):
    try:
        learn(clusters(200, seed=group.rank), epochs=1, group=group)
    except SettingError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def two():
    workers = Workers(2, __name__, machines=2)
    yield workers
    workers.end()


@pytest.fixture(scope="module")
def four():
    workers = Workers(4, __name__, machines=4)
    yield workers
    workers.end()


@pytest.fixture(scope="module", params=[1, 2])
def sharing(request):
    """Four processes on one machine and on two."""
    workers = Workers(4, __name__, machines=request.param)
    yield workers, request.param
    workers.end()


def alone():
    pairs = []
    account = Trainer.account
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "account", lambda self, stats: (pairs.append(stats[1]), account(self, stats))[1]
        )
        vectors = learn(clusters(), keep_context=True)
    return vectors, sum(pairs)


@pytest.fixture(scope="module")
def single():
    return alone()


@pytest.mark.parametrize("size", [2, 4])
def test_quality_and_draws_are_those_of_one_process(size, single, two, four):
    vectors, pairs = single
    results = (two if size == 2 else four).run(trained, {})
    for inputs, outputs, _, _ in results[1:]:  # the same tables everywhere, to the bit
        assert np.array_equal(inputs, results[0][0]) and np.array_equal(outputs, results[0][1])
    inputs, _, together, metadata = results[0]
    assert together == pairs  # every draw of what is kept and of how far windows reach
    expected, found = cluster_score(vectors), cluster_score(type(vectors)(vectors.index_to_key, inputs))
    assert found.recovered and abs(found.precision - expected.precision) <= 0.01
    assert metadata["loss"][-1] == pytest.approx(vectors.metadata["loss"][-1], rel=0.1)
    assert metadata["ranks"] == metadata["copies"] == size and metadata["bytes_exchanged_per_word"] > 0


def test_processes_of_a_machine_share_their_tables(sharing, single):
    workers, machines = sharing
    vectors, pairs = single
    results = workers.run(trained, {})
    for inputs, outputs, _, _ in results[1:]:
        assert np.array_equal(inputs, results[0][0]) and np.array_equal(outputs, results[0][1])
    inputs, _, together, metadata = results[0]
    assert together == pairs
    expected, found = cluster_score(vectors), cluster_score(type(vectors)(vectors.index_to_key, inputs))
    assert found.recovered and abs(found.precision - expected.precision) <= 0.01
    assert metadata["loss"][-1] == pytest.approx(vectors.metadata["loss"][-1], rel=0.1)
    assert metadata["ranks"] == 4 and metadata["copies"] == machines
    assert (metadata["bytes_exchanged_per_word"] > 0) == (machines > 1)


def test_wanted_bits_and_known_vectors(sharing):
    workers, _ = sharing
    once, again = (workers.run(trained, {"deterministic": True, "epochs": 2})[0] for _ in range(2))
    assert once[3]["copies"] == 4 and np.array_equal(once[0], again[0])
    for inputs, outputs, kept, copies in workers.run(trained_on):
        assert copies < 4
        assert np.array_equal(inputs[:10], kept[0][:10]) and np.array_equal(outputs[:10], kept[1][:10])
        assert not np.array_equal(inputs[10:], kept[0][10:])


def trained_on(group):
    """Tables that began as given vectors, of which the known ones stay; and what was given."""
    corpus = clusters(400)
    known = learn(corpus, epochs=1, keep_context=True, deterministic=True).subset(corpus.vocab.tokens[:10])
    made = learn(corpus, epochs=1, init=known, freeze="known", keep_context=True, group=group)
    given = known.vectors, known.context.vectors
    start = np.zeros((len(made), made.vector_size), np.float32)
    return (
        made.vectors,
        made.context.vectors,
        [np.concatenate([one, start[10:]]) for one in given],
        made.metadata["copies"],
    )


def trained_apart(group):
    """As ``trained``, where one process cannot map what the others can."""
    with pytest.MonkeyPatch.context() as patch:
        if group.rank == 1:
            patch.setattr(shared_tables, "_mapped", lambda *_: None)
        return trained(group, {"epochs": 1})


def test_memory_that_one_cannot_map_is_used_by_none(sharing):
    results = sharing[0].run(trained_apart)
    assert all(result[3]["copies"] == 4 for result in results)
    assert np.array_equal(results[0][0], results[3][0])


def test_who_shares_with_whom():
    assert deal(["a", "a", "b", "b"], 3, True) == (2, 2, 1, False, [0, 2])
    assert deal(["a", "b", "a", "b"], 1, True) == (2, 2, 1, True, [0, 1])
    assert deal(["a", "a", "b"], 1, True) == (3, 1, 1, True, [0, 1, 2])  # copies would not be alike
    assert deal(["a", "a"], 1, False) == (2, 1, 1, True, [0, 1])


def test_a_rank_without_work_takes_part(four):
    results = four.run(trained_tiny)
    assert all(np.array_equal(one, results[0]) for one in results)


def trained_tiny(group):
    ids = np.arange(12) % 3
    corpus = corpus_of(ids, even_sentences(12, 6))
    return learn(corpus, SkipGram(sample=0.0), epochs=2, group=group).vectors


@pytest.mark.parametrize(
    "name, value, said", [("dim", 16, "dim is 16 there and 32 at rank 0"), ("seed", 5, "seed is 5 there")]
)
def test_other_settings_are_refused(name, value, said, two):
    sentences = two.run(refused, 1, name, value)
    assert sentences[0] == sentences[1]
    assert sentences[0].startswith("rank 1 does not do the same work as rank 0: ") and said in sentences[0]


def test_another_text_is_refused(two):
    for sentence in two.run(other_text):
        assert "rank 1 does not do the same work as rank 0: the encoded text is " in sentence


# --- parts --------------------------------------------------------------------------------------


def test_cut_keeps_pieces_whole():
    starts = np.array([0, 10, 2510, 2600, 9000], np.int64)
    pieces = {
        first
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        for first in range(a, b, PIECE)
    }
    borders = cut(starts, 0, 9000, 7)
    assert len(borders) == 8 and borders[0] == 0 and borders[-1] == 9000
    assert set(borders[:-1].tolist()) <= pieces and (np.diff(borders) >= 0).all()
    assert np.diff(borders).max() <= 9000 / 7 + PIECE
    assert cut(starts, 0, 10, 4).tolist() == [0, 0, 0, 0, 10]  # one piece is not cut


def test_runs_are_shorter_in_short_texts():
    assert run_tokens(10**9, 2, 1) == 2 * 65_536
    assert run_tokens(10**9, 4, 2) == 32_768
    assert run_tokens(1_280_000, 2, 1) == 10_000
    assert run_tokens(1_000_000, 8, 1) == 4096
    assert run_tokens(1000, 4, 1) == 4096


def test_frequent_rows_come_more_often():
    due = [rows_due(number, 10_000) for number in range(1, 17)]
    assert due[:4] == [1024, 2048, 1024, 4096] and due[15] == 10_000
    assert bytes_sent(1000, 100, 2) == 2 * 1000 * 100 * 4


def _exchanges(order=None, rows=50, dim=12, size=4):
    counts = np.array([10**9 // (row + 1) ** 4 for row in range(rows)])
    if order is not None:
        counts = counts[np.argsort(order)]
    met = meetings(counts, SkipGram(sample=0.0))
    start = torch.randn(2, rows, 16, generator=torch.Generator().manual_seed(0))
    start[:, :, dim:] = 0
    pairs = [(start[0].clone(), start[1].clone()) for _ in range(size)]
    return start, pairs, [Exchange(pair, dim, met, order, size) for pair in pairs]


def _swap(exchanges, rows, words):
    totals = [sum(one.collect(which, 0, rows) for one in exchanges) for which in (0, 1)]
    for one in exchanges:
        one.note(words, 0.025)
        for which in (0, 1):
            one.look(which, totals[1 - which])
        for which in (0, 1):
            one.apply(which, 0, rows, totals[which].clone())
    for one in exchanges:
        one.settle(rows)


@pytest.mark.parametrize("order", [None, np.random.default_rng(0).permutation(50)])
@pytest.mark.parametrize("words, step", [(200_000, 1.0), (5_000, 1.0), (200_000, 0.01)])
def test_the_kernel_moves_rows_as_the_definition_does(words, step, order):
    chance = torch.Generator().manual_seed(2)
    steps = step * torch.randn(4, 2, 50, 12, generator=chance)
    results = []
    for fused in (True, False):
        start, pairs, exchanges = _exchanges(order)
        for pair, moves, one in zip(pairs, steps, exchanges, strict=True):
            one.fused = fused
            for table, move in zip(pair, moves, strict=True):
                table[:, :12] += move
        for _ in range(2):  # the second time nothing has moved
            _swap(exchanges, 50, words)
        results.append(pairs[3])
        assert torch.equal(pairs[3][0][:, 12:], start[0][:, 12:])  # padding
    for which in (0, 1):
        moved = results[0][which] - start[which]
        assert_rows_equal(moved.numpy(), (results[1][which] - start[which]).double().numpy(), 1e-4, "moved")
        assert (moved[:, :12] != 0).all()


@pytest.mark.parametrize("order", [None, np.random.default_rng(0).permutation(50)])
def test_rare_rows_are_summed_and_frequent_ones_averaged(order):
    start, pairs, exchanges = _exchanges(order)
    chance = torch.Generator().manual_seed(1)
    for inputs, outputs in pairs:
        inputs[:, :12] += torch.randn(50, 12, generator=chance)
        outputs[:, :12] += torch.randn(50, 12, generator=chance)
    moved = sum(inputs - start[0] for inputs, _ in pairs)
    _swap(exchanges, 50, words=200_000)
    for pair in pairs[1:]:
        assert torch.equal(pair[0], pairs[0][0]) and torch.equal(pair[1], pairs[0][1])
    first, last = (0, 49) if order is None else order[[0, 49]].tolist()
    found = pairs[0][0] - start[0]
    assert torch.allclose(found[first], moved[first] / 4, rtol=0.02, atol=1e-3)  # many meetings: the mean
    assert torch.allclose(found[last], moved[last], rtol=0.1, atol=0.05)  # few: the sum


def test_a_frequent_row_that_would_grow_beyond_bounds_becomes_the_mean():
    # All move the same way; the direction is not among those that C is long in, so the sum is not damped.
    start, pairs, exchanges = _exchanges()
    for one in exchanges:
        one.look = lambda *_: None
        for which in (0, 1):
            one._lengths[which][:] = 0
            one._lengths[which][0] = 100.0  # along the first direction only
    step = torch.zeros(50, 16)
    step[:, 11] = 3.0 * torch.sign(start[0][:, 11])
    for inputs, _ in pairs:
        inputs.add_(step)
    _swap(exchanges, 50, words=200_000)
    found = pairs[0][0] - start[0]
    assert torch.allclose(found[0], step[0], atol=1e-4)  # frequent: the mean
    assert torch.allclose(found[49], 4 * step[49], rtol=0.01)  # rare: the sum


def test_rows_that_are_not_due_stay_apart():
    start, pairs, exchanges = _exchanges()
    for rank, (inputs, _) in enumerate(pairs):
        inputs[:, :12] += rank
    _swap(exchanges, 10, words=1000)
    assert torch.equal(pairs[0][0][:10], pairs[3][0][:10])
    assert torch.equal(pairs[3][0][10:, :12], start[0][10:, :12] + 3)
    _swap(exchanges, 50, words=1000)  # what they moved before is not lost
    assert torch.equal(pairs[0][0], pairs[3][0])
    assert (pairs[0][0][40:, :12] > start[0][40:, :12] + 1).all()


def test_one_process_keeps_what_it_has():
    _, pairs, exchanges = _exchanges(size=1)
    pairs[0][0][:, :12] += 1
    expected = pairs[0][0].clone()
    _swap(exchanges, 50, words=10**6)
    assert torch.allclose(pairs[0][0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "given, said",
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "not MASTER_ADDR and MASTER_PORT: start the processes by torchrun",
        ),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK='x'"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "a rank is below the size",
        ),
    ],
)
def test_an_environment_that_cannot_be(given, said, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert place() is None
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=said):
        place()


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    alone = available_threads()
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert available_threads() == alone
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert available_threads() == 1
