"""Pairs of models whose relation is known: one latent space seen by different tables."""

import numpy as np
from numpy.typing import NDArray

import firth

Floats = NDArray[np.float64]


def words(count: int) -> list[str]:
    return [f"w{place}" for place in range(count)]


def latent(count: int, dim: int, seed: int = 0) -> Floats:
    """(count, dim) points in clusters of eight, so that neighbours mean something."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(-(-count // 8), dim))
    return np.repeat(centres, 8, axis=0)[:count] + 0.5 * rng.normal(size=(count, dim))


def rotation(rows: int, columns: int, seed: int = 0) -> Floats:
    """(rows, columns) with orthonormal rows, or columns if there are fewer of them."""
    made = np.random.default_rng(seed).normal(size=(max(rows, columns), min(rows, columns)))
    axes, _ = np.linalg.qr(made)
    return axes if rows > columns else axes.T


def model(
    points: Floats, keys: list[str], noise: float = 0.0, seed: int = 1, counts: bool = False
) -> firth.Vectors:
    made = points + noise * np.random.default_rng(seed).normal(size=points.shape)
    return firth.Vectors(keys, made.astype(np.float32), counts=range(len(keys), 0, -1) if counts else None)
