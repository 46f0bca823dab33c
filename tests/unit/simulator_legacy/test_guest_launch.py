"""What the firmware checks of launches and migrations, and known answers: sessions, measurements, secrets, packets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
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
from sev.certs import sev_signatures
from sev.certs.sev_chain import SevChain
from sev.certs.sev_roots import SevRoots
from sev.session import Session, TransportKeys, blob, kdf, measurement, secret
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.legacy_migration import Receiver
from sevd.simulator.memory_cipher import MemoryKey
from tests.support.data import FACTS
from tests.support.legacy import Owner
from tests.support.simulated import simulated_host
from tests.support.simulated_firmware import refused

PAGE = 4096
ASID, ES_ASID = 100, 7
NODBG, NOKS, ES, NOSEND, DOMAIN, SEV = (1 << bit for bit in range(6))
AT = 0x7F00_0000_0000


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firmware]:
    with simulated_host(tmp_path_factory.mktemp("chip")) as host:
        yield host.firmware


@pytest.fixture
def firmware(chip: Firmware) -> Iterator[Firmware]:
    platform = chip._platform
    before = platform.version, platform.random, platform.legacy._identity
    yield chip
    platform.version, platform.random, platform.legacy._identity = before
    chip.shutdown()
    chip.init()
    chip.df_flush()


def pdh(firmware: Firmware) -> SevCertificate:
    return SevCertificate.read(firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE)[0])


def started(firmware: Firmware, policy: int = 0, asid: int = ASID) -> tuple[int, Session]:
    session = Session.create(policy)
    start = session.start_unverified(pdh(firmware))
    handle = firmware.launch_start(0, policy, start.certificate, start.session)
    firmware.activate(handle, asid)
    return handle, session


def updated(firmware: Firmware, handle: int, data: bytes, address: int) -> bytes:
    """LAUNCH_UPDATE_DATA of a copy; what it becomes."""
    memory = bytearray(data)
    firmware.launch_update_data(handle, memoryview(memory), address)
    return bytes(memory)


def running(firmware: Firmware, policy: int = 0, data: bytes = bytes(PAGE)) -> tuple[int, bytes]:
    """A guest that runs, and its memory at AT as the host sees it."""
    handle, _ = started(firmware, policy, ES_ASID if policy & ES else ASID)
    sealed = updated(firmware, handle, data, AT)
    firmware.launch_measure(handle, 48)
    firmware.launch_finish(handle)
    return handle, sealed


# Sessions.


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


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
    firmware.activate(first, ASID)
    firmware.activate(second, ASID + 1)
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


PACKETS: dict[str, tuple[Callable[[bytes, bytes], tuple[bytes, int, int, bytes]], int]] = {
    "unaligned address": (lambda header, data: (header, AT + 8, 32, data), status.INVALID_ADDRESS),
    "address before length": (lambda header, data: (header, AT + 8, 16, data), status.INVALID_ADDRESS),
    "short header": (lambda header, data: (header[:-1], AT, 32, data), status.INVALID_LENGTH),
    "long header": (lambda header, data: (header + b"\0", AT, 32, data), status.INVALID_LENGTH),
    "less memory than packet": (lambda header, data: (header, AT, 16, data), status.INVALID_LENGTH),
    "empty": (lambda header, data: (header, AT, 0, b""), status.INVALID_LENGTH),
    "15 bytes": (lambda header, data: (header, AT, 15, data[:15]), status.INVALID_LENGTH),
    "above 20 KiB": (lambda header, data: (header, AT, 0x5010, bytes(0x5010)), status.INVALID_LENGTH),
    "compressed": (lambda header, data: (changed(header, 0), AT, 32, data), status.UNSUPPORTED),
    "changed IV": (lambda header, data: (changed(header, 4), AT, 32, data), status.BAD_MEASUREMENT),
    "changed MAC": (lambda header, data: (changed(header, 20), AT, 32, data), status.BAD_MEASUREMENT),
    "changed data": (lambda header, data: (header, AT, 32, changed(data, 31)), status.BAD_MEASUREMENT),
    "20 KiB": (lambda header, data: (header, AT, 0x5000, bytes(0x5000)), status.BAD_MEASUREMENT),
}


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
    other, _ = started(firmware, asid=ASID + 1)
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


# Migration.


def receiver(firmware: Firmware) -> Receiver:
    own, chain = firmware.pdh_cert_export(abi.SIZE, abi.CHAIN_SIZE)
    return Receiver(own, chain[: 2 * abi.SIZE] + firmware.ca.cek_certificate(), firmware.ca.legacy_ca())


def sent(firmware: Firmware, policy: int = 0, content: bytes = bytes(PAGE)) -> tuple[int, int, bytes]:
    """(source, target, memory of the source) with both sides started, on one platform."""
    source, sealed = running(firmware, policy, content)
    own = receiver(firmware)
    told, session = firmware.send_start(source, own, 128)
    assert told == policy
    target = firmware.receive_start(0, told, own.pdh, session)
    firmware.activate(target, (ES_ASID if policy & ES else ASID) + 1)
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
    firmware.activate(handle, ASID)
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
