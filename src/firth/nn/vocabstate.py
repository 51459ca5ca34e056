"""A vocabulary as a tensor, so that it travels in a ``state_dict``."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from firth.errors import SettingError
from firth.vocab import Vocab

_FORMAT = 1


def packed(vocab: Vocab, hash_rows: int) -> Tensor:
    """A vocabulary as one uint8 tensor, JSON in UTF-8: what every way to save a ``state_dict`` takes."""
    facts = {
        "format": _FORMAT,
        "tokens": vocab.tokens,
        "counts": vocab.counts.tolist(),
        "unknown": vocab.unknown,
        "unk_token": vocab.unk_token,
        "hash_rows": hash_rows,
    }
    data = json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def unpacked(saved: object) -> tuple[Vocab, int]:
    """What :func:`packed` was given.

    Raises:
        SettingError: it is something else.
    """
    if not isinstance(saved, Tensor) or saved.dtype != torch.uint8:
        raise SettingError(f"no vocabulary of firth: {type(saved).__name__}, a uint8 tensor is expected")
    try:
        facts = json.loads(saved.cpu().numpy().tobytes().decode("utf-8", "surrogatepass"))
        if facts["format"] > _FORMAT:
            raise SettingError(
                f"the vocabulary was saved in format {facts['format']} by a newer version of firth"
            )
        vocab = Vocab(
            facts["tokens"], facts["counts"], unknown=facts["unknown"], unk_token=facts["unk_token"]
        )
        return vocab, int(facts["hash_rows"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"no vocabulary of firth can be read from it: {error}") from error
