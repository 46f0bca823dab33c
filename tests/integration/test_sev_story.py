"""The story of SEV over RPC, between three parties that meet nowhere else: who owns the platform, who owns the guest, and
who launches it.

What passes between them are bytes: the exported chain, certificate and launch blob, the measurement, the packet. On a
host of device files the guest itself says what it was given; in the daemon's own simulator the owner allows debugging.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import sev
from sev import status
from sev.abi import sev_certificate
from sev.abi.kvm_run import HALT, PortWrite
from sev.abi.legacy_report import LegacyReport
from sev.abi.sev_certificate import SevCertificate
from sev.attestation import legacy
from sev.certs import sev_chain, sev_signatures
from sev.certs.sev_roots import SevRoots
from sev.client import Host
from sev.errors import FirmwareError, NotNow, SevError, WrongState
from sev.guest_model import LaunchedGuest
from sev.measurement.legacy import LegacyPlan, sev_es_plan, sev_plan
from sev.session import LaunchStart, Session, measurement, secret
from sev.session.measurement import BadMeasurement
from tests.integration.test_workers_survive import Service
from tests.support import real_mode as rm
from tests.support.daemon import Daemon, running
from tests.support.device_files import DeviceFiles, device_files
from tests.support.needs import need_kvm
from tests.support.tiny_firmware import DEBUG_PORT, tiny_firmware

TYPES = ("sev", "sev-es")
POLICIES = {"sev": 0x1, "sev-es": 0x5}
NO_DEBUG = 0x1
SECRET = b"the key of the disk, and nobody else's business"
SECRET_AT = 0x6000
DATA = 40
"""Where the data of a table's first entry begins."""

FIRMWARE = tiny_firmware(
    bytes.fromhex("31c08ed8") + rm.outs(DEBUG_PORT, SECRET_AT + DATA, len(SECRET)) + bytes.fromhex("f4ebfd")
)
"""Prints what lies at SECRET_AT, which is nowhere in the image, and halts."""


@dataclass
class PlatformOwner:
    """Owns the host; its key never goes there."""

    certificate: bytes
    key: bytes

    @classmethod
    def create(cls) -> PlatformOwner:
        key = ec.generate_private_key(ec.SECP384R1())
        bare = SevCertificate.of_key(sev_certificate.OCA, key.public_key(), (0, 0))
        secret_key = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        return cls(sev_signatures.sign(bare, key, sev_certificate.OCA).encode(), secret_key)

    def own(self, target: str) -> None:
        with sev.connect(target) as host:
            assert host.own_platform(self.certificate, self.key, confirm=True).owner == "external"


class UntrustedOwner(Exception):
    """The platform's owner is not whom the guest's owner trusts."""


@dataclass
class GuestOwner:
    """Trusts a root and one platform owner, knows its firmware image and its secret, and never talks to the host."""

    roots: SevRoots
    trusted: bytes
    plan: LegacyPlan
    session: Session

    def invite(self, exported: bytes) -> LaunchStart:
        """Verifies a platform's chain and makes the session for it."""
        chain = sev_chain.SevChain.parse(exported)
        verified = sev_chain.verify(chain, roots=self.roots)
        if chain.oca.encode() != self.trusted:
            raise UntrustedOwner
        return self.session.start(verified)

    def answer(self, blob: bytes, version: tuple[int, int, int]) -> secret.Packet:
        """A secret, if the measurement is that of the expected guest; else nothing leaves."""
        expected = measurement.Launch(self.plan.digest(), self.session.policy.raw, *version)
        measure = measurement.check(self.session.keys.tik, blob, expected)
        return secret.seal(self.session.keys, secret.table([(secret.DISK_PASSPHRASE, SECRET)]), measure)


def guest_owner(kind: str, oca: PlatformOwner, authorities: bytes, policy: int) -> GuestOwner:
    plan = sev_plan(FIRMWARE) if kind == "sev" else sev_es_plan(FIRMWARE, 1, vcpu_type="EPYC-v4")
    return GuestOwner(SevRoots.of(authorities), oca.certificate, plan, Session.create(policy))


