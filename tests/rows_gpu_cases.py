"""The Triton kernels against the definition, row by row: cases that ``test_rows_gpu.py`` runs in a process
of their own, on a card or, with TRITON_INTERPRET=1 set before Triton is imported, on the CPU."""

import math
import os

import pytest
import torch
from torch import Tensor

from firth import nn
from firth.errors import SettingError
from firth.kernels import rows
from firth.kernels import rows_gpu as gpu
from firth.kernels import rows_reference as reference
from firth.kernels.rows_reference import Groups, Source, Update
from firth.nn.recipes import SGD, Adagrad, Adam, Recipe, RowWiseAdagrad

pytest.importorskip("triton")
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
KINDS = reference.KINDS
DIMS = (1, 7, 8, 64, 100, 128, 300)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
N = 24
SIZE = 70
UPDATES = {
    "sgd": Update("sgd", 0.1),
    "sgd with momentum": Update("sgd", 0.1, momentum=0.9),
    "sgd with nesterov": Update("sgd", 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd maximized": Update("sgd", 0.1, maximize=True, weight_decay=0.1),
    "sgd clipped": Update("sgd", 0.1, clip=0.5, maximize=True),
    "sgd decoupled": Update("sgd", 0.1, weight_decay=0.1, decoupled=True),
    "adagrad": Update("adagrad", 0.1, eps=1e-10),
    "adagrad clipped": Update("adagrad", 0.1, weight_decay=0.01, clip=1.0),
    "rowwise_adagrad": Update("rowwise_adagrad", 0.1),
    "rowwise_adagrad with all": Update("rowwise_adagrad", 0.1, weight_decay=0.1, clip=1.0, maximize=True),
    "adam": Update("adam", 1e-3, step=3),
    "adam decoupled": Update("adam", 1e-3, weight_decay=0.1, decoupled=True, clip=1.0, beta1=0.8),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 8 places, so that small batches have some: the interpreter is slow."""
    monkeypatch.setattr(gpu, "TILE", 8)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).to(DEVICE)


def batch(size: int = SIZE, seed: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
    """Ids of which row 3 has more than a tile, others a few, most of the table none."""
    made = torch.randint(N, (size,), generator=torch.Generator().manual_seed(seed))
    made[torch.rand(size, generator=torch.Generator().manual_seed(seed + 1)) < 0.6] = 3
    return made.to(dtype).to(DEVICE)


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Equal to the rounding of sums in another order (float64, else float32) and of the stored dtype."""
    bounds = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
    torch.testing.assert_close(got, wanted, rtol=bounds[dtype], atol=bounds[dtype])


def grouped(ids: Tensor, padding_row: int | None = None) -> Groups:
    return reference.group(ids, N, padding_row)


def stepped(
    step: Update, table: Tensor, source: Source, groups: Groups, by_freq: bool = False, steps: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """(ours, the definition's) of the table and of each state after steps from a state that is not zero."""
    tables = [table.clone(), table.clone()]
    shapes = reference.state_shapes(step.kind, len(table), table.shape[1], step.momentum)
    states = [{name: normal(*shape).abs().to(table.dtype) for name, shape in shapes.items()} for _ in tables]
    for kernels, one, state in zip((gpu, reference), tables, states, strict=True):
        for turn in range(steps):
            kernels.update(one, state, groups, source, step._replace(step=step.step + turn), by_freq)
    return [(tables[0], tables[1]), *((states[0][name], states[1][name]) for name in shapes)]


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("padding_row", [None, 3, 11, N - 1])
@pytest.mark.parametrize("size", [0, 1, SIZE])
def test_group(dtype: torch.dtype, padding_row: int | None, size: int) -> None:
    ids = batch(size, dtype=dtype)
    for got, wanted in zip(gpu.group(ids, N, padding_row), grouped(ids, padding_row), strict=True):
        assert got.dtype == wanted.dtype == torch.int64
        assert got.tolist() == wanted.tolist()


def test_group_of_nothing_but_padding() -> None:
    rows, starts, order = gpu.group(torch.full((5,), 3, device=DEVICE), N, 3)
    assert (rows.tolist(), starts.tolist(), order.tolist()) == ([], [0], [])


def test_group_in_a_table_of_more_than_two_to_the_31_rows() -> None:
    ids = torch.tensor([2**33, 1, 2**33, 0], device=DEVICE)
    rows, starts, order = gpu.group(ids, 2**34, 0)
    assert (rows.tolist(), starts.tolist(), order.tolist()) == ([1, 2**33], [0, 1, 3], [1, 0, 2])


def test_first_outside() -> None:
    ids = batch()
    assert gpu.first_outside(ids, N) == -1
    assert gpu.first_outside(ids[:0], N) == -1
    for wrong in (-1, N, 2**40, -(2**63)):
        ids = batch()
        ids[50] = wrong
        assert gpu.first_outside(ids, N) == 50
        ids[60] = -5
        assert gpu.first_outside(ids, N) == 50
    assert gpu.first_outside(batch(dtype=torch.int32), 3) == reference.first_outside(batch(), 3)


# --- lookups ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather(dtype: torch.dtype) -> None:
    table, ids = normal(N, 7, dtype=dtype), batch(dtype=torch.int32)
    assert torch.equal(gpu.gather(table, ids), table[ids.long()])
    out = torch.full((SIZE, 7), math.nan, dtype=dtype, device=DEVICE)
    assert gpu.gather(table, ids, out) is out
    assert torch.equal(out, table[ids.long()])
    assert gpu.gather(table, ids[:0]).shape == (0, 7)


@pytest.mark.parametrize(
    ("dim", "norm_type"), [*((dim, 2.0) for dim in DIMS), (1500, 2.0), (7, 1.0), (7, math.inf), (7, 0.5)]
)
def test_renorm(dim: int, norm_type: float) -> None:
    tables = [normal(N, dim), normal(N, dim)]
    limit = float(torch.linalg.vector_norm(tables[0], norm_type, dim=1).median())
    for kernels, table in zip((gpu, reference), tables, strict=True):
        table[3, 0] = math.nan
        kernels.renorm(table, batch(30), limit, norm_type)
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_renorm_in_every_dtype(dtype: torch.dtype) -> None:
    tables = [normal(N, 8, dtype=dtype), normal(N, 8, dtype=dtype)]
    for kernels, table in zip((gpu, reference), tables, strict=True):
        kernels.renorm(table, batch(30), 1.0, 2.0)
    close(tables[0], tables[1], dtype)
    assert not torch.equal(tables[0], normal(N, 8, dtype=dtype))


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_freq", [False, True])
@pytest.mark.parametrize("dim", [*DIMS, 1500])
def test_summed(dim: int, by_freq: bool) -> None:
    groups = grouped(batch(), 5)
    source = Source(normal(SIZE, dim))
    assert int(groups.starts.diff().max()) > 2 * gpu.TILE
    close(gpu.summed(groups, source, by_freq), reference.summed(groups, source, by_freq), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_row_of", [False, True])
@pytest.mark.parametrize("with_factor", [False, True])
def test_summed_from_every_source(dtype: torch.dtype, with_row_of: bool, with_factor: bool) -> None:
    places = torch.arange(SIZE, device=DEVICE)
    source = Source(
        normal(20 if with_row_of else SIZE, 7, dtype=dtype),
        places // 15 if with_row_of else None,
        normal(SIZE, seed=1, dtype=dtype) if with_factor else None,
    )
    groups = grouped(batch())
    got, wanted = gpu.summed(groups, source, True), reference.summed(groups, source, True)
    assert got.dtype == reference.precision(dtype)
    close(got, wanted, reference.precision(dtype))


def test_sums_are_exact_where_the_reference_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 ones are 600 in bfloat16 too, whose own sums stand still at 256; with tiles of the usual size."""
    monkeypatch.setattr(gpu, "TILE", 64)
    groups = grouped(torch.full((600,), 7, device=DEVICE))
    source = Source(torch.ones(1, 3, dtype=torch.bfloat16, device=DEVICE).expand(600, 3))
    assert gpu.summed(groups, source, False).tolist() == [[600.0] * 3]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 24, 40])
@pytest.mark.parametrize("before", [0, 1, 7])
def test_every_place_is_added_once_however_rows_meet_tiles(size: int, before: int) -> None:
    ids = torch.cat([torch.zeros(before), torch.ones(size), torch.full((10,), 2)]).long().to(DEVICE)
    powers = Source(torch.arange(len(ids), dtype=torch.float64, device=DEVICE)[:, None] + 1)
    groups = grouped(ids)
    assert torch.equal(gpu.summed(groups, powers, False), reference.summed(groups, powers, False))


def test_sums_have_the_same_bits_every_time() -> None:
    groups, source = grouped(batch()), Source(normal(SIZE, 64))
    assert torch.equal(gpu.summed(groups, source, False), gpu.summed(groups, source, False))


def test_first_not_finite() -> None:
    ids, grads = batch(), normal(SIZE, 7)
    groups = grouped(ids)
    assert gpu.first_not_finite(groups, Source(grads)) == -1
    grads[int((ids == 20).nonzero()[0]), 6] = math.inf
    assert gpu.first_not_finite(groups, Source(grads)) == 20
    grads[int((ids == 3).nonzero()[20]), 0] = math.nan
    assert gpu.first_not_finite(groups, Source(grads)) == 3
    assert gpu.first_not_finite(grouped(ids, 3), Source(grads)) == 20


# --- updates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_update_in_every_dimension(kind: str, dim: int) -> None:
    groups, source = grouped(batch(), 5), Source(normal(SIZE, dim, seed=2))
    for got, wanted in stepped(Update(kind, 0.1), normal(N, dim), source, groups):
        close(got, wanted, torch.float32)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.bfloat16) for name in UPDATES), *((kind, one) for kind in KINDS for one in DTYPES[:3])],
)
def test_update_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    table, groups = normal(N, 8, dtype=dtype), grouped(batch())
    grads = normal(SIZE, 8, seed=2, dtype=dtype)
    results = stepped(UPDATES[name], table, Source(grads), groups, by_freq=True)
    for got, wanted in results:
        assert got.dtype == dtype
        close(got, wanted, dtype)
    unused = torch.ones(N, dtype=torch.bool, device=DEVICE)
    unused[groups.rows] = False
    got = results[0][0]
    assert unused.any()
    assert torch.equal(got[unused], table[unused])
    assert not torch.equal(got[groups.rows], table[groups.rows])


@pytest.mark.parametrize("name", [name for name in UPDATES if name not in KINDS])
def test_update_with_every_setting(name: str) -> None:
    groups, source = grouped(batch()), Source(normal(SIZE, 8, seed=2))
    for got, wanted in stepped(UPDATES[name], normal(N, 8), source, groups, by_freq=True, steps=3):
        close(got, wanted, torch.float32)


@pytest.mark.parametrize("name", ["sgd with nesterov", "rowwise_adagrad with all", "adam decoupled"])
def test_update_of_rows_wider_than_a_block(name: str) -> None:
    groups, source = grouped(batch(12)), Source(normal(12, 1500, seed=2))
    for got, wanted in stepped(UPDATES[name], normal(N, 1500), source, groups):
        close(got, wanted, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_update_from_bags(kind: str) -> None:
    source = Source(normal(10, 7), torch.arange(SIZE, device=DEVICE) // 15, normal(SIZE, seed=3))
    for got, wanted in stepped(Update(kind, 0.1), normal(N, 7), source, grouped(batch())):
        close(got, wanted, torch.float32)


def test_update_with_state_of_another_dtype() -> None:
    table, groups, source = normal(N, 8, dtype=torch.bfloat16), grouped(batch()), Source(normal(SIZE, 8))
    results = []
    for kernels in (gpu, reference):
        moved, state = table.clone(), {"sum": torch.ones(N, 8, device=DEVICE)}
        kernels.update(moved, state, groups, source, Update("adagrad", 0.1), False)
        results.append((moved, state["sum"]))
    close(results[0][0], results[1][0], torch.bfloat16)
    close(results[0][1], results[1][1], torch.float32)


def test_update_of_what_the_kernels_do_not_take() -> None:
    """A table or state with gaps between its rows, a batch without ids."""
    wide, grads, groups = normal(N, 16), normal(SIZE, 8, seed=2), grouped(batch())
    for got, wanted in stepped(Update("sgd", 0.1), wide[:, ::2], Source(grads.T.contiguous().T), groups):
        close(got, wanted, torch.float32)
    strided = wide.clone()[:, ::2]
    gpu.update(strided, {}, groups, Source(grads), Update("sgd", 0.1), False)
    dense = wide[:, ::2].contiguous()
    reference.update(dense, {}, groups, Source(grads), Update("sgd", 0.1), False)
    close(strided, dense, torch.float32)
    gpu.update(dense, {}, grouped(batch(0)), Source(grads[:0]), Update("sgd", 0.1), False)
    close(strided, dense, torch.float32)


def test_rows_beyond_two_to_the_31_elements() -> None:
    """4.3 GB of addresses, of which a few pages are touched."""
    n_rows = 2**31 // 64 + 8
    table = torch.empty(n_rows, 64, dtype=torch.bfloat16, device=DEVICE)
    table[0] = table[-1] = 1
    ids = torch.tensor([n_rows - 1, 0, n_rows - 1], device=DEVICE)
    source = Source(torch.ones(3, 64, dtype=torch.bfloat16, device=DEVICE))
    gpu.update(table, {}, gpu.group(ids, n_rows), source, Update("sgd", 0.25), False)
    assert gpu.gather(table, ids)[:, 63].tolist() == [0.5, 0.75, 0.5]
    gpu.renorm(table, ids, 1.0, 2.0)
    # Triton's interpreter cuts bfloat16 off where cards round.
    assert gpu.gather(table, ids)[:, 63].tolist() == pytest.approx([0.125] * 3, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_refused(kind: str, value: float) -> None:
    ids, grads, table = batch(), normal(SIZE, 7), normal(N, 7)
    grads[int((ids == 3).nonzero()[20]), 2] = value
    grads[int((ids > 15).nonzero()[0]), 2] = value
    shapes = reference.state_shapes(kind, N, 7, 0.0)
    state = {name: torch.ones(shape, device=DEVICE) for name, shape in shapes.items()}
    with pytest.raises(FloatingPointError, match="the gradient of row 3 is not finite"):
        gpu.update(table, state, grouped(ids), Source(grads), Update(kind, 0.1), False)
    assert torch.equal(table, normal(N, 7))
    assert all(bool((tensor == 1).all()) for tensor in state.values())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SettingError, match="not 'lamb'"):
        gpu.update(normal(N, 2), {}, grouped(batch()), Source(normal(SIZE, 2)), Update("lamb", 0.1), False)


# --- compiling ----------------------------------------------------------------------------------


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize(("capability", "dtype", "dim"), [(80, "bf16", 1), (90, "fp32", 100)])
def test_kernels_compile_without_a_card(capability: int, dtype: str, dim: int) -> None:
    """For blocks of 8 columns and of 128; the compiler has failed on some that the interpreter takes."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from firth.kernels import rows_triton as kernels

    block = gpu._Block.of(dim)
    pointers = dict.fromkeys(("starts", "order", "row_of", "rows"), "*i64")
    pointers |= dict.fromkeys(("factor", "grads", "table", "state_1", "state_2"), f"*{dtype}")
    pointers |= dict.fromkeys(("tiles", "out"), "*fp32") | dict.fromkeys(("wrong", "refused"), "*i8")
    flags = ("ROW_OF", "FACTOR", "TILES", "BY_FREQ", "MOMENTUM", "NESTEROV", "DECAY", "CLIP", "SQUARE")
    constants = dict.fromkeys(flags, True) | {"DECOUPLED": False, "MAXIMIZE": True}
    constants |= {"D": dim, "ROWS": block.rows, "BLOCK": block.columns, "TILE": 64}
    constants |= {"ACC": tl.float32, "WORK": tl.float32}
    settings = ("lr", "weight_decay", "keep", "momentum", "rest_1", "rest_2", "eps", "clip")
    kept = {param.name for param in kernels.update.params if param.annotation_type == "fp64"}
    assert kept == set(settings)  # Triton takes other numbers as float32
    cut = [kernels.tile_sums, kernels.summed, kernels.not_finite, kernels.renorm]
    for kernel, kind in [*((one, "") for one in cut), *((kernels.update, kind) for kind in KINDS)]:
        own = {name: one for name, one in (constants | {"KIND": kind}).items() if name in kernel.arg_names}
        signature = {
            param.name: "constexpr"
            if param.name in own
            else pointers.get(param.name) or param.annotation_type or "i32"
            for param in kernel.params
        }
        made = triton.compile(
            ASTSource(kernel, signature, constexprs=own), target=GPUTarget("cuda", capability, 32)
        )
        assert made.asm["cubin"]


# --- through the layers -------------------------------------------------------------------------


@pytest.fixture
def layers_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card the layers pick these kernels; on the CPU they are made to."""
    if DEVICE == "cpu":
        monkeypatch.setattr(rows, "pick", lambda table: gpu)
    assert rows.pick(torch.zeros(2, 2, device=DEVICE)) is gpu


def trained(layer: torch.nn.Module, inputs: list[Tensor], device: str) -> tuple[Tensor, Tensor]:
    """(outputs, weight) on the CPU after two steps that pull the outputs towards zero."""
    layer = layer.to(device)
    for _ in range(2):
        out = layer(*(one.to(device) for one in inputs))
        (out * out).sum().backward()
    return out.detach().cpu(), layer.weight.detach().cpu()


@pytest.mark.usefixtures("layers_use_them")
@pytest.mark.parametrize(
    "recipe",
    [SGD(lr=0.01, momentum=0.9), Adagrad(lr=0.1), RowWiseAdagrad(lr=0.1), Adam(lr=0.01)],
    ids=lambda recipe: recipe.kind,
)
def test_a_fused_layer_steps_as_on_the_cpu(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = batch().cpu().reshape(7, 10)

    def made() -> nn.Embedding:
        torch.manual_seed(0)
        return nn.Embedding(
            N, 12, padding_idx=5, max_norm=3.0, scale_grad_by_freq=True, fused=recipe, dtype=torch.float32
        )

    got = trained(made(), [ids], DEVICE)
    monkeypatch.setattr(rows, "pick", lambda table: reference)
    wanted = trained(made(), [ids], "cpu")
    for one, other in zip(got, wanted, strict=True):
        close(one, other, torch.float32)
    assert not torch.equal(got[1], made().weight)


@pytest.mark.usefixtures("layers_use_them")
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_fused_bag_steps_as_on_the_cpu(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [batch().cpu(), torch.tensor([0, 10, 10, 40])]

    def made() -> nn.EmbeddingBag:
        torch.manual_seed(0)
        return nn.EmbeddingBag(N, 12, mode=mode, padding_idx=5, fused=Adagrad(lr=0.1))

    got = trained(made(), inputs, DEVICE)
    monkeypatch.setattr(rows, "pick", lambda table: reference)
    for one, other in zip(got, trained(made(), inputs, "cpu"), strict=True):
        close(one, other, torch.float32)


@pytest.mark.usefixtures("layers_use_them")
def test_an_id_outside_the_table_is_an_index_error_and_the_card_goes_on() -> None:
    layer = nn.Embedding(N, 4, device=DEVICE)
    with pytest.raises(IndexError, match=rf"id {N} at position \[1\] is outside the table of {N} rows"):
        layer(torch.tensor([0, N], device=DEVICE))
    assert layer(torch.tensor([1], device=DEVICE)).tolist() == layer.weight[1:2].tolist()
