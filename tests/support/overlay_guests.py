"""SNP guests of tiny firmware that a process on a served host launches and runs itself, and what that host has in use."""

from __future__ import annotations

import time

from sev import packets
from sev.abi import kvm_run
from sev.launch import Snp
from sev.launch.vcpu import Vcpu
from sev.measurement.plan import LaunchPlan, snp_plan
from sev.measurement.vcpu_types import signature
from sevd.simulator.control_client import ControlClient
from sevd.simulator.overlay import OverlayKernel
from tests.support.device_files import DeviceFiles
from tests.support.tiny_firmware import DEBUG_PORT

TYPE = "EPYC-v4"


def asids(served: DeviceFiles) -> int:
    """ASIDs in use."""
    with ControlClient.connect(served.devices / "control.sock") as control:
        found = packets.table(control.call("host"), "asids")["sev_es"]
    assert isinstance(found, list)
    return int(found[1])


def in_use(served: DeviceFiles) -> int:
    """ASIDs in use, once the closed connections are done with."""
    until = time.monotonic() + 5
    while asids(served) and time.monotonic() < until:
        time.sleep(0.01)
    return asids(served)


class Guest:
    """A launch of tiny firmware, step by step."""

    def __init__(self, kernel: OverlayKernel, served: DeviceFiles, firmware: bytes, vcpus: int = 1) -> None:
        self.kernel = kernel
        self.plan: LaunchPlan = snp_plan(firmware, vcpus, vcpu_type=TYPE)
        self.snp = Snp(kernel, sev_path=str(served.sev))
        self.snp.create(1 << 20, len(firmware), vcpus, signature(TYPE), self.plan.ap_reset_address)

    def load(self) -> None:
        """Everything up to LAUNCH_FINISH."""
        for region in self.plan.regions:
            if region.data is not None:
                self.snp.memory(region.gpa, region.size)[:] = region.data
        self.snp.start(0x30000)
        for region in self.plan.regions:
            self.snp.update(region.gpa, region.size, region.page_type)

    def launch(self) -> bytes:
        """The whole launch; the digest that the firmware has."""
        self.load()
        self.snp.finish()
        return self.kernel.launch_digest(self.snp.vm_fd)

    def vcpu(self, index: int = 0) -> Vcpu:
        machine = self.snp.machine
        return Vcpu(self.kernel, machine.vcpu_fds[index], machine.vcpu_mmap_size())


def run(vcpu: Vcpu) -> tuple[bytes, kvm_run.Exit]:
    """What it prints until it does something else, and what that is."""
    printed = b""
    while True:
        found = vcpu.run()
        if not isinstance(found, kvm_run.PortWrite) or found.port != DEBUG_PORT:
            return printed, found
        printed += found.data
