"""A video written anew with other luma planes, everything else as it was; and the check that it is.

The film is decoded, changed and encoded again. Its chroma planes, times, colour tags, aspect ratio and
rotation go along; packets of audio, subtitles and further films are copied, with chapters and metadata.
One frame is in memory at a time, besides those that the encoder looks ahead at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from array import array
from collections.abc import Iterator
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from firth.errors import FormatError, SettingError, StorageError
from firth.files import storage_error
from firth.progress import SILENT, Reporter
from firth.video.codecs import Container, Encoder, plain_format
from firth.video.frames import (
    ATTACHED_PICTURE,
    attached_picture,
    decoded,
    display_matrix,
    load_av,
    luma_view,
    open_video,
    packets,
    plane_view,
    rate_of,
)
from firth.video.profile import Change

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_DIGEST_BYTES = 16
_COLOURS = ("color_range", "colorspace", "color_primaries", "color_trc")
# Written by the muxer itself, or meaningless in another container.
_MP4_FORMATS = ("mp4", "mov")
_MP4_TAGS = {  # that have an atom of their own; others are kept beside them, where all go once one does
    *("title", "artist", "album_artist", "album", "composer", "date", "comment", "genre", "copyright"),
    *("grouping", "lyrics", "description", "synopsis", "show", "episode_id", "network", "keywords"),
    *("creation_time", "track", "disc"),
}
_OWN_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "vendor_id"}


class FrameLog:
    """What was written: 16 bytes of hash and the time of every frame.

    Attributes:
        n_frames: frames.
    """

    def __init__(self) -> None:
        self._digests = bytearray()
        self._times = array("d")

    @property
    def n_frames(self) -> int:
        return len(self._times)

    def add(self, frame: VideoFrame) -> None:
        """Note a frame that is about to be encoded."""
        self._digests += _digest(frame)
        self._times.append(_time(frame))

    def check(self, path: Path, *, name: str, progress: Reporter = SILENT) -> None:
        """Read a file back and compare it: every plane of every frame, and its time to the millisecond.

        Raises:
            FormatError: names the first frame that differs.
        """
        progress.start("reading back", self.n_frames, "frames")
        frame_pos = 0
        for frame in _frames(path):
            if frame_pos >= self.n_frames:
                raise FormatError(f"hide: {name} came out longer than the cover; it was not kept")
            start = frame_pos * _DIGEST_BYTES
            if _digest(frame) != self._digests[start : start + _DIGEST_BYTES]:
                raise FormatError(
                    f"hide: frame {frame_pos} of {name} came back changed, so the encoder is not lossless "
                    "here; the file was not kept; use another --codec"
                )
            if abs(_time(frame) - self._times[frame_pos]) > 0.001:
                raise FormatError(
                    f"hide: frame {frame_pos} of {name} came back at {_time(frame):.4f} s in place of "
                    f"{self._times[frame_pos]:.4f} s; the file was not kept; use another container"
                )
            frame_pos += 1
            progress.update(frame_pos)
        if frame_pos != self.n_frames:
            raise FormatError(
                f"hide: {frame_pos:,} of {self.n_frames:,} frames of {name} came back; the file was not kept"
            )
        progress.finish()


def rewrite(
    cover: str | os.PathLike[str],
    out: Path,
    container: Container,
    encoder: Encoder,
    change: Change,
    *,
    name: str,
    n_frames: int | None = None,
    progress: Reporter = SILENT,
) -> FrameLog:
    """Write ``cover`` to ``out`` with luma planes changed.

    Args:
        cover: the video that is read.
        out: the file that is written; what stands there is replaced.
        container, encoder: of ``out``.
        change: gets a copy of each luma plane, (height, width) in uint8 or uint16, and the number of its
            frame, and gives the plane to write.
        name: of the file in sentences.
        n_frames: frames of the cover, if known, for the bar.
        progress: told of every frame.

    Raises:
        StorageError: ``out`` cannot be written.
        FormatError: the cover cannot be read, or holds what cannot be written.
        SettingError: ``container`` cannot hold a stream of the cover.
    """
    av = load_av()
    source, film = open_video(cover)
    with source:
        options = dict(container.options)
        if container.name in _MP4_FORMATS and {key.lower() for key in _kept(source.metadata)} - _MP4_TAGS:
            options["movflags"] = "use_metadata_tags"
        target = av.open(f"file:{out}", "w", format=container.name, container_options=options)
        try:
            job = _Job(source, film, target, encoder, name)
            progress.start("hiding", n_frames, "frames")
            log = job.run(change, progress)
            target.close()
            progress.finish()
        except BaseException as error:
            with contextlib.suppress(av.FFmpegError, OSError):
                target.close()
            if isinstance(error, av.FFmpegError):
                raise _told(error, name) from error
            raise
    return log


class _Job:
    """The streams of a file that is being written."""

    def __init__(
        self,
        source: InputContainer,
        film: VideoStream,
        target: OutputContainer,
        encoder: Encoder,
        name: str,
    ) -> None:
        self._source, self._film, self._target = source, film, target
        self._encoder, self._name = encoder, name
        self._started = False
        self._copies: dict[int, Stream] = {}
        self._last_pts = -1
        for stream in source.streams:
            if stream is film:
                self._out = self._film_stream()
            else:
                self._copy_stream(stream)
        target.metadata.update(_kept(source.metadata))
        chapters = source.chapters()
        if chapters:
            target.set_chapters(chapters)

    def run(self, change: Change, progress: Reporter) -> FrameLog:
        """Everything from the first packet to the last."""
        log = FrameLog()
        early: list[Any] = []  # packets before the first frame, which tells how the picture is turned
        for packet in packets(self._source):
            # The number in a packet that only flushes the decoder means nothing; its stream does.
            if packet.stream.index != self._film.index:
                if packet.stream.index in self._copies and packet.size and not _gap(packet):
                    packet.stream = self._copies[packet.stream.index]
                    early = self._muxed(packet, early)
                continue
            for frame in decoded(packet):
                if not self._started:
                    self._start(frame)
                ready = self._changed(frame, change, log.n_frames)
                log.add(ready)
                self._target.mux(self._out.encode(ready))
                progress.update(log.n_frames)
        if not self._started:
            raise FormatError(f"{self._source.name.removeprefix('file:')} has not a single frame")
        self._muxed(None, early)
        self._target.mux(self._out.encode(None))
        return log

    def _muxed(self, packet: Any, early: list[Any]) -> list[Any]:
        """Write ``packet``, and those that waited; what still waits."""
        waiting = early if packet is None else [*early, packet]
        if not self._started:
            return waiting
        for one in waiting:
            self._target.mux(one)
        return []

    def _film_stream(self) -> VideoStream:
        film, encoder = self._film, self._encoder
        given = film.codec_context
        assert given.format is not None
        try:
            out = self._target.add_stream(encoder.codec, rate=rate_of(film), options=dict(encoder.options))
        except ValueError as error:
            raise SettingError(f"hide: {self._name}: the container holds no {encoder.name}") from error
        context: Any = out.codec_context
        context.width, context.height = given.width, given.height
        context.pix_fmt = plain_format(given.format.name)
        context.time_base = out.time_base = film.time_base or Fraction(1, 90_000)
        context.thread_type = "AUTO"
        if encoder.key_frames_only:
            context.gop_size = 1
        ratio = film.sample_aspect_ratio
        if ratio:
            context.sample_aspect_ratio = ratio
        described: VideoStream = _described(out, film)
        return described

    def _copy_stream(self, stream: Stream) -> None:
        if stream.type == "data":
            # MP4's track of chapters is discarded by FFmpeg itself; chapters are copied as such.
            if stream.discard != load_av().stream.Discard.all:
                warnings.warn(
                    f"{self._name} takes no data streams; number {stream.index} is left out", stacklevel=2
                )
            return
        if int(stream.disposition) & ATTACHED_PICTURE and self._target.format.name == "matroska":
            ending = "jpg" if stream.name == "mjpeg" else str(stream.name)
            kind = "image/jpeg" if stream.name == "mjpeg" else f"image/{stream.name}"
            # Where players look for cover art in Matroska, and what FFmpeg reads as such.
            self._target.add_attachment(
                f"cover.{ending}", kind, attached_picture(self._source.name, stream.index)
            )
            return
        what = f"stream {stream.index} ({stream.type}, {getattr(stream, 'name', None) or 'unknown codec'})"
        try:
            copy = self._target.add_stream_from_template(stream, opaque=True)
        except ValueError as error:
            if stream.type == "attachment":
                warnings.warn(f"{self._name} does not hold {what}; it is left out", stacklevel=2)
                return
            raise SettingError(
                f"hide: {self._name} cannot hold {what} of the cover; use the cover's own container"
                + ("" if self._target.format.name == "matroska" else ", or .mkv")
            ) from error
        self._copies[stream.index] = _described(copy, stream)

    def _start(self, frame: VideoFrame) -> None:
        context: Any = self._out.codec_context
        for tag in _COLOURS:  # of the frame, since some decoders tell them only then
            setattr(context, tag, getattr(frame, tag))
        if frame.format.name.startswith("yuvj"):
            context.color_range = 2  # full: the name says it in place of the tag
        if frame.interlaced_frame and self._encoder.codec == "libx264":
            context.options = {**self._encoder.options, "flags": "+ilme+ildct"}
        if frame.interlaced_frame:
            context.field_order = self._film.codec_context.field_order
        self._out.set_display_matrix(display_matrix(frame))
        av = load_av()
        try:
            self._target.start_encoding()
        except (ValueError, av.FFmpegError) as error:
            if (
                isinstance(error, av.FFmpegError)
                and 0 < (error.errno or 0) < 256
                and error.errno != errno.EINVAL
            ):
                raise
            raise SettingError(
                f"hide: {self._name} cannot be begun: its container does not hold the streams of the cover "
                f"with {self._encoder.name} ({getattr(error, 'strerror', None) or error}); use another ending"
            ) from error
        self._started = True

    def _changed(self, frame: VideoFrame, change: Change, frame_pos: int) -> VideoFrame:
        context = self._out.codec_context
        assert context.format is not None
        if (frame.width, frame.height) != (context.width, context.height) or (
            plain_format(frame.format.name) != context.format.name
        ):
            raise FormatError(
                f"the cover changes at frame {frame_pos} from {context.width}x{context.height} "
                f"{context.format.name} to {frame.width}x{frame.height} {frame.format.name}; cut it there"
            )
        ready = self._own(frame)
        view = luma_view(ready)
        view[:] = change(np.ascontiguousarray(view).copy(), frame_pos)
        return ready

    def _own(self, frame: VideoFrame) -> VideoFrame:
        """The frame with a buffer of its own: the decoder still predicts others from the one it gave."""
        if frame.format.name.startswith("yuvj"):
            given, frame = (
                frame,
                load_av().VideoFrame(frame.width, frame.height, plain_format(frame.format.name)),
            )
            for number in range(len(given.planes)):
                plane_view(frame, number)[:] = plane_view(given, number)
            for tag in ("pts", "time_base", "duration", *_COLOURS):
                setattr(frame, tag, getattr(given, tag))
            frame.color_range = 2
        else:
            frame.make_writable()
        frame.pict_type = 0  # the encoder's to choose
        if frame.time_base is None:
            frame.time_base = self._out.codec_context.time_base
        if frame.pts is None:  # bare streams tell no times
            step = 1 / (rate_of(self._film) * frame.time_base)
            frame.pts = self._last_pts + max(1, round(step)) if self._last_pts >= 0 else 0
        self._last_pts = frame.pts
        return frame


def _gap(packet: Any) -> bool:
    """An empty line of MP4's subtitles: the time between two lines, which its muxer writes itself."""
    return packet.size == 2 and packet.stream.name == "mov_text" and bytes(packet) == b"\0\0"


