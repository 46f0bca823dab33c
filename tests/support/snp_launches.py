"""SNP guests launched with the driver on a simulated host, and what a host holds for them."""

from __future__ import annotations

from sev.launch import Snp
from sev.measurement.plan import LaunchPlan
from sevd.simulator import Simulator
from sevd.simulator.process import Process

PAGE = 4096
POLICY = 0x30000
FIRMWARE = 64 << 10
FIRMWARE_GPA = (4 << 30) - FIRMWARE
GENOA = 0xA10F10


def small(guest: Snp, vcpus: int = 1, **changes: int) -> None:
    """A guest with 16 MiB and a small firmware region."""
    guest.create(16 << 20, FIRMWARE, vcpus, GENOA, 0xFFFF1000 if vcpus > 1 else 0, **changes)


def launch(guest: Snp, plan: LaunchPlan, firmware: bytes, vcpus: int, features: int, cpu: int) -> None:
    guest.create(16 << 20, len(firmware), vcpus, cpu, plan.ap_reset_address, features)
    for region in plan.regions:
        if region.data is not None:
            guest.memory(region.gpa, region.size)[:] = region.data
    guest.start(POLICY)
    for region in plan.regions:
        guest.update(region.gpa, region.size, region.page_type)
    guest.finish()


def held(host: Simulator, process: Process) -> tuple[int, int, list[int]]:
    return host.asids()["sev_es"][1], host.guest_count(), process.descriptors()


FREE: tuple[int, int, list[int]] = (0, 0, [])
