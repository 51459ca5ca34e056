"""Training steps on a CUDA card, in Triton: the twin of :mod:`firth.kernels.reference`.

A :class:`Card` offers ``run`` and ``alias_table`` with the arguments, draws and results of the other kernel
modules. What it keeps on the card between runs is cached by identity: the tables, which are ahead of the
caller's arrays until :meth:`Card.fetch`; the corpus, or where that is too long two stretches of it in turn;
and the sampling tables. How the steps are made fast, and what is not measured: ``docs/gpu.md``.

With ``TRITON_INTERPRET=1`` in the environment before Triton is first imported, all this runs on the CPU as
``Card("cpu")``; its programs then run one after the other.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firth.errors import MissingExtra, SettingError
from firth.kernels import reference
from firth.kernels.gpu_device import Lane, current, find_card, memory_told, uploaded
from firth.kernels.reference import PIECE, Draws, Floats, Step

KERNELS = ("skipgram_shared", "skipgram_pairs")
PRECISIONS = ("tf32x3", "tf32", "ieee")
RUN_BLOCKS = 512
"""Blocks of a run, 33 million tokens: so many that programs which end early cost little."""

TABLES = ("input table", "output table")

SMALLEST = 16
"""Rows and columns that a product on tensor cores has at least."""

LARGEST = 16_384
"""Scores of a group that a program can hold: 128 contexts and 128 targets."""

CHUNK_NUMBERS = 4096
"""Of all rows of a group that a product takes at a time, at most."""

HELD_BYTES = 48 << 10
"""Of rows that a program keeps from the first product to the last, in registers and shared memory."""

LAUNCH_BLOCKS = 128
"""Blocks of a launch where the corpus is streamed: the next ones are read while these train."""


class Design(NamedTuple):
    """How a step is cut up for the card; the result differs by rounding and by what programs see of others.

    Of these only ``precision``, ``programs`` and ``in_flight`` can touch quality; ``bench/gpu_in_flight.py``
    imitates that. The defaults are reasoned, not measured on a card; ``bench/gpu.py`` times others too.
    """

    precision: str = "tf32"  # what products see of float32: tf32 10 bits, tf32x3 and ieee all; sums: float32
    columns: int = 64  # of a row that a product takes at a time, a power of two from 16 on
    held: bool = True  # rows stay in registers between the products; else they are read twice
    warps: int = 4  # of a program
    programs: int = 3  # side by side on a multiprocessor, at most: those that registers have room for
    in_flight: float = 8.0  # see Card.programs
    most: int | None = None  # programs in all, whatever the card; 1 goes through the text as the reference


class _Stretch(NamedTuple):
    """A part of the corpus on the card."""

    ids: Tensor  # int32
    first_pos: int  # the place of ids[0]


@cache
def _triton() -> Any:
    """The kernels, imported when first needed.

    Raises:
        MissingExtra: Triton is not installed.
    """
    try:
        importlib.import_module("triton.language")
    except ImportError as error:
        raise MissingExtra(
            "training on a CUDA card needs Triton, which comes with torch for CUDA on Linux: "
            "pip install triton, or use --device cpu (device='cpu')"
        ) from error
    return importlib.import_module("firth.kernels.gpu_triton")


def interpreted() -> bool:
    """Whether Triton's interpreter is asked for, which runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Card:
    """The kernels of one card, and what they keep there.

    Args:
        device: ``"cuda"``, ``"cuda:1"``; ``"cpu"`` under Triton's interpreter.
        deterministic: one program that adds in a fixed order: the same bits every time on the same card,
            those of the text's order, at the speed of one multiprocessor.
        design: how steps are cut up.

    Raises:
        SettingError: no such card, or a design that does not exist.
        MissingExtra: Triton is not installed.
    """

    def __init__(
        self, device: str = "cuda", *, deterministic: bool = False, design: Design | None = None
    ) -> None:
        on_cpu = device == "cpu" and interpreted()
        self.device = torch.device("cpu") if on_cpu else find_card(device)
        self.design = Design() if design is None else design
        self.deterministic = deterministic
        _check_design(self.design)
        _triton()
        self._held: dict[str, tuple[npt.NDArray[Any], Tensor]] = {}
        self._ahead = False  # the tables here have moved on from the caller's
        self._hottest: tuple[float, float] | None = None
        self._lanes: list[Lane] = []  # two, where the corpus is too long for the card

    # --- tables

    def alias_table(self, weights: Floats) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
        """See :func:`firth.kernels.reference.alias_table`; made on the CPU, once for a run."""
        from firth.kernels import cpu

        threshold, alias = cpu.alias_table(weights)
        return threshold, alias

    def fetch(self) -> None:
        """Bring the tables back into the arrays that :meth:`run` was given."""
        if self._ahead:
            for name in TABLES:
                array, tensor = self._held[name]
                torch.from_numpy(array).copy_(tensor)
            self._ahead = False

    def forget(self) -> None:
        """The caller has changed the tables: take them anew at the next run."""
        self._ahead = False
        for name in TABLES:
            self._held.pop(name, None)

    def free_memory(self) -> int | None:
        """Bytes that the card has left for this process; ``None`` where there is no card."""
        if self.device.type != "cuda":
            return None
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + int(unused)

    def _on_card(self, name: str, array: npt.NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
        """The copy of ``array`` on the card, made where it is another array than last time."""
        found = self._held.get(name)
        if found is None or found[0] is not array:
            self._held.pop(name, None)
            size = array.nbytes if dtype is None else array.size * dtype.itemsize
            with memory_told(f"the {name}", size):
                found = self._held[name] = (array, uploaded(array, self.device, dtype))
        return found[1]

    def _tables(self, inputs: Floats, outputs: Floats, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        for name, table in zip(TABLES, (inputs, outputs), strict=True):
            if table.dtype != np.float32 or table.ndim != 2 or not table.flags.c_contiguous:
                raise SettingError(
                    f"gpu.run(): the {name} must be float32 (V, D) in C order, not {table.dtype}"
                )
            found = self._held.get(name)
            if found is not None and (found[0] is not table or found[1].dtype != dtype):
                self.fetch()  # other tables: what was learned into these must not be lost
                self.forget()
        return self._on_card("input table", inputs, dtype), self._on_card("output table", outputs, dtype)

    # --- runs

    @property
    def run_blocks(self) -> int:
        """Blocks that a run should have."""
        return RUN_BLOCKS

    def run(
        self,
        kernel: str,
        inputs: Floats,
        outputs: Floats,
        ids: npt.NDArray[np.int32],
        sentence_starts: npt.NDArray[np.int64],
        block_starts: npt.NDArray[np.int64],
        step: Step,
        draws: Draws,
        threads: int = 1,
        stopped: Callable[[], bool] = lambda: False,
        sharers: int = 1,
    ) -> tuple[npt.NDArray[np.float64], int]:
        """One run of blocks on the whole card; see :func:`firth.kernels.reference.run`.

        The tables change on the card; :meth:`fetch` brings them back. ``stopped`` is asked every
        RUN_BLOCKS blocks. ``threads`` and ``sharers`` are not used. A run of no tokens compiles the kernels.

        Raises:
            SettingError: an objective without a kernel here, or without one for bfloat16; an id outside the
                tables.
            RunError: the card's memory is full; the sentence says of what.
        """
        if kernel not in KERNELS:
            raise SettingError(
                f"train(): the objective's kernel {kernel!r} runs on the CPU only; use --device cpu"
            )
        if step.bfloat16 and not step.share:
            raise SettingError(
                "train(): tables in bfloat16 are for groups that share negatives: take SkipGram(share=4) or "
                "table_dtype='float32'"
            )
        tables = self._tables(inputs, outputs, torch.bfloat16 if step.bfloat16 else torch.float32)
        sampling = self._sampling(draws)
        starts = self._on_card("sentence starts", sentence_starts)
        self._ahead = True
        n_blocks = len(block_starts) - 1
        whole = self._whole_corpus(ids, len(inputs))
        found: list[Tensor] = []
        n_done = 0
        with current(self.device), memory_told("the kept tokens of a run", 8 * RUN_BLOCKS << 16):
            while n_done < n_blocks and not (n_done and stopped()):
                n_part = min(RUN_BLOCKS if whole is not None else LAUNCH_BLOCKS, n_blocks - n_done)
                start, stop = int(block_starts[n_done]), int(block_starts[n_done + n_part])
                if stop > start:
                    stretch = self._stretch(whole, ids, start, stop, len(inputs))
                    pieces = _pieces(starts, sentence_starts, start, stop, stretch.first_pos)
                    rate = max(step.rate_last, step.rate_first - step.rate_slope * start)
                    hottest = self._shares(stretch.ids, sampling)
                    programs = self.programs(-(-(stop - start) // PIECE), step, rate, hottest)
                else:  # a run of nothing has the kernels ready: a piece of no tokens
                    stretch = _Stretch(torch.zeros(1, dtype=torch.int32, device=self.device), start)
                    pieces, programs = (stretch.ids, stretch.ids), 1
                found.append(self._launch(kernel, tables, stretch, pieces, step, sampling, programs))
                n_done += n_part
        stats = torch.stack(found).sum(0).tolist() if found else [0.0] * 3
        return np.array(stats), n_done

    def _sampling(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The keys are new in every epoch, the others stay the same arrays.
        return (
            uploaded(draws.keys.view(np.int64), self.device),
            self._on_card("keep thresholds", draws.keep),
            self._on_card("noise thresholds", draws.threshold),
            self._on_card("noise aliases", draws.alias),
        )

    def _whole_corpus(self, ids: npt.NDArray[np.int32], n_rows: int) -> Tensor | None:
        """All ids on the card, if they take less than half of what is free."""
        found = self._held.get("corpus")
        if found is not None and found[0] is not ids:
            del self._held["corpus"]
            found = self._hottest = None
        if found is None and not self._lanes:
            free = self.free_memory()
            if free is None or 2 * ids.nbytes < free:
                tensor = self._on_card("corpus", ids)
                low, high = torch.stack(torch.aminmax(tensor)).tolist()
                if low < 0 or high >= n_rows:
                    del self._held["corpus"]  # looked at again, should it be given again
                _check_ids(ids, low, high, n_rows, 0)
                return tensor
        return None if found is None else found[1]

    def _stretch(
        self, whole: Tensor | None, ids: npt.NDArray[np.int32], start: int, stop: int, n_rows: int
    ) -> _Stretch:
        """The ids from ``start`` to ``stop`` on the card."""
        if whole is not None:
            return _Stretch(whole[start:stop], start)
        part = np.asarray(ids[start:stop])
        _check_ids(part, int(part.min()), int(part.max()), n_rows, start)
        if not self._lanes or len(self._lanes[0].pinned) < stop - start:
            with memory_told("two stretches of the corpus", 8 * (stop - start)):
                self._lanes = [Lane.of(stop - start, self.device) for _ in range(2)]
        self._lanes.reverse()
        return _Stretch(self._lanes[0].take(part), start)

    def programs(self, n_units: int, step: Step, rate: float, hottest: tuple[float, float]) -> int:
        """How many programs train side by side, at a learning rate.

        A group does not see the updates of the groups under way beside it. All of these move the row of
        the most frequent word by slopes taken at the same values; where their sum would overshoot, the
        tables explode. That sum is bounded: with ``top`` the greatest share of a word among the kept
        tokens and ``noise`` that among the negatives, ``in_flight`` is the most that ``programs * centres
        of a group * rate * contexts * max(top * (1 + negatives), noise * negatives / 4)`` may be: half of
        what was stable in all cases tried. Negatives pull less, most of their scores being low.
        ``bench/gpu_in_flight.py`` imitates this on the CPU; figures: ``docs/gpu.md``.
        """
        if self.deterministic:
            return 1
        top, noise = hottest
        negatives = step.weight * step.pool
        pull = max(top * (1.0 + negatives), noise * negatives / 4.0)
        if step.share:
            pull *= step.share * (step.window + 1 if step.shrink else 2 * step.window)
        stable = int(self.design.in_flight / max(rate * pull, 1e-12))
        processors = 4  # of the interpreter, whose programs run one after the other
        if self.device.type == "cuda":
            processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        wanted = processors * self.design.programs if self.design.most is None else self.design.most
        return max(1, min(n_units, wanted, stable))

    def _shares(self, ids: Tensor, sampling: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, float]:
        """The greatest share of one word among the kept tokens, and among the negatives."""
        if self._hottest is None:
            _, keep, threshold, alias = sampling
            unsigned = [(one.to(torch.int64) & 0xFFFFFFFF).double() for one in (keep, threshold)]
            kept = torch.bincount(ids, minlength=len(keep)) * (unsigned[0] + 1.0)
            own = (unsigned[1] + 1.0) / 2.0**32
            drawn = own.index_add(0, alias.long(), 1.0 - own)
            self._hottest = float(kept.max() / kept.sum()), float(drawn.max() / len(drawn))
        return self._hottest

    def _launch(
        self,
        kernel: str,
        tables: tuple[Tensor, Tensor],
        stretch: _Stretch,
        pieces: tuple[Tensor, Tensor],
        step: Step,
        sampling: tuple[Tensor, Tensor, Tensor, Tensor],
        programs: int,
    ) -> Tensor:
        """Train the pieces of a stretch; (3,) float64 stats on the card, not waited for."""
        kernels = _triton()
        keys, keep, threshold, alias = sampling
        firsts, ends = pieces
        kept_id, kept_pos = torch.empty_like(stretch.ids), torch.empty_like(stretch.ids)
        n_kept = torch.empty_like(firsts)
        kernels.keep_tokens[(len(firsts),)](
            stretch.ids, firsts, ends, keep, keys, stretch.first_pos, kept_id, kept_pos, n_kept,
            LANES=_power_of_two(PIECE),
        )  # fmt: skip
        # Taken in the text's order, so that the learning rate falls for all programs alike.
        every = torch.arange(0, len(stretch.ids), PIECE, device=self.device, dtype=torch.int32)
        borders = torch.searchsorted(firsts, every, out_int32=True)
        borders = torch.cat([borders, borders.new_full((1,), len(firsts))])
        queue = torch.zeros(1, dtype=torch.int32, device=self.device)
        stats = torch.empty((programs, 3), dtype=torch.float64, device=self.device)
        function = getattr(kernels, kernel)
        function[(programs,)](
            *tables, kept_id, kept_pos, firsts, n_kept, borders, len(every), queue, keys, threshold, alias,
            stats,
            stretch.first_pos, len(alias),
            float(step.rate_first), float(step.rate_slope), float(step.rate_last), float(step.weight),
            step.fixed_inputs, step.fixed_outputs,
            **constants(kernel, tables[0].shape[1], step, self.design, self.deterministic),
        )  # fmt: skip
        return stats.sum(0)


def constants(kernel: str, width: int, step: Step, design: Design, deterministic: bool) -> dict[str, Any]:
    """What a kernel is compiled for.

    Raises:
        SettingError: groups too large for the kernel.
    """
    shared = {"WIDTH": width, "WINDOW": step.window, "SHRINK": bool(step.shrink), "POOL": step.pool}
    if kernel == "skipgram_pairs":
        block = _power_of_two(width)
        return shared | {
            "SATURATION": step.saturation,
            "SATURATED": reference.SATURATED,
            "BLOCK": block,
            "num_warps": max(1, min(block // 128, 8)),
            "num_stages": 1,
        }
    contexts = max(_power_of_two(step.share + 2 * step.window), SMALLEST)
    targets = max(_power_of_two(step.share + step.pool), SMALLEST)
    if contexts * targets > LARGEST:
        raise SettingError(
            f"train(): groups of {step.share} with window {step.window} and {step.pool} negatives are too "
            f"large for a card's kernel ({contexts} x {targets} scores, at most {LARGEST:,}): take a smaller "
            "window or fewer negatives, SkipGram(share=0), or --device cpu (device='cpu')"
        )
    rows = contexts + targets
    fitting = _power_of_two(CHUNK_NUMBERS // rows + 1) // 2
    columns = min(design.columns, max(_power_of_two(width), SMALLEST), max(fitting, SMALLEST))
    n_chunks = -(-width // columns)
    return shared | {
        "SHARE": step.share,
        "M": contexts,
        "N": targets,
        "CHUNK": columns,
        "N_CHUNKS": n_chunks,
        "HELD": n_chunks == 1 or (design.held and rows * n_chunks * columns * 4 <= HELD_BYTES),
        "PRECISION": design.precision,
        "DETERMINISTIC": deterministic,
        "BF16": bool(step.bfloat16),
        "num_warps": design.warps * (2 if contexts * targets >= 4096 else 1),
        "num_stages": 1,  # rows of the next group must not be read before this one's have moved
    }


def _check_design(design: Design) -> None:
    if design.precision not in PRECISIONS:
        raise SettingError(f"Design(): precision must be one of {', '.join(PRECISIONS)}")
    for name in ("columns", "warps"):
        value, least = getattr(design, name), SMALLEST if name == "columns" else 1
        if value < least or value & (value - 1):
            raise SettingError(f"Design(): {name} must be a power of two from {least} on, got {value}")


def _check_ids(ids: npt.NDArray[np.int32], low: int, high: int, n_rows: int, first_pos: int) -> None:
    """A kernel that reads outside its tables takes the card's whole process with it."""
    if low < 0 or high >= n_rows:
        place = int(np.flatnonzero((ids < 0) | (ids >= n_rows))[0])
        raise SettingError(
            f"gpu.run(): id {ids[place]} at place {first_pos + place:,} of the corpus is outside the "
            f"table of {n_rows:,} rows"
        )


def _pieces(
    starts: Tensor, sentence_starts: npt.NDArray[np.int64], start: int, stop: int, base: int
) -> tuple[Tensor, Tensor]:
    """First places and ends of the pieces of a stretch, int32, from ``base`` on; see ``reference.pieces``."""
    low = int(np.searchsorted(sentence_starts, start, side="right")) - 1
    high = int(np.searchsorted(sentence_starts, stop, side="left"))
    # A stretch begins and ends on borders of pieces, so that a sentence that it cuts is cut at one.
    borders = (starts[low : high + 1].clamp(start, stop) - base).to(torch.int32)
    begins, ends = borders[:-1], borders[1:]
    counts = (ends - begins + PIECE - 1) // PIECE
    sentence = torch.repeat_interleave(torch.arange(len(counts), device=starts.device), counts)
    before = (counts.cumsum(0) - counts)[sentence]
    number = torch.arange(len(sentence), device=starts.device) - before
    firsts = begins[sentence] + (number * PIECE).to(torch.int32)
    return firsts, torch.minimum(firsts + PIECE, ends[sentence])


def _power_of_two(count: int) -> int:
    """The least power of two that is not below ``count``."""
    return 1 << max(count - 1, 0).bit_length()
