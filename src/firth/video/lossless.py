"""The lossless profile: LSB matching at keyed positions.

The lowest bits of chosen luma samples are the message. Where such a bit is wrong, 1 is added or taken away,
at random (LSB matching, Sharp 2001; Ker 2005), never the bit replaced: replacement makes pairs of values
alike, which sample-pairs analysis sees at once (:mod:`firth.video.steganalysis`). The distortion at ``rate``
bits a sample is ``rate / 2`` in the mean square, so that 0.4 keeps 55.1 dB.

Every frame stands by itself. 64 places hold a fresh random number: one of 16 sets, drawn anew for each
frame, that follow from the key and the size of the frame, so that no sample moves in every frame. The number
decides from which place on the rest is written, and masks it: the size of the record with a check of 64
bits, then the record (:mod:`firth.video.record`). Two frames with the same symbol share neither places nor
bits, and a frame is read without its number by trying the 16.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from firth.errors import SettingError
from firth.video.erasure import Cutter, count_source
from firth.video.frames import Luma, VideoInfo
from firth.video.keyed import KeyStream, subkey
from firth.video.profile import Change
from firth.video.record import OVERHEAD_BYTES, Symbol, rounded_down, seal, unseal

NONCE_BYTES = 8
SIZE_BYTES = 4
CHECK_BYTES = 8
NONCE_BITS = 8 * NONCE_BYTES
MOST_SETS, SAMPLES_A_SET = 16, 1024
HEAD_BYTES = SIZE_BYTES + CHECK_BYTES
FRAME_OVERHEAD_BYTES = NONCE_BYTES + HEAD_BYTES + OVERHEAD_BYTES

Order = NDArray[np.int32]


@dataclass(frozen=True)
class Lossless:
    """Hiding in lowest bits, for files that keep every bit.

    Args:
        rate: bits a luma sample at most, above 0 and up to 1. A payload that needs fewer gets fewer.

    Raises:
        SettingError: ``rate`` outside its range.
    """

    rate: float = 0.4
    name: str = field(default="lossless", init=False)
    lossless: bool = field(default=True, init=False)
    code_rate: None = field(default=None, init=False)
    spread: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise SettingError(f"rate must be above 0 and at most 1 bit a luma sample, got {self.rate}")

    def holding(self, psnr: float, info: VideoInfo) -> Lossless:
        """The same with no more bits a sample than a luma PSNR of ``psnr`` dB allows."""
        return replace(self, rate=min(self.rate, rate_for_psnr(psnr, info.depth)))

    def spread_out(self, info: VideoInfo) -> Lossless:
        """Not for this profile, whose frames lose nothing.

        Raises:
            SettingError: always.
        """
        raise SettingError("hide: the lossless profile has no codewords to spread; leave --spread away")

    def ways(self, info: VideoInfo, blob_bytes: int) -> list[Lossless]:
        """Itself: what is lossless needs no choice."""
        return [self]

    def frame_bytes(self, info: VideoInfo) -> int:
        """Bytes of a symbol that fill a frame; 0 if the frame is too small for any."""
        return max(0, int(self.rate * info.n_pixels) // 8 - FRAME_OVERHEAD_BYTES) // 2 * 2

    def most_bytes(self, info: VideoInfo) -> int:
        """The longest blob that a cover takes if not a frame is lost; 0 if frames are too small."""
        return rounded_down(info.n_frames) * self.frame_bytes(info)

    def symbol_bytes(self, info: VideoInfo, blob_bytes: int) -> int:
        """Bytes of a symbol: as few symbols as frames can hold, so that as few frames as can be are needed.

        Raises:
            SettingError: frames too small for any.
        """
        most = self.frame_bytes(info)
        if not most:
            raise SettingError(
                f"hide: frames of {info.width}x{info.height} at {self.rate:g} bits a luma sample are too "
                f"small to carry anything; a record alone has {8 * FRAME_OVERHEAD_BYTES} bits"
            )
        size = -(-blob_bytes // count_source(blob_bytes, most))
        return size + size % 2

    def n_symbols(self, info: VideoInfo, n_frames: int) -> int:
        """One a frame, as large as it takes."""
        return n_frames

    def marker(self, info: VideoInfo, cutter: Cutter, key: bytes) -> Change:
        """Writes symbol ``frame_pos`` into frame ``frame_pos`` (from 0 again after the last symbol).

        Returns:
            A change; it raises SettingError where it is given a luma plane of another size.
        """
        places = Places(key)
        top = (1 << info.depth) - 1

        def change(luma: Luma, frame_pos: int) -> Luma:
            order = places.of(luma.shape)
            nonce = os.urandom(NONCE_BYTES)
            number = secrets.randbelow(_n_sets(luma.size))
            bits = _bits(nonce, cutter.symbol(frame_pos % cutter.n_ids), key)
            flat = luma.reshape(-1)
            chosen = np.concatenate(
                [_nonce_places(order, number), _turned(order, number, nonce, bits.size - NONCE_BITS)]
            )
            flat[chosen] = matched(flat[chosen], bits, top)
            return luma

        return change

    def reader(self, key: bytes) -> LosslessReader:
        """A reader of what :meth:`marker` wrote with ``key``, whatever its rate."""
        return LosslessReader(key)


class LosslessReader:
    """Reads the symbol of a frame.

    Args:
        key: 32 bytes, of :func:`firth.video.payload.locator_key`.

    Attributes:
        n_read: frames whose record fitted its check.
        n_damaged: frames that carry a record of this key which did not.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._places = Places(key)
        self._bits = 0
        self.n_read = self.n_damaged = 0

    @property
    def bit_error_rate(self) -> float | None:
        """From the share of records with any wrong bit, if at least one had none; else ``None``."""
        if not self.n_read:
            return None
        bits = self._bits / (self.n_read + self.n_damaged)
        return float(-np.expm1(np.log(self.n_read / (self.n_read + self.n_damaged)) / bits)) + 0.0

    def read(self, luma: Luma) -> list[Symbol]:
        """The symbol of a frame, or none."""
        if luma.size < 8 * FRAME_OVERHEAD_BYTES:
            return []
        order = self._places.of(luma.shape)
        flat = luma.reshape(-1)
        for number in range(_n_sets(luma.size)):
            nonce = _lowest(flat, _nonce_places(order, number))
            frame_key = _frame_key(self._key, nonce)
            record_bytes = _opened(_lowest(flat, _turned(order, number, nonce, 8 * HEAD_BYTES)), frame_key)
            if record_bytes is not None:
                break
        else:
            return []
        bits = 8 * (HEAD_BYTES + record_bytes)
        if NONCE_BITS + bits > luma.size:
            return []
        symbol = unseal(_lowest(flat, _turned(order, number, nonce, bits))[HEAD_BYTES:], frame_key)
        self._bits += bits
        if symbol is None:
            self.n_damaged += 1
            return []
        self.n_read += 1
        return [symbol]

    def finish(self) -> list[list[Symbol]]:
        """Nothing: each frame was read at once."""
        return []


