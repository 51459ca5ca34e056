"""Kernels: what runs inside the training loop, once for each kind of device.

``reference`` is the definition in float64, ``cpu`` its fast twin in Numba. Both offer ``run``
and ``alias_table`` with the same arguments.
"""

from __future__ import annotations

from types import ModuleType

from firth.errors import SettingError

DEVICES = ("auto", "cpu", "reference")


def pick(device: str) -> ModuleType:
    """The kernel module for a device; ``"auto"`` is the fastest that this version has.

    Raises:
        SettingError: an unknown device, or one that this version does not train on.
    """
    if device in ("auto", "cpu"):
        from firth.kernels import cpu

        return cpu
    if device == "reference":
        from firth.kernels import reference

        return reference
    hint = "; this version trains on the CPU: use device='cpu'" if device.startswith("cuda") else ""
    raise SettingError(f"train(): device must be one of {', '.join(DEVICES)}, not {device!r}{hint}")
