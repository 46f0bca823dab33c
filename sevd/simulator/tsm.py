"""One entry of configfs-tsm's report folder, as Linux keeps it (drivers/virt/coco).

Every accepted write makes the report stale; whoever reads a blob next has it made anew. A refused report leaves no blob
behind. Values are checked when they are written, except the input, of which the provider complains when it is used.
"""

from __future__ import annotations

import errno
import re
import threading
from uuid import UUID

from sev import status
from sev.abi import guest_device as abi
from sevd.simulator import svsm
from sevd.simulator.errnos import fail
from sevd.simulator.guest_device import SevGuestDevice

INBLOB_MAX = 64
OUTBLOB_MAX = 16 << 20
PRIVLEVEL_MAX = 3
PROVIDER = b"sev_guest\n"

_WORD = 1 << 64
_UINT = re.compile(rb"\+?(0[xX][0-9a-fA-F]+|[0-9]+)\n?\Z")
_GUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EINVAL_STATUS = (status.INVALID_PARAM, status.INVALID_KEY)
_PAGES = abi.CERTS_MAX // abi.CERTS_PAGE
_ENTRY_SIZE = 24


class TsmReport:
    """An entry: what was asked for, and the blobs that answer it.

    Args:
        device: The guest's driver.
    """

    def __init__(self, device: SevGuestDevice) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._inblob = b""
        self._privlevel = 0
        self._provider: bytes | None = None
        self._service = bytes(16)
        self._version = 0
        self._written = 0
        self._read = 0
        self._blobs: dict[str, bytes] = {}

    @property
    def privlevel_floor(self) -> int:
        """The VMPCK in use, which is the level of the guest's kernel."""
        return self._device.channel.number

    @property
    def generation(self) -> int:
        """Writes so far, modulo 2^64."""
        with self._lock:
            return self._written

    def set_inblob(self, data: bytes) -> None:
        """What was written until the file was closed. Raises OSError(EBUSY)."""
        with self._lock:
            self._advance()
            self._inblob = data

    def set_privlevel(self, text: bytes) -> None:
        """Raises OSError: EINVAL: not a level from the floor to 3; ERANGE: more than 32 bits; EBUSY."""
        level = _unsigned(text)
        with self._lock:
            if not self.privlevel_floor <= level <= PRIVLEVEL_MAX:
                fail(errno.EINVAL)
            self._advance()
            self._privlevel = level

    def set_service_provider(self, text: bytes) -> None:
        """Any text; only "svsm" can be read afterwards. Raises OSError(EBUSY)."""
        with self._lock:
            self._advance()
            self._provider = text.removesuffix(b"\n")

    def set_service_guid(self, text: bytes) -> None:
        """Raises OSError: EINVAL: not a GUID (then it is the null one: all services); EBUSY."""
        with self._lock:
            self._advance()
            self._service = bytes(16)
            match = _GUID.match(text)
            if match is None:
                fail(errno.EINVAL)
            self._service = UUID(match.group().decode()).bytes_le

    def set_service_manifest_version(self, text: bytes) -> None:
        """Raises OSError: EINVAL, ERANGE: not an unsigned number of 32 bits; EBUSY."""
        version = _unsigned(text)
        with self._lock:
            self._advance()
            self._version = version

    def blob(self, name: str) -> bytes:
        """outblob, auxblob or manifestblob; made if what was asked for has changed since.

        Raises:
            OSError: EINVAL: no input or one of a wrong size, a provider, service or level that is not there; EFBIG: it
                is too large; else as the driver's request.
        """
        with self._lock:
            if not self._inblob:
                fail(errno.EINVAL)
            if not self._blobs or self._read != self._written:
                self._blobs = {}
                self._blobs = self._make()
                self._read = self._written
            blob = self._blobs[name]
        return blob if len(blob) <= OUTBLOB_MAX else fail(errno.EFBIG)

    def _advance(self) -> None:
        """The kernel refuses the write after which a wrapped count would look like the one last read."""
        if self._written == (self._read - 1) % _WORD:
            fail(errno.EBUSY)
        self._written = (self._written + 1) % _WORD

    def _make(self) -> dict[str, bytes]:
        device = self._device
        if not device.running:
            fail(errno.ENODEV)
        if len(self._inblob) != abi.USER_DATA_SIZE:
            fail(errno.EINVAL)
        if self._provider is not None:
            if self._provider.partition(b"\0")[0] != svsm.PROVIDER.encode() or device.svsm is None:
                fail(errno.EINVAL)
            report, table, manifest = device.svsm.attest(self._inblob, self._service, self._version)
            return {"outblob": report, "auxblob": table, "manifestblob": manifest}
        request = abi.ReportRequest(self._inblob, self._privlevel).encode()
        response, pages = device.ext_report(request, _PAGES)
        code, size = int.from_bytes(response[:4], "little"), int.from_bytes(response[4:8], "little")
        if code:
            fail(errno.EINVAL if code in _EINVAL_STATUS else errno.ENXIO)
        report = response[abi.REPORT_OFFSET : abi.REPORT_OFFSET + size]
        return {"outblob": report, "auxblob": _trimmed(pages), "manifestblob": b""}


def _trimmed(pages: bytes) -> bytes:
    """As much of the certificate pages as the entries at their start refer to; nothing if there is none."""
    end = 0
    for at in range(0, len(pages) - _ENTRY_SIZE + 1, _ENTRY_SIZE):
        entry = pages[at : at + _ENTRY_SIZE]
        if not any(entry):
            break
        end = max(end, int.from_bytes(entry[16:20], "little") + int.from_bytes(entry[20:24], "little"))
    return pages[: min(end, abi.CERTS_MAX)]


def _unsigned(text: bytes) -> int:
    """kstrtouint with base 0. Raises OSError(EINVAL, ERANGE)."""
    match = _UINT.match(text.partition(b"\0")[0])
    if match is None:
        fail(errno.EINVAL)
    digits = match.group(1)
    base = 16 if digits[:2].lower() == b"0x" else 8 if digits[:1] == b"0" else 10
    try:
        value = int(digits, base)
    except ValueError:  # an 8 or a 9 in an octal number
        fail(errno.EINVAL)
    return value if value < 1 << 32 else fail(errno.ERANGE)
