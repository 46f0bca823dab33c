"""Python as it is where an optional library is not installed."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Takes a library away, by the beginning of its name."""

    def take(library: str) -> None:
        real = builtins.__import__

        def imports(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith(library):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", imports)

    return take
