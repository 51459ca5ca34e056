"""The skip-gram module and its batches: the numbers of the reference kernel, in loops of one's own."""

import copy
import math
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import firth
from firth.errors import SettingError, ShapeError, SourceError
from firth.kernels import reference
from firth.nn.batches import Batch, SkipGramBatches
from firth.nn.optim import RowAdagrad, RowAdam, RowSGD
from firth.nn.recipes import SGD
from firth.nn.skipgram import SkipGram
from firth.nn.windows import piece_starts
from firth.training.draws import Sampler
from planted import cluster_score, clusters, corpus_of

LONG = [0, 7, 8, 700, 1900, 1905, 3000]  # sentence starts: short ones, and some of more than a piece


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Batches this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text(sentence_starts: Any = LONG, words: int = 50) -> firth.Corpus:
    rng = np.random.default_rng(0)
    return corpus_of(rng.zipf(1.3, sentence_starts[-1]) % words, sentence_starts)


def model(rows: int = 5, dim: int = 4, **options: Any) -> SkipGram:
    """A module with rows in both tables that are not zero."""
    torch.manual_seed(0)
    made = SkipGram(rows, dim, **options)
    torch.nn.init.normal_(made.u.weight)
    torch.nn.init.normal_(made.v.weight)
    return made


def ids(*values: Any) -> torch.Tensor:
    return torch.tensor(values)


# -- the module


def test_the_start_is_word2vecs() -> None:
    fresh = SkipGram(300, 10)
    assert fresh.u.weight.abs().max() <= 0.05
    assert fresh.u.weight.std().item() == pytest.approx(0.1 / math.sqrt(12), rel=0.1)
    assert not fresh.v.weight.any()
    assert sorted(fresh.state_dict()) == ["u.weight", "v.weight"]
    assert fresh(ids(0, 1), ids(1, 2), ids([3], [4])).item() == pytest.approx(4 * math.log(2))


def by_hand(made: SkipGram, batch: Iterable[Any]) -> list[float]:
    u, v = made.u.weight.tolist(), made.v.weight.tolist()
    losses = []
    for context_id, center_id, negative_ids, weights in batch:
        loss = reference.softplus(-float(np.dot(u[context_id], v[center_id])))
        for negative_id, weight in zip(negative_ids, weights, strict=True):
            loss += weight * reference.softplus(float(np.dot(u[context_id], v[negative_id])))
        losses.append(loss)
    return losses


def test_the_loss_is_the_formula() -> None:
    rows = [(0, 1, [2, 3], [1.0, 0.5]), (4, 1, [1, 0], [0.0, 2.0]), (0, 0, [0, 0], [1.0, 1.0])]
    batch = [torch.tensor(column) for column in zip(*rows, strict=True)]
    summed = model(dtype=torch.float64)
    assert summed(*batch).item() == pytest.approx(sum(by_hand(summed, rows)), rel=1e-6)
    mean = model(dtype=torch.float64, reduction="mean")
    assert mean(*batch).item() == pytest.approx(sum(by_hand(mean, rows)) / 3, rel=1e-6)
    plain = [(u, v, n, [1.0, 1.0]) for u, v, n, _ in rows]
    assert summed(*batch[:3]).item() == pytest.approx(sum(by_hand(summed, plain)), rel=1e-6)


@pytest.mark.parametrize("sparse", [True, False])
def test_any_size_of_batch_is_the_sum_of_its_pairs(sparse: bool) -> None:
    made = model(dtype=torch.float64, sparse=sparse)
    pos_u, pos_v, neg_v = ids(0, 1, 2, 0), ids(1, 2, 3, 4), ids([0, 4], [3, 3], [2, 2], [1, 2])
    made(pos_u, pos_v, neg_v).backward()
    together = [made.u.weight.grad, made.v.weight.grad]
    made.zero_grad()
    for pair in range(4):  # a batch of one, as vectors and as scalars
        part = slice(pair, pair + 1) if pair % 2 else pair
        made(pos_u[part], pos_v[part], neg_v[part]).backward()
    for whole, grad in zip(together, [made.u.weight.grad, made.v.weight.grad], strict=True):
        assert whole is not None and grad is not None and whole.is_sparse == sparse
        torch.testing.assert_close(grad.to_dense(), whole.to_dense())
    empty = torch.empty(0, dtype=torch.long)
    assert made(empty, empty, empty.view(0, 2)).item() == 0
    assert made(pos_u, pos_v, empty).item() > 0


