"""Video files as luma planes: what a file holds, and its frames one after another.

Decoding is PyAV's (FFmpeg). Only local files are opened, never what a name or a playlist points at. A frame
that cannot be decoded is passed over, and a file that was cut gives the frames that it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firth.errors import FormatError, MissingExtra, StorageError

if TYPE_CHECKING:
    from types import ModuleType

    from av.container import InputContainer
    from av.video.format import VideoFormat
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Luma = NDArray[Any]
"""A luma plane (height, width): uint8, or uint16 for more than 8 bits a sample."""

ATTACHED_PICTURE = 1024  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC: cover art, not the film
_NOT_VIDEO = {"tty", "bin", "adf", "idf", "xbin"}  # FFmpeg draws any .txt as a film of text
_SHIFTED = ("p01", "p21", "p41", "p2", "p4")  # their samples stand in the high bits


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        path: the file.
        container, codec: FFmpeg's names, such as ``"matroska,webm"`` and ``"h264"``.
        width, height: of a frame, in pixels.
        pixel_format: FFmpeg's name, such as ``"yuv420p"``.
        depth: bits of a luma sample.
        sample_aspect: width of a pixel over its height.
        n_frames: frames, counted in the file and not read from its header.
        seconds: from the first frame to the end of the last, 0 if unknown.
        n_bytes: size of the file.
        n_audio, n_subtitles: other streams.
    """

    path: Path
    container: str
    codec: str
    width: int
    height: int
    pixel_format: str
    depth: int
    sample_aspect: Fraction
    n_frames: int
    seconds: float
    n_bytes: int
    n_audio: int
    n_subtitles: int

    @property
    def n_pixels(self) -> int:
        """Luma samples of a frame."""
        return self.width * self.height


