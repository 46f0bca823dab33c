"""Which pages a guest shares with its host goes with it: on the real KVM, over RPC, and where the guest asks for it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from sev.abi import kvm
from sev.abi.kvm_run import HALT, Hypercall, PortWrite
from sev.client import Host
from sev.errors import SevError, UsageError
from sev.launch.platform import SevDevice
from sev.launch.sev import Sev
from sev.launch.sev_migration import Departure
from sev.launch.vcpu import Vcpu
from sev.migration import migrate
from sev.v1 import guest_pb2
from sevd.guests.sev_travel import SevTravel
from sevd.simulator.overlay import OverlayKernel, _Vm
from sevd.worker.conversions import Conversions
from tests.support import two_hosts
from tests.support.device_files import device_files
from tests.support.needs import need_kvm
from tests.support.service import Service
from tests.support.tiny_firmware import SIZE, tiny_firmware
from tests.support.two_hosts import printed, roots

PRIVATE, SHARED = 0x6000, 0x7000
PAGE = 4096
NOSEND = 0x8
MEMORY = 1 << 20
ROM = (4 << 30) - SIZE


PROGRAM = bytes.fromhex(
    "31c0" "8ed8"  # ax = ds = 0
    "bae900"  # mov dx, DEBUG_PORT
    "a00060" "ee" "fe060060"  # again: out dx, [PRIVATE]; inc byte [PRIVATE]
    "a00070" "ee" "fe060070"  # out dx, [SHARED]; inc byte [SHARED]
    "f4" "ebed"  # hlt; jmp again
)  # fmt: skip
"""Counts up in two pages, a step for each halt that is completed."""


def launched(host: Host, policy: int = 0) -> str:
    """A guest that counts from A on in a page of its own, which DBG_ENCRYPT made so, and from a on in a shared one."""
    guest = host.launch_sev(tiny_firmware(PROGRAM), memory_bytes=MEMORY, policy=policy).guest.guest_id
    host.write_guest_memory(guest, PRIVATE, b"A" + bytes(PAGE - 1))
    with host.map_memory(guest) as memory, memory.view(SHARED, 1) as byte:
        byte[:] = b"a"
    return guest


def seen(host: Host, guest: str, gpa: int) -> bytes:
    """A page as the host sees it."""
    with host.map_memory(guest) as memory, memory.view(gpa, PAGE) as page:
        return bytes(page)


def test_a_page_that_the_guest_shares_stays_plain(services: tuple[Service, Service]) -> None:
    with services[0].connect() as source, services[1].connect() as target:
        guest = launched(source)
        assert printed(source, guest, 2) == b"AaBb"
        assert seen(source, guest, SHARED)[:1] == b"c"
        assert seen(source, guest, PRIVATE)[1:] != bytes(PAGE - 1)
        assert migrate(source, target, guest, roots=roots(target)).state == "ready"
        assert seen(target, guest, SHARED) == b"c" + bytes(PAGE - 1)
        assert seen(target, guest, PRIVATE)[1:] != bytes(PAGE - 1)
        assert printed(target, guest, 1) == b"Cc"
        with target.map_memory(guest) as memory, memory.view(SHARED, 1) as byte:
            assert bytes(byte) == b"d"
            byte[:] = b"x"  # the host still speaks to the guest there
        # And on to a third place, which is the first one.
        assert migrate(target, source, guest, roots=roots(source)).state == "ready"
        assert printed(source, guest, 1) == b"Dx"
        assert seen(source, guest, SHARED)[:1] == b"y"
        source.delete_guest(guest)


def test_the_map_says_what_is_shared_and_nothing_may_lack(services: tuple[Service, Service]) -> None:
    with services[0].connect() as source, services[1].connect() as target:
        guest = launched(source)
        printed(source, guest, 1)
        theirs, own = target.export_platform(), source.export_platform()
        leaving = source.start_sending(
            guest, pdh=theirs.pdh, chain=theirs.pek + theirs.oca + theirs.signed_cek, authorities=theirs.authorities
        )
        assert leaving.shared == ((0, PRIVATE), (SHARED, MEMORY - SHARED))
        pages, following = source.send_pages(guest)
        assert not following
        by_address = {page.gpa: page for page in pages}
        assert {gpa for gpa, page in by_address.items() if page.header} == {PRIVATE, ROM, ROM + PAGE}
        assert by_address[SHARED].data[:1] == b"b"

        def received(those: list[guest_pb2.GuestPage], shared: tuple[tuple[int, int], ...]) -> str:
            made = target.create_guest(
                guest_type="sev", memory_bytes=MEMORY, firmware_bytes=SIZE, vcpu_count=1, cpuid_signature=0
            ).guest_id
            try:
                target.start_receiving(made, policy=0, pdh=own.pdh, session=leaving.session)
                target.receive_pages(made, those)
                return target.finish_receiving(made, leaving.vcpus, shared).state
            finally:
                target.delete_guest(made)

        wrong = {
            "a page lacks": ([page for page in pages if page.gpa != PRIVATE], leaving.shared),
            "a shared page is in no map": (list(pages), leaving.shared[:1]),
            "a private page is in the map": (list(pages), ((0, MEMORY),)),
            "no page": (list(pages), ((0, 100),)),
            "outside of memory": (list(pages), (*leaving.shared, (MEMORY, PAGE))),
        }
        for why, (those, shared) in wrong.items():
            with pytest.raises(UsageError, match="shared"):
                pytest.fail(f"{why}: {received(those, shared)}")
        assert received(list(pages), leaving.shared) == "ready"
        assert source.cancel_sending(guest).state == "paused"
        assert printed(source, guest, 2) == b"Bb"  # the halt that was not completed comes again first
        source.delete_guest(guest)


def test_a_refused_one_counts_on_where_it_was(services: tuple[Service, Service]) -> None:
    with services[0].connect() as source, services[1].connect() as target:
        guest = launched(source, NOSEND)
        assert printed(source, guest, 1) == b"Aa"
        with pytest.raises(SevError):
            migrate(source, target, guest, roots=roots(target))
        assert printed(source, guest, 3) == b"BbCc"
        assert target.guests() == []
        source.delete_guest(guest)


def asks(kernel: OverlayKernel, driver: Sev, gpa: int, *, private: bool) -> None:
    """What a worker does when the guest asks for KVM_HC_MAP_GPA_RANGE. (Not every machine's KVM lets a program in real
    mode do so.)"""
    asked = Hypercall(kvm.HC_MAP_GPA_RANGE, (gpa, 1, 0x10 if private else 0, 0, 0, 0))
    vm = kernel.file(driver.vm_fd)
    assert isinstance(vm, _Vm)
    vm.guest_asks(asked)
    assert Conversions(kernel, driver.machine).hypercall(asked) == 0


def counted(kernel: OverlayKernel, driver: Sev, halts: int) -> bytes:
    machine = driver.machine
    vcpu, out = Vcpu(kernel, machine.vcpu_fds[0], machine.vcpu_mmap_size()), b""
    while halts:
        found = vcpu.run()
        if isinstance(found, PortWrite):
            out += found.data
        else:
            assert found == HALT
            halts -= 1
    vcpu.close()
    return out


def test_what_the_guest_asked_for_goes_along(tmp_path: Path) -> None:
    need_kvm()
    with device_files(tmp_path / "sim", product="rome") as files, ExitStack() as stack:
        kernel = OverlayKernel(files.devices)
        stack.callback(kernel.exit)
        drivers = [stack.enter_context(Sev(kernel, sev_path=str(files.sev))) for _ in range(2)]
        here, there = drivers
        travels = [SevTravel(driver, told=True) for driver in drivers]
        for driver, travel in zip(drivers, travels, strict=True):
            driver.create(MEMORY, SIZE, 1, 0x830F10)
            driver.machine.on_conversion = travel.take
        here.memory(ROM, SIZE)[:] = tiny_firmware(PROGRAM)
        here.start(0)
        here.update(ROM, SIZE)
        travels[0].take(ROM, SIZE)
        here.measure()
        here.finish()
        for gpa in (PRIVATE, SHARED):
            asks(kernel, here, gpa, private=True)
            here.debug_write(gpa, b"A" if gpa == PRIVATE else b"a")
        assert counted(kernel, here, 1) == b"Aa"
        asks(kernel, here, SHARED, private=False)
        assert bytes(here.memory(SHARED, 1)) == b"b"
        assert counted(kernel, here, 1) == b"Bb"
        with SevDevice(kernel, path=str(files.sev)) as device:
            pdh, chain = device.pdh_export()
        leaving = travels[0].start_sending(pdh, chain, b"unused")
        assert leaving.shared == ((0, PRIVATE), (SHARED, MEMORY - SHARED))
        pages, following = travels[0].send(0, 256)
        assert not following
        travels[1].start_receiving(Departure(0, leaving.session), pdh)
        travels[1].receive(pages)
        travels[1].finish_receiving(leaving.vcpus, leaving.shared)
        travels[0].finish_sending()
        assert counted(kernel, there, 1) == b"Cc"
        assert bytes(there.memory(SHARED, 1)) == b"d"
        assert bytes(there.memory(PRIVATE + 1, 15)) != bytes(15)
        asks(kernel, there, SHARED, private=True)
        assert bytes(there.memory(SHARED + 1, 15)) != bytes(15)
        assert counted(kernel, there, 1) == b"Dd"


@pytest.mark.parametrize("mib", [4, pytest.param(64, marks=pytest.mark.long)])
def test_memory_that_is_all_the_guests_own(services: tuple[Service, Service], mib: int) -> None:
    content = os.urandom(1 << 20)
    with services[0].connect(timeout=60) as source, services[1].connect(timeout=60) as target:
        guest = two_hosts.launched(source, content * mib)
        assert migrate(source, target, guest, roots=roots(target)).state == "ready"
        for at in range(0, mib, mib // 4):
            assert target.read_guest_memory(guest, at << 20, len(content)) == content
        assert source.guests() == []
        assert source.host().sev_asids.in_use == 0
        target.delete_guest(guest)
