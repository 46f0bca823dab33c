"""Operations without any connection: what they call, what they check, what they answer; and the API they fit."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev import (
    aio,
    client,
    errors,
    guest_operations,
    hosted,
    hosted_plain,
    hosted_sev,
    migration_operations,
    operations,
    running,
    sev_guest_operations,
    sev_operations,
)
from sev.calls import Call, Stream
from sev.session.secret import Packet
from sev.v1 import endorsement_pb2, guest_pb2, host_pb2, options_pb2, sev_platform_pb2, simulator_pb2, snp_platform_pb2

if TYPE_CHECKING:
    from sev.calls import Operation

_FILES = (endorsement_pb2, guest_pb2, host_pb2, sev_platform_pb2, simulator_pb2, snp_platform_pb2)
_METHODS: dict[str, Any] = {
    f"{service.name}/{method.name}": method
    for module in _FILES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

_ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "snp_commit": ((), {"confirm": True}),
    "vlek_load": ((bytes(432),), {}),
    "update_firmware": (("1.55.50", {"snp": 28}), {}),
    "import_endorsements": (([b"x"],), {}),
    "refresh_endorsements": ((), {}),
    "reset_platform": ((), {"confirm": True}),
    "pek_generate": ((), {"confirm": True}),
    "pek_import": ((bytes(2084), bytes(2084)), {"confirm": True}),
    "create_guest": ((), {"memory_bytes": 4096, "firmware_bytes": 4096, "vcpu_count": 1, "cpuid_signature": 1}),
    "load_memory": (("guest-id", [(0, b"x")]), {}),
    "start_launch": (("guest-id",), {"policy": 0x30000}),
    "update_launch": (("guest-id", [(0, 4096, 1)]), {}),
    "finish_launch": (("guest-id",), {}),
    "guest": (("guest-id",), {}),
    "pause_guest": (("guest-id",), {}),
    "delete_guest": (("guest-id",), {}),
    "measure_guest": (("guest-id",), {}),
    "inject_secret": (("guest-id", Packet(bytes(52), bytes(16))), {"gpa": 0x1000}),
    "attestation_report": (("guest-id", bytes(16)), {}),
    "read_guest_memory": (("guest-id", 0, 1), {}),
    "write_guest_memory": (("guest-id", 0, b"x"), {}),
    "start_sending": (("guest-id",), {"pdh": b"p", "chain": b"c", "authorities": b"a"}),
    "send_pages": (("guest-id",), {}),
    "cancel_sending": (("guest-id",), {}),
    "finish_sending": (("guest-id",), {"confirm": True}),
    "start_receiving": (("guest-id",), {"policy": 0, "pdh": b"p", "session": b"s"}),
    "receive_pages": (("guest-id", []), {}),
    "finish_receiving": (("guest-id", []), {}),
    "guest_report": (("guest-id",), {}),
    "guest_key": (("guest-id",), {}),
}

_COMPOSED = (
    "launch_plan",
    "launch_snp",
    "launch_plain",
    "launch_sev",
    "launch_sev_es",
    "launch_sev_plan",
    "own_platform",
    "disown_platform",
)


def _names(cls: type) -> list[str]:
    return sorted(name for name, value in vars(cls).items() if hasattr(value, "describe"))


def first_call(operation: Operation[Any] | Stream[Any]) -> Call[Any]:
    """The first call that an operation makes."""
    return operation.call if isinstance(operation, Stream) else next(operation)


def _first(name: str) -> Call[Any]:
    args, kwargs = _ARGUMENTS.get(name, ((), {}))
    return first_call(vars(client.Host)[name].describe(*args, **kwargs))


_SINGLE = [name for name in _names(client.Host) if name not in _COMPOSED]


def test_both_clients_offer_the_same() -> None:
    assert _names(client.Host) == _names(aio.AsyncHost)
    for name in _names(client.Host):
        assert vars(client.Host)[name].describe is vars(aio.AsyncHost)[name].describe
    extra = {"run", "watch", "close", "run_guest", "map_memory"}
    public = {name for name in vars(client.Host) if not name.startswith("_")} - set(_names(client.Host))
    assert public == extra
    assert {name for name in vars(aio.AsyncHost) if not name.startswith("_")} - set(_names(aio.AsyncHost)) == extra
    assert inspect.signature(client.connect).parameters == inspect.signature(aio.connect).parameters


def test_every_operation_is_offered() -> None:
    public = {
        name
        for module in (
            operations,
            sev_operations,
            guest_operations,
            sev_guest_operations,
            hosted,
            hosted_plain,
            hosted_sev,
            migration_operations,
        )
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public - {"check_id_block", "launch_steps", "memory_message", "new_guest_id", "signature_of"} == set(
        _names(client.Host)
    )


def test_every_method_of_the_api_is_called() -> None:
    assert {_first(name).method for name in _SINGLE} | {running.described().method} == set(_METHODS)


@pytest.mark.parametrize("name", _SINGLE)
def test_calls_fit_the_api(name: str) -> None:
    call = _first(name)
    method = _METHODS[call.method]
    assert call.answer.DESCRIPTOR is method.output_type
    assert call.upload == method.client_streaming
    request: Any = next(call.request()) if callable(call.request) else call.request
    assert request.DESCRIPTOR is method.input_type


@pytest.mark.parametrize("name", _SINGLE)
def test_only_safe_calls_are_repeated(name: str) -> None:
    call = _first(name)
    rules = _METHODS[call.method].GetOptions().Extensions[options_pb2.rules]
    has_id = bool(getattr(call.request, "request_id", ""))
    assert rules.idempotent or has_id
    assert call.repeatable
    assert bool(call.request_id) == has_id
    if has_id:
        assert call.request_id == call.request.request_id  # type: ignore[union-attr]


@pytest.mark.parametrize("name", _SINGLE)
def test_every_operation_is_documented(name: str) -> None:
    assert (vars(client.Host)[name].describe.__doc__ or "").endswith((".", "\n    ", "end."))
    host = client.Host.__new__(client.Host)
    assert getattr(host, name).__name__ == name


def test_a_request_id_of_the_caller_is_kept_and_others_differ() -> None:
    kept = next(operations.snp_reset_config(request_id="mine"))
    assert kept.request_id == "mine"
    ids = {next(operations.snp_reset_config()).request_id for _ in range(3)}
    assert len(ids) == 3


def test_absent_configuration_stays_absent() -> None:
    request: Any = next(operations.snp_set_config(mask_chip_id=False)).request
    assert request.HasField("mask_chip_id")
    assert not request.HasField("mask_chip_key")
    assert not request.HasField("reported_tcb")
    request = next(operations.snp_set_config(reported_tcb={"snp": 0})).request
    assert request.reported_tcb.HasField("snp")
    assert not request.reported_tcb.HasField("tee")


@pytest.mark.parametrize(
    ("describe", "field"),
    [
        (lambda: operations.snp_set_config(reported_tcb={"psp": 1}), "reported_tcb"),
        (lambda: operations.snp_set_config(reported_tcb={"snp": 256}), "reported_tcb"),
        (lambda: operations.snp_set_config(reported_tcb={"snp": -1}), "reported_tcb"),
        (lambda: operations.vlek_load(bytes(431)), "hashstick"),
        (lambda: operations.update_firmware("1.55.50", {"speed": 1}), "tcb"),
        (lambda: guest_operations.guest("\udcff"), "guest_id"),
        (lambda: guest_operations.guests(page_size=-1), "page_size"),
        (lambda: guest_operations.start_launch("g", policy=1 << 64), "policy"),
        (lambda: guest_operations.update_launch("g", [(-1, 4096, 1)]), "gpa"),
        (lambda: guest_operations.guest_report("g", vmpl=-1), "vmpl"),
        (lambda: guest_operations.guest_report("g", key_selection="both"), "key_selection"),
        (lambda: guest_operations.guest_key("g", key_root="x"), "key_root"),
        (
            lambda: guest_operations.create_guest(
                memory_bytes=1, firmware_bytes=1, vcpu_count=1 << 32, cpuid_signature=0
            ),
            "vcpu_count",
        ),
    ],
)
def test_values_that_do_not_fit_name_their_field(describe: Any, field: str) -> None:
    with pytest.raises(errors.SevError) as caught:
        next(describe())
    assert caught.value.field == field
    assert caught.value.exit_code in (2, 9)


def test_guests_are_asked_for_page_by_page() -> None:
    operation = guest_operations.guests(page_size=2)
    first: Any = next(operation)
    assert first.request.page_size == 2
    page = guest_pb2.ListGuestsResponse(guests=[guest_pb2.Guest(guest_id="a")], next_page_token="t")
    second: Any = operation.send(page)
    assert second.request.page_token == "t"
    with pytest.raises(StopIteration) as end:
        operation.send(guest_pb2.ListGuestsResponse(guests=[guest_pb2.Guest(guest_id="b")]))
    assert [guest.guest_id for guest in end.value.value] == ["a", "b"]


def test_a_daemon_that_repeats_its_page_token_does_not_hold_us() -> None:
    operation = guest_operations.guests()
    next(operation)
    operation.send(guest_pb2.ListGuestsResponse(next_page_token="t"))
    with pytest.raises(StopIteration):
        operation.send(guest_pb2.ListGuestsResponse(next_page_token="t"))


def test_memory_is_cut_into_messages() -> None:
    content = bytes(range(256)) * 5000
    seen: list[tuple[str, int, int]] = []
    call = next(guest_operations.load_memory("g", [(0x1000, content)], progress=lambda *step: seen.append(step)))
    assert callable(call.request)
    for _ in range(2):  # a repeated upload starts afresh
        messages: Iterable[Any] = list(call.request())
        head, *pieces = messages
        rest = [guest_pb2.LoadGuestMemoryRequest.FromString(piece) for piece in pieces]
        assert (head.guest_id, head.data) == ("g", b"")
        assert b"".join(message.data for message in rest) == content
        assert [message.gpa for message in rest] == [
            0x1000 + at for at in range(0, len(content), guest_operations.CHUNK)
        ]
    assert seen[-1] == ("load", len(content), len(content))


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=40000) | st.just(bytes(1 << 20)))
def test_a_piece_of_memory_is_a_message(gpa: int, data: bytes) -> None:
    message = guest_pb2.LoadGuestMemoryRequest.FromString(guest_operations.memory_message(gpa, memoryview(data)))
    assert (message.guest_id, message.gpa, message.data) == ("", gpa, data)


def test_played_guests_are_not_offered_by_real_hosts() -> None:
    operation = guest_operations.guest_report("g")
    next(operation)
    with pytest.raises(errors.NotOffered) as caught:
        operation.throw(errors.NotOffered("unknown service"))
    assert "sev attest report" in caught.value.remedy