def load_av() -> ModuleType:
    """PyAV.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtra("video needs the package av (PyAV): pip install 'firth[video]'") from error
    return av


def open_video(path: str | os.PathLike[str]) -> tuple[InputContainer, VideoStream]:
    """The open file and the stream of its film; the caller closes the former.

    Raises:
        StorageError: no such file, a folder, or no permission.
        FormatError: not a video, no video stream, or pixels without a luma plane.
        MissingExtra: PyAV is not installed.
    """
    av = load_av()
    name = os.fspath(path)
    try:
        with open(name, "rb"):  # an honest reason where there is none to be had from FFmpeg
            pass
        container = _opened(name)
    except av.FFmpegError as error:
        raise FormatError(f"{name} is not a video that can be read: {_reason(error)}") from error
    except OSError as error:
        raise StorageError(f"cannot read {name}: {(error.strerror or str(error)).lower()}") from error
    try:
        if container.format.name in _NOT_VIDEO:
            raise FormatError(f"{name} is not a video that can be read: it looks like text")
        stream = _film(container, name)
        luma_depth(stream.codec_context.format, name)
    except BaseException:
        container.close()
        raise
    stream.thread_type = "AUTO"
    return container, stream


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """What a video file holds; its packets are counted, no frame is decoded.

    Raises:
        StorageError, FormatError, MissingExtra: as :func:`open_video`; FormatError also where there is
            not a single frame.
    """
    container, stream = open_video(path)
    with container:
        n_frames = sum(1 for packet in packets(container, stream) if packet.size and not packet.is_discard)
        if not n_frames:
            raise FormatError(f"{os.fspath(path)} has a video stream and not a single frame in it")
        context = stream.codec_context
        assert context.format is not None
        return VideoInfo(
            path=Path(path),
            container=container.format.name,
            codec=context.name,
            width=context.width,
            height=context.height,
            pixel_format=context.format.name,
            depth=luma_depth(context.format, path),
            sample_aspect=stream.sample_aspect_ratio or Fraction(1),
            n_frames=n_frames,
            seconds=_seconds(container, stream),
            n_bytes=os.path.getsize(path),
            n_audio=len(container.streams.audio),
            n_subtitles=len(container.streams.subtitles),
        )


def luma_frames(path: str | os.PathLike[str]) -> Iterator[Luma]:
    """The luma planes of a film, in order of showing, one in memory at a time.

    Yields:
        (height, width) uint8, or uint16 for more than 8 bits a sample; the caller's to keep and to change.

    Raises:
        StorageError, FormatError, MissingExtra: as :func:`open_video`.
    """
    container, stream = open_video(path)
    with container:
        for packet in packets(container, stream):
            for frame in decoded(packet):
                yield luma_view(frame).copy()


def packets(container: InputContainer, *streams: Any) -> Iterator[Any]:
    """The packets of ``streams`` (of all, without any), up to where the file ends or breaks off.

    The last packet of each stream is empty and makes the decoder give what it holds back.
    """
    av = load_av()
    found = container.demux(*streams)
    left = list(streams or container.streams)
    while True:
        try:
            packet = next(found)
        except StopIteration:
            return
        except av.FFmpegError:
            # Broken off: the decoder still holds frames.
            for stream in left:
                last = av.Packet()
                last.stream = stream
                yield last
            return
        yield packet


def decoded(packet: Any) -> list[VideoFrame]:
    """The frames that ``packet`` completes; none where it is damaged."""
    av = load_av()
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []


def attached_picture(path: str | os.PathLike[str], stream_number: int) -> bytes:
    """The file of the cover art that a stream holds.

    Args:
        path: the file, as FFmpeg was given it or by name.
        stream_number: of the stream in it.
    """
    with _opened(os.fspath(path).removeprefix("file:")) as container:
        for packet in container.demux(container.streams[stream_number]):
            if packet.size:
                return bytes(packet)
    return b""


def luma_view(frame: VideoFrame) -> Luma:
    """The luma plane of a frame, (height, width), as a view into its buffer."""
    return plane_view(frame, 0)


def plane_view(frame: VideoFrame, number: int) -> Luma:
    """A plane of a planar frame without its padding, as a view into its buffer."""
    plane: Any = frame.planes[number]  # a buffer, which its stub does not say
    component = next(one for one in frame.format.components if one.plane == number)
    wide = component.bits > 8
    rows: Luma = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
    rows = rows.reshape(plane.height, plane.line_size)
    # A plane that holds two components (nv12) is as wide as both.
    parts = sum(one.plane == number for one in frame.format.components)
    span = plane.width * parts * (2 if wide else 1)
    return rows[:, :span].view("<u2") if wide else rows[:, :span]


def luma_depth(format_: VideoFormat | None, name: str | os.PathLike[str]) -> int:
    """Bits of a luma sample.

    Raises:
        FormatError: the pixels have no plane of their own for luma (RGB, a palette, packed YUV).
    """
    if format_ is None:
        raise FormatError(f"{os.fspath(name)}: its frames cannot be decoded, the file is damaged or cut")
    first = [one for one in format_.components if one.plane == 0]
    shifted = format_.name.startswith(_SHIFTED) or "msb" in format_.name
    plain = len(first) == 1 and first[0].is_luma and not format_.is_big_endian and not shifted
    if not plain or not 8 <= first[0].bits <= 16:
        raise FormatError(
            f"{os.fspath(name)} has pixels in {format_.name}, which has no plane of its own for luma; "
            "convert it to planar YUV first, such as yuv420p"
        )
    return int(first[0].bits)


def display_matrix(frame: VideoFrame) -> list[int] | None:
    """How a player turns the picture: FFmpeg's nine numbers, or ``None``."""
    side_data: Any = frame.side_data
    for data in side_data:
        if getattr(getattr(data, "type", None), "name", "") == "DISPLAYMATRIX":
            return [int(value) for value in np.frombuffer(bytes(data), "<i4")]
    return None


def _opened(name: str) -> InputContainer:
    """A local file, and nothing that it points at; tags that are no UTF-8 are mended."""
    found: InputContainer = load_av().open(
        f"file:{os.path.abspath(name)}", options={"protocol_whitelist": "file"}, metadata_errors="replace"
    )
    return found


def _film(container: InputContainer, name: str) -> VideoStream:
    films = [one for one in container.streams.video if not int(one.disposition) & ATTACHED_PICTURE]
    usable = [one for one in films if one.codec_context is not None]
    if not usable:
        why = "no video stream" if not films else "a video stream in a codec that is not known here"
        raise FormatError(f"{name} has {why}")
    # As players choose: the marked one, else the largest.
    return max(
        usable,
        key=lambda one: (int(one.disposition) & 1, one.codec_context.width * one.codec_context.height),
    )


def _seconds(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else 0.0


def rate_of(stream: VideoStream) -> Fraction:
    """Frames a second of a stream, 25 where it does not say."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _reason(error: Exception) -> str:
    text: str = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]
