"""The container of hidden files: there and back, exact or not at all; keys, records, key streams."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.errors import FirthError, FormatError, SettingError
from firth.video import record
from firth.video.keyed import KeyStream, subkey
from firth.video.payload import locator_key, pack, unpack

WORD = "sesame"
KEY = bytes(range(32))
PINNED_WORDS = ["0x84e74f4d7278f09d", "0xa5ee201582057708"]
PINNED_ORDER = [6, 4, 0, 5, 3, 1, 7, 2]
PINNED_SUBKEY = "02c7e81eab67cabf"


@pytest.fixture(scope="module")
def sealed() -> bytes:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    return pack(b"the company it keeps" * 9, "firth.txt", WORD)


@pytest.mark.parametrize("data", [b"\0", b"word " * 500, bytes(range(256)) * 3])
@pytest.mark.parametrize("name", [None, "a.bin", "größe.txt"])
def test_there_and_back(data: bytes, name: str | None) -> None:
    blob = pack(data, name)
    payload = unpack(blob + b"\0" * 7)
    assert (payload.data, payload.name, payload.secret) == (data, name, False)
    assert len(blob) <= len(data) + len((name or "").encode()) + 23


def test_with_a_password(sealed: bytes) -> None:
    payload = unpack(sealed, WORD)
    assert (payload.data, payload.name, payload.secret) == (b"the company it keeps" * 9, "firth.txt", True)
    assert pack(b"same", None, WORD) != pack(b"same", None, WORD)
    assert b"company" not in sealed
    for wrong in ("Sesame", None):
        with pytest.raises(FormatError, match="password"):
            unpack(sealed, wrong)


def test_text_is_compressed() -> None:
    assert len(pack(b"again and " * 1000)) < 200


def test_every_changed_bit_is_noticed(sealed: bytes) -> None:
    open_blob = pack(b"abcdefgh", "n")
    for at in range(8 * len(open_blob)):
        changed = bytearray(open_blob)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(FormatError):
            unpack(bytes(changed))
    for at in range(0, 8 * len(sealed), 97):
        changed = bytearray(sealed)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(FormatError):
            unpack(bytes(changed), WORD)


def test_every_cut_is_noticed(sealed: bytes) -> None:
    for blob, word in ((pack(b"abcdefgh"), None), (sealed, WORD)):
        for length in range(len(blob)):
            with pytest.raises(FormatError, match=r"cut"):
                unpack(blob[:length], word)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_container(blob: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(blob)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.integers(0, 2**32 - 1), st.integers(18, 255), st.binary(max_size=99))
def test_a_header_that_lies_asks_for_no_memory(flags: int, length: int, log2_n: int, rest: bytes) -> None:
    blob = bytes([1, flags]) + length.to_bytes(4, "big") + bytes([log2_n]) + rest
    with pytest.raises(FormatError):
        unpack(blob, WORD)


def test_a_bomb_does_not_go_off() -> None:
    blob = pack(bytes(10_000_000))
    assert len(blob) < 20_000
    with pytest.raises(FormatError, match="more than"):
        unpack(blob, most_bytes=100_000)


def test_names_lose_their_folders() -> None:
    for given_name, kept in [
        ("/etc/passwd", "passwd"),
        ("..\\..\\x", "x"),
        ("..", None),
        ("a\x1b[2Jb", "a[2Jb"),
    ]:
        assert unpack(pack(b"1", given_name)).name == kept
    body = bytes([11]) + b"../../x.txt" + b"data"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    assert packer is not None
    from firth.video import payload

    head = payload._FIXED.pack(1, 0, len(body)) + body
    assert unpack(head + payload._digest(head)).name == "x.txt"


def test_wrong_calls() -> None:
    for call in (lambda: pack(b""), lambda: pack(b"1", None, ""), lambda: locator_key("")):
        with pytest.raises(SettingError):
            call()


def test_locator_keys() -> None:
    assert locator_key() == locator_key()
    assert len({locator_key(), locator_key("a"), locator_key("b")}) == 3
    assert locator_key("a") == locator_key("a")
    assert len(locator_key("a")) == len(locator_key()) == 32


def test_key_streams_are_pinned() -> None:
    """A changed stream would lose every file hidden before: these numbers never change."""
    stream = KeyStream(KEY)
    assert [hex(word) for word in stream.words(2)] == PINNED_WORDS
    assert KeyStream(KEY).permutation(8).tolist() == PINNED_ORDER
    assert subkey(KEY, "dither", 3).hex()[:16] == PINNED_SUBKEY


def test_key_streams_go_on() -> None:
    one, two = KeyStream(KEY), KeyStream(KEY)
    assert np.array_equal(one.words(10), np.concatenate([two.words(3), two.words(7)]))
    draws = KeyStream(KEY).uniform(4000)
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.03
    assert abs(KeyStream(KEY).bits(4001).mean() - 0.5) < 0.04


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1 << 20), st.integers(0, (1 << 20) - 1), st.binary(min_size=1, max_size=40))
def test_records_there_and_back(n_source: int, symbol_id: int, data: bytes) -> None:
    try:
        count = record.rounded_up(n_source)
    except SettingError:
        assert n_source > (1 << 20) - 4096
        return
    assert n_source <= count <= n_source * 1.004 + 1
    assert record.rounded_up(count) == count
    symbol = record.Symbol(count, symbol_id, data)
    sealed_record = record.seal(symbol, KEY)
    assert len(sealed_record) == len(data) + record.OVERHEAD_BYTES
    assert record.unseal(sealed_record, KEY) == symbol
    assert record.unseal(sealed_record, KEY[::-1]) is None


def test_changed_and_empty_records_are_none() -> None:
    sealed_record = record.seal(record.Symbol(3, 1, b"\0" * 20), KEY)
    for at in range(8 * len(sealed_record)):
        changed = bytearray(sealed_record)
        changed[at // 8] ^= 1 << at % 8
        assert record.unseal(bytes(changed), KEY) is None
    for length in range(40):
        assert record.unseal(bytes(length), KEY) is None


def test_errors_are_firths() -> None:
    assert issubclass(FormatError, FirthError)
