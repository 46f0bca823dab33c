"""SEV and SEV-ES guests of the simulated firmware in any of their states, and what their owner knows."""

from __future__ import annotations

from dataclasses import dataclass

from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.session import Session, kdf, measurement, secret
from sev.session.launch import LaunchStart
from sevd.simulator.firmware import Firmware
from sevd.simulator.legacy_guest import LSECRET, LUPDATE, RUNNING, RUPDATE, SENT, SUPDATE, UNINIT
from sevd.simulator.legacy_migration import Receiver

PAGE = 4096
SEV_ASID, ES_ASID = 100, 7
NODBG, NOKS, ES, NOSEND, DOMAIN, SEV = (1 << bit for bit in range(6))
"""Bits of a policy."""
AT = 0x7F00_0000_0000
STATES = {
    "UNINIT": UNINIT, "LUPDATE": LUPDATE, "LSECRET": LSECRET, "RUNNING": RUNNING, "SUPDATE": SUPDATE,
    "RUPDATE": RUPDATE, "SENT": SENT,
}  # fmt: skip


def pdh(firmware: Firmware) -> SevCertificate:
    """The platform's PDH."""
    return SevCertificate.read(firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE)[0])


def receiver(firmware: Firmware) -> Receiver:
    """This platform itself, with a CEK that is signed."""
    own, chain = firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE)
    signed = chain[: 2 * abi.SIZE] + firmware.ca.cek_certificate()
    return Receiver(own, signed, firmware.ca.legacy_ca())


@dataclass
class Guest:
    """A guest of the firmware, or a handle that is free.

    Attributes:
        firmware: The firmware.
        session: What its owner knows.
        start: What its owner gave the host.
        whom: A platform that it may be sent to; None: its own.
        handle: The firmware's handle.
        measure: What LAUNCH_MEASURE answered, 32 bytes.
    """

    firmware: Firmware
    session: Session
    start: LaunchStart
    whom: Receiver | None = None
    handle: int = 1
    measure: bytes = bytes(32)

    @property
    def state(self) -> int:
        """As GUEST_STATUS tells it."""
        return self.firmware.guest_status(self.handle)[12]

    def target(self) -> Receiver:
        """The platform that it may be sent to."""
        return self.whom or receiver(self.firmware)

    def packet(self, size: int = 32) -> secret.Packet:
        """A secret for it."""
        return secret.seal(self.session.keys, bytes(range(1, size + 1)), self.measure)

    def arriving(self) -> tuple[bytes, bytes]:
        """Header and ciphertext of a page that is sent to it."""
        keys, iv = self.session.keys, bytes(16)
        sealed = kdf.ctr(keys.tek, iv, bytes(PAGE))
        tag = kdf.mac(keys.tik, secret.covered(b"\2", 0, iv, sealed))
        return bytes(4) + iv + tag, sealed


def nobody(firmware: Firmware, policy: int = 0, whom: Receiver | None = None) -> Guest:
    """A guest that does not exist, on a platform in INIT or WORKING."""
    session = Session.create(policy)
    return Guest(firmware, session, session.start_unverified(pdh(firmware)), whom)


def brought(
    firmware: Firmware, state: int, policy: int = 0, asid: int = SEV_ASID, *, whom: Receiver | None = None
) -> Guest:
    """A guest in a state, by the commands that lead there; for UNINIT a handle that is free, next to another guest."""
    guest = nobody(firmware, policy, whom)
    given = guest.start.certificate, guest.start.session
    if state == UNINIT:
        guest.handle = firmware.launch_start(0, policy, None, None) + 1  # the platform is in WORKING
        return guest
    if state == RUPDATE:
        guest.handle = firmware.receive_start(0, policy, *given)
        firmware.activate(guest.handle, asid)
        return guest
    guest.handle = firmware.launch_start(0, policy, *given)
    firmware.activate(guest.handle, asid)
    if state != LUPDATE:
        guest.measure = firmware.launch_measure(guest.handle, measurement.BLOB_SIZE)[:32]
    if state not in (LUPDATE, LSECRET):
        firmware.launch_finish(guest.handle)
    if state in (SUPDATE, SENT):
        firmware.send_start(guest.handle, guest.target(), 128)
    if state == SENT:
        firmware.send_finish(guest.handle)
    return guest
