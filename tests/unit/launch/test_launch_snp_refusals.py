"""What the launch driver of SNP guests refuses or is refused: each its own error with errno or status, command and remedy."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sev import status
from sev.errors import (
    DeviceMissing,
    FirmwareError,
    KernelError,
    LimitReached,
    NotOffered,
    SevError,
    UsageError,
    WrongState,
)
from sev.launch import Snp
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.simulated_firmware import id_auth, id_block
from tests.support.snp_launches import FIRMWARE, FIRMWARE_GPA, FREE, GENOA, PAGE, POLICY, held, small


def test_out_of_order_is_the_kernels_answer(host: Simulator, process: Process) -> None:
    with Snp(process) as guest:
        small(guest)
        steps: list[Callable[[], None]] = [lambda: guest.update(0, PAGE, 1), guest.finish]
        for step in steps:
            with pytest.raises(KernelError) as refused:
                step()
            assert (refused.value.errno, refused.value.firmware_status) == (errno.EINVAL, None)
            assert refused.value.remedy
        guest.start(POLICY)
        with pytest.raises(KernelError) as refused:
            guest.start(POLICY)
        assert (refused.value.errno, refused.value.command) == (errno.EINVAL, "SNP_LAUNCH_START")
        for page_type in (0, 2, 7):
            with pytest.raises(KernelError) as refused:
                guest.update(0, PAGE, page_type)
            assert refused.value.errno == errno.EINVAL
        guest.update(0, PAGE, 1)
        with pytest.raises(KernelError) as refused:
            guest.update(0, PAGE, 1)
        assert refused.value.errno == errno.EIO
        guest.finish()
        with pytest.raises(KernelError) as refused:
            guest.finish()
        assert (refused.value.errno, refused.value.command) == (errno.EINVAL, "SNP_LAUNCH_FINISH")
        with pytest.raises(FirmwareError) as late:
            guest.update(PAGE, PAGE, 1)
        assert late.value.firmware_status == status.INVALID_GUEST_STATE
        assert host.guest_report(process, guest.vm_fd, bytes(64), 0, 0)  # none of it harmed the guest
    assert held(host, process) == FREE


@pytest.mark.parametrize(
    ("policy", "kind", "number", "code"),
    [
        (POLICY | 0x0200, FirmwareError, errno.EIO, status.POLICY_FAILURE),
        (POLICY | 0x01FF, FirmwareError, errno.EIO, status.POLICY_FAILURE),
        (0x10000, KernelError, errno.EINVAL, None),
        (POLICY | 1 << 18, KernelError, errno.EINVAL, None),
        (POLICY | 1 << 40, KernelError, errno.EINVAL, None),
    ],
    ids=["abi major", "abi minor", "bit 17", "migration", "unknown bit"],
)
def test_policies_that_are_refused(
    host: Simulator, process: Process, policy: int, kind: type[SevError], number: int, code: int | None
) -> None:
    with Snp(process) as guest:
        small(guest)
        with pytest.raises(kind) as refused:
            guest.start(policy)
        assert (refused.value.errno, refused.value.firmware_status) == (number, code)
        assert refused.value.remedy
        assert host.guest_count() == 0
        guest.start(POLICY)
    assert held(host, process) == FREE


def signed(digest: bytes, *, spoil: bool = False) -> tuple[bytes, bytes]:
    block = id_block(digest)
    auth = bytearray(id_auth(block, ec.generate_private_key(ec.SECP384R1())))
    if spoil:
        auth[0x48] ^= 1
    return block, bytes(auth)


def test_an_id_block(host: Simulator, process: Process) -> None:
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(FIRMWARE_GPA, FIRMWARE, 1)
        digest = predicted_end(host, process, guest)
        guest.finish(*signed(digest), host_data=b"\7" * 32)
        report = host.guest_report(process, guest.vm_fd, bytes(64), 0, 0)
        assert report[0xC0:0xE0] == b"\7" * 32
        assert any(report[0xE0:0x110])


def predicted_end(host: Simulator, process: Process, guest: Snp) -> bytes:
    """The digest after FINISH of this small guest: from a twin without an ID block."""
    with Snp(process) as twin:
        small(twin)
        twin.start(POLICY)
        twin.update(FIRMWARE_GPA, FIRMWARE, 1)
        twin.finish()
        assert twin.vm_fd != guest.vm_fd
        return host.launch_digest(process, twin.vm_fd)


@pytest.mark.parametrize("case", ["measurement", "signature", "author"])
def test_a_failed_finish_is_the_end(host: Simulator, process: Process, case: str) -> None:
    codes = {
        "measurement": status.BAD_MEASUREMENT,
        "signature": status.BAD_SIGNATURE,
        "author": status.INVALID_PARAM,
    }
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(FIRMWARE_GPA, FIRMWARE, 1)
        digest = bytes(48) if case == "measurement" else predicted_end(host, process, guest)
        block, auth = signed(digest, spoil=case == "signature")
        with pytest.raises(FirmwareError) as refused:
            guest.finish(block, auth, auth_key_en=case == "author")
        assert (refused.value.errno, refused.value.firmware_status) == (errno.EIO, codes[case])
        assert refused.value.remedy
        steps: list[Callable[[], None]] = [
            guest.finish,
            lambda: guest.start(POLICY),
            lambda: guest.update(0, PAGE, 1),
            lambda: small(guest),
        ]
        for step in steps:
            with pytest.raises(WrongState, match="failed"):
                step()
        assert host.asids()["sev_es"][1] == 1
    assert held(host, process) == FREE


def test_a_full_host(host: Simulator, process: Process) -> None:
    guests = [Snp(process) for _ in range(host.asids()["sev_es"][0])]
    for guest in guests:
        guest.create(PAGE, PAGE, 1, GENOA)
    before = process.descriptors()
    with pytest.raises(LimitReached) as refused:
        small(Snp(process))
    assert (refused.value.errno, refused.value.firmware_status) == (errno.EBUSY, None)
    assert "ASID" in refused.value.remedy
    assert process.descriptors() == before
    guests[0].close()
    small(Snp(process))
    for guest in guests:
        guest.close()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"memory_bytes": 1}, "memory_bytes"),
        ({"memory_bytes": -PAGE}, "memory_bytes"),
        ({"memory_bytes": 1 << 60}, "memory_bytes"),
        ({"firmware_bytes": 17}, "firmware_bytes"),
        ({"firmware_bytes": 3 << 30}, "firmware_bytes"),
        ({"memory_bytes": 0, "firmware_bytes": 0}, "memory_bytes"),
        ({"vcpu_count": 0}, "vcpu_count"),
        ({"vcpu_count": -1}, "vcpu_count"),
        ({"vcpu_count": 1025}, "vcpu_count"),
        ({"vcpu_count": 2}, "ap_reset_address"),
        ({"vcpu_count": 2, "ap_reset_address": 1 << 32}, "ap_reset_address"),
        ({"cpuid_signature": 1 << 32}, "cpuid_signature"),
        ({"cpuid_signature": -1}, "cpuid_signature"),
    ],
    ids=str,
)
def test_guests_that_cannot_be(host: Simulator, process: Process, change: dict[str, int], field: str) -> None:
    values = {"memory_bytes": PAGE, "firmware_bytes": PAGE, "vcpu_count": 1, "cpuid_signature": GENOA} | change
    with pytest.raises(UsageError) as refused:
        Snp(process).create(**values)
    assert refused.value.field == field
    assert held(host, process) == FREE


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda guest: guest.start(POLICY, bytes(15)), "gosvw"),
        (lambda guest: guest.update(1, PAGE, 1), "gpa"),
        (lambda guest: guest.update(0, PAGE + 1, 1), "gpa"),
        (lambda guest: guest.update(1 << 50, PAGE, 1), "gpa"),
        (lambda guest: guest.finish(bytes(96)), "id_auth"),
        (lambda guest: guest.finish(bytes(95), bytes(4096)), "id_block"),
        (lambda guest: guest.finish(bytes(96), bytes(4095)), "id_auth"),
        (lambda guest: guest.finish(host_data=bytes(31)), "host_data"),
    ],
)
def test_arguments_that_cannot_be_harm_nothing(process: Process, call: Callable[[Snp], None], field: str) -> None:
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        with pytest.raises(UsageError) as refused:
            call(guest)
        assert refused.value.field == field
        guest.finish()


def test_features_that_are_not_offered(host: Simulator, process: Process) -> None:
    with pytest.raises(NotOffered) as refused:
        small(Snp(process), vmsa_features=0x1 | 1 << 14)
    assert "0x4000" in refused.value.message
    assert held(host, process) == FREE


def test_before_create_and_after_close(process: Process) -> None:
    guest = Snp(process)
    calls: list[Callable[[], object]] = [
        lambda: guest.start(POLICY), guest.finish, lambda: guest.memory(0, PAGE), lambda: guest.update(0, PAGE, 1),
        lambda: guest.vm_fd,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(WrongState) as refused:
            call()
        assert refused.value.metadata["allowed"] == "create"
    small(guest)
    with pytest.raises(WrongState):
        small(guest)
    guest.close()
    guest.close()
    for call in calls:
        with pytest.raises(WrongState):
            call()


@pytest.mark.parametrize(("sev", "kvm_path"), [("/dev/none", "/dev/kvm"), ("/dev/sev", "/dev/none")])
def test_a_device_that_is_not_there(host: Simulator, process: Process, sev: str, kvm_path: str) -> None:
    with pytest.raises(DeviceMissing, match="/dev/none") as refused:
        small(Snp(process, sev_path=sev, kvm_path=kvm_path))
    assert refused.value.errno == errno.ENOENT
    assert held(host, process) == FREE


def test_a_host_without_snp(tmp_path: Path, host: Simulator, process: Process) -> None:
    del tmp_path
    host._kvm.vm_types = 1
    with pytest.raises(NotOffered, match="type 4") as refused:
        small(Snp(process))
    assert refused.value.remedy
    assert held(host, process) == FREE