def version(host: Host) -> tuple[int, int, int]:
    major, minor, build = (int(part) for part in host.sev_status().firmware.split("."))
    return major, minor, build


def launch(host: Host, kind: str, start: LaunchStart, firmware: bytes = FIRMWARE) -> LaunchedGuest:
    """What the VMM does with what the guest owner gave it."""
    describe = host.launch_sev if kind == "sev" else host.launch_sev_es
    return describe(firmware, session=start, memory_bytes=4 << 20, hold=True)


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()


def memory_holds(pid: int, what: bytes) -> bool:
    """Whether the writable memory of a process holds these bytes."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found is None:
                continue
            start, end = (int(number, 16) for number in found.groups())
            for at in range(start, end, 16 << 20):
                with contextlib.suppress(OSError):
                    memory.seek(at)
                    if what in memory.read(min(16 << 20, end - at) + len(what)):
                        return True
    return False


@pytest.fixture(scope="module")
def own_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a Rome host of its own making."""
    folder = tmp_path_factory.mktemp("own")
    with running(folder, "--simulate=rome") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def platform_owner() -> PlatformOwner:
    return PlatformOwner.create()


def exported(host: Host, platform_owner: PlatformOwner, target: str) -> tuple[bytes, bytes]:
    """The chain that the host hands out, owned by now, and the roots of whoever made its chip."""
    if host.sev_status().owner == "self":
        platform_owner.own(target)
    chain = host.export_platform()
    return chain.pdh + chain.pek + chain.oca + chain.signed_cek, chain.authorities


@pytest.mark.parametrize("kind", TYPES)
def test_in_the_daemons_own_simulator(own_host: Daemon, platform_owner: PlatformOwner, kind: str) -> None:
    with own_host.connect() as host:
        chain, authorities = exported(host, platform_owner, own_host.socket)
        theirs = guest_owner(kind, platform_owner, authorities, POLICIES[kind] & ~NO_DEBUG)
        launched = launch(host, kind, theirs.invite(chain))
        guest = launched.guest.guest_id
        packet = theirs.answer(launched.guest.measurement, version(host))
        host.inject_secret(guest, packet, gpa=SECRET_AT)
        assert host.finish_launch(guest).state == "ready"
        seen = host.read_guest_memory(guest, SECRET_AT, len(packet.payload))
        assert secret.read_table(seen) == [(secret.DISK_PASSPHRASE, SECRET)]
        # Nobody finds it by reading the rest of the guest's memory, or the host's files.
        whole = host.read_guest_memory(guest, 0, SECRET_AT) + host.read_guest_memory(guest, SECRET_AT + 4096, 4096)
        assert SECRET not in whole
        report = LegacyReport.parse(host.attestation_report(guest, b"n" * 16))
        proven = legacy.verify(report, sev_chain.SevChain.parse(chain), roots=theirs.roots, mnonce=b"n" * 16)
        assert proven.report.launch_digest == theirs.plan.digest()
        host.delete_guest(guest)
    # Reading it for the owner is all that the daemon did with it; nothing was written down.
    assert [str(path) for path, data in files(own_host.folder) if SECRET in data or SECRET.hex().encode() in data] == []
    trail = (own_host.folder / "state" / "audit.jsonl").read_text()
    assert trail.count("GuestService/ReadGuestMemory") >= 3


