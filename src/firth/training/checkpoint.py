"""The run folder: who may write there, by which settings, and the state to go on from.

::

    RUN/lock                  held by flock while a process trains; dies with it
    RUN/settings.json         what the run was started with
    RUN/run.vocab             the words of the rows, with the counts of the result
    RUN/checkpoint-PLACE/     inputs.npy, outputs.npy, state.json; the last two are kept
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from firth.errors import RunError, StorageError
from firth.files import remove_tree, storage_error, sync_folder, write_text
from firth.vocab import Vocab

VOCAB = "run.vocab"

KEPT = 2
"""So many checkpoints stay, the last ones."""

_DIGITS = 15
SHARE = 0.02
"""Saving takes at most this share of the time."""

DISK = 500e6
"""Bytes a second that the first checkpoint is expected to be written with; later ones are timed."""


@dataclass
class State:
    """All that training changes."""

    inputs: npt.NDArray[np.float32]  # (V, padded dim)
    outputs: npt.NDArray[np.float32]  # (V, padded dim)
    place: int = 0  # tokens done since the run began; the whole clock
    epoch_loss: float = 0.0  # summed over this epoch
    epoch_pairs: float = 0.0
    losses: list[float] = field(default_factory=list)  # mean loss a pair of each finished epoch
    tokens: int = 0  # of an epoch; 0 where an older firth wrote the checkpoint


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    found = folder.glob("checkpoint-" + "[0-9]" * _DIGITS)
    return sorted(path for path in found if (path / "state.json").is_file())


def read_state(checkpoint: Path, way_out: str) -> State:
    """What a checkpoint holds, its tables memory-mapped.

    Raises:
        RunError: its files are damaged; the sentence ends with ``way_out``.
    """
    try:
        saved = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        tables = {}
        for name in ("inputs", "outputs"):
            table = np.load(checkpoint / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if table.dtype != np.float32 or table.ndim != 2:
                raise ValueError(f"{name}.npy is {table.dtype} {table.shape}, not float32 of two dimensions")
            tables[name] = table
        return State(
            **tables,
            place=int(saved["place"]),
            epoch_loss=float(saved["epoch_loss"]),
            epoch_pairs=float(saved["epoch_pairs"]),
            losses=[float(loss) for loss in saved["losses"]],
            tokens=int(saved.get("tokens", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise RunError(_unreadable(checkpoint, f"{type(error).__name__}: {error}", way_out)) from error


def _unreadable(checkpoint: Path, what: str, way_out: str) -> str:
    return f"the checkpoint {checkpoint} cannot be read ({' '.join(what.split())}); {way_out}"


class RunFolder:
    """A folder that holds the checkpoints of one run; use as a context manager.

    Args:
        path: made if it does not exist.
        settings: what the run is started with; JSON-able.
        resume: go on from the last checkpoint if there is one.
        vocab: the words of the rows, kept for those who train on from this run; may be left out.

    Raises:
        RunError: another process trains there; other settings made it; it holds a checkpoint and
            ``resume`` is false.
        StorageError: the folder cannot be made or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        resume: bool,
        vocab: Vocab | None = None,
    ) -> None:
        self.path = Path(path)
        self._settings = json.loads(json.dumps(settings))
        self._resume = resume
        self._vocab = vocab
        self._lock: IO[bytes] | None = None
        self._began = time.monotonic()
        self._spent = 0.0  # seconds, on saving
        self._cost: float | None = None  # seconds, of the last saving

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
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> None:
        import fcntl

        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is training in the run folder {self.path}; "
                "wait for it, or choose another folder with --run DIR (run= in Python)"
            ) from error
        except OSError as error:  # a file system without locks
            raise storage_error(error, self.path, "lock the run folder") from error

    def _check_settings(self) -> None:
        file = self.path / "settings.json"
        for leftover in self.path.glob(".tmp-*"):  # of a process that was killed while it saved
            remove_tree(leftover)
        for name in (file.name, VOCAB):
            for half in self.path.glob(f".{name}.*.tmp"):
                half.unlink(missing_ok=True)
        found = self.checkpoints()
        if found:
            there = self._read_settings(file)
            differing = _differences(there, self._settings)
            if differing:
                raise RunError(
                    f"the run folder {self.path} was made by other settings ({'; '.join(differing)}): "
                    "give the same, choose another folder, or remove this one to start again"
                )
            if not self._resume:
                raise RunError(
                    f"the run folder {self.path} holds a checkpoint: add --resume (resume=True) to go on "
                    "from it, or remove the folder to start again"
                )
        else:
            write_text(file, json.dumps(self._settings, indent=1, sort_keys=True))
            if self._vocab is not None:
                self._vocab.save(self.path / VOCAB)

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
        return checkpoints_in(self.path)

    def load(self, state: State) -> bool:
        """Fill ``state`` from the last checkpoint; false if there is none.

        Raises:
            RunError: the checkpoint's files are damaged. An older one is not taken unasked: files that
                were synced before they got their name are damaged by a failing disk or by hand, and
                both are worth knowing.
        """
        found = self.checkpoints()
        if not found:
            return False
        last = found[-1]
        way_out = f"remove it to {'go on from the one before' if len(found) > 1 else 'start again'}"
        saved = read_state(last, way_out)
        for name in ("inputs", "outputs"):
            table, read = getattr(state, name), getattr(saved, name)
            if read.shape != table.shape:
                what = f"ValueError: {name}.npy is float32 {read.shape}, not float32 {table.shape}"
                raise RunError(_unreadable(last, what, way_out))
            table[:] = read
        state.place, state.losses = saved.place, saved.losses
        state.epoch_loss, state.epoch_pairs = saved.epoch_loss, saved.epoch_pairs
        return True

    def due(self, state: State) -> bool:
        """Whether so much time has passed that saving ``state`` now keeps to its share."""
        cost = (state.inputs.nbytes + state.outputs.nbytes) / DISK if self._cost is None else self._cost
        return self._spent + cost <= SHARE * (time.monotonic() - self._began)

    def save(self, state: State, write: Callable[[Path, State], None] | None = None) -> Path:
        """Write a checkpoint under another name, sync, rename, and drop all but the last two.

        Args:
            write: puts ``inputs.npy`` and ``outputs.npy`` into a folder where ``state`` lacks rows.

        Raises:
            StorageError: it cannot be written; older checkpoints stay.
        """
        began = time.monotonic()
        final = self.path / f"checkpoint-{state.place:0{_DIGITS}d}"
        temporary = self.path / f".tmp-{final.name}"
        try:
            remove_tree(temporary)
            temporary.mkdir()
            (write or _write_tables)(temporary, state)
            with (temporary / "state.json").open("w", encoding="utf-8") as text:
                json.dump(
                    {
                        "place": state.place,
                        "epoch_loss": state.epoch_loss,
                        "epoch_pairs": state.epoch_pairs,
                        "losses": state.losses,
                        "tokens": state.tokens,
                    },
                    text,
                )
                text.flush()
                os.fsync(text.fileno())
            sync_folder(temporary)
            self._drop(final)  # there may be one that cannot be read
            temporary.rename(final)
            sync_folder(self.path)
        except OSError as error:
            remove_tree(temporary)
            raise storage_error(error, final) from error
        except BaseException:
            remove_tree(temporary)
            raise
        for old in self.checkpoints()[:-KEPT]:
            self._drop(old)
        self._cost = time.monotonic() - began
        self._spent += self._cost
        return final

    def _drop(self, checkpoint: Path) -> None:
        """Remove a checkpoint in such an order that half of it is never taken for a whole one."""
        gone = self.path / f".tmp-old-{checkpoint.name}"
        with contextlib.suppress(OSError):
            checkpoint.rename(gone)
        remove_tree(gone)


def _write_tables(folder: Path, state: State) -> None:
    for name in ("inputs", "outputs"):
        with (folder / f"{name}.npy").open("wb") as file:
            _write_npy(file, getattr(state, name))
            file.flush()
            os.fsync(file.fileno())


def _write_npy(file: IO[bytes], table: npt.NDArray[np.float32]) -> None:
    """What ``np.save`` writes; its own writer loses the reason when the disk is full."""
    header = np.lib.format.header_data_from_array_1_0(table)
    np.lib.format.write_array_header_1_0(file, header)
    file.write(table.data.cast("B"))


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two settings, as ``"dim is 100 there, 200 was asked"``."""
    found = []
    for key in sorted(set(there) | set(asked)):
        old, new = there.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif key == "corpus" and old != new:
            found.append("the text, its vocabulary or how it is read has changed")
        elif key == "init" and old != new:
            found.append(f"the vectors to start from {_changed(old, new)}")
        elif old != new:
            found.append(f"{prefix}{key} is {old} there, {new} was asked")
    return found


def _changed(there: object, asked: object) -> str:
    if there is None or asked is None:
        return "were given there, none were asked" if asked is None else "were asked, none were given there"
    return "have changed"
