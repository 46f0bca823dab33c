"""Which way a guest takes, how it waits, and at which level it runs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import sev.guest
from sev.errors import DeviceMissing, NotPermitted, UsageError
from sev.guest import ReportRequest, Throttled
from sev.guest import device as sev_guest
from sev.guest import tsm as configfs
from sev.guest.answers import trimmed_table
from sev.guest.choice import choose
from sev.guest.levels import own_level
from sev.guest.patience import Busy, Patience
from sevd.simulator.errnos import fail
from sevd.simulator.guest_device import SevGuestDevice as Driver
from sevd.simulator.process import Process
from tests.unit.guest_side.conftest import FakeTime


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with neither; the folder of configfs-tsm would be the answer."""
    monkeypatch.setattr(configfs, "PATH", str(tmp_path / "tsm"))
    return tmp_path / "tsm"


def provider(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    def provide(_self: object) -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(configfs.ConfigfsTsm, "provider", provide)


def guest(driver: Driver) -> Process:
    return Process({sev_guest.PATH: driver.open})


def test_nothing_is_there(nothing: Path) -> None:
    with pytest.raises(DeviceMissing) as caught:
        sev.guest.open(kernel=Process({}))
    assert sev_guest.PATH in caught.value.message
    assert str(nothing) in caught.value.message
    assert "modprobe sev-guest" in caught.value.remedy


def test_the_device_is_there(nothing: Path, driver: Driver) -> None:
    with sev.guest.open(kernel=guest(driver)) as platform:
        assert platform.name == "sev-guest"
        assert platform.report(ReportRequest(bytes(64))).vmpl == 0
    assert not nothing.exists()


def test_configfs_comes_first(nothing: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing.mkdir()
    provider(monkeypatch, "sev_guest")
    assert sev.guest.open(kernel=guest(driver)).name == "configfs-tsm"
    assert choose(kernel=guest(driver), needs_device=True).name == "sev-guest"
    assert choose(kernel=guest(driver), needs_tsm=True).name == "configfs-tsm"


@pytest.mark.parametrize("answer", ["tdx_guest", DeviceMissing("x"), NotPermitted("x")])
def test_a_configfs_that_is_of_no_use(
    nothing: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch, answer: str | Exception
) -> None:
    nothing.mkdir()
    provider(monkeypatch, answer)
    assert sev.guest.open(kernel=guest(driver)).name == "sev-guest"


def test_what_this_user_may_not_use_is_said(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = Process({sev_guest.PATH: lambda _flags: fail(errno.EACCES)})
    with pytest.raises(NotPermitted, match=sev_guest.PATH):
        sev.guest.open(kernel=forbidden)
    nothing.mkdir()
    provider(monkeypatch, NotPermitted("the folder"))
    with pytest.raises(NotPermitted, match="the folder"):
        sev.guest.open(kernel=Process({}))


def test_a_choice_that_is_made(nothing: Path, driver: Driver) -> None:
    assert sev.guest.open(device="/x", kernel=Process({"/x": driver.open})).path == "/x"
    assert sev.guest.open(tsm="/y").path == "/y"
    with pytest.raises(DeviceMissing):
        sev.guest.open(device="/z", kernel=guest(driver))
    with pytest.raises(UsageError):
        sev.guest.open(device="/x", tsm="/y")
    with pytest.raises(UsageError):
        choose(needs_device=True, needs_tsm=True)


@pytest.mark.parametrize(
    ("text", "level"), [(b"2\n", 2), (b"0", 0), (b"3", 3), (b"4", 0), (b"", 0), (b"x\n", 0), (b"9" * 40, 0)]
)
def test_the_level_of_the_kernel(tmp_path: Path, text: bytes, level: int) -> None:
    (tmp_path / "vmpl").write_bytes(text)
    none = str(tmp_path / "none")
    assert own_level(str(tmp_path / "vmpl"), none) == level
    assert own_level(none, str(tmp_path / "vmpl")) == level
    assert own_level(none, none) == 0


def test_a_driver_with_another_key_than_the_kernels_level(tmp_path: Path) -> None:
    (tmp_path / "vmpl").write_bytes(b"1\n")
    for vmpck, level in ((b"-1\n", 1), (b"0\n", 1), (b"3\n", 3)):
        (tmp_path / "vmpck").write_bytes(vmpck)
        assert own_level(str(tmp_path / "vmpl"), str(tmp_path / "vmpck")) == level


def test_patience_without_any(time: FakeTime) -> None:
    def attempt() -> int:
        raise Busy("the host is busy")

    with pytest.raises(Throttled, match="asked once"):
        Patience(0, clock=time.clock, sleep=time.sleep).run(attempt)
    assert time.pauses == []


def test_the_last_attempt_is_at_the_end(time: FakeTime) -> None:
    moments: list[float] = []

    def attempt() -> int:
        moments.append(time.now)
        raise Busy("busy")

    with pytest.raises(Throttled):
        Patience(1, clock=time.clock, sleep=time.sleep).run(attempt)
    assert moments == pytest.approx([0, 0.1, 0.3, 0.7, 1.0])


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        (b"", 0),
        (bytes(4096), 0),
        (b"\x01" * 16 + (48).to_bytes(4, "little") + (8).to_bytes(4, "little") + bytes(4072), 56),
        (b"\x01" * 16 + bytes(4080), 48),
        (b"\x01" * 16 + b"\xff" * 8 + bytes(4072), 4096),
        (b"\x01" * 100, 100),
    ],
)
def test_tables_are_trimmed_to_what_they_say(table: bytes, kept: int) -> None:
    assert trimmed_table(table) == table[:kept]
