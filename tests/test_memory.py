"""The estimate of memory: its arithmetic, the refusal, and reading what the system leaves."""

from pathlib import Path

import pytest

from firth.errors import SettingError
from firth.training import memory


def test_estimate_pads_rows_to_cache_lines() -> None:
    found = memory.estimate(1000, 100)
    assert found.tables == 2 * 1000 * 112 * 4
    assert found.result == 1000 * 100 * 4
    assert memory.estimate(1000, 100, keep_context=True).result == 2 * found.result
    assert memory.estimate(1000, 112).tables == found.tables
    assert memory.estimate(1000, 113).tables == 2 * 1000 * 128 * 4
    assert found.total == found.tables + found.result + found.vocab + found.base


def test_what_fits_is_let_through() -> None:
    needed = memory.estimate(50_000, 100)
    assert memory.check_fits(50_000, 100, available=needed.total) == needed


def test_refusal_names_what_would_fit() -> None:
    with pytest.raises(SettingError) as caught:
        memory.check_fits(1_000_000, 300, available=1 << 30)
    sentence = str(caught.value)
    dim, size = memory.largest_dim(1_000_000, 1 << 30), memory.largest_vocab(300, 1 << 30)
    assert f"--dim {dim})" in sentence and f"--max-vocab {size})" in sentence
    assert memory.estimate(1_000_000, dim).total <= 1 << 30 < memory.estimate(1_000_000, dim + 1).total
    assert memory.estimate(size, 300).total <= 1 << 30 < memory.estimate(size + 1, 300).total
    assert caught.value.exit_code == 2


def test_refusal_where_nothing_fits() -> None:
    with pytest.raises(SettingError, match="nothing smaller would fit either"):
        memory.check_fits(10, 10, available=1000)


def _system(tmp_path: Path, cgroup: str, files: dict[str, str]) -> int | None:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory.available_memory(tmp_path / "proc", tmp_path / "cgroup")


MEMINFO = "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"


def test_available_is_what_the_system_says_without_a_limit(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "cgroup/memory.max": "max\n", "cgroup/memory.current": "77\n"}
    assert _system(tmp_path, "0::/\n", files) == 8000 * 1024


def test_a_control_group_above_limits_too(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "cgroup/a/memory.max": "5000000\n",
        "cgroup/a/memory.current": "3000000\n",
        "cgroup/a/memory.stat": "inactive_file 600000\nactive_file 400000\nanon 2000000\n",
        "cgroup/a/b/memory.max": "max\n",
        "cgroup/a/b/memory.current": "1\n",
    }
    assert _system(tmp_path, "0::/a/b\n", files) == 3_000_000


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "cgroup/memory/job/memory.limit_in_bytes": "1000\n",
        "cgroup/memory/job/memory.usage_in_bytes": "300\n",
    }
    assert _system(tmp_path, "8:pids:/\n4:memory:/job\n", files) == 700


def test_this_machine_has_some_memory() -> None:
    found = memory.available_memory()
    assert found is None or found > 0
