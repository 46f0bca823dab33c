"""The launch digest of a guest on a real host, where no command tells it: computed from the pages that were accepted.

It starts from the pages as the daemon had them when the firmware took them, and ends with the VMSA pages that KVM
measures at LAUNCH_FINISH: those of vCPUs at reset as QEMU and sev.launch set them. A report from inside the guest is
the proof; this is the host's own reckoning of the same chain (SEV-SNP firmware ABI, PAGE_INFO).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.abi.page_info import EMPTY_DIGEST
from sev.measurement import digest as chain
from sev.measurement import vmm

if TYPE_CHECKING:
    from sevd.guests.model import CreateGuest

SNP_ACTIVE = 1
"""Bit 0 of SEV_FEATURES, which KVM adds by itself."""


class LaunchDigest:
    """The digest so far. 48 bytes, SHA-384."""

    def __init__(self, request: CreateGuest) -> None:
        self._request = request
        self._value = EMPTY_DIGEST

    def add_pages(self, gpa: int, data: bytes) -> None:
        """NORMAL pages with this content were accepted."""
        self._value = chain.add_pages(self._value, gpa, data)

    def add_run(self, page_type: int, gpa: int, size: int) -> None:
        """Pages of a type whose content is not measured were accepted."""
        self._value = chain.add_run(self._value, page_type, gpa, size)

    def finish(self) -> bytes:
        """The digest after the VMSA page of every vCPU, the boot vCPU first."""
        request, qemu = self._request, vmm.by_name("qemu")
        features = request.vmsa_features | SNP_ACTIVE
        boot = vmm.save_area(qemu, vmm.BOOT_ADDRESS, request.cpuid_signature, features)
        other = vmm.save_area(qemu, request.ap_reset_address, request.cpuid_signature, features)
        return chain.add_vmsas(self._value, [boot, *[other] * (request.vcpu_count - 1)])
