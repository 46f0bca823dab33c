"""What a guest's policy says of where it may go, between daemons: SEV (the same root), DOMAIN (the same owner), NOSEND."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sev import status
from sev.abi import amd_certificate
from sev.client import Host
from sev.errors import FirmwareError
from sev.migration import migrate
from tests.support.daemon import running
from tests.support.device_files import prepare
from tests.support.legacy import Owner
from tests.support.siblings import sibling
from tests.support.two_hosts import launched, roots

NOSEND, DOMAIN, SEV = 0x8, 0x10, 0x20
MEMORY = 1 << 20
CONTENT = b"".join(bytes([page & 0xFF]) * 4096 for page in range(MEMORY // 4096))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host, Host]]:
    """A host, another one of the same line, and one with roots of its own."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("first", "second", "stranger")]
        prepare(folders[0], "rome")
        sibling(folders[1] / "state" / "simulator", "rome")
        hosts = [
            stack.enter_context(stack.enter_context(running(folder, "--simulate=rome")).connect()) for folder in folders
        ]
        yield hosts[0], hosts[1], hosts[2]


@pytest.fixture(autouse=True)
def _nothing_left(three: tuple[Host, Host, Host]) -> Iterator[None]:
    yield
    for host in three:
        for guest in host.guests():
            host.delete_guest(guest.guest_id)


def whole(host: Host, guest: str) -> None:
    assert host.guest(guest).state in ("ready", "paused")
    assert host.read_guest_memory(guest, 0, MEMORY) == CONTENT


def refused(source: Host, target: Host, guest: str, *codes: int) -> FirmwareError:
    with pytest.raises(FirmwareError) as error:
        migrate(source, target, guest, roots=roots(target))
    assert error.value.firmware_status in codes, error.value
    whole(source, guest)
    assert target.guests() == []
    return error.value


def test_they_are_what_they_are_made_for(three: tuple[Host, Host, Host]) -> None:
    exported = [host.export_platform() for host in three]
    keys = [[one.modulus for one in amd_certificate.split(platform.authorities)] for platform in exported]
    assert keys[0] == keys[1] != keys[2]
    assert len({platform.signed_cek for platform in exported}) == 3


def test_sev_asks_for_a_chain_up_to_the_root_that_the_chip_knows(three: tuple[Host, Host, Host]) -> None:
    first, second, stranger = three
    guest = launched(first, CONTENT, SEV)
    # Its roots are trusted by who moves it, and the firmware looks for itself.
    refused(first, stranger, guest, status.INVALID_CERTIFICATE)
    assert migrate(first, second, guest, roots=roots(second)).state == "ready"
    whole(second, guest)
    assert second.guest(guest).policy == SEV


def test_without_it_the_firmware_takes_any_receiver(three: tuple[Host, Host, Host]) -> None:
    first, _, stranger = three
    guest = launched(first, CONTENT, 0)
    assert migrate(first, stranger, guest, roots=roots(stranger)).state == "ready"
    whole(stranger, guest)


@pytest.mark.parametrize("part", ["pek", "oca", "cek"])
def test_sev_and_a_chain_with_a_certificate_of_another_platform(three: tuple[Host, Host, Host], part: str) -> None:
    first, second, stranger = three
    guest = launched(first, CONTENT, SEV)
    theirs, other = second.export_platform(), stranger.export_platform()
    parts = {"pek": theirs.pek, "oca": theirs.oca, "cek": theirs.signed_cek}
    parts[part] = {"pek": other.pek, "oca": other.oca, "cek": other.signed_cek}[part]
    chain: dict[str, Any] = {"chain": b"".join(parts.values()), "authorities": theirs.authorities}
    with pytest.raises(FirmwareError) as error:
        first.start_sending(guest, pdh=theirs.pdh, **chain)
    assert error.value.firmware_status in (status.BAD_SIGNATURE, status.INVALID_CERTIFICATE)
    whole(first, guest)


def test_domain_asks_for_the_same_owner(three: tuple[Host, Host, Host]) -> None:
    first, second, stranger = three
    guest = launched(first, CONTENT, DOMAIN)
    assert "domain" in refused(first, second, guest, status.POLICY_FAILURE).remedy
    first.delete_guest(guest)
    owner = Owner()
    key = owner.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for host in (first, second):
        host.own_platform(owner.oca, key, confirm=True)
    try:
        guest = launched(first, CONTENT, DOMAIN | SEV)
        refused(first, stranger, guest, status.INVALID_CERTIFICATE)  # another root is found before another owner
        assert migrate(first, second, guest, roots=roots(second)).state == "ready"
        whole(second, guest)
        second.delete_guest(guest)
    finally:
        for host in (first, second):
            host.disown_platform(confirm=True)


def test_a_newer_firmware_than_there_is(three: tuple[Host, Host, Host]) -> None:
    first, second, _ = three
    major, minor, _ = (int(part) for part in first.sev_status().firmware.split("."))
    guest = launched(first, CONTENT, SEV | major << 16 | minor << 24)
    theirs = second.export_platform()
    assert theirs.pek[4:6] == bytes([major, minor])
    assert migrate(first, second, guest, roots=roots(second)).state == "ready"
    whole(second, guest)


def test_nosend_goes_nowhere(three: tuple[Host, Host, Host]) -> None:
    first, second, _ = three
    guest = launched(first, CONTENT, NOSEND)
    assert "nosend" in refused(first, second, guest, status.POLICY_FAILURE).remedy
