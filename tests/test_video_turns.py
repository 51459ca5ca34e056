"""Which pattern each frame has, told from all frames in a row."""

import numpy as np
import pytest
from numpy.typing import NDArray

from firth.video.layout import N_PATTERNS
from firth.video.turns import Turns


def score(shown: dict[int, float], rng: np.random.Generator) -> NDArray[np.float32]:
    """Chance, and the patterns that are in the frame."""
    scores = rng.normal(0, 1, N_PATTERNS).astype(np.float32)
    for pattern, fits in shown.items():
        scores[pattern % N_PATTERNS] += fits
    return scores


def followed(scores: list[NDArray[np.float32]], first: int, ahead: int = 5) -> list[int]:
    """As a reader asks: each frame once, with a few behind it."""
    turns, path = Turns((first - 1) % N_PATTERNS), []
    for at in range(len(scores)):
        path.append(turns.path(scores[at : at + ahead])[0])
        turns.next(scores[at])
    return path


def in_turn(first: int, count: int) -> list[int]:
    return [(first + at) % N_PATTERNS for at in range(count)]


def test_frames_that_show_nothing_have_their_turn() -> None:
    rng = np.random.default_rng(0)
    scores = [score({at: 5.0} if at % 4 == 0 else {}, rng) for at in range(60)]
    assert followed(scores, 0) == in_turn(0, 60)


def test_a_frame_that_shows_another_is_not_believed() -> None:
    """Frames between two that are coded well are predicted from these, and show their patterns."""
    rng = np.random.default_rng(1)
    scores = []
    for at in range(80):
        before, after = at // 4 * 4, at // 4 * 4 + 4
        scores.append(score({at: 8.0} if at % 4 == 0 else {before: 3.0, after: 4.5}, rng))
    assert followed(scores, 0)[:77] == in_turn(0, 77)  # behind the last well coded frame nothing tells


@pytest.mark.parametrize("step", [0, 2, 3, 6, 11])
def test_missing_and_doubled_frames_are_noticed(step: int) -> None:
    """A frame comes twice, some are missing, or the film goes on elsewhere."""
    rng = np.random.default_rng(2)
    true = [*in_turn(3, 30), *in_turn(3 + 29 + step, 30)]
    path = followed([score({pattern: 6.0}, rng) for pattern in true], 3)
    assert path == true


def test_weak_frames_follow_after_a_gap() -> None:
    """Two frames are missing; the next that is coded well tells, and those between count back from it."""
    rng = np.random.default_rng(3)
    true = [*in_turn(0, 20), *in_turn(22, 40)]
    scores = [
        score({pattern: 7.0} if at % 4 == 0 else {pattern: 2.0}, rng) for at, pattern in enumerate(true)
    ]
    path = followed(scores, 0)
    assert path[:20] == true[:20] and path[24:] == true[24:]


def test_a_path_needs_no_more_than_one_frame() -> None:
    rng = np.random.default_rng(4)
    assert Turns(15).path([score({0: 9.0}, rng)]) == [0]
    assert Turns(4).path([score({}, rng) * 0]) == [5]