@pytest.mark.parametrize("kind", TYPES)
def test_one_changed_byte_is_refused_before_the_secret_leaves(
    own_host: Daemon, platform_owner: PlatformOwner, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_host.connect() as host:
        chain, authorities = exported(host, platform_owner, own_host.socket)
        theirs = guest_owner(kind, platform_owner, authorities, POLICIES[kind])
        start = theirs.invite(chain)
        changed = bytearray(FIRMWARE)
        changed[1234] ^= 1
        launched = launch(host, kind, start, bytes(changed))
        assert launched.as_expected  # the host did what the host was asked to do

        def leaves(*args: object, **kwargs: object) -> None:
            raise AssertionError("the secret left its owner")

        with monkeypatch.context() as patch:
            patch.setattr(secret, "seal", leaves)
            with pytest.raises(BadMeasurement) as refused:
                theirs.answer(launched.guest.measurement, version(host))
            assert refused.value.exit_code == 3
            # Nor does a host that claims the right digest but has another measurement, policy or version.
            good = measurement.build(
                os.urandom(16), measurement.Launch(theirs.plan.digest(), start.policy, 0, 24, 20), bytes(16)
            )
            for blob, of in ((good, version(host)), (launched.guest.measurement, (9, 9, 9))):
                with pytest.raises(BadMeasurement):
                    theirs.answer(blob, of)
        host.delete_guest(launched.guest.guest_id)


def test_a_packet_for_one_launch_is_no_good_for_the_next(own_host: Daemon, platform_owner: PlatformOwner) -> None:
    with own_host.connect() as host:
        chain, authorities = exported(host, platform_owner, own_host.socket)
        theirs = guest_owner("sev", platform_owner, authorities, 1)
        start = theirs.invite(chain)
        first, second = launch(host, "sev", start), launch(host, "sev", start)
        packet = theirs.answer(first.guest.measurement, version(host))
        flipped = secret.Packet(packet.header, packet.payload[:-1] + bytes([packet.payload[-1] ^ 1]))
        for guest, wrong in ((second, packet), (first, flipped)):
            with pytest.raises(FirmwareError) as refused:
                host.inject_secret(guest.guest.guest_id, wrong, gpa=SECRET_AT)
            assert refused.value.firmware_status == status.BAD_MEASUREMENT
        host.inject_secret(first.guest.guest_id, packet, gpa=SECRET_AT)
        for one in (first, second):
            host.delete_guest(one.guest.guest_id)


def test_a_session_does_not_outlive_the_platforms_keys(own_host: Daemon, platform_owner: PlatformOwner) -> None:
    with own_host.connect() as host:
        chain, authorities = exported(host, platform_owner, own_host.socket)
        theirs = guest_owner("sev", platform_owner, authorities, 1)
        start = theirs.invite(chain)
        launched = launch(host, "sev", start)
        # Whoever is in the middle of a launch keeps the platform's owner from taking the keys away; a new PDH is fine.
        with pytest.raises(NotNow) as refused:
            host.disown_platform(confirm=True)
        assert launched.guest.guest_id in refused.value.metadata["occupants"]
        host.pdh_generate()
        with pytest.raises(FirmwareError) as old:
            launch(host, "sev", start)
        assert old.value.firmware_status == status.BAD_MEASUREMENT
        assert [guest.guest_id for guest in host.guests()] == [launched.guest.guest_id]  # the failed one was deleted
        packet = theirs.answer(launched.guest.measurement, version(host))
        host.inject_secret(launched.guest.guest_id, packet, gpa=SECRET_AT)
        host.delete_guest(launched.guest.guest_id)


def test_an_owner_whom_the_guest_owner_does_not_trust(own_host: Daemon, platform_owner: PlatformOwner) -> None:
    with own_host.connect() as host:
        chain, authorities = exported(host, platform_owner, own_host.socket)
        wary = guest_owner("sev", PlatformOwner.create(), authorities, 1)
        with pytest.raises(UntrustedOwner):
            wary.invite(chain)
        cut = bytearray(chain)
        cut[2084 + 100] ^= 1
        with pytest.raises(SevError) as refused:
            guest_owner("sev", platform_owner, authorities, 1).invite(bytes(cut))
        assert refused.value.exit_code == 3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    need_kvm()
    with device_files(tmp_path_factory.mktemp("sim"), product="rome") as it:
        yield it


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, served: DeviceFiles) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("sevd")
    made = Service(folder, "--simulator", str(served.devices))
    made.start()
    try:
        yield made
    finally:
        made.end()


