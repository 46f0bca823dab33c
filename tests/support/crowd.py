"""Many clients that call a daemon without pause, in processes of a booted system, and what became of their calls.

Each process has five clients: threads with a connection each, or tasks with a connection each. All clocks are the
machine's monotonic one, so that a wait can be laid beside what the test did meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.booted import Booted

CLIENTS = 5
"""Clients of one process."""

SLOW_SECONDS = 0.05
"""Calls that take longer are told one by one."""

_SYNC = """
import json, sys, threading, time, sev
slow, failed, calls, stop = [], [], [0], threading.Event()
def call(name, act):
    begin = time.monotonic()
    try:
        act()
    except Exception as error:
        failed.append([begin, time.monotonic(), name, f"{type(error).__name__}: {error}"])
    end = time.monotonic()
    calls[0] += 1
    if end - begin > %(slow)s:
        slow.append([begin, end, name])
def client(number):
    with sev.connect("/run/sevd/sevd.sock", timeout=20) as host:
        host.host(), ready.wait()
        while not stop.is_set():
            call("host", host.host)
            call("guests", host.guests)
            call("snp_status", host.snp_status)
ready = threading.Barrier(%(clients)s + 1)
threads = [threading.Thread(target=client, args=(one,), daemon=True) for one in range(%(clients)s)]
for one in threads: one.start()
ready.wait()
print("calling", flush=True)
sys.stdin.read()
stop.set()
for one in threads: one.join(40)
print(json.dumps({"calls": calls[0], "slow": slow, "failed": failed}), flush=True)
"""

_ASYNC = """
import asyncio, json, sys, time, sev.aio
slow, failed, calls = [], [], [0]
async def call(name, act):
    begin = time.monotonic()
    try:
        await act()
    except Exception as error:
        failed.append([begin, time.monotonic(), name, f"{type(error).__name__}: {error}"])
    end = time.monotonic()
    calls[0] += 1
    if end - begin > %(slow)s:
        slow.append([begin, end, name])
async def client(ready, stop):
    async with sev.aio.connect("/run/sevd/sevd.sock", timeout=20) as host:
        await host.host()
        ready()
        while not stop.is_set():
            await call("host", host.host)
            await call("guests", host.guests)
            await call("snp_status", host.snp_status)
async def main():
    stop, there, count = asyncio.Event(), asyncio.Event(), [0]
    def ready():
        count[0] += 1
        if count[0] == %(clients)s: there.set()
    tasks = [asyncio.create_task(client(ready, stop)) for _ in range(%(clients)s)]
    await there.wait()
    print("calling", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    stop.set()
    await asyncio.gather(*tasks)
asyncio.run(main())
print(json.dumps({"calls": calls[0], "slow": slow, "failed": failed}), flush=True)
"""

KINDS = {"sync": _SYNC, "aio": _ASYNC}


@dataclass
class Crowd:
    """The clients. `end` stops them; what they saw is there afterwards.

    Attributes:
        calls: Calls that were made.
        slow: (begin, end, operation) of those that took longer than SLOW_SECONDS.
        failed: (begin, end, operation, what) of those that failed.
        windows: (name, begin, end) of what was done to the daemon meanwhile.
    """

    processes: list[subprocess.Popen[str]]
    calls: int = 0
    slow: list[tuple[float, float, str]] = field(default_factory=list)
    failed: list[tuple[float, float, str, str]] = field(default_factory=list)
    windows: list[tuple[str, float, float]] = field(default_factory=list)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Notes what is done to the daemon, and gives the clients half a second to go on afterwards."""
        begin = time.monotonic()
        yield
        self.windows.append((name, begin, time.monotonic()))
        time.sleep(0.5)

    def end(self) -> None:
        """Stops the clients, and collects what they saw."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for process in self.processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            told = json.loads(out)
            self.calls += told["calls"]
            self.slow += [tuple(one) for one in told["slow"]]
            self.failed += [tuple(one) for one in told["failed"]]

    def longest(self, name: str) -> float:
        """Seconds of the longest call that was under way during anything of this name."""
        return max((self._longest(begin, end) for what, begin, end in self.windows if what == name), default=0.0)

    def report(self) -> str:
        """A line about what was seen, with how busy the machine is."""
        waits = ", ".join(
            f"{name} {self._longest(begin, end):.3f} s (it took {end - begin:.3f} s)"
            for name, begin, end in self.windows
        )
        busy = " ".join(f"{one:.1f}" for one in os.getloadavg())
        return f"{self.calls} calls, {len(self.failed)} failed; longest wait: {waits}; load {busy}"

    def _longest(self, begin: float, end: float) -> float:
        during = [last - first for first, last, *_ in self.slow if first < end and last > begin]
        return max(during, default=0.0)


@contextmanager
def crowd(booted: Booted, *pythons: tuple[str, str]) -> Iterator[Crowd]:
    """Clients that have begun; for each (kind, interpreter) a process of CLIENTS. Ended afterwards in any case."""
    processes = []
    try:
        for kind, python in pythons:
            program = KINDS[kind] % {"clients": CLIENTS, "slow": SLOW_SECONDS}
            processes.append(
                subprocess.Popen(
                    ["nsenter", f"--target={booted.pid}", "--mount", "--pid", "--", python, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd="/",
                )
            )
        for process in processes:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first == "calling\n", process.communicate(timeout=10)[1]
        yield Crowd(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
