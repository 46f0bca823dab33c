"""Generations of the kernel's SEV interface, told by what the kernel answers, never by its version string.

Distributions carry interfaces back to older kernels, so a version says little. KVM answers which interfaces it has;
each came with a mainline release, named here for people. How ccp treats SNP commands while SNP is not initialised
differs by era: A (6.11) refuses them all with EINVAL, B (6.16) initialises SNP around each, C (7.1, and carried back)
calls the firmware as it is and refuses those that change something with ENODEV. A can be told while SNP is not
initialised, C by an interface of KVM that came with it; otherwise the kernel does not tell B from C until something is
changed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sev.abi import kvm
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, SevError
from sev.host.result import NotSeen
from sev.records import record

if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.host.machine import Machine


@record
class Interface:
    """What a kernel offers.

    Attributes:
        offers: Interfaces it has, oldest first.
        since: The mainline release that the newest of them came with, such as "6.18"; empty if there is none.
        era: "A", "B or C" or "C"; empty if it was not to be told.
    """

    offers: tuple[str, ...]
    since: str
    era: str

    def text(self) -> str:
        """In one phrase."""
        return f"as of Linux {self.since} or newer" + (f", era {self.era}" if self.era else "")


def _capability(number: int) -> Callable[[Machine], bool]:
    return lambda machine: bool(machine.kvm_extension(number))


def _attribute(number: int) -> Callable[[Machine], bool]:
    return lambda machine: machine.kvm_attribute(number) is not None


_INTERFACES: tuple[tuple[str, str, Callable[[Machine], bool]], ...] = (
    ("exits for page-state changes", "5.14", _capability(kvm.CAP_EXIT_HYPERCALL)),
    ("memory attributes", "6.8", _capability(kvm.CAP_MEMORY_ATTRIBUTES)),
    ("VM types", "6.8", _capability(kvm.CAP_VM_TYPES)),
    ("SEV VM types", "6.10", _attribute(kvm.SEV_ATTR_VMSA_FEATURES)),
    ("SNP VM type", "6.11", lambda machine: bool(machine.vm_types() >> kvm.VM_TYPE_SNP & 1)),
    ("guest_memfd flags", "6.18", _capability(kvm.CAP_GUEST_MEMFD_FLAGS)),
    ("SNP policy bits", "6.19", _attribute(kvm.SEV_ATTR_SNP_POLICY_BITS)),
    ("SNP certificate requests", "7.1", _attribute(kvm.SEV_ATTR_SNP_REQ_CERTS)),
)


def interface(machine: Machine, *, firmware: bool = True) -> Interface:
    """What this kernel offers. Raises NotSeen if KVM cannot be asked.

    Args:
        machine: The host.
        firmware: Also ask through /dev/sev, which waits for a firmware command under way.
    """
    seen = [(name, since) for name, since, offered in _INTERFACES if offered(machine)]
    return Interface(tuple(name for name, _ in seen), seen[-1][1] if seen else "", _era(machine, firmware))


def _era(machine: Machine, firmware: bool) -> str:
    if machine.kvm_attribute(kvm.SEV_ATTR_SNP_REQ_CERTS) is not None:
        return "C"
    if not firmware or not _snp_uninitialised(machine):
        return ""
    try:
        number = machine.reader.config_refusal()
    except (OSError, SevError):
        return ""
    return {errno.EINVAL: "A", errno.EPERM: "B or C"}.get(number, "")


def _snp_uninitialised(machine: Machine) -> bool:
    """SNP is there and not initialised, as far as the platform says so."""
    try:
        return machine.snp_status().state == abi.STATE_UNINIT
    except DeviceMissing:
        return True
    except (NotSeen, SevError):
        return False
