"""Legacy commands of /dev/sev: access, order of checks, lengths, errno and copy-back, in
every kernel era: on a host that is up they all answer alike."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from sev import status
from sev.abi import sev_certificate
from sev.abi import sev_device as abi
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import UNTOUCHED, Outcome, issue
from tests.support.legacy import Owner, check_chain
from tests.support.legacy_device import (
    CHAIN_SIZE,
    INITIALISING,
    SIZE,
    UNMAPPED,
    csr,
    export,
    legacy,
    requests,
    snp_state,
)
from tests.support.legacy_machine import some_guest
from tests.support.simulated import refuse

EIO, EPERM, EFAULT, EINVAL = errno.EIO, errno.EPERM, errno.EFAULT, errno.EINVAL
PROBED = (EIO, status.INVALID_LENGTH)
Calls = Callable[[], list[str]]


@pytest.fixture(params=["A", "B", "C"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def imported(process: Process, pek: bytes, oca: bytes, **changes: int) -> bytes:
    fields = {
        "pek_cert_address": process.memory.place(pek),
        "pek_cert_len": len(pek),
        "oca_cert_address": process.memory.place(oca),
        "oca_cert_len": len(oca),
    } | changes
    return abi.PekCertImport(**fields).encode()


WRITERS = (abi.FACTORY_RESET, abi.PEK_GEN, abi.PEK_CSR, abi.PDH_GEN, abi.PEK_CERT_IMPORT)


@pytest.mark.parametrize("command", WRITERS, ids=abi.command_name)
@pytest.mark.parametrize("data", [0, UNMAPPED, bytes(24)], ids=["none", "unmapped", "zeros"])
def test_access_comes_first(process: Process, reader: int, calls: Calls, command: int, data: int | bytes) -> None:
    assert issue(process, reader, command, data)[:2] == (EPERM, UNTOUCHED)
    assert calls() == []


@pytest.mark.parametrize("mode", [os.O_WRONLY, os.O_RDWR], ids=["write", "both"])
@pytest.mark.parametrize("command", [abi.FACTORY_RESET, abi.PEK_GEN, abi.PDH_GEN], ids=abi.command_name)
def test_commands_without_data_ignore_it(process: Process, command: int, mode: int) -> None:
    assert issue(process, process.open("/dev/sev", mode), command, UNMAPPED)[:2] == (0, 0)


def test_a_host_that_is_up(host: Simulator, process: Process, reader: int) -> None:
    now = legacy(process, reader)
    assert (now.state, now.flags, now.guest_count) == (abi.STATE_INIT, abi.FLAG_CONFIG_ES, 0)
    assert snp_state(host) == abi.STATE_INIT


@pytest.mark.parametrize("command", [abi.PEK_CSR, abi.PDH_CERT_EXPORT, abi.PEK_CERT_IMPORT, abi.GET_ID2])
def test_unreadable_structures(process: Process, fd: int, calls: Calls, command: int) -> None:
    assert issue(process, fd, command, UNMAPPED)[:2] == (EFAULT, UNTOUCHED)
    assert calls() == []


@pytest.mark.parametrize(
    ("with_address", "length", "expected"),
    [
        (False, 0, PROBED),
        (True, 0, PROBED),
        (False, SIZE, PROBED),
        (False, 0xFFFFFFFF, PROBED),
        (True, 1, PROBED),
        (True, SIZE - 1, PROBED),
        (True, SIZE, (0, 0)),
        (True, 0x4000, (0, 0)),
        (True, 0x4001, (EFAULT, UNTOUCHED)),
        (True, 0xFFFFFFFF, (EFAULT, UNTOUCHED)),
    ],
    ids=["probe", "no length", "no address", "no address, long", "one", "short", "exact", "longest", "long", "huge"],
)
def test_the_request_for_a_signature(
    process: Process, fd: int, with_address: bool, length: int, expected: tuple[int, int]
) -> None:
    buffer = bytearray(b"\xee" * 0x4000)
    address = process.memory.place(buffer) if with_address else 0
    outcome = issue(process, fd, abi.PEK_CSR, abi.PekCsr(address, length).encode())
    assert outcome[:2] == expected
    back = abi.PekCsr.decode(outcome.data)
    assert back == abi.PekCsr(address, length if expected[0] == EFAULT else SIZE)
    if expected == (0, 0):
        assert sev_certificate.SevCertificate.read(bytes(buffer[:SIZE])).name == "PEK"
        assert set(buffer[SIZE:]) == {0xEE}
    else:
        assert set(buffer) == {0xEE}


def test_a_request_into_nowhere(process: Process, fd: int) -> None:
    outcome = issue(process, fd, abi.PEK_CSR, abi.PekCsr(UNMAPPED, SIZE + 5).encode())
    assert outcome[:2] == (EFAULT, 0)
    assert abi.PekCsr.decode(outcome.data).length == SIZE, "the structure was written before"


PDH_LEN, CHAIN_LEN = "pdh_cert_len", "cert_chain_len"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0, 0)),
        ({PDH_LEN: 0x4000, CHAIN_LEN: 0x4000}, (0, 0)),
        (dict.fromkeys(("pdh_cert_address", PDH_LEN, "cert_chain_address", CHAIN_LEN), 0), PROBED),
        ({"pdh_cert_address": 0}, PROBED),
        ({PDH_LEN: 0}, PROBED),
        ({"cert_chain_address": 0}, PROBED),
        ({CHAIN_LEN: 0}, PROBED),
        ({PDH_LEN: SIZE - 1}, PROBED),
        ({CHAIN_LEN: CHAIN_SIZE - 1}, PROBED),
        ({PDH_LEN: 0x4001}, (EFAULT, UNTOUCHED)),
        ({CHAIN_LEN: 0x4001}, (EFAULT, UNTOUCHED)),
        ({PDH_LEN: 0x4001, "cert_chain_address": 0}, PROBED),
    ],
    ids=[
        "exact", "longest", "probe", "no pdh", "no pdh length", "no chain", "no chain length", "short pdh",
        "short chain", "long pdh", "long chain", "a probe may be long",
    ],
)  # fmt: skip
def test_exports(process: Process, reader: int, changes: dict[str, int], expected: tuple[int, int]) -> None:
    pdh, chain = bytearray(b"\xee" * 0x4000), bytearray(b"\xee" * 0x4000)
    fields = {
        "pdh_cert_address": process.memory.place(pdh),
        PDH_LEN: SIZE,
        "cert_chain_address": process.memory.place(chain),
        CHAIN_LEN: CHAIN_SIZE,
    } | changes
    outcome = issue(process, reader, abi.PDH_CERT_EXPORT, abi.PdhCertExport(**fields).encode())
    assert outcome[:2] == expected
    back = abi.PdhCertExport.decode(outcome.data)
    assert (back.pdh_cert_address, back.cert_chain_address) == (
        fields["pdh_cert_address"],
        fields["cert_chain_address"],
    )
    if expected[0] == EFAULT:
        assert (back.pdh_cert_len, back.cert_chain_len) == (fields[PDH_LEN], fields[CHAIN_LEN])
    else:
        assert (back.pdh_cert_len, back.cert_chain_len) == (SIZE, CHAIN_SIZE)
    assert (set(pdh) == {0xEE}) == (set(chain) == {0xEE}) == (expected != (0, 0))
    if expected == (0, 0):
        assert set(pdh[SIZE:]) | set(chain[CHAIN_SIZE:]) == {0xEE}


@pytest.mark.parametrize("which", ["pdh_cert_address", "cert_chain_address"])
def test_an_export_into_nowhere(process: Process, reader: int, which: str) -> None:
    place = process.memory.place(bytearray(CHAIN_SIZE))
    fields = {"pdh_cert_address": place, PDH_LEN: SIZE, "cert_chain_address": place, CHAIN_LEN: CHAIN_SIZE}
    request = abi.PdhCertExport(**fields | {which: UNMAPPED}).encode()
    assert issue(process, reader, abi.PDH_CERT_EXPORT, request)[:2] == (EFAULT, 0)


def test_an_owner(host: Simulator, process: Process, fd: int) -> None:
    owner = Owner()
    pek = owner.sign(csr(process, fd))
    outcome = issue(process, fd, abi.PEK_CERT_IMPORT, imported(process, pek, owner.oca))
    assert outcome[:2] == (0, 0)
    assert legacy(process, fd).flags == abi.FLAG_OWNED | abi.FLAG_CONFIG_ES
    chain = check_chain(*export(process, fd), host.firmware.ca)
    assert chain[2].encode() == owner.oca
    again = issue(process, fd, abi.PEK_CERT_IMPORT, imported(process, pek, owner.oca))
    assert again[:2] == (EIO, status.ALREADY_OWNED)
    assert issue(process, fd, abi.PEK_GEN)[:2] == (0, 0)
    assert legacy(process, fd).flags == abi.FLAG_CONFIG_ES


@pytest.mark.parametrize("which", ["pek", "oca"])
@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [
        (0, None, (EINVAL, UNTOUCHED)),
        (None, 0, (EINVAL, UNTOUCHED)),
        (None, 0x4001, (EINVAL, UNTOUCHED)),
        (UNMAPPED, None, (EFAULT, UNTOUCHED)),
        (None, SIZE + 1, (EFAULT, UNTOUCHED)),
        (None, SIZE - 1, (EIO, status.INVALID_LENGTH)),
    ],
    ids=["no address", "no length", "long", "unmapped", "not all mapped", "short"],
)
def test_imports_that_are_none(
    process: Process, fd: int, which: str, address: int | None, length: int | None, expected: tuple[int, int]
) -> None:
    owner = Owner()
    pek = owner.sign(csr(process, fd))
    changes = {f"{which}_cert_address": address, f"{which}_cert_len": length}
    request = imported(process, pek, owner.oca, **{name: value for name, value in changes.items() if value is not None})
    outcome = issue(process, fd, abi.PEK_CERT_IMPORT, request)
    assert outcome[:2] == expected
    assert outcome.data == request, "nothing is written back"


def test_the_pek_is_looked_at_before_the_oca(process: Process, fd: int) -> None:
    both = imported(process, bytes(SIZE), bytes(SIZE), pek_cert_address=UNMAPPED, oca_cert_address=0)
    assert issue(process, fd, abi.PEK_CERT_IMPORT, both)[:2] == (EFAULT, UNTOUCHED)


def test_get_id_has_room_for_two_sockets(host: Simulator, process: Process, reader: int) -> None:
    outcome = issue(process, reader, abi.GET_ID, b"\xee" * 128)
    assert outcome == Outcome(0, 0, host.firmware.get_id() + b"\xee" * 64)


def test_reset(host: Simulator, process: Process, fd: int, calls: Calls) -> None:
    before = export(process, fd)
    calls()
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (0, 0)
    assert calls() == ["PLATFORM_STATUS", "SHUTDOWN", "FACTORY_RESET"]
    assert legacy(process, fd) == abi.PlatformStatus(1, 55, abi.STATE_UNINIT, 0, 49, 0)
    assert snp_state(host) == abi.STATE_INIT, "SNP stays"
    calls()
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (0, 0)
    assert calls() == ["PLATFORM_STATUS", "FACTORY_RESET"]
    assert export(process, fd) != before


def test_reset_while_guests_run(host: Simulator, process: Process, fd: int, calls: Calls) -> None:
    guests = host.firmware._platform.legacy.guests
    guests[1] = some_guest()
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (errno.EBUSY, 0)
    assert calls() == ["PLATFORM_STATUS"]
    assert legacy(process, fd).guest_count == 1
    assert issue(process, fd, abi.PEK_GEN)[:2] == (EIO, status.INVALID_PLATFORM_STATE)
    assert issue(process, fd, abi.PDH_GEN)[:2] == (0, 0)
    export(process, fd)
    guests.clear()
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (0, 0)


@pytest.mark.parametrize("command", ["PLATFORM_STATUS", "SHUTDOWN", "FACTORY_RESET"])
def test_a_reset_that_fails(host: Simulator, process: Process, fd: int, command: str) -> None:
    refuse(host, command)
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (EIO, status.HWERROR_UNSAFE)
    host.faults = lambda _: None
    assert legacy(process, fd).state == (abi.STATE_UNINIT if command == "FACTORY_RESET" else abi.STATE_INIT)


@pytest.mark.parametrize("number", INITIALISING, ids=abi.command_name)
@pytest.mark.parametrize("code", [status.HWERROR_PLATFORM, 0xFFFF, 0x1_0017])
def test_any_status_comes_through(host: Simulator, process: Process, fd: int, number: int, code: int) -> None:
    refuse(host, abi.command_name(number), code=code)
    request = requests(process)[number]
    outcome = issue(process, fd, number, request)
    assert outcome[:2] == (EIO, code & 0xFFFF)
    assert outcome.data == request, "lengths that the firmware left alone"


@pytest.mark.parametrize("number", INITIALISING, ids=abi.command_name)
def test_a_processor_that_hangs(host: Simulator, process: Process, fd: int, number: int) -> None:
    def hang(_: str) -> None:
        raise TimeoutError

    host.faults = hang
    request = requests(process)[number]
    assert issue(process, fd, number, request)[:2] == (errno.ETIMEDOUT, 0)
    host.faults = lambda _: None
    assert issue(process, fd, number, request)[:2] == (errno.EBUSY, UNTOUCHED)
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (errno.EBUSY, UNTOUCHED)
