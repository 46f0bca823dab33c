"""What the firmware checks of guests that are sent and received: policy, chain, packets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sev import status
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_signatures
from sevd.simulator.firmware import Firmware
from sevd.simulator.legacy_migration import Receiver
from tests.support.legacy import Owner
from tests.support.legacy_guest import AT, DOMAIN, ES, ES_ASID, NODBG, NOSEND, PAGE, SEV, SEV_ASID, receiver
from tests.support.legacy_launches import PACKETS, changed, running
from tests.support.simulated_firmware import refused


def sent(firmware: Firmware, policy: int = 0, content: bytes = bytes(PAGE)) -> tuple[int, int, bytes]:
    """(source, target, memory of the source) with both sides started, on one platform."""
    source, sealed = running(firmware, policy, content)
    own = receiver(firmware)
    told, session = firmware.send_start(source, own, 128)
    assert told == policy
    target = firmware.receive_start(0, told, own.pdh, session)
    firmware.activate(target, (ES_ASID if policy & ES else SEV_ASID) + 1)
    return source, target, sealed


@pytest.mark.parametrize("policy", [0, NODBG, SEV, DOMAIN | SEV, ES])
def test_a_guest_moves(firmware: Firmware, policy: int) -> None:
    content = os.urandom(PAGE)
    source, target, sealed = sent(firmware, policy, content)
    there = AT + 7 * PAGE
    header, packet = firmware.send_update_data(source, sealed, AT, 52, PAGE)
    assert len(header) == 52
    assert packet != content
    arrived = firmware.receive_update_data(target, header, there, PAGE, packet)
    assert firmware.legacy_memory(target).decrypt(there, arrived) == content
    if policy & ES:
        vmsa = firmware.legacy_memory(source).encrypt(AT, content)
        moved = firmware.send_update_vmsa(source, vmsa, AT, 52, PAGE)
        arrived = firmware.receive_update_vmsa(target, moved[0], there, PAGE, moved[1])
        assert firmware.legacy_memory(target).decrypt(there, arrived) == content
    firmware.send_finish(source)
    firmware.receive_finish(target)
    assert [firmware.guest_status(handle)[12] for handle in (source, target)] == [6, 3]


PACKETS_SENT = {name: case for name, case in PACKETS.items() if "20 KiB" not in name}


@pytest.mark.parametrize("case", PACKETS_SENT)
def test_packets_that_are_refused(firmware: Firmware, case: str) -> None:
    change, code = PACKETS_SENT[case]
    source, target, _ = sent(firmware)
    header, packet = firmware.send_update_data(source, bytes(32), AT, 52, 32)
    with refused(code):
        firmware.receive_update_data(target, *change(header, packet))
    firmware.receive_update_data(target, header, AT, 32, packet)
    assert firmware.guest_status(source)[12] == 4
    firmware.send_cancel(source)
    assert firmware.guest_status(source)[12] == 3


def other_owner(own: Receiver) -> Receiver:
    owner = Owner()
    pek = abi.split(own.chain)[0]
    signed = sev_signatures.sign(pek, owner.key, abi.OCA, slot=1)
    return Receiver(own.pdh, signed.encode() + owner.oca + own.chain[2 * abi.SIZE :], own.authorities)


def strangers(own: Receiver) -> Receiver:
    """A PDH that this PEK did not sign."""
    key = ec.generate_private_key(ec.SECP384R1())
    pdh = SevCertificate.of_key(abi.PDH, key.public_key(), (1, 55))
    return Receiver(sev_signatures.sign(pdh, key, abi.PEK, slot=1).encode(), own.chain, own.authorities)


def unsigned(own: Receiver) -> Receiver:
    free = abi.Signature()
    pdh = SevCertificate.read(own.pdh).signed(1, free).signed(2, free).encode()
    return Receiver(pdh, own.chain, own.authorities)


def exported_cek(own: Receiver) -> Receiver:
    """The CEK as firmware exports it, unsigned."""
    cek = SevCertificate.read(own.chain[2 * abi.SIZE :]).signed(1, abi.Signature()).encode()
    return Receiver(own.pdh, own.chain[: 2 * abi.SIZE] + cek, own.authorities)


RECEIVERS: dict[str, tuple[int, Callable[[Receiver], Receiver], int | None]] = {
    # policy, what is wrong, status
    "NOSEND": (NOSEND, lambda own: own, status.POLICY_FAILURE),
    "no PDH": (0, lambda own: Receiver(own.chain[: abi.SIZE], own.chain, b""), status.INVALID_CERTIFICATE),
    "short PDH": (0, lambda own: Receiver(own.pdh[:-1], own.chain, b""), status.INVALID_LENGTH),
    "short chain": (0, lambda own: Receiver(own.pdh, own.chain[:-1], b""), status.INVALID_LENGTH),
    "anybody": (0, strangers, None),
    "a PDH of a stranger": (SEV, strangers, status.BAD_SIGNATURE),
    "an unsigned PDH": (SEV, unsigned, status.INVALID_CERTIFICATE),
    "an unsigned CEK": (SEV, exported_cek, status.INVALID_CERTIFICATE),
    "no authorities": (SEV, lambda own: Receiver(own.pdh, own.chain, b""), status.INVALID_CERTIFICATE),
    "noise for authorities": (SEV, lambda own: Receiver(own.pdh, own.chain, bytes(3200)), status.INVALID_CERTIFICATE),
    "a changed ASK": (
        SEV, lambda own: Receiver(own.pdh, own.chain, changed(own.authorities, 1599)), status.BAD_SIGNATURE,
    ),
    "the ASK alone": (
        SEV, lambda own: Receiver(own.pdh, own.chain, own.authorities[:1600]), status.INVALID_CERTIFICATE,
    ),
    "a changed PEK": (
        SEV, lambda own: Receiver(own.pdh, changed(own.chain, 0x420), own.authorities), status.BAD_SIGNATURE,
    ),
    "OCA in the PEK's place": (
        SEV, lambda own: Receiver(own.pdh, own.chain[abi.SIZE : 2 * abi.SIZE] + own.chain[abi.SIZE :], own.authorities),
        status.INVALID_CERTIFICATE,
    ),
    "another owner": (DOMAIN, other_owner, status.POLICY_FAILURE),
    "another owner of a real platform": (DOMAIN | SEV, other_owner, status.POLICY_FAILURE),
    "another owner, who cares": (SEV, other_owner, None),
}  # fmt: skip


@pytest.mark.parametrize("case", RECEIVERS)
def test_where_a_guest_may_go(firmware: Firmware, case: str) -> None:
    policy, change, code = RECEIVERS[case]
    handle, _ = running(firmware, policy)
    whom = change(receiver(firmware))
    if code is None:
        firmware.send_start(handle, whom, 128)
        return
    with refused(code):
        firmware.send_start(handle, whom, 128)
    assert firmware.guest_status(handle)[12] == 3


def test_a_receiver_of_too_old_firmware(firmware: Firmware) -> None:
    """The PEK's API version is below the policy's; firmware here is new enough."""
    handle, _ = running(firmware, SEV | 1 << 16 | 55 << 24)
    own = receiver(firmware)
    pek, oca, cek = abi.split(own.chain)
    owner = Owner()
    old = replace(pek, api_minor=54).signed(1, abi.Signature()).signed(2, abi.Signature())
    old = sev_signatures.sign(old, owner.key, abi.OCA, slot=1)
    old = sev_signatures.sign(old, firmware._platform.chip.cek(), abi.CEK, slot=2)
    with refused(status.POLICY_FAILURE):
        firmware.send_start(handle, Receiver(own.pdh, old.encode() + owner.oca + cek.encode(), own.authorities), 128)
    assert oca.usage == abi.OCA
