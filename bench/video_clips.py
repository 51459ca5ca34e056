"""Clips for the video benches, and encoders between them: luma and chroma planes in memory, PyAV around."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from common import data_folder

Plane = NDArray[np.uint8]
Frame = tuple[Plane, Plane, Plane]
"""Y, U and V of a frame of 4:2:0."""

REAL = ("bigbuckbunny.mp4", "flower.mp4", "friday.mp4")
OWN = MappingProxyType({"crf": "12", "preset": "medium", "tune": "grain", "bf": "0"})
"""What ``firth video hide`` writes for the robust profiles."""


def load(path: Path, size: tuple[int, int], start: int, count: int) -> list[Frame]:
    """Frames of a file, scaled to ``size`` (width, height)."""
    frames = []
    with av.open(str(path)) as file:
        for number, frame in enumerate(file.decode(video=0)):
            if number >= start + count:
                break
            if number >= start:
                scaled = frame.reformat(*size, format="yuv420p", interpolation="LANCZOS")
                frames.append(planes(scaled))
    return frames


def clips(count: int, size: tuple[int, int] = (640, 360)) -> dict[str, Callable[[], list[Frame]]]:
    """Name -> a maker of its frames: three films of the shared data, and two made here."""
    folder = data_folder() / "video"
    makers: dict[str, Callable[[], list[Frame]]] = {
        Path(name).stem: lambda name=name: load(folder / name, size, 20, count)  # type: ignore[misc]
        for name in REAL
    }
    makers["texture (made)"] = lambda: texture(count, size)
    makers["cartoon (made)"] = lambda: cartoon(count, size)
    return makers


def texture(count: int, size: tuple[int, int]) -> list[Frame]:
    """Rough texture that moves over a gradient, with grain that changes in every frame."""
    width, height = size
    rng = np.random.default_rng(1)
    rough = np.kron(rng.normal(0, 1, (height // 4 + 40, width // 4 + 60)), np.ones((4, 4)))
    y, x = np.mgrid[:height, :width]
    frames = []
    for t in range(count):
        moved = rough[t : t + height, 2 * t : 2 * t + width]
        luma = 110 + 50 * np.sin((x + t) / 90) + 40 * y / height + 8 * moved
        frames.append(_frame(luma + rng.normal(0, 2, luma.shape)))
    return frames


def cartoon(count: int, size: tuple[int, int]) -> list[Frame]:
    """Flat shapes with sharp edges; a scene lasts two seconds, then everything is another."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    frames = []
    for t in range(count):
        rng = np.random.default_rng(t // 50)
        luma = np.full((height, width), rng.uniform(60, 190))
        for _ in range(12):
            cx, cy, radius, speed = rng.uniform((0, 0, 20, -4), (width, height, 90, 4))
            luma[(x - cx - speed * (t % 50)) ** 2 + (y - cy) ** 2 < radius**2] = rng.uniform(20, 230)
        frames.append(_frame(luma))
    return frames


def _frame(luma: NDArray[Any]) -> Frame:
    height, width = luma.shape
    grey = np.full((height // 2, width // 2), 128, np.uint8)
    return np.clip(np.rint(luma), 16, 235).astype(np.uint8), grey, grey


def planes(frame: av.VideoFrame) -> Frame:
    """Copies of the three planes without their padding."""
    y, u, v = (
        np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width].copy()
        for plane in frame.planes
    )
    return y, u, v


def _wrapped(frame: Frame) -> av.VideoFrame:
    height, width = frame[0].shape
    wrapped = av.VideoFrame(width, height, "yuv420p")
    for plane, values in zip(wrapped.planes, frame, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values
        plane.update(padded.tobytes())
    return wrapped


@dataclass(frozen=True)
class Channel:
    """An encode of a stranger.

    Attributes:
        label: how tables call it.
        codec, options: FFmpeg's encoder and what it is told.
        scale: of both sides before the encoder.
        dropped: share of the frames that are lost before it.
    """

    label: str
    codec: str
    options: Mapping[str, str]
    scale: float = 1.0
    dropped: float = 0.0

    def run(self, frames: Sequence[Frame], seed: int = 0) -> list[Frame]:
        """What comes out of the decoder."""
        kept = np.random.default_rng(seed).random(len(frames)) >= self.dropped
        return encode([frame for frame, keep in zip(frames, kept, strict=True) if keep], self)[0]


def encode(frames: Sequence[Frame], channel: Channel) -> tuple[list[Frame], int]:
    """Frames behind an encoder and its decoder, and the bytes between them."""
    height, width = frames[0][0].shape
    size = (round(width * channel.scale / 2) * 2, round(height * channel.scale / 2) * 2)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream(channel.codec, rate=25, options=dict(channel.options))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number, frame in enumerate(frames):
            wrapped = _wrapped(frame)
            if channel.scale != 1:
                wrapped = wrapped.reformat(*size, interpolation="BICUBIC")
            wrapped.pts, wrapped.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(wrapped))
        out.mux(stream.encode())
    n_bytes = file.getbuffer().nbytes
    file.seek(0)
    with av.open(file) as back:
        return [planes(frame) for frame in back.decode(video=0)], n_bytes


OWN_ENCODE = Channel("own: x264 medium CRF 12 grain bf 0", "libx264", OWN)


def x264(preset: str, crf: int, scale: float = 1.0, dropped: float = 0.0) -> Channel:
    """x264 with a preset's own B-frames (3 in medium and veryfast)."""
    label = f"x264 {preset} CRF {crf}, B-frames 3"
    label += f", scaled {scale:g}, size unknown" if scale != 1 else ""
    label += f", {100 * dropped:.0f} % of frames dropped" if dropped else ""
    return Channel(label, "libx264", {"preset": preset, "crf": str(crf)}, scale, dropped)


X265 = Channel(
    "x265 fast CRF 28, B-frames 4",
    "libx265",
    {"preset": "fast", "crf": "28", "x265-params": "log-level=none"},
)
AV1 = Channel("SVT-AV1 preset 9 CRF 30", "libsvtav1", {"preset": "9", "crf": "30"})