def test_shared_negatives_are_those_of_each_pair() -> None:
    made = model(dtype=torch.float64)
    pos_u, pos_v, shared = ids(0, 1, 2), ids(3, 3, 4), ids(4, 0, 4, 1)
    weights = (shared != pos_v[:, None]).double()
    one = made(pos_u, pos_v, shared, weights)
    each = made(pos_u, pos_v, shared.expand(3, 4), weights)
    torch.testing.assert_close(one, each)
    square = made(pos_u.view(3, 1), pos_v.view(3, 1), shared.expand(3, 1, 4), weights[:, None])
    torch.testing.assert_close(square, each)


def test_large_scores_neither_overflow_nor_lose_their_gradient() -> None:
    made = model(3, 1)
    with torch.no_grad():
        made.u.weight.fill_(1e4)
        made.v.weight.copy_(torch.tensor([[1e4], [-1e4], [1e4]]))
    loss = made(ids(0), ids(1), ids([2]))
    assert loss.item() == pytest.approx(2e8)
    loss.backward()
    assert made.v.weight.grad is not None
    assert made.v.weight.grad.to_dense().flatten().tolist() == [0.0, -1e4, 1e4]


def optimizers(made: SkipGram) -> Iterator[torch.optim.Optimizer]:
    weights = list(made.parameters())
    if made.u.sparse:
        yield RowSGD(weights, lr=0.05)
        yield RowAdagrad(weights, lr=0.1)
        yield RowAdam(weights, lr=0.02)
        yield torch.optim.SGD(weights, lr=0.05)
        yield torch.optim.Adagrad(weights, lr=0.1)
        yield torch.optim.SparseAdam(weights, lr=0.02)
    else:
        yield torch.optim.AdamW(weights, lr=0.02)
        yield torch.optim.RMSprop(weights, lr=0.02)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # in torch's own Adagrad
@pytest.mark.parametrize("sparse", [True, False])
def test_any_optimizer_lowers_the_loss(sparse: bool) -> None:
    batch = Batch(ids(0, 1, 2, 3), ids(1, 0, 3, 2), ids([2, 3], [2, 3], [0, 1], [0, 1]), torch.ones(4, 2))
    for number in range(len(list(optimizers(model(sparse=sparse))))):
        made = model(sparse=sparse)
        optimizer = list(optimizers(made))[number]
        first = made(*batch).item()
        for _ in range(20):
            optimizer.zero_grad()
            made(*batch).backward()
            optimizer.step()
        assert made(*batch).item() < 0.7 * first, type(optimizer)


