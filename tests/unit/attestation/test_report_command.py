"""`sev report`: exit codes, what is printed, JSON, and hostile files through the whole command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sev.abi import cert_table
from sev.cli.main import main
from sev.products import MILAN
from tests.support.forge import World, pem

WORLD = World()
MILAN_CRL = World(MILAN).crl()
FILES: dict[str, bytes] = {
    "report": WORLD.report(),
    "host-report": WORLD.report(vmpl=0xFFFFFFFF),
    "masked": WORLD.report(chip_id=bytes(64)),
    "v2": WORLD.report(version=2, chip_id=bytes(64)),
    "hex": WORLD.report().hex().encode(),
    "truncated": WORLD.report()[:793],
    "vek": WORLD.leaf(),
    "ask": pem(WORLD.authority("ask")),
    "ark": pem(WORLD.authority("ark")),
    "crl": WORLD.crl(),
    "other-crl": MILAN_CRL,
    "junk": b"\x30junk",
    "table": cert_table.build([(cert_table.VCEK, WORLD.leaf()), (cert_table.ASK, WORLD.authority("ask"))]),
    "good.toml": b"[report]\nvmpl = 0\nmeasurement = '" + bytes(range(48)).hex().encode() + b"'\n",
    "bad.json": b'{"report": {"vmpl": 3}}',
    "unknown.toml": b"[report]\nvmlp = 0\n",
    "binary.toml": b"\xff\xfe",
}
AT = ("--at", "2026-08-25T00:00:00Z")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    certs = tmp_path / "certs"
    certs.mkdir()
    (certs / "vcek.pem").write_bytes(pem(FILES["vek"]))
    (certs / "ask.der").write_bytes(WORLD.authority("ask"))
    (certs / "ark.pem").write_bytes(FILES["ark"])
    (certs / "crl.pem").write_bytes(pem(FILES["crl"], "X509 CRL"))
    (certs / "broken.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    (certs / "notes.txt").write_bytes(b"not looked at")
    (certs / "folder.pem").mkdir()
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(folder)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["report", *words])
        done = capsys.readouterr()
        assert "Traceback" not in done.err
        return code, done.out, done.err

    return call


CHAIN = ("--ca", "ask", "--roots", "ark", *AT)
VERIFY: dict[str, tuple[tuple[str, ...], int, str]] = {
    "genuine": (("report", "--vek", "vek", *CHAIN), 0, ""),
    "hexadecimal": (("hex", "--vek", "vek", *CHAIN), 0, ""),
    "folder": (("report", "--certs", "certs", "--roots", "certs/ark.pem", *AT), 0, ""),
    "table": (("report", "--cert-table", "table", "--roots", "ark", *AT), 0, ""),
    "with list": (("report", "--vek", "vek", "--crl", "crl", *CHAIN), 0, ""),
    "host report allowed": (("host-report", "--vek", "vek", "--allow-host-report", *CHAIN), 0, ""),
    "masked chip allowed": (("masked", "--vek", "vek", "--allow-masked-chip-id", *CHAIN), 0, ""),
    "product as expected": (("report", "--vek", "vek", "--product", "siena", *CHAIN), 0, ""),
    "policy": (("report", "--vek", "vek", "--policy", "good.toml", *CHAIN), 0, ""),
    "time with a zone": (("report", "--vek", "vek", *CHAIN, "--at", "2026-08-25T02:00:00+02:00"), 0, ""),
    "time without a zone": (("report", "--vek", "vek", *CHAIN, "--at", "2026-08-25"), 0, ""),
    "truncated": (("truncated", "--vek", "vek", *CHAIN), 3, "truncated"),
    "AMD's roots": (("report", "--vek", "vek", *AT), 3, "--roots"),
    "host report": (("host-report", "--vek", "vek", *CHAIN), 3, "host asked"),
    "masked chip": (("masked", "--vek", "vek", *CHAIN), 3, "chip_id is zero"),
    "another product": (("report", "--vek", "vek", "--product", "milan", *CHAIN), 3, "expected Milan"),
    "another time": (("report", "--vek", "vek", *CHAIN, "--at", "2040-01-01"), 3, "ran out"),
    "no certificate": (("report", *CHAIN), 5, "not given"),
    "no issuer": (("report", "--vek", "vek", "--roots", "ark", *AT), 5, "neither built in nor given"),
    "junk as certificate": (("report", "--vek", "junk", *CHAIN), 5, "cannot be read"),
    "junk as issuer": (("report", "--vek", "vek", "--ca", "junk", *CHAIN), 5, "cannot be read"),
    "junk as roots": (("report", "--vek", "vek", "--roots", "junk", *AT), 5, "roots"),
    "junk as list": (("report", "--vek", "vek", "--crl", "junk", *CHAIN), 5, "revocation list"),
    "junk as table": (("report", "--cert-table", "junk", *CHAIN), 5, "certificate table"),
    "list of another product": (("report", "--vek", "vek", "--crl", "other-crl", *CHAIN), 5, "ARK-Milan"),
    "stale list": (("report", "--vek", "vek", "--crl", "crl", *CHAIN, "--at", "2026-11-01"), 5, "ran out"),
    "policy not met": (("report", "--vek", "vek", "--policy", "bad.json", *CHAIN), 4, "vmpl"),
    "measurement not met": (("report", "--vek", "vek", "--measurement", "00" * 48, *CHAIN), 4, "measurement"),
    "host data not met": (("report", "--vek", "vek", "--host-data", "11" * 32, *CHAIN), 4, "host_data"),
    "VMPL not met": (("report", "--vek", "vek", "--vmpl", "1", *CHAIN), 4, "vmpl"),
    "report data not met": (("report", "--vek", "vek", "--report-data", "00", *CHAIN), 4, "report_data"),
    "policy with an unknown key": (("report", "--vek", "vek", "--policy", "unknown.toml", *CHAIN), 2, "vmlp"),
    "policy that is no text": (("report", "--vek", "vek", "--policy", "binary.toml", *CHAIN), 2, "UTF-8"),
    "policy and option for one field": (
        ("report", "--vek", "vek", "--policy", "good.toml", "--vmpl", "0", *CHAIN),
        2,
        "twice",
    ),
    "no such report": (("nowhere", "--vek", "vek", *CHAIN), 2, "No such file"),
    "no such certificate": (("report", "--vek", "nowhere", *CHAIN), 2, "No such file"),
    "no such folder": (("report", "--certs", "nowhere", *CHAIN), 2, "No such file"),
    "a file as folder": (("report", "--certs", "vek", *CHAIN), 2, "Not a directory"),
    "two leaves": (("report", "--vek", "vek", "--certs", "certs", *CHAIN), 2, "not allowed with"),
    "no time": (("report", "--vek", "vek", *CHAIN, "--at", "yesterday"), 2, "2026-08-25T00:00:00Z"),
    "time beyond all calendars": (("report", "--vek", "vek", *CHAIN, "--at", "0001-01-01T00:00:00+23:00"), 2, "--at"),
    "unknown product": (("report", "--vek", "vek", "--product", "zen", *CHAIN), 2, "zen"),
    "measurement of another length": (("report", "--measurement", "00", *CHAIN), 2, "48 bytes"),
    "report data of 65 bytes": (("report", "--report-data", "00" * 65, *CHAIN), 2, "at most 64"),
    "no report": (CHAIN, 2, "FILE"),
}


@pytest.mark.parametrize("case", VERIFY)
def test_verify(case: str, run: Run) -> None:
    words, code, message = VERIFY[case]
    got, out, err = run("verify", *words)
    assert got == code, err
    assert message in err
    if code in (0, 4):
        assert "genuine" in out
    if code == 3:
        assert "not genuine" in out
        assert "failed" in out
    if code == 5:
        assert out == "" or "cannot be told" in out
    got, out, err = run("verify", *words, "--json")
    assert got == code
    document = json.loads(out)
    if code != 2:
        assert document["verified"] is (code in (0, 4))
        assert [step["result"] for step in document["steps"]].count("failed") == (
            code in (3, 5) and bool(document["steps"])
        )
        assert (document["report"] is None) is (case == "truncated")
        assert ("appraisal" in document) is ("policy" in case or "met" in case)
    assert ("error" in document) is (code != 0)


def test_report_data_is_padded_and_that_is_said(run: Run) -> None:
    code, out, err = run("verify", "report", "--vek", "vek", *CHAIN, "--report-data", "0001", "--json")
    assert code == 4
    assert "padded with 62 zeros" in err
    check = next(one for one in json.loads(out)["appraisal"]["checks"] if one["field"] == "report_data")
    assert check["expected"] == "0001" + "00" * 62
    code, _, err = run("verify", "report", "--vek", "vek", *CHAIN, "--report-data", bytes(range(64)).hex())
    assert code == 0
    assert "padded" not in err


def test_a_folder_passes_over_what_is_no_certificate_and_says_so(run: Run) -> None:
    code, _, err = run("verify", "report", "--certs", "certs", "--roots", "ark", *AT)
    assert code == 0
    assert "broken.pem is passed over" in err


def test_appraise_needs_genuine_evidence_and_a_policy(run: Run) -> None:
    assert run("appraise", "report", "--vek", "vek", *CHAIN)[0] == 2
    assert run("appraise", "report", "--policy", "good.toml", *CHAIN)[0] == 5
    assert run("appraise", "truncated", "--policy", "good.toml", "--vek", "vek", *CHAIN)[0] == 3
    code, out, _ = run("appraise", "report", "--policy", "good.toml", "--vek", "vek", *CHAIN)
    assert code == 0
    assert "accepted" in out
    assert "not asked: version" in out
    code, out, err = run("appraise", "report", "--policy", "bad.json", "--vek", "vek", *CHAIN)
    assert code == 4
    assert "failed  vmpl: expected 3, is 0" in out
    assert "not as the policy asks: vmpl" in err
    document = json.loads(run("appraise", "report", "--policy", "bad.json", "--vek", "vek", *CHAIN, "--json")[1])
    assert document["verified"] is True
    assert document["appraisal"]["accepted"] is False
    assert document["error"]["kind"] == "appraisal"


def test_show(run: Run) -> None:
    code, out, _ = run("show", "hex")
    assert code == 0
    assert bytes(range(48)).hex() in out
    document = json.loads(run("show", "report", "--json")[1])
    assert document["version"] == 5
    assert document["reported_tcb"]["raw"] == "db04000000000404"
    assert document["policy"]["debug"] is False
    assert document["platform_info"]["alias_check_complete"] is True
    assert document["form"] == "raw"
    assert json.loads(run("show", "v2", "--json")[1])["cpuid_fam_id"] is None
    assert json.loads(run("show", "v2", "--json", "--product", "milan")[1])["reported_tcb"]["snp"] == 4
    code, out, err = run("show", "truncated", "--json")
    assert code == 9
    assert json.loads(out)["error"]["kind"] == "malformed"
    assert "truncated" in err
    assert run("show", "nowhere")[0] == 2
    assert run("show", "report", "--product", "zen")[0] == 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_are_answered_properly(run: Run, folder: Path, data: st.DataObject) -> None:
    which = data.draw(st.sampled_from(["report", "vek", "ask", "ark", "crl", "table"]))
    mutated = bytearray(FILES[which])
    at = data.draw(st.integers(0, len(mutated) - 1))
    match data.draw(st.integers(0, 3)):
        case 0:
            mutated[at] ^= 1 << data.draw(st.integers(0, 7))
        case 1:
            del mutated[at:]
        case 2:
            mutated += data.draw(st.binary(min_size=1, max_size=50))
        case _:
            mutated[at : at + 8] = b"\xff" * 8
    assume(mutated != FILES[which])  # what was all ones before
    (folder / "mutated").write_bytes(mutated)
    files: dict[str, Any] = {name: name for name in ("report", "vek", "ask", "ark", "crl")} | {which: "mutated"}
    words = [files["report"], "--ca", files["ask"], "--roots", files["ark"], "--crl", files["crl"], *AT]
    words += ["--cert-table", "mutated"] if which == "table" else ["--vek", files["vek"]]
    code, _, err = run("verify", *words)
    # Text around PEM may change without a consequence; nothing else may.
    assert code in ((0, 3, 5) if which in ("ask", "ark", "table") else (3, 5)), err
