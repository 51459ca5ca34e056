"""Can the codebook or its step sizes be learned? Trained on a stand-in for the codec, judged by the codec.

    .venv/bin/python bench/video_learn.py            # about 2 minutes of one core

The stand-in: the error of a block after hiding is cut into 8 x 8 DCT coefficients and goes through a
quantiser with a dead zone (step 16, zone 2/3: x264 at QP 28), whose rounding passes gradients straight
through; what it returns is read. Blocks differ in how hard they are quantised, since a codec spends its bits
where it wants. Learned by back-propagation, under the same mean square error as the table they start from:

* the steps of the eight coefficients of profile hard (the loss is the cross-entropy of the bits);
* a table of 16 rows in 8 dimensions, from random rows (the loss is that of the symbols); its rivals are E8
  and the product table of 16 rows in 4 dimensions.

Then all are hidden in frames that were not trained on (every film is held out: the stand-in knows none), go
through x264 medium CRF 28 for real, and mutual information is measured: bits a block of 8 coefficients.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firth.video.carrier import BlockCarrier
from firth.video.codebook import CosetTable
from video_clips import OWN_ENCODE, clips, encode, x264

CARRIER = BlockCarrier(32, 8)
STEP = 99.0
HOLD = 4  # frames in a row that carry the same, as in profile hard


def codec_basis() -> Tensor:
    """(8, 1024): each hidden coefficient's wave, as the 8 x 8 DCT coefficients of its block of 32 x 32."""
    waves = np.stack([CARRIER.change((32, 32), row[None]) for row in np.eye(8, dtype=np.float32)])
    at = np.arange(8)
    dct = np.cos(np.pi * (2 * at[None] + 1) * at[:, None] / 16) * 0.5
    dct[0] /= np.sqrt(2)
    tiles = waves.reshape(8, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4)
    return torch.from_numpy((dct @ tiles @ dct.T).reshape(8, 1024).astype(np.float32))


def dead_zone(values: Tensor, step: Tensor) -> Tensor:
    """A quantiser that rounds towards 0 (a third of a step up), with the gradient of the identity."""
    scaled = values / step
    level = torch.sign(scaled) * torch.floor(scaled.abs() + 1 / 3)
    return values + (level * step - values).detach()


