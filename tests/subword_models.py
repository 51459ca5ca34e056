"""Models with subwords as the tests write them, and the plain definitions that their vectors are held to."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGIC = 793712314


def fnv1a(data: bytes) -> int:
    """fastText's hash: FNV-1a over signed bytes."""
    value = 2166136261
    for byte in data:
        signed = byte - 256 if byte > 127 else byte
        value = ((value ^ (signed & 0xFFFFFFFF)) * 16777619) & 0xFFFFFFFF
    return value


def murmur3(data: bytes, seed: int) -> list[int]:
    """MurmurHash3_x64_128 as four 32-bit words, by the reference's own steps."""
    mask = (1 << 64) - 1
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotate(value: int, bits: int) -> int:
        return ((value << bits) | (value >> (64 - bits))) & mask

    def final(value: int) -> int:
        value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & mask
        value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & mask
        return value ^ (value >> 33)

    h1 = h2 = seed
    for start in range(0, len(data) // 16 * 16, 16):
        k1, k2 = struct.unpack_from("<QQ", data, start)
        h1 ^= rotate(k1 * c1 & mask, 31) * c2 & mask
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & mask
        h2 ^= rotate(k2 * c2 & mask, 33) * c1 & mask
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & mask
    tail = data[len(data) // 16 * 16 :]
    if len(tail) > 8:
        h2 ^= rotate(int.from_bytes(tail[8:], "little") * c2 & mask, 33) * c1 & mask
    if tail:
        h1 ^= rotate(int.from_bytes(tail[:8], "little") * c1 & mask, 31) * c2 & mask
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & mask
    h2 = (h2 + h1) & mask
    h1, h2 = final(h1), final(h2)
    h1 = (h1 + h2) & mask
    h2 = (h2 + h1) & mask
    return [h1 & 0xFFFFFFFF, h1 >> 32, h2 & 0xFFFFFFFF, h2 >> 32]


def ngrams(word: bytes, minn: int, maxn: int) -> list[bytes]:
    """The n-grams of a word with its marks on, by the loop of ``Dictionary::computeSubwords``."""
    found = []
    for i in range(len(word)):
        if word[i] & 0xC0 == 0x80:
            continue
        j, n = i, 1
        while j < len(word) and n <= maxn:
            j += 1
            while j < len(word) and word[j] & 0xC0 == 0x80:
                j += 1
            if n >= minn and not (n == 1 and (i == 0 or j == len(word))):
                found.append(word[i:j])
            n += 1
    return found


@dataclass(frozen=True)
class Model:
    """A small fastText model, its numbers drawn from ``seed``; ``version`` ``None`` is the oldest form."""

    words: tuple[bytes, ...] = (b"the", b"cat", "größe".encode(), b"</s>", "日本".encode())
    labels: tuple[bytes, ...] = ()
    dim: int = 5
    minn: int = 2
    maxn: int = 4
    buckets: int = 50
    loss: int = 2
    model: int = 2
    version: int | None = 12
    kept: tuple[int, ...] | None = None  # buckets of the rows that a pruned model keeps
    quantised: bool = False
    lengths: bool = False  # quantised by themselves
    quantised_output: bool = False
    seed: int = 1
    numbers: dict[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        chance = np.random.default_rng(self.seed)
        shared = self.buckets if self.kept is None else len(self.kept)
        outputs = len(self.labels) if self.model == 3 else len(self.words)
        self.numbers["input"] = chance.standard_normal((len(self.words) + shared, self.dim)).astype("f4")
        self.numbers["output"] = chance.standard_normal((outputs, self.dim)).astype("f4")
        if self.quantised:
            part = 2
            parts = -(-self.dim // part)
            codes = chance.integers(0, 256, (len(self.numbers["input"]), parts), np.uint8)
            centroids = chance.standard_normal((256, self.dim)).astype("f4")
            scales = chance.random(256).astype("f4") + 1
            chosen = chance.integers(0, 256, len(codes), np.uint8)
            self.numbers.update(codes=codes, centroids=centroids, scales=scales, chosen=chosen)  # type: ignore[arg-type]
            rows = [
                np.concatenate(
                    [centroids[code, place * part : place * part + part] for place, code in enumerate(row)]
                )
                for row in codes
            ]
            made = np.array(rows, np.float32)
            self.numbers["input"] = made * scales[chosen][:, None] if self.lengths else made

    @property
    def counts(self) -> list[int]:
        """Of the words and the labels."""
        return [1000 - 3 * place for place in range(len(self.words) + len(self.labels))]

    def vector(self, word: bytes) -> NDArray[np.float64]:
        """The vector of any word, by the definition."""
        table = self.numbers["input"].astype(np.float64)
        rows = [self.words.index(word)] if word in self.words else []
        longest = 0 if self.model == 3 and self.version != 12 else self.maxn
        bare = word == b"</s>" and self.version is not None
        for ngram in [] if bare else ngrams(b"<" + word + b">", self.minn, longest):
            bucket = fnv1a(ngram) % self.buckets
            if self.kept is None:
                rows.append(len(self.words) + bucket)
            elif bucket in self.kept:
                rows.append(len(self.words) + self.kept.index(bucket))
        return table[rows].mean(axis=0) if rows else np.zeros(self.dim)

    def to_bytes(self) -> bytes:
        """The file, field by field as the C++ code writes them."""
        out = b"" if self.version is None else struct.pack("<2i", MAGIC, self.version)
        out += struct.pack(
            "<12id",
            self.dim,
            5,
            3,
            1,
            4,
            1,
            self.loss,
            self.model,
            self.buckets,
            self.minn,
            self.maxn,
            100,
            1e-4,
        )
        entries = len(self.words) + len(self.labels)
        out += struct.pack("<3iq", entries, len(self.words), len(self.labels), 1_000_000)
        if self.version is not None:
            out += struct.pack("<q", -1 if self.kept is None else len(self.kept))
        for place, word in enumerate(self.words + self.labels):
            out += word + b"\0" + struct.pack("<qb", self.counts[place], place >= len(self.words))
        for row, bucket in reversed(list(enumerate(self.kept or ()))):
            out += struct.pack("<2i", bucket, row)
        out += self._matrix("input", self.quantised)
        return out + self._matrix("output", self.quantised_output)

    def _matrix(self, name: str, quantised: bool) -> bytes:
        flag = b"" if self.version is None else struct.pack("<?", quantised)
        matrix = self.numbers[name]
        if not quantised:
            return flag + struct.pack("<2q", *matrix.shape) + matrix.tobytes()
        if name == "output":  # any codes will do, nobody reads them
            codes = np.zeros((len(matrix), -(-self.dim // 2)), np.uint8)
            return flag + struct.pack("<?", False) + self._codes(codes, self.numbers["centroids"])
        out = (
            flag
            + struct.pack("<?", self.lengths)
            + self._codes(self.numbers["codes"], self.numbers["centroids"])
        )
        if self.lengths:
            scales = struct.pack("<4i", 1, 1, 1, 1) + self.numbers["scales"].tobytes()
            out += self.numbers["chosen"].tobytes() + scales
        return out

    def _codes(self, codes: NDArray[np.uint8], centroids: NDArray[np.float32]) -> bytes:
        last = self.dim % 2 or 2
        sizes = struct.pack("<qqi", len(codes), self.dim, codes.size)
        quantiser = struct.pack("<4i", self.dim, codes.shape[1], 2, last)
        parts = [centroids[:, start : start + 2].tobytes() for start in range(0, self.dim, 2)]
        return sizes + codes.tobytes() + quantiser + b"".join(parts)

    def save(self, folder: Path, name: str = "model.bin") -> Path:
        """Write the file; returns where it is."""
        path = folder / name
        path.write_bytes(self.to_bytes())
        return path

    def but(self, **changes: object) -> Model:
        """Another model."""
        return replace(self, numbers={}, **changes)  # type: ignore[arg-type]


UNSEEN = ("unseen", "a", "größer", "日本語", "x" * 40, "na\u0301ive")


def floret_lines(
    table: NDArray[np.float32],
    minn: int = 2,
    maxn: int = 4,
    count: int = 2,
    seed: int = 2166136261,
    marks: str = "< >",
) -> bytes:
    """A floret table as its program writes it, with a space at the end of each row."""
    lines = [f"{len(table)} {table.shape[1]} {minn} {maxn} {count} {seed} {marks}"]
    lines += [
        f"{row} " + "".join(f"{value!r} " for value in values) for row, values in enumerate(table.tolist())
    ]
    return ("\n".join(lines) + "\n").encode()


def floret_vector(
    table: NDArray[np.float32], word: str, minn: int, maxn: int, count: int, seed: int, bow: str, eow: str
) -> NDArray[np.float64]:
    """The vector of a word, by the definition: the whole word and its n-grams, ``count`` rows each."""
    whole = (bow + word + eow).encode()
    rows = [
        value % len(table)
        for piece in [whole, *ngrams(whole, minn, maxn)]
        for value in murmur3(piece, seed)[:count]
    ]
    return table[rows].astype(np.float64).mean(axis=0)
