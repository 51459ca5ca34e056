"""Words in and out of a layer: look-ups by word, search on the live weights, rows that grow.

:class:`Words` is what :class:`firth.nn.Embedding` and :class:`firth.nn.EmbeddingBag` have in common
beyond torch's layers. A layer that was made of a number of rows has ``vocab = None`` and behaves,
``state_dict`` included, as torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor

from firth.errors import KeyNotFound, SettingError
from firth.keys import Keys
from firth.nn.growing import Move, grown_state, rows_like
from firth.nn.vocabstate import packed, unpacked
from firth.nn.wordlists import Longs, Lookup, arrow_column, counted, flat, hash_row
from firth.nn.wordrows import Place, table_of
from firth.queries import Items, Neighbours
from firth.vectors import Vectors
from firth.vocab import Vocab

_EXTRA = "_extra_state"  # torch's name for what a module keeps besides its tensors


class Bags(NamedTuple):
    """Words as bags: bag ``b`` is ``ids[starts[b]:starts[b + 1]]``."""

    ids: Tensor  # (B,) int64
    starts: Tensor  # (n_bags + 1,) int64, the last is B
    places: Tensor | None  # (B,) int64: which of the words given each id belongs to; None: all, in order


class Words(torch.nn.Module):
    """Mixin for a layer with ``weight`` (rows, D), ``num_embeddings`` and ``padding_idx``.

    Attributes:
        vocab: the words of the first rows; ``None`` in a layer without words.
        hash_rows: how many rows after those are shared by unknown words; 0: the vocabulary's policy holds.
    """

    vocab: Vocab | None = None
    hash_rows: int = 0
    weight: torch.nn.Parameter
    num_embeddings: int
    padding_idx: int | None

    # -- words to rows

    def ids_of(self, words: Lookup) -> Tensor:
        """The row of each word, int64, on the weight's device.

        Args:
            words: a word (the result has the shape ()), or a list, tuple, numpy array or Arrow column
                of words, or lists of such lists. The empty string is a word that no vocabulary holds.

        Returns:
            int64 of the shape of the nesting. Under the policy ``"drop"`` unknown words are missing
            from their list. Innermost lists of different lengths are filled up with ``padding_idx``.

        Raises:
            TypeError: the layer has no vocabulary, or something else than words is among them.
            KeyNotFound: an unknown word, where the policy gives it no row; one unknown word alone
                is refused under ``"drop"`` too, since nothing would be left.
            ValueError: lists of different lengths without a ``padding_idx``, or further out.
        """
        sizes, rows = self._rows_in(words)
        if not sizes:
            if rows[0] < 0:
                raise self._unknown(cast(str, words))
            return self._tensor(rows[0])
        for level in sizes[:-1]:
            if len(set(level)) > 1:
                raise ValueError(
                    f"{self._name()}: lists of {min(level)} to {max(level)} lists do not make a tensor; "
                    "only the innermost lists may have different lengths"
                )
        kept = rows >= 0
        lengths = counted(kept, sizes[-1])
        outer = tuple(level[0] for level in sizes[:-1])
        width = int(lengths.max(initial=0))
        if (lengths == width).all():
            return self._tensor(rows[kept].reshape(*outer, width))
        if self.padding_idx is None:
            raise ValueError(
                f"{self._name()}: the lists hold {lengths.min()} to {width} known words; a layer with "
                "padding_idx fills them up, and EmbeddingBag takes lists of any length"
            )
        filled = np.full((len(lengths), width), self.padding_idx, np.int64)
        filled[np.arange(width) < lengths[:, None]] = rows[kept]
        return self._tensor(filled.reshape(*outer, width))

    def bags_of(self, words: Lookup) -> Bags:
        """Lists of words as bags of any length, without padding.

        Args:
            words: a list of lists of words, a bag each; one list, or one word, is one bag.

        Raises:
            TypeError, KeyNotFound: as :meth:`ids_of`; a bag of which no word is known is empty.
            ValueError: lists in lists in lists.
        """
        sizes, rows = self._rows_in(words)
        if len(sizes) > 2:
            raise ValueError(
                f"{self._name()}: bags are lists of words; {len(sizes)} lists deep is one too many"
            )
        kept = rows >= 0
        lengths = counted(kept, sizes[-1] if sizes else [1])
        starts = np.concatenate(([0], np.cumsum(lengths)))
        places = None if kept.all() else self._tensor(np.flatnonzero(kept))
        return Bags(self._tensor(rows[kept]), self._tensor(starts), places)

    def _rows_in(self, words: Lookup) -> tuple[list[list[int]], Longs]:
        """How long the lists of each level are, outermost first, and the row of each word, -1 if dropped."""
        if self.vocab is None:
            raise TypeError(
                f"{self._name()}: ids must be a Tensor, got {type(words).__name__}; words are looked up in "
                "a layer that was made from a firth.Vocab"
            )
        column = arrow_column(words)
        if column is not None:
            distinct, codes = column
            return [[len(codes)]], self._rows_of(distinct)[codes]
        sizes, found = flat(words, self._name())
        return sizes, self._rows_of(found)

    def _rows_of(self, words: list[str]) -> Longs:
        """(N,) the row of each word, -1 where the policy leaves it out."""
        vocab = cast(Vocab, self.vocab)
        if self.hash_rows:
            first = len(vocab)
            rows = [vocab.get(word, -1) for word in words]
            rows = [
                first + hash_row(word, self.hash_rows) if row == -1 else row
                for word, row in zip(words, rows, strict=True)
            ]
        elif vocab.unknown == "drop":
            rows = [vocab.get(word, -1) for word in words]
        else:
            try:
                rows = list(vocab.encode(words))
            except KeyNotFound as error:
                raise self._sentence(error) from None
        return np.array(rows, np.int64)

    def _unknown(self, word: str) -> KeyNotFound:
        try:
            cast(Vocab, self.vocab).id_of(word)
        except KeyNotFound as error:
            return self._sentence(error)
        raise AssertionError(f"{word!r} is known")

    def _sentence(self, error: KeyNotFound) -> KeyNotFound:
        """The error, or where a text was given for a word, the way out of that."""
        if error.close or len(str(error.key).split()) < 2:
            return error
        where = f"vocabulary of {len(cast(Vocab, self.vocab)):,} tokens; a text is looked up as text.split()"
        return KeyNotFound(error.key, where)

    def _tensor(self, rows: Any) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.int64, device=self.weight.device)

    def _name(self) -> str:
        return f"firth.nn.{type(self).__name__}"

    # -- search

    def most_similar(
        self,
        positive: Items = None,
        negative: Items = None,
        topn: int = 10,
        clip_start: int = 0,
        clip_end: int | None = None,
        restrict_vocab: int | None = None,
    ) -> Neighbours:
        """``Vectors.most_similar`` on the weights as they are now; nothing is copied or kept.

        Raises:
            TypeError: the layer has no vocabulary.
            KeyNotFound: a word is not there, whatever the policy for unknown ones.
            SettingError: no words, or a range without rows.
        """
        live = self._view()
        return live.most_similar(positive, negative, topn, clip_start, clip_end, restrict_vocab)

    def vectors(self) -> Vectors:
        """The words and their weights as they are now, copied: ``Vectors`` do not change later.

        Rows that unknown words share by their hash have no name and are left out.

        Raises:
            TypeError: the layer has no vocabulary.
            ShapeError: it has no row or no column.
        """
        live = self._view()
        return Vectors(live.index_to_key, live.vectors.copy(), counts=live.counts)

    def _view(self) -> Vectors:
        vocab = self._own_vocab("vectors()")
        weight = self.weight.detach()[: len(vocab)].to("cpu", torch.float32)
        counts = vocab.counts if vocab.counts.any() else None
        return Vectors(Keys.from_rows(vocab.get_stoi()), weight.numpy(), counts=counts)

    def _own_vocab(self, what: str) -> Vocab:
        if self.vocab is None:
            raise TypeError(
                f"{self._name()}.{what}: the rows of this layer have no words; make it from a firth.Vocab"
            )
        return self.vocab

    @classmethod
    def from_vectors(
        cls,
        vectors: Vectors,
        freeze: bool = True,
        *,
        padding: bool | str = False,
        unknown: str = "error",
        hash_rows: int = 0,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A layer with the keys of ``vectors`` as its vocabulary and a copy of their numbers.

        Args:
            vectors: what to start from, float32.
            freeze: whether the weight stays as it is.
            padding: the key of the row for padding, ``True`` for ``"<pad>"``. A key that is not
                there gets a row of zeros at the end, so that the rows of ``vectors`` keep their numbers.
            unknown: as for the layer. ``"unk"`` without a key ``"<unk>"`` adds its row at the end.
            hash_rows: with ``unknown="hash"``; they and the row of ``"<unk>"`` start as the mean vector.
            padding_idx: the row of padding: 0 puts the zeros first, and the rows of ``vectors`` begin
                at 1. Without ``padding`` it is a row of ``vectors``, which keeps its values.
            max_norm, norm_type, scale_grad_by_freq, sparse: as for the layer.
            device, dtype: of the weight; the CPU and float32 by default.

        Raises:
            SettingError: as for the layer, or ``padding_idx`` is no row or not that of the key
                ``padding``; TypeError: ``vectors`` is no ``Vectors``.
        """
        place = Place(padding, padding_idx)
        rows, weight, padding_idx = table_of(cls.__name__, vectors, place, unknown, hash_rows)
        layer = cls(
            rows.vocab,
            weight.shape[1],
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            _weight=weight.to(device=device, dtype=dtype),
            unknown="hash" if hash_rows else None,
            hash_rows=hash_rows,
        )
        layer.weight.requires_grad_(not freeze)
        return layer

    # -- growing

    def grow(
        self,
        vocab: Vocab,
        *optimizers: torch.optim.Optimizer,
        init: Callable[[Tensor], object] | None = None,
    ) -> None:
        """Give the layer a larger vocabulary, in place; call it between two training steps.

        Every word keeps its vector and its optimiser state, even where its row changes. ``weight``
        stays the same Parameter (so that optimisers keep hold of it) with more rows; its ``grad`` is
        dropped. The state of new rows is what the optimiser starts rows with (zero, or Adagrad's
        ``initial_accumulator_value``).

        Args:
            vocab: all words of before and more, in any order; ``layer.vocab.add([...])`` makes one.
                Its policy for unknown words holds from now on (hashing stays).
            optimizers: those that train the weight, whose state grows with it. A fused layer's own
                is known.
            init: fills the new rows, a tensor (n, D), in place; ``torch.nn.init.zeros_``, say. By
                default they are normal, with the mean of each column and the common standard
                deviation about it of the rows that are there (0 and 1 where those are less than two).

        Raises:
            TypeError: the layer has no vocabulary.
            SettingError: a word would be lost, an optimiser does not hold the weight or keeps state
                that is not by rows. Nothing is changed then.
        """
        old = self._own_vocab("grow()")
        if not isinstance(vocab, Vocab):
            raise TypeError(f"{self._name()}.grow(): a firth.Vocab is expected, got {type(vocab).__name__}")
        lost = next((token for token in old.tokens if token not in vocab), None)
        if lost is not None:
            raise SettingError(
                f"{self._name()}.grow(): {lost!r:.60} is not in the new vocabulary; one that keeps all words "
                "is made by layer.vocab.add([...])"
            )
        rows = [vocab.id_of(token) for token in old.tokens]
        rows += range(len(vocab), len(vocab) + self.hash_rows)
        move = Move(self._tensor(rows), len(vocab) + self.hash_rows)
        name, own = f"{self._name()}.grow()", getattr(self, "optimizer", None)
        held = [*optimizers, *([own] if own is not None and own not in optimizers else [])]
        states = [grown_state(name, self.weight, optimizer, move) for optimizer in held]
        weight = move.moved(self.weight.detach(), 0.0)
        fresh = rows_like(self.weight.detach(), move.n_rows - len(rows))
        if init is not None:
            init(fresh)
        weight[move.fresh_rows()] = fresh
        for optimizer, state in zip(held, states, strict=True):
            optimizer.state[self.weight].update(state)
        self.weight.grad = None
        self.weight.data = weight
        self.num_embeddings = move.n_rows
        if self.padding_idx is not None:
            self.padding_idx = rows[self.padding_idx]
        self.vocab = vocab

    # -- what is saved

    def extra_repr(self) -> str:
        """torch's, and in a layer with words how many there are."""
        text = super().extra_repr()
        if self.vocab is not None:
            text += f", vocab={len(self.vocab)} tokens"
        return text + (f", hash_rows={self.hash_rows}" if self.hash_rows else "")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # get_extra_state() would add its key to plain layers too, which torch's do not have.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.vocab is not None:
            destination[prefix + _EXTRA] = packed(self.vocab, self.hash_rows)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """torch's, and the vocabulary: a layer without one takes it over, another one is refused.

        A vocabulary fits if its tokens are the layer's; its counts and policy are taken over. In a
        strict load a layer with words wants a vocabulary to be there.
        """
        key = prefix + _EXTRA
        saved = self._fitting(key, state_dict[key], error_msgs) if key in state_dict else None
        if key in state_dict and saved is None:
            return  # the weight belongs to other words
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if saved is not None:
            self.vocab, self.hash_rows = saved
            if key in unexpected_keys:
                unexpected_keys.remove(key)
        elif strict and self.vocab is not None:
            missing_keys.append(key)

    def _fitting(self, key: str, saved: object, error_msgs: list[str]) -> tuple[Vocab, int] | None:
        """The vocabulary saved and its ``hash_rows``; ``None``, and a message more, where they do not fit."""
        try:
            vocab, hash_rows = unpacked(saved)
        except ValueError as error:
            error_msgs.append(f"{key}: {error}")
            return None
        fault = self._misfit(vocab, hash_rows)
        if fault:
            error_msgs.append(f"{key}: {fault}")
        return None if fault else (vocab, hash_rows)

    def _misfit(self, vocab: Vocab, hash_rows: int) -> str:
        """Why a vocabulary that was saved does not belong to this layer; empty where it does."""
        if len(vocab) + hash_rows != self.num_embeddings:
            return (
                f"the vocabulary saved has {len(vocab) + hash_rows} rows, this layer {self.num_embeddings}; "
                f"{self._name()}.saved_vocab(state_dict) gives the one to make the layer from"
            )
        if self.vocab is None or (self.vocab.tokens == vocab.tokens and self.hash_rows == hash_rows):
            return ""
        pairs = zip(self.vocab.tokens, vocab.tokens, strict=False)
        row = next((row for row, (here, there) in enumerate(pairs) if here != there), None)
        if row is None:
            return f"the layer saved has {hash_rows} hash_rows, this one {self.hash_rows}"
        return (
            f"row {row} is {vocab.tokens[row]!r:.60} in the vocabulary saved, "
            f"{self.vocab.tokens[row]!r:.60} in this layer's; "
            f"{self._name()}.saved_vocab(state_dict) gives the one to make the layer from"
        )

    @staticmethod
    def saved_vocab(state_dict: Mapping[str, Any], prefix: str = "") -> Vocab:
        """The vocabulary in a ``state_dict``, to make the layer from that is to load it.

        Args:
            state_dict: of a layer, or of a model that holds it.
            prefix: the layer's place in the model with a dot, ``"encoder.words."``, say.

        Raises:
            KeyNotFound: none is there. SettingError: it cannot be read.
        """
        if prefix + _EXTRA not in state_dict:
            close = [key.removesuffix(_EXTRA) for key in state_dict if key.endswith(_EXTRA)]
            raise KeyNotFound(prefix + _EXTRA, "state_dict, which has no vocabulary there", close)
        return unpacked(state_dict[prefix + _EXTRA])[0]
