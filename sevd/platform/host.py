"""What this host is: one value, kept, and renewed when something changes.

`view` is cheap and never waits: facts and what the device said are kept from `refresh`; guests and ASIDs are read again
after every change that the daemon makes, and after `max_age` seconds where others on the host make changes too.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from sev import products
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, SevError
from sevd.platform.views import AsidUse, DesiredView, DeviceHealth, FirmwareVersion, HostView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sev.launch.platform import SevDevice
    from sevd.devices.facts import HostFacts
    from sevd.platform.device import PlatformDevice

WEDGED_SECONDS = 30.0
"""Seconds in one command after which the device counts as wedged. Launch steps take milliseconds."""


class HostPlatform:
    """The host, as `HostView`.

    Args:
        facts: What the machine says about itself.
        device: The platform's device.
        asids: Answers (total, in use) of "sev" and "sev_es" ASIDs. Must be quick.
        missing: What is missing, one sentence each. Must be quick.
        guest_count: How many guests the daemon hosts.
        simulated: The platform is simulated.
        daemon_version: Version of the daemon.
        max_age: Seconds after which `asids` is asked again; None where only this daemon changes them.
        desired: What the configuration wants of the platform. Must be quick; whoever changes it calls `changed`.
        clock: Monotonic seconds.

    Attributes:
        version: Counts up whenever `view` answers something new: a key for whoever keeps what it made of a view.
    """

    def __init__(
        self,
        facts: HostFacts,
        device: PlatformDevice,
        *,
        asids: Callable[[], Mapping[str, tuple[int, int]]],
        missing: Callable[[], Sequence[str]] = tuple,
        guest_count: Callable[[], int] = lambda: 0,
        simulated: bool,
        daemon_version: str,
        max_age: float | None = None,
        desired: Callable[[], DesiredView | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facts = facts
        self._device = device
        self._asids = asids
        self._missing = missing
        self._guest_count = guest_count
        self._simulated = simulated
        self._daemon_version = daemon_version
        self._max_age = max_age
        self._desired = desired
        self._clock = clock
        self._firmware: FirmwareVersion | None = None
        self._chip_id = b""
        self._health = DeviceHealth.UNSPECIFIED if device.present else DeviceHealth.MISSING
        self._said: tuple[str, ...] = ()
        self._found: tuple[str, ...] = ()
        self._view: HostView | None = None
        self._stale = True
        self._made_at = 0.0
        self.version = 0

    def update(self, facts: HostFacts) -> None:
        """The machine says something else about itself: the next view tells it."""
        self._facts = facts
        self._stale = True

    def changed(self) -> None:
        """Guests or ASIDs changed: the next view looks again."""
        self._stale = True

    def view(self) -> HostView:
        """The host as it is now."""
        now = self._clock()
        wedged = self._health is DeviceHealth.READY and self._device.busy_for() > WEDGED_SECONDS
        health = DeviceHealth.WEDGED if wedged else self._health
        view = self._view
        young = self._max_age is None or now - self._made_at < self._max_age
        if view is not None and young and not self._stale and view.device_health is health:
            return view
        self._stale = False
        self._made_at = now
        fresh = self._make(health)
        if fresh != view:
            self._view = fresh
            self.version += 1
            return fresh
        return view

    def silent(self) -> None:
        """The platform has not answered `refresh` yet: until it does, the view says so."""
        self._health = DeviceHealth.WEDGED
        self._said = ("The platform does not answer: another firmware command may hang.",)
        self._stale = True

    async def refresh(self) -> HostView:
        """Asks the device who it is and how it does, and looks again for what is missing. Never raises SevError."""
        self._found = tuple(self._missing())
        said: list[str] = []
        if not self._device.present:
            self._health = DeviceHealth.MISSING
        else:
            try:
                self._firmware, self._chip_id, snp_ready = await self._device.ask(self._probe)
            except DeviceMissing as error:
                self._health = DeviceHealth.MISSING
                said.append(error.message)
            except SevError as error:
                # An answer of the firmware is an answer; only silence means that it is wedged.
                silent = error.errno in (errno.ETIMEDOUT, errno.EBUSY) and error.firmware_status is None
                self._health = DeviceHealth.WEDGED if silent else DeviceHealth.READY
                said.append(f"The platform does not tell its status: {error.message}.")
            else:
                self._health = DeviceHealth.READY
                if not snp_ready:
                    said.append("SEV-SNP is not initialised: load kvm_amd with sev_snp=1.")
        self._said = tuple(said)
        self._stale = True
        return self.view()

    def _make(self, health: DeviceHealth) -> HostView:
        facts, asids = self._facts, self._asids()
        return HostView(
            product=facts.product,
            simulated=self._simulated,
            firmware_version=self._firmware,
            kernel=facts.kernel,
            sev_asids=AsidUse(*asids.get("sev", (0, 0))),
            sev_es_asids=AsidUse(*asids.get("sev_es", (0, 0))),
            chip_id=self._chip_id,
            technologies=tuple(facts.technologies),
            missing=(*self._found, *self._said),
            device_health=health,
            daemon_version=self._daemon_version,
            guest_count=self._guest_count(),
            cpu_family=facts.cpu_family,
            cpu_model=facts.cpu_model,
            cpu_stepping=facts.cpu_stepping,
            offers=facts.offers,
            desired=self._desired(),
        )

    def _probe(self, device: SevDevice) -> tuple[FirmwareVersion, bytes, bool]:
        """(version, chip id, SNP is usable or not to be had). Runs on the worker."""
        product = products.by_cpuid(self._facts.cpu_family, self._facts.cpu_model)
        length = product.chip_id_bytes if product else abi.ID_SIZE
        if product is not None and not product.has_snp:
            legacy = abi.PlatformStatus.decode(device.platform_status())
            return FirmwareVersion(legacy.api_major, legacy.api_minor, legacy.build), device.get_id()[:length], True
        status = abi.SnpStatus.decode(device.snp_status())
        version = FirmwareVersion(status.api_major, status.api_minor, status.build_id)
        return version, device.get_id()[:length], status.state == abi.STATE_INIT
