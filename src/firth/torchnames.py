"""The names under which torchtext's users ask for vectors: ``stoi``, ``itos``, ``get_vecs_by_tokens``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from firth.errors import SettingError
from firth.queries import Queries

if TYPE_CHECKING:
    from torch import Tensor

    from firth.keys import Keys


class TorchNames(Queries):
    """Mixin for ``Vectors``: what ``torchtext.vocab.Vectors`` offered, on the same rows."""

    @property
    def dim(self) -> int:
        """torchtext's name for ``vector_size``."""
        return int(self._matrix.shape[1])

    @property
    def itos(self) -> Keys:
        """torchtext's name for ``index_to_key``: the key of each row."""
        return self._keys

    @property
    def stoi(self) -> Mapping[str, int]:
        """torchtext's name for ``key_to_index``: the row of each key, read-only."""
        return self._keys.mapping()

    def get_vecs_by_tokens(self, tokens: str | Sequence[str], lower_case_backup: bool = False) -> Tensor:
        """The vectors of tokens as a new torch tensor; zeros for a token that has none.

        With subwords every token but the empty one has a vector.

        Args:
            tokens: one token, or a list of them.
            lower_case_backup: look a token that is not there up in lower case.

        Returns:
            float32 on the CPU: (D,) for one token, (N, D) for a list of N.

        Raises:
            SettingError: something else than tokens.
        """
        import torch

        asked = [tokens] if isinstance(tokens, str) else list(tokens)
        wrong = next((token for token in asked if not isinstance(token, str)), None)
        if wrong is not None:
            raise SettingError(
                f"get_vecs_by_tokens(): {wrong!r:.60} is no token; a str or a list is expected"
            )
        found = np.zeros((len(asked), self.dim), np.float32)
        spelled = [self.spelling(token, lower_case_backup) for token in asked]
        places = [place for place, key in enumerate(spelled) if key is not None]
        if places:
            found[places] = self[[key for key in spelled if key is not None]]
        made = torch.from_numpy(found)
        return made[0] if isinstance(tokens, str) else made

    def spelling(self, token: str, lower_case_backup: bool = False) -> str | None:
        """What ``token`` can be looked up as: itself, in lower case if asked for, or ``None``."""
        for spelled in (token, token.lower()) if lower_case_backup else (token,):
            if spelled in self:
                return spelled
        return token if self.has_vector(token) else None
