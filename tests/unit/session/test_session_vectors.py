"""Sessions of SEV: known answers, round trips, and everything that must be refused."""

from __future__ import annotations

import contextlib
import pickle
import uuid
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.errors import MalformedInput, UsageError
from sev.session import TransportKeys, blob, kdf, measurement, secret
from sev.session.blob import BadSession, SessionBlob
from sev.session.measurement import BadMeasurement, Launch
from sev.session.secret import BadPacket, Packet

ZERO = TransportKeys(bytes(16), bytes(16))
KEYS = TransportKeys(
    bytes.fromhex("303132333435363738393a3b3c3d3e3f"), bytes.fromhex("404142434445464748494a4b4c4d4e4f")
)
SHARED = bytes.fromhex(
    "1b7f4b4eafa413f0c46f62cd165710320eccc23cb659bd3711889f855283d541a6a3a440b715ad7dae2e186257756866"
)
PAGE = bytes(range(256)) * 16
LAUNCH = Launch(sha256(PAGE).digest(), 3, 1, 55, 21)
MEASURE = bytes.fromhex("f9da12ce062b768f6f70d881ade6b964531936bb2951c5b3c83ff3cc14f3ce0d")
MNONCE = bytes.fromhex("505152535455565758595a5b5c5d5e5f")
PLAIN = bytes.fromhex("736576642d6b61742d73656372657421736576642d6b61742d73656372657421")
IV = bytes.fromhex("606162636465666768696a6b6c6d6e6f")


def test_v_s02_key_derivation() -> None:
    master = kdf.derive(bytes(16), "sev-master-secret", bytes(16))
    assert master.hex() == "ab4d269fcc62bedb4511d56c386ce706"
    assert kdf.derive(master, "sev-kek").hex() == "b6abfbfb75ea1ea74ed8750b8afdb973"
    assert kdf.derive(master, "sev-kik").hex() == "53b524bf5669a363f365c864acba8572"
    assert len(kdf.derive(master, "long", size=100)) == 100


def test_v_s01_wrapping_of_zero_keys() -> None:
    made = blob.wrap(ZERO, bytes(16), 0, nonce=bytes(16), iv=bytes(16))
    assert made.wrap_tk.hex() == "2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4"
    assert made.wrap_mac.hex() == "3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d"
    assert made.policy_mac.hex() == "aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af"


def test_a_whole_session() -> None:
    nonce = bytes.fromhex("101112131415161718191a1b1c1d1e1f")
    kek, kik = kdf.transport(SHARED, nonce)
    assert kek.hex() == "1ede6193fd19ba12d9906c7938f30308"
    assert kik.hex() == "0d63df20bd9b2930304751385edf46f6"
    made = blob.wrap(KEYS, SHARED, 3, nonce=nonce, iv=bytes.fromhex("202122232425262728292a2b2c2d2e2f"))
    assert made.wrap_tk.hex() == "748059804bf94e8dfe4b751aca4be78ba408e913ed3a24200d9eb65ea88f1430"
    assert made.wrap_mac.hex() == "70305a685c8d996ed46665b737451f17a9490921922d798eee30b1d38a3cbba6"
    assert made.policy_mac.hex() == "ae1c7d4bdf356b985a50fb920bc7207bc00668866171fc294e995aae8b782695"
    assert SessionBlob.decode(made.encode()) == made
    assert blob.unwrap(made, SHARED, 3) == KEYS


@given(st.integers(0, 127), st.integers(1, 255))
def test_any_changed_byte_of_a_blob_is_noticed(offset: int, change: int) -> None:
    data = bytearray(blob.wrap(KEYS, SHARED, 3).encode())
    data[offset] ^= change
    with pytest.raises(BadSession):
        blob.unwrap(SessionBlob.decode(bytes(data)), SHARED, 3)


def test_a_blob_is_for_one_policy_and_one_platform() -> None:
    made = blob.wrap(KEYS, SHARED, 3)
    with pytest.raises(BadSession, match="policy"):
        blob.unwrap(made, SHARED, 1)
    with pytest.raises(BadSession, match="PDH"):
        blob.unwrap(made, SHARED[::-1], 3)
    assert blob.wrap(KEYS, SHARED, 3) != made  # fresh nonce and IV


@given(st.binary(max_size=200))
def test_blobs_of_any_length(data: bytes) -> None:
    if len(data) == 128:
        assert SessionBlob.decode(data).encode() == data
    else:
        with pytest.raises(MalformedInput, match="128"):
            SessionBlob.decode(data)


def test_keys_are_shown_to_nobody() -> None:
    assert "30" not in repr(KEYS)
    assert KEYS != ZERO
    assert TransportKeys.generate() != TransportKeys.generate()
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(KEYS)
    with pytest.raises(MalformedInput, match="tik"):
        TransportKeys(bytes(16), bytes(15))


def test_v_s03_measurement() -> None:
    launch = Launch(sha256().digest(), 0, 0, 18, 15)
    found = measurement.compute(
        bytes.fromhex("66320db73158a35a255d051758e95ed4"), launch, bytes.fromhex("4fbe0bedbad6c86ae8f68971d103e554")
    )
    assert found.hex() == "6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea"
    assert measurement.compute(KEYS.tik, LAUNCH, MNONCE) == MEASURE


