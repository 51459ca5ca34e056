"""Reading a binary file piece by piece, each piece checked against the size of the file first."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError
from firth.files import storage_error


class Source:
    """A mapped file and the place in it.

    Args:
        path: the file.

    Raises:
        StorageError: it cannot be opened.
        FormatError: it is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = 0
        try:
            with open(path, "rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise storage_error(error, path, "read") from error
        except ValueError as error:
            raise FormatError(f"{path} is empty: there are no vectors in it") from error
        self._bytes = np.frombuffer(self.data, np.uint8)

    @property
    def left(self) -> int:
        """Bytes that follow."""
        return len(self.data) - self.place

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        """The next values, as ``struct`` lays them out; ``what`` they are is for the message."""
        place = self.skip(struct.calcsize(layout), what)
        return struct.unpack_from(layout, self.data, place)

    def array(self, count: int, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
        """The next ``count`` numbers, mapped, at whatever byte they begin; read-only."""
        place = self.skip(count * dtype.itemsize, what)
        return self._bytes[place : place + count * dtype.itemsize].view(dtype)

    def skip(self, size: int, what: str) -> int:
        """Step over ``size`` bytes; returns where they begin."""
        if size > self.left:
            raise self.error(
                f"{what} would take {size:,} bytes and {self.left:,} follow; it is cut or damaged"
            )
        place = self.place
        self.place += size
        return place

    def error(self, sentence: str) -> FormatError:
        """A ``FormatError`` that says where it arose."""
        return FormatError(f"{self.path}, byte {self.place:,}: {sentence}")
