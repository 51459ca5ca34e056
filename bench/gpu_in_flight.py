"""What many groups under way at once do to quality: a card's training, imitated on the CPU.

    python bench/gpu_in_flight.py                                  enwiki10M, 1 to 4,096 programs
    python bench/gpu_in_flight.py --text enwiki100M --epochs 2 --programs 1 512

On a card some hundred programs go through the text side by side and update the same tables without
locks. Here so many programs go in step: all take the scores of their next group from the same tables,
then all add their updates, so that no group sees another of the same step. With --stagger N as many groups
are under way, but an N-th of them ends at a time, and each misses the updates of all that ended while it was
under way. Draws, groups and learning rates are those of the kernels; a program takes the next piece that
nobody has, as in kernels/gpu.py. Printed are the mean loss a pair in the last epoch and scores of the
vectors beside those of firth's own kernel with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import common
import firth
from firth.evaluate import analogies, word_pairs
from firth.kernels import cpu
from firth.kernels.reference import PIECE, Draws, Step
from firth.training.draws import Sampler
from firth.training.sampling import initial_inputs, zeros

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
LAUNCH = 512 * 65_536  # tokens, as in kernels/gpu.py

Grid = Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="enwiki10M", help="a text of the data folder")
    parser.add_argument("--words", type=int, help="only the first so many words of it")
    parser.add_argument("--programs", type=int, nargs="+", default=[1, 64, 256, 512, 1024, 4096])
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=float, default=1e-3)
    parser.add_argument("--lr", type=float, default=0.025)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument(
        "--bits", type=int, default=23, help="of the mantissa that products see; tf32 has 10, bf16 7"
    )
    parser.add_argument("--stagger", type=int, default=1, help="1: in step")
    parser.add_argument(
        "--tables",
        choices=("float32", "bfloat16", "nearest"),
        default="float32",
        help="bfloat16: updates rounded by chance, as kernels/gpu.py does; nearest: to the nearest number",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON a run")
    settings = parser.parse_args()
    objective = firth.SkipGram(
        window=settings.window, negatives=settings.negatives, sample=settings.sample, lr=settings.lr
    )
    with tempfile.TemporaryDirectory() as folder:
        text = common.lines_file(settings.text, settings.words)
        corpus = firth.Corpus.encode(text, cache=folder)
        if not settings.json:
            print(f"{common.machine()}; {text.name}: {len(corpus):,} words of {len(corpus.vocab):,} types")
            print(f"{'programs':>10} {'loss':>7} {'WS-353':>7} {'SimLex':>7} {'analogies':>9} {'longest':>8}")
        own = firth.train(
            corpus, objective, dim=settings.dim, epochs=settings.epochs, seed=settings.seed, threads=1
        )
        show("kernel", own, own.metadata["loss"][-1], settings.json)
        for programs in settings.programs:
            began = time.perf_counter()
            vectors, loss = train(corpus, objective, settings, programs)
            show(str(programs), vectors, loss, settings.json)
            print(f"{programs} programs took {time.perf_counter() - began:.0f} s", file=sys.stderr)


def show(name: str, vectors: firth.Vectors, loss: float, as_json: bool) -> None:
    folder = common.data_folder() / "eval"
    row = {
        "programs": name,
        "loss": loss,
        "ws353": word_pairs(vectors, folder / "EN-WS-353-ALL.txt").spearman,
        "simlex": word_pairs(vectors, folder / "EN-SIMLEX-999.txt").spearman,
        "analogies": analogies(vectors, folder / "questions-words.txt", restrict=30_000).accuracy,
        "longest": float(np.linalg.norm(vectors.vectors, axis=1).max()),
    }
    if as_json:
        print(json.dumps(row), flush=True)
        return
    scores = f"{row['ws353']:7.3f} {row['simlex']:7.3f} {row['analogies']:9.3f} {row['longest']:8.1f}"
    print(f"{name:>10} {loss:7.3f} {scores}", flush=True)


def train(
    corpus: firth.Corpus, objective: firth.SkipGram, settings: argparse.Namespace, programs: int
) -> tuple[firth.Vectors, float]:
    """The vectors and the mean loss a pair of the last epoch."""
    counts, size = corpus.vocab.counts, len(corpus)
    objective = objective.fitted(counts, objective.lr)
    sampler = Sampler(counts, objective, settings.seed, cpu)
    inputs = initial_inputs(len(counts), settings.dim, objective.init, settings.seed)
    outputs = zeros(len(counts), settings.dim)
    tables = torch.from_numpy(inputs), torch.from_numpy(outputs)
    on_grid = to_grid(settings.tables, settings.seed)
    if settings.tables != "float32":
        tables[0].copy_(tables[0].bfloat16())
    slope = objective.lr * (1 - 1e-4) / (size * settings.epochs)
    loss = 0.0
    for epoch in range(settings.epochs):
        step = objective.step(objective.lr - slope * epoch * size, slope, objective.lr * 1e-4)
        draws = sampler.epoch(epoch)
        sums = np.zeros(2)
        for first in range(0, size, LAUNCH):
            last = min(first + LAUNCH, size)
            under_way: deque[Any] = deque()
            for batch in batches(corpus, first, last, step, draws, max(programs // settings.stagger, 1)):
                stats, updates = move(*tables, batch, step, settings.bits)
                sums += stats
                under_way.append(updates)
                if len(under_way) == settings.stagger:
                    add(*tables, under_way.popleft(), on_grid)
            for updates in under_way:
                add(*tables, updates, on_grid)
        loss = sums[0] / sums[1]
    return firth.Vectors(corpus.vocab.tokens, inputs[:, : settings.dim].copy(), counts=counts), loss


def draw(key: Any, pos: NDArray[np.int64]) -> NDArray[np.uint64]:
    z = key + pos.astype(np.uint64) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def batches(corpus: firth.Corpus, first: int, stop: int, step: Step, draws: Draws, programs: int) -> Any:
    """The groups of each step: (context ids, reached and near, target ids, kinds, rates) of all programs."""
    starts = np.asarray(corpus.sentence_starts)
    begins = np.concatenate([np.arange(a, b, PIECE) for a, b in itertools.pairwise(starts)])
    begins = begins[(begins >= first) & (begins < stop)]
    ids = np.asarray(corpus.ids[first:stop])
    pos = np.arange(first, stop)
    kept = (draw(draws.keys[0], pos) >> np.uint64(32)).astype(np.uint32) <= draws.keep[ids]
    kept_id, kept_pos = ids[kept].astype(np.int64), pos[kept]
    reach = np.full(len(kept_pos), step.window)
    if step.shrink:
        high = draw(draws.keys[1], kept_pos) >> np.uint64(32)
        reach = 1 + (high * np.uint64(step.window) >> np.uint64(32)).astype(np.int64)
    piece_end = np.searchsorted(kept_pos, np.append(begins[1:], stop))
    piece_start = np.concatenate([[0], piece_end[:-1]])
    n_groups = -(-(piece_end - piece_start) // step.share)
    piece = np.repeat(np.arange(len(begins)), n_groups)
    number = np.arange(len(piece)) - np.repeat(n_groups.cumsum() - n_groups, n_groups)
    group = piece_start[piece] + number * step.share
    last = n_groups.cumsum()
    queue = np.zeros(programs, np.int64)
    ends = np.zeros(programs, np.int64)
    n_taken = 0
    while True:
        while n_taken < len(begins) and (idle := np.flatnonzero(queue >= ends)).size:
            taken = np.arange(n_taken, min(n_taken + idle.size, len(begins)))
            idle = idle[: taken.size]
            queue[idle], ends[idle] = last[taken] - n_groups[taken], last[taken]
            n_taken += taken.size
        live = queue < ends
        if not live.any():
            return
        which = queue[live]
        queue[live] += 1
        yield rows(
            group[which], piece_start[piece[which]], piece_end[piece[which]],
            kept_id, kept_pos, reach, step, draws,
        )  # fmt: skip


def rows(
    start: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    kept_id: NDArray[np.int64],
    kept_pos: NDArray[np.int64],
    reach: NDArray[np.int64],
    step: Step,
    draws: Draws,
) -> Any:
    n = len(kept_id)
    center = start[:, None] + np.arange(step.share)
    is_center = center < high[:, None]
    context = start[:, None] + np.arange(-step.window, step.share + step.window)
    is_read = (context >= low[:, None]) & (context < high[:, None])
    center, context = center.clip(0, n - 1), context.clip(0, n - 1)
    apart = context[:, :, None] - center[:, None, :]
    pairs = (apart != 0) & (np.abs(apart) <= reach[center][:, None, :])
    pairs &= is_center[:, None, :] & is_read[:, :, None]
    bits = draw(draws.keys[None, 2 : 2 + step.pool], kept_pos[start][:, None])
    cell = ((bits >> np.uint64(32)) * np.uint64(len(draws.alias)) >> np.uint64(32)).astype(np.int64)
    own = (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32) <= draws.threshold[cell]
    negative = np.where(own, cell, draws.alias[cell])
    against = is_center[:, :, None] & (kept_id[center][:, :, None] != negative[:, None, :])
    pairs32 = torch.from_numpy(pairs.astype(np.float32))
    shares = torch.bmm(pairs32, torch.from_numpy(against.astype(np.float32)))
    rate = np.maximum(step.rate_last, step.rate_first - step.rate_slope * kept_pos[start])
    targets = np.concatenate([kept_id[center], negative], 1)
    return (
        torch.from_numpy(kept_id[context]),
        torch.from_numpy(targets),
        pairs32,
        shares,
        torch.from_numpy(rate.astype(np.float32)),
    )


def cut(values: torch.Tensor, bits: int) -> torch.Tensor:
    """As tensor cores read float32: the last bits of the mantissa are not looked at."""
    if bits == 23:
        return values
    return (values.view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def move(
    inputs: torch.Tensor, outputs: torch.Tensor, batch: Any, step: Step, bits: int
) -> tuple[NDArray[np.float64], Any]:
    """The summed loss and pairs of all groups, and their updates from the same tables."""
    context_id, target_id, pairs, shares, rate = batch
    x, y = cut(inputs[context_id], bits), cut(outputs[target_id], bits)
    sign = torch.ones(target_id.shape[1])
    sign[: pairs.shape[2]] = -1
    weights = torch.cat([pairs, step.weight * shares], 2)
    signed = sign * torch.bmm(x, y.transpose(1, 2))
    loss = (weights * torch.nn.functional.softplus(signed)).sum(dtype=torch.float64)
    slopes = cut(-sign * weights * torch.sigmoid(signed) * rate[:, None, None], bits)
    stats = np.array([float(loss), float(pairs.sum(dtype=torch.float64))])
    return stats, (context_id, torch.bmm(slopes, y), target_id, torch.bmm(slopes.transpose(1, 2), x))


def to_grid(tables: str, seed: int) -> Grid:
    """How an update of a row becomes what a table in bfloat16 adds: the way to the sum rounded up or down by
    chance, so that the mean is right (``kernels/reference.py``), or rounded to the nearest."""
    if tables == "float32":
        return None
    generator = torch.Generator().manual_seed(seed)

    def way(row: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
        chance: Any = 0x8000
        if tables == "bfloat16":
            chance = torch.randint(0, 1 << 16, moves.shape, generator=generator, dtype=torch.int32)
        return ((row + moves).view(torch.int32) + chance & -0x10000).view(torch.float32) - row

    return way


def add(inputs: torch.Tensor, outputs: torch.Tensor, updates: Any, on_grid: Grid) -> None:
    """Every row moves by the sum of its updates."""
    context_id, context_moves, target_id, target_moves = updates
    for table, ids, updates_of in ((inputs, context_id, context_moves), (outputs, target_id, target_moves)):
        row_id, moves = ids.reshape(-1), updates_of.reshape(-1, table.shape[1])
        if on_grid is None:
            table.index_add_(0, row_id, moves)
            continue
        table.index_add_(0, row_id, on_grid(table[row_id], moves))
        table[row_id] = table[row_id].bfloat16().float()  # a sum whose grid is coarser


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
