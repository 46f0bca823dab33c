"""Every real report and certificate has the verdict that its description gives, with AMD's keys built in."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from sev.attestation import Collateral, Report, errors, recognise, verify
from sev.certs import Authority, Certificate, Roots, builtin, load
from sev.certs import chain as chains
from sev.certs.crl import Crl
from sev.errors import MalformedInput
from sev.products import by_name
from tests.support.data import DATA, FACTS

NOW = datetime(2026, 8, 25, tzinfo=UTC)
VLEK_TIME = datetime(2025, 7, 1, tzinfo=UTC)
CRL_TIME = datetime(2026, 7, 1, tzinfo=UTC)


def _rows() -> list[tuple[str, str]]:
    """(report, certificate) of the table "What verifies what"."""
    text = (DATA / "README.md").read_text()
    table = text[text.index("## What verifies what") : text.index("Things these files show")]
    rows = re.findall(r"^\| ([\w-]+) \| ([\w.-]+\.der) \| OK \| OK \| OK \| (?:OK|n/a) \|", table, re.MULTILINE)
    assert len(rows) >= 24
    return rows


ROWS = _rows()


def _time(certificate: str) -> datetime:
    return VLEK_TIME if certificate.endswith(".vlek.der") else NOW


def _report(name: str) -> Report:
    return recognise((DATA / "snp" / f"{name}.report.bin").read_bytes()).report


@pytest.mark.parametrize(("report", "certificate"), ROWS)
def test_verifies_with_nothing_but_the_leaf(report: str, certificate: str) -> None:
    leaf = (DATA / "snp" / certificate).read_bytes()
    verified = verify(_report(report), Collateral(leaf), at=_time(certificate))
    assert verified.product.name == ("genoa" if report.startswith("siena") else report.split("-", maxsplit=1)[0])
    results = {step.id: step.result for step in verified.steps}
    assert results.pop("revocation") == "skipped"
    assert results.pop("chip_id") == ("skipped" if "vlek" in certificate else "passed")
    assert set(results.values()) == {"passed"}
    assert verified.chain.root.certificate is None
    tcb = verified.report.reported_tcb
    assert tcb is not None
    assert tcb.components() == verified.leaf.tcb


@pytest.mark.parametrize(("report", "certificate"), ROWS)
def test_verifies_with_the_given_roots_and_chain(report: str, certificate: str) -> None:
    """The same through certificates instead of numbers: --roots with AMD's ARK, --ca with the ASK or ASVK."""
    line = "genoa" if report.startswith("siena") else report.split("-", maxsplit=1)[0]
    issuer = "asvk" if "vlek" in certificate else "ask"
    roots = Roots.from_pem((DATA / "roots" / f"{line}-ark.der").read_bytes())
    collateral = Collateral(
        (DATA / "snp" / certificate).read_bytes(), [(DATA / "roots" / f"{line}-{issuer}.der").read_bytes()]
    )
    verified = verify(_report(report), collateral, at=_time(certificate), roots=roots)
    assert verified.chain.root.certificate is not None


@pytest.mark.parametrize("line", ["milan", "genoa", "turin"])
def test_a_chain_as_the_kds_serves_it_is_collateral(line: str) -> None:
    report, certificate = next(row for row in ROWS if row[0].startswith(line))
    collateral = Collateral(
        (DATA / "snp" / certificate).read_bytes(), [(DATA / "roots" / f"cert_chain-{line}.pem").read_bytes()]
    )
    roots = Roots.from_pem((DATA / "roots" / f"cert_chain-{line}.pem").read_bytes())
    assert verify(_report(report), collateral, at=NOW, roots=roots).product.name == line


def test_every_other_vcek_is_refused_for_every_report() -> None:
    leaves = {
        name: Certificate.parse((DATA / "snp" / name).read_bytes())
        for name in sorted({certificate for _, certificate in ROWS})
    }
    right = {(report, leaves[certificate].spki) for report, certificate in ROWS}
    refused = 0
    for report in sorted({report for report, _ in ROWS}):
        parsed = _report(report)
        for name, leaf in leaves.items():
            if (report, leaf.spki) in right:
                continue
            with pytest.raises(errors.NotGenuine):
                verify(parsed, Collateral(leaf), at=_time(name))
            refused += 1
    assert refused > 300


def test_the_vcek_at_vmpl_1_of_the_same_chip() -> None:
    leaf = (DATA / "snp" / "milan-v5-gcp.vcek.der").read_bytes()
    assert verify(_report("milan-v5-gcp-vmpl1"), Collateral(leaf), at=NOW).report.vmpl == 1


def test_the_aws_vlek_ran_out() -> None:
    leaf = (DATA / "snp" / "milan-v3-aws-vlek.vlek.der").read_bytes()
    with pytest.raises(errors.CertificateExpired, match="VLEK"):
        verify(_report("milan-v3-aws-vlek"), Collateral(leaf), at=NOW)


