"""The work of hiding: a cover rehearsed, written, read back, and encoded once more on trial."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firth.errors import FormatError
from firth.progress import Reporter
from firth.video.codecs import Encoder, container_for
from firth.video.erasure import Cutter
from firth.video.finding import Search
from firth.video.floors import Floors, measured, quality_for, strongest
from firth.video.frames import VideoInfo, luma_frames
from firth.video.metrics import Quality
from firth.video.profile import Change, Profile
from firth.video.trial import Trial
from firth.video.writing import FrameLog, rewrite


class _TooFew(FormatError):
    """Too few symbols came back; another code rate may do better."""


@dataclass(frozen=True)
class Done:
    """A file that was written.

    Attributes:
        profile: at the strength and code rate that were taken.
        quality: measured before the encoder.
        n_frames: frames written.
        symbols, symbols_needed: symbols in the file, and those that give the payload back.
    """

    profile: Profile
    quality: Quality
    n_frames: int
    symbols: int
    symbols_needed: int


@dataclass(frozen=True)
class Work:
    """A payload on its way into a cover.

    Args:
        cover, info: the video.
        out: what the file will be called.
        encoder: of the file.
        blob: the payload, packed.
        key: of :func:`firth.video.payload.locator_key`.
        floors: quality to keep.
        progress: told of every frame.
    """

    cover: str | os.PathLike[str]
    out: str | os.PathLike[str]
    info: VideoInfo
    encoder: Encoder
    blob: bytes
    key: bytes
    floors: Floors
    progress: Reporter

    def strongest(self, profiles: Sequence[Profile]) -> Profile:
        """The first of ``profiles`` that keeps the floors, of those that hold the blob.

        Raises:
            FormatError: none does.
        """
        holding = [one for one in profiles if one.most_bytes(self.info) >= len(self.blob)]
        return strongest(self.cover, self.info, holding, self._marker, self.floors, self.progress)

    def first_to_come_through(
        self, written: Path, profile: Profile, check: bool, trial: Trial | None
    ) -> Done:
        """Write the file at one code rate after the other, until the payload comes out again.

        Args:
            written: where to write.
            profile: which may have several code rates.
            check: whether to take the payload out of the file.
            trial: a second encode that it must come out of too.

        Raises:
            FormatError: it comes out at none; the first is told.
        """
        failed: _TooFew | None = None
        for way in profile.ways(self.info, len(self.blob)):
            done = self._write(written, way)
            try:
                if check:
                    self._check_payload(written, way, os.fspath(self.out))
                if trial is not None:
                    self._check_survival(written, way, trial, done.n_frames)
            except _TooFew as error:
                failed = failed or error
            else:
                return done
        assert failed is not None
        raise failed

    def _write(self, written: Path, profile: Profile) -> Done:
        quality, cutter = quality_for(self.info), self._cutter(profile)
        log = rewrite(
            self.cover,
            written,
            container_for(self.out),
            self.encoder,
            measured(profile.marker(self.info, cutter, self.key), quality),
            name=os.fspath(self.out),
            n_frames=self.info.n_frames,
            progress=self.progress,
        )
        symbols = self._symbols(profile, cutter, log)
        missed = self.floors.missed(quality)
        if missed is not None:
            raise FormatError(f"hide: {missed}; nothing was written; hide less or ask for less")
        if profile.lossless:
            log.check(written, name=os.fspath(self.out), progress=self.progress)
        return Done(profile, quality, log.n_frames, symbols, cutter.n_source)

    def _cutter(self, profile: Profile) -> Cutter:
        return Cutter(self.blob, profile.symbol_bytes(self.info, len(self.blob)))

    def _marker(self, profile: Profile) -> Change:
        way = profile.ways(self.info, len(self.blob))[0]
        return way.marker(self.info, self._cutter(way), self.key)

    def _symbols(self, profile: Profile, cutter: Cutter, log: FrameLog) -> int:
        """Symbols in the file; a cover may have fewer frames than its packets promise."""
        symbols = profile.n_symbols(self.info, log.n_frames)
        if symbols < cutter.n_source:
            raise FormatError(
                f"hide: only {log.n_frames:,} of {self.info.n_frames:,} frames of {self.info.path} could be "
                "decoded, too few for this payload; nothing was written; hide less"
            )
        return symbols

    def _check_payload(self, path: Path, profile: Profile, what: str) -> None:
        """Take the blob out of a file and compare it."""
        search = Search([self.key], [profile])
        self.progress.start("taking out", None, "frames")
        for n_frames in search.run(luma_frames(path)):
            self.progress.update(n_frames, search.note)
            if search.complete:
                break
        self.progress.finish(search.note)
        joiner = search.best.joiner
        found = joiner.blob()
        if found is None:
            raise _TooFew(
                f"hide: {joiner.found:,} of {joiner.needed or '?'} symbols needed came out of {what}; "
                "nothing was written; hide less, or use a more robust profile"
            )
        if found[: len(self.blob)] != self.blob:
            raise FormatError(f"hide: {what} gave other bytes back than were hidden; nothing was written")

    def _check_survival(self, path: Path, profile: Profile, trial: Trial, n_frames: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            encoded = Path(folder) / "trial.mkv"
            trial.encode(path, encoded, n_frames=n_frames, progress=self.progress)
            self._check_payload(encoded, profile, f"the trial encode {trial}")
