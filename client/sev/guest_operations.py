"""The operations on hosted guests, described once for the sync and asyncio clients; see `sev.operations`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.calls import DEVICE_SECONDS, READ_SECONDS, Call, Stream, ask, device, new_request_id
from sev.errors import NotOffered, UsageError
from sev.guest_model import Guest, GuestReport
from sev.wire import fits, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sev.calls import M, Operation
    from sev.v1 import guest_pb2, simulator_pb2

    Region = tuple[int, int, int]
    Progress = Callable[[str, int, int], object]

CHUNK = 512 << 10
"""Bytes of memory in one message of an upload: what goes fastest; the daemon takes up to 2 MiB."""

GUEST_TYPES = ("snp", "sev-es", "sev", "plain")
"""Technologies of guests that are hosted."""

KEY_SELECTIONS = ("auto", "vcek", "vlek")
"""Which key signs or derives: VLEK if one is loaded else VCEK, VCEK only, VLEK only; the index is the API's number."""


def create_guest(
    *,
    memory_bytes: int,
    firmware_bytes: int,
    vcpu_count: int,
    cpuid_signature: int,
    ap_reset_address: int = 0,
    vmsa_features: int | None = None,
    guest_type: str = "snp",
    guest_id: str = "",
    label: str = "",
    validate_only: bool = False,
    request_id: str = "",
) -> Operation[Guest]:
    """Creates a guest with empty memory. State afterwards: created.

    Args:
        memory_bytes: Memory from address 0; a multiple of 4096.
        firmware_bytes: Size of the firmware region that ends at 4 GiB; a multiple of 4096, at most 16 MiB.
        vcpu_count: Number of vCPUs.
        cpuid_signature: CPUID leaf 1 EAX shown to the guest.
        ap_reset_address: Where the other vCPUs start; 0 with one vCPU.
        vmsa_features: SEV_FEATURES of the VMSAs; None: 0x1 for SNP, 0 for others.
        guest_type: "snp", "sev-es", "sev", or "plain" for an ordinary VM that nothing protects (only where the daemon
            admits them).
        guest_id: Identifier wanted (8 to 36 of a-z, 0-9, hyphen); empty: the daemon makes one.
        label: Label of the owner's choosing, at most 64 characters.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    fits("vcpu_count", vcpu_count, 32)
    fits("cpuid_signature", cpuid_signature, 32)
    for name, value in (("memory_bytes", memory_bytes), ("firmware_bytes", firmware_bytes)):
        fits(name, value, 64)
    fits("ap_reset_address", ap_reset_address, 64)
    if vmsa_features is None:
        vmsa_features = int(guest_type == "snp")
    fits("vmsa_features", vmsa_features, 64)
    if guest_type not in GUEST_TYPES:
        raise UsageError(f"guest_type: {guest_type!r}, expected one of {', '.join(GUEST_TYPES)}", field="guest_type")
    request = pb.CreateGuestRequest(
        type=pb.GuestType.Value(f"GUEST_TYPE_{guest_type.upper().replace('-', '_')}"),
        guest_id=text("guest_id", guest_id),
        memory_bytes=memory_bytes,
        firmware_bytes=firmware_bytes,
        vcpu_count=vcpu_count,
        cpuid_signature=cpuid_signature,
        ap_reset_address=ap_reset_address,
        vmsa_features=vmsa_features,
        label=text("label", label),
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(device("GuestService/CreateGuest", request, pb.CreateGuestResponse, request_id))
    return Guest.from_message(answer.guest)


def load_memory(
    guest_id: str, regions: Iterable[tuple[int, bytes | memoryview]], *, progress: Progress | None = None
) -> Operation[int]:
    """Fills guest memory from (address, content) pairs; answers how many bytes were written.

    `progress` is called with ("load", bytes handed over, bytes in all), perhaps on another thread.
    """
    from sev.v1 import guest_pb2 as pb

    pieces = [(gpa, memoryview(data).cast("B")) for gpa, data in regions]
    total = sum(len(data) for _, data in pieces)
    for gpa, _ in pieces:
        fits("gpa", gpa, 64)

    problems: list[Exception] = []

    def messages() -> Iterator[guest_pb2.LoadGuestMemoryRequest | bytes]:
        done = 0
        yield pb.LoadGuestMemoryRequest(guest_id=text("guest_id", guest_id))
        for gpa, data in pieces:
            for offset in range(0, len(data), CHUNK):
                chunk = data[offset : offset + CHUNK]
                yield memory_message(gpa + offset, chunk)
                done += len(chunk)
                if progress is not None and not problems:
                    try:
                        progress("load", done, total)
                    except Exception as error:  # here it would be swallowed by gRPC
                        problems.append(error)

    seconds = DEVICE_SECONDS + total / (4 << 20)
    answer = yield from ask(Call("GuestService/LoadGuestMemory", messages, pb.LoadGuestMemoryResponse, seconds=seconds))
    if problems:
        raise problems[0]
    return answer.loaded_bytes


def memory_message(gpa: int, data: memoryview) -> bytes:
    """LoadGuestMemoryRequest with these two fields, on the wire: gpa is fixed64 field 2, data is field 3.

    Written by hand because a message object would copy the content twice more.
    """
    size, length = len(data), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((b"\x11", gpa.to_bytes(8, "little"), b"\x1a", length, data))


def start_launch(
    guest_id: str,
    *,
    policy: int,
    gosvw: bytes = b"",
    owner_certificate: bytes = b"",
    session: bytes = b"",
    validate_only: bool = False,
    request_id: str = "",
) -> Operation[Guest]:
    """LAUNCH_START with a guest policy. State: created to launching.

    Args:
        guest_id: The guest.
        policy: Guest policy.
        gosvw: OS visible workarounds of an SNP guest, 16 bytes.
        owner_certificate: ECDH certificate of an SEV or SEV-ES guest's owner, 2084 bytes; none: it has no owner.
        session: The owner's launch blob, 128 bytes.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.v1 import guest_pb2 as pb

    fits("policy", policy, 64)
    request_id = request_id or new_request_id()
    request = pb.StartGuestLaunchRequest(
        guest_id=text("guest_id", guest_id),
        policy=policy,
        gosvw=gosvw,
        owner_certificate=owner_certificate,
        session=session,
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(device("GuestService/StartGuestLaunch", request, pb.StartGuestLaunchResponse, request_id))
    return Guest.from_message(answer.guest)


def update_launch(
    guest_id: str, regions: Iterable[Region], *, validate_only: bool = False, request_id: str = ""
) -> Operation[Guest]:
    """LAUNCH_UPDATE over (address, bytes, page type) regions in this order. State stays launching.

    Page types are those of the firmware: 1 normal, 3 zero, 4 unmeasured, 5 secrets, 6 CPUID; 1 for SEV and SEV-ES.
    """
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.UpdateGuestLaunchRequest(
        guest_id=text("guest_id", guest_id), validate_only=validate_only, request_id=request_id
    )
    for gpa, size, page_type in regions:
        fits("gpa", gpa, 64)
        fits("size_bytes", size, 64)
        fits("page_type", page_type, 31)
        request.regions.add(gpa=gpa, size_bytes=size, page_type=page_type)
    answer = yield from ask(device("GuestService/UpdateGuestLaunch", request, pb.UpdateGuestLaunchResponse, request_id))
    return Guest.from_message(answer.guest)


def finish_launch(
    guest_id: str,
    *,
    id_block: bytes = b"",
    id_auth: bytes = b"",
    author_key_enabled: bool = False,
    vcek_disabled: bool = False,
    host_data: bytes = b"",
    validate_only: bool = False,
    request_id: str = "",
) -> Operation[Guest]:
    """SNP_LAUNCH_FINISH: measures the VMSAs, checks the ID block (96 and 4096 bytes). State: ready, or failed.

    LAUNCH_FINISH of an SEV or SEV-ES guest, which takes nothing else. State: measured to ready.
    """
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.FinishGuestLaunchRequest(
        guest_id=text("guest_id", guest_id),
        id_block=id_block,
        id_auth=id_auth,
        author_key_enabled=author_key_enabled,
        vcek_disabled=vcek_disabled,
        host_data=host_data,
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(device("GuestService/FinishGuestLaunch", request, pb.FinishGuestLaunchResponse, request_id))
    return Guest.from_message(answer.guest)


def guest(guest_id: str) -> Operation[Guest]:
    """One guest.

    Raises:
        NotFound: It does not exist, or not for this caller.
    """
    from sev.v1 import guest_pb2 as pb

    answer = yield from ask(
        Call("GuestService/GetGuest", pb.GetGuestRequest(guest_id=text("guest_id", guest_id)), pb.GetGuestResponse)
    )
    return Guest.from_message(answer.guest)


def guests(*, page_size: int = 0) -> Operation[list[Guest]]:
    """All guests that this caller may see, in the order of creation; asked for in pages of up to `page_size`."""
    from sev.v1 import guest_pb2 as pb

    fits("page_size", page_size, 32)
    found: list[Guest] = []
    token = ""
    while True:
        request = pb.ListGuestsRequest(page_size=page_size, page_token=token)
        answer = yield from ask(Call("GuestService/ListGuests", request, pb.ListGuestsResponse))
        found.extend(Guest.from_message(one) for one in answer.guests)
        if not answer.next_page_token or answer.next_page_token == token:
            return found
        token = answer.next_page_token


def watch_guests(guest_id: str = "") -> Stream[Guest]:
    """The guests that this caller may see (or only this one), each as it is and then each change, without end."""
    from sev.v1 import guest_pb2 as pb

    call = Call(
        "GuestService/WatchGuests", pb.WatchGuestsRequest(guest_id=text("guest_id", guest_id)), pb.WatchGuestsResponse
    )
    return Stream(call, lambda answer: Guest.from_message(answer.guest))


def pause_guest(guest_id: str, *, validate_only: bool = False, request_id: str = "") -> Operation[Guest]:
    """Halts a guest's vCPUs, and ends the stream that runs it, if there is one; a guest that is paused stays so.

    Args:
        guest_id: The guest.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.PauseGuestRequest(
        guest_id=text("guest_id", guest_id), validate_only=validate_only, request_id=request_id
    )
    answer = yield from ask(device("GuestService/PauseGuest", request, pb.PauseGuestResponse, request_id))
    return Guest.from_message(answer.guest)


def delete_guest(
    guest_id: str, *, confirm: bool = True, validate_only: bool = False, request_id: str = ""
) -> Operation[None]:
    """Ends a guest and frees its ASID; its memory cannot be brought back."""
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.DeleteGuestRequest(
        guest_id=text("guest_id", guest_id), confirm=confirm, validate_only=validate_only, request_id=request_id
    )
    yield from ask(device("GuestService/DeleteGuest", request, pb.DeleteGuestResponse, request_id))


def guest_report(
    guest_id: str, report_data: bytes = bytes(64), *, vmpl: int = 0, key_selection: str = "auto"
) -> Operation[GuestReport]:
    """An attestation report of a guest that the simulator plays; simulated hosts only.

    Args:
        guest_id: The guest; it must be this caller's.
        report_data: 64 bytes that the report repeats.
        vmpl: VMPL that the report shows, 0 to 3.
        key_selection: "auto", "vcek" or "vlek".

    Raises:
        NotOffered: The host is real: only the guest itself can ask.
    """
    from sev.v1 import simulator_pb2 as pb

    fits("vmpl", vmpl, 32)
    request = pb.RequestGuestReportRequest(
        guest_id=text("guest_id", guest_id), report_data=report_data, vmpl=vmpl, key_selection=_key(key_selection)
    )
    call = Call("SimulatorService/RequestGuestReport", request, pb.RequestGuestReportResponse, seconds=READ_SECONDS)
    answer = yield from _played(call)
    return GuestReport.from_message(answer)


def guest_key(
    guest_id: str,
    *,
    key_root: str = "vcek",
    key_selection: str = "auto",
    guest_field_select: int = 0,
    vmpl: int = 0,
    guest_svn: int = 0,
    tcb_version: int = 0,
) -> Operation[bytes]:
    """A derived key (32 bytes, secret) of a guest that the simulator plays; simulated hosts only.

    Args:
        guest_id: The guest; it must be this caller's.
        key_root: "vcek" (the VCEK or VLEK) or "vmrk".
        key_selection: "auto", "vcek" or "vlek".
        guest_field_select: GUEST_FIELD_SELECT: which fields are mixed in.
        vmpl: VMPL mixed in.
        guest_svn: Guest SVN mixed in.
        tcb_version: TCB version mixed in: the raw integer.
    """
    from sev.v1 import simulator_pb2 as pb

    roots = ("vcek", "vmrk")
    if key_root not in roots:
        raise UsageError(f"key_root is {key_root!r}, expected one of {', '.join(roots)}", field="key_root")
    for name, value, bits in (
        ("guest_field_select", guest_field_select, 64),
        ("vmpl", vmpl, 32),
        ("guest_svn", guest_svn, 32),
        ("tcb_version", tcb_version, 64),
    ):
        fits(name, value, bits)
    request = pb.RequestGuestKeyRequest(
        guest_id=text("guest_id", guest_id),
        key_root=roots.index(key_root),  # type: ignore[arg-type]
        key_selection=_key(key_selection),
        guest_field_select=guest_field_select,
        vmpl=vmpl,
        guest_svn=guest_svn,
        tcb_version=tcb_version,
    )
    call = Call("SimulatorService/RequestGuestKey", request, pb.RequestGuestKeyResponse, seconds=READ_SECONDS)
    answer = yield from _played(call)
    return answer.key


def _key(selection: str) -> simulator_pb2.KeySelection.ValueType:
    if selection not in KEY_SELECTIONS:
        raise UsageError(
            f"key_selection is {selection!r}, expected one of {', '.join(KEY_SELECTIONS)}", field="key_selection"
        )
    return KEY_SELECTIONS.index(selection)  # type: ignore[return-value]


def _played(call: Call[M]) -> Operation[M]:
    """A call to the simulator's service, which real hosts do not have."""
    try:
        return (yield from ask(call))
    except NotOffered as error:
        raise NotOffered(
            "this host is real: only the guest itself can ask its firmware for a report or a key",
            remedy="Run inside the guest: sev attest report --out report.bin. (A simulated host, sevd --simulate, "
            "plays the guest.)",
        ) from error
