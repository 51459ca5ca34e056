"""Encoders and containers that are written: one table each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from firth.errors import SettingError
from firth.video.frames import VideoInfo, load_av


@dataclass(frozen=True)
class Encoder:
    """An encoder with its settings.

    Attributes:
        name: what people call it.
        codec: FFmpeg's name of the encoder.
        options: FFmpeg's options.
        key_frames_only: every frame is coded by itself.
        lossless: every bit of a frame comes back.
        halves_chroma_evenly: 4:2:0 needs even sizes.
    """

    name: str
    codec: str
    options: Mapping[str, str]
    key_frames_only: bool = False
    lossless: bool = False
    halves_chroma_evenly: bool = True

    def check(self, info: VideoInfo) -> None:
        """Refuse a cover whose pixels it would have to convert.

        Raises:
            SettingError: names what it takes, and the way out.
        """
        way_out = "convert it first, or use --profile lossless"
        if self.lossless:
            takes_most = self.name == "ffv1"
            way_out = "convert it first" if takes_most else "OUT.mkv with --codec ffv1 takes it"
        wanted = plain_format(info.pixel_format)
        known = {one.name for one in load_av().Codec(self.codec, "w").video_formats or ()}
        if wanted not in known:
            raise SettingError(
                f"{self.name} cannot write {info.path.name}'s pixels as they are ({info.pixel_format}, "
                f"{info.depth} bits); {way_out}"
            )
        odd = info.width % 2 or (info.height % 2 and "420" in wanted)
        if self.halves_chroma_evenly and odd and ("420" in wanted or "422" in wanted):
            raise SettingError(
                f"{self.name} takes even sizes only, and {info.path.name} has "
                f"{info.width}x{info.height}; {way_out}"
            )


@dataclass(frozen=True)
class Container:
    """A kind of file.

    Attributes:
        name: FFmpeg's name of the format.
        lossless: encoders of :data:`LOSSLESS` that it holds, the default first.
        options: of FFmpeg's muxer.
    """

    name: str
    lossless: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)


def _options(**options: str) -> Mapping[str, str]:
    return MappingProxyType({name.replace("_", "-"): value for name, value in options.items()})


LOSSLESS: Mapping[str, Encoder] = MappingProxyType(
    {
        encoder.name: encoder
        for encoder in (
            Encoder(
                "ffv1",
                "ffv1",
                # Slices with a check of their own: damage stays where it is.
                _options(level="3", slices="4", slicecrc="1"),
                key_frames_only=True,
                lossless=True,
                halves_chroma_evenly=False,
            ),
            Encoder("x264", "libx264", _options(qp="0", preset="veryfast", bf="0"), lossless=True),
            Encoder(
                "vp9",
                "libvpx-vp9",
                MappingProxyType({"lossless": "1", "deadline": "good", "cpu-used": "5", "row-mt": "1"}),
                lossless=True,
                halves_chroma_evenly=False,
            ),
            Encoder(
                "x265",
                "libx265",
                MappingProxyType(
                    {"preset": "superfast", "x265-params": "lossless=1:bframes=0:log-level=none"}
                ),
                lossless=True,
            ),
        )
    }
)

ROBUST = Encoder("h264", "libx264", _options(crf="12", preset="medium", tune="grain", bf="0"))
"""What the robust profiles write: H.264 so good that a second encode decides what is left."""

CONTAINERS: Mapping[str, Container] = MappingProxyType(
    {
        # Times before 0 (the priming of AAC) stay: by default all streams would be moved.
        ".mkv": Container(
            "matroska", ("ffv1", "x264", "vp9", "x265"), MappingProxyType({"avoid_negative_ts": "disabled"})
        ),
        ".webm": Container("webm", ("vp9",), MappingProxyType({"avoid_negative_ts": "disabled"})),
        ".mp4": Container("mp4", ("x264", "x265", "vp9")),
        ".m4v": Container("mp4", ("x264", "x265")),
        ".mov": Container("mov", ("x264", "x265")),
    }
)


def container_for(out: str | os.PathLike[str]) -> Container:
    """The kind of file that the ending of ``out`` names.

    Raises:
        SettingError: an ending that is not in :data:`CONTAINERS`.
    """
    ending = Path(out).suffix.lower()
    if ending not in CONTAINERS:
        raise SettingError(
            f"hide: {os.fspath(out)} ends in {ending or 'nothing'}, which names no container that can be "
            f"written; use {', '.join(CONTAINERS)}"
        )
    return CONTAINERS[ending]


def encoder_for(
    out: str | os.PathLike[str], codec: str | None, lossless: bool, info: VideoInfo | None = None
) -> Encoder:
    """The encoder that a profile writes into ``out``.

    Args:
        out: the file; its ending names the container.
        info: the cover, if it has a say: oblong pixels take an encoder that keeps their shape in its own
            stream, because PyAV gives FFmpeg's Matroska muxer no other way to be told.
        codec: a name of :data:`LOSSLESS`; ``None`` takes the container's default. Robust profiles write
            H.264 and take no other.
        lossless: whether the profile needs every bit.

    Raises:
        SettingError: an encoder that would destroy what is hidden, or that the container does not hold.
    """
    container = container_for(out)
    ending = Path(out).suffix.lower()
    if not lossless:
        if codec not in (None, "h264", "x264"):
            raise SettingError(f"hide: robust profiles write H.264, not {codec}; leave --codec away")
        if container.name == "webm":
            raise SettingError("hide: .webm holds no H.264, which robust profiles write; use .mp4 or .mkv")
        return ROBUST
    if codec is None:
        oblong = info is not None and info.sample_aspect != 1 and container.name == "matroska"
        return LOSSLESS["x264" if oblong else container.lossless[0]]
    if codec not in LOSSLESS:
        raise SettingError(
            f"hide: the codec {codec} would destroy what the lossless profile hides (or is not known); "
            f"use one of {', '.join(LOSSLESS)}, or --profile web or hard, which live through a lossy encode"
        )
    if codec not in container.lossless:
        raise SettingError(
            f"hide: {ending} holds no {codec}; it takes {', '.join(container.lossless)}, and .mkv takes all"
        )
    return LOSSLESS[codec]


def plain_format(pixel_format: str) -> str:
    """The name without FFmpeg's old mark for full range (``yuvj420p``), which stands in the colour tags."""
    return pixel_format.replace("yuvj", "yuv", 1)
