"""Commands of SEV and SEV-ES guests in the firmware: every one in every state of platform and guest, and activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from sev import status
from sev.abi import legacy_report
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.session import Session, measurement, secret
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_legacy import GUESTS_MAX
from sevd.simulator.legacy_guest import LSECRET, LUPDATE, RUNNING, RUPDATE, SENT, SUPDATE, UNINIT
from sevd.simulator.legacy_migration import Receiver
from tests.support.legacy_machine import some_guest
from tests.support.simulated import simulated_host
from tests.support.simulated_firmware import refused

PAGE = 4096
SEV_ASID, ES_ASID = 100, 7
ES = 4
STATES = {
    "UNINIT": UNINIT, "LUPDATE": LUPDATE, "LSECRET": LSECRET, "RUNNING": RUNNING, "SUPDATE": SUPDATE,
    "RUPDATE": RUPDATE, "SENT": SENT,
}  # fmt: skip
AT = 0x7F00_0000_0000
NOBODY = 1000


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firmware]:
    with simulated_host(tmp_path_factory.mktemp("chip")) as host:
        yield host.firmware


@pytest.fixture
def firmware(chip: Firmware) -> Iterator[Firmware]:
    """The chip without guests, in INIT, all ASIDs clean."""
    chip.shutdown()
    chip.init()
    chip.df_flush()
    yield chip
    chip.shutdown()
    chip.init()
    chip.df_flush()


def pdh(firmware: Firmware) -> SevCertificate:
    return SevCertificate.read(firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE)[0])


def receiver(firmware: Firmware) -> Receiver:
    """This platform itself, with a CEK that is signed."""
    own, chain = firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE)
    signed = chain[: 2 * abi.SIZE] + firmware.ca.cek_certificate()
    return Receiver(own, signed, firmware.ca.legacy_ca())


class Guest(NamedTuple):
    """A guest of the firmware, and what its owner knows."""

    firmware: Firmware
    handle: int
    session: Session
    measure: bytes

    def packet(self, size: int = 32) -> secret.Packet:
        """A secret for it."""
        return secret.seal(self.session.keys, bytes(range(1, size + 1)), self.measure)


def brought(firmware: Firmware, state: int, policy: int = 0, asid: int = SEV_ASID) -> Guest:
    """A guest in a state, by the commands that lead there; for UNINIT a handle that is free."""
    session = Session.create(policy)
    start = session.start_unverified(pdh(firmware))
    measure = bytes(32)
    if state == UNINIT:
        other = firmware.launch_start(0, policy, None, None)  # so that the platform is in WORKING
        return Guest(firmware, other + 1, session, measure)
    if state == RUPDATE:
        handle = firmware.receive_start(0, policy, start.certificate, start.session)
        firmware.activate(handle, asid)
        return Guest(firmware, handle, session, measure)
    handle = firmware.launch_start(0, policy, start.certificate, start.session)
    firmware.activate(handle, asid)
    if state != LUPDATE:
        measure = firmware.launch_measure(handle, measurement.BLOB_SIZE)[:32]
    if state not in (LUPDATE, LSECRET):
        firmware.launch_finish(handle)
    if state in (SUPDATE, SENT):
        firmware.send_start(handle, receiver(firmware), 128)
    if state == SENT:
        firmware.send_finish(handle)
    return Guest(firmware, handle, session, measure)


def secret_into(guest: Guest) -> None:
    packet = guest.packet()
    guest.firmware.launch_secret(guest.handle, packet.header, AT, 32, packet.payload)


def receive_into(guest: Guest) -> None:
    """A packet that was made for it."""
    from sev.session import kdf

    keys, iv = guest.session.keys, bytes(16)
    sealed = kdf.ctr(keys.tek, iv, bytes(PAGE))
    tag = kdf.mac(keys.tik, secret.covered(b"\2", 0, iv, sealed))
    guest.firmware.receive_update_data(guest.handle, bytes(4) + iv + tag, AT, PAGE, sealed)


class Rule(NamedTuple):
    """What a command does, in which states of a guest it goes through, and whether it needs an ASID."""

    run: Callable[[Guest], object]
    states: tuple[int, ...]
    active: bool = False


ANY = (LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT)

TABLE: dict[str, Rule] = {
    "DEACTIVATE": Rule(lambda it: it.firmware.deactivate(it.handle), ANY, active=True),
    "LAUNCH_UPDATE_DATA": Rule(
        lambda it: it.firmware.launch_update_data(it.handle, memoryview(bytearray(32)), AT), (LUPDATE,), active=True
    ),
    "LAUNCH_UPDATE_VMSA": Rule(
        lambda it: it.firmware.launch_update_vmsa(it.handle, bytes(PAGE), AT), (LUPDATE,), active=True
    ),
    "LAUNCH_MEASURE": Rule(lambda it: it.firmware.launch_measure(it.handle, 48), (LUPDATE,)),
    "LAUNCH_SECRET": Rule(secret_into, (LSECRET,), active=True),
    "LAUNCH_FINISH": Rule(lambda it: it.firmware.launch_finish(it.handle), (LSECRET,)),
    "ATTESTATION": Rule(
        lambda it: it.firmware.attestation(it.handle, bytes(16), legacy_report.SIZE), (LSECRET, RUNNING, SUPDATE, SENT)
    ),
    "SEND_START": Rule(lambda it: it.firmware.send_start(it.handle, receiver(it.firmware), 128), (RUNNING,)),
    "SEND_UPDATE_DATA": Rule(
        lambda it: it.firmware.send_update_data(it.handle, bytes(PAGE), AT, 52, PAGE), (SUPDATE,), active=True
    ),
    "SEND_UPDATE_VMSA": Rule(
        lambda it: it.firmware.send_update_vmsa(it.handle, bytes(PAGE), AT, 52, PAGE), (SUPDATE,), active=True
    ),
    "SEND_FINISH": Rule(lambda it: it.firmware.send_finish(it.handle), (SUPDATE,)),
    "SEND_CANCEL": Rule(lambda it: it.firmware.send_cancel(it.handle), (SUPDATE,)),
    "RECEIVE_UPDATE_DATA": Rule(receive_into, (RUPDATE,), active=True),
    "RECEIVE_FINISH": Rule(lambda it: it.firmware.receive_finish(it.handle), (RUPDATE,)),
    "DBG_DECRYPT": Rule(lambda it: it.firmware.dbg_decrypt(it.handle, bytes(16), AT, 0), ANY, active=True),
    "DBG_ENCRYPT": Rule(lambda it: it.firmware.dbg_encrypt(it.handle, bytes(16), 0, AT), ANY, active=True),
}
FOR_ES = ("LAUNCH_UPDATE_VMSA", "SEND_UPDATE_VMSA")
AFTER = {
    "LAUNCH_MEASURE": LSECRET, "LAUNCH_FINISH": RUNNING, "SEND_START": SUPDATE, "SEND_FINISH": SENT,
    "SEND_CANCEL": RUNNING, "RECEIVE_FINISH": RUNNING,
}  # fmt: skip


def state_of(guest: Guest) -> int:
    return guest.firmware.guest_status(guest.handle)[12]


def made(firmware: Firmware, name: str, state: int) -> Guest:
    return brought(firmware, state, ES, ES_ASID) if name in FOR_ES else brought(firmware, state)


@pytest.mark.parametrize("where", STATES)
@pytest.mark.parametrize("name", TABLE)
def test_every_command_in_every_state_of_a_guest(firmware: Firmware, name: str, where: str) -> None:
    rule, state = TABLE[name], STATES[where]
    guest = made(firmware, name, state)
    before = firmware.guest_status(guest.handle)
    if state in rule.states:
        rule.run(guest)
        assert state_of(guest) == AFTER.get(name, state)
        return
    with refused(status.INVALID_GUEST if state == UNINIT else status.INVALID_GUEST_STATE):
        rule.run(guest)
    assert firmware.guest_status(guest.handle) == before


@pytest.mark.parametrize(("name", "state"), [(name, state) for name, rule in TABLE.items() for state in rule.states])
def test_every_command_without_an_asid(firmware: Firmware, name: str, state: int) -> None:
    guest = made(firmware, name, state)
    firmware.deactivate(guest.handle)
    if not TABLE[name].active:
        TABLE[name].run(guest)
        return
    with refused(status.INACTIVE):
        TABLE[name].run(guest)
    assert state_of(guest) == state


@pytest.mark.parametrize("name", [*TABLE, "ACTIVATE", "DECOMMISSION"])
def test_no_command_before_there_is_a_guest(firmware: Firmware, name: str) -> None:
    """In INIT and UNINIT: the platform's state is looked at first."""
    guest = Guest(firmware, NOBODY, Session.create(0), bytes(32))
    other: dict[str, Callable[[], object]] = {
        "ACTIVATE": lambda: firmware.activate(NOBODY, SEV_ASID),
        "DECOMMISSION": lambda: firmware.decommission(NOBODY),
    }
    whom = receiver(firmware)
    run = other[name] if name in other else lambda: TABLE[name].run(guest)
    with refused(status.INVALID_PLATFORM_STATE):
        run()
    firmware.shutdown()
    with refused(status.INVALID_PLATFORM_STATE):
        if name == "SEND_START":
            firmware.send_start(NOBODY, whom, 128)
        else:
            run()


