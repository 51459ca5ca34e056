"""The lossless profile of firth video: bits a frame, file growth, steganalysis, false finds, speed, memory.

    python bench/video_lossless.py                      # everything, about four minutes on two cores
    python bench/video_lossless.py --part speed memory
    python bench/video_lossless.py --json               # the figures for programs; the tables go to stderr

Films are those of the data folder, scaled to 640x360 (960x540 and 1920x1080 for speed). Nothing is printed
of a file whose payload did not come back exact. CPU seconds are of the whole process, all threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import common
from firth import video
from firth.video.codecs import LOSSLESS
from firth.video.erasure import Cutter
from firth.video.frames import decoded, load_av, luma_frames, open_video, packets, probe
from firth.video.lossless import Lossless
from firth.video.steganalysis import detection_error, sample_pairs

Row = dict[str, Any]
"""Figures by name, as ``--json`` prints them."""

FILMS = ("bigbuckbunny.mp4", "flower.mp4", "friday.mp4")
SIZE = (640, 360)
SPEED_SIZES = ((960, 540), (1920, 1080))
RATES = (0.05, 0.2, 0.4, 1.0)

HIDE = """
import json, os, sys
from firth import video
cover, out = sys.argv[1:]
done = video.hide(cover, os.urandom(20_000), out, password="bench")
found = video.extract(out, password="bench")
print(json.dumps({"frames": done.n_frames, "exact": found.data is not None and len(found.data) == 20_000}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--frames", type=int, default=60, help="of each film, at most")
    parser.add_argument("--draws", type=int, default=10_000, help="extractions that must find nothing")
    parser.add_argument("--rounds", type=int, default=5, help="of the timings, whose medians are printed")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, part -> rows")
    settings = parser.parse_args()
    rows: dict[str, list[Row]] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.redirect_stdout(sys.stderr if settings.json else sys.stdout),
    ):
        print(common.machine())
        for part in settings.part:
            print(f"\n{part}")
            rows[part] = PARTS[part](Path(name), settings)
    if settings.json:
        print(json.dumps({"machine": common.machine(), **rows}, indent=2))


def scaled(film: str, folder: Path, size: tuple[int, int], n_frames: int) -> Path:
    """The first frames of a film in another size, without loss of what scaling left, and without sound."""
    out = folder / f"{Path(film).stem}.{size[0]}x{size[1]}.{n_frames}.mkv"
    if out.exists():
        return out
    av = load_av()
    source, given = open_video(common.data_folder() / "video" / film)
    with source, av.open(str(out), "w") as target:
        stream = target.add_stream(
            "libx264", rate=given.average_rate, options={"crf": "16", "preset": "fast"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame_pos, frame in enumerate(_frames(source, given)):
            if frame_pos == n_frames:
                break
            small = frame.reformat(width=size[0], height=size[1], format="yuv420p", interpolation="LANCZOS")
            small.pict_type, small.pts, small.time_base = 0, frame_pos, 1 / given.average_rate
            target.mux(stream.encode(small))
        target.mux(stream.encode(None))
    return out


def _frames(source: Any, stream: Any) -> Iterator[Any]:
    for packet in packets(source, stream):
        yield from decoded(packet)


def bits(folder: Path, settings: argparse.Namespace) -> list[Row]:
    """Full films in every codec: bits a frame, distortion, growth."""
    print(f"{'film':14} {'rate':>5} {'codec':>6} {'bits/frame':>10} {'PSNR':>6} {'SSIM':>6} {'growth':>6}")
    rows: list[Row] = []
    for film in FILMS:
        cover = scaled(film, folder, SIZE, settings.frames)
        plain = {name: _recoded(cover, folder, name) for name in LOSSLESS}
        for rate in (0.4, 1.0):
            for codec in LOSSLESS if rate == 0.4 else ("ffv1",):
                room = video.capacity(cover, rate=rate)[0]
                payload = os.urandom(room.n_bytes)
                done = video.hide(
                    cover, payload, folder / "out.mkv", rate=rate, codec=codec, password="bench", force=True
                )
                if video.extract(done.path, password="bench").data != payload:
                    sys.exit(f"bench: {film} in {codec} did not come back exact")
                growth = done.n_bytes / plain[codec]
                rows.append(
                    {"film": Path(film).stem, "rate": rate, "codec": codec, "growth": growth}
                    | {"bits_per_frame": room.bits_per_frame, "psnr": done.psnr, "ssim": done.ssim}
                )
                print(
                    f"{Path(film).stem:14} {rate:>5.2f} {codec:>6} {room.bits_per_frame:>10,.0f} "
                    f"{done.psnr:>6.2f} {done.ssim:>6.4f} {growth:>6.2f}"
                )
    print("growth: over the same film in the same lossless codec with one byte in it")
    return rows


def _recoded(cover: Path, folder: Path, codec: str) -> int:
    """Bytes of the cover in a lossless codec with a single byte hidden in it."""
    done = video.hide(cover, b"x", folder / "plain.mkv", rate=0.01, codec=codec, force=True)
    return done.n_bytes


def steganalysis(folder: Path, settings: argparse.Namespace) -> list[Row]:
    """Sample pairs on covers, on replaced and on matched lowest bits."""
    chance = np.random.default_rng(0)
    print("sample pairs: estimated rate, and P_E of the best threshold (.5 is a coin)")
    print(
        f"{'film':14} {'rate':>5} {'cover':>7} {'replaced':>9} {'firth':>7} {'P_E repl.':>9} {'P_E firth':>9}"
    )
    rows: list[Row] = []
    for film in FILMS:
        cover = scaled(film, folder, SIZE, settings.frames)
        info, frames = probe(cover), list(luma_frames(cover))
        clean = [sample_pairs(luma) for luma in frames]
        for rate in RATES:
            mark = _marker(Lossless(rate), info)
            ours = [sample_pairs(mark(luma.copy(), number)) for number, luma in enumerate(frames)]
            replaced = [sample_pairs(_replaced(luma, rate, chance)) for luma in frames]
            errors = detection_error(clean, replaced), detection_error(clean, ours)
            means = float(np.mean(clean)), float(np.mean(replaced)), float(np.mean(ours))
            rows.append(
                {"film": Path(film).stem, "rate": rate}
                | dict(zip(("estimated_cover", "estimated_replaced", "estimated_firth"), means, strict=True))
                | {"p_e_replaced": float(errors[0]), "p_e_firth": float(errors[1])}
            )
            print(
                f"{Path(film).stem:14} {rate:>5.2f} {means[0]:>7.3f} {means[1]:>9.3f} "
                f"{means[2]:>7.3f} {errors[0]:>9.3f} {errors[1]:>9.3f}"
            )
    return rows


def _replaced(luma: Any, rate: float, chance: np.random.Generator) -> Any:
    drawn = chance.integers(0, 2, luma.shape, dtype=np.uint8)
    return np.where(chance.random(luma.shape) < rate, luma & 0xFE | drawn, luma)


def _marker(profile: Lossless, info: Any, key: bytes = bytes(32)) -> Callable[[Any, int], Any]:
    """Fills frames to the rate."""
    blob = os.urandom(profile.most_bytes(info))
    return profile.marker(info, Cutter(blob, profile.symbol_bytes(info, len(blob))), key)


def false_finds(folder: Path, settings: argparse.Namespace) -> list[Row]:
    """Frames that carry nothing, and frames of another key."""
    half = settings.draws // 2
    lumas = [luma for film in FILMS for luma in luma_frames(scaled(film, folder, SIZE, settings.frames))]
    mark = _marker(Lossless(), probe(scaled(FILMS[0], folder, SIZE, settings.frames)), os.urandom(32))
    marked = [mark(luma.copy(), number % settings.frames) for number, luma in enumerate(lumas)]
    rows: list[Row] = []
    for what, frames in (("unmarked", lumas), ("wrong key", marked)):
        found = 0
        n_keys = -(-half // len(frames))
        done = 0
        for _ in range(n_keys):
            reader = Lossless().reader(os.urandom(32))
            for luma in frames[: half - done]:
                found += len(reader.read(luma))
                done += 1
        print(f"{what}: {found} found in {done:,} extractions with {n_keys} keys")
        rows.append({"frames": what, "found": found, "extractions": done, "keys": n_keys})
        if found:
            sys.exit("bench: a false find")
    return rows


def speed(folder: Path, settings: argparse.Namespace) -> list[Row]:
    """CPU frames a second of hiding and taking out, between the decoder and the encoder they sit between."""
    print(f"CPU frames a second, rate .4, FFV1; medians of {settings.rounds} rounds in turn")
    names = ("decode H.264", "hide", "encode FFV1", "decode FFV1", "take out")
    print(f"{'size':>10}", *(f"{name:>12}" for name in names))
    found: list[Row] = []
    for size in SPEED_SIZES:
        cover = scaled(FILMS[0], folder, size, 16)
        info, frames = probe(cover), list(luma_frames(cover))
        out = folder / "speed.mkv"
        video.hide(cover, os.urandom(video.capacity(cover)[0].n_bytes), out, force=True)
        mark, reader = _marker(Lossless(), info), Lossless().reader(bytes(32))
        marked = [mark(luma.copy(), number) for number, luma in enumerate(frames)]
        if not all(reader.read(luma) for luma in marked):
            sys.exit("bench: a frame did not come back")
        jobs: dict[str, Callable[[], object]] = {
            "decode": lambda cover=cover: sum(1 for _ in luma_frames(cover)),
            "hide": lambda mark=mark, frames=frames: [mark(luma.copy(), n) for n, luma in enumerate(frames)],
            "encode": _encoding(out),
            "decode FFV1": lambda out=out: sum(1 for _ in luma_frames(out)),
            "take out": lambda reader=reader, marked=marked: [reader.read(luma) for luma in marked],
        }
        rates: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(settings.rounds):
            for name, job in jobs.items():
                began = time.process_time()
                job()
                rates[name].append(len(frames) / (time.process_time() - began))
        medians = {name: statistics.median(each) for name, each in rates.items()}
        found.append({"width": size[0], "height": size[1], "frames_per_cpu_second": medians})
        print(f"{size[0]:>5}x{size[1]:<4}", *(f"{median:>12.0f}" for median in medians.values()))
    return found


def _encoding(path: Path) -> Callable[[], object]:
    """FFV1 as firth sets it, of frames in memory."""
    source, stream = open_video(path)
    with source:
        frames = list(_frames(source, stream))
        rate = stream.average_rate
    ffv1 = LOSSLESS["ffv1"]

    def encode() -> None:
        av = load_av()
        context = av.CodecContext.create(ffv1.codec, "w")
        context.width, context.height, context.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        context.time_base, context.gop_size = 1 / rate, 1
        context.options = dict(ffv1.options)
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base, frame.pict_type = number, 1 / rate, 0
            context.encode(frame)
        context.encode(None)

    return encode


def memory(folder: Path, settings: argparse.Namespace) -> list[Row]:
    """Peak memory of hiding and taking out, as the film grows eight times as long."""
    print(f"{'film':>22} {'peak MB':>8} {'anonymous':>9} {'CPU s':>6}")
    once = scaled(FILMS[0], folder, SIZE, 50)
    peaks, rows = [], []
    for times in (1, 8):
        cover = folder / f"long{times}.mkv"
        _repeated(once, cover, times)
        run = common.run([sys.executable, "-c", HIDE, str(cover), str(folder / f"hidden{times}.mkv")])
        if not run.report["exact"]:
            sys.exit("bench: the payload did not come back")
        peaks.append(run.peak_anonymous_bytes)
        rows.append(
            {"frames": run.report["frames"], "peak_bytes": run.peak_bytes, "cpu_s": run.cpu_s}
            | {"peak_anonymous_bytes": run.peak_anonymous_bytes}
        )
        print(
            f"{run.report['frames']:>7} frames 640x360 {run.peak_bytes / 1e6:>8.0f} "
            f"{run.peak_anonymous_bytes / 1e6:>9.0f} {run.cpu_s:>6.1f}"
        )
    print(f"eight times as long: {100 * (peaks[1] / peaks[0] - 1):+.0f} % anonymous memory")
    return rows


def _repeated(source: Path, target: Path, times: int) -> None:
    """A film over and over."""
    av = load_av()
    film, given = open_video(source)
    with film:
        frames, rate = list(_frames(film, given)), given.average_rate
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        for number in range(times * len(frames)):
            frame = frames[number % len(frames)]
            frame.pict_type, frame.pts, frame.time_base = 0, number, 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[Row]]] = {
    "bits": bits,
    "steganalysis": steganalysis,
    "false_finds": false_finds,
    "speed": speed,
    "memory": memory,
}

if __name__ == "__main__":
    main()
