"""SimulatorService: playing the guest. On a real host nothing of it is offered, and the answer says where to go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from sev.errors import NotOffered
from sev.v1 import simulator_pb2 as pb
from sevd.access.identity import Caller
from sevd.api import messages
from sevd.api.skin import PlainSkin
from sevd.guests.machine import KeyRequest
from sevd.guests.service import Guests
from sevd.platform.snp import NO_UPDATE, UPDATE_REMEDY, SnpPlatform


class SimulatorSkin(PlainSkin):
    """Serves SimulatorService on a simulated host."""

    def __init__(
        self,
        guests: Guests,
        platform: SnpPlatform,
        reading: Callable[[], AbstractAsyncContextManager[Callable[[], bytes]]],
    ) -> None:
        """`reading` holds the table that guests receive with a report, as a VMM does; what it gives reads it."""
        self._guests = guests
        self._platform = platform
        self._reading = reading

    async def request_guest_report(
        self, caller: Caller, request: pb.RequestGuestReportRequest
    ) -> pb.RequestGuestReportResponse:
        """MSG_REPORT_REQ of the guest."""
        async with self._reading() as read:
            report = await self._guests.guest_report(
                caller, request.guest_id, request.report_data, vmpl=request.vmpl, key_selection=request.key_selection
            )
            return pb.RequestGuestReportResponse(report=report, certificate_table=read())

    async def request_guest_key(self, caller: Caller, request: pb.RequestGuestKeyRequest) -> pb.RequestGuestKeyResponse:
        """MSG_KEY_REQ of the guest."""
        wanted = KeyRequest(
            root_key=request.key_root,
            key_selection=request.key_selection,
            guest_field_select=request.guest_field_select,
            vmpl=request.vmpl,
            guest_svn=request.guest_svn,
            tcb_version=request.tcb_version,
        )
        return pb.RequestGuestKeyResponse(key=await self._guests.guest_key(caller, request.guest_id, wanted))

    async def update_firmware(self, caller: Caller, request: pb.UpdateFirmwareRequest) -> pb.UpdateFirmwareResponse:
        """SNP_DOWNLOAD_FIRMWARE_EX."""
        wanted = messages.wanted_tcb(request.tcb, "tcb") if request.HasField("tcb") else ""
        if isinstance(wanted, dict):
            wanted = ",".join(f"{name}={value}" for name, value in wanted.items())
        elif isinstance(wanted, int):
            wanted = f"{wanted:016x}"
        status = await self._platform.update_firmware(
            request.version, wanted, commit=request.commit, validate_only=request.validate_only
        )
        return pb.UpdateFirmwareResponse(status=messages.snp_status(status))


class NoSimulatorSkin(PlainSkin):
    """Serves SimulatorService on a real host: says that it is not offered, device or not."""

    needs_device = False

    async def request_guest_report(
        self, caller: Caller, request: pb.RequestGuestReportRequest
    ) -> pb.RequestGuestReportResponse:
        """Not offered."""
        raise _not_offered("report")

    async def request_guest_key(self, caller: Caller, request: pb.RequestGuestKeyRequest) -> pb.RequestGuestKeyResponse:
        """Not offered."""
        raise _not_offered("key")

    async def update_firmware(self, caller: Caller, request: pb.UpdateFirmwareRequest) -> pb.UpdateFirmwareResponse:
        """Not offered."""
        raise NotOffered(NO_UPDATE, remedy=UPDATE_REMEDY)


def _not_offered(what: str) -> NotOffered:
    return NotOffered(
        f"a host cannot ask for a guest's {what}: it travels encrypted with the guest's own key",
        remedy=f"Ask inside the guest: sev attest {what}.",
    )
