"""Films made of nothing but chance, to train on: none of them is a film of another bench.

Leaves of every size lie over each other and over a ground, as things hide things in pictures of the world;
all have textures whose amplitude falls with frequency, as theirs does. The camera pans, zooms and turns,
leaves move by themselves, light changes, there is grain, and some scenes end in another.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from video_clips import Channel, Frame, encode

MARGIN = 1.6  # times the frame that a ground is larger


def scene(seed: int, count: int, size: tuple[int, int]) -> list[Frame]:
    """``count`` frames of ``size`` (width, height)."""
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(8, count - 8)) if rng.random() < 0.3 else count
    planes = [*_shot(rng, cut, size), *_shot(rng, count - cut, size)]
    grain = float(rng.choice([0.0, 0.7, 1.5, 2.5, 4.0]))
    frames = [_frame(plane + grain * rng.normal(0, 1, plane.shape)) for plane in planes]
    if rng.random() < 0.4:  # many films were encoded before
        once = {"preset": "medium", "crf": str(int(rng.integers(16, 27)))}
        frames = encode(frames, Channel("", "libx264", once))[0]
    return frames


def _shot(rng: np.random.Generator, count: int, size: tuple[int, int]) -> list[NDArray[np.float64]]:
    width, height = size
    layers = [_ground(rng, size)]
    layers += [_leaf(rng, size) for _ in range(int(rng.integers(0, 13)))]
    pan = rng.normal(0, 1, 2) * rng.choice([0.0, 0.3, 1.5, 4.0])
    zoom, turn = rng.normal(0, 1, 2) * rng.choice([0.0, 0.0006, 0.003], 2)
    light = rng.normal(0, 0.4) if rng.random() < 0.2 else 0.0
    moves = [np.zeros(2)] + [rng.normal(0, 1, 2) * rng.choice([0, 1.0, 4.0]) for _ in layers[1:]]
    planes = []
    for t in range(count):
        plane = np.zeros((height, width))
        for (texture, cover), own in zip(layers, moves, strict=True):
            moved = _moved(torch.stack([texture, cover]), (pan + own) * t, zoom * t, turn * t, size)
            plane += (moved[0] - plane) * moved[1]
        planes.append(plane + light * t)
    return planes


def _moved(
    layer: Tensor, shift: NDArray[np.float64], zoom: float, turn: float, size: tuple[int, int]
) -> NDArray[np.float64]:
    """A layer (2, height, width) from the middle of its own plane, moved."""
    width, height = size
    large_height, large_width = layer.shape[1:]
    scale, cos, sin = np.exp(zoom), np.cos(turn), np.sin(turn)
    across, down = width / large_width, height / large_height
    aspect = height / width
    theta = torch.tensor(
        [
            [across * scale * cos, -across * scale * sin * aspect, 2 * shift[0] / large_width],
            [down * scale * sin / aspect, down * scale * cos, 2 * shift[1] / large_height],
        ],
        dtype=torch.float32,
    )
    grid = affine_grid(theta[None], [1, 2, height, width], align_corners=False)
    drawn = grid_sample(layer[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    moved = drawn[0].numpy().astype(np.float64)
    moved[1] = np.clip(moved[1], 0, 1)
    return moved


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Noise of deviation 1 whose amplitude falls with frequency."""
    falls = rng.uniform(0.9, 1.8)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(rng.normal(0, 1, shape)) / frequency**falls
    texture = np.fft.irfft2(waves, shape)
    return np.asarray(texture / texture.std())


def _shape(size: tuple[int, int]) -> tuple[int, int]:
    return int(size[1] * MARGIN) // 2 * 2, int(size[0] * MARGIN) // 2 * 2


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    shape = _shape(size)
    plane = rng.uniform(50, 190) + rng.choice([3.0, 10.0, 25.0, 40.0]) * _texture(rng, shape)
    return torch.from_numpy(plane).float(), torch.ones(shape)


def _leaf(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A texture, and a smooth-edged ellipse or box that shows it."""
    shape = _shape(size)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    middle = rng.uniform(0.2, 0.8, 2) * shape
    angle, radius = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(15), np.log(160), 2))
    across = ((x - middle[1]) * np.cos(angle) + (y - middle[0]) * np.sin(angle)) / radius[0]
    down = ((y - middle[0]) * np.cos(angle) - (x - middle[1]) * np.sin(angle)) / radius[1]
    power = rng.choice([2, 2, 8])
    inside = (1 - (np.abs(across) ** power + np.abs(down) ** power)) * radius.min() / 3 + 0.5
    plane = rng.uniform(30, 220) + rng.choice([0.0, 5.0, 15.0, 30.0]) * _texture(rng, shape)
    return torch.from_numpy(plane).float(), torch.from_numpy(np.clip(inside, 0, 1)).float()


def _frame(luma: NDArray[np.float64]) -> Frame:
    height, width = luma.shape
    grey = np.full((height // 2, width // 2), 128, np.uint8)
    return np.clip(np.rint(luma), 0, 255).astype(np.uint8), grey, grey