class StandIn(torch.nn.Module):
    """What a codec does to hidden coefficients: their change is coded, coarsely, in smaller blocks.

    Steps are those of x264 from QP 20 to 34, block by block; a fifth of the blocks is skipped: all is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.basis = codec_basis()

    def forward(self, marked: Tensor, host: Tensor, generator: torch.Generator) -> Tensor:
        """(n, 8) coefficients as they come back.

        Args:
            marked, host: (n, 8) after and before hiding.
        """
        n = len(marked)
        qp = 20 + 14 * torch.rand(n, 1, generator=generator)
        step = 0.625 * 2 ** (qp / 6)
        grain = 2.0 * torch.randn(n, 1024, generator=generator)  # what else the encoder has to code there
        back = dead_zone((marked - host) @ self.basis + grain, step) @ self.basis.T
        skipped = (torch.rand(n, 1, generator=generator) < 0.2).float()
        return host + (1 - skipped) * back + skipped * 20 * torch.randn(n, 8, generator=generator)


def learn_steps(rounds: int) -> Tensor:
    """(8,) steps of the same mean square as ``STEP``, for product-binary rows."""
    generator = torch.Generator().manual_seed(0)
    channel, table = StandIn(), CosetTable.product_binary(8)
    logits = torch.zeros(8, requires_grad=True)
    sharp = torch.tensor(8.0, requires_grad=True)
    optimiser = torch.optim.Adam([logits, sharp], lr=0.03)
    for _ in range(rounds):
        share = torch.exp(logits)
        steps = STEP * torch.sqrt(8 * share / share.sum())
        ids = torch.randint(0, 256, (512,), generator=generator)
        host = 120 * torch.randn(512, 8, generator=generator)
        dither = torch.rand(512, 8, generator=generator)
        back = channel(table.hide(host, ids, steps, dither), host, generator)
        phase = back / steps - dither
        logit = -sharp * torch.cos(2 * torch.pi * phase)  # of bit 1
        bits = (ids[:, None] >> torch.arange(8) & 1).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, bits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return steps.detach()


def learn_table(rounds: int) -> CosetTable:
    """16 rows in 8 dimensions, learned from random ones."""
    generator = torch.Generator().manual_seed(1)
    channel, table = StandIn(), CosetTable.random(16, 8, generator)
    sharp = torch.tensor(8.0, requires_grad=True)
    optimiser = torch.optim.Adam([table.weight, sharp], lr=0.01)
    for _ in range(rounds):
        ids = torch.randint(0, 16, (512,), generator=generator)
        host = 120 * torch.randn(512, 8, generator=generator)
        dither = torch.rand(512, 8, generator=generator)
        back = channel(table.hide(host, ids, STEP, dither), host, generator)
        loss = torch.nn.functional.cross_entropy(-sharp * table.distances(back, STEP, dither), ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return table


def measured(table: CosetTable, steps: Tensor | float, film: list[NDArray[np.uint8]]) -> tuple[float, float]:
    """Bits a block that come through x264, and the luma PSNR of hiding."""
    generator = torch.Generator().manual_seed(2)
    parts = 8 // table.embedding_dim
    marked, sent, error = [], [], 0.0
    for at, (luma, u, v) in enumerate(film):
        host = torch.from_numpy(CARRIER.coefs(luma.astype(np.float32))).reshape(-1, parts, 8 // parts)
        if at % HOLD == 0:
            ids = torch.randint(0, table.num_embeddings, host.shape[:2], generator=generator)
            dither = torch.rand(host.shape, generator=generator)
        with torch.no_grad():
            moved = (table.hide(host, ids, steps, dither) - host).reshape(-1, 8).numpy()
        after = np.clip(np.rint(luma + CARRIER.change(luma.shape, moved)), 0, 255).astype(np.uint8)
        error += float(np.square(after.astype(np.float32) - luma).mean())
        marked.append((after, u, v))
        sent.append((ids, dither))
    back = x264("medium", 28).run(encode(marked, OWN_ENCODE)[0])
    bits = []
    for (luma, _, _), (ids, dither) in zip(back, sent, strict=True):
        values = torch.from_numpy(CARRIER.coefs(luma.astype(np.float32))).reshape(dither.shape)
        with torch.no_grad():
            distances = table.distances(values, steps, dither).reshape(-1, table.num_embeddings)
        bits.append(parts * information(distances, ids.reshape(-1)))
    return float(np.mean(bits)), 10 * np.log10(255**2 / (error / len(film)))


def information(distances: Tensor, ids: Tensor) -> float:
    """Bits a symbol: log2 of the symbols less their cross-entropy, at the best sharpness for the frame."""
    entropy = min(
        float(torch.nn.functional.cross_entropy(-sharp * distances, ids))
        for sharp in np.geomspace(0.1, 60, 24).tolist()
    )
    return max(0.0, float(np.log2(distances.shape[-1])) - entropy / float(np.log(2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1500, help="steps of the optimiser")
    parser.add_argument("--frames", type=int, default=32, help="of each film")
    given = parser.parse_args()
    steps = learn_steps(given.rounds)
    print("steps learned, by frequency:", [round(step, 1) for step in steps.tolist()], flush=True)
    learned = learn_table(given.rounds)
    with torch.no_grad():
        off = learned.distances(learned.weight, 1.0)[~torch.eye(16, dtype=torch.bool)]
    print(f"table learned: least squared distance {off.min():.2f} (E8: 1, random: {least_random():.2f})")
    rivals: dict[str, tuple[CosetTable, Tensor | float]] = {
        "product binary, one step": (CosetTable.product_binary(4), STEP),
        "product binary, steps learned": (CosetTable.product_binary(8), steps),
        "E8": (CosetTable.e8(), STEP),
        "16 x 8 learned": (learned, STEP),
        "16 x 8 random": (CosetTable.random(16, 8, torch.Generator().manual_seed(1)), STEP),
    }
    films = {name: make() for name, make in clips(given.frames).items()}
    for kind, (table, step) in rivals.items():
        for name, film in films.items():
            bits, psnr = measured(table, step, film)
            print(f"{kind} | {name} | {bits:.2f} bits a block | {psnr:.2f} dB", flush=True)


def least_random() -> float:
    """The least squared distance of the rows that learning began with."""
    table = CosetTable.random(16, 8, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float(table.distances(table.weight, 1.0)[~torch.eye(16, dtype=torch.bool)].min())


if __name__ == "__main__":
    main()
