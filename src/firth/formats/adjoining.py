"""Parts of several files mapped one behind the other, so that together they are one array."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firth.files import storage_error

PAGE = mmap.ALLOCATIONGRANULARITY


class Stretch(NamedTuple):
    """Bytes of a file: from ``begin``, ``size`` many."""

    path: Path
    begin: int
    size: int


def adjoined(stretches: Sequence[Stretch]) -> npt.NDArray[np.uint8]:
    """The bytes of all, read-only: mapped where each begins and all but the last end at a page, else read.

    Raises:
        StorageError: a file cannot be opened or mapped.
    """
    filled = [one for one in stretches if one.size]
    if len(filled) == 1:
        (one,) = filled
        try:
            return np.memmap(one.path, np.uint8, "r", one.begin, (one.size,))
        except (OSError, ValueError) as error:
            raise storage_error(OSError(str(error)), one.path, "read") from error
    even = all(one.begin % PAGE == 0 for one in filled) and all(one.size % PAGE == 0 for one in filled[:-1])
    return _mapped(filled) if even and sys.platform in ("linux", "darwin") else _read(filled)


def _mapped(stretches: Sequence[Stretch]) -> npt.NDArray[np.uint8]:
    """One range of addresses is taken, then each file put over its part of it (mmap with MAP_FIXED)."""
    size = sum(one.size for one in stretches)
    taken = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    whole: npt.NDArray[np.uint8] = np.frombuffer(taken, np.uint8)  # holds the range as long as it is used
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    number = ctypes.c_int
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_int64)
    place = whole.ctypes.data
    fixed = mmap.MAP_PRIVATE | 0x10  # MAP_FIXED, on Linux and macOS
    for one in stretches:
        try:
            with one.path.open("rb") as file:
                at = libc.mmap(place, one.size, mmap.PROT_READ, fixed, file.fileno(), one.begin)
        except OSError as error:
            raise storage_error(error, one.path, "read") from error
        if at != place:
            raise storage_error(OSError(ctypes.get_errno(), "it cannot be mapped"), one.path, "read")
        place += one.size
    return whole


def _read(stretches: Sequence[Stretch]) -> npt.NDArray[np.uint8]:
    whole = np.empty(sum(one.size for one in stretches), np.uint8)
    place = 0
    for one in stretches:
        try:
            with one.path.open("rb") as file:
                file.seek(one.begin)
                data = file.read(one.size)
        except OSError as error:
            raise storage_error(error, one.path, "read") from error
        if len(data) != one.size:
            raise storage_error(OSError("it became shorter while it was read"), one.path, "read")
        whole[place : place + one.size] = np.frombuffer(data, np.uint8)
        place += one.size
    whole.flags.writeable = False
    return whole
