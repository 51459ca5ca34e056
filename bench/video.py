"""Files hidden by the robust profiles, and what is left of them behind a stranger's encoder.

    .venv/bin/python bench/video.py                # the table: about 6 minutes of one core
    .venv/bin/python bench/video.py --spread       # the same with codewords spread over 16 frames
    .venv/bin/python bench/video.py --runs 100     # so many runs a profile, fresh payload and key in each
    .venv/bin/python bench/video.py --vmaf         # VMAF at every strength
    .venv/bin/python bench/video.py --strangers 10000   # frames unmarked or of another key: false finds

Each row hides a payload of the size that the row asks for in a clip of 640 x 360, writes it as ``firth video
hide`` does (H.264, CRF 12), encodes that a second time by the channel, and takes the payload out again from
what is left, frame by frame. ``exact`` compares the bytes. ``rate`` is that of the codewords: the one
that the payload asks for or, as ``--survive`` does it, the next one that comes through. ``most`` is what the
symbols that came through would carry: different symbols x their bits / frames of the film.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from common import data_folder
from firth.errors import FormatError
from firth.video.erasure import Cutter, Joiner
from firth.video.frames import VideoInfo
from firth.video.metrics import Quality
from firth.video.payload import locator_key, pack, unpack
from firth.video.profile import STRENGTHS, read_all
from firth.video.robust import HARD, HIGH, PROFILES, WEB, Robust
from video_clips import AV1, OWN_ENCODE, X265, Channel, Frame, clips, encode, load, x264


@dataclass(frozen=True)
class Row:
    """A profile, a channel, and the bits a frame that are asked for."""

    profile: Robust
    channel: Channel
    bits: int


def about(frames: list[Frame]) -> VideoInfo:
    """What a profile wants to know of a cover."""
    height, width = frames[0][0].shape
    square = Fraction(1)
    return VideoInfo(Path(), "", "", width, height, "yuv420p", 8, square, len(frames), 0.0, 0, 0, 0)


FINE = WEB.holding(45, about([(np.zeros((360, 640), np.uint8),) * 3]))

SPREAD_ROWS = (
    Row(HIGH, x264("medium", 18), 6000),
    Row(WEB, x264("medium", 23), 2000),
    Row(FINE, x264("medium", 23), 1000),
    Row(HARD, x264("medium", 28), 400),
    Row(HARD, x264("veryfast", 28), 200),
    Row(HARD, X265, 200),
    Row(HARD, AV1, 200),
    Row(HARD, x264("medium", 28, dropped=0.25), 200),
    Row(HARD, x264("medium", 28, scale=0.75), 100),
)
ROWS = (
    Row(HIGH, x264("medium", 18), 5500),
    Row(WEB, x264("medium", 23), 1000),
    Row(FINE, x264("medium", 23), 500),
    Row(HARD, x264("medium", 28), 150),
    Row(HARD, x264("veryfast", 28), 80),
    Row(HARD, X265, 80),
    Row(HARD, AV1, 80),
    Row(HARD, x264("medium", 28, dropped=0.25), 100),
    Row(HARD, x264("medium", 28, scale=0.75), 50),
)


def hidden(
    frames: list[Frame], profile: Robust, blob: bytes, key: bytes, quality: Quality | None = None
) -> list[Frame]:
    """Marked frames, before any encoder, at the rate of ``profile``."""
    info = about(frames)
    change = profile.marker(info, Cutter(blob, profile.symbol_bytes(info, len(blob))), key)
    marked = []
    for frame_pos, (y, u, v) in enumerate(frames):
        after = change(y, frame_pos)
        if quality is not None:
            quality.add(y, after)
        marked.append((after, u, v))
    return marked


def found(frames: list[Frame], profile: Robust, key: bytes) -> tuple[Joiner, float]:
    """Symbols of frames, and the bit error rate before correction."""
    joiner, reader = Joiner(), profile.reader(key)
    for symbol in read_all(reader, (luma for luma, _, _ in frames)):
        joiner.add(symbol)
    return joiner, reader.bit_error_rate or 0.0


def exact(joiner: Joiner, payload: bytes, password: str | None) -> bool:
    """Whether the payload is there. Anything else than it or nothing ends the bench."""
    blob = joiner.blob()
    if blob is None:
        return False
    try:
        data = unpack(blob, password).data
    except FormatError:
        return False
    if data != payload:
        sys.exit("WRONG BYTES were returned")
    return True


def table(n_frames: int, only: str | None, spread: bool, names: list[str] | None) -> None:
    """Every row on every clip."""
    print(
        "clip | profile | channel | asked | exact | rate | most | PSNR | least | SSIM | "
        "flicker (cover) | BER | growth"
    )
    for name, make in clips(n_frames).items():
        if names is not None and name.split()[0] not in names:
            continue
        frames = make()
        plain = encode(frames, OWN_ENCODE)[1]
        written: dict[tuple[Robust, int], Written] = {}
        for row in SPREAD_ROWS if spread else ROWS:
            if only is not None and row.profile.name != only:
                continue
            profile = row.profile.spread_out(about(frames)) if spread else row.profile
            print(f"{name} | {_line(frames, profile, row, plain, written)}", flush=True)


@dataclass(frozen=True)
class Written:
    """A clip with something hidden, behind our own encode."""

    frames: list[Frame]
    payload: bytes
    quality: Quality
    growth: float


def _written(frames: list[Frame], profile: Robust, bits: int, plain: int) -> Written:
    payload = _payload(frames, bits)
    quality = Quality(8)
    marked = hidden(frames, profile, pack(payload), locator_key(None), quality)
    own, n_bytes = encode(marked, OWN_ENCODE)
    return Written(own, payload, quality, n_bytes / plain)


def _payload(frames: list[Frame], bits: int) -> bytes:
    return np.random.default_rng(bits).bytes(bits * len(frames) // 8)


def _line(
    frames: list[Frame], profile: Robust, row: Row, plain: int, written: dict[tuple[Robust, int], Written]
) -> str:
    """One row: its rates in turn, until the payload is there."""
    blob_bytes = len(pack(_payload(frames, row.bits)))
    ways = profile.ways(about(frames), blob_bytes)
    for way in ways:
        if (way, row.bits) not in written:
            written[way, row.bits] = _written(frames, way, row.bits, plain)
        one = written[way, row.bits]
        joiner, errors = found(row.channel.run(one.frames), profile, locator_key(None))
        right = exact(joiner, one.payload, None)
        if right:
            break
    else:
        if not ways:
            return f"{profile.name} | {row.channel.label} | {row.bits} | NO, too long a payload"
    most = 8 * way.layout(*frames[0][0].shape).symbol_bytes * joiner.found / len(frames)
    quality = one.quality
    flicker, cover_flicker = quality.flicker or (0.0, 0.0)
    return (
        f"{way.name} {way.psnr:g} dB | {row.channel.label} | {row.bits} | {'yes' if right else 'NO'} | "
        f"{way.rate:g} | {most:.0f} | {quality.psnr:.2f} | {quality.psnr_least:.2f} | "
        f"{quality.ssim or 0:.4f} | {flicker:.2f} ({cover_flicker:.2f}) | {errors:.3f} | {one.growth:.2f}"
    )


MADE_FOR = {
    "high": (x264("medium", 18), 5500, 6000),
    "web": (x264("medium", 23), 1000, 2000),
    "hard": (x264("medium", 28), 150, 400),
}
"""Channel, bits a frame, and those with codewords spread over frames."""

RUN_FRAMES = 24


def many(n_runs: int, only: str | None, spread: bool) -> None:
    """Fresh payloads, passwords and places in a clip, through the channel that a profile is made for."""
    films = [make() for make in clips(60).values()]
    for name, (channel, alone, spread_bits) in MADE_FOR.items():
        if only not in (None, name):
            continue
        right = [_run(run, films[run % len(films)], name, spread) for run in range(n_runs)]
        misses = [run for run, at in enumerate(right) if at is None]
        later = sum(at not in (None, 0) for at in right)
        label = f"{name}, spread" if spread else name
        print(
            f"{label}: {n_runs - len(misses)} of {n_runs} exact ({later} of them not at the first rate), "
            f"{spread_bits if spread else alone} bits a frame, {channel.label}, none wrong"
            + (f"; missed: runs {misses}" if misses else ""),
            flush=True,
        )


def _run(run: int, film: list[Frame], name: str, spread: bool) -> int | None:
    """Which of the rates came through, as ``--survive`` tries them, or ``None``."""
    channel, alone, spread_bits = MADE_FOR[name]
    rng = np.random.default_rng(run)
    n_frames = 2 * RUN_FRAMES if spread else RUN_FRAMES
    start = int(rng.integers(0, len(film) - n_frames + 1))
    frames, word = film[start : start + n_frames], f"word {run}"
    profile = PROFILES[name].spread_out(about(frames)) if spread else PROFILES[name]
    payload = rng.bytes((spread_bits if spread else alone) * n_frames // 8 - 40)
    blob, key = pack(payload, None, word), locator_key(word)
    for at, way in enumerate(profile.ways(about(frames), len(blob))):
        own = encode(hidden(frames, way, blob, key), OWN_ENCODE)[0]
        if exact(found(channel.run(own), PROFILES[name], key)[0], payload, word):
            return at
    return None


def strangers(n_frames: int) -> None:
    """Frames without a mark, and with one of another key: how many give a symbol."""
    films = [frame for make in clips(40).values() for frame in make()]
    rng = np.random.default_rng(0)
    marked = {
        profile.name: hidden(films[:40], profile, b"secret" * 50, locator_key("a"))
        for profile in PROFILES.values()
    }
    for profile in PROFILES.values():
        false = matched = done = 0
        while done < n_frames:
            key = rng.bytes(32)
            reader = profile.reader(key)
            lumas = [luma for luma, _, _ in (*films, *marked[profile.name])]
            false += len(list(read_all(reader, lumas)))
            done += len(lumas)
            matched += reader.n_matched
        print(f"{profile.name}: {false} false finds in {done:,} frames; {matched} looked like a pattern")


def vmaf(n_frames: int) -> None:
    """VMAF of marked frames against the cover, before any encoder, at every strength."""
    try:
        import torch
        from vmaf_torch import VMAF
    except ModuleNotFoundError:
        sys.exit("bench: --vmaf needs a tool that computes it: pip install vmaf-torch")
    scorer = VMAF(temporal_pooling=True, clip_score=True)

    def stacked(frames: list[Frame]) -> torch.Tensor:
        return torch.from_numpy(np.stack([luma for luma, _, _ in frames])[:, None].astype(np.float32))

    print("clip | profile | PSNR | SSIM | flicker (cover) | VMAF")
    for name, make in clips(n_frames).items():
        frames = make()
        for one in PROFILES.values():
            for psnr in STRENGTHS:
                held = one.holding(psnr, about(frames))
                for form in (held, held.wide):
                    assert form is not None
                    profile, quality = replace(form, psnr=psnr), Quality(8, every=1)
                    marked = hidden(frames, profile, b"v" * 200, locator_key(None), quality)
                    with torch.no_grad():
                        score = float(scorer(stacked(frames), stacked(marked)))
                    flicker = quality.flicker or (0.0, 0.0)
                    label = f"{profile.name}{', spread' if profile.spread > 1 else ''} {psnr:g} dB"
                    print(
                        f"{name} | {label} | {quality.psnr:.2f} | {quality.ssim or 0:.4f} | "
                        f"{flicker[0]:.2f} ({flicker[1]:.2f}) | {score:.1f}",
                        flush=True,
                    )


def speed() -> None:
    """CPU frames a second: hiding and reading beside the encoder and decoder between which they stand."""
    print("CPU frames a second on one thread, bigbuckbunny")
    for size in ((960, 540), (1920, 1080)):
        frames = load(data_folder() / "video" / "bigbuckbunny.mp4", size, 20, 16)
        rates = {name: _speeds(profile, frames) for name, profile in PROFILES.items()}
        options = {"preset": "medium", "crf": "12", "tune": "grain", "bf": "0", "threads": "1"}
        codec = _timed(partial(encode, frames, Channel("", "libx264", options)), len(frames))
        said = [f"{name}: hide {hide:.1f}, read {read:.1f}" for name, (hide, read) in rates.items()]
        print(f"{size[0]}x{size[1]}: " + "; ".join(said) + f"; own encode and decode {codec:.1f}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process, clips included: {peak:.0f} MiB")


def _speeds(profile: Robust, frames: list[Frame]) -> tuple[float, float]:
    key = locator_key(None)
    blob = np.random.default_rng(0).bytes(400)
    marked = hidden(frames, profile, blob, key)  # compiles, and makes the patterns
    behind = x264("medium", 23).run(marked)
    found(behind[:1], profile, key)
    hide = _timed(partial(hidden, frames, profile, blob, key), len(frames))
    return hide, _timed(partial(found, behind, profile, key), len(frames))


def _timed(work: Callable[[], object], count: int) -> float:
    began = time.process_time()
    work()
    return count / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, help="frames of each clip; 72, with --spread 112")
    parser.add_argument("--only", choices=list(PROFILES), help="rows of this profile alone")
    parser.add_argument("--spread", action="store_true", help="codewords spread over 16 frames")
    parser.add_argument("--clip", nargs="+", help="these clips alone")
    parser.add_argument("--runs", type=int, help="so many runs a profile instead of the table")
    parser.add_argument("--strangers", type=int, help="so many frames a profile that carry nothing to find")
    parser.add_argument("--vmaf", action="store_true", help="VMAF in place of the table (needs vmaf-torch)")
    parser.add_argument("--speed", action="store_true", help="CPU frames a second instead of the table")
    given = parser.parse_args()
    if given.runs:
        many(given.runs, given.only, given.spread)
    elif given.strangers:
        strangers(given.strangers)
    elif given.vmaf:
        vmaf(given.frames or 8)
    elif given.speed:
        speed()
    else:
        table(given.frames or (112 if given.spread else 72), given.only, given.spread, given.clip)


if __name__ == "__main__":
    main()
