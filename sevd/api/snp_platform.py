"""SnpPlatformService: the SNP platform's status, TCB, configuration and VLEK."""

from __future__ import annotations

from sev.v1 import snp_platform_pb2 as pb
from sevd.access.identity import Caller
from sevd.api import messages
from sevd.api.skin import PlainSkin
from sevd.platform.snp import SnpPlatform


class SnpPlatformSkin(PlainSkin):
    """Serves SnpPlatformService."""

    def __init__(self, platform: SnpPlatform) -> None:
        self._platform = platform

    async def get_snp_status(self, caller: Caller, request: pb.GetSnpStatusRequest) -> pb.GetSnpStatusResponse:
        """SNP_PLATFORM_STATUS."""
        return pb.GetSnpStatusResponse(status=messages.snp_status(await self._platform.status()))

    async def commit_snp(self, caller: Caller, request: pb.CommitSnpRequest) -> pb.CommitSnpResponse:
        """SNP_COMMIT."""
        status = await self._platform.commit(request.confirm, validate_only=request.validate_only)
        return pb.CommitSnpResponse(status=messages.snp_status(status))

    async def set_snp_config(self, caller: Caller, request: pb.SetSnpConfigRequest) -> pb.SetSnpConfigResponse:
        """SNP_SET_CONFIG."""
        status = await self._platform.set_config(
            reported_tcb=messages.wanted_tcb(request.reported_tcb) if request.HasField("reported_tcb") else None,
            mask_chip_id=request.mask_chip_id if request.HasField("mask_chip_id") else None,
            mask_chip_key=request.mask_chip_key if request.HasField("mask_chip_key") else None,
            validate_only=request.validate_only,
        )
        return pb.SetSnpConfigResponse(status=messages.snp_status(status))

    async def reset_snp_config(self, caller: Caller, request: pb.ResetSnpConfigRequest) -> pb.ResetSnpConfigResponse:
        """SNP_SET_CONFIG of zeros."""
        status = await self._platform.reset_config(validate_only=request.validate_only)
        return pb.ResetSnpConfigResponse(status=messages.snp_status(status))

    async def load_vlek(self, caller: Caller, request: pb.LoadVlekRequest) -> pb.LoadVlekResponse:
        """SNP_VLEK_LOAD."""
        status = await self._platform.load_vlek(request.hashstick, validate_only=request.validate_only)
        return pb.LoadVlekResponse(status=messages.snp_status(status))
