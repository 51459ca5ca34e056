"""Trains what reads a frame with the frames around it, and measures what that gains.

    .venv/bin/python bench/video_context.py --score     # what the committed weights gain: about 4 minutes
    .venv/bin/python bench/video_context.py --train     # train anew, write the weights, score them: about 15

Films of ``bench/video_scenes.py``, made by chance, carry random payloads in every robust profile, strength
and spread, go through our own encode and one of several second ones, and are read by the package's own
features; the network of :mod:`firth.video.context` learns the bits. It is scored on the clips of
``bench/video.py``, none of which it was trained on: bits a frame that the log-likelihood ratios tell, by the
frame alone and with its neighbours.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("SVT_LOG", "1")  # errors alone

from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import firth.video
from firth.video import context, geometry, pilots
from firth.video.erasure import Cutter
from firth.video.layout import patterns
from firth.video.robust import HARD, HIGH, WEB, Robust
from video import about
from video_clips import AV1, OWN_ENCODE, X265, Channel, Frame, clips, encode, x264
from video_scenes import scene

Floats = NDArray[np.float32]
KEY = bytes(range(32))
N_HIDDEN = 64
MOST_SAMPLES = 40_000  # of a film in one profile behind one encoder
N_SCENES, SCENE_FRAMES = 96, 40


def _x265(crf: int) -> Channel:
    return replace(X265, options={**X265.options, "crf": str(crf)})


def _av1(crf: int) -> Channel:
    return replace(AV1, options={**AV1.options, "crf": str(crf)})


def _forms() -> list[tuple[Robust, list[Channel]]]:
    """Every form of every profile, and encoders that it may meet; those that are twice weigh twice."""
    assert WEB.wide is not None and WEB.fine is not None and WEB.fine.wide is not None
    fine = WEB.fine
    assert HARD.wide is not None and HIGH.wide is not None
    medium = [
        *(x264("medium", crf) for crf in (20, 23, 26)),
        *(x264("veryfast", 23), _x265(23), _av1(28), x264("medium", 23, dropped=0.25)),
    ]
    harder = [
        *(x264("medium", 28), x264("veryfast", 28), X265, AV1, x264("medium", 31)),
        *(x264("medium", 28, dropped=0.25), x264("fast", 26), x264("medium", 28, scale=0.75)),
    ]
    light = [x264("medium", 18), x264("fast", 20), _x265(18), _av1(22)]
    return [
        *((HIGH, light), (WEB, medium), (WEB.wide, medium), (fine, medium), (WEB.fine.wide, medium)),
        *((WEB.fine.wide, medium), (HARD, harder), (HARD.wide, harder), (HARD.wide, harder)),
    ]


@dataclass(frozen=True)
class Sample:
    """Coefficients of one film behind one encoder.

    Attributes:
        even, odd: (n, features).
        llr: (n,) by the frame alone.
        bits: (n,) what was hidden.
        n_a_frame: coefficients of a frame, pilots left out.
    """

    even: Floats
    odd: Floats
    llr: Floats
    bits: NDArray[np.uint8]
    n_a_frame: float


def behind(frames: list[Frame], form: Robust, channel: Channel, seed: int, most: int | None = None) -> Sample:
    """What comes of a film: hidden, encoded twice, and seen as a reader sees it.

    Args:
        most: samples, at most; some of the frames then lack others around, as at the ends of a film, or
            have such in which nothing was recognised.
    """
    rng = np.random.default_rng(seed)
    info = about(frames)
    size = form.symbol_bytes(info, 0)
    change = form.marker(info, Cutter(rng.bytes(size * 64), size), KEY)
    marked = [(change(y, at), u, v) for at, (y, u, v) in enumerate(frames)]
    own = encode(marked, OWN_ENCODE)[0]
    out = channel.run(own, seed)
    kept = np.flatnonzero(np.random.default_rng(seed).random(len(frames)) >= channel.dropped)
    layout = form.layout(info.height, info.width)
    every = patterns(KEY, form.name, layout)
    views, truth, alone = [], [], []
    for at, (luma, _, _) in zip(kept, out, strict=True):
        number = int(at) // form.repeat % len(every)
        scaled = luma.shape != (info.height, info.width)
        back = geometry.resized(luma, (info.height, info.width)) if scaled else luma
        pattern, plane = every[number], back.astype(np.float32)
        seen = _seen(form, plane, pattern.dither, number)
        views.append(seen)
        assert seen.phases is not None
        alone.append(
            pilots.log_likelihoods(seen.phases, seen.activity, pattern.pilot_pos, pattern.pilot_bits)
        )
        sent = _seen(form, marked[at][0].astype(np.float32), pattern.dither, number)
        assert sent.phases is not None
        truth.append(np.abs(sent.phases) > 0.25)
    columns = info.width // form.carrier.block
    parts = []
    for at, (llr, bits) in enumerate(zip(alone, truth, strict=True)):
        around = {offset: views[at + offset] for offset in context.OFFSETS if 0 <= at + offset < len(views)}
        chosen = np.arange(llr.size)
        if most is not None:
            around, chosen = _fewer(around, rng), rng.permutation(llr.size)[: -(-most // len(views))]
        carrier = replace(form.carrier, n_coefs=llr.shape[1])
        step = form.step_for(form.psnr, carrier.n_coefs)
        given = context.features(views[at], around, llr, step, carrier, columns)
        rows = (np.ascontiguousarray(array.T[chosen]) for array in (given.even, given.odd))
        parts.append((*rows, llr.reshape(-1)[chosen], bits.reshape(-1)[chosen].astype(np.uint8)))
    even, odd, llr, bits = (np.concatenate(part) for part in zip(*parts, strict=True))
    n_a_frame = float(np.mean([layout.n_free(number) for number in range(len(every))]))
    return Sample(even, odd, llr, bits, n_a_frame)


def _seen(form: Robust, plane: Floats, dither: Floats, number: int) -> context.Seen:
    coefs, n_coefs = form.carrier.coefs(plane), dither.shape[1]
    phases = coefs[:, :n_coefs] / np.float32(form.step_for(form.psnr, n_coefs)) - dither
    phases -= np.rint(phases)
    return context.Seen(coefs, form.carrier.activity(plane), phases, number)


def _fewer(around: dict[int, context.Seen], rng: np.random.Generator) -> dict[int, context.Seen]:
    """In one of five cases some of them are missing, or nothing was recognised in them."""
    chance, bound = rng.random(), rng.integers(-context.REACH, context.REACH + 1)
    if chance < 0.05:
        return {offset: one for offset, one in around.items() if offset < bound}
    if chance < 0.1:
        return {offset: one for offset, one in around.items() if offset > bound}
    if chance < 0.2:
        return {
            offset: replace(one, phases=None, pattern=-1) if rng.random() < 0.3 else one
            for offset, one in around.items()
        }
    return around


def _made(seed: int) -> list[Sample]:
    """A film in three forms, each behind one of its encoders."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(10_000 + seed)
    frames = scene(seed, SCENE_FRAMES, (640, 360))
    forms = _forms()
    samples = []
    for form_at in (3 * seed + np.arange(3)) % len(forms):
        form, channels = forms[form_at]
        form = replace(form, psnr=float(rng.choice(form.strengths)))
        channel = channels[int(rng.integers(len(channels)))]
        samples.append(behind(frames, form, channel, seed, MOST_SAMPLES))
    return samples


