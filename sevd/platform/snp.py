"""The SNP platform: its status, and the commands that change it.

What a command changes (reported TCB, masks, VLEK) also changes which certificates guests must be given. So each of
them holds the write lock of the certificate table, which is empty meanwhile and is made to fit before the lock goes,
whatever became of the command. The firmware's own refusals come through; where it would only say INVALID_PARAM or
BAD_SVN, what is known about the reason is added.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from sev import status as statuses
from sev.abi import sev_device as abi
from sev.abi.tcb import TcbVersion
from sev.errors import ConfirmationMissing, FirmwareError, MalformedInput, NotOffered, UsageError
from sevd.endorsements.model import ChipIdentity
from sevd.platform.status import decode
from sevd.platform.vlek import VlekMemory, need_same_tcb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from sev.launch.platform import SevDevice
    from sev.products import Product
    from sevd.devices.quiet import Quiet
    from sevd.devices.work import Work
    from sevd.events import Publisher
    from sevd.platform.device import PlatformDevice
    from sevd.platform.views import SnpStatusView

    class CertificateTable(Protocol):
        """What keeps the guests' certificates in step (sevd.endorsements.Endorsements)."""

        def changing(self) -> AbstractAsyncContextManager[None]:
            """Holds the table's write lock around a command, and makes it fit afterwards; bounded wait, then NotNow."""


