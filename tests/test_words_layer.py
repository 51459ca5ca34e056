"""Words in and out of the layers: look-ups, policies, search, growth, and what is saved."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import firth
from firth.errors import KeyNotFound, SettingError
from firth.nn.bag import EmbeddingBag
from firth.nn.embedding import Embedding
from firth.nn.wordlists import hash_row

WORDS = ["hey", "there", "paris", "lyon"]


def vocab(unknown: str = "error") -> firth.Vocab:
    return firth.Vocab(WORDS, [4, 3, 2, 1], unknown=unknown)


def layer(policy: str = "error", **options: Any) -> Embedding:
    torch.manual_seed(0)
    return Embedding(vocab(policy), 3, **options)


def rows(made: Embedding, words: Any) -> Any:
    return made.ids_of(words).tolist()


# -- looking up


def test_words_are_looked_up_as_their_ids() -> None:
    made = layer()
    assert made.num_embeddings == 4 and made.vocab == vocab()
    assert made("hey").shape == (3,)
    for words, ids in (
        ("paris", 2),
        (["paris"], [2]),
        (["hey", "there", "hey"], [0, 1, 0]),
        (("hey", "lyon"), [0, 3]),
        ([["hey", "there"], ("lyon", "paris")], [[0, 1], [3, 2]]),
        ([[["hey"], ["lyon"]]], [[[0], [3]]]),
    ):
        torch.testing.assert_close(made(words), made.weight[torch.tensor(ids)], rtol=0, atol=0)
    torch.testing.assert_close(made(torch.tensor([1, 2])), made(["there", "paris"]), rtol=0, atol=0)


def test_columns_of_other_libraries_are_looked_up() -> None:
    made = layer("drop")
    words = ["lyon", "hey", "hey", "zz", "there"]
    known = [3, 0, 0, 1]
    plain = pa.array(words)
    for column in (
        np.array(words),
        np.array(words, object),
        plain,
        plain.cast(pa.large_string()),
        plain.dictionary_encode(),
        pa.chunked_array([words[:2], words[2:]]),
        pa.chunked_array([pa.array(words[:2]).dictionary_encode(), pa.array(words[2:]).dictionary_encode()]),
        firth.Vectors(list(dict.fromkeys(words)), np.ones((4, 1))).index_to_key,
    ):
        expected = [3, 0, 1] if isinstance(column, firth.keys.Keys) else known
        assert rows(made, column) == expected, type(column)
    assert rows(made, np.array([["hey", "there"], ["lyon", "hey"]])) == [[0, 1], [3, 0]]
    assert rows(made, np.array("hey")) == rows(made, np.str_("hey")) == 0
    assert rows(made, pa.array([["hey", "there"], ["lyon", "hey"]])) == [[0, 1], [3, 0]]
    assert rows(made, [pa.scalar("hey"), "there"]) == [0, 1]
    # A dictionary may hold words that the column does not use.
    assert rows(layer(), plain.dictionary_encode()[:2]) == [3, 0]


@pytest.mark.parametrize(
    "nothing",
    [[], (), np.array([], str), pa.array([], pa.string()), pa.chunked_array([], pa.string())],
    ids=["list", "tuple", "numpy", "arrow", "chunks"],
)
def test_no_words_are_no_rows(nothing: Any) -> None:
    assert layer()(nothing).shape == (0, 3)
    assert layer()([nothing, nothing]).shape == (2, 0, 3)


def test_lists_of_different_lengths_are_padded() -> None:
    padded = Embedding(firth.Vocab(["<pad>", *WORDS]), 3, padding_idx=0)
    assert rows(padded, [["hey"], ["there", "paris"], []]) == [[1, 0], [2, 3], [0, 0]]
    assert rows(padded, [[["hey"], []], [["lyon", "lyon"], ["hey"]]]) == [[[1, 0], [0, 0]], [[4, 4], [1, 0]]]
    assert not padded([["hey"], ["there", "paris"]])[0, 1].any()
    with pytest.raises(ValueError, match="the lists hold 1 to 2 known words; a layer with padding_idx"):
        layer()([["hey"], ["there", "paris"]])
    with pytest.raises(ValueError, match="lists of 1 to 2 lists do not make a tensor"):
        padded([[["hey"]], [["hey"], ["there"]]])


def test_gradients_reach_the_rows_of_the_words() -> None:
    made = layer(sparse=True)
    made(["lyon", "hey", "lyon"]).sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad.to_dense()[:, 0].tolist() == [1, 0, 0, 2]


# -- unknown words


def test_an_unknown_word_is_an_error_with_the_closest() -> None:
    with pytest.raises(KeyError) as caught:
        layer()(["hey", "pariss"])
    assert isinstance(caught.value, KeyNotFound)
    assert str(caught.value) == "'pariss' is not in the vocabulary of 4 tokens; did you mean 'paris'?"
    with pytest.raises(KeyNotFound, match="'' is not in the vocabulary"):
        layer()("")
    with pytest.raises(KeyNotFound, match=r"'hey there' is .* a text is looked up as text\.split\(\)"):
        layer()("hey there")


def test_unknown_words_are_dropped() -> None:
    made = layer("drop")
    assert rows(made, ["zz", "hey", "", "lyon"]) == [0, 3]
    assert rows(made, ["zz"]) == []
    assert rows(made, [["zz", "hey"], ["lyon", "xx"]]) == [[0], [3]]
    with pytest.raises(KeyNotFound, match="'zz' is not in the vocabulary"):
        made("zz")
    with pytest.raises(ValueError, match="1 to 2 known words"):
        made([["zz", "hey"], ["lyon", "hey"]])


def test_unknown_words_have_a_row_that_is_trained() -> None:
    made = layer("unk")
    assert made.num_embeddings == 5 and made.vocab is not None and made.vocab.tokens[4] == "<unk>"
    assert rows(made, [["zz", "hey"], ["", "<unk>"]]) == [[4, 0], [4, 4]]
    assert rows(made, "zz") == 4
    made(["zz", "xx"]).sum().backward()
    assert made.weight.grad is not None and made.weight.grad[4].tolist() == [2, 2, 2]


def test_unknown_words_share_rows_by_their_hash() -> None:
    made = layer(unknown="hash", hash_rows=3)
    assert made.num_embeddings == 7 and made.hash_rows == 3
    assert rows(made, ["hey", "lyon"]) == [0, 3]
    unknown = [f"word{number}" for number in range(30)]
    found = rows(made, unknown)
    assert set(found) == {4, 5, 6}
    assert found == [4 + hash_row(word, 3) for word in unknown] == rows(made, unknown)
    assert rows(made, "\ud800") in (4, 5, 6)
    # The same in every process and release: saved layers depend on it.
    assert [hash_row(word, 1000) for word in ("a", "naïve", "")] == [928, 6, 756]


def test_a_policy_can_be_given_with_the_layer() -> None:
    given = vocab()
    made = Embedding(given, 3, unknown="unk")
    assert made.num_embeddings == 5 and rows(made, "zz") == 4
    assert len(given) == 4 and given.unknown == "error"
    assert rows(Embedding(given, 3, unknown="drop"), ["zz", "hey"]) == [0]


# -- input that does not help


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["hey", 1], "int, 1"),
        ([1, 2], "int, 1"),
        (3, "int, 3"),
        (np.array([0, 1]), "int, 0"),
        (["hey", None], "NoneType, None"),
        (pa.array(["hey", None]), "NoneType, None"),
        (["hey", ["there"]], "words and lists of words side by side"),
        ([["hey"], "there"], "words and lists of words side by side"),
        ([b"hey"], "bytes, b'hey', of which .decode() makes a str"),
        (b"hey", "bytes"),
        ({"hey": 1}, "dict"),
        ({"hey"}, "set"),
        ((word for word in WORDS), "generator"),
        ([torch.tensor([1])], "Tensor"),
        (float("nan"), "float, nan"),
    ],
)
def test_what_is_no_word_is_refused_by_name(words: Any, found: str) -> None:
    for made in (layer(), EmbeddingBag(vocab(), 3)):
        with pytest.raises(TypeError) as caught:
            made(words)
        assert "words must be str, or lists of them to any depth, got " + found in str(caught.value)
        assert "torch.tensor([...])" in str(caught.value)


def test_a_layer_without_words_says_so() -> None:
    plain = Embedding(4, 3)
    for call in (lambda: plain("hey"), lambda: plain([0, 1]), lambda: EmbeddingBag(4, 3)(["hey"])):
        with pytest.raises(
            TypeError, match=r"must be a Tensor, got (str|list); words are looked up in a layer"
        ):
            call()
    asks: list[Callable[[], object]] = [
        plain.vectors,
        lambda: plain.most_similar(0),
        lambda: plain.grow(vocab()),
    ]
    for ask in asks:
        with pytest.raises(TypeError, match="the rows of this layer have no words"):
            ask()


def test_wrong_settings_are_sentences() -> None:
    for words in ("hey", WORDS, {"hey": 0}):
        with pytest.raises(TypeError, match=r"a number of rows or a firth.Vocab, got \w+; firth.Vocab\("):
            Embedding(words, 3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="this layer has no vocabulary"):
        Embedding(4, 3, unknown="drop")
    with pytest.raises(SettingError, match="unknown must be one of 'drop', 'unk', 'error', 'hash', got 'x'"):
        Embedding(vocab(), 3, unknown="x")
    with pytest.raises(SettingError, match="1 or more, got 0"):
        Embedding(vocab(), 3, unknown="hash")
    with pytest.raises(SettingError, match="hash_rows=2 belongs to unknown='hash'"):
        Embedding(vocab(), 3, hash_rows=2)


# -- bags


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_words_of_any_length(mode: str) -> None:
    bags = EmbeddingBag(vocab("drop"), 3, mode=mode)
    out = bags([["hey", "there", "hey"], [], ["zz", "lyon"], ["zz"]])
    ids = torch.tensor([0, 1, 0, 3])
    torch.testing.assert_close(out, bags(ids, torch.tensor([0, 3, 3, 4])), rtol=0, atol=0)
    assert out.shape == (4, 3) and not out[1].any() and not out[3].any()
    for one in (["hey", "zz", "lyon"], [["hey", "zz", "lyon"]], np.array(["hey", "lyon"])):
        torch.testing.assert_close(bags(one), bags(torch.tensor([[0, 3]])), rtol=0, atol=0)
    torch.testing.assert_close(bags("lyon"), bags(torch.tensor([[3]])), rtol=0, atol=0)
    assert bags([]).shape[1] == 3
    with pytest.raises(ValueError, match="bags are lists of words; 3 lists deep is one too many"):
        bags([[["hey"]]])


def test_bags_know_which_words_are_left() -> None:
    found = EmbeddingBag(vocab("drop"), 3).bags_of([["hey", "zz"], ["xx", "lyon", "there"]])
    assert found.ids.tolist() == [0, 3, 1] and found.starts.tolist() == [0, 1, 3]
    assert found.places is not None and found.places.tolist() == [0, 3, 4]
    assert EmbeddingBag(vocab(), 3).bags_of([["hey"]]).places is None


# -- vectors in and out


def vectors() -> firth.Vectors:
    rng = np.random.default_rng(0)
    return firth.Vectors(WORDS, rng.normal(size=(4, 3)), counts=[4, 3, 2, 1])


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_a_layer_from_vectors(kind: Any) -> None:
    given = vectors()
    frozen = kind.from_vectors(given)
    assert frozen.vocab == vocab() and not frozen.weight.requires_grad
    np.testing.assert_array_equal(frozen.weight, given.vectors)
    trained = kind.from_vectors(given, freeze=False, sparse=True, max_norm=2.0)
    assert trained.weight.requires_grad and trained.sparse and trained.max_norm == 2.0
    with torch.no_grad():
        trained.weight.zero_()
    assert given.vectors.any()
    with pytest.raises(TypeError, match="Vectors are expected, got ndarray"):
        kind.from_vectors(given.vectors)


def test_padding_and_unknown_rows_of_vectors() -> None:
    given = vectors()
    mean = pytest.approx(given.vectors.mean(0).tolist(), abs=1e-6)
    added = Embedding.from_vectors(given, padding=True, unknown="unk")
    assert added.vocab is not None and added.vocab.tokens == [*WORDS, "<pad>", "<unk>"]
    assert added.padding_idx == 4 and not added.weight[4].any() and added.weight[5].tolist() == mean
    assert rows(added, [["zz"], ["hey", "there"]]) == [[5, 4], [0, 1]]
    there = Embedding.from_vectors(given, padding="lyon")
    assert there.padding_idx == 3
    np.testing.assert_array_equal(there.weight, given.vectors)
    hashed = Embedding.from_vectors(given, padding="nil", unknown="hash", hash_rows=2)
    assert hashed.padding_idx == 4 and hashed.weight[5].tolist() == hashed.weight[6].tolist() == mean
    assert rows(hashed, "zz") in (5, 6)


def test_search_is_on_the_live_weights() -> None:
    made = layer()
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0, 1]]))
    assert made.most_similar("hey", topn=1)[0][0] == "paris"
    held = made.vectors()
    with torch.no_grad():
        made.weight[3] = torch.tensor([2.0, 0, 0])
    assert made.most_similar("hey", topn=1) == [("lyon", 1.0)]
    assert made.most_similar(["hey"], ["there"], topn=1, restrict_vocab=3)[0][0] == "paris"
    assert made.vectors().most_similar("hey", topn=1) == [("lyon", 1.0)]
    assert held.most_similar("hey", topn=1)[0][0] == "paris" and held["lyon"].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(made.vectors().counts, [4, 3, 2, 1])
    with pytest.raises(KeyNotFound, match="did you mean 'hey'"):
        made.most_similar("hay")


def test_search_sees_what_a_training_step_changed() -> None:
    made = layer(dtype=torch.float64)
    made(["hey", "lyon"]).square().sum().backward()
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    np.testing.assert_array_equal(made.vectors().vectors, made.weight.detach().float())
    half = layer(dtype=torch.bfloat16, unknown="hash", hash_rows=2)
    assert half.vectors().vectors.shape == (4, 3)
    assert {key for key, _ in half.most_similar("hey")} == set(WORDS[1:])


# -- saving


def saved(made: torch.nn.Module, path: Path) -> dict[str, Any]:
    torch.save(made.state_dict(), path)
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_plain_layers_save_what_torch_saves(kind: Any) -> None:
    plain = kind(4, 3)
    assert list(plain.state_dict()) == ["weight"]
    assert "vocab" not in repr(plain)
    twin = getattr(torch.nn, kind.__name__)(4, 3)
    twin.load_state_dict(plain.state_dict())
    plain.load_state_dict(twin.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict({**plain.state_dict(), "other": torch.ones(1)})


@pytest.mark.parametrize("options", [{}, {"unknown": "hash", "hash_rows": 2}, {"unknown": "unk"}])
def test_words_travel_in_the_state_dict(options: Any, tmp_path: Path) -> None:
    odd = firth.Vocab(["naïve", "字", "a b\nc", "\ud800", '"'], [5, 0, 2**40, 1, 7], unknown="drop")
    made = Embedding(odd, 3, **options)
    state = saved(made, tmp_path / "layer.pt")
    assert list(state) == ["weight", "_extra_state"] and state["_extra_state"].dtype == torch.uint8
    again = Embedding(odd, 3, **options)
    again.load_state_dict(state)
    plain = Embedding(made.num_embeddings, 3)  # adopts the words that it loads
    plain.load_state_dict(state)
    for loaded in (again, plain):
        assert loaded.vocab is not None and made.vocab is not None
        assert loaded.vocab == made.vocab and loaded.vocab.unknown == made.vocab.unknown
        assert loaded.vocab.default_id == made.vocab.default_id and loaded.hash_rows == made.hash_rows
        words = ["字", "zz", "\ud800"]
        torch.testing.assert_close(loaded(words), made(words), rtol=0, atol=0)
    assert list(plain.state_dict()) == list(state)


def test_words_travel_inside_a_model_and_in_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = torch.nn.Sequential(Embedding(vocab(), 3), torch.nn.Linear(3, 2))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    words = Embedding.saved_vocab(state, "0.")
    other = torch.nn.Sequential(Embedding(words, 3), torch.nn.Linear(3, 2))
    other.load_state_dict(state)
    torch.testing.assert_close(other(["lyon"]), model(["lyon"]))
    with pytest.raises(KeyNotFound, match=r"has no vocabulary there; did you mean '0\.'"):
        Embedding.saved_vocab(state)


def test_a_default_row_set_by_hand_is_saved() -> None:
    words = vocab()
    words.set_default_index(2)
    made = Embedding(words, 3)
    plain = Embedding(4, 3)
    plain.load_state_dict(made.state_dict())
    assert rows(plain, ["zz"]) == [2]


def test_another_vocabulary_is_refused() -> None:
    made, weight = layer(), layer().weight.detach().clone()
    swapped = Embedding(firth.Vocab(["hey", "paris", "there", "lyon"]), 3).state_dict()
    with pytest.raises(
        RuntimeError, match=r"row 1 is 'paris' in the vocabulary saved, 'there' in this layer's"
    ):
        made.load_state_dict(swapped)
    torch.testing.assert_close(made.weight.detach(), weight, rtol=0, atol=0)
    larger = Embedding(vocab().add(["rome"]), 3).state_dict()
    with pytest.raises(RuntimeError, match=r"has 5 rows, this layer 4; firth\.nn\.Embedding\.saved_vocab"):
        made.load_state_dict(larger)
    for damaged in (torch.tensor([1, 2], dtype=torch.uint8), torch.ones(2), {"tokens": []}):
        with pytest.raises(RuntimeError, match="no vocabulary of firth"):
            made.load_state_dict({"weight": weight, "_extra_state": damaged})
    with pytest.raises(RuntimeError, match=r"Missing key.*_extra_state"):
        made.load_state_dict({"weight": weight})
    made.load_state_dict({"weight": weight}, strict=False)
    same = Embedding(vocab().with_counts([9, 9, 9, 9]), 3)
    made.load_state_dict(same.state_dict())
    assert made.vocab is not None and made.vocab.total_count == 36


def test_copies_and_pickles_keep_the_words() -> None:
    made = layer(unknown="hash", hash_rows=2)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), copy.copy(made)):
        torch.testing.assert_close(other(["lyon", "zz"]), made(["lyon", "zz"]), rtol=0, atol=0)
        assert other.vocab == made.vocab and other.most_similar("hey") == made.most_similar("hey")
    copied = copy.deepcopy(made)
    assert copied.vocab is not None
    copied.grow(copied.vocab.add(["rome"]))
    assert made.num_embeddings == 6 and copied.num_embeddings == 7


def test_repr_says_what_there_is() -> None:
    assert repr(layer()) == "Embedding(4, 3, vocab=4 tokens)"
    assert repr(layer(unknown="hash", hash_rows=2)) == "Embedding(6, 3, vocab=4 tokens, hash_rows=2)"
    assert repr(EmbeddingBag(vocab(), 3)) == "EmbeddingBag(4, 3, mode='mean', vocab=4 tokens)"


@settings(deadline=None, max_examples=40)
@given(
    st.recursive(
        st.lists(st.sampled_from([*WORDS, "zz", ""]), max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_nesting_is_its_flat_words_or_a_sentence(words: list[Any]) -> None:
    def flat(item: Any) -> list[str]:
        return [item] if isinstance(item, str) else [word for inner in item for word in flat(inner)]

    made = layer("drop", padding_idx=1)
    try:
        found = made.ids_of(words)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("firth.nn.Embedding: ")
        return
    known = [WORDS.index(word) for word in flat(words) if word in WORDS]
    assert [row for row in found.flatten().tolist() if row != 1] == [row for row in known if row != 1]
