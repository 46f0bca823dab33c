"""Fixtures of the tests that run real processes."""

from __future__ import annotations

from tests.support.daemon import daemon, daemons

__all__ = ["daemon", "daemons"]