@pytest.mark.parametrize("name", ["milan-vcek-hwid-raw-untrusted", "milan-vcek-hwid-octet-untrusted"])
def test_untrusted_certificates_are_read_and_their_chain_fails(name: str) -> None:
    leaf = Certificate.parse((DATA / "snp" / f"{name}.der").read_bytes())
    assert leaf.kind == "vcek"
    assert leaf.hwid is not None
    assert len(leaf.hwid) == 64
    with pytest.raises(errors.LeafSignatureInvalid):
        chains.build(leaf, chains.issuers(leaf, Roots.amd()))


def test_the_turin_vcek_without_a_report_has_a_chain() -> None:
    leaf = Certificate.parse((DATA / "snp" / "turin-vcek-only.der").read_bytes())
    chain = chains.build(leaf, chains.issuers(leaf, Roots.amd()))
    chains.check_dates(chain, NOW)
    assert leaf.hwid == bytes.fromhex("1e550a8ee5cf9f4d")
    assert leaf.tcb == {"fmc": 0, "bootloader": 0, "tee": 0, "snp": 0, "microcode": 9}
    assert leaf.extensions.struct_version == 1


def test_every_real_leaf_has_serial_0_and_hwid_of_its_line() -> None:
    files = sorted((DATA / "snp").glob("*.der"))
    assert len(files) > 25
    for path in files:
        leaf = Certificate.parse(path.read_bytes())
        assert leaf.serial == (leaf.serial if "untrusted" in path.name else 0)
        if leaf.kind == "vcek":
            assert leaf.product is not None
            assert leaf.hwid is not None
            assert len(leaf.hwid) == leaf.product.chip_id_bytes
        else:
            assert leaf.csp_id == "CN=cc-us-east-2.amazonaws.com"


@pytest.mark.parametrize(("name", "at"), [("genoa-2026-08-19", NOW), ("milan-2026-06-22", CRL_TIME)])
def test_real_lists_clear_the_chain_in_their_window(name: str, at: datetime) -> None:
    line = name.split("-", maxsplit=1)[0]
    report = {"genoa": "genoa-v5-generic", "milan": "milan-v5-gcp"}[line]
    leaf = (DATA / "snp" / f"{report}.vcek.der").read_bytes()
    crl = (DATA / "crl" / f"{name}.crl").read_bytes()
    verified = verify(_report(report), Collateral(leaf, crls=[crl]), at=at)
    assert {step.id: step.result for step in verified.steps}["revocation"] == "passed"


def test_the_milan_list_is_stale_in_august_and_the_genoa_list_is_no_list_of_milan() -> None:
    leaf = (DATA / "snp" / "milan-v5-gcp.vcek.der").read_bytes()
    milan, genoa = ((DATA / "crl" / f"{name}.crl").read_bytes() for name in ("milan-2026-06-22", "genoa-2026-08-19"))
    with pytest.raises(errors.CrlStale):
        verify(_report("milan-v5-gcp"), Collateral(leaf, crls=[milan]), at=NOW)
    with pytest.raises(errors.CrlOfAnotherIssuer):
        verify(_report("milan-v5-gcp"), Collateral(leaf, crls=[genoa]), at=NOW)
    assert verify(_report("milan-v5-gcp"), Collateral(leaf, crls=[genoa, milan]), at=CRL_TIME).product.name == "milan"


def test_the_genoa_list_names_the_superseded_ask() -> None:
    crl = Crl.parse((DATA / "crl" / "genoa-2026-08-19.crl").read_bytes())
    assert (crl.number, list(crl.revoked)) == (10, [0x20001])
    assert crl.this_update == datetime(2026, 8, 19, 14, 9, 1, tzinfo=UTC)
    assert crl.next_update == datetime(2026, 10, 4, tzinfo=UTC)


@pytest.mark.parametrize("line", ["milan", "genoa", "turin"])
@pytest.mark.parametrize("kind", ["ark", "ask", "asvk"])
def test_built_in_authorities_are_those_of_the_certificates(line: str, kind: str) -> None:
    number = getattr(builtin(by_name(line)), kind)
    certificate = load((DATA / "roots" / f"{line}-{kind}.der").read_bytes())[0]
    given = Authority.of(certificate)
    assert number.public_key().public_numbers() == given.public_key().public_numbers()
    for attribute in ("kind", "common_name", "name", "product", "serial", "not_before", "not_after", "sha256"):
        assert getattr(number, attribute) == getattr(given, attribute), attribute
    assert builtin(by_name(line)).ark.signed(certificate)


