"""Machines laid out in dictionaries, for the checks of a host: a server on which all is well, and what can be wrong."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, replace
from typing import Any

from sev.abi import kvm
from sev.abi.sev_device import PlatformStatus, SnpStatus
from sev.errors import KernelError, SevError
from sev.host import machine as places
from sev.host.cpuid import CpuidUnavailable
from sev.products import cpuid_signature

Registers = tuple[int, int, int, int]

GENOA_EAX = 0x037BFD3B
TCB = 0x541B_0000_0000_0A09
GIB = 1 << 30


def vendor(text: str) -> Registers:
    """CPUID leaf 0."""
    data = text.encode()
    ebx, edx, ecx = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8))
    return 0x10, ebx, ecx, edx


def brand(text: str) -> dict[tuple[int, int], Registers]:
    """CPUID leaves 0x80000002 to 4."""
    data = text.encode().ljust(48, b"\0")
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 48, 4)]
    return {
        (0x80000002 + part, 0): (words[4 * part], words[4 * part + 1], words[4 * part + 2], words[4 * part + 3])
        for part in range(3)
    }


@dataclass
class FakeReader:
    """A machine (`sev.host.reader.Reader`). Numbers in place of a text, a status or an answer are errnos."""

    files: dict[str, str | int] = field(default_factory=dict)
    leaves: dict[tuple[int, int], Registers] | None = None
    msrs: dict[int, int] | int = errno.ENOENT
    devices: dict[str, str | int] = field(default_factory=dict)
    platform: PlatformStatus | SevError | None = None
    snp: SnpStatus | SevError | None = None
    refusal: int = errno.EPERM
    extensions: dict[int, int] = field(default_factory=dict)
    attributes: dict[int, int] = field(default_factory=dict)
    locked: int | None = None
    uid: int = 0
    machine: str = "x86_64"
    sev_path: str = "/dev/sev"
    kvm_path: str = "/dev/kvm"

    def but(self, **changes: Any) -> FakeReader:
        """The same machine with other values; `files`, `leaves`, `msrs` and the like are merged, None takes out."""
        merged: dict[str, Any] = {}
        for name, value in changes.items():
            before = getattr(self, name)
            if isinstance(value, dict) and isinstance(before, dict):
                merged[name] = {key: one for key, one in {**before, **value}.items() if one is not None}
            else:
                merged[name] = value
        return replace(self, **merged)

    def architecture(self) -> str:
        return self.machine

    def user(self) -> int:
        return self.uid

    def text(self, path: str, limit: int = 1 << 16) -> str:
        value = self.files.get(path, errno.ENOENT)
        if isinstance(value, int):
            raise OSError(value, os.strerror(value), path)
        return value[:limit]

    def names(self, path: str) -> list[str]:
        if isinstance(value := self.files.get(path), int):
            raise OSError(value, os.strerror(value), path)
        below = {name[len(path) + 1 :].partition("/")[0] for name in self.files if name.startswith(path + "/")}
        if not below:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return sorted(below)

    def cpuid(self, leaf: int, subleaf: int = 0) -> Registers:
        if self.leaves is None:
            raise CpuidUnavailable("not on this machine")
        return self.leaves.get((leaf, subleaf), (0, 0, 0, 0))

    def msr(self, number: int) -> int:
        if isinstance(self.msrs, int):
            raise OSError(self.msrs, os.strerror(self.msrs))
        if number not in self.msrs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.msrs[number]

    def memlock(self) -> int | None:
        return self.locked

    def try_open(self, path: str, *, write: bool) -> None:
        mode = self.devices.get(path, errno.ENOENT)
        if isinstance(mode, int):
            raise OSError(mode, os.strerror(mode), path)
        if write and "w" not in mode:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def platform_status(self) -> PlatformStatus:
        if isinstance(self.platform, SevError):
            raise self.platform
        assert self.platform is not None
        return self.platform

    def snp_status(self) -> SnpStatus:
        if isinstance(self.snp, SevError):
            raise self.snp
        assert self.snp is not None
        return self.snp

    def close(self) -> None:
        pass

    def config_refusal(self) -> int:
        return self.refusal

    def kvm_version(self) -> int:
        self.try_open(self.kvm_path, write=True)
        return kvm.API_VERSION

    def kvm_extension(self, capability: int) -> int:
        self.try_open(self.kvm_path, write=True)
        return self.extensions.get(capability, 0)

    def kvm_attribute(self, attribute: int) -> int:
        self.try_open(self.kvm_path, write=True)
        if attribute not in self.attributes:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return self.attributes[attribute]


def cpuinfo(vendor_id: str = "AuthenticAMD", flags: str = "fpu sme sev sev_es sev_snp", **more: str) -> str:
    """The first processor of /proc/cpuinfo."""
    values = {
        "vendor_id": vendor_id, "cpu family": "25", "model": "17", "model name": "AMD EPYC 9654 96-Core Processor",
        "stepping": "1", "flags": flags, **{key.replace("_", " "): value for key, value in more.items()},
    }  # fmt: skip
    return "".join(f"{key}\t: {value}\n" for key, value in values.items()) + "\nvendor_id\t: SecondOne\n"


def genoa() -> FakeReader:
    """A Genoa server on Linux 7.1, root looking, everything as it should be."""
    base, top = 0x10_0000_0000, 64 * GIB
    parameters = f"{places.KVM_AMD}/parameters"
    return FakeReader(
        files={
            f"{parameters}/sev": "Y\n",
            f"{parameters}/sev_es": "Y\n",
            f"{parameters}/sev_snp": "Y\n",
            f"{parameters}/ciphertext_hiding_asids": "32\n",
            f"{places.CCP}/parameters/psp_init_on_probe": "Y\n",
            f"{places.CCP}/parameters/init_ex_path": "(null)\n",
            f"{places.PSP}/0000:42:00.1/fused_part": "1\n",
            f"{places.PSP}/0000:42:00.1/debug_lock_on": "1\n",
            f"{places.PSP}/0000:42:00.1/anti_rollback_status": "1\n",
            f"{places.PSP}/0000:42:00.1/bootloader_version": "00.34.00.75\n",
            f"{places.PSP}/bind": "",
            f"{places.CGROUP}/misc.capacity": "sev 907\nsev_es 99\n",
            f"{places.CGROUP}/misc.current": "sev 0\nsev_es 3\n",
            "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 ro quiet\n",
            "/proc/cpuinfo": cpuinfo(),
            "/proc/iomem": f"00001000-0009ffff : System RAM\n  00002000-00002fff : Kernel code\n"
            f"100000000-{top - 1:x} : System RAM\nfd00000000-fdffffffff : Reserved\n",
            "/sys/devices/system/cpu/present": "0-191\n",
            "/sys/devices/system/cpu/online": "0-191\n",
            "/sys/class/iommu/ivhd0/amd-iommu/features": f"{1 << 63 | 0x246577EFA2254AFA:x}:10\n",
            "/sys/class/iommu/ivhd1/amd-iommu/features": f"10:{1 << 63 | 0x246577EFA2254AFA:x}\n",
            "/sys/firmware/sev/vulnerabilities/supported_mitigations": "0x7\n",
            "/sys/firmware/sev/vulnerabilities/verified_mitigations": "0x7\n",
        },
        leaves={
            (0, 0): vendor("AuthenticAMD"),
            (1, 0): (cpuid_signature(0x19, 0x11, 1), 0, 0x7EFA320B, 0),
            **brand("AMD EPYC 9654 96-Core Processor"),
            (0x8000001F, 0): (GENOA_EAX, 0x4173, 1006, 100),
        },
        msrs={
            places.SYSCFG: 7 << 23,
            places.HWCR: 1,
            places.RMP_BASE: base,
            places.RMP_END: base + 0x4000 + top // 256 - 1,
            places.RMP_CFG: 0,
        },
        devices={"/dev/sev": "rw", "/dev/kvm": "rw"},
        platform=PlatformStatus(1, 55, 1, 0x100, 40, 0),
        snp=SnpStatus(1, 55, 1, 3, 40, 0x68, 0, TCB, TCB),
        extensions={
            kvm.CAP_VM_TYPES: 0b11101,
            kvm.CAP_EXIT_HYPERCALL: 1 << 12,
            kvm.CAP_MEMORY_ATTRIBUTES: 8,
            kvm.CAP_GUEST_MEMFD_FLAGS: 1,
        },
        attributes={
            kvm.SEV_ATTR_VMSA_FEATURES: 1 << 5 | 1 << 9,
            kvm.SEV_ATTR_SNP_POLICY_BITS: 0xBF_FFFF,
            kvm.SEV_ATTR_SNP_REQ_CERTS: 1,
        },
    )


def silent() -> KernelError:
    """A platform that does not answer."""
    return KernelError(errno.ETIMEDOUT, command="PLATFORM_STATUS")
