"""A chip, its key distribution service over HTTPS, and endorsements that keep themselves current from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sev.abi.tcb import TcbVersion
from sev.certs import Roots
from sev.certs.sev_roots import SevRoots
from sevd.endorsements import ChipIdentity, Endorsements
from sevd.endorsements.asking import Kds
from sevd.endorsements.model import RefreshResult, RefreshState
from sevd.endorsements.offline import Offline
from sevd.endorsements.refresher import Refresher
from sevd.events import Event, Events
from sevd.fetch.client import ChildFetcher
from sevd.simulator import Simulator
from sevd.simulator.kds import KdsServer
from tests.support.simulated import simulated_host


class Rig:
    """A simulated chip with its service.

    Attributes:
        now: The time of whoever uses it.
    """

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.simulator = simulator
        self.product = simulator.product
        self.folder = folder
        self.server = KdsServer(simulator)
        self.server.start()
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self.server.ca_pem)
        self.roots = Roots.from_pem(simulator.roots_pem())
        self.ca = simulator.firmware.ca
        self.later = timedelta()

    def now(self) -> datetime:
        """The time, moved by `later`."""
        return datetime.now(UTC) + self.later

    def identity(self, *, vlek: bool = False, **levels: int) -> ChipIdentity:
        """The chip as it reports, at another TCB where one is named."""
        tcb = TcbVersion.from_int(self.simulator.firmware.reported_tcb, self.product)
        chip = self.ca.chip_id[: self.product.chip_id_bytes]
        return ChipIdentity(self.product, chip, tcb.replace(**levels) if levels else tcb, vlek)

    def paths(self) -> list[str]:
        """What the service was asked for, without the parameters."""
        return [target.partition("?")[0] for _, target in self.server.requests]


@contextmanager
def rig(folder: Path, product: str = "genoa") -> Iterator[Rig]:
    """A chip and its service."""
    with simulated_host(folder / "host", product) as simulator:
        found = Rig(simulator, folder)
        try:
            yield found
        finally:
            found.server.close()


class Kept:
    """Endorsements with their refresher.

    Attributes:
        told: Every event.
        chip: The chip as it reports.
    """

    def __init__(
        self,
        rig: Rig,
        folder: Path,
        *,
        service: bool = True,
        client: bool = False,
        url: str = "",
        offline: Path | None = None,
        retry: float = 60.0,
        ceks: bool = False,
        warning_days: int = 30,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rig = rig
        self.folder = folder
        self.told: list[Event] = []
        self.chip: ChipIdentity | None = rig.identity()
        events = Events()
        events.listen(self.told.append)
        url = url or rig.server.url
        self.it = Endorsements(
            folder / "state", rig.roots, events, table_path=folder / "certs.bin", ask=self._ask,
            service=url if service else "", simulated=True, now=rig.now, wait_seconds=0.5,
        )  # fmt: skip
        options = ["--kds", url, "--kds-ca", str(rig.ca_file), "--log-level", "error"]
        if client:
            options += ["--kds-client", rig.server.provider_pem]
        self.fetcher = ChildFetcher(options)
        self.refresher = Refresher(
            self.it,
            events,
            kds=Kds(url, self.fetcher) if service else None,
            offline=Offline(offline) if offline is not None else None,
            product=rig.product if ceks else None,
            chip_ids=self._chip_ids,
            sev_roots=lambda: SevRoots.of(rig.ca.legacy_ca()),
            retry_seconds=retry,
            warning_days=warning_days,
            now=rig.now,
        )

    async def _ask(self) -> ChipIdentity:
        assert self.chip is not None
        return self.chip

    async def _chip_ids(self) -> tuple[bytes, ...]:
        return (self.rig.ca.chip_id,)

    def kinds(self) -> list[str]:
        """What is at hand."""
        return [each.kind.name for each in self.it.current().endorsements]

    def events(self, kind: str) -> list[Event]:
        """Events of a kind."""
        return [event for event in self.told if event.kind == kind]

    async def moved(self, chip: ChipIdentity) -> None:
        """The chip reports something else."""
        self.chip = chip
        await self.it.update()


@asynccontextmanager
async def kept(rig: Rig, folder: Path, *, start: bool = False, **options: object) -> AsyncIterator[Kept]:
    """Endorsements that are open; with `start` they refresh by themselves."""
    found = Kept(rig, folder, **options)  # type: ignore[arg-type]
    await found.it.open(found.chip)
    if start:
        found.refresher.start()
    try:
        yield found
    finally:
        await found.refresher.close()
        found.it.close()
        found.fetcher.close()


def results(state: RefreshState) -> dict[str, str]:
    """How it stands, by what."""
    return {item.what: RefreshResult(item.result).name for item in state.items}


async def eventually(true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Waits until it is so."""
    until = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < until, f"not in {seconds} s: {what}"
        await asyncio.sleep(0.02)
