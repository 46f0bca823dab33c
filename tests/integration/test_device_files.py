"""sevd-simulator as a process: its folder, its start and its end, what it refuses, and what is left after a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sev.abi import sev_device as abi
from sev.abi.amd_certificate import ARK, ASK, split
from sev.certs import load
from sev.errors import FirmwareError, KernelError, SevError
from sev.launch.linux import LinuxKernel
from sev.launch.platform import SevDevice
from tests.support.device_files import ROOT, DeviceFiles, command, device_files, mounted, prepare, wait_for
from tests.support.needs import lacking, need_fuse, need_program

SYSCFG, RMP_BASE, RMP_END, SEV_STATUS = 0xC0010010, 0xC0010132, 0xC0010133, 0xC0010131


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    """A Milan host for tests that leave it as it was."""
    with device_files(tmp_path_factory.mktemp("files"), product="milan") as files:
        yield files


def refused(folder: Path, *options: str, product: str = "genoa", prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and stderr of a simulator that does not start."""
    done = subprocess.run(
        [*prefix, *command(folder, *options, product=product)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_the_folder_has_everything_and_sev_came_last(host: DeviceFiles) -> None:
    names = {"sev", "sev-guest", "msr", "guest-msr", "parameters", "tsm", "roots", "platform.json", "control.sock"}
    assert set(os.listdir(host.devices)) == names | {".files"}
    for name in ("sev", "sev-guest", "msr", "parameters", "tsm"):
        path = host.devices / name
        assert path.is_symlink()
        assert path.stat().st_dev != host.devices.stat().st_dev
        assert path.lstat().st_ctime_ns <= host.sev.lstat().st_ctime_ns
    assert stat.S_ISREG(host.sev.stat().st_mode)
    assert stat.S_IMODE(host.sev.stat().st_mode) == 0o600
    # It is said once everything is there, and `sev` was there a moment earlier.
    until = time.monotonic() + 10
    while not (said := [line for line in host.log().splitlines() if "ready: SIMULATED milan" in line]):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(said) == 1
    assert not [name for name in os.listdir(host.devices / "roots") if name.startswith(".")]


def test_parameters_are_those_of_kvm_amd(host: DeviceFiles) -> None:
    assert sorted(os.listdir(host.devices / "parameters")) == ["sev", "sev_es", "sev_snp"]
    assert {(host.devices / "parameters" / name).read_text() for name in ("sev", "sev_es", "sev_snp")} == {"Y\n"}


def test_registers_are_read_at_their_numbers(host: DeviceFiles) -> None:
    fd = os.open(host.devices / "msr", os.O_RDWR)
    try:
        values = {number: struct.unpack("<Q", os.pread(fd, 8, number))[0] for number in (SYSCFG, RMP_BASE, RMP_END)}
        assert values[SYSCFG] >> 23 & 3 == 3
        assert 0 < values[RMP_BASE] < values[RMP_END]
        assert os.pread(fd, 16, RMP_END) == struct.pack("<QQ", values[RMP_END], values[RMP_END])
        for number, size, want in ((RMP_BASE + 0x1000, 8, errno.EIO), (SYSCFG, 4, errno.EINVAL)):
            with pytest.raises(OSError, match=os.strerror(want)):
                os.pread(fd, size, number)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pwrite(fd, bytes(8), SYSCFG)
    finally:
        os.close(fd)
    with (host.devices / "guest-msr").open("rb", buffering=0) as guest:
        assert struct.unpack("<Q", os.pread(guest.fileno(), 8, SEV_STATUS)) == (7,)


def test_platform_json_says_what_machine_it_is(host: DeviceFiles) -> None:
    document = json.loads((host.devices / "platform.json").read_text())
    assert (document["simulated"], document["product"], document["kds"]) == (True, "milan", None)
    leaves = {(one["leaf"], one["subleaf"]): one for one in document["cpuid"]}
    assert leaves["0x80000001", "0x00000000"]["eax"] == "0x00a00f11"
    assert leaves["0x8000001f", "0x00000000"]["ecx"] == f"0x{509:08x}"


def test_roots_are_those_of_this_host(host: DeviceFiles) -> None:
    (ark,) = load((host.devices / "roots" / "ark.pem").read_bytes())
    (ask,) = load((host.devices / "roots" / "ask.pem").read_bytes())
    assert (ark.kind, ask.kind, ask.issuer_cn) == ("ark", "ask", ark.subject_cn)
    chain = (host.devices / "roots" / "legacy-ca.cert").read_bytes()
    assert [one.usage for one in split(chain)] == [ASK, ARK]


def test_the_typed_device_runs_on_the_file_from_several_threads(host: DeviceFiles) -> None:
    """Each caller is a thread, and its memory that of its process."""
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            with SevDevice(LinuxKernel(), str(host.sev)) as device:
                for _ in range(50):
                    assert abi.SnpStatus.decode(device.snp_status()).state == 1
                    assert abi.PlatformStatus.decode(device.platform_status()).state == abi.STATE_INIT
                    assert len(device.get_id()) == 64
                    with pytest.raises(FirmwareError, match="INVALID_PARAM"):
                        device.snp_set_config(b"\xff" * 64)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


def test_a_command_that_hangs_holds_up_only_those_that_need_the_processor(tmp_path: Path) -> None:
    with device_files(tmp_path, "--fault", "SNP_COMMIT:hang") as host:
        outcome: list[SevError] = []

        def commit() -> None:
            device = SevDevice(LinuxKernel(), str(host.sev))
            try:
                device.snp_commit()
            except SevError as error:
                outcome.append(error)
            with contextlib.suppress(OSError):
                device.close()

        hanging = threading.Thread(target=commit, daemon=True)
        hanging.start()
        waiting = [threading.Thread(target=status_or_end, args=(host.sev,), daemon=True) for _ in range(6)]
        time.sleep(0.2)
        for thread in waiting:
            thread.start()
        for _ in range(20):
            assert (host.devices / "parameters" / "sev_snp").read_text() == "Y\n"
            assert os.listdir(host.devices / "sev-guest") == []
        assert hanging.is_alive()
        host.process.terminate()
        assert host.process.wait(20) == 0, host.log()
        hanging.join(10)
        assert not hanging.is_alive()
        assert [error.errno for error in outcome] in ([errno.ETIMEDOUT], [errno.ECONNABORTED])
        for thread in waiting:
            thread.join(10)
            assert not thread.is_alive()


def snp_status(path: Path) -> None:
    with SevDevice(LinuxKernel(), str(path)) as device:
        assert abi.SnpStatus.decode(device.snp_status()).state == 1


def status_or_end(path: Path) -> None:
    """Asks while the simulator ends: whatever comes of it, it comes."""
    with contextlib.suppress(SevError, OSError), SevDevice(LinuxKernel(), str(path)) as device:
        device.snp_status()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_in_order_when_told_to(tmp_path: Path, number: signal.Signals) -> None:
    with device_files(tmp_path) as host:
        device = SevDevice(LinuxKernel(), str(host.sev))
        host.process.send_signal(number)
        assert host.process.wait(15) == 0
        assert os.listdir(host.devices) == []
        assert mounted(tmp_path) == []
        with pytest.raises(KernelError) as caught:
            device.snp_status()
        assert caught.value.errno == errno.ENOTCONN
        with contextlib.suppress(OSError):
            device.close()
        assert f"stopping: {number.name}" in host.log()


def test_a_killed_one_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    need_fuse()
    for _ in range(2):
        prepare(tmp_path)
        with (tmp_path / "log").open("ab") as log:
            killed = subprocess.Popen(command(tmp_path), stderr=log, stdout=log, cwd=ROOT)
        wait_for(DeviceFiles(tmp_path / "dev", killed, tmp_path))
        killed.kill()
        killed.wait()
        assert len(mounted(tmp_path)) == 1
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            (tmp_path / "dev" / "sev").stat()
    with device_files(tmp_path) as host:
        snp_status(host.sev)
        assert len(mounted(tmp_path)) == 1


def test_a_folder_or_a_state_in_use_is_refused_and_stays_in_use(tmp_path: Path) -> None:
    with device_files(tmp_path) as host:
        for options, want in (
            (("--state-dir", str(tmp_path / "other")), "another simulator serves its files there"),
            (("--device-dir", str(tmp_path / "elsewhere")), "uses this state directory"),
        ):
            code, text = refused(tmp_path, *options)
            assert code == 2
            assert want in text
        snp_status(host.sev)


def test_a_folder_with_files_of_others_is_left_alone(tmp_path: Path) -> None:
    need_fuse()
    prepare(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "sev").write_text("mine")
    code, text = refused(tmp_path)
    assert code == 2
    assert "no simulator has made it" in text
    assert (tmp_path / "dev" / "sev").read_text() == "mine"
    (tmp_path / "dev" / "sev").unlink()
    (tmp_path / "dev").chmod(0o777)
    code, text = refused(tmp_path)
    assert (code, "another user may write there" in text) == (2, True)


def test_without_the_right_to_mount_it_says_what_would_help(tmp_path: Path) -> None:
    need_fuse()
    setpriv = need_program("setpriv")
    prepare(tmp_path)
    code, text = refused(tmp_path, prefix=(setpriv, "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"))
    assert code == 7
    assert "may not mount" in text
    assert "unshare --user" in text
    assert os.listdir(tmp_path / "dev") == []


def test_without_fuse_it_says_what_would_help(tmp_path: Path) -> None:
    need_fuse()
    unshare = need_program("unshare")
    prepare(tmp_path)
    script = 'mount -t tmpfs none /dev && exec "$@"'
    code, text = refused(tmp_path, prefix=(unshare, "--mount", "sh", "-c", script, "sh"))
    assert code == 6
    assert "/dev/fuse cannot be opened" in text
    assert "modprobe fuse" in text
    assert os.listdir(tmp_path / "dev") == []


def test_a_user_namespace_of_its_own_will_do(tmp_path: Path) -> None:
    """Where the kernel lets other users open /dev/fuse, nobody has to be root."""
    need_fuse()
    unshare = need_program("unshare")
    prepare(tmp_path)
    code = (
        "import sys, threading, time, os\n"
        "from pathlib import Path\n"
        "from sev.launch.linux import LinuxKernel\n"
        "from sev.launch.platform import SevDevice\n"
        "import subprocess\n"
        "p = subprocess.Popen(sys.argv[2:])\n"
        "sev = Path(sys.argv[1]) / 'dev' / 'sev'\n"
        "until = time.monotonic() + 60\n"
        "while not sev.exists() and p.poll() is None and time.monotonic() < until: time.sleep(0.02)\n"
        "with SevDevice(LinuxKernel(), str(sev)) as device: print(device.snp_status().hex())\n"
        "p.terminate()\n"
        "sys.exit(p.wait(20))\n"
    )
    done = subprocess.run(
        [unshare, "--user", "--map-root-user", "--mount", sys.executable, "-c", code, tmp_path, *command(tmp_path)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=ROOT,
    )
    if "Operation not permitted" in done.stderr or "unshare" in done.stderr:
        lacking(f"needs user namespaces: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    assert abi.SnpStatus.decode(bytes.fromhex(done.stdout.strip())).state == 1
    assert mounted(tmp_path) == []


def test_readiness_is_told_to_the_service_manager(tmp_path: Path) -> None:
    need_fuse()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            with device_files(tmp_path) as host:
                assert manager.recv(4096).startswith(b"READY=1\nSTATUS=SIMULATED genoa")
                assert host.sev.exists()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        assert manager.recv(4096).startswith(b"STOPPING=1")


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (("--seed", "x"), "--seed"),
        (("--kernel-era", "Z"), "--kernel-era"),
        (("--kds", "nowhere"), "HOST:PORT"),
        (("--fault", "NO_SUCH:hang"), "no command"),
        (("--sev-mode", "999"), "--sev-mode"),
        (("--sev-group", "no-such-group"), "no group"),
        (("--firmware-version", "0.1.2"), "firmware"),
    ],
)
def test_a_wrong_option_is_a_usage_error(tmp_path: Path, options: tuple[str, ...], want: str) -> None:
    prepare(tmp_path)
    code, text = refused(tmp_path, *options)
    assert (code, want in text) == (2, True), text
    assert mounted(tmp_path) == []


def test_a_mount_taken_away_ends_it_with_a_reason(tmp_path: Path) -> None:
    need_fuse()
    prepare(tmp_path)
    with (tmp_path / "log").open("ab") as log:
        process = subprocess.Popen(command(tmp_path), stderr=log, stdout=log, cwd=ROOT)
    served = DeviceFiles(tmp_path / "dev", process, tmp_path)
    try:
        wait_for(served)
        subprocess.run(["umount", "-l", str(tmp_path / "dev" / ".files")], check=True)
        assert process.wait(20) == 2
        assert "unmounted by somebody else" in served.log()
        assert os.listdir(served.devices) == []
    finally:
        process.kill()
        process.wait()
