"""Firmware images: what is read from good ones, and how bad ones are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.errors import MalformedInput, UsageError
from sev.measurement import ovmf, snp_plan
from sev.measurement.guids import mixed, spelled
from sev.measurement.sample import HASHES_ADDRESS, RESET_ADDRESS, SECTIONS, footer, metadata, place, sample_firmware

SIZE = 8192
GOOD = sample_firmware(SIZE)
METADATA = SIZE - 0x400
U32 = 4


def u32(number: int) -> bytes:
    return (number & 0xFFFFFFFF).to_bytes(4, "little")


def patched(offset: int, data: bytes) -> bytes:
    image = bytearray(GOOD)
    image[offset : offset + len(data)] = data
    return bytes(image)


def with_table(table: bytes, meta: bytes = metadata(SECTIONS)) -> bytes:
    image = bytearray(GOOD)
    image[METADATA : SIZE - 16] = bytes(0x400 - 16)
    place(image, 0x400, meta)
    place(image, 32 + len(table), table)
    return bytes(image)


def with_sections(*sections: tuple[int, int, int]) -> bytes:
    return with_table(footer(((ovmf.SEV_METADATA, u32(0x400)),)), metadata(sections))


def test_the_sample_has_everything() -> None:
    image = ovmf.Image(GOOD)
    assert image.sections == SECTIONS
    assert image.u32(ovmf.RESET_BLOCK) == RESET_ADDRESS
    assert image.u32(ovmf.HASHES_TABLE) == HASHES_ADDRESS
    assert image.gpa == 0x1_0000_0000 - SIZE
    assert image.has_metadata


@pytest.mark.parametrize("size", [8192, 512 * 1024, 16 << 20])
def test_sample_sizes(size: int) -> None:
    image = sample_firmware(size)
    assert len(image) == size
    assert ovmf.Image(image).has_metadata


@pytest.mark.parametrize("size", [0, 4096, 8193, -4096, 32 << 20])
def test_other_sample_sizes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="sample firmware"):
        sample_firmware(size)


def test_an_image_without_a_table() -> None:
    image = ovmf.Image(bytes(4096))
    assert not image.has_metadata
    assert image.entries == {}
    assert image.sections == ()
    assert image.u32(ovmf.RESET_BLOCK) is None


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "its size is 0 bytes"),
    "49 bytes": (GOOD[-49:], "its size is 49 bytes"),
    "not whole pages": (GOOD[1:], "its size is 8191 bytes"),
    "table longer than the image": (patched(SIZE - 50, b"\xff\xff"), "table length 65535"),
    "table shorter than its entry": (patched(SIZE - 50, b"\x11\x00"), "table length 17"),
    "entry shorter than its tail": (patched(SIZE - 68, b"\x11\x00"), "length 17: expected 18"),
    "entry longer than the table": (patched(SIZE - 68, b"\xff\x00"), "length 255: expected 18"),
    "bytes left over in the table": (
        with_table(bytes(5) + footer(())[:-18] + (23).to_bytes(2, "little") + ovmf.FOOTER),
        "5 bytes left over",
    ),
    "entry there twice": (
        with_table(footer(((ovmf.RESET_BLOCK, u32(1)), (ovmf.RESET_BLOCK, u32(2))))),
        "is there twice",
    ),
    "metadata entry too short": (with_table(footer(((ovmf.SEV_METADATA, b"\x00"),))), "1 bytes of data"),
    "metadata before the image": (with_table(footer(((ovmf.SEV_METADATA, u32(SIZE + 1)),))), "outside the image"),
    "metadata at the very end": (with_table(footer(((ovmf.SEV_METADATA, u32(15)),))), "outside the image"),
    "metadata at offset 0 from the end": (with_table(footer(((ovmf.SEV_METADATA, u32(0)),))), "outside the image"),
    "metadata far outside": (with_table(footer(((ovmf.SEV_METADATA, u32(0xFFFFFFFF)),))), "outside the image"),
    "wrong signature": (patched(METADATA, b"BSEV"), "expected the signature ASEV"),
    "wrong version": (patched(METADATA + 8, u32(2)), "version 2: expected 1"),
    "length below the header": (patched(METADATA + 4, u32(15)), "length 15"),
    "length beyond the image": (patched(METADATA + 4, u32(0xFFFFFFFF)), "length 4294967295"),
    "more sections than the length holds": (patched(METADATA + 12, u32(8)), "with 8 sections"),
    "four thousand million sections": (patched(METADATA + 12, u32(0xFFFFFFFF)), "with 4294967295 sections"),
    "unknown section": (with_sections((0x800000, 0x1000, 5)), "type 0x5 is not known"),
    "section type above a byte": (with_sections((0x800000, 0x1000, 0x101)), "type 0x101 is not known"),
    "section not aligned": (with_sections((0x800800, 0x1000, 1)), "expected whole pages"),
    "section size not pages": (with_sections((0x800000, 0x1001, 1)), "expected whole pages"),
    "section of nothing": (with_sections((0x800000, 0, 1)), "expected whole pages"),
    "section beyond 4 GiB": (with_sections((0xFFFFF000, 0x2000, 1)), "below 4 GiB"),
    "section over the image": (with_sections((0xFFFFE000, 0x1000, 1)), "overlaps"),
    "sections over each other": (with_sections((0x800000, 0x2000, 1), (0x801000, 0x1000, 1)), "overlaps"),
    "two pages of secrets": (with_sections((0x800000, 0x2000, 2)), "secrets has 0x2000 bytes"),
    "two pages of CPUID": (with_sections((0x800000, 0x2000, 3)), "cpuid has 0x2000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused(name: str) -> None:
    image, message = BAD[name]
    with pytest.raises(MalformedInput) as caught:
        ovmf.Image(image)
    assert message in caught.value.message
    assert caught.value.exit_code == 9
    assert caught.value.remedy


def test_a_whole_address_space_of_sections_is_the_most() -> None:
    image = with_sections((0, 0xFFFFE000, 1))
    assert sum(size for _, size, _ in ovmf.Image(image).sections) == 0xFFFFE000
    with pytest.raises(MalformedInput, match="overlaps"):
        ovmf.Image(with_sections((0, 0xFFFFE000, 1), (0, 0xFFFFE000, 1)))


def _flip(image: bytes, at: int, bit: int) -> bytes:
    return image[:at] + bytes(byte ^ 1 << bit for byte in image[at : at + 1]) + image[at + 1 :]


EDITS: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(
        lambda at, bit: lambda image: _flip(image, at, bit), st.integers(SIZE - 0x400, SIZE - 1), st.integers(0, 7)
    ),
    st.builds(
        lambda at, data: lambda image: image[:at] + data + image[at + len(data) :],
        st.integers(SIZE - 0x400, SIZE - 64),
        st.one_of(st.binary(min_size=1, max_size=32), st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff"])),
    ),
    st.builds(lambda size: lambda image: image[:size], st.integers(0, SIZE)),
    st.builds(lambda data: lambda image: image + data, st.binary(max_size=64)),
)


@given(st.lists(EDITS, min_size=1, max_size=4), st.integers(1, 3), st.sampled_from([None, b"kernel"]))
def test_changed_images_are_measured_or_refused(
    edits: list[Callable[[bytes], bytes]], vcpus: int, kernel: bytes | None
) -> None:
    image = GOOD
    for edit in edits:
        image = edit(image)
    try:
        plan = snp_plan(image, vcpus, vcpu_type="EPYC", kernel=kernel)
    except (MalformedInput, UsageError):
        return
    assert len(plan.vmsas) == vcpus
    assert sum(region.size for region in plan.regions) <= 1 << 32


@given(st.binary(max_size=4096).map(lambda data: bytes(4096 - len(data)) + data))
def test_arbitrary_pages_are_images_without_a_table(data: bytes) -> None:
    assert not ovmf.Image(data).has_metadata


@given(st.binary(min_size=16, max_size=16))
def test_guids_are_spelled_as_they_are_read(data: bytes) -> None:
    assert mixed(spelled(data)) == data
