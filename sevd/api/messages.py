"""Values of the logic as messages, and the few that come the other way. Nothing is decided here."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from sev.abi.tcb import TcbVersion
from sev.audit_trail import AuditFilter, AuditRecord
from sev.errors import UsageError
from sev.v1 import endorsement_pb2, guest_pb2, host_pb2, sev_platform_pb2, snp_platform_pb2, types_pb2
from sevd.events import Event
from sevd.guests.model import Guest
from sevd.guests.running import Moved
from sevd.metrics.model import Metric
from sevd.platform.views import (
    AsidUse,
    DesiredView,
    FirmwareVersion,
    HostView,
    SevChainView,
    SevStatusView,
    SnpStatusView,
    VlekView,
)

if TYPE_CHECKING:
    from sevd.endorsements.model import Endorsement, EndorsementSet, RefreshState


def timestamp(time: datetime) -> Timestamp:
    """An aware datetime as a Timestamp."""
    out = Timestamp()
    out.FromDatetime(time.astimezone(UTC).replace(tzinfo=None))
    return out


def tcb(version: TcbVersion) -> types_pb2.TcbVersion:
    """A TCB version: the components that its product has, and the raw integer."""
    return types_pb2.TcbVersion(**version.components(), raw=version.raw)


def wanted_tcb(message: types_pb2.TcbVersion, field: str = "reported_tcb") -> dict[str, int] | int:
    """The TCB that a request asks for: the components it names, or the raw integer if it names none.

    Raises:
        UsageError: It names both, or nothing.
    """
    names = ("fmc", "bootloader", "tee", "snp", "microcode")
    components = {name: int(getattr(message, name)) for name in names if message.HasField(name)}  # type: ignore[arg-type]
    if components and message.raw:
        raise UsageError(
            f"{field}: it has components and a raw value",
            field=field,
            remedy="Give the components, or the raw value alone.",
        )
    if components:
        return components
    if not message.raw:
        raise UsageError(
            f"{field}: it names no component and no raw value",
            field=field,
            remedy="Leave it out to keep the reported TCB; reset the configuration to undo what was set.",
        )
    return int(message.raw)


def firmware_version(version: FirmwareVersion) -> types_pb2.FirmwareVersion:
    """A firmware version in parts."""
    return types_pb2.FirmwareVersion(major=version.major, minor=version.minor, build=version.build)


def asid_use(use: AsidUse) -> types_pb2.AsidUse:
    """How many ASIDs exist and are in use."""
    return types_pb2.AsidUse(total=use.total, in_use=use.in_use)


def host(view: HostView) -> host_pb2.Host:
    """What the host is."""
    version = view.firmware_version
    return host_pb2.Host(
        product=view.product,
        simulated=view.simulated,
        firmware=view.firmware,
        firmware_version=firmware_version(version) if version is not None else None,
        kernel=view.kernel,
        sev_asids=asid_use(view.sev_asids),
        sev_es_asids=asid_use(view.sev_es_asids),
        chip_id=view.chip_id,
        technologies=view.technologies,
        missing=view.missing,
        device_health=host_pb2.DeviceHealth.ValueType(view.device_health),
        daemon_version=view.daemon_version,
        guest_count=view.guest_count,
        cpu_family=view.cpu_family,
        cpu_model=view.cpu_model,
        cpu_stepping=view.cpu_stepping,
        kvm_vm_types=view.offers.vm_types,
        module_parameters=dict(view.offers.parameters),
        kernel_interface=view.offers.interface,
        kernel_era=view.offers.era,
        desired_platform=desired_platform(view.desired) if view.desired is not None else None,
    )


def event(happened: Event) -> host_pb2.Event:
    """Something that happened."""
    return host_pb2.Event(
        sequence=happened.sequence,
        event_time=timestamp(happened.time),
        kind=happened.kind,
        guest_id=happened.guest_id,
        message=happened.message,
        simulated=happened.simulated,
        details=happened.details,
    )


def metric(value: Metric) -> host_pb2.Metric:
    """A metric with its samples."""
    return host_pb2.Metric(
        name=value.name,
        help=value.help,
        kind=host_pb2.MetricKind.ValueType(value.kind),
        samples=[
            host_pb2.MetricSample(
                labels=sample.labels,
                value=sample.value,
                buckets=[host_pb2.MetricBucket(most=most, total=total) for most, total in sample.buckets],
            )
            for sample in value.samples
        ],
    )


def audit_filter(request: host_pb2.ReadAuditRequest) -> AuditFilter:
    """Which records of the audit trail a request wants.

    Raises:
        UsageError: A time that is none, or a result that no record has.
    """
    times: dict[str, datetime] = {}
    for name, at in (("since", request.since), ("until", request.until)):
        if request.HasField(name):  # type: ignore[arg-type]
            try:
                times[name] = at.ToDatetime(UTC)
            except (ValueError, OverflowError):
                raise UsageError(f"{name}: no time of the years 1 to 9999", field=name) from None
    return AuditFilter(
        method=request.method,
        caller=request.caller,
        result=request.result,
        request_id=request.call_id,
        target=request.target,
        **times,
    )


def audit_record(one: AuditRecord) -> host_pb2.AuditRecord:
    """A record of the audit trail."""
    out = host_pb2.AuditRecord(sequence=one.sequence, line=one.line)
    with suppress(ValueError):  # of a line that is no record
        out.record_time.FromJsonString(one.time)
    return out


def desired_platform(view: DesiredView) -> snp_platform_pb2.DesiredPlatform:
    """What the configuration wants of the platform, and how it deviates."""
    actual = view.actual
    return snp_platform_pb2.DesiredPlatform(
        reported_tcb=view.reported_tcb,
        mask_chip_id=view.mask_chip_id,
        mask_chip_key=view.mask_chip_key,
        vlek=view.vlek,
        actual_reported_tcb=tcb(actual.reported_tcb) if actual is not None else None,
        actual_mask_chip_id=actual.mask_chip_id if actual is not None else None,
        actual_mask_chip_key=actual.mask_chip_key if actual is not None else None,
        actual_vlek=loaded_vlek(actual.vlek) if actual is not None and actual.vlek is not None else None,
        drift=view.drift,
        apply_time=timestamp(view.applied_at) if view.applied_at is not None else None,
    )


def loaded_vlek(view: VlekView) -> snp_platform_pb2.LoadedVlek:
    """The VLEK that is loaded."""
    at = timestamp(view.loaded_at) if view.loaded_at is not None else None
    return snp_platform_pb2.LoadedVlek(tcb=tcb(view.tcb), hashstick_sha256=view.digest, load_time=at)


def snp_status(view: SnpStatusView) -> snp_platform_pb2.SnpStatus:
    """The status of the SNP platform."""
    return snp_platform_pb2.SnpStatus(
        state=snp_platform_pb2.SnpState.ValueType(view.state),
        firmware_version=firmware_version(view.firmware_version),
        guest_count=view.guest_count,
        current_tcb=tcb(view.current_tcb),
        reported_tcb=tcb(view.reported_tcb),
        committed_tcb=tcb(view.committed_tcb) if view.committed_tcb is not None else None,
        mask_chip_id=view.mask_chip_id,
        mask_chip_key=view.mask_chip_key,
        vlek_loaded=view.vlek_loaded,
        rmp_initialized=view.rmp_initialized,
        alias_check_complete=view.alias_check_complete,
        feature_info=view.feature_info,
        rapl_dis=view.rapl_dis,
        ciphertext_hiding_cap=view.ciphertext_hiding_cap,
        ciphertext_hiding_en=view.ciphertext_hiding_en,
        vlek=loaded_vlek(view.vlek) if view.vlek is not None else None,
        raw=view.raw,
    )


def sev_status(view: SevStatusView) -> sev_platform_pb2.SevStatus:
    """The status of the platform of SEV and SEV-ES."""
    return sev_platform_pb2.SevStatus(
        state=sev_platform_pb2.SevState.ValueType(view.state),
        firmware_version=firmware_version(view.firmware_version),
        externally_owned=view.externally_owned,
        es_configured=view.es_configured,
        guest_count=view.guest_count,
        snp_initialized=view.snp_initialized,
        raw=view.raw,
    )


def sev_chain(view: SevChainView) -> sev_platform_pb2.GetSevChainResponse:
    """The certificates of that platform."""
    return sev_platform_pb2.GetSevChainResponse(
        pdh=view.pdh,
        pek=view.pek,
        oca=view.oca,
        cek=view.cek,
        signed_cek=view.signed_cek,
        authorities=view.authorities,
        chip_ids=view.chip_ids,
        simulated=view.simulated,
    )


def guest(value: Guest) -> guest_pb2.Guest:
    """A hosted guest."""
    return guest_pb2.Guest(
        guest_id=value.guest_id,
        type=guest_pb2.GuestType.ValueType(value.type),
        state=guest_pb2.GuestState.ValueType(value.state),
        owner=value.owner,
        vcpu_count=value.vcpu_count,
        memory_bytes=value.memory_bytes,
        policy=value.policy,
        launch_digest=value.launch_digest,
        asid=value.asid,
        create_time=timestamp(value.create_time),
        failure=value.failure,
        simulated=value.simulated,
        label=value.label,
        updated_pages=value.updated_pages,
        protected=value.protected,
        measurement=value.measurement,
    )


def run_state(moved: Moved) -> guest_pb2.RunGuestResponse:
    """A state that a running guest took."""
    state = guest_pb2.RunState(
        state=guest_pb2.GuestState.ValueType(moved.state), reason=moved.reason, failed=moved.failed
    )
    return guest_pb2.RunGuestResponse(state=state)


def endorsement(value: Endorsement) -> endorsement_pb2.Endorsement:
    """One certificate or list."""
    return endorsement_pb2.Endorsement(
        kind=endorsement_pb2.EndorsementKind.ValueType(value.kind),
        der=value.der,
        tcb=tcb(value.tcb) if value.tcb is not None else None,
        origin=value.origin,
        fetched_at=timestamp(value.fetched) if value.fetched is not None else None,
        expires_at=timestamp(value.ends) if value.ends is not None else None,
    )


def endorsement_set(value: EndorsementSet, state: RefreshState) -> endorsement_pb2.GetEndorsementsResponse:
    """Everything that endorses this chip, and how it is kept current."""
    return endorsement_pb2.GetEndorsementsResponse(
        endorsements=[endorsement(one) for one in value.endorsements],
        certificate_table=value.certificate_table,
        missing=value.missing,
        simulated=value.simulated,
        refresh=refresh_state(state),
    )


def refresh_state(value: RefreshState) -> endorsement_pb2.RefreshState:
    """How it stands with keeping certificates current."""
    items = [
        endorsement_pb2.RefreshItem(
            what=item.what,
            result=endorsement_pb2.RefreshResult.ValueType(item.result),
            message=item.message,
            next_at=timestamp(item.next) if item.next is not None else None,
        )
        for item in value.items
    ]
    return endorsement_pb2.RefreshState(
        service=value.service,
        last_at=timestamp(value.last) if value.last is not None else None,
        next_at=timestamp(value.next) if value.next is not None else None,
        items=items,
    )
