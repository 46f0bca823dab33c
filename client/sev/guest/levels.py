"""The privilege level (VMPL) that this guest's kernel asks the firmware with."""

from __future__ import annotations

from sev.guest.model import VMPL_MAX

VMPL_PATH = "/sys/devices/system/cpu/sev/vmpl"
"""The level at which the kernel runs: one decimal number; the file is there in SNP guests only."""

VMPCK_PATH = "/sys/module/sev_guest/parameters/vmpck_id"
"""Number of the key that the driver was told to use; -1: that of the kernel's level."""


def own_level(vmpl_path: str = VMPL_PATH, vmpck_path: str = VMPCK_PATH) -> int:
    """The lowest level that a request may name: that of the kernel, or of the key that its driver was given.

    0, the level without an SVSM or paravisor, where nothing tells.
    """
    return max(_number(vmpl_path), _number(vmpck_path))


def _number(path: str) -> int:
    try:
        with open(path, "rb") as file:
            text = file.read(16).strip()
    except OSError:
        return 0
    level = int(text) if text.isdigit() else 0
    return level if level <= VMPL_MAX else 0
