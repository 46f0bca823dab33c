"""A tree of nodes through the real kernel: what programs do to files, and what the nodes are asked."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sev.errors import NotPermitted
from sevd.simulator.errnos import fail
from sevd.simulator.fuse import mount
from sevd.simulator.fuse.nodes import Caller, Directory, FileNode, Handle, Node, StaticDirectory, TextFile
from sevd.simulator.fuse.server import IDLE_MAX, THREADS_MAX, FileServer
from tests.support.needs import need_fuse

ENOTSUPP = 524


class Recorder(Handle):
    """Takes everything, and says what it was asked."""

    def __init__(self, node: RecordingNode) -> None:
        self.node = node

    def read(self, offset: int, size: int) -> bytes:
        return f"{offset}+{size}".encode()

    def write(self, offset: int, data: bytes) -> int:
        self.node.written.append((offset, data))
        return len(data)

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        self.node.asked.append((caller, request, argument))
        if argument == 1:
            raise ZeroDivisionError
        if argument == 2:
            fail(ENOTSUPP)
        return argument & 0x7FFFFFFF

    def flush(self) -> None:
        self.node.flushed += 1
        if self.node.flush_error:
            fail(self.node.flush_error)

    def release(self) -> None:
        self.node.released.release()


class RecordingNode(FileNode):
    def __init__(self) -> None:
        super().__init__(0o666)
        self.written: list[tuple[int, bytes]] = []
        self.asked: list[tuple[Caller, int, int]] = []
        self.opened: list[tuple[int, Caller]] = []
        self.flushed = 0
        self.flush_error = 0
        self.released = threading.Semaphore(0)

    def open(self, flags: int, caller: Caller) -> Handle:
        self.opened.append((flags, caller))
        return Recorder(self)


class Changing(Directory):
    """A directory that users make and remove entries of, as configfs has them."""

    def __init__(self) -> None:
        super().__init__(0o755)
        self.made: dict[str, Node] = {}

    def lookup(self, name: str) -> Node | None:
        if name == "broken":
            raise ZeroDivisionError
        return self.made.get(name)

    def names(self) -> list[str]:
        return list(self.made)

    def mkdir(self, name: str, mode: int, caller: Caller) -> Node:
        if name == "never":
            fail(errno.ENXIO)
        self.made[name] = Directory(mode, uid=caller.uid)
        return self.made[name]

    def rmdir(self, name: str, caller: Caller) -> None:
        if self.made.pop(name, None) is None:
            fail(errno.ENOENT)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, StaticDirectory, FileServer]]:
    need_fuse()
    target, root = tmp_path / "files", StaticDirectory()
    target.mkdir()
    server = FileServer(target, root)
    server.start()
    try:
        yield target, root, server
    finally:
        server.close()
        assert mount.mounts(target) == []


Served = tuple[Path, StaticDirectory, FileServer]


def test_texts_are_read_as_they_are_at_the_moment(served: Served) -> None:
    target, root, _ = served
    content = b"first\n"
    root.put("text", TextFile(lambda: content))
    assert (target / "text").read_bytes() == b"first\n"
    content = b"x" * 300_000
    assert (target / "text").read_bytes() == content
    with pytest.raises(PermissionError) if os.geteuid() else pytest.raises(OSError, match="Invalid argument"):
        (target / "text").write_bytes(b"no")


def test_entries_come_and_go_at_once(served: Served) -> None:
    target, root, _ = served
    root.put("one", TextFile(lambda: b"1"))
    assert os.listdir(target) == ["one"]
    with (target / "one").open("rb", buffering=0) as kept:
        root.remove("one")
        assert os.listdir(target) == []
        assert not (target / "one").exists()
        assert kept.read(1) == b"1", "who has it open keeps it"
    root.put("one", TextFile(lambda: b"2"))
    assert (target / "one").read_bytes() == b"2"


def test_long_listings_come_whole(served: Served) -> None:
    target, root, _ = served
    names = [f"entry-{number:04}-{'x' * 60}" for number in range(500)]
    for name in names:
        root.put(name, StaticDirectory() if name.endswith("7" + "x" * 60) else TextFile(lambda: b""))
    assert sorted(os.listdir(target)) == names
    assert {entry.name for entry in os.scandir(target) if entry.is_dir()} == {
        name for name in names if name.endswith("7" + "x" * 60)
    }


def test_directories_are_made_and_removed_by_their_users(served: Served) -> None:
    target, root, _ = served
    changing = Changing()
    root.put("c", changing)
    (target / "c" / "new").mkdir(0o700)
    assert (target / "c" / "new").stat().st_mode == stat.S_IFDIR | 0o700
    with pytest.raises(FileExistsError):
        (target / "c" / "new").mkdir()
    (target / "c" / "new").rmdir()
    assert changing.made == {}
    for path, number in (("c/never", errno.ENXIO), ("other", errno.EPERM)):
        with pytest.raises(OSError, match=os.strerror(number)):
            (target / path).mkdir()
    with pytest.raises(PermissionError):
        (target / "c" / "file").touch()


def test_an_exception_in_a_node_is_eio_for_its_caller_and_a_line_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    target, root, _ = served
    root.put("c", Changing())
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (target / "c" / "broken").stat()
    assert "ZeroDivisionError" in caplog.text
    assert os.listdir(target) == ["c"]


def test_handles_get_what_the_caller_gave(served: Served) -> None:
    target, root, _ = served
    node = RecordingNode()
    root.put("f", node)
    fd = os.open(target / "f", os.O_RDWR | os.O_TRUNC)
    ((flags, caller),) = node.opened
    assert flags & os.O_ACCMODE == os.O_RDWR
    assert (caller.uid, caller.gid) == (os.geteuid(), os.getegid())
    assert os.pread(fd, 100, 1 << 40) == f"{1 << 40}+100".encode()
    assert os.pread(fd, 8, 0xC0010133) == f"{0xC0010133}"[:8].encode()
    assert os.pwrite(fd, b"data", 7) == 4
    assert node.written[0][1] == b"data"
    big = bytes(range(256)) * 2048
    assert os.pwrite(fd, big, 0) == len(big)
    assert b"".join(data for _, data in node.written[1:]) == big
    assert ioctl(fd, 0xC0105300, memory := ctypes.create_string_buffer(16)) == ctypes.addressof(memory) & 0x7FFFFFFF
    assert node.asked[-1][1:] == (0xC0105300, ctypes.addressof(memory))
    assert node.asked[-1][0].pid == threading.get_native_id()
    node.flush_error = errno.ENOSPC
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        os.close(fd)
    assert node.flushed == 1
    assert node.released.acquire(timeout=5), "the last close releases the handle"


def ioctl(fd: int, request: int, buffer: object) -> int:
    """The C library's, whose pointer is the one that arrives. Answers the low 31 bits of the result."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    result: int = libc.ioctl(fd, request, ctypes.addressof(buffer))  # type: ignore[arg-type]
    return result & 0x7FFFFFFF


