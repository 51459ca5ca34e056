"""Quality that hiding has to keep, and the strength that keeps it, found before anything is written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firth.errors import FormatError
from firth.progress import SILENT, Reporter
from firth.video.frames import Luma, VideoInfo, luma_frames
from firth.video.metrics import Quality
from firth.video.profile import Change, Profile

PSNR_SLACK = 0.05  # dB by which the draws of a long film may miss their mean
SCATTER = 265.0  # dB: over the square root of the pixels, three deviations of the draws of profile hard
SSIM_SLACK = 0.001
FLICKER_SLACK = 0.02  # of the bound


@dataclass(frozen=True)
class Floors:
    """What luma has to keep, before any encoder; ``None`` asks for nothing.

    Attributes:
        psnr: at least, in dB, over the film.
        ssim: at least, mean of the frames measured.
        flicker: at most, in luma levels (:class:`firth.video.metrics.Quality`).
    """

    psnr: float | None = None
    ssim: float | None = None
    flicker: float | None = None

    @property
    def need_rehearsal(self) -> bool:
        """Whether the strength cannot be told from the profile alone."""
        return self.ssim is not None or self.flicker is not None

    def missed(self, quality: Quality) -> str | None:
        """What was not kept, in words, or ``None``."""
        if self.psnr is not None and quality.psnr < self.psnr - psnr_slack(quality.n_pixels):
            return f"the luma PSNR came to {quality.psnr:.2f} dB, below the {self.psnr:g} asked for"
        if self.ssim is not None and quality.ssim is not None and quality.ssim < self.ssim - SSIM_SLACK:
            return f"the SSIM came to {quality.ssim:.4f}, below the {self.ssim:g} asked for"
        flicker = quality.flicker
        if (
            self.flicker is not None
            and flicker is not None
            and flicker[0] > self.flicker * (1 + FLICKER_SLACK)
        ):
            return f"the flicker came to {flicker[0]:.2f} levels, above the {self.flicker:g} asked for"
        return None


def psnr_slack(n_pixels: int) -> float:
    """dB by which the PSNR of a film of so many pixels may fall below what its strength gives in the mean.

    What a coefficient is moved by is a draw, uniform within a step, whose square scatters by 0.9 of its mean;
    profile hard has the fewest draws, one of 512 pixels, so that this is the widest of all profiles.
    """
    return max(PSNR_SLACK, SCATTER / math.sqrt(max(1, n_pixels)))


def quality_for(info: VideoInfo) -> Quality:
    """A measurement of a cover's film: SSIM and flicker of about ten frames, one in fifty of long films."""
    return Quality(info.depth, every=max(1, min(50, info.n_frames // 10)))


def measured(change: Change, quality: Quality) -> Change:
    """The same change, with every frame compared."""

    def both(luma: Luma, frame_pos: int) -> Luma:
        before = luma.copy()
        after = change(luma, frame_pos)
        quality.add(before, after)
        return after

    return both


def strongest(
    cover: str | os.PathLike[str],
    info: VideoInfo,
    profiles: Sequence[Profile],
    marker_of: Callable[[Profile], Change],
    floors: Floors,
    progress: Reporter = SILENT,
) -> Profile:
    """The first of ``profiles`` that keeps ``floors``: all of them are tried on every frame, unwritten.

    Args:
        cover, info: the video.
        profiles: strengths, the greatest first.
        marker_of: what a profile does to frames.
        floors: to be kept.
        progress: told of every frame.

    Raises:
        FormatError: none keeps them; what the weakest comes to.
        StorageError: the cover cannot be read.
    """
    qualities = [quality_for(info) for _ in profiles]
    changes = [measured(marker_of(one), quality) for one, quality in zip(profiles, qualities, strict=True)]
    progress.start("measuring", info.n_frames, "frames")
    for frame_pos, luma in enumerate(luma_frames(cover)):
        for change in changes:
            change(luma.copy(), frame_pos)
        progress.update(frame_pos + 1)
    progress.finish()
    for one, quality in zip(profiles, qualities, strict=True):
        if floors.missed(quality) is None:
            return one
    raise FormatError(
        f"hide: at the weakest strength of profile {profiles[-1].name} that holds this payload "
        f"{floors.missed(qualities[-1])}; nothing was written; hide less or ask for less"
    )
