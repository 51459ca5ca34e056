"""What a caller may hang into the loop, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firth.vectors import Vectors


@dataclass(frozen=True)
class Moment:
    """Where a run stands. ``str()`` gives fastText's numbers: words/s, learning rate, loss, time left."""

    place: int
    """Tokens done since the run began, over all epochs."""
    total: int
    """Tokens to do: corpus times epochs."""
    epoch: int
    """The epoch that is under way, from 0; in ``on_epoch_end`` the one that ended."""
    words_per_second: float
    """Tokens a second, all threads together, since this process began to train."""
    lr: float
    """Learning rate at ``place``."""
    loss: float
    """Mean loss a pair of the last stretch; NaN before the first."""
    epoch_losses: tuple[float, ...]
    """Mean loss a pair of each finished epoch."""
    seconds: float
    """Since this process began to train."""

    @property
    def share(self) -> float:
        """Share done, 0 to 1."""
        return self.place / self.total

    @property
    def seconds_left(self) -> float:
        """At the present speed; infinite before the first run."""
        if not self.words_per_second:
            return float("inf")
        return (self.total - self.place) / self.words_per_second

    def __str__(self) -> str:
        return (
            f"words/s: {self.words_per_second:,.0f} lr: {self.lr:.6f} loss: {self.loss:.4f} "
            f"ETA: {_clock(self.seconds_left)}"
        )


class Callback:
    """Override what you need; each method does nothing by default."""

    def on_begin(self, moment: Moment) -> None:
        """Before the first run; ``moment.place`` is not 0 where a run is resumed."""

    def on_progress(self, moment: Moment) -> None:
        """After each run of blocks, about once a second."""

    def on_epoch_end(self, moment: Moment, vectors: Callable[[], Vectors]) -> None:
        """After each epoch; ``vectors()`` copies the vectors as they are."""

    def on_checkpoint(self, moment: Moment, path: Path) -> None:
        """After a checkpoint was written to ``path``."""

    def on_end(self, moment: Moment, vectors: Vectors) -> None:
        """After the last run, with the result."""


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m {rest:02d}s" if hours else f"{minutes}m {rest:02d}s"
