"""The platform of SEV and SEV-ES: its status, its keys, its owner.

What takes keys away (reset, PEK generation, an import) is refused while there are guests of any kind. So is whatever
has the kernel initialise SEV for one command, which it does while the platform is not initialised: newer kernels shut
down everything afterwards, SNP with it. Who is there is the business of `sevd.platform.occupancy`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Generic, TypeVar

from sev import status as statuses
from sev.abi import sev_certificate
from sev.abi import sev_device as abi
from sev.abi.sev_certificate import SevCertificate
from sev.errors import ConfirmationMissing, FirmwareError, NotNow, NotOffered, NotPermitted, SevError, UsageError
from sevd.access.roles import Role
from sevd.platform.views import FirmwareVersion, SevChainView, SevState, SevStatusView

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from sev.launch.platform import SevDevice
    from sevd.access.identity import Caller
    from sevd.devices.quiet import Quiet
    from sevd.devices.work import Work
    from sevd.events import Publisher
    from sevd.platform.device import PlatformDevice
    from sevd.platform.occupancy import Occupancy

T = TypeVar("T")

_STATES = {
    abi.STATE_UNINIT: SevState.UNINIT,
    abi.STATE_INIT: SevState.INIT,
    abi.STATE_WORKING: SevState.WORKING,
}

log = logging.getLogger(__name__)


async def _nothing() -> None:
    """There is nothing to do afterwards."""


class _Command(Generic[T]):
    """A command of the platform.

    Attributes:
        name: Its name.
        issue: Issues it, on the worker.
        kind: The event that tells of it; empty for one that changes nothing by itself.
        message: The event's sentence.
        disrupts: It takes keys away, in whatever state the platform is.
    """

    __slots__ = ("disrupts", "issue", "kind", "message", "name")

    def __init__(
        self, name: str, issue: Callable[[SevDevice], T], kind: str = "", message: str = "", *, disrupts: bool = False
    ) -> None:
        self.name = name
        self.issue = issue
        self.kind = kind
        self.message = message
        self.disrupts = disrupts


class SevPlatform:
    """Reads and changes the platform of SEV and SEV-ES.

    Args:
        device: The platform's device.
        events: Where to say what happened.
        occupancy: What must end before keys may go.
        certificates: Signed certificates of CEKs (names that begin with "cek"), and ASK and ARK ("authorities"), where
            the host has them.
        simulated: The platform is a model.
        quiet: Shared with the launches: no guest is created while a command runs that no guest may meet.
        refresh: Looks again at what the host is.
        changing: Holds the certificate table while a command runs that may shut SNP down, and makes it fit afterwards.
    """

    def __init__(
        self,
        device: PlatformDevice,
        events: Publisher,
        *,
        occupancy: Occupancy,
        certificates: Callable[[], Mapping[str, bytes]] | None = None,
        simulated: bool = False,
        quiet: Quiet | None = None,
        refresh: Callable[[], Awaitable[object]] = _nothing,
        changing: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        self._device = device
        self._events = events
        self._occupancy = occupancy
        self._certificates = certificates
        self._simulated = simulated
        self._quiet = quiet
        self._refresh = refresh
        self._changing = changing

    async def status(self) -> SevStatusView:
        """PLATFORM_STATUS, decoded, and whether SNP is up.

        Raises:
            DeviceMissing: There is no device.
            FirmwareError, KernelError: Refused.
        """
        self._device.require()
        return await self._device.ask(self._read)

    async def chip_ids(self) -> tuple[bytes, ...]:
        """GET_ID2: 64 bytes for each socket. Raises as `status`; NotOffered: the firmware is older than API 0.16."""
        self._device.require()
        return _split(await self._device.ask(lambda device: device.get_id()))

    async def export(self, caller: Caller, *, confirm: bool = False) -> SevChainView:
        """PDH_CERT_EXPORT, and what vouches for the CEK where the host has it.

        Raises:
            NotPermitted: It would initialise the platform, and the caller is no administrator.
            ConfirmationMissing: It would shut SNP down.
            NotNow: It would initialise the platform, and there are guests.
            DeviceMissing, FirmwareError, KernelError: Refused.
        """

        def issue(device: SevDevice) -> tuple[bytes, bytes, tuple[bytes, ...]]:
            pdh, chain = device.pdh_export()
            try:
                return pdh, chain, _split(device.get_id())
            except NotOffered:
                return pdh, chain, ()

        command = _Command("PDH_CERT_EXPORT", issue)
        pdh, chain, chip_ids = await self._do(command, caller, confirm=confirm)
        pek, oca, cek = (one.encode() for one in sev_certificate.split(chain, "exported chain"))
        signed, authorities = await self._vouched(cek)
        return SevChainView(pdh, pek, oca, cek, chip_ids, signed, authorities, self._simulated)

    async def signing_request(self, caller: Caller, *, confirm: bool = False) -> bytes:
        """PEK_CSR: the PEK's certificate without signatures, 2084 bytes. Raises as `export`."""
        return await self._do(_Command("PEK_CSR", lambda device: device.pek_csr()), caller, confirm=confirm)

    async def reset(self, caller: Caller, confirm: bool, *, validate_only: bool = False) -> SevStatusView:
        """FACTORY_RESET: new keys from the next initialisation on, and no owner but the platform itself.

        Raises:
            ConfirmationMissing: Not confirmed.
            NotNow: There are guests, which are named; or launches are in flight, or the certificate table is being
                read, for longer than is waited.
            DeviceMissing, FirmwareError, KernelError: Refused.
        """
        command = _Command(
            "FACTORY_RESET",
            lambda device: device.reset(),
            "platform.sev_reset",
            "the SEV platform was reset: its keys and its owner are gone",
            disrupts=True,
        )
        return await self._change(command, caller, confirm, validate_only)

    async def generate_pek(self, caller: Caller, confirm: bool, *, validate_only: bool = False) -> SevStatusView:
        """PEK_GEN: new OCA, PEK and PDH; the platform owns itself. Raises as `reset`."""
        command = _Command(
            "PEK_GEN",
            lambda device: device.pek_generate(),
            "platform.pek_generated",
            "the SEV platform has new keys and owns itself",
            disrupts=True,
        )
        return await self._change(command, caller, confirm, validate_only)

    async def generate_pdh(
        self, caller: Caller, *, confirm: bool = False, validate_only: bool = False
    ) -> SevStatusView:
        """PDH_GEN: a new PDH, also while guests run. Raises as `export`."""
        command = _Command(
            "PDH_GEN", lambda device: device.pdh_generate(), "platform.pdh_generated", "the SEV platform has a new PDH"
        )
        return await self._change(command, caller, confirm, validate_only)

    async def import_pek(
        self, caller: Caller, pek: bytes, oca: bytes, confirm: bool, *, validate_only: bool = False
    ) -> SevStatusView:
        """PEK_CERT_IMPORT: gives the platform an owner.

        Args:
            caller: Who asks.
            pek: What `signing_request` gave, signed by the owner's OCA.
            oca: The owner's certificate.
            confirm: Must be true.
            validate_only: Check everything, change nothing.

        Raises:
            MalformedInput: No certificate.
            UsageError: One of another use, such as the two in each other's place.
            VerificationError: The OCA did not sign itself, or the PEK.
            FirmwareError: ALREADY_OWNED; INVALID_CERTIFICATE: the PEK of another platform, or an earlier one.
            ConfirmationMissing, NotNow, DeviceMissing, KernelError: As in `reset`.
        """
        _confirmed("PEK_CERT_IMPORT", confirm)
        await asyncio.to_thread(_check_import, bytes(pek), bytes(oca))
        command = _Command(
            "PEK_CERT_IMPORT",
            lambda device: device.pek_import(pek, oca),
            "platform.pek_imported",
            "the SEV platform has an owner",
            disrupts=True,
        )

        def owned(before: SevStatusView) -> None:
            if before.externally_owned:
                raise FirmwareError(statuses.ALREADY_OWNED, command="PEK_CERT_IMPORT")

        return await self._change(command, caller, confirm, validate_only, owned)

    async def _change(
        self,
        command: _Command[None],
        caller: Caller,
        confirm: bool,
        validate_only: bool,
        check: Callable[[SevStatusView], None] = lambda before: None,
    ) -> SevStatusView:
        if command.disrupts:
            _confirmed(command.name, confirm)
        if validate_only:
            before = await self.status()
            if self._alone(command, before, caller, confirm):
                self._occupancy.need_nobody(command.name)
                self._device.require()
                await self._device.ask(lambda device: self._occupancy.need_no_guest(device, command.name))
            check(before)
            return before
        await self._do(command, caller, confirm=confirm)
        return await self.status()

    async def _do(self, command: _Command[T], caller: Caller, *, confirm: bool) -> T:
        """A command with everything that goes with it; once it is issued, it outlives its caller."""
        before = await self.status()
        alone = self._alone(command, before, caller, confirm)
        if alone:
            self._occupancy.need_nobody(command.name)
        work = self._device.work()
        return await self._device.step(self._doing(command, work, alone), work)

    async def _doing(self, command: _Command[T], work: Work, alone: bool) -> T:
        def issue(device: SevDevice) -> tuple[T, SevStatusView]:
            before = self._read(device)
            if alone:
                self._occupancy.need_no_guest(device, command.name)
            elif before.state is SevState.UNINIT:
                raise NotNow(
                    f"{command.name}: the platform was reset meanwhile", command=command.name, remedy="Ask again."
                )
            return command.issue(device), before

        quiet = self._quiet.alone(command.name) if self._quiet is not None and alone else nullcontext()
        table = self._changing() if alone else nullcontext()
        try:
            async with quiet, table:
                if alone:
                    self._occupancy.need_nobody(command.name)  # waiting for the quiet, others may have come
                answer, before = await self._device.ask(issue, work)
        finally:
            if alone or command.kind:
                await self._refresh()
        await self._tell(command, before)
        return answer

    async def _tell(self, command: _Command[T], before: SevStatusView) -> None:
        """What others must hear of a command that is done."""
        try:
            after = await self.status()
        except SevError as error:
            log.warning("after %s the platform does not tell its status: %s", command.name, error.message)
            return
        if command.kind:
            details = {"state": after.state.name, "externally_owned": str(after.externally_owned).lower()}
            self._events.publish(command.kind, command.message, details=details)
        if before.snp_initialized and not after.snp_initialized:
            self._events.publish(
                "platform.snp_shut_down", f"{command.name} had the kernel shut SNP down; the next VM brings it up again"
            )

    def _alone(self, command: _Command[T], before: SevStatusView, caller: Caller, confirm: bool) -> bool:
        """Whether no guest may be there; checks what the caller must be and say for it.

        Raises:
            NotPermitted, ConfirmationMissing: It is more than the caller may, or said.
        """
        if before.state is not SevState.UNINIT or command.name == "FACTORY_RESET":
            return command.disrupts
        if caller.role < Role.ADMIN:
            raise NotPermitted(
                f"{command.name}: the platform is not initialised, and would be for this command alone",
                command=command.name,
                remedy="That is for an administrator of this host (root).",
                metadata={"needed": Role.ADMIN.text, "state": before.state.name},
            )
        if before.snp_initialized and not confirm:
            raise ConfirmationMissing(
                f"{command.name}: the platform is not initialised; the kernel initialises it for this command, and may "
                "shut SNP down afterwards, until the next VM starts",
                field="confirm",
                command=command.name,
                remedy="Confirm with --yes (in the API: the field `confirm`) if you mean it.",
                metadata={"state": before.state.name},
            )
        return True

    def _read(self, device: SevDevice) -> SevStatusView:
        """Runs on the worker."""
        raw = device.platform_status()
        status = abi.PlatformStatus.decode(raw)
        snp = self._occupancy.snp(device)
        return SevStatusView(
            state=_STATES.get(status.state, SevState.UNSPECIFIED),
            firmware_version=FirmwareVersion(status.api_major, status.api_minor, status.build),
            externally_owned=bool(status.flags & abi.FLAG_OWNED),
            es_configured=bool(status.flags & abi.FLAG_CONFIG_ES),
            guest_count=status.guest_count,
            snp_initialized=snp is not None and snp.state == abi.STATE_INIT,
            raw=bytes(raw),
        )

    async def _vouched(self, cek: bytes) -> tuple[bytes, bytes]:
        """The signed certificate of this CEK, and ASK and ARK, where the host has them."""
        if self._certificates is None:
            return b"", b""
        found = await asyncio.to_thread(self._certificates)
        key = SevCertificate.read(cek, "CEK").key
        for name, signed in found.items():
            if name.startswith("cek") and SevCertificate.read(signed, "signed CEK").key == key:
                return signed, found.get("authorities", b"")
        return b"", b""


def _confirmed(command: str, confirm: bool) -> None:
    if not confirm:
        raise ConfirmationMissing(
            f"{command} cannot be undone, and was not confirmed", field="confirm", command=command
        )


def _split(identifiers: bytes) -> tuple[bytes, ...]:
    return tuple(bytes(identifiers[at : at + abi.ID_SIZE]) for at in range(0, len(identifiers), abi.ID_SIZE))


def _check_import(pek: bytes, oca: bytes) -> None:
    """What can be said of an import without the firmware. Raises MalformedInput, UsageError, VerificationError."""
    from sev.certs import sev_signatures

    signed = SevCertificate.read(pek, "PEK certificate")
    owner = SevCertificate.read(oca, "OCA certificate")
    for field, one, usage in (("pek", signed, sev_certificate.PEK), ("oca", owner, sev_certificate.OCA)):
        if one.usage != usage:
            raise UsageError(
                f"{field}: a certificate of {one.name}, expected {sev_certificate.USAGE_NAMES[usage]}",
                field=field,
                remedy="The signed PEK comes first, then the owner's OCA.",
            )
    sev_signatures.verify(owner, owner)
    sev_signatures.verify(signed, owner)
