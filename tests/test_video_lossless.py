"""The lossless profile on planes of numbers: exact, each frame by itself, and never by replacing bits."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firth.errors import SettingError, ShapeError
from firth.video.erasure import Cutter, Joiner
from firth.video.frames import VideoInfo
from firth.video.lossless import FRAME_OVERHEAD_BYTES, Lossless, matched, rate_for_psnr
from firth.video.metrics import Quality, psnr, ssim
from firth.video.payload import locator_key
from firth.video.steganalysis import detection_error, sample_pairs

KEY = bytes(range(32))


def film(width: int, height: int, n_frames: int, depth: int = 8) -> VideoInfo:
    return VideoInfo(
        Path("film"), "", "", width, height, "", depth, Fraction(1), n_frames, n_frames / 25, 1, 0, 0
    )


def textures(info: VideoInfo, seed: int = 0) -> list[Any]:
    """Smooth planes with noise, as cameras give."""
    chance = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(info.width), np.arange(info.height))
    scale = 2 ** (info.depth - 8)
    frames = []
    for frame_pos in range(info.n_frames):
        smooth = 120 + 60 * np.sin((across + 5 * frame_pos) / 17) + 40 * np.cos(down / 11 + frame_pos)
        noisy = scale * smooth + chance.normal(0, 3 * scale, smooth.shape)
        frames.append(np.clip(noisy, 0, (1 << info.depth) - 1).astype(np.uint8 if scale == 1 else np.uint16))
    return frames


def hidden(profile: Lossless, info: VideoInfo, blob: bytes, frames: list[Any], key: bytes = KEY) -> list[Any]:
    cutter = Cutter(blob, profile.symbol_bytes(info, len(blob)))
    mark = profile.marker(info, cutter, key)
    return [mark(luma.copy(), frame_pos) for frame_pos, luma in enumerate(frames)]


def taken_out(frames: list[Any], key: bytes = KEY) -> tuple[bytes | None, Joiner]:
    reader, joiner = Lossless().reader(key), Joiner()
    for luma in frames:
        for symbol in reader.read(luma):
            joiner.add(symbol)
    return joiner.blob(), joiner


@pytest.mark.parametrize(
    ("width", "height", "depth", "rate"),
    [
        (64, 48, 8, 0.4),
        (64, 48, 8, 1.0),
        (61, 43, 8, 0.7),
        (64, 48, 10, 0.4),
        (33, 21, 12, 1.0),
        (97, 9, 8, 1),
    ],
)
def test_a_full_film_comes_back(width: int, height: int, depth: int, rate: float) -> None:
    info, profile = film(width, height, 6, depth), Lossless(rate)
    blob = np.random.default_rng(1).bytes(profile.most_bytes(info))
    frames = textures(info)
    marked = hidden(profile, info, blob, frames)
    found, joiner = taken_out(marked)
    assert found == blob and joiner.needed == 6
    assert all(after.dtype == before.dtype for before, after in zip(frames, marked, strict=True))
    change = np.stack(marked).astype(int) - np.stack(frames)
    assert set(np.unique(change)) == {-1, 0, 1}
    # A share of rate / 2 of the samples moves, half of them up.
    assert np.mean(change != 0) == pytest.approx(rate / 2, abs=0.04)
    assert np.mean(change[change != 0]) == pytest.approx(0, abs=0.1)


def test_what_a_frame_of_640_by_360_holds() -> None:
    info = film(640, 360, 10)
    assert 8 * Lossless().most_bytes(info) / 10 >= 90_000
    assert 8 * Lossless(1).most_bytes(info) / 10 >= 230_000


def test_bits_are_matched_and_not_replaced() -> None:
    """Replacement only ever moves even values up and odd values down; here both go both ways."""
    values = np.repeat(np.array([100, 101], np.uint8), 5000)
    after = matched(values, np.random.default_rng(0).integers(0, 2, 10_000).astype(np.uint8), 255)
    for value in (100, 101):
        found = np.bincount(after[values == value], minlength=103)
        assert found[value - 1] > 1000 and found[value + 1] > 1000
        assert found[value] == pytest.approx(2500, abs=250)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 1023)])
def test_the_ends_of_the_scale(dtype: type, top: int) -> None:
    values = np.array([0] * 500 + [top] * 500, dtype)
    bits = np.tile(np.array([0, 1], np.uint8), 500)
    after = matched(values, bits, top)
    assert after.dtype == dtype and np.array_equal(after & 1, bits)
    assert after[:500].max() <= 1 and after[500:].min() >= top - 1


def test_frames_cost_only_themselves() -> None:
    """Dropped, repeated, reordered, among strange ones: what is left is enough, or it is not."""
    info, profile = film(64, 48, 20), Lossless()
    blob = np.random.default_rng(2).bytes(12 * profile.frame_bytes(info))
    frames = textures(info)
    marked = hidden(profile, info, blob, frames)
    chance = np.random.default_rng(3)
    for _ in range(5):
        kept = [marked[number] for number in chance.permutation(20)[:12]]
        found, joiner = taken_out([frames[0], *kept, kept[3], frames[5][:40], np.zeros((300, 2), np.uint8)])
        assert found is not None and found[: len(blob)] == blob and joiner.found == 12
    found, joiner = taken_out(marked[:11])
    assert found is None and (joiner.found, joiner.needed, joiner.missing) == (11, 12, 1)


def test_a_small_payload_stands_in_every_frame_whole() -> None:
    info, profile = film(64, 48, 8), Lossless()
    marked = hidden(profile, info, b"a short note..", textures(info))
    for luma in marked:
        found, joiner = taken_out([luma])
        assert found == b"a short note.." and joiner.needed == 1
    assert np.mean(marked[0] != textures(info)[0]) < 0.07  # and moves no more than it needs


def test_the_same_symbol_never_looks_the_same() -> None:
    """Two frames with one content and one symbol share neither places nor bits."""
    info, profile = film(128, 96, 40), Lossless()
    blank = [np.full((96, 128), 100, np.uint8)] * 40
    marked = np.stack(hidden(profile, info, b"\0" * 60, blank)).astype(int)
    moved = marked != 100
    # A sample moves in some frames and rests in most: no place is fixed.
    assert moved.mean(0).max() < 0.45
    assert np.mean(moved[1:] & moved[:-1]) < 4 * moved.mean() ** 2


def test_a_damaged_record_is_not_taken() -> None:
    info, profile = film(64, 48, 4), Lossless(1)
    blob = np.random.default_rng(5).bytes(profile.most_bytes(info))
    marked = hidden(profile, info, blob, textures(info))
    marked[1][20, 30] ^= 1
    reader = profile.reader(KEY)
    assert [len(reader.read(luma)) for luma in marked] == [1, 0, 1, 1]
    # The bit was in the record, or in its head or number; then the frame looks unmarked.
    assert (reader.n_read, reader.n_damaged) in {(3, 1), (3, 0)}


def test_the_bit_error_rate_is_told_from_damaged_records() -> None:
    info, profile = film(64, 48, 60), Lossless(1)
    blob = np.random.default_rng(6).bytes(profile.most_bytes(info))
    marked = hidden(profile, info, blob, textures(info))
    reader = profile.reader(KEY)
    assert reader.bit_error_rate is None
    reader.read(marked[0])
    assert reader.bit_error_rate == 0.0
    chance = np.random.default_rng(7)
    rate = 0.0003
    for luma in marked:
        reader.read(luma ^ (chance.random(luma.shape) < rate).astype(np.uint8))
    assert reader.bit_error_rate == pytest.approx(rate, rel=0.7)


def test_no_false_find() -> None:
    """The short form of bench/video_lossless.py, which does 10,000."""
    info, profile = film(64, 48, 150), Lossless()
    frames = textures(info)
    marked = hidden(profile, info, b"x" * 100, frames)
    wrong = [profile.reader(locator_key(None)), *(profile.reader(bytes([n]) * 32) for n in range(2))]
    assert not any(reader.read(luma) for reader in wrong for luma in marked)
    assert not any(profile.reader(KEY).read(luma) for luma in frames)
    noise = np.random.default_rng(8).integers(0, 256, (150, 48, 64)).astype(np.uint8)
    assert not any(reader.read(luma) for reader in wrong for luma in noise)


def test_sample_pairs_see_replacement_and_not_matching() -> None:
    info = film(160, 120, 24)
    frames = textures(info)
    rate = 0.4
    marked = hidden(Lossless(rate), info, bytes(Lossless(rate).most_bytes(info)), frames)
    chance = np.random.default_rng(9)
    replaced = [
        np.where(chance.random(luma.shape) < rate, luma & 0xFE | chance.integers(0, 2, luma.shape), luma)
        for luma in frames
    ]
    scores = {
        name: [sample_pairs(luma) for luma in kind]
        for name, kind in (("cover", frames), ("replaced", replaced), ("matched", marked))
    }
    assert np.mean(scores["replaced"]) == pytest.approx(rate, abs=0.1)
    assert abs(np.mean(scores["matched"])) < 0.1 and abs(np.mean(scores["cover"])) < 0.1
    assert detection_error(scores["cover"], scores["replaced"]) < 0.05
    assert detection_error(scores["cover"], scores["matched"]) > 0.3


def test_detection_error() -> None:
    assert detection_error([0, 1, 2], [3, 4, 5]) == 0
    assert detection_error([0, 1, 2, 3], [0, 1, 2, 3]) == 0.5
    assert detection_error([0, 1, 2, 9], [3, 4, 5, 6]) == 0.125
    assert detection_error([3, 4], [0, 1]) == 0.5  # the other way round is no detector


def test_rates_and_their_psnr() -> None:
    info = film(160, 120, 3)
    for target, depth in ((55.0, 8), (52.0, 8), (66.0, 10)):
        own = replace(info, depth=depth)
        profile = Lossless(1).holding(target, own)
        assert profile.rate == rate_for_psnr(target, depth) < 1
        frames = textures(own)
        marked = hidden(profile, own, np.random.default_rng(0).bytes(profile.most_bytes(own)), frames)
        quality = Quality(depth)
        for before, after in zip(frames, marked, strict=True):
            quality.add(before, after)
        assert quality.psnr == pytest.approx(target, abs=0.15)
    assert Lossless(0.1).holding(40, info).rate == 0.1
    for rate in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(SettingError, match="rate must be above 0"):
            Lossless(rate)


def test_frames_too_small() -> None:
    info = film(16, 16, 5)
    assert Lossless().most_bytes(info) == 0
    assert 8 * FRAME_OVERHEAD_BYTES > 0.4 * 256
    with pytest.raises(SettingError, match="too small to carry anything"):
        Lossless().symbol_bytes(info, 100)
    assert Lossless().reader(KEY).read(np.zeros((4, 4), np.uint8)) == []


def test_many_frames() -> None:
    """Counts of symbols beyond 512 are rounded; a full film must still fit."""
    info = film(40, 16, 1027)
    profile = Lossless(1)
    blob = bytes(profile.most_bytes(info))
    cutter = Cutter(blob, profile.symbol_bytes(info, len(blob)))
    assert 1020 <= cutter.n_source <= 1027
    for need in (1, 999, len(blob) // 2, len(blob) - 1):
        assert Cutter(blob[:need], profile.symbol_bytes(info, need)).n_source <= 1027


def test_psnr_and_ssim() -> None:
    before = textures(film(48, 32, 1))[0]
    after = before.copy()
    after[0, 0] ^= 16
    assert psnr(before, before) == np.inf and ssim(before, before) == pytest.approx(1)
    assert psnr(before, after) == pytest.approx(10 * np.log10(255**2 / (256 / (48 * 32))))
    noisy = np.clip(before + np.random.default_rng(0).normal(0, 10, before.shape), 0, 255).astype(np.uint8)
    assert ssim(before, noisy) == pytest.approx(_slow_ssim(before, noisy), abs=1e-4)
    assert ssim(before, noisy) < 0.9
    with pytest.raises(ShapeError, match="one shape"):
        psnr(before, after[1:])
    with pytest.raises(ShapeError, match="at least 11 x 11"):
        ssim(before[:10], after[:10])


def _slow_ssim(x: Any, y: Any) -> float:
    """The formula of Wang et al., window by window, in float64."""
    places = np.arange(11) - 5
    window = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a = x[top : top + 11, left : left + 11].astype(float)
            b = y[top : top + 11, left : left + 11].astype(float)
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            common = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 6.5025)
                * (2 * common + 58.5225)
                / ((mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225))
            )
    return float(np.mean(values))


def test_flicker_is_the_change_of_the_change() -> None:
    still = [np.full((16, 16), 100 + 3 * number, np.uint8) for number in range(4)]
    steady, jumping = Quality(8, every=1), Quality(8, every=1)
    for number, before in enumerate(still):
        steady.add(before, before + 2)
        jumping.add(before, before + 2 * (number % 2))
    assert steady.flicker == pytest.approx((0, 3)) and jumping.flicker == pytest.approx((2, 3))
    assert Quality(8).flicker is None and Quality(8).ssim is None
    assert steady.psnr == steady.psnr_least == pytest.approx(10 * np.log10(255**2 / 4))
    assert jumping.psnr == pytest.approx(10 * np.log10(255**2 / 2)) and jumping.psnr_least == steady.psnr
