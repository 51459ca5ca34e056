"""Memory of large results: whose it is, and what becomes of it."""

import gc
import io
import os
import sys
import threading

import pytest
import torch

from firth import nn
from firth.kernels import pages

LARGE = (pages.REUSED // 4 // 256 + 1, 256)  # of float32
BYTES = LARGE[0] * LARGE[1] * 4


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_kept", pages._Kept())


def large(value: float = 0.0) -> torch.Tensor:
    return pages.result(LARGE, torch.float32).fill_(value)


def test_memory_is_used_again_once_no_tensor_is_in_it() -> None:
    first = large(1.0)
    place, view = first.data_ptr(), first[2:4]
    del first
    second = large(2.0)
    assert second.data_ptr() != place
    assert bool((view == 1.0).all())  # a view holds all of it
    del view
    assert large().data_ptr() == place


def test_numpy_and_autograd_hold_it() -> None:
    array = large(1.0).numpy()
    weight = torch.ones(LARGE[1], requires_grad=True)
    product = large(3.0) * weight  # saves the result for backward
    others = [large(9.0) for _ in range(4)]
    assert bool((array == 1.0).all())
    product.sum().backward()
    assert weight.grad is not None and bool((weight.grad == 3.0 * LARGE[0]).all())
    del others


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.5, 3.0])
def test_a_block_is_taken_for_results_of_about_its_size(factor: float) -> None:
    rows = int(LARGE[0] * factor)
    pages.result((4 * LARGE[0], LARGE[1]), torch.float32)  # a block for others, at once free
    result = pages.result((rows, LARGE[1]), torch.float32).fill_(5.0)
    assert result.shape == (rows, LARGE[1]) and bool((result == 5.0).all())
    assert result.data_ptr() % 64 == 0
    wasted = max([one.n_bytes for one in pages._kept._idle], default=0)
    assert wasted == 0 or factor < 1.9  # the large block went to a result that fills half of it


def test_little_is_kept() -> None:
    many = [large() for _ in range(2 * pages.KEPT // BYTES)]
    del many
    gc.collect()
    kept = sum(one.n_bytes for one in pages._kept._idle)
    assert 0 < kept <= pages.KEPT
    assert not pages._kept._used


def test_small_results_and_other_dtypes_are_torchs() -> None:
    assert pages.result((3, 4), torch.float32).untyped_storage().resizable()
    half = pages.result(LARGE, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.untyped_storage().resizable()
    assert pages.result(LARGE, torch.float64).dtype == torch.float64
    with pytest.raises(RuntimeError):
        pages.result((1 << 50, 1 << 10), torch.float32)  # nobody has so much


def test_results_are_saved_shared_and_copied() -> None:
    result = large(2.0)
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), result)
    assert torch.equal(result.clone().share_memory_(), result)
    result.share_memory_()
    assert bool((result == 2.0).all()) and large(7.0).data_ptr() != result.data_ptr()


def test_threads_never_share_a_block() -> None:
    wrong = []

    def work(number: int) -> None:
        for turn in range(40):
            one = pages.result(LARGE, torch.float32)
            one[:, 0] = number + turn / 64
            if not bool((one[:, 0] == number + turn / 64).all()):
                wrong.append(number)
            del one

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_writes_into_its_own_copy() -> None:
    result = large(1.0)
    child = os.fork()
    if not child:
        result.numpy()[:] = 2.0
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert bool((result == 1.0).all())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults")
@pytest.mark.parametrize("n_places", [16_384, 65_536])
def test_a_loop_of_lookups_does_not_fault_its_memory_in_again(n_places: int) -> None:
    import resource

    layer = nn.Embedding(1000, 128, _freeze=True)
    ids = torch.arange(n_places) % 1000
    for _ in range(3):
        layer(ids)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        layer(ids)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 20 * n_places * 512 // 4096 // 10  # all pages anew would be ten times as many