def test_the_commands_that_begin(firmware: Firmware) -> None:
    start = Session.create(0).start_unverified(pdh(firmware))
    begins: tuple[Callable[[], int], ...] = (
        lambda: firmware.launch_start(0, 0, start.certificate, start.session),
        lambda: firmware.receive_start(0, 0, start.certificate, start.session),
        lambda: firmware.launch_start(0, 0, None, None),
    )
    assert [begin() for begin in begins] == [1, 2, 3]
    assert [firmware.guest_status(handle)[12] for handle in (1, 2, 3, 4)] == [LUPDATE, RUPDATE, LUPDATE, UNINIT]
    assert firmware.platform_status()[2] == 2
    firmware.shutdown()
    for begin in begins:
        with refused(status.INVALID_PLATFORM_STATE):
            begin()
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.guest_status(1)


def test_status_of_handles(firmware: Firmware) -> None:
    handle = firmware.launch_start(0, 0x23, None, None)
    firmware.activate(handle, SEV_ASID + 5)
    assert firmware.guest_status(handle) == bytes.fromhex("01000000 23000000 69000000 01")
    assert firmware.guest_status(7) == bytes.fromhex("07000000 00000000 00000000 00")
    for outside in (0, GUESTS_MAX + 1, 0xFFFFFFFF):
        with refused(status.INVALID_GUEST):
            firmware.guest_status(outside)