class SnpPlatform:
    """Reads and changes the SNP platform.

    Args:
        device: The platform's device.
        events: Where to say what happened.
        product: Processor line; None if it is unknown.
        committed_tcb: Answers the committed TCB as a raw integer, or None; only a simulated platform knows it.
        table: The certificate table; None where there is none to keep.
        quiet: Shared with the launches: a commit falls between none of their steps.
        changed: Called after every change.
        vlek: Remembers which VLEK is loaded, which the firmware does not tell.
        firmware_update: Has the firmware replaced by another version (version, TCB or "", commit): only a simulated
            platform can. Runs on the worker.

    Attributes:
        last: The status for which certificates were last asked for, or what a watcher saw later.
    """

    def __init__(
        self,
        device: PlatformDevice,
        events: Publisher,
        *,
        product: Product | None,
        committed_tcb: Callable[[], int | None] = lambda: None,
        table: CertificateTable | None = None,
        quiet: Quiet | None = None,
        changed: Callable[[], None] = lambda: None,
        vlek: VlekMemory | None = None,
        firmware_update: Callable[[str, str, bool], None] | None = None,
    ) -> None:
        self._device = device
        self._events = events
        self._product = product
        self._committed_tcb = committed_tcb
        self._table = table
        self._quiet = quiet
        self._changed = changed
        self._vlek = vlek or VlekMemory()
        self._firmware_update = firmware_update
        self.last: SnpStatusView | None = None

    @property
    def generation(self) -> int:
        """Counts up when the device turns out to be another one than before."""
        return self._device.opened

    async def sev_initialised(self) -> bool:
        """Whether SEV is initialised; asking never initialises anything. Raises as `status`."""
        self._snp_product()
        return await self._device.ask(
            lambda device: abi.PlatformStatus.decode(device.platform_status()).state != abi.STATE_UNINIT
        )

    async def status(self) -> SnpStatusView:
        """SNP_PLATFORM_STATUS, decoded.

        Raises:
            DeviceMissing: There is no device.
            NotOffered: The processor has no SNP.
            FirmwareError, KernelError: Refused.
        """
        self._snp_product()
        return await self._device.ask(self._read)

    async def identity(self) -> ChipIdentity:
        """What certificates must fit. Raises as `status`."""
        product = self._snp_product()

        def read(device: SevDevice) -> tuple[SnpStatusView, bytes]:
            return self._read(device), device.get_id()[: product.chip_id_bytes]

        self.last, chip_id = status, _ = await self._device.ask(read)
        vlek_tcb = status.vlek.tcb if status.vlek is not None else None
        return ChipIdentity(product, chip_id, status.reported_tcb, status.vlek_loaded, vlek_tcb, status.mask_chip_key)

    async def commit(self, confirm: bool, *, validate_only: bool = False) -> SnpStatusView:
        """SNP_COMMIT: COMMITTED becomes CURRENT, for ever; the configured reported TCB is forgotten.

        Raises:
            ConfirmationMissing: Not confirmed.
            NotNow: Launches are in flight, or somebody reads the certificate table, for longer than is waited.
            DeviceMissing, NotOffered, FirmwareError, KernelError: Refused.
        """
        if not confirm:
            raise ConfirmationMissing("SNP_COMMIT cannot be undone, and was not confirmed", field="confirm")
        if validate_only:
            return await self.status()

        def issue(device: SevDevice) -> SnpStatusView:
            device.snp_commit()
            return self._read(device)

        return await self._change(issue, "platform.committed", "the platform was committed", needs_quiet="SNP_COMMIT")

    async def set_config(
        self,
        *,
        reported_tcb: Mapping[str, int] | int | None = None,
        mask_chip_id: bool | None = None,
        mask_chip_key: bool | None = None,
        follow_committed: bool = False,
        validate_only: bool = False,
    ) -> SnpStatusView:
        """SNP_SET_CONFIG. What is None keeps its value, and so do TCB components that are not named.

        Args:
            reported_tcb: Components by name, or the raw integer.
            follow_committed: The reported TCB is to be the committed one, in place of `reported_tcb`.
            mask_chip_id: CHIP_ID in reports is zero.
            mask_chip_key: The VCEK may not sign.
            validate_only: Check everything, change nothing.

        Raises:
            UsageError: Nothing to change; a component that this line does not have, or not 0 to 255; a TCB of zero,
                which the firmware takes for: as committed.
            FirmwareError: INVALID_PARAM: above the committed TCB.
            DeviceMissing, NotOffered, NotNow, KernelError: As in `commit`.
        """
        product = self._snp_product()
        if reported_tcb is None and mask_chip_id is None and mask_chip_key is None and not follow_committed:
            raise UsageError("nothing to change: name a TCB component or a mask", field="reported_tcb")
        if isinstance(reported_tcb, int):
            TcbVersion.from_int(reported_tcb, product)
        elif reported_tcb is not None:
            TcbVersion.from_int(0, product).replace(**reported_tcb)  # names and values, before the device is asked

        def plan(before: SnpStatusView) -> abi.SnpConfig:
            tcb = before.reported_tcb
            if isinstance(reported_tcb, int):
                tcb = TcbVersion.from_int(reported_tcb, product)
            elif reported_tcb is not None:
                tcb = tcb.replace(**reported_tcb)
            if reported_tcb is not None and not tcb.raw:
                raise UsageError(
                    "reported_tcb: the firmware takes a TCB of zero for: as committed",
                    field="reported_tcb",
                    remedy="To have the reported TCB follow the committed one, reset the configuration.",
                )
            chip_id = before.mask_chip_id if mask_chip_id is None else mask_chip_id
            chip_key = before.mask_chip_key if mask_chip_key is None else mask_chip_key
            masks = chip_id * abi.SNP_MASK_CHIP_ID | chip_key * abi.SNP_MASK_CHIP_KEY
            return abi.SnpConfig(0 if follow_committed else tcb.raw, masks)

        def check(device: SevDevice) -> SnpStatusView:
            before = self._read(device)
            excess = _excess(plan(before), before)
            if excess:
                raise FirmwareError(
                    statuses.INVALID_PARAM, command="SNP_SET_CONFIG", message=excess, remedy=_EXCESS_REMEDY
                )
            return before

        def issue(device: SevDevice) -> SnpStatusView:
            # Read and written in one piece of work: no other command of ours comes in between.
            before = self._read(device)
            config = plan(before)
            try:
                device.snp_set_config(config.encode())
            except FirmwareError as error:
                if error.firmware_status == statuses.INVALID_PARAM and (excess := _excess(config, before)):
                    raise FirmwareError(
                        statuses.INVALID_PARAM,
                        command=error.command,
                        errno=error.errno,
                        message=excess,
                        remedy=_EXCESS_REMEDY,
                    ) from error
                raise
            return self._read(device)

        if validate_only:
            return await self._device.ask(check)
        return await self._change(issue, "platform.configured", "the platform's configuration was set")

    async def reset_config(self, *, validate_only: bool = False) -> SnpStatusView:
        """SNP_SET_CONFIG of zeros: the reported TCB follows the committed one, masks off. Raises as `commit`."""
        if validate_only:
            return await self.status()

        def issue(device: SevDevice) -> SnpStatusView:
            device.snp_set_config(abi.SnpConfig(0).encode())
            return self._read(device)

        return await self._change(issue, "platform.configured", "the platform's configuration was reset")

    async def load_vlek(self, hashstick: bytes, *, validate_only: bool = False) -> SnpStatusView:
        """SNP_VLEK_LOAD: a wrapped hash stick, 432 bytes, in place of the one before; only an SNP shutdown unloads it.

        Raises:
            MalformedInput: Not 432 bytes.
            FirmwareError: BAD_SVN: made for another reported TCB, and the firmware is not asked; both are in the
                message, and in `metadata` as `hashstick_tcb` and `reported_tcb`. BAD_MEASUREMENT: for another chip.
            DeviceMissing, NotOffered, NotNow, KernelError: As in `commit`.
        """
        hashstick = bytes(hashstick)
        if len(hashstick) != abi.VLEK_BLOB_SIZE:
            raise MalformedInput(f"hashstick: {len(hashstick)} bytes, expected {abi.VLEK_BLOB_SIZE}", field="hashstick")

        def check(device: SevDevice) -> SnpStatusView:
            status = self._read(device)
            need_same_tcb(hashstick, status.reported_tcb)
            return status

        def issue(device: SevDevice) -> SnpStatusView:
            check(device)
            device.snp_vlek_load(hashstick)
            self._vlek.loaded(hashstick, self._snp_product())
            return self._read(device)

        if validate_only:
            self._snp_product()
            return await self._device.ask(check)
        return await self._change(issue, "platform.vlek_loaded", "a VLEK was loaded")

    async def update_firmware(
        self, version: str, tcb: str = "", *, commit: bool = False, validate_only: bool = False
    ) -> SnpStatusView:
        """SNP_DOWNLOAD_FIRMWARE_EX of a simulated platform: another firmware runs, provisionally unless committed.

        Args:
            version: Such as "1.55.50".
            tcb: TCB of that firmware where it is not the usual one, as text; empty: the usual one.
            commit: Commit it at once.
            validate_only: Check its form and the platform; change nothing.

        Raises:
            NotOffered: A real platform.
            FirmwareError: BAD_SVN: below the committed one.
            UsageError: No such firmware, or no such TCB.
            DeviceMissing, NotNow, KernelError: As in `commit`.
        """
        update = self._firmware_update
        if update is None:
            raise NotOffered(NO_UPDATE, remedy=UPDATE_REMEDY)
        if not _VERSION.fullmatch(version):
            raise UsageError(f"version: {version!r:.40}, expected one such as 1.55.49", field="version")
        if validate_only:
            return await self.status()

        def issue(device: SevDevice) -> SnpStatusView:
            update(version, tcb, commit)
            return self._read(device)

        needs_quiet = "SNP_DOWNLOAD_FIRMWARE_EX" if commit else ""
        message = f"firmware {version} runs" + (", committed" if commit else ", provisionally: it is not committed")
        return await self._change(issue, "platform.firmware_updated", message, needs_quiet=needs_quiet)

    def _read(self, device: SevDevice) -> SnpStatusView:
        """Runs on the worker."""
        return self._vlek.noticed(decode(device.snp_status(), self._snp_product(), self._committed_tcb()))

    def _snp_product(self) -> Product:
        """The processor line, where it has SNP."""
        self._device.require()
        if self._product is None or not self._product.has_snp:
            name = self._product.kds_name if self._product else "this processor"
            raise NotOffered(
                f"{name} has no SEV-SNP", remedy="SEV-SNP needs an EPYC processor of the Milan line or newer."
            )
        return self._product

    async def _change(
        self, issue: Callable[[SevDevice], SnpStatusView], kind: str, message: str, *, needs_quiet: str = ""
    ) -> SnpStatusView:
        """A command that changes the platform, with everything that goes with it; outlives its caller."""
        self._snp_product()
        work = self._device.work()
        return await self._device.step(self._changing(issue, work, kind, message, needs_quiet), work)

    async def _changing(
        self, issue: Callable[[SevDevice], SnpStatusView], work: Work, kind: str, message: str, needs_quiet: str
    ) -> SnpStatusView:
        async with self._undisturbed(needs_quiet):
            # Once the command is issued, whoever asked for it may be gone: the table is made to fit all the same.
            self.last = status = await self._device.ask(issue, work)
        self._changed()
        self._events.publish(kind, message, details={"reported_tcb": f"{status.reported_tcb.raw:016x}"})
        return status

    @asynccontextmanager
    async def _undisturbed(self, needs_quiet: str) -> AsyncIterator[None]:
        quiet = self._quiet.platform(needs_quiet) if self._quiet is not None and needs_quiet else nullcontext()
        table = self._table.changing() if self._table is not None else nullcontext()
        async with quiet, table:
            yield


NO_UPDATE = "a real platform takes its firmware from the BIOS, or from the kernel's module ccp"
UPDATE_REMEDY = "Install the firmware package of the distribution, and reload ccp or reboot."

_VERSION = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}", re.ASCII)
_EXCESS_REMEDY = "Ask for at most the committed TCB in every component; a commit raises that, for good."


def _excess(config: abi.SnpConfig, before: SnpStatusView) -> str:
    """One sentence if the wanted TCB exceeds the committed one as far as that is known; else empty."""
    floor = before.committed_tcb
    if floor is None or not config.reported_tcb:
        return ""
    wanted = TcbVersion.from_int(config.reported_tcb, floor.product)
    parts = [f"{name} {wanted.get(name)} > {floor.get(name)}" for name in wanted.exceeding(floor)]
    if not parts:
        return ""
    return f"SNP_SET_CONFIG: the reported TCB may not exceed the committed one: {', '.join(parts)}"
