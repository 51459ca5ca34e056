"""What a way of hiding offers to the rest: the one interface between profiles, files and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from firth.video.erasure import Cutter
from firth.video.frames import Luma, VideoInfo
from firth.video.record import Symbol

STRENGTHS = (40.0, 42.0, 45.0, 48.0)
"""Luma PSNR in dB that robust profiles come in, the strongest first."""

Change = Callable[[Luma, int], Luma]
"""Takes a luma plane and the number of its frame, and gives the plane to write (the same array or another,
of the same shape and dtype)."""


class Reader(Protocol):
    """Finds symbols in luma planes. It needs no number of the frame, and no frame but the one at hand; where
    there are others around it, they may help."""

    @property
    def bit_error_rate(self) -> float | None:
        """Estimated share of wrong bits in the frames read so far, before correction; ``None`` if unknown."""

    def read(self, luma: Luma) -> list[Symbol]:
        """The symbols whose checks fit, of this frame or of one before that waited for it; none if there are
        none for this key."""

    def finish(self) -> list[list[Symbol]]:
        """After the last frame: the symbols of each frame that still waited for others."""


def read_all(reader: Reader, frames: Iterable[Luma]) -> Iterator[Symbol]:
    """The symbols that a reader finds in frames from first to last; one may come more than once."""
    for luma in frames:
        yield from reader.read(luma)
    for symbols in reader.finish():
        yield from symbols


class Profile(Protocol):
    """A way of hiding symbols in frames."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    @property
    def lossless(self) -> bool:
        """Whether every bit of the written frames must come back."""

    @property
    def code_rate(self) -> float | None:
        """Information bits a coded bit; ``None`` where nothing is coded."""

    @property
    def spread(self) -> int:
        """Frames that share codewords; 1 where each stands by itself."""

    def holding(self, psnr: float, info: VideoInfo) -> Profile:
        """The same, as much weaker as it takes to keep a luma PSNR of ``psnr`` dB (before any encoder).

        Raises:
            SettingError: it cannot.
        """

    def spread_out(self, info: VideoInfo) -> Profile:
        """The same with codewords spread over frames.

        Raises:
            SettingError: it cannot, or the film is too short.
        """

    def ways(self, info: VideoInfo, blob_bytes: int) -> Sequence[Profile]:
        """The settings that hold a blob of this length, in the order to try them; at least one if it is no
        longer than :meth:`most_bytes`."""

    def most_bytes(self, info: VideoInfo) -> int:
        """The longest blob that a cover takes if not a frame is lost; 0 if frames are too small."""

    def symbol_bytes(self, info: VideoInfo, blob_bytes: int) -> int:
        """Bytes of a symbol for a blob of this length; even, for :class:`firth.video.erasure.Cutter`."""

    def n_symbols(self, info: VideoInfo, n_frames: int) -> int:
        """Different symbols that ``n_frames`` frames carry."""

    def marker(self, info: VideoInfo, cutter: Cutter, key: bytes) -> Change:
        """What is done to each frame so that it carries symbols of ``cutter``.

        Args:
            info: the cover.
            cutter: the blob, cut by :meth:`symbol_bytes`.
            key: 32 bytes, of :func:`firth.video.payload.locator_key`.
        """

    def reader(self, key: bytes) -> Reader:
        """A reader of the symbols that this profile wrote with ``key``, whatever their size."""
