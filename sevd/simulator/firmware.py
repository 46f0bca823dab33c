"""The simulated AMD secure processor firmware: one method per command, as a mailbox.

    firmware = Firmware.open(directory, product=products.GENOA, version=None, seed=None, progress=print)
    firmware.snp_init(); firmware.snp_df_flush()
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, policy, gosvw); firmware.snp_activate(gctx, asid)
    firmware.snp_launch_update(gctx, page_type, gpa, pages, rmp)
    firmware.snp_launch_finish(gctx, None, None, auth_key_en=False, vcek_dis=False, host_data=bytes(32))

A status other than SUCCESS is raised as FirmwareStatus and, unless said otherwise, nothing has changed. One command
runs at a time, whichever thread issues it. `faults` is called with the command's name before each command; it may raise
FirmwareStatus, or take its time.

After snp_init every ASID is dirty, and so is each one that a guest gives up: SNP_ACTIVATE answers DF_FLUSH_REQUIRED
until snp_df_flush, which the kernel issues after a WBINVD on all cores. The commands of legacy SEV are inherited from
`legacy_commands` and `legacy_guest_commands`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sev import status
from sev.abi.guest_message import KeyRequest
from sev.errors import UsageError
from sev.products import Product
from sevd.simulator import attestation, first_start, guest_player, guest_requests, launch, store, versions
from sevd.simulator.ca import CertificateAuthority, Progress
from sevd.simulator.chip import Chip
from sevd.simulator.entropy import Entropy
from sevd.simulator.firmware_platform import INIT_RMP, Platform
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import RUNNING, VMPCKS
from sevd.simulator.hardware import Registers
from sevd.simulator.legacy_commands import LegacyCommands
from sevd.simulator.legacy_guest_commands import LegacyGuestCommands
from sevd.simulator.memory_cipher import MemoryKey
from sevd.simulator.versions import Version


def _no_faults(_command: str) -> None:
    """The hook of a firmware that works."""


class Firmware(LegacyCommands, LegacyGuestCommands):
    """A simulated platform: one chip, its firmware, its certificate authority.

    Attributes:
        product: Processor line.
        hardware: CPUID, ASIDs and clock of the part.
        ca: The certificate authority that vouches for the chip.
        faults: Hook called with the name of each command.
    """

    def __init__(self, platform: Platform, ca: CertificateAuthority, entropy: Entropy) -> None:
        self.product = platform.product
        self.hardware = platform.hardware
        self.ca = ca
        self.faults: Callable[[str], None] = _no_faults
        self._platform = platform
        self._iv = entropy.stream("kds").bytes
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        product: Product,
        version: Version | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Firmware:
        """The chip of a processor line stored under `directory`, or a new one; powered on, SNP not initialised.

        Args:
            directory: Holds one folder per processor line; the caller has it locked.
            product: Processor line, from Naples to Turin.
            version: Firmware to run; None for the one that ran last, else the newest known.
            seed: Makes keys and identifiers of the model repeatable (not the certificate authority's RSA keys).
            progress: Told what takes long on a first start.
            clock: Seconds since the epoch, for certificate dates.

        Raises:
            CorruptState: The stored chip is damaged; it is left as it is.
            FirmwareError: BAD_SVN: the version is older than the committed one.
            UsageError: The line or version cannot be simulated, or the directory cannot be used.
        """
        entropy = Entropy(seed)
        home = directory / product.name
        first = version or versions.default(product)
        versions.release(product, first)
        try:
            if not home.exists():
                first_start.make(home, product, first, entropy, progress=progress, clock=clock)
            chip = Chip.load(product, home)
            ca = CertificateAuthority(product, chip, home, clock)
            platform = Platform(product, chip, home, entropy)
            if version is not None and version != platform.version:
                platform.load_firmware(version)
        except OSError as error:
            raise UsageError(
                f"{home}: {error.strerror or error}",
                field="state_dir",
                remedy="Give a directory that this user can write to (--state-dir).",
            ) from None
        return cls(platform, ca, entropy)

    @staticmethod
    def set_aside(directory: Path, product: Product) -> Path:
        """Moves the stored chip of a processor line out of the way, to the path answered; the next open makes one."""
        return store.set_aside(directory / product.name)

    def power_cycle(self) -> None:
        """Power off and on again: guests, VLEK and states are gone, what is stored is there."""
        with self._lock:
            self._platform = self._platform.restarted()

    @contextmanager
    def _command(self, name: str) -> Iterator[Platform]:
        with self._lock:
            self.faults(name)
            if name.startswith("SNP_") and not self.product.has_snp:
                raise FirmwareStatus(status.INVALID_COMMAND)
            yield self._platform

    # Facts, which take no command.

    @property
    def version(self) -> Version:
        """API major, API minor and build of the running firmware."""
        return self._platform.version

    @property
    def committed_version(self) -> Version:
        """The version below which no firmware loads any more."""
        return self._platform.committed_version

    @property
    def current_tcb(self) -> int:
        """CURRENT_TCB as `TcbVersion.raw`."""
        return int.from_bytes(self._platform.current_tcb, "little")

    @property
    def committed_tcb(self) -> int:
        """COMMITTED_TCB as `TcbVersion.raw`."""
        return int.from_bytes(self._platform.committed_tcb, "little")

    @property
    def reported_tcb(self) -> int:
        """REPORTED_TCB as `TcbVersion.raw`: what the VCEK in use belongs to."""
        return int.from_bytes(self._platform.reported_tcb, "little")

    @property
    def vlek_tcb(self) -> int | None:
        """The TCB of the loaded VLEK; None while none is loaded."""
        tcb = self._platform.vlek_tcb
        return None if tcb is None else int.from_bytes(tcb, "little")

    def hardware_cpuid(self, leaf: int, subleaf: int = 0) -> Registers:
        """EAX, EBX, ECX, EDX of the simulated processor's bare metal."""
        return self.hardware.registers(leaf, subleaf)

    # Platform commands.

    def snp_init(self, flags: int = INIT_RMP, *, max_snp_asid: int = 0) -> None:
        """SNP_INIT_EX; the default flags are SNP_INIT's. `max_snp_asid` goes with ciphertext hiding (flag b3)."""
        with self._command("SNP_INIT") as platform:
            platform.init(flags, max_snp_asid)

    def snp_shutdown(self) -> None:
        """SNP_SHUTDOWN: SEV must be uninitialised and no ASID dirty or in use. Wipes the VLEK."""
        with self._command("SNP_SHUTDOWN") as platform:
            platform.shutdown()

    def snp_platform_status(self) -> bytes:
        """SNP_PLATFORM_STATUS, 32 bytes."""
        with self._command("SNP_PLATFORM_STATUS") as platform:
            return platform.status()

    def snp_df_flush(self, *, wbinvd: bool = True) -> None:
        """SNP_DF_FLUSH; `wbinvd` says whether all cores wrote back their caches before, as the kernel makes them."""
        with self._command("SNP_DF_FLUSH") as platform:
            platform.need_initialised()
            platform.df_flush(wbinvd)

    def snp_config(self, buffer: bytes) -> None:
        """SNP_CONFIG of 64 bytes: reported TCB and masks."""
        with self._command("SNP_CONFIG") as platform:
            platform.config(buffer)

    def snp_commit(self) -> None:
        """SNP_COMMIT."""
        with self._command("SNP_COMMIT") as platform:
            platform.commit()

    def snp_download_firmware_ex(self, image: bytes, flags: int = 0) -> None:
        """SNP_DOWNLOAD_FIRMWARE_EX of a file of `versions.image`; b0 of `flags` commits it."""
        with self._command("SNP_DOWNLOAD_FIRMWARE_EX") as platform:
            platform.update(bytes(image), flags)

    def snp_vlek_load(self, blob: bytes, *, wrapped_version: int = 0) -> None:
        """SNP_VLEK_LOAD of 432 bytes."""
        with self._command("SNP_VLEK_LOAD") as platform:
            platform.vlek_load(blob, wrapped_version)

    def snp_feature_info(self, index: int) -> bytes:
        """SNP_FEATURE_INFO, 16 bytes."""
        with self._command("SNP_FEATURE_INFO") as platform:
            return platform.feature_info(index)

    # Guest commands.

    def snp_gctx_create(self) -> int:
        """SNP_GCTX_CREATE: the address of a new context page."""
        with self._command("SNP_GCTX_CREATE") as platform:
            return platform.create().address

    def snp_launch_start(
        self, gctx: int, policy: int, gosvw: bytes, *, desired_tsc_khz: int = 0, flags: int = 0, ma_gctx: int = 0
    ) -> None:
        """SNP_LAUNCH_START. `flags`: b0 with the migration agent `ma_gctx`, b1 with an initial migration image."""
        with self._command("SNP_LAUNCH_START") as platform:
            guest = platform.guest(gctx)
            launch.start(platform, guest, policy, gosvw, desired_tsc_khz=desired_tsc_khz, flags=flags, ma_gctx=ma_gctx)

    def snp_activate(self, gctx: int, asid: int) -> None:
        """SNP_ACTIVATE: binds an ASID below `hardware.min_sev_asid`."""
        with self._command("SNP_ACTIVATE") as platform:
            platform.activate(platform.guest(gctx), asid)

    def snp_deactivate(self, gctx: int) -> None:
        """DEACTIVATE: unbinds the ASID, which needs a flush before its next use."""
        with self._command("DEACTIVATE") as platform:
            guest = platform.guest(gctx)
            if not guest.asid:
                raise FirmwareStatus(status.INACTIVE)
            platform.release_asid(guest)

    def snp_launch_update(
        self,
        gctx: int,
        page_type: int,
        gpa: int,
        pages: memoryview,
        rmp: memoryview,
        *,
        large: bool = False,
        imi_page: bool = False,
        vmpl_permissions: tuple[int, int, int] = (0, 0, 0),
        owner: int | None = None,
    ) -> None:
        """SNP_LAUNCH_UPDATE for a run of whole pages, contents in place.

        Args:
            gctx: The guest.
            page_type: As `sev.abi.page_info`.
            gpa: Address of the first page; `page_info.VMSA_GPA` holds for every page of a run of VMSAs.
            pages: Writable memory, a multiple of 4096 bytes; secrets, zeros, corrected CPUID entries go in here.
            rmp: One state byte per page: 1 (pre-guest) wanted, 2 (guest-valid) after success.
            large: The pages are 2 MiB pages.
            imi_page: The pages belong to the initial migration image.
            vmpl_permissions: Permission bytes of VMPL1, 2 and 3.
            owner: ASID that the RMP names as the pages' owner, if it shall be compared.

        Raises:
            FirmwareStatus: `pages_done` pages were added before the one refused. A refused CPUID page is corrected.
        """
        with self._command("SNP_LAUNCH_UPDATE") as platform:
            launch.update(
                platform, gctx, page_type, gpa, pages, rmp,
                large=large, imi_page=imi_page, vmpl_permissions=vmpl_permissions, owner=owner,
            )  # fmt: skip

    def snp_launch_finish(
        self,
        gctx: int,
        id_block: bytes | None,
        id_auth: bytes | None,
        *,
        auth_key_en: bool = False,
        vcek_dis: bool = False,
        host_data: bytes = bytes(32),
        reserved_flags: int = 0,
    ) -> None:
        """SNP_LAUNCH_FINISH; id_block None means none is given."""
        with self._command("SNP_LAUNCH_FINISH") as platform:
            launch.finish(
                platform, platform.guest(gctx), id_block, id_auth,
                auth_key_en=auth_key_en, vcek_dis=vcek_dis, host_data=host_data, reserved_flags=reserved_flags,
            )  # fmt: skip

    def snp_guest_request(self, gctx: int, message: bytes) -> bytes:
        """SNP_GUEST_REQUEST: the encrypted response, 96 bytes of header and payload, at most a page."""
        with self._command("SNP_GUEST_REQUEST") as platform:
            return guest_requests.answer(platform, platform.guest(gctx), bytes(message))

    def snp_hv_report(self, gctx: int, key_selection: int = 0) -> bytes:
        """SNP_HV_REPORT_REQ: a report that the host asks for, 1184 bytes; VMPL 0xFFFFFFFF, report data zero."""
        with self._command("SNP_HV_REPORT_REQ") as platform:
            guest = platform.guest(gctx)
            if guest.state != RUNNING:
                raise FirmwareStatus(status.INVALID_GUEST_STATE)
            return attestation.report(platform, guest, bytes(64), attestation.HOST_VMPL, key_selection)

    def snp_guest_status(self, gctx: int) -> bytes:
        """SNP_GUEST_STATUS, 32 bytes."""
        with self._command("SNP_GUEST_STATUS") as platform:
            return platform.guest(gctx).status()

    def snp_decommission(self, gctx: int) -> None:
        """SNP_DECOMMISSION: ends the guest and unbinds its ASID; ACTIVE while a vCPU is on a core."""
        with self._command("SNP_DECOMMISSION") as platform:
            platform.decommission(platform.guest(gctx))

    # The model's own views: no firmware offers them.

    @property
    def guest_count(self) -> int:
        """Guests of both kinds."""
        return len(self._platform.guests) + len(self._platform.legacy.guests)

    def launch_digest(self, gctx: int) -> bytes:
        """The launch digest so far, 48 bytes."""
        with self._lock:
            return self._platform.guest(gctx).digest

    def legacy_digest(self, handle: int) -> bytes:
        """The launch digest of an SEV or SEV-ES guest so far, 32 bytes."""
        with self._lock:
            return self._platform.legacy.guest(handle).content.digest()

    def legacy_memory(self, handle: int) -> MemoryKey:
        """What encrypts the memory of an SEV or SEV-ES guest, whatever its policy."""
        with self._lock:
            return self._platform.legacy.guest(handle).memory

    def vmpck(self, gctx: int, number: int) -> bytes:
        """A guest's communication key, 32 bytes, as its secrets page has it. Waits for no command."""
        keys = self._platform.guest(gctx).vmpck
        if not 0 <= number < VMPCKS or not keys:
            raise FirmwareStatus(status.INVALID_PARAM)
        return keys[number]

    def message_count(self, gctx: int, number: int) -> int:
        """Messages counted for a guest's key, requests and responses, as its secrets page counts them."""
        with self._lock:
            counts = self._platform.guest(gctx).counts
            if not 0 <= number < VMPCKS:
                raise FirmwareStatus(status.INVALID_PARAM)
            return counts[number]

    def set_on_core(self, gctx: int, on_core: bool) -> None:
        """Says whether a vCPU of the guest is on a core."""
        with self._lock:
            self._platform.guest(gctx).on_core = on_core

    def vlek_hashstick(self, tcb: int | None = None) -> bytes:
        """A VLEK wrapped for this chip, 432 bytes, as AMD's KDS would hand it to a provider.

        Args:
            tcb: `TcbVersion.raw` it is for; None for the reported TCB.
        """
        with self._lock:
            wanted = self.reported_tcb if tcb is None else tcb
            return self._platform.chip.wrap_vlek(wanted.to_bytes(8, "little"), self._iv(12))

    def guest_report(self, gctx: int, report_data: bytes, vmpl: int = 0, key_selection: int = 0) -> bytes:
        """Plays the guest: its report, 1184 bytes, asked for and answered in encrypted messages.

        Raises:
            FirmwareStatus: The command's status, or with `in_response` the request's.
        """
        with self._lock:
            return guest_player.report(self._play(gctx), report_data, vmpl, key_selection)

    def guest_key(self, gctx: int, request: KeyRequest) -> bytes:
        """Plays the guest: a derived key, 32 bytes.

        Raises:
            FirmwareStatus: The command's status, or with `in_response` the request's.
        """
        with self._lock:
            return guest_player.key(self._play(gctx), request)

    def guest_message(self, gctx: int, message_type: int, payload: bytes, *, vmpck: int = 0, version: int = 1) -> bytes:
        """Plays the guest: the decrypted response to any request."""
        with self._lock:
            return self._play(gctx).exchange(message_type, payload, vmpck=vmpck, version=version)

    def _play(self, gctx: int) -> guest_player.GuestPlayer:
        guest = self._platform.guest(gctx)
        return guest_player.GuestPlayer(guest, lambda message: self.snp_guest_request(gctx, message))
