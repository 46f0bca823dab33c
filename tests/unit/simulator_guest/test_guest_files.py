"""The guests' files through the kernel's FUSE: raw ioctls of a C program, and configfs-tsm by system calls."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sev import status
from sev.abi import cert_table
from sev.abi import guest_device as abi
from sev.attestation import Report
from sevd.simulator import Simulator
from sevd.simulator.fuse.nodes import StaticDirectory
from sevd.simulator.fuse.server import FileServer
from sevd.simulator.guest_nodes import GuestDevices, guest_tree, tsm_tree
from sevd.simulator.guest_ref import GuestRef
from tests.support.guest_program import NONCE, UNTOUCHED, launch, running_guest
from tests.support.needs import need_fuse, need_program
from tests.support.simulated import refuse

NAME = "guest-of-the-files"
SOURCE = Path(__file__).with_name("guest_ioctl.c")
NOBODY = 65534


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, compiled against the system's sev-guest.h."""
    out = tmp_path_factory.mktemp("caller") / "guest_ioctl"
    subprocess.run(
        [need_program("gcc"), "-O1", "-Wall", "-Werror", "-pthread", "-o", str(out), str(SOURCE)], check=True
    )
    return out


@pytest.fixture
def served(host: Simulator) -> Iterator[Path]:
    """A mount with the two trees of the host, where everybody gets."""
    need_fuse()
    target = Path(tempfile.mkdtemp(prefix="sevd-test-guest-files-"))
    target.chmod(0o755)
    root = StaticDirectory()
    root.put("sev-guest", guest_tree(host))
    root.put("tsm", tsm_tree(host))
    server = FileServer(target, root)
    server.start()
    try:
        yield target
    finally:
        GuestDevices.of(host).close()
        server.close()
        target.rmdir()


@pytest.fixture
def named(host: Simulator) -> Iterator[GuestRef]:
    with running_guest(host, NAME) as guest:
        yield guest


@pytest.fixture
def folder(served: Path, named: GuestRef) -> Path:
    """A guest's report folder."""
    assert named.running
    return served / "tsm" / NAME


def run(caller: Path, file: Path, *cases: str) -> dict[str, dict[str, Any]]:
    """What became of the cases, by name."""
    done = subprocess.run([str(caller), str(file), *cases], capture_output=True, check=True, timeout=60)
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


def _errno(function: Callable[[], object]) -> str:
    try:
        function()
    except OSError as refused:
        return errno.errorcode[refused.errno or 0]
    return "ok"


REFUSALS = {
    "version0": (errno.EINVAL, UNTOUCHED),
    "unknown": (errno.ENOTTY, abi.EXITINFO2_UNSET),
    "noreq": (errno.EINVAL, abi.EXITINFO2_UNSET),
    "noresp": (errno.EINVAL, abi.EXITINFO2_UNSET),
    "badreq": (errno.EFAULT, abi.EXITINFO2_UNSET),
    "badresp": (errno.EFAULT, UNTOUCHED),
    "readonly": (errno.EFAULT, UNTOUCHED),
    "probe": (errno.EIO, abi.vmm_error(abi.VMM_ERROR_INVALID_LEN)),
}


def test_a_c_program(caller: Path, served: Path, named: GuestRef, host: Simulator) -> None:
    good = ("report", "thread", "child", "key", "extended")
    done = run(caller, served / "sev-guest" / NAME, "report", *REFUSALS, *good[1:])
    for case in good:
        assert (done[case]["result"], done[case]["errno"], done[case]["exitinfo2"]) == (0, 0, UNTOUCHED), case
    for case, (number, left) in REFUSALS.items():
        assert (done[case]["errno"], done[case]["exitinfo2"]) == (number, left), case
    for case in ("report", "thread", "child", "extended"):
        response = bytes.fromhex(done[case]["response"])
        assert Report.parse(response[32 : 32 + 1184]).report_data == NONCE
        assert response[32 + 1184 :] == bytes(4000 - 32 - 1184)
    assert done["probe"]["certs_len"] == 8192
    table = bytes.fromhex(done["extended"]["certs"])
    assert dict(cert_table.parse(table))[cert_table.VCEK] == host.endorsements()["vcek"]
    key = bytes.fromhex(done["key"]["response"])
    assert (key[:32], key[64:]) == (bytes(32), b"\xee" * (4000 - 64))
    assert named.messages(0) > 0


