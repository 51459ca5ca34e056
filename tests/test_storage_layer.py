"""Tables in files under layers: trained as in memory, killed, and larger than memory."""

import contextlib
import copy
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import firth
from firth.errors import RunError, SettingError, StorageError
from firth.nn.bag import EmbeddingBag
from firth.nn.embedding import Embedding
from firth.nn.recipes import SGD, Adagrad, Adam, RowWiseAdagrad
from firth.nn.storage import accept_table, read_table


def table_layer(storage=None):
    """The layer of the tests with processes, with the same first values everywhere."""
    torch.manual_seed(1)
    return Embedding(2000, 16, fused=Adagrad(lr=0.1), storage=storage)


def train(layer, steps):
    """Steps on random rows, drawn by the number of the step."""
    for _ in range(steps):
        chance = torch.Generator().manual_seed(layer.optimizer.steps)
        ids = torch.randint(layer.num_embeddings, (64,), generator=chance)
        (layer(ids) * torch.randn(64, layer.embedding_dim, generator=chance)).sum().backward()


def assert_equal(layer, other):
    assert torch.equal(layer.weight, other.weight) and layer.optimizer.steps == other.optimizer.steps
    one, two = layer.optimizer.state[layer.weight], other.optimizer.state[other.weight]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one if name != "step")


# --- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.9), Adagrad(), RowWiseAdagrad(), Adam()], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_a_file_trains_as_one_in_memory(tmp_path, recipe, dtype):
    options = {"padding_idx": 3, "max_norm": 2.0, "scale_grad_by_freq": True, "dtype": dtype, "fused": recipe}
    layers = []
    for storage in (None, tmp_path / "t"):
        torch.manual_seed(5)
        layers.append(Embedding(40, 6, **options, storage=storage))
    plain, filed = layers
    ids = torch.randint(40, (6, 30), generator=torch.Generator().manual_seed(1))
    for step in range(3):
        for layer in layers:
            (layer(ids[step]) ** 2).sum().backward()
    assert_equal(filed, plain)
    assert filed.file.steps == 3 and filed.weight.data_ptr() == filed.file.weight.data_ptr()
    assert filed.file.flush() == 3
    del layer, layers, filed  # the file is free again
    filed = Embedding(40, 6, **options, storage=tmp_path / "t")
    for step in range(3, 6):
        for layer in (plain, filed):
            (layer(ids[step]) ** 2).sum().backward()
    assert_equal(filed, plain)
    assert read_table(tmp_path / "t").steps == 6


def test_a_bag_in_a_file(tmp_path):
    bags = []
    for storage in (None, tmp_path / "t"):
        torch.manual_seed(5)
        bags.append(EmbeddingBag(40, 6, mode="sum", fused=Adam(), storage=storage))
    for bag in bags:
        (bag(torch.randint(40, (5, 4), generator=torch.Generator().manual_seed(2))) ** 2).sum().backward()
    assert_equal(bags[1], bags[0])
    assert bags[1].file.steps == 1


def test_lookups_only(tmp_path):
    layer = table_layer(tmp_path / "t")
    train(layer, 2)
    reader = Embedding(2000, 16, storage=tmp_path / "t")  # beside the one that trains
    assert not reader.weight.requires_grad and reader.optimizer is None
    ids = torch.tensor([1, 5])
    assert torch.equal(reader(ids), layer(ids))
    train(layer, 2)
    assert torch.equal(reader(ids), layer(ids))
    with pytest.raises(
        StorageError, match=r"there is no table file .*/none to look rows up in; a layer with a"
    ):
        Embedding(2000, 16, storage=tmp_path / "none")
    with pytest.raises(
        SettingError, match=r"holds 2,000 rows of 16 float32, asked was 2,001 rows of 16 float"
    ):
        Embedding(2001, 16, storage=tmp_path / "t")
    with pytest.raises(RunError, match="is open for training in another process or layer"):
        table_layer(tmp_path / "t")


