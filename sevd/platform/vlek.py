"""Wrapped VLEK hash sticks, and the memory of which VLEK is loaded.

SNP_PLATFORM_STATUS says that a VLEK is loaded, not which; but only the certificate of that very one fits what it signs,
and it stays loaded when the reported TCB changes. So what this daemon loads is remembered, over its restarts too. One
that was loaded by somebody else can have been so only for the TCB that was reported then: the one reported when it is
first seen.

Source: SEV-SNP firmware ABI (AMD 56860), SNP_VLEK_LOAD: the layout of the wrapped blob.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sev import status as statuses
from sev.abi.tcb import TcbVersion
from sev.errors import FirmwareError, SevError
from sev.records import replace
from sevd import durable
from sevd.platform.views import VlekView

if TYPE_CHECKING:
    from sev.products import Product
    from sevd.platform.views import SnpStatusView

_TCB = slice(0x190, 0x198)
"""TCB_VERSION in a wrapped hash stick."""

FORMAT = 1
"""Format number of the file."""

_FILE_BYTES = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


def tcb_of(hashstick: bytes, product: Product) -> TcbVersion:
    """The TCB that a wrapped hash stick of 432 bytes is for."""
    return TcbVersion.decode(hashstick[_TCB], product)


def digest_of(hashstick: bytes) -> str:
    """What a hash stick is known by: SHA-256 in hexadecimal."""
    return hashlib.sha256(hashstick).hexdigest()


def need_same_tcb(hashstick: bytes, reported: TcbVersion) -> None:
    """Raises FirmwareError (BAD_SVN), telling both, if a hash stick is for another TCB than the reported one."""
    made_for = tcb_of(hashstick, reported.product)
    if made_for != reported:
        raise FirmwareError(
            statuses.BAD_SVN,
            command="SNP_VLEK_LOAD",
            message=f"SNP_VLEK_LOAD: the hash stick is for the TCB {made_for}, and the platform reports {reported}",
            remedy="Ask the key distribution service for the hash stick of the reported TCB, or set that TCB first.",
            hashstick_tcb=f"{made_for.raw:016x}",
            reported_tcb=f"{reported.raw:016x}",
        )


class VlekMemory:
    """Which VLEK is loaded. Used on the device worker.

    Args:
        path: Where it is kept over restarts; None: nowhere.
        boot_id: Of this boot; empty: as the kernel says.
    """

    def __init__(self, path: Path | None = None, *, boot_id: str = "") -> None:
        self._path = path
        self._boot = boot_id or _boot_id()
        self._known: VlekView | None = None
        self._read = path is None

    def noticed(self, status: SnpStatusView) -> SnpStatusView:
        """The same status with the VLEK that is loaded."""
        if not self._read:
            self._read = True
            self._known = self._load(status.reported_tcb.product)
        if not status.vlek_loaded:
            if self._known is not None:
                self._keep(None)
            return status
        if self._known is None:
            self._keep(VlekView(status.reported_tcb))
        return replace(status, vlek=self._known)

    def loaded(self, hashstick: bytes, product: Product) -> None:
        """A VLEK was loaded."""
        self._read = True
        self._keep(VlekView(tcb_of(hashstick, product), digest_of(hashstick), datetime.now(UTC)))

    def _keep(self, known: VlekView | None) -> None:
        self._known = known
        if self._path is None:
            return
        try:
            if known is None:
                self._path.unlink(missing_ok=True)
            else:
                durable.write(self._path, json.dumps(self._document(known)).encode(), 0o600)
        except OSError as error:
            # It is needed after a restart only, and then found out anew as far as that is possible.
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _document(self, known: VlekView) -> dict[str, object]:
        return {
            "format": FORMAT,
            "boot_id": self._boot,
            "product": known.tcb.product.name,
            "tcb": f"{known.tcb.raw:016x}",
            "digest": known.digest,
            "loaded_at": known.loaded_at.isoformat() if known.loaded_at else "",
        }

    def _load(self, product: Product) -> VlekView | None:
        """What was remembered, if it is of this boot and processor line."""
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                document = json.loads(file.read(_FILE_BYTES))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r:.20}, expected {FORMAT}")
            if document["boot_id"] != self._boot or document["product"] != product.name:
                return None
            at = document["loaded_at"]
            return VlekView(
                TcbVersion.from_int(int(document["tcb"], 16), product),
                str(document["digest"]),
                datetime.fromisoformat(at) if at else None,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError, SevError) as error:
            log.warning("%s cannot be read: %s", self._path, error)
            return None


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
