"""Soft bits that take the frames around into account."""

from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firth.video import context, reading
from firth.video.carrier import BlockCarrier
from firth.video.context import Features, Seen, features, network
from firth.video.erasure import Cutter
from firth.video.payload import locator_key
from firth.video.profile import read_all
from firth.video.robust import HARD, Robust
from lumas import encoded

Floats = NDArray[np.float32]
Luma = NDArray[Any]
KEY = locator_key(None)
CARRIER = BlockCarrier(16, 4)
STEP, ROWS, COLUMNS = 40.0, 3, 5
HEIGHT, WIDTH = 192, 320


def seen(seed: int, pattern: int = 0, coefs: Floats | None = None) -> Seen:
    rng = np.random.default_rng(seed)
    shape = (ROWS * COLUMNS, CARRIER.n_coefs)
    own = rng.normal(0, 30, shape).astype(np.float32) if coefs is None else coefs
    phases = (rng.random(shape, np.float32) - 0.5).astype(np.float32)
    return Seen(own, rng.random(shape[0], np.float32), phases, pattern)


def around(frame: Seen) -> dict[int, Seen]:
    """Frames of which two carry the same, one is not recognised, and one is missing."""
    others = {offset: seen(20 + offset, pattern=offset % 16) for offset in context.OFFSETS}
    others[1] = seen(40, frame.pattern)
    others[-1] = seen(41, frame.pattern)
    others[2] = replace(others[2], phases=None, pattern=-1)
    del others[-4]
    return others


def said(frame: Seen, others: dict[int, Seen], llr: Floats) -> Floats:
    return network()(features(frame, others, llr, STEP, CARRIER, COLUMNS), llr)


def flipped(frame: Seen) -> Seen:
    """The same with every bit the other one: phases half a step further."""
    if frame.phases is None:
        return frame
    phases = frame.phases + np.float32(0.5)
    return replace(frame, phases=phases - np.rint(phases))


def mirrored(frame: Seen) -> Seen:
    phases = None if frame.phases is None else -frame.phases
    return replace(frame, coefs=-frame.coefs, phases=phases)


def llr_of(seed: int) -> Floats:
    shape = (ROWS * COLUMNS, CARRIER.n_coefs)
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def test_the_other_bit_changes_the_sign_and_nothing_else() -> None:
    frame, llr = seen(0), llr_of(1)
    others = around(frame)
    one = said(frame, others, llr)
    other = said(flipped(frame), {offset: flipped(it) for offset, it in others.items()}, -llr)
    assert np.abs(one).max() > 1
    np.testing.assert_allclose(other, -one, atol=2e-4)


def test_a_mirror_changes_nothing() -> None:
    frame, llr = seen(2), llr_of(3)
    others = around(frame)
    one = said(frame, others, llr)
    other = said(mirrored(frame), {offset: mirrored(it) for offset, it in others.items()}, llr)
    np.testing.assert_allclose(other, one, atol=2e-4)


def test_the_network_is_its_definition() -> None:
    """Coefficient by coefficient, in loops, in double precision."""
    frame, llr = seen(4), llr_of(5)
    given = features(frame, around(frame), llr, STEP, CARRIER, COLUMNS)
    net = network()
    fast = net(given, llr).reshape(-1)

    def layers(even: NDArray[np.float64], odd: NDArray[np.float64]) -> float:
        first = [max(0.0, e @ even + o @ odd + b) for e, o, b in zip(*weights[:3], strict=True)]
        second = [max(0.0, row @ np.array(first) + b) for row, b in zip(*weights[3:5], strict=True)]
        return float(weights[5] @ np.array(second))

    names = ("from_even", "from_odd", "bias", "between", "between_bias", "last")
    weights = [getattr(net, name).astype(np.float64) for name in names]
    worst = 0.0
    for at in range(fast.size):
        even, odd = given.even[:, at].astype(np.float64), given.odd[:, at].astype(np.float64)
        slow = float(net.gain) * float(llr.reshape(-1)[at]) + layers(even, odd) - layers(even, -odd)
        assert np.isfinite(slow)
        worst = max(worst, abs(slow - float(fast[at])))
    assert worst < 1e-3


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, llr = seen(6), llr_of(7)
    one = said(frame, around(frame), llr)
    monkeypatch.setattr(context, "CHUNK", 7)
    np.testing.assert_allclose(said(frame, around(frame), llr), one, atol=1e-4)


