"""What is believed of a key distribution service's answers: the simulator's own service, and one that lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sev.abi import sev_certificate
from sev.abi.tcb import TcbVersion
from sev.attestation.errors import ChipIdMismatch, TcbMismatch
from sev.certs import Roots, errors, sev_chain, sev_signatures
from sev.certs.sev_roots import SevRoots
from sev.errors import MalformedInput
from sev.kds import certificates
from sev.kds.service import KdsUnavailable, NotAtKds, Service
from sevd.simulator import Simulator
from sevd.simulator.kds import KdsFault, KdsServer
from tests.support.simulated import simulated_host


class Rig:
    """A simulated chip with its service."""

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.simulator = simulator
        self.product = simulator.product
        self.server = KdsServer(simulator)
        self.server.start()
        (folder / "ca.pem").write_bytes(self.server.ca_pem)
        self.service = Service(self.server.url, ca_file=str(folder / "ca.pem"), patience=3)
        self.provider = Service(
            self.server.url, ca_file=str(folder / "ca.pem"), client_file=self.server.provider_pem, patience=3
        )
        self.roots = Roots.from_pem(simulator.roots_pem())
        ca = simulator.firmware.ca
        self.chip_id = ca.chip_id
        self.sev_roots = SevRoots.of(ca.legacy_ca())

    @property
    def tcb(self) -> TcbVersion:
        """The reported TCB."""
        return TcbVersion.from_int(self.simulator.firmware.reported_tcb, self.product)


@pytest.fixture(scope="module", params=["genoa", "turin"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("kds")
    with simulated_host(folder / "host", request.param) as simulator:
        found = Rig(simulator, folder)
        yield found
        found.server.close()


@pytest.fixture(autouse=True)
def no_faults(rig: Rig) -> Iterator[None]:
    yield
    rig.server.clear_faults()


def test_everything_that_is_there(rig: Rig) -> None:
    middle, ark = certificates.ca(rig.service, rig.product, roots=rig.roots)
    assert (middle.kind, ark.kind) == ("ask", "ark")
    vcek = certificates.vcek(rig.service, rig.product, rig.chip_id, rig.tcb, roots=rig.roots, given=[middle])
    assert vcek.der == rig.simulator.endorsements()["vcek"]
    provided = certificates.ca(rig.service, rig.product, "vlek", roots=rig.roots)
    assert [one.kind for one in provided] == ["asvk", "ark"]
    vlek = certificates.vlek(rig.provider, rig.product, rig.tcb, roots=rig.roots, given=provided)
    assert vlek.kind == "vlek"
    for key in ("vcek", "vlek"):
        assert certificates.crl(rig.service, rig.product, key, roots=rig.roots).revoked == {}
    exported = sev_certificate.split(rig.simulator.firmware.ca.cek_certificate())[0]
    assert certificates.cek(rig.service, rig.chip_id, roots=rig.sev_roots) == exported


def test_a_throttling_service_is_waited_for(rig: Rig) -> None:
    rig.server.fault(KdsFault("throttle", seconds=1, times=1))
    assert certificates.cek(rig.service, rig.chip_id, roots=rig.sev_roots).usage == sev_certificate.CEK


def test_nothing_of_amds_is_signed_by_a_simulator(rig: Rig) -> None:
    with pytest.raises(errors.NotGenuine, match="do not end in a trusted root"):
        certificates.ca(rig.service, rig.product)
    with pytest.raises(errors.LeafSignatureInvalid) as caught:
        certificates.vcek(rig.service, rig.product, rig.chip_id, rig.tcb)
    assert "--roots" in caught.value.remedy
    with pytest.raises((errors.CrlOfAnotherIssuer, errors.CrlSignatureInvalid)):
        certificates.crl(rig.service, rig.product)
    with pytest.raises(sev_signatures.NotSignedBy):
        certificates.cek(rig.service, rig.chip_id)


def test_another_chip_and_another_tcb(rig: Rig) -> None:
    other = bytes([rig.chip_id[0] ^ 1]) + rig.chip_id[1:]
    with pytest.raises(NotAtKds):
        certificates.vcek(rig.service, rig.product, other, rig.tcb, roots=rig.roots)
    with pytest.raises(NotAtKds):
        certificates.cek(rig.service, other, roots=rig.sev_roots)
    given = certificates.ca(rig.service, rig.product, roots=rig.roots)
    rig.server.fault(KdsFault("wrong", path="/vcek/v1/"))
    with pytest.raises(TcbMismatch):
        certificates.vcek(rig.service, rig.product, rig.chip_id, rig.tcb, roots=rig.roots, given=given)


def test_dates(rig: Rig) -> None:
    given = certificates.ca(rig.service, rig.product, roots=rig.roots)
    late, early = (datetime.now(UTC) + timedelta(days=years * 365) for years in (100, -100))
    for at, kind in ((late, errors.CertificateExpired), (early, errors.CertificateNotYetValid)):
        with pytest.raises(kind):
            certificates.vcek(rig.service, rig.product, rig.chip_id, rig.tcb, at=at, roots=rig.roots, given=given)
    for at, stale in ((late, errors.CrlStale), (early, errors.CrlNotYetValid)):
        with pytest.raises(stale):
            certificates.crl(rig.service, rig.product, at=at, roots=rig.roots)


def test_garbage_is_told_as_such(rig: Rig) -> None:
    rig.server.fault(KdsFault("garbage"))
    with pytest.raises(MalformedInput, match="answers something else for"):
        certificates.ca(rig.service, rig.product, roots=rig.roots)
    with pytest.raises(MalformedInput):
        certificates.crl(rig.service, rig.product, roots=rig.roots)
    with pytest.raises(MalformedInput):
        certificates.cek(rig.service, rig.chip_id, roots=rig.sev_roots)


def test_who_is_no_provider_gets_no_vlek(rig: Rig) -> None:
    with pytest.raises(KdsUnavailable, match="HTTP 403"):
        certificates.vlek(rig.service, rig.product, rig.tcb, roots=rig.roots)


def test_hash_sticks_of_chips(rig: Rig) -> None:
    stranger = bytes([rig.chip_id[0] ^ 1]) + rig.chip_id[1:]
    if rig.product.chip_id_bytes == 8:
        stranger = stranger[:8]
    found = certificates.hash_sticks(rig.provider, rig.product, rig.tcb, [rig.chip_id, stranger])
    assert found[stranger] is None
    stick = found[rig.chip_id]
    assert stick is not None
    assert (len(stick), stick[0x190:0x198]) == (432, rig.tcb.encode())
    with pytest.raises(KdsUnavailable, match="HTTP 403"):
        certificates.hash_sticks(rig.service, rig.product, rig.tcb, [rig.chip_id])
    hwid = rig.chip_id[: rig.product.chip_id_bytes].hex()

    def said(text: str) -> Liar:
        return Liar(json.dumps({"results": [{hwid: text}]}).encode())

    assert certificates.hash_sticks(said(stick.hex()), rig.product, rig.tcb, [rig.chip_id]) == {rig.chip_id: stick}
    other = stick[:0x190] + bytes(8) + stick[0x198:]
    with pytest.raises(TcbMismatch):
        certificates.hash_sticks(said(other.hex()), rig.product, rig.tcb, [rig.chip_id])
    for answer in (said("00"), said("zz"), Liar(b"[]"), Liar(b'{"results": 5}'), Liar(b'{"results": [{"a": 5}]}')):
        with pytest.raises(MalformedInput):
            certificates.hash_sticks(answer, rig.product, rig.tcb, [rig.chip_id])
    with pytest.raises(KdsUnavailable, match="answers for 0 chips"):
        certificates.hash_sticks(Liar(b'{"results": [{"00": "not found"}]}'), rig.product, rig.tcb, [rig.chip_id])


def test_the_time_is_told_when_the_answer_has_come(rig: Rig) -> None:
    given = certificates.ca(rig.service, rig.product, roots=rig.roots)
    asked: list[int] = []

    def now() -> datetime:
        asked.append(len(rig.server.requests))
        return datetime.now(UTC)

    before = len(rig.server.requests)
    certificates.vcek(rig.service, rig.product, rig.chip_id, rig.tcb, at=now, roots=rig.roots, given=given)
    assert asked == [before + 1], "a service may issue it while it is asked"


class Liar(Service):
    """A service that answers what it is given."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("https://kds.invalid")
        self.answer = answer

    def get(self, url: str, what: str, limit: int = 0, *, content: bytes | None = None) -> bytes:
        return self.answer


