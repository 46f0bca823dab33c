"""configfs-tsm through the library: reports, levels, an SVSM's services; entries that never stay, writes that get lost."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sev.attestation import Collateral, Roots, verify
from sev.errors import (
    DeviceMissing,
    KernelError,
    NotOffered,
    NotPermitted,
    SevError,
    UsageError,
)
from sev.guest import AnswerMismatch, ChannelDisabled, KeyRequest, ReportRequest, Throttled
from sev.guest.model import ServiceRequest
from sev.guest.patience import Patience
from sev.guest.tsm import ConfigfsTsm
from sev.guest.tsm_files import LinuxFiles
from sevd.simulator import Simulator
from sevd.simulator.guest_device import SevGuestDevice as Driver
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.svsm import MANIFEST_GUID, VTPM_GUID
from sevd.simulator.tsm_nodes import ReportFolder
from tests.support.node_files import NodeFiles
from tests.unit.guest_side.conftest import FakeTime

NONCE = bytes(range(64))


@pytest.fixture
def svsm_files(guest: GuestRef, table: bytes) -> NodeFiles:
    return NodeFiles(ReportFolder(Driver(guest, lambda: table, svsm=True)))


@pytest.fixture
def svsm(svsm_files: NodeFiles, patience: Patience) -> ConfigfsTsm:
    return ConfigfsTsm("report", files=svsm_files, patience=patience)


def test_a_report_answers_and_verifies(tsm: ConfigfsTsm, files: NodeFiles, host: Simulator, table: bytes) -> None:
    nonce = os.urandom(64)
    answer = tsm.report(ReportRequest(nonce, certificates=True))
    assert (answer.source, answer.vmpl, answer.manifest) == ("configfs-tsm", 0, None)
    assert answer.certificate_table == table
    verify(
        answer.parse(),
        Collateral(certificate_table=table),
        at=datetime.now(UTC),
        roots=Roots.from_pem(host.roots_pem()),
    )
    assert files.names() == []
    made, removed = files.calls[0], files.calls[-1]
    assert (made[0], removed[0], made[1]) == ("mkdir", "rmdir", removed[1])


def test_only_what_is_asked_for_is_read(tsm: ConfigfsTsm, files: NodeFiles) -> None:
    assert tsm.report(ReportRequest(NONCE)).certificate_table is None
    assert ("read", "auxblob") not in files.calls
    assert ("read", "manifestblob") not in files.calls


def test_every_report_has_an_entry_of_its_own(tsm: ConfigfsTsm, files: NodeFiles) -> None:
    for _ in range(5):
        tsm.report(ReportRequest(NONCE))
    names = {name for what, name in files.calls if what == "mkdir"}
    assert len(names) == 5
    assert files.names() == []


@pytest.mark.parametrize("vmpl", range(4))
def test_levels(tsm: ConfigfsTsm, vmpl: int) -> None:
    assert tsm.report(ReportRequest(NONCE, vmpl=vmpl)).vmpl == vmpl


def test_the_floor_is_the_level_where_none_is_named(svsm: ConfigfsTsm, svsm_files: NodeFiles) -> None:
    assert svsm.report(ReportRequest(NONCE)).vmpl == 2
    assert svsm.report(ReportRequest(NONCE, vmpl=3)).vmpl == 3
    with pytest.raises(UsageError, match="2 and above"):
        svsm.report(ReportRequest(NONCE, vmpl=1))
    assert svsm_files.names() == []


def test_a_level_for_all_requests(files: NodeFiles) -> None:
    assert ConfigfsTsm("report", files=files, vmpl=3).report(ReportRequest(NONCE)).vmpl == 3


def test_all_services_of_an_svsm(svsm: ConfigfsTsm) -> None:
    answer = svsm.report(ReportRequest(NONCE, service=ServiceRequest(), certificates=True))
    assert answer.manifest is not None
    assert answer.manifest[:16] == MANIFEST_GUID.bytes_le
    assert answer.parse().report_data == hashlib.sha512(NONCE + answer.manifest).digest()
    assert answer.report_data == NONCE
    assert answer.certificates()


def test_one_service_of_an_svsm(svsm: ConfigfsTsm, svsm_files: NodeFiles) -> None:
    answer = svsm.report(ReportRequest(NONCE, service=ServiceRequest(guid=str(VTPM_GUID))))
    assert answer.manifest
    assert answer.manifest[:16] != MANIFEST_GUID.bytes_le
    for wrong in (ServiceRequest(guid=str(MANIFEST_GUID)), ServiceRequest(guid=str(VTPM_GUID), manifest_version=9)):
        with pytest.raises(KernelError, match="service") as caught:
            svsm.report(ReportRequest(NONCE, service=wrong))
        assert caught.value.errno == errno.EINVAL
    assert svsm_files.names() == []


def test_a_manifest_that_the_report_does_not_bind(svsm_files: NodeFiles, patience: Patience) -> None:
    class Forging(NodeFiles):
        def read(self, name: str, limit: int) -> bytes:
            data = super().read(name, limit)
            return data + b"!" if name.endswith("manifestblob") else data

    forging = ConfigfsTsm("report", files=Forging(svsm_files.folder), patience=patience)
    with pytest.raises(AnswerMismatch, match="report_data"):
        forging.report(ReportRequest(NONCE, service=ServiceRequest()))


def test_there_is_no_svsm(tsm: ConfigfsTsm, files: NodeFiles) -> None:
    with pytest.raises(NotOffered, match="no service attributes"):
        tsm.report(ReportRequest(NONCE, service=ServiceRequest()))
    assert files.names() == []


@pytest.mark.parametrize(
    "request_", [ReportRequest(NONCE, message_version=2), ReportRequest(NONCE, signing_key="vlek")]
)
def test_what_this_way_does_not_carry(tsm: ConfigfsTsm, files: NodeFiles, request_: ReportRequest) -> None:
    with pytest.raises(NotOffered, match="carries no"):
        tsm.report(request_)
    with pytest.raises(NotOffered, match="no derived keys"):
        tsm.derived_key(KeyRequest())
    assert files.calls == []


def test_a_wiped_key_shows_here_too(guest: GuestRef, host: Simulator, patience: Patience) -> None:
    def unauthentic(command: str) -> None:
        if command == "SNP_GUEST_REQUEST":
            raise OSError(errno.EIO, "lost")

    files = NodeFiles(ReportFolder(Driver(guest, lambda: b"")))
    tsm = ConfigfsTsm("report", files=files, patience=patience)
    host.faults = unauthentic
    with pytest.raises(KernelError, match="failed on its way") as caught:
        tsm.report(ReportRequest(NONCE))
    assert "vmpck_id" in caught.value.remedy
    host.faults = lambda _command: None
    with pytest.raises(ChannelDisabled, match="wiped"):
        tsm.report(ReportRequest(NONCE))
    assert files.names() == []


def test_no_guest_any_more(guest: GuestRef, patience: Patience) -> None:
    class Gone(NodeFiles):
        def mkdir(self, name: str) -> None:
            raise OSError(errno.ENXIO, "gone")

    with pytest.raises(DeviceMissing, match="no driver makes reports"):
        ConfigfsTsm("report", files=Gone(ReportFolder(Driver(guest, lambda: b""))), patience=patience).provider()


# --- what a kernel, and others on the machine, may do ---------------------------------------------------------------


class Meddling(NodeFiles):
    """Does something before an attribute is read or written: answers what, or raises; None goes on as usual."""

    def __init__(self, files: NodeFiles, attribute: str, act: Callable[[str], bytes | None], times: int = 1000) -> None:
        super().__init__(files.folder)
        self._attribute = attribute
        self._act = act
        self._times = times

    def _meddle(self, name: str) -> bytes | None:
        if self._times and name.endswith(f"/{self._attribute}"):
            self._times -= 1
            return self._act(name.partition("/")[0])
        return None

    def read(self, name: str, limit: int) -> bytes:
        found = self._meddle(name)
        return super().read(name, limit) if found is None else found

    def write(self, name: str, data: bytes) -> None:
        if self._meddle(name) is None:
            super().write(name, data)


def meddled(
    files: NodeFiles, patience: Patience, attribute: str, act: Callable[[str], bytes | None], times: int = 1000
) -> ConfigfsTsm:
    return ConfigfsTsm("report", files=Meddling(files, attribute, act, times), patience=patience)


def raises(number: int) -> Callable[[str], bytes | None]:
    def act(_entry: str) -> bytes | None:
        raise OSError(number, os.strerror(number))

    return act


def test_somebody_else_writes_once(files: NodeFiles, patience: Patience, time: FakeTime) -> None:
    tsm = meddled(files, patience, "outblob", lambda entry: files.write(f"{entry}/inblob", bytes(64)), times=1)
    assert tsm.report(ReportRequest(NONCE)).report_data == NONCE
    assert len(time.pauses) == 1
    assert files.names() == []


def test_somebody_else_never_stops_writing(files: NodeFiles, patience: Patience) -> None:
    tsm = meddled(files, patience, "outblob", lambda entry: files.write(f"{entry}/inblob", bytes(64)))
    with pytest.raises(Throttled, match="generation is 3 where 2 was expected"):
        tsm.report(ReportRequest(NONCE))
    assert files.names() == []


def test_a_write_that_gets_lost(files: NodeFiles, patience: Patience) -> None:
    with pytest.raises(Throttled, match="a write was lost"):
        meddled(files, patience, "inblob", lambda _entry: b"").report(ReportRequest(NONCE))


def test_another_report_than_was_asked_for(files: NodeFiles, tsm: ConfigfsTsm, patience: Patience) -> None:
    old = tsm.report(ReportRequest(bytes(64))).report
    for wrong in (old, old[:-1], b"", old + bytes(1)):
        with pytest.raises(AnswerMismatch):
            meddled(files, patience, "outblob", lambda _entry, wrong=wrong: wrong).report(ReportRequest(NONCE))  # type: ignore[misc]
    assert files.names() == []


ERRORS = {
    ("outblob", errno.EINVAL): (KernelError, "no such level or key"),
    ("outblob", errno.ENXIO): (KernelError, "does not tell its status"),
    ("outblob", errno.EIO): (KernelError, "on its way"),
    ("outblob", errno.EBADMSG): (KernelError, "authenticate"),
    ("outblob", errno.ENOTTY): (ChannelDisabled, "VMPCK"),
    ("outblob", errno.ETIMEDOUT): (Throttled, "one minute"),
    ("outblob", errno.EBUSY): (Throttled, "asked"),
    ("outblob", errno.EAGAIN): (Throttled, "asked"),
    ("outblob", errno.EFBIG): (KernelError, "outblob"),
    ("auxblob", errno.EFBIG): (KernelError, "too large"),
    ("inblob", errno.EFBIG): (KernelError, "inblob"),
    ("inblob", errno.ENOENT): (KernelError, "inblob"),
    ("privlevel", errno.EINVAL): (KernelError, "VMPL"),
    ("provider", errno.EACCES): (KernelError, "provider"),
    ("generation", errno.EIO): (KernelError, "generation"),
}


@pytest.mark.parametrize(("attribute", "number"), ERRORS, ids=str)
def test_errors_of_attributes(files: NodeFiles, patience: Patience, attribute: str, number: int) -> None:
    kind, words = ERRORS[attribute, number]
    with pytest.raises(kind, match=words) as caught:
        meddled(files, patience, attribute, raises(number)).report(ReportRequest(NONCE, certificates=True))
    assert type(caught.value) is kind
    assert files.names() == [], "the entry stays"


@pytest.mark.parametrize("text", [b"", b"x\n", b"-1\n", b"1" * 30, "²".encode(), b"\xff\xfe"])
def test_numbers_that_are_none(files: NodeFiles, patience: Patience, text: bytes) -> None:
    with pytest.raises(AnswerMismatch, match="number"):
        meddled(files, patience, "generation", lambda _entry: text).report(ReportRequest(NONCE))
    assert files.names() == []


def test_another_kind_of_guest(files: NodeFiles, patience: Patience) -> None:
    tsm = meddled(files, patience, "provider", lambda _entry: b"tdx_guest\n")
    assert tsm.provider() == "tdx_guest"
    with pytest.raises(NotOffered, match="tdx_guest"):
        tsm.report(ReportRequest(NONCE))


MKDIR = {
    errno.ENXIO: DeviceMissing, errno.ENOENT: DeviceMissing, errno.EROFS: DeviceMissing, errno.EACCES: NotPermitted,
    errno.EPERM: NotPermitted, errno.EBUSY: Throttled, errno.ENOSPC: KernelError, errno.EEXIST: KernelError,
}  # fmt: skip


@pytest.mark.parametrize("number", MKDIR, ids=lambda number: errno.errorcode[number])
def test_entries_that_cannot_be_made(files: NodeFiles, patience: Patience, number: int) -> None:
    class Refusing(NodeFiles):
        def mkdir(self, name: str) -> None:
            raise OSError(number, os.strerror(number))

    with pytest.raises(MKDIR[number]) as caught:
        ConfigfsTsm("report", files=Refusing(files.folder), patience=patience).report(ReportRequest(NONCE))
    assert type(caught.value) is MKDIR[number]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOTEMPTY, errno.EACCES])
def test_an_entry_that_cannot_be_removed_is_named(files: NodeFiles, number: int) -> None:
    class Keeping(NodeFiles):
        def rmdir(self, name: str) -> None:
            raise OSError(number, os.strerror(number))

    with pytest.raises(KernelError, match="cannot be removed") as caught:
        ConfigfsTsm("report", files=Keeping(files.folder)).report(ReportRequest(NONCE))
    assert "rmdir report/sev-" in caught.value.remedy


def test_an_entry_that_is_gone_already(files: NodeFiles) -> None:
    class Swept(NodeFiles):
        def rmdir(self, name: str) -> None:
            super().rmdir(name)
            raise FileNotFoundError(errno.ENOENT, "gone")

    assert ConfigfsTsm("report", files=Swept(files.folder)).report(ReportRequest(NONCE)).report_data == NONCE


def test_an_interruption_leaves_no_entry(files: NodeFiles, patience: Patience) -> None:
    def interrupt(_entry: str) -> bytes | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meddled(files, patience, "outblob", interrupt).report(ReportRequest(NONCE))
    assert files.names() == []


# --- the real files -------------------------------------------------------------------------------------------------


def test_linux_files(tmp_path: Path) -> None:
    files = LinuxFiles(str(tmp_path))
    files.mkdir("e")
    assert files.names() == ["e"]
    assert files.names("e") == []
    (tmp_path / "e" / "a").write_bytes(b"")
    files.write("e/a", b"x" * 100)
    assert files.read("e/a", 100) == b"x" * 100
    with pytest.raises(OSError, match="large") as caught:
        files.read("e/a", 99)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        files.read("e/b", 1)
    with pytest.raises(FileNotFoundError):
        files.write("e/b", b"")
    (tmp_path / "e" / "a").unlink()
    files.rmdir("e")
    assert files.names() == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceMissing, match="configfs") as caught:
        ConfigfsTsm(str(tmp_path / "configfs")).report(ReportRequest(NONCE))
    assert "mount" in caught.value.remedy


def test_a_folder_that_is_no_configfs(tmp_path: Path) -> None:
    with pytest.raises(SevError, match="generation"):
        ConfigfsTsm(str(tmp_path)).report(ReportRequest(NONCE))
    assert os.listdir(tmp_path) == []
