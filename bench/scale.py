"""What very large runs would take: rates measured here by the number of types, the rest by arithmetic.

    python bench/scale.py --measure            # words per CPU second at dim 300; 11 GB for 4 million types
    python bench/scale.py --measure-parts      # the same where rows are split over so many ranks
    python bench/scale.py                      # 1e11 words, 1e7 types, dim 300 on 8 cards and 32 machines
    python bench/scale.py --words 1e10 --types 1e6 --rate 0.6e6 --network 12.5e9

Measured is firth's kernel in one thread, on ids drawn by Zipf's law with exponent 1: more rare words than
text has, so the caches hold less of the tables than they would there. The plan takes from firth's own code
how much is trained between two exchanges and how many bytes these send; rates, networks and prices are
options. Nothing overlaps in it, neither reading nor sending with training, and a machine's cores are taken to
be as fast together as alone; what bounds them is in ``docs/scale.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import common
from firth import SkipGram
from firth.kernels import cpu
from firth.training.distributed import run_tokens
from firth.training.draws import Sampler
from firth.training.exchange import bytes_sent, rows_due
from firth.training.memory import part_bytes, replica_bytes
from firth.training.partitioned import stretch_tokens
from firth.training.sampling import initial_inputs

TOKENS = 3_000_000
"""Ids that a rate is measured on; the tables of 4 million types are met some five times a row by them."""

ENCODED = 4
"""Bytes of a token in the encoded text."""


@dataclass(frozen=True)
class Plan:
    """One design on one set of machines: seconds, bytes, dollars of one pass over the text."""

    name: str
    ranks: int
    tokens_between: int  # that each rank trains between two exchanges
    bytes_between: float  # that each rank sends in one
    bytes_a_word: float  # sent by a rank for each word that it trains
    train_s: float
    exchange_s: float
    gb_a_rank: float
    dollars: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure rates instead of planning")
    parser.add_argument("--measure-parts", action="store_true", help="measure rates of split rows")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8, 32], help="ranks to measure")
    parser.add_argument("--sizes", type=float, nargs="+", default=[7e4, 1e6, 4e6], help="types to measure")
    parser.add_argument("--words", type=float, default=1e11)
    parser.add_argument("--types", type=float, default=1e7)
    parser.add_argument("--dim", type=int, default=300)
    parser.add_argument("--machines", type=int, default=32)
    parser.add_argument("--cores", type=int, default=32, help="of a machine")
    parser.add_argument("--rate", type=float, default=0.6e6, help="words a second of one core")
    parser.add_argument(
        "--parts-rate", type=float, default=0.29e6, help="the same of all ranks' together, rows split"
    )
    parser.add_argument("--network", type=float, default=3.1e9, help="bytes a second each way (25 Gbit/s)")
    parser.add_argument("--latency", type=float, default=50e-6, help="seconds of a message between machines")
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--card-rate", type=float, default=127e6, help="words a second of one card")
    parser.add_argument("--card-network", type=float, default=300e9, help="bytes a second each way")
    parser.add_argument("--core-hour", type=float, default=0.05, help="dollars")
    parser.add_argument("--card-hour", type=float, default=4.0, help="dollars")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    settings = parser.parse_args()

    if settings.measure or settings.measure_parts:
        common.gate((settings.dim,))
    if settings.measure_parts:
        report = measured_parts(settings)
    else:
        report = measured(settings) if settings.measure else planned(settings)
    if settings.json:
        print(json.dumps(report))
        return
    for row in report:
        print("  ".join(f"{name} {_short(value)}" for name, value in row.items()))


def _short(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


def measured(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Words per CPU second by the number of types."""
    rows = []
    for size in settings.sizes:
        rates = _rates(int(size), settings.dim)
        rows.append({"types": int(size), "words_per_cpu_s": float(np.median(rates)), "best": max(rates)})
    return rows


