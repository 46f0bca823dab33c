"""What older kernels answer while the platform, or SNP, is not initialised."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from sev import status
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, UsageError
from sev.launch import SevDevice
from sevd.simulator import Simulator, kernel_era
from sevd.simulator.errnos import Reply
from sevd.simulator.process import Process
from tests.support import docs
from tests.support.caller import UNTOUCHED, issue
from tests.support.legacy import Boot
from tests.support.simulated import refuse

STATUS, COMMIT, CONFIG, VLEK = 9, 10, 11, 12
UNMAPPED = 0x1000
EINVAL, EPERM, EFAULT, ENODEV, EIO = errno.EINVAL, errno.EPERM, errno.EFAULT, errno.ENODEV, errno.EIO
UP = ["SNP_INIT", "SNP_DF_FLUSH"]


class Driver:
    """A host, a process on it, and what the firmware was asked."""

    def __init__(self, host: Simulator) -> None:
        self.host = host
        self.process: Process = host.process()
        self.writer = self.process.open("/dev/sev", os.O_RDWR)
        self.reader = self.process.open("/dev/sev", os.O_RDONLY)
        self.seen: list[str] = []
        host.faults = self.seen.append

    def look(self) -> list[str]:
        out = [*self.seen]
        self.seen.clear()
        return out

    def down(self) -> None:
        """SNP and legacy SEV are not initialised."""
        self.host._ccp.shut_down()
        self.look()

    def ask(self, command: int, data: int | bytes, *, writable: bool = True) -> tuple[int, int]:
        outcome = issue(self.process, self.writer if writable else self.reader, command, data)
        return outcome.errno, outcome.error

    def vlek(self) -> bytes:
        blob = self.process.memory.place(bytes(432))
        return abi.SnpVlekLoad(16, 0, blob).encode()

    def data(self, command: int) -> bytes:
        return {STATUS: bytes(32), COMMIT: b"", CONFIG: bytes(64), VLEK: self.vlek()}[command]


@pytest.fixture
def driver(boot: Boot) -> Callable[[str], Driver]:
    return lambda era: Driver(boot(era))


def test_the_table() -> None:
    assert list(kernel_era.ERAS) == ["A", "B", "B2", "C"]
    assert kernel_era.DEFAULT == "C"
    assert all(set(era.without_snp) == {STATUS, COMMIT, CONFIG, VLEK} for era in kernel_era.ERAS.values())


def test_the_documentation_has_the_table() -> None:
    words = {
        kernel_era.EINVAL: "EINVAL",
        kernel_era.ENODEV: "ENODEV",
        kernel_era.AS_IS: "asks the firmware",
        kernel_era.AROUND: "initialises SNP, shuts it down",
    }
    expected = [
        (name, *(words[era.without_snp[command]] for command in (STATUS, COMMIT, CONFIG)),
         "shut down" if era.shutdown_after else "stays")
        for name, era in kernel_era.ERAS.items()
    ]  # fmt: skip
    listed = docs.rows(
        "sev-platform.md", "era", "kernels", "SNP_PLATFORM_STATUS without SNP", "SNP_COMMIT without SNP",
        "SNP_SET_CONFIG, SNP_VLEK_LOAD without SNP", "after an implicit INIT",
    )  # fmt: skip
    assert [(row[0], *row[2:]) for row in listed] == expected
    assert all(era.without_snp[CONFIG] == era.without_snp[VLEK] for era in kernel_era.ERAS.values())


def test_an_era_that_does_not_exist(boot: Boot) -> None:
    with pytest.raises(UsageError, match="expected one of A, B, B2, C"):
        boot("D")


@pytest.mark.parametrize("era", kernel_era.ERAS)
def test_a_host_that_is_up_answers_alike(driver: Callable[[str], Driver], era: str) -> None:
    host = driver(era)
    assert [host.ask(command, host.data(command)) for command in (STATUS, COMMIT, CONFIG)] == [(0, 0)] * 3
    assert host.ask(VLEK, host.data(VLEK)) == (EIO, status.BAD_SVN)
    assert host.look() == ["SNP_PLATFORM_STATUS", "SNP_COMMIT", "SNP_CONFIG", "SNP_VLEK_LOAD"]
    assert host.ask(abi.PDH_GEN, 0) == (0, 0)
    assert host.look() == ["PDH_GEN"]
    assert host.host.host_facts().kernel == kernel_era.ERAS[era].release


FIRMWARE = {STATUS: "SNP_PLATFORM_STATUS", COMMIT: "SNP_COMMIT", CONFIG: "SNP_CONFIG", VLEK: "SNP_VLEK_LOAD"}


@pytest.mark.parametrize(
    ("era", "command", "rule"),
    [(era, command, row.without_snp[command]) for era, row in kernel_era.ERAS.items() for command in FIRMWARE],
)
def test_snp_commands_without_snp(driver: Callable[[str], Driver], era: str, command: int, rule: str) -> None:
    host = driver(era)
    host.down()
    answer = host.ask(command, host.data(command))
    asked = host.look()
    if rule == kernel_era.EINVAL:
        assert (answer, asked) == ((EINVAL, UNTOUCHED), [])
    elif rule == kernel_era.ENODEV:
        assert (answer, asked) == ((ENODEV, UNTOUCHED), [])
    else:
        around = rule == kernel_era.AROUND
        assert answer == ((EIO, status.BAD_SVN) if command == VLEK else (0, 0))
        assert asked == [*(UP if around else []), FIRMWARE[command], *(["SNP_SHUTDOWN"] if around else [])]
    assert host.host.firmware.snp_platform_status()[2] == abi.STATE_UNINIT


@pytest.mark.parametrize(("era", "state"), [("B", abi.STATE_INIT), ("B2", abi.STATE_UNINIT), ("C", abi.STATE_UNINIT)])
def test_the_state_that_is_told(driver: Callable[[str], Driver], era: str, state: int) -> None:
    host = driver(era)
    host.down()
    outcome = issue(host.process, host.reader, STATUS, bytes(32))
    assert abi.SnpStatus.decode(outcome.data).state == state


@pytest.mark.parametrize(
    ("era", "none", "unreadable", "reading"),
    [
        ("A", EINVAL, EINVAL, EINVAL),
        ("B", EINVAL, EFAULT, EPERM),
        ("B2", EINVAL, EFAULT, EPERM),
        ("C", EINVAL, ENODEV, EPERM),
    ],
)
@pytest.mark.parametrize("command", [CONFIG, VLEK])
def test_the_order_of_checks_without_snp(
    driver: Callable[[str], Driver], era: str, command: int, none: int, unreadable: int, reading: int
) -> None:
    host = driver(era)
    host.down()
    assert host.ask(command, 0, writable=False) == (none, UNTOUCHED)
    assert host.ask(command, UNMAPPED) == (unreadable, UNTOUCHED)
    assert host.ask(command, UNMAPPED, writable=False) == (reading, UNTOUCHED)
    assert host.look() == [], "nothing was initialised for it"


@pytest.mark.parametrize(
    ("era", "expected"),
    [
        ("A", ["INIT", "DF_FLUSH", "PDH_GEN"]),
        ("B", [*UP, "INIT", "DF_FLUSH", "PDH_GEN", "SHUTDOWN", "SNP_SHUTDOWN"]),
        ("B2", [*UP, "INIT", "DF_FLUSH", "PDH_GEN", "SHUTDOWN", "SNP_SHUTDOWN"]),
        ("C", ["INIT", "DF_FLUSH", "PDH_GEN", "SHUTDOWN"]),
    ],
)
def test_an_implicit_init(driver: Callable[[str], Driver], era: str, expected: list[str]) -> None:
    host = driver(era)
    host.down()
    assert host.ask(abi.PDH_GEN, 0) == (0, 0)
    assert host.look() == expected
    assert host.ask(abi.PDH_GEN, 0) == (0, 0)
    assert host.look() == (["PDH_GEN"] if era == "A" else expected)


@pytest.mark.parametrize(("era", "snp"), [("A", True), ("B", False), ("B2", False), ("C", False)])
def test_snp_after_a_reset(driver: Callable[[str], Driver], era: str, snp: bool) -> None:
    host = driver(era)
    assert host.ask(abi.FACTORY_RESET, 0) == (0, 0)
    assert host.ask(abi.PEK_GEN, 0) == (0, 0)
    assert bool(host.host.firmware.snp_platform_status()[2]) == snp


@pytest.mark.parametrize(
    ("era", "command", "error"),
    [
        ("A", "INIT", status.RESOURCE_LIMIT),
        ("C", "INIT", status.RESOURCE_LIMIT),
        ("B", "INIT", status.INVALID_PLATFORM_STATE),
        ("B2", "INIT", status.INVALID_PLATFORM_STATE),
        ("B", "SNP_INIT", status.INVALID_PLATFORM_STATE),
    ],
)
def test_an_implicit_init_that_fails(driver: Callable[[str], Driver], era: str, command: str, error: int) -> None:
    host = driver(era)
    host.down()
    refuse(host.host, command, code=status.RESOURCE_LIMIT)
    assert host.ask(abi.PDH_GEN, 0) == (EIO, error)


@pytest.mark.parametrize(("era", "command"), [("B", STATUS), ("B", COMMIT), ("B2", CONFIG), ("B2", VLEK)])
def test_an_implicit_snp_init_that_fails(driver: Callable[[str], Driver], era: str, command: int) -> None:
    host = driver(era)
    host.down()
    refuse(host.host, "SNP_INIT", code=status.RESOURCE_LIMIT)
    assert host.ask(command, host.data(command)) == (EIO, status.INVALID_PLATFORM_STATE)


def test_snp_cannot_come_up_behind_legacy_sev(driver: Callable[[str], Driver]) -> None:
    """Era B: legacy SEV is up, SNP is not; SNP_INIT is refused then."""
    host = driver("B")
    host.down()
    host.host._ccp._initialise_legacy(Reply())
    assert host.ask(STATUS, bytes(32)) == (EIO, status.INVALID_PLATFORM_STATE)


@pytest.mark.parametrize("era", kernel_era.ERAS)
def test_an_export_reads_before_or_after_it_initialises(driver: Callable[[str], Driver], era: str) -> None:
    host = driver(era)
    host.down()
    early = era == "A"
    assert host.ask(abi.PDH_CERT_EXPORT, UNMAPPED, writable=False) == ((EPERM if early else EFAULT), UNTOUCHED)
    assert host.look() == []
    assert host.ask(abi.PDH_CERT_EXPORT, UNMAPPED) == (EFAULT, 0 if early else UNTOUCHED)
    assert host.look() == (["INIT", "DF_FLUSH"] if early else [])


@pytest.mark.parametrize("era", kernel_era.ERAS)
def test_the_library_tells_a_missing_snp_in_every_era(driver: Callable[[str], Driver], era: str) -> None:
    host = driver(era)
    host.down()
    with SevDevice(host.process) as device:
        if kernel_era.ERAS[era].without_snp[CONFIG] == kernel_era.AROUND:
            device.snp_set_config(bytes(64))
            return
        with pytest.raises(DeviceMissing, match="SNP is not initialised") as missing:
            device.snp_set_config(bytes(64))
        assert missing.value.errno == (EINVAL if era == "A" else ENODEV)