def test_the_right_kind_of_the_wrong_thing(rig: Rig, tmp_path: Path) -> None:
    ca = rig.simulator.firmware.ca
    with simulated_host(tmp_path / "other", "milan") as other:
        stranger = other.firmware.ca.cek_certificate()
    bare = rig.simulator.sev_certificates()["cek"]
    with pytest.raises(sev_chain.WrongCek, match="not the one that this chip exports"):
        certificates.cek(Liar(stranger), rig.chip_id, exported=bare, roots=rig.sev_roots)
    pek = sev_certificate.SevCertificate.read(bare)
    renamed = bytearray(pek.encode())
    renamed[8:12] = sev_certificate.PEK.to_bytes(4, "little")
    with pytest.raises(sev_chain.WrongCek, match="a certificate of PEK"):
        certificates.cek(Liar(bytes(renamed)), rig.chip_id, roots=rig.sev_roots)
    for answer in (ca.ark_der(), ca.ask_der() + ca.asvk_der() + ca.ark_der(), ca.asvk_der() + ca.ark_der()):
        with pytest.raises(KdsUnavailable, match="for the authorities above the VCEK"):
            certificates.ca(Liar(answer), rig.product, roots=rig.roots)
    with pytest.raises(KdsUnavailable, match="answers ask for the VCEK"):
        certificates.vcek(Liar(ca.ask_der()), rig.product, rig.chip_id, rig.tcb, roots=rig.roots)
    given = certificates.ca(rig.service, rig.product, roots=rig.roots)
    changed = bytes([rig.chip_id[0] ^ 1]) + rig.chip_id[1:]
    with pytest.raises(ChipIdMismatch):
        certificates.vcek(
            Liar(rig.simulator.endorsements()["vcek"]),
            rig.product,
            changed,
            rig.tcb,
            roots=rig.roots,
            given=given,
        )


def test_lines_without_snp_have_a_cek_alone(tmp_path: Path) -> None:
    with simulated_host(tmp_path / "host", "naples") as simulator:
        server = KdsServer(simulator)
        server.start()
        try:
            (tmp_path / "ca.pem").write_bytes(server.ca_pem)
            service = Service(server.url, ca_file=str(tmp_path / "ca.pem"))
            ca = simulator.firmware.ca
            found = certificates.cek(service, ca.chip_id, roots=SevRoots.of(ca.legacy_ca()))
            assert found.encode() == ca.cek_certificate()
        finally:
            server.close()
