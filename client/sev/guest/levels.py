"""The privilege level (VMPL) at which this guest's kernel runs."""

from __future__ import annotations

from sev.guest.model import VMPL_MAX

VMPL_PATH = "/sys/devices/system/cpu/sev/vmpl"
"""One decimal number; the file is there in SNP guests only."""


def own_level(path: str = VMPL_PATH) -> int:
    """What the kernel says; 0, the level without an SVSM or paravisor, where it says nothing."""
    try:
        with open(path, "rb") as file:
            text = file.read(16).strip()
    except OSError:
        return 0
    level = int(text) if text.isdigit() else 0
    return level if level <= VMPL_MAX else 0
