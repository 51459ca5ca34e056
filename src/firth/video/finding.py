"""Taking out what is hidden, and looking whether something is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from firth.errors import FormatError
from firth.progress import SILENT, Reporter
from firth.video.erasure import Joiner
from firth.video.frames import Luma, VideoInfo, luma_frames, probe
from firth.video.payload import Payload, locator_key, unpack
from firth.video.profile import Profile, Reader
from firth.video.profiles import readable
from firth.video.record import Symbol


@dataclass(frozen=True)
class Extracted:
    """A payload that was taken out, exact.

    Attributes:
        data: the bytes.
        name: the file name that they had, or ``None``.
        secret: a password sealed them.
        profile: how they were hidden.
        n_frames: frames that were read; the rest was not needed.
        n_usable: frames among them that gave at least one symbol.
        symbols_needed: symbols that give the payload back.
        bit_error_rate: estimated, before correction; ``None`` if unknown.
    """

    data: bytes
    name: str | None
    secret: bool
    profile: str
    n_frames: int
    n_usable: int
    symbols_needed: int
    bit_error_rate: float | None


@dataclass(frozen=True)
class Inspection:
    """Whether something is hidden in a file, as far as this password can tell.

    Attributes:
        found: a mark of this password, or of none, was found.
        password_fits: found with the password that was given; ``None`` if none was, or nothing is found:
            then it may be wrong, or there may be nothing, and no one can tell which.
        profile: how it is hidden, or ``None``.
        n_frames: frames of the file.
        n_usable: frames that give at least one symbol.
        symbols_found, symbols_needed: different symbols, and those that give the payload back.
        bit_error_rate: estimated, before correction; ``None`` if unknown.
        bits_per_pixel: of the file, as a measure of how hard it is compressed.
    """

    found: bool
    password_fits: bool | None
    profile: str | None
    n_frames: int
    n_usable: int
    symbols_found: int
    symbols_needed: int
    bit_error_rate: float | None
    bits_per_pixel: float

    @property
    def margin(self) -> float | None:
        """Symbols found over symbols needed: from 1 on the payload can be taken out. ``None`` without any."""
        return self.symbols_found / self.symbols_needed if self.symbols_needed else None


def extract(
    path: str | os.PathLike[str],
    *,
    password: str | None = None,
    progress: Reporter = SILENT,
) -> Extracted:
    """The payload that is hidden in a video: every byte as it was, or none.

    Args:
        path: the video, perhaps trimmed, joined or encoded again.
        password: the one it was hidden with.
        progress: told of every frame.

    Raises:
        FormatError: nothing is hidden for this password (a wrong password and nothing hidden look alike),
            too few symbols are left, or they were changed; or no video.
        StorageError: the file cannot be read.
        SettingError: an empty password.
        MissingExtra: PyAV or, with a password, cryptography is not installed.
    """
    info = probe(path)
    search = Search([locator_key(password)])
    progress.start("reading", info.n_frames, "frames")
    for n_frames in search.run(luma_frames(path)):
        progress.update(n_frames, search.note)
        if search.complete:
            break
    progress.finish(search.note)
    found = search.best
    if not found.joiner.found:
        raise FormatError(_nothing(path, password))
    blob = found.joiner.blob()
    if blob is None:
        raise FormatError(_too_few(info, search))
    payload: Payload = unpack(blob, password)
    return Extracted(
        payload.data,
        payload.name,
        payload.secret,
        found.profile.name,
        search.n_frames,
        found.n_usable,
        found.joiner.needed,
        found.reader.bit_error_rate,
    )


def inspect(
    path: str | os.PathLike[str],
    *,
    password: str | None = None,
    progress: Reporter = SILENT,
) -> Inspection:
    """Whether something is hidden in a video, and how safely it stands there. All frames are read.

    Args:
        path: the video.
        password: tried besides no password.
        progress: told of every frame.

    Raises:
        FormatError: no video.
        StorageError: the file cannot be read.
        SettingError: an empty password.
        MissingExtra: PyAV is not installed.
    """
    info = probe(path)
    keys = [locator_key(password)]
    if password is not None:
        keys.append(locator_key(None))
    search = Search(keys)
    progress.start("reading", info.n_frames, "frames")
    for n_frames in search.run(luma_frames(path)):
        progress.update(n_frames, search.note)
    progress.finish(search.note)
    best = search.best
    found = best.joiner.found > 0
    return Inspection(
        found=found,
        password_fits=best.key == keys[0] if found and password is not None else None,
        profile=best.profile.name if found else None,
        n_frames=search.n_frames,
        n_usable=best.n_usable,
        symbols_found=best.joiner.found,
        symbols_needed=best.joiner.needed,
        bit_error_rate=best.reader.bit_error_rate if found else None,
        bits_per_pixel=_bits_per_pixel(info),
    )


@dataclass
class _Suspect:
    """One profile under one key, and what it gave so far."""

    profile: Profile
    key: bytes
    reader: Reader
    joiner: Joiner
    n_usable: int = 0


class Search:
    """Reads frames with every profile and key, until one of them finds something; then with that alone.

    Args:
        keys: of :func:`firth.video.payload.locator_key`.
        profiles: those to try; all that can be read by default.

    Attributes:
        n_frames: frames read.
    """

    def __init__(self, keys: Sequence[bytes], profiles: Sequence[Profile] | None = None) -> None:
        self._suspects = [
            _Suspect(profile, key, profile.reader(key), Joiner())
            for profile in (readable() if profiles is None else profiles)
            for key in keys
        ]
        self.n_frames = 0

    def run(self, frames: Iterator[Luma]) -> Iterator[int]:
        """Read frame after frame; yields how many were read."""
        for luma in frames:
            for suspect in self._suspects:
                if self._take(suspect, [suspect.reader.read(luma)]):
                    break
            self.n_frames += 1
            yield self.n_frames
        for suspect in self._suspects:
            if self._take(suspect, suspect.reader.finish()):
                break

    def _take(self, suspect: _Suspect, symbols_of: Sequence[list[Symbol]]) -> bool:
        """Add the symbols of a few frames; if there are any, the others are suspects no more."""
        for symbols in symbols_of:
            suspect.n_usable += bool(symbols)
            for symbol in symbols:
                suspect.joiner.add(symbol)
        found = any(symbols_of)
        if found:
            self._suspects = [suspect]
        return found

    @property
    def best(self) -> _Suspect:
        """The one that found most."""
        return max(self._suspects, key=lambda one: one.joiner.found)

    @property
    def complete(self) -> bool:
        """Whether the symbols give the payload back."""
        return self.best.joiner.missing == 0

    @property
    def note(self) -> str:
        """How far it is, for a bar."""
        joiner = self.best.joiner
        return f"{joiner.found:,}/{joiner.needed:,} symbols" if joiner.found else ""


def _nothing(path: str | os.PathLike[str], password: str | None) -> str:
    if password is None:
        return (
            f"extract: nothing is hidden in {os.fspath(path)} without a password; with one it would look "
            "just the same, so give it if there was one"
        )
    return (
        f"extract: nothing is hidden in {os.fspath(path)} for this password; "
        "a wrong password and nothing hidden look alike"
    )


def _too_few(info: VideoInfo, search: Search) -> str:
    joiner, rate = search.best.joiner, search.best.reader.bit_error_rate
    errors = "" if rate is None else f", {100 * rate:.1f} % of bits wrong before correction"
    return (
        f"extract: {joiner.found:,} of {joiner.needed:,} symbols needed were found in {search.n_frames:,} "
        f"frames of {info.path}, at least {joiner.missing:,} are missing; it was cut, or encoded too hard "
        f"({_bits_per_pixel(info):.3f} bits a pixel{errors})"
    )


def _bits_per_pixel(info: VideoInfo) -> float:
    return 8 * info.n_bytes / (info.n_frames * info.n_pixels)


def default_name(extracted: Extracted, path: str | os.PathLike[str]) -> str:
    """A file name for a payload: its own, else that of the video with ``.payload`` behind it."""
    name = extracted.name
    return name if name and not name.startswith(("-", ".")) else f"{Path(path).name}.payload"
