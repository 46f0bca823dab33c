"""Raw ioctls of a C program against the served `sev`: the rules of drivers/crypto/ccp/sev-dev.c, seen from outside."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sev import status
from sev.abi import sev_device as abi
from tests.support.device_files import DeviceFiles, device_files
from tests.support.needs import lacking, need_fuse, need_program

SOURCE = Path(__file__).with_name("sev_ioctl.c")
MARK = 0xDEADBEEF
CONFIG_SIZE = 64
O_PATH = os.O_PATH


@dataclass(frozen=True)
class Answer:
    """What an ioctl came to: errno (0 for success) and the envelope and data as they were afterwards."""

    errno: int
    cmd: int
    data_address: int
    error: int
    data: bytes


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, compiled."""
    need_fuse()
    gcc = need_program("gcc")
    out = tmp_path_factory.mktemp("probe") / "sev_ioctl"
    subprocess.run([gcc, "-O1", "-Wall", "-Werror", "-o", str(out), str(SOURCE)], check=True)
    out.parent.chmod(0o755)
    return out


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    """A Genoa host for tests that leave it as it was."""
    with device_files(tmp_path_factory.mktemp("files")) as files:
        yield files


def run(
    probe: Path,
    file: Path | str,
    cmd: int = abi.PLATFORM_STATUS,
    *,
    flags: int = os.O_RDWR,
    request: int = abi.SEV_ISSUE_CMD,
    argument: str = "envelope",
    data: str = "buffer",
    size: int = 64,
    given: bytes = b"",
    prefix: tuple[str, ...] = (),
    pass_fds: tuple[int, ...] = (),
) -> Any:
    """Runs the program; its document."""
    command = [*prefix, probe, file, flags, hex(request), argument, cmd, MARK, data, size, given.hex()]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=True, pass_fds=pass_fds
    )
    return json.loads(done.stdout)


def answer(document: Any) -> Answer:
    cmd, address, error = struct.unpack("<IQI", bytes.fromhex(document["envelope"]))
    assert address == document["address"], "the envelope's address was changed"
    assert (document["result"] == 0) == (document["errno"] == 0)
    return Answer(document["errno"], cmd, address, error, bytes.fromhex(document["data"]))


def test_a_command_that_succeeds_clears_error_and_fills_the_callers_buffer(probe: Path, host: DeviceFiles) -> None:
    got = answer(run(probe, host.sev, abi.PLATFORM_STATUS, flags=os.O_RDONLY))
    assert (got.errno, got.error) == (0, status.SUCCESS)
    shown = abi.PlatformStatus.decode(got.data[:12])
    assert (shown.api_major, shown.state, shown.flags & abi.FLAG_CONFIG_ES) == (1, abi.STATE_INIT, abi.FLAG_CONFIG_ES)
    assert got.data[12:] == bytes(52)


def test_the_firmwares_refusal_is_eio_with_the_status_in_the_callers_envelope(probe: Path, host: DeviceFiles) -> None:
    got = answer(run(probe, host.sev, abi.SNP_SET_CONFIG, given=b"\xff" * CONFIG_SIZE))
    assert (got.errno, got.error) == (errno.EIO, status.INVALID_PARAM)


def test_a_length_probe_fails_and_tells_the_length(probe: Path, host: DeviceFiles) -> None:
    got = answer(run(probe, host.sev, abi.GET_ID2, size=12))
    assert (got.errno, got.error) == (errno.EIO, status.INVALID_LENGTH)
    assert got.data == abi.GetId2(0, 64).encode()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_ACCMODE], ids=["read-only", "no access mode"])
@pytest.mark.parametrize("cmd", [abi.SNP_SET_CONFIG, abi.SNP_VLEK_LOAD, abi.PEK_GEN, abi.FACTORY_RESET])
def test_commands_that_change_need_write_access_and_leave_error_alone(
    probe: Path, host: DeviceFiles, cmd: int, flags: int
) -> None:
    got = answer(run(probe, host.sev, cmd, flags=flags))
    assert (got.errno, got.error) == (errno.EPERM, MARK)


