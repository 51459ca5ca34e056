"""A table spread over processes: what a layer in one process does with all batches, in a share of its memory.

Three worker processes (gloo on the loopback interface) serve all tests; the layers live on the first one,
two or all three.
"""

import contextlib
import multiprocessing
import os
import re
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import distributed as dist

from firth.errors import FirthError, RunError, SettingError, StorageError
from firth.nn.embedding import Embedding
from firth.nn.optim import RowAdagrad
from firth.nn.recipes import SGD, Adagrad, Adam, RowWiseAdagrad
from firth.nn.sharded import ShardedEmbedding

WORKERS, LIMIT = 3, 60  # seconds for one call

# --- the worker processes ------------------------------------------------------------------------


def serve(rank, store, pipe):
    """A worker: runs functions of this module until it is told to end."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS, timeout=timedelta(seconds=LIMIT)
    )
    groups = {n: dist.new_group(list(range(n))) for n in range(1, WORKERS + 1)}
    while (job := pipe.recv()) is not None:
        name, processes, args = job
        try:
            result = globals()[name](rank, groups[processes], *args)
        except (FirthError, TypeError, RuntimeError, AssertionError) as error:
            result = error
        pipe.send(result)
    dist.destroy_process_group()


class Workers:
    def __init__(self, folder):
        start = multiprocessing.get_context("forkserver")
        start.set_forkserver_preload(["torch._dynamo", "firth.kernels.rows_cpu", "firth.nn.sharded"])
        self._pipes, self._processes = [], []
        for rank in range(WORKERS):
            here, there = start.Pipe()
            process = start.Process(target=serve, args=(rank, str(folder / "store"), there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, work, *args, processes=2):
        """What ``work(rank, group, *args)`` gives or raises in each process."""
        for pipe in self._pipes[:processes]:
            pipe.send((work.__name__, processes, args))
        return [self._result(pipe) for pipe in self._pipes[:processes]]

    def _result(self, pipe):
        assert pipe.poll(LIMIT), "a worker does not answer"
        return pipe.recv()

    def good(self, work, *args, processes=2):
        results = self.run(work, *args, processes=processes)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def end(self):
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    started = Workers(tmp_path_factory.mktemp("workers"))
    yield started
    started.end()


# --- training, in one process and in several -----------------------------------------------------


def start_values(n_rows, dim):
    return torch.randn(n_rows, dim, generator=torch.Generator().manual_seed(9))


def gradients(step, rank, ids, dim, whole):
    chance = torch.Generator().manual_seed(100 * step + rank)
    if whole:
        return torch.randint(-3, 4, (*ids.shape, dim), generator=chance).float()
    return torch.randn(*ids.shape, dim, generator=chance)


def tensors(layer):
    state = layer.optimizer.state[layer.weight] if layer.optimizer is not None else {}
    kept = {name: one.numpy().copy() for name, one in state.items() if isinstance(one, torch.Tensor)}
    return {"weight": layer.weight.detach().numpy().copy(), **kept}


def sharded_steps(rank, group, n_rows, dim, batches, recipe, options, whole):
    """Weight and state of this process, and what each forward gave."""
    layer = ShardedEmbedding(
        n_rows, dim, **options, _weight=start_values(n_rows, dim), fused=recipe, process_group=group
    )
    other = None if recipe is not None else RowAdagrad([layer.weight], lr=0.1)
    outputs = []
    for step, batch in enumerate(batches):
        found = layer(batch[rank])
        outputs.append(found.detach().numpy().copy())
        (found * gradients(step, rank, batch[rank], dim, whole)).sum().backward()
        if other is not None:
            assert layer.weight.grad.layout is torch.sparse_coo
            other.step()
            other.zero_grad()
    return tensors(layer), outputs


def plain_steps(n_rows, dim, batches, recipe, options, whole):
    """The same by one layer, on the batches of all processes one after another."""
    layer = Embedding(n_rows, dim, **options, _weight=start_values(n_rows, dim), fused=recipe)
    outputs = []
    for step, batch in enumerate(batches):
        found = layer(torch.cat([ids.reshape(-1) for ids in batch]))
        outputs.append(found.detach().numpy().copy())
        grads = [gradients(step, rank, ids, dim, whole).reshape(-1, dim) for rank, ids in enumerate(batch)]
        (found * torch.cat(grads)).sum().backward()
    return tensors(layer), outputs


def draw(n_rows, steps, processes=2, size=40, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return [
        [torch.randint(n_rows, (size, 2), generator=chance) for _ in range(processes)] for _ in range(steps)
    ]


def assert_same(workers, n_rows, dim, batches, recipe, options=None, whole=False, processes=2):
    """Sharded training gives what plain training gives: exactly where sums of gradients are exact."""
    options = options or {}
    parts = workers.good(sharded_steps, n_rows, dim, batches, recipe, options, whole, processes=processes)
    expected, outputs = plain_steps(n_rows, dim, batches, recipe or Adagrad(lr=0.1), options, whole)
    equal = np.testing.assert_array_equal if whole else _close
    for name in parts[0][0]:
        equal(np.concatenate([part[0][name] for part in parts]), expected[name])
    for step, exact in enumerate(outputs):
        equal(np.concatenate([part[1][step].reshape(-1, dim) for part in parts]), exact)


def _close(found, exact):
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-6)


RECIPES = [SGD(lr=0.5), SGD(lr=0.1, momentum=0.9), Adagrad(lr=0.1), RowWiseAdagrad(lr=0.1), Adam(lr=0.01)]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_equal_to_one_layer_on_all_batches(workers, recipe):
    assert_same(workers, 11, 6, draw(11, 4), recipe)


@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": 2},
        {"padding_idx": -1},
        {"max_norm": 1.5},
        {"max_norm": 2.0, "norm_type": 1.0},
        {"scale_grad_by_freq": True},
        {"padding_idx": 7, "max_norm": 1.0, "scale_grad_by_freq": True},
    ],
    ids=str,
)
def test_the_arguments_of_the_layer_hold(workers, options):
    assert_same(workers, 11, 6, draw(11, 3), Adagrad(lr=0.1), options)


def test_equal_to_the_last_bit_where_sums_are_exact(workers):
    for processes in (1, 2, 3):
        batches = draw(11, 3, processes)
        assert_same(workers, 11, 6, batches, SGD(lr=0.5), whole=True, processes=processes)


def test_batches_of_any_kind(workers):
    none = torch.zeros(0, dtype=torch.int64)
    some = torch.tensor([1, 3, 1, 10, 0])
    batches = [
        [some, none],
        [none, some],
        [none, none],
        [torch.tensor([0, 1, 0]), torch.tensor([4, 2])],  # all rows of the first process
        [torch.tensor([9, 6]), torch.tensor([10, 9, 10])],  # all of the second
        [torch.tensor([[3]], dtype=torch.int32), torch.tensor(7)],
    ]
    assert_same(workers, 11, 6, batches, Adam(lr=0.01))
    assert_same(workers, 1, 3, [[torch.tensor([0, 0]), torch.tensor([0])]], SGD(lr=0.5))
    assert_same(workers, 2, 3, draw(2, 2, 3), SGD(lr=0.5), processes=3)  # a process without rows


def test_gradients_for_other_optimisers(workers):
    for options in ({}, {"padding_idx": 2, "scale_grad_by_freq": True}):
        batches = draw(11, 3)
        parts = workers.good(sharded_steps, 11, 6, batches, None, options, False)
        expected, _ = plain_steps(11, 6, batches, Adagrad(lr=0.1), options, False)
        _close(np.concatenate([part[0]["weight"] for part in parts]), expected["weight"])


def test_the_same_every_time(workers):
    batches = draw(50, 5)
    first, second = (workers.good(sharded_steps, 50, 6, batches, Adam(), {}, False) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[0][name], other[0][name]) for name in one[0])


def first_values(rank, group, seed):
    torch.manual_seed(seed + rank)
    layer = ShardedEmbedding(10_000, 2, padding_idx=5000, process_group=group)
    return layer.weight.detach().numpy().copy()


def test_first_values_do_not_depend_on_the_number_of_processes(workers):
    tables = [np.concatenate(workers.good(first_values, 3, processes=n)) for n in (1, 2, 3)]
    assert all(np.array_equal(table, tables[0]) for table in tables)
    assert len(np.unique(tables[0][:, 0])) > 9_900 and not tables[0][5000].any()
    assert abs(tables[0].mean()) < 0.03 and abs(tables[0].std() - 1) < 0.03
    assert not np.array_equal(np.concatenate(workers.good(first_values, 4)), tables[0])


# --- errors --------------------------------------------------------------------------------------


def with_bad_ids(rank, group, ids):
    layer = ShardedEmbedding(11, 6, _weight=start_values(11, 6), fused=SGD(lr=0.5), process_group=group)
    try:
        layer(ids if rank == 1 else torch.tensor([1]))
        raised = "nothing"
    except RuntimeError as error:
        raised = f"{type(error).__name__}: {error}"
    layer(torch.tensor([2])).sum().backward()  # and it works on
    return raised, layer.weight.detach().numpy().copy()


def test_ids_that_one_process_gets_wrong_stop_all(workers):
    for ids, sentence in [
        (torch.tensor([3, 11]), r"OutsideTable: .*ShardedEmbedding: id 11 at position \[1\] is outside the"),
        (torch.tensor([-1]), "OutsideTable: .* id -1"),
        (torch.tensor([0.5]), "WrongIds: "),
        ([1], "WrongIds: .*ids must be a Tensor, got list"),
    ]:
        (other, rows_0), (own, rows_1) = workers.good(with_bad_ids, ids)
        assert re.match(sentence, own), own
        assert re.match("RunError: .*process 1 of the group refused its ids; its own error tells", other), (
            other
        )
        expected = start_values(11, 6)
        expected[2] -= 0.5 * 2
        np.testing.assert_array_equal(np.concatenate([rows_0, rows_1]), expected)


def with_a_nan(rank, group, scaled):
    layer = ShardedEmbedding(11, 6, _weight=start_values(11, 6), fused=Adagrad(lr=0.5), process_group=group)
    if scaled:
        layer.optimizer.scaler = torch.amp.GradScaler("cpu")
    factor = torch.ones(2, 1)
    if rank == 0:
        factor[1] = torch.nan
    raised = "nothing"
    try:
        (layer(torch.tensor([3, 8])) * factor).sum().backward()
    except FloatingPointError as error:
        raised = f"{type(error).__name__}: {error}"
    return raised, tensors(layer), layer.optimizer.steps


def test_a_gradient_that_is_not_finite_updates_nothing_anywhere(workers):
    for scaled in (False, True):
        results = workers.good(with_a_nan, scaled)
        for raised, _, steps in results:
            assert raised == "nothing" if scaled else "the gradient of row 8 is not finite" in raised
            assert steps == 0
        table = np.concatenate([values["weight"] for _, values, _ in results])
        np.testing.assert_array_equal(table, start_values(11, 6))


def misuse(rank, group):
    """Sentences of what is refused, the same in each process."""
    said = []

    def refused(kind, work):
        try:
            work()
        except kind as error:
            said.append(str(error))

    def make(*args, **named):
        return ShardedEmbedding(*args, **named, process_group=group)

    refused(SettingError, lambda: make(-1, 3))
    refused(AssertionError, lambda: make(4, 3, padding_idx=4))
    refused(AssertionError, lambda: make(4, 3, _weight=torch.zeros(5, 3)))
    refused(SettingError, lambda: make(4, 3, max_norm=0.0))
    refused(TypeError, lambda: make(4, 3, dtype=torch.int32))
    layer = make(4, 3, fused=SGD(lr=0.1))
    import copy

    refused(TypeError, lambda: copy.deepcopy(layer))
    found = layer(torch.tensor([1])).sum()
    refused(RuntimeError, lambda: torch.autograd.grad(found, layer.weight, create_graph=True))
    said.append(repr(layer))
    return said


def test_what_is_refused(workers):
    for rank, said in enumerate(workers.good(misuse)):
        expected = [
            "num_embeddings must be a whole number >= 0, got -1",
            "padding_idx must be within",
            "Shape of weight does not match",
            "max_norm must be positive",
            "dtype must be float32",
            "cannot be copied or pickled; use save",
            "cannot be differentiated twice",
            f"ShardedEmbedding(4, 3, rows {2 * rank} to {2 * rank + 1} in process {rank}/2)",
        ]
        assert len(said) == len(expected)
        for sentence, part in zip(said, expected, strict=True):
            assert part in sentence
    with pytest.raises(
        RunError, match=r"torch\.distributed is not initialised; start the program by torchrun"
    ):
        ShardedEmbedding(4, 3)


# --- saving --------------------------------------------------------------------------------------


def train_and_save(rank, group, folder, batches, recipe, dtype):
    layer = ShardedEmbedding(
        11, 6, _weight=start_values(11, 6), dtype=dtype, fused=recipe, process_group=group
    )
    for batch in batches:
        grads = gradients(layer.optimizer.steps, rank, batch[rank], 6, True)
        (layer(batch[rank]) * grads).sum().backward()
    layer.save(folder)
    return tensors(layer) if dtype == torch.float32 else None


def load_and_train(rank, group, folder, batches, recipe, dtype):
    layer = ShardedEmbedding(11, 6, dtype=dtype, fused=recipe, process_group=group)
    layer.load(folder)
    steps = None if recipe is None else layer.optimizer.steps
    for batch in batches:
        grads = gradients(layer.optimizer.steps, rank, batch[rank], 6, True)
        (layer(batch[rank]) * grads).sum().backward()
    return tensors(layer) if dtype == torch.float32 else layer.weight.detach().float().numpy(), steps


def whole_of(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("recipe", [None, SGD(lr=0.5), Adam(lr=0.01), RowWiseAdagrad()], ids=str)
def test_load_with_another_number_of_processes(workers, tmp_path, recipe):
    batches = draw(11, 3) if recipe is not None else []
    saved = whole_of(workers.good(train_and_save, tmp_path / "t", batches, recipe, torch.float32))
    for processes in (1, 2, 3):
        parts = workers.good(load_and_train, tmp_path / "t", [], recipe, torch.float32, processes=processes)
        loaded = whole_of([part for part, _ in parts])
        assert loaded.keys() == saved.keys()
        for name, values in saved.items():
            np.testing.assert_array_equal(loaded[name], values)
        assert all(steps == (None if recipe is None else 3) for _, steps in parts)
    assert len(list((tmp_path / "t").iterdir())) == 3


def test_training_goes_on_after_load(workers, tmp_path):
    batches, recipe = draw(11, 4), Adam(lr=0.01)
    workers.good(train_and_save, tmp_path / "t", batches[:2], recipe, torch.float32)
    parts = workers.good(load_and_train, tmp_path / "t", batches[2:], recipe, torch.float32)
    found = whole_of([part for part, _ in parts])
    straight = whole_of(workers.good(train_and_save, tmp_path / "u", batches, recipe, torch.float32))
    for name, values in straight.items():
        np.testing.assert_array_equal(found[name], values)
    # And half types, over the files of the first.
    workers.good(train_and_save, tmp_path / "t", batches[:2], SGD(lr=0.5), torch.bfloat16)
    assert len(list((tmp_path / "t").iterdir())) == 3
    parts = workers.good(load_and_train, tmp_path / "t", [], SGD(lr=0.5), torch.bfloat16, processes=3)
    assert np.concatenate([part for part, _ in parts]).shape == (11, 6)


def refused_load(rank, group, folder, recipe, n_rows):
    layer = ShardedEmbedding(n_rows, 6, fused=recipe, process_group=group)
    before = layer.weight.detach().clone()
    try:
        layer.load(folder)
    except FirthError as error:
        assert torch.equal(layer.weight, before)
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_folders_that_are_wrong(workers, tmp_path):
    folder = tmp_path / "t"
    workers.good(train_and_save, folder, draw(11, 1), Adagrad(), torch.float32)
    index = folder / "table.json"
    shards = sorted(folder.glob("*.safetensors"))
    good = {path: path.read_bytes() for path in (index, *shards)}

    def refused(recipe=Adagrad(), n_rows=11):  # noqa: B008
        return workers.good(refused_load, folder, recipe, n_rows)

    assert "is 11 x 6 float32 (adagrad), this layer 11 x 6 float32 (adam); make" in refused(Adam())[0]
    assert "this layer 12 x 6 float32" in refused(n_rows=12)[1]
    for text in (b"", b"[]", b"{}", good[index][:50], good[index].replace(b": 11", b": 12"), b"[" * 5000):
        index.write_bytes(text)
        assert all(said.startswith("FormatError") and "index of a sharded" in said for said in refused())
    index.write_bytes(good[index].replace(b'"float32"', b'"float64"'))
    assert all(said.startswith("SettingError") for said in refused())
    index.write_bytes(re.sub(rb'"[0-9a-f]+-rows', b'"../rows', good[index], count=1))
    assert all(said.startswith("FormatError") for said in refused())
    index.unlink()
    assert all(said.startswith("StorageError: cannot read") for said in refused())
    index.write_bytes(good[index])
    shards[1].write_bytes(good[shards[1]][:-5])
    assert refused() == [
        "RunError: firth.nn.ShardedEmbedding: another process of the group failed; its own error tells why",
        refused()[1],
    ]
    assert refused()[1].startswith("FormatError")
    shards[1].write_bytes(good[shards[0]])
    assert "is F32 [5, 6], F32 [6, 6] was expected" in refused()[1]
    shards[1].unlink()
    assert refused()[1].startswith(("StorageError", "FormatError"))
    shards[1].write_bytes(good[shards[1]])
    assert refused() == ["nothing", "nothing"]


def save_where_one_cannot(rank, group, folder):
    layer = ShardedEmbedding(11, 6, process_group=group)
    try:
        layer.save(folder if rank == 0 else folder / "table.json")
    except (StorageError, RunError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_a_save_that_fails_leaves_the_one_before(workers, tmp_path):
    folder = tmp_path / "t"
    saved = whole_of(workers.good(train_and_save, folder, [], None, torch.float32))
    first, second = workers.good(save_where_one_cannot, folder)
    assert first.startswith("RunError") and second.startswith("StorageError: cannot make the folder")
    parts = workers.good(load_and_train, folder, [], None, torch.float32)
    np.testing.assert_array_equal(whole_of([part for part, _ in parts])["weight"], saved["weight"])


def state_dicts(rank, group):
    layer = ShardedEmbedding(10, 6, fused=Adagrad(lr=0.1), process_group=group)
    layer(torch.tensor([1, 8])).sum().backward()
    own = {name: one.clone() for name, one in layer.state_dict().items()}
    again = ShardedEmbedding(10, 6, fused=Adagrad(lr=0.1), process_group=group)
    again.load_state_dict(own)
    again.optimizer.load_state_dict(layer.optimizer.state_dict())
    assert torch.equal(again.weight, layer.weight) and again.optimizer.steps == 1
    foreign = dict(own, held=torch.tensor([5 - 5 * rank, 10 - 5 * rank, 10]))
    try:
        again.load_state_dict(foreign)
    except RuntimeError as error:
        return sorted(own), str(error)
    return sorted(own), "nothing"


def test_state_dicts_are_those_of_a_process(workers):
    for rank, (names, said) in enumerate(workers.good(state_dicts)):
        assert names == ["held", "weight"]
        rows = ["rows 5 to 9 of 10, this process those from 0 to 4", "rows 0 to 4 of 10, this process those"]
        assert rows[rank] in said


# --- memory, and what torch's own sharding does --------------------------------------------------

BIG, DIM = 200_000, 64  # 51.2 MB of float32


def peak_of(work):
    """Most bytes of memory that ``work`` takes at once, besides those before it."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name):
    with open("/proc/self/status") as file:
        return int(re.search(rf"{name}:\s+(\d+)", file.read())[1]) * 1024


