"""The library against a real simulated daemon: both clients, whole flows, restarts, a host without a device."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import sev
import sev.aio
from sev import errors
from sev.measurement import snp_launch_digest
from sev.measurement.sample import sample_firmware
from tests.support.cli import sev as run
from tests.support.daemon import Daemon, chip, running


def test_a_whole_flow(daemon: Daemon) -> None:
    firmware = sample_firmware()
    seen: list[str] = []
    with daemon.connect() as host:
        launched = host.launch_snp(firmware, 2, progress=lambda step, done, total: seen.append(step))
        guest = launched.guest
        assert launched.as_expected
        assert launched.expected_digest == snp_launch_digest(firmware, 2, vcpu_type="EPYC-v4")
        assert set(seen) == {"create", "load", "measure", "finish"}
        assert host.guest(guest.guest_id).document() == guest.document()
        assert guest.guest_id in [one.guest_id for one in host.guests(page_size=1)]
        report = host.guest_report(guest.guest_id, bytes(range(64)))
        assert sev.attestation.Report.parse(report.report).report_data == bytes(range(64))
        first, second = (host.guest_key(guest.guest_id, guest_field_select=select) for select in (0, 1))
        assert len(first) == 32
        assert first != second
        assert first == host.guest_key(guest.guest_id)
        assert host.guest_key(guest.guest_id, key_root="vmrk") != first
        host.delete_guest(guest.guest_id)
        with pytest.raises(errors.NotFound):
            host.guest(guest.guest_id)


def test_events_tell_of_a_guest(daemon: Daemon) -> None:
    told: list[tuple[str, str]] = []
    listening = threading.Event()

    def listen() -> None:
        with daemon.connect() as host:
            for event in host.events():
                assert event.simulated
                assert event.event_time is not None
                told.append((event.kind, event.guest_id))
                listening.set()
                if event.kind == "guest.deleted":
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    with daemon.connect() as host:
        ids = []
        while not listening.wait(0.05):  # a stream tells from its start on, which nobody announces
            guest = host.create_guest(memory_bytes=4096, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0x00800F12)
            ids.append(guest.guest_id)
        for guest_id in ids:
            host.delete_guest(guest_id)
    thread.join(20)
    assert told[-1] == ("guest.deleted", ids[0])


def test_a_whole_flow_with_asyncio(daemon: Daemon) -> None:
    async def flow() -> None:
        firmware = sample_firmware()
        async with sev.aio.connect(daemon.socket) as host:
            info, status = await asyncio.gather(host.host(), host.snp_status())
            assert (info.product, status.state) == ("genoa", "init")
            launched = await asyncio.gather(*(host.launch_snp(firmware, count) for count in (1, 2, 3)))
            assert all(one.as_expected for one in launched)
            ids = {one.guest.guest_id for one in launched}
            assert ids <= {guest.guest_id for guest in await host.guests()}
            watched: dict[str, list[str]] = {}
            all_seen = asyncio.Event()

            async def watch() -> None:
                async for guest in host.watch_guests():
                    watched.setdefault(guest.guest_id, []).append(guest.state)
                    if ids <= set(watched):
                        all_seen.set()
                    if all("deleted" in watched.get(one, []) for one in ids):
                        return

            watching = asyncio.ensure_future(watch())
            await asyncio.wait_for(all_seen.wait(), 20)
            await asyncio.gather(*(host.delete_guest(one) for one in ids))
            await asyncio.wait_for(watching, 20)
            assert all(watched[one] == ["ready", "deleted"] for one in ids)

    asyncio.run(flow())


def test_a_cancelled_launch_leaves_nothing(daemon: Daemon) -> None:
    async def flow() -> None:
        async with sev.aio.connect(daemon.socket) as host:
            for pause in (0.0, 0.005, 0.02, 0.05):
                task = asyncio.ensure_future(host.launch_snp(sample_firmware(8 << 20), 64))
                await asyncio.sleep(pause)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await host.guests() == []

    asyncio.run(flow())


def test_steps_out_of_order_name_state_and_what_is_allowed(daemon: Daemon) -> None:
    with daemon.connect() as host:
        guest = host.create_guest(memory_bytes=1 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0x00800F12)
        try:
            with pytest.raises(errors.WrongState) as caught:
                host.update_launch(guest.guest_id, [(0, 4096, 3)])
            assert caught.value.metadata["state"].lower() == "created"
            assert caught.value.metadata["allowed"]
            assert host.start_launch(guest.guest_id, policy=0x30000).state == "launching"
            with pytest.raises(errors.UsageError):
                host.update_launch(guest.guest_id, [(0, 4096, 2)])
            with pytest.raises(errors.WrongState):
                host.start_launch(guest.guest_id, policy=0x30000)
        finally:
            host.delete_guest(guest.guest_id)


def test_a_request_id_acts_once(daemon: Daemon) -> None:
    with daemon.connect() as host:
        made = [
            host.create_guest(
                memory_bytes=1 << 20,
                firmware_bytes=4096,
                vcpu_count=1,
                cpuid_signature=0x00800F12,
                request_id="a request of a test",
            )
            for _ in range(2)
        ]
        try:
            assert made[0].guest_id == made[1].guest_id
            assert [guest.guest_id for guest in host.guests()] == [made[0].guest_id]
            with pytest.raises(errors.ConfirmationMissing):
                host.delete_guest(made[0].guest_id, confirm=False)
            host.delete_guest(made[0].guest_id, validate_only=True)
            assert len(host.guests()) == 1
        finally:
            host.delete_guest(made[0].guest_id)


def test_a_restart_is_waited_for(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = chip("genoa", tmp_path_factory)
    with running(tmp_path / "host", "--simulate=genoa", chip=made) as before:
        host = before.connect(timeout=60)
        chip_id = host.host().chip_id
    answers: list[bytes] = []

    def ask() -> None:
        host.snp_reset_config()
        answers.append(host.host().chip_id)

    with host:
        thread = threading.Thread(target=ask)
        thread.start()
        with running(tmp_path / "host", "--simulate=genoa"):
            thread.join(60)
            assert answers == [chip_id]


def test_a_host_without_a_device(tmp_path: Path) -> None:
    with running(tmp_path, "--device", "/nonexistent/sev") as daemon:
        to = ("--socket", daemon.socket, "--json")
        done = run("host", "show", *to)
        assert done.code == 0, done.err
        document = done.json()
        assert document["simulated"] is False
        assert document["device_health"] == "missing"
        assert document["missing"]
        assert "SIMULATED" not in done.err
        shown = run("host", "show", "--socket", daemon.socket).out
        assert all(sentence in shown for sentence in document["missing"])
        (tmp_path / "image").write_bytes(sample_firmware())
        for words in (
            ("snp", "status"),
            ("snp", "config", "reset"),
            ("guest", "launch", "--firmware", tmp_path / "image"),
        ):
            done = run(*words, *to)
            assert done.code == 6, done.err
            error = done.json()["error"]
            assert error["kind"] == "refused"
            assert "/nonexistent/sev" in error["message"] + error["remedy"]
        done = run("guest", "report", "snp-000000000000", "--out", tmp_path / "r", *to)
        assert done.code == 6
        assert "sev attest report" in done.json()["error"]["remedy"]
