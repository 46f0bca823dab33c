"""The devices' half of a reader, over the seam of `sev.launch.seam`: the same questions for every kernel behind it."""

from __future__ import annotations

import os

from sev.abi import kvm, sev_device
from sev.launch.platform import SevDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.launch.seam import Kernel

NOWHERE = 1
"""An address that no process has mapped."""


class DeviceReader:
    """Asks `/dev/sev` and `/dev/kvm`, each opened read-only for one question (`sev.host.reader.Reader`).

    Args:
        kernel: The kernel as this process sees it.
        sev_path: The SEV device.
        kvm_path: The KVM device.
    """

    def __init__(self, kernel: Kernel, *, sev_path: str = "/dev/sev", kvm_path: str = "/dev/kvm") -> None:
        self._kernel = kernel
        self.sev_path = sev_path
        self.kvm_path = kvm_path

    def close(self) -> None:
        """Holds nothing."""

    def try_open(self, path: str, *, write: bool) -> None:
        """Opens and closes a device. Raises OSError."""
        self._kernel.close(self._kernel.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC))

    def platform_status(self) -> sev_device.PlatformStatus:
        """PLATFORM_STATUS of SEV. Raises SevError."""
        with SevDevice(self._kernel, self.sev_path, writable=False) as device:
            return sev_device.PlatformStatus.decode(device.platform_status())

    def snp_status(self) -> sev_device.SnpStatus:
        """SNP_PLATFORM_STATUS. Raises SevError."""
        with SevDevice(self._kernel, self.sev_path, writable=False) as device:
            return sev_device.SnpStatus.decode(device.snp_status())

    def config_refusal(self) -> int:
        """The errno of SNP_SET_CONFIG on a read-only descriptor with an address that is not there. Raises OSError
        where the device cannot be opened; 0 would mean that the kernel accepted it."""
        fd = self._kernel.open(self.sev_path, os.O_RDONLY | os.O_CLOEXEC)
        memory = self._kernel.memory
        envelope = memory.place(bytearray(sev_device.IssueCmd(sev_device.SNP_SET_CONFIG, NOWHERE).encode()))
        try:
            self._kernel.ioctl(fd, sev_device.SEV_ISSUE_CMD, envelope)
        except OSError as error:
            return error.errno or 0
        finally:
            memory.release(envelope)
            self._kernel.close(fd)
        return 0

    def kvm_version(self) -> int:
        """KVM_GET_API_VERSION. Raises OSError."""
        return self._ask_kvm(kvm.KVM_GET_API_VERSION)

    def kvm_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION. Raises OSError."""
        return self._ask_kvm(kvm.KVM_CHECK_EXTENSION, capability)

    def kvm_attribute(self, attribute: int) -> int:
        """KVM_GET_DEVICE_ATTR of group SEV. Raises OSError."""
        memory = self._kernel.memory
        value = bytearray(8)
        target = memory.place(value)
        try:
            request = memory.place(bytearray(kvm.DeviceAttr(0, kvm.X86_GRP_SEV, attribute, target).encode()))
            try:
                self._ask_kvm(kvm.KVM_GET_DEVICE_ATTR, request)
            finally:
                memory.release(request)
            return int.from_bytes(memory.read(target, 8), "little")
        finally:
            memory.release(target)

    def _ask_kvm(self, request: int, argument: int = 0) -> int:
        fd = self._kernel.open(self.kvm_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return self._kernel.ioctl(fd, request, argument)
        finally:
            self._kernel.close(fd)
