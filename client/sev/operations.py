"""The operations on a host, its SNP platform and its endorsements, described once for the sync and asyncio clients.

Each function checks its arguments, yields the calls to make and returns a typed result; see `sev.calls`. Mutating
ones take `validate_only` (check everything, change nothing) and `request_id` (one is made if none is given, so that
a repeated call acts once). Those on guests are in `sev.guest_operations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.calls import READ_SECONDS, REFRESH_SECONDS, Call, Stream, ask, device, new_request_id
from sev.errors import MalformedInput, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sev.audit_trail import AuditFilter, AuditRecord
    from sev.calls import Operation
    from sev.endorsement_model import Endorsement, Endorsements, RefreshState
    from sev.event_model import Event
    from sev.host.verdict import HostCheck
    from sev.metrics_model import Metrics
    from sev.model import HostInfo
    from sev.snp_model import SnpStatus

HASHSTICK_BYTES = 432
"""Bytes of a wrapped VLEK hash stick."""


def host() -> Operation[HostInfo]:
    """What the host is."""
    from sev.model import HostInfo
    from sev.v1 import host_pb2

    answer = yield from ask(Call("HostService/GetHost", host_pb2.GetHostRequest(), host_pb2.GetHostResponse))
    return HostInfo.from_message(answer.host)


def check_host(technology: str = "") -> Operation[HostCheck]:
    """What keeps the host from running guests, check by check.

    Args:
        technology: "sev", "sev-es" or "sev-snp"; empty for anything at all.

    Raises:
        UsageError: No such technology.
    """
    from sev.host.messages import from_message
    from sev.host.verdict import require
    from sev.v1 import host_pb2

    require(technology)
    request = host_pb2.CheckHostRequest(technology=technology)
    call = Call("HostService/CheckHost", request, host_pb2.CheckHostResponse, seconds=READ_SECONDS)
    answer = yield from ask(call)
    return from_message(answer, technology)


def metrics() -> Operation[Metrics]:
    """What the daemon counts and measures."""
    from sev.metrics_model import Metrics
    from sev.v1 import host_pb2 as pb

    call = Call("HostService/GetMetrics", pb.GetMetricsRequest(), pb.GetMetricsResponse, seconds=READ_SECONDS)
    answer = yield from ask(call)
    return Metrics.from_message(answer)


def events(*, recent: int = 0, only_recent: bool = False) -> Stream[Event]:
    """What happens on the host from now on, without end.

    Args:
        recent: Begin with at most so many events that have happened already (the daemon keeps 512).
        only_recent: End after these.
    """
    from sev.event_model import Event
    from sev.v1 import host_pb2

    request = host_pb2.WatchEventsRequest(recent=recent, only_recent=only_recent)
    call = Call("HostService/WatchEvents", request, host_pb2.WatchEventsResponse)
    return Stream(call, lambda answer: Event.from_message(answer.event))


def audit(wanted: AuditFilter | None = None, *, last: int = 0, follow: bool = False) -> Stream[AuditRecord]:
    """The audit trail of the daemon, oldest record first. For admins.

    Args:
        wanted: Which records; None: all.
        last: Only so many from the end, at most 10000; 0: all.
        follow: Afterwards records as they are written, without end.
    """
    from sev.audit_trail import AuditFilter, AuditRecord
    from sev.v1 import host_pb2 as pb

    wanted = wanted or AuditFilter()
    request = pb.ReadAuditRequest(
        method=wanted.method,
        caller=wanted.caller,
        result=wanted.result,
        call_id=wanted.request_id,
        target=wanted.target,
        last=last,
        follow=follow,
    )
    if wanted.since is not None:
        request.since.FromDatetime(wanted.since)
    if wanted.until is not None:
        request.until.FromDatetime(wanted.until)
    call = Call("HostService/ReadAudit", request, pb.ReadAuditResponse)
    return Stream(call, lambda answer: AuditRecord.parse(answer.record.line))


def snp_status() -> Operation[SnpStatus]:
    """SNP_PLATFORM_STATUS, with the TCBs side by side."""
    from sev.snp_model import SnpStatus
    from sev.v1 import snp_platform_pb2 as pb

    answer = yield from ask(
        Call("SnpPlatformService/GetSnpStatus", pb.GetSnpStatusRequest(), pb.GetSnpStatusResponse, seconds=READ_SECONDS)
    )
    return SnpStatus.from_message(answer.status)


def snp_commit(*, confirm: bool, validate_only: bool = False, request_id: str = "") -> Operation[SnpStatus]:
    """SNP_COMMIT: makes the running firmware the oldest that may ever run; cannot be undone.

    Args:
        confirm: Must be true.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.snp_model import SnpStatus
    from sev.v1 import snp_platform_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.CommitSnpRequest(confirm=confirm, validate_only=validate_only, request_id=request_id)
    answer = yield from ask(device("SnpPlatformService/CommitSnp", request, pb.CommitSnpResponse, request_id))
    return SnpStatus.from_message(answer.status)


