"""SEND and RECEIVE by KVM's commands: rules of the arguments, and guests that move between two simulated hosts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sev import status
from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sev.abi import sev_certificate as certificates
from sevd.simulator import Simulator
from tests.support.caller import PAGE, UNTOUCHED, Outcome
from tests.support.legacy_machine import LegacyMachine, guest_view
from tests.support.simulated import EVERY_ERA, simulated_host

UNMAPPED = 0x1000
EIO, EINVAL, EFAULT, ENOMEM = errno.EIO, errno.EINVAL, errno.EFAULT, errno.ENOMEM
NOSEND, DOMAIN, SEV = 1 << 3, 1 << 4, 1 << 5
Boot = Callable[..., Simulator]


@pytest.fixture
def boot(tmp_path: Path, era: str) -> Iterator[Boot]:
    with ExitStack() as stack:

        def started(product: str, name: str = "") -> Simulator:
            return stack.enter_context(simulated_host(tmp_path / (name or product), product, era=era))

        yield started


@pytest.fixture
def host(boot: Boot) -> Simulator:
    return boot("rome")


class Chain:
    """A host's certificates as a VMM hands them on."""

    def __init__(self, host: Simulator) -> None:
        self.pdh, chain = host.firmware.pdh_cert_export(certificates.SIZE, certificates.CHAIN_SIZE)
        self.platform = chain[: 2 * certificates.SIZE] + host.firmware.ca.cek_certificate()
        self.authorities = host.firmware.ca.legacy_ca()


def send_start(guest: LegacyMachine, chain: Chain, room: int = 128) -> tuple[Outcome, bytes]:
    session = bytearray(room)
    request = abi.SendStart(
        0, guest.place(chain.pdh), len(chain.pdh), guest.place(chain.platform), len(chain.platform),
        guest.place(chain.authorities), len(chain.authorities), guest.place(session), room,
    )  # fmt: skip
    return guest.op(ids.SEND_START, request), bytes(session)


def send(guest: LegacyMachine, first: int, size: int = PAGE) -> tuple[bytes, bytes]:
    header, packet = bytearray(52), bytearray(size)
    request = abi.SendUpdateData(guest.place(header), 52, guest.address + first, size, guest.place(packet), size)
    outcome = guest.op(ids.SEND_UPDATE_DATA, request)
    assert (outcome.name, outcome.data) == ("ok", request.encode())
    return bytes(header), bytes(packet)


def receive_start(guest: LegacyMachine, policy: int, chain: Chain, session: bytes) -> Outcome:
    request = abi.ReceiveStart(0, policy, guest.place(chain.pdh), len(chain.pdh), guest.place(session), len(session))
    return guest.op(ids.RECEIVE_START, request)


def receive(guest: LegacyMachine, header: bytes, packet: bytes, first: int) -> Outcome:
    request = abi.ReceiveUpdateData(
        guest.place(header), len(header), guest.address + first, len(packet), guest.place(packet), len(packet)
    )
    return guest.op(ids.RECEIVE_UPDATE_DATA, request)


# Moves.


@pytest.mark.parametrize("policy", [0, 1])
@pytest.mark.parametrize(("here", "there"), [("rome", "genoa"), ("genoa", "naples")])
def test_a_guest_moves_to_another_host(boot: Boot, here: str, there: str, policy: int) -> None:
    source_host, target_host = boot(here), boot(there)
    content = os.urandom(24 * PAGE)
    source = LegacyMachine(source_host.process()).running(policy, content)
    target = LegacyMachine(target_host.process())
    outcome, session = send_start(source, Chain(target_host))
    assert outcome.name == "ok"
    assert abi.SendStart.decode(outcome.data).policy == policy
    assert receive_start(target, policy, Chain(source_host), session).name == "ok"
    for first in range(0, len(content), PAGE):
        header, packet = send(source, first)
        assert receive(target, header, packet, first)[:2] == (0, 0)
    assert (source.status().state, target.status().state) == (abi.STATE_SEND_UPDATE, abi.STATE_RECEIVE_UPDATE)
    assert target.op(ids.RECEIVE_FINISH).name == source.op(ids.SEND_FINISH).name == "ok"
    assert (source.status().state, target.status()) == (6, abi.GuestStatus(1, policy, abi.STATE_RUNNING))
    assert guest_view(target_host, target, 0, len(content)) == content
    assert source.ram[: len(content)] != target.ram[: len(content)]
    assert content[:PAGE] not in target.ram
    source.process.exit()
    assert source_host.guest_count() == 0
    assert guest_view(target_host, target, 0, len(content)) == content