class Learner(nn.Module):
    """The network of :class:`firth.video.context.Network`, as torch trains it."""

    def __init__(self, n_even: int, n_odd: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.even, self.odd = nn.Linear(n_even, N_HIDDEN), nn.Linear(n_odd, N_HIDDEN, bias=False)
        self.between, self.last = nn.Linear(N_HIDDEN, N_HIDDEN), nn.Linear(N_HIDDEN, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, even: Tensor, odd: Tensor, llr: Tensor) -> Tensor:
        """(n,) log P(0) / P(1)."""
        shared, own = self.even(even), self.odd(odd)
        both = torch.cat([shared + own, shared - own]).relu()
        said = self.last(self.between(both).relu())[:, 0]
        return torch.as_tensor(self.gain * llr + said[: len(llr)] - said[len(llr) :])

    def weights(self) -> dict[str, Floats]:
        """By the names of :class:`firth.video.context.Network`."""
        named = {
            "from_even": self.even.weight,
            "from_odd": self.odd.weight,
            "bias": self.even.bias,
            "between": self.between.weight,
            "between_bias": self.between.bias,
            "last": self.last.weight[0],
            "gain": self.gain,
        }
        return {name: tensor.detach().numpy().astype(np.float16) for name, tensor in named.items()}


def train(samples: list[Sample], epochs: float, batch: int = 8192, rate: float = 4e-3) -> Learner:
    """Cross-entropy of the bits, Adam, the learning rate up and down once."""
    torch.set_num_threads(2)
    even, odd, llr, bits = (
        torch.from_numpy(np.concatenate(arrays))
        for arrays in zip(*((one.even, one.odd, one.llr, one.bits) for one in samples), strict=True)
    )
    learner = Learner(even.shape[1], odd.shape[1])
    steps = int(epochs * len(llr) / batch)
    optimiser = torch.optim.Adam(learner.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randint(0, len(llr), (batch,), generator=generator)
        logit = learner(even[chosen], odd[chosen], llr[chosen])
        loss = nn.functional.binary_cross_entropy_with_logits(-logit, bits[chosen].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 500 == 0:
            bits_told = 1 - float(loss.detach()) / np.log(2)
            print(f"  step {step:,} of {steps:,}: {bits_told:.4f} bits a bit", flush=True)
    return learner


def told(llr: Floats, bits: NDArray[np.uint8]) -> float:
    """Bits that log-likelihood ratios tell, a bit; less than 0 where they mislead."""
    return float(1 - np.logaddexp(0, -llr * (1.0 - 2.0 * bits)).mean() / np.log(2))


SCORED = (
    ("web, spread", "wide", WEB, 40, x264("medium", 23)),
    ("web, 45 dB, spread", "wide", WEB.fine, 45, x264("medium", 23)),
    ("web, 45 dB", "alone", WEB.fine, 45, x264("medium", 23)),
    ("hard, spread", "wide", HARD, 40, x264("medium", 28)),
    ("hard, spread", "wide", HARD, 40, x264("veryfast", 28)),
    ("hard, spread", "wide", HARD, 40, X265),
    ("hard, spread", "wide", HARD, 40, AV1),
    ("hard", "alone", HARD, 40, x264("veryfast", 28)),
    ("high, spread", "wide", HIGH, 40, x264("medium", 18)),
)
"""Label, form, profile, strength and second encode."""


def score(network: context.Network, n_frames: int) -> None:
    """What is told by frames alone and with their neighbours, on clips that were not trained on."""
    print("profile | channel | clip | bits a frame alone | with neighbours | gain")
    films = {name.split()[0]: make() for name, make in clips(n_frames).items()}
    for label, kind, profile, psnr, channel in SCORED:
        assert profile is not None
        form = profile if kind == "alone" else profile.wide
        assert form is not None
        form = replace(form, psnr=float(psnr))
        for name, frames in films.items():
            one = behind(frames, form, channel, 0)
            given = context.Features(one.even.T, one.odd.T)
            alone, joint = (told(llr, one.bits) for llr in (one.llr, network(given, one.llr)))
            print(
                f"{label} | {channel.label} | {name} | {alone * one.n_a_frame:.0f} | "
                f"{joint * one.n_a_frame:.0f} | {joint / alone:.2f}",
                flush=True,
            )


def _gathered(n_scenes: int) -> Iterator[Sample]:
    with get_context("fork").Pool(2) as pool:
        for at, samples in enumerate(pool.imap_unordered(_made, range(n_scenes))):
            print(f"  film {at + 1} of {n_scenes}", flush=True)
            yield from samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--train", action="store_true", help="train, write the weights, score them")
    task.add_argument("--score", action="store_true", help="score the weights there are")
    parser.add_argument("--scenes", type=int, default=N_SCENES, help="films to train on")
    parser.add_argument("--epochs", type=float, default=5, help="times that samples are seen")
    parser.add_argument("--frames", type=int, default=48, help="of each clip that is scored")
    given = parser.parse_args()
    network = context.network() if given.score else None
    if given.train:
        learner = train(list(_gathered(given.scenes)), given.epochs)
        weights = learner.weights()
        path = Path(next(iter(firth.video.__path__))) / context.WEIGHTS
        np.savez(path, **weights)  # type: ignore[arg-type]
        print(f"{sum(one.size for one in weights.values()):,} weights, {path.stat().st_size:,} bytes")
        network = context.Network(**{name: one.astype(np.float32) for name, one in weights.items()})
    assert network is not None
    score(network, given.frames)


if __name__ == "__main__":
    main()
