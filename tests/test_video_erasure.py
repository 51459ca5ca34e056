"""The erasure code: any sufficient set of symbols gives the blob back, too few give nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.errors import SettingError
from firth.video import erasure, gf16
from firth.video.erasure import Cutter, Joiner, count_source
from firth.video.record import Symbol


def product(left: int, right: int) -> int:
    """In the field, by long multiplication."""
    total = 0
    while right:
        if right & 1:
            total ^= left
        left <<= 1
        if left >> 16:
            left ^= gf16.POLYNOMIAL
        right >>= 1
    return total


def test_the_tables_are_the_field() -> None:
    log, power = gf16.tables()
    assert len(set(power[: gf16.ORDER].tolist())) == gf16.ORDER
    rng = np.random.default_rng(0)
    for left, right in rng.integers(1, 65536, (200, 2)).tolist():
        assert power[log[left] + log[right]] == product(left, right)


@pytest.mark.parametrize("words", [3, gf16.LONG_ROW + 5])
def test_a_cauchy_matrix_and_its_inverse(words: int) -> None:
    rng = np.random.default_rng(1)
    elements = rng.permutation(65536)[:24].astype(np.int64)
    xs, ys = elements[:12], elements[12:]
    rows = rng.integers(0, 65536, (12, words)).astype(np.uint16)
    sums = np.zeros_like(rows)
    gf16.add_products(sums, xs, ys, rows, *gf16.tables())
    log, power = gf16.tables()
    want = 0
    for j in range(12):
        want ^= product(int(power[gf16.ORDER - log[xs[4] ^ ys[j]]]), int(rows[j, 2]))
    assert sums[4, 2] == want
    assert np.array_equal(gf16.solve(xs, ys, sums, *gf16.tables()), rows)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600), st.sampled_from([2, 8, 38]), st.integers(0, 2**32 - 1))
def test_any_set_of_enough_symbols(blob: bytes, symbol_bytes: int, seed: int) -> None:
    cutter = Cutter(blob, symbol_bytes)
    rng = np.random.default_rng(seed)
    ids = rng.permutation(3 * cutter.n_source)[: cutter.n_source]
    joiner = Joiner()
    for symbol_id in ids[:-1].tolist():
        assert joiner.add(cutter.symbol(symbol_id))
        assert not joiner.add(cutter.symbol(symbol_id))
        assert joiner.blob() is None
    assert joiner.missing == 1
    joiner.add(cutter.symbol(int(ids[-1])))
    whole = joiner.blob()
    assert whole is not None
    assert whole[: len(blob)] == blob
    assert not any(whole[len(blob) :])
    assert (joiner.found, joiner.needed, joiner.missing) == (cutter.n_source, cutter.n_source, 0)


def test_thousands_of_symbols_in_generations() -> None:
    rng = np.random.default_rng(3)
    blob = rng.bytes(5000 * 20)
    cutter = Cutter(blob, 20)
    assert cutter.n_source >= 5000 > erasure.MOST_IN_GENERATION
    kept = rng.random(int(cutter.n_source * 1.6)) < 0.75
    joiner = Joiner()
    for symbol_id in np.flatnonzero(kept).tolist():
        joiner.add(cutter.symbol(symbol_id))
    whole = joiner.blob()
    assert whole is not None
    assert whole[: len(blob)] == blob


def test_the_last_numbers_work() -> None:
    blob = bytes(range(200))
    cutter = Cutter(blob, 50)
    joiner = Joiner()
    for symbol_id in range(cutter.n_ids - cutter.n_source, cutter.n_ids):
        joiner.add(cutter.symbol(symbol_id))
    assert joiner.blob() == blob


def test_strange_symbols_do_no_harm() -> None:
    cutter = Cutter(b"x" * 100, 20)
    joiner = Joiner()
    assert joiner.blob() is None
    assert (joiner.found, joiner.needed) == (0, 0)
    assert not joiner.add(Symbol(0, 1, b"12"))
    assert not joiner.add(Symbol(5, 70_000, b"12"))
    assert not joiner.add(Symbol(5, 1, b"123"))
    joiner.add(Symbol(1, 0, b"other blob"))
    joiner.add(Symbol(7, 0, b"z" * 20))
    for symbol_id in (9, 2, 0, 31, 4):
        joiner.add(cutter.symbol(symbol_id))
    assert joiner.blob() == b"x" * 100


def test_wrong_calls() -> None:
    for call in (
        lambda: count_source(10, 3),
        lambda: count_source(1 << 30, 2),
        lambda: Cutter(b"x", 2).symbol(-1),
        lambda: Cutter(b"x", 2).symbol(1 << 20),
    ):
        with pytest.raises(SettingError):
            call()
