"""The file of INIT_EX, in which a kernel keeps the persistent store of legacy SEV."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sev.abi import sev_device as abi
from tests.support.caller import UNTOUCHED, issue
from tests.support.legacy import Boot, check_chain
from tests.support.legacy_device import export, legacy, snp_state


def test_the_file_of_init_ex(boot: Boot, tmp_path: Path) -> None:
    path = tmp_path / "nv"

    def chain() -> tuple[bytes, bytes]:
        process = host.process()
        try:
            return export(process, process.open("/dev/sev", os.O_RDWR))
        finally:
            process.exit()

    host = boot(init_ex_path=path)
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (32 << 10, 0o600)
    first = chain()
    saved = path.read_bytes()
    host = boot(init_ex_path=path)
    assert chain() == first
    process = host.process()
    fd = process.open("/dev/sev", os.O_RDWR)
    for command in (abi.PDH_GEN, abi.PEK_GEN):
        before = path.read_bytes()
        assert issue(process, fd, command)[:2] == (0, 0)
        assert path.read_bytes() != before
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (0, 0)
    assert set(path.read_bytes()) == {0xFF}
    assert issue(process, fd, abi.PDH_GEN)[:2] == (0, 0)
    assert path.read_bytes()[:4] != b"\xff" * 4
    path.write_bytes(saved)
    host = boot(init_ex_path=path)
    assert chain() == first
    in_flash = boot()
    other = in_flash.process()
    assert export(other, other.open("/dev/sev", os.O_RDWR)) != first


@pytest.mark.parametrize(
    ("contents", "number"), [(b"\xff" * 100, errno.EIO), (None, errno.EISDIR)], ids=["short", "a folder"]
)
def test_a_file_of_init_ex_that_cannot_be_read(boot: Boot, tmp_path: Path, contents: bytes | None, number: int) -> None:
    path = tmp_path / "nv"
    if contents is None:
        path.mkdir()
    else:
        path.write_bytes(contents)
    host = boot(init_ex_path=path)
    process = host.process()
    fd = process.open("/dev/sev", os.O_RDWR)
    assert (legacy(process, fd).state, snp_state(host)) == (abi.STATE_UNINIT, abi.STATE_INIT)
    assert issue(process, fd, abi.PEK_GEN)[:2] == (number, UNTOUCHED)


def test_a_file_of_init_ex_that_cannot_be_written(boot: Boot, tmp_path: Path) -> None:
    path = tmp_path / "nv"
    host = boot(init_ex_path=path)
    process = host.process()
    fd = process.open("/dev/sev", os.O_RDWR)
    path.unlink()
    path.mkdir()
    assert issue(process, fd, abi.PDH_GEN)[:2] == (errno.EISDIR, 0), "the firmware had done it"


def test_a_damaged_file_of_init_ex_gets_new_keys(boot: Boot, tmp_path: Path) -> None:
    path = tmp_path / "nv"
    host = boot(init_ex_path=path)
    process = host.process()
    before = export(process, process.open("/dev/sev", os.O_RDWR))
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    host = boot(init_ex_path=path)
    process = host.process()
    fd = process.open("/dev/sev", os.O_RDWR)
    assert legacy(process, fd).state == abi.STATE_INIT
    after = export(process, fd)
    assert after[0] != before[0]
    check_chain(*after, host.firmware.ca)
