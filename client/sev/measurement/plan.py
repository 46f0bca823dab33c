"""The plan of an SNP launch: which pages, in which order, of which type, and the digest they give.

The order is the one QEMU feeds them in: the firmware image as NORMAL pages up to 4 GiB; with an SVSM its image below
that; the sections of the metadata in their order (with an SVSM: of the SVSM's metadata); one VMSA page per vCPU, the
boot vCPU first. What other VMMs do differently stands in sev.measurement.vmm.
"""

from __future__ import annotations

from sev.abi import page_info
from sev.errors import MalformedInput, UsageError
from sev.measurement import digest as chain
from sev.measurement import ovmf
from sev.measurement import vmm as vmms
from sev.measurement.inputs import MAX_VCPUS, check_range, hashes_base, hashes_of, needs_reset, signature_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sev.measurement.ovmf import Image, Section

_SECTION_PAGES = {
    ovmf.SEC_MEM: page_info.ZERO,
    ovmf.SECRETS: page_info.SECRETS,
    ovmf.CPUID: page_info.CPUID,
    ovmf.SVSM_CAA: page_info.ZERO,
    ovmf.KERNEL_HASHES: page_info.ZERO,
}
"""Page type of each section, before what a VMM or a kernel changes."""


class Region:
    """A run of pages that are measured one after the other.

    Attributes:
        gpa: Address of the first page.
        size: Bytes, whole pages.
        page_type: A type of `sev.abi.page_info`.
        data: The content; None where it is zeros, or the firmware's to fill (secrets, CPUID).
        name: What it is: "firmware", "svsm", or the section's name.
    """

    __slots__ = ("data", "gpa", "name", "page_type", "size")

    def __init__(self, gpa: int, size: int, page_type: int, data: bytes | None, name: str) -> None:
        self.gpa = gpa
        self.size = size
        self.page_type = page_type
        self.data = data
        self.name = name

    def __repr__(self) -> str:
        return f"<Region {self.name} {page_info.PAGE_TYPES[self.page_type]} {self.gpa:#x}+{self.size:#x}>"


class Step:
    """One measured page of `LaunchPlan.explain`.

    Attributes:
        name: The region's name; "vmsa 0" and so on for vCPUs.
        gpa: The address that was measured.
        page_type: A type of `sev.abi.page_info`.
        digest: The launch digest after this page, 48 bytes.
        pages: 1; for a firmware image known by its hash alone, its pages.
    """

    __slots__ = ("digest", "gpa", "name", "page_type", "pages")

    def __init__(self, name: str, gpa: int, page_type: int, digest: bytes, pages: int = 1) -> None:
        self.name = name
        self.gpa = gpa
        self.page_type = page_type
        self.digest = digest
        self.pages = pages


