"""Reports: fields by version, what is kept, and the forms in which they come."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev.abi import cert_table
from sev.abi.report import FIELDS, HEAD, Report
from sev.abi.report_text import text
from sev.attestation import Collateral, errors, recognise, verify
from sev.errors import MalformedInput, SevError
from sev.products import GENOA, MILAN, TURIN
from tests.support import forge
from tests.support.forge import World

WORLD = World()
REPORT = WORLD.report()
SIGNED_BITS = 8 * 0x2A0


def _hcl(report: bytes, runtime: bytes, *, kind: int = 2, digest: int = 1, length: int | None = None) -> bytes:
    count = len(runtime) if length is None else length
    header = b"".join(value.to_bytes(4, "little") for value in (20 + count, 1, kind, digest, count))
    return b"HCLA" + bytes(28) + report + header + runtime


def _response(report: bytes, status: int = 0) -> bytes:
    return status.to_bytes(4, "little") + (1184).to_bytes(4, "little") + bytes(24) + report


@pytest.mark.parametrize("size", [0, 1, 793, 1183, 1185, 4096])
def test_other_sizes_are_no_report(size: int) -> None:
    with pytest.raises(MalformedInput, match=f"{size} bytes, expected 1184"):
        Report.parse(bytes(size))


def test_fields_that_a_version_has_not_are_none() -> None:
    two, three, five = (Report.parse(WORLD.report(version=version)) for version in (2, 3, 5))
    later = ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step", "launch_mit_vector", "current_mit_vector")
    assert [getattr(two, name) for name in later] == [None] * 5
    assert [getattr(three, name) for name in later] == [0x19, 0x11, 1, None, None]
    assert [getattr(five, name) for name in later] == [0x19, 0x11, 1, 0xB, 0xB]
    assert [Report.parse(WORLD.report(version=4)).document()[name] for name in later] == [0x19, 0x11, 1, None, None]
    assert {name for name, value in two.document().items() if value is None} == {*later, "product"}


def test_a_newer_version_is_read_as_the_newest_and_verifies() -> None:
    raw = WORLD.report(version=7, launch_mit_vector=1, current_mit_vector=3)
    report = Report.parse(raw)
    assert (report.version, report.current_mit_vector) == (7, 3)
    assert "newer than 5" in text(report)
    verified = verify(raw, WORLD.collateral(), at=forge.AT, roots=WORLD.roots())
    assert "newer than 5" in verified.steps[0].reason


def test_unknown_bits_and_reserved_bytes_are_kept_and_shown() -> None:
    raw = WORLD.report(policy=1 << 40 | 0x30000, platform_info=1 << 50 | 0x25, key_info=1 << 9, reserved=0xABCD)
    report = Report.parse(raw)
    assert report.raw == raw
    assert report.policy.unknown == 1 << 40
    assert report.platform_info_unknown == 1 << 50
    assert report.key_info_unknown == 1 << 9
    assert report.reserved == {"0x04c": "cdab0000"}
    shown = text(report)
    for word in ("unknown 0x10000000000", "unknown 0x4000000000000", "reserved 0x04c", "key_info, unknown"):
        assert word in shown
    assert Report.parse(WORLD.report(version=4, launch_mit_vector=1)).reserved == {"0x1f8": "01" + "00" * 15}
    assert verify(raw, WORLD.collateral(), at=forge.AT, roots=WORLD.roots()).report.reserved


def test_tcb_byte_order_comes_from_the_processor_or_the_chip_id() -> None:
    turin = World(TURIN)
    assert Report.parse(turin.report()).reported_tcb == Report.parse(turin.report()).current_tcb
    assert Report.parse(turin.report()).tcb_layout is TURIN
    two = Report.parse(WORLD.report(version=2))
    assert two.product is None
    assert two.reported_tcb is not None
    assert two.reported_tcb.snp == 4
    unclear = Report.parse(WORLD.report(version=2, chip_id=bytes(64)))
    assert unclear.reported_tcb is None
    assert unclear.document()["reported_tcb"] == {"raw": "db04000000000404"}
    assert "name the product" in text(unclear)
    told = unclear.for_product(MILAN)
    assert told.reported_tcb == two.reported_tcb
    assert told == unclear
    assert hash(told) == hash(unclear)


def test_head_reads_the_fields_where_they_are() -> None:
    content = bytearray(1184)
    wanted = ("version", "vmpl", "signature_algo", "key_info", "reported_tcb", "cpuid_fam_id", "cpuid_mod_id")
    for mark, name in enumerate(wanted, 1):
        content[FIELDS[name].offset] = mark
    assert HEAD.unpack_from(content) == tuple(range(1, 8))


def test_provisional_means_that_current_and_committed_differ() -> None:
    assert not Report.parse(REPORT).provisional
    assert Report.parse(WORLD.report(current_version=bytes((50, 55, 1)))).provisional
    assert Report.parse(WORLD.report(current_tcb=WORLD.tcb(microcode=0xDC))).provisional


def test_signing_keys_by_name() -> None:
    names = [Report.parse(WORLD.report(key_info=number << 2)).signing_key for number in range(8)]
    assert names == ["vcek", "vlek", *(f"reserved-{number}" for number in range(2, 7)), "none"]


RUNTIME = b'{"keys": []}'
BOUND = WORLD.report(report_data=sha256(RUNTIME).digest() + bytes(32))
TABLE = cert_table.build([(cert_table.VCEK, WORLD.leaf())])

FORMS: dict[str, tuple[bytes, str]] = {
    "raw": (REPORT, "raw"),
    "response of exact size": (_response(REPORT), "response"),
    "response of 4000 bytes": (_response(REPORT).ljust(4000, b"\0"), "response"),
    "certificates behind": (REPORT + TABLE, "raw+certificates"),
    "certificates and padding": (REPORT + TABLE.ljust(4096, b"\0"), "raw+certificates"),
    "azure": (_hcl(REPORT, RUNTIME), "azure-hcl"),
    "azure with padding": (_hcl(REPORT, RUNTIME).ljust(2600, b"\0"), "azure-hcl"),
    "hex": (REPORT.hex().encode(), "hex:raw"),
    "hex, upper case, lines, 0x": (b"0x" + b"\n".join([REPORT.hex().upper().encode()]) + b"\r\n", "hex:raw"),
    "base64": (b64encode(REPORT), "base64:raw"),
    "base64 in lines": (b"\n".join(b64encode(REPORT)[i : i + 64] for i in range(0, 1580, 64)), "base64:raw"),
    "base64url without padding": (urlsafe_b64encode(REPORT).rstrip(b"="), "base64:raw"),
    "base64 of a response": (b64encode(_response(REPORT)), "base64:response"),
    "hex of azure": (_hcl(REPORT, RUNTIME).hex().encode(), "hex:azure-hcl"),
}


@pytest.mark.parametrize("case", FORMS)
def test_forms(case: str) -> None:
    data, form = FORMS[case]
    found = recognise(data)
    assert found.form == form
    assert found.report.raw == REPORT
    assert (found.certificate_table is not None) == ("certificates" in form)
    assert (found.runtime_data == RUNTIME) == ("azure" in form)


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "white space": (b" \n", "2 bytes"),
    "truncated": (REPORT[:1183], "truncated"),
    "one byte behind": (REPORT + b"\0", "follow a report"),
    "one byte that is not zero": (REPORT + b"\1", "follow a report"),
    "zeros behind": (REPORT + bytes(2816), "left over behind the report"),
    "random behind": (REPORT + bytes(range(1, 200)), "no certificate table"),
    "two reports": (REPORT * 2, "no certificate table"),
    "table that points outside": (REPORT + TABLE[:-1], "no certificate table"),
    "response with a status": (_response(REPORT, 0x16), "firmware status 0x16"),
    "response with something behind": (_response(REPORT) + b"\1", "behind the report"),
    "truncated response": (_response(REPORT)[:-1], "response of 1215 bytes"),
    "azure, truncated": (_hcl(REPORT, b"")[:1200], "truncated"),
    "azure, another report": (_hcl(REPORT, RUNTIME, kind=4), "report type 4"),
    "azure, another hash": (_hcl(REPORT, RUNTIME, digest=2), "hash type 2"),
    "azure, length outside": (_hcl(REPORT, RUNTIME, length=0xFFFFFF), "16777215 bytes by its header"),
    "azure, something behind": (_hcl(REPORT, RUNTIME) + b"\1", "behind the runtime data"),
    "odd hex": (REPORT.hex().encode()[:-1], "even number"),
    "hex of half a report": (REPORT.hex().encode()[:1184], "truncated"),
    "broken base64": (b64encode(REPORT)[:-3] + b"=A=", "looks like base64"),
    "hex inside base64": (b64encode(REPORT.hex().encode()), "follow a report"),
    "words": (b"this is no report\n", "truncated"),
    "words with marks": (b"this, is no report!\n", "truncated"),
    "huge": (bytes((4 << 20) + 1), "at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_no_form_is_refused(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(MalformedInput, match=message):
        recognise(data)


def test_runtime_data_is_bound_by_the_report_data() -> None:
    assert recognise(_hcl(BOUND, RUNTIME)).check_binding()
    assert not recognise(BOUND).check_binding()
    for report, runtime in ((BOUND, RUNTIME + b" "), (REPORT, RUNTIME)):
        with pytest.raises(errors.RuntimeDataMismatch):
            recognise(_hcl(report, runtime)).check_binding()


def test_a_table_behind_the_report_is_collateral() -> None:
    found = recognise(REPORT + TABLE)
    collateral = Collateral(None, [WORLD.authority("ask")], certificate_table=found.certificate_table)
    assert verify(found.report, collateral, at=forge.AT, roots=WORLD.roots()).product is GENOA


def test_the_best_fitting_leaf_is_chosen() -> None:
    newer = WORLD.leaf(ext={"levels": {"snp": 5}})
    other = WORLD.leaf(ext={"hwid": bytes(64)})
    ask = WORLD.authority("ask")
    own = WORLD.leaf()
    collateral = Collateral(None, [newer, other, ask, WORLD.leaf("vlek"), own])
    verified = verify(REPORT, collateral, at=forge.AT, roots=WORLD.roots())
    assert verified.leaf.der == own
    with pytest.raises(errors.TcbMismatch):
        verify(REPORT, Collateral(None, [other, newer, ask]), at=forge.AT, roots=WORLD.roots())


def test_unusable_authorities_in_a_table_are_passed_over() -> None:
    table = cert_table.build(
        [(cert_table.VCEK, WORLD.leaf()), (cert_table.ASK, b"\xff" * 40), (cert_table.CRL, b"x"), (b"?" * 16, b"y")]
    )
    collateral = Collateral(None, [WORLD.authority("ask")], certificate_table=table)
    assert verify(REPORT, collateral, at=forge.AT, roots=WORLD.roots()).chain.issuer.kind == "ask"


@settings(max_examples=150)
@given(st.integers(0, SIGNED_BITS - 1))
def test_any_flipped_bit_in_the_signed_region_is_refused(bit: int) -> None:
    flipped = bytearray(REPORT)
    flipped[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(errors.NotGenuine):
        verify(bytes(flipped), COLLATERAL, at=forge.AT, roots=ROOTS, allow_host_report=True, allow_masked_chip_id=True)


COLLATERAL, ROOTS = WORLD.collateral(), WORLD.roots()


@given(st.integers(8 * 0x2A0, 8 * 0x4A0 - 1))
def test_any_flipped_bit_of_the_signature_is_refused(bit: int) -> None:
    flipped = bytearray(REPORT)
    flipped[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises((errors.ReportSignatureInvalid, errors.ReportMalformed)):
        verify(bytes(flipped), COLLATERAL, at=forge.AT, roots=ROOTS)


@given(st.binary(max_size=2000), st.sampled_from(["", "report", "response", "hcl"]))
def test_random_bytes_are_a_report_or_malformed(data: bytes, lead: str) -> None:
    lead_bytes = {"": b"", "report": REPORT, "response": _response(REPORT), "hcl": _hcl(REPORT, b"")[:1232]}[lead]
    try:
        found = recognise(lead_bytes + data)
    except MalformedInput:
        return
    assert isinstance(text(found.report), str)
    assert len(found.report.document()) > 40


@given(st.binary(min_size=1184, max_size=1184))
def test_any_1184_bytes_decode_and_never_verify(data: bytes) -> None:
    report = recognise(data).report
    assert report.raw == data
    assert text(report)
    try:
        verify(report, COLLATERAL, at=forge.AT, roots=ROOTS)
    except SevError as error:
        assert isinstance(error, (errors.NotGenuine, errors.Undecided))  # noqa: PT017
    else:
        pytest.fail("random bytes verified")
