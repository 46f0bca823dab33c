"""What skins have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
M = TypeVar("M")


class PlainSkin:
    """A skin that keeps no answers.

    Attributes:
        needs_device: False: its functions do without the device, whatever the methods declare.
    """

    needs_device = True

    def cached(self, attribute: str) -> bytes | None:
        """Nothing is kept."""
        return None


class Closable(Protocol[T_co]):
    """An async iterator that holds something until it is closed."""

    def __anext__(self) -> Awaitable[T_co]:
        """The next value."""

    async def aclose(self) -> None:
        """Gives back what it holds."""


class Messages(AsyncIterator[M], Generic[T, M]):
    """A stream of values as a stream of messages. Opened with its source, so that nothing is missed before the first
    message is asked for; closed with it."""

    def __init__(self, source: Closable[T], convert: Callable[[T], M]) -> None:
        self._source = source
        self._convert = convert

    async def __anext__(self) -> M:
        return self._convert(await self._source.__anext__())

    async def aclose(self) -> None:
        """Closes the source."""
        await self._source.aclose()
