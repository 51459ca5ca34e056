"""Training on a CUDA card: checked first, then words a second, whole runs, and designs against each other.

    python bench/gpu.py                     all of it; needs FIRTH_DATA with enwiki100M (some minutes)
    python bench/gpu.py --parts speed       one part of: speed, designs, whole
    python bench/gpu.py --json              one JSON object
    python bench/gpu.py --ncu               print the command that profiles the kernel, and end
    python bench/gpu.py --interpret         the same program on the CPU, tiny, to see that it runs

First every kernel trains a small text beside the reference and both tables must agree row by row, or
nothing is timed. "speed": one pass over enwiki100M repeated to 200 million words, learning rate falling
to its end, window 5, 5 negatives, sample 1e-3; "of copy" is the time that the bytes of the group's rows
would take at the bandwidth of a copy within this card's memory, by the time taken (rows of frequent words
are served by the cache, so it may pass 100 %), with tables in float32 and in bfloat16. "designs": the
same pass, shorter, by other designs and deterministic. "whole": enwiki100M, 5 epochs, from the encoded
corpus to saved vectors, with WS-353, SimLex-999 and analogies beside a run of the CPU. Goal: 300 million
words a second at dim 128 on an H200, quality within 0.01.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import common
import firth

if TYPE_CHECKING:
    from firth.kernels.gpu import Card, Design

DIMS = (128, 300)
WORDS = 200_000_000
ROUNDS = 3
LR = 0.025
PARTS = ("speed", "designs", "whole")


class Text(NamedTuple):
    """An encoded text, in memory."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    def repeated(self, words: int) -> Text:
        """As often as it takes to have so many words."""
        times = -(-words // len(self.ids))
        shift = np.arange(times)[:, None] * len(self.ids)
        starts = np.append((self.starts[None, :-1] + shift).reshape(-1), times * len(self.ids))
        return Text(np.tile(self.ids, times), starts, self.counts * times)

    def first(self, words: int) -> Text:
        """The sentences up to ``words``."""
        last = max(int(np.searchsorted(self.starts, words, side="right")) - 1, 1)
        return Text(self.ids[: self.starts[last]], self.starts[: last + 1], self.counts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--dim", type=int, nargs="+", default=DIMS)
    parser.add_argument("--words", type=int, default=WORDS, help="the text is repeated to so many")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:NUMBER")
    parser.add_argument("--interpret", action="store_true", help="tiny, by Triton's interpreter on the CPU")
    parser.add_argument("--ncu", action="store_true", help="print the command for a profile, and end")
    parser.add_argument("--profile", action="store_true", help="a few launches only; what --ncu runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    settings = parser.parse_args()
    if settings.ncu:
        print(
            "ncu --set full --import-source on -k regex:skipgram_shared --launch-skip 1 --launch-count 2 "
            f"-o gpu_profile {sys.executable} bench/gpu.py --profile --dim 128"
        )
        return
    if settings.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        settings.device, settings.words = "cpu", 200
    say: Callable[..., None] = (lambda *_: None) if settings.json else print
    report = measured(settings, say)
    if settings.json:
        print(json.dumps(report))


def measured(settings: argparse.Namespace, say: Callable[..., None]) -> dict[str, Any]:
    from firth.errors import FirthError
    from firth.kernels.gpu import Card

    try:
        Card(settings.device)
    except FirthError as error:
        sys.exit(f"bench/gpu.py: {error}; nothing was measured")
    head = heading(settings)
    say(", ".join(f"{name} {value}" for name, value in head.items()))
    gate(settings.device, (100,) if settings.interpret else (8, 64, 100, 128, 300))
    say("correctness gate passed: every kernel agrees with the reference")
    text = made_up() if settings.interpret else enwiki()
    report = {**head, "results": []}
    if settings.profile:
        for dim in settings.dim:
            timed(Card(settings.device), text, dim, 1)
        return report
    parts: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "speed": speed,
        "designs": designs,
        "whole": whole,
    }
    for name in settings.parts:
        report["results"] += [{"part": name, **row} for row in parts[name](settings, text, head, say)]
    return report


def heading(settings: argparse.Namespace) -> dict[str, Any]:
    import torch

    card = "none, interpreted: the figures mean nothing"
    driver = None
    if not settings.interpret:
        properties = torch.cuda.get_device_properties(settings.device)
        card = f"{properties.name} ({properties.multi_processor_count} multiprocessors)"
        driver = torch.version.cuda
    return {
        "date": datetime.date.today().isoformat(),
        "card": card,
        "torch": torch.__version__,
        "cuda": driver,
        "copy_gb_s": round(copy_bandwidth(settings) / 1e9, 1),
        "host": common.machine(),
    }


def copy_bandwidth(settings: argparse.Namespace) -> float:
    """Bytes read and written a second by a copy within the card's memory."""
    import torch

    source = torch.ones(1 << (16 if settings.interpret else 28), device=settings.device)
    target = torch.empty_like(source)
    took = []
    for _ in range(10):
        wait(settings.device)
        began = time.perf_counter()
        target.copy_(source)
        wait(settings.device)
        took.append(time.perf_counter() - began)
    return 8 * source.numel() / statistics.median(took)


def wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


# --- texts --------------------------------------------------------------------------------------


def enwiki() -> Text:
    corpus = firth.Corpus.encode(common.lines_file("enwiki100M"))
    return Text(np.array(corpus.ids), np.array(corpus.sentence_starts), corpus.vocab.counts)


def made_up(words: int = 120, types: int = 40) -> Text:
    ids = np.minimum(np.random.default_rng(0).zipf(1.4, words) - 1, types - 1).astype(np.int32)
    starts = np.append(np.arange(0, words, 30), words).astype(np.int64)
    return Text(ids, starts, np.bincount(ids, minlength=types) + 1)


# --- the check ----------------------------------------------------------------------------------


def gate(device: str, dims: tuple[int, ...]) -> None:
    """Stop where a row of a kernel differs from the reference's, or many programs learn something else."""
    from firth.kernels import reference
    from firth.kernels.gpu import Card, Design

    text = made_up(60 if device == "cpu" else 2000)
    exact = {name: Design(most=1, precision=name) for name in ("ieee", "tf32x3", "tf32")}
    cards: list[tuple[str, Any, float]] = [
        *((name, Card(device, design=one), 2e-2 if name == "tf32" else 1e-4) for name, one in exact.items()),
        ("deterministic", Card(device, deterministic=True, design=exact["tf32x3"]), 1e-4),
    ]
    in_order = cards[-1][1]
    for dim in dims:
        for share in (4, 0):
            small = text if share or device != "cpu" else text.first(30)
            objective = firth.SkipGram(share=share, sample=1e-2, window=5 if share else 2)
            expected = learn(reference, small, dim, objective, np.float64)
            for name, card, tolerance in cards if share else cards[1:2]:
                found = learn(card, small, dim, objective, np.float32)
                for ours, right in zip(found[:2], expected[:2], strict=True):
                    off = float(worst(ours, right))
                    if not off <= tolerance:
                        sys.exit(
                            f"bench/gpu.py: the correctness gate failed at dim {dim}, {objective.kernel}, "
                            f"{name}: a row is off by {off:.2g} of its length; nothing is timed"
                        )
            if share:  # rounded by chance: bits follow from the draws, so few numbers may differ
                rounded = learn(reference, small, dim, objective, np.float32, "bfloat16")
                found = learn(in_order, small, dim, objective, np.float32, "bfloat16")
                same = min(float(np.mean(a == b)) for a, b in zip(found[:2], rounded[:2], strict=True))
                if not same > 0.95:
                    sys.exit(
                        f"bench/gpu.py: the correctness gate failed at dim {dim}, bfloat16: {1 - same:.1%} "
                        "of the numbers differ; nothing is timed"
                    )
            side_by_side = learn(Card(device), small, dim, objective, np.float32)[2]
            if not abs(side_by_side[0] / expected[2][0] - 1) < 0.02 or side_by_side[1] != expected[2][1]:
                sys.exit(f"bench/gpu.py: many programs have another loss at dim {dim}; nothing is timed")


def learn(
    kernels: Any, text: Text, dim: int, objective: firth.SkipGram, dtype: Any, table_dtype: str = "float32"
) -> tuple[Any, Any, Any]:
    """Both tables and the stats after one pass."""
    from firth.kernels.reference import to_bfloat16
    from firth.training.sampling import initial_inputs

    made = [initial_inputs(len(text.counts), dim, 4.0, seed)[:, :].astype(dtype) for seed in (1, 2)]
    if table_dtype == "bfloat16":
        made = [to_bfloat16(one, 0x8000) for one in made]
    stats = train(kernels, text, made, Pass.of(text, objective, 0, table_dtype))
    if hasattr(kernels, "fetch"):
        kernels.fetch()
    return (*(one[:, :dim] for one in made), stats)


def worst(ours: NDArray[Any], right: NDArray[Any]) -> float:
    apart = np.linalg.norm(ours.astype(np.float64) - right, axis=1)
    return float(np.max(apart / np.maximum(np.linalg.norm(right, axis=1), 1e-30)))


class Pass(NamedTuple):
    """What one pass over a text needs beside its tables."""

    objective: firth.SkipGram
    borders: NDArray[np.int64]
    step: Any
    draws: Any

    @classmethod
    def of(cls, text: Text, objective: firth.SkipGram, epoch: int, table_dtype: str = "float32") -> Pass:
        """The learning rate falls from LR to nothing."""
        from firth.encoding import block_starts
        from firth.kernels import cpu
        from firth.training.draws import Sampler

        step = objective.step(LR, LR / len(text.ids), LR * 1e-4)
        step = step._replace(bfloat16=table_dtype == "bfloat16")
        draws = Sampler(text.counts, objective, 1, cpu).epoch(epoch)
        return cls(objective, block_starts(text.starts), step, draws)


def train(kernels: Any, text: Text, tables: list[Any], once: Pass) -> Any:
    """One pass; the stats."""
    from firth.kernels import run_blocks

    size, stats = run_blocks(kernels, 32, 1), np.zeros(3)
    for first in range(0, len(once.borders) - 1, size):
        part = once.borders[first : first + size + 1]
        arrays = (*tables, text.ids, text.starts, part)
        stats += kernels.run(once.objective.kernel, *arrays, once.step, once.draws)[0]
    return stats


# --- words a second -----------------------------------------------------------------------------


def timed(card: Card, text: Text, dim: int, rounds: int, table_dtype: str = "float32") -> tuple[float, float]:
    """Median words a second of whole passes; and the mean loss."""
    from firth.training.sampling import initial_inputs, zeros

    objective = firth.SkipGram()
    tables = [initial_inputs(len(text.counts), dim, 0.5, 1), zeros(len(text.counts), dim)]
    took, loss = [], float("nan")
    for turn in range(rounds):
        once = Pass.of(text, objective, turn, table_dtype)
        # A run of nothing compiles, and brings ids and tables to the card.
        nothing = np.zeros(2, np.int64)
        card.run(objective.kernel, *tables, text.ids, text.starts, nothing, once.step, once.draws)
        wait(str(card.device))
        began = time.perf_counter()
        stats = train(card, text, tables, once)
        wait(str(card.device))
        took.append(time.perf_counter() - began)
        loss = float(stats[0] / stats[1])
        if not np.isfinite(loss):
            sys.exit(f"bench/gpu.py: training left the finite numbers at dim {dim}; no speed is printed")
    return len(text.ids) / statistics.median(took), loss


def group_bytes(dim: int, kept_share: float, table_dtype: str = "float32") -> float:
    """Bytes of rows that a word of the text reads and adds to, see docs/gpu.md."""
    import speed as cpu_speed
    from firth.training.config import TABLE_DTYPES

    objective = firth.SkipGram()
    width = -(-dim // 16) * 16
    rows = cpu_speed.span(objective.window, objective.share) + objective.share + objective.drawn
    return kept_share * rows * width * TABLE_DTYPES[table_dtype] * 2 / objective.share


def kept_share(counts: NDArray[np.int64]) -> float:
    share = counts / counts.sum()
    return float((np.minimum(1.0, np.sqrt(1e-3 / share) + 1e-3 / share) * share).sum())


def speed(
    settings: argparse.Namespace, text: Text, head: dict[str, Any], say: Callable[..., None]
) -> list[dict[str, Any]]:
    from firth.kernels.gpu import Card
    from firth.training.config import TABLE_DTYPES

    long = text.repeated(settings.words)
    rows = []
    rounds = 1 if settings.interpret else ROUNDS
    say(f"\n{'tables':>9} {'dim':>5} {'M words':>8} {'M words/s':>10} {'of copy':>8} {'loss':>7}")
    for dim, dtype in itertools.product(settings.dim, TABLE_DTYPES):
        # The interpreter has no atomic addition of bfloat16, and adds in a fixed order instead.
        card = Card(settings.device, deterministic=settings.interpret and dtype == "bfloat16")
        words, loss = timed(card, long, dim, rounds, dtype)
        of_copy = words * group_bytes(dim, kept_share(text.counts), dtype) / 1e9 / head["copy_gb_s"]
        row = {"dim": dim, "tables": dtype, "words": len(long.ids), "words_s": words}
        rows.append({**row, "of_copy": of_copy, "loss": loss})
        speeds = f"{len(long.ids) / 1e6:>8.1f} {words / 1e6:>10.3f} {of_copy:>8.1%}"
        say(f"{dtype:>9} {dim:>5} {speeds} {loss:>7.3f}")
    return rows


def designs(
    settings: argparse.Namespace, text: Text, head: dict[str, Any], say: Callable[..., None]
) -> list[dict[str, Any]]:
    """The same pass by designs in turn; the deterministic one on a hundredth of the text."""
    from firth.kernels.gpu import Card

    shorter = text.repeated(settings.words // 4)
    rows = []
    say(f"\n{'dim':>5} {'M words/s':>10} {'loss':>7}  design")
    for dim in settings.dim:
        for design in candidates(settings.interpret):
            words, loss = timed(Card(settings.device, design=design), shorter, dim, 1)
            rows.append({"dim": dim, "design": design._asdict(), "words_s": words, "loss": loss})
            say(f"{dim:>5} {words / 1e6:>10.3f} {loss:>7.3f}  {differing(design)}")
        card = Card(settings.device, deterministic=True)
        words, loss = timed(card, shorter.first(max(len(shorter.ids) // 100, 60)), dim, 1)
        rows.append({"dim": dim, "design": "deterministic", "words_s": words, "loss": loss})
        say(f"{dim:>5} {words / 1e6:>10.3f} {loss:>7.3f}  deterministic")
    return rows


def candidates(few: bool) -> list[Design]:
    """The default, and one or two things changed; ``in_flight`` far up shows what stability costs."""
    from firth.kernels.gpu import Design

    default = Design()
    if few:
        return [default, Design(columns=16, held=False)]
    return [
        default,
        *(Design(programs=programs) for programs in (1, 3, 4)),
        *(Design(precision="tf32", programs=programs) for programs in (2, 3, 4)),
        *(Design(precision="tf32", programs=programs, warps=2) for programs in (2, 4, 6)),
        Design(precision="ieee"),
        Design(warps=8),
        Design(warps=2),
        Design(columns=128),
        Design(columns=32),
        Design(held=False),
        Design(in_flight=24.0, precision="tf32", programs=4),
    ]


def differing(design: Design) -> str:
    default = type(design)()
    changed = [
        f"{name}={value}"
        for name, value, usual in zip(design._fields, design, default, strict=True)
        if value != usual
    ]
    return " ".join(changed) or "as it is"


# --- whole runs ---------------------------------------------------------------------------------


def whole(
    settings: argparse.Namespace, text: Text, head: dict[str, Any], say: Callable[..., None]
) -> list[dict[str, Any]]:
    """From the encoded corpus to saved vectors, on the card and on the CPU; scores where there is data."""
    from firth.kernels.gpu import Card

    corpus, epochs = small_corpus(text), 1
    if settings.interpret:
        trains_on_interpreter()
    else:
        corpus, epochs = firth.Corpus.encode(common.lines_file("enwiki100M")), 5
    rows = []
    say(
        f"\n{'device':>8} {'tables':>9} {'dim':>5} {'epoch s':>8} {'WS-353':>7} {'SimLex':>7} "
        f"{'analogies':>9}"
    )
    for dim in settings.dim:
        timed(Card(settings.device), text.first(100_000), dim, 1)  # compiles
        card = "cuda" if settings.interpret else settings.device
        for device, dtype in ((card, "float32"), ("cpu", "float32"), (card, "bfloat16")):
            made = one_run(corpus, device, dim, epochs, settings, dtype)
            row = {"device": device, "tables": dtype, "dim": dim, **made}
            scores = "".join(f" {row.get(name, float('nan')):7.3f}" for name in ("ws353", "simlex"))
            scores += f" {row.get('analogies', 0):9.3f}"
            say(f"{device:>8} {dtype:>9} {dim:>5} {row['epoch_s']:8.2f}{scores}")
            rows.append(row)
    return rows


def trains_on_interpreter() -> None:
    """``train(device="cuda")`` by the interpreter, in this process."""
    from firth import kernels
    from firth.kernels.gpu import Card

    pick = kernels.pick

    def picked(device: str, deterministic: bool = False, table_dtype: str = "float32") -> Any:
        return Card("cpu", deterministic=table_dtype != "float32") if device == "cuda" else pick(device)

    kernels.pick = picked


def small_corpus(text: Text) -> firth.Corpus:
    vocab = firth.Vocab([f"w{row}" for row in range(len(text.counts))], text.counts)
    return firth.Corpus.from_ids(text.ids, text.starts, vocab)


def one_run(
    corpus: firth.Corpus,
    device: str,
    dim: int,
    epochs: int,
    settings: argparse.Namespace,
    table_dtype: str,
) -> dict[str, Any]:
    from firth.evaluate import analogies, word_pairs

    began = time.perf_counter()
    vectors = firth.train(corpus, dim=dim, epochs=epochs, device=device, table_dtype=table_dtype)
    with tempfile.TemporaryDirectory() as folder:
        vectors.save(Path(folder) / "vectors.safetensors")
    row: dict[str, Any] = {
        "epoch_s": (time.perf_counter() - began) / epochs,
        "loss": vectors.metadata["loss"],
    }
    if not settings.interpret:
        data = common.data_folder() / "eval"
        row["ws353"] = word_pairs(vectors, data / "EN-WS-353-ALL.txt").spearman
        row["simlex"] = word_pairs(vectors, data / "EN-SIMLEX-999.txt").spearman
        row["analogies"] = analogies(vectors, data / "questions-words.txt", restrict=30_000).accuracy
    return row


if __name__ == "__main__":
    main()
