"""This machine's reader over files laid out in a folder, and hostile contents of such files."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev.abi.sev_device import PlatformStatus, SnpStatus
from sev.errors import FirmwareError, KernelError, SevError
from sev.host.cpuid import CpuidUnavailable
from sev.host.linux import LinuxReader
from sev.host.machine import Machine
from sev.host.result import FAILED, PASSED, SKIPPED, NotSeen
from sev.host.verdict import CHECKS, check_host
from tests.support.machines import FakeReader, genoa


def no_cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    raise CpuidUnavailable("a folder has none")


def reader(root: Path, **more: str) -> LinuxReader:
    return LinuxReader(
        root=str(root), sev_path=str(root / "dev/sev"), kvm_path=str(root / "dev/kvm"),
        msr_path=more.get("msr_path", str(root / "dev/msr")), ask_cpuid=no_cpuid,
    )  # fmt: skip


def test_files_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "sys/module/kvm_amd/parameters").mkdir(parents=True)
    (tmp_path / "sys/module/kvm_amd/parameters/sev").write_bytes(b"Y\n\xff")
    it = reader(tmp_path)
    assert it.text("/sys/module/kvm_amd/parameters/sev") == "Y\n\ufffd"
    assert it.text("/sys/module/kvm_amd/parameters/sev", 1) == "Y"
    assert it.names("/sys/module/kvm_amd") == ["parameters"]
    with pytest.raises(FileNotFoundError):
        it.text("/proc/cmdline")


def test_moved_files(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/sev").write_text("N")
    it = LinuxReader(root=str(tmp_path), moved={"/sys/module/kvm_amd/parameters": str(tmp_path / "elsewhere")})
    assert Machine(it).parameter("sev") == "N"
    assert Machine(it).parameter("sev_es") is None
    with pytest.raises(FileNotFoundError):
        it.text("/sys/module/kvm_amd/parametersx/sev")


def test_registers_come_from_the_offset_of_their_number(tmp_path: Path) -> None:
    path = tmp_path / "msr"
    with path.open("wb") as file:
        file.seek(0xC0010010)
        file.write(struct.pack("<Q", 7 << 23))
    it = reader(tmp_path, msr_path=str(path))
    assert it.msr(0xC0010010) == 7 << 23
    assert it.msr(0x10) == 0
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is what is compared
        it.msr(0xC0010015)
    assert caught.value.errno == errno.EIO
    with pytest.raises(NotSeen, match=r"HWCR \(0xc0010015\) cannot be read"):
        Machine(it).msr(0xC0010015, "HWCR")


def test_devices_that_are_no_devices(tmp_path: Path) -> None:
    """Plain files open, and refuse every ioctl: said as such, nothing worse."""
    (tmp_path / "dev").mkdir()
    for name in ("sev", "kvm"):
        (tmp_path / "dev" / name).write_bytes(b"")
    it = reader(tmp_path)
    for ask in (it.kvm_version, lambda: it.kvm_extension(1), lambda: it.kvm_attribute(0)):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is what is compared
            ask()
        assert caught.value.errno == errno.ENOTTY
    with pytest.raises(KernelError):
        it.platform_status()
    assert it.config_refusal() == errno.ENOTTY
    checked = check_host(it)
    results = {check.id: check.result for check in checked.checks}
    assert results["firmware.answers"] == FAILED
    assert results["kvm.api"] == SKIPPED
    assert not checked.able


def test_an_empty_root(tmp_path: Path) -> None:
    checked = check_host(reader(tmp_path))
    assert not checked.able
    assert {check.result for check in checked.checks} == {PASSED, FAILED, SKIPPED}


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        check_host(LinuxReader())
        check_host(reader(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


_WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1).map(str),
    st.integers(0, (1 << 64) - 1).map(hex),
    st.text(max_size=60),
    st.sampled_from(["Y", "N", "", "\n", "-1", "0-", ":", " : System RAM", "sev x y\nsev_es\n", "9" * 400, "=" * 99]),
    st.sampled_from([errno.EACCES, errno.EIO, errno.ENODEV, errno.EISDIR, errno.EINVAL]),
)
_U32 = st.integers(0, (1 << 32) - 1)
_REGISTERS = st.tuples(_U32, _U32, _U32, _U32)
_U64 = st.integers(0, (1 << 64) - 1)
_BYTE = st.integers(0, 255)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_a_machine_says_every_check_has_an_outcome(data: st.DataObject) -> None:
    base = genoa()
    files = {
        path: data.draw(_WORDS) if data.draw(st.integers(0, 2)) == 0 else text for path, text in base.files.items()
    }
    leaves = {
        leaf: data.draw(_REGISTERS) if data.draw(st.booleans()) else one for leaf, one in (base.leaves or {}).items()
    }
    assert isinstance(base.msrs, dict)
    msrs = {number: data.draw(_U64) if data.draw(st.booleans()) else one for number, one in base.msrs.items()}
    platform: PlatformStatus | SevError = data.draw(
        st.one_of(
            st.builds(PlatformStatus, _BYTE, _BYTE, _BYTE, _U32, _BYTE, _U32),
            st.sampled_from([FirmwareError(1), KernelError(errno.ETIMEDOUT), FirmwareError(0x1E)]),
        )
    )
    snp: SnpStatus | SevError = data.draw(
        st.one_of(
            st.builds(SnpStatus, _BYTE, _BYTE, _BYTE, _BYTE, _U32, _U32, _U32, _U64, _U64),
            st.just(FirmwareError(0x20)),
        )
    )
    host = FakeReader(
        **{**vars(base), "files": files, "leaves": leaves, "msrs": msrs, "platform": platform, "snp": snp,
           "extensions": {kind: data.draw(_U32) for kind in base.extensions},
           "locked": data.draw(st.one_of(st.none(), _U64)), "uid": data.draw(st.sampled_from([0, 1000]))}
    )  # fmt: skip
    checked = check_host(host)
    assert [check.id for check in checked.checks] == [check.id for check in CHECKS]
    for check in checked.checks:
        assert check.result in (PASSED, FAILED, SKIPPED)
        assert check.reason
        assert check.remedy or check.result != FAILED
    for one in checked.abilities:
        decisive = [check for check in checked.checks if one.technology in check.decides]
        if one.able:
            assert {check.result for check in decisive} == {PASSED}


def test_cpuid_is_executed_where_no_memory_may_become_executable() -> None:
    """As under systemd's MemoryDenyWriteExecute=: prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN)."""
    program = (
        "import ctypes, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(3)\n"
        "from sev.host import cpuid\n"
        "print(cpuid.find().source)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode == 3:
        pytest.skip("this kernel has no PR_SET_MDWE")
    if os.uname().machine == "x86_64":
        assert done.stdout.strip() == "instruction", done.stderr
