"""One machine while it is looked at: what a reader answers, decoded, each asked once; failures become `NotSeen`."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, TypeVar

from sev import products
from sev.abi import kvm
from sev.errors import SevError
from sev.host.result import NotSeen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sev.abi.sev_device import PlatformStatus, SnpStatus
    from sev.host.reader import Reader
    from sev.products import Product

T = TypeVar("T")
Registers = tuple[int, int, int, int]

SEV_LEAF = 0x8000_001F
KVM_AMD = "/sys/module/kvm_amd"
CCP = "/sys/module/ccp"
PSP = "/sys/bus/pci/drivers/ccp"
CGROUP = "/sys/fs/cgroup"

ON = ("Y", "y", "1")
"""What a module's parameter of yes or no says for yes."""

KERNEL_LOG = "Look for what the kernel says: dmesg | grep -iE 'ccp|sev|snp|amd-vi'."
"""Remedy for what only the kernel knows more about."""

SYSCFG = 0xC001_0010
HWCR = 0xC001_0015
RMP_BASE = 0xC001_0132
RMP_END = 0xC001_0133
RMP_CFG = 0xC001_0136


class Machine:
    """What a reader says, kept for the checks of one look.

    Args:
        reader: The host.
        statuses: What "platform" (PlatformStatus) and "snp" (SnpStatus) answered already, or the SevError instead.
    """

    def __init__(self, reader: Reader, statuses: Mapping[str, object] | None = None) -> None:
        self.reader = reader
        self._kept: dict[object, object] = {("sev", name): value for name, value in (statuses or {}).items()}

    # Processor

    @property
    def architecture(self) -> str:
        """The machine word of uname(2)."""
        return self.reader.architecture()

    def cpuid(self, leaf: int, subleaf: int = 0) -> Registers:
        """EAX, EBX, ECX, EDX. Raises NotSeen."""

        def ask() -> Registers:
            try:
                return self.reader.cpuid(leaf, subleaf)
            except SevError as error:
                raise NotSeen(f"CPUID cannot be asked: {error.message}", error.remedy) from None

        return self._once(("cpuid", leaf, subleaf), ask)

    @property
    def vendor(self) -> str:
        """The vendor's twelve letters, from CPUID or /proc/cpuinfo. Raises NotSeen."""
        try:
            _, ebx, ecx, edx = self.cpuid(0)
        except NotSeen as why:
            return self._cpuinfo("vendor_id", why)
        return _letters(ebx, edx, ecx)

    @property
    def brand(self) -> str:
        """The processor's name, from CPUID or /proc/cpuinfo. Raises NotSeen."""
        try:
            words = [word for leaf in (0x8000_0002, 0x8000_0003, 0x8000_0004) for word in self.cpuid(leaf)]
        except NotSeen as why:
            return self._cpuinfo("model name", why)
        return _letters(*words).strip()

    @property
    def signature(self) -> tuple[int, int, int]:
        """Combined family, combined model, stepping, from CPUID or /proc/cpuinfo. Raises NotSeen."""
        try:
            return products.split_signature(self.cpuid(1)[0])
        except NotSeen as why:
            family, model, stepping = (_number(self._cpuinfo(key, why)) for key in ("cpu family", "model", "stepping"))
            return family, model, stepping

    @property
    def product(self) -> Product | None:
        """The processor line; None for any other processor. Raises NotSeen."""
        family, model, _ = self.signature
        return products.by_cpuid(family, model) if self.vendor == "AuthenticAMD" else None

    @property
    def virtual(self) -> bool:
        """This is a virtual machine: a hypervisor shows itself. Raises NotSeen."""
        try:
            return bool(self.cpuid(1)[2] >> 31)
        except NotSeen:
            return "hypervisor" in self.flags

    @property
    def flags(self) -> frozenset[str]:
        """The flags of /proc/cpuinfo: what the kernel sees and has not switched off. Raises NotSeen."""
        return frozenset(self._cpuinfo("flags", None).split())

    def sev_bit(self, bit: int, flag: str = "") -> bool:
        """A bit of CPUID 0x8000001F EAX; where CPUID cannot be asked, the kernel's flag for it. Raises NotSeen."""
        try:
            return bool(self.cpuid(SEV_LEAF)[0] >> bit & 1)
        except NotSeen:
            if not flag:
                raise
            return flag in self.flags

    @property
    def has_sev(self) -> bool:
        """The processor is AMD's and shows SEV, as far as that can be seen."""
        try:
            return self.vendor == "AuthenticAMD" and self.sev_bit(1, "sev")
        except NotSeen:
            return False

    # Registers that need root

    def msr(self, number: int, name: str) -> int:
        """A model-specific register. Raises NotSeen."""

        def ask() -> int:
            try:
                return self.reader.msr(number)
            except OSError as error:
                remedy = "Load the module msr (modprobe msr) and run as root."
                if error.errno == errno.EIO:
                    remedy = "The processor, or the hypervisor above it, does not have this register."
                raise NotSeen(f"the register {name} (0x{number:08x}) cannot be read: {_why(error)}", remedy) from None

        return self._once(("msr", number), ask)

    # Files

    def text(self, path: str, limit: int = 1 << 16) -> str | None:
        """A file, stripped; None if there is no such file. Raises NotSeen if it cannot be read."""

        def ask() -> str | None:
            try:
                return self.reader.text(path, limit).strip()
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                remedy = "Run as root." if self.reader.user() else ""
                raise NotSeen(f"{path} cannot be read: {_why(error)}", remedy) from None

        return self._once(("text", path), ask)

    def names(self, path: str) -> list[str] | None:
        """What is in a directory; None if there is no such directory. Raises NotSeen if it cannot be read."""

        def ask() -> list[str] | None:
            try:
                return self.reader.names(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise NotSeen(f"{path} cannot be read: {_why(error)}") from None

        return self._once(("names", path), ask)

    def parameter(self, name: str, module: str = KVM_AMD) -> str | None:
        """A module's parameter; None if there is none of this name. Raises NotSeen."""
        return self.text(f"{module}/parameters/{name}", 256)

    def counters(self, name: str) -> dict[str, int] | None:
        """A flat-keyed file of the misc cgroup controller; None if it is not there. Raises NotSeen."""
        text = self.text(f"{CGROUP}/{name}", 1 << 12)
        if text is None:
            return None
        pairs = (line.split() for line in text.splitlines())
        return {pair[0]: _number(pair[1]) for pair in pairs if len(pair) == 2}

    @property
    def command_line(self) -> list[str]:
        """The words of the kernel's command line. Raises NotSeen."""
        text = self.text("/proc/cmdline")
        if text is None:
            raise NotSeen("there is no /proc/cmdline", "Mount /proc.")
        return text.split()

    # Devices

    def opened(self, path: str, *, write: bool) -> int:
        """0 if the device can be opened, else the errno."""

        def ask() -> int:
            try:
                self.reader.try_open(path, write=write)
            except OSError as error:
                return error.errno or errno.EIO
            return 0

        return self._once(("open", path, write), ask)

    def platform_status(self) -> PlatformStatus:
        """PLATFORM_STATUS of SEV. Raises NotSeen, or SevError if the platform refuses."""
        return self._ask_sev("platform", self.reader.platform_status)

    def snp_status(self) -> SnpStatus:
        """SNP_PLATFORM_STATUS. Raises NotSeen, or SevError if the platform refuses."""
        return self._ask_sev("snp", self.reader.snp_status)

    def kvm_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION. Raises NotSeen."""
        return self._ask_kvm(("extension", capability), lambda: self.reader.kvm_extension(capability))

    def kvm_version(self) -> int:
        """KVM_GET_API_VERSION. Raises NotSeen."""
        return self._ask_kvm("version", self.reader.kvm_version)

    def kvm_attribute(self, attribute: int) -> int | None:
        """A device attribute of KVM's group SEV; None if the kernel has no such one. Raises NotSeen."""

        def ask() -> int | None:
            try:
                return self.reader.kvm_attribute(attribute)
            except OSError as error:
                if error.errno in (errno.ENXIO, errno.ENOTTY, errno.EINVAL):
                    return None
                raise

        return self._ask_kvm(("attribute", attribute), ask)

    def vm_types(self) -> int:
        """KVM_CAP_VM_TYPES: one bit for each VM type. Raises NotSeen."""
        return self.kvm_extension(kvm.CAP_VM_TYPES)

    def _ask_sev(self, name: str, ask: Callable[[], T]) -> T:
        path = self.reader.sev_path
        number = self.opened(path, write=False)
        if number:
            remedy = "Run as root." if number in (errno.EACCES, errno.EPERM) else ""
            raise NotSeen(f"{path} cannot be opened: {os.strerror(number)}", remedy)
        return self._once(("sev", name), ask)

    def _ask_kvm(self, key: object, ask: Callable[[], T]) -> T:
        def asked() -> T:
            try:
                return ask()
            except OSError as error:
                remedy = "Run as root." if error.errno in (errno.EACCES, errno.EPERM) else ""
                raise NotSeen(f"{self.reader.kvm_path} cannot be asked: {_why(error)}", remedy) from None

        return self._once(("kvm", key), asked)

    def _cpuinfo(self, key: str, why: NotSeen | None) -> str:
        """A value of the first processor of /proc/cpuinfo. Raises `why`, or NotSeen."""
        text = self.text("/proc/cpuinfo")
        for line in (text or "").splitlines():
            if not line.strip():
                break
            name, colon, value = line.partition(":")
            if colon and name.strip() == key:
                return value.strip()
        raise why or NotSeen(f"/proc/cpuinfo does not tell {key}")

    def _once(self, key: object, ask: Callable[[], T]) -> T:
        """Answers what was answered before, errors included."""
        if key not in self._kept:
            try:
                self._kept[key] = ask()
            except (NotSeen, SevError) as error:
                self._kept[key] = error
        kept = self._kept[key]
        if isinstance(kept, NotSeen | SevError):
            raise kept.with_traceback(None)
        return kept  # type: ignore[return-value]


def _letters(*words: int) -> str:
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0").decode("ascii", "replace")


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
