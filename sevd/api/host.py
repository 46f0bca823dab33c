"""HostService: what this host is, and what happens on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sev.v1 import host_pb2 as pb
from sevd.access.identity import Caller
from sevd.api import messages
from sevd.api.skin import Messages, PlainSkin
from sevd.audit_reading import AuditReading
from sevd.events import Events
from sevd.metrics.collect import Collector
from sevd.platform.check import HostChecker
from sevd.platform.host import HostPlatform


class HostSkin(PlainSkin):
    """Serves HostService."""

    def __init__(
        self, host: HostPlatform, events: Events, checker: HostChecker, collector: Collector, audit: AuditReading
    ) -> None:
        self._host = host
        self._audit = audit
        self._collector = collector
        self._checker = checker
        self._events = events
        self._version = -1
        self._bytes = b""

    def cached(self, attribute: str) -> bytes | None:
        """GetHost from the bytes of the last view, as long as it is the last."""
        return self._host_bytes() if attribute == "get_host" else None

    async def get_host(self, caller: Caller, request: pb.GetHostRequest) -> pb.GetHostResponse:
        """The host as it is now."""
        return pb.GetHostResponse(host=messages.host(self._host.view()))

    async def check_host(self, caller: Caller, request: pb.CheckHostRequest) -> pb.CheckHostResponse:
        """The host, looked at check by check."""
        from sev.host.messages import to_message  # no start needs it

        return to_message(await self._checker.check(request.technology), simulated=self._checker.simulated)

    async def get_metrics(self, caller: Caller, request: pb.GetMetricsRequest) -> pb.GetMetricsResponse:
        """What the daemon counts and measures."""
        answer = pb.GetMetricsResponse(metrics=[messages.metric(one) for one in await self._collector.collect()])
        answer.sample_time.GetCurrentTime()
        return answer

    def watch_events(self, caller: Caller, request: pb.WatchEventsRequest) -> AsyncIterator[pb.WatchEventsResponse]:
        """Events that the caller may see: recent ones if it asks for them, then those from now on."""
        found = self._events.subscribe(caller, recent=request.recent, only_recent=request.only_recent)
        return Messages(found, lambda event: pb.WatchEventsResponse(event=messages.event(event)))

    def read_audit(self, caller: Caller, request: pb.ReadAuditRequest) -> AsyncIterator[pb.ReadAuditResponse]:
        """The audit trail."""
        found = self._audit.read(messages.audit_filter(request), last=request.last, follow=request.follow)
        return Messages(found, lambda one: pb.ReadAuditResponse(record=messages.audit_record(one)))

    def _host_bytes(self) -> bytes:
        view = self._host.view()  # looks again if something changed, and then counts the version up
        if self._version != self._host.version:
            self._bytes = pb.GetHostResponse(host=messages.host(view)).SerializeToString()
            self._version = self._host.version
        return self._bytes
