"""The platform of SEV and SEV-ES over the real driver and the simulated host: keys, owner, and what is confirmed."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sev import products, status
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_chain, sev_signatures
from sev.certs.sev_roots import SevRoots
from sev.errors import (
    ConfirmationMissing,
    DeviceMissing,
    FirmwareError,
    MalformedInput,
    NotNow,
    NotPermitted,
    SevError,
    UsageError,
)
from sevd.access.identity import Caller
from sevd.devices import Scheduler
from sevd.events import Events
from sevd.platform import PlatformDevice
from sevd.platform.occupancy import Occupancy
from sevd.platform.sev import SevPlatform
from sevd.platform.views import SevState, SevStatusView
from sevd.simulator.faults import Fault
from tests.support.sev_platform import LAUNCHER, ROOT, VIEWER, Owner, Rig, import_pek, rig
from tests.support.simulated import simulated_host


@pytest.mark.parametrize("product", ["naples", "rome", "milan", "genoa", "turin"])
async def test_status_identifiers_and_chain_of_every_line(tmp_path: Path, product: str) -> None:
    async with rig(tmp_path, product) as it:
        found = await it.platform.status()
        assert (found.state, found.externally_owned, found.guest_count) == (SevState.INIT, False, 0)
        assert found.es_configured
        assert found.snp_initialized is products.by_name(product).has_snp
        assert len(found.raw) == 12
        (chip,) = await it.platform.chip_ids()
        assert len(chip) == 64
        exported = await it.platform.export(VIEWER)
        assert exported.chip_ids == (chip,)
        assert SevCertificate.read(exported.cek).signature1.free
        assert sev_chain.same_cek(exported.signed_cek, exported.cek).signature1.usage == abi.ASK
        rows = exported.pdh + exported.pek + exported.oca + exported.signed_cek
        chain = sev_chain.SevChain.parse(rows)
        sev_chain.verify(chain, roots=SevRoots.of(exported.authorities))
        with pytest.raises(sev_chain.ChainInvalid):
            sev_chain.verify(chain)
        assert it.kinds == []


async def test_an_owner_comes_and_goes(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        owner = Owner()
        before = await it.platform.export(ROOT)
        checked = await import_pek(it.platform, owner, validate_only=True)
        assert not checked.externally_owned
        assert await it.platform.export(ROOT) == before
        owned = await import_pek(it.platform, owner)
        assert (owned.externally_owned, owned.state, owned.snp_initialized) == (True, SevState.INIT, True)
        after = await it.platform.export(ROOT)
        assert after.oca == owner.certificate.encode()
        assert after.cek == before.cek
        assert after.pdh != before.pdh
        for again in (True, False):
            with pytest.raises(FirmwareError) as refused:
                await import_pek(it.platform, Owner(), validate_only=again)
            assert refused.value.firmware_status == status.ALREADY_OWNED
        free = await it.platform.generate_pek(ROOT, True)
        assert not free.externally_owned
        assert (await it.platform.export(ROOT)).oca not in (after.oca, before.oca)
        assert it.kinds == ["platform.pek_imported", "platform.pek_generated"]
        assert [event.details["externally_owned"] for event in it.told] == ["true", "false"]
        assert it.refreshed >= 2
        assert it.held == 3  # what takes keys away; what only looks holds nobody up


async def test_a_reset_and_what_comes_after_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        before = await it.pdh()
        found = await it.platform.reset(ROOT, True)
        assert (found.state, found.snp_initialized) == (SevState.UNINIT, True)
        assert it.kinds == ["platform.sev_reset"]
        # The next command initialises the platform for itself and shuts SNP down: said, and only if it is meant.
        with pytest.raises(ConfirmationMissing, match="shut SNP down"):
            await it.platform.export(ROOT)
        assert (await it.platform.status()).snp_initialized
        assert await it.pdh(confirm=True) != before
        down = await it.platform.status()
        assert (down.state, down.snp_initialized) == (SevState.UNINIT, False)
        assert it.kinds == ["platform.sev_reset", "platform.snp_shut_down"]
        assert it.held == 2
        # There is nothing more to shut down, so nothing to confirm.
        again = await it.pdh()
        assert again == await it.pdh()
        await it.platform.generate_pdh(ROOT)
        assert await it.pdh() != again
        await import_pek(it.platform, Owner())
        # No status tells the owner while the platform is not initialised, but the firmware knows.
        with pytest.raises(FirmwareError) as refused:
            await import_pek(it.platform, Owner())
        assert refused.value.firmware_status == status.ALREADY_OWNED


@pytest.mark.parametrize("era", ["A", "B", "B2", "C"])
async def test_every_kernel_keeps_to_what_was_confirmed(tmp_path: Path, era: str) -> None:
    """Whatever a kernel does after initialising SEV for a command, it was asked about, and told if it happened."""
    async with rig(tmp_path, era=era) as it:
        before = await it.pdh()
        assert (await it.platform.reset(ROOT, True)).state is SevState.UNINIT
        for _ in range(2):
            with pytest.raises(ConfirmationMissing):
                await it.platform.generate_pdh(ROOT)
        assert await it.pdh(confirm=True) != before
        found = await it.platform.status()
        if era == "A":  # it stays initialised, and shuts nothing down
            assert (found.state, found.snp_initialized) == (SevState.INIT, True)
            assert "platform.snp_shut_down" not in it.kinds
            await it.platform.generate_pdh(ROOT)
        else:
            assert found.state is SevState.UNINIT
            await it.platform.generate_pdh(ROOT, confirm=True)
        if era in ("B2", "C"):  # B initialises SNP to ask for its status, so it never says that SNP is down
            assert "platform.snp_shut_down" in it.kinds
            assert not found.snp_initialized
        await import_pek(it.platform, Owner())
        exported = await it.platform.export(ROOT, confirm=True)
        rows = exported.pdh + exported.pek + exported.oca + exported.signed_cek
        sev_chain.verify(sev_chain.SevChain.parse(rows), roots=SevRoots.of(exported.authorities))


@pytest.mark.parametrize("caller", [VIEWER, LAUNCHER], ids=lambda caller: caller.role.text)
async def test_initialising_for_a_command_is_for_administrators(tmp_path: Path, caller: Caller) -> None:
    async with rig(tmp_path) as it:
        await it.platform.export(caller)
        await it.platform.reset(ROOT, True)
        for confirm in (False, True):
            with pytest.raises(NotPermitted) as refused:
                await it.platform.export(caller, confirm=confirm)
            assert refused.value.metadata["state"] == "UNINIT"
        assert (await it.platform.status()).snp_initialized


@pytest.mark.parametrize(
    "step",
    [
        lambda it: it.platform.reset(ROOT, False),
        lambda it: it.platform.generate_pek(ROOT, False),
        lambda it: it.platform.reset(ROOT, False, validate_only=True),
        lambda it: import_pek(it.platform, Owner(), confirm=False),
    ],
    ids=["reset", "pek", "reset, checked only", "import"],
)
async def test_what_cannot_be_undone_is_confirmed(tmp_path: Path, step: Callable[[Rig], Awaitable[Any]]) -> None:
    async with rig(tmp_path) as it:
        before = await it.pdh()
        with pytest.raises(ConfirmationMissing):
            await step(it)
        assert await it.pdh() == before


async def test_imports_are_looked_at_before_the_firmware_is_asked(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        owner, stranger = Owner(), Owner()
        csr = await it.platform.signing_request(ROOT)
        pek, oca = owner.sign(csr), owner.certificate.encode()
        broken = bytearray(oca)
        broken[0x420] ^= 1
        it.simulator.inject(Fault("PEK_CERT_IMPORT", "status", status.HWERROR_UNSAFE))
        cases: list[tuple[bytes, bytes, type[SevError], str]] = [
            (oca, pek, UsageError, "pek: a certificate of OCA, expected PEK"),
            (pek[:-1], oca, MalformedInput, "2083 bytes"),
            (pek, b"", MalformedInput, "0 bytes"),
            (b"\2" + pek[1:], oca, MalformedInput, "version 2"),
            (csr, oca, sev_signatures.NotSignedBy, "no signature of the OCA"),
            (stranger.sign(csr), oca, sev_signatures.SevSignatureInvalid, "does not verify"),
            (pek, bytes(broken), sev_signatures.SevSignatureInvalid, "OCA"),
        ]
        for wrong_pek, wrong_oca, kind, text in cases:
            for validate_only in (True, False):
                with pytest.raises(kind, match=text):
                    await it.platform.import_pek(ROOT, wrong_pek, wrong_oca, True, validate_only=validate_only)


async def test_the_pek_of_another_time_is_the_firmwares_refusal(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        owner = Owner()
        pek = owner.sign(await it.platform.signing_request(ROOT))
        await it.platform.generate_pek(ROOT, True)
        with pytest.raises(FirmwareError) as refused:
            await it.platform.import_pek(ROOT, pek, owner.certificate.encode(), True)
        assert refused.value.firmware_status == status.INVALID_CERTIFICATE
        assert refused.value.metadata["state"] == "INIT"


async def test_a_reset_between_question_and_command(tmp_path: Path) -> None:
    """Somebody else resets the platform after it was seen initialised: no initialisation slips in."""
    async with rig(tmp_path) as it:
        seen: list[SevStatusView] = []
        status_of = it.platform.status

        async def late() -> SevStatusView:
            found = await status_of()
            if not seen:
                seen.append(found)
                await it.device.ask(lambda device: device.reset())
            return found

        it.platform.status = late  # type: ignore[method-assign]
        with pytest.raises(NotNow, match="was reset meanwhile"):
            await it.platform.export(ROOT, confirm=True)
        assert (await status_of()).snp_initialized


async def test_a_firmware_that_fails_leaves_its_status(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.simulator.inject(Fault("PEK_GEN", "status", status.HWERROR_UNSAFE))
        with pytest.raises(FirmwareError) as refused:
            await it.platform.generate_pek(ROOT, True)
        assert (refused.value.firmware_status, refused.value.command) == (status.HWERROR_UNSAFE, "PEK_GEN")
        assert it.kinds == []
        assert it.refreshed == 1


async def test_a_device_open_for_reading_only(tmp_path: Path) -> None:
    """A daemon without the right to write tells what it can, and says of the rest that it may not."""
    with simulated_host(tmp_path) as simulator:
        process, scheduler = simulator.process(), Scheduler()

        class ReadOnly:
            memory = process.memory

            def open(self, path: str, flags: int) -> int:
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    raise PermissionError(errno.EACCES, "Permission denied")
                return process.open(path, flags)

            def close(self, fd: int) -> None:
                process.close(fd)

            def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
                return process.ioctl(fd, request, argument)

        device = PlatformDevice(ReadOnly(), scheduler)  # type: ignore[arg-type]  # a platform maps nothing
        platform = SevPlatform(device, Events(simulated=True), occupancy=Occupancy(simulator.product))
        steps: list[Callable[[], Awaitable[Any]]] = [
            lambda: platform.signing_request(ROOT),
            lambda: platform.generate_pdh(ROOT),
            lambda: platform.generate_pek(ROOT, True),
            lambda: platform.reset(ROOT, True),
        ]
        try:
            assert (await platform.status()).state is SevState.INIT
            assert len((await platform.export(VIEWER)).pdh) == abi.SIZE
            for step in steps:
                with pytest.raises(NotPermitted, match="open for reading only"):
                    await step()
        finally:
            await device.close()
            scheduler.close()


async def test_without_a_device_everything_says_what_is_missing() -> None:
    scheduler = Scheduler()
    try:
        device = PlatformDevice(None, scheduler, missing=lambda: ["There is no /dev/sev."])
        platform = SevPlatform(device, Events(simulated=False), occupancy=Occupancy(None))
        for ask in (
            platform.status,
            platform.chip_ids,
            lambda: platform.export(ROOT),
            lambda: platform.reset(ROOT, True),
            lambda: platform.generate_pdh(ROOT),
        ):
            with pytest.raises(DeviceMissing, match="There is no /dev/sev"):
                await ask()
    finally:
        scheduler.close()
