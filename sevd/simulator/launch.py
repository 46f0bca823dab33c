"""Launching an SNP guest: the checks and the measurement of SNP_LAUNCH_START, _UPDATE and _FINISH.

Memory is given in place and is not encrypted: the model keeps the plaintext, and writes into it what the firmware
writes. The order of checks is the firmware's, since callers see the first that fails.

Source: SEV-SNP firmware ABI (AMD 56860), guest launch; behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import sha384

from sev import status
from sev.abi import page_info
from sev.abi.policy import SnpPolicy
from sev.products import Product
from sevd.simulator import cpuid_rules, hardware, id_block, versions
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import INIT, LAUNCH, NO_AGENT, RUNNING, GuestContext

PAGE = page_info.PAGE_SIZE
LARGE_PAGES = 512
GPA_END = 1 << 52
"""Guest physical addresses have at most 52 bits, and so has the RMP's field for them."""

MA_EN, IMI_EN = 1, 2
"""Flags of SNP_LAUNCH_START."""

RMP_PRE_GUEST, RMP_GUEST_VALID = 1, 2
_SINGLE_PAGE_TYPES = (page_info.VMSA, page_info.SECRETS, page_info.CPUID)

VMSA_TSC = slice(0x2F0, 0x300)
"""TSC scale and offset in a VMSA, which the firmware fills and does not measure."""

SEV_FEATURES_AT = 0x3B0
SECURE_TSC = 1 << 9
TSC_FACTOR = 200


def tsc_scale(platform: Platform, guest: GuestContext) -> int:
    """Guest TSC frequency against the reference clock, as fixed point with 32 bits behind the point."""
    wanted = guest.desired_tsc_khz or platform.hardware.tsc_khz
    return (wanted << 32) // platform.hardware.tsc_khz


def check_policy(platform: Platform, policy: int) -> bool:
    """Whether firmware of this version can run a guest of this policy here, leaving migration agents aside."""
    wanted = SnpPolicy(policy)
    part = platform.hardware
    return (
        wanted.reserved_mbo
        and not policy & ~versions.policy_mask(platform.release, platform.version)
        and (wanted.abi_major, wanted.abi_minor) <= platform.version[:2]
        and (wanted.smt or not part.smt)
        and (part.aes_256_xts or not wanted.mem_aes_256_xts)
        and (platform.rapl_dis or not wanted.rapl_dis)
        and (bool(platform.max_snp_asid) or not wanted.ciphertext_hiding_dram)
    )


def start(
    platform: Platform,
    guest: GuestContext,
    policy: int,
    gosvw: bytes,
    *,
    desired_tsc_khz: int = 0,
    flags: int = 0,
    ma_gctx: int = 0,
) -> None:
    """SNP_LAUNCH_START: fixes the policy and makes the guest's secrets."""
    if flags & ~(MA_EN | IMI_EN) or len(gosvw) != 16 or not 0 <= policy < 1 << 64:
        raise FirmwareStatus(status.INVALID_PARAM)
    if guest.state != INIT:
        raise FirmwareStatus(status.INVALID_GUEST_STATE)
    agent: GuestContext | None = None
    wanted = SnpPolicy(policy)
    if flags & MA_EN:
        agent = platform.guests.get(ma_gctx)
        if agent is None:
            raise FirmwareStatus(status.INVALID_GUEST)
        if not wanted.migrate_ma or agent.agent or (wanted.single_socket and not SnpPolicy(agent.policy).single_socket):
            raise FirmwareStatus(status.POLICY_FAILURE)
    if not check_policy(platform, policy):
        raise FirmwareStatus(status.POLICY_FAILURE)
    guest.policy = policy
    guest.gosvw = bytes(gosvw)
    guest.desired_tsc_khz = desired_tsc_khz
    guest.imi = bool(flags & IMI_EN)
    guest.vmpck = tuple(platform.random(32) for _ in range(4))
    guest.vmrk = platform.random(32)
    guest.report_id = platform.random(32)
    guest.report_id_ma = agent.report_id if agent else NO_AGENT
    guest.agent = ma_gctx if agent else 0
    guest.state = LAUNCH


