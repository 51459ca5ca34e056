"""What a person at a terminal sees."""

from __future__ import annotations

import pytest

from firth.progress import Bar

NOTE = "words/s: 5,777,472 lr: 0.003381 loss: 1.2739 ETA: 0m 00s"


@pytest.mark.parametrize(("columns", "clock"), [(80, False), (120, True)])
def test_the_bar_shows_all_its_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, clock: bool
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = Bar()
    bar.start("train", 100, "words")
    bar.update(50, NOTE)
    bar.finish(NOTE)
    shown = capsys.readouterr()
    last = shown.err.rstrip("\n").splitlines()[-1]
    assert not shown.out and last.startswith("train ━━━") and f"100.0 % {NOTE}" in last
    assert ("0:00:00" in last) == clock and len(last) <= columns
