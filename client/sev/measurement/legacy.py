"""Launch digests of SEV and SEV-ES guests: SHA-256 over what the host encrypts, in its order.

The firmware image; with a kernel that is booted directly the table of its hashes (176 bytes); for SEV-ES one VMSA page
per vCPU, the boot vCPU first. Nothing in between, no addresses (SEV API specification, LAUNCH_UPDATE_DATA and
LAUNCH_UPDATE_VMSA; the order is QEMU's).
"""

from __future__ import annotations

from hashlib import sha256

from sev.errors import MalformedInput
from sev.measurement import ovmf
from sev.measurement import vmm as vmms
from sev.measurement.inputs import MAX_VCPUS, check_range, hashes_base, hashes_of, needs_reset, signature_of

SEV_ES_FEATURES = 0
"""SEV_FEATURES of an SEV-ES guest's vCPUs, unless the VMM asks KVM for more."""


class LegacyPlan:
    """What the launch of an SEV or SEV-ES guest measures.

    Attributes:
        firmware: The firmware image; it ends at 4 GiB.
        firmware_gpa: Address of its first byte.
        kernel_hashes: The padded table of kernel hashes, 176 bytes, or empty.
        kernel_hashes_gpa: Where the table goes; 0 without one.
        vmsas: One page of 4096 bytes per vCPU, the boot vCPU first; empty for SEV.
        ap_reset_address: Where the other vCPUs start; 0 if the image does not say.
        secret_gpa: Where a secret is injected, as the image says; 0 if it does not.
        secret_size: Bytes of that area.
    """

    __slots__ = (
        "ap_reset_address",
        "firmware",
        "firmware_gpa",
        "kernel_hashes",
        "kernel_hashes_gpa",
        "secret_gpa",
        "secret_size",
        "vmsas",
    )

    def __init__(self, image: ovmf.Image, hashes: bytes | None, vmsas: list[bytes]) -> None:
        self.firmware = image.data
        self.firmware_gpa = image.gpa
        self.kernel_hashes = hashes or b""
        self.kernel_hashes_gpa = _hashes_gpa(image) if hashes is not None else 0
        self.vmsas = vmsas
        self.ap_reset_address = image.u32(ovmf.RESET_BLOCK) or 0
        self.secret_gpa, self.secret_size = image.area(ovmf.SECRET_AREA) or (0, 0)

    def digest(self) -> bytes:
        """The launch digest, 32 bytes."""
        out = sha256(self.firmware)
        out.update(self.kernel_hashes)
        for page in self.vmsas:
            out.update(page)
        return out.digest()


def sev_plan(
    firmware: bytes | memoryview,
    *,
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    append: str | None = None,
    kernel_hashes: bytes | None = None,
) -> LegacyPlan:
    """The plan of an SEV launch; its digest does not depend on vCPUs. Arguments and errors as of `sev_es_plan`."""
    return LegacyPlan(ovmf.Image(bytes(firmware)), hashes_of(kernel, initrd, append, kernel_hashes), [])


def sev_es_plan(
    firmware: bytes | memoryview,
    vcpus: int,
    *,
    vcpu_type: str | None = None,
    vcpu_signature: int | None = None,
    vmm: str = "qemu",
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    append: str | None = None,
    kernel_hashes: bytes | None = None,
    guest_features: int = SEV_ES_FEATURES,
) -> LegacyPlan:
    """The plan of an SEV-ES launch.

    Args:
        firmware: The whole firmware image.
        vcpus: Number of vCPUs, 1 to 4096.
        vcpu_type: A name of `sev.measurement.vcpu_types`; this or the signature is needed where the VMM's VMSA has it.
        vcpu_signature: CPUID signature (leaf 1, EAX), 32 bits.
        vmm: A name of `sev.measurement.vmm.NAMES`.
        kernel: A kernel that is booted directly, measured by the table of hashes.
        initrd: Its initrd.
        append: Its command line.
        kernel_hashes: The table itself (176 bytes) instead of these three.
        guest_features: SEV_FEATURES of every vCPU, 64 bits.

    Raises:
        UsageError: An option is missing, out of range or contradicts another.
        MalformedInput: The image contradicts itself, or lacks what the options need.
    """
    maker = vmms.by_name(vmm)
    signature = signature_of(maker, vcpu_type, vcpu_signature)
    check_range("vcpus", vcpus, 1, MAX_VCPUS)
    check_range("guest_features", guest_features, 0, (1 << 64) - 1)
    hashes = hashes_of(kernel, initrd, append, kernel_hashes)
    image = ovmf.Image(bytes(firmware))
    vmsas = [vmms.save_area(maker, vmms.BOOT_ADDRESS, signature, guest_features)]
    if vcpus > 1:
        reset = needs_reset(image)
        vmsas += [vmms.save_area(maker, reset, signature, guest_features)] * (vcpus - 1)
    return LegacyPlan(image, hashes, vmsas)


def _hashes_gpa(image: ovmf.Image) -> int:
    hashes_base(image)
    base, size = image.area(ovmf.HASHES_TABLE) or (0, 0)
    if size < ovmf.HASHES_SIZE:
        raise MalformedInput(
            f"{image.what}: {size} bytes for the kernel hashes at {base:#x}, expected at least {ovmf.HASHES_SIZE}",
            field=image.what,
        )
    return base
