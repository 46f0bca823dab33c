"""EndorsementService: the certificates of this chip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sev.errors import MalformedInput
from sev.v1 import endorsement_pb2 as pb
from sevd.access.identity import Caller
from sevd.api import messages
from sevd.api.skin import PlainSkin
from sevd.endorsements.model import Endorsement, EndorsementSet, RefreshState

CONTENT_BYTES = 64 << 10
"""Largest content of one import."""


class Store(Protocol):
    """Where certificates are kept (`sevd.endorsements`)."""

    async def current(self) -> EndorsementSet:
        """What fits this chip now."""

    async def refreshing(self) -> RefreshState:
        """How it stands with keeping them current."""

    async def renew(self) -> RefreshState:
        """Looks at everything that is needed now, and asks for what is missing or due."""

    async def import_(self, contents: list[bytes], *, validate_only: bool = False) -> Iterable[Endorsement]:
        """Checks and keeps certificates; answers those that were taken."""


class EndorsementSkin(PlainSkin):
    """Serves EndorsementService."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get_endorsements(self, caller: Caller, request: pb.GetEndorsementsRequest) -> pb.GetEndorsementsResponse:
        """What endorses this chip and its reported TCB."""
        return messages.endorsement_set(await self._store.current(), await self._store.refreshing())

    async def refresh_endorsements(
        self, caller: Caller, request: pb.RefreshEndorsementsRequest
    ) -> pb.RefreshEndorsementsResponse:
        """Asks for what is missing or due, now."""
        state = await (self._store.refreshing() if request.validate_only else self._store.renew())
        simulated = (await self._store.current()).simulated
        return pb.RefreshEndorsementsResponse(refresh=messages.refresh_state(state), simulated=simulated)

    async def import_endorsements(
        self, caller: Caller, request: pb.ImportEndorsementsRequest
    ) -> pb.ImportEndorsementsResponse:
        """Certificates and lists from files."""
        for index, content in enumerate(request.contents):
            if len(content) > CONTENT_BYTES:
                raise MalformedInput(
                    f"contents[{index}]: {len(content)} bytes, expected at most {CONTENT_BYTES}",
                    field=f"contents[{index}]",
                )
        taken = await self._store.import_(list(request.contents), validate_only=request.validate_only)
        return pb.ImportEndorsementsResponse(imported=[messages.endorsement(one) for one in taken])