@pytest.mark.parametrize("state", [name for name in STATES if name != "UNINIT"])
def test_decommission_in_every_state(firmware: Firmware, state: str) -> None:
    guest = brought(firmware, STATES[state])
    with refused(status.ACTIVE):
        firmware.decommission(guest.handle)
    firmware.deactivate(guest.handle)
    firmware.decommission(guest.handle)
    assert firmware.platform_status()[2] == 1, "the last one: the platform is in INIT again"
    assert firmware.guest_status(guest.handle)[12] == UNINIT


@pytest.mark.parametrize(
    ("policy", "asid", "code"),
    [
        (0, 0, status.INVALID_ASID),
        (0, 1, status.INVALID_ASID),
        (0, 99, status.INVALID_ASID),
        (0, 100, None),
        (0, 1006, None),
        (0, 1007, status.INVALID_ASID),
        (ES, 0, status.INVALID_ASID),
        (ES, 1, None),
        (ES, 99, None),
        (ES, 100, status.INVALID_ASID),
    ],
)
def test_which_asids_are_whose(firmware: Firmware, policy: int, asid: int, code: int | None) -> None:
    handle = firmware.launch_start(0, policy, None, None)
    if code is None:
        firmware.activate(handle, asid)
        assert int.from_bytes(firmware.guest_status(handle)[8:12], "little") == asid
    else:
        with refused(code):
            firmware.activate(handle, asid)


def test_an_asid_has_one_guest(firmware: Firmware) -> None:
    first, second = (firmware.launch_start(0, 0, None, None) for _ in range(2))
    firmware.activate(first, SEV_ASID)
    with refused(status.ASID_OWNED):
        firmware.activate(second, SEV_ASID)
    for asid in (SEV_ASID, SEV_ASID + 1):
        with refused(status.ACTIVE):
            firmware.activate(first, asid)
    firmware.activate(second, SEV_ASID + 1)
    with refused(status.ASID_OWNED):
        firmware.activate(first, SEV_ASID + 1)
    for handle in (first, second):
        firmware.deactivate(handle)
        with refused(status.INACTIVE):
            firmware.deactivate(handle)


def test_an_asid_is_shared_with_no_snp_guest(firmware: Firmware) -> None:
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, 0x30000, bytes(16))
    firmware.snp_activate(gctx, ES_ASID)
    handle = firmware.launch_start(0, ES, None, None)
    with refused(status.ASID_OWNED):
        firmware.activate(handle, ES_ASID)
    firmware.snp_decommission(gctx)
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.activate(handle, ES_ASID)
    firmware.df_flush()
    firmware.activate(handle, ES_ASID)


@pytest.mark.parametrize("state", ["LUPDATE", "LSECRET", "RUPDATE", "RUNNING", "SENT"])
def test_only_a_guest_that_ran_leaves_its_asid_dirty(firmware: Firmware, state: str) -> None:
    guest = brought(firmware, STATES[state])
    firmware.deactivate(guest.handle)
    other = firmware.launch_start(0, 0, None, None)
    if state in ("RUNNING", "SENT"):
        with refused(status.DF_FLUSH_REQUIRED):
            firmware.activate(other, SEV_ASID)
        with refused(status.WBINVD_REQUIRED):
            firmware.df_flush(wbinvd=False)
        firmware.df_flush()
    firmware.activate(other, SEV_ASID)


def test_after_init_every_asid_is_dirty(firmware: Firmware) -> None:
    firmware.shutdown()
    firmware.init()
    handle = firmware.launch_start(0, 0, None, None)
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.activate(handle, SEV_ASID)
    firmware.df_flush()
    firmware.activate(handle, SEV_ASID)


def test_shutdown_deletes_guests_and_frees_their_asids(firmware: Firmware) -> None:
    brought(firmware, RUNNING)
    firmware.shutdown()
    firmware.init()
    firmware.df_flush()
    assert firmware.platform_status()[8:12] == bytes(4)
    assert state_of(brought(firmware, RUNNING)) == RUNNING


def test_as_many_guests_as_there_are_handles(firmware: Firmware) -> None:
    legacy = firmware._platform.legacy
    for _ in range(GUESTS_MAX):
        legacy.admit(some_guest())
    with refused(status.RESOURCE_LIMIT):
        firmware.launch_start(0, 0, None, None)
    with refused(status.RESOURCE_LIMIT):  # before SEV-ES is looked at
        legacy.es = False
        firmware.launch_start(0, ES, None, None)