def test_a_file_knows_the_words_of_its_rows(tmp_path):
    vocab = firth.Vocab(["hey", "there"])
    Embedding(vocab, 3, fused=SGD(), storage=tmp_path / "t").file.close()
    assert Embedding(vocab, 3, storage=tmp_path / "t")("hey").shape == (3,)
    with pytest.raises(SettingError, match="stand for other words than the vocabulary given"):
        Embedding(firth.Vocab(["hey", "you"]), 3, storage=tmp_path / "t")


def test_a_table_in_a_file_stays_there(tmp_path):
    layer = table_layer(tmp_path / "t")
    for move in (layer.half, layer.double, lambda: layer.to("meta"), lambda: layer.to(torch.bfloat16)):
        with pytest.raises(RuntimeError, match=r"the table is in the file .* and cannot go to"):
            move()
    model = torch.nn.Sequential(layer).float().cpu()
    model.share_memory()
    assert layer.weight.data_ptr() == layer.file.weight.data_ptr()
    with pytest.raises(TypeError, match=r"cannot be pickled or copied with its layer; save layer\.state"):
        copy.deepcopy(layer)
    other = Embedding.from_pretrained(layer.weight.clone())
    layer.load_state_dict({"weight": torch.zeros(2000, 16)})
    assert not read_table(tmp_path / "t").weight.any() and layer.file.steps == 0
    assert other.half().weight.any()


def test_a_refused_gradient_leaves_the_file_whole(tmp_path):
    layer = table_layer(tmp_path / "t")
    train(layer, 1)
    before = layer.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient of row 7"):
        (layer(torch.tensor([3, 7])) * torch.tensor([[1.0], [torch.nan]])).sum().backward()
    assert torch.equal(layer.weight, before) and layer.file.steps == layer.optimizer.steps == 1
    layer.file.close()
    train(table_layer(tmp_path / "t"), 1)


# --- processes that die --------------------------------------------------------------------------

# A process that forks a training process for each line "PATH HOW" and tells its id. That one tells its
# steps; with "pause" it waits for a signal after each; with "half" it stops for good in the middle of step 4.
TRAINERS = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from test_storage_layer import table_layer, train
torch.set_num_threads(1)
train(table_layer(), 1)  # kernels loaded before the first fork
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

