"""`sev doctor`: what never leaves the machine, what is left of a configuration, and what it does without anything."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from sev.audit_trail import AuditRecord
from sev.doctor import configuration as configurations
from sev.doctor.bundle import pack
from sev.doctor.configuration import configuration
from sev.doctor.gather import audit_counts
from sev.doctor.machine import state
from sev.doctor.redact import Redactor
from tests.support.cli import sev

SECRET = bytes(range(7, 39))


def clean(text: str, *, names: bool = False) -> str:
    return Redactor(names=names).text(text)


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        SECRET.hex(),
        SECRET.hex().upper(),
        f"0x{SECRET.hex()}",
        f"key={SECRET.hex()};",
        base64.b64encode(SECRET).decode(),
        base64.urlsafe_b64encode(SECRET).decode(),
        f'{{"tik":"{base64.b64encode(SECRET).decode()}"}}',
    ],
)
def test_long_runs_of_digits_are_withheld(text: str, names: bool) -> None:
    found = clean(f"before {text} after", names=names)
    assert "withheld" in found
    assert found.startswith("before ")
    assert found.endswith(" after")
    for spelled in (SECRET.hex(), SECRET.hex().upper(), base64.b64encode(SECRET).decode()):
        assert spelled[:24] not in found


@given(st.binary(min_size=24, max_size=200))
@settings(max_examples=60)
def test_no_secret_of_24_bytes_or_more_is_left_in_hexadecimal(secret: bytes) -> None:
    assert secret.hex() not in clean(f"a {secret.hex()} b")


def test_pem_is_withheld_whole_and_cut_off() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    for text in (pem, pem[:120], json.dumps(pem)):
        found = clean(text, names=True)
        assert "PEM PRIVATE KEY withheld" in found
        assert pem.splitlines()[1][:16] not in found


@pytest.mark.parametrize(
    "text",
    ["https://user:hunter2@kds.example/", "password=hunter2", "SEVD_TOKEN: hunter2", 'api_secret="hunter2"'],
)
def test_passwords_are_withheld(text: str) -> None:
    assert "hunter2" not in clean(text, names=True)


@pytest.mark.parametrize(
    "text",
    [
        "581b00000000000a",
        "/var/lib/sevd/endorsements/certificates",
        "SnpPlatformService/ResetSnpConfig",
        "deploy-42.0628699387cd",
        "8f14e45f-ceea-467f-a1f5-2b9a2bd3ff5a",
        "127.0.0.1:50051",
        "uid:0",
        "2026-11-25T13:30:23.381Z",
        "at 13:30:23 the firmware 1.55.49 said 1:2",
        "::1",
    ],
)
def test_what_helps_is_kept(text: str) -> None:
    assert clean(text) == text


def test_names_become_stand_ins_that_stay_the_same() -> None:
    redactor = Redactor(names=False)
    redactor.learn("guest", ["web-frontend", ""])
    redactor.learn("machine", ["host7.example.org", "host7"])
    found = redactor.document(
        {
            "a": "uid:1000 launched web-frontend on host7.example.org from 10.1.2.3",
            "b": ["uid:1000", "uid:1001", "snp-0f3a5c7e9b1d", "/home/alice/x", "fe80::1:2:3", "02:00:5e:10:00:00"],
            "web-frontend": 1,
        }
    )
    text = json.dumps(found)
    for name in ("1000", "1001", "web-frontend", "host7", "10.1.2.3", "0f3a5c7e9b1d", "alice", "fe80", "02:00"):
        assert name not in text, name
    assert isinstance(found, dict)
    first, second, *_ = found["b"]
    assert first in found["a"]
    assert first != second
    assert Redactor(names=True).text("uid:1000 on host7") == "uid:1000 on host7"


CONFIGURATION = f"""
[daemon]
log_level = "debug"
socket = "/home/alice/s"
state_dir = 7
no_such = "hunter2"
[simulation]
seed = 424242
[limits]
connections = 99
[access]
admin_users = ["alice", "bob"]
[endorsements]
kds = "https://u:hunter2@kds.example"
[[identity]]
match = "user:carol"
role = "admin"
[other]
key = "{SECRET.hex()}"
numbers = ["hunter2"]
"""


@pytest.mark.parametrize("names", [False, True])
def test_a_configuration_without_what_might_be_secret(tmp_path: Path, names: bool) -> None:
    (tmp_path / "c").write_text(CONFIGURATION)
    redactor = Redactor(names=names)
    found = redactor.document(configuration(str(tmp_path / "c"), redactor))
    text = json.dumps(found)
    assert isinstance(found, dict)
    assert (found["daemon.log_level"], found["limits.connections"], found["identity[0].role"]) == ("debug", 99, "admin")
    for secret in ("hunter2", "424242", SECRET.hex()):
        assert secret not in text
    for name in ("alice", "bob", "carol"):
        assert (name in text) is names, name


@pytest.mark.parametrize("content", ["not toml = = hunter2", "\udcff", "a = [" * 5000])
def test_a_configuration_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "c").write_text(content, errors="surrogateescape")
    assert "hunter2" not in str(configuration(str(tmp_path / "c"), Redactor(names=False)))


def test_the_state_directory_is_the_configured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ark.key").write_bytes(SECRET)
    (tmp_path / "c.toml").write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\n')
    monkeypatch.setenv("SEVD_SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(configurations, "find", lambda uid: str(tmp_path / "c.toml"))
    sections = sev("doctor", "--json").json()["sections"]
    assert [one["name"] for one in sections["state"]] == ["ark.key"]
    assert SECRET.hex() not in json.dumps(sections)


def test_a_state_directory_is_listed_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "ark.key").write_bytes(SECRET)
    found = state(str(tmp_path))
    assert [one["name"] for one in found] == ["folder", "folder/ark.key"]
    assert found[1]["bytes"] == len(SECRET)


def test_audit_records_are_counted_without_names() -> None:
    line = '{"sequence":1,"method":"S/M","result":"refused","reason":"NOT_FOUND","target":"web-frontend","caller":%s}'
    trail = [AuditRecord.parse(line % '{"owner":"dns:host7.example"}')] * 3
    for names in (False, True):
        redactor = Redactor(names=names)
        found = redactor.document(audit_counts(trail, redactor))
        assert isinstance(found, dict)
        assert found["by_method"] == {"S/M refused NOT_FOUND": 3}
        assert ("host7" in json.dumps(found)) is names
        assert redactor.text("web-frontend") == ("web-frontend" if names else "guest-1")


def test_an_archive_holds_what_it_is_given_and_nobody_s_name() -> None:
    data = pack([("a.json", "what", b"{}")], 1000.5)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (entry,) = archive.getmembers()
        assert (entry.name, entry.uname, entry.gname, entry.uid, entry.mtime) == ("sev-doctor/a.json", "", "", 0, 1000)
    assert gzip.decompress(data) == gzip.decompress(pack([("a.json", "what", b"{}")], 1000.5))


def test_without_a_daemon_and_without_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEVD_SOCKET", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(configurations, "SYSTEM_FILE", str(tmp_path / "none.toml"))
    out = tmp_path / "b.tar.gz"
    done = sev("doctor", "--out", out, "--json")
    assert done.code == 0, done.err
    document = done.json()
    assert "daemon" in [problem["id"] for problem in document["problems"]]
    assert all(problem["remedy"] for problem in document["problems"])
    names = [one["name"] for one in document["contents"]]
    assert {"README.txt", "versions.json", "host-check.json", "kernel.json", "host.json", "log.json"} <= set(names)
    unseen = {one["name"]: one["not_seen"] for one in document["contents"] if one["not_seen"]}
    assert "no such socket" in unseen["host.json"]
    assert "log.json" in unseen
    assert stat.S_IMODE(os.stat(out).st_mode) == 0o600
    with tarfile.open(out) as archive:
        assert [entry.name.removeprefix("sev-doctor/") for entry in archive.getmembers()] == names
