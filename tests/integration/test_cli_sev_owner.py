"""An owner's commands for SEV: certificates as a tree, an owner's own certificate, sessions."""

from __future__ import annotations

import os
import stat
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_signatures
from sev.session import TransportKeys, blob
from tests.support.cli import sev
from tests.support.data import DATA

CHAIN = DATA / "legacy" / "pdh-blob-naples.bin"
NAPLES = DATA / "legacy" / "naples"
ROOTS = DATA / "roots"
LEGACY = ROOTS / "legacy"


def results(*words: object) -> tuple[int, dict[tuple[str, str], str]]:
    done = sev("certs", "verify", *words, "--json")
    document = done.json()
    assert (done.code == 0) == document["verified"]
    return done.code, {(edge["subject"], edge["signer"]): edge["result"] for edge in document["edges"]}


@pytest.mark.parametrize("files", [[CHAIN], sorted(NAPLES.iterdir())], ids=["row", "files"])
def test_a_real_platform(files: list[Path]) -> None:
    code, edges = results(*files)
    assert code == 0
    assert set(edges.values()) == {"passed"}
    assert {("PDH", "PEK"), ("PEK", "CEK"), ("CEK", "ASK"), ("ASK", "ARK"), ("ARK", "trust")} <= set(edges)


def test_with_the_files_of_amd() -> None:
    assert results(CHAIN, LEGACY / "naples-ask.cert", LEGACY / "naples-ark.cert")[0] == 0
    roots = [LEGACY / "rome-ark.cert", LEGACY / "naples-ark.cert"]
    assert [results(CHAIN, LEGACY / "naples-ask.cert", "--roots", path)[0] for path in roots] == [3, 0]
    assert results(CHAIN, "--roots", LEGACY / "naples-ark.cert")[0] == 3  # that file alone names no ASK


@pytest.mark.parametrize("product", ["rome", "milan", "genoa", "turin"])
def test_swapped_generations(product: str) -> None:
    code, edges = results(NAPLES / "cek.cert", LEGACY / f"{product}-ask.cert")
    assert (code, edges[("CEK", "ASK")]) == (0, "passed")  # the built-in ASK signed it, whatever else lies there
    assert results(LEGACY / f"{product}-ask.cert", "--roots", LEGACY / "naples-ark.cert")[0] == 3
    assert results(LEGACY / f"{product}-ask.cert")[0] == 0


def test_x509_beside_it() -> None:
    code, edges = results(CHAIN, ROOTS / "milan-ask.der", ROOTS / "milan-ark.der", "--at", "2026-01-01T00:00:00Z")
    assert code == 0
    assert edges[("SEV-Milan", "ARK-Milan")] == "passed"
    assert results(ROOTS / "milan-ask.der", "--at", "2060-01-01T00:00:00Z")[0] == 3


def test_parts_of_a_chain() -> None:
    code, edges = results(NAPLES / "pdh.cert", NAPLES / "pek.cert")
    assert (code, edges[("PEK", "CEK")], edges[("PEK", "OCA")]) == (3, "failed", "skipped")
    code, edges = results(NAPLES / "pdh.cert", NAPLES / "pek.cert", NAPLES / "cek.cert")
    assert code == 0


def test_reversed_directions_fail(tmp_path: Path) -> None:
    """A PDH that claims to be the PEK, and the reverse."""
    pek, pdh = ((NAPLES / f"{name}.cert").read_bytes() for name in ("pek", "pdh"))
    swapped = {"pek": bytearray(pdh), "pdh": bytearray(pek)}
    for name, usage in (("pek", abi.PEK), ("pdh", abi.PDH)):
        swapped[name][8:12] = usage.to_bytes(4, "little")
        (tmp_path / name).write_bytes(swapped[name])
    code, edges = results(tmp_path / "pdh", tmp_path / "pek", NAPLES / "oca.cert", NAPLES / "cek.cert")
    assert code == 3
    assert edges[("PDH", "PEK")] == edges[("PEK", "CEK")] == "failed"


def test_two_platforms_and_junk(tmp_path: Path) -> None:
    changed = bytearray((NAPLES / "pdh.cert").read_bytes())
    changed[1000] ^= 1
    (tmp_path / "other").write_bytes(changed)
    assert sev("certs", "verify", NAPLES / "pdh.cert", tmp_path / "other").code == 2
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    assert sev("certs", "verify", tmp_path / "junk").code == 9
    assert sev("certs", "verify", tmp_path / "nowhere").code == 2
    assert sev("certs", "verify", CHAIN, "--roots", tmp_path / "junk").code == 5


