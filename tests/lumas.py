"""Luma planes behind an encoder, for the tests of video."""

import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Luma = NDArray[Any]


def encoded(
    frames: list[Luma], codec: str, options: dict[str, str], size: tuple[int, int] | None = None
) -> list[Luma]:
    """What is left of the luma after an encoder, and perhaps a scaler."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    height, width = frames[0].shape
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = size or (width, height)
        stream.pix_fmt, stream.options = "yuv420p", options
        for number, luma in enumerate(frames):
            grey = np.full((height // 2, width), 128, np.uint8)
            frame = av.VideoFrame.from_ndarray(np.vstack([luma, grey]), "yuv420p")
            if size is not None:
                frame = frame.reformat(width=size[0], height=size[1], interpolation="BICUBIC")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    file.seek(0)
    with av.open(file) as back:
        planes = [frame.planes[0] for frame in back.decode(video=0)]
        return [
            np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width].copy()
            for plane in planes
        ]