def ours_large(rank, group):
    layer = ShardedEmbedding(BIG, DIM, fused=Adagrad(lr=0.1), process_group=group)
    chance = torch.Generator().manual_seed(rank)

    def step():
        layer(torch.randint(BIG, (1000,), generator=chance)).sum().backward()

    step()  # compiled, state allocated
    return len(layer.weight), peak_of(step)


def torch_large(rank, group):
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    mesh = DeviceMesh.from_group(group, "cpu")
    layer = Embedding(BIG, DIM, _weight=torch.ones(BIG, DIM))
    plan = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    layer = parallelize_module(layer, mesh, plan)
    assert layer.weight.placements == (Shard(0),)
    ids = torch.arange(1000)

    def step():
        layer(ids).sum().backward()

    peak = peak_of(step)
    found = layer(torch.tensor([0, BIG - 1]))
    found = found.full_tensor() if isinstance(found, DTensor) else found
    assert (found == 1).all()
    grad = layer.weight.grad
    assert torch.equal(grad.full_tensor()[:1000], torch.ones(1000, DIM))
    return len(layer.weight.to_local()), str(grad.placements), tuple(grad.to_local().shape), peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_step(workers):
    """torch's sharding: half of the weight a process, and a gradient of all rows. Ours: the rows used."""
    whole = BIG * DIM * 4
    for local, peak in workers.good(ours_large):
        assert local == BIG // 2
        assert peak < whole / 8, peak
    for local, placements, shape, peak in workers.good(torch_large):
        assert local == BIG // 2
        assert (placements, shape) == ("(Replicate(),)", (BIG, DIM))
        assert peak > 0.9 * whole, peak
