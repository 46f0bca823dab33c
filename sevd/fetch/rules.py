"""Which addresses are asked: those of the services that this process was told of, and there only what a KDS has.

A question names a whole URL. It counts only where it begins with the address of a service from this process's own
configuration and goes on as a path of AMD's key distribution service does: whoever can ask cannot make this process
talk to anybody else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sev.errors import NotPermitted
from sev.kds import urls
from sev.records import record

if TYPE_CHECKING:
    from collections.abc import Iterable

URL_MAX = 1024
"""Characters of an address at most; real ones have under 300."""

_LEVELS = r"\?[A-Za-z]{2,8}=[0-9]{1,3}(?:&[A-Za-z]{2,8}=[0-9]{1,3}){0,7}"
_OPEN = re.compile(
    rf"/(?:vcek/v1/[A-Za-z]{{2,20}}/[0-9a-f]{{16,128}}{_LEVELS}|[vV][a-z]{{3}}/v1/[A-Za-z]{{2,20}}/(?:cert_chain|crl)"
    r"|cek/id/[0-9a-f]{128})"
)
_PROVIDERS = re.compile(rf"/vlek/v1/[A-Za-z]{{2,20}}/(?P<what>cert|hash_sticks){_LEVELS}")


@record
class Asked:
    """What an address is.

    Attributes:
        provider: It is for cloud providers: the client certificate is shown.
    """

    provider: bool = False


class Rules:
    """The services that may be asked.

    Args:
        services: Their base URLs.

    Raises:
        UsageError: One is no base URL.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self.services = tuple(dict.fromkeys(urls.base(one) for one in services))
        self._providers = tuple(dict.fromkeys(urls.provider(one) for one in self.services))

    def check(self, url: str, *, posts: bool = False) -> Asked:
        """What an address is.

        Raises:
            NotPermitted: It is none of a service, or not asked like this.
        """
        if len(url) <= URL_MAX:
            for base in self._providers:
                found = _PROVIDERS.fullmatch(url.removeprefix(base)) if url.startswith(f"{base}/") else None
                if found is not None and (found["what"] == "hash_sticks") == posts:
                    return Asked(provider=True)
            for base in self.services:
                if not posts and url.startswith(f"{base}/") and _OPEN.fullmatch(url.removeprefix(base)):
                    return Asked()
        raise NotPermitted(
            f"{url[:100]!r} is nothing that this process asks for",
            field="url",
            remedy=f"It asks {' and '.join(self.services) or 'nobody'}: see endorsements.kds in its configuration.",
        )

    def within(self, url: str) -> bool:
        """Whether an address belongs to a service: redirections go nowhere else."""
        return any(url.startswith(f"{base}/") for base in (*self.services, *self._providers))
