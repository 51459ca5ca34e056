"""What a layer checks before it touches its table, and the sentences it says.

The classes raised are also torch's own types for the same mistakes, so that handlers written
for ``torch.nn.Embedding`` and ``EmbeddingBag`` catch them.
"""

from __future__ import annotations

import math
import warnings
from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad

from firth.errors import FirthError, SettingError

# Table dtypes that the row kernels work on; others (complex, integers, 8-bit floats) go to torch.
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = frozenset((torch.int64, torch.int32))
_KNOWN = _INTEGERS.union(FLOATS)


class OutsideTable(FirthError, IndexError, RuntimeError):
    """An id that names no row (torch raises IndexError in Embedding, RuntimeError in EmbeddingBag)."""

    exit_code = 2


class WrongIds(FirthError, TypeError, RuntimeError):
    """Ids that are no int32 or int64 tensor (torch: TypeError for no tensor, RuntimeError for a dtype)."""

    exit_code = 2


class Misfit(FirthError, AssertionError, ValueError):
    """Arguments of a constructor that do not fit each other (torch: AssertionError)."""

    exit_code = 2


def readable(ids: Tensor) -> bool:
    """Whether the values of ``ids`` may be looked at now.

    Not while torch traces, transforms or captures; reading ids on a GPU waits for the GPU.
    """
    return plain() and _bare(ids) and _free(ids.device)


def eager(*tensors: Tensor) -> bool:
    """Whether row kernels may work on these tensors directly; if not, torch's own operators must.

    True for plain strided tensors and parameters, all on one CPU or CUDA device, of a float dtype
    that the kernels know or int32/int64, outside ``torch.compile``, ``torch.export`` and
    ``torch.jit`` tracing, functorch transforms, forward-mode differentiation and dispatch or
    function modes (``torch.device`` as a context is one).
    """
    if not plain():
        return False
    device = tensors[0].device
    for one in tensors:  # all() of a generator takes twice as long
        if not (_bare(one) and one.layout is torch.strided and one.dtype in _KNOWN and one.device == device):
            return False
    return _free(device)


def _bare(tensor: Tensor) -> bool:
    """A tensor or parameter itself: no subclass, no stand-in, not nested."""
    kind = type(tensor)
    return (
        (kind is Tensor or kind is torch.nn.Parameter)
        and not tensor.is_nested
        # torch.autograd.grad(is_grads_batched=True) hides the batch in a plain tensor.
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def _free(device: torch.device) -> bool:
    """A CPU, or a GPU that is not recording a graph, when nothing may be read from it."""
    return device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_current_stream_capturing())


