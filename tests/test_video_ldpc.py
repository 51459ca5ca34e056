"""The LDPC code within a frame: its graph, encoding, and decoding near what the channel can carry."""

import numpy as np
import pytest
from numpy.typing import NDArray

from firth.errors import SettingError
from firth.video.ldpc import Code, code_for

Bits = NDArray[np.uint8]
FIRST_BITS = [1, 56, 75, 94, 96, 17, 54, 81, 90, 96, 97, 12, 59, 74, 91, 97, 98, 50, 62, 79, 98, 99, 35, 65]
SUM_OF_ALL = 46700228


def noisy(code: Code, words: int, variance: float, seed: int) -> tuple[Bits, NDArray[np.float32]]:
    """Random information bits, and log-likelihoods of their codewords behind Gaussian noise."""
    rng = np.random.default_rng(seed)
    info = rng.integers(0, 2, (words, code.n_info)).astype(np.uint8)
    signal = 1.0 - 2.0 * code.encode(info)
    received = signal + rng.normal(size=signal.shape) * np.sqrt(variance)
    return info, (2 * received / variance).astype(np.float32)


def capacity(variance: float) -> float:
    draws = np.random.default_rng(0).normal(size=200_000) * np.sqrt(variance) + 1
    return float(1 - np.log2(1 + np.exp(-2 * draws / variance)).mean())


@pytest.mark.parametrize("sizes", [(16, 40), (100, 300), (300, 400), (64, 72)])
def test_every_check_holds(sizes: tuple[int, int]) -> None:
    try:
        code = Code(*sizes)
    except SettingError:
        assert sizes[1] - sizes[0] < 16
        return
    info = np.random.default_rng(1).integers(0, 2, (5, 2, code.n_info)).astype(np.uint8)
    words = code.encode(info)
    assert words.shape == (5, 2, code.n_coded)
    assert np.array_equal(words[..., : code.n_info], info)
    for check in range(code.n_coded - code.n_info):
        bits = code._bits[code._starts[check] : code._starts[check + 1]]
        assert len(set(bits.tolist())) == len(bits)
        assert not (words[..., bits].sum(-1) & 1).any()


def test_the_graph_is_always_the_same() -> None:
    """Another graph would not read what was hidden with this one."""
    code = Code(96, 256)
    assert code._bits[:24].tolist() == FIRST_BITS
    assert int((code._bits.astype(np.int64) * np.arange(code._bits.size)).sum()) == SUM_OF_ALL


def test_no_short_cycles() -> None:
    code = Code(696, 1707)
    joined = np.zeros((1011, 1707), np.float32)
    for check in range(1011):
        joined[check, code._bits[code._starts[check] : code._starts[check + 1]]] = 1
    shared = joined.T @ joined
    np.fill_diagonal(shared, 0)
    assert shared.max() == 1  # two bits in two checks would be a cycle of four


@pytest.mark.parametrize(
    ("sizes", "variance"), [((640, 1760), 1.05), ((1760, 3520), 0.68), ((1500, 2000), 0.33)]
)
def test_decoding_near_capacity(sizes: tuple[int, int], variance: float) -> None:
    code = code_for(*sizes)
    assert capacity(variance) < sizes[0] / sizes[1] + 0.12
    info, llr = noisy(code, 40, variance, 2)
    kept = llr.copy()
    found, held = code.decode(llr)
    assert np.array_equal(kept, llr)
    right = (found == info).all(1)
    assert right.mean() > 0.9
    assert right[held].all()


def test_noise_alone_is_no_codeword() -> None:
    code = code_for(640, 1760)
    noise = np.random.default_rng(3).normal(size=(60, 1760)).astype(np.float32) * 2
    assert not code.decode(noise)[1].any()


def test_certain_bits_and_none_at_all() -> None:
    code = code_for(100, 300)
    info, llr = noisy(code, 3, 0.01, 4)
    llr *= 1e6
    assert np.array_equal(code.decode(llr)[0], info)
    llr[:, ::7] = 0
    found, held = code.decode(llr)
    assert held.all() and np.array_equal(found, info)


def test_wrong_calls() -> None:
    for sizes in [(8, 100), (100, 100), (100, 2001), (100, 104), (100, 0)]:
        with pytest.raises(SettingError):
            Code(*sizes)
