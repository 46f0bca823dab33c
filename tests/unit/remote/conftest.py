"""Coroutine tests of the sockets."""

from __future__ import annotations

from tests.support.aio import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