def test_a_fused_model_takes_the_steps_of_row_sgd() -> None:
    apart, fused = model(dtype=torch.float64), model(dtype=torch.float64, fused=SGD(lr=0.1))
    optimizer = RowSGD(apart.parameters(), lr=0.1)
    for _ in range(3):
        batch = ids(0, 1, 0), ids(1, 1, 2), ids([1, 2], [3, 1], [2, 2])
        optimizer.zero_grad()
        apart(*batch).backward()
        optimizer.step()
        fused(*batch).backward()
    for one, other in zip(apart.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_vectors_are_the_input_table() -> None:
    vocab = firth.Vocab(["hey", "there", "you"], [3, 2, 1])
    made = SkipGram(vocab, 4)
    torch.nn.init.normal_(made.v.weight)
    vectors = made.vectors()
    assert vectors.index_to_key == vocab.tokens
    np.testing.assert_array_equal(vectors.counts, [3, 2, 1])
    np.testing.assert_array_equal(vectors["there"], made.u.weight[1].detach())
    assert vectors.context is not None
    np.testing.assert_array_equal(vectors.context.vectors, made.v.weight.detach())
    before = vectors["there"].copy()
    made.reset_parameters()
    np.testing.assert_array_equal(vectors["there"], before)
    assert [key for key, _ in made.u.most_similar("hey")] != []
    assert SkipGram(3, 4).vectors(["a", "b", "c"]).index_to_key == ["a", "b", "c"]


def test_a_model_of_words_is_saved_with_them(tmp_path: Path) -> None:
    made = SkipGram(firth.Vocab(["hey", "there"]), 3)
    torch.save(made.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert sorted(state) == ["u._extra_state", "u.weight", "v.weight"]
    other = SkipGram(made.u.saved_vocab(state, "u."), 3)
    other.load_state_dict(state)
    torch.testing.assert_close(other.u("there"), made.u("there"))


def test_wrong_calls_of_the_module_are_sentences() -> None:
    made = model()
    with pytest.raises(ShapeError, match=r"pos_v \(3,\).* do not fit; for pairs of shape S"):
        made(ids(0, 1), ids(0, 1, 2), ids([0], [1]))
    with pytest.raises(ValueError, match="do not fit"):
        made(ids(0, 1), ids(0, 1), ids([0], [1], [2]))
    with pytest.raises(ShapeError, match="do not fit"):
        made(ids(0, 1), ids(0, 1), torch.tensor(0))
    with pytest.raises(IndexError, match="outside the table of 5 rows"):
        made(ids(0), ids(1), ids([5]))
    with pytest.raises(SettingError, match="reduction must be 'sum' or 'mean', got 'none'"):
        SkipGram(5, 4, reduction="none")
    with pytest.raises(SettingError, match="dim must be a whole number"):
        SkipGram(5, 0)
    with pytest.raises(SettingError, match="give the vocabulary"):
        made.vectors()
    with pytest.raises(ShapeError, match="do not fit"):
        made.vectors(["a"])


# -- the batches


def expected(corpus: firth.Corpus, batches: SkipGramBatches, epoch: int, seed: int = 1) -> list[Any]:
    """(context, centre, negatives, weights) of all pairs, by the loops of the reference."""
    objective, counts = batches.objective, corpus.vocab.counts
    step = objective.step(0.0, 0.0, 0.0)
    draws = Sampler(counts, objective, seed, reference).epoch(epoch)  # type: ignore[arg-type]
    found = []
    for first, end in reference.pieces(corpus.sentence_starts, 0, len(corpus)):
        kept = reference.kept_in(corpus.ids, first, end, step, draws)
        firsts = [pos for _, pos, _ in kept[:: step.share or 1]]
        shared = [[reference.negative_at(draws, n, pos) for n in range(step.pool)] for pos in firsts]
        for i, (center_id, pos, reach) in enumerate(kept):
            for c in reference.contexts_of(i, reach, len(kept)):
                slot = (c - i + step.window) * step.pool
                negatives = (
                    shared[i // step.share]
                    if step.share
                    else [reference.negative_at(draws, slot + n, pos) for n in range(step.pool)]
                )
                weights = [step.weight * (negative != center_id) for negative in negatives]
                found.append((kept[c][0], center_id, negatives, weights))
    return found


def pairs(batches: Iterable[Batch]) -> list[Any]:
    """The same of batches."""
    found = []
    for batch in batches:
        negatives = batch.neg_v.expand(batch.weights.shape)
        parts = [part.tolist() for part in (batch.pos_u, batch.pos_v, negatives, batch.weights)]
        found += zip(*parts, strict=True)
    return found


@pytest.mark.parametrize("batch_size", [None, 1, 100, 10**6])
@pytest.mark.parametrize("share", [1, 5, 0])
def test_batches_hold_what_the_reference_draws(share: int, batch_size: int | None) -> None:
    corpus = text()
    objective = firth.SkipGram(window=3, negatives=2, share=share, sample=0.02)
    batches = SkipGramBatches(corpus, objective, batch_size=batch_size, dtype=torch.float64, seed=3)
    assert pairs(batches) == expected(corpus, batches, 0, seed=3)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    share=st.integers(0, 7),
    window=st.integers(1, 8),
    shrink=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_any_text_and_setting(lengths: list[int], share: int, window: int, shrink: bool, epoch: int) -> None:
    corpus = text([0, 1, *np.cumsum([2, *lengths]).tolist()], words=9)
    objective = firth.SkipGram(window=window, share=share, shrink_windows=shrink, negatives=3, sample=0.05)
    batches = SkipGramBatches(corpus, objective, dtype=torch.float64).epoch(epoch)
    assert pairs(batches) == expected(corpus, batches, epoch)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 3500), min_size=1, max_size=8), data=st.data())
