"""`sev.aio.migrate`: the same moves as `sev.migration.migrate`, awaited, and undone when cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import sev.aio
from sev import status
from sev.certs.sev_roots import SevRoots
from sev.client import Host
from sev.errors import FirmwareError, NotFound, VerificationError
from sev.measurement.sample import sample_firmware
from tests.support.two_hosts import roots

FIRMWARE = sample_firmware(64 << 10)
GPA = (4 << 30) - len(FIRMWARE)
MEMORY = 4 << 20
NOSEND = 0x8


def launched(host: Host, policy: int = 0) -> str:
    """A guest of 1040 pages, all of them its own."""
    guest = host.create_guest(
        guest_type="sev",
        memory_bytes=MEMORY,
        firmware_bytes=len(FIRMWARE),
        vcpu_count=1,
        cpuid_signature=0x830F10,
    ).guest_id
    host.load_memory(guest, [(GPA, FIRMWARE)])
    host.start_launch(guest, policy=policy)
    host.update_launch(guest, [(0, MEMORY, 1), (GPA, len(FIRMWARE), 1)])
    host.measure_guest(guest)
    host.finish_launch(guest)
    return guest


def moved(hosts: tuple[Host, Host], guest: str, trusted: SevRoots | None, **more: Any) -> Any:
    async def move() -> Any:
        async with (
            sev.aio.connect(hosts[0].target.address) as source,
            sev.aio.connect(hosts[1].target.address) as target,
        ):
            return await sev.aio.migrate(source, target, guest, roots=trusted, **more)

    return asyncio.run(move())


def test_a_guest_goes(hosts: tuple[Host, Host]) -> None:
    source, target = hosts
    guest = launched(source)
    seen: list[tuple[str, int, int]] = []
    there = moved(hosts, guest, roots(target), progress=lambda *told: seen.append(told))
    assert (there.guest_id, there.state) == (guest, "ready")
    assert target.read_guest_memory(guest, GPA, len(FIRMWARE)) == FIRMWARE
    assert seen[-1] == ("send", 1040, 1040)
    with pytest.raises(NotFound):
        source.guest(guest)


@pytest.mark.parametrize("why", ["a root that is not trusted", "a policy that keeps it"])
def test_one_that_does_not_go(hosts: tuple[Host, Host], why: str) -> None:
    source, target = hosts
    guest = launched(source, NOSEND if "policy" in why else 0)
    if "policy" in why:
        with pytest.raises(FirmwareError) as refused:
            moved(hosts, guest, roots(target))
        assert refused.value.firmware_status == status.POLICY_FAILURE
        assert "nosend" in refused.value.remedy
    else:
        with pytest.raises(VerificationError):
            moved(hosts, guest, None)
    assert source.guest(guest).state == "ready"
    assert source.read_guest_memory(guest, GPA, len(FIRMWARE)) == FIRMWARE
    assert target.guests() == []


@pytest.mark.parametrize("after", [1, 3])
def test_a_cancelled_one_is_undone(hosts: tuple[Host, Host], after: int) -> None:
    source, target = hosts
    guest = launched(source)
    trusted = roots(target)

    async def move() -> None:
        async with sev.aio.connect(source.target.address) as here, sev.aio.connect(target.target.address) as there:
            task: list[asyncio.Task[Any]] = []
            calls = [0]

            def progress(*_: object) -> None:
                calls[0] += 1
                if calls[0] == after:
                    task[0].cancel()

            stop: Callable[[str, int, int], object] = progress
            task.append(asyncio.ensure_future(sev.aio.migrate(here, there, guest, roots=trusted, progress=stop)))
            with pytest.raises(asyncio.CancelledError):
                await task[0]

    asyncio.run(move())
    assert source.guest(guest).state == "paused"
    assert source.read_guest_memory(guest, GPA, len(FIRMWARE)) == FIRMWARE
    assert target.guests() == []
    assert moved(hosts, guest, trusted).state == "ready"
