"""What copies of the tables that are trained at once tell each other, and how they are made one again.

A copy is a machine's or a card's; of processes that share one (``firth.training.shared_tables``), the first
speaks for it and is the process meant here. Every process starts from the same tables and moves them by its
own share of the text. An exchange takes the difference d of a row to what it was after the last one, sums it
over the processes, and moves the row by a combination of the differences:

    the deltas' sum     is right for rows that hardly move meanwhile, and diverges for the frequent ones from
                        about four processes on: each has come to rest where its own negatives and contexts
                        balance, and the sum overshoots that point;
    the rows' mean      is always stable, and slow: rare rows learn at 1/w of the rate.

Here the sum is damped where the loss is curved. To second order, a run multiplies a row's distance from its
optimum by exp(-X), with X = rate * meetings * C: how many rows of the other table it met, and the second
moment C of these. One run moves it by d = (1 - exp(-X)) distance; w of them, one after another, would by

    (1 - exp(-w X)) / (1 - exp(-X))  d,

which is the sum where X is small and the mean where it is large. C is dominated by a few directions, which
all rows share, so the factor is taken along each of these, and once for all others. A row that comes to rest
within a run and would all the same grow by half beyond the mean of the ranks becomes the mean: rows that
overshoot together along a shared direction would grow without bounds. Figures are in ``docs/scale.md``.

Rows are exchanged by their frequency: the first ``HOT`` each time, twice as many every second time, four
times as many every fourth, so that each row has been met about as often when its turn comes. Hot rows first
and in this schedule is pWord2Vec's way (Ji et al. 2016, arXiv 1604.04661); they average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from firth.training.sampling import keep_thresholds, noise_weights

if TYPE_CHECKING:
    from torch import Tensor

    from firth.processes import Circle, Processes
    from firth.training.objectives import SkipGram

HOT = 1024
"""Rows of every exchange."""

CURVATURE = 0.1
"""Second derivative of ln(1 + e^x), on average over scores; of .02 to .25 the value with the best quality."""

GROWTH = 1.5
"""A row that the combination makes longer than so many times the mean of all ranks becomes that mean ..."""

NEAR = 1.0
"""... where a run multiplies its distance from the optimum by exp(-this) or less: others cannot overshoot."""

SUMMED = 32
"""More ranks than this are averaged in part: the sum over 64, so damped, diverged on 2 million words."""

DIRECTIONS = 8
"""So many directions of C are damped by their own factor."""

LOOKED_AT = 4096
"""The first so many rows tell C."""

LOOKS = 16
"""So many exchanges at the beginning look at C, when it changes fast, and later every one of as many."""

PIECE = 1 << 23
"""Numbers sent at a time."""


class Meetings(NamedTuple):
    """How often rows meet rows of the other table, on average.

    ``inputs``, ``outputs``: (V,) float64, for each token of the text, weighted as in the gradient.
    ``input_share``, ``output_share``: (V,) float64, of all meetings; sum to 1.
    """

    inputs: npt.NDArray[np.float64]
    outputs: npt.NDArray[np.float64]
    input_share: npt.NDArray[np.float64]
    output_share: npt.NDArray[np.float64]


def meetings(counts: npt.NDArray[np.int64], objective: SkipGram) -> Meetings:
    """What ``objective`` makes rows meet in a text of these counts, int64 (V,)."""
    counts = np.maximum(counts, 1)
    kept = counts * ((keep_thresholds(counts, objective.sample) + 1.0) / 2.0**32) / counts.sum()
    noise = noise_weights(counts, objective.ns_exponent)
    noise /= noise.sum()
    contexts = objective.window + 1 if objective.shrink_windows else 2 * objective.window
    target = kept + kept.sum() * objective.negatives * noise
    return Meetings(
        inputs=kept * (contexts * (1 + objective.negatives)),
        outputs=target * contexts,
        input_share=kept / kept.sum(),
        output_share=target / target.sum(),
    )


def rows_due(number: int, rows: int) -> int:
    """How many of the most frequent rows take part in exchange ``number``, counted from 1."""
    return min(rows, HOT * (number & -number))


def bytes_sent(rows: int, dim: int, size: int) -> float:
    """What a process sends when ``rows`` rows of both tables are summed over ``size`` in a ring."""
    return 2 * rows * dim * 4 * 2 * (size - 1) / size


class Exchange:
    """The tables of one process, and what they were after the last exchange.

    Args:
        tables: inputs and outputs, float32 (V, at least dim), on one device; changed by ``apply``.
        dim: numbers of a row that count.
        met: how often rows meet others.
        order: the rows by falling frequency, int64 (V,); ``None`` where they stand so.
        size: processes.

    Attributes:
        sent: bytes that this process has sent, by arithmetic.
    """

    fused = True
    """Whether rows on the CPU are moved by ``firth.kernels.exchange_cpu``, the twin of ``combined``."""

    def __init__(
        self,
        tables: tuple[Tensor, Tensor],
        dim: int,
        met: Meetings,
        order: npt.NDArray[np.int64] | None,
        size: int,
    ) -> None:
        import torch

        self._whole = tables
        self._tables = tuple(table[:, :dim] for table in tables)
        device = tables[0].device
        self._order = None if order is None else torch.from_numpy(order).to(device)
        self._dim, self._rows, self._size = dim, len(tables[0]), size
        self._before = [table.contiguous().clone() for table in self._tables]
        rows = slice(None) if order is None else order
        counted = (met.inputs[rows], met.outputs[rows]), (met.output_share[rows], met.input_share[rows])
        self._met, self._share = (
            [torch.from_numpy(np.ascontiguousarray(one, np.float32)).to(device) for one in pair]
            for pair in counted
        )
        self._waited = torch.zeros(self._rows, device=device)  # rate x words a process since the row's last
        # Of the rows that each table meets: the directions in which they are long, and how long they are
        # in each and, on average, in any other.
        self._spaces = [torch.eye(dim, min(DIRECTIONS, dim), device=device) for _ in tables]
        self._lengths = [torch.zeros(min(DIRECTIONS, dim) + 1, device=device) for _ in tables]
        self._number = 0  # of exchanges so far
        self.sent = 0.0

    def exchange(self, group: Processes | Circle, rows: int, words: float, rate: float) -> None:
        """Make the ``rows`` most frequent rows of all processes one again; collective.

        Args:
            words: that each process has trained on since the last exchange. rate: its learning rate.
        """
        self.note(words, rate)
        step = max(1, PIECE // self._dim)
        head = min(step, rows)
        first = [group.sum(self.collect(which, 0, head)) for which in (0, 1)]
        if self._number < LOOKS or self._number % LOOKS == 0:
            for which in (0, 1):
                self.look(which, first[1 - which])
        self._number += 1
        for which in (0, 1):
            self.apply(which, 0, head, first[which])
            for begin in range(head, rows, step):
                end = min(begin + step, rows)
                self.apply(which, begin, end, group.sum(self.collect(which, begin, end)))
        self.settle(rows)

    def note(self, words: float, rate: float) -> None:
        """So much was trained since the last exchange."""
        self._waited += words * rate

    def settle(self, rows: int) -> None:
        """The first ``rows`` rows are the same in all processes now."""
        self._waited[:rows] = 0
        self.sent += bytes_sent(rows, self._dim, self._size)

    def collect(self, which: int, begin: int, end: int) -> Tensor:
        """How rows ``begin`` to ``end`` of a table moved since the last exchange, (end - begin, dim)."""
        table, before = self._tables[which], self._before[which]
        rows = self._places(begin, end)
        return table[rows] - before[rows]

    def look(self, which: int, moved: Tensor) -> None:
        """Follow the directions in which the rows that a table meets are long: a step of the power method.

        Args:
            moved: by how much all processes together moved the first rows of the other table. It is looked
                at where it stands on average: at the beginning it was zero and met nothing.
        """
        import torch

        n = min(LOOKED_AT, len(moved))
        met = self._before[1 - which][self._places(0, n)] + moved[:n] / self._size
        share = self._share[which][:n]
        weighed = met * (share / share.sum()).sqrt()[:, None]
        space = self._spaces[which]
        self._spaces[which], _ = torch.linalg.qr(weighed.T @ (weighed @ space) + 1e-12 * space)
        lengths = (weighed @ self._spaces[which]).square().sum(dim=0)
        left = (weighed.square().sum() - lengths.sum()).clamp(min=0) / max(1, self._dim - len(lengths))
        self._lengths[which] = torch.cat([lengths, left[None]])

    def apply(self, which: int, begin: int, end: int, total: Tensor) -> None:
        """Move rows ``begin`` to ``end`` from what they were, given the sum of all ``collect``."""
        table, before, rows = self._tables[which], self._before[which], self._places(begin, end)
        if self.fused and total.device.type == "cpu":
            self._move(which, begin, end, total)
            return
        moved = self.combined(which, begin, end, total)
        if isinstance(rows, slice):
            before[rows] += moved
        else:
            before.index_add_(0, rows, moved)
        table[rows] = before[rows]

    def _move(self, which: int, begin: int, end: int, total: Tensor) -> None:
        from firth.kernels.exchange_cpu import move

        met = self._met[which][begin:end] * self._waited[begin:end] * CURVATURE
        rows = np.arange(begin, end) if self._order is None else self._order[begin:end].numpy()
        move(
            self._whole[which].numpy(),
            self._before[which].numpy(),
            rows,
            total.numpy(),
            met.numpy(),
            self._spaces[which].T.contiguous().numpy(),
            self._lengths[which].numpy(),
            np.float32(min(self._size, SUMMED)),
            np.float32(self._size),
            np.float32(NEAR),
            np.float32(GROWTH),
        )

    def combined(self, which: int, begin: int, end: int, total: Tensor) -> Tensor:
        """By how much rows ``begin`` to ``end`` move, (end - begin, dim), in the place of ``total``."""
        space = self._spaces[which]
        met = self._met[which][begin:end] * self._waited[begin:end]
        x = (CURVATURE * met[:, None] * self._lengths[which][None]).clamp(1e-6, 60.0)
        factors = (-min(self._size, SUMMED) * x).expm1() / (-x).expm1() / self._size
        rest = factors[:, -1:]
        along = (total @ space).mul_(factors[:, :-1] - rest)
        fast = int((x[:, 0] > NEAR).sum())  # of rows by frequency, the first ones, about
        mean = total[:fast] / self._size
        moved = total.mul_(rest).addmm_(along, space.T)  # in place: these are the largest arrays
        before = self._before[which][self._places(begin, begin + fast)]
        far = (before + moved[:fast]).norm(dim=1) > GROWTH * (before + mean).norm(dim=1)
        moved[:fast][far] = mean[far]
        return moved

    def restart(self) -> None:
        """Take the tables, which are the same in all processes, for the last exchange's."""
        for table, before in zip(self._tables, self._before, strict=True):
            before.copy_(table)
        self._waited.zero_()

    def _places(self, begin: int, end: int) -> slice | Tensor:
        return slice(begin, end) if self._order is None else self._order[begin:end]
