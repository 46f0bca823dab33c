"""GuestService: hosted guests, every step of their launch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError

from sev.errors import MalformedInput, SevError, UsageError
from sev.v1 import guest_pb2 as pb
from sevd.access.identity import Caller
from sevd.api import messages
from sevd.api.chunks import read_chunk
from sevd.api.skin import Messages, PlainSkin
from sevd.api.trace import Trace
from sevd.guests.memory import MemoryLoader
from sevd.guests.model import CreateGuest, GuestType, Region
from sevd.guests.running import Run
from sevd.guests.service import Guests
from sevd.guests.sev_travel import Carried

_TYPES = {int(kind) for kind in GuestType}


class GuestSkin(PlainSkin):
    """Serves GuestService."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests

    async def create_guest(self, caller: Caller, request: pb.CreateGuestRequest) -> pb.CreateGuestResponse:
        """A VM with an ASID and empty memory."""
        wanted = CreateGuest(
            memory_bytes=request.memory_bytes,
            firmware_bytes=request.firmware_bytes,
            vcpu_count=request.vcpu_count,
            cpuid_signature=request.cpuid_signature,
            ap_reset_address=request.ap_reset_address,
            vmsa_features=request.vmsa_features,
            guest_id=request.guest_id,
            # A number of a later version is no technology that is known here.
            type=GuestType(request.type) if request.type in _TYPES else GuestType.UNSPECIFIED,
            label=request.label,
        )
        guest = await self._guests.create(caller, wanted, validate_only=request.validate_only)
        return pb.CreateGuestResponse(guest=messages.guest(guest))

    async def load_guest_memory(
        self, caller: Caller, chunks: AsyncIterator[bytes], trace: Trace
    ) -> pb.LoadGuestMemoryResponse:
        """Guest memory from a stream."""
        loader: MemoryLoader | None = None
        async for raw in chunks:
            guest_id, gpa, data = read_chunk(raw)
            if loader is None:
                trace.target = guest_id[:64]
                loader = await self._guests.load(caller, guest_id)
            elif guest_id and guest_id != loader.guest_id:
                raise UsageError(
                    "guest_id: the stream names another guest in its middle",
                    field="guest_id",
                    remedy="Name the guest in the first message only.",
                )
            loader.take(len(data))
            if data:
                loader.write(gpa, data)
        if loader is None:
            raise UsageError("guest_id: the stream ended before it named a guest", field="guest_id")
        return pb.LoadGuestMemoryResponse(loaded_bytes=loader.loaded_bytes)

    async def start_guest_launch(
        self, caller: Caller, request: pb.StartGuestLaunchRequest
    ) -> pb.StartGuestLaunchResponse:
        """LAUNCH_START."""
        guest = await self._guests.start(
            caller,
            request.guest_id,
            request.policy,
            request.gosvw,
            certificate=request.owner_certificate,
            session=request.session,
            validate_only=request.validate_only,
        )
        return pb.StartGuestLaunchResponse(guest=messages.guest(guest))

    async def update_guest_launch(
        self, caller: Caller, request: pb.UpdateGuestLaunchRequest
    ) -> pb.UpdateGuestLaunchResponse:
        """LAUNCH_UPDATE."""
        regions = [Region(region.gpa, region.size_bytes, region.page_type) for region in request.regions]
        guest = await self._guests.update(caller, request.guest_id, regions, validate_only=request.validate_only)
        return pb.UpdateGuestLaunchResponse(guest=messages.guest(guest))

    async def finish_guest_launch(
        self, caller: Caller, request: pb.FinishGuestLaunchRequest
    ) -> pb.FinishGuestLaunchResponse:
        """LAUNCH_FINISH."""
        guest = await self._guests.finish(
            caller,
            request.guest_id,
            id_block=request.id_block,
            id_auth=request.id_auth,
            author_key_enabled=request.author_key_enabled,
            vcek_disabled=request.vcek_disabled,
            host_data=request.host_data,
            validate_only=request.validate_only,
        )
        return pb.FinishGuestLaunchResponse(guest=messages.guest(guest))

    async def measure_guest(self, caller: Caller, request: pb.MeasureGuestRequest) -> pb.MeasureGuestResponse:
        """LAUNCH_MEASURE."""
        guest = await self._guests.sev.measure(caller, request.guest_id, validate_only=request.validate_only)
        return pb.MeasureGuestResponse(guest=messages.guest(guest), measurement=guest.measurement)

    async def inject_guest_secret(
        self, caller: Caller, request: pb.InjectGuestSecretRequest
    ) -> pb.InjectGuestSecretResponse:
        """LAUNCH_SECRET."""
        guest = await self._guests.sev.inject(
            caller,
            request.guest_id,
            request.gpa,
            request.header,
            request.payload,
            validate_only=request.validate_only,
        )
        return pb.InjectGuestSecretResponse(guest=messages.guest(guest))

    async def get_guest_attestation_report(
        self, caller: Caller, request: pb.GetGuestAttestationReportRequest
    ) -> pb.GetGuestAttestationReportResponse:
        """GET_ATTESTATION_REPORT."""
        report = await self._guests.sev.report(caller, request.guest_id, request.mnonce)
        return pb.GetGuestAttestationReportResponse(report=report)

    async def read_guest_memory(self, caller: Caller, request: pb.ReadGuestMemoryRequest) -> pb.ReadGuestMemoryResponse:
        """DBG_DECRYPT."""
        data = await self._guests.sev.read(
            caller, request.guest_id, request.gpa, request.size_bytes, validate_only=request.validate_only
        )
        return pb.ReadGuestMemoryResponse(data=data)

    async def write_guest_memory(
        self, caller: Caller, request: pb.WriteGuestMemoryRequest
    ) -> pb.WriteGuestMemoryResponse:
        """DBG_ENCRYPT."""
        await self._guests.sev.write(
            caller, request.guest_id, request.gpa, request.data, validate_only=request.validate_only
        )
        return pb.WriteGuestMemoryResponse()

    async def start_sending_guest(
        self, caller: Caller, request: pb.StartSendingGuestRequest
    ) -> pb.StartSendingGuestResponse:
        """SEND_START."""
        guest, leaving = await self._guests.migration.start_sending(
            caller,
            request.guest_id,
            request.pdh,
            request.chain,
            request.authorities,
            validate_only=request.validate_only,
        )
        wanted = guest.request
        return pb.StartSendingGuestResponse(
            guest=messages.guest(guest.view()),
            session=b"" if leaving is None else leaving.session,
            firmware_bytes=wanted.firmware_bytes,
            cpuid_signature=wanted.cpuid_signature,
            ap_reset_address=wanted.ap_reset_address,
            vcpus=() if leaving is None else leaving.vcpus,
            shared=[pb.MemoryRange(gpa=gpa, size_bytes=size) for gpa, size in leaving.shared] if leaving else (),
        )

    async def send_guest_pages(self, caller: Caller, request: pb.SendGuestPagesRequest) -> pb.SendGuestPagesResponse:
        """SEND_UPDATE_DATA."""
        pages, following = await self._guests.migration.send(
            caller, request.guest_id, request.position, validate_only=request.validate_only
        )
        carried = [pb.GuestPage(gpa=one.gpa, header=one.header, data=one.data) for one in pages]
        return pb.SendGuestPagesResponse(pages=carried, next_position=following)

    async def cancel_sending_guest(
        self, caller: Caller, request: pb.CancelSendingGuestRequest
    ) -> pb.CancelSendingGuestResponse:
        """SEND_CANCEL."""
        guest = await self._guests.migration.cancel_sending(
            caller, request.guest_id, validate_only=request.validate_only
        )
        return pb.CancelSendingGuestResponse(guest=messages.guest(guest))

    async def finish_sending_guest(
        self, caller: Caller, request: pb.FinishSendingGuestRequest
    ) -> pb.FinishSendingGuestResponse:
        """SEND_FINISH."""
        await self._guests.migration.finish_sending(caller, request.guest_id, validate_only=request.validate_only)
        return pb.FinishSendingGuestResponse()

    async def start_receiving_guest(
        self, caller: Caller, request: pb.StartReceivingGuestRequest
    ) -> pb.StartReceivingGuestResponse:
        """RECEIVE_START."""
        guest = await self._guests.migration.start_receiving(
            caller,
            request.guest_id,
            request.policy,
            request.pdh,
            request.session,
            validate_only=request.validate_only,
        )
        return pb.StartReceivingGuestResponse(guest=messages.guest(guest))

    async def receive_guest_pages(
        self, caller: Caller, request: pb.ReceiveGuestPagesRequest
    ) -> pb.ReceiveGuestPagesResponse:
        """RECEIVE_UPDATE_DATA."""
        pages = [Carried(one.gpa, one.header, one.data) for one in request.pages]
        await self._guests.migration.receive(caller, request.guest_id, pages, validate_only=request.validate_only)
        return pb.ReceiveGuestPagesResponse()

    async def finish_receiving_guest(
        self, caller: Caller, request: pb.FinishReceivingGuestRequest
    ) -> pb.FinishReceivingGuestResponse:
        """RECEIVE_FINISH."""
        guest = await self._guests.migration.finish_receiving(
            caller,
            request.guest_id,
            list(request.vcpus),
            [(one.gpa, one.size_bytes) for one in request.shared],
            validate_only=request.validate_only,
        )
        return pb.FinishReceivingGuestResponse(guest=messages.guest(guest))

    async def get_guest(self, caller: Caller, request: pb.GetGuestRequest) -> pb.GetGuestResponse:
        """One guest."""
        return pb.GetGuestResponse(guest=messages.guest(self._guests.get(caller, request.guest_id)))

    async def list_guests(self, caller: Caller, request: pb.ListGuestsRequest) -> pb.ListGuestsResponse:
        """The guests that the caller may see."""
        guests, token = self._guests.list(caller, request.page_size, request.page_token)
        return pb.ListGuestsResponse(guests=[messages.guest(guest) for guest in guests], next_page_token=token)

    def watch_guests(self, caller: Caller, request: pb.WatchGuestsRequest) -> AsyncIterator[pb.WatchGuestsResponse]:
        """Guests as they are, then every change."""
        watch = self._guests.watch(caller, request.guest_id)
        return Messages(watch, lambda guest: pb.WatchGuestsResponse(guest=messages.guest(guest)))

    async def run_guest(self, caller: Caller, chunks: AsyncIterator[bytes], trace: Trace) -> AsyncIterator[bytes]:
        """Exits as the worker says them, completions as the client does: neither is looked at here."""
        first = await anext(aiter(chunks), b"")
        try:
            request = pb.RunGuestRequest.FromString(first)
        except DecodeError:
            raise MalformedInput("the first message is no sev.v1.RunGuestRequest", field="guest_id") from None
        trace.target = request.guest_id[:64]
        if not request.guest_id or request.completions or request.control:
            raise UsageError("guest_id: the first message names the guest, and holds nothing else", field="guest_id")
        run = await self._guests.running.open(caller, request.guest_id, request.posted_writes)
        feeding = asyncio.ensure_future(_feed(run, chunks))
        try:
            async for item in run:
                yield item if isinstance(item, bytes) else messages.run_state(item).SerializeToString()
        finally:
            feeding.cancel()
            await run.close()

    async def pause_guest(self, caller: Caller, request: pb.PauseGuestRequest) -> pb.PauseGuestResponse:
        """Halts a guest's vCPUs."""
        guest = await self._guests.running.pause(caller, request.guest_id, validate_only=request.validate_only)
        return pb.PauseGuestResponse(guest=messages.guest(guest))

    async def delete_guest(self, caller: Caller, request: pb.DeleteGuestRequest) -> pb.DeleteGuestResponse:
        """Ends a guest in any state."""
        await self._guests.delete(caller, request.guest_id, validate_only=request.validate_only)
        return pb.DeleteGuestResponse()


async def _feed(run: Run, chunks: AsyncIterator[bytes]) -> None:
    """Hands the client's messages to the worker; when they end, so does the run."""
    try:
        async for raw in chunks:
            await run.send(raw)
    except SevError as error:
        run.fail(error)
    else:
        await run.close()
