"""The files of the remote listener: what is taken, and what is refused with which words."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from sev.errors import UsageError
from sevd.access import tls_files
from sevd.access.tls_files import TlsFiles, files_of, load
from tests.support.authority import CLIENT, HOUR, Authority, key_pem, place
from tests.support.needs import need_root

CA = Authority("clients")
SERVERS = Authority("servers")


def written(folder: Path) -> TlsFiles:
    certificate, key = SERVERS.server().write(folder, "server")
    return TlsFiles(certificate, key, place(folder / "ca.pem", CA.pem), place(folder / "crl.pem", CA.crl()))


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    files = written(tmp_path)
    found = load(files)
    assert found.context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert found.context.verify_mode is ssl.CERT_REQUIRED
    assert found.context.num_tickets == 0
    assert found.context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    assert (found.authorities, len(found.lists), found.warnings()) == ((CA.certificate,), 1, [])


def test_without_a_list_none_is_asked_for(tmp_path: Path) -> None:
    files = written(tmp_path)
    found = load(TlsFiles(files.certificate, files.key, files.client_ca))
    assert not found.context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    assert found.lists == ()


def another_key(files: TlsFiles) -> None:
    SERVERS.server().write(files.key.parent, "other")
    os.rename(files.key.parent / "other.key", files.key)


def encrypted(files: TlsFiles) -> None:
    one = SERVERS.server()
    place(files.certificate, one.pem)
    place(files.key, key_pem(one.key, b"secret"))


def leaf_as_authority(files: TlsFiles) -> None:
    place(files.client_ca, CA.pem + CA.issue("client").pem)


def foreign_list(files: TlsFiles) -> None:
    assert files.crl is not None
    place(files.crl, Authority("clients").crl())


def expired_authority(files: TlsFiles) -> None:
    assert files.crl is not None
    old = Authority("clients", days=-1)
    place(files.client_ca, old.pem)
    place(files.crl, old.crl())


def directory(files: TlsFiles) -> None:
    files.client_ca.unlink()
    files.client_ca.mkdir()


WRONG: dict[str, tuple[str, Callable[[TlsFiles], object], str]] = {
    "no certificate": ("certificate", lambda files: files.certificate.unlink(), "No such file"),
    "no PEM": ("certificate", lambda files: place(files.certificate, b"hello"), "no certificate in PEM"),
    "a broken PEM": (
        "certificate",
        lambda files: place(files.certificate, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        "no certificate in PEM",
    ),
    "a client's certificate": (
        "certificate",
        lambda files: place(files.certificate, SERVERS.issue("x", usage=CLIENT).pem),
        "not for servers",
    ),
    "an expired certificate": (
        "certificate",
        lambda files: SERVERS.server(begins=-2 * HOUR, ends=-HOUR).write(files.key.parent, "server"),
        "expired on",
    ),
    "a certificate of tomorrow": (
        "certificate",
        lambda files: SERVERS.server(begins=HOUR, ends=2 * HOUR).write(files.key.parent, "server"),
        "valid from",
    ),
    "another key": ("key", another_key, "not the key of"),
    "an encrypted key": ("key", encrypted, "is encrypted"),
    "a key for everybody": ("key", lambda files: files.key.chmod(0o644), r"mode 0644"),
    "a key for the group": ("key", lambda files: files.key.chmod(0o640), r"mode 0640"),
    "authorities that the group may write": ("client_ca", lambda files: files.client_ca.chmod(0o664), "mode 0664"),
    "a certificate that everybody may write": (
        "certificate",
        lambda files: files.certificate.chmod(0o646),
        "mode 0646",
    ),
    "no key": ("key", lambda files: place(files.key, b"hello"), "no certificate and key that go together"),
    "a file too large": ("key", lambda files: place(files.key, bytes(2 << 20)), "larger than"),
    "a directory": ("client_ca", directory, "Is a directory"),
    "an authority that is none": ("client_ca", leaf_as_authority, "no certificate of an authority"),
    "an expired authority": ("client_ca", expired_authority, "every authority in it has expired"),
    "a list of somebody else": ("crl", foreign_list, "not signed by"),
    "an old list": (
        "crl",
        lambda files: place(files.client_ca.parent / "crl.pem", CA.crl(begins=-2 * HOUR, ends=-HOUR)),
        "out of date since",
    ),
    "a list of tomorrow": (
        "crl",
        lambda files: place(files.client_ca.parent / "crl.pem", CA.crl(begins=HOUR, ends=2 * HOUR)),
        "holds from",
    ),
    "no list": ("crl", lambda files: place(files.client_ca.parent / "crl.pem", CA.pem), "no revocation list"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, what: str) -> None:
    name, spoil, says = WRONG[what]
    files = written(tmp_path)
    spoil(files)
    with pytest.raises(UsageError, match=says) as caught:
        load(files)
    assert caught.value.field == f"remote.{name}"
    assert "PRIVATE" not in caught.value.message


@pytest.mark.parametrize("what", ["an expired certificate", "an old list"])
def test_a_start_takes_what_is_only_too_old(tmp_path: Path, what: str) -> None:
    files = written(tmp_path)
    WRONG[what][1](files)
    found = load(files, stale=True)
    assert len(found.warnings()) == 1
    place(files.client_ca, b"nothing")
    with pytest.raises(UsageError):
        load(files, stale=True)


def test_an_authority_without_a_list_is_told(tmp_path: Path) -> None:
    files = written(tmp_path)
    place(files.client_ca, CA.pem + SERVERS.pem)
    assert [line.partition(":")[0] for line in load(files).warnings()] == ["remote.crl has no list of CN=servers"]


@pytest.mark.parametrize("name", ["key", "client_ca", "crl"])
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    need_root()
    files = written(tmp_path)
    os.chown(getattr(files, name), 1234, -1)
    with pytest.raises(UsageError, match="belongs to uid 1234") as caught:
        load(files)
    assert caught.value.field == f"remote.{name}"


def test_the_stamp_follows_every_file(tmp_path: Path) -> None:
    files = written(tmp_path)
    stamps = [files.stamp()]
    for path in (files.certificate, files.key, files.client_ca, files.crl):
        assert path is not None
        place(path, path.read_bytes())
        stamps.append(files.stamp())
    files.key.unlink()
    stamps.append(files.stamp())
    assert len(set(stamps)) == 6
    assert files.stamp() == stamps[-1]


def test_the_key_may_be_a_credential(tmp_path: Path) -> None:
    files = written(tmp_path)
    paths = {"certificate": files.certificate, "client_ca": files.client_ca, "key": None}
    with pytest.raises(UsageError) as caught:
        files_of(paths, {})
    assert caught.value.field == "remote.key"
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    os.rename(files.key, credentials / tls_files.CREDENTIAL)
    # As systemd leaves it for a service with a user of its own: an ACL, whose mask shows as the group's bits.
    (credentials / tls_files.CREDENTIAL).chmod(0o440)
    found = files_of(paths, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert found.key == credentials / tls_files.CREDENTIAL
    load(found)
    found.key.chmod(0o444)
    with pytest.raises(UsageError, match="mode 0444"):
        load(found)


@pytest.mark.parametrize("name", ["certificate", "client_ca"])
def test_what_is_not_set_is_named(name: str) -> None:
    paths = {one: Path("/x") for one in ("certificate", "key", "client_ca") if one != name}
    with pytest.raises(UsageError) as caught:
        files_of({**paths, name: None}, {})
    assert caught.value.field == f"remote.{name}"


def test_the_last_tenth_of_a_life_is_told(tmp_path: Path) -> None:
    files = written(tmp_path)
    assert load(files).ending() == []
    SERVERS.server(begins=-95 * HOUR, ends=5 * HOUR).write(tmp_path, "server")
    assert files.crl is not None
    place(files.crl, CA.crl(begins=-95 * HOUR, ends=5 * HOUR))
    certificate, revocations = load(files).ending()
    assert certificate.startswith("the certificate for remote callers ends by 20")
    assert revocations.startswith("the revocation list of CN=clients must be renewed by 20")
