"""What a plan is made from, checked: numbers in range, a CPU signature, the hashes of a kernel, a start address."""

from __future__ import annotations

from sev.errors import MalformedInput, UsageError
from sev.measurement import ovmf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.measurement.ovmf import Image
    from sev.measurement.vmm import Vmm

MAX_VCPUS = 4096
"""The most vCPUs that KVM can be built for."""


def check_range(name: str, value: int, lowest: int, highest: int) -> None:
    """Raises UsageError, naming the value, unless it lies in the range."""
    if not lowest <= value <= highest:
        raise UsageError(f"{name}: expected {lowest} to {highest}, not {value}", field=name)


def signature_of(maker: Vmm, vcpu_type: str | None, given: int | None) -> int:
    """The CPUID signature that is measured, of a CPU model's name or as given; 0 where the VMM has it nowhere.

    Raises:
        UsageError: Both, an unknown name, a number above 32 bits, or neither where one is needed.
    """
    if vcpu_type is not None and given is not None:
        raise UsageError("a CPU type and a CPU signature were given: give one of them", field="vcpu_signature")
    if given is not None:
        check_range("vcpu_signature", given, 0, 0xFFFFFFFF)
        return given
    if vcpu_type is not None:
        from sev.measurement.vcpu_types import signature

        return signature(vcpu_type)
    if maker.needs_signature:
        raise UsageError(
            "the CPU type is missing: its signature is part of the measurement",
            remedy="Give the guest's CPU model, such as EPYC-v4, or its CPUID signature.",
            field="vcpu_type",
        )
    return 0


def hashes_of(kernel: bytes | None, initrd: bytes | None, append: str | None, table: bytes | None) -> bytes | None:
    """The table of kernel hashes, 176 bytes, made or as given; None without a kernel.

    Raises:
        UsageError: They contradict each other, or a part of a kernel was given without the kernel.
    """
    if table is not None:
        if kernel is not None or initrd is not None or append is not None:
            raise UsageError("a table of kernel hashes and a kernel were given: give one of them", field="kernel")
        if len(table) != ovmf.HASHES_SIZE:
            raise UsageError(f"kernel_hashes: expected 176 bytes, not {len(table)}", field="kernel_hashes")
        return table
    if kernel is not None:
        from sev.measurement import kernel_hashes

        return kernel_hashes.table(kernel, initrd, append)
    if initrd is not None or append is not None:
        raise UsageError(
            "an initrd or a command line was given without a kernel",
            remedy="They are measured together with a kernel that is booted directly.",
            field="kernel",
        )
    return None


def hashes_base(image: Image) -> int:
    """Where the firmware looks for the kernel hashes. Raises UsageError if the image does not say."""
    base = image.u32(ovmf.HASHES_TABLE)
    if not base:
        raise UsageError(
            f"a kernel was given, but the {image.what} does not say where its hashes go",
            remedy="Use a build of OVMF for direct boot (AmdSev), or measure without the kernel.",
            field="kernel",
        )
    return base


def needs_reset(image: Image) -> int:
    """Where the vCPUs after the first start. Raises MalformedInput if the image does not say."""
    reset = image.u32(ovmf.RESET_BLOCK)
    if not reset:
        raise MalformedInput(
            f"{image.what}: no SEV-ES reset block, so it is not known where more than one vCPU would start",
            remedy="Use a firmware image built for SEV-ES and SEV-SNP, or one vCPU.",
            field=image.what,
        )
    return reset
