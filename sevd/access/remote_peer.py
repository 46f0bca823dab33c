"""A remote caller: where it is, and the certificate that it has shown and proved to have the key of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sev.records import mutable_record

if TYPE_CHECKING:
    from sevd.access.client_certificate import ClientCertificate


@mutable_record
class RemotePeer:
    """The other end of a connection over TLS: what `sevd.access.peer.Peer` is for a process of this host.

    Attributes:
        address: Its address and port.
        certificate: Its certificate, verified.
        expiry: Ends the connection when the certificate does.
    """

    address: str
    certificate: ClientCertificate
    expiry: asyncio.TimerHandle | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What identifies it: "uri:…" and "dns:…"."""
        return self.certificate.names

    def unit(self) -> str:
        """No unit of this host."""
        return ""

    def close(self) -> None:
        """Gives the timer back."""
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None


def address_text(address: object) -> str:
    """An address of accept(2) as people write it: 192.0.2.1:5000, [2001:db8::1]:5000."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "unknown"
    host = str(address[0]).removeprefix("::ffff:") if "." in str(address[0]) else str(address[0])
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def host_of(address: str) -> str:
    """The address without its port."""
    return address.rpartition(":")[0]
