"""Composition root: opens the host that the configuration names, assembles the daemon on it, serves, and stops.

The order of a start: the state directory is locked, sockets listen (callers wait, nobody is refused), the host is
opened (a first simulated start makes keys), the parts are assembled, the platform is asked who it is, and only then
callers are served and systemd is told. This module alone knows where a simulated host comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sev import __version__
from sev.errors import SevError
from sevd import config, listening, logs
from sevd.access.listeners import Listener
from sevd.access.policy import AccessPolicy
from sevd.access.roles import Role
from sevd.assembly import Assembly
from sevd.config import Settings
from sevd.host_parts import HostParts
from sevd.notify import Notifier
from sevd.state import StateDirectory

if TYPE_CHECKING:
    from sev.certs import Roots
    from sevd.access.remote import Remote
    from sevd.remote_listening import Prepared
    from sevd.simulator.host_reader import SimulatedReader

REAL_ASIDS_SECONDS = 1.0
"""Seconds for which the number of ASIDs in use on a real host is believed: other programs launch guests too."""

STATUS_SECONDS = 30.0
"""How often the service manager's status line is renewed where no watchdog sets the pace."""

log = logging.getLogger(__name__)


def run(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Runs the daemon until it is told to stop.

    Args:
        settings: The configuration, with every path chosen.
        reread: Reads the configuration again, for a reload. Raises UsageError.

    Raises:
        SevError: It cannot start.
    """
    assert settings.state_dir is not None
    notifier = Notifier(os.environ)
    policy = policy_of(settings)
    with StateDirectory(settings.state_dir) as state, contextlib.ExitStack() as stack:
        listeners = listening.sockets(settings, os.environ)
        for listener in listeners:
            stack.callback(listener.close)
        remote = remote_of(settings, policy) if any(one.kind.remote for one in listeners) else None
        notifier.status("opening the platform")
        parts = open_host(settings, state)
        stack.callback(parts.close)
        asyncio.run(_Running(settings, reread, notifier).serve(state, parts, policy, listeners, remote))


def policy_of(settings: Settings) -> AccessPolicy:
    """The access policy of a configuration. The default group may be missing on this host, any other may not.

    Raises:
        UsageError: A user or group does not exist.
    """
    users = {
        Role.VIEWER: settings.viewer_users,
        Role.LAUNCHER: settings.launcher_users,
        Role.ADMIN: settings.admin_users,
    }
    groups = {
        Role.VIEWER: settings.viewer_groups,
        Role.LAUNCHER: settings.launcher_groups,
        Role.ADMIN: settings.admin_groups,
    }
    optional = frozenset(Settings().launcher_groups)
    return AccessPolicy.build(users, groups, identities=settings.identities, optional=optional)


def remote_of(settings: Settings, policy: AccessPolicy, running: Remote | None = None) -> Prepared:
    """What remote callers are served with, checked; `running` is what serves them already.

    Raises:
        UsageError: Nobody is allowed to call from elsewhere, or a file cannot be used.
    """
    from sevd import remote_listening  # a daemon without remote callers never loads TLS

    return remote_listening.prepare(settings, policy, os.environ, running)


def open_host(settings: Settings, state: StateDirectory) -> HostParts:
    """The host: the model that was asked for, else the real one, whatever it lacks. Never one for the other."""
    if settings.simulator is not None:
        return _served_host(settings, settings.simulator, state)
    return _simulated_host(settings, state) if settings.simulate else _real_host(settings, state)


def _simulated_host(settings: Settings, state: StateDirectory) -> HostParts:
    from sevd.guests.machine import OwnMachines
    from sevd.simulator import Simulator

    def reader() -> SimulatedReader:
        from sevd.simulator.host_reader import SimulatedReader  # no start checks the host

        return SimulatedReader(simulator)

    def update_firmware(version: str, tcb: str, commit: bool) -> None:
        from sevd.simulator.firmware_update import update

        update(simulator, version, tcb, commit=commit)

    simulator = Simulator.open(
        state.folder("simulator"),
        product=settings.simulate,
        firmware_version=settings.firmware_version or None,
        seed=settings.seed,
        progress=lambda text: log.info("%s", text),
    )
    return HostParts(
        facts=simulator.host_facts(),
        simulated=True,
        platform_kernel=simulator.process(),
        machines=OwnMachines(simulator.process, simulator),
        asids=simulator.asids,
        roots=lambda: _roots(simulator.roots_pem()),
        committed_tcb=simulator.committed_tcb,
        endorsements=simulator.endorsements,
        sev_certificates=simulator.sev_certificates,
        reader=reader,
        firmware_update=update_firmware,
        close=simulator.close,
    )


def _real_host(settings: Settings, state: StateDirectory) -> HostParts:
    from sevd.devices.linux import LinuxHost, LinuxKernel
    from sevd.devices.missing import Lacking
    from sevd.guests.workers import Workers

    sev_path, kvm_path = os.fspath(settings.sev_device), os.fspath(settings.kvm_device)
    host = LinuxHost(sev_path=sev_path, kvm_path=kvm_path)
    missing = Lacking(host.missing)
    for sentence in missing:
        log.warning("missing: %s", sentence)
    if missing:
        log.warning("degraded: what needs the device is refused until it is there")
    plain = settings.plain_guests and os.access(kvm_path, os.R_OK | os.W_OK)
    workers = Workers(state.folder("workers"), sev_path=sev_path, kvm_path=kvm_path)
    if plain or not missing:
        workers.prepare()
    return HostParts(
        facts=host.facts(),
        simulated=False,
        platform_kernel=LinuxKernel(),
        machines=workers,
        asids=host.asids,
        roots=lambda: _roots(None),
        asids_age=REAL_ASIDS_SECONDS,
        missing=missing,
        present=lambda: os.access(sev_path, os.R_OK),
        look=host.facts,
        sev_path=sev_path,
        kvm_path=kvm_path,
        plain=plain,
    )


def _served_host(settings: Settings, directory: Path, state: StateDirectory) -> HostParts:
    """The simulated host that another process serves as files."""
    from sevd.devices.linux import LinuxKernel
    from sevd.devices.missing import Watched
    from sevd.guests.workers import Workers
    from sevd.remote_simulator import RemoteSimulator
    from sevd.simulator.host_reader import ServedReader

    simulator = RemoteSimulator(directory)
    kvm_path = os.fspath(settings.kvm_device)
    workers = Workers(
        state.folder("workers"),
        sev_path=simulator.sev_path,
        kvm_path=kvm_path,
        module="sevd.daemon_worker",
        settings={"simulator": os.fspath(directory)},
    )
    workers.prepare()

    def reader() -> ServedReader:
        return ServedReader(
            directory,
            kvm_path=kvm_path,
            technologies=simulator.facts().technologies,
            asids=simulator.asids,
            ask_cpuid=simulator.cpuid,
        )

    return HostParts(
        facts=simulator.facts(),
        simulated=True,
        platform_kernel=LinuxKernel(),
        machines=workers,
        asids=simulator.asids,
        roots=lambda: _roots(simulator.roots_pem()),
        asids_age=REAL_ASIDS_SECONDS,
        missing=Watched(simulator.missing),
        present=simulator.present,
        may_go=True,
        look=simulator.facts,
        reader=reader,
        committed_tcb=simulator.committed_tcb,
        endorsements=simulator.endorsements,
        sev_certificates=simulator.sev_certificates,
        firmware_update=simulator.update_firmware,
        sev_path=simulator.sev_path,
        kvm_path=kvm_path,
        plain=settings.plain_guests and os.access(kvm_path, os.R_OK | os.W_OK),
        close=simulator.close,
    )


def _roots(pem: bytes | None) -> Roots:
    from sev.certs import Roots

    return Roots.amd() if pem is None else Roots.from_pem(pem)


class _Running:
    """One run of the daemon, between readiness and its end."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings], notifier: Notifier) -> None:
        self._settings = settings
        self._reread = reread
        self._notifier = notifier
        self._stop: asyncio.Event | None = None
        self._complaint = ""

    async def serve(
        self,
        state: StateDirectory,
        parts: HostParts,
        policy: AccessPolicy,
        listeners: Sequence[Listener],
        remote: Prepared | None,
    ) -> None:
        """Serves until SIGTERM or SIGINT."""
        stop = self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        assembly = Assembly(self._settings, state, parts, policy)
        loop.add_signal_handler(signal.SIGHUP, self._reload, assembly)
        await assembly.start()
        if remote is not None:
            remote.serve(assembly.server.gate, assembly.events)
        assembly.open(listeners)
        self._notifier.ready(assembly.status())
        gc.freeze()
        gc.enable()
        where = " ".join(f"{one.kind.name}={one.where()}" for one in listeners)
        log.info("ready version=%s %s: %s", __version__, where, assembly.status())
        if parts.simulated:
            log.warning("SIMULATED: nothing on this host is protected")
        pulse = asyncio.create_task(self._pulse(assembly))
        await stop.wait()
        self._notifier.stopping()
        pulse.cancel()
        await assembly.stop(self._notifier.stopping)
        log.info("stopped")

    def _told_to_stop(self, number: int) -> None:
        log.info("stopping on %s", signal.Signals(number).name)
        assert self._stop is not None
        self._stop.set()

    def _reload(self, assembly: Assembly) -> None:
        """SIGHUP: takes what a reload may change; a configuration with an error changes nothing."""
        self._notifier.reloading()
        try:
            settings = self._reread()
            policy = policy_of(settings)
            running = assembly.server.gate.remote
            remote = None if running is None else remote_of(settings, policy, running)
        except SevError as error:
            log.error("configuration not reloaded, the old one stays: %s", error.message)
            self._complaint = f"; configuration not reloaded: {error.message}"
            self._notifier.ready(assembly.status() + self._complaint)
            return
        applied, waiting = config.changed(self._settings, settings)
        logs.set_level(settings.log_level)
        assembly.reload(settings, policy)
        if remote is not None:
            remote.replace(assembly.server.gate)
        self._settings = settings
        log.info("configuration reloaded applied=%s", ",".join(applied) or "nothing")
        if waiting:
            log.warning("these settings take a restart: %s", ", ".join(waiting))
        self._complaint = f"; these settings take a restart: {', '.join(waiting)}" if waiting else ""
        self._notifier.ready(assembly.status() + self._complaint)

    async def _pulse(self, assembly: Assembly) -> None:
        """Feeds the watchdog as long as the device worker makes progress: a hung firmware command is seen."""
        patience = self._notifier.watchdog_seconds
        while True:
            await asyncio.sleep(patience / 4 if patience else STATUS_SECONDS)
            stuck = time.monotonic() - assembly.scheduler.progress
            if patience is None or stuck < patience / 2:
                self._notifier.alive()
                self._notifier.status(assembly.status() + self._complaint)
            else:
                log.error("the device worker has made no progress for %.1f s", stuck)
                self._notifier.status(f"a firmware command has been running for {stuck:.0f} s")
