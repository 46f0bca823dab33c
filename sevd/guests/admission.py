"""Who may have how much: requests checked, limits per identity kept.

Limits protect callers from each other. An administrator answers for the whole host and is limited by the host alone:
its refusals are the kernel's own (no free ASID: EBUSY). A limit that the configuration gives to one identity holds
for that identity, an administrator or not.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from typing import TYPE_CHECKING

from sev.errors import NEVER, LimitReached, NotOffered, NotPermitted, UsageError
from sevd.guests.launch_rate import LaunchRate
from sevd.guests.model import MAX_FIRMWARE_BYTES, PAGE, CreateGuest, GuestType

if TYPE_CHECKING:
    from collections.abc import Collection

    from sevd.access.identity import Caller
    from sevd.guests.limits import Limits

GUEST_ID = re.compile(r"[a-z0-9-]{8,36}", re.ASCII)
MAX_LABEL = 64

MAX_MEMORY_BYTES = 1 << 46
"""Bytes: no processor with SEV addresses more."""


def new_guest_id() -> str:
    """An identifier that nobody can guess: 80 random bits."""
    return f"g-{secrets.token_hex(10)}"


TECHNOLOGIES = {GuestType.SNP: "snp", GuestType.SEV_ES: "sev-es", GuestType.SEV: "sev"}
"""Names of the technologies, as the configuration has them."""


def check_create(
    request: CreateGuest,
    limits: Limits,
    *,
    plain: bool = False,
    technologies: Collection[str] = tuple(TECHNOLOGIES.values()),
) -> None:
    """Raises unless the request can be meant, and what it asks for is admitted here.

    Raises:
        UsageError: A value that cannot be meant; names the field.
        NotPermitted: A plain guest, and these are not admitted.
        NotOffered: A technology that the configuration leaves out.
        LimitReached: Too many vCPUs.
    """
    if request.type == GuestType.PLAIN and not plain:
        raise NotPermitted(
            "type: plain guests are not protected from this host, and it does not admit them",
            field="type",
            remedy="Set guests.plain = true in the daemon's configuration if that is meant.",
        )
    if request.type == GuestType.UNSPECIFIED:
        raise UsageError("type: expected SNP, SEV_ES, SEV or PLAIN, which are hosted here", field="type")
    if request.type != GuestType.PLAIN and TECHNOLOGIES[request.type] not in technologies:
        raise not_offered(TECHNOLOGIES[request.type], "type")
    if request.type in (GuestType.SEV, GuestType.PLAIN) and request.vmsa_features:
        raise UsageError(
            f"vmsa_features: 0x{request.vmsa_features:x}, and a guest of this type has no VMSA", field="vmsa_features"
        )
    if request.guest_id and not GUEST_ID.fullmatch(request.guest_id):
        raise UsageError("guest_id: expected 8 to 36 characters of a-z, 0-9 and hyphen", field="guest_id")
    if not 0 < request.memory_bytes <= MAX_MEMORY_BYTES or request.memory_bytes % PAGE:
        raise UsageError(
            f"memory_bytes: {request.memory_bytes}, expected a multiple of {PAGE} from {PAGE} to {MAX_MEMORY_BYTES}",
            field="memory_bytes",
        )
    if request.firmware_bytes % PAGE or not 0 <= request.firmware_bytes <= MAX_FIRMWARE_BYTES:
        raise UsageError(
            f"firmware_bytes: {request.firmware_bytes}, expected a multiple of {PAGE} up to {MAX_FIRMWARE_BYTES}",
            field="firmware_bytes",
        )
    if request.vcpu_count < 1:
        raise UsageError("vcpu_count: expected at least 1", field="vcpu_count")
    if request.vcpu_count > limits.vcpus_per_guest:
        most = limits.vcpus_per_guest
        raise _limit("vcpus_per_guest", most, f"{request.vcpu_count} vCPUs in one guest", retry_after=NEVER)
    for field, value, bits in (
        ("cpuid_signature", request.cpuid_signature, 32),
        ("ap_reset_address", request.ap_reset_address, 32),
        ("vmsa_features", request.vmsa_features, 64),
    ):
        if not 0 <= value < 1 << bits:
            raise UsageError(f"{field}: 0x{value:x} does not fit in {bits} bits", field=field)
    if request.vcpu_count > 1 and not request.ap_reset_address:
        raise UsageError("ap_reset_address: the vCPUs after the first need one", field="ap_reset_address")
    if len(request.label) > MAX_LABEL or not request.label.isprintable():
        raise UsageError(f"label: expected at most {MAX_LABEL} printable characters", field="label")


def not_offered(technology: str, field: str = "") -> NotOffered:
    """The answer where the configuration leaves a technology out."""
    return NotOffered(
        f"{technology}: this daemon does not offer it: its configuration leaves it out of guests.technologies",
        field=field,
        remedy=f'Add "{technology}" to guests.technologies in the daemon\'s configuration, and restart it.',
    )


class Ledger:
    """What each identity holds."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """Of identities that have none of their own; may be replaced."""
        self._rate = LaunchRate()
        self._guests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._watches: Counter[str] = Counter()

    def check(self, caller: Caller, request: CreateGuest) -> None:
        """Raises LimitReached if the caller may not have this guest too; metadata `limit`, `value`, `in_use`."""
        guests, held = self._guests[caller.owner], self._bytes[caller.owner]
        most = caller.limit(caller.limits.guests, self.limits.guests)
        if most is not None and guests >= most:
            raise _limit("guests", most, f"{guests + 1} guests of one identity", guests)
        wanted = held + _bytes(request)
        most = caller.limit(caller.limits.guest_memory, self.limits.memory_bytes)
        if most is not None and wanted > most:
            raise _limit("memory_bytes", most, f"{wanted} bytes of guest memory of one identity", held)

    def launch(self, caller: Caller) -> None:
        """Counts a creation. Raises LimitReached, with the time of the next one, if they follow each other too fast."""
        most = caller.limit(caller.limits.launches_per_minute, self.limits.launches_per_minute)
        if most is not None:
            self._rate.take(caller.owner, most)

    def take(self, owner: str, request: CreateGuest) -> None:
        """Counts a guest in."""
        self._guests[owner] += 1
        self._bytes[owner] += _bytes(request)

    def give_back(self, owner: str, request: CreateGuest) -> None:
        """Counts a guest out."""
        _less(self._guests, owner, 1)
        _less(self._bytes, owner, _bytes(request))

    def take_watch(self, caller: Caller) -> None:
        """Counts a watch stream in. Raises LimitReached."""
        open_now = self._watches[caller.owner]
        most = caller.limit(caller.limits.watches, self.limits.watches)
        if most is not None and open_now >= most:
            raise _limit("watches", most, f"{open_now + 1} watch streams of one identity", open_now)
        self._watches[caller.owner] += 1

    def give_back_watch(self, caller: Caller) -> None:
        """Counts a watch stream out."""
        _less(self._watches, caller.owner, 1)

    def held(self, owner: str) -> tuple[int, int, int]:
        """Guests, bytes of memory and watch streams of an identity."""
        return self._guests[owner], self._bytes[owner], self._watches[owner]


def _bytes(request: CreateGuest) -> int:
    return request.memory_bytes + request.firmware_bytes


def _less(counter: Counter[str], key: str, amount: int) -> None:
    counter[key] -= amount
    if counter[key] <= 0:
        del counter[key]


def _limit(
    name: str, value: int, what: str, in_use: int | None = None, *, retry_after: float | None = None
) -> LimitReached:
    metadata = {"limit": name, "value": str(value)}
    if in_use is not None:
        metadata["in_use"] = str(in_use)
    return LimitReached(
        f"{what}: the limit is {value}",
        remedy="Delete guests that are no longer needed, or have the limit raised in the daemon's configuration.",
        metadata=metadata,
        retry_after=retry_after,
    )