def test_the_envelope_is_copied_back_also_after_eperm(probe: Path, host: DeviceFiles) -> None:
    """Seen by giving one that cannot be written: the copy's failure takes the refusal's place."""
    document = run(probe, host.sev, abi.SNP_SET_CONFIG, flags=os.O_RDONLY, argument="readonly")
    assert answer(document).errno == errno.EFAULT


@pytest.mark.parametrize("cmd", [abi.COMMAND_MAX, abi.COMMAND_MAX + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_unknown_commands_are_einval_and_nothing_is_copied_back(probe: Path, host: DeviceFiles, cmd: int) -> None:
    for argument in ("envelope", "readonly"):
        got = answer(run(probe, host.sev, cmd, argument=argument))
        assert (got.errno, got.cmd, got.error) == (errno.EINVAL, cmd, MARK)


REQUESTS = {
    "TCGETS": 0x5401,
    "TIOCGWINSZ": 0x5413,
    "BLKGETSIZE64": 0x80081272,
    "SNP_GET_REPORT": 0xC0205300,
    "SEV_ISSUE_CMD, other size": 0xC0185300,
    "SEV_ISSUE_CMD, no size": 0x00005300,
    "KVM_GET_API_VERSION": 0xAE00,
    "all bits": 0xFFFFFFFF,
}


@pytest.mark.parametrize("request_number", REQUESTS.values(), ids=REQUESTS.keys())
def test_unknown_ioctls_are_einval(probe: Path, host: DeviceFiles, request_number: int) -> None:
    document = run(probe, host.sev, request=request_number)
    # A size that FUSE cannot carry, or cannot read where the caller points, never reaches the driver.
    allowed = (errno.EINVAL,) if request_number != 0xFFFFFFFF else (errno.EINVAL, errno.EFAULT, errno.ENOMEM)
    assert document["errno"] in allowed
    assert answer(document).error == MARK


@pytest.mark.parametrize(
    ("argument", "data", "cmd", "error"),
    [
        ("null", "buffer", abi.PLATFORM_STATUS, MARK),
        ("edge", "buffer", abi.PLATFORM_STATUS, None),
        ("envelope", "unmapped", abi.SNP_SET_CONFIG, MARK),
        ("envelope", "null", abi.PLATFORM_STATUS, status.SUCCESS),
        ("envelope", "unmapped", abi.PLATFORM_STATUS, status.SUCCESS),
        ("envelope", "readonly", abi.SNP_PLATFORM_STATUS, status.SUCCESS),
    ],
    ids=[
        "no envelope",
        "half an envelope",
        "configuration that cannot be read",
        "answer to address 0",
        "answer to nowhere",
        "answer to read-only memory",
    ],
)
def test_addresses_that_do_not_hold_are_efault(
    probe: Path, host: DeviceFiles, argument: str, data: str, cmd: int, error: int | None
) -> None:
    document = run(probe, host.sev, cmd, argument=argument, data=data)
    assert document["errno"] == errno.EFAULT
    if error is not None:
        assert answer(document).error == error, "`error` tells whether the firmware was reached"


def test_a_null_pointer_is_einval_where_the_driver_tests_it(probe: Path, host: DeviceFiles) -> None:
    got = answer(run(probe, host.sev, abi.SNP_PLATFORM_STATUS, data="null"))
    assert (got.errno, got.error) == (errno.EINVAL, MARK)


def test_a_path_descriptor_takes_no_ioctl(probe: Path, host: DeviceFiles) -> None:
    assert run(probe, host.sev, flags=O_PATH)["errno"] == errno.EBADF


def test_32_bit_callers_get_enotty(probe: Path, host: DeviceFiles) -> None:
    try:
        document = run(probe, host.sev, argument="compat")
    except subprocess.CalledProcessError:
        lacking("needs a kernel with 32-bit system calls")
    if document["errno"] == errno.ENOSYS:
        lacking("needs a kernel with 32-bit system calls")
    assert document["errno"] == errno.ENOTTY
    assert answer(document).error == MARK


def test_an_inherited_descriptor_means_the_memory_of_whoever_uses_it(probe: Path, host: DeviceFiles) -> None:
    fd = os.open(host.sev, os.O_RDONLY)
    try:
        for _ in range(2):
            got = answer(run(probe, f"fd:{fd}", pass_fds=(fd,)))
            assert (got.errno, got.error, got.data[0]) == (0, 0, 1)
    finally:
        os.close(fd)


def test_a_caller_in_other_namespaces_is_served(probe: Path, host: DeviceFiles) -> None:
    unshare = need_program("unshare")
    got = answer(run(probe, host.sev, prefix=(unshare, "--pid", "--fork", "--mount")))
    assert (got.errno, got.error, got.data[0]) == (0, 0, 1)


def test_permissions_are_the_files(probe: Path, tmp_path: Path) -> None:
    setpriv = need_program("setpriv")
    nobody = (setpriv, "--reuid=65534", "--regid=65534", "--clear-groups")
    open_all(tmp_path)
    with device_files(tmp_path) as host:
        assert oct(os.stat(host.sev).st_mode & 0o777) == "0o600"
        assert oct(os.stat(host.devices / "control.sock").st_mode & 0o777) == "0o600"
        assert run(probe, host.sev, prefix=nobody) == {"open": errno.EACCES}
        os.chmod(host.sev, 0o644)
        assert run(probe, host.sev, prefix=nobody) == {"open": errno.EACCES}
        got = answer(run(probe, host.sev, flags=os.O_RDONLY, prefix=nobody))
        assert (got.errno, got.error, got.data[0]) == (0, 0, 1)
        assert answer(run(probe, host.sev, abi.PEK_GEN, flags=os.O_RDONLY, prefix=nobody)).errno == errno.EPERM
    with device_files(tmp_path, "--sev-mode", "0660", "--sev-group", "65534") as host:
        assert os.stat(host.sev).st_gid == 65534
        control = os.stat(host.devices / "control.sock")
        assert (control.st_gid, oct(control.st_mode & 0o777)) == (65534, "0o660")
        assert answer(run(probe, host.sev, prefix=nobody)).errno == 0


def test_a_reader_may_commit(probe: Path, tmp_path: Path) -> None:
    """No kernel checks for write access there: the reason why read-only descriptors are no small thing."""
    with device_files(tmp_path) as host:
        got = answer(run(probe, host.sev, abi.SNP_COMMIT, flags=os.O_RDONLY, data="null"))
        assert (got.errno, got.error) == (0, status.SUCCESS)


def test_injected_faults_have_the_kernels_errnos(probe: Path, tmp_path: Path) -> None:
    faults = ("--fault", "SNP_COMMIT:status=0x22:times=1", "--fault", "SNP_COMMIT:timeout")
    with device_files(tmp_path, *faults) as host:
        assert_commit(probe, host, errno.EIO, status.BAD_VERSION)
        assert_commit(probe, host, errno.ETIMEDOUT, 0)
        assert_commit(probe, host, errno.EBUSY, MARK)


def assert_commit(probe: Path, host: DeviceFiles, number: int, error: int) -> None:
    got = answer(run(probe, host.sev, abi.SNP_COMMIT, data="null"))
    assert (got.errno, got.error) == (number, error)


def open_all(folder: Path) -> None:
    """Lets everybody through to a folder that pytest has made private."""
    for path in (folder, *folder.parents[:3]):
        if path.name.startswith(("pytest-", "test_")) or path == folder:
            path.chmod(0o755)


def test_an_errno_that_has_no_name_arrives_too(probe: Path, tmp_path: Path) -> None:
    """ENOTSUPP, 524: what the driver answers to GET_ID on firmware older than API 0.16."""
    with device_files(tmp_path, "--firmware-version", "0.14.11", product="naples", new_chip=True) as host:
        for cmd in (abi.GET_ID, abi.GET_ID2):
            got = answer(run(probe, host.sev, cmd))
            assert (got.errno, got.error) == (abi.ENOTSUPP, MARK)
        assert (host.devices / "parameters" / "sev_snp").read_text() == "N\n"
