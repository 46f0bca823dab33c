"""A service that the configuration leaves out: every method of it says so, and names the setting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from sevd.api.skin import PlainSkin
from sevd.guests.admission import not_offered


class WithheldSkin(PlainSkin):
    """Serves a service whose methods are answered once, by refusing."""

    needs_device = False

    def __init__(self, technology: str) -> None:
        """`technology` is what would have to be offered: "snp", "sev-es" or "sev"."""
        self._technology = technology

    def __getattr__(self, name: str) -> Callable[[Any, Any], Awaitable[NoReturn]]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def refuse(caller: Any, request: Any) -> NoReturn:
            del caller, request
            raise not_offered(self._technology)

        return refuse
