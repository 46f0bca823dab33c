"""The call that is under way, for log lines: set by the frame of every call, and carried into threads that work for it.

A context variable (PEP 567): every call has a task of its own, and `asyncio.to_thread` and the device scheduler hand
the context on. Whoever logs need not know of any call.
"""

from __future__ import annotations

import itertools
import re
import secrets
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    from sevd.tracing import Step

    class Call(Protocol):
        """What is told of a call.

        Attributes:
            method: Its name with the service.
            request_id: Its id.
            owner: Who calls; empty while that is not known.
        steps: The device work that was done for it; kept where spans are written alone.
        """

        method: str
        request_id: str
        owner: str
        steps: list[Step]


CURRENT: ContextVar[Call | None] = ContextVar("sevd-call", default=None)
"""The call that this code works for; None where it works for none."""

REQUEST_ID_KEY = "x-request-id"
"""Metadata key under which a client may name its call."""

_FORM = re.compile(r"[A-Za-z0-9._-]{1,64}")
_here = secrets.token_hex(4)
_numbers = itertools.count(1)


def fresh_request_id() -> str:
    """An id for a call that came without one: of this run of the daemon, and counted."""
    return f"{_here}-{next(_numbers):x}"


def is_request_id(text: object) -> bool:
    """Whether this can be the id of a call: 1 to 64 letters, digits, dots, underscores and hyphens."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None
