"""The SNP platform over the real driver and the simulated host: status, commit, configuration, VLEK."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sev import products, status
from sev.abi import cert_table
from sev.abi.tcb import TcbVersion
from sev.certs import Roots
from sev.errors import (
    ConfirmationMissing,
    DeviceMissing,
    FirmwareError,
    KernelError,
    MalformedInput,
    NotNow,
    NotOffered,
    SevError,
    UsageError,
)
from sevd.devices import Quiet, Scheduler
from sevd.endorsements import ChipIdentity, EndorsementKind, Endorsements
from sevd.events import Event, Events
from sevd.platform import PlatformDevice, SnpPlatform, SnpState
from sevd.simulator import Simulator
from sevd.simulator.firmware_update import update
from tests.support.simulated import refuse, simulated_host
from tests.support.table_readers import read_locked


class Rig:
    """A platform with its certificate table."""

    def __init__(self, simulator: Simulator, folder: Path, quiet: Quiet) -> None:
        self.simulator = simulator
        self.scheduler = Scheduler()
        self.events = Events(simulated=True)
        self.told: list[Event] = []
        self.events.listen(self.told.append)
        self.changes = 0
        self.quiet = quiet
        self.device = PlatformDevice(simulator.process(), self.scheduler)
        self.table = Endorsements(
            folder / "endorsements",
            Roots.from_pem(simulator.roots_pem()),
            self.events,
            source=simulator.endorsements,
            scheduler=self.scheduler,
            table_path=folder / "certs.bin",
            ask=self._identity,
            simulated=True,
            wait_seconds=0.2,
        )
        self.platform = SnpPlatform(
            self.device,
            self.events,
            product=products.by_name(simulator.host_facts().product),
            committed_tcb=simulator.committed_tcb,
            table=self.table,
            quiet=quiet,
            changed=self._changed,
            firmware_update=lambda version, tcb, commit: update(simulator, version, tcb, commit=commit),
        )
        self.path = folder / "certs.bin"

    async def _identity(self) -> ChipIdentity:
        return await self.platform.identity()

    def _changed(self) -> None:
        self.changes += 1

    def vcek(self) -> TcbVersion | None:
        """The TCB of the VCEK that guests would get."""
        found = self.table.current()
        entries = dict(cert_table.parse(self.path.read_bytes()))
        leaf = next(each for each in found.endorsements if each.kind is EndorsementKind.VCEK)
        assert entries[cert_table.VCEK] == leaf.der
        return leaf.tcb


@asynccontextmanager
async def rig(folder: Path, product: str = "genoa", *, quiet: Quiet | None = None) -> AsyncIterator[Rig]:
    with simulated_host(folder / "host", product) as simulator:
        it = Rig(simulator, folder, quiet or Quiet(wait_seconds=0.05))
        await it.table.open(await it.platform.identity())
        try:
            yield it
        finally:
            await it.device.close()
            it.table.close()
            it.scheduler.close()


async def test_status_side_by_side(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        found = await it.platform.status()
        assert found.state is SnpState.INIT
        assert found.firmware_version.major == 1
        assert len(found.raw) == 32
        committed = found.committed_tcb
        assert committed is not None
        assert found.reported_tcb.at_most(committed)
        assert committed.at_most(found.current_tcb)
        assert (found.mask_chip_id, found.mask_chip_key, found.vlek_loaded, found.guest_count) == (False,) * 3 + (0,)
        assert it.vcek() == found.reported_tcb
        assert it.table.current().missing == ()


async def test_partial_configuration_keeps_the_rest(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        before = await it.platform.status()
        snp = before.reported_tcb.snp
        assert snp
        lowered = await it.platform.set_config(reported_tcb={"snp": snp - 1})
        assert lowered.reported_tcb == before.reported_tcb.replace(snp=snp - 1)
        assert it.vcek() == lowered.reported_tcb
        masked = await it.platform.set_config(mask_chip_id=True)
        assert (masked.reported_tcb, masked.mask_chip_id, masked.mask_chip_key) == (lowered.reported_tcb, True, False)
        both = await it.platform.set_config(mask_chip_key=True)
        assert (both.mask_chip_id, both.mask_chip_key) == (True, True)
        clear = await it.platform.set_config(mask_chip_id=False, reported_tcb=before.reported_tcb.raw)
        assert (clear.reported_tcb, clear.mask_chip_id, clear.mask_chip_key) == (before.reported_tcb, False, True)
        reset = await it.platform.reset_config()
        assert (reset.reported_tcb, reset.mask_chip_id, reset.mask_chip_key) == (reset.committed_tcb, False, False)
        assert it.changes == 5
        assert [event.kind for event in it.told] == ["platform.configured"] * 5


async def test_above_committed_is_the_firmwares_refusal_with_its_reason(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        before = await it.platform.status()
        for validate_only in (True, False):
            with pytest.raises(
                FirmwareError, match=r"may not exceed the committed one: microcode 255 > \d+"
            ) as refused:
                await it.platform.set_config(reported_tcb={"microcode": 255}, validate_only=validate_only)
            assert refused.value.firmware_status == status.INVALID_PARAM
            assert refused.value.command == "SNP_SET_CONFIG"
        assert refused.value.errno == 5  # the kernel's own, where it was asked
        assert await it.platform.status() == before
        assert it.changes == 0


CONFIGS: list[tuple[str, dict[str, object], str]] = [
    ("nothing", {}, "reported_tcb"),
    ("a component of another line", {"reported_tcb": {"fmc": 1}}, "tcb"),
    ("no component", {"reported_tcb": {"speed": 1}}, "tcb"),
    ("256", {"reported_tcb": {"snp": 256}}, "tcb"),
    ("negative", {"reported_tcb": {"snp": -1}}, "tcb"),
    ("65 bits", {"reported_tcb": 1 << 64}, "tcb"),
    ("zero", {"reported_tcb": dict.fromkeys(("bootloader", "tee", "snp", "microcode"), 0)}, "reported_tcb"),
    ("raw zero", {"reported_tcb": 0}, "reported_tcb"),
]


@pytest.mark.parametrize(("arguments", "field"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS])
async def test_a_configuration_that_cannot_be_meant(tmp_path: Path, arguments: dict[str, object], field: str) -> None:
    async with rig(tmp_path) as it:
        for validate_only in (True, False):
            with pytest.raises(UsageError) as refused:
                await it.platform.set_config(**arguments, validate_only=validate_only)  # type: ignore[arg-type]
            assert refused.value.field == field
        assert it.changes == 0


async def test_commit_needs_confirmation(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        for validate_only in (True, False):
            with pytest.raises(ConfirmationMissing):
                await it.platform.commit(False, validate_only=validate_only)
        assert it.told == []


async def test_commit_raises_the_floor_and_forgets_the_configuration(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        before = await it.platform.status()
        assert before.reported_tcb.snp
        lowered = await it.platform.set_config(reported_tcb={"snp": before.reported_tcb.snp - 1})
        assert await it.platform.commit(True, validate_only=True) == lowered
        after = await it.platform.commit(True)
        assert after.committed_tcb == after.current_tcb == after.reported_tcb
        assert it.vcek() == after.reported_tcb
        assert it.told[-1].kind == "platform.committed"


async def test_commit_waits_for_launches_and_then_refuses(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.quiet.begin("uid:1/guest")
        with pytest.raises(NotNow, match="SNP_COMMIT needs a quiet platform"):
            await it.platform.commit(True)
        assert it.told == []
        await it.platform.set_config(mask_chip_id=True)  # which needs no quiet
        it.quiet.end("uid:1/guest")
        await it.platform.commit(True)


async def test_a_table_that_is_being_read_holds_changes_back(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        before = await it.platform.status()
        fd = read_locked(it.path)
        with pytest.raises(NotNow, match="is being read"):
            await it.platform.set_config(mask_chip_id=True)
        assert await it.platform.status() == before
        os.close(fd)
        assert (await it.platform.set_config(mask_chip_id=True)).mask_chip_id


async def test_a_vlek_is_loaded_and_given_to_guests(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        stick = it.simulator.firmware.vlek_hashstick()
        checked = await it.platform.load_vlek(stick, validate_only=True)
        assert not checked.vlek_loaded
        assert (await it.platform.load_vlek(stick)).vlek_loaded
        assert [guid for guid, _ in cert_table.parse(it.path.read_bytes())] == [
            cert_table.VLEK,
            cert_table.ASK,
            cert_table.ARK,
        ]
        assert it.table.current().missing == ()
        assert it.told[-1].kind == "platform.vlek_loaded"


async def test_a_vlek_for_another_tcb_or_chip(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        reported = (await it.platform.status()).reported_tcb
        assert reported.snp
        other = it.simulator.firmware.vlek_hashstick(reported.replace(snp=reported.snp - 1).raw)
        for validate_only in (True, False):
            with pytest.raises(FirmwareError) as refused:
                await it.platform.load_vlek(other, validate_only=validate_only)
            assert refused.value.firmware_status == status.BAD_SVN
        damaged = bytearray(it.simulator.firmware.vlek_hashstick())
        damaged[0x20] ^= 1
        with pytest.raises(FirmwareError) as refused:
            await it.platform.load_vlek(bytes(damaged))
        assert refused.value.firmware_status == status.BAD_MEASUREMENT
        assert not (await it.platform.status()).vlek_loaded


@pytest.mark.parametrize("size", [0, 431, 433, 4096])
async def test_a_hash_stick_of_another_length(tmp_path: Path, size: int) -> None:
    async with rig(tmp_path) as it:
        for validate_only in (True, False):
            with pytest.raises(MalformedInput) as refused:
                await it.platform.load_vlek(bytes(size), validate_only=validate_only)
            assert refused.value.field == "hashstick"


async def test_a_caller_that_goes_away_leaves_the_table_right(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        before = await it.platform.status()
        assert before.reported_tcb.snp
        issued = asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch(command: str) -> None:
            if command == "SNP_CONFIG":
                loop.call_soon_threadsafe(issued.set)

        it.simulator.faults = watch
        task = asyncio.create_task(it.platform.set_config(reported_tcb={"snp": before.reported_tcb.snp - 1}))
        await asyncio.wait_for(issued.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await it.device._steps.drain(5)
        after = await it.platform.status()
        assert after.reported_tcb != before.reported_tcb
        assert it.vcek() == after.reported_tcb
        async with it.table.exclusive():
            pass  # the lock is free


async def test_a_refusal_of_the_firmware_leaves_the_lock_free(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        refuse(it.simulator, "SNP_COMMIT", code=status.HWERROR_PLATFORM)
        with pytest.raises(FirmwareError) as refused:
            await it.platform.commit(True)
        assert refused.value.firmware_status == status.HWERROR_PLATFORM
        assert it.told == []
        it.simulator.faults = lambda _command: None
        await it.platform.commit(True)


async def test_without_a_device_every_call_says_what_is_missing() -> None:
    scheduler = Scheduler()
    device = PlatformDevice(None, scheduler, missing=lambda: ["There is no /dev/sev."])
    platform = SnpPlatform(device, Events(), product=products.GENOA)
    calls = (
        platform.status(),
        platform.identity(),
        platform.commit(True),
        platform.commit(True, validate_only=True),
        platform.set_config(mask_chip_id=True),
        platform.set_config(mask_chip_id=True, validate_only=True),
        platform.reset_config(),
        platform.load_vlek(bytes(432)),
        platform.load_vlek(bytes(432), validate_only=True),
    )
    for call in calls:
        with pytest.raises(DeviceMissing, match=r"There is no /dev/sev\."):
            await call
    await device.close()
    scheduler.close()


@pytest.mark.parametrize("product", [products.ROME, None], ids=["Rome", "unknown"])
async def test_a_processor_without_snp(tmp_path: Path, product: products.Product | None) -> None:
    async with rig(tmp_path) as it:
        platform = SnpPlatform(it.device, it.events, product=product)
        for call in (platform.status(), platform.commit(True), platform.set_config(mask_chip_id=True)):
            with pytest.raises(NotOffered, match="has no SEV-SNP"):
                await call


async def test_a_device_open_for_reading_only(tmp_path: Path) -> None:
    """A daemon without the right to write still tells the status."""
    import os

    with simulated_host(tmp_path) as simulator:
        process = simulator.process()
        scheduler = Scheduler()

        class ReadOnly:
            memory = process.memory

            def open(self, path: str, flags: int) -> int:
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    raise PermissionError(13, "Permission denied")
                return process.open(path, flags)

            def close(self, fd: int) -> None:
                process.close(fd)

            def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
                return process.ioctl(fd, request, argument)

        device = PlatformDevice(ReadOnly(), scheduler)  # type: ignore[arg-type]  # a platform maps nothing
        platform = SnpPlatform(device, Events(), product=products.GENOA)
        assert (await platform.status()).state is SnpState.INIT
        with pytest.raises(SevError) as refused:
            await platform.set_config(mask_chip_id=True)
        assert refused.value.errno == 1
        await device.close()
        scheduler.close()


async def test_a_platform_that_hangs(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:

        def hang(_command: str) -> None:
            raise TimeoutError

        it.simulator.faults = hang
        with pytest.raises(KernelError) as refused:
            await it.platform.status()
        assert refused.value.errno == 110
        it.simulator.faults = lambda _command: None