class Places:
    """The order in which the samples of a frame are written: all of them, shuffled by a key.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._shape: tuple[int, ...] = ()
        self._order = np.zeros(0, np.int32)

    def of(self, shape: tuple[int, ...]) -> Order:
        """(height * width) int32: sample numbers; made once a size, for frames seldom change theirs."""
        if shape != self._shape:
            height, width = shape
            stream = KeyStream(subkey(self._key, f"lossless places {height}x{width}"))
            self._order = stream.permutation(height * width).astype(np.int32)
            self._shape = shape
        return self._order


def matched(values: Luma, bits: NDArray[np.uint8], top: int) -> Luma:
    """``values`` with ``bits`` as their lowest bits: those that differ move by 1, up or down at random.

    Args:
        values: luma samples, 0 to ``top``.
        bits: 0 or 1 for each.
        top: the largest value; it can only go down, and 0 only up.
    """
    kind = values.dtype.type
    wrong = (values ^ bits.astype(values.dtype)) & kind(1)
    drawn = np.unpackbits(np.frombuffer(os.urandom(-(-values.size // 8)), np.uint8))[: values.size]
    up = ((drawn.astype(bool) & (values != top)) | (values == 0)).astype(values.dtype)
    return np.asarray(values + wrong * (up * kind(2) - kind(1)))  # unsigned: -1 is the largest number


def rate_for_psnr(psnr: float, depth: int) -> float:
    """The most bits a luma sample that keep a peak signal-to-noise ratio, from the mean square rate / 2.

    Args:
        psnr: in dB.
        depth: bits of a luma sample.
    """
    peak = (1 << depth) - 1
    return float(min(1.0, 2 * peak**2 / 10 ** (psnr / 10)))


def _bits(nonce: bytes, symbol: Symbol, key: bytes) -> NDArray[np.uint8]:
    frame_key = _frame_key(key, nonce)
    record = seal(symbol, frame_key)
    size = len(record).to_bytes(SIZE_BYTES, "big")
    head = _masked(size + _check(size, frame_key), frame_key)
    return np.unpackbits(np.frombuffer(nonce + head + record, np.uint8))


def _opened(head: bytes, frame_key: bytes) -> int | None:
    """The size of the record that a head tells, or ``None`` if it is none of this key."""
    plain = _masked(head, frame_key)
    size, check = plain[:SIZE_BYTES], plain[SIZE_BYTES:]
    return int.from_bytes(size, "big") if hmac.compare_digest(_check(size, frame_key), check) else None


def _check(size: bytes, frame_key: bytes) -> bytes:
    return hashlib.blake2s(size, key=frame_key, digest_size=CHECK_BYTES, person=b"firthlos").digest()


def _masked(head: bytes, frame_key: bytes) -> bytes:
    mask = subkey(frame_key, "lossless head")
    return bytes(left ^ right for left, right in zip(head, mask, strict=False))


def _frame_key(key: bytes, nonce: bytes) -> bytes:
    return subkey(key, "lossless frame " + nonce.hex())


def _n_sets(n_samples: int) -> int:
    """Sets of places that the random number may stand in; small frames have fewer."""
    return max(1, min(MOST_SETS, n_samples // SAMPLES_A_SET))


def _nonce_places(order: Order, number: int) -> Order:
    return order[number * NONCE_BITS :][:NONCE_BITS]


def _turned(order: Order, number: int, nonce: bytes, count: int) -> Order:
    """``count`` places besides those of the random number, from where it says, round and round."""
    after = (number + 1) * NONCE_BITS
    first, second = order[after:], order[: after - NONCE_BITS]
    start = int.from_bytes(nonce, "big") % (first.size + second.size)
    if start >= first.size:
        first, second, start = second, first, start - first.size
    chosen = []
    for arc in (first[start:], second, first[:start]):
        chosen.append(arc[:count])
        count -= chosen[-1].size
    return np.concatenate(chosen)


def _lowest(flat: Luma, chosen: Order) -> bytes:
    return np.packbits((flat[chosen] & 1).astype(np.uint8)).tobytes()
