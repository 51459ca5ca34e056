"""``QuantizedEmbedding``: a trained table in a quarter or half of the memory, for lookups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self, cast

import torch
from torch import Tensor

from firth import quantize
from firth.errors import SettingError
from firth.kernels import rows_reference
from firth.keys import Keys
from firth.nn import checks
from firth.nn.embedding import Embedding
from firth.nn.wordlists import Lookup
from firth.nn.wordrows import rows_for
from firth.nn.words import Words
from firth.vectors import Vectors
from firth.vocab import Vocab

NAME = "firth.nn.QuantizedEmbedding"
KINDS = ("int8", "float16")
_PIECE = 1 << 20  # elements converted at once


class QuantizedEmbedding(Words):
    """Rows kept as int8 with a scale each, or as float16; only those looked up become floats.

    ``QuantizedEmbedding.from_float(layer, "int8")`` makes one of a trained layer; the constructor makes
    an empty one to load a ``state_dict`` into. There is nothing to train: outputs need no gradient, and
    ``requires_grad_()`` says so. :mod:`firth.quantize` tells how far off rows and dot products are.

    Args:
        num_embeddings: rows; or a vocabulary, for a row a token (see ``firth.nn.Embedding``).
        embedding_dim: numbers in a row.
        padding_idx: kept for lists of words of different lengths; negative counts from the end.
        kind: ``"int8"`` (D + 4 bytes a row) or ``"float16"`` (2 D bytes).
        device: of the buffers.
        dtype: of the rows given out; by default torch's. ``layer.to(dtype)`` changes only this.
        unknown, hash_rows: as for ``firth.nn.Embedding``.

    Attributes:
        codes: (num_embeddings, embedding_dim) int8 or float16, a buffer.
        scale: (num_embeddings,) float32, a buffer; ``None`` for float16.

    Raises:
        SettingError: no such kind.
        Misfit: ``padding_idx`` names no row.
        TypeError: ``dtype`` is no float.
    """

    codes: Tensor
    scale: Tensor | None

    def __init__(
        self,
        num_embeddings: int | Vocab,
        embedding_dim: int,
        padding_idx: int | None = None,
        kind: str = "int8",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        unknown: str | None = None,
        hash_rows: int = 0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise SettingError(f"{NAME}: kind must be 'int8' or 'float16', got {kind!r}")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise TypeError(f"{NAME}: dtype must be a floating point dtype, got {dtype}")
        rows, vocab, hash_rows = rows_for(NAME, num_embeddings, unknown, hash_rows)
        self.num_embeddings, self.embedding_dim = rows, embedding_dim
        self.padding_idx = checks.check_padding(NAME, padding_idx, rows)
        self.kind, self.dtype = kind, dtype
        stored = torch.int8 if kind == "int8" else torch.float16
        self.register_buffer("codes", torch.zeros(rows, embedding_dim, dtype=stored, device=device))
        scale = torch.zeros(rows, dtype=torch.float32, device=device) if kind == "int8" else None
        self.register_buffer("scale", scale)
        if vocab is not None:
            self.vocab, self.hash_rows = vocab, hash_rows

    @classmethod
    def from_float(cls, layer: torch.nn.Embedding, kind: str = "int8") -> Self:
        """The same table in fewer bytes; made piece by piece, so the layer may lie in a file (``storage=``).

        Words, ``padding_idx``, device and dtype are taken over; rows longer than the layer's ``max_norm``
        are shortened, as a lookup would.

        Args:
            layer: ``firth.nn.Embedding`` or ``torch.nn.Embedding``; not changed.
            kind: ``"int8"`` or ``"float16"``.

        Raises:
            TypeError: no such layer, or one without floats.
            ShapeError: a row holds NaN, infinity or what float16 cannot hold; it is named.
            SettingError: no such kind.
        """
        if not isinstance(layer, torch.nn.Embedding) or not layer.weight.is_floating_point():
            raise TypeError(
                f"{NAME}.from_float(): a layer of floats like firth.nn.Embedding or torch.nn.Embedding is "
                f"expected, got {type(layer).__name__}"
            )
        weight = layer.weight.detach()
        made = cls(weight.size(0), weight.size(1), layer.padding_idx, kind, weight.device, weight.dtype)
        step = max(_PIECE // max(weight.size(1), 1), 1)
        for first in range(0, weight.size(0), step):
            piece = weight[first : first + step].to("cpu", torch.float32, copy=True)
            if layer.max_norm is not None:
                ids = torch.arange(len(piece))
                rows_reference.renorm(piece, ids, float(layer.max_norm), layer.norm_type)
            made._put(first, piece)
        if isinstance(layer, Words):
            made.vocab, made.hash_rows = layer.vocab, layer.hash_rows
        return made

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
        kind: str = "int8",
    ) -> Self:
        """:meth:`from_float` of ``firth.nn.Embedding.from_vectors`` with these arguments.

        Raises:
            SettingError: ``freeze=False``, or as there.
        """
        if not freeze:
            raise SettingError(f"{NAME}.from_vectors(): rows of {kind} cannot be trained; leave freeze=True")
        layer = Embedding.from_vectors(
            vectors,
            padding=padding,
            unknown=unknown,
            hash_rows=hash_rows,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
        )
        return cls.from_float(layer, kind).to(device=device, dtype=dtype)

    def _put(self, first: int, piece: Tensor) -> None:
        """Quantise rows from ``first`` on."""
        rows = slice(first, first + len(piece))
        if self.scale is None:
            self.codes[rows] = torch.from_numpy(quantize.to_half(piece.numpy())).to(self.codes.device)
            return
        codes, scale = quantize.to_int8(piece.numpy())
        self.codes[rows], self.scale[rows] = torch.from_numpy(codes), torch.from_numpy(scale)

    def forward(self, input: Tensor | Lookup) -> Tensor:
        """The rows of ids or words, as floats.

        Args:
            input: int32 or int64, any shape; in a layer with a vocabulary also words (``ids_of``).

        Returns:
            (*shape of the input, embedding_dim) of the layer's dtype, without a gradient.

        Raises:
            OutsideTable: an id names no row (an IndexError).
            WrongIds: ids of another dtype (a RuntimeError).
            TypeError, KeyNotFound: as ``firth.nn.Embedding``.
        """
        ids = input if isinstance(input, Tensor) else self.ids_of(input)
        if checks.readable(ids):
            checks.check_ids(NAME, ids, self.num_embeddings)
        return self._floats(ids.reshape(-1)).view(*ids.shape, self.embedding_dim)

    def _floats(self, rows: Tensor) -> Tensor:
        """(B,) row numbers -> (B, D)."""
        codes = self.codes.index_select(0, rows)
        if self.scale is None:
            return codes.to(self.dtype)
        return (codes * self.scale.index_select(0, rows).unsqueeze(1)).to(self.dtype)

    def dequantized(self) -> Tensor:
        """The whole table as floats, (num_embeddings, embedding_dim): a copy."""
        return self._floats(torch.arange(self.num_embeddings, device=self.codes.device))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Refuses ``True``: rounded rows cannot take a small step.

        Raises:
            RuntimeError: train the float layer, and quantise it again.
        """
        if requires_grad:
            raise RuntimeError(
                f"{NAME}: rows of {self.kind} have no gradient; train the layer it was made from and call "
                "from_float() again"
            )
        return self

    def grow(self, vocab: Vocab, *optimizers: torch.optim.Optimizer, init: Any = None) -> NoReturn:
        """Refuses: grow the float layer, and quantise it again.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{NAME}: grow the layer it was made from and call from_float() again")

    def extra_repr(self) -> str:
        """Rows, columns, what is set, and how they are kept."""
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        text += f", kind={self.kind!r}"
        if self.vocab is not None:
            text += f", vocab={len(self.vocab)} tokens"
        return text

    # -- what Words needs in place of a weight

    def _tensor(self, rows: Any) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.int64, device=self.codes.device)

    def _view(self) -> Vectors:
        vocab = self._own_vocab("vectors()")
        found = self._floats(torch.arange(len(vocab), device=self.codes.device)).to("cpu", torch.float32)
        counts = vocab.counts if vocab.counts.any() else None
        return Vectors(Keys.from_rows(vocab.get_stoi()), found.numpy(), counts=counts)

    # -- dtypes stay

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the buffers; a change of dtype (``half()``, ``to(dtype)``) is for what is given out."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device))
        casts = probe.dtype != self.dtype
        for name, buffer in list(self.named_buffers(recurse=False)):
            moved = buffer.to(probe.device) if casts else fn(buffer)
            setattr(self, name, moved.to(buffer.dtype))
        self.dtype = probe.dtype
        return self

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
        """torch's, but buffers of another dtype are refused: torch would cut floats off to whole numbers."""
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dtype != buffer.dtype:
                error_msgs.append(
                    f"{prefix + name} is {saved.dtype} there, {buffer.dtype} in this layer of kind "
                    f"{self.kind!r}; make the layer with the kind that was saved"
                )
                return
        super()._load_from_state_dict(
            cast(dict[str, Any], state_dict),
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
