"""The 208-byte report of SEV and SEV-ES guests, as a platform's PEK signs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import amd_certificate, legacy_report
from sev.abi import sev_certificate as abi
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.legacy_report import LegacyReport
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_signatures
from sev.errors import MalformedInput
from tests.support.cli import sev

NONCE, DIGEST = bytes(range(16)), hashlib.sha256(b"guest").digest()


class Platform:
    """A platform of the test's own, with a root of its own."""

    def __init__(self, folder: Path) -> None:
        ark = rsa.generate_private_key(65537, 2048)
        numbers = ark.public_key().public_numbers()
        root = AmdCertificate(bytes(16), bytes(16), amd_certificate.ARK, numbers.e, numbers.n, 2048)
        ask = AmdCertificate(bytes(15) + b"\1", bytes(16), amd_certificate.ASK, numbers.e, numbers.n, 2048)
        keys = {usage: ec.generate_private_key(ec.SECP384R1()) for usage in (abi.OCA, abi.PEK, abi.PDH, abi.CEK)}
        made = {usage: SevCertificate.of_key(usage, key.public_key(), (1, 55)) for usage, key in keys.items()}
        made[abi.OCA] = sev_signatures.sign(made[abi.OCA], keys[abi.OCA], abi.OCA)
        made[abi.PEK] = sev_signatures.sign(made[abi.PEK], keys[abi.OCA], abi.OCA)
        made[abi.PEK] = sev_signatures.sign(made[abi.PEK], keys[abi.CEK], abi.CEK)
        made[abi.PDH] = sev_signatures.sign(made[abi.PDH], keys[abi.PEK], abi.PEK)
        made[abi.CEK] = sev_signatures.sign(made[abi.CEK], ark, abi.ASK)
        self.pek = keys[abi.PEK]
        self.chain = folder / "chain.bin"
        self.chain.write_bytes(b"".join(made[usage].encode() for usage in (abi.PDH, abi.PEK, abi.OCA, abi.CEK)))
        self.roots = folder / "roots.cert"
        self.roots.write_bytes(b"".join(sev_signatures.sign_authority(one, ark).encode() for one in (ask, root)))

    def report(self, digest: bytes = DIGEST) -> bytes:
        head = NONCE + digest + (5).to_bytes(4, "little")
        r, s = decode_dss_signature(self.pek.sign(head, ec.ECDSA(hashes.SHA256())))
        return legacy_report.encode(NONCE, digest, 5, r, s)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return Platform(tmp_path_factory.mktemp("platform"))


def verdict(platform: Platform, data: bytes, folder: Path, *more: object) -> tuple[int, str]:
    """Exit code, and the step that failed."""
    path = folder / "report"
    path.write_bytes(data)
    done = sev("report", "verify", path, "--chain", platform.chain, "--roots", platform.roots, *more, "--json")
    failed = [step["id"] for step in done.json()["steps"] if step["result"] == "failed"]
    return done.code, failed[0] if failed else ""


def test_a_genuine_report(platform: Platform, tmp_path: Path) -> None:
    report = platform.report()
    assert verdict(platform, report, tmp_path) == (0, "")
    more = ["--mnonce", NONCE.hex(), "--measurement", DIGEST.hex()]
    assert verdict(platform, report, tmp_path, *more) == (0, "")
    shown = sev("report", "verify", tmp_path / "report", "--chain", platform.chain, "--roots", platform.roots)
    assert DIGEST.hex() in shown.out


def test_what_is_refused(platform: Platform, tmp_path: Path) -> None:
    report = platform.report()
    assert verdict(platform, report, tmp_path, "--mnonce", bytes(16).hex()) == (3, "mnonce")
    assert verdict(platform, report, tmp_path, "--measurement", bytes(32).hex()) == (3, "measurement")
    assert verdict(platform, report[:-1], tmp_path) == (3, "format")
    assert verdict(platform, platform.report(bytes(32))[:64] + report[64:], tmp_path) == (3, "report_signature")
    for offset in (54, 58):  # usage and algorithm, which nothing signs
        changed = bytearray(report)
        changed[offset] ^= 1
        assert verdict(platform, bytes(changed), tmp_path) == (3, "signing_key")
    path = tmp_path / "report"
    path.write_bytes(report)
    assert sev("report", "verify", path, "--chain", platform.chain).code == 3  # not AMD's root
    assert sev("report", "verify", path, "--chain", path, "--roots", platform.roots).code == 3


@given(st.integers(0, 51), st.integers(1, 255))
def test_any_changed_byte_is_noticed(platform: Platform, offset: int, change: int) -> None:
    from sev.attestation import legacy
    from sev.certs.sev_chain import SevChain
    from sev.certs.sev_roots import SevRoots

    data = bytearray(platform.report())
    data[offset] ^= change
    chain, roots = SevChain.parse(platform.chain.read_bytes()), SevRoots.of(platform.roots.read_bytes())
    with pytest.raises(legacy.LegacyReportInvalid):
        legacy.verify(LegacyReport.parse(bytes(data)), chain, roots=roots)


@given(st.binary(min_size=200, max_size=216))
def test_any_bytes_are_a_report_or_refused(data: bytes) -> None:
    if len(data) != legacy_report.SIZE:
        with pytest.raises(MalformedInput):
            LegacyReport.parse(data)
        return
    report = LegacyReport.parse(data)
    assert report.raw == data
    report.document()


def test_options_of_the_other_kind(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(platform.report())
    base = ["report", "verify", tmp_path / "report", "--chain", platform.chain]
    assert sev(*base, "--vek", platform.chain).code == 2
    assert sev(*base, "--vmpl", 0).code == 2
    assert sev(*base, "--measurement", bytes(48).hex()).code == 2
    assert sev("report", "verify", tmp_path / "report", "--mnonce", NONCE.hex()).code == 2


def test_without_a_chain(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(platform.report())
    shown = sev("report", "show", tmp_path / "report", "--json")
    assert (shown.code, shown.json()["launch_digest"], shown.json()["form"]) == (0, DIGEST.hex(), "legacy")
    assert "nodbg" in sev("report", "show", tmp_path / "report").out
    done = sev("report", "verify", tmp_path / "report", "--json")
    assert done.code == 3
    assert "--chain" in done.json()["error"]["remedy"]
    (tmp_path / "short").write_bytes(platform.report()[:-1])
    assert sev("report", "show", tmp_path / "short").code == 9
    assert "--chain" not in sev("report", "verify", tmp_path / "short").err


def test_another_root_has_to_be_named(platform: Platform, tmp_path: Path) -> None:
    done = sev("session", "create", platform.chain, "--out", tmp_path)
    assert done.code == 3
    assert "--roots" in done.err
