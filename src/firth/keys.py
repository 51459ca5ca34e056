"""``Keys``: the names of the rows of a table, kept as bytes until somebody asks for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import overload

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError, SettingError
from firth.suggest import close_keys

# Looking one key up in the bytes costs a few milliseconds; a dict pays from about this many look-ups on.
PATIENCE = 16


class Keys(Sequence[str]):
    """Distinct, non-empty strings in a fixed order; immutable.

    Args:
        keys: the strings.

    Raises:
        SettingError: a key is no string, is empty or occurs twice.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._list: list[str] | None = list(keys)
        self._rows: dict[str, int] | None = None
        self._data = np.zeros(0, np.uint8)
        self._offsets = np.zeros(1, np.int64)
        self._lookups = 0
        self._where = "keys"
        for row, key in enumerate(self._list):
            if not isinstance(key, str) or not key:
                raise SettingError(f"key {row} is {key!r}; keys are non-empty strings")
        self._table()

    @classmethod
    def from_bytes(
        cls, data: NDArray[np.uint8], offsets: NDArray[np.int64], where: str, *, checked: bool = False
    ) -> Keys:
        """Keys that lie end to end in ``data``: key ``i`` is ``data[offsets[i]:offsets[i + 1]]``.

        Nothing is decoded before it is needed; that the bytes are keys at all is checked here.

        Args:
            data: (B,) uint8, UTF-8 (lone surrogates in their three-byte form).
            offsets: (V + 1,) int64, rising.
            where: what the bytes come from, for messages.
            checked: whether the caller has made sure of all that is checked here.

        Raises:
            FormatError: the offsets do not cover the data, or cut a character, or the bytes are no UTF-8.
        """
        if not checked:
            cls._check(data, offsets, where)
        keys = cls.__new__(cls)
        keys._list, keys._rows, keys._lookups = None, None, 0
        keys._data, keys._offsets, keys._where = data, offsets, where
        return keys

    @staticmethod
    def _check(data: NDArray[np.uint8], offsets: NDArray[np.int64], where: str) -> None:
        sizes = np.diff(offsets)
        if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != data.size or (sizes < 0).any():
            raise FormatError(
                f"{where}: the key offsets do not run from 0 to {data.size:,}; the file is damaged"
            )
        if (sizes == 0).any():
            raise FormatError(f"{where}: key {int(np.argmin(sizes))} is empty; the file is damaged")
        try:
            str(np.ascontiguousarray(data), "utf-8", "surrogatepass")  # type: ignore[call-overload]
        except UnicodeDecodeError as error:
            raise FormatError(f"{where}: byte {error.start:,} of the keys is no UTF-8") from error
        cut = (data[offsets[:-1]] & 0xC0) == 0x80  # a continuation byte cannot begin a key
        if cut.any():
            raise FormatError(f"{where}: key {int(np.argmax(cut))} begins inside a character")

    @classmethod
    def from_rows(cls, rows: dict[str, int]) -> Keys:
        """Keys whose rows, 0, 1, 2 ... in the order of the dict, are known; the dict is taken over."""
        keys = cls(())
        keys._list, keys._rows = list(rows), rows
        return keys

    def to_bytes(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The keys end to end (uint8) and where each begins, with the end of the last (int64)."""
        if self._list is None:
            return self._data, self._offsets
        parts = [key.encode("utf-8", "surrogatepass") for key in self._list]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return np.frombuffer(b"".join(parts), np.uint8), offsets

    def row(self, key: object) -> int:
        """The row of ``key``, or -1."""
        if not isinstance(key, str):
            return -1
        if self._rows is None:
            self._lookups += 1
            if self._lookups <= PATIENCE:
                return self._find(key.encode("utf-8", "surrogatepass"))
        return self._table().get(key, -1)

    def close(self, key: object, n: int = 3) -> list[str]:
        """Up to ``n`` keys that look like ``key``."""
        return close_keys(key, self.to_list(), n) if isinstance(key, str) else []

    def take(self, rows: NDArray[np.int64]) -> Keys:
        """The keys of these rows as new ``Keys``."""
        return Keys(self[int(row)] for row in rows)

    def mapping(self) -> Mapping[str, int]:
        """A read-only view of key -> row."""
        return MappingProxyType(self._table())

    def to_list(self) -> list[str]:
        """All keys; the list is shared, so treat it as read-only."""
        if self._list is None:
            # One decode of everything, then slices: where all is ASCII, bytes and characters agree.
            text = self._data.tobytes().decode("utf-8", "surrogatepass")
            offsets = self._offsets
            if len(text) != self._data.size:
                begins = (self._data & 0xC0) != 0x80
                offsets = np.concatenate(([0], np.cumsum(begins)))[offsets]
            places = offsets.tolist()
            self._list = [text[a:b] for a, b in pairwise(places)]
        return self._list

    def _find(self, wanted: bytes) -> int:
        # Narrow the rows down byte by byte; cheaper than decoding all keys for one question.
        starts = self._offsets[:-1]
        rows = np.flatnonzero(np.diff(self._offsets) == len(wanted))
        for place, byte in enumerate(wanted):
            if rows.size == 0:
                return -1
            rows = rows[self._data[starts[rows] + place] == byte]
        return int(rows[0]) if rows.size else -1

    def _table(self) -> dict[str, int]:
        if self._rows is None:
            keys = self.to_list()
            rows = dict(zip(keys, range(len(keys)), strict=True))
            if len(rows) != len(keys):
                row, key = next((row, key) for row, key in enumerate(keys) if rows[key] != row)
                kind = SettingError if self._data.size == 0 else FormatError  # given, or read from a file
                raise kind(f"{self._where}: {key!r} occurs twice, in rows {row} and {rows[key]}")
            self._rows = rows
        return self._rows

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self._list is None else len(self._list)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            if self._list is None and len(range(*place.indices(len(self)))) <= PATIENCE:
                return [self[row] for row in range(*place.indices(len(self)))]
            return self.to_list()[place]
        if self._list is not None:
            return self._list[place]
        row = range(len(self))[place]
        part = self._data[self._offsets[row] : self._offsets[row + 1]]
        return part.tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_list())

    def __contains__(self, key: object) -> bool:
        return self.row(key) >= 0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return self.to_list() == other.to_list()
        return isinstance(other, (list, tuple)) and self.to_list() == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self.to_list()))

    def __repr__(self) -> str:
        names = ", ".join(repr(key) for key in self[:5])
        return f"Keys([{names}{', ...' if len(self) > 5 else ''}], {len(self):,} keys)"