def test_an_owners_certificate_signs_a_platform(tmp_path: Path) -> None:
    cert, key, out = tmp_path / "oca.cert", tmp_path / "oca.key", tmp_path / "pek.cert"
    assert sev("certs", "generate", cert, key).code == 0
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    oca = SevCertificate.read(cert.read_bytes())
    assert sev_signatures.verify(oca, oca) == 1
    request = SevCertificate.of_key(abi.PEK, ec.generate_private_key(ec.SECP384R1()).public_key(), (1, 55))
    (tmp_path / "csr").write_bytes(request.encode())
    args = ["--oca-cert", cert, "--oca-key", key, "--out", out]
    assert sev("certs", "sign", tmp_path / "csr", *args).code == 0
    assert sev_signatures.verify(SevCertificate.read(out.read_bytes()), oca) == 1
    assert sev("certs", "sign", cert, *args).code == 2
    assert sev("certs", "generate", tmp_path / "other.cert", tmp_path / "other.key").code == 0
    done = sev("certs", "sign", tmp_path / "csr", "--oca-cert", cert, "--oca-key", tmp_path / "other.key", "--out", out)
    assert done.code == 2
    assert "does not belong" in done.err


def test_a_key_that_is_there_is_not_lost_unasked(tmp_path: Path) -> None:
    cert, key = tmp_path / "oca.cert", tmp_path / "oca.key"
    assert sev("certs", "generate", cert, key).code == 0
    before = key.read_bytes(), cert.read_bytes()
    done = sev("certs", "generate", cert, key)
    assert done.code == 2
    assert "--existing-key" in done.err
    assert (key.read_bytes(), cert.read_bytes()) == before
    assert sev("certs", "generate", cert, key, "--existing-key").code == 0
    assert key.read_bytes() == before[0]
    assert sev("certs", "generate", cert, key, "--yes").code == 0
    assert key.read_bytes() != before[0]


def test_a_certificate_for_a_key_that_is_there(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    done = sev("certs", "generate", tmp_path / "oca.cert", tmp_path / "key.pem", "--existing-key")
    assert (done.code, done.out) == (0, f"wrote {tmp_path}/oca.cert\n")
    oca = SevCertificate.read((tmp_path / "oca.cert").read_bytes())
    assert oca.public_key() == key.public_key()
    assert sev_signatures.verify(oca, oca) == 1
    assert (tmp_path / "key.pem").read_bytes() == pem
    for bad in ("nowhere", "oca.cert"):
        assert sev("certs", "generate", tmp_path / "other", tmp_path / bad, "--existing-key").code in (2, 9)
    assert not (tmp_path / "other").exists()


def test_sessions(tmp_path: Path) -> None:
    done = sev("session", "create", CHAIN, "--policy", "nodbg,es", "--out", tmp_path, "--name", "g", "--json")
    assert done.code == 0
    assert done.json()["product"] == "naples"
    for name in ("g_tik.bin", "g_tek.bin"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert (tmp_path / name).stat().st_size == 16
    assert SevCertificate.read(b64decode((tmp_path / "g_godh.b64").read_bytes())).usage == abi.PDH
    made = blob.SessionBlob.decode(b64decode((tmp_path / "g_session.b64").read_bytes()))
    keys = TransportKeys((tmp_path / "g_tek.bin").read_bytes(), (tmp_path / "g_tik.bin").read_bytes())
    assert made.policy_mac == blob.policy_mac(keys.tik, 5)


def test_a_session_wants_a_verified_chain(tmp_path: Path) -> None:
    assert sev("session", "create", CHAIN, "--roots", LEGACY / "rome-ark.cert", "--out", tmp_path / "no").code == 3
    assert sev("session", "create", NAPLES / "pdh.cert", "--out", tmp_path / "no").code == 5
    assert not (tmp_path / "no").exists()
    done = sev("session", "create", NAPLES / "pdh.cert", "5", "--unverified", "--out", tmp_path / "yes")
    assert done.code == 0
    assert "nobody vouches" in done.err
    assert sev("session", "create", NAPLES / "pek.cert", "5", "--unverified", "--out", tmp_path / "no").code == 2
    assert sev("session", "create", CHAIN, "5", "--policy", "5").code == 2
    assert sev("session", "create", CHAIN, "--name", "a/b", "--out", tmp_path / "no").code == 2
