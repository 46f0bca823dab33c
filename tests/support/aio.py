"""Coroutine tests: a folder whose conftest imports `pytest_pyfunc_call` from here may write `async def test_…`."""

from __future__ import annotations

import asyncio
import inspect

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a coroutine test on a loop of its own; at most a minute, so that a hang is a failure."""
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def bounded() -> None:
        await asyncio.wait_for(pyfuncitem.function(**arguments), 60)

    asyncio.run(bounded())
    return True
