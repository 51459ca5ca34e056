"""How long work reports that it is alive: a bar on a terminal, plain lines elsewhere, or nothing.

Library functions take ``progress: Reporter = SILENT``; the command line passes ``pick()``.
Everything goes to stderr, so that stdout holds results only.
"""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Reporter(Protocol):
    """Receives the progress of one stage after another."""

    def start(self, stage: str, total: float | None, unit: str) -> None:
        """A stage begins: its name, its size in ``unit`` (``None`` if unknown)."""

    def update(self, done: float, note: str = "") -> None:
        """``done`` units of the stage are finished (a total, not an increment); ``note`` is shown."""

    def finish(self, note: str = "") -> None:
        """The stage ended; ``note`` sums it up."""

    def close(self) -> None:
        """Leave the terminal as it was: no stage goes on, whether it ended or not."""


class Silent:
    """Reports nothing: the default of every library function."""

    def start(self, stage: str, total: float | None, unit: str) -> None: ...

    def update(self, done: float, note: str = "") -> None: ...

    def finish(self, note: str = "") -> None: ...

    def close(self) -> None: ...


SILENT: Reporter = Silent()


class Plain:
    """Plain lines for logs and pipes, at most one every ``every`` seconds.

    Args:
        stream: where to write; ``sys.stderr`` at the time of writing by default.
        every: the least time between two lines of a stage, in seconds.
    """

    def __init__(self, stream: IO[str] | None = None, every: float = 5.0) -> None:
        self._stream = stream
        self._every = every
        self._stage, self._unit = "", ""
        self._total: float | None = None
        self._began = self._last = 0.0

    def start(self, stage: str, total: float | None, unit: str) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._began = self._last = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        share = f"{100 * done / self._total:5.1f} %" if self._total else f"{done:,.0f} {self._unit}"
        self._write(f"{self._stage}: {share}  {note}".rstrip())

    def finish(self, note: str = "") -> None:
        seconds = time.monotonic() - self._began
        self._write(f"{self._stage}: done in {seconds:.1f} s  {note}".rstrip())

    def close(self) -> None:
        self._stage = ""

    def _write(self, line: str) -> None:
        print(line, file=self._stream or sys.stderr, flush=True)


WIDE = 100
"""Columns from which a terminal has room for the time taken."""


class Bar:
    """A bar with share done and note, drawn by rich; fits into 80 columns, tells the time taken in 100."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, stage: str, total: float | None, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.close()
        console = Console(stderr=True)
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # what the others leave
            TextColumn("{task.percentage:5.1f} %"),
            TextColumn("{task.fields[note]}"),
            *([TimeElapsedColumn()] if console.width >= WIDE else []),
        ]
        self._bar = Progress(*columns, console=console, expand=True)
        self._bar.start()
        self._task = self._bar.add_task(stage, total=total, note="")

    def update(self, done: float, note: str = "") -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)

    def finish(self, note: str = "") -> None:
        if self._bar is not None and self._task is not None:
            total = self._bar.tasks[0].total
            self._bar.update(self._task, completed=total, note=note)
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def pick(quiet: bool = False) -> Reporter:
    """The reporter that fits stderr: a bar on a terminal, plain lines elsewhere, silence if asked."""
    if quiet:
        return SILENT
    return Bar() if sys.stderr.isatty() else Plain()
