"""Forged and damaged evidence, one case a failure: each is refused by its own class, at its own step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sev.abi import cert_table
from sev.attestation import Collateral, Roots, Step, VerifiedReport, errors, verify
from sev.products import GENOA, MILAN, TURIN
from tests.support import forge
from tests.support.forge import World

GENOA_WORLD, MILAN_WORLD, TURIN_WORLD = World(GENOA), World(MILAN), World(TURIN)
OTHER = World(GENOA, "somebody else")
"""Another authority with the same names and other keys."""

Case = Callable[[], Mapping[str, Any]]


def _verify(given: Mapping[str, Any], world: World = GENOA_WORLD) -> VerifiedReport:
    defaults: dict[str, Any] = {
        "report": world.report(),
        "collateral": world.collateral(),
        "at": forge.AT,
        "roots": world.roots(),
    }
    return verify(**{**defaults, **given})


@pytest.mark.parametrize("world", [GENOA_WORLD, MILAN_WORLD, TURIN_WORLD], ids=lambda world: str(world.product.name))
@pytest.mark.parametrize("kind", ["vcek", "vlek"])
def test_what_the_cases_start_from_is_accepted(world: World, kind: str) -> None:
    if kind == "vcek":
        verified = _verify({}, world)
    else:
        given = {
            "report": world.report(key_info=4, chip_id=bytes(64)),
            "collateral": world.collateral(world.leaf("vlek")),
        }
        verified = _verify(given, world)
    assert verified.product is world.product
    assert [step.result for step in verified.steps].count("failed") == 0
    assert verified.leaf.kind == kind


def _flip(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def _report(**fields: Any) -> Case:
    return lambda: {"report": GENOA_WORLD.report(**fields)}


def _flipped(at: int) -> Case:
    return lambda: {"report": _flip(GENOA_WORLD.report(), at)}


def _vek(**changes: Any) -> Case:
    return lambda: {"collateral": GENOA_WORLD.collateral(GENOA_WORLD.leaf(**changes))}


def _ask(**changes: Any) -> Case:
    return lambda: {"collateral": GENOA_WORLD.collateral(certificates=(GENOA_WORLD.authority("ask", **changes),))}


def _crl(*revoked: int, world: World = GENOA_WORLD, **changes: Any) -> Case:
    return lambda: {"collateral": GENOA_WORLD.collateral(crls=(world.crl(revoked, **changes),))}


def _vlek_report(**changes: Any) -> Case:
    return lambda: {
        "report": GENOA_WORLD.report(key_info=4, chip_id=bytes(64)),
        "collateral": GENOA_WORLD.collateral(GENOA_WORLD.leaf("vlek", **changes)),
    }


def _table(table: bytes) -> Case:
    return lambda: {"collateral": Collateral(certificate_table=table)}


def _spl(component: str) -> Case:
    return _vek(ext={"levels": {component: GENOA_WORLD.levels[component] + 1}})


REGIONS = {
    "guest_svn": 0x004,
    "policy": 0x00A,
    "family_id": 0x010,
    "image_id": 0x02F,
    "current_tcb": 0x038,
    "platform_info": 0x040,
    "reserved word": 0x04C,
    "report_data": 0x050,
    "measurement": 0x090,
    "host_data": 0x0C0,
    "id_key_digest": 0x0E0,
    "author_key_digest": 0x110,
    "report_id": 0x140,
    "report_id_ma": 0x17F,
    "cpuid_step": 0x18A,
    "reserved after CPUID": 0x18B,
    "committed_tcb": 0x1E0,
    "current_version": 0x1E8,
    "committed_version": 0x1EC,
    "launch_tcb": 0x1F0,
    "launch_mit_vector": 0x1F8,
    "current_mit_vector": 0x200,
    "reserved tail": 0x29F,
    "signature r": 0x2A0,
    "signature s": 0x2E8,
}

NEGATIVES: dict[str, tuple[Case, type[Exception], str]] = {
    "truncated report": (lambda: {"report": GENOA_WORLD.report()[:793]}, errors.ReportMalformed, "format"),
    "one byte too long": (lambda: {"report": GENOA_WORLD.report() + b"\0"}, errors.ReportMalformed, "format"),
    "empty report": (lambda: {"report": b""}, errors.ReportMalformed, "format"),
    "version 1": (_report(version=1), errors.ReportVersionUnsupported, "format"),
    "version 0": (_report(version=0), errors.ReportVersionUnsupported, "format"),
    "another signature algorithm": (_report(signature_algo=2), errors.AlgorithmUnsupported, "format"),
    "no signature algorithm": (_report(signature_algo=0), errors.AlgorithmUnsupported, "format"),
    "bit set above r": (_flipped(0x2D0), errors.ReportMalformed, "format"),
    "bit set above s": (_flipped(0x318), errors.ReportMalformed, "format"),
    "bit set behind the signature": (_flipped(0x49F), errors.ReportMalformed, "format"),
    "masked chip key, unsigned": (_report(key_info=0x1E), errors.ReportUnsigned, "signing_key"),
    "chip key masked and used": (_report(key_info=0x02), errors.SigningKeyMasked, "signing_key"),
    "signing key 3": (_report(key_info=0x0C), errors.SigningKeyUnknown, "signing_key"),
    "asked for by the host": (_report(vmpl=0xFFFFFFFF), errors.HostReport, "vmpl"),
    "VMPL 4": (_report(vmpl=4), errors.VmplOutOfRange, "vmpl"),
    "VMPL 4, host reports allowed": (
        lambda: {"report": GENOA_WORLD.report(vmpl=4), "allow_host_report": True},
        errors.VmplOutOfRange,
        "vmpl",
    ),
    "no certificate": (lambda: {"collateral": Collateral()}, errors.LeafMissing, "leaf"),
    "only authorities given": (
        lambda: {"collateral": Collateral(certificates=(GENOA_WORLD.authority("ask"),))},
        errors.LeafMissing,
        "leaf",
    ),
    "garbage as VCEK": (lambda: {"collateral": Collateral(b"not a certificate")}, errors.CertificateUnreadable, "leaf"),
    "truncated VCEK": (
        lambda: {"collateral": Collateral(GENOA_WORLD.leaf()[:-1])},
        errors.CertificateUnreadable,
        "leaf",
    ),
    "VLEK where the report says VCEK": (
        lambda: {"collateral": GENOA_WORLD.collateral(GENOA_WORLD.leaf("vlek"))},
        errors.WrongLeafKind,
        "leaf",
    ),
    "VCEK where the report says VLEK": (_report(key_info=4), errors.WrongLeafKind, "leaf"),
    "ASK given as VCEK": (
        lambda: {"collateral": GENOA_WORLD.collateral(GENOA_WORLD.authority("ask"))},
        errors.WrongLeafKind,
        "leaf",
    ),
    "VCEK that calls itself an authority": (
        lambda: {
            "collateral": GENOA_WORLD.collateral(
                GENOA_WORLD.leaf(extensions=[forge.BASIC_CA, *GENOA_WORLD.leaf_extensions()])
            )
        },
        errors.WrongLeafKind,
        "leaf",
    ),
    "VCEK without hwID": (_vek(ext={"without": ("hwid",)}), errors.LeafIncomplete, "leaf"),
    "VCEK with cspID": (_vek(ext={"csp_id": "CN=x"}), errors.LeafIncomplete, "leaf"),
    "VLEK without cspID": (_vlek_report(ext={"without": ("csp_id",)}), errors.LeafIncomplete, "leaf"),
    "VLEK with hwID": (_vlek_report(ext={"hwid": bytes(64)}), errors.LeafIncomplete, "leaf"),
    "VCEK with an RSA key": (_vek(key=forge.rsa_key("genoa ask")), errors.LeafIncomplete, "leaf"),
    "VCEK without extensions": (_vek(extensions=()), errors.LeafIncomplete, "leaf"),
    "garbage as certificate table": (_table(b"\x01" * 100), errors.CertificateUnreadable, "leaf"),
    "certificate table that points outside": (
        _table(cert_table.VCEK + (48).to_bytes(4, "little") + (0xFFFFFFFF).to_bytes(4, "little") + bytes(24)),
        errors.CertificateUnreadable,
        "leaf",
    ),
    "certificate table with a malformed VCEK": (
        _table(cert_table.build([(cert_table.VCEK, b"\x30\x03\x02\x01\x00")])),
        errors.CertificateUnreadable,
        "leaf",
    ),
    "issuer not given": (
        lambda: {"collateral": GENOA_WORLD.collateral(certificates=())},
        errors.IntermediateMissing,
        "intermediate",
    ),
    "chain of another product": (
        lambda: {"collateral": GENOA_WORLD.collateral(certificates=(MILAN_WORLD.authority("ask"),))},
        errors.IntermediateMissing,
        "intermediate",
    ),
    "VCEK under an ASVK": (
        _vek(issuer=forge.name("SEV-VLEK-Genoa"), signer=forge.rsa_key("genoa asvk")),
        errors.WrongIssuerName,
        "intermediate",
    ),
    "VLEK under an ASK": (
        _vlek_report(issuer=forge.name("SEV-Genoa"), signer=forge.rsa_key("genoa ask")),
        errors.WrongIssuerName,
        "intermediate",
    ),
    "VCEK right under the ARK": (
        _vek(issuer=forge.name("ARK-Genoa"), signer=forge.rsa_key("genoa ark")),
        errors.WrongIssuerName,
        "intermediate",
    ),
    "ASK of another root": (
        lambda: {"collateral": GENOA_WORLD.collateral(certificates=(OTHER.authority("ask"),))},
        errors.IntermediateSignatureInvalid,
        "intermediate",
    ),
    "ASK that names another root": (
        _ask(issuer=forge.name("ARK-Milan")),
        errors.IntermediateSignatureInvalid,
        "intermediate",
    ),
    "ASK that signs itself": (
        _ask(issuer=forge.name("SEV-Genoa"), signer=forge.rsa_key("genoa ask")),
        errors.IntermediateSignatureInvalid,
        "intermediate",
    ),
    "ASK that is no CA": (_ask(extensions=(forge.SIGN_CERTIFICATES,)), errors.NotAnAuthority, "intermediate"),
    "ASK whose keyUsage forbids signing": (
        _ask(extensions=(forge.BASIC_CA, forge.extension("2.5.29.15", forge.tlv(0x03, b"\x07\x80"), critical=True))),
        errors.NotAnAuthority,
        "intermediate",
    ),
    "ASK with an elliptic-curve key": (_ask(key=forge.ec_key("odd ask")), errors.NotAnAuthority, "intermediate"),
    "forged root and chain, AMD's roots trusted": (
        lambda: {"roots": Roots.amd()},
        errors.LeafSignatureInvalid,
        "leaf_signature",
    ),
    "whole chain of somebody else": (
        lambda: {"collateral": OTHER.collateral(certificates=(OTHER.authority("ask"), OTHER.authority("ark")))},
        errors.IntermediateSignatureInvalid,
        "intermediate",
    ),
    "VCEK signed by another ASK": (
        _vek(signer=forge.rsa_key("somebody else ask")),
        errors.LeafSignatureInvalid,
        "leaf_signature",
    ),
    "VCEK with one bit changed in its signature": (
        lambda: {"collateral": GENOA_WORLD.collateral(_flip(GENOA_WORLD.leaf(), len(GENOA_WORLD.leaf()) - 1))},
        errors.LeafSignatureInvalid,
        "leaf_signature",
    ),
    "VCEK that ran out": (_vek(not_after=forge.AT - timedelta(seconds=1)), errors.CertificateExpired, "validity"),
    "VCEK not valid yet": (_vek(not_before=forge.AT + timedelta(seconds=1)), errors.CertificateNotYetValid, "validity"),
    "ASK that ran out": (_ask(not_after=datetime(2026, 1, 1, tzinfo=UTC)), errors.CertificateExpired, "validity"),
    "ASK not valid yet": (_ask(not_before=datetime(2027, 1, 1, tzinfo=UTC)), errors.CertificateNotYetValid, "validity"),
    "verified long after": (lambda: {"at": datetime(2060, 1, 1, tzinfo=UTC)}, errors.CertificateExpired, "validity"),
    "verified long before": (
        lambda: {"at": datetime(2000, 1, 1, tzinfo=UTC)},
        errors.CertificateNotYetValid,
        "validity",
    ),
    "revoked ASK": (_crl(0x20002), errors.IssuerRevoked, "revocation"),
    "revoked ARK": (_crl(0x20000), errors.IssuerRevoked, "revocation"),
    "revoked ASK in a list that ran out": (
        _crl(0x20002, next_update=datetime(2026, 8, 20, tzinfo=UTC)),
        errors.IssuerRevoked,
        "revocation",
    ),
    "list of another product": (_crl(world=MILAN_WORLD), errors.CrlOfAnotherIssuer, "revocation"),
    "list signed by somebody else": (_crl(world=OTHER), errors.CrlSignatureInvalid, "revocation"),
    "revoking list signed by somebody else": (_crl(0x20002, world=OTHER), errors.CrlSignatureInvalid, "revocation"),
    "stale list": (_crl(next_update=forge.AT), errors.CrlStale, "revocation"),
    "list of the future": (_crl(this_update=forge.AT + timedelta(seconds=1)), errors.CrlNotYetValid, "revocation"),
    "garbage as list": (
        lambda: {"collateral": GENOA_WORLD.collateral(crls=(b"\x30\x00",))},
        errors.CrlUnreadable,
        "revocation",
    ),
    "delta list": (
        _crl(extensions=(forge.extension("2.5.29.27", forge.integer(1), critical=True),)),
        errors.CrlUnreadable,
        "revocation",
    ),
    "certificate given as list": (
        lambda: {"collateral": GENOA_WORLD.collateral(crls=(GENOA_WORLD.leaf(),))},
        errors.CrlUnreadable,
        "revocation",
    ),
    "VCEK for a product that is not known": (_vek(ext={"product_name": "Odessa"}), errors.ProductNotKnown, "product"),
    "VCEK for another product": (_vek(ext={"product_name": "Milan-B0"}), errors.ProductMismatch, "product"),
    "report of another processor": (
        lambda: {"report": GENOA_WORLD.report(cpuid_fam_id=0x19, cpuid_mod_id=1)},
        errors.ProductMismatch,
        "product",
    ),
    "report of an unknown processor": (
        lambda: {"report": GENOA_WORLD.report(cpuid_fam_id=0x1F)},
        errors.ProductMismatch,
        "product",
    ),
    "another product than expected": (lambda: {"product": MILAN}, errors.ProductMismatch, "product"),
    "report signed by another chip": (
        lambda: {"report": GENOA_WORLD.report(key=OTHER.leaf_key)},
        errors.ReportSignatureInvalid,
        "report_signature",
    ),
    "signature of zeros": (
        lambda: {"report": GENOA_WORLD.report()[:0x2A0] + bytes(512)},
        errors.ReportSignatureInvalid,
        "report_signature",
    ),
    "signature of another report": (
        lambda: {"report": GENOA_WORLD.report(guest_svn=1)[:0x2A0] + GENOA_WORLD.report()[0x2A0:]},
        errors.ReportSignatureInvalid,
        "report_signature",
    ),
    "other boot loader level": (_spl("bootloader"), errors.TcbMismatch, "tcb"),
    "other TEE level": (_spl("tee"), errors.TcbMismatch, "tcb"),
    "other SNP level": (_spl("snp"), errors.TcbMismatch, "tcb"),
    "other microcode level": (_spl("microcode"), errors.TcbMismatch, "tcb"),
    "VCEK without a microcode level": (_vek(ext={"without": ("microcode",)}), errors.TcbMismatch, "tcb"),
    "VCEK with an fmc level on Genoa": (_vek(ext={"levels": {"fmc": 0}}), errors.TcbMismatch, "tcb"),
    "VCEK with a reserved level": (_vek(ext={"spl4": 1}), errors.TcbMismatch, "tcb"),
    "reported TCB with a reserved byte": (
        lambda: {"report": GENOA_WORLD.report(reported_tcb=GENOA_WORLD.tcb()[:3] + b"\x01" + GENOA_WORLD.tcb()[4:])},
        errors.TcbMismatch,
        "tcb",
    ),
    "VCEK of another chip": (_vek(ext={"hwid": bytes(64)}), errors.ChipIdMismatch, "chip_id"),
    "VCEK with a short hwID on Genoa": (_vek(ext={"hwid": bytes(8)}), errors.ChipIdMismatch, "chip_id"),
    "masked chip id": (_report(chip_id=bytes(64)), errors.ChipIdMasked, "chip_id"),
    **{
        f"bit flipped in {region}": (_flipped(at), errors.ReportSignatureInvalid, "report_signature")
        for region, at in REGIONS.items()
    },
    "bit flipped in version": (_flipped(0x000), errors.ReportSignatureInvalid, "report_signature"),
    "bit flipped in reported_tcb": (_flipped(0x180), errors.ReportSignatureInvalid, "report_signature"),
    "bit flipped in chip_id": (_flipped(0x1A0), errors.ReportSignatureInvalid, "report_signature"),
}


@pytest.mark.parametrize("case", NEGATIVES)
def test_is_refused_by_its_own_class(case: str) -> None:
    given, expected, step = NEGATIVES[case]
    with pytest.raises((errors.NotGenuine, errors.Undecided)) as caught:
        _verify(given())
    assert type(caught.value) is expected, caught.value
    steps = getattr(caught.value, "steps", ())
    failed = [one.id for one in steps if isinstance(one, Step) and one.result == "failed"]
    assert failed == [step]
    assert len(steps) == 12
    assert caught.value.message
    assert caught.value.remedy


def test_there_are_more_than_forty_and_every_class_has_one() -> None:
    assert len(NEGATIVES) > 40
    covered = {expected for _, expected, _ in NEGATIVES.values()}
    every = {getattr(errors, name) for name in errors.__all__} - {errors.NotGenuine, errors.Undecided}
    # These two arise before a verification: when roots are read, and where data lies beside the report.
    assert every - covered == {errors.RootsUnusable, errors.RuntimeDataMismatch}


@pytest.mark.parametrize("component", ["fmc", "bootloader", "tee", "snp", "microcode"])
def test_every_turin_level_is_compared(component: str) -> None:
    leaf = TURIN_WORLD.leaf(ext={"levels": {component: TURIN_WORLD.levels[component] + 1}})
    with pytest.raises(errors.TcbMismatch, match=component):
        _verify({"collateral": TURIN_WORLD.collateral(leaf)}, TURIN_WORLD)


def test_turin_chip_id_has_zeros_behind_its_eight_bytes() -> None:
    report = TURIN_WORLD.report(chip_id=TURIN_WORLD.hwid + b"\x01" + bytes(55))
    with pytest.raises(errors.ChipIdMismatch):
        _verify({"report": report}, TURIN_WORLD)


def test_host_report_and_masked_chip_id_are_taken_where_the_caller_allows() -> None:
    verified = _verify({"report": GENOA_WORLD.report(vmpl=0xFFFFFFFF), "allow_host_report": True})
    assert "host" in {step.id: step.reason for step in verified.steps}["vmpl"]
    verified = _verify({"report": GENOA_WORLD.report(chip_id=bytes(64)), "allow_masked_chip_id": True})
    assert {step.id: step.result for step in verified.steps}["chip_id"] == "skipped"


def test_steps_before_the_failure_passed_and_those_behind_were_not_reached() -> None:
    with pytest.raises(errors.CertificateExpired) as caught:
        _verify({"at": datetime(2060, 1, 1, tzinfo=UTC)})
    results = [step.result for step in caught.value.steps if isinstance(step, Step)]
    assert results == ["passed"] * 6 + ["failed"] + ["skipped"] * 5
