"""What `sev.migration` does, for asyncio: the same description, its two sides awaited together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sev.calls import drive_async
from sev.migration import steps

if TYPE_CHECKING:
    from sev.aio import AsyncHost
    from sev.certs.sev_roots import SevRoots
    from sev.guest_model import Guest
    from sev.migration import Both, Progress


async def migrate(
    source: AsyncHost,
    target: AsyncHost,
    guest_id: str,
    *,
    roots: SevRoots | None = None,
    progress: Progress | None = None,
) -> Guest:
    """Moves a guest; arguments and errors as of `sev.migration.migrate`. Cancelled, it gives the guest back first."""
    description = steps(guest_id, roots=roots, progress=progress)
    return await drive_async(description, lambda both: _done(source, target, both))


async def _done(source: AsyncHost, target: AsyncHost, both: Both) -> tuple[Any, Any]:
    """Both results. Raises what failed, once both are over."""
    sides = ((source, both.source), (target, both.target))
    tasks = [asyncio.ensure_future(host.run(one)) for host, one in sides if one is not None]
    try:
        results = iter(await asyncio.gather(*tasks, return_exceptions=True))
    except asyncio.CancelledError:
        await asyncio.wait(tasks)  # they were cancelled with it
        raise
    answers = [next(results) if one is not None else None for _, one in sides]
    for answer in reversed(answers):
        if isinstance(answer, BaseException):
            raise answer
    return answers[0], answers[1]
