"""Small films made by the tests: textures that move, tones, subtitles, tags."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 25
AUDIO_RATE = 48_000
TICKS = 512  # a frame, in ticks of 1 / 12,800 s
TIME_BASE = Fraction(1, RATE * TICKS)


def clip(
    path: Path,
    *,
    width: int = 160,
    height: int = 120,
    n_frames: int = 12,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    languages: Sequence[str] = ("eng",),
    audio_first: bool = False,
    times: Sequence[int] | None = None,
    rotation: int | None = None,
    sample_aspect: Fraction | None = None,
    tags: dict[str, str] | None = None,
    chapters: bool = False,
    subtitles: Path | None = None,
    attachment: bytes | None = None,
    colours: int = 1,
    seed: int = 1,
) -> Path:
    """Write a film with B-frames, one audio stream a language, and what else is asked for.

    Args:
        times: of each frame, in ticks; by default one every ``TICKS``.
        colours: the number of all colour tags (1: bt709, limited range).
        subtitles: an .srt file whose packets go along.
    """
    with av.open(str(path), "w") as film:
        sounds = [_tone(film, language) for language in languages] if audio_first else []
        video = film.add_stream(codec, rate=RATE, options=options or {})
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        context: Any = video.codec_context
        context.time_base = video.time_base = TIME_BASE
        for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(context, tag, colours)
        if sample_aspect:
            context.sample_aspect_ratio = sample_aspect
        if rotation is not None:
            video.set_display_rotation(rotation)
        if not audio_first:
            sounds = [_tone(film, language) for language in languages]
        film.metadata.update(tags or {})
        if chapters:
            film.set_chapters(
                [
                    {
                        "id": 1,
                        "start": 0,
                        "end": 200,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": "A"},
                    }
                ]
            )
        if attachment is not None:
            film.add_attachment("font.ttf", "application/x-truetype-font", attachment)
        lines = _open_subtitles(film, subtitles)
        for frame_pos in range(n_frames):
            frame = picture(width, height, pixel_format, frame_pos, seed)
            frame.pts = times[frame_pos] if times else frame_pos * TICKS
            frame.time_base = TIME_BASE
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        for number, sound in enumerate(sounds):
            _sing(film, sound, 440 * (number + 1), n_frames)
        for packet in lines:
            film.mux(packet)
    return path


def picture(width: int, height: int, pixel_format: str, frame_pos: int, seed: int) -> Any:
    """A moving texture with noise in every plane."""
    chance = np.random.default_rng([seed, frame_pos])
    frame = av.VideoFrame(width, height, pixel_format)
    for number, plane in enumerate(frame.planes):
        bits = frame.format.components[number].bits
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        rows = rows.view("<u2") if bits > 8 else rows
        across = np.arange(rows.shape[1])[None]
        down = np.arange(rows.shape[0])[:, None]
        wave = 120 + 55 * np.sin((across + 3 * frame_pos * (number + 1)) / 9) + 30 * np.cos(down / 7)
        noise = chance.integers(-8, 9, rows.shape)
        rows[:] = np.clip((wave + noise) * 2 ** (bits - 8), 0, 2**bits - 1)
    return frame


def _tone(film: Any, language: str) -> Any:
    stream = film.add_stream("aac", rate=AUDIO_RATE)
    stream.codec_context.layout = "mono"
    stream.metadata["language"] = language
    return stream


def _sing(film: Any, stream: Any, pitch: int, n_frames: int) -> None:
    n_samples = AUDIO_RATE * n_frames // RATE
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(n_samples) / AUDIO_RATE).astype(np.float32)
    for start in range(0, n_samples, 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, start, Fraction(1, AUDIO_RATE)
        film.mux(stream.encode(frame))
    film.mux(stream.encode(None))


def _open_subtitles(film: Any, path: Path | None) -> list[Any]:
    if path is None:
        return []
    source = av.open(str(path))
    given = source.streams.subtitles[0]
    stream = film.add_stream_from_template(given, opaque=True)
    found = [packet for packet in source.demux(given) if packet.size]
    for packet in found:
        packet.stream = stream
    return found


def packet_hashes(path: Path) -> dict[int, list[tuple[float, str]]]:
    """Time (to the millisecond) and hash of every packet that is not of the film, by stream."""
    found: dict[int, list[tuple[float, str]]] = {}
    with av.open(str(path)) as film:
        for packet in film.demux():
            if packet.size and packet.stream.type != "video":
                time = round(float(packet.pts * packet.time_base), 3)
                found.setdefault(packet.stream.index, []).append(
                    (time, hashlib.blake2s(bytes(packet)).hexdigest())
                )
    return found


def decoded_planes(path: Path) -> list[list[Any]]:
    """Every plane of every frame, by a decoder with one thread and nothing of firth."""
    frames = []
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        stream.thread_type = "NONE"
        for frame in film.decode(stream):
            planes = []
            for number, plane in enumerate(frame.planes):
                wide = frame.format.components[number].bits > 8
                rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
                rows = rows[:, : plane.width * (2 if wide else 1)]
                planes.append(rows.copy().view("<u2") if wide else rows.copy())
            frames.append(planes)
    return frames


def frame_times(path: Path) -> list[float]:
    """Times of the frames, in seconds."""
    with av.open(str(path)) as film:
        return [float(frame.pts * frame.time_base) for frame in film.decode(video=0)]
