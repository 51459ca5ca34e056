"""Records: a symbol of the erasure code with its number and its own check, as it stands in a frame.

``place 4 | data | check``: the place is the count of source symbols (12 bits, a short floating-point
number, see :func:`rounded_up`) and the number of the symbol (20 bits), so that each frame says of itself
what it is; the check is a keyed hash. A record is masked by a key stream, so that it looks like noise even
where data are all zeros.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np

from firth.errors import SettingError
from firth.video.keyed import KeyStream, subkey

PLACE_BYTES = 4
CHECK_BYTES = 4
OVERHEAD_BYTES = PLACE_BYTES + CHECK_BYTES
N_SYMBOL_IDS = 1 << 20
MOST_SOURCE = N_SYMBOL_IDS  # as many as there are numbers


@dataclass(frozen=True)
class Symbol:
    """One symbol of the erasure code.

    Attributes:
        n_source: source symbols of the blob that it belongs to.
        symbol_id: its number, 0 to 2^20 - 1; those below ``n_source`` are the blob itself.
        data: its bytes.
    """

    n_source: int
    symbol_id: int
    data: bytes


def rounded_up(n_source: int) -> int:
    """The smallest count from ``n_source`` on that a record can name: at most 0.4 % more.

    Counts are exact up to 512, then multiples of 2, 4, ... with 256 steps an octave.

    Raises:
        SettingError: more than 2^20.
    """
    shift = max(0, n_source.bit_length() - 9)
    count = -(-n_source >> shift) << shift
    if n_source < 1 or count > MOST_SOURCE:
        raise SettingError(
            f"a blob is cut into 1 to {MOST_SOURCE:,} symbols, not {n_source:,}; "
            "hide less, or in larger frames"
        )
    return count


def rounded_down(n_symbols: int) -> int:
    """The largest count up to ``n_symbols`` that a record can name: what so many frames can carry."""
    shift = max(0, min(n_symbols, MOST_SOURCE).bit_length() - 9)
    return min(n_symbols, MOST_SOURCE) >> shift << shift


def seal(symbol: Symbol, key: bytes) -> bytes:
    """The record of a symbol: ``OVERHEAD_BYTES`` longer than its data."""
    place = _count_code(symbol.n_source) << 20 | symbol.symbol_id
    body = place.to_bytes(PLACE_BYTES, "big") + symbol.data
    return _masked(body + _check(body, key), key)


def unseal(record: bytes, key: bytes) -> Symbol | None:
    """The symbol of a record, or ``None`` if its check does not fit (once in 2^32 by chance)."""
    if len(record) <= OVERHEAD_BYTES:
        return None
    plain = _masked(record, key)
    body, check = plain[:-CHECK_BYTES], plain[-CHECK_BYTES:]
    if not hmac.compare_digest(_check(body, key), check):
        return None
    place = int.from_bytes(body[:PLACE_BYTES], "big")
    n_source = _count_of(place >> 20)
    if not 1 <= n_source <= MOST_SOURCE:
        return None
    return Symbol(n_source, place & (N_SYMBOL_IDS - 1), body[PLACE_BYTES:])


def _check(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2s(body, key=key, digest_size=CHECK_BYTES, person=b"firthrec").digest()


def _masked(record: bytes, key: bytes) -> bytes:
    mask = KeyStream(subkey(key, "record mask", len(record))).words(-(-len(record) // 8))
    stream = mask.astype("<u8").view(np.uint8)[: len(record)]
    return (np.frombuffer(record, np.uint8) ^ stream).tobytes()


def _count_code(n_source: int) -> int:
    """12 bits: below 512 the count itself, above 8 bits of mantissa and 4 of exponent."""
    shift = max(0, n_source.bit_length() - 9)
    return n_source if shift == 0 else (shift + 1) << 8 | (n_source >> shift) - 256


def _count_of(code: int) -> int:
    shift = max(0, (code >> 8) - 1)
    return code if shift == 0 else (256 + (code & 255)) << shift
