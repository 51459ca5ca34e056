"""docs/video-robust.md keeps its word: its Python blocks run, and its table of settings is the code's."""

import re
from pathlib import Path

from firth.video.robust import PROFILES

PAGE = (Path(__file__).parents[1] / "docs" / "video-robust.md").read_text(encoding="utf-8")


def test_python_blocks_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "video-robust.md", "exec"), {"__name__": "page"})


def test_the_settings_are_those_of_the_code() -> None:
    named = dict(PROFILES)
    fine = PROFILES["web"].fine
    assert fine is not None
    named["web, 45 dB and more"] = fine
    named |= {f"{name}, spread": one.wide for name, one in named.items()}
    for name, one in named.items():
        size, rates = one.carrier.block, ", ".join(f"{rate:g}" for rate in one.rates)
        coefs = ", ".join(map(str, one.coefs))
        settings = (f"{size} x {size}", coefs, f"{one.step:g}", rates, one.repeat)
        row = f"| {name} | {' | '.join(map(str, settings))} |"
        assert row in PAGE, row


def test_files_that_are_named_exist() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"`((?:docs|bench|video)/[\w.-]+)`", PAGE):
        assert (
            (root / name).exists() or (root / "src" / "firth" / name).exists() or name == "docs/video.md"
        ), name
