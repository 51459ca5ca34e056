"""What a table file holds: its header, how it is checked, and how a new one is filled.

Native byte order; every part begins at a multiple of 65,536 bytes::

    0    8 bytes  magic "firthtab"
    8    uint32   version, 1
    12   uint32   bytes of JSON
    64   uint64   mark: 2 * steps, plus 1 while something writes (a sequence lock)
    72   uint64   1 after a flush, 0 from the first write after it on
    80   uint64   steps at the last flush
    96   36 bytes boot id of the machine that wrote last
    256  JSON     rows, dim, dtype, recipe, byteorder, identity, parts (name, dtype, shape, offset)
    65536         weight, then the state tensors by name

A process that dies (also by kill -9) leaves its writes with the operating system, so the mark tells all:
even is whole, odd names the step that was cut. A machine that goes down loses what it had not written yet;
so the second mark is cleared, and synced, before the first write after a flush.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from firth.errors import FormatError, RunError, SettingError
from firth.files import storage_error
from firth.nn.recipes import Recipe

MAGIC = b"firthtab"
VERSION = 1
ALIGN = 65_536
"""Parts begin at multiples of it: the largest page size of today's machines."""

CHUNK = 1 << 20
"""Elements drawn or copied at once when a file is made; a multiple of 16."""

JSON_AT, BOOT_AT = 256, 96
MARK, CLEAN, FLUSHED = 8, 9, 10
"""Places of the marks in the header, as uint64."""

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Part = tuple[str, torch.dtype, tuple[int, ...], int]
Initial = Tensor | Callable[[Tensor], object] | None


