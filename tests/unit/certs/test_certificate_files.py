"""What files of certificates hold, roots, and what is shown of them."""

from __future__ import annotations

import pytest

from sev.abi import cert_table
from sev.certs import Authority, Certificate, Roots, builtin, load, load_all, show
from sev.certs.errors import RootsUnusable
from sev.certs.files import MAX_OBJECTS, load_crls
from sev.errors import MalformedInput, UsageError
from sev.products import GENOA, ROME, TURIN, VENICE
from tests.support import forge
from tests.support.forge import World, pem

WORLD = World()
LEAF, ASK, ARK = WORLD.leaf(), WORLD.authority("ask"), WORLD.authority("ark")


def test_der_pem_and_several_in_a_row() -> None:
    assert [one.kind for one in load(LEAF)] == ["vcek"]
    assert [one.kind for one in load(pem(LEAF))] == ["vcek"]
    assert [one.kind for one in load(LEAF + ASK + ARK)] == ["vcek", "ask", "ark"]
    text = b"some words\n" + pem(ASK).replace(b"\n", b"\r\n") + b"\nmore words\n" + pem(ARK)
    assert [one.kind for one in load(text)] == ["ask", "ark"]
    certificates, lists = load_all(pem(LEAF) + pem(WORLD.crl(), "X509 CRL"))
    assert (len(certificates), len(lists)) == (1, 1)
    assert load_crls(WORLD.crl() + WORLD.crl([1]))[1].revoked.keys() == {1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "nothing at offset 0"),
        (b"no certificate", "only 12 are left"),
        (pem(LEAF)[:-10], "no END line"),
        (pem(LEAF, "PRIVATE KEY"), "label b'PRIVATE KEY'"),
        (pem(LEAF, "TRUSTED CERTIFICATE"), "label"),
        (b"-----BEGIN CERTIFICATE", "label"),
        (b"-----BEGIN CERTIFICATE-----\n****\n-----END CERTIFICATE-----\n", "not base64"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "nothing at offset 0"),
        (pem(LEAF)[:60] + b"=" + pem(LEAF)[60:], "not base64"),
        (LEAF * (MAX_OBJECTS + 1), "more than 64"),
        (bytes((2 << 20) + 1), "at most"),
        (WORLD.crl(), "found a revocation list"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(MalformedInput, match=message):
        load(data)


def test_certificates_are_no_lists() -> None:
    with pytest.raises(MalformedInput, match="found certificates"):
        load_crls(LEAF)


def test_kinds_and_products_by_name_and_form() -> None:
    turin = World(TURIN)
    kinds = {
        "ark": WORLD.authority("ark"),
        "ask": WORLD.authority("ask"),
        "asvk": WORLD.authority("asvk"),
        "vcek": WORLD.leaf(),
        "vlek": WORLD.leaf("vlek"),
    }
    for kind, der in kinds.items():
        certificate = Certificate.parse(der)
        assert certificate.kind == kind
        assert certificate.product is GENOA
        assert certificate.is_ca is (kind in ("ark", "ask", "asvk"))
    assert Certificate.parse(WORLD.leaf(subject=forge.name("SEV-VLEK-Genoa"))).kind == "other"
    assert Certificate.parse(WORLD.authority("ark", subject=forge.name("Root"))).kind == "other"
    assert Certificate.parse(turin.leaf()).tcb["fmc"] == 4
    assert len(Certificate.parse(turin.leaf()).hwid or b"") == 8


def test_roots_are_self_signed_authorities_of_any_name() -> None:
    key = forge.rsa_key("genoa ark")
    renamed = WORLD.authority("ark", subject=forge.name("My Root"), issuer=forge.name("My Root"))
    roots = Roots.from_pem(pem(renamed) + pem(ASK))
    assert [ark.common_name for ark in roots.arks] == ["My Root"]
    assert [one.common_name for one in roots.intermediates] == ["SEV-Genoa"]
    assert roots.named(forge.name("My Root"))[0].public_key().public_numbers() == key.public_key().public_numbers()
    assert roots.named(b"") == ()
    assert not roots.built_in


@pytest.mark.parametrize(
    "bundle",
    [
        b"",
        b"garbage",
        ASK,
        LEAF,
        WORLD.authority("ark", signer=forge.rsa_key("somebody else ark")),
        WORLD.authority("ark", extensions=()),
        WORLD.authority("ark", extensions=(forge.BASIC_CA, forge.extension("2.5.29.15", b"\x03\x02\x07\x80"))),
        WORLD.authority("ark", key=forge.ec_key("odd root")),
        b"".join(WORLD.authority("ark", subject=forge.name(f"R{n}"), issuer=forge.name(f"R{n}")) for n in range(17)),
    ],
    ids=["empty", "garbage", "ASK", "leaf", "foreign", "no CA", "keyUsage", "EC key", "seventeen"],
)
def test_other_bundles_are_no_roots(bundle: bytes) -> None:
    with pytest.raises(RootsUnusable, match="roots"):
        Roots.from_pem(bundle)


def test_amd_roots_are_built_in_once() -> None:
    assert Roots.amd() is Roots.amd()
    assert Roots.amd().built_in
    assert [ark.common_name for ark in Roots.amd().arks] == ["ARK-Milan", "ARK-Genoa", "ARK-Turin"]
    assert builtin(GENOA).ask.certificate is None
    assert builtin(GENOA).ask == builtin(GENOA).ask != builtin(GENOA).asvk
    assert "built in" in repr(builtin(GENOA).ask)
    assert "given" in repr(Authority.of(Certificate.parse(ASK)))
    for product in (ROME, VENICE):
        with pytest.raises(UsageError, match="no root keys"):
            builtin(product)


def test_show_names_everything() -> None:
    documents = show.describe(LEAF + ASK + WORLD.crl([0x20001]))
    assert [one["kind"] for one in documents] == ["vcek", "ask", "crl"]
    leaf, ask, crl = documents
    assert leaf["hwid"] == WORLD.hwid.hex()
    assert leaf["tcb"] == {"bootloader": 4, "tee": 4, "snp": 4, "microcode": 0xDB, "raw": "db04000000000404"}
    assert (leaf["serial"], leaf["not_before"], leaf["csp_id"]) == ("0", "2025-01-01T00:00:00Z", None)
    assert (ask["serial"], ask["product"], ask["tcb"], ask["is_ca"]) == ("20002", "genoa", None, True)
    assert crl["revoked"] == [{"serial": "20001", "revoked_at": "2026-01-01T00:00:00Z"}]
    text = show.text(documents)
    for word in ("VCEK", "ASK", "CRL", "SEV-Genoa", WORLD.hwid.hex(), "microcode 219", "20001"):
        assert word in text
    assert "csp id" not in text


def test_show_reads_tables_and_says_what_it_cannot_read() -> None:
    table = cert_table.build(
        [(cert_table.VCEK, LEAF), (cert_table.ASK, pem(ASK)), (cert_table.ARK, b"junk"), (b"\x01" * 16, b"data")]
    )
    documents = show.describe(table)
    assert [one["kind"] for one in documents] == ["vcek", "ask", "unreadable", "unknown"]
    assert documents[0]["guid"] == "63da758d-e664-4564-adc5-f4b93be8accd"
    assert "01010101" in show.text(documents)


@pytest.mark.parametrize("data", [b"", b"junk", bytes(24), bytes(4096)])
def test_show_refuses_what_is_none_of_these(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        show.describe(data)
