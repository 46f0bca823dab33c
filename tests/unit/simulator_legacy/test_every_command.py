"""Every command of legacy SEV in every state of platform and guest: the status, and that a refusal changes nothing.

One row for a command, one column for a situation. What reaches the last check is well formed, so that the status is the
state's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sev import status
from sev.abi import legacy_report
from sev.abi import sev_certificate as abi
from sev.session.secret import Packet
from sevd.simulator import versions
from sevd.simulator.firmware import Firmware
from sevd.simulator.legacy_guest import LSECRET, RUNNING, SENT, SUPDATE
from sevd.simulator.legacy_migration import Receiver
from tests.support.legacy import Owner
from tests.support.legacy_guest import AT, ES, ES_ASID, PAGE, SEV_ASID, STATES, Guest, brought, nobody, receiver
from tests.support.simulated_firmware import refused

PLATFORM_UNINIT, PLATFORM_INIT, PLATFORM_WORKING = 0, 1, 2

COLUMNS = (
    "power on", "SNP down", "UNINIT", "INIT", "nobody",
    *(f"{name}{bound}" for bound in ("", " without an ASID") for name in STATES if name != "UNINIT"),
)  # fmt: skip
"""Platform in UNINIT without SNP, before it was ever up and after; in UNINIT with it; in INIT; in WORKING: a handle that is
free, then a guest by state."""

CODES = {
    "ok": None,
    "P": status.INVALID_PLATFORM_STATE,
    "N": status.INVALID_GUEST,
    "G": status.INVALID_GUEST_STATE,
    "A": status.ACTIVE,
    "I": status.INACTIVE,
    "U": status.UNSUPPORTED,
}

#                       PO SD UN IN no   LU LS RU SU RE SE   LU LS RU SU RE SE
TABLE = """
SNP_INIT                ok ok P  P  P    P  P  P  P  P  P    P  P  P  P  P  P
SNP_SHUTDOWN            ok ok ok P  P    P  P  P  P  P  P    P  P  P  P  P  P
INIT                    P  ok ok P  P    P  P  P  P  P  P    P  P  P  P  P  P
INIT_EX                 P  ok ok P  P    P  P  P  P  P  P    P  P  P  P  P  P
SHUTDOWN                ok ok ok ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
PLATFORM_RESET          ok ok ok P  P    P  P  P  P  P  P    P  P  P  P  P  P
PLATFORM_STATUS         ok ok ok ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
PEK_GEN                 P  P  P  ok P    P  P  P  P  P  P    P  P  P  P  P  P
PEK_CSR                 P  P  P  ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
PEK_CERT_IMPORT         P  P  P  ok P    P  P  P  P  P  P    P  P  P  P  P  P
PDH_CERT_EXPORT         P  P  P  ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
PDH_GEN                 P  P  P  ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
DF_FLUSH                ok ok ok ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
DOWNLOAD_FIRMWARE       ok ok P  P  P    P  P  P  P  P  P    P  P  P  P  P  P
GET_ID                  ok ok ok ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
LAUNCH_START            P  P  P  ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
LAUNCH_START/alone      P  P  P  ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
LAUNCH_START/sharing    P  P  P  N  N    ok ok ok ok ok ok   ok ok ok ok ok ok
RECEIVE_START           P  P  P  ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
GUEST_STATUS            P  P  P  ok ok   ok ok ok ok ok ok   ok ok ok ok ok ok
ACTIVATE                P  P  P  P  N    A  A  A  A  A  A    ok ok ok ok ok ok
DEACTIVATE              P  P  P  P  N    ok ok ok ok ok ok   I  I  I  I  I  I
DECOMMISSION            P  P  P  P  N    A  A  A  A  A  A    ok ok ok ok ok ok
LAUNCH_UPDATE_DATA      P  P  P  P  N    ok G  G  G  G  G    I  G  G  G  G  G
LAUNCH_UPDATE_VMSA      P  P  P  P  N    U  G  G  G  G  G    I  G  G  G  G  G
LAUNCH_UPDATE_VMSA/es   P  P  P  P  N    ok G  G  G  G  G    I  G  G  G  G  G
LAUNCH_MEASURE          P  P  P  P  N    ok G  G  G  G  G    ok G  G  G  G  G
LAUNCH_SECRET           P  P  P  P  N    G  ok G  G  G  G    G  I  G  G  G  G
LAUNCH_FINISH           P  P  P  P  N    G  ok G  G  G  G    G  ok G  G  G  G
ATTESTATION             P  P  P  P  N    G  ok ok ok G  ok   G  ok ok ok G  ok
SEND_START              P  P  P  P  N    G  G  ok G  G  G    G  G  ok G  G  G
SEND_UPDATE_DATA        P  P  P  P  N    G  G  G  ok G  G    G  G  G  I  G  G
SEND_UPDATE_VMSA        P  P  P  P  N    G  G  G  U  G  G    G  G  G  I  G  G
SEND_UPDATE_VMSA/es     P  P  P  P  N    G  G  G  ok G  G    G  G  G  I  G  G
SEND_FINISH             P  P  P  P  N    G  G  G  ok G  G    G  G  G  ok G  G
SEND_CANCEL             P  P  P  P  N    G  G  G  ok G  G    G  G  G  ok G  G
RECEIVE_UPDATE_DATA     P  P  P  P  N    G  G  G  G  ok G    G  G  G  G  I  G
RECEIVE_UPDATE_VMSA     P  P  P  P  N    G  G  G  G  U  G    G  G  G  G  I  G
RECEIVE_UPDATE_VMSA/es  P  P  P  P  N    G  G  G  G  ok G    G  G  G  G  I  G
RECEIVE_FINISH          P  P  P  P  N    G  G  G  G  ok G    G  G  G  G  ok G
DBG_DECRYPT             P  P  P  P  N    ok ok ok ok ok ok   I  I  I  I  I  I
DBG_ENCRYPT             P  P  P  P  N    ok ok ok ok ok ok   I  I  I  I  I  I
"""
ROWS = {name: codes for name, *codes in (line.split() for line in TABLE.strip().splitlines())}


def owned(firmware: Firmware) -> tuple[bytes, bytes]:
    """The platform's PEK as somebody signed it who would own it, and that somebody's OCA."""
    owner = Owner()
    if firmware.platform_status()[2] == PLATFORM_UNINIT:
        return bytes(abi.SIZE), owner.oca
    return owner.sign(firmware.pek_csr(abi.SIZE)), owner.oca


def secret_into(firmware: Firmware, handle: int, packet: Packet) -> None:
    firmware.launch_secret(handle, packet.header, AT, 32, packet.payload)


COMMANDS: dict[str, Callable[[Guest, Firmware, int], object]] = {
    "SNP_INIT": lambda _, firmware, __: firmware.snp_init(),
    "SNP_SHUTDOWN": lambda _, firmware, __: firmware.snp_shutdown(),
    "INIT": lambda _, firmware, __: firmware.init(),
    "INIT_EX": lambda _, firmware, __: firmware.init_ex(bytearray(b"\xff" * (32 << 10))),
    "SHUTDOWN": lambda _, firmware, __: firmware.shutdown(),
    "PLATFORM_RESET": lambda _, firmware, __: firmware.factory_reset(),
    "PLATFORM_STATUS": lambda _, firmware, __: firmware.platform_status(),
    "PEK_GEN": lambda _, firmware, __: firmware.pek_gen(),
    "PEK_CSR": lambda _, firmware, __: firmware.pek_csr(abi.SIZE),
    "PEK_CERT_IMPORT": lambda _, firmware, __: firmware.pek_cert_import(*owned(firmware)),
    "PDH_CERT_EXPORT": lambda _, firmware, __: firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE),
    "PDH_GEN": lambda _, firmware, __: firmware.pdh_gen(),
    "DF_FLUSH": lambda _, firmware, __: firmware.df_flush(),
    "DOWNLOAD_FIRMWARE": lambda _, firmware, __: firmware.download_firmware(versions.image(firmware.version)),
    "GET_ID": lambda _, firmware, __: firmware.get_id(),
    "LAUNCH_START": lambda it, firmware, _: firmware.launch_start(0, 0, it.start.certificate, it.start.session),
    "LAUNCH_START/alone": lambda _, firmware, __: firmware.launch_start(0, 0, None, None),
    "LAUNCH_START/sharing": lambda _, firmware, handle: firmware.launch_start(handle, 0, None, None),
    "RECEIVE_START": lambda it, firmware, _: firmware.receive_start(0, 0, it.start.certificate, it.start.session),
    "GUEST_STATUS": lambda _, firmware, handle: firmware.guest_status(handle),
    "ACTIVATE": lambda _, firmware, handle: firmware.activate(handle, SEV_ASID + 9),
    "DEACTIVATE": lambda _, firmware, handle: firmware.deactivate(handle),
    "DECOMMISSION": lambda _, firmware, handle: firmware.decommission(handle),
    "LAUNCH_UPDATE_DATA": lambda _, firmware, handle: firmware.launch_update_data(
        handle, memoryview(bytearray(PAGE)), AT
    ),
    "LAUNCH_UPDATE_VMSA": lambda _, firmware, handle: firmware.launch_update_vmsa(handle, bytes(PAGE), AT),
    "LAUNCH_MEASURE": lambda _, firmware, handle: firmware.launch_measure(handle, 48),
    "LAUNCH_SECRET": lambda it, firmware, handle: secret_into(firmware, handle, it.packet()),
    "LAUNCH_FINISH": lambda _, firmware, handle: firmware.launch_finish(handle),
    "ATTESTATION": lambda _, firmware, handle: firmware.attestation(handle, bytes(16), legacy_report.SIZE),
    "SEND_START": lambda it, firmware, handle: firmware.send_start(handle, it.target(), 128),
    "SEND_UPDATE_DATA": lambda _, firmware, handle: firmware.send_update_data(handle, bytes(PAGE), AT, 52, PAGE),
    "SEND_UPDATE_VMSA": lambda _, firmware, handle: firmware.send_update_vmsa(handle, bytes(PAGE), AT, 52, PAGE),
    "SEND_FINISH": lambda _, firmware, handle: firmware.send_finish(handle),
    "SEND_CANCEL": lambda _, firmware, handle: firmware.send_cancel(handle),
    "RECEIVE_UPDATE_DATA": lambda it, firmware, handle: firmware.receive_update_data(
        handle, it.arriving()[0], AT, PAGE, it.arriving()[1]
    ),
    "RECEIVE_UPDATE_VMSA": lambda it, firmware, handle: firmware.receive_update_vmsa(
        handle, it.arriving()[0], AT, PAGE, it.arriving()[1]
    ),
    "RECEIVE_FINISH": lambda _, firmware, handle: firmware.receive_finish(handle),
    "DBG_DECRYPT": lambda _, firmware, handle: firmware.dbg_decrypt(handle, bytes(16), AT, 0),
    "DBG_ENCRYPT": lambda _, firmware, handle: firmware.dbg_encrypt(handle, bytes(16), 0, AT),
}

GUEST_AFTER = {
    "LAUNCH_MEASURE": LSECRET, "LAUNCH_FINISH": RUNNING, "SEND_START": SUPDATE, "SEND_FINISH": SENT,
    "SEND_CANCEL": RUNNING, "RECEIVE_FINISH": RUNNING, "DECOMMISSION": 0,
}  # fmt: skip
"""State of the guest after a command that changes it."""

PLATFORM_AFTER = {
    "INIT": PLATFORM_INIT, "INIT_EX": PLATFORM_INIT, "SHUTDOWN": PLATFORM_UNINIT, "DECOMMISSION": PLATFORM_INIT,
    "LAUNCH_START": PLATFORM_WORKING, "LAUNCH_START/alone": PLATFORM_WORKING, "RECEIVE_START": PLATFORM_WORKING,
}  # fmt: skip
"""State of the platform after a command that changes it."""


@pytest.fixture(scope="module")
def whom(chip: Firmware) -> Receiver:
    """A platform; any guest here may go anywhere."""
    return receiver(chip)


@pytest.fixture
def firmware(chip: Firmware) -> Iterator[Firmware]:
    """The chip in INIT, owned by nobody, all ASIDs clean."""
    yield chip
    chip.shutdown()
    if not chip.snp_platform_status()[2]:
        chip.snp_init()
        chip.snp_df_flush()
    chip.init()
    chip.df_flush()
    if chip.platform_status()[3]:
        chip.pek_gen()


def situation(firmware: Firmware, column: str, whom: Receiver, *, es: bool) -> Guest:
    """Brings platform and guest there."""
    name, _, unbound = column.partition(" ")
    if name in STATES and name != "UNINIT":
        guest = brought(firmware, STATES[name], ES if es else 0, ES_ASID if es else SEV_ASID, whom=whom)
        if unbound:
            firmware.deactivate(guest.handle)
        return guest
    if column == "nobody":
        return brought(firmware, STATES["UNINIT"])
    guest = nobody(firmware, whom=whom)
    if column != "INIT":
        firmware.shutdown()
    if column == "SNP down":
        firmware.df_flush()
        firmware.snp_shutdown()
    if column == "power on":
        firmware.power_cycle()
    return guest


def states(firmware: Firmware, guest: Guest) -> tuple[bytes, bytes, bytes]:
    """All that can be seen of platform and guest."""
    platform = firmware.platform_status()
    return platform, firmware.snp_platform_status(), firmware.guest_status(guest.handle) if platform[2] else b""


def test_the_table_is_whole() -> None:
    assert {name.removesuffix("/es") for name in ROWS} == set(COMMANDS)
    assert {len(codes) for codes in ROWS.values()} == {len(COLUMNS)} == {17}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", ROWS)
def test_every_command_in_every_state(firmware: Firmware, whom: Receiver, name: str, column: str) -> None:
    guest = situation(firmware, column, whom, es=name.endswith("/es"))
    command = COMMANDS[name.removesuffix("/es")]
    code = CODES[ROWS[name][COLUMNS.index(column)]]
    before = states(firmware, guest)
    if code is not None:
        with refused(code):
            command(guest, firmware, guest.handle)
        assert states(firmware, guest) == before
        return
    command(guest, firmware, guest.handle)
    platform, _, after = states(firmware, guest)
    assert platform[2] == PLATFORM_AFTER.get(name, before[0][2])
    if platform[2] and before[2]:
        began = name in ("LAUNCH_START", "LAUNCH_START/alone", "RECEIVE_START") and column in ("INIT", "nobody")
        assert began or after[12] == GUEST_AFTER.get(name, before[2][12])