def snp_set_config(
    *,
    reported_tcb: Mapping[str, int] | None = None,
    mask_chip_id: bool | None = None,
    mask_chip_key: bool | None = None,
    validate_only: bool = False,
    request_id: str = "",
) -> Operation[SnpStatus]:
    """SNP_SET_CONFIG: what reports and VCEKs show. What is not given keeps its value.

    Args:
        reported_tcb: Components (fmc, bootloader, tee, snp, microcode) to values 0 to 255.
        mask_chip_id: CHIP_ID in reports is zero.
        mask_chip_key: The VCEK may not sign.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.

    Raises:
        UsageError: An unknown component, or a value that is no byte.
    """
    from sev.snp_model import SnpStatus
    from sev.v1 import snp_platform_pb2 as pb
    from sev.v1 import types_pb2

    request_id = request_id or new_request_id()
    request = pb.SetSnpConfigRequest(
        reported_tcb=types_pb2.TcbVersion(**_components(reported_tcb, "reported_tcb")) if reported_tcb else None,
        mask_chip_id=mask_chip_id,
        mask_chip_key=mask_chip_key,
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(device("SnpPlatformService/SetSnpConfig", request, pb.SetSnpConfigResponse, request_id))
    return SnpStatus.from_message(answer.status)


def snp_reset_config(*, validate_only: bool = False, request_id: str = "") -> Operation[SnpStatus]:
    """SNP_SET_CONFIG with zeros: the reported TCB follows the committed one again, masks off."""
    from sev.snp_model import SnpStatus
    from sev.v1 import snp_platform_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.ResetSnpConfigRequest(validate_only=validate_only, request_id=request_id)
    answer = yield from ask(device("SnpPlatformService/ResetSnpConfig", request, pb.ResetSnpConfigResponse, request_id))
    return SnpStatus.from_message(answer.status)


def vlek_load(hashstick: bytes, *, validate_only: bool = False, request_id: str = "") -> Operation[SnpStatus]:
    """SNP_VLEK_LOAD: loads a wrapped hash stick of 432 bytes; only an SNP shutdown unloads it.

    Raises:
        MalformedInput: Not 432 bytes.
    """
    from sev.snp_model import SnpStatus
    from sev.v1 import snp_platform_pb2 as pb

    if len(hashstick) != HASHSTICK_BYTES:
        raise MalformedInput(
            f"hash stick: {len(hashstick)} bytes, expected {HASHSTICK_BYTES}",
            field="hashstick",
            remedy="Give the wrapped VLEK hash stick as AMD's key distribution service returns it.",
        )
    request_id = request_id or new_request_id()
    request = pb.LoadVlekRequest(hashstick=hashstick, validate_only=validate_only, request_id=request_id)
    answer = yield from ask(device("SnpPlatformService/LoadVlek", request, pb.LoadVlekResponse, request_id))
    return SnpStatus.from_message(answer.status)


def update_firmware(
    version: str,
    tcb: Mapping[str, int] | None = None,
    *,
    commit: bool = False,
    validate_only: bool = False,
    request_id: str = "",
) -> Operation[SnpStatus]:
    """SNP_DOWNLOAD_FIRMWARE_EX on a simulated host: another firmware runs, provisionally until a commit.

    Args:
        version: Such as "1.55.50"; not below the committed one.
        tcb: Components of its TCB that differ from the usual ones of that version.
        commit: Commit it at once.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.

    Raises:
        NotOffered: A real host.
    """
    from sev.snp_model import SnpStatus
    from sev.v1 import simulator_pb2 as pb
    from sev.v1 import types_pb2

    request_id = request_id or new_request_id()
    request = pb.UpdateFirmwareRequest(
        version=version,
        tcb=types_pb2.TcbVersion(**_components(tcb)) if tcb else None,
        commit=commit,
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(device("SimulatorService/UpdateFirmware", request, pb.UpdateFirmwareResponse, request_id))
    return SnpStatus.from_message(answer.status)


def endorsements() -> Operation[Endorsements]:
    """The certificates for the chip and its reported TCB, and the certificate table for guests."""
    from sev.endorsement_model import Endorsements
    from sev.v1 import endorsement_pb2 as pb

    call = Call(
        "EndorsementService/GetEndorsements",
        pb.GetEndorsementsRequest(),
        pb.GetEndorsementsResponse,
        seconds=READ_SECONDS,
    )
    answer = yield from ask(call)
    return Endorsements.from_message(answer)


def refresh_endorsements(*, validate_only: bool = False, request_id: str = "") -> Operation[RefreshState]:
    """Has the daemon ask now for what it needs of certificates and lists; answers how it stands.

    Args:
        validate_only: Ask nobody, only answer how it stands.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.endorsement_model import RefreshState
    from sev.v1 import endorsement_pb2 as pb

    request_id = request_id or new_request_id()
    call = Call(
        "EndorsementService/RefreshEndorsements",
        pb.RefreshEndorsementsRequest(validate_only=validate_only, request_id=request_id),
        pb.RefreshEndorsementsResponse,
        seconds=REFRESH_SECONDS,
        request_id=request_id,
    )
    answer = yield from ask(call)
    return RefreshState.from_message(answer.refresh)


def import_endorsements(
    contents: Sequence[bytes], *, validate_only: bool = False, request_id: str = ""
) -> Operation[tuple[Endorsement, ...]]:
    """Gives certificates and revocation lists to the daemon: DER or PEM, at most 64 KiB each; answers what it took."""
    from sev.endorsement_model import Endorsement
    from sev.v1 import endorsement_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.ImportEndorsementsRequest(contents=contents, validate_only=validate_only, request_id=request_id)
    answer = yield from ask(
        device("EndorsementService/ImportEndorsements", request, pb.ImportEndorsementsResponse, request_id)
    )
    return tuple(Endorsement.from_message(one) for one in answer.imported)


def _components(tcb: Mapping[str, int], field: str = "tcb") -> Mapping[str, int]:
    """The same, if they are components and fit. Raises UsageError."""
    from sev.products import TCB_COMPONENTS

    for name, value in tcb.items():
        if name not in TCB_COMPONENTS:
            raise UsageError(f"{field}: unknown component {name!r}", field=field)
        if not 0 <= value <= 0xFF:
            raise UsageError(f"{field}: {name} is {value}, expected 0 to 255", field=field)
    return tcb
