"""All profiles by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from firth.errors import SettingError
from firth.video.lossless import Lossless
from firth.video.profile import Profile


def names() -> list[str]:
    """Names for ``--profile``, from most bytes to most robust."""
    return [profile.name for profile in readable()]


def readable() -> Sequence[Profile]:
    """One of each kind, with the settings that hiding takes by default."""
    return [Lossless(), *_robust().values()]


def pick(name: str, rate: float) -> Profile:
    """The profile of a name.

    Args:
        name: one of :func:`names`.
        rate: bits a luma sample of the lossless profile.

    Raises:
        SettingError: an unknown name, or a rate outside its range.
    """
    if name == "lossless":
        return Lossless(rate)
    robust = _robust()
    if name not in robust:
        raise SettingError(f"hide: there is no profile {name}; use one of {', '.join(names())}")
    return robust[name]


def _robust() -> Mapping[str, Profile]:
    from firth.video.robust import PROFILES

    return PROFILES
