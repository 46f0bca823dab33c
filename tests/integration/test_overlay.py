"""Simulated SNP guests that execute on the real /dev/kvm: what runs is what was measured."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sev.abi import kvm, kvm_run, kvm_sev
from sev.errors import FirmwareError
from sev.launch import Snp
from sev.launch.machine import FOUR_GIB
from sev.launch.plain import Plain
from sev.launch.vcpu import Vcpu
from sev.measurement.plan import snp_plan
from sev.measurement.vcpu_types import signature
from sevd.simulator.control_client import ControlClient
from sevd.simulator.overlay import OverlayKernel
from tests.support.device_files import DeviceFiles, device_files
from tests.support.needs import need_kvm
from tests.support.overlay_guests import TYPE, Guest, in_use, run
from tests.support.tiny_firmware import HALT, PRINT, tiny_firmware

PAGE = 4096


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    need_kvm()
    with device_files(tmp_path_factory.mktemp("overlay")) as files:
        yield files


@pytest.fixture
def kernel(served: DeviceFiles) -> Iterator[OverlayKernel]:
    """A process on the simulated host; when it is gone the host is empty."""
    made = OverlayKernel(served.devices)
    yield made
    made.exit()
    assert in_use(served) == 0


@pytest.mark.parametrize("text", [b"measured\n", b"something else"])
def test_what_runs_is_what_was_measured(kernel: OverlayKernel, served: DeviceFiles, text: bytes) -> None:
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, text))
    assert guest.launch() == guest.plan.digest()
    report = kernel.report(guest.snp.vm_fd, bytes(64), 0, 0)
    assert report[0x90:0xC0] == guest.plan.digest()
    # The shared view is not what runs, whatever is written there now.
    guest.snp.memory(FOUR_GIB - 0x2000, 0x2000)[:] = b"\xcc" * 0x2000
    vcpu = guest.vcpu()
    assert run(vcpu) == (text, kvm_run.HALT)
    vcpu.close()


def test_one_changed_byte_changes_digest_and_output(kernel: OverlayKernel, served: DeviceFiles) -> None:
    told = []
    for text in (b"0", b"1"):
        guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, text))
        digest = guest.launch()
        vcpu = guest.vcpu()
        told.append((digest, run(vcpu)[0]))
        vcpu.close()
        guest.snp.close()
    assert told[0][0] != told[1][0]
    assert [output for _, output in told] == [b"0", b"1"]


def test_the_firmwares_own_pages_are_seen_by_the_guest(kernel: OverlayKernel, served: DeviceFiles) -> None:
    """The guest prints the first 4 bytes of its VMPCK0 from the secrets page at 0x2000."""
    code = bytes.fromhex(
        "31c0" "8ed8"  # ax = ds = 0
        "be2020"  # mov si, 0x2020
        "b90400"  # mov cx, 4
        "bae900"  # mov dx, DEBUG_PORT
        "fc"  # cld
        "ac" "ee"  # next: lodsb; out dx, al
        "e2fc"  # loop next
    )  # fmt: skip
    guest = Guest(kernel, served, tiny_firmware(code + HALT))
    guest.launch()
    fd, offset = guest.snp.machine.private_pages(0x2000, PAGE)
    file = kernel.file(fd)
    assert file is not None
    secrets = os.pread(file.real, PAGE, offset)
    vcpu = guest.vcpu()
    assert run(vcpu) == (secrets[0x20:0x24], kvm_run.HALT)
    assert any(secrets[0x20:0x40])
    vcpu.close()


def test_nothing_runs_before_the_launch_is_finished(kernel: OverlayKernel, served: DeviceFiles) -> None:
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"x"))
    fd = guest.snp.machine.vcpu_fds[0]
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.ioctl(fd, kvm.KVM_RUN)
    guest.load()
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.ioctl(fd, kvm.KVM_RUN)
    guest.snp.finish()
    vcpu = guest.vcpu()
    assert run(vcpu) == (b"x", kvm_run.HALT)
    # The state is encrypted: KVM shows and takes nothing of it.
    state = bytearray(312)
    address = kernel.memory.place(state)
    for request in (kvm.KVM_GET_REGS, kvm.KVM_SET_REGS, kvm.KVM_GET_SREGS, kvm.KVM_SET_FPU, kvm.KVM_GET_MSRS):
        with pytest.raises(OSError, match="Invalid argument"):
            kernel.ioctl(fd, request, address)
    kernel.memory.release(address)
    vcpu.close()


def test_a_finish_that_is_refused_lets_nothing_run(kernel: OverlayKernel, served: DeviceFiles) -> None:
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"x"))
    guest.load()
    with ControlClient.connect(served.devices / "control.sock") as control:
        control.fault("SNP_LAUNCH_FINISH:status=POLICY_FAILURE:times=1")
    fd = guest.snp.machine.vcpu_fds[0]
    with pytest.raises(FirmwareError, match="POLICY_FAILURE"):
        guest.snp.finish()
    with pytest.raises(OSError, match="not supported"):
        kernel.ioctl(fd, kvm.KVM_RUN)
    guest.snp.close()


def test_pages_change_sides_while_it_runs(kernel: OverlayKernel, served: DeviceFiles) -> None:
    """The guest prints the byte at 0x8000 each time it is let go on; the page is private, shared, and private again."""
    code = bytes.fromhex(
        "31c0" "8ed8"  # ax = ds = 0
        "bae900"  # mov dx, DEBUG_PORT
        "a00080" "ee"  # again: mov al, [0x8000]; out dx, al
        "c606008041"  # mov byte [0x8000], 'A'
        "f4" "ebf4"  # hlt; jmp again
    )  # fmt: skip
    guest = Guest(kernel, served, tiny_firmware(code))
    guest.launch()
    machine = guest.snp.machine
    shared = guest.snp.memory(0x8000, PAGE)
    shared[0] = ord("s")

    def convert(attributes: int) -> None:
        request = kvm.MemoryAttributes(0x8000, PAGE, attributes)
        address = kernel.memory.place(request.encode())
        kernel.ioctl(machine.vm_fd, kvm.KVM_SET_MEMORY_ATTRIBUTES, address)
        kernel.memory.release(address)

    vcpu = guest.vcpu()
    assert run(vcpu)[0] == b"\0"  # private, never added
    assert run(vcpu)[0] == b"A"
    assert shared[0] == ord("s")
    convert(0)
    assert run(vcpu)[0] == b"s"
    assert shared[0] == ord("A")  # the guest's writes are seen
    shared[0] = ord("t")
    assert run(vcpu)[0] == b"t"
    fd, offset = machine.private_pages(0x8000, PAGE)
    kernel.discard(fd, offset, PAGE)
    convert(kvm.MEMORY_ATTRIBUTE_PRIVATE)
    assert run(vcpu)[0] == b"\0"  # a hole was punched
    shared.release()
    vcpu.close()


def test_every_vcpu_starts_where_it_was_measured(kernel: OverlayKernel, served: DeviceFiles) -> None:
    """The second one starts at the address of the reset block, in a page that is zeros: `add [bx+si], al`, and on."""
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"boot"), vcpus=2)
    assert guest.launch() == guest.plan.digest()
    boot = guest.vcpu(0)
    assert run(boot) == (b"boot", kvm_run.HALT)
    boot.close()
    page = kernel.control.save_area(guest.snp.machine.vcpu_fds[1])
    # As measured: base 0, IP 0x1000.
    assert page[0x10:0x20] == bytes.fromhex("00f09b00ffff00000000000000000000")
    assert int.from_bytes(page[0x178:0x180], "little") == 0x1000
    state = bytearray(312)
    regs = bytearray(144)
    for buffer, request in ((state, kvm.KVM_GET_SREGS), (regs, kvm.KVM_GET_REGS)):
        address = kernel.linux.memory.place(buffer)
        file = kernel.file(guest.snp.machine.vcpu_fds[1])
        assert file is not None
        kernel.linux.ioctl(file.real, request, address)
        kernel.linux.memory.release(address)
    assert state[0:8] == bytes(8)  # cs.base of the real vCPU
    assert int.from_bytes(regs[128:136], "little") == 0x1000


def test_a_plain_guest_runs_beside_it(kernel: OverlayKernel) -> None:
    firmware = tiny_firmware(PRINT + HALT, b"plain")
    plain = Plain(kernel)
    plain.create(1 << 20, len(firmware), 1)
    plain.memory(FOUR_GIB - len(firmware), len(firmware))[:] = firmware
    plain.start()
    plain.finish()
    vcpu = Vcpu(kernel, plain.machine.vcpu_fds[0], plain.machine.vcpu_mmap_size())
    assert run(vcpu) == (b"plain", kvm_run.HALT)
    vcpu.close()
    plain.close()


def test_without_the_real_device_guests_are_launched_and_do_not_run(served: DeviceFiles) -> None:
    kernel = OverlayKernel(served.devices, "/nonexistent/kvm")
    try:
        guest = Guest.__new__(Guest)
        guest.kernel, guest.plan = kernel, snp_plan(tiny_firmware(PRINT + HALT), 1, vcpu_type=TYPE)
        guest.snp = Snp(kernel, sev_path=str(served.sev), kvm_path="/nonexistent/kvm")
        guest.snp.create(1 << 20, 0x2000, 1, signature(TYPE), guest.plan.ap_reset_address)
        assert guest.launch() == guest.plan.digest()
        with pytest.raises(OSError, match="not supported"):
            kernel.ioctl(guest.snp.machine.vcpu_fds[0], kvm.KVM_RUN)
    finally:
        kernel.exit()


def test_rounds_leave_nothing(kernel: OverlayKernel, served: DeviceFiles) -> None:
    def once() -> None:
        guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"x"))
        guest.launch()
        vcpu = guest.vcpu()
        assert run(vcpu)[0] == b"x"
        vcpu.close()
        guest.snp.close()

    once()
    before = len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())
    server = f"/proc/{served.process.pid}"
    there = len(os.listdir(f"{server}/fd"))
    for _ in range(10):
        once()
    after = len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())
    assert after[0] == before[0]
    assert after[1] <= before[1] + 5
    assert len(os.listdir(f"{server}/fd")) == there


def test_every_step_of_the_launch_is_the_models_also_its_errors(kernel: OverlayKernel, served: DeviceFiles) -> None:
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"x"))
    guest.load()
    with pytest.raises(Exception, match="SNP_LAUNCH_UPDATE") as refused:
        guest.snp.update(FOUR_GIB - PAGE, PAGE, kvm_sev.PAGE_NORMAL)  # it is part of the launch already
    assert getattr(refused.value, "errno", None) == errno.EIO
    guest.snp.finish()
    vcpu = guest.vcpu()
    assert run(vcpu)[0] == b"x"
    vcpu.close()
