"""``firth.nn.Embedding`` in two processes on gloo: DistributedDataParallel, and max_norm on replicas."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import queue
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import firth.nn
from firth.nn import Embedding
from firth.nn.renorm import gathered

N, D = 7, 3
LIMIT = 120.0  # seconds; the work itself takes two


def fresh(**arguments: Any) -> Embedding:
    torch.manual_seed(5)
    return Embedding(N, D, **arguments)


def ids_of(rank: int) -> Tensor:
    return torch.tensor([[0, 1, 1, 2], [2, 3, 5, 5]][rank])


def both(tensor: Tensor) -> list[Tensor]:
    """The tensor of each process."""
    found = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(found, tensor.detach().contiguous())
    return found


def averaged_gradients(rank: int, sparse: bool) -> None:
    layer = fresh(sparse=sparse, padding_idx=0)
    replica = DistributedDataParallel(layer)
    factor = torch.arange(1.0, 9.0).reshape(2, 4, 1).expand(2, 4, D)
    replica(ids_of(rank)).backward(factor[rank])
    whole = fresh(padding_idx=0)
    whole(torch.stack([ids_of(0), ids_of(1)])).backward(factor / 2)
    assert layer.weight.grad is not None
    assert whole.weight.grad is not None
    assert layer.weight.grad.is_sparse == sparse
    torch.testing.assert_close(layer.weight.grad.to_dense(), whole.weight.grad)


def undecided_max_norm_warns_once_and_drifts(rank: int) -> None:
    layer = fresh(max_norm=0.1)
    replica = DistributedDataParallel(layer)
    with pytest.warns(UserWarning, match="replicas of this table drift apart"):
        replica(ids_of(rank))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replica(ids_of(rank))
    assert not torch.equal(*both(layer.weight))


def accepted_drift_is_silent(rank: int) -> None:
    layer = fresh(max_norm=0.1).sync_max_norm(False)
    layer(ids_of(rank))
    assert not torch.equal(*both(layer.weight))
    quiet = fresh(max_norm=0.1).eval()  # evaluation alone does not warn
    quiet(ids_of(rank))


def shared_max_norm_keeps_replicas_equal(rank: int) -> None:
    group = dist.new_group([0, 1])
    for chosen in (None, group):
        layer = fresh(max_norm=0.1).sync_max_norm(group=chosen)
        layer = pickle.loads(pickle.dumps(copy.deepcopy(layer)))  # the choice travels with the layer
        before = layer.weight.detach().clone()
        replica = DistributedDataParallel(layer)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        # Different numbers of ids, of another shape and dtype; and none at all.
        for ids in (ids_of(rank)[: 4 - rank], ids_of(rank).reshape(2, 2).int(), ids_of(rank)[: 2 * rank]):
            optimizer.zero_grad()
            replica(ids).sum().backward()
            optimizer.step()
            assert torch.equal(*both(layer.weight))
        layer.eval()(ids_of(rank))
        assert torch.equal(*both(layer.weight))
        used = torch.tensor([0, 1, 2, 3, 5])
        assert (layer.weight[used].norm(dim=1) <= 0.1001).all()
        assert torch.equal(layer.weight[[4, 6]], before[[4, 6]])


def shared_ids_come_in_the_order_of_ranks(rank: int) -> None:
    assert gathered(torch.arange(rank, 2 * rank + 1)).tolist() == [0, 1, 2]
    assert gathered(torch.tensor([], dtype=torch.int32)).tolist() == []


def bags_share_max_norm(rank: int) -> None:
    torch.manual_seed(5)
    layer = firth.nn.EmbeddingBag(N, D, max_norm=0.1).sync_max_norm()
    layer(ids_of(rank).reshape(2, 2)).sum().backward()
    assert torch.equal(*both(layer.weight))


def fused_layers_are_refused_in_ddp(rank: int) -> None:
    layer = fresh(fused=firth.nn.SGD(lr=0.1))
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        DistributedDataParallel(layer)(ids_of(rank)).sum().backward()


def compiled_layers_cannot_share(rank: int) -> None:
    layer = fresh(max_norm=0.1).sync_max_norm()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="sync_max_norm"):
        compiled(ids_of(rank))


JOBS: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    (averaged_gradients, (False,)),
    (averaged_gradients, (True,)),
    (undecided_max_norm_warns_once_and_drifts, ()),
    (accepted_drift_is_silent, ()),
    (shared_max_norm_keeps_replicas_equal, ()),
    (shared_ids_come_in_the_order_of_ranks, ()),
    (bags_share_max_norm, ()),
    (fused_layers_are_refused_in_ddp, ()),
    (compiled_layers_cannot_share, ()),
]


def work(rank: int, port: int, results: Any) -> None:
    """One process: every job in turn; both processes do all of them, so that collectives meet."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for number, (job, arguments) in enumerate(JOBS):
        try:
            job(rank, *arguments)
        finally:
            failed = sys.exc_info()[0] is not None
            results.put((rank, number, traceback.format_exc() if failed else ""))
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[tuple[int, int], str]]:
    """What each process says of each job: nothing, or a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = multiprocessing.get_context("spawn")
    results = start.Queue()
    processes = [start.Process(target=work, args=(rank, port, results), daemon=True) for rank in range(2)]
    found: dict[tuple[int, int], str] = {}
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + LIMIT
        while len(found) < 2 * len(JOBS) and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):  # the jobs without an answer fail
                rank, number, fault = results.get(timeout=1)
                found[rank, number] = fault
                continue
            if not any(process.is_alive() for process in processes):
                break
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
            process.join()
    yield found


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("number", range(len(JOBS)), ids=[f"{job.__name__}{rest}" for job, rest in JOBS])
def test_in_two_processes(number: int, outcomes: dict[tuple[int, int], str]) -> None:
    for rank in range(2):
        assert outcomes.get((rank, number), "no answer") == "", f"process {rank}"
