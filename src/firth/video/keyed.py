"""Numbers that follow from a key: the same on every machine and with every version of numpy."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def subkey(key: bytes, purpose: str, number: int = 0) -> bytes:
    """32 bytes for one use of ``key``; no two purposes or numbers share any."""
    text = f"{purpose}/{number}".encode()
    return hashlib.blake2s(text, key=key, person=b"firthsub").digest()


class KeyStream:
    """Draws from a key. Each call goes on where the one before ended.

    Args:
        key: 32 bytes.

    The raw stream is Philox (Salmon et al. 2011), which numpy keeps the same between versions; draws are
    made of it here, because those of ``numpy.random.Generator`` may change.
    """

    def __init__(self, key: bytes) -> None:
        words = np.frombuffer(key, dtype="<u8").astype(np.uint64)
        self._raw = np.random.Philox(key=words[:2], counter=[0, 0, int(words[2]), int(words[3])])

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit words."""
        return np.asarray(self._raw.random_raw(count), dtype=np.uint64)

    def uniform(self, count: int) -> NDArray[np.float32]:
        """``count`` float32 numbers in [0, 1)."""
        return (self.words(count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def bits(self, count: int) -> NDArray[np.uint8]:
        """``count`` times 0 or 1."""
        whole = self.words(-(-count // 64)).astype("<u8")
        return np.unpackbits(whole.view(np.uint8), bitorder="little")[:count]

    def permutation(self, count: int) -> NDArray[np.int64]:
        """0 .. ``count`` - 1 in random order."""
        return np.argsort(self.words(count), kind="stable")
