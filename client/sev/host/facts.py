"""What the kernel offers, as GetHost tells it: VM types, parameters of modules, the generation of its interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.host import era
from sev.host.machine import CCP, KVM_AMD, Machine
from sev.host.result import NotSeen
from sev.records import record

if TYPE_CHECKING:
    from sev.host.reader import Reader

VM_TYPES = ("default", "sw-protected", "sev", "sev-es", "sev-snp", "tdx")
"""Names of KVM's VM types by number."""

_PARAMETERS = (
    ("kvm_amd", KVM_AMD, ("sev", "sev_es", "sev_snp", "ciphertext_hiding_asids", "debug_swap")),
    ("ccp", CCP, ("init_ex_path", "psp_init_on_probe", "psp_cmd_timeout", "psp_probe_timeout", "tio")),
)


@record
class KernelFacts:
    """What a kernel offers.

    Attributes:
        vm_types: VM types of KVM; empty if it does not tell.
        parameters: ("kvm_amd.sev_snp", "Y") and the like, those that can be read.
        interface: The mainline release with which its newest interface came; empty if KVM cannot be asked.
        era: How it treats SNP commands while SNP is not initialised (`sev.host.era`); empty if it does not tell.
    """

    vm_types: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    interface: str = ""
    era: str = ""


def kernel_facts(reader: Reader) -> KernelFacts:
    """Asks KVM and reads parameters; never the firmware, so it does not wait."""
    machine = Machine(reader)
    parameters = tuple(
        (f"{module}.{name}", value)
        for module, folder, names in _PARAMETERS
        for name in names
        if (value := _parameter(machine, name, folder)) is not None
    )
    try:
        types = machine.vm_types()
        seen = era.interface(machine, firmware=False)
    except NotSeen:
        return KernelFacts(parameters=parameters)
    vm_types = tuple(name for number, name in enumerate(VM_TYPES) if types >> number & 1)
    return KernelFacts(vm_types, parameters, seen.since, seen.era)


def _parameter(machine: Machine, name: str, folder: str) -> str | None:
    try:
        return machine.parameter(name, folder)
    except NotSeen:
        return None
