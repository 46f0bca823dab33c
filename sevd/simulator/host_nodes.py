"""The simulated host's files that have no guest: `sev`, `msr`, and the parameters of kvm_amd.

`sev` answers through the very model that in-process callers use (drivers/crypto/ccp/sev-dev.c); `msr` as
arch/x86/kernel/msr.c.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from sevd.simulator.errnos import fail
from sevd.simulator.fuse.nodes import Caller, Directory, FileNode, Handle, StaticDirectory, TextFile
from sevd.simulator.host_reader import SimulatedReader, registers
from sevd.simulator.process import File
from sevd.simulator.remote import RemoteProcess

GUEST_MSRS = {0xC001_0131: 0x7}
"""Registers of an SNP guest: SEV_STATUS with SEV, SEV-ES and SEV-SNP active."""

PARAMETERS = ("sev", "sev_es", "sev_snp")

_REGISTER_SIZE = 8


class DeviceHandle(Handle):
    """An opened device of the model, whose callers are other processes.

    Args:
        file: The model's open file.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._process = RemoteProcess(0)
        file.hold()

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        """The model's ioctl, with the caller's memory."""
        process = self._process
        if process.pid != caller.pid:
            process = self._process = RemoteProcess(caller.pid)
        return self._file.ioctl(process, request, argument)

    def release(self) -> None:
        """The last descriptor is closed."""
        self._file.drop()


class DeviceNode(FileNode):
    """A device as a file.

    Args:
        opened: Makes the model's open file from flags of open(2).
        mode: Permission bits; the kernel's default for a device without a rule is 0600.
        gid: Group.
    """

    def __init__(self, opened: Callable[[int], File], mode: int = 0o600, *, gid: int = 0) -> None:
        super().__init__(mode, gid=gid)
        self._opened = opened

    def open(self, flags: int, caller: Caller) -> Handle:
        """Opens the device: its write checks go by the flags."""
        del caller
        return DeviceHandle(self._opened(flags))


class _MsrHandle(Handle):
    def __init__(self, registers: Mapping[int, int]) -> None:
        self._registers = registers

    def read(self, offset: int, size: int) -> bytes:
        """The register whose number is the offset, 8 bytes, as often as it fits."""
        if size % _REGISTER_SIZE:
            fail(errno.EINVAL)
        value = self._registers.get(offset)
        if value is None:
            fail(errno.EIO)
        return value.to_bytes(_REGISTER_SIZE, "little") * (size // _REGISTER_SIZE)

    def write(self, offset: int, data: bytes) -> int:
        """No register can be written: those of SEV are locked once SNP is up."""
        del offset
        return fail(errno.EINVAL if len(data) % _REGISTER_SIZE else errno.EIO)


class MsrNode(FileNode):
    """/dev/cpu/0/msr.

    Args:
        registers: Values by register number; others do not exist.
    """

    def __init__(self, registers: Mapping[int, int]) -> None:
        super().__init__(0o600)
        self._registers = registers

    def open(self, flags: int, caller: Caller) -> Handle:
        """Opens it."""
        del flags, caller
        return _MsrHandle(self._registers)


def host_msr(*, snp: bool = True) -> FileNode:
    """`msr`: the registers that the check of a host reads, of a processor with or without SNP."""
    return MsrNode(registers(snp=snp))


def guest_msr() -> FileNode:
    """`guest-msr`: the same file inside an SNP guest."""
    return MsrNode(GUEST_MSRS)


def parameters(reader: SimulatedReader) -> Directory:
    """`parameters`: as /sys/module/kvm_amd/parameters, each "Y" or "N" and a line break."""
    folder = StaticDirectory()
    for name in PARAMETERS:
        path = f"/sys/module/kvm_amd/parameters/{name}"
        folder.put(name, TextFile(lambda path=path: reader.text(path).strip().encode() + b"\n"))  # type: ignore[misc]
    return folder