def plain() -> bool:
    """Whether nothing but plain eager execution watches the operators."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or forward_ad._current_level >= 0
    )


def check_ids(name: str, ids: Tensor, n_rows: int) -> None:
    """Refuse ids of another dtype and ids outside ``[0, n_rows)``; negative ids never wrap.

    Args:
        name: what to call the layer, e.g. ``"firth.nn.Embedding"``.
        ids: any shape, readable (see ``readable``).
        n_rows: rows of the table.

    Raises:
        WrongIds: not int32 or int64; a RuntimeError, as torch raises.
        OutsideTable: names the first id outside, its position and the size of the table; an
            IndexError and a RuntimeError, for torch raises one in Embedding and the other in
            EmbeddingBag.
    """
    check_dtype(name, ids)
    if ids.numel() == 0:
        return
    ends = torch.aminmax(ids)
    # A GPU is waited for once; on a CPU a number at a time costs less.
    least, most = (int(ends[0]), int(ends[1])) if ids.device.type == "cpu" else torch.stack(ends).tolist()
    if least >= 0 and most < n_rows:
        return
    outside = ((ids < 0) | (ids >= n_rows)).reshape(-1)
    place = int(outside.nonzero()[0])
    wrong = int(ids.reshape(-1)[place])
    position = [int(one) for one in torch.unravel_index(torch.tensor(place), ids.shape)] if ids.dim() else []
    where = f" at position {position}" if position else ""
    rows = f"{n_rows:,} row{'s' if n_rows != 1 else ''}"
    span = f" (0 to {n_rows - 1:,})" if n_rows else ""
    hint = "; negative ids do not count from the end" if wrong < 0 else ""
    raise OutsideTable(f"{name}: id {wrong}{where} is outside the table of {rows}{span}{hint}")


def check_dtype(name: str, ids: Tensor) -> None:
    """Refuse ids of another dtype than int32 and int64, as :func:`check_ids` does."""
    if ids.dtype not in _INTEGERS:
        # The second half is how torch puts it; people search their logs for it.
        raise WrongIds(
            f"{name}: ids must be int64 or int32, got {ids.dtype}; use ids.long() (Expected tensor for "
            "argument #1 'indices' to have one of the following scalar types: Long, Int; but got "
            f"{ids.type()} instead)"
        )


def check_max_norm(max_norm: float | None, name: str = "firth.nn.Embedding") -> float | None:
    """``max_norm`` as the layer keeps it: positive, or ``None`` for no limit.

    ``True`` is taken as 1.0, with a UserWarning. ``False`` is refused: torch takes it as 0.0 and
    wipes every row that is looked up; so are zero and negative limits, which wipe rows or turn them
    around, and NaN.

    Raises:
        SettingError: ``False``, not positive, or NaN (a ValueError).
        TypeError: no number.
    """
    if max_norm is None:
        return None
    if max_norm is True:
        warnings.warn(
            f"{name}: max_norm is the largest length of a row, a float; True is taken as 1.0",
            UserWarning,
            stacklevel=3,
        )
        return 1.0
    if max_norm is False:
        raise SettingError(
            f"{name}: max_norm=False would be a limit of 0.0, which wipes every row looked up; "
            "use max_norm=None for no limit"
        )
    if not isinstance(max_norm, Real):
        raise TypeError(f"{name}: max_norm must be a float or None, not {type(max_norm).__name__}")
    if math.isnan(max_norm) or max_norm <= 0:
        raise SettingError(f"{name}: max_norm must be positive, got {max_norm}; use None for no limit")
    return max_norm


def check_padding(name: str, padding_idx: int | None, n_rows: int) -> int | None:
    """``padding_idx`` counted from the start, or ``None``.

    Raises:
        Misfit: outside ``-n_rows`` to ``n_rows - 1``; an AssertionError, as torch raises.
    """
    if padding_idx is None:
        return None
    # Row 0 of an empty table is let through, as in torch, where it names a row still to come.
    if padding_idx and not -n_rows <= padding_idx < n_rows:
        raise Misfit(
            f"{name}: padding_idx must be within num_embeddings, {-n_rows} to {n_rows - 1}, got {padding_idx}"
        )
    return padding_idx + n_rows if padding_idx < 0 else padding_idx


def check_weight(name: str, weight: Tensor, n_rows: int, dim: int) -> None:
    """Refuse initial values of another shape than (n_rows, dim).

    Raises:
        Misfit: the shape differs; an AssertionError, as torch raises.
    """
    if list(weight.shape) != [n_rows, dim]:
        raise Misfit(
            f"{name}: Shape of weight does not match num_embeddings and embedding_dim: "
            f"{tuple(weight.shape)} is not {(n_rows, dim)}"
        )


def pretrained_shape(name: str, embeddings: Tensor) -> tuple[int, int]:
    """Rows and columns of the values given to ``from_pretrained``.

    Raises:
        Misfit: not two-dimensional; an AssertionError, as torch raises.
        TypeError: no tensor.
    """
    if not isinstance(embeddings, Tensor):
        raise TypeError(
            f"{name}: embeddings must be a Tensor, got {type(embeddings).__name__}; "
            "torch.as_tensor(embeddings) makes one"
        )
    if embeddings.dim() != 2:
        raise Misfit(
            f"{name}: Embeddings parameter is expected to be 2-dimensional (rows, columns), "
            f"got the shape {tuple(embeddings.shape)}"
        )
    return embeddings.size(0), embeddings.size(1)
