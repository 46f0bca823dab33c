"""SEV guests that go from one daemon to another: whole, or not at all."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from sev import status
from sev.client import Host
from sev.errors import FirmwareError, NotFound, NotNow, NotOffered, SevError, VerificationError, WrongState
from sev.measurement.sample import sample_firmware
from sev.migration import migrate
from sev.v1 import guest_pb2
from tests.support.cli import sev
from tests.support.daemon import Daemon
from tests.support.service import Service
from tests.support.tiny_firmware import tiny_firmware
from tests.support.two_hosts import Between, printed, roots

MEMORY = 4 << 20
FIRMWARE = sample_firmware(64 << 10)
GPA = (4 << 30) - len(FIRMWARE)
SHARED = 0x300000
"""What lies here was never encrypted."""
CONTENT = b"".join(bytes([page & 0xFF]) * 4096 for page in range(64))
NOSEND = 0x8


def launched(host: Host, policy: int = 0, vcpus: int = 2) -> str:
    guest = host.create_guest(
        guest_type="sev",
        memory_bytes=MEMORY,
        firmware_bytes=len(FIRMWARE),
        vcpu_count=vcpus,
        cpuid_signature=0x830F10,
        ap_reset_address=0x80B004 if vcpus > 1 else 0,
        label="wanders",
    ).guest_id
    host.load_memory(guest, [(GPA, FIRMWARE), (0x100000, CONTENT), (SHARED, b"for all to see")])
    host.start_launch(guest, policy=policy)
    host.update_launch(guest, [(GPA, len(FIRMWARE), 1), (0x100000, len(CONTENT), 1)])
    host.measure_guest(guest)
    assert host.finish_launch(guest).state == "ready"
    return guest


def whole(host: Host, guest: str, policy: int = 0) -> None:
    """The guest is all there, and can go on."""
    assert host.guest(guest).state in ("ready", "paused")
    if not policy & 1:
        assert host.read_guest_memory(guest, 0x100000, len(CONTENT)) == CONTENT
        assert host.read_guest_memory(guest, GPA, len(FIRMWARE)) == FIRMWARE


def test_a_guest_goes(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    guest = launched(source)
    steps: list[int] = []
    there = migrate(source, target, guest, roots=roots(target), progress=lambda _, done, total: steps.append(done))
    assert (there.guest_id, there.state, there.label, there.vcpu_count) == (guest, "ready", "wanders", 2)
    whole(target, guest)
    assert steps[-1] == (MEMORY + len(FIRMWARE)) // 4096
    with pytest.raises(NotFound):
        source.guest(guest)
    assert source.host().sev_asids.in_use == 0
    assert source.sev_status().guest_count == 0
    again = migrate(target, source, guest, roots=roots(source))
    assert again.state == "ready"
    whole(source, guest)


class Meddling(Between):
    """A target as the client sees it, with somebody in between who changes pages."""

    def __init__(self, host: Host, change: Callable[[guest_pb2.GuestPage], guest_pb2.GuestPage]) -> None:
        super().__init__(host)
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def hand_on(self, call: Any) -> Generator[Any, Any, Any]:
        if call.method == "GuestService/ReceiveGuestPages":
            message: Any = call.request
            pages = [self._change(page) for page in message.pages]
            del message.pages[:]
            message.pages.extend(pages)
        return (yield call)


def flipped(page: guest_pb2.GuestPage) -> guest_pb2.GuestPage:
    out = guest_pb2.GuestPage()
    out.CopyFrom(page)
    if page.header and page.gpa == 0x100000 + 40 * 4096:
        out.data = page.data[:-1] + bytes([page.data[-1] ^ 1])
    return out


def test_a_packet_that_was_changed(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    guest = launched(source)
    other: Any = Meddling(target, flipped)
    with pytest.raises(FirmwareError) as refused:
        migrate(source, other, guest, roots=roots(target))
    assert refused.value.firmware_status == status.BAD_MEASUREMENT
    whole(source, guest)
    assert target.guests() == []
    assert migrate(source, target, guest, roots=roots(target)).state == "ready"
    whole(target, guest)


def test_a_chain_that_is_not_trusted(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    guest = launched(source)
    for wrong in (None, roots(source)):
        with pytest.raises(VerificationError):
            migrate(source, target, guest, roots=wrong)
    assert source.guest(guest).state == "ready"
    # A host that sends to whomever: its firmware looks for itself where the policy asks for SEV platforms.
    strict = launched(source, 0x20)
    theirs, own = target.export_platform(), source.export_platform()
    with pytest.raises(FirmwareError):
        source.start_sending(
            strict, pdh=theirs.pdh, chain=own.pek + own.oca + own.signed_cek, authorities=theirs.authorities
        )
    whole(source, strict, 0x20)


def test_a_policy_that_keeps_it(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    guest = launched(source, NOSEND)
    with pytest.raises(FirmwareError) as refused:
        migrate(source, target, guest, roots=roots(target))
    assert refused.value.firmware_status == status.POLICY_FAILURE
    whole(source, guest)
    assert target.guests() == []


def test_a_target_that_has_no_room_for_it(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    guest = launched(source)
    target.create_guest(
        guest_id=guest, guest_type="sev", memory_bytes=4096, firmware_bytes=0, vcpu_count=1, cpuid_signature=1
    )
    with pytest.raises(SevError, match="already"):
        migrate(source, target, guest, roots=roots(target))
    whole(source, guest)
    assert target.guest(guest).state == "created"  # whose it is, it stays


def test_steps_out_of_order(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    guest = launched(source)
    theirs = target.export_platform()
    chain: dict[str, Any] = {
        "pdh": theirs.pdh,
        "chain": theirs.pek + theirs.oca + theirs.signed_cek,
        "authorities": theirs.authorities,
    }
    early: list[Callable[[], object]] = [
        lambda: source.send_pages(guest),
        lambda: source.cancel_sending(guest),
        lambda: source.finish_sending(guest, confirm=True),
        lambda: source.receive_pages(guest, []),
        lambda: source.finish_receiving(guest, [b"", b""]),
    ]
    for step in early:
        with pytest.raises(WrongState):
            step()
    with pytest.raises(SevError) as refused:
        source.start_sending(guest, **{**chain, "pdh": b"short"})
    assert refused.value.exit_code == 9
    checked = source.start_sending(guest, **chain, validate_only=True)
    assert (checked.session, checked.guest.state) == (b"", "ready")
    assert source.start_sending(guest, **chain).guest.state == "sending"
    late: list[Callable[[], object]] = [
        lambda: source.start_sending(guest, **chain),
        lambda: source.read_guest_memory(guest, 0, 16),
    ]
    for step in late:
        with pytest.raises(WrongState):
            step()
    assert source.cancel_sending(guest).state == "paused"
    whole(source, guest)
    half = target.create_guest(guest_type="sev", memory_bytes=MEMORY, firmware_bytes=0, vcpu_count=1, cpuid_signature=1)
    leaving = source.start_sending(guest, **chain)
    own = source.export_platform().pdh
    target.start_receiving(half.guest_id, policy=0, pdh=own, session=leaving.session)
    page = guest_pb2.GuestPage(gpa=0x1000, data=bytes(4096))
    for wrong in (
        guest_pb2.GuestPage(gpa=0x1008, data=bytes(4096)),
        guest_pb2.GuestPage(gpa=0x1000, data=bytes(4095)),
        guest_pb2.GuestPage(gpa=0x1000, data=bytes(4096), header=bytes(51)),
        guest_pb2.GuestPage(gpa=MEMORY, data=bytes(4096)),
    ):
        with pytest.raises(SevError) as refused:
            target.receive_pages(half.guest_id, [wrong])
        assert refused.value.exit_code == 2
    target.receive_pages(half.guest_id, [page])
    with pytest.raises(SevError) as refused:
        target.finish_receiving(half.guest_id, [b"no state of a vCPU"])
    assert refused.value.exit_code == 9
    assert target.guest(half.guest_id).state == "failed"
    snp = launched_es(source)
    with pytest.raises(NotOffered):
        source.start_sending(snp, **chain)


def launched_es(host: Host) -> str:
    return host.launch_sev_es(FIRMWARE).guest.guest_id


COUNTER = bytes.fromhex(
    "31c0" "8ed8"  # ax = ds = 0
    "bae900"  # mov dx, DEBUG_PORT
    "b330"  # mov bl, '0'
    "88d8" "ee"  # again: mov al, bl; out dx, al
    "fec3" "fe060060"  # inc bl; inc byte [0x6000]
    "a00060" "ee"  # mov al, [0x6000]; out dx, al
    "f4" "ebf0"  # hlt; jmp again
)  # fmt: skip
"""Prints a register and a byte of memory, counts both up, and halts, again and again."""


@pytest.mark.parametrize("memory", [1 << 20, 64 << 20])
def test_on_the_real_kvm_it_counts_on(services: tuple[Service, Service], memory: int) -> None:
    with services[0].connect() as source, services[1].connect() as target:
        guest = source.launch_sev(tiny_firmware(COUNTER), memory_bytes=memory, policy=0).guest.guest_id
        with source.map_memory(guest) as shared, shared.view(0x6000, 1) as byte:
            byte[:] = b"a"
        assert printed(source, guest, 3) == b"0b1c2d"
        with source.run_guest(guest), pytest.raises((NotNow, WrongState)):
            migrate(source, target, guest, roots=roots(target))
        assert migrate(source, target, guest, roots=roots(target)).state == "ready"
        with pytest.raises(NotFound):
            source.guest(guest)
        rest = printed(target, guest, 2)
        assert rest in (b"3e4f", b"4f5g"), rest
        with target.map_memory(guest) as shared, shared.view(0x6000, 1) as byte:
            assert bytes(byte) == rest[-1:]
        target.delete_guest(guest)


def test_a_daemon_that_dies_meanwhile(services: tuple[Service, Service]) -> None:
    with services[0].connect() as source, services[1].connect() as target:
        guest = source.launch_sev(tiny_firmware(COUNTER), memory_bytes=1 << 20, policy=0).guest.guest_id
        theirs = target.export_platform()
        source.start_sending(
            guest, pdh=theirs.pdh, chain=theirs.pek + theirs.oca + theirs.signed_cek, authorities=theirs.authorities
        )
    services[0].kill(signal.SIGKILL)
    services[0].start()
    with services[0].connect() as source:
        assert source.guest(guest).state == "sending"
        assert source.cancel_sending(guest).state == "paused"
        assert printed(source, guest, 1)[:1] == b"0"
        source.delete_guest(guest)


def test_by_command(daemons_two: tuple[Daemon, Daemon], hosts: tuple[Host, Host], tmp_path: Path) -> None:
    source, target = hosts
    guest = launched(source)
    (tmp_path / "roots").write_bytes(target.export_platform().authorities)
    here, there = (daemon.socket for daemon in daemons_two)
    words = ("--socket", here, "guest", "migrate", guest, "--to", there)
    refused = sev(*words)
    assert refused.code == 3, refused.err
    assert source.guest(guest).state == "ready"
    done = sev(*words, "--roots", tmp_path / "roots", "--json")
    assert done.code == 0, done.err
    assert done.json() == {"guest_id": guest, "type": "sev", "state": "ready", "target": there}
    assert sev(*words, "--roots", tmp_path / "roots").code == 10
