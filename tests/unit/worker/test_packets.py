"""Messages between processes: whole or not at all, errors as what they are, descriptors never lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev import errors, packets
from sev.errors import FirmwareError, InternalError, LimitReached, MalformedInput, NotFound, SevError, WrongState


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(5)
        theirs.settimeout(5)
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_message_and_its_descriptors_arrive(pair: Pair) -> None:
    reading, writing = os.pipe()
    packets.send(pair[0], {"op": "x", "n": 1 << 60, "t": "ä"}, [writing])
    message, fds = packets.receive(pair[1])
    assert message == {"op": "x", "n": 1 << 60, "t": "ä"}
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"!")
    assert os.read(reading, 1) == b"!"
    packets.close_all([*fds, reading, writing])


@pytest.mark.parametrize(
    "error",
    [
        FirmwareError(0x16, command="SNP_LAUNCH_START", errno=5),
        WrongState("not now", remedy="later", metadata={"state": "READY", "allowed": "end"}),
        LimitReached("full", errno=16),
        NotFound("nothing", field="guest_id"),
        InternalError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_afterwards(pair: Pair, error: SevError) -> None:
    packets.send(pair[1], {"error": packets.error_document(error)})
    with pytest.raises(SevError) as raised:
        packets.call(pair[0], {"op": "x"})
    assert type(raised.value) is type(error)
    assert vars(raised.value) == vars(error)
    assert str(raised.value) == str(error)


def test_every_class_of_errors_travels() -> None:
    pending: list[type[SevError]] = [SevError]
    while pending:
        kind = pending.pop()
        pending += [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
        if kind is not SevError:
            document = {"reason": kind.reason, "message": "m", "metadata": {"a": "b"}}
            found = packets.error_from(document)
            assert type(found) is errors.from_reason(kind.reason)
            assert found.metadata == {"a": "b"}


@pytest.mark.parametrize(
    "document", [None, 1, [], {}, {"reason": 1, "message": [], "metadata": 3, "errno": "x"}], ids=str
)
def test_an_error_that_is_none_is_one_all_the_same(document: object) -> None:
    assert isinstance(packets.error_from(document), InternalError)


def test_too_large_a_message_is_not_sent(pair: Pair) -> None:
    with pytest.raises(InternalError, match="too large"):
        packets.send(pair[0], {"data": "x" * packets.PACKET_BYTES})
    with pytest.raises(InternalError, match="too large"):
        packets.send(pair[0], {}, [0] * (packets.DESCRIPTORS + 1))


def test_what_is_cut_off_is_no_message_and_its_descriptors_are_closed(pair: Pair) -> None:
    before = open_descriptors()
    socket.send_fds(pair[0], [b'{"a":"' + b"x" * packets.PACKET_BYTES + b'"}'], [0, 1])
    with pytest.raises(MalformedInput, match="cut off"):
        packets.receive(pair[1])
    socket.send_fds(pair[0], [b"{}"], [0] * 20)
    with pytest.raises(MalformedInput, match="cut off"):
        packets.receive(pair[1])
    assert open_descriptors() == before


def test_the_end_is_told_apart_from_silence(pair: Pair) -> None:
    pair[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        packets.receive(pair[1])
    pair[0].close()
    with pytest.raises(packets.Closed):
        packets.receive(pair[1])
    with pytest.raises(packets.Closed):
        packets.send(pair[1], {})


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(min_size=1, max_size=300), st.text(min_size=1).map(str.encode)))
def test_bytes_from_anywhere(data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(data)
        try:
            message, fds = packets.receive(theirs)
        except MalformedInput:
            return
        assert isinstance(message, dict)
        assert fds == []


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        (packets.whole, -1),
        (packets.whole, True),
        (packets.whole, "1"),
        (packets.whole, None),
        (packets.text, 1),
        (packets.octets, "0g"),
        (packets.octets, "abc"),
        (packets.table, []),
    ],
)
def test_a_field_of_another_kind(reader: object, value: object) -> None:
    with pytest.raises(MalformedInput, match="field"):
        reader({"field": value}, "field")  # type: ignore[operator]


@pytest.mark.parametrize("value", [None, [1], [[1]], [[1, "2"]], [[1, 2, 3]]], ids=str)
def test_runs_of_another_shape(value: object) -> None:
    with pytest.raises(MalformedInput, match="runs"):
        packets.runs({"runs": value}, "runs", 2)
