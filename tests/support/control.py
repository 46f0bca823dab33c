"""A simulated host with its control socket, and a whole launch by a process that is connected to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sev.launch import Snp
from sev.measurement.plan import snp_plan
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature
from sevd.simulator import Simulator
from sevd.simulator.control import ControlServer
from sevd.simulator.overlay import OverlayKernel

if TYPE_CHECKING:
    from sev.launch.seam import Kernel

NO_KVM = "/nonexistent/kvm"


@dataclass(frozen=True)
class Served:
    """A host, its control server, and the folder with `sev` and `control.sock`."""

    simulator: Simulator
    server: ControlServer
    folder: Path

    @property
    def sev(self) -> str:
        """What stands for the served device."""
        return str(self.folder / "sev")

    def kernel(self) -> OverlayKernel:
        """A process on the host, without a real KVM below."""
        return OverlayKernel(self.folder, NO_KVM)

    def in_use(self) -> tuple[int, int]:
        """(ASIDs, contexts) that guests have."""
        return self.simulator.asids()["sev_es"][1], self.simulator.guest_count()


FIRMWARE = sample_firmware(64 * 1024)


def launch(kernel: Kernel, sev_path: str, kvm_path: str = NO_KVM) -> tuple[Snp, bytes]:
    """A launch to its end; the guest, and the digest that was predicted."""
    plan = snp_plan(FIRMWARE, 2, vcpu_type="EPYC-v4")
    guest = Snp(kernel, sev_path=sev_path, kvm_path=kvm_path)
    guest.create(64 << 20, len(FIRMWARE), 2, signature("EPYC-v4"), plan.ap_reset_address)
    for region in plan.regions:
        if region.data is not None:
            guest.memory(region.gpa, region.size)[:] = region.data
    guest.start(0x30000)
    for region in plan.regions:
        guest.update(region.gpa, region.size, region.page_type)
    guest.finish()
    return guest, plan.digest()
