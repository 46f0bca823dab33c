"""Blocking calls that may take minutes, each on a thread of its own.

The event loop's own threads are few and everybody's: a handful of workers that do not end would hold up the calls of
all other guests' owners.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

from sev.errors import LimitReached

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


async def aside(function: Callable[..., _Result], *args: object) -> _Result:
    """The function's result, or what it raises. A call that is cancelled goes on by itself.

    Raises:
        LimitReached: No thread is to be had.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def tell(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # there is one where nothing was raised

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, failure)

    try:
        threading.Thread(target=work, name=f"sevd-{getattr(function, '__name__', 'aside')}", daemon=True).start()
    except RuntimeError as error:
        raise LimitReached(f"no thread is to be had: {error}", remedy="Raise TasksMax= of the daemon's unit.") from None
    return await future
