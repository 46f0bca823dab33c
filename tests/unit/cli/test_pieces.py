"""The small pieces that commands share: tables, PEM, confirmation, the firmware of the demonstration."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

import pytest

from sev.abi.tcb import TcbVersion
from sev.cli import certificates, confirm, demo_firmware, tables
from sev.cli.output import Output
from sev.errors import ConfirmationMissing, MalformedInput, UsageError
from sev.products import MILAN, TURIN


def test_facts_leave_out_what_is_not_known() -> None:
    assert tables.facts((("a", 1), ("long", "x\ny"), ("none", None), ("empty", ""))) == "a     1\nlong  x\n      y"
    assert tables.facts(()) == ""


def test_tcbs_stand_side_by_side() -> None:
    low, high = TcbVersion.of(TURIN, fmc=1, snp=2), TcbVersion.of(TURIN, fmc=1, snp=13)
    lines = tables.tcbs((("current", high), ("reported", low), ("committed", None))).splitlines()
    assert lines[0].split() == ["TCB", "current", "reported", "committed"]
    assert ["fmc", "1", "1", "-"] in [line.split() for line in lines]
    assert ["snp", "13", "2", "-"] in [line.split() for line in lines]
    assert lines[-1].split()[0] == "raw"
    assert all(len(line) == len(lines[0]) for line in lines)
    assert "fmc" not in tables.tcbs((("current", TcbVersion.of(MILAN)),))


@pytest.mark.parametrize(
    ("count", "text"),
    [(64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (4096, "4 KiB"), (540673, "540673 bytes"), (0, "0 bytes")],
)
def test_sizes(count: int, text: str) -> None:
    assert tables.size(count) == text


def test_pem_is_read_back() -> None:
    import base64

    text = certificates.pem("vcek", os.urandom(1000))
    lines = text.decode().splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----")
    assert max(len(line) for line in lines) == 64
    assert len(base64.b64decode("".join(lines[1:-1]), validate=True)) == 1000
    assert certificates.pem("crl", b"x").startswith(b"-----BEGIN X509 CRL-----\n")


def test_a_table_of_certificates_becomes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sev.abi import cert_table

    table = cert_table.build([(cert_table.VCEK, b"v"), (cert_table.ARK, b"a"), (bytes(range(1, 17)), b"?")])
    written = certificates.write_table(Output(), str(tmp_path / "new" / "dir"), table)
    assert sorted(written) == ["ark", "vcek"]
    assert (tmp_path / "new/dir/ark.pem").exists()
    assert "01020304-0506" in capsys.readouterr().err
    with pytest.raises(MalformedInput):
        certificates.write_table(Output(), str(tmp_path), b"\1" * 30)
    assert certificates.write_table(Output(), str(tmp_path / "none"), b"") == {}


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make"):
        certificates.write_directory(Output(), str(tmp_path / "file"), [("ark", b"a")], der=False)
    with pytest.raises(UsageError, match="cannot make"):
        certificates.write_directory(Output(), "a\0b", [], der=False)


@pytest.mark.parametrize(
    ("terminal", "json", "typed", "done"),
    [
        (True, False, "yes\n", True),
        (True, False, "YES\n", True),
        (True, False, "y\n", False),
        (True, False, "no\n", False),
        (True, False, "", False),
        (True, True, "yes\n", False),
        (False, False, "yes\n", False),
    ],
)
def test_confirmation(
    terminal: bool,
    json: bool,
    typed: str,
    done: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(confirm, "_is_terminal", lambda descriptor: terminal)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    args = argparse.Namespace(yes=False, json=json)
    if done:
        confirm.confirm(args, "It cannot be undone.")
        assert "It cannot be undone." in capsys.readouterr().err
    else:
        with pytest.raises(ConfirmationMissing) as caught:
            confirm.confirm(args, "It cannot be undone.")
        assert caught.value.exit_code == 2
    confirm.confirm(argparse.Namespace(yes=True, json=json), "Nothing is asked.")


def test_the_demonstration_takes_the_first_image_with_metadata(tmp_path: Path) -> None:
    from sev.measurement.sample import sample_firmware

    (tmp_path / "plain").write_bytes(bytes(65536))
    (tmp_path / "odd").write_bytes(b"odd")
    (tmp_path / "good").write_bytes(sample_firmware())
    paths = [str(tmp_path / name) for name in ("absent", "odd", "plain", "good")]
    assert demo_firmware.find(None, paths).path == paths[-1]
    built = demo_firmware.find(None, paths[:-1])
    assert (built.path, built.data) == ("", sample_firmware())
    assert demo_firmware.find(paths[-1]).path == paths[-1]
    with pytest.raises(UsageError):
        demo_firmware.find(str(tmp_path / "absent"))
    for name in ("plain", "odd"):
        with pytest.raises(MalformedInput):
            demo_firmware.find(str(tmp_path / name))
