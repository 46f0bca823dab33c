"""The launch of an SEV or SEV-ES guest on its driver, and its launch digest where no platform tells it.

The digest is SHA-256 over what the firmware encrypts, in its order: memory as it was before, then the save areas of
vCPUs at reset as QEMU and sev.launch set them (SEV API specification, LAUNCH_UPDATE_DATA, LAUNCH_UPDATE_VMSA).
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from sev.errors import NotOffered, SevError
from sevd.guests.model import GuestType
from sevd.guests.sev_travel import SevTravel

if TYPE_CHECKING:
    from typing import NoReturn

    from sev.launch.seam import Kernel
    from sev.launch.sev import Sev
    from sevd.guests.model import CreateGuest


class Measured(NamedTuple):
    """What a measurement leaves.

    Attributes:
        measurement: Measure, 32 bytes, and nonce, 16.
        digest: Launch digest, 32 bytes; empty where it is not known.
    """

    measurement: bytes
    digest: bytes


class SevLaunch:
    """One launch.

    Args:
        kernel: The process that the VM belongs to.
        request: What was asked for: an SEV or SEV-ES guest.
        sev_path: The SEV device.
        kvm_path: The KVM device.
        reckon: Keep the digest: the platform does not tell it.

    Attributes:
        driver: What drives the VM.
        travel: Its way to another host, or from one.
    """

    def __init__(self, kernel: Kernel, request: CreateGuest, *, sev_path: str, kvm_path: str, reckon: bool) -> None:
        from sev.launch.sev import Sev, SevEs

        kind = SevEs if request.type == GuestType.SEV_ES else Sev
        self.driver: Sev = kind(kernel, sev_path=sev_path, kvm_path=kvm_path)
        self._request = request
        self._digest = sha256() if reckon else None
        self.travel = SevTravel(self.driver, told=not reckon)

    def update(self, gpa: int, size: int) -> None:
        """LAUNCH_UPDATE_DATA. After a refusal nobody knows how much was measured, and no digest is told."""
        with self.driver.memory(gpa, size) as memory:
            before = bytes(memory) if self._digest is not None else b""
        try:
            self.driver.update(gpa, size)
        except SevError:
            self._digest = None
            raise
        self.travel.take(gpa, size)
        if self._digest is not None:
            self._digest.update(before)

    def measure(self) -> Measured:
        """LAUNCH_UPDATE_VMSA of an SEV-ES guest, then LAUNCH_MEASURE."""
        if self._request.type == GuestType.SEV_ES:
            self.driver.update_vmsa()
            self._add_vcpus()
        measurement = self.driver.measure()
        return Measured(measurement, self._digest.digest() if self._digest is not None else b"")

    def _add_vcpus(self) -> None:
        if self._digest is None:
            return
        from sev.measurement import vmm

        request, qemu = self._request, vmm.by_name("qemu")
        for number in range(request.vcpu_count):
            address = request.ap_reset_address if number else vmm.BOOT_ADDRESS
            self._digest.update(vmm.save_area(qemu, address, request.cpuid_signature, request.vmsa_features))


def no_such_step(kind: GuestType, what: str) -> NoReturn:
    """Raises NotOffered: guests of this type have nothing of the kind."""
    made = "The platform makes reports of such guests: sev guest report."
    remedy = {
        GuestType.SEV: made,
        GuestType.SEV_ES: made,
        GuestType.SNP: "An SNP guest is measured when its launch is finished, and asks for reports and secrets itself.",
        GuestType.PLAIN: "A plain guest is not protected: map its memory (map_memory).",
    }.get(kind, "")
    raise NotOffered(f"{what}: guests of type {kind.name.replace('_', '-')} have nothing of the kind", remedy=remedy)