def test_back_and_forth(boot: Boot) -> None:
    hosts = boot("rome", "one"), boot("rome", "two")
    content = os.urandom(2 * PAGE)
    guest = LegacyMachine(hosts[0].process()).running(SEV, content)
    for number in (1, 0, 1):
        target = LegacyMachine(hosts[number].process())
        outcome, session = send_start(guest, Chain(hosts[number]))
        assert outcome.name == "ok"
        assert receive_start(target, SEV, Chain(hosts[1 - number]), session).name == "ok"
        for first in range(0, len(content), 512):
            receive(target, *send(guest, first, 512), first)
        assert target.op(ids.RECEIVE_FINISH).name == guest.op(ids.SEND_FINISH).name == "ok"
        guest.process.exit()
        guest = target
        assert guest_view(hosts[number], guest, 0, len(content)) == content


@pytest.mark.parametrize(
    ("policy", "code"),
    [(NOSEND, status.POLICY_FAILURE), (SEV, status.INVALID_CERTIFICATE), (DOMAIN, status.POLICY_FAILURE)],
)
def test_a_guest_that_may_not_go_stays_whole(boot: Boot, policy: int, code: int) -> None:
    """To a host of another line: other roots, another owner."""
    source_host, target_host = boot("rome"), boot("genoa")
    guest = LegacyMachine(source_host.process()).running(policy, bytes(range(256)) * 16)
    outcome, session = send_start(guest, Chain(target_host))
    assert outcome[:2] == (EIO, code)
    assert abi.SendStart.decode(outcome.data).session_len == 128
    assert not any(session)
    assert guest.status().state == abi.STATE_RUNNING
    assert guest.decrypted(0, PAGE) == bytes(range(256)) * 16


def test_a_tampered_packet_or_session_is_refused(boot: Boot) -> None:
    here, there = boot("rome"), boot("genoa")
    there.firmware.pdh_gen()  # hosts of one seed begin with the same
    source = LegacyMachine(here.process()).running(0, os.urandom(PAGE))
    target = LegacyMachine(there.process())
    _, session = send_start(source, Chain(there))
    for at in (0, 0x10, 0x40, 0x60):
        bad = session[:at] + bytes((session[at] ^ 1,)) + session[at + 1 :]
        assert receive_start(target, 0, Chain(here), bad)[:2] == (EIO, status.BAD_MEASUREMENT)
    assert receive_start(target, 1, Chain(here), session)[:2] == (EIO, status.BAD_MEASUREMENT)
    assert receive_start(target, 0, Chain(there), session)[:2] == (EIO, status.BAD_MEASUREMENT)
    assert there.guest_count() == 0
    assert receive_start(target, 0, Chain(here), session).name == "ok"
    header, packet = send(source, 0)
    changed = bytes((packet[0] ^ 1,)) + packet[1:]
    assert receive(target, header, changed, 0)[:2] == (EIO, status.BAD_MEASUREMENT)
    assert not any(target.ram)
    assert source.op(ids.SEND_CANCEL).name == "ok"
    assert source.status().state == abi.STATE_RUNNING
    assert not any(target.ram)


# Rules.


@EVERY_ERA
def test_the_probe_of_send_start(host: Simulator) -> None:
    guest = LegacyMachine(host.process()).running()
    outcome = guest.op(ids.SEND_START, abi.SendStart(policy=7))
    assert outcome[:2] == (EIO, status.INVALID_LENGTH)
    assert abi.SendStart.decode(outcome.data) == abi.SendStart(policy=7, session_len=128)


SEND_STARTS: dict[str, tuple[dict[str, int], int, int, int | None]] = {
    # changes, errno, error, session_len afterwards (None: nothing is written back)
    "no PDH": ({"pdh_cert_uaddr": 0}, EINVAL, UNTOUCHED, None),
    "empty PDH": ({"pdh_cert_len": 0}, EINVAL, UNTOUCHED, None),
    "no session": ({"session_uaddr": 0}, EINVAL, UNTOUCHED, None),
    "session too long": ({"session_len": 0x4001}, EINVAL, UNTOUCHED, None),
    "PDH too long": ({"pdh_cert_len": 0x4001}, EINVAL, UNTOUCHED, None),
    "PDH unmapped": ({"pdh_cert_uaddr": UNMAPPED}, EFAULT, UNTOUCHED, None),
    "no chain": ({"plat_certs_uaddr": 0}, EINVAL, UNTOUCHED, None),
    "empty chain": ({"plat_certs_len": 0}, EINVAL, UNTOUCHED, None),
    "chain unmapped": ({"plat_certs_uaddr": UNMAPPED}, EFAULT, UNTOUCHED, None),
    "no authorities": ({"amd_certs_uaddr": 0}, EINVAL, UNTOUCHED, None),
    "empty authorities": ({"amd_certs_len": 0}, EINVAL, UNTOUCHED, None),
    "session too short": ({"session_len": 127}, EIO, status.INVALID_LENGTH, 128),
    "short PDH": ({"pdh_cert_len": 2083, "session_len": 500}, EIO, status.INVALID_LENGTH, 500),
    "session cannot be written": ({"session_uaddr": UNMAPPED}, EFAULT, 0, None),
}