def measured_parts(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Words per CPU second of a rank, and of all together, where rows are split over so many ranks."""
    types, rows = int(settings.sizes[0]), []
    for ranks in settings.parts:
        text = _Text(types)
        inputs, outputs = (initial_inputs(types, settings.dim, 50, seed, 0, ranks) for seed in (1, 2))
        stretch, took = TOKENS // 6, []
        for begin in range(0, TOKENS, stretch):  # a bucket of each stretch
            part = begin // stretch % ranks
            given = text.step, text.draws, np.zeros(3), 0, 0, ranks, 0, part
            began = time.thread_time()
            cpu.skipgram_shared(inputs, outputs, text.ids, text.starts, begin, begin + stretch, *given)
            took.append(time.thread_time() - began)
        together = stretch / (float(np.median(took[1:])) * ranks)
        rows.append(
            {"ranks": ranks, "words_per_s_together": together, "words_per_s_of_a_rank": together / ranks}
        )
    return rows


class _Text:
    """Ids by Zipf's law, and what is drawn for them."""

    def __init__(self, types: int) -> None:
        objective = SkipGram()
        drawn = types ** np.random.default_rng(1).random(TOKENS)
        self.ids = cpu._read_only(np.minimum(drawn - 1, types - 1).astype(np.int32))
        counts = np.maximum(1, 1e10 / np.log(types) / np.arange(1, types + 1)).astype(np.int64)
        self.starts = cpu._read_only(np.append(np.arange(0, TOKENS, 1000), TOKENS))
        self.draws = Sampler(counts, objective, 1, cpu).epoch(0)
        self.step = objective.step(0.025, 0.0, 0.025)


def _rates(types: int, dim: int) -> list[float]:
    """Five rates of the kernel on one thread; tables are as after some training, not zero."""
    text, found, part = _Text(types), [], TOKENS // 6
    inputs, outputs = (initial_inputs(types, dim, 50, seed) for seed in (1, 2))
    for begin in range(0, TOKENS, part):
        borders = np.array([begin, begin + part])
        began = time.thread_time()
        cpu.run("skipgram_shared", inputs, outputs, text.ids, text.starts, borders, text.step, text.draws)
        found.append(part / (time.thread_time() - began))
    return found[1:]  # the first compiles


def planned(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Both designs on both sets of machines."""
    seconds = settings.cards, settings.card_rate, settings.card_network, 10e-6
    cards = replicated("cards, replicated", settings, *seconds, threads=24)
    per_machine = settings.rate * settings.cores, settings.network, settings.latency
    machines = replicated(
        "machines, replicated", settings, settings.machines, *per_machine, threads=settings.cores
    )
    parts = partitioned("machines, partitioned", settings)
    prices = (
        settings.card_hour * settings.cards,
        *[settings.core_hour * settings.cores * settings.machines] * 2,
    )
    rows = []
    for plan, price in zip((cards, machines, parts), prices, strict=True):
        hours = (plan.train_s + plan.exchange_s) / 3600
        rows.append({**asdict(plan), "dollars": hours * price})
    return rows


def replicated(
    name: str,
    settings: argparse.Namespace,
    ranks: int,
    rate: float,
    network: float,
    latency: float,
    threads: int,
) -> Plan:
    """Every rank holds the tables, and they are summed in a ring."""
    words, rows, dim = int(settings.words), int(settings.types), settings.dim
    tokens = run_tokens(words, ranks, threads)
    due = float(np.mean([rows_due(number, rows) for number in range(1, 1 << 14)]))
    sent = bytes_sent(1, dim, ranks) * due
    exchanges = words / (tokens * ranks)
    hops = 2 * 2 * (ranks - 1)  # two tables, each summed and then handed round
    return Plan(
        name=name,
        ranks=ranks,
        tokens_between=tokens,
        bytes_between=sent,
        bytes_a_word=sent / tokens,
        train_s=words / (rate * ranks),
        exchange_s=exchanges * (sent / network + hops * latency),
        gb_a_rank=replica_bytes(rows, dim) / 1e9,
        dollars=0.0,
    )


def partitioned(name: str, settings: argparse.Namespace) -> Plan:
    """Every rank holds a part of the rows, and parts of one table go round."""
    words, rows, dim, ranks = int(settings.words), int(settings.types), settings.dim, settings.machines
    stretch = stretch_tokens(words, rows, dim, ranks)
    sent = rows * dim * 4.0
    return Plan(
        name=name,
        ranks=ranks,
        tokens_between=stretch // ranks,
        bytes_between=sent,
        bytes_a_word=sent / (stretch / ranks),
        train_s=words / (settings.parts_rate * settings.cores),
        exchange_s=words / stretch * (sent / settings.network + ranks * settings.latency),
        gb_a_rank=part_bytes(rows, dim, ranks) / 1e9,
        dollars=0.0,
    )


if __name__ == "__main__":
    main()
