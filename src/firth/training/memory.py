"""How much memory a training run takes, and whether this machine has it: known before the run starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from firth.errors import SettingError
from firth.kernels import Holding, Kernels
from firth.training.config import TABLE_DTYPES
from firth.training.sampling import ROW_FLOATS

TOKEN_BYTES = 150
"""A token in Python: its string, a list slot and a dictionary entry (measured at 8 letters a word)."""

ROW_BYTES = 32
"""Beside the tables, a token takes a count, a keep threshold and its share of the noise distribution."""

BASE_BYTES = 256 << 20
"""The interpreter with numpy and compiled kernels."""

CARD_ROW_BYTES = 12
"""On a card a token takes, beside the tables, a keep threshold, a noise threshold and an alias."""

CARD_BASE_BYTES = 640 << 20
"""A run of 33 million tokens (ids, kept ids, places: 12 bytes each) and its pieces."""


@dataclass(frozen=True)
class Estimate:
    """Peak of anonymous memory of a training run, in bytes. The text is memory-mapped and not in it."""

    tables: int
    """Both tables, rows padded: 2 * V * padded dim * 4."""
    result: int
    """The vectors handed back, rows not padded: V * dim * 4, twice with the context table kept."""
    vocab: int
    """Tokens, counts and what is drawn from them."""
    base: int = BASE_BYTES

    @property
    def total(self) -> int:
        return self.tables + self.result + self.vocab + self.base


def estimate(vocab_size: int, dim: int, *, keep_context: bool = False) -> Estimate:
    """The memory to train ``vocab_size`` vectors of ``dim`` numbers."""
    padded = -(-dim // ROW_FLOATS) * ROW_FLOATS
    return Estimate(
        tables=2 * vocab_size * padded * 4,
        result=(2 if keep_context else 1) * vocab_size * dim * 4,
        vocab=vocab_size * (TOKEN_BYTES + ROW_BYTES),
    )


def check_fits(
    vocab_size: int, dim: int, *, keep_context: bool = False, available: int | None = None
) -> Estimate:
    """The estimate, if it fits into ``available`` bytes (by default what the system has now).

    Where the system does not tell, everything fits.

    Raises:
        SettingError: it does not fit; the sentence names the largest dim and the largest
            vocabulary that would.
    """
    needed = estimate(vocab_size, dim, keep_context=keep_context)
    limit = available_memory() if available is None else available
    if limit is None or needed.total <= limit:
        return needed
    ways = []
    if fitting_dim := largest_dim(vocab_size, limit, keep_context=keep_context):
        ways.append(f"a dim of {fitting_dim} (--dim {fitting_dim})")
    if fitting_size := largest_vocab(dim, limit, keep_context=keep_context):
        ways.append(f"a vocabulary of {fitting_size:,} (--max-vocab {fitting_size})")
    way_out = f"; {' or '.join(ways)} would fit" if ways else "; nothing smaller would fit either"
    raise SettingError(
        f"train(): {vocab_size:,} tokens at dim {dim} need about {gigabytes(needed.total)} of memory, "
        f"{gigabytes(limit)} are available{way_out}"
    )


def replica_bytes(vocab_size: int, dim: int, *, keep_context: bool = False) -> int:
    """What each process takes where several train and each holds the tables: also what they were before."""
    own = estimate(vocab_size, dim, keep_context=keep_context)
    return own.total + 2 * vocab_size * dim * 4


def sharers_bytes(
    vocab_size: int, dim: int, local_size: int, size: int, *, keep_context: bool = False
) -> int:
    """What ``local_size`` processes take together that share the tables, of ``size`` on all machines."""
    own = estimate(vocab_size, dim, keep_context=keep_context)
    before = 2 * vocab_size * dim * 4 if size > local_size else 0
    return own.tables + before + local_size * (own.total - own.tables)


def part_bytes(vocab_size: int, dim: int, size: int) -> int:
    """What each process takes where the rows are split: a part of each table and room for one that comes."""
    own = estimate(vocab_size, dim)
    return own.vocab + own.base + 3 * _table_bytes(-(-vocab_size // size), dim)


def pick_partitioned(
    vocab_size: int,
    dim: int,
    size: int,
    local_size: int,
    *,
    keep_context: bool = False,
    shared: bool = False,
    limit: int | None = None,
) -> bool:
    """Whether ``size`` processes must split the rows: the tables fit this machine only in parts.

    Args:
        local_size: processes on this machine. shared: whether they would share the tables.
        limit: the machine's bytes; what is available by default.

    Raises:
        SettingError: not even the parts fit; says what would.
    """
    limit = available_memory() if limit is None else limit
    whole = local_size * replica_bytes(vocab_size, dim, keep_context=keep_context)
    if shared and local_size > 1:
        whole = sharers_bytes(vocab_size, dim, local_size, size, keep_context=keep_context)
    if limit is None or whole <= limit:
        return False
    parts = local_size * part_bytes(vocab_size, dim, size)
    if parts <= limit:
        return True
    way = "fewer on a machine, or a smaller dim"
    if local_size * part_bytes(vocab_size, dim, vocab_size) <= limit:
        needed = _largest(lambda count: local_size * part_bytes(vocab_size, dim, count) > limit) + 1
        way = f"{needed} processes in all would fit"
    raise SettingError(
        f"train(): {vocab_size:,} tokens at dim {dim} need {gigabytes(whole)} in {local_size} processes "
        f"that hold the tables, {gigabytes(parts)} if each holds one of {size} parts, and "
        f"{gigabytes(limit)} are available; {way}"
    )


def card_bytes(vocab_size: int, dim: int, table_dtype: str = "float32") -> int:
    """What training takes of a card's memory, apart from the text: two tables, what is drawn from, a run."""
    tables = 2 * _table_bytes(vocab_size, dim, table_dtype)
    return tables + CARD_ROW_BYTES * vocab_size + CARD_BASE_BYTES