def lost(cover: str | os.PathLike[str], out: Path) -> list[str]:
    """What ``out`` no longer tells of what ``cover`` told: names of tags, for a warning."""
    before, after = _facts(cover), _facts(out)
    return [
        name
        for name, value in before.items()
        if (
            after.get(name) != value
            if not isinstance(value, set)
            else not value <= (after.get(name) or set())
        )
    ]


def _facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Tags of a file and of its first frame."""
    source, film = open_video(path)
    with source:
        facts: dict[str, Any] = {
            f"the tag {key.lower()}": value for key, value in _kept(source.metadata).items()
        }
        facts["the aspect ratio"] = film.sample_aspect_ratio or Fraction(1)
        facts["chapters"] = len(source.chapters())
        spoken = [one.metadata.get("language", "und") for one in source.streams if one.type == "audio"]
        facts["the languages"] = spoken
        facts["streams"] = sum(one.type != "data" for one in source.streams)
        for packet in packets(source, film):
            for frame in decoded(packet):
                context = film.codec_context
                full = frame.format.name.startswith("yuvj")
                facts["the rotation"] = display_matrix(frame)
                facts["the interlacing"] = frame.interlaced_frame
                facts |= {
                    f"the colour tag {tag}": getattr(context, tag)
                    for tag in _COLOURS
                    if getattr(context, tag)
                }
                if full:
                    facts["the colour tag color_range"] = 2
                side_data: Any = frame.side_data
                kinds = {getattr(getattr(one, "type", None), "name", "") for one in side_data}
                facts["HDR metadata"] = kinds & {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"}
                return facts
    return facts


def _frames(path: Path) -> Iterator[VideoFrame]:
    source, film = open_video(path)
    with source:
        for packet in packets(source, film):
            yield from decoded(packet)


def _digest(frame: VideoFrame) -> bytes:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for number in range(len(frame.planes)):
        digest.update(np.ascontiguousarray(plane_view(frame, number)).data)
    return digest.digest()


def _time(frame: VideoFrame) -> float:
    return float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else 0.0


def _described(out: Any, given: Any) -> Any:
    out.metadata.update(_kept(given.metadata))
    out.disposition = int(given.disposition)
    return out


def _kept(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.lower() not in _OWN_KEYS}


def _told(error: Any, name: str) -> FormatError | StorageError:
    """FFmpeg's error in writing as a sentence."""
    number = error.errno or 0
    if 0 < number < 256 and number not in (errno.EINVAL, errno.ERANGE, errno.EPERM):
        return storage_error(OSError(number, os.strerror(number)), name)
    return FormatError(f"hide: {name} could not be written: {(error.strerror or str(error)).lower()}")
