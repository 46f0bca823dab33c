"""The seam below the daemon: what the kernel offers (open, ioctl), its Linux form, facts of the host, the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevd.devices.facts import HostFacts
from sevd.devices.quiet import Quiet
from sevd.devices.scheduler import Job, Scheduler

if TYPE_CHECKING:
    from sev.launch.seam import Kernel, Memory

__all__ = ["HostFacts", "Job", "Kernel", "Memory", "Quiet", "Scheduler"]