def test_a_measurement_is_checked() -> None:
    answer = measurement.build(KEYS.tik, LAUNCH, MNONCE)
    assert measurement.check(KEYS.tik, answer, LAUNCH) == MEASURE
    for other in (
        Launch(sha256(PAGE[:-1]).digest(), 3, 1, 55, 21),
        Launch(LAUNCH.digest, 2, 1, 55, 21),
        Launch(LAUNCH.digest, 3, 1, 54, 21),
        Launch(LAUNCH.digest, 3, 1, 55, 22),
    ):
        with pytest.raises(BadMeasurement):
            measurement.check(KEYS.tik, answer, other)
    with pytest.raises(BadMeasurement):
        measurement.check(KEYS.tek, answer, LAUNCH)
    with pytest.raises(MalformedInput, match="48"):
        measurement.check(KEYS.tik, answer[:-1], LAUNCH)


def test_firmware_before_0_17_leaves_its_version_out() -> None:
    old = [Launch(LAUNCH.digest, 3, 0, 16, build) for build in (1, 2)]
    assert len({measurement.compute(KEYS.tik, launch, MNONCE) for launch in old}) == 1
    expected = kdf.mac(KEYS.tik, (3).to_bytes(4, "little") + LAUNCH.digest + MNONCE)
    assert measurement.compute(KEYS.tik, old[0], MNONCE) == expected
    new = [Launch(LAUNCH.digest, 3, 0, 17, build) for build in (1, 2)]
    assert len({measurement.compute(KEYS.tik, launch, MNONCE) for launch in new}) == 2


def test_a_running_digest() -> None:
    running = measurement.RunningDigest()
    running.update(PAGE[:1000])
    running.update(memoryview(PAGE)[1000:])
    assert running.digest() == LAUNCH.digest


@pytest.mark.parametrize(
    "values", [(b"", 0, 1, 1, 1), (bytes(32), 1 << 32, 1, 1, 1), (bytes(32), 0, 256, 1, 1), (bytes(32), 0, 1, 1, -1)]
)
def test_launches_that_cannot_be(values: tuple[bytes, int, int, int, int]) -> None:
    with pytest.raises((MalformedInput, UsageError)):
        Launch(*values)


def test_a_secret_packet() -> None:
    packet = secret.seal(KEYS, PLAIN, MEASURE, iv=IV)
    assert packet.payload.hex() == "e07e52aa9988415ebc23c6c9d9737cb5a0e0c5bd68636467e5c37a12540aa974"
    assert packet.header[20:].hex() == "20ef371076f635ef52763e5163a986ec96e3ff4ed53aca8a4bc490c0b3fc11e6"
    assert secret.unseal(KEYS, packet, MEASURE) == PLAIN
    with pytest.raises(BadPacket):
        secret.unseal(KEYS, packet, MEASURE[::-1])
    with pytest.raises(BadPacket):
        secret.unseal(KEYS, packet, MEASURE, versioned=False)
    old = secret.seal(KEYS, PLAIN, MEASURE, versioned=False)
    assert secret.unseal(KEYS, old, bytes(32), versioned=False) == PLAIN


@given(st.integers(0, 83), st.integers(1, 255))
def test_any_changed_byte_of_a_packet_is_noticed(offset: int, change: int) -> None:
    packet = secret.seal(KEYS, PLAIN, MEASURE, iv=IV)
    data = bytearray(packet.header + packet.payload)
    data[offset] ^= change
    with pytest.raises((BadPacket, MalformedInput)):
        secret.unseal(KEYS, Packet(bytes(data[:52]), bytes(data[52:])), MEASURE)


def test_tables_of_secrets() -> None:
    entries = [(secret.DISK_PASSPHRASE, b"passphrase"), (uuid.uuid4(), b"")]
    made = secret.table(entries)
    assert len(made) % 16 == 0
    assert secret.read_table(made) == entries
    with pytest.raises(UsageError, match="twice"):
        secret.table([entries[0], entries[0]])
    with pytest.raises(UsageError, match="no secret"):
        secret.table([])


def test_v_x07_the_kernels_limit() -> None:
    for size in (16343, 16344):
        packet = secret.seal(KEYS, secret.table([(secret.DISK_PASSPHRASE, bytes(size))]), MEASURE)
        assert len(packet.payload) == 16384
    with pytest.raises(UsageError, match="16384"):
        secret.table([(secret.DISK_PASSPHRASE, bytes(16345))])
    with pytest.raises(UsageError, match="16384"):
        secret.seal(KEYS, bytes(16385), MEASURE)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_table_or_refused(tail: bytes) -> None:
    for data in (tail, secret.TABLE.bytes_le + tail):
        with contextlib.suppress(MalformedInput):
            entries = secret.read_table(data)
            assert sum(20 + len(value) for _, value in entries) + 20 <= len(data)


@pytest.mark.parametrize("data", [b"", PLAIN])
def test_measures_and_ivs_have_a_length(data: bytes) -> None:
    with pytest.raises((MalformedInput, UsageError)):
        secret.seal(KEYS, data, MEASURE[:-1])
    with pytest.raises((MalformedInput, UsageError)):
        secret.seal(KEYS, data, MEASURE, iv=b"short")