def test_certificates_that_cannot_be_written(caller: Path, served: Path, named: GuestRef) -> None:
    done = run(caller, served / "sev-guest" / NAME, "badcerts", "report")
    assert (done["badcerts"]["errno"], done["badcerts"]["exitinfo2"]) == (errno.EFAULT, UNTOUCHED)
    assert (done["report"]["errno"], named.running) == (0, True)


def test_a_host_without_certificates(caller: Path, served: Path, named: GuestRef, host: Simulator) -> None:
    GuestDevices.of(host).certificates = False
    done = run(caller, served / "sev-guest" / NAME, "probe", "extended")
    assert (done["probe"]["errno"], done["probe"]["certs_len"]) == (0, 0)
    assert bytes.fromhex(done["extended"]["certs"]) == bytes(0x4000)
    assert (served / "tsm" / NAME).is_dir()
    assert named.running


def test_a_given_up_key_stays_given_up_for_everybody(caller: Path, served: Path, folder: Path, host: Simulator) -> None:
    refuse(host, "SNP_GUEST_REQUEST", code=status.UNSUPPORTED)
    file = served / "sev-guest" / NAME
    assert run(caller, file, "report")["report"]["exitinfo2"] == status.UNSUPPORTED
    host.faults = lambda _command: None
    for case in ("report", "key", "probe"):
        done = run(caller, file, case)[case]
        assert (done["errno"], done["exitinfo2"]) == (errno.ENOTTY, UNTOUCHED)
    (folder / "e").mkdir()
    (folder / "e/inblob").write_bytes(NONCE)
    assert _errno((folder / "e/outblob").read_bytes) == "ENOTTY"


def test_files_are_there_for_guests_that_run(caller: Path, served: Path, host: Simulator) -> None:
    assert os.listdir(served / "sev-guest") == os.listdir(served / "tsm") == []
    process = host.process()
    guests = [launch(process, NAME), launch(process)]
    names = {NAME, f"asid-{guests[1].asid}"}
    assert set(os.listdir(served / "sev-guest")) == set(os.listdir(served / "tsm")) == names
    shown = os.stat(served / "sev-guest" / NAME)
    assert (stat.S_ISREG(shown.st_mode), stat.S_IMODE(shown.st_mode), shown.st_uid) == (True, 0o600, 0)
    first, second = (run(caller, served / "sev-guest" / name, "key")["key"]["response"] for name in sorted(names))
    assert first == second, "the same measurement, TCB and chip"
    with (served / "sev-guest" / NAME).open("rb") as file:
        process.exit()
        assert os.listdir(served / "sev-guest") == []
        assert not (served / "tsm" / NAME).exists()
        assert _ioctl_errno(file.fileno()) == "ENODEV"
    with running_guest(host, NAME):
        assert run(caller, served / "sev-guest" / NAME, "report")["report"]["errno"] == 0


def _ioctl_errno(fd: int) -> str:
    import fcntl

    return _errno(lambda: fcntl.ioctl(fd, abi.SNP_GET_REPORT, bytearray(32)))


def test_a_guest_in_launch_has_no_files(served: Path, host: Simulator) -> None:
    from tests.support.caller import launching

    process = host.process()
    machine = launching(process)
    assert len(host.guests()) == 1
    assert os.listdir(served / "sev-guest") == []
    assert machine.finish().name == "ok"
    assert len(os.listdir(served / "sev-guest")) == 1
    process.exit()


