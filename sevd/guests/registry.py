"""The hosted guests by owner and id, in the order of their creation.

Ids are names within one owner's guests: two owners may use the same one, so that nobody learns from a refusal that
somebody else's guest exists. Where that happened, an administrator, who sees both, says OWNER/ID.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sev.errors import NotFound, UsageError
from sevd.access.roles import Role
from sevd.guests.admission import new_guest_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevd.access.identity import Caller
    from sevd.guests.hosted import Hosted

DEFAULT_PAGE = 100
MAX_PAGE = 1000
_TOKEN = re.compile(r"[0-9a-f]{1,16}", re.ASCII)


class Registry:
    """Who has which guest."""

    def __init__(self) -> None:
        self._guests: dict[tuple[str, str], Hosted] = {}
        self._by_id: dict[str, list[Hosted]] = {}
        self._reserved: set[tuple[str, str]] = set()
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._guests)

    def __iter__(self) -> Iterator[Hosted]:
        return iter(tuple(self._guests.values()))

    def check_free(self, owner: str, guest_id: str) -> None:
        """Raises UsageError if the owner has, or is creating, a guest of this id."""
        if (owner, guest_id) in self._guests or (owner, guest_id) in self._reserved:
            raise UsageError(
                f"guest_id: you have a guest {guest_id} already",
                field="guest_id",
                remedy="Choose another id, or leave it empty to have one made.",
            )

    def reserve(self, owner: str, guest_id: str) -> str:
        """Keeps an id for a guest that is being created; makes one if it is empty. Raises as `check_free`."""
        if not guest_id:
            guest_id = new_guest_id()
        self.check_free(owner, guest_id)
        self._reserved.add((owner, guest_id))
        return guest_id

    @property
    def reserved(self) -> list[tuple[str, str]]:
        """Owner and id of the guests that are being created."""
        return sorted(self._reserved)

    def drop(self, owner: str, guest_id: str) -> None:
        """Gives a reserved id back."""
        self._reserved.discard((owner, guest_id))

    def add(self, guest: Hosted) -> None:
        """The guest exists from now on, under its reserved id."""
        self.drop(guest.owner, guest.guest_id)
        self._sequence += 1
        guest.sequence = self._sequence
        self._guests[guest.owner, guest.guest_id] = guest
        self._by_id.setdefault(guest.guest_id, []).append(guest)

    def remove(self, guest: Hosted) -> None:
        """The guest no longer exists."""
        if self._guests.pop((guest.owner, guest.guest_id), None) is None:
            return
        same = self._by_id[guest.guest_id]
        same.remove(guest)
        if not same:
            del self._by_id[guest.guest_id]

    def find(self, caller: Caller, guest_id: str) -> Hosted:
        """The guest that the caller means.

        Raises:
            NotFound: There is none, or it is somebody else's; the two cannot be told apart.
            UsageError: To an administrator, where several owners have one of this id.
        """
        own = self._guests.get((caller.owner, guest_id))
        if own is not None:
            return own
        if caller.role >= Role.ADMIN:
            owner, slash, name = guest_id.rpartition("/")
            found = [guest for guest in self._by_id.get(name, ()) if not slash or guest.owner == owner]
            if len(found) > 1:
                owners = ", ".join(guest.owner for guest in found)
                raise UsageError(
                    f"guest_id: several owners have a guest {name} ({owners})",
                    field="guest_id",
                    remedy=f"Say whose: {found[0].owner}/{name}.",
                )
            if found:
                return found[0]
        raise NotFound(
            f"there is no guest {guest_id[:64]!r}, or not for you",
            field="guest_id",
            remedy="List the guests that you may see: sev guest list.",
        )

    def visible(self, caller: Caller) -> list[Hosted]:
        """The guests that the caller may see, in the order of creation."""
        return [guest for guest in self._guests.values() if caller.may_see(guest.owner)]

    def page(self, caller: Caller, page_size: int, token: str) -> tuple[list[Hosted], str]:
        """At most page_size (0: 100; more than 1000: 1000) visible guests after the token, and the next token.

        Raises:
            UsageError: A negative size, or a token that is none of ours.
        """
        if page_size < 0:
            raise UsageError(f"page_size: {page_size}, expected 0 to {MAX_PAGE}", field="page_size")
        if token and not _TOKEN.fullmatch(token):
            raise UsageError("page_token: not a token of an earlier answer", field="page_token")
        size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
        start = int(token, 16) if token else 0
        rest = [guest for guest in self.visible(caller) if guest.sequence > start]
        page = rest[:size]
        return page, f"{page[-1].sequence:x}" if len(rest) > size else ""