class LaunchPlan:
    """What a launch measures. Made by `snp_plan`.

    Attributes:
        regions: Every region in measuring order.
        vmsas: One page of 4096 bytes per vCPU, the boot vCPU first; measured after the regions.
        ap_reset_address: Where the other vCPUs start; 0 if the image does not say.
        firmware_gpa: Address of the firmware image's first byte.
        has_metadata: The image has SEV metadata; without it QEMU would not launch it.
        ovmf_hash: The digest after the firmware image, where it was given; the image is then not hashed.
    """

    __slots__ = ("ap_reset_address", "firmware_gpa", "has_metadata", "ovmf_hash", "regions", "vmsas")

    def __init__(
        self,
        regions: list[Region],
        vmsas: list[bytes],
        *,
        ap_reset_address: int,
        firmware_gpa: int,
        has_metadata: bool,
        ovmf_hash: bytes | None = None,
    ) -> None:
        self.regions = regions
        self.vmsas = vmsas
        self.ap_reset_address = ap_reset_address
        self.firmware_gpa = firmware_gpa
        self.has_metadata = has_metadata
        self.ovmf_hash = ovmf_hash

    def digest(self) -> bytes:
        """The launch digest, 48 bytes."""
        digest, regions = self._start()
        for region in regions:
            if region.page_type == page_info.NORMAL and region.data is not None:
                digest = chain.add_pages(digest, region.gpa, region.data)
            else:
                digest = chain.add_run(digest, region.page_type, region.gpa, region.size)
        return chain.add_vmsas(digest, self.vmsas)

    def explain(self) -> Iterator[Step]:
        """Every measured page in order with the digest after it; the last one's is the launch digest."""
        digest, regions = self._start()
        if self.ovmf_hash is not None:
            first = self.regions[0]
            yield Step(first.name, first.gpa, first.page_type, digest, first.size // page_info.PAGE_SIZE)
        for region in regions:
            pages = chain.each_page(digest, region.page_type, region.gpa, region.size, region.data)
            for gpa, digest in pages:
                yield Step(region.name, gpa, region.page_type, digest)
        for number, page in enumerate(self.vmsas):
            digest = chain.add_vmsas(digest, [page])
            yield Step(f"vmsa {number}", page_info.VMSA_GPA, page_info.VMSA, digest)

    def _start(self) -> tuple[bytes, list[Region]]:
        """The digest to start from and the regions that are still to be measured."""
        if self.ovmf_hash is None:
            return page_info.EMPTY_DIGEST, self.regions
        return self.ovmf_hash, self.regions[1:]


def snp_plan(
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
    guest_features: int = 0x1,
    ovmf_hash: bytes | None = None,
    svsm: bytes | memoryview | None = None,
    svsm_vars_size: int = 0,
    svsm_fcw: int = 0,
) -> LaunchPlan:
    """The plan of an SNP launch.

    Args:
        firmware: The whole firmware image.
        vcpus: Number of vCPUs, 1 to 4096.
        vcpu_type: A name of `sev.measurement.vcpu_types`; this or the signature is needed where the VMM's VMSA has it.
        vcpu_signature: CPUID signature (leaf 1, EAX), 32 bits.
        vmm: A name of `sev.measurement.vmm.NAMES`.
        kernel: A kernel that is booted directly, measured by the table of hashes.
        initrd: Its initrd.
        append: Its command line.
        kernel_hashes: The table itself (176 bytes, see `sev.measurement.kernel_hashes`) instead of these three.
        guest_features: SEV_FEATURES of every vCPU, 64 bits. An SVSM guest has 0x1 whatever is given.
        ovmf_hash: The digest after the firmware image (48 bytes, as `snp_ovmf_hash` gives it), to start from.
        svsm: The image of a coconut-svsm that is started instead of the firmware; QEMU only.
        svsm_vars_size: Bytes of the firmware's variable store, which lies between the two images.
        svsm_fcw: x87 control word in an SVSM guest's VMSA; the published digests have 0.

    Raises:
        UsageError: An option is missing, out of range or contradicts another.
        MalformedInput: An image contradicts itself, or lacks what the options need.
    """
    maker = vmms.by_name(vmm)
    signature = signature_of(maker, vcpu_type, vcpu_signature)
    check_range("vcpus", vcpus, 1, MAX_VCPUS)
    check_range("guest_features", guest_features, 0, (1 << 64) - 1)
    if ovmf_hash is not None and len(ovmf_hash) != page_info.DIGEST_SIZE:
        raise UsageError(f"ovmf_hash: expected 48 bytes, not {len(ovmf_hash)}", field="ovmf_hash")
    hashes = hashes_of(kernel, initrd, append, kernel_hashes)
    image = ovmf.Image(bytes(firmware))
    regions = [_image_region("firmware", image)]
    if svsm is None:
        regions += _sections(image, maker, hashes)
        reset = image.u32(ovmf.RESET_BLOCK) or 0
        vmsas = [vmms.save_area(maker, vmms.BOOT_ADDRESS, signature, guest_features)]
        if vcpus > 1:
            vmsas += [vmms.save_area(maker, needs_reset(image), signature, guest_features)] * (vcpus - 1)
        return LaunchPlan(
            regions,
            vmsas,
            ap_reset_address=reset,
            firmware_gpa=image.gpa,
            has_metadata=image.has_metadata,
            ovmf_hash=ovmf_hash,
        )
    if maker.name != "qemu" or hashes is not None:
        raise UsageError("an SVSM is started by QEMU and without a measured kernel only", field="svsm")
    check_range("svsm_vars_size", svsm_vars_size, 0, image.gpa)
    inner = ovmf.Image(bytes(svsm), "SVSM image", end=image.gpa - svsm_vars_size)
    reset = _svsm_entry(inner)
    regions += [_image_region("svsm", inner), *_sections(inner, maker, None)]
    return LaunchPlan(
        regions,
        [vmms.svsm_save_area(reset, signature, svsm_fcw)] * vcpus,
        ap_reset_address=reset,
        firmware_gpa=image.gpa,
        has_metadata=inner.has_metadata,
        ovmf_hash=ovmf_hash,
    )


def _image_region(name: str, image: Image) -> Region:
    return Region(image.gpa, len(image.data), page_info.NORMAL, image.data, name)


def _sections(image: Image, maker: vmms.Vmm, hashes: bytes | None) -> list[Region]:
    regions = [_section(image, section, maker, hashes) for section in image.sections]
    if hashes is not None and not any(kind == ovmf.KERNEL_HASHES for _, _, kind in image.sections):
        raise UsageError(
            f"a kernel was given, but the {image.what}'s SEV metadata has no section for kernel hashes",
            remedy="Use a build of OVMF for direct boot (AmdSev), or measure without the kernel.",
            field="kernel",
        )
    if maker.cpuid_last:
        regions.sort(key=lambda region: region.page_type == page_info.CPUID)
    return regions


def _section(image: Image, section: Section, maker: vmms.Vmm, hashes: bytes | None) -> Region:
    gpa, size, kind = section
    page_type, data = _SECTION_PAGES[kind], None
    if kind == ovmf.SEC_MEM and maker.sec_mem_unmeasured:
        page_type = page_info.UNMEASURED
    elif kind == ovmf.KERNEL_HASHES and hashes is not None:
        page_type, data = page_info.NORMAL, _hashes_page(image, gpa, size, hashes)
    return Region(gpa, size, page_type, data, ovmf.SECTION_NAMES[kind])


def _hashes_page(image: Image, gpa: int, size: int, hashes: bytes) -> bytes:
    """The page with the table at the place where the firmware will look for it."""
    base = hashes_base(image)
    offset = base - gpa
    if size != page_info.PAGE_SIZE or not 0 <= offset <= size - len(hashes):
        raise MalformedInput(
            f"{image.what}: the kernel hashes at {base:#x} are not inside their section, "
            f"{size:#x} bytes at {gpa:#x}: expected one page that holds {len(hashes)} bytes there",
            field=image.what,
        )
    return (bytes(offset) + hashes).ljust(page_info.PAGE_SIZE, b"\0")


def _svsm_entry(image: Image) -> int:
    offset = image.u32(ovmf.SVSM_INFO)
    if offset is None:
        raise MalformedInput(
            f"{image.what}: its footer table has no SVSM entry",
            remedy="Is it the SVSM's image (coconut-svsm), and not the firmware's?",
            field=image.what,
        )
    address = image.gpa + offset
    if offset >= len(image.data):
        raise MalformedInput(f"{image.what}: its entry at {address:#x} is outside the image", field=image.what)
    return address


def snp_launch_digest(
    firmware: bytes | memoryview,
    vcpus: int,
    *,
    vcpu_type: str | None = None,
    vcpu_signature: int | None = None,
    vmm: str = "qemu",
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    append: str | None = None,
    guest_features: int = 0x1,
    ovmf_hash: bytes | None = None,
    svsm: bytes | memoryview | None = None,
    svsm_vars_size: int = 0,
    svsm_fcw: int = 0,
) -> bytes:
    """The launch digest, 48 bytes, that the firmware reports for this launch; arguments as of `snp_plan`.

    Raises:
        UsageError: An option is missing, out of range or contradicts another.
        MalformedInput: An image contradicts itself, or lacks what the options need.
    """
    return snp_plan(
        firmware,
        vcpus,
        vcpu_type=vcpu_type,
        vcpu_signature=vcpu_signature,
        vmm=vmm,
        kernel=kernel,
        initrd=initrd,
        append=append,
        guest_features=guest_features,
        ovmf_hash=ovmf_hash,
        svsm=svsm,
        svsm_vars_size=svsm_vars_size,
        svsm_fcw=svsm_fcw,
    ).digest()


def snp_ovmf_hash(firmware: bytes | memoryview) -> bytes:
    """The digest, 48 bytes, after the firmware image alone: give it as `ovmf_hash` to skip hashing the image again.

    Raises:
        MalformedInput: The image is not whole pages, or a table in it contradicts itself.
    """
    image = ovmf.Image(bytes(firmware))
    return chain.add_pages(page_info.EMPTY_DIGEST, image.gpa, image.data)
