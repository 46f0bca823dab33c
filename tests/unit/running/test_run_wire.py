"""What a worker writes and reads by hand is what the generated classes read and write."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev import running
from sev.abi import kvm_run
from sev.abi.kvm_run import Exit
from sev.errors import MalformedInput
from sev.v1 import guest_pb2 as pb
from sevd.worker import run_wire

u16, u32, u52, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 52, 64))
words = st.lists(u64, max_size=16).map(tuple)
EXITS = st.one_of(
    st.builds(kvm_run.PortRead, u16, st.sampled_from((1, 2, 4)), st.integers(1, 4096)),
    st.builds(kvm_run.PortWrite, u16, st.sampled_from((1, 2, 4)), st.binary(min_size=1, max_size=4096)),
    st.builds(kvm_run.MmioRead, u64, st.integers(1, 8)),
    st.builds(kvm_run.MmioWrite, u64, st.binary(min_size=1, max_size=8)),
    st.just(kvm_run.HALT),
    st.just(kvm_run.SHUTDOWN),
    st.builds(kvm_run.FailedEntry, u64, u32),
    st.builds(kvm_run.InternalError, u32, words),
    st.builds(kvm_run.SystemEvent, u32, words),
    st.builds(kvm_run.MemoryFault, u52, u52, st.booleans()),
    st.builds(kvm_run.Hypercall, u64, st.lists(u64, max_size=6).map(tuple)),
    st.builds(kvm_run.Other, u32),
)


@settings(max_examples=150)
@given(exits=st.lists(st.tuples(st.integers(0, 4095), st.integers(1, (1 << 64) - 1), EXITS), min_size=1, max_size=5))
def test_exits_arrive_as_they_were(exits: list[tuple[int, int, Exit]]) -> None:
    talk = running.Conversation("guest-id", 0)
    talk.receive(b"".join(run_wire.encode_exit(*each) for each in exits))  # joined, they are one message
    got = []
    while (found := talk.next()) is not None:
        got.append((found.vcpu, found.sequence, found.what))
    assert got == exits


completions = st.lists(st.tuples(u32, u64, st.binary(max_size=4096)), max_size=5)


@settings(max_examples=100)
@given(completions=completions, control=st.integers(0, 3))
def test_requests_are_read_as_they_were_meant(completions: list[tuple[int, int, bytes]], control: int) -> None:
    request = pb.RunGuestRequest(control=control)  # type: ignore[arg-type]
    for vcpu, sequence, data in completions:
        request.completions.add(vcpu=vcpu, sequence=sequence, data=data)
    got, word = run_wire.decode_request(request.SerializeToString())
    assert [(one.vcpu, one.sequence, one.data) for one in got] == completions
    assert word == control


@settings(max_examples=300)
@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedInput):
        completions, control = run_wire.decode_request(data)
        assert (type(completions), type(control)) == (list, int)


def test_fields_of_a_later_version_are_passed_over() -> None:
    extra = b"\x78\x05" + b"\x7a\x02hi" + b"\x79" + bytes(8) + b"\x7d" + bytes(4)
    assert run_wire.decode_request(extra + b"\x20\x01") == ([], run_wire.PAUSE)


@pytest.mark.parametrize("data", [b"\x1a\x05", b"\x20", b"\x1b", b"\x00\x00", b"\x20" + b"\xff" * 11, b"\x79\x00"])
def test_what_is_cut_off_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        run_wire.decode_request(data)
