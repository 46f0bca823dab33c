"""The command `sevd-simulator`: a simulated SEV host as files that any program opens, until it is told to stop.

    sevd-simulator --state-dir DIR --device-dir DIR [--product P] [--firmware-version V] [--seed N]
        [--kernel-era A|B|B2|C] [--kds 127.0.0.1:PORT] [--fault SPEC]…

It needs the right to mount (root) and /dev/fuse. SIGTERM, SIGINT and SIGHUP end it in order: `sev` goes first, the
mount and all files in the folder go, the host is switched off; its state stays. Exit codes are those of `sev`: 0 after
a stop that was asked for, 2 for a wrong option or folder, 6 without FUSE, 7 without the right to mount.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from sev.errors import InternalError, SevError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevd.simulator.faults import Fault
    from sevd.simulator.serving import Options

log = logging.getLogger("sevd.simulator")

PRODUCTS = ("naples", "rome", "milan", "genoa", "turin")
KDS_FAULT = "KDS:"
"""How the faults of the key distribution service begin: "KDS:throttle=5:times=2" (sevd.simulator.kds)."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Stopped(BaseException):
    """Told to stop before it was ready."""


def entry() -> None:
    """Runs the command and exits."""
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Runs the command; answers its exit code."""
    from sev.cores import no_core
    from sevd import logs

    args = _parser().parse_args(argv)
    no_core()
    logs.set_up("warning" if args.quiet else "info", os.environ, program="sevd-simulator")
    try:
        return _run(args)
    except SevError as error:
        return _say(error)
    except _Stopped:
        return 0
    except Exception as error:
        log.error("unexpected failure", exc_info=error)
        return _say(InternalError(f"unexpected {type(error).__name__}: {error}"))


def _parser() -> argparse.ArgumentParser:
    from sev import __version__
    from sevd.simulator import kernel_era

    parser = argparse.ArgumentParser(
        prog="sevd-simulator",
        description="Serves a simulated SEV host as files: sev, sev-guest, msr and what belongs to them. "
        "Nothing on it is protected.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--state-dir", metavar="DIR", required=True, type=_path, help="where the simulated chip is kept")
    add("--device-dir", metavar="DIR", required=True, type=_path, help="where the files appear")
    add("--product", choices=PRODUCTS, default="genoa", help="processor line (default genoa)")
    add("--firmware-version", metavar="X.Y.Z", help="firmware of the chip, such as 1.55.40")
    add("--seed", metavar="N", type=_number, help="makes a new chip, and all that is random, repeatable")
    eras = tuple(kernel_era.ERAS)
    add("--kernel-era", choices=eras, default=kernel_era.DEFAULT, help=f"kernel (default {kernel_era.DEFAULT})")
    add("--kds", metavar="HOST:PORT", type=_address, help="answer as the key distribution service here, over HTTPS")
    add("--fault", metavar="SPEC", action="append", default=[], help="such as SNP_COMMIT:status=0x16 or KDS:throttle=5")
    add("--sev-mode", metavar="MODE", type=_mode, default=0o600, help="permissions of the file sev (default 0600)")
    add("--sev-group", metavar="GROUP", help="its group, by name or number")
    add("--svsm", action="store_true", help="guests run under an SVSM, which configfs-tsm shows")
    add("--no-guest-certificates", action="store_true", help="give guests no certificate table")
    add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")
    add("--version", action="version", version=f"sevd-simulator {__version__}")
    return parser


def _run(args: argparse.Namespace) -> int:
    options, faults = _options(args), _faults(args)
    _raise_descriptor_limit()
    with _signals() as signals:
        from sevd.notify import Notifier
        from sevd.simulator import versions
        from sevd.simulator.device_directory import DeviceDirectory
        from sevd.simulator.guest_nodes import GuestDevices
        from sevd.simulator.serving import ServedHost
        from sevd.simulator.simulator import Simulator
        from sevd.state import StateDirectory

        notifier = Notifier(os.environ)
        with StateDirectory(args.state_dir) as state, DeviceDirectory(args.device_dir) as directory:
            simulator = Simulator.open(
                state.folder("simulator"),
                product=args.product,
                firmware_version=args.firmware_version,
                seed=args.seed,
                progress=lambda text: log.info("%s", text),
                kernel_era_name=args.kernel_era,
                injected=faults,
            )
            signals.hold()
            devices = GuestDevices.of(simulator)
            devices.svsm, devices.certificates = args.svsm, not args.no_guest_certificates
            with ServedHost(simulator, directory, options) as host:
                host.start()
                gc.freeze()
                firmware = versions.text(simulator.firmware.version)
                status = f"SIMULATED {args.product}, firmware {firmware}, kernel era {args.kernel_era}"
                notifier.ready(status)
                log.info("ready: %s, files in %s", status, directory.path)
                directory.server.ended = signals.wake
                name = signals.wait()
                notifier.stopping()
                if name is None:
                    raise UsageError(
                        f"{directory.path}: the files were unmounted by somebody else",
                        field="device_dir",
                        remedy="Start the simulator again, and leave the mount to it.",
                    )
                log.info("stopping: %s", name)
    return 0


def _raise_descriptor_limit() -> None:
    """A guest costs a handful of descriptors: its connection, its process, its memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard > 0 else 1 << 16, hard))


