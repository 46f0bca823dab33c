"""The worker's vCPUs over a run connection, on the real KVM: exits, completions, pauses, links that vanish."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sev.v1 import guest_pb2 as pb
from sevd.worker import run_wire
from tests.support import real_mode as rm
from tests.unit.running.conftest import Client, Guest

Make = Callable[..., Guest]

RUNNING = ("running", "", False)
PAUSED = ("paused", "", False)


def started(guest: Guest, posted_writes: int = 0) -> Client:
    client = guest.connect(posted_writes)
    assert client.next() == RUNNING
    return client


def test_every_exit_waits_for_its_completion(make: Make) -> None:
    client = started(make(rm.text(0x3F8, b"ok"), rm.HLT))
    first = client.exit()
    assert (first.vcpu, first.sequence, first.port_write.port, first.port_write.data) == (0, 1, 0x3F8, b"o")
    assert client.quiet()
    client.done(first)
    assert client.exit().port_write.data == b"k"


def test_reads_get_what_was_answered(make: Make) -> None:
    client = started(make(rm.read(0x60), rm.echo(0x61), rm.HLT))
    asked = client.exit()
    assert (asked.port_read.port, asked.port_read.size_bytes, asked.port_read.count) == (0x60, 1, 1)
    client.done(asked, b"\x99")
    assert client.exit().port_write.data == b"\x99"


def test_writes_may_run_ahead_and_reads_may_not(make: Make) -> None:
    client = started(make(rm.text(0x3F8, b"abcdef"), rm.read(0x60), rm.HLT), posted_writes=4)
    got = [client.exit() for _ in range(5)]
    assert b"".join(each.port_write.data for each in got) == b"abcde"
    assert client.quiet()
    client.done(got[3])  # and with it all before
    assert client.exit().port_write.data == b"f"
    read = client.exit()
    assert read.HasField("port_read")
    assert client.quiet()
    client.done(read, b"\x00")
    assert client.exit().HasField("halt")


def test_a_halt_goes_on_when_it_is_completed(make: Make) -> None:
    client = started(make(rm.HLT, rm.out(0x61, 3), rm.HLT))
    halt = client.exit()
    assert halt.HasField("halt")
    assert client.quiet()
    client.done(halt)
    assert client.exit().port_write.data == b"\x03"


def test_an_open_exit_comes_first_on_the_next_link(make: Make) -> None:
    guest = make(rm.text(0x3F8, b"x"), rm.read(0x60), rm.echo(0x61), rm.HLT)
    client = started(guest, posted_writes=8)
    write, read = client.exit(), client.exit()
    client.sock.close()
    wait(guest, "paused")
    client = started(guest)
    assert [client.exit(), client.exit()] == [write, read]
    client.done(read, b"\x42")  # answers the write before it too
    echo = client.exit()
    assert (echo.sequence, echo.port_write.data) == (3, b"\x42")
    client.sock.close()
    wait(guest, "paused")


def test_pause_and_resume_lose_and_double_nothing(make: Make) -> None:
    guest = make(rm.counter(0x61))
    client = started(guest, posted_writes=16)
    seen, pauses = [], 0
    while pauses < 20:
        client.control(pb.RUN_CONTROL_PAUSE)
        while (found := client.next()) != PAUSED:
            assert isinstance(found, pb.GuestExit)
            seen.append(found)
            client.done(found)
        pauses += 1
        assert client.quiet(0.01)
        client.control(pb.RUN_CONTROL_RESUME)
        assert client.next() == RUNNING
    while len(seen) < 600:
        found = client.exit()
        seen.append(found)
        client.done(found)
    assert [each.sequence for each in seen] == list(range(1, len(seen) + 1))
    assert [each.port_write.data[0] - seen[0].port_write.data[0] & 0xFF for each in seen] == [
        index & 0xFF for index in range(len(seen))
    ]


def test_an_endless_loop_is_paused_and_goes_on(make: Make) -> None:
    guest = make(rm.FOREVER)
    client = started(guest)
    for _ in range(5):
        client.control(pb.RUN_CONTROL_PAUSE)
        assert client.next() == PAUSED
        client.control(pb.RUN_CONTROL_RESUME)
        assert client.next() == RUNNING
    client.sock.close()
    wait(guest, "paused")


def test_a_client_that_does_not_answer_one_vcpu_holds_up_that_one_alone(make: Make) -> None:
    client = started(make(rm.read(0x60), rm.HLT, vcpus=2, others=rm.counter(0x61)))
    held, counted = None, 0
    while counted < 50 or held is None:
        found = client.exit()
        if found.vcpu:
            counted += 1
            client.done(found)
        else:
            assert held is None
            held = found


def test_a_shutdown_stops_the_guest_for_good(make: Make) -> None:
    guest = make(rm.TRIPLE_FAULT)
    client = started(guest)
    assert client.exit().HasField("shutdown")
    state = client.next()
    assert isinstance(state, tuple)
    assert (state[0], state[2]) == ("stopped", False)
    assert "triple fault" in state[1]
    client.sock.close()
    again = guest.connect()
    refusal = again.next()
    assert isinstance(refusal, str)
    assert "stopped" in refusal
    assert again.next() == ""


def test_stop_ends_every_vcpu(make: Make) -> None:
    guest = make(rm.FOREVER, vcpus=2, others=rm.FOREVER)
    client = started(guest)
    client.control(pb.RUN_CONTROL_STOP)
    assert client.next() == ("stopped", "its owner stopped it", False)


def test_there_is_one_link_at_a_time(make: Make) -> None:
    guest = make(rm.FOREVER)
    first = started(guest)
    second = guest.connect()
    refusal = second.next()
    assert isinstance(refusal, str)
    assert "another stream" in refusal
    first.control(pb.RUN_CONTROL_PAUSE)
    assert first.next() == PAUSED


BAD: dict[str, tuple[bytes, str]] = {
    "no message": (b"\xff\xff\xff", "no sev.v1.RunGuestRequest"),
    "cut off": (b"\x1a\x7f", "no sev.v1.RunGuestRequest"),
    "no vCPU": (pb.RunGuestRequest(completions=[pb.ExitCompletion(vcpu=7, sequence=1)]).SerializeToString(), "vcpu: 7"),
    "no exit": (pb.RunGuestRequest(completions=[pb.ExitCompletion(sequence=9)]).SerializeToString(), "no exit 9"),
    "too much": (
        pb.RunGuestRequest(completions=[pb.ExitCompletion(sequence=1, data=b"ab")]).SerializeToString(), "expected 1",
    ),
    "nothing": (pb.RunGuestRequest(completions=[pb.ExitCompletion(sequence=1)]).SerializeToString(), "expected 1"),
    "control": (b"\x20\x63", "no RunControl"),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "words"), BAD.values(), ids=BAD)
def test_what_a_client_may_not_say_ends_the_link_and_no_more(make: Make, request_: bytes, words: str) -> None:
    guest = make(rm.read(0x60), rm.echo(0x61), rm.HLT)
    client = started(guest)
    client.exit()
    client.sock.send(run_wire.REQUEST + request_)
    error = client.next()
    assert isinstance(error, str)
    assert words in error
    assert client.next() == ""
    client.sock.close()
    wait(guest, "paused")
    again = started(guest)
    again.done(again.exit(), b"\x01")
    assert again.exit().port_write.data == b"\x01"


def test_an_answer_given_twice_counts_once(make: Make) -> None:
    client = started(make(rm.read(0x60), rm.echo(0x61), rm.read(0x60), rm.echo(0x61), rm.HLT))
    first = client.exit()
    client.done(first, b"\x05")
    write = client.exit()
    client.done(first, b"\x06")
    client.done(write)
    second = client.exit()
    client.done(second, b"\x07")
    assert client.exit().port_write.data == b"\x07"


def test_a_full_socket_holds_nobody_up_who_pauses(make: Make) -> None:
    guest = make(rm.counter(0x61))
    client = started(guest, posted_writes=256)
    time.sleep(0.2)  # whatever is in flight, unread
    client.sock.close()
    wait(guest, "paused")
    client = started(guest, posted_writes=256)
    sequences = []
    for _ in range(300):
        found = client.exit()
        sequences.append(found.sequence)
        client.done(found)
    assert sequences == list(range(1, 301))


def wait(guest: Guest, state: str) -> None:
    until = time.monotonic() + 10
    while guest.vcpus.state != state:
        assert time.monotonic() < until, guest.vcpus.state
        time.sleep(0.005)
