"""Which kernels work on the rows of a table.

``pick(table)`` gives the module; all have the names and arguments of
:mod:`firth.kernels.rows_reference`, which defines them.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

_NUMBERS = frozenset((torch.float32, torch.float64))


@cache
def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def pick(table: Tensor) -> ModuleType:
    """The kernels for a table: Numba for contiguous float32 and float64 on the CPU, Triton for CUDA where
    it is installed, else the plain torch definition.

    Args:
        table: (N, D), as a tensor or a parameter.
    """
    if table.layout is torch.strided and table.is_contiguous():
        if table.is_cpu and table.dtype in _NUMBERS and _has("firth.kernels.rows_cpu"):
            return _module("firth.kernels.rows_cpu")
        if table.is_cuda and _has("triton") and _has("firth.kernels.rows_gpu"):
            return _module("firth.kernels.rows_gpu")
    return _module("firth.kernels.rows_reference")