class _Signals:
    """Requests to stop, from wherever they come.

    Before `hold` they end what is under way; after it, `wait` answers them. The number of each signal goes into a pipe
    when it arrives (signal.set_wakeup_fd): its handler alone runs too late for a thread that is just about to wait.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._reading, True)
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._held = False

    def arrived(self, number: int, frame: object) -> None:
        """The handler of the signals."""
        del number, frame
        if not self._held:
            self._held = True
            raise _Stopped

    def hold(self) -> None:
        """From now on a signal interrupts nothing."""
        self._held = True

    def wake(self) -> None:
        """Ends `wait`."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writing, b"\0")

    def wait(self) -> str | None:
        """Waits; the name of the signal, or None where something else woke it."""
        number = os.read(self._reading, 1)[0]
        return signal.Signals(number).name if number else None

    def close(self) -> None:
        """Closes its pipe."""
        signal.set_wakeup_fd(self._before)
        os.close(self._reading)
        os.close(self._writing)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals.arrived) for number in _SIGNALS}
    try:
        yield signals
    finally:
        signals.hold()
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.close()


def _faults(args: argparse.Namespace) -> tuple[Fault, ...]:
    from sevd.simulator import faults

    return tuple(faults.parse(spec) for spec in args.fault if not spec.startswith(KDS_FAULT))


def _options(args: argparse.Namespace) -> Options:
    from sevd.simulator.serving import Options

    kds_specs = [spec.removeprefix(KDS_FAULT) for spec in args.fault if spec.startswith(KDS_FAULT)]
    if kds_specs:
        from sevd.simulator.kds import KdsFault

        if args.kds is None:
            raise UsageError("a fault of the KDS without one: --kds is missing", field="fault")
    return Options(
        sev_mode=args.sev_mode,
        sev_gid=_group(args.sev_group) if args.sev_group is not None else os.getegid(),
        kds=args.kds,
        kds_faults=tuple(KdsFault.parse(spec) for spec in kds_specs),
    )


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("expected a path")
    return Path(os.path.abspath(text))


def _number(text: str) -> int:
    number = int(text, 0)
    if not 0 <= number < 1 << 62:
        raise ValueError
    return number


def _mode(text: str) -> int:
    mode = int(text, 8)
    if not 0 <= mode <= 0o777:
        raise ValueError
    return mode


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}, expected HOST:PORT, such as 127.0.0.1:8443")
    return host.strip("[]"), int(port)


def _group(name: str) -> int:
    import grp

    if name.isascii() and name.isdigit() and len(name) < 11:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {name!r}", field="sev_group") from None


def _say(error: SevError) -> int:
    sys.stderr.write(f"sevd-simulator: {error.message}\n")
    if error.remedy:
        sys.stderr.write(f"                {error.remedy}\n")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
