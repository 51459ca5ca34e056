"""Which kernels work on bags of rows; see :mod:`firth.kernels.bags_reference` for what they do."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


def pick(table: Tensor) -> ModuleType:
    """The kernels for a table: Numba for contiguous float32 and float64 on the CPU, else plain torch.

    Args:
        table: (N, D), as a tensor or a parameter.
    """
    if (
        table.device.type == "cpu"
        and table.dtype in (torch.float32, torch.float64)
        and table.layout is torch.strided
        and table.is_contiguous()
    ):
        from firth.kernels import bags_cpu

        return bags_cpu
    from firth.kernels import bags_reference

    return bags_reference
