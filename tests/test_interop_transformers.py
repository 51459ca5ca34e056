"""Rows of a transformer's table from vectors: on a stand-in, and on transformers where it is installed."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import firth
from firth.errors import SettingError, ShapeError
from firth.nn import extend_model_embeddings, init_model_embeddings
from firth.nn.transfer import whole_words

WORDS = ["cat", "dog", "red", "blue", "Oslo"]


class StandIn:
    """A model and a tokenizer in one: a table, and tokens by id."""

    def __init__(self, tokens: list[str], dim: int, special: tuple[str, ...] = (), rows: int = 0) -> None:
        torch.manual_seed(0)
        padding = tokens.index("[PAD]") if "[PAD]" in tokens else None
        self.table = torch.nn.Embedding(max(rows, len(tokens)), dim, padding_idx=padding)
        self.tokens, self.all_special_tokens = tokens, list(special)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def get_vocab(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}


@pytest.fixture
def vectors() -> firth.Vectors:
    return firth.Vectors(WORDS, np.random.default_rng(0).normal(size=(5, 4)))


def planted() -> firth.Vectors:
    """Two groups of words: directions that stand at right angles, with a little noise."""
    base = np.repeat(np.eye(2, 6), 5, axis=0)
    noise = np.random.default_rng(1).normal(size=(10, 6)) * 0.1
    return firth.Vectors([f"{group}{place}" for group in "ab" for place in range(5)], base + noise)


# -- copies


def test_rows_of_known_words_are_copied_and_no_others(vectors: firth.Vectors) -> None:
    both = StandIn(["[PAD]", "[CLS]", "dog", "the", "cat", "##cat", "##s"], 4, ("[PAD]", "[CLS]"), rows=9)
    before = both.table.weight.detach().clone()
    done = init_model_embeddings(both, both, vectors)
    assert done.ids.tolist() == [2, 4] and done.words == ["dog", "cat"] and done.missing == []
    torch.testing.assert_close(both.table.weight[done.ids], torch.tensor(vectors[["dog", "cat"]]))
    kept = [0, 1, 3, 5, 6, 7, 8]
    torch.testing.assert_close(both.table.weight[kept], before[kept], rtol=0, atol=0)
    assert both.table.weight.requires_grad


def test_words_that_were_added_are_the_only_ones_set_if_asked_for(vectors: firth.Vectors) -> None:
    both = StandIn(["dog", "cat", "blue", "Oslo", "zzz"], 4)
    before = both.table.weight.detach().clone()
    done = init_model_embeddings(both, both, vectors, ["cat", "zzz", "red"])
    assert done.words == ["cat"] and done.missing == ["zzz", "red"]  # no vector, no token
    torch.testing.assert_close(both.table.weight[[0, 2, 3, 4]], before[[0, 2, 3, 4]], rtol=0, atol=0)


def test_lower_case_is_the_second_try_only() -> None:
    vectors = firth.Vectors(["cat", "Cat", "dog"], np.eye(3))
    both = StandIn(["Cat", "CAT", "Dog", "dog"], 3)
    done = init_model_embeddings(both, both, vectors, lower_case_backup=True)
    assert done.words == ["Cat", "cat", "dog", "dog"]
    assert init_model_embeddings(both, both, vectors).words == ["Cat", "dog"]


def test_special_tokens_and_the_padding_row_stay(vectors: firth.Vectors) -> None:
    named = firth.Vectors(["[PAD]", "[MASK]", "cat"], np.ones((3, 2)))
    both = StandIn(["[PAD]", "[MASK]", "cat"], 2, ("[MASK]",))
    assert init_model_embeddings(both, both, named).words == ["cat"]
    assert not both.table.weight[0].any()


def test_std_and_dtype(vectors: firth.Vectors) -> None:
    both = StandIn(WORDS, 4)
    both.table.to(torch.float16)
    init_model_embeddings(both, both, vectors, std=0.02)
    assert both.table.weight.dtype == torch.float16
    assert both.table.weight.float().square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-3)
    ratio = both.table.weight.detach().float().numpy() / vectors.vectors
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=0.01)


def test_copies_that_cannot_be_are_sentences(vectors: firth.Vectors) -> None:
    small = StandIn(["cat"], 3)
    with pytest.raises(
        ShapeError, match=r"rows have 3 numbers and the vectors 4; extend_model_embeddings\(\)"
    ):
        init_model_embeddings(small, small, vectors)
    tokens, model = StandIn(["cat", "dog"], 4), StandIn(["cat"], 4)
    with pytest.raises(
        SettingError, match=r"the id 1 and the model's table 1 rows; call model\.resize_token"
    ):
        init_model_embeddings(model, tokens, vectors)
    strange = StandIn(["x", "y"], 4)
    with pytest.raises(SettingError, match="no word has both a token of the tokenizer and a vector"):
        init_model_embeddings(strange, strange, vectors)
    with pytest.raises(SettingError, match="std is 0; a positive number"):
        init_model_embeddings(tokens, tokens, vectors, std=0)
    with pytest.raises(SettingError, match="not the one string 'cat'"):
        init_model_embeddings(tokens, tokens, vectors, "cat")


# -- which tokens are words


def test_marks_of_words_as_the_kinds_of_tokenizers_write_them() -> None:
    plain = StandIn(["cat", "dog"], 1)
    assert whole_words(plain) == [("cat", 0), ("dog", 1)]
    pieces = StandIn(["##s", "cat", "##ing", "▁", "▁x"], 1)
    assert whole_words(pieces) == [("cat", 1), ("▁", 3), ("▁x", 4)]
    marked = StandIn(["##", "##a", "Ġcat", "s", "Ġ", "▁dog", "Ġred"], 1)
    assert [word for word, _ in whole_words(marked)] == ["cat", "dog", "red"]
    marked.get_added_vocab = lambda: {"s": 3}  # type: ignore[attr-defined]
    assert [word for word, _ in whole_words(marked)] == ["cat", "s", "dog", "red"]


# -- rows among those of similar words


def test_new_words_get_rows_among_those_of_their_group() -> None:
    vectors = planted()
    both = StandIn(list(vectors.index_to_key), 16)
    with torch.no_grad():  # the model's own space: two other groups, ten times as long
        means = torch.randn(2, 16) * 10
        both.table.weight.copy_(means.repeat_interleave(5, 0) + torch.randn(10, 16))
    before = both.table.weight.detach().clone()
    done = extend_model_embeddings(both, both, vectors, ["a4", "b0", "nowhere"], neighbours=4)
    assert done.words == ["a4", "b0"] and done.ids.tolist() == [4, 5] and done.missing == ["nowhere"]
    after = both.table.weight.detach()
    others = [row for row in range(10) if row not in (4, 5)]
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=0)
    for row, own, other in ((4, 0, 1), (5, 1, 0)):
        assert (after[row] - means[own]).norm() < (after[row] - means[other]).norm() / 4


def test_the_row_is_wechsels_weighted_mean() -> None:
    vectors = planted()
    both = StandIn(list(vectors.index_to_key), 3)
    rows = both.table.weight.detach().double().numpy().copy()
    extend_model_embeddings(both, both, vectors, ["b2"], neighbours=3, temperature=0.25)
    near = vectors.most_similar("b2", topn=3)
    weights = np.exp([cosine / 0.25 for _, cosine in near])
    expected = weights @ rows[[vectors.get_index(word) for word, _ in near]] / weights.sum()
    np.testing.assert_allclose(both.table.weight[7].detach(), expected, rtol=1e-5)


def test_few_neighbours_and_wrong_calls(vectors: firth.Vectors) -> None:
    both = StandIn(["cat", "dog"], 7)
    other = both.table.weight[1].tolist()
    extend_model_embeddings(both, both, vectors, ["cat"])  # one neighbour where ten are asked for
    assert both.table.weight[0].tolist() == pytest.approx(other)
    assert extend_model_embeddings(both, both, vectors, ["zzz"]).missing == ["zzz"]
    with pytest.raises(SettingError, match="no other word of the tokenizer has a vector"):
        extend_model_embeddings(both, both, vectors, ["cat", "dog"])
    with pytest.raises(SettingError, match="neighbours is 0 and temperature 1"):
        extend_model_embeddings(both, both, vectors, ["cat"], neighbours=0, temperature=1)


# -- transformers itself

THIRD_PARTY = pytest.mark.filterwarnings("ignore")


def real(kind: str, dim: int) -> tuple[Any, Any]:
    """A small model with random weights and a tokenizer, made without anything from a hub."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "bert":
        tokens = [*special, "cat", "dog", "red", "##s", "the"]
        table = {token: place for place, token in enumerate(tokens)}
        inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(table, unk_token="[UNK]"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        config = transformers.BertConfig(
            vocab_size=len(tokens), hidden_size=dim, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, pad_token_id=0,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
    else:
        inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
        inner.train_from_iterator(["the cat and the dog", "a café, a red café"] * 20, trainer)
        config = transformers.GPT2Config(
            vocab_size=inner.get_vocab_size(), n_embd=dim, n_layer=1, n_head=2, n_positions=16,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **names)
    return model, fast


@THIRD_PARTY
def test_words_added_to_a_transformer(vectors: firth.Vectors) -> None:
    model, tokenizer = real("bert", 4)
    assert tokenizer.add_tokens(["blue", "Oslo"]) == 2
    with pytest.raises(SettingError, match="resize_token_embeddings"):
        init_model_embeddings(model, tokenizer, vectors)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    before = model.get_input_embeddings().weight.detach().clone()
    done = init_model_embeddings(model, tokenizer, vectors, ["blue", "Oslo"])
    assert done.words == ["blue", "Oslo"] and done.ids.tolist() == [10, 11]
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[done.ids].detach(), torch.tensor(vectors[["blue", "Oslo"]]))
    torch.testing.assert_close(weight[:10], before[:10], rtol=0, atol=0)
    assert model.get_output_embeddings().weight.data_ptr() == weight.data_ptr()  # tied ones follow
    ids = tokenizer("the blue cats", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[9, 10, 5, 8]]
    torch.testing.assert_close(model.get_input_embeddings()(ids)[0, 1], torch.tensor(vectors["blue"]))
    model(input_ids=ids).logits.sum().backward()
    assert weight.grad is not None and weight.grad[10].any()
    done = init_model_embeddings(model, tokenizer, vectors)
    assert done.words == ["cat", "dog", "red", "blue", "Oslo"]


@THIRD_PARTY
def test_byte_level_tokens_are_read_as_words() -> None:
    model, tokenizer = real("gpt2", 6)
    vectors = firth.Vectors(["café", "the", "caf", "d"], np.eye(4, 6))
    done = init_model_embeddings(model, tokenizer, vectors)
    assert set(done.words) >= {"café", "the"}
    weight = model.get_input_embeddings().weight
    ids = tokenizer("the café", return_tensors="pt")["input_ids"][0]
    torch.testing.assert_close(weight[ids].detach(), torch.tensor(vectors[["the", "café"]]))
    letter = tokenizer.convert_tokens_to_ids("d")  # inside a word: not the word "d"
    assert letter not in done.ids.tolist()


@THIRD_PARTY
def test_a_wider_model_is_extended(vectors: firth.Vectors) -> None:
    model, tokenizer = real("bert", 16)
    tokenizer.add_tokens(["blue"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=8)
    done = extend_model_embeddings(model, tokenizer, vectors, ["blue"], neighbours=2)
    assert done.words == ["blue"]
    weight = model.get_input_embeddings().weight.detach()
    near = [word for word, _ in vectors.most_similar("blue", topn=4) if word in ("cat", "dog", "red")][:2]
    ends = weight[tokenizer.convert_tokens_to_ids(near)]
    line = ends[1] - ends[0]
    share = (weight[10] - ends[0]) @ line / (line @ line)  # the row lies between those of the two
    assert 0 < share < 1
    torch.testing.assert_close(weight[10], ends[0] + share * line, rtol=1e-4, atol=1e-5)
