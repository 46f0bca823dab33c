"""Messages of /dev/fuse (include/uapi/linux/fuse.h): numbers, structures, replies. Native byte order.

A request is a 40-byte header and its operation's structure; a reply is a 16-byte header and the answer. What stands
here is protocol 7.31 as kernels since 5.2 speak it; older ones get the smaller structures they know.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.simulator.fuse.nodes import Node

MAJOR = 7
MINOR = 31
"""Newest protocol spoken here; the kernel goes by the lower of both."""
MINOR_MIN = 12
"""Structures have had their present size since then (Linux 2.6.31)."""

LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
MKDIR, UNLINK, RMDIR = 9, 10, 11
OPEN, READ, WRITE, STATFS, RELEASE = 14, 15, 16, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 25, 26, 27, 28, 29
ACCESS, CREATE, INTERRUPT, DESTROY, IOCTL = 34, 35, 36, 38, 39
BATCH_FORGET = 42

ROOT_ID = 1

HEADER = struct.Struct("=IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
REPLY = struct.Struct("=IiQ")
"""len, error (0 or -errno, above -512), unique."""

INIT_IN = struct.Struct("=IIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=I4x")
FORGET_ONE = struct.Struct("=QQ")
SETATTR_IN = struct.Struct("=I4xQQQQQQIIIIIII4x")
MKDIR_IN = struct.Struct("=II")
OPEN_IN = struct.Struct("=II")
OPEN_OUT = struct.Struct("=QI4x")
READ_IN = struct.Struct("=QQIIQI4x")
WRITE_IN = struct.Struct("=QQIIQI4x")
WRITE_OUT = struct.Struct("=I4x")
RELEASE_IN = struct.Struct("=QIIQ")
FLUSH_IN = struct.Struct("=Q16x")
IOCTL_IN = struct.Struct("=QIIQII")
IOCTL_OUT = struct.Struct("=iIII")
STATFS_OUT = struct.Struct("=QQQQQIII28x")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("=QQQQII")
_ATTR_OUT = struct.Struct("=QI4x")
_DIRENT = struct.Struct("=QQII")

ASYNC_READ, BIG_WRITES, PARALLEL_DIROPS = 1 << 0, 1 << 5, 1 << 18
FOPEN_DIRECT_IO = 1 << 0
FATTR_MODE, FATTR_UID, FATTR_GID = 1 << 0, 1 << 1, 1 << 2
IOCTL_COMPAT, IOCTL_32BIT, IOCTL_COMPAT_X32 = 1 << 0, 1 << 3, 1 << 5

WRITE_MAX = 1 << 17
"""Bytes of one WRITE: what a kernel without FUSE_MAX_PAGES sends at most."""
READ_BUFFER = WRITE_MAX + 4096
"""Bytes to offer to the kernel for one request."""

UNKNOWN_INO = 0xFFFFFFFF
"""Inode number in directory listings of nodes that were not looked up: what libfuse shows too."""


def attributes(node: Node) -> bytes:
    """struct fuse_attr: 88 bytes."""
    seconds, nanoseconds = divmod(node.time_ns, 1_000_000_000)
    return _ATTR.pack(
        node.ino,
        node.size,
        (node.size + 511) // 512,
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        node.mode,
        2 if node.is_directory else 1,
        node.uid,
        node.gid,
        0,
        4096,
        0,
    )


def entry(node: Node, nodeid: int) -> bytes:
    """struct fuse_entry_out, valid for no time at all."""
    return _ENTRY.pack(nodeid, 0, 0, 0, 0, 0) + attributes(node)


def attr_out(node: Node) -> bytes:
    """struct fuse_attr_out, valid for no time at all."""
    return _ATTR_OUT.pack(0, 0) + attributes(node)


def directory_entry(name: bytes, ino: int, kind: int, offset: int) -> bytes:
    """struct fuse_dirent, padded to 8 bytes.

    Args:
        name: The name.
        ino: Inode number.
        kind: Type bits of st_mode, as DT_* (st_mode >> 12).
        offset: Where the listing goes on after this entry.
    """
    data = _DIRENT.pack(ino, offset, len(name), kind) + name
    return data + bytes(-len(data) % 8)


def init_out(minor: int, readahead: int, offered: int) -> bytes:
    """The answer to INIT from a kernel of this minor version: struct fuse_init_out as long as that kernel knows it."""
    flags = offered & (ASYNC_READ | BIG_WRITES | PARALLEL_DIROPS)
    full = INIT_OUT.pack(MAJOR, min(minor, MINOR), readahead, flags, 16, 12, WRITE_MAX, 1, 0, 0, 0)
    return full[:24] if minor < 23 else full
