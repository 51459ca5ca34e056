"""The run folder: who may write there, by which settings, and the state to go on from.

::

    RUN/lock                  held by flock while a process trains; dies with it
    RUN/settings.json         what the run was started with
    RUN/checkpoint-PLACE/     inputs.npy, outputs.npy, state.json; the last two are kept
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from firth.errors import RunError, StorageError
from firth.files import remove_tree, storage_error, sync_folder, write_text

KEPT = 2
SHARE = 0.02
"""Saving takes at most this share of the time."""


@dataclass
class State:
    """All that training changes."""

    inputs: npt.NDArray[np.float32]  # (V, padded dim)
    outputs: npt.NDArray[np.float32]  # (V, padded dim)
    place: int = 0  # tokens done since the run began; the whole clock
    epoch_loss: float = 0.0  # summed over this epoch
    epoch_pairs: float = 0.0
    losses: list[float] = field(default_factory=list)  # mean loss a pair of each finished epoch


class RunFolder:
    """A folder that holds the checkpoints of one run; use as a context manager.

    Args:
        path: made if it does not exist.
        settings: what the run is started with; JSON-able.
        resume: go on from the last checkpoint if there is one.

    Raises:
        RunError: another process trains there; other settings made it; it holds a checkpoint and
            ``resume`` is false.
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], resume: bool) -> None:
        self.path = Path(path)
        self._settings = json.loads(json.dumps(settings))
        self._resume = resume
        self._lock: IO[bytes] | None = None
        self._saved_at = time.monotonic()
        self._cost = 0.0

    def __enter__(self) -> RunFolder:
        if not self.path.parent.is_dir():
            raise StorageError(
                f"cannot make the run folder {self.path}: the folder {self.path.parent} does not exist"
            )
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = (self.path / "lock").open("ab")
        except OSError as error:
            raise storage_error(error, self.path, "make the run folder") from error
        try:
            self._take_lock()
            self._check_settings()
        except BaseException:
            self._lock.close()
            raise
        self._saved_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> None:
        import fcntl

        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another process is training in the run folder {self.path}; "
                "wait for it, or choose another folder with --run DIR (run= in Python)"
            ) from error

    def _check_settings(self) -> None:
        for leftover in self.path.glob(".tmp-*"):  # of a process that was killed while it saved
            remove_tree(leftover)
        file = self.path / "settings.json"
        found = self.checkpoints()
        if found:
            there = self._read_settings(file)
            differing = _differences(there, self._settings)
            if differing:
                raise RunError(
                    f"the run folder {self.path} was made by other settings ({'; '.join(differing)}): "
                    "give the same, or choose another folder"
                )
            if not self._resume:
                raise RunError(
                    f"the run folder {self.path} holds a checkpoint: add --resume (resume=True) to go on "
                    "from it, or remove the folder to start again"
                )
        else:
            write_text(file, json.dumps(self._settings, indent=1, sort_keys=True))

    def _read_settings(self, file: Path) -> dict[str, Any]:
        try:
            read = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"the run folder {self.path} has checkpoints but no readable {file.name}"
            ) from error
        return read if isinstance(read, dict) else {}

    def checkpoints(self) -> list[Path]:
        """The checkpoints there, oldest first."""
        found = [path for path in self.path.glob("checkpoint-*") if (path / "state.json").is_file()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def load(self, state: State) -> bool:
        """Fill ``state`` from the last checkpoint; false if there is none.

        Raises:
            RunError: the checkpoint's files are damaged.
        """
        found = self.checkpoints()
        if not found:
            return False
        last = found[-1]
        try:
            saved = json.loads((last / "state.json").read_text(encoding="utf-8"))
            for name in ("inputs", "outputs"):
                getattr(state, name)[:] = np.load(last / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            state.place = int(saved["place"])
            state.epoch_loss = float(saved["epoch_loss"])
            state.epoch_pairs = float(saved["epoch_pairs"])
            state.losses = [float(loss) for loss in saved["losses"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"the checkpoint {last} cannot be read ({error}); remove it to use an older one"
            ) from error
        return True

    def due(self) -> bool:
        """Whether so much time has passed that saving keeps to its share."""
        return (time.monotonic() - self._saved_at) * SHARE >= self._cost

    def save(self, state: State) -> Path:
        """Write a checkpoint under another name, sync, rename, and drop all but the last two.

        Raises:
            StorageError: it cannot be written; older checkpoints stay.
        """
        began = time.monotonic()
        final = self.path / f"checkpoint-{state.place:015d}"
        temporary = self.path / f".tmp-{final.name}"
        try:
            remove_tree(temporary)
            temporary.mkdir()
            for name in ("inputs", "outputs"):
                with (temporary / f"{name}.npy").open("wb") as file:
                    np.save(file, getattr(state, name), allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            with (temporary / "state.json").open("w", encoding="utf-8") as text:
                json.dump(
                    {
                        "place": state.place,
                        "epoch_loss": state.epoch_loss,
                        "epoch_pairs": state.epoch_pairs,
                        "losses": state.losses,
                    },
                    text,
                )
                text.flush()
                os.fsync(text.fileno())
            sync_folder(temporary)
            if not final.exists():  # the same place holds the same state
                temporary.rename(final)
            sync_folder(self.path)
        except OSError as error:
            remove_tree(temporary)
            raise storage_error(error, final) from error
        except BaseException:
            remove_tree(temporary)
            raise
        for old in self.checkpoints()[:-KEPT]:
            remove_tree(old)
        remove_tree(temporary)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began
        return final


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two settings, as ``"dim is 100 there, 200 was asked"``."""
    found = []
    for key in sorted(set(there) | set(asked)):
        old, new = there.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            with contextlib.suppress(TypeError):
                found.append(f"{prefix}{key} is {_short(old)} there, {_short(new)} was asked")
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
