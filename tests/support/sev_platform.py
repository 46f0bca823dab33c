"""The platform of SEV and SEV-ES over the real driver and a simulated host, its owners, and what takes keys away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_signatures
from sev.session.owner import sign_request
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.devices import Quiet, Scheduler
from sevd.events import Event, Events
from sevd.platform import PlatformDevice
from sevd.platform.occupancy import Occupancy
from sevd.platform.sev import SevPlatform
from sevd.simulator import Simulator
from tests.support.simulated import simulated_host

ROOT = Caller.local(0, 0, 1, Role.ADMIN)
LAUNCHER = Caller.local(1000, 1000, 2, Role.LAUNCHER)
VIEWER = Caller.local(1001, 1001, 3, Role.VIEWER)


class Rig:
    """A platform, and what happened around it."""

    def __init__(self, simulator: Simulator, quiet: Quiet) -> None:
        self.simulator = simulator
        self.scheduler = Scheduler()
        self.events = Events(simulated=True)
        self.told: list[Event] = []
        self.events.listen(self.told.append)
        self.refreshed = self.held = 0
        self.occupants: list[str] = []
        self.device = PlatformDevice(simulator.process(), self.scheduler)
        self.platform = SevPlatform(
            self.device,
            self.events,
            occupancy=Occupancy(simulator.product, lambda: self.occupants, simulator.asids),
            certificates=simulator.sev_certificates,
            simulated=True,
            quiet=quiet,
            refresh=self._refresh,
            changing=self._changing,
        )

    @property
    def kinds(self) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in self.told]

    async def pdh(self, *, confirm: bool = False) -> bytes:
        """The PDH as it is."""
        return (await self.platform.export(ROOT, confirm=confirm)).pdh

    async def _refresh(self) -> None:
        self.refreshed += 1

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        self.held += 1
        yield


@asynccontextmanager
async def rig(
    folder: Path, product: str = "genoa", *, quiet: Quiet | None = None, era: str = "C"
) -> AsyncIterator[Rig]:
    """A platform on a simulated host of its own."""
    with simulated_host(folder / "host", product, era=era) as simulator:
        it = Rig(simulator, quiet or Quiet(wait_seconds=0.05))
        try:
            yield it
        finally:
            await it.device.close()
            it.scheduler.close()


class Owner:
    """An owner with a key of its own."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        self.key = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        bare = SevCertificate.of_key(abi.OCA, key.public_key(), (0, 0))
        self.certificate = sev_signatures.sign(bare, key, abi.OCA)

    def sign(self, csr: bytes) -> bytes:
        """The signed PEK."""
        return sign_request(SevCertificate.read(csr), self.certificate, self.key).encode()


Step = Callable[[SevPlatform, Owner], Awaitable[Any]]


async def import_pek(platform: SevPlatform, owner: Owner, *, confirm: bool = True, validate_only: bool = False) -> Any:
    """The owner signs the platform's request, and takes it over."""
    csr = await platform.signing_request(ROOT, confirm=True)
    return await platform.import_pek(
        ROOT, owner.sign(csr), owner.certificate.encode(), confirm, validate_only=validate_only
    )


DISRUPTIVE: dict[str, Step] = {
    "FACTORY_RESET": lambda platform, owner: platform.reset(ROOT, True),
    "PEK_GEN": lambda platform, owner: platform.generate_pek(ROOT, True),
    "PEK_CERT_IMPORT": import_pek,
}
CHECKED: dict[str, Step] = {
    "FACTORY_RESET": lambda platform, owner: platform.reset(ROOT, True, validate_only=True),
    "PEK_GEN": lambda platform, owner: platform.generate_pek(ROOT, True, validate_only=True),
    "PEK_CERT_IMPORT": lambda platform, owner: import_pek(platform, owner, validate_only=True),
}