def test_configfs_tsm(folder: Path, host: Simulator) -> None:
    entry = folder / "entry-1"
    entry.mkdir(mode=0o700)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o755
    assert sorted(os.listdir(entry)) == [
        "auxblob", "generation", "inblob", "outblob", "privlevel", "privlevel_floor", "provider",
    ]  # fmt: skip
    assert _errno((entry / "outblob").read_bytes) == "EINVAL"
    with os.fdopen(os.open(entry / "inblob", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "wb", 0) as file:
        assert file.write(NONCE) == 64
        assert (entry / "generation").read_text() == "0\n"
    assert (entry / "generation").read_text() == "1\n"
    assert Report.parse((entry / "outblob").read_bytes()).report_data == NONCE
    assert dict(cert_table.parse((entry / "auxblob").read_bytes()))[cert_table.ARK] == host.endorsements()["ark"]
    (entry / "privlevel").write_text("3\n")
    assert (entry / "generation").read_text() == "2\n"
    assert Report.parse((entry / "outblob").read_bytes()).vmpl == 3
    assert (entry / "provider").read_text() == "sev_guest\n"
    assert (entry / "privlevel_floor").read_text() == "0\n"
    entry.rmdir()
    assert os.listdir(folder) == []


def test_what_configfs_refuses(folder: Path) -> None:
    entry = folder / "e"
    entry.mkdir()
    for function, expected in (
        (entry.mkdir, "EEXIST"),
        ((entry / "x").mkdir, "EPERM"),
        (entry.unlink, "EISDIR"),
        ((entry / "inblob").unlink, "EPERM"),
        ((entry / "inblob").rmdir, "ENOTDIR"),
        (lambda: (entry / "new").write_bytes(b""), "EACCES"),
        (lambda: (folder / "new").write_bytes(b""), "EACCES"),
        ((entry / "inblob").read_bytes, "EACCES"),
        (lambda: os.open(entry / "inblob", os.O_RDWR), "EACCES"),
        (lambda: os.open(entry / "outblob", os.O_WRONLY), "EACCES"),
        (lambda: (entry / "privlevel").write_bytes(b"4"), "EINVAL"),
        (lambda: (entry / "privlevel").write_bytes(b"no"), "EINVAL"),
        (lambda: (entry / "inblob").write_bytes(bytes(65)), "EFBIG"),
        ((entry / "missing").stat, "ENOENT"),
        ((folder / "missing").rmdir, "ENOENT"),
        (folder.rmdir, "EPERM"),
    ):
        assert _errno(function) == expected


def test_others_than_root_may_read_what_is_not_secret(folder: Path, served: Path) -> None:
    (folder / "e").mkdir()
    script = (
        f"cat '{folder}/e/provider'; mkdir '{folder}/f'; cat '{folder}/e/privlevel'; "
        f"echo 1 > '{folder}/e/privlevel'; cat '{served}/sev-guest/{NAME}'"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, user=NOBODY, group=NOBODY, timeout=60, check=False)
    assert done.stdout == b"sev_guest\n"
    assert done.stderr.lower().count(b"permission denied") == 4


def test_leaked_entries_are_swept(folder: Path) -> None:
    from sevd.simulator.tsm_nodes import MAX_ENTRIES

    for number in range(MAX_ENTRIES + 5):
        (folder / f"leak-{number}").mkdir()
    assert len(os.listdir(folder)) == MAX_ENTRIES
    assert not (folder / "leak-0").exists()
    assert (folder / f"leak-{MAX_ENTRIES + 4}/provider").read_text() == "sev_guest\n"


def test_entries_used_at_the_same_time(folder: Path) -> None:
    wrong: list[str] = []

    def attest(number: int) -> None:
        nonce = bytes([number]) * 64
        for turn in range(5):
            entry = folder / f"t{number}-{turn}"
            entry.mkdir()
            (entry / "inblob").write_bytes(nonce)
            report = Report.parse((entry / "outblob").read_bytes())
            if report.report_data != nonce or (entry / "generation").read_text() != "1\n":
                wrong.append(entry.name)
            entry.rmdir()

    threads = [threading.Thread(target=attest, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, os.listdir(folder)) == ([], [])
