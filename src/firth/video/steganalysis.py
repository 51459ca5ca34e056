"""Sample-pairs analysis: how an opponent tells replaced lowest bits, and what they see of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from firth.video.frames import Luma


def sample_pairs(luma: Luma) -> float:
    """Share of samples whose lowest bit a message replaced, as sample-pairs analysis estimates it.

    Neighbours in a row are counted by parity and order. In a natural picture two of the counts are equal;
    replacement moves them apart by a known law, a quadratic equation whose smaller root is the estimate
    (Dumitrescu, Wu and Wang 2003). A picture without a message gives about 0, plus or minus some hundredths.

    Args:
        luma: (height, width) of an integer dtype.
    """
    left, right = luma[:, :-1].astype(np.int32).ravel(), luma[:, 1:].astype(np.int32).ravel()
    even = right % 2 == 0
    less, more = left < right, left > right
    x = int(np.count_nonzero((even & less) | (~even & more)))
    y = int(np.count_nonzero((even & more) | (~even & less)))
    same_pair = int(np.count_nonzero(left // 2 == right // 2))  # equal, or apart in the lowest bit only
    a, b, c = same_pair / 2, 2 * x - left.size, y - x
    if not a:
        return 0.0
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return float(min((-b + root) / (2 * a), (-b - root) / (2 * a), key=abs))


def detection_error(covers: Sequence[float], marked: Sequence[float]) -> float:
    """P_E of the best threshold: the least mean of false alarms and misses, 0 to .5 (a coin).

    Args:
        covers, marked: a detector's score of pictures without and with a message; larger is more suspect.
    """
    clean, stego = np.sort(np.asarray(covers)), np.sort(np.asarray(marked))
    cuts = np.concatenate([[-np.inf], clean, stego])
    alarms = 1 - np.searchsorted(clean, cuts, side="right") / clean.size
    misses = np.searchsorted(stego, cuts, side="right") / stego.size
    return float(np.min((alarms + misses) / 2))
