"""This folder's tests may be coroutines."""

from __future__ import annotations

from tests.support.aio import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
