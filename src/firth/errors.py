"""Every error that firth raises on purpose.

::

    FirthError
    ├── SettingError(ValueError)     a wrong call: an argument out of its range, settings that do not fit
    ├── ShapeError(ValueError)       an array of the wrong shape or dtype
    ├── KeyNotFound(KeyError)        a token that is not there, with the closest that are
    ├── SourceError(ValueError)      text that cannot be read or used: empty, not UTF-8, one word only
    ├── FormatError(ValueError)      a file of vectors that is cut, lies or is none
    ├── StorageError(OSError)        a file or folder that cannot be read or written
    ├── RunError(RuntimeError)       a run folder in use, or made by other settings
    ├── Diverged(ArithmeticError)    training left the finite numbers
    └── MissingExtra(ImportError)    an optional dependency that is not installed

    Interrupted(KeyboardInterrupt)   Ctrl-C during training, everything saved

A message is one sentence with the facts in it: which function, what was given, what was
expected, which file and line or byte, and the way out. The command line prints it after
``firth: `` and exits with the class's ``exit_code``: 2 for a wrong call, 1 for a failed run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence


class FirthError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1


class SettingError(FirthError, ValueError):
    """An argument outside its range, or two that exclude each other."""

    exit_code = 2


class ShapeError(FirthError, ValueError):
    """An array whose shape or dtype does not fit."""

    exit_code = 2


class KeyNotFound(FirthError, KeyError):
    """A token that the table does not hold.

    Args:
        key: the token asked for.
        where: what was searched, e.g. ``"vectors of 71,290 keys"``.
        close: keys that exist and look like it, best first.
    """

    def __init__(self, key: object, where: str, close: Sequence[str] = ()) -> None:
        self.key = key
        self.close = list(close)
        super().__init__(f"{key!r} is not in the {where}{did_you_mean(close)}")

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; a sentence should read as one.
        return str(self.args[0])


class SourceError(FirthError, ValueError):
    """Text that cannot be read as asked, or that holds nothing to learn from."""


class FormatError(FirthError, ValueError):
    """A file that is not what its name, header or caller says."""


class StorageError(FirthError, OSError):
    """A file or folder that cannot be opened, written or replaced."""


class RunError(FirthError, RuntimeError):
    """A run folder that another process holds or that other settings made."""


class Diverged(FirthError, ArithmeticError):
    """NaN or infinity in a table; the last good checkpoint is kept."""


class MissingExtra(FirthError, ImportError):
    """An optional dependency is needed: ``pip install 'firth[extra]'``."""


def did_you_mean(close: Iterable[str]) -> str:
    """The end of a sentence that offers close keys: ``"; did you mean 'paris'?"`` or ``""``."""
    names = ", ".join(repr(key) for key in close)
    return f"; did you mean {names}?" if names else ""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training: the block under way was finished and, with a run folder, saved.

    Args:
        place, total: tokens done, tokens to do.
        run: the run folder that holds the checkpoint, or ``None``.
    """

    def __init__(self, place: int, total: int, run: os.PathLike[str] | None) -> None:
        self.place, self.total, self.run = place, total, run
        saved = f"saved in {os.fspath(run)}; resume to go on" if run is not None else "nothing was saved"
        super().__init__(f"training stopped at {100 * place / total:.1f} %: {saved}")
