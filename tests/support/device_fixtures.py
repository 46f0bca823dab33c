"""Fixtures of tests that issue commands to /dev/sev: a process' descriptor of it, to write by and to read by."""

from __future__ import annotations

import os

import pytest

from sevd.simulator.process import Process


@pytest.fixture
def fd(process: Process) -> int:
    return process.open("/dev/sev", os.O_RDWR)


@pytest.fixture
def reader(process: Process) -> int:
    return process.open("/dev/sev", os.O_RDONLY)
