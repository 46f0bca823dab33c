"""Typed commands of /dev/sev."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

import pytest

from sev import status
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, FirmwareError, KernelError, MalformedInput, NotOffered, NotPermitted
from sev.launch import SevDevice
from sevd.simulator import Simulator
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import Process


@pytest.fixture
def device(process: Process) -> Iterator[SevDevice]:
    with SevDevice(process) as opened:
        yield opened


def test_statuses(device: SevDevice) -> None:
    snp = abi.SnpStatus.decode(device.snp_status())
    assert (snp.api_major, snp.state, snp.guest_count) == (1, abi.STATE_INIT, 0)
    assert abi.PlatformStatus.decode(device.platform_status()).state == abi.STATE_INIT


def test_the_identifier(host: Simulator, device: SevDevice) -> None:
    assert device.get_id() == host.firmware.get_id()
    assert len(device.get_id()) == 64


def test_config_and_commit(device: SevDevice) -> None:
    before = abi.SnpStatus.decode(device.snp_status())
    device.snp_set_config(abi.SnpConfig(before.reported_tcb - 1, masks=1).encode())
    after = abi.SnpStatus.decode(device.snp_status())
    assert (after.reported_tcb, after.bits & 1) == (before.reported_tcb - 1, 1)
    device.snp_commit()
    assert abi.SnpStatus.decode(device.snp_status()).reported_tcb == before.reported_tcb


def test_a_vlek(host: Simulator, device: SevDevice) -> None:
    stick = host.firmware.vlek_hashstick()
    device.snp_vlek_load(stick)
    assert abi.SnpStatus.decode(device.snp_status()).bits & abi.SNP_VLEK_EN
    with pytest.raises(FirmwareError) as refused:
        device.snp_vlek_load(stick[:0x30] + b"\0" * 8 + stick[0x38:])
    assert (refused.value.firmware_status, refused.value.errno) == (status.BAD_MEASUREMENT, errno.EIO)
    assert (refused.value.command, bool(refused.value.remedy)) == ("SNP_VLEK_LOAD", True)


def test_a_tcb_above_the_committed_one(device: SevDevice) -> None:
    high = abi.SnpConfig(abi.SnpStatus.decode(device.snp_status()).reported_tcb + 1).encode()
    with pytest.raises(FirmwareError) as refused:
        device.snp_set_config(high)
    assert refused.value.firmware_status == status.INVALID_PARAM


@pytest.mark.parametrize(
    "call",
    [
        lambda device: device.snp_set_config(bytes(63)),
        lambda device: device.snp_set_config(bytes(65)),
        lambda device: device.snp_vlek_load(b""),
        lambda device: device.snp_vlek_load(bytes(433)),
    ],
    ids=["short config", "long config", "empty vlek", "long vlek"],
)
def test_wrong_lengths_never_reach_the_kernel(
    host: Simulator, device: SevDevice, call: Callable[[SevDevice], None]
) -> None:
    calls: list[str] = []
    host.faults = calls.append
    with pytest.raises(MalformedInput):
        call(device)
    assert calls == []


def test_a_device_open_for_reading(process: Process) -> None:
    with SevDevice(process, writable=False) as device:
        assert device.snp_status()
        calls: list[Callable[[], None]] = [
            lambda: device.snp_set_config(bytes(64)),
            lambda: device.snp_vlek_load(bytes(432)),
        ]
        for call in calls:
            with pytest.raises(NotPermitted) as refused:
                call()
            assert (refused.value.errno, bool(refused.value.remedy)) == (errno.EPERM, True)


def test_a_device_that_is_not_there(process: Process) -> None:
    with pytest.raises(DeviceMissing, match="/dev/none"):
        SevDevice(process, "/dev/none")


def test_snp_that_is_not_initialised(host: Simulator, device: SevDevice) -> None:
    host._ccp.shut_down()
    with pytest.raises(DeviceMissing, match="not initialised") as refused:
        device.snp_set_config(bytes(64))
    assert refused.value.errno == errno.ENODEV
    assert abi.SnpStatus.decode(device.snp_status()).state == abi.STATE_UNINIT


def test_old_firmware_has_no_identifier(host: Simulator, device: SevDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(host.firmware), "version", (0, 15, 1))
    with pytest.raises(NotOffered) as refused:
        device.get_id()
    assert refused.value.errno == abi.ENOTSUPP


def test_a_processor_that_hangs(host: Simulator, device: SevDevice) -> None:
    def hang(_command: str) -> None:
        raise TimeoutError

    host.faults = hang
    for number in (errno.ETIMEDOUT, errno.EBUSY):
        with pytest.raises(KernelError) as refused:
            device.snp_status()
        assert (refused.value.errno, refused.value.firmware_status) == (number, None)
        assert "ccp" in refused.value.remedy


@pytest.mark.parametrize("code", [status.INVALID_PLATFORM_STATE, 0x1E, 0xFFFF])
def test_any_status_is_told(host: Simulator, device: SevDevice, code: int) -> None:
    def fail(_command: str) -> None:
        raise FirmwareStatus(code)

    host.faults = fail
    with pytest.raises(FirmwareError) as refused:
        device.snp_commit()
    assert refused.value.firmware_status == code
    assert status.name(code) in refused.value.message


def test_a_kernel_that_answers_nonsense_lengths(process: Process) -> None:
    class Odd:
        memory = process.memory

        def open(self, path: str, flags: int) -> int:
            return process.open(path, flags)

        def close(self, fd: int) -> None:
            process.close(fd)

        def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
            del fd, request
            envelope = abi.IssueCmd.decode(process.memory.read(argument, 16))
            process.memory.write(envelope.data, abi.GetId2(0, 1 << 31).encode())
            return 0

        def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
            return process.ioctls(fd, request, arguments)

        def map(self, fd: int, size: int) -> memoryview:
            return process.map(fd, size)

        def unmap(self, view: memoryview) -> None:
            process.unmap(view)

        def discard(self, fd: int, offset: int, size: int) -> None:
            process.discard(fd, offset, size)

    with SevDevice(Odd()) as device, pytest.raises(MalformedInput, match="length probe"):
        device.get_id()


def test_closing_twice(process: Process) -> None:
    device = SevDevice(process)
    device.close()
    device.close()
    assert process.descriptors() == []
    with pytest.raises(KernelError) as refused:
        device.snp_status()
    assert refused.value.errno == errno.EBADF