def test_what_stands_where_others_predict_it_is_believed_less() -> None:
    """Between frames that say the same, a coefficient was not coded; far from all of them it was."""
    shape = (ROWS * COLUMNS, CARRIER.n_coefs)
    coefs = np.random.default_rng(8).normal(0, 30, shape).astype(np.float32)
    frame = replace(seen(9, coefs=coefs), phases=np.full(shape, 0.05, np.float32))
    llr = np.full(shape, 1.5, np.float32)
    still = {offset: seen(50 + offset, pattern=offset % 16, coefs=coefs) for offset in context.OFFSETS}
    moved = {
        offset: replace(one, coefs=coefs + np.float32(0.6 * STEP) * np.sign(llr_of(60 + offset)))
        for offset, one in still.items()
    }
    assert np.median(said(frame, still, llr)) < 0.7 * np.median(said(frame, moved, llr))


def test_missing_frames_are_no_error() -> None:
    frame, llr = seen(10), llr_of(11)
    for others in ({}, {1: seen(12)}, {-1: replace(seen(13), phases=None, pattern=-1)}):
        assert np.isfinite(said(frame, others, llr)).all()


def test_weights_are_small_and_plain() -> None:
    with files("firth.video").joinpath(context.WEIGHTS).open("rb") as file:
        size = len(file.read())
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype == np.float16 for name in arrays.files)
            assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    assert size < 64 * 1024
    frame = seen(14)
    given: Features = features(frame, around(frame), llr_of(15), STEP, CARRIER, COLUMNS)
    assert given.even.shape[0] == network().from_even.shape[1]
    assert given.odd.shape[0] == network().from_odd.shape[1]


def film(n_frames: int) -> list[Luma]:
    """A ground that drifts slowly, and a box that moves over it."""
    rng = np.random.default_rng(5)
    ground = np.cumsum(np.cumsum(rng.normal(0, 1, (HEIGHT + 80, WIDTH + 80)), 0), 1)
    ground = 120 + 40 * ground / np.abs(ground).max()
    box = 12 * np.kron(rng.normal(0, 1, (12, 16)), np.ones((6, 6)))
    frames = []
    for t in range(n_frames):
        luma = ground[t // 2 : t // 2 + HEIGHT, t : t + WIDTH].copy()
        luma[40:112, 3 * t : 3 * t + 96] += box
        frames.append(np.clip(luma + rng.normal(0, 0.7, luma.shape), 16, 235).astype(np.uint8))
    return frames


def marked(profile: Robust, frames: list[Luma]) -> list[Luma]:
    info: Any = SimpleNamespace(height=HEIGHT, width=WIDTH, n_frames=len(frames), depth=8, path="film.mp4")
    size = profile.symbol_bytes(info, 0)
    cutter = Cutter(b"n" * (8 * size), size)
    change = profile.marker(info, cutter, KEY)
    return [change(frame.copy(), at) for at, frame in enumerate(frames)]


def found(profile: Robust, frames: list[Luma]) -> int:
    return len({symbol.symbol_id for symbol in read_all(profile.reader(KEY), frames)})


@pytest.mark.parametrize("spread", [False, True])
def test_frames_around_give_words_that_a_frame_alone_does_not(
    spread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HARD.wide is not None
    profile, crf = (replace(HARD.wide, rate=0.22), "30") if spread else (replace(HARD, rate=0.5), "31")
    after = encoded(marked(profile, film(48)), "libx264", {"crf": crf, "preset": "veryfast", "threads": "1"})
    with_others = found(HARD, after)
    monkeypatch.setattr(reading, "ENOUGH", -1.0)
    assert with_others > 1.3 * found(HARD, after)


def test_each_frame_can_be_read_by_itself() -> None:
    """The only frame of a film, and the last ones, which wait for others that never come."""
    profile = replace(HARD, rate=0.3)
    frames = marked(profile, film(6))
    assert found(HARD, frames[:1]) == 1
    reader = HARD.reader(KEY)
    at_once = [reader.read(frame) for frame in frames]
    assert [len(symbols) for symbols in at_once] == [0, 0, 0, 0, 1, 1]
    assert [len(symbols) for symbols in reader.finish()] == [1, 1, 1, 1]
    assert reader.finish() == []


def test_frames_of_another_size_end_the_waiting() -> None:
    profile = replace(HARD, rate=0.3)
    frames = marked(profile, film(2))
    smaller = [frame[:160] for frame in film(2)]
    reader = HARD.reader(KEY)
    assert not reader.read(frames[0]) and not reader.read(frames[1])
    assert len(reader.read(smaller[0])) == 2
    assert reader.finish() == [[]]


def test_pilots_tell_how_far_ratios_are_to_be_believed() -> None:
    rng = np.random.default_rng(3)
    for stretched in (0.5, 1.8):
        trust = context.Trust()
        for _ in range(40):
            bits = rng.integers(0, 2, 500).astype(np.uint8)
            true = rng.normal(1, np.sqrt(2), 500) * (1 - 2.0 * bits)  # ratios as they should be
            llr = (true * stretched).astype(np.float32)[:, None]
            after = trust.scaled(llr, np.arange(200), bits[:200])
        assert np.median(after / llr) * stretched == pytest.approx(1, abs=0.15)