def work(path, how):
    layer = table_layer(path)
    file = layer.file
    print("steps", file.steps, flush=True)
    while True:
        train(layer, 1)
        if how == "flush" and file.steps % 10 == 0:
            file.flush()
        if how == "half" and file.steps == 3:
            with file.step():
                file.weight[:1000] += 1
                print("half", flush=True)
                signal.pause()
        if how == "pause":
            print(file.steps, flush=True)
            signal.sigwait([signal.SIGUSR1])

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            work(*line.split())
        finally:
            os._exit(1)
    print("pid", pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


class Trainers:
    """Training processes, one after another."""

    def __init__(self, process):
        self._process = process

    def told(self):
        return self._process.stdout.readline().strip()

    @contextlib.contextmanager
    def start(self, path, how):
        """A training process, as a function that lets it go on; killed at the end with -9."""
        self._process.stdin.write(f"{path} {how}\n")
        told = dict((self.told().split(), self.told().split()))  # its id and its steps, in either order
        pid, self.steps = int(told["pid"]), int(told["steps"])
        try:
            yield lambda: os.kill(pid, signal.SIGUSR1)
        finally:
            os.kill(pid, signal.SIGKILL)
            while self.told() not in ("ended", ""):
                pass


@pytest.fixture(scope="module")
def trainers():
    with subprocess.Popen(
        [sys.executable, "-c", TRAINERS, str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield Trainers(process)
        process.stdin.close()
        process.wait(60)


def trained(steps):
    """What ``steps`` steps in memory give."""
    layer = table_layer()
    train(layer, steps)
    return layer


def test_kill_between_steps_loses_nothing(tmp_path, trainers):
    path, reached = tmp_path / "t", 0
    for _ in range(2):
        with trainers.start(path, "pause") as go_on:
            assert trainers.steps == reached
            for _ in range(4):
                reached = int(trainers.told())
                go_on()
            reached = int(trainers.told())
    layer = table_layer(path)  # never flushed, and the lock is gone
    assert layer.file.steps == reached == 10 and layer.file.flushed_steps == 0
    assert_equal(layer, trained(10))


def test_kill_within_a_step_is_named(tmp_path, trainers):
    path = tmp_path / "t"
    with trainers.start(path, "half"):
        assert trainers.told() == "half"
        assert read_table(path).steps == 3  # the writer lives: nothing is wrong yet
    sentence = (
        f"the table file {path} holds half of step 4: the process that trained it died during this step; go "
        "back to a snapshot, or go on with it as it is (rows of that step may be half updated) after "
        f"firth.nn.storage.accept_table('{path}')"
    )
    for opening in (lambda: table_layer(path), lambda: read_table(path)):
        with pytest.raises(RunError, match=f"^{re.escape(sentence)}$"):
            opening()
    assert accept_table(path) == 4
    layer = table_layer(path)
    assert layer.file.steps == layer.optimizer.steps == 4
    weight = trained(3).weight.detach()
    assert torch.equal(layer.weight[1000:], weight[1000:])
    assert torch.equal(layer.weight[:1000], weight[:1000] + 1)


def test_kill_at_random_moments(tmp_path, trainers):
    path, chance, whole, cut = tmp_path / "t", random.Random(2), 0, 0
    steps, longest = 0, 0.1
    while whole + cut < 8 or steps < 20:
        with trainers.start(path, "flush"):
            assert trainers.steps == steps
            time.sleep(chance.uniform(0.0, longest))
        longest *= 1.2  # where a machine is slow, nothing may have been done
        try:
            file = table_layer(path).file
            steps, whole = file.steps, whole + 1
            assert file.flushed_steps % 10 == 0 and file.flushed_steps <= steps
            del file
        except RunError as error:
            named = int(re.search(r"half of step (\d+)", str(error))[1])
            steps, cut = accept_table(path), cut + 1
            assert steps == named
    if not cut:  # then the last file is exactly that of one run
        assert torch.equal(read_table(path).weight, trained(steps).weight)


# --- larger than memory --------------------------------------------------------------------------

# 64 MB of weight and as much state, in a process that may have no more than 48 MB besides what it begins
# with. Private memory only: pages of the file may be dropped at any moment.
LARGE = """
import re, resource, sys, torch
sys.path.insert(0, sys.argv[2])
from test_storage_layer import train
from firth.nn.embedding import Embedding
from firth.nn.recipes import Adagrad
torch.set_num_threads(1)

def status(name):
    with open("/proc/self/status") as file:
        return int(re.search(rf"{name}:\\s+(\\d+)", file.read())[1]) * 1024

train(Embedding(9, 128, fused=Adagrad(), storage=sys.argv[1] + "-small"), 1)
rows = 125_000
resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + 48_000_000,) * 2)
before = status("RssAnon")
try:
    torch.zeros(rows, 128)
except RuntimeError as error:
    print("in memory:", type(error).__name__)
for _ in range(2):
    layer = Embedding(rows, 128, fused=Adagrad(), storage=sys.argv[1])
    train(layer, 100)
    steps = layer.file.steps
    moved = int((layer.file.state["sum"] != 0).any(1).sum())
    del layer
print("steps", steps)
print("moved", moved)
print("private bytes", status("RssAnon") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits private memory")
def test_a_table_larger_than_its_memory(tmp_path):
    path = tmp_path / "table.bin"
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(path), str(Path(__file__).parent)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert told["in memory:"] == "RuntimeError"
    assert path.stat().st_size > 128_000_000
    assert int(told["steps"]) == 200 and 12_000 < int(told["moved"]) <= 12_800
    assert int(told["private bytes"]) < 40_000_000, told
