"""What the firmware checks of launches, and known answers: sessions, measurements, secrets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import legacy_report
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.attestation import legacy as reports
from sev.certs.sev_chain import SevChain
from sev.certs.sev_roots import SevRoots
from sev.session import Session, TransportKeys, blob, kdf, measurement, secret
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.legacy_migration import Receiver
from sevd.simulator.memory_cipher import MemoryKey
from tests.support.data import FACTS
from tests.support.legacy_guest import AT, ES, ES_ASID, NODBG, NOKS, PAGE, SEV_ASID, pdh, receiver
from tests.support.legacy_launches import PACKETS, changed, running, started, updated
from tests.support.simulated_firmware import refused

BLOBS: dict[str, tuple[Callable[[bytes, bytes], tuple[bytes, bytes]], int]] = {
    "session one byte short": (lambda dh, session: (dh, session[:-1]), status.INVALID_LENGTH),
    "session one byte long": (lambda dh, session: (dh, session + b"\0"), status.INVALID_LENGTH),
    "no session": (lambda dh, session: (dh, b""), status.INVALID_LENGTH),
    "certificate short": (lambda dh, session: (dh[:-1], session), status.INVALID_LENGTH),
    "length before certificate": (lambda dh, session: (changed(dh, 0), session[:-1]), status.INVALID_LENGTH),
    "certificate of version 0": (lambda dh, session: (changed(dh, 0), session), status.INVALID_CERTIFICATE),
    "certificate of a PEK": (lambda dh, session: (changed(dh, 8), session), status.INVALID_CERTIFICATE),
    "another algorithm": (lambda dh, session: (changed(dh, 0xC), session), status.INVALID_CERTIFICATE),
    "another curve": (lambda dh, session: (changed(dh, 0x10), session), status.INVALID_CERTIFICATE),
    "no point": (lambda dh, session: (changed(dh, 0x14), session), status.INVALID_CERTIFICATE),
    "certificate before MAC": (lambda dh, session: (changed(dh, 8), changed(session, 0)), status.INVALID_CERTIFICATE),
    "another nonce": (lambda dh, session: (dh, changed(session, 0)), status.BAD_MEASUREMENT),
    "other keys": (lambda dh, session: (dh, changed(session, 0x10)), status.BAD_MEASUREMENT),
    "another IV": (lambda dh, session: (dh, changed(session, 0x30)), status.BAD_MEASUREMENT),
    "another MAC": (lambda dh, session: (dh, changed(session, 0x40)), status.BAD_MEASUREMENT),
    "another policy MAC": (lambda dh, session: (dh, changed(session, 0x60)), status.BAD_MEASUREMENT),
}


@pytest.mark.parametrize("begin", ["launch_start", "receive_start"])
@pytest.mark.parametrize("case", BLOBS)
def test_sessions_that_are_refused(firmware: Firmware, case: str, begin: str) -> None:
    change, code = BLOBS[case]
    start = Session.create(0).start_unverified(pdh(firmware))
    with refused(code):
        getattr(firmware, begin)(0, 0, *change(start.certificate, start.session))
    assert firmware.platform_status()[8:12] == bytes(4)


def test_a_session_is_for_one_policy_and_one_pdh(firmware: Firmware) -> None:
    start = Session.create(NODBG).start_unverified(pdh(firmware))
    with refused(status.BAD_MEASUREMENT):
        firmware.launch_start(0, 0, start.certificate, start.session)
    firmware.pdh_gen()
    with refused(status.BAD_MEASUREMENT):
        firmware.launch_start(0, NODBG, start.certificate, start.session)


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (1 << 16 | 55 << 24, None),
        (1 << 16 | 56 << 24, status.POLICY_FAILURE),
        (2 << 16, status.POLICY_FAILURE),
        (255 << 24, None),  # 0.255 is below 1.55
        (1 << 6, status.POLICY_FAILURE),
        (1 << 15, status.POLICY_FAILURE),
    ],
)
def test_policies_with_a_session(firmware: Firmware, policy: int, code: int | None) -> None:
    keys, key = TransportKeys.generate(), ec.generate_private_key(ec.SECP384R1())
    shared = key.exchange(ec.ECDH(), pdh(firmware).public_key())
    session = blob.wrap(keys, shared, policy).encode()
    certificate = SevCertificate.of_key(abi.PDH, key.public_key(), (0, 0)).encode()
    if code is None:
        firmware.launch_start(0, policy, certificate, session)
    else:
        with refused(code):
            firmware.launch_start(0, policy, certificate, session)
    firmware.launch_start(0, policy, None, None)  # nobody to be sure for


def test_es_guests_need_a_platform_with_es(firmware: Firmware) -> None:
    firmware.shutdown()
    firmware.init(0)
    with refused(status.UNSUPPORTED):
        firmware.launch_start(0, ES, None, None)
    firmware.launch_start(0, 0, None, None)


def test_shared_keys(firmware: Firmware) -> None:
    first = firmware.launch_start(0, 0, None, None)
    alone = firmware.launch_start(0, NOKS, None, None)
    for handle, policy, code in (
        (77, 0, status.INVALID_GUEST),
        (first, NODBG, status.POLICY_FAILURE),
        (alone, NOKS, status.POLICY_FAILURE),
    ):
        with refused(code):
            firmware.launch_start(handle, policy, None, None)
    second = firmware.launch_start(first, 0, None, None)
    firmware.activate(first, SEV_ASID)
    firmware.activate(second, SEV_ASID + 1)
    sealed = updated(firmware, first, b"the same memory!", AT)
    assert firmware.dbg_decrypt(second, sealed, AT, 0) == b"the same memory!"


# Launch.


def test_measurement_and_secret_of_an_owner(firmware: Firmware) -> None:
    handle, session = started(firmware, NODBG)
    content = os.urandom(3 * PAGE)
    parts = [updated(firmware, handle, content[at : at + PAGE], AT + at) for at in range(0, 3 * PAGE, PAGE)]
    assert all(part != content[at : at + PAGE] for at, part in zip(range(0, 3 * PAGE, PAGE), parts, strict=True))
    expected = measurement.Launch(sha256(content).digest(), NODBG, *firmware.version)
    answer = firmware.launch_measure(handle, 64)
    measure = measurement.check(session.keys.tik, answer, expected)
    with pytest.raises(measurement.BadMeasurement):
        measurement.check(session.keys.tik, answer, replace(expected, digest=sha256(content + b"\0").digest()))
    packet = secret.seal(session.keys, b"the key to the disk", measure)
    sealed = firmware.launch_secret(handle, packet.header, AT, 32, packet.payload)
    assert b"key" not in sealed + packet.payload
    assert firmware.legacy_memory(handle).decrypt(AT, sealed).rstrip(b"\0") == b"the key to the disk"
    again = secret.seal(session.keys, b"one more", measure)
    firmware.launch_secret(handle, again.header, AT + PAGE, 16, again.payload)
    firmware.launch_finish(handle)
    assert firmware._platform.legacy.guest(handle).keys is None
    with refused(status.POLICY_FAILURE):
        firmware.dbg_decrypt(handle, sealed, AT, 0)


@pytest.mark.parametrize("case", PACKETS)
def test_secrets_that_are_refused(firmware: Firmware, case: str) -> None:
    change, code = PACKETS[case]
    handle, session = started(firmware)
    measure = firmware.launch_measure(handle, 48)[:32]
    packet = secret.seal(session.keys, bytes(range(32)), measure)
    with refused(code):
        firmware.launch_secret(handle, *change(packet.header, packet.payload))
    firmware.launch_secret(handle, packet.header, AT, 32, packet.payload)


def test_a_secret_for_another_launch_is_refused(firmware: Firmware) -> None:
    handle, session = started(firmware)
    firmware.launch_measure(handle, 48)
    packet = secret.seal(session.keys, bytes(16), bytes(32))
    with refused(status.BAD_MEASUREMENT):
        firmware.launch_secret(handle, packet.header, AT, 16, packet.payload)


@pytest.mark.parametrize(
    ("size", "address", "code"),
    [
        (0, AT, status.INVALID_LENGTH),
        (8, AT, status.INVALID_LENGTH),
        (17, AT, status.INVALID_LENGTH),
        (16, AT + 8, status.INVALID_ADDRESS),
        (15, AT + 1, status.INVALID_ADDRESS),
    ],
)
def test_memory_that_is_refused(firmware: Firmware, size: int, address: int, code: int) -> None:
    handle, _ = started(firmware)
    digest = firmware.legacy_digest(handle)
    with refused(code):
        updated(firmware, handle, bytes(size), address)
    for decrypt in (firmware.dbg_decrypt, firmware.dbg_encrypt):
        with refused(code):
            decrypt(handle, bytes(size), address, address)
    assert firmware.legacy_digest(handle) == digest


def test_vmsas(firmware: Firmware) -> None:
    handle, _ = started(firmware)
    with refused(status.UNSUPPORTED):
        firmware.launch_update_vmsa(handle, bytes(PAGE), AT)
    es, _ = started(firmware, ES, ES_ASID)
    for size in (0, 16, PAGE - 16, 2 * PAGE):
        with refused(status.INVALID_LENGTH):
            firmware.launch_update_vmsa(es, bytes(size), AT)
    page = os.urandom(PAGE)
    assert firmware.launch_update_vmsa(es, page, AT) != page
    assert firmware.legacy_digest(es) == sha256(page).digest()


def test_buffers_that_are_too_small_tell_the_length(firmware: Firmware) -> None:
    handle, _ = running(firmware)
    for function, size in (
        (lambda room: firmware.launch_measure(handle, room), 48),
        (lambda room: firmware.attestation(handle, bytes(16), room), 208),
        (lambda room: firmware.send_start(handle, Receiver(b"", b"", b""), room), 128),
    ):
        for room in (0, size - 1):
            with pytest.raises(Exception, match="INVALID_LENGTH") as caught:
                function(room)
            assert caught.value.lengths == (size,)  # type: ignore[attr-defined]
    for rooms, data, lengths in (((51, 32), 32, (52, 32)), ((52, 31), 32, (52, 32)), ((0, 0), 0, (52, PAGE))):
        with pytest.raises(Exception, match="INVALID_LENGTH") as caught:
            firmware.send_update_data(handle, bytes(data), AT, *rooms)
        assert caught.value.lengths == lengths  # type: ignore[attr-defined]


def test_attestation_is_verified_to_the_ark(firmware: Firmware) -> None:
    content = os.urandom(PAGE)
    handle, _ = running(firmware, NODBG, content)
    mnonce = os.urandom(16)
    report = legacy_report.LegacyReport.parse(firmware.attestation(handle, mnonce, 4096))
    own, chain = firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE)
    members = [SevCertificate.read(own), *abi.split(chain)[:2], SevCertificate.read(firmware.ca.cek_certificate())]
    roots = SevRoots.of(firmware.ca.legacy_ca())
    digest = sha256(content).digest()
    found = reports.verify(report, SevChain(members), roots=roots, mnonce=mnonce, measurement=digest)
    assert (found.report.launch_digest, found.report.policy.raw) == (digest, NODBG)
    with pytest.raises(reports.LegacyReportInvalid):
        reports.verify(report, SevChain(members), roots=roots, mnonce=bytes(16))


# Memory.


def test_the_same_page_looks_different_everywhere_and_to_every_guest(firmware: Firmware) -> None:
    one, _ = started(firmware)
    other, _ = started(firmware, asid=SEV_ASID + 1)
    page = bytes(PAGE)
    seen = {updated(firmware, handle, page, at) for handle in (one, other) for at in (AT, AT + PAGE, AT + 16)}
    assert len(seen) == 6
    blocks = {sealed[at : at + 16] for sealed in seen for at in range(0, PAGE, 16)}
    assert len(blocks) == 2 * 512, "one for each guest and address"
    moved = firmware.legacy_memory(one).decrypt(AT + PAGE, firmware.legacy_memory(one).encrypt(AT, page))
    assert moved != page


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 12000), st.data())
def test_any_piece_is_read_and_written_alone(first: int, blocks: int, data: st.DataObject) -> None:
    key = MemoryKey(bytes(range(32)))
    address, content = 16 * first, os.urandom(16 * blocks)
    sealed = key.encrypt(address, content)
    start = data.draw(st.integers(0, blocks - 1))
    end = data.draw(st.integers(start + 1, min(blocks, start + 300)))
    piece = slice(16 * start, 16 * end)
    assert key.decrypt(address + 16 * start, sealed[piece]) == content[piece]
    assert key.encrypt(address + 16 * start, content[piece]) == sealed[piece]
    assert key.decrypt(address, sealed) == content
    memory = bytearray(content)
    key.encrypt_in_place(address, memoryview(memory))
    assert memory == sealed


# Known answers.


def vectors() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FACTS / "sev-vectors.json").read_text())["computed"]
    return found


def hexed(document: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(document[name]) for name in names]


def drawn(*values: bytes) -> Callable[[int], bytes]:
    """Random bytes that are not."""
    left = list(values)

    def draw(size: int) -> bytes:
        value = left.pop(0)
        assert len(value) == size
        return value

    return draw


def prepared(firmware: Firmware) -> Platform:
    """The platform of the vectors: its PDH, version 1.55 build 21."""
    platform = firmware._platform
    key = ec.derive_private_key(int(vectors()["session"]["platform_pdh"]["d"], 16), ec.SECP384R1())
    platform.legacy._identity = replace(platform.legacy.identity(), pdh_key=key)
    platform.version = (1, 55, 21)
    return platform


def test_known_session_measurement_and_secret(firmware: Firmware) -> None:
    known = vectors()
    platform = prepared(firmware)
    owner = ec.derive_private_key(int(known["session"]["owner_dh"]["d"], 16), ec.SECP384R1())
    certificate = SevCertificate.of_key(abi.PDH, owner.public_key(), (0, 0)).encode()
    (session,) = hexed(known["session"], "session_blob")
    mnonce, measure = hexed(known["launch_measure"], "mnonce", "measure")
    handle = firmware.launch_start(0, 3, certificate, session)
    firmware.activate(handle, SEV_ASID)
    updated(firmware, handle, bytes(range(256)) * 16, AT)
    vars(platform)["random"] = drawn(mnonce)
    assert firmware.launch_measure(handle, 48) == measure + mnonce
    header, ciphertext, plaintext = hexed(known["launch_secret"], "header_52_bytes", "ciphertext", "plaintext")
    sealed = firmware.launch_secret(handle, header, AT, len(ciphertext), ciphertext)
    assert firmware.legacy_memory(handle).decrypt(AT, sealed) == plaintext


def test_known_packet(firmware: Firmware) -> None:
    """SEND_UPDATE of the same plaintext, keys and IV as the known secret."""
    known = vectors()["launch_secret"]
    tek, tik, iv, plaintext = hexed(known, "tek", "tik", "iv", "plaintext")
    ciphertext, tag = hexed(known, "ciphertext", "send_update_mac_same_packet")
    handle, _ = running(firmware)
    platform = firmware._platform
    vars(platform)["random"] = drawn(tek, tik, bytes(16), bytes(16), iv)
    firmware.send_start(handle, receiver(firmware), 128)
    sealed = firmware.legacy_memory(handle).encrypt(AT, plaintext)
    header, packet = firmware.send_update_data(handle, sealed, AT, 52, 64)
    assert (header, packet) == (bytes(4) + iv + tag, ciphertext)


def test_firmware_before_0_17_measures_without_its_version(firmware: Firmware) -> None:
    handle, session = started(firmware)
    firmware._platform.version = (0, 16, 5)
    answer = firmware.launch_measure(handle, 48)
    assert answer[:32] == kdf.mac(session.keys.tik, bytes(4) + sha256(b"").digest() + answer[32:])
    packet = secret.seal(session.keys, bytes(16), answer[:32], versioned=False)
    firmware.launch_secret(handle, packet.header, AT, 16, packet.payload)
