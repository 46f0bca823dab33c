"""Firmware images (OVMF, coconut-svsm): the footer table and the SEV metadata in it.

The footer table ends 32 bytes before the end of the image and is read backwards. Each entry is data, a u16 with the
length of the whole entry (data + 18) and a GUID; the last one's length is that of the whole table. The entry "SEV
metadata" points, from the end of the image, to

    "ASEV", u32 length, u32 version = 1, u32 count, count x (u32 gpa, u32 size, u32 type)

All integers are little-endian, the GUIDs mixed-endian. Every offset is checked before it is used: an image is input
from outside.

Source: edk2 OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm and X64/OvmfSevMetadata.asm; QEMU hw/i386/pc_sysfw_ovmf.c.
"""

from __future__ import annotations

from struct import Struct

from sev.errors import MalformedInput
from sev.measurement.guids import mixed, spelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    Section = tuple[int, int, int]

FOUR_GIB = 1 << 32
"""Where a firmware image ends."""

PAGE_SIZE = 4096

MAX_IMAGE = 256 << 20
"""Largest image that is read, in bytes; known ones are below 20 MiB."""

FOOTER = mixed("96b582de-1fb2-45f7-baea-a366c55a082d")
RESET_BLOCK = mixed("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
HASHES_TABLE = mixed("7255371f-3a3b-4b04-927b-1da6efa8d454")
SECRET_AREA = mixed("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
SEV_METADATA = mixed("dc886566-984a-4798-a75e-5585a7bf67cc")
SVSM_INFO = mixed("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")

HASHES_SIZE = 176
"""Bytes of a padded table of kernel hashes."""

FOOTER_END = 32
"""Bytes between the end of the footer table and the end of the image."""

ENTRY_TAIL = 18
"""Bytes of an entry after its data: length and GUID."""

SEC_MEM = 1
SECRETS = 2
CPUID = 3
SVSM_CAA = 4
KERNEL_HASHES = 0x10

SECTION_NAMES = {
    SEC_MEM: "sec-mem",
    SECRETS: "secrets",
    CPUID: "cpuid",
    SVSM_CAA: "svsm-caa",
    KERNEL_HASHES: "kernel-hashes",
}
"""Types of metadata sections that are known."""

_U16 = Struct("<H")
_HEADER = Struct("<4sIII")
_SECTION = Struct("<III")
_ONE_PAGE = (SECRETS, CPUID)


class Image:
    """A firmware image that ends at a given address.

    Args:
        data: The whole image.
        what: What it is in errors.
        end: Guest physical address of its end.

    Attributes:
        data: As given.
        gpa: Guest physical address of its first byte.
        entries: Data of the footer table's entries by GUID (bytes as in the table); empty without a table.
        sections: (gpa, size, type) of the SEV metadata's sections in their order, sizes in bytes and all of it whole
            pages; empty without metadata.
        has_metadata: There is SEV metadata.

    Raises:
        MalformedInput: The size is not a multiple of 4096, or a table contradicts itself or the image.
    """

    def __init__(self, data: bytes, what: str = "firmware image", *, end: int = FOUR_GIB) -> None:
        self.data = data
        self.what = what
        size = len(data)
        if not size or size % PAGE_SIZE or size > MAX_IMAGE:
            self._refuse(f"its size is {size} bytes: expected a multiple of {PAGE_SIZE} up to {MAX_IMAGE}")
        self.gpa = end - size
        if self.gpa < 0:
            self._refuse(f"{size} bytes do not fit below {end:#x}")
        self.entries = self._read_entries()
        self.has_metadata = SEV_METADATA in self.entries
        self.sections = self._read_sections() if self.has_metadata else ()

    def u32(self, guid: bytes, index: int = 0) -> int | None:
        """The u32 number `index` of an entry's data; None without the entry.

        Raises:
            MalformedInput: The entry is too short.
        """
        entry = self.entries.get(guid)
        if entry is None:
            return None
        if len(entry) < 4 * index + 4:
            self._refuse(f"table entry {spelled(guid)}: {len(entry)} bytes of data: expected at least {4 * index + 4}")
        return int.from_bytes(entry[4 * index : 4 * index + 4], "little")

    def area(self, guid: bytes) -> tuple[int, int] | None:
        """(address, bytes) of an entry that names an area of guest memory; None without the entry.

        Raises:
            MalformedInput: The entry is too short, or the area does not lie below 4 GiB.
        """
        base = self.u32(guid)
        if base is None:
            return None
        size = self.u32(guid, 1) or 0
        if base + size > FOUR_GIB:
            self._refuse(f"table entry {spelled(guid)}: {size:#x} bytes at {base:#x} do not lie below 4 GiB")
        return base, size

    def _refuse(self, message: str) -> NoReturn:
        raise MalformedInput(
            f"{self.what}: {message}",
            remedy="Is it a firmware image (OVMF.fd, OVMF_CODE.fd), whole and unchanged?",
            field=self.what,
        )

    def _read_entries(self) -> dict[bytes, bytes]:
        data, entries = self.data, dict[bytes, bytes]()
        tail = len(data) - FOOTER_END - ENTRY_TAIL
        if data[tail + 2 : tail + ENTRY_TAIL] != FOOTER:
            return entries
        length = _U16.unpack_from(data, tail)[0]
        start, end = tail + ENTRY_TAIL - length, tail
        if length < ENTRY_TAIL or start < 0:
            self._refuse(f"footer at {tail:#x}: table length {length}: expected {ENTRY_TAIL} to {tail + ENTRY_TAIL}")
        while end > start:
            if end - start < ENTRY_TAIL:
                self._refuse(f"footer table at {start:#x}: {end - start} bytes left over before the first entry")
            at = end - ENTRY_TAIL
            length = _U16.unpack_from(data, at)[0]
            if not ENTRY_TAIL <= length <= end - start:
                self._refuse(f"table entry at {at:#x}: length {length}: expected {ENTRY_TAIL} to {end - start}")
            guid = bytes(data[at + 2 : end])
            if guid in entries:  # VMMs take one of them, measuring tools the other
                self._refuse(f"table entry at {at:#x}: {spelled(guid)} is there twice")
            entries[guid] = bytes(data[end - length : at])
            end -= length
        return entries

    def _read_sections(self) -> tuple[Section, ...]:
        data = self.data
        start = len(data) - (self.u32(SEV_METADATA) or 0)
        if not 0 <= start <= len(data) - 16:
            self._refuse(f"SEV metadata at offset {start:#x} is outside the image")
        signature, length, version, count = _HEADER.unpack_from(data, start)
        if signature != b"ASEV":
            self._refuse(f"SEV metadata at {start:#x}: expected the signature ASEV")
        if version != 1:
            self._refuse(f"SEV metadata at {start:#x}: version {version}: expected 1")
        if not 16 + 12 * count <= length <= len(data) - start:
            self._refuse(
                f"SEV metadata at {start:#x}: length {length} with {count} sections: "
                f"expected {16 + 12 * count} to {len(data) - start}"
            )
        at = start + 16
        sections = tuple(_SECTION.iter_unpack(data[at : at + 12 * count]))
        for gpa, size, kind in sections:
            if kind not in SECTION_NAMES:
                self._refuse(f"SEV metadata section at {at:#x}: type {kind:#x} is not known")
            if (gpa | size) % PAGE_SIZE or not size or gpa + size > FOUR_GIB:
                self._refuse(
                    f"SEV metadata section at {at:#x}: {size:#x} bytes at {gpa:#x}: expected whole pages below 4 GiB"
                )
            if size != PAGE_SIZE and kind in _ONE_PAGE:
                self._refuse(
                    f"SEV metadata section at {at:#x}: {SECTION_NAMES[kind]} has {size:#x} bytes: expected 0x1000"
                )
            at += 12
        self._check_apart(sections)
        return sections

    def _check_apart(self, sections: tuple[Section, ...]) -> None:
        """No page twice: the firmware would refuse the second, and the sum stays below 4 GiB."""
        end = 0
        for gpa, size, _ in sorted([*sections, (self.gpa, len(self.data), 0)]):
            if gpa < end:
                self._refuse(f"SEV metadata: the section or image at {gpa:#x} overlaps the one before it")
            end = gpa + size