def check_card(kernels: Kernels, vocab_size: int, dim: int, table_dtype: str = "float32") -> None:
    """Refuse tables that the card of ``kernels`` has no room for; other kernels pass.

    Raises:
        SettingError: names the table, its size, and what would fit.
    """
    free = kernels.free_memory() if isinstance(kernels, Holding) else None
    if free is None or card_bytes(vocab_size, dim, table_dtype) <= free:
        return
    ways = []
    if table_dtype == "float32" and card_bytes(vocab_size, dim, "bfloat16") <= free:
        ways.append("tables in bfloat16 (--table-dtype bfloat16)")
    if fitting_dim := _largest(lambda one: card_bytes(vocab_size, one, table_dtype) <= free):
        ways.append(f"a dim of {fitting_dim} (--dim {fitting_dim})")
    if fitting_size := _largest(lambda size: card_bytes(size, dim, table_dtype) <= free):
        ways.append(f"a vocabulary of {fitting_size:,} (--max-vocab {fitting_size})")
    would = f"{' or '.join(ways)} would fit there, " if ways else ""
    table = gigabytes(_table_bytes(vocab_size, dim, table_dtype))
    whole = gigabytes(card_bytes(vocab_size, dim, table_dtype))
    raise SettingError(
        f"train(): the input and the output table, {table_dtype} ({vocab_size:,}, {dim}) of {table} each, "
        f"need {whole} of the card's memory with all else and {gigabytes(free)} are free; {would}"
        "--device cpu (device='cpu') trains in the system's memory, alone or partitioned over processes"
    )


def _table_bytes(vocab_size: int, dim: int, table_dtype: str = "float32") -> int:
    return vocab_size * -(-dim // ROW_FLOATS) * ROW_FLOATS * TABLE_DTYPES[table_dtype]


def largest_dim(vocab_size: int, limit: int, *, keep_context: bool = False) -> int:
    """The largest dim for which ``vocab_size`` tokens fit into ``limit`` bytes; 0 if none does."""
    return _largest(lambda dim: estimate(vocab_size, dim, keep_context=keep_context).total <= limit)


def largest_vocab(dim: int, limit: int, *, keep_context: bool = False) -> int:
    """The most tokens that fit into ``limit`` bytes at ``dim``; 0 if not even one does."""
    return _largest(lambda size: estimate(size, dim, keep_context=keep_context).total <= limit)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest n >= 1 for which ``fits(n)``, by doubling and halving; 0 where ``fits(1)`` is false."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still take: the least of the system's and its control groups' word.

    ``None`` where nothing is known. Linux: ``MemAvailable`` and the limits of control groups,
    versions 1 and 2, from the process's own group up to the root; elsewhere the physical memory.
    """
    words = [_mem_available(proc), *(_group_leaves(folder) for folder in _groups(proc, cgroups))]
    known = [word for word in words if word is not None]
    return min(known) if known else _physical()


def gigabytes(size: int) -> str:
    """``size`` bytes for a reader: ``"1.5 GB"``, ``"250 MB"``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _mem_available(proc: Path) -> int | None:
    kilobytes = _fields(proc / "meminfo").get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in and that may limit its memory."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 2 has one tree and no name of a controller; version 1 has a tree for each.
        root = cgroups / "memory" if controllers else cgroups
        inner = root / place.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _group_leaves(folder: Path) -> int | None:
    """What a control group's limit leaves; pages of files do not count, they can be dropped."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            ceiling = (folder / limit).read_text().strip()
            taken = (folder / used).read_text().strip()
        except OSError:
            continue
        if ceiling.isdigit() and taken.isdigit():  # "max" is no limit
            stat = _fields(folder / "memory.stat")
            files = stat.get("inactive_file", 0) + stat.get("active_file", 0)
            return max(0, int(ceiling) - max(0, int(taken) - files))
    return None


def _fields(path: Path) -> dict[str, int]:
    """``name number ...`` lines of a system file; empty where it cannot be read."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system has these names, or sysconf at all
        return None
