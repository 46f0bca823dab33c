"""Which descriptors are the served `sev`: told without asking the file server, which is the one who wants to know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevd.simulator.process import File
from sevd.simulator.remote import DescriptorsOf
from tests.support.device_files import DeviceFiles, device_files


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    with device_files(tmp_path_factory.mktemp("identity")) as files:
        yield files


def test_the_mount_and_the_inode_tell(served: DeviceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.stat(served.sev)
    known = DescriptorsOf((found.st_dev, found.st_ino), File)
    fds = [os.open(served.sev, flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_PATH)]

    def asked(path: str) -> os.stat_result:
        raise AssertionError(f"{path} was looked at")

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", asked)
        files = [known(os.getpid(), fd) for fd in fds]
    assert [(file.writable, file.path_only) for file in files if file] == [(False, False), (True, False), (False, True)]
    for fd in fds:
        os.close(fd)
    assert known(os.getpid(), fds[0]) is None


def test_other_files_are_not_taken_for_it(served: DeviceFiles, tmp_path: Path) -> None:
    """Also none whose inode has the same number, on another mount, nor another file of the same mount."""
    found = os.stat(served.sev)
    known = DescriptorsOf((found.st_dev, found.st_ino), File)
    other = tmp_path / "other"
    other.touch()
    same_number = DescriptorsOf((found.st_dev, os.stat(other).st_ino), File)
    beside = os.path.realpath(served.sev)
    siblings = [os.path.join(os.path.dirname(beside), name) for name in sorted(os.listdir(os.path.dirname(beside)))]
    paths = [str(other), "/dev/null", *(path for path in siblings if os.path.isfile(path) and path != beside)]
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            assert known(os.getpid(), fd) is None, path
            if path == str(other):
                assert same_number(os.getpid(), fd) is None
        finally:
            os.close(fd)
    assert len(paths) > 2
