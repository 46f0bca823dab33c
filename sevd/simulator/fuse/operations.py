"""What each request of the kernel does to a tree of nodes: request bytes in, answer bytes out, no descriptor in sight.

A refusal is an OSError; the answer to a request without a reply (FORGET, INTERRUPT) is None. Operations that are not
here answer ENOSYS, which the kernel remembers: it then does without (locks, poll, extended attributes), or refuses.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from sevd.simulator.errnos import fail
from sevd.simulator.fuse import wire
from sevd.simulator.fuse.inodes import Handles, Inodes, Listing
from sevd.simulator.fuse.nodes import Caller, Directory, FileNode, children

NAME_MAX = 255
_COMPAT = wire.IOCTL_COMPAT | wire.IOCTL_32BIT | wire.IOCTL_COMPAT_X32


class Operations:
    """The operations on one tree.

    Args:
        root: Its root.
    """

    def __init__(self, root: Directory) -> None:
        self.inodes = Inodes(root)
        self.handles = Handles()
        self._by_opcode: dict[int, Callable[[int, Caller, memoryview], bytes | None]] = {
            wire.LOOKUP: self._lookup,
            wire.FORGET: self._forget,
            wire.BATCH_FORGET: self._batch_forget,
            wire.GETATTR: self._getattr,
            wire.SETATTR: self._setattr,
            wire.MKDIR: self._mkdir,
            wire.RMDIR: self._rmdir,
            wire.UNLINK: self._unlink,
            wire.CREATE: self._create,
            wire.OPEN: self._open,
            wire.READ: self._read,
            wire.WRITE: self._write,
            wire.IOCTL: self._ioctl,
            wire.FLUSH: self._flush,
            wire.RELEASE: self._release,
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._read,
            wire.RELEASEDIR: self._release,
            wire.STATFS: self._statfs,
            wire.ACCESS: self._nothing,
            wire.DESTROY: self._nothing,
            wire.INTERRUPT: self._no_reply,
        }

    def answer(self, opcode: int, nodeid: int, caller: Caller, body: memoryview) -> bytes | None:
        """Runs one request.

        Args:
            opcode: Which.
            nodeid: The node it is about.
            caller: Who asks.
            body: What follows the header.

        Raises:
            OSError: With the errno for the caller; ENOSYS for an unknown operation.
        """
        operation = self._by_opcode.get(opcode)
        if operation is None:
            fail(errno.ENOSYS)
        return operation(nodeid, caller, body)

    def _lookup(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del caller
        node = self.inodes.directory(nodeid).lookup(_name(body))
        if node is None:
            fail(errno.ENOENT)
        return wire.entry(node, self.inodes.remember(node))

    def _forget(self, nodeid: int, caller: Caller, body: memoryview) -> None:
        del caller
        self.inodes.forget(nodeid, wire.FORGET_IN.unpack_from(body)[0])

    def _batch_forget(self, nodeid: int, caller: Caller, body: memoryview) -> None:
        del nodeid, caller
        (count,) = wire.BATCH_FORGET_IN.unpack_from(body)
        size = wire.FORGET_ONE.size
        start = wire.BATCH_FORGET_IN.size
        for one, times in wire.FORGET_ONE.iter_unpack(body[start : start + count * size]):
            self.inodes.forget(one, times)

    def _getattr(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del caller, body
        return wire.attr_out(self.inodes.node(nodeid))

    def _setattr(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        """Times and sizes are taken and mean nothing: opening for writing may truncate."""
        del caller
        node = self.inodes.node(nodeid)
        valid, *_, mode, _, uid, gid = wire.SETATTR_IN.unpack_from(body)
        if valid & (wire.FATTR_MODE | wire.FATTR_UID | wire.FATTR_GID):
            node.change(
                mode=mode if valid & wire.FATTR_MODE else None,
                uid=uid if valid & wire.FATTR_UID else None,
                gid=gid if valid & wire.FATTR_GID else None,
            )
        return wire.attr_out(node)

    def _mkdir(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        mode, _ = wire.MKDIR_IN.unpack_from(body)
        node = self.inodes.directory(nodeid).mkdir(_name(body[wire.MKDIR_IN.size :]), stat.S_IMODE(mode), caller)
        return wire.entry(node, self.inodes.remember(node))

    def _rmdir(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        self.inodes.directory(nodeid).rmdir(_name(body), caller)
        return b""

    def _unlink(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        self.inodes.directory(nodeid).unlink(_name(body), caller)
        return b""

    def _create(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del nodeid, caller, body
        return fail(errno.EACCES)

    def _open(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        flags, _ = wire.OPEN_IN.unpack_from(body)
        node = self.inodes.node(nodeid)
        if not isinstance(node, FileNode):
            fail(errno.EISDIR)
        return wire.OPEN_OUT.pack(self.handles.add(node.open(flags, caller)), wire.FOPEN_DIRECT_IO)

    def _opendir(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del caller, body
        directory = self.inodes.directory(nodeid)
        entries = [(b".", directory.ino, stat.S_IFDIR >> 12), (b"..", wire.UNKNOWN_INO, stat.S_IFDIR >> 12)]
        entries += [(os.fsencode(name), node.ino, node.mode >> 12) for name, node in children(directory)]
        return wire.OPEN_OUT.pack(self.handles.add(Listing(entries)), 0)

    def _read(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del nodeid, caller
        handle, offset, size, *_ = wire.READ_IN.unpack_from(body)
        return self.handles.get(handle).read(offset, size)[:size]

    def _write(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del nodeid, caller
        handle, offset, size, *_ = wire.WRITE_IN.unpack_from(body)
        start = wire.WRITE_IN.size
        return wire.WRITE_OUT.pack(self.handles.get(handle).write(offset, bytes(body[start : start + size])))

    def _ioctl(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        """The result travels in the answer, also a refusal: the header takes no errno above 511 (ENOTSUPP is 524)."""
        del nodeid
        handle, flags, request, argument, _, _ = wire.IOCTL_IN.unpack_from(body)
        try:
            if flags & _COMPAT:
                fail(errno.ENOTTY)  # these drivers have no compat_ioctl
            result = self.handles.get(handle).ioctl(caller, request, argument)
        except OSError as error:
            result = -(error.errno or errno.EIO)
        return wire.IOCTL_OUT.pack(result, 0, 0, 0)

    def _flush(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del nodeid, caller
        self.handles.get(wire.FLUSH_IN.unpack_from(body)[0]).flush()
        return b""

    def _release(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del nodeid, caller
        self.handles.release(wire.RELEASE_IN.unpack_from(body)[0])
        return b""

    def _statfs(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del nodeid, caller, body
        return wire.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, NAME_MAX, 4096)

    def _nothing(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        del nodeid, caller, body
        return b""

    def _no_reply(self, nodeid: int, caller: Caller, body: memoryview) -> None:
        """INTERRUPT: no command here can be taken back, as none of the drivers' can; its own answer will come."""
        del nodeid, caller, body


def _name(body: memoryview) -> str:
    """The name at the start of a request, as far as its terminating zero."""
    name = bytes(body).partition(b"\0")[0]
    if len(name) > NAME_MAX:
        fail(errno.ENAMETOOLONG)
    return os.fsdecode(name)
