"""The launch digest over runs of pages: SHA-384 of each page that can differ once, one record per page.

These loops are the whole cost of a measurement, so they do in one expression what `sev.abi.page_info.extend` spells
out: a hash object is copied (cheaper than making one), and pages are hashed in place.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha384
from struct import Struct

from sev.abi import page_info
from sev.abi.vmsa import UNMEASURED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_RECORD = Struct("<48s48s8sQ")
"""A record: digest so far; contents; what lies between them and the address; address."""


def add_run(digest: bytes, page_type: int, gpa: int, size: int) -> bytes:
    """The digest after a run of pages whose contents are not measured.

    Args:
        digest: The digest so far, 48 bytes.
        page_type: ZERO, UNMEASURED, SECRETS or CPUID.
        gpa: Address of the first page.
        size: Bytes, whole pages.
    """
    copy, pack = sha384().copy, _RECORD.pack
    contents, middle = page_info.EMPTY_DIGEST, page_info.head(b"", page_type)
    for address in range(gpa, gpa + size, page_info.PAGE_SIZE):
        record = copy()
        record.update(pack(digest, contents, middle, address))
        digest = record.digest()
    return digest


def add_pages(digest: bytes, gpa: int, data: bytes) -> bytes:
    """The digest after NORMAL pages with this content.

    Pages of zeros and of ones, of which images are full, are hashed once: a byte from the middle of each page tells
    which ones to compare.

    Args:
        digest: The digest so far, 48 bytes.
        gpa: Address of the first page.
        data: Whole pages.
    """
    sha, copy, pack, size = sha384, sha384().copy, _RECORD.pack, page_info.PAGE_SIZE
    middle = page_info.head(b"", page_info.NORMAL)
    view, same = memoryview(data), data.startswith
    blanks = {byte: bytes((byte,)) * size for byte in (0, 0xFF)}
    hashed: dict[int, bytes] = {}
    offset = 0
    for byte in data[size // 2 :: size]:
        if 0 < byte < 0xFF:
            contents = sha(view[offset : offset + size]).digest()
        elif same(blanks[byte], offset):
            if byte not in hashed:
                hashed[byte] = sha(blanks[byte]).digest()
            contents = hashed[byte]
        else:
            contents = sha(view[offset : offset + size]).digest()
        record = copy()
        record.update(pack(digest, contents, middle, gpa + offset))
        digest = record.digest()
        offset += size
    return digest


def add_vmsas(digest: bytes, pages: Sequence[bytes]) -> bytes:
    """The digest after the VMSA pages, 4096 bytes each; the same page again (the same object) is not hashed again."""
    copy, tail = sha384().copy, page_info.VMSA_GPA.to_bytes(8, "little")
    last, rest = None, b""
    for page in pages:
        if page is not last:
            last, rest = page, page_info.head(vmsa_contents(page), page_info.VMSA) + tail
        record = copy()
        record.update(digest + rest)
        digest = record.digest()
    return digest


@lru_cache(maxsize=64)
def vmsa_contents(page: bytes) -> bytes:
    """The contents field of a VMSA page: SHA-384 of it with the TSC fields, which the firmware fills, as zeros."""
    if page[UNMEASURED] != bytes(16):
        page = page[: UNMEASURED.start] + bytes(16) + page[UNMEASURED.stop :]
    return sha384(page).digest()


def each_page(digest: bytes, page_type: int, gpa: int, size: int, data: bytes | None) -> Iterator[tuple[int, bytes]]:
    """(address, digest after it) of every page of a run: what `add_run` and `add_pages` do, page by page."""
    for offset in range(0, size, page_info.PAGE_SIZE):
        contents = page_info.EMPTY_DIGEST
        if data is not None:
            contents = sha384(data[offset : offset + page_info.PAGE_SIZE]).digest()
        digest = page_info.extend(digest, contents, page_type, gpa + offset)
        yield gpa + offset, digest
