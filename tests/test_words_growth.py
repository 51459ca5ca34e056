"""Layers whose vocabulary grows: rows, optimiser state, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import firth
from firth.errors import SettingError
from firth.nn.bag import EmbeddingBag
from firth.nn.embedding import Embedding
from firth.nn.optim import RowAdagrad, RowAdam, RowSGD
from firth.nn.recipes import SGD, Adagrad, Adam, Recipe

WORDS = ["hey", "there", "paris", "lyon"]


def vocab() -> firth.Vocab:
    return firth.Vocab(WORDS, [4, 3, 2, 1])


def rows(made: Embedding, words: Any) -> Any:
    return made.ids_of(words).tolist()


def train(made: Embedding, *optimizers: torch.optim.Optimizer, words: Any = WORDS) -> None:
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (made(words) * torch.arange(1.0, 4.0)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


OPTIMIZERS: dict[str, tuple[bool, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (False, lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9)),
    "sparse sgd": (True, lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9)),
    "adamw": (False, lambda weights: torch.optim.AdamW(weights, lr=0.01, amsgrad=True)),
    "adagrad": (True, lambda weights: torch.optim.Adagrad(weights, lr=0.1, initial_accumulator_value=0.5)),
    "sparse adam": (True, lambda weights: torch.optim.SparseAdam(weights, lr=0.01)),
    "row sgd": (True, lambda weights: RowSGD(weights, lr=0.01, momentum=0.9)),
    "row adagrad": (True, lambda weights: RowAdagrad(weights, lr=0.1, initial_accumulator_value=0.5)),
    "row adam": (True, lambda weights: RowAdam(weights, lr=0.01)),
}
RECIPES: dict[str, Recipe] = {
    "fused sgd": SGD(lr=0.01, momentum=0.9),
    "fused adagrad": Adagrad(lr=0.1, initial_accumulator_value=0.5),
    "fused adam": Adam(lr=0.01),
}


def trainer(name: str, words: firth.Vocab) -> tuple[Embedding, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    if name in RECIPES:
        return Embedding(words, 3, fused=RECIPES[name]), []
    sparse, make = OPTIMIZERS[name]
    made = Embedding(words, 3, sparse=sparse)
    return made, [make(list(made.parameters()))]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # in torch's own Adagrad
@pytest.mark.parametrize("name", [*OPTIMIZERS, *RECIPES])
def test_a_layer_that_grew_trains_on_as_if_it_had_been_large(name: str) -> None:
    bigger = vocab().add(["rome", "oslo"])
    grown, held = trainer(name, vocab())
    large, large_held = trainer(name, bigger)
    with torch.no_grad():
        large.weight[:4] = grown.weight
    train(grown, *held)
    train(large, *large_held)
    weight = grown.weight
    with torch.no_grad():
        fresh = large.weight[4:].clone()
    grown.grow(bigger, *held, init=lambda rows: rows.copy_(fresh))
    assert grown.weight is weight and grown.weight.shape == (6, 3) and grown.num_embeddings == 6
    torch.testing.assert_close(grown.weight, large.weight)
    train(grown, *held, words=["oslo", "hey", "rome"])
    train(large, *large_held, words=["oslo", "hey", "rome"])
    torch.testing.assert_close(grown.weight, large.weight)
    assert grown.vectors().index_to_key == bigger.tokens


def test_rows_move_with_their_words() -> None:
    made = Embedding(vocab(), 3, padding_idx=1, unknown="hash", hash_rows=2)
    optimizer = torch.optim.Adam(made.parameters())
    train(made, optimizer, words=[*WORDS, "zz"])
    words = {word: made(word).detach().clone() for word in [*WORDS, "zz", "xx"]}
    moments = {word: optimizer.state[made.weight]["exp_avg"][rows(made, word)].clone() for word in words}
    made.grow(firth.Vocab(["new", "lyon", "there", "hey", "paris"]), optimizer)
    assert made.padding_idx == 2 and made.num_embeddings == 7 and made.weight.grad is None
    for word, row in words.items():
        torch.testing.assert_close(made(word), row, rtol=0, atol=0)
        torch.testing.assert_close(optimizer.state[made.weight]["exp_avg"][rows(made, word)], moments[word])
    assert rows(made, "new") == 0 and not optimizer.state[made.weight]["exp_avg"][0].any()


def test_a_sparse_state_moves_too() -> None:
    made = Embedding(vocab(), 3, sparse=True)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01, momentum=0.9)
    train(made, optimizer, words=["hey", "lyon"])
    before = optimizer.state[made.weight]["momentum_buffer"].to_dense()
    made.grow(firth.Vocab(["new", "lyon", "there", "hey", "paris"]), optimizer)
    after = optimizer.state[made.weight]["momentum_buffer"].to_dense()
    torch.testing.assert_close(after[[3, 2, 4, 1]], before, rtol=0, atol=0)
    assert before[0].any() and not after[0].any()


def test_new_rows_are_like_the_old_ones() -> None:
    torch.manual_seed(0)
    made = Embedding(firth.Vocab([f"w{number}" for number in range(200)]), 50)
    with torch.no_grad():
        made.weight.mul_(0.01).add_(torch.arange(50.0))
    assert made.vocab is not None
    made.grow(made.vocab.add([f"n{number}" for number in range(200)]))
    fresh = made.weight[200:].detach()
    torch.testing.assert_close(fresh.mean(0), torch.arange(50.0), rtol=0, atol=5e-3)
    assert (fresh - fresh.mean(0)).std().item() == pytest.approx(0.01, rel=0.05)
    one = Embedding(firth.Vocab(["a"]), 3)
    one.grow(firth.Vocab(["a", "b"]), init=torch.nn.init.zeros_)
    assert not one.weight[1].any() and one.weight[0].any()
    one.grow(firth.Vocab(["a", "b"]))  # nothing new
    assert one.weight.shape == (2, 3)


def test_a_grown_bag_and_policy() -> None:
    bags = EmbeddingBag(vocab(), 3, mode="sum")
    before = bags([["hey", "lyon"]])
    bags.grow(vocab().add(["rome"]).with_unknown("unk"))
    torch.testing.assert_close(bags([["hey", "lyon"]]), before)
    assert bags([["zz", "rome"]]).shape == (1, 3) and bags.num_embeddings == 6


def test_growth_that_cannot_be_changes_nothing() -> None:
    made = Embedding(vocab(), 3)
    before, words = made.weight.detach().clone(), made.vocab
    other, lbfgs = torch.nn.Linear(2, 2), torch.optim.LBFGS(made.parameters())

    def closure() -> Any:
        made.zero_grad()
        loss = made(WORDS).square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    before = made.weight.detach().clone()
    bigger = vocab().add(["rome"])
    for error, match, call in (
        (SettingError, "'lyon' is not in the new vocabulary", lambda: made.grow(firth.Vocab(WORDS[:3]))),
        (TypeError, "a firth.Vocab is expected, got list", lambda: made.grow(WORDS)),  # type: ignore[arg-type]
        (
            SettingError,
            "the SGD given does not train the weight",
            lambda: made.grow(bigger, torch.optim.SGD(other.parameters(), lr=1)),
        ),
        (SettingError, "of LBFGS is not kept by rows", lambda: made.grow(bigger, lbfgs)),
    ):
        with pytest.raises(error, match=match):
            call()
        torch.testing.assert_close(made.weight.detach(), before, rtol=0, atol=0)
        assert made.vocab is words and made.num_embeddings == 4
