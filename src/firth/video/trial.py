"""A stranger's second encode, tried on a file before it is handed out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from firth.errors import FormatError, SettingError
from firth.progress import SILENT, Reporter
from firth.video.frames import decoded, load_av, open_video, packets, rate_of

# Name -> FFmpeg's encoder, and the option that its presets go by.
ENCODERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "x264": ("libx264", "preset"),
        "x265": ("libx265", "preset"),
        "av1": ("libsvtav1", "preset"),
        "vp9": ("libvpx-vp9", "cpu-used"),
    }
)


@dataclass(frozen=True)
class Trial:
    """An encoder, its preset and its quality (CRF).

    Attributes:
        encoder: a name of :data:`ENCODERS`.
        preset: as the encoder calls it (``medium``; a number for av1 and vp9).
        crf: 0 to 63; more is smaller and worse.
    """

    encoder: str
    preset: str
    crf: int

    @classmethod
    def parse(cls, text: str) -> Trial:
        """``"x264:medium:28"`` -> a trial.

        Raises:
            SettingError: another form, an unknown encoder, or a CRF that is no number from 0 to 63.
        """
        parts = text.split(":")
        if len(parts) != 3 or not all(parts) or not parts[2].isascii() or not parts[2].isdigit():
            raise SettingError(f"--survive takes ENCODER:PRESET:CRF such as x264:medium:28, not {text}")
        if parts[0] not in ENCODERS:
            raise SettingError(f"--survive knows the encoders {', '.join(ENCODERS)}, not {parts[0]}")
        if int(parts[2]) > 63:
            raise SettingError(f"--survive takes a CRF of 0 to 63, not {parts[2]}")
        return cls(parts[0], parts[1], int(parts[2]))

    def __str__(self) -> str:
        return f"{self.encoder}:{self.preset}:{self.crf}"

    def encode(
        self,
        path: str | os.PathLike[str],
        out: Path,
        *,
        n_frames: int | None = None,
        progress: Reporter = SILENT,
    ) -> None:
        """Encode the film of ``path`` into ``out``, a Matroska file without sound.

        Raises:
            SettingError: the encoder does not take these settings or the pixels.
            StorageError, FormatError: as :func:`firth.video.frames.open_video`.
        """
        av = load_av()
        codec, preset_option = ENCODERS[self.encoder]
        options = {preset_option: self.preset, "crf": str(self.crf)}
        if self.encoder == "x265":
            options["x265-params"] = "log-level=none"
        if self.encoder == "vp9":
            options["b"] = "0"  # else CRF is only a bound
        source, film = open_video(path)
        try:
            with source, av.open(f"file:{out}", "w", format="matroska") as target:
                stream = target.add_stream(codec, rate=rate_of(film), options=options)
                given = film.codec_context
                stream.width, stream.height = given.width, given.height
                stream.pix_fmt = given.pix_fmt
                stream.codec_context.time_base = stream.time_base = film.time_base
                progress.start(f"trying {self}", n_frames, "frames")
                done = 0
                for packet in packets(source, film):
                    for frame in decoded(packet):
                        frame.pict_type = 0
                        target.mux(stream.encode(frame))
                        done += 1
                        progress.update(done)
                target.mux(stream.encode(None))
                progress.finish()
        except av.FFmpegError as error:
            reason = (error.strerror or str(error)).lower()
            raise SettingError(f"--survive {self}: the encoder does not take this ({reason})") from error
        if not out.stat().st_size:
            raise FormatError(f"--survive {self} gave an empty file")
