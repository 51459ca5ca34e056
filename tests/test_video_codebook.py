"""The codebook and its carrier: symbols as shifts of a lattice, looked up and found again."""

import numpy as np
import pytest
import torch

from firth.errors import SettingError
from firth.nn import Embedding
from firth.video.carrier import BlockCarrier
from firth.video.codebook import CosetTable

TABLES = {
    "product": CosetTable.product_binary(4),
    "e8": CosetTable.e8(),
    "random": CosetTable.random(16, 8, torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_hidden_is_found_and_costs_what_it_must(kind: str) -> None:
    table = TABLES[kind]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, table.embedding_dim, generator=generator) * 300
    dither = torch.rand(4000, table.embedding_dim, generator=generator)
    ids = torch.randint(0, table.num_embeddings, (4000,), generator=generator)
    with torch.no_grad():
        marked = table.hide(values, ids, 20.0, dither)
        assert torch.equal(table.nearest(marked, 20.0, dither), ids)
        assert (marked - values).square().mean() == pytest.approx(20.0**2 / 12, rel=0.05)
        assert (marked - values).abs().max() <= 10.01
        assert table.distances(marked, 20.0, dither).min() >= 0
        other = table.nearest(marked, 20.0, dither + 0.31)
    assert (other == ids).float().mean() < 0.4


def test_it_is_an_embedding() -> None:
    table = CosetTable.product_binary(3)
    assert isinstance(table, Embedding)
    assert table(torch.tensor([5])).tolist() == [[0.5, 0.0, 0.5]]
    assert table.weight.shape == (8, 3)


def test_e8_keeps_its_distances() -> None:
    table = CosetTable.e8()
    with torch.no_grad():
        distances = table.distances(table.weight, 1.0)
    off = distances[~torch.eye(16, dtype=torch.bool)]
    assert off.min() == pytest.approx(1.0)  # four half steps; the product table has one: 0.25
    assert sorted(set(off.tolist())) == [1.0, 2.0]


def test_e8_stands_more_noise_than_the_product_table() -> None:
    generator = torch.Generator().manual_seed(3)
    wrong = {}
    for kind in ("product", "e8"):
        table = TABLES[kind]
        ids = torch.randint(0, 16, (4000,), generator=generator)
        with torch.no_grad():
            marked = table.hide(torch.zeros(4000, table.embedding_dim), ids, 1.0)
            noise = torch.randn(marked.shape, generator=generator) * 0.14
            wrong[kind] = float((table.nearest(marked + noise, 1.0) != ids).float().mean())
    assert wrong["e8"] < 0.3 * wrong["product"]


def test_rows_and_step_can_be_learned() -> None:
    """A random table learns to be told apart under noise; gradients reach the table and the step."""
    torch.manual_seed(0)
    table = CosetTable.random(4, 2)
    step = torch.tensor([3.0, 5.0], requires_grad=True)
    table.hide(torch.randn(7, 2), torch.randint(0, 4, (7,)), step).sum().backward()
    assert step.grad is not None and table.weight.grad is not None
    optimiser = torch.optim.Adam([table.weight], lr=0.02)

    def errors() -> float:
        ids = torch.randint(0, 4, (4000,))
        with torch.no_grad():
            noisy = table.hide(torch.randn(4000, 2) * 9, ids, 1.0) + 0.18 * torch.randn(4000, 2)
            return float((table.nearest(noisy, 1.0) != ids).float().mean())

    before = errors()
    for _ in range(200):
        ids = torch.randint(0, 4, (256,))
        noisy = table.hide(torch.randn(256, 2) * 9, ids, 1.0) + 0.18 * torch.randn(256, 2)
        loss = torch.nn.functional.cross_entropy(-20 * table.distances(noisy, 1.0), ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert errors() < 0.8 * before  # as good as the product table


def test_wrong_calls() -> None:
    for n_bits in (0, 17):
        with pytest.raises(SettingError):
            CosetTable.product_binary(n_bits)


@pytest.mark.parametrize(("block", "count"), [(8, 3), (16, 4), (32, 8)])
def test_a_carrier_changes_what_it_reads(block: int, count: int) -> None:
    carrier = BlockCarrier(block, count)
    rng = np.random.default_rng(0)
    plane = rng.normal(128, 30, (100, 75)).astype(np.float32)
    rows, columns = carrier.grid(plane.shape)
    before = carrier.coefs(plane)
    assert before.shape == (rows * columns, count)
    amounts = rng.normal(0, 20, before.shape).astype(np.float32)
    change = carrier.change(plane.shape, amounts)
    assert np.allclose(carrier.coefs(plane + change), before + amounts, atol=1e-2)
    assert np.square(change).sum() == pytest.approx(np.square(amounts).sum(), rel=1e-4)  # orthonormal
    assert not change[rows * block :].any() and not change[:, columns * block :].any()


def test_coefficients_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(2)
    plane = rng.normal(size=(16, 32)).astype(np.float32)
    carrier = BlockCarrier(16, 4)
    i, j = carrier.places[2]
    at = (2 * np.arange(16) + 1) * np.pi / 32
    scale = (1 / 16 if not i else 1 / 8) ** 0.5 * (1 / 16 if not j else 1 / 8) ** 0.5
    wave = np.outer(np.cos(at * i), np.cos(at * j)) * scale
    assert carrier.coefs(plane)[1, 2] == pytest.approx(float((plane[:, 16:] * wave).sum()), abs=1e-4)


def test_activity() -> None:
    plane = np.zeros((16, 32), np.float32)
    plane[:, 16:] = np.random.default_rng(0).normal(0, 10, (16, 16))
    activity = BlockCarrier(16, 1).activity(plane)
    assert activity[0] == 0
    assert activity[1] == pytest.approx(np.log1p(plane[:, 16:].var()), rel=1e-3)