def update(
    platform: Platform,
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
    """SNP_LAUNCH_UPDATE for a run of pages with growing addresses.

    Every check but that of the page's RMP state comes out the same for each page of a run, so those are made once, in
    the place where they stand for the first page.
    """
    guest = platform.guest(gctx)
    count = len(pages) // PAGE
    if not 0 < count == len(rmp) or len(pages) % PAGE or gpa % PAGE or not 0 <= gpa <= GPA_END - len(pages):
        raise FirmwareStatus(status.INVALID_ADDRESS)
    if rmp[0] != RMP_PRE_GUEST:
        raise FirmwareStatus(status.INVALID_PAGE_STATE)
    if large:
        if page_type in _SINGLE_PAGE_TYPES:
            raise FirmwareStatus(status.INVALID_PAGE_SIZE)
        if gpa % (LARGE_PAGES * PAGE) or count % LARGE_PAGES:
            raise FirmwareStatus(status.INVALID_ADDRESS)
    if page_type not in page_info.PAGE_TYPES:
        raise FirmwareStatus(status.INVALID_PARAM)
    if guest.state != LAUNCH:
        raise FirmwareStatus(status.INVALID_GUEST_STATE)
    if not guest.asid:
        raise FirmwareStatus(status.INACTIVE)
    if owner is not None and owner != guest.asid:
        raise FirmwareStatus(status.INVALID_PAGE_OWNER)
    if guest.imi and not imi_page:
        raise FirmwareStatus(status.INVALID_PARAM)
    ready = _ready(rmp)
    view = pages.cast("B") if pages.format != "B" or pages.ndim != 1 else pages
    vmpl1, vmpl2, vmpl3 = vmpl_permissions
    head = page_info.head(b"", page_type, imi=imi_page, vmpl1=vmpl1, vmpl2=vmpl2, vmpl3=vmpl3)
    digests = [guest.digest, guest.imi_digest] if imi_page else [guest.digest]
    done = _measure(platform, guest, page_type, gpa, view[: ready * PAGE], head, digests)
    guest.digest = digests[0]
    if imi_page:
        guest.imi_digest = digests[1]
    rmp[:done] = bytes((RMP_GUEST_VALID,)) * done
    if done < ready:
        raise FirmwareStatus(status.INVALID_PARAM, pages_done=done)
    if ready < count:
        raise FirmwareStatus(status.INVALID_PAGE_STATE, pages_done=ready)


def _ready(rmp: memoryview) -> int:
    """Leading pages in the state that a page must be in."""
    states = rmp.tobytes()
    return len(states) - len(states.lstrip(bytes((RMP_PRE_GUEST,))))


def _measure(
    platform: Platform,
    guest: GuestContext,
    page_type: int,
    gpa: int,
    view: memoryview,
    head: bytes,
    digests: list[bytes],
) -> int:
    """Extends the digests by each page; the pages done, fewer than all only if a CPUID page is refused."""
    count = len(view) // PAGE
    if page_type == page_info.NORMAL:
        digests[:] = [_chain(each, head, gpa, view) for each in digests]
        return count
    if page_type in (page_info.ZERO, page_info.UNMEASURED):
        if page_type == page_info.ZERO:
            view[:] = bytes(len(view))
        digests[:] = [_chain(each, head, gpa, None, count) for each in digests]
        return count
    for done in range(count):
        page = view[done * PAGE : (done + 1) * PAGE]
        address = gpa if gpa == page_info.VMSA_GPA else gpa + done * PAGE
        contents = page_info.EMPTY_DIGEST
        if page_type == page_info.VMSA:
            contents = sha384(bytes(page[: VMSA_TSC.start]) + bytes(16) + bytes(page[VMSA_TSC.stop :])).digest()
            _fix_vmsa(platform, guest, page)
        elif page_type == page_info.SECRETS:
            page[:] = secrets_page(platform, guest)
        elif not _cpuid_page(platform, page):
            return done
        tail = contents + head + address.to_bytes(8, "little")
        digests[:] = [sha384(each + tail).digest() for each in digests]
    return count


def _chain(digest: bytes, head: bytes, gpa: int, view: memoryview | None, count: int = 0) -> bytes:
    """The digest after a run: measured by content if `view` is given, else `count` pages by address only."""
    addresses = range(gpa, gpa + (count if view is None else len(view) // PAGE) * PAGE, PAGE)
    if view is None:
        head = page_info.EMPTY_DIGEST + head
        for address in addresses:
            digest = sha384(digest + head + address.to_bytes(8, "little")).digest()
        return digest
    at, last, contents = 0, b"", b""
    for address in addresses:
        page = view[at : at + PAGE].tobytes()
        if page != last:  # images are full of runs of one blank page, hashed once each
            last, contents = page, sha384(page).digest()
        digest = sha384(digest + contents + head + address.to_bytes(8, "little")).digest()
        at += PAGE
    return digest


def _fix_vmsa(platform: Platform, guest: GuestContext, page: memoryview) -> None:
    """What the firmware writes into a VMSA after measuring it: the guest's TSC, where a secure one is asked for."""
    if int.from_bytes(page[SEV_FEATURES_AT : SEV_FEATURES_AT + 8], "little") & SECURE_TSC:
        page[VMSA_TSC] = struct.pack("<QQ", tsc_scale(platform, guest), 0)


@lru_cache(maxsize=64)
def _corrections(product: Product, page: bytes) -> bytes | None:
    """`cpuid_rules.check`, remembered: guests of one host share a few CPUID pages."""
    return cpuid_rules.check(hardware.of(product), memoryview(page))


def _cpuid_page(platform: Platform, page: memoryview) -> bool:
    """Checks a CPUID page; a wrong one is corrected in place."""
    corrected = _corrections(platform.product, bytes(page))
    if corrected:
        page[cpuid_rules.HEADER_SIZE : cpuid_rules.HEADER_SIZE + len(corrected)] = corrected
    return corrected == b""


def secrets_page(platform: Platform, guest: GuestContext) -> bytes:
    """The secrets page, 4096 bytes: what the guest needs to talk to the firmware."""
    signature = platform.hardware.registers(1)[0]
    page = bytearray(PAGE)
    struct.pack_into("<IIII", page, 0, platform.release.secrets_version, int(guest.imi), signature, 0)
    page[0x10:0x20] = guest.gosvw
    page[0x20:0xA0] = b"".join(guest.vmpck)
    page[0x160:0x164] = TSC_FACTOR.to_bytes(4, "little")
    if platform.version[:2] >= (1, 58):
        page[0x168:0x170] = guest.launch_mitigations.to_bytes(8, "little")
    return bytes(page)


def finish(
    platform: Platform,
    guest: GuestContext,
    block: bytes | None,
    auth: bytes | None,
    *,
    auth_key_en: bool,
    vcek_dis: bool,
    host_data: bytes,
    reserved_flags: int = 0,
) -> None:
    """SNP_LAUNCH_FINISH: checks the ID block, if one is given, and lets the guest run."""
    if reserved_flags or len(host_data) != 32:
        raise FirmwareStatus(status.INVALID_PARAM)
    if guest.state != LAUNCH or guest.imi:
        raise FirmwareStatus(status.INVALID_GUEST_STATE)
    if not guest.asid:
        raise FirmwareStatus(status.INACTIVE)
    if block is not None:
        identity = id_block.check(guest, bytes(block), bytes(auth or b""), auth_key_en)
        guest.id_block_en = True
        guest.family_id, guest.image_id, guest.guest_svn = identity.family_id, identity.image_id, identity.guest_svn
        guest.id_key_digest, guest.author_key_digest = identity.id_key_digest, identity.author_key_digest
    guest.auth_key_en = auth_key_en
    guest.vcek_disabled = vcek_dis
    guest.host_data = bytes(host_data)
    guest.state = RUNNING