@pytest.mark.parametrize(
    ("argument", "number"), [(1, errno.EIO), (2, ENOTSUPP)], ids=["a bug", "an errno beyond the header's range"]
)
def test_what_an_ioctl_raises_is_the_callers_errno(served: Served, argument: int, number: int) -> None:
    target, root, _ = served
    root.put("f", RecordingNode())
    with (target / "f").open("rb", buffering=0) as file:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below
            fcntl.ioctl(file, 0x5300, argument)
        assert caught.value.errno == number
        assert fcntl.ioctl(file, 0x5300, 7) == 7


def test_files_without_ioctls_answer_enotty_and_directories_take_none(served: Served) -> None:
    target, root, _ = served
    root.put("text", TextFile(lambda: b""))
    for path in (target / "text", target):
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
                fcntl.ioctl(fd, 0x5300, 0)
        finally:
            os.close(fd)


def test_modes_and_owners_change_as_a_device_rule_would_change_them(served: Served) -> None:
    target, root, _ = served
    root.put("f", TextFile(lambda: b"text", mode=0o600))
    os.chown(target / "f", -1, 65534)
    os.chmod(target / "f", 0o640)
    found = os.stat(target / "f")
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o640, 0, 65534)
    os.utime(target / "f")
    assert os.statvfs(target).f_namemax == 255