def test_built_in_numbers_are_the_published_ones() -> None:
    facts = json.loads((FACTS / "amd-roots.json").read_text())["products"]
    for line in ("milan", "genoa", "turin"):
        for kind in ("ark", "ask", "asvk"):
            wanted = facts[line]["x509"][kind]
            numbers = getattr(builtin(by_name(line)), kind).public_key().public_numbers()
            assert (f"{numbers.n:x}", numbers.e) == (wanted["modulus_hex"], wanted["exponent"])


def test_evidence_of_real_hosts_and_guests_is_recognised() -> None:
    response = recognise((DATA / "host" / "msg-report-rsp-milan-v2.bin").read_bytes())
    assert (response.form, response.report.chip_id.hex()[:16]) == ("response", "9e1235cce6f3e507")
    for name in ("milan-v2", "milan-v3", "genoa-v3"):
        blob = recognise((DATA / "azure" / f"hcl-report-{name}.bin").read_bytes())
        assert blob.form == "azure-hcl"
        assert blob.check_binding()
        assert blob.runtime_data is not None
        assert "keys" in json.loads(blob.runtime_data)
    preproduction = recognise((DATA / "snp" / "milan-v2-preproduction.report.bin").read_bytes()).report
    assert preproduction.current_version == (1, 51, 3)
    assert preproduction.committed_version == (1, 49, 6)
    assert preproduction.provisional
    with pytest.raises(MalformedInput, match=r"793 bytes.*truncated"):
        recognise((DATA / "snp" / "milan-v2-truncated.report.bin").read_bytes())
    with pytest.raises(MalformedInput):
        recognise((DATA / "host" / "derived-key-rsp.bin").read_bytes())


def test_a_real_host_table_has_pem_and_verifies_its_report() -> None:
    table = (DATA / "host" / "cert-table-genoa-v3-tsm.bin").read_bytes()
    report = DATA / "snp" / "genoa-v3-tsm.report.bin"
    assert verify(_report("genoa-v3-tsm"), Collateral(certificate_table=table), at=NOW).product.name == "genoa"
    together = recognise(report.read_bytes() + table)
    assert together.form == "raw+certificates"
    assert together.certificate_table == table


DESCRIPTION = re.compile(
    r"^\| snp/(?P<name>[\w-]+)\.report\.bin \|.*\| v(?P<version>\d).*; chip (?P<chip>[0-9a-f]{16}); "
    r"VMPL (?P<vmpl>\d); guest SVN (?P<svn>\d+); policy (?P<policy>0x[0-9a-f]+); platform_info (?P<info>0x[0-9a-f]+); "
    r"signer_info (?P<signer>0x[0-9a-f]+); firmware (?P<firmware>[\d.]+); TCB reported (?P<reported>[0-9a-f]{16}), "
    r"current (?P<current>[0-9a-f]{16}), committed (?P<committed>[0-9a-f]{16}), launch (?P<launch>[0-9a-f]{16}); "
    r"measurement (?P<measurement>[0-9a-f]{16}).*; report_data (?P<data>[0-9a-f]{16})",
    re.MULTILINE,
)
FILES = [match.groupdict() for match in DESCRIPTION.finditer((DATA / "README.md").read_text())]


@pytest.mark.parametrize("wanted", FILES, ids=[one["name"] for one in FILES])
def test_fields_are_decoded_as_described(wanted: dict[str, str]) -> None:
    report = _report(wanted["name"])
    firmware = ".".join(str(part) for part in report.current_version)
    assert report.version == int(wanted["version"])
    assert report.chip_id.hex().startswith(wanted["chip"])
    assert (report.vmpl, report.guest_svn) == (int(wanted["vmpl"]), int(wanted["svn"]))
    assert report.policy.raw == int(wanted["policy"], 16)
    assert report.platform_info == int(wanted["info"], 16)
    assert report.key_info == int(wanted["signer"], 16)
    assert firmware == wanted["firmware"]
    for which in ("reported", "current", "committed", "launch"):
        # The description has the eight bytes in memory order.
        assert report.tcb_raw(f"{which}_tcb").to_bytes(8, "little").hex() == wanted[which]
    assert report.measurement.hex().startswith(wanted["measurement"])
    assert report.report_data.hex().startswith(wanted["data"])
    assert report.reserved == {}
    assert report.platform_info_unknown == report.policy.unknown == report.key_info_unknown == 0


def test_descriptions_were_found() -> None:
    assert len(FILES) == 22


def test_files_are_the_described_ones() -> None:
    wanted = dict(re.findall(r"^\| (\S+) \|[^|]*\| \d+ \| `([0-9a-f]{64})`", (DATA / "README.md").read_text(), re.M))
    mine = [path for path in wanted if Path(path).parts[0] in ("snp", "crl", "azure", "host", "vectors")]
    assert len(mine) > 60
    assert all(sha256((DATA / path).read_bytes()).hexdigest() == wanted[path] for path in mine)
