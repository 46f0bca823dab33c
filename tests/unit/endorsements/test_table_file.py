"""The certificate table's file: in place, under a lock that other processes respect."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sev.abi import cert_table
from sev.errors import KernelError, NotNow
from sevd.endorsements.table_file import TableFile

READER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
print("held", flush=True)
sys.stdin.readline()
print(os.pread(fd, 65536, 0).hex(), flush=True)
"""


class Reader:
    """Another process that holds the read lock, as a VMM does while a report is made."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def finish(self) -> bytes:
        """Lets it read once more and go; answers what it read while it held the lock."""
        out, _ = self._process.communicate("\n", 10)
        return bytes.fromhex(out.strip())


@contextmanager
def reader(path: Path) -> Iterator[Reader]:
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield Reader(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


async def put(table: TableFile, content: bytes) -> None:
    async with table.exclusive():
        table.write(content)


async def test_the_inode_stays(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "run" / "certs.bin")
    await put(table, b"a" * 8192)
    before = table.path.stat()
    await put(table, b"shorter")
    after = table.path.stat()
    assert table.path.read_bytes() == b"shorter"
    assert (before.st_ino, before.st_dev) == (after.st_ino, after.st_dev)
    assert after.st_mode & 0o777 == 0o644
    table.close()


async def test_a_reader_is_waited_for(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin", wait_seconds=10)
    await put(table, b"old")
    with reader(table.path) as vmm:
        writing = asyncio.create_task(put(table, b"new and longer"))
        await asyncio.sleep(0.1)
        assert not writing.done()
        assert vmm.finish() == b"old"
        await writing
    assert table.path.read_bytes() == b"new and longer"
    table.close()


async def test_waiting_for_a_reader_is_bounded(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin", wait_seconds=0.15)
    await put(table, b"old")
    with reader(table.path) as vmm:
        begin = time.monotonic()
        with pytest.raises(NotNow, match="is being read") as refused:
            await put(table, b"new")
        assert 0.1 < time.monotonic() - begin < 5
        assert refused.value.metadata == {"path": str(table.path)}
        assert refused.value.remedy
        assert vmm.finish() == b"old"
    await put(table, b"new")
    assert table.path.read_bytes() == b"new"
    table.close()


async def test_readers_are_kept_out_meanwhile(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin")
    async with table.exclusive():
        fd = os.open(table.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
    os.close(fd)
    table.close()


async def test_a_cancelled_wait_leaves_no_lock(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin", wait_seconds=10)
    await put(table, b"old")
    with reader(table.path) as vmm:
        writing = asyncio.create_task(put(table, b"new"))
        await asyncio.sleep(0.05)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert vmm.finish() == b"old"
    with reader(table.path) as vmm:  # would wait for ever behind a forgotten write lock
        assert vmm.finish() == b"old"
    table.close()


async def test_two_writers_of_one_process_take_turns(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin", wait_seconds=0.1)
    inside: list[int] = []

    async def write(number: int) -> None:
        async with table.exclusive():
            inside.append(number)
            await asyncio.sleep(0.01)
            assert inside[-1] == number

    await asyncio.gather(*(write(number) for number in range(4)))
    async with table.exclusive():
        with pytest.raises(NotNow):
            await put(table, b"never")
    table.close()


async def test_a_file_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin")
    await put(table, b"old")
    table.path.unlink()
    await put(table, b"new")
    assert table.path.read_bytes() == b"new"
    (tmp_path / "other").write_bytes(b"somebody's")
    (tmp_path / "other").rename(table.path)
    await put(table, b"again")
    assert table.path.read_bytes() == b"again"
    table.close()


@pytest.mark.parametrize("what", ["a link", "a folder", "a pipe"])
async def test_what_is_no_regular_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "certs.bin"
    if what == "a link":
        (tmp_path / "target").write_bytes(b"precious")
        path.symlink_to(tmp_path / "target")
    elif what == "a folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    table = TableFile(path)
    with pytest.raises(KernelError):
        await put(table, b"x")
    if what == "a link":
        assert (tmp_path / "target").read_bytes() == b"precious"
    table.close()


CUT = """
import asyncio, os, signal, sys
from pathlib import Path
from sevd.endorsements import table_file

left = int(sys.argv[2])
real = table_file.os.pwrite, table_file.os.ftruncate

def counted(call):
    def run(*arguments):
        global left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments)
    return run

table_file.os.pwrite, table_file.os.ftruncate = map(counted, real)

async def main():
    table = table_file.TableFile(Path(sys.argv[1]))
    async with table.exclusive():
        table.clear()
        table.write(b"\x02" * 5000)

asyncio.run(main())
"""


@pytest.mark.parametrize("before", [b"\x01" * 6000, b"\x01" * 3000, b"", b"\x01" * 5])
def test_whoever_is_killed_in_between_leaves_the_old_table_the_new_one_or_an_empty_one(
    tmp_path: Path, before: bytes
) -> None:
    path = tmp_path / "certs.bin"
    seen = []
    for step in range(20):
        path.write_bytes(before)
        ended = subprocess.run([sys.executable, "-c", CUT, str(path), str(step)], check=False).returncode
        content = path.read_bytes()
        seen.append(content[:24])
        assert content == before or content[:24] == bytes(24) or content == b"\x02" * 5000, step
        if ended == 0:
            break
    else:
        pytest.fail("it never came to its end")
    assert seen[0] == before[:24]
    assert seen[-1] == b"\x02" * 24
    assert len(seen) > 4


async def test_a_table_is_empty_while_what_it_depends_on_changes(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin")
    for before in (b"\x01" * 900, b"short"):
        await put(table, before)
        async with table.exclusive():
            table.clear()
            assert table.path.read_bytes() == cert_table.build(())
    table.close()


async def test_a_table_that_cannot_be_written_is_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TableFile(tmp_path / "certs.bin")
    await put(table, b"\x01" * 900)
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr("sevd.endorsements.table_file.os.pwrite", full)
    async with table.exclusive():
        with pytest.raises(KernelError) as refused:
            table.write(b"\x02" * 900)
        assert refused.value.errno == 28
        assert table.path.read_bytes() == b""
    table.close()


async def test_readers_of_this_process_hold_the_lock_too(tmp_path: Path) -> None:
    table = TableFile(tmp_path / "certs.bin", wait_seconds=0.1)
    async with table.shared() as read:
        assert read() == b""  # there is no file yet
    await put(table, b"table")
    async with table.shared() as read, table.shared() as another:
        with pytest.raises(NotNow, match="is being read"):
            await put(table, b"new")
        assert (read(), another()) == (b"table", b"table")
    async with table.exclusive():
        with pytest.raises(NotNow, match="is being changed"):
            async with table.shared():
                pytest.fail("it was let in")
    table.close()
