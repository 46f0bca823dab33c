"""SevPlatformService: the platform of SEV and SEV-ES: status, keys, owner, certificates."""

from __future__ import annotations

from sev.v1 import sev_platform_pb2 as pb
from sevd.access.identity import Caller
from sevd.api import messages
from sevd.api.skin import PlainSkin
from sevd.platform.sev import SevPlatform


class SevPlatformSkin(PlainSkin):
    """Serves SevPlatformService."""

    def __init__(self, platform: SevPlatform) -> None:
        self._platform = platform

    async def get_sev_status(self, caller: Caller, request: pb.GetSevStatusRequest) -> pb.GetSevStatusResponse:
        """PLATFORM_STATUS."""
        return pb.GetSevStatusResponse(status=messages.sev_status(await self._platform.status()))

    async def get_chip_ids(self, caller: Caller, request: pb.GetChipIdsRequest) -> pb.GetChipIdsResponse:
        """GET_ID2."""
        return pb.GetChipIdsResponse(chip_ids=await self._platform.chip_ids())

    async def get_sev_chain(self, caller: Caller, request: pb.GetSevChainRequest) -> pb.GetSevChainResponse:
        """PDH_CERT_EXPORT."""
        return messages.sev_chain(await self._platform.export(caller, confirm=request.confirm))

    async def request_pek_signing(
        self, caller: Caller, request: pb.RequestPekSigningRequest
    ) -> pb.RequestPekSigningResponse:
        """PEK_CSR."""
        return pb.RequestPekSigningResponse(csr=await self._platform.signing_request(caller, confirm=request.confirm))

    async def reset_sev_platform(
        self, caller: Caller, request: pb.ResetSevPlatformRequest
    ) -> pb.ResetSevPlatformResponse:
        """FACTORY_RESET."""
        status = await self._platform.reset(caller, request.confirm, validate_only=request.validate_only)
        return pb.ResetSevPlatformResponse(status=messages.sev_status(status))

    async def generate_pek(self, caller: Caller, request: pb.GeneratePekRequest) -> pb.GeneratePekResponse:
        """PEK_GEN."""
        status = await self._platform.generate_pek(caller, request.confirm, validate_only=request.validate_only)
        return pb.GeneratePekResponse(status=messages.sev_status(status))

    async def generate_pdh(self, caller: Caller, request: pb.GeneratePdhRequest) -> pb.GeneratePdhResponse:
        """PDH_GEN."""
        status = await self._platform.generate_pdh(caller, confirm=request.confirm, validate_only=request.validate_only)
        return pb.GeneratePdhResponse(status=messages.sev_status(status))

    async def import_pek(self, caller: Caller, request: pb.ImportPekRequest) -> pb.ImportPekResponse:
        """PEK_CERT_IMPORT."""
        status = await self._platform.import_pek(
            caller, request.pek, request.oca, request.confirm, validate_only=request.validate_only
        )
        return pb.ImportPekResponse(status=messages.sev_status(status))
