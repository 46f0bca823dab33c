"""The platforms of one daemon put together, with what follows them: certificates, and what the configuration wants.

Lives on one event loop, as the assembly that it is a part of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev import products
from sevd.access.identity import DAEMON
from sevd.endorsements.table_file import TableFile
from sevd.opening import LateEndorsements
from sevd.platform.desired import Desired
from sevd.platform.occupancy import Occupancy
from sevd.platform.sev import SevPlatform
from sevd.platform.snp import SnpPlatform
from sevd.platform.upkeep import Upkeep
from sevd.platform.vlek import VlekMemory
from sevd.platform.watch import LOOK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sevd.audit import Audit
    from sevd.devices.quiet import Quiet
    from sevd.devices.scheduler import Scheduler
    from sevd.endorsements import ChipIdentity, Endorsements
    from sevd.endorsements.refresher import Refresher
    from sevd.events import Events
    from sevd.host_parts import HostParts
    from sevd.platform.device import PlatformDevice
    from sevd.platform.host import HostPlatform
    from sevd.settings import Settings
    from sevd.state import StateDirectory

GOING_SECONDS = 2.0
"""How often a platform is looked at that another process serves, which may start anew."""


class PlatformParts:
    """The parts.

    Attributes:
        endorsements: The certificates, opened while the daemon serves already.
        snp: The SNP platform.
        sev: The platform of SEV and SEV-ES.
        upkeep: What keeps the SNP platform as the configuration wants it.
    """

    def __init__(
        self,
        settings: Settings,
        state: StateDirectory,
        parts: HostParts,
        *,
        device: PlatformDevice,
        scheduler: Scheduler,
        events: Events,
        audit: Audit,
        quiet: Quiet,
        host: HostPlatform,
        occupants: Callable[[], Sequence[str]],
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._scheduler = scheduler
        self._events = events
        self._host = host
        folder = state.folder("endorsements")
        path = settings.certificate_table
        self._table = TableFile(path, wait_seconds=settings.table_wait_seconds) if path is not None else None
        self._product = products.by_name(parts.facts.product) if parts.facts.product else None
        self.endorsements = LateEndorsements(lambda: self._make_endorsements(folder), self._table, self._make_refresher)
        self.snp = SnpPlatform(
            device,
            events,
            product=self._product,
            committed_tcb=parts.committed_tcb,
            table=self.endorsements,
            quiet=quiet,
            changed=host.changed,
            vlek=VlekMemory(state.path / "vlek.json"),
            firmware_update=parts.firmware_update,
        )
        self.sev = SevPlatform(
            device,
            events,
            occupancy=Occupancy(self._product, occupants, parts.asids),
            certificates=self._sev_certificates if parts.sev_certificates or settings.kds else None,
            simulated=parts.simulated,
            quiet=quiet,
            refresh=host.refresh,
            changing=self.endorsements.changing,
        )
        self.upkeep = Upkeep(
            self.snp,
            events,
            Desired.of(settings),
            follow=self._follow,
            mend=self.endorsements.mend,
            record=lambda facts: audit.call(DAEMON, "", "", facts),
            changed=host.changed,
            offered="snp" in settings.technologies,
            gently=lambda: host.view().offers.era not in ("A", "C"),
            look_seconds=GOING_SECONDS if parts.may_go else LOOK_SECONDS,
        )

    async def taken_into_use(self) -> None:
        """The device is there, or there again."""
        self.upkeep.appeared()
        await self.endorsements.update()

    def reload(self, settings: Settings) -> None:
        """Takes what a reload may change."""
        self.upkeep.reload(Desired.of(settings))

    async def _follow(self) -> None:
        """Another program changed the platform."""
        await self.endorsements.update()
        await self._host.refresh()

    async def _identity(self) -> ChipIdentity:
        return await self.snp.identity()

    def _make_endorsements(self, folder: Path) -> Endorsements:
        """Runs on a thread."""
        from sevd import endorsing

        return endorsing.endorsements(
            folder,
            self._settings,
            self._parts,
            self._events,
            scheduler=self._scheduler,
            table=self._table,
            ask=self._identity,
        )

    def _make_refresher(self, store: Endorsements) -> Refresher:
        from sevd import endorsing

        offered = {"sev", "sev-es"} & set(self._settings.technologies)
        return endorsing.refresher(
            store,
            self._settings,
            self._parts,
            self._events,
            product=self._product,
            chip_ids=self.sev.chip_ids if offered else None,
        )

    def _sev_certificates(self) -> Mapping[str, bytes]:
        """Runs on a thread."""
        from sevd import endorsing

        return endorsing.sev_certificates(self._settings, self._parts, self.endorsements.ceks)