@EVERY_ERA
@pytest.mark.parametrize("case", SEND_STARTS)
def test_send_start(host: Simulator, case: str) -> None:
    changes, number, error, after = SEND_STARTS[case]
    guest, chain = LegacyMachine(host.process()).running(), Chain(host)
    request = abi.SendStart(
        0x77, guest.place(chain.pdh), len(chain.pdh), guest.place(chain.platform), len(chain.platform),
        guest.place(chain.authorities), len(chain.authorities), guest.place(bytearray(0x5000)), 128,
    )  # fmt: skip
    request = replace(request, **changes)
    outcome = guest.op(ids.SEND_START, request)
    assert outcome[:2] == (number, error)
    told = request if after is None else replace(request, policy=0, session_len=after)
    assert abi.SendStart.decode(outcome.data) == told


def test_a_longer_buffer_for_the_session(host: Simulator) -> None:
    guest = LegacyMachine(host.process()).running(1)
    outcome, session = send_start(guest, Chain(host), 1000)
    told = abi.SendStart.decode(outcome.data)
    assert (outcome.name, told.policy, told.session_len) == ("ok", 1, 128)
    assert session[128:] == bytes(872)


SEND_UPDATES: dict[str, tuple[dict[str, int], int, int]] = {
    "no header": ({"hdr_uaddr": 0}, EINVAL, UNTOUCHED),
    "no memory": ({"guest_uaddr": 0}, EINVAL, UNTOUCHED),
    "empty memory": ({"guest_len": 0}, EINVAL, UNTOUCHED),
    "no packet": ({"trans_uaddr": 0}, EINVAL, UNTOUCHED),
    "more than a page": ({"guest_len": PAGE + 16}, EINVAL, UNTOUCHED),
    "memory unmapped": ({"guest_uaddr": UNMAPPED}, ENOMEM, UNTOUCHED),
    "short header": ({"hdr_len": 51}, EIO, status.INVALID_LENGTH),
    "short packet": ({"trans_len": PAGE - 1}, EIO, status.INVALID_LENGTH),
    "8 bytes": ({"guest_len": 8}, EIO, status.INVALID_LENGTH),
    "packet cannot be written": ({"trans_uaddr": UNMAPPED}, EFAULT, 0),
    "header cannot be written": ({"hdr_uaddr": UNMAPPED}, EFAULT, 0),
    "longer buffers": ({"hdr_len": 100, "trans_len": 0x4800}, 0, 0),
    "more than there is in one piece": ({"trans_len": (4 << 20) + 1}, ENOMEM, UNTOUCHED),
    "a header of more": ({"hdr_len": 0xFFFFFFFF}, ENOMEM, UNTOUCHED),
}


@pytest.mark.parametrize("case", SEND_UPDATES)
def test_send_update(host: Simulator, case: str) -> None:
    """Lengths are written back by no outcome."""
    changes, number, error = SEND_UPDATES[case]
    guest = LegacyMachine(host.process()).running(0, bytes(PAGE))
    send_start(guest, Chain(host))
    there = guest.place(bytearray(0x5000))
    request = replace(abi.SendUpdateData(there, 52, guest.address, PAGE, there, PAGE), **changes)
    outcome = guest.op(ids.SEND_UPDATE_DATA, request)
    assert outcome[:2] == (number, error)
    assert outcome.data == request.encode()


@EVERY_ERA
@pytest.mark.parametrize("which", ["hdr_len", "trans_len"])
def test_the_probe_of_send_update(host: Simulator, which: str) -> None:
    guest = LegacyMachine(host.process()).running(0, bytes(PAGE))
    send_start(guest, Chain(host))
    request = replace(abi.SendUpdateData(UNMAPPED, 1, UNMAPPED, 1, UNMAPPED, 1), **{which: 0})
    outcome = guest.op(ids.SEND_UPDATE_DATA, request)
    assert outcome[:2] == (EIO, status.INVALID_LENGTH)
    assert abi.SendUpdateData.decode(outcome.data) == replace(request, hdr_len=52, trans_len=PAGE)


