"""Whatever fails under the launch driver of SNP guests, nothing is left; and the real kernel here."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from sev import status
from sev.abi import kvm, kvm_sev
from sev.errors import (
    DeviceMissing,
    FirmwareError,
    KernelError,
    NotOffered,
    NotPermitted,
    SevError,
)
from sev.launch import Snp
from sev.launch.linux import LinuxKernel
from sevd.simulator import Simulator
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import Process
from tests.support.snp_launches import FIRMWARE, FIRMWARE_GPA, FREE, PAGE, POLICY, held, small


class Failing:
    """A kernel whose so-many-th call of a kind fails."""

    def __init__(self, process: Process, kind: str, number: int, at: int) -> None:
        self._process = process
        self._kind = kind
        self._number = number
        self._left = at
        self.calls = 0
        self.memory = process.memory

    def _count(self, kind: str) -> None:
        if kind == self._kind:
            self._left -= 1
            self.calls += 1
            if self._left < 0:
                raise OSError(self._number, os.strerror(self._number))

    def open(self, path: str, flags: int) -> int:
        self._count("open")
        return self._process.open(path, flags)

    def close(self, fd: int) -> None:
        self._process.close(fd)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        self._count("ioctl")
        return self._process.ioctl(fd, request, argument)

    def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        return self._process.ioctls(fd, request, arguments)

    def map(self, fd: int, size: int) -> memoryview:
        return self._process.map(fd, size)

    def unmap(self, view: memoryview) -> None:
        self._process.unmap(view)

    def discard(self, fd: int, offset: int, size: int) -> None:
        self._process.discard(fd, offset, size)


def test_whichever_call_fails_nothing_is_left(host: Simulator, process: Process) -> None:
    """Every ioctl of `create` in turn."""
    calls = Failing(process, "ioctl", errno.ENOMEM, 1 << 30)
    with Snp(calls) as guest:
        small(guest, 2)
    count = calls.calls
    assert count > 20
    for at in range(count):
        with pytest.raises(KernelError) as refused:
            small(Snp(Failing(process, "ioctl", errno.ENOMEM, at)), 2)
        assert refused.value.errno == errno.ENOMEM
        assert refused.value.command
        assert held(host, process) == FREE


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, NotPermitted),
        (errno.EPERM, NotPermitted),
        (errno.ENODEV, DeviceMissing),
        (errno.ENXIO, DeviceMissing),
        (errno.EMFILE, KernelError),
    ],
)
@pytest.mark.parametrize("at", [0, 1], ids=["sev", "kvm"])
def test_devices_that_do_not_open(process: Process, number: int, kind: type[SevError], at: int) -> None:
    with pytest.raises(kind) as refused:
        small(Snp(Failing(process, "open", number, at)))
    assert refused.value.errno == number
    assert refused.value.remedy
    assert process.descriptors() == []


def test_eagain_is_tried_again(process: Process) -> None:
    class Shy(Failing):
        def __init__(self) -> None:
            super().__init__(process, "", 0, 0)
            self.tries = 0

        def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
            if request == kvm.KVM_MEMORY_ENCRYPT_OP and process.memory.read(argument, 4) == b"\x65\0\0\0":
                self.tries += 1
                if self.tries <= 3:
                    raise OSError(errno.EAGAIN, "again")
            return super().ioctl(fd, request, argument)

    kernel = Shy()
    with Snp(kernel) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(0, PAGE, 1)
    assert kernel.tries == 4


def test_a_firmware_that_fails_at_any_step(host: Simulator, process: Process) -> None:
    """Each command of a launch in turn fails once; the error names the status, and nothing is left."""
    commands: list[str] = []
    host.faults = commands.append
    run(process)
    for at, name in enumerate(list(commands)):
        if name in ("SNP_DECOMMISSION", "SNP_DF_FLUSH"):
            continue
        seen: list[str] = []

        def hook(command: str, seen: list[str] = seen, at: int = at) -> None:
            seen.append(command)
            if len(seen) == at + 1:
                raise FirmwareStatus(status.HWERROR_UNSAFE)

        host.faults = hook
        with pytest.raises(FirmwareError) as refused:
            run(process)
        assert refused.value.firmware_status == status.HWERROR_UNSAFE, name
        assert refused.value.errno in (errno.EIO, errno.ENOTTY)
        host.faults = lambda _command: None
        assert held(host, process) == FREE


def run(process: Process) -> None:
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(FIRMWARE_GPA, FIRMWARE, 1)
        guest.update(0x1000, PAGE, kvm_sev.PAGE_SECRETS)
        guest.finish()


def test_the_real_kernel_here(tmp_path: Path) -> None:
    """Where /dev/kvm is real and SNP is not: a precise no, and every descriptor closed again."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm here")
    kernel = LinuxKernel()
    sev = tmp_path / "sev"
    sev.write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(NotOffered, match="type 4"):
            small(Snp(kernel, sev_path=str(sev)))
    except BaseException:
        if Path("/sys/module/kvm_amd/parameters/sev_snp").exists():
            pytest.skip("this host may have SNP")
        raise
    finally:
        kernel.exit()
    assert len(os.listdir("/proc/self/fd")) == before