def test_pieces_are_those_of_the_reference(lengths: list[int], data: st.DataObject) -> None:
    starts = np.cumsum([0, *lengths])
    borders = [first for first, _ in reference.pieces(starts, 0, starts[-1])] + [int(starts[-1])]
    begin, end = sorted(data.draw(st.lists(st.sampled_from(borders), min_size=2, max_size=2, unique=True)))
    want = [first for first, _ in reference.pieces(starts, begin, end)] + [end]
    assert piece_starts(starts, begin, end).tolist() == want


def test_epochs_and_seeds_differ_and_walks_do_not() -> None:
    corpus = text([0, 40, 300])
    both = SkipGramBatches(corpus, epochs=2)
    first, second = pairs(both.epoch(0)), pairs(both.epoch(1))
    assert pairs(both) == first + second == pairs(both)
    assert first != second
    assert pairs(SkipGramBatches(corpus, seed=2)) != first


def test_groups_are_fitted_to_small_vocabularies_as_train_does() -> None:
    corpus = text([0, 500], words=9)
    asked = firth.SkipGram(window=20, negatives=20)
    assert SkipGramBatches(corpus, asked, lr=0.05).objective == asked.fitted(corpus.vocab.counts, 0.05)
    assert SkipGramBatches(corpus, asked, lr=0.05).objective.share < asked.share


def test_batches_are_of_the_size_asked_for() -> None:
    sizes = [len(batch.pos_u) for batch in SkipGramBatches(text(), batch_size=64)]
    assert sizes.count(64) >= len(sizes) - 2 and max(sizes) == 64  # of two blocks
    for batch in SkipGramBatches(text(), batch_size=None):
        assert batch.neg_v.shape == (12,) and batch.weights.shape == (len(batch.pos_u), 12)
        assert batch.pos_u.dtype == batch.neg_v.dtype == torch.int64


def key(batch: Batch) -> tuple[bytes, ...]:
    return tuple(part.numpy().tobytes() for part in batch)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_make_each_batch_once(workers: int) -> None:
    rng = np.random.default_rng(0)
    corpus = corpus_of(rng.integers(0, 300, 40_000), [0, 3, 9000, 17_000, 40_000], block=30_000)
    batches = SkipGramBatches(corpus, firth.SkipGram(window=2, negatives=2), epochs=2, batch_size=1000)
    alone = Counter(map(key, batches))
    shared = [list(DataLoader(batches, batch_size=None, num_workers=workers)) for _ in range(2)]
    assert Counter(map(key, shared[0])) == alone
    assert [key(batch) for batch in shared[0]] == [key(batch) for batch in shared[1]]
    assert all(isinstance(batch, Batch) for batch in shared[0])


