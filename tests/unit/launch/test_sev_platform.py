"""Typed commands of the legacy platform."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from sev import status
from sev.abi import sev_certificate
from sev.abi import sev_device as abi
from sev.errors import FirmwareError, KernelError, MalformedInput, NotOffered, NotPermitted, WrongState
from sev.launch import SevDevice
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.legacy import Owner, check_chain
from tests.support.legacy_machine import some_guest
from tests.support.simulated import refuse

SIZE = sev_certificate.SIZE


@pytest.fixture
def device(process: Process) -> Iterator[SevDevice]:
    with SevDevice(process) as opened:
        yield opened


def flags(device: SevDevice) -> int:
    return abi.PlatformStatus.decode(device.platform_status()).flags


def test_the_life_of_a_platform(host: Simulator, device: SevDevice) -> None:
    first = check_chain(*device.pdh_export(), host.firmware.ca)
    device.pdh_generate()
    second = check_chain(*device.pdh_export(), host.firmware.ca)
    assert second[1:] == first[1:]
    assert second[0] != first[0]
    owner = Owner()
    device.pek_import(owner.sign(device.pek_csr()), owner.oca)
    assert flags(device) == abi.FLAG_OWNED | abi.FLAG_CONFIG_ES
    third = check_chain(*device.pdh_export(), host.firmware.ca)
    assert third[2] == owner.certificate
    device.pek_generate()
    assert flags(device) == abi.FLAG_CONFIG_ES
    fourth = check_chain(*device.pdh_export(), host.firmware.ca)
    device.reset()
    assert abi.PlatformStatus.decode(device.platform_status()).state == abi.STATE_UNINIT
    fifth = check_chain(*device.pdh_export(), host.firmware.ca)
    assert len({chain[1].key for chain in (first, third, fourth, fifth)}) == 3, "PEK"
    assert len({chain[3].key for chain in (first, third, fourth, fifth)}) == 1, "CEK"


def test_identifiers(host: Simulator, device: SevDevice) -> None:
    assert device.get_ids() == (host.firmware.get_id(), bytes(64))


def test_a_reader_may_look(process: Process, device: SevDevice) -> None:
    with SevDevice(process, writable=False) as reader:
        assert reader.pdh_export() == device.pdh_export()
        assert reader.get_ids() == device.get_ids()
        changes: list[Callable[[], object]] = [
            reader.reset,
            reader.pek_generate,
            reader.pek_csr,
            reader.pdh_generate,
            lambda: reader.pek_import(bytes(SIZE), bytes(SIZE)),
        ]
        for change in changes:
            with pytest.raises(NotPermitted) as refused:
                change()
            assert refused.value.errno == errno.EPERM
        device.reset()
        with pytest.raises(NotPermitted):
            reader.pdh_export()


def test_a_refusal_says_everything(device: SevDevice) -> None:
    owner = Owner()
    pek = owner.sign(device.pek_csr())
    device.pek_import(pek, owner.oca)
    with pytest.raises(FirmwareError) as refused:
        device.pek_import(pek, owner.oca)
    error = refused.value
    assert (error.command, error.errno, error.firmware_status) == ("PEK_CERT_IMPORT", errno.EIO, status.ALREADY_OWNED)
    assert (error.metadata["state"], bool(error.remedy)) == ("INIT", True)


@pytest.mark.parametrize(
    ("pek", "oca", "field"),
    [(SIZE - 1, SIZE, "pek"), (0, SIZE, "pek"), (SIZE, SIZE + 1, "oca")],
    ids=["short PEK", "no PEK", "long OCA"],
)
def test_wrong_lengths_never_reach_the_kernel(
    host: Simulator, device: SevDevice, pek: int, oca: int, field: str
) -> None:
    calls: list[str] = []
    host.faults = calls.append
    with pytest.raises(MalformedInput) as refused:
        device.pek_import(bytes(pek), bytes(oca))
    assert (refused.value.field, calls) == (field, [])


def test_a_reset_while_guests_run(host: Simulator, device: SevDevice) -> None:
    guests = host.firmware._platform.legacy.guests
    guests[1] = some_guest()
    with pytest.raises(WrongState) as refused:
        device.reset()
    assert (refused.value.errno, refused.value.metadata["state"]) == (errno.EBUSY, "WORKING")
    with pytest.raises(FirmwareError) as new_keys:
        device.pek_generate()
    assert new_keys.value.firmware_status == status.INVALID_PLATFORM_STATE
    assert new_keys.value.metadata["state"] == "WORKING"
    guests.clear()
    device.reset()


COMMANDS: dict[str, Callable[[SevDevice], object]] = {
    "FACTORY_RESET": lambda device: device.reset(),
    "PEK_GEN": lambda device: device.pek_generate(),
    "PEK_CSR": lambda device: device.pek_csr(),
    "PDH_GEN": lambda device: device.pdh_generate(),
    "PDH_CERT_EXPORT": lambda device: device.pdh_export(),
    "PEK_CERT_IMPORT": lambda device: device.pek_import(bytes(SIZE), bytes(SIZE)),
    "GET_ID": lambda device: device.get_ids(),
    "PLATFORM_STATUS": lambda device: device.platform_status(),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_any_status_is_told(host: Simulator, device: SevDevice, name: str) -> None:
    refuse(host, name)
    with pytest.raises(FirmwareError) as refused:
        COMMANDS[name](device)
    assert (refused.value.command, refused.value.firmware_status) == (name, status.HWERROR_UNSAFE)
    assert ("state" in refused.value.metadata) == (name != "PLATFORM_STATUS")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_processor_that_hangs(host: Simulator, device: SevDevice, name: str) -> None:
    def hang(_command: str) -> None:
        raise TimeoutError

    host.faults = hang
    for number in (errno.ETIMEDOUT, errno.EBUSY):
        with pytest.raises(KernelError) as refused:
            COMMANDS[name](device)
        assert (refused.value.errno, refused.value.firmware_status) == (number, None)
        assert "ccp" in refused.value.remedy


def test_old_firmware_has_no_identifiers(host: Simulator, device: SevDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(host.firmware), "version", (0, 15, 1))
    with pytest.raises(NotOffered):
        device.get_ids()