def test_longer_buffers_are_filled(host: Simulator) -> None:
    guest = LegacyMachine(host.process()).running(0, bytes(PAGE))
    send_start(guest, Chain(host))
    header, packet = bytearray(b"\xaa" * 60), bytearray(b"\xaa" * 32)
    request = abi.SendUpdateData(guest.place(header), 58, guest.address, 16, guest.place(packet), 24)
    assert guest.op(ids.SEND_UPDATE_DATA, request).name == "ok"
    assert header[52:] == bytes(6) + b"\xaa" * 2
    assert packet[16:] == bytes(8) + b"\xaa" * 8


def test_memory_that_crosses_a_page(host: Simulator) -> None:
    guest = LegacyMachine(host.process()).running(0, bytes(2 * PAGE))
    send_start(guest, Chain(host))
    there = guest.place(bytearray(PAGE))
    for first, size, wanted in ((PAGE - 16, 32, "EINVAL"), (PAGE - 16, 16, "ok"), (16, PAGE - 16, "ok")):
        request = abi.SendUpdateData(there, 52, guest.address + first, size, there, PAGE)
        assert guest.op(ids.SEND_UPDATE_DATA, request).name == wanted


RECEIVES: dict[str, tuple[dict[str, int], int, int]] = {
    **{f"{name} 0": ({name: 0}, EINVAL, UNTOUCHED) for name in abi.ReceiveUpdateData.fields()},
    "more than a page": ({"guest_len": PAGE + 16}, EINVAL, UNTOUCHED),
    "header too long": ({"hdr_len": 0x4001}, EINVAL, UNTOUCHED),
    "packet too long": ({"trans_len": 0x4001}, EINVAL, UNTOUCHED),
    "header unmapped": ({"hdr_uaddr": UNMAPPED, "trans_len": 0x4001}, EFAULT, UNTOUCHED),
    "packet unmapped": ({"trans_uaddr": UNMAPPED}, EFAULT, UNTOUCHED),
    "memory unmapped": ({"guest_uaddr": UNMAPPED}, ENOMEM, UNTOUCHED),
    "blobs before memory": ({"guest_uaddr": UNMAPPED, "trans_uaddr": UNMAPPED}, EFAULT, UNTOUCHED),
    "short header": ({"hdr_len": 51}, EIO, status.INVALID_LENGTH),
    "noise": ({}, EIO, status.BAD_MEASUREMENT),
}


@pytest.mark.parametrize("case", RECEIVES)
def test_receive_update(host: Simulator, case: str) -> None:
    changes, number, error = RECEIVES[case]
    source, guest = LegacyMachine(host.process()).running(), LegacyMachine(host.process())
    _, session = send_start(source, Chain(host))
    assert receive_start(guest, 0, Chain(host), session).name == "ok"
    there = guest.place(bytearray(0x5000))
    request = replace(abi.ReceiveUpdateData(there, 52, guest.address, PAGE, there, PAGE), **changes)
    assert guest.op(ids.RECEIVE_UPDATE_DATA, request)[:2] == (number, error)
    assert not any(guest.ram)


@pytest.mark.parametrize("name", ["pdh_uaddr", "pdh_len", "session_uaddr", "session_len"])
def test_receive_start_needs_all(host: Simulator, name: str) -> None:
    guest = LegacyMachine(host.process())
    there = guest.place(bytearray(PAGE))
    request = replace(abi.ReceiveStart(0, 0, there, 2084, there, 128), **{name: 0})
    assert guest.op(ids.RECEIVE_START, request)[:2] == (EINVAL, UNTOUCHED)


def test_receive_start_answers_the_handle_and_remembers_the_descriptor(host: Simulator) -> None:
    source, guest = LegacyMachine(host.process()).running(1), LegacyMachine(host.process())
    _, session = send_start(source, Chain(host))
    guest.process.open("/dev/kvm", 0)
    outcome = receive_start(guest, 1, Chain(host), session)
    assert outcome[:2] == (0, 0)
    assert abi.ReceiveStart.decode(outcome.data).handle == 2
    assert guest.status() == abi.GuestStatus(2, 1, abi.STATE_RECEIVE_UPDATE)
    assert receive_start(guest, 1, Chain(host), session)[:2] == (EIO, status.ASID_OWNED)
    guest.process.exit()
    assert host.guest_count() == 1
