"""The platform half of the simulated firmware: states, TCBs, configuration, VLEK, ASIDs, keys.

Four TCBs: CURRENT is the running release's; COMMITTED the floor below which no firmware loads again; REPORTED selects
the VCEK and follows COMMITTED unless SNP_CONFIG lowered it; LAUNCH is captured per guest. COMMITTED <= CURRENT and
REPORTED <= COMMITTED hold per component. Masks, configuration and commitment outlive a restart; SNP's state, the VLEK
and guests do not, as with any power cycle.

Source: SEV-SNP firmware ABI (AMD 56860), platform commands; behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

import struct
from pathlib import Path

from sev import status
from sev.errors import FirmwareError, UsageError
from sev.products import Product
from sevd.simulator import hardware, store, versions
from sevd.simulator.chip import Chip
from sevd.simulator.entropy import Entropy
from sevd.simulator.firmware_legacy import LegacyPlatform
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import GuestContext
from sevd.simulator.hash_sticks import WRAPPED_SIZE
from sevd.simulator.versions import Version

FILE = "platform.json"
UNINIT, INITIALISED = 0, 1

INIT_RMP, INIT_LIST, INIT_RAPL_DIS, INIT_CIPHERTEXT_HIDING, INIT_TIO = (1 << bit for bit in range(5))
"""Flags of SNP_INIT_EX."""

CONFIG_SIZE = 64
IMAGE_ALIGNMENT = 32
MASK_CHIP_ID, MASK_CHIP_KEY = 1, 2

UPDATE_COMMIT = 1
"""Flag of SNP_DOWNLOAD_FIRMWARE_EX."""

GUEST_MESSAGES = 0x107
"""SNP_FEATURE_INFO index 1 EAX, one bit for each request in order of type: CPUID, KEY, REPORT and TSC_INFO."""


def at_most(lower: bytes, upper: bytes) -> bool:
    """Whether no component of one TCB_VERSION (8 bytes) exceeds the other's; unused bytes count as components."""
    return all(below <= above for below, above in zip(lower, upper, strict=True))


