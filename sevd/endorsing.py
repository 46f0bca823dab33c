"""The endorsements of one daemon put together: the store on its host, and what keeps it current.

Called when they are first needed: it brings the whole of certificate checking along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevd.endorsements.service import Endorsements

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from sev.certs.sev_roots import SevRoots
    from sev.products import Product
    from sevd.devices.scheduler import Scheduler
    from sevd.endorsements import ChipIdentity
    from sevd.endorsements.refresher import Refresher
    from sevd.endorsements.table_file import TableFile
    from sevd.events import Publisher
    from sevd.host_parts import HostParts
    from sevd.settings import Settings


def endorsements(
    folder: Path,
    settings: Settings,
    parts: HostParts,
    events: Publisher,
    *,
    scheduler: Scheduler,
    table: TableFile | None,
    ask: Callable[[], Awaitable[ChipIdentity]],
) -> Endorsements:
    """The store. Runs on a thread.

    Where a service is asked, a simulated host gets its certificates from there alone, as a real one does.
    """
    # What `refresher` needs is loaded here, on the thread.
    from sevd.endorsements import offline, refresher  # noqa: F401
    from sevd.fetch import client  # noqa: F401

    return Endorsements(
        folder,
        parts.roots(),
        events,
        source=None if settings.kds else parts.endorsements,
        scheduler=scheduler,
        table=table,
        ask=ask,
        service=settings.kds,
        simulated=parts.simulated,
    )


def refresher(
    endorsements: Endorsements,
    settings: Settings,
    parts: HostParts,
    events: Publisher,
    *,
    product: Product | None,
    chip_ids: Callable[[], Awaitable[tuple[bytes, ...]]] | None,
) -> Refresher:
    """What keeps them current.

    Args:
        endorsements: What is kept.
        settings: The configuration.
        parts: The host.
        events: Where to say what happened.
        product: The processor line; None if it is unknown.
        chip_ids: Asks for the chips' identifiers; None where no CEK is wanted.
    """
    from sevd.endorsements.asking import Kds
    from sevd.endorsements.offline import Offline
    from sevd.endorsements.refresher import Refresher
    from sevd.fetch.client import fetcher

    return Refresher(
        endorsements,
        events,
        kds=Kds(settings.kds, fetcher(settings)) if settings.kds else None,
        offline=Offline(settings.offline) if settings.offline is not None else None,
        product=product if chip_ids is not None else None,
        chip_ids=chip_ids,
        sev_roots=lambda: sev_roots(parts),
        retry_seconds=settings.kds_retry_seconds,
        warning_days=settings.expiry_warning_days,
    )


def sev_roots(parts: HostParts) -> SevRoots:
    """The roots of SEV's own certificates: AMD's, or those of the simulated host. Runs on a thread."""
    from sev.certs.sev_roots import SevRoots

    if parts.simulated and parts.sev_certificates is not None:
        return SevRoots.of(parts.sev_certificates()["authorities"])
    return SevRoots.amd()


def sev_certificates(settings: Settings, parts: HostParts, ceks: Callable[[], list[bytes]]) -> Mapping[str, bytes]:
    """What vouches for the chips in SEV's own form: signed CEKs, and ASK and ARK in a row. Runs on a thread.

    Where a service is asked it is what came from there, else what the host itself has.
    """
    from sev.errors import UsageError

    given = parts.sev_certificates() if parts.sev_certificates is not None else {}
    if not settings.kds:
        return given
    found = {f"cek-{number}": cek for number, cek in enumerate(ceks())}
    if parts.simulated:
        return {**found, "authorities": given.get("authorities", b"")}
    from sev.certs.sev_roots import SevRoots

    try:
        files = SevRoots.amd_files(parts.facts.product)
    except UsageError:  # a line whose authorities are not built in
        return found
    return {**found, "authorities": b"".join(one.encode() for one in files)}