@dataclass(frozen=True)
class TableSpec:
    """What a table file holds.

    Args:
        rows, dim: the shape of the weight.
        dtype: of the weight: float32, float64, float16 or bfloat16. State is float64 for float64, else
            float32.
        kind: the recipe that the state belongs to, e.g. ``"adagrad"``; ``""``: no state.
        states: state tensors and their shapes.
        identity: a digest of what the rows stand for (a vocabulary); compared if both have one.
        fills: what the state tensors of a new file are filled with, if not zeros; not kept.

    Raises:
        SettingError: a negative size, or one that no file can have.
        TypeError: another dtype.
    """

    rows: int
    dim: int
    dtype: torch.dtype = torch.float32
    kind: str = ""
    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    identity: str = ""
    fills: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in _NAMES:
            raise TypeError(
                f"a table file holds float32, float64, float16 or bfloat16, not {self.dtype}; "
                "give one of these as dtype"
            )
        if not all(_is_size(size) for size in (self.rows, self.dim)):
            raise SettingError(
                f"a table file needs whole numbers >= 0 as rows and dim, not {self.rows!r} and {self.dim!r}"
            )
        if not all(_is_size(size) for shape in self.states.values() for size in shape):
            raise SettingError(f"a table file needs whole numbers >= 0 as shapes, not {dict(self.states)}")
        if self.size >= 1 << 62:
            raise SettingError(f"a table of {self.rows} x {self.dim} {_NAMES[self.dtype]} is no file's size")

    @classmethod
    def of(
        cls, rows: int, dim: int, dtype: torch.dtype, recipe: Recipe | None = None, identity: str = ""
    ) -> TableSpec:
        """The file of a layer trained by ``recipe``, or (``None``) of one that is only looked up."""
        if recipe is None:
            return cls(rows, dim, dtype, identity=identity)
        states = recipe.state_shapes(rows, dim)
        fills = {name: recipe.initial(name) for name in states if recipe.initial(name)}
        return cls(rows, dim, dtype, recipe.kind, states, identity, fills)

    @property
    def parts(self) -> list[Part]:
        """Name, dtype, shape and offset of each tensor: the weight first, then the state by name."""
        found: list[Part] = []
        at = ALIGN
        state = torch.float64 if self.dtype == torch.float64 else torch.float32
        tensors: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        tensors.append(("weight", self.dtype, (self.rows, self.dim)))
        tensors += [(name, state, tuple(self.states[name])) for name in sorted(self.states)]
        for name, dtype, shape in tensors:
            found.append((name, dtype, shape, at))
            at = _aligned(at + elements(shape) * dtype.itemsize)
        return found

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        _, dtype, shape, at = self.parts[-1]
        return _aligned(at + elements(shape) * dtype.itemsize)

    @property
    def table(self) -> str:
        """Size and dtype in words."""
        return f"{self.rows:,} rows of {self.dim} {_NAMES[self.dtype]}"

    def __str__(self) -> str:
        names = f" ({', '.join(sorted(self.states))})" if self.states else ""
        return f"{self.table} with {_state_of(self)}{names}"

    def to_json(self) -> bytes:
        """The header's JSON."""
        parts = [[name, _NAMES[dtype], list(shape), at] for name, dtype, shape, at in self.parts]
        return json.dumps(
            {
                "rows": self.rows,
                "dim": self.dim,
                "dtype": _NAMES[self.dtype],
                "recipe": self.kind,
                "byteorder": sys.byteorder,
                "identity": self.identity,
                "parts": parts,
            }
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> TableSpec:
        """The spec that :meth:`to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        read = json.loads(text)
        states = {str(name): tuple(shape) for name, _, shape, _ in read["parts"][1:]}
        spec = cls(
            read["rows"],
            read["dim"],
            _DTYPES[read["dtype"]],
            str(read["recipe"]),
            states,
            str(read["identity"]),
        )
        if read["byteorder"] != sys.byteorder:
            raise ValueError(f"its numbers are {read['byteorder']}-endian, this machine's {sys.byteorder}")
        if json.loads(spec.to_json()) != read:
            raise ValueError("its parts do not fit its rows, dim and dtype")
        return spec


def new_header(spec: TableSpec) -> bytes:
    text = spec.to_json()
    if len(text) > ALIGN - JSON_AT:
        raise SettingError(f"a table file's header cannot hold {len(text):,} bytes of names")
    header = bytearray(JSON_AT)
    header[:8] = MAGIC
    header[8:16] = np.array([VERSION, len(text)], np.uint32).tobytes()
    header[BOOT_AT : BOOT_AT + 36] = boot_id()  # nothing is flushed yet
    return bytes(header) + text


def read_header(descriptor: int, path: Path) -> TableSpec:
    """What the file holds, with its size checked; nothing is allocated or mapped."""
    header = os.pread(descriptor, ALIGN, 0)
    if header[:8] != MAGIC:
        raise FormatError(f"{path} is not a table file (it does not begin with {MAGIC.decode()!r})")
    if len(header) < ALIGN:
        raise FormatError(f"the table file {path} is cut: {len(header):,} bytes are less than its header")
    version, length = (int(number) for number in np.frombuffer(header, np.uint32, 2, 8))
    if version != VERSION:
        raise FormatError(f"the table file {path} has version {version}; this firth reads {VERSION}")
    try:
        if length > ALIGN - JSON_AT:
            raise ValueError(f"it would be {length:,} bytes long")
        spec = TableSpec.from_json(header[JSON_AT : JSON_AT + length])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise FormatError(f"the table file {path} has a damaged header ({what})") from error
    there = os.fstat(descriptor).st_size
    if there != spec.size:
        raise FormatError(
            f"the table file {path} holds {there:,} bytes, its header ({spec}) promises {spec.size:,}: "
            "it is cut or damaged; go back to a copy"
        )
    return spec


def check_fits(path: Path, there: TableSpec, asked: TableSpec, training: bool) -> None:
    if training and there.kind != asked.kind:
        raise SettingError(
            f"the table file {path} keeps {_state_of(there)}, asked was {_state_of(asked)}; train it as "
            "before, or make a new file with initial=read_table(...).weight"
        )
    if training:
        holds, wanted = str(there), str(asked)
    else:
        holds, wanted = there.table, asked.table
    if holds != wanted or (training and dict(there.states) != dict(asked.states)):
        raise SettingError(
            f"the table file {path} holds {holds}, asked was {wanted}: give the same, or choose another file"
        )
    if there.identity and asked.identity and there.identity != asked.identity:
        raise SettingError(
            f"the rows of the table file {path} stand for other words than the vocabulary given; open it "
            "with the vocabulary that made it, or choose another file"
        )


def _state_of(spec: TableSpec) -> str:
    return f"state of {spec.kind}" if spec.kind else "no state"


def check_whole(descriptor: int, path: Path) -> None:
    """That the last writer ended between two steps and that nothing of it was lost."""
    header = os.pread(descriptor, JSON_AT, 0)
    marks = np.frombuffer(header, np.uint64)
    step, cut = divmod(int(marks[MARK]), 2)
    if cut:
        raise RunError(
            f"the table file {path} holds half of step {step + 1}: the process that trained it died during "
            f"this step; {ways_out(path)}"
        )
    if not marks[CLEAN] and header[BOOT_AT : BOOT_AT + 36] != boot_id():
        raise RunError(
            f"the table file {path} was in training when its machine went down, and may hold any part of "
            f"what came after step {int(marks[FLUSHED])}, the last flushed; {ways_out(path)}"
        )


def boot_id() -> bytes:
    """36 bytes that change when the machine starts again; zeros where the system does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()[:36].ljust(36, b"\0")
    return bytes(36)


def ways_out(path: Path) -> str:
    return (
        "go back to a snapshot, or go on with it as it is (rows of that step may be half updated) after "
        f"firth.nn.storage.accept_table({str(path)!r})"
    )


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0


def elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _aligned(at: int) -> int:
    return -(-at // ALIGN) * ALIGN


def reserve(descriptor: int, size: int, path: Path) -> None:
    """Give the file its size, with blocks behind it: a full disk speaks now, not as SIGBUS later."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise storage_error(error, path, f"reserve {size:,} bytes for the table file") from error
        disk = os.fstatvfs(descriptor)
        if disk.f_bavail * disk.f_frsize < size:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise storage_error(full, path, f"reserve {size:,} bytes for the table file") from error
        os.ftruncate(descriptor, size)


def write_tensors(descriptor: int, spec: TableSpec, initial: Initial, padding_row: int | None) -> None:
    """Write weight and state in chunks; written, not mapped: no page of it counts as memory of ours."""
    (_, dtype, _, at), *states = spec.parts
    if isinstance(initial, Tensor):
        rows = max(CHUNK // max(spec.dim, 1), 1)
        for first in range(0, spec.rows, rows):
            piece = initial[first : first + rows].detach().to("cpu", dtype).contiguous()
            write_all(descriptor, _bytes(piece), at + first * spec.dim * dtype.itemsize)
    else:
        _fill(descriptor, dtype, spec.rows * spec.dim, at, Tensor.normal_ if initial is None else initial)
        if padding_row is not None and spec.rows:
            width = spec.dim * dtype.itemsize
            write_all(descriptor, bytes(width), at + padding_row * width)
    for name, kept, shape, begin in states:
        if value := spec.fills.get(name, 0.0):
            _fill(descriptor, kept, elements(shape), begin, partial(Tensor.fill_, value=value))


def _fill(descriptor: int, dtype: torch.dtype, total: int, at: int, fill: Callable[[Tensor], object]) -> None:
    chunk = torch.empty(min(total, 2 * CHUNK), dtype=dtype, device="cpu")
    done = 0
    while done < total:
        # The last chunk takes the rest: torch draws the tail of a tensor in another order.
        size = CHUNK if total - done >= 2 * CHUNK else total - done
        with torch.no_grad():
            fill(chunk[:size])
        write_all(descriptor, _bytes(chunk[:size]), at + done * dtype.itemsize)
        done += size


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_all(descriptor: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
