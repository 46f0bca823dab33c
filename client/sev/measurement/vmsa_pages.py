"""VMSA pages of SEV-ES vCPUs as sevctl makes them: one page for one vCPU, by who starts it.

KVM copies x87 and SSE state into the page only for guests made with KVM_SEV_INIT2 (Linux 6.10 and later, VM type
SEV-ES); guests made with KVM_SEV_ES_INIT have zeros there. libkrun starts its vCPUs in its own boot code: the first
with a stack and RSI at the boot parameters, the others at segment 0x9100.
"""

from __future__ import annotations

from sev.abi import vmsa
from sev.errors import UsageError
from sev.measurement import vmm

USERSPACES = ("qemu", "krun")
_X87 = ("mxcsr", "x87_fcw")
_KRUN_BOOT = {"rsi": 0x7000, "rbp": 0x8FF0, "rsp": 0x8FF0}
_KRUN_OTHER_CS = (0x9100, 0x9A, 0xFFFF, 0x91000)


def sev_es_page(userspace: str, cpu: int, signature: int, reset_address: int = 0, *, x87: bool = False) -> bytes:
    """The page of one vCPU at reset, 4096 bytes.

    Args:
        userspace: "qemu" or "krun".
        cpu: Its number; 0 is the boot vCPU.
        signature: CPUID signature, 32 bits.
        reset_address: Where QEMU's vCPUs after the first start: what the firmware's SEV-ES reset block says.
        x87: Made with KVM_SEV_INIT2: x87 and SSE state are part of it.

    Raises:
        UsageError: No such userspace, or no reset address where one is needed.
    """
    if userspace not in USERSPACES:
        raise UsageError(f"unknown userspace {userspace!r}: expected {' or '.join(USERSPACES)}", field="userspace")
    if userspace == "krun":
        registers = vmsa.parse(vmm.save_area(vmm.by_name("krun"), vmm.BOOT_ADDRESS, 0, 0))
        registers["rdx"] = signature
        if cpu:
            registers |= {"cs": _KRUN_OTHER_CS, "rip": 0}
        else:
            registers |= _KRUN_BOOT
        return vmsa.build(registers)
    if cpu and not reset_address:
        raise UsageError(
            f"vCPU {cpu} starts where the firmware image says", remedy="Name the firmware image.", field="firmware"
        )
    page = bytearray(vmm.save_area(vmm.by_name("qemu"), reset_address if cpu else vmm.BOOT_ADDRESS, signature, 0))
    if not x87:
        for name in _X87:
            vmsa.store(page, name, 0)
    return bytes(page)
