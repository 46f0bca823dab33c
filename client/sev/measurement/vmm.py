"""What each VMM puts into the first VMSA page of a vCPU, and where its measuring order differs: one table.

The registers at reset are the same everywhere except for the columns below. Fields not named are zero.

Names without a date mean the newest known behaviour. Two tools of the field disagree on EC2 and both publish vectors:

- `ec2-2026` (`ec2`): RDX 0x600, as sev-snp-measure has it since 0.0.13 (May 2026).
- `ec2-2023`: RDX 0, as sev-snp-measure had it before and the virtee sev crate still has it.

`krun` is what the virtee sev crate measures (it is the only published description): all vCPUs start like QEMU's, the
application processors at the address of the firmware's reset block.

Source: QEMU target/i386 (reset state); arch/x86/kvm/svm (EFER.SVME, CR4.MCE); published launch digests of the tools.
"""

from __future__ import annotations

from functools import lru_cache

from sev.abi import vmsa
from sev.errors import UsageError

BOOT_ADDRESS = 0xFFFFFFF0
"""Where the boot vCPU starts, the x86 reset vector."""

QEMU_PAT = 0x0007040600070406
"""The power-on value of the page attribute table."""


class Vmm:
    """One VMM's way to start a vCPU.

    Attributes:
        name: The name in `VMMS`.
        cs: Attributes of CS; `boot_cs` those of the boot vCPU.
        ss: Attributes of SS.
        tr: Attributes of TR.
        rdx: The value in RDX; None for the CPUID signature.
        mxcsr: SSE control and status.
        fcw: x87 control word.
        pat: Page attribute table.
        sec_mem_unmeasured: SEC_MEM sections are UNMEASURED pages, not ZERO.
        cpuid_last: CPUID sections are measured after all others.
    """

    __slots__ = ("boot_cs", "cpuid_last", "cs", "fcw", "mxcsr", "name", "pat", "rdx", "sec_mem_unmeasured", "ss", "tr")

    def __init__(
        self,
        name: str,
        *,
        cs: int,
        boot_cs: int,
        ss: int,
        tr: int,
        rdx: int | None,
        mxcsr: int = 0,
        fcw: int = 0,
        pat: int = QEMU_PAT,
        sec_mem_unmeasured: bool = False,
        cpuid_last: bool = False,
    ) -> None:
        self.name = name
        self.cs = cs
        self.boot_cs = boot_cs
        self.ss = ss
        self.tr = tr
        self.rdx = rdx
        self.mxcsr = mxcsr
        self.fcw = fcw
        self.pat = pat
        self.sec_mem_unmeasured = sec_mem_unmeasured
        self.cpuid_last = cpuid_last

    @property
    def needs_signature(self) -> bool:
        """The CPUID signature is measured, so it must be known."""
        return self.rdx is None


VMMS = {
    vmm.name: vmm
    for vmm in (
        Vmm("qemu", cs=0x9B, boot_cs=0x9B, ss=0x93, tr=0x8B, rdx=None, mxcsr=0x1F80, fcw=0x37F),
        Vmm("ec2-2023", cs=0x9B, boot_cs=0x9A, ss=0x92, tr=0x83, rdx=0, cpuid_last=True),
        Vmm("ec2-2026", cs=0x9B, boot_cs=0x9A, ss=0x92, tr=0x83, rdx=0x600, cpuid_last=True),
        Vmm("gce", cs=0x9B, boot_cs=0x9B, ss=0x93, tr=0x8B, rdx=0x600, pat=0x00070106, sec_mem_unmeasured=True),
        Vmm("krun", cs=0x9A, boot_cs=0x9A, ss=0x92, tr=0x83, rdx=0),
    )
}
"""Every VMM by name."""

NEWEST = {"ec2": "ec2-2026"}
"""Names without a date."""

NAMES = ("qemu", "ec2", "gce", "krun", "ec2-2026", "ec2-2023")
"""Every name that `by_name` takes, the usual ones first."""


def by_name(name: str) -> Vmm:
    """The VMM of this name, in any case.

    Raises:
        UsageError: There is none.
    """
    wanted = name.strip().lower()
    found = VMMS.get(NEWEST.get(wanted, wanted))
    if found is None:
        raise UsageError(f"unknown VMM {name!r}: expected one of {', '.join(NAMES)}", field="vmm")
    return found


@lru_cache(maxsize=64)
def save_area(vmm: Vmm, address: int, signature: int, features: int) -> bytes:
    """The VMSA page, 4096 bytes, of a vCPU that starts at `address` in real mode.

    Args:
        vmm: Who starts it.
        address: 32-bit linear address: the upper half becomes the base of CS, the lower RIP.
        signature: CPUID signature, 32 bits; measured where `vmm.needs_signature`.
        features: SEV_FEATURES, 64 bits.
    """
    data = (0, 0x93, 0xFFFF, 0)
    table = (0, 0, 0xFFFF, 0)
    code = vmm.boot_cs if address == BOOT_ADDRESS else vmm.cs
    return vmsa.build(
        {
            "es": data,
            "cs": (0xF000, code, 0xFFFF, address & 0xFFFF0000),
            "ss": (0, vmm.ss, 0xFFFF, 0),
            "ds": data,
            "fs": data,
            "gs": data,
            "gdtr": table,
            "ldtr": (0, 0x82, 0xFFFF, 0),
            "idtr": table,
            "tr": (0, vmm.tr, 0xFFFF, 0),
            "cr0": 0x10,
            "rip": address & 0xFFFF,
            "g_pat": vmm.pat,
            "rdx": signature if vmm.rdx is None else vmm.rdx,
            "mxcsr": vmm.mxcsr,
            "x87_fcw": vmm.fcw,
            **_common(features),
        }
    )


@lru_cache(maxsize=64)
def svsm_save_area(address: int, signature: int, fcw: int = 0) -> bytes:
    """The VMSA page, 4096 bytes, of every vCPU that QEMU starts in an SVSM at `address`: flat 32-bit protected mode.

    Args:
        address: 32-bit linear address of the SVSM's entry.
        signature: CPUID signature, 32 bits.
        fcw: x87 control word. The published digests have 0 here; QEMU's other guests have 0x37F.
    """
    data = (0x10, 0xC93, 0xFFFFFFFF, 0)
    table = (0, 0, 0xFFFF, 0)
    return vmsa.build(
        {
            "es": data,
            "cs": (8, 0xC9B, 0xFFFFFFFF, 0),
            "ss": data,
            "ds": data,
            "fs": data,
            "gs": (0, 0x93, 0xFFFF, 0),
            "gdtr": table,
            "ldtr": (0, 0x82, 0xFFFF, 0),
            "idtr": table,
            "tr": (0, 0x8B, 0xFFFF, 0),
            "cr0": 0x11,
            "rip": address,
            "g_pat": QEMU_PAT,
            "rdx": signature,
            "mxcsr": 0x1F80,
            "x87_fcw": fcw,
            **_common(1),
        }
    )


def _common(features: int) -> dict[str, int]:
    """Registers that every VMM leaves alike."""
    return {
        "efer": 0x1000,  # SVME: KVM sets it for every SEV-ES guest
        "cr4": 0x40,  # MCE: likewise
        "dr7": 0x400,
        "dr6": 0xFFFF0FF0,
        "rflags": 2,
        "sev_features": features,
        "xcr0": 1,
    }