class Platform:
    """State of the platform and its guests. Not locked: `Firmware` serialises commands as the mailbox does."""

    def __init__(self, product: Product, chip: Chip, directory: Path, entropy: Entropy) -> None:
        """Powers the stored platform up.

        Raises:
            CorruptState: The stored state is damaged.
        """
        self.product = product
        self.chip = chip
        self.hardware = hardware.of(product)
        self.random = entropy.stream("firmware").bytes
        self.deterministic = entropy.repeatable
        self._directory = directory
        self._entropy = entropy
        self._path = directory / FILE
        document = store.read_document(self._path)
        self.version = _version(document, self._path, "version")
        self.committed_version = _version(document, self._path, "committed_version")
        self.committed_tcb = store.hex_field(document, self._path, "committed_tcb", 8)
        # What SNP_CONFIG set is not kept over a reset: whoever wants it sets it again.
        self._configured_tcb = bytes(8)
        self.mask_chip_id = self.mask_chip_key = False
        self.release = versions.release(product, self.version)
        has_tcb = document.get("tcb") is not None  # a state of before provisional firmware has none
        self.current_tcb = store.hex_field(document, self._path, "tcb", 8) if has_tcb else self.release.tcb
        self.state = UNINIT
        self.legacy = LegacyPlatform(self, directory, entropy)
        self.rmp_initialised = False
        self.rapl_dis = False
        self.max_snp_asid = 0
        self.vlek: tuple[bytes, ...] | None = None
        self.vlek_tcb: bytes | None = None
        self.guests: dict[int, GuestContext] = {}
        self.asids: dict[int, int] = {}  # to context addresses of SNP guests, and handles of others, which are smaller
        self._dirty: set[int] = set()
        self._next_context = 0x1000

    def restarted(self) -> Platform:
        """The same platform after a power cycle. Contexts of before are never valid again.

        Raises:
            CorruptState: The stored state was damaged meanwhile.
        """
        after = Platform(self.product, self.chip, self._directory, self._entropy)
        after._next_context = self._next_context
        return after

    @staticmethod
    def store_new(product: Product, directory: Path, version: Version) -> None:
        """Writes the state of a platform that has only ever run this firmware."""
        tcb = versions.release(product, version).tcb
        document: dict[str, object] = {
            "version": list(version),
            "committed_version": list(version),
            "committed_tcb": tcb.hex(),
        }
        store.write_document(directory / FILE, document)

    def load_firmware(self, version: Version, tcb: bytes = b"") -> None:
        """Runs another firmware version from now on: CURRENT changes, COMMITTED does not.

        Args:
            version: The version.
            tcb: Its TCB, 8 bytes, where it is not that of its release.

        Raises:
            FirmwareError: BAD_SVN: it is older than the committed one, in its version or in a TCB component.
            UsageError: No such firmware is known.
        """
        release = versions.release(self.product, version)
        tcb = tcb or release.tcb
        if version < self.committed_version or not at_most(self.committed_tcb, tcb):
            raise FirmwareError(
                status.BAD_SVN,
                command="firmware load",
                message=f"firmware {versions.text(version)} is older than the committed one, "
                f"{versions.text(self.committed_version)}: BAD_SVN (0x21)",
                remedy="A commit cannot be undone: run the committed version or a newer one, or make a new chip.",
            )
        before = self.version, self.release, self.current_tcb
        self.version, self.release, self.current_tcb = version, release, tcb
        try:
            self._save()
        except store.NotStored:
            self.version, self.release, self.current_tcb = before
            raise

    @property
    def reported_tcb(self) -> bytes:
        """REPORTED_TCB, 8 bytes."""
        return self._configured_tcb if any(self._configured_tcb) else self.committed_tcb

    @property
    def platform_info(self) -> int:
        """PLATFORM_INFO of reports."""
        info = self.release.platform_info
        info |= versions.RAPL_DIS if self.rapl_dis else 0
        return info | (versions.CIPHERTEXT_HIDING_DRAM_EN if self.max_snp_asid else 0)

    def has_feature(self, bit: int) -> bool:
        """Whether SNP_FEATURE_INFO announces this ECX bit."""
        return bool((self.release.features or 0) & bit)

    def need_initialised(self) -> None:
        """Refuses outside of state INIT."""
        if self.state != INITIALISED:
            raise FirmwareStatus(status.INVALID_PLATFORM_STATE)

    def guest(self, gctx: int) -> GuestContext:
        """The guest of a context page, in state INIT of the platform."""
        self.need_initialised()
        guest = self.guests.get(gctx)
        if guest is None:
            raise FirmwareStatus(status.INVALID_GUEST)
        return guest

    # Platform commands, in the order of a platform's life.

    def init(self, flags: int, max_snp_asid: int) -> None:
        """SNP_INIT(_EX)."""
        if self.state != UNINIT or self.legacy.state != UNINIT:
            raise FirmwareStatus(status.INVALID_PLATFORM_STATE)
        known = INIT_RMP | INIT_LIST
        known |= INIT_RAPL_DIS if self.has_feature(versions.FEATURE_RAPL_DIS) else 0
        known |= INIT_CIPHERTEXT_HIDING if self.has_feature(versions.FEATURE_CIPHERTEXT_HIDING) else 0
        hiding = bool(flags & INIT_CIPHERTEXT_HIDING)
        if flags & ~known or (flags & INIT_LIST and not flags & INIT_RMP):
            raise FirmwareStatus(status.INVALID_PARAM)
        if hiding != bool(max_snp_asid) or not 0 <= max_snp_asid < self.hardware.min_sev_asid:
            raise FirmwareStatus(status.INVALID_PARAM)
        if not flags & INIT_RMP and not self.rmp_initialised:
            raise FirmwareStatus(status.RMP_INIT_REQUIRED)
        self.state = INITIALISED
        self.rmp_initialised = True
        self.rapl_dis = bool(flags & INIT_RAPL_DIS)
        self.max_snp_asid = max_snp_asid
        self.soil_asids()

    def shutdown(self) -> None:
        """SNP_SHUTDOWN(_EX): wipes guests without an ASID and the VLEK."""
        if self.state == UNINIT:
            return
        if self.legacy.state != UNINIT:
            raise FirmwareStatus(status.INVALID_PLATFORM_STATE)
        if self._dirty or self.asids:
            raise FirmwareStatus(status.DF_FLUSH_REQUIRED)
        self.state = UNINIT
        self.guests.clear()
        self.vlek = self.vlek_tcb = None
        self.rapl_dis = False
        self.max_snp_asid = 0

    def df_flush(self, wbinvd: bool) -> None:
        """SNP_DF_FLUSH: dirty ASIDs become clean once every core has written its caches back."""
        if self._dirty and not wbinvd:
            raise FirmwareStatus(status.WBINVD_REQUIRED)
        self._dirty.clear()

    def status(self) -> bytes:
        """SNP_PLATFORM_STATUS, 32 bytes."""
        flags = int(self.rmp_initialised)
        flags |= 2 if self.release.platform_info & versions.ALIAS_CHECK_COMPLETE else 0
        word = (
            int(self.mask_chip_id)
            | int(self.mask_chip_key) << 1
            | int(self.vlek is not None) << 2
            | int(self.release.features is not None) << 3
            | int(self.rapl_dis) << 4
            | int(self.has_feature(versions.FEATURE_CIPHERTEXT_HIDING)) << 5
            | int(bool(self.max_snp_asid)) << 6
        )
        major, minor, build = self.version
        head = struct.pack("<BBBBIII", major, minor, self.state, flags, build, word, len(self.guests))
        return head + self.current_tcb + self.reported_tcb

    def config(self, buffer: bytes) -> None:
        """SNP_CONFIG: reported TCB (8 bytes; 0 follows COMMITTED), flags u32 (b0, b1 the masks), 52 reserved bytes."""
        if len(buffer) != CONFIG_SIZE:
            raise FirmwareStatus(status.INVALID_LENGTH)
        wanted, flags = bytes(buffer[:8]), int.from_bytes(buffer[8:12], "little")
        if flags & ~(MASK_CHIP_ID | MASK_CHIP_KEY) or any(buffer[12:]) or not at_most(wanted, self.committed_tcb):
            raise FirmwareStatus(status.INVALID_PARAM)
        masks = bool(flags & MASK_CHIP_ID), bool(flags & MASK_CHIP_KEY)
        self._settle(self.committed_version, self.committed_tcb, wanted, masks)

    def commit(self) -> None:
        """SNP_COMMIT: COMMITTED becomes CURRENT, for good; REPORTED follows again."""
        self._settle(self.version, self.current_tcb, bytes(8), (self.mask_chip_id, self.mask_chip_key))

    def vlek_load(self, blob: bytes, wrapped_version: int) -> None:
        """SNP_VLEK_LOAD of a wrapped VLEK, 432 bytes."""
        self.need_initialised()
        if not self.has_feature(versions.FEATURE_VLEK):
            raise FirmwareStatus(status.INVALID_COMMAND)
        reserved = blob[0x0C:0x10] + blob[0x198:0x1A0]
        if wrapped_version != 0 or len(blob) != WRAPPED_SIZE or any(reserved):
            raise FirmwareStatus(status.INVALID_PARAM)
        if blob[0x190:0x198] != self.reported_tcb:
            raise FirmwareStatus(status.BAD_SVN)
        sticks = self.chip.unwrap_vlek(self.reported_tcb, bytes(blob))
        if sticks is None:
            raise FirmwareStatus(status.BAD_MEASUREMENT)
        self.vlek, self.vlek_tcb = sticks, self.reported_tcb

    def feature_info(self, index: int) -> bytes:
        """SNP_FEATURE_INFO: EAX, EBX, ECX, EDX, 16 bytes."""
        if self.release.features is None:
            raise FirmwareStatus(status.INVALID_COMMAND)
        if index == 0:
            return struct.pack("<IIII", 1, 1, self.release.features, 0)
        if index == 1:
            return struct.pack("<IIII", GUEST_MESSAGES, 0, 0, 0)
        raise FirmwareStatus(status.INVALID_PARAM)

    def load_image(self, image: bytes, address: int) -> None:
        """DOWNLOAD_FIRMWARE: runs another firmware and commits it; SEV and SNP must both be uninitialised."""
        if self.state != UNINIT or self.legacy.state != UNINIT:
            raise FirmwareStatus(status.INVALID_PLATFORM_STATE)
        if address % IMAGE_ALIGNMENT:
            raise FirmwareStatus(status.INVALID_ADDRESS)
        self._run_image(image)
        self.commit()

    def update(self, image: bytes, flags: int) -> None:
        """SNP_DOWNLOAD_FIRMWARE_EX: runs another firmware, provisionally unless b0 of `flags` commits it.

        SEV must be uninitialised; SNP may be up, and its guests go on. Until a commit it can be taken back to any
        version from the committed one on.
        """
        if self.legacy.state != UNINIT:
            raise FirmwareStatus(status.INVALID_PLATFORM_STATE)
        if flags & ~UPDATE_COMMIT:
            raise FirmwareStatus(status.INVALID_PARAM)
        self._run_image(image)
        if flags & UPDATE_COMMIT:
            self.commit()

    # Contexts and ASIDs.

    def create(self) -> GuestContext:
        """SNP_GCTX_CREATE. LAUNCH_TCB is the committed TCB, as firmware does and real reports show."""
        self.need_initialised()
        guest = GuestContext(self._next_context, self.committed_tcb, self.release.mitigations)
        self._next_context += 0x1000
        self.guests[guest.address] = guest
        return guest

    def activate(self, guest: GuestContext, asid: int) -> None:
        """SNP_ACTIVATE."""
        if guest.state == 0:
            raise FirmwareStatus(status.INVALID_GUEST_STATE)
        highest = self.max_snp_asid or self.hardware.min_sev_asid - 1
        if not 1 <= asid <= highest:
            raise FirmwareStatus(status.INVALID_ASID)
        if guest.asid:
            raise FirmwareStatus(status.ACTIVE)
        self.need_free_asid(asid)
        guest.asid = asid
        self.asids[asid] = guest.address

    def need_free_asid(self, asid: int) -> None:
        """An ASID that nobody has and that is clean: ASID_OWNED, DF_FLUSH_REQUIRED."""
        if asid in self.asids:
            raise FirmwareStatus(status.ASID_OWNED)
        if asid in self._dirty:
            raise FirmwareStatus(status.DF_FLUSH_REQUIRED)

    def give_asid(self, asid: int, *, dirty: bool = True) -> None:
        """Unbinds an ASID; a dirty one needs a flush before its next use."""
        del self.asids[asid]
        if dirty:
            self._dirty.add(asid)

    def soil_asids(self) -> None:
        """Every ASID needs a flush before its next use; those in use when they are given up, as always."""
        self._dirty = set(range(1, self.hardware.asids + 1)).difference(self.asids)

    def release_asid(self, guest: GuestContext) -> None:
        """Unbinds the ASID, which stays dirty until the next flush."""
        if guest.on_core:
            raise FirmwareStatus(status.ACTIVE)
        if guest.asid:
            self.give_asid(guest.asid)
            guest.asid = 0

    def decommission(self, guest: GuestContext) -> None:
        """SNP_DECOMMISSION: unbinds the ASID and wipes the context."""
        self.release_asid(guest)
        del self.guests[guest.address]

    def _run_image(self, image: bytes) -> None:
        found = versions.of_image(image)
        if found is None:
            raise FirmwareStatus(status.BAD_SIGNATURE)
        try:
            self.load_firmware(*found)
        except store.NotStored:
            raise FirmwareStatus(status.HWERROR_PLATFORM) from None
        except UsageError:
            raise FirmwareStatus(status.BAD_VERSION) from None
        except FirmwareError as older:
            raise FirmwareStatus(older.firmware_status or status.BAD_SVN) from None

    def _settle(self, version: Version, committed: bytes, configured: bytes, masks: tuple[bool, bool]) -> None:
        """Takes on commitment and configuration and stores them; all as before, and HWERROR_PLATFORM, if that fails."""
        before = self.committed_version, self.committed_tcb, self._configured_tcb
        old_masks = self.mask_chip_id, self.mask_chip_key
        self.committed_version, self.committed_tcb, self._configured_tcb = version, committed, configured
        self.mask_chip_id, self.mask_chip_key = masks
        try:
            self._save()
        except store.NotStored:
            self.committed_version, self.committed_tcb, self._configured_tcb = before
            self.mask_chip_id, self.mask_chip_key = old_masks
            raise FirmwareStatus(status.HWERROR_PLATFORM) from None

    def _save(self) -> None:
        document: dict[str, object] = {
            "version": list(self.version),
            "committed_version": list(self.committed_version),
            "committed_tcb": self.committed_tcb.hex(),
        }
        if self.current_tcb != self.release.tcb:
            document["tcb"] = self.current_tcb.hex()
        store.write_document(self._path, document)


def _version(document: dict[str, object], path: Path, name: str) -> Version:
    value = document.get(name)
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) and 0 <= part < 256 for part in value):
        return value[0], value[1], value[2]
    raise store.CorruptState(path, f"the field {name} is no version")
