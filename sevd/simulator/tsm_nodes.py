"""configfs-tsm as files: a guest's `report` folder, in which mkdir makes an entry with its attributes.

As in configfs: attributes are there at once and cannot be removed, an entry goes by rmdir; a file that is only written
cannot be opened for reading, nor the other way round, whoever asks (EACCES), so that one descriptor never mixes both;
texts take effect when they are written, the input when its file is closed, whatever becomes of it; an open file of a
removed entry answers ENOENT.

Two things differ. Programs that never remove their entry are common, so the number of entries is bounded and the one
that was left alone longest makes room. And the input takes effect with every close of a descriptor that stands for the
file, also where a duplicate of it stays open: the last close is told to a file server too late for the reader who comes
next.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from sevd.simulator.errnos import fail
from sevd.simulator.fuse.nodes import Caller, Directory, FileNode, Handle, Node
from sevd.simulator.guest_device import SevGuestDevice
from sevd.simulator.tsm import INBLOB_MAX, PROVIDER, TsmReport

MAX_ENTRIES = 256
PAGE = 4096

READ_MODE = 0o444
WRITE_MODE = 0o200
_BLOBS = ("outblob", "auxblob")


class Entry(Directory):
    """One report instance.

    Args:
        device: The guest's driver.
    """

    def __init__(self, device: SevGuestDevice) -> None:
        super().__init__(0o755)
        self.report = report = TsmReport(device)
        self.removed = False
        self._open = 0
        self._lock = threading.Lock()
        self._attributes: dict[str, FileNode] = {
            "generation": _ReadText(self, lambda: b"%d\n" % report.generation),
            "provider": _ReadText(self, lambda: PROVIDER),
            "privlevel": _WrittenText(self, report.set_privlevel),
            "privlevel_floor": _ReadText(self, lambda: b"%d\n" % report.privlevel_floor),
            "inblob": _WrittenBlob(self, report.set_inblob),
        }
        for name in _BLOBS if device.svsm is None else (*_BLOBS, "manifestblob"):
            self._attributes[name] = _ReadBlob(self, name)
        if device.svsm is not None:
            self._attributes["service_provider"] = _WrittenText(self, report.set_service_provider)
            self._attributes["service_guid"] = _WrittenText(self, report.set_service_guid)
            self._attributes["service_manifest_version"] = _WrittenText(self, report.set_service_manifest_version)

    def lookup(self, name: str) -> Node | None:
        """An attribute."""
        return self._attributes.get(name)

    def names(self) -> list[str]:
        """The attributes."""
        return list(self._attributes)

    @property
    def in_use(self) -> bool:
        """An attribute is open."""
        return self._open > 0

    def count(self, change: int) -> None:
        """One open attribute more or less."""
        with self._lock:
            self._open += change

    def check(self) -> None:
        """Raises OSError(ENOENT) if the entry was removed."""
        if self.removed:
            fail(errno.ENOENT)


class ReportFolder(Directory):
    """A guest's `report` folder.

    Args:
        device: The guest's driver.
        limit: Entries at most.
    """

    def __init__(self, device: SevGuestDevice, limit: int = MAX_ENTRIES) -> None:
        super().__init__(0o755)
        self._device = device
        self._limit = limit
        self._entries: dict[str, Entry] = {}
        """Longest left alone first."""
        self._lock = threading.Lock()

    def lookup(self, name: str) -> Node | None:
        """An entry; it counts as used."""
        with self._lock:
            entry = self._entries.pop(name, None)
            if entry is not None:
                self._entries[name] = entry
            return entry

    def names(self) -> list[str]:
        """The entries."""
        with self._lock:
            return list(self._entries)

    def mkdir(self, name: str, mode: int, caller: Caller) -> Node:
        """Makes an entry, always with mode 0755.

        Raises:
            OSError: ENXIO: the guest has ended; EEXIST; ENOSPC: as many entries are open as there may be.
        """
        del mode, caller
        if not self._device.running:
            fail(errno.ENXIO)
        with self._lock:
            if name in self._entries:
                fail(errno.EEXIST)
            if len(self._entries) >= self._limit:
                self._sweep()
            entry = self._entries[name] = Entry(self._device)
            return entry

    def rmdir(self, name: str, caller: Caller) -> None:
        """Removes an entry, also one whose attributes are open. Raises OSError(ENOENT)."""
        del caller
        with self._lock:
            entry = self._entries.pop(name, None)
        if entry is None:
            fail(errno.ENOENT)
        entry.removed = True

    def _sweep(self) -> None:
        for name, entry in self._entries.items():
            if not entry.in_use:
                entry.removed = True
                del self._entries[name]
                return
        fail(errno.ENOSPC)


class _Attribute(FileNode):
    """An attribute: opened in the one direction that it has."""

    def __init__(self, entry: Entry, mode: int, size: int) -> None:
        super().__init__(mode, size=size)
        self._entry = entry
        self._access = os.O_RDONLY if mode == READ_MODE else os.O_WRONLY

    def open(self, flags: int, caller: Caller) -> Handle:
        del caller
        self._entry.check()
        if flags & os.O_ACCMODE != self._access:
            fail(errno.EACCES)
        handle = self._handle()
        self._entry.count(1)
        return handle

    def _handle(self) -> Handle:
        raise NotImplementedError


class _EntryHandle(Handle):
    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def release(self) -> None:
        self._entry.count(-1)


class _Reader(_EntryHandle):
    """Reads what the attribute was at the first read."""

    def __init__(self, entry: Entry, show: Callable[[], bytes]) -> None:
        super().__init__(entry)
        self._show = show
        self._data: bytes | None = None
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            if self._data is None:
                self._entry.check()
                self._data = self._show()
            return self._data[offset : offset + size]


class _TextWriter(_EntryHandle):
    """Every write is a whole value, wherever in the file it goes."""

    def __init__(self, entry: Entry, store: Callable[[bytes], None]) -> None:
        super().__init__(entry)
        self._store = store

    def write(self, offset: int, data: bytes) -> int:
        del offset
        self._entry.check()
        taken = data[: PAGE - 1]
        self._store(taken)
        return len(taken)


class _BlobWriter(_EntryHandle):
    """Collects writes until a descriptor is closed."""

    def __init__(self, entry: Entry, store: Callable[[bytes], None]) -> None:
        super().__init__(entry)
        self._store = store
        self._data = bytearray()
        self._changed = False
        self._lock = threading.Lock()

    def write(self, offset: int, data: bytes) -> int:
        end = offset + len(data)
        if end > INBLOB_MAX:
            fail(errno.EFBIG)
        with self._lock:
            self._data.extend(bytes(max(0, end - len(self._data))))
            self._data[offset:end] = data
            self._changed = True
        return len(data)

    def flush(self) -> None:
        with self._lock:
            if not self._changed or self._entry.removed:
                return
            self._changed = False
            try:
                self._store(bytes(self._data))
            except OSError:
                # As in configfs: nobody is told.
                return

    def release(self) -> None:
        self.flush()
        super().release()


class _ReadText(_Attribute):
    def __init__(self, entry: Entry, show: Callable[[], bytes]) -> None:
        super().__init__(entry, READ_MODE, PAGE)
        self._show = show

    def _handle(self) -> Handle:
        return _Reader(self._entry, self._show)


class _ReadBlob(_Attribute):
    def __init__(self, entry: Entry, name: str) -> None:
        super().__init__(entry, READ_MODE, 0)
        self._name = name

    def _handle(self) -> Handle:
        return _Reader(self._entry, lambda: self._entry.report.blob(self._name))


class _WrittenText(_Attribute):
    def __init__(self, entry: Entry, store: Callable[[bytes], None]) -> None:
        super().__init__(entry, WRITE_MODE, PAGE)
        self._store = store

    def _handle(self) -> Handle:
        return _TextWriter(self._entry, self._store)


class _WrittenBlob(_Attribute):
    def __init__(self, entry: Entry, store: Callable[[bytes], None]) -> None:
        super().__init__(entry, WRITE_MODE, 0)
        self._store = store

    def _handle(self) -> Handle:
        return _BlobWriter(self._entry, self._store)