def test_an_operation_that_hangs_holds_up_nobody_else(served: Served) -> None:
    target, root, server = served
    go = threading.Event()

    def content() -> bytes:
        go.wait(30)
        return b"late"

    root.put("slow", TextFile(content))
    root.put("fast", TextFile(lambda: b"now"))
    readers = [threading.Thread(target=(target / "slow").read_bytes) for _ in range(20)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(50):
            assert (target / "fast").read_bytes() == b"now"
        assert len(server._threads) <= THREADS_MAX
    finally:
        go.set()
        for reader in readers:
            reader.join(30)
    for _ in range(100):
        assert (target / "fast").read_bytes() == b"now"
    assert len(server._threads) <= IDLE_MAX + 2


def test_what_the_kernel_forgets_is_let_go(served: Served) -> None:
    target, root, server = served
    for number in range(50):
        root.put(f"n{number}", TextFile(lambda: b""))
        assert (target / f"n{number}").read_bytes() == b""
        root.remove(f"n{number}")
        assert not (target / f"n{number}").exists()
    subprocess.run(["sync", "-f", str(target)], check=False, capture_output=True)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert len(server.operations.inodes) < 10
    assert len(server.operations.handles) == 0


def test_a_mount_taken_away_by_somebody_else_is_noticed(tmp_path: Path) -> None:
    need_fuse()
    (tmp_path / "files").mkdir()
    server = FileServer(tmp_path / "files", StaticDirectory())
    server.start()
    gone = threading.Event()
    server.ended = gone.set
    mount.unmount(tmp_path / "files")
    assert gone.wait(5)
    server.close()


def test_closing_twice_is_closing_once_and_nothing_stays(tmp_path: Path) -> None:
    need_fuse()
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        (tmp_path / "files").mkdir()
        server = FileServer(tmp_path / "files", StaticDirectory())
        server.start()
        assert os.listdir(tmp_path / "files") == []
        server.close()
        server.close()
        (tmp_path / "files").rmdir()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not [thread for thread in threading.enumerate() if thread.name == "fuse"]


def test_closing_ends_what_others_have_open(tmp_path: Path) -> None:
    need_fuse()
    (tmp_path / "files").mkdir()
    root, go = StaticDirectory(), threading.Event()
    root.put("text", TextFile(lambda: b"text"))
    root.put("slow", TextFile(lambda: str(go.wait(30)).encode()))
    server = FileServer(tmp_path / "files", root)
    server.start()
    failed: list[int | None] = []

    def read() -> None:
        try:
            (tmp_path / "files" / "slow").read_bytes()
        except OSError as error:
            failed.append(error.errno)

    fd = os.open(tmp_path / "files" / "text", os.O_RDONLY)
    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        assert os.pread(fd, 10, 0) == b"text"
    server.close()
    try:
        reader.join(5)
        assert failed in ([errno.ECONNABORTED], [errno.ENOTCONN])  # asked before, or only after
        for operation in (lambda: os.pread(fd, 10, 0), lambda: os.close(fd)):
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                operation()
    finally:
        go.set()


def test_a_foreign_mount_is_not_taken_for_a_stale_one(tmp_path: Path) -> None:
    need_fuse()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    try:
        with pytest.raises(NotPermitted, match="tmpfs"):
            mount.remove_stale(tmp_path)
        assert mount.mounts(tmp_path) == ["tmpfs"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert mount.remove_stale(tmp_path) == 0