def printed(host: Host, guest: str) -> bytes:
    """What a guest prints before it halts."""
    out = b""
    with host.run_guest(guest, posted_writes=64) as run:
        for found in run:
            if found.what == HALT:
                break
            assert isinstance(found.what, PortWrite), found
            out += found.what.data
            run.complete(found)
    return out


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("number", [0, signal.SIGKILL], ids=["", "the daemon is killed"])
def test_on_files_the_guest_alone_has_it(
    service: Service, served: DeviceFiles, platform_owner: PlatformOwner, kind: str, number: int
) -> None:
    with service.connect() as host:
        chain, authorities = exported(host, platform_owner, service.socket)
        theirs = guest_owner(kind, platform_owner, authorities, POLICIES[kind])
        launched = launch(host, kind, theirs.invite(chain))
        assert launched.as_expected
    if number:
        service.kill(number)
        service.start()
    with service.connect() as host:
        guest = host.guest(launched.guest.guest_id)
        assert guest == launched.guest  # measured, with its measurement, also for a daemon that was not there
        packet = theirs.answer(guest.measurement, version(host))
        host.inject_secret(guest.guest_id, packet, gpa=SECRET_AT)
        with pytest.raises(FirmwareError, match="POLICY_FAILURE"):
            host.read_guest_memory(guest.guest_id, SECRET_AT, 16)
        host.finish_launch(guest.guest_id)
        assert printed(host, guest.guest_id) == SECRET
        with host.map_memory(guest.guest_id) as memory, memory.view(0, 4 << 20) as seen:
            assert SECRET not in bytes(seen)
        with pytest.raises(WrongState):
            host.inject_secret(guest.guest_id, packet, gpa=SECRET_AT)
        host.delete_guest(guest.guest_id)
    assert [str(path) for path, data in files(service.folder) if SECRET in data] == []
    assert SECRET.decode() not in served.log()


def test_the_daemon_never_holds_it(service: Service, platform_owner: PlatformOwner) -> None:
    unheard = b"never printed: " + os.urandom(16).hex().encode()
    with service.connect() as host:
        chain, authorities = exported(host, platform_owner, service.socket)
        theirs = guest_owner("sev-es", platform_owner, authorities, 5)
        launched = launch(host, "sev-es", theirs.invite(chain))
        expected = measurement.Launch(theirs.plan.digest(), 5, *version(host))
        measure = measurement.check(theirs.session.keys.tik, launched.guest.measurement, expected)
        packet = secret.seal(theirs.session.keys, secret.table([(secret.DISK_PASSPHRASE, unheard)]), measure)
        host.inject_secret(launched.guest.guest_id, packet, gpa=SECRET_AT)
        host.finish_launch(launched.guest.guest_id)
        assert service.process is not None
        assert memory_holds(service.process.pid, launched.guest.guest_id.encode())  # the search finds what is there
        assert not memory_holds(service.process.pid, unheard)
        host.delete_guest(launched.guest.guest_id)


def test_a_launch_goes_on_where_the_daemon_left_it(service: Service) -> None:
    plan = sev_plan(FIRMWARE, kernel=None)
    with service.connect() as host:
        guest = host.create_guest(
            guest_type="sev", guest_id="half-way-sev", memory_bytes=1 << 20, firmware_bytes=8192, vcpu_count=1,
            cpuid_signature=0x830F10,
        )  # fmt: skip
        host.load_memory(guest.guest_id, [(plan.firmware_gpa, FIRMWARE)])
        host.start_launch(guest.guest_id, policy=0)
        host.update_launch(guest.guest_id, [(plan.firmware_gpa, 4096 + 16, 1)])
    service.kill()
    service.start()
    with service.connect() as host:
        found = host.guest(guest.guest_id)
        assert (found.state, found.type, found.updated_pages) == ("launching", "sev", 2)
        with pytest.raises(SevError, match="part of the launch already"):
            host.update_launch(guest.guest_id, [(plan.firmware_gpa + 4096, 16, 1)])
        host.update_launch(guest.guest_id, [(plan.firmware_gpa + 4096 + 16, 4096 - 16, 1)])
        assert host.measure_guest(guest.guest_id).launch_digest == plan.digest()
        with pytest.raises(WrongState):
            host.load_memory(guest.guest_id, [(0, b"late")])
        assert host.read_guest_memory(guest.guest_id, plan.firmware_gpa, 8192) == FIRMWARE
        host.write_guest_memory(guest.guest_id, 0x1234, b"w" * 100_000)
        assert host.read_guest_memory(guest.guest_id, 0x1233, 100_002)[1:-1] == b"w" * 100_000
        host.delete_guest(guest.guest_id)