def test_workers_that_are_not_forked_map_the_files(tmp_path: Path) -> None:
    words = " ".join(f"w{number % 37}" for number in range(4000))
    (tmp_path / "text.txt").write_text(words)
    for source in (tmp_path / "text.txt", [words.split()]):  # kept files; a folder that goes with the Corpus
        corpus = firth.Corpus.encode(source, min_count=1)
        batches = SkipGramBatches(corpus)
        data = pickle.dumps(batches)
        assert len(data) < 4 * len(corpus)
        assert pairs(pickle.loads(data)) == pairs(batches)
    in_memory = SkipGramBatches(text())
    assert pairs(pickle.loads(pickle.dumps(in_memory))) == pairs(in_memory)
    assert pairs(copy.deepcopy(in_memory)) == pairs(in_memory)


def test_wrong_calls_of_the_batches_are_sentences() -> None:
    corpus = text([0, 40])
    with pytest.raises(SettingError, match="corpus must be a Corpus, got str"):
        SkipGramBatches("text.txt")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="objective must be a firth"):
        SkipGramBatches(corpus, SkipGram(3, 4))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="batch_size must be a whole number from 1 on, got 0"):
        SkipGramBatches(corpus, batch_size=0)
    with pytest.raises(SettingError, match="epochs must be"):
        SkipGramBatches(corpus, epochs=True)
    with pytest.raises(SettingError, match="lr must be a positive number"):
        SkipGramBatches(corpus, lr=-1)
    with pytest.raises(SettingError, match=r"epoch\(\): a whole number from 0 on"):
        SkipGramBatches(corpus).epoch(-1)
    with pytest.raises(SettingError, match="saturation='clip'"):
        SkipGramBatches(corpus, firth.SkipGram.preset("word2vec"))
    with pytest.raises(SourceError, match="nothing to learn from 1 tokens"):
        SkipGramBatches(firth.Corpus.from_ids([0], [0, 1], firth.Vocab(["a", "b"])))


# -- both


@pytest.mark.parametrize("share", [1, 5])
def test_a_block_trained_by_row_sgd_is_the_reference_kernel(share: int) -> None:
    corpus, rate = text([0, 9, 190, 200]), 0.05
    objective = firth.SkipGram(window=4, negatives=8, share=share, sample=0.5)
    made = model(len(corpus.vocab), 8, dtype=torch.float64)
    inputs, outputs = (table.weight.detach().numpy().copy() for table in (made.u, made.v))
    batches = SkipGramBatches(corpus, objective, batch_size=None, dtype=torch.float64, lr=1e-3)
    assert batches.objective == objective
    optimizer = RowSGD(made.parameters(), lr=rate)
    total = 0.0
    for batch in batches:
        optimizer.zero_grad()
        loss = made(*batch)
        loss.backward()
        optimizer.step()
        total += loss.item()
    stats = np.zeros(3)
    draws = Sampler(corpus.vocab.counts, objective, 1, reference).epoch(0)  # type: ignore[arg-type]
    step = objective.step(rate, 0.0, rate)
    reference.skipgram_shared(
        inputs, outputs, corpus.ids, corpus.sentence_starts, 0, len(corpus), step, draws, stats
    )
    np.testing.assert_allclose(made.u.weight.detach(), inputs, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(made.v.weight.detach(), outputs, rtol=1e-9, atol=1e-11)
    assert total == pytest.approx(stats[0], rel=1e-10)


def test_a_loop_of_ones_own_recovers_planted_clusters() -> None:
    corpus = clusters(n_sentences=3000)
    made = SkipGram(corpus.vocab, 24, reduction="mean")
    torch.manual_seed(1)
    made.reset_parameters()
    optimizer = RowAdam(made.parameters(), lr=0.02)
    for batch in SkipGramBatches(corpus, firth.SkipGram(sample=0.0), batch_size=512, epochs=4):
        optimizer.zero_grad()
        made(*batch).backward()
        optimizer.step()
    assert cluster_score(made.vectors()).precision > 0.9


# -- the tutorial


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert len(blocks) > 10
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks:  # below as many empty lines as it takes to keep its line numbers
        source = "\n" * page.count("\n", 0, block.start(1)) + block[1]
        exec(compile(source, "tutorial.md", "exec"), names)
