"""Server reflection of the upstream package, made to find methods too.

Loaded by `sevd.api.foreign` at the first reflection call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection


class MethodPool:
    """The default descriptor pool, in which "package.Service.Method" is found as well."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - the pool's name
        """The file that declares a symbol. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, method = symbol.rpartition(".")
            service = self._pool.FindServiceByName(parent)
            if not any(found.name == method for found in service.methods):
                raise
            return service.file


def servicer(names: Iterable[str]) -> Any:
    """A servicer that lists these services."""
    pool: Any = MethodPool()
    return reflection.aio.ReflectionServicer(names, pool=pool)
