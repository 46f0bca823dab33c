"""Page records and the fast loops over them."""

from __future__ import annotations

from hashlib import sha384

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import page_info
from sev.measurement import digest as chain

PAGES = st.lists(
    st.one_of(
        st.sampled_from([bytes(4096), b"\xff" * 4096, bytes(2048) + b"\xff" * 2048, b"\xff" * 2048 + bytes(2048)]),
        st.binary(min_size=1, max_size=64).map(lambda seed: (seed * 4096)[:4096]),
    ),
    min_size=1,
    max_size=12,
)


def _slow(digest: bytes, page_type: int, gpa: int, size: int, data: bytes | None) -> bytes:
    return list(chain.each_page(digest, page_type, gpa, size, data))[-1][1]


@given(
    pages=PAGES, gpa=st.integers(0, 2**40).map(lambda number: number * 4096), start=st.binary(min_size=48, max_size=48)
)
def test_pages_are_chained_as_the_record_says(pages: list[bytes], gpa: int, start: bytes) -> None:
    data = b"".join(pages)
    assert chain.add_pages(start, gpa, data) == _slow(start, page_info.NORMAL, gpa, len(data), data)


@pytest.mark.parametrize("page_type", [page_info.ZERO, page_info.UNMEASURED, page_info.SECRETS, page_info.CPUID])
def test_runs_are_chained_as_the_record_says(page_type: int) -> None:
    start = sha384(b"before").digest()
    assert chain.add_run(start, page_type, 0x800000, 0x9000) == _slow(start, page_type, 0x800000, 0x9000, None)


def test_an_empty_run_changes_nothing() -> None:
    assert chain.add_run(page_info.EMPTY_DIGEST, page_info.ZERO, 0x1000, 0) == page_info.EMPTY_DIGEST
    assert chain.add_pages(page_info.EMPTY_DIGEST, 0x1000, b"") == page_info.EMPTY_DIGEST
    assert chain.add_vmsas(page_info.EMPTY_DIGEST, []) == page_info.EMPTY_DIGEST


def test_vmsas_are_measured_at_one_address_and_without_the_time() -> None:
    first, second = bytes(range(256)) * 16, b"\x07" * 4096
    expected = page_info.EMPTY_DIGEST
    for page in (first, second, second, first):
        measured = page[:0x2F0] + bytes(16) + page[0x300:]
        contents = sha384(measured).digest()
        expected = page_info.extend(expected, contents, page_info.VMSA, page_info.VMSA_GPA)
    assert chain.add_vmsas(page_info.EMPTY_DIGEST, [first, second, second, first]) == expected


def test_every_field_of_a_record_counts() -> None:
    contents = sha384(b"x").digest()
    plain = page_info.extend(bytes(48), contents, page_info.NORMAL, 0x1000)
    others = {
        page_info.extend(b"\x01" + bytes(47), contents, page_info.NORMAL, 0x1000),
        page_info.extend(bytes(48), bytes(48), page_info.NORMAL, 0x1000),
        page_info.extend(bytes(48), contents, page_info.UNMEASURED, 0x1000),
        page_info.extend(bytes(48), contents, page_info.NORMAL, 0x2000),
        page_info.extend(bytes(48), contents, page_info.NORMAL, 0x1000, imi=True),
        page_info.extend(bytes(48), contents, page_info.NORMAL, 0x1000, vmpl1=1),
        page_info.extend(bytes(48), contents, page_info.NORMAL, 0x1000, vmpl2=1),
        page_info.extend(bytes(48), contents, page_info.NORMAL, 0x1000, vmpl3=1),
        plain,
    }
    assert len(others) == 9


@pytest.mark.parametrize(("digest", "contents"), [(bytes(47), bytes(48)), (bytes(48), bytes(32)), (b"", b"")])
def test_digests_of_another_size_are_refused(digest: bytes, contents: bytes) -> None:
    with pytest.raises(ValueError, match="48 bytes each"):
        page_info.extend(digest, contents, page_info.NORMAL, 0)
