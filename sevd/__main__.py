"""The command `sevd`: reads its options and its configuration file, and runs the daemon.

Exit codes: 0 after a stop that was asked for, 2 for a wrong option, configuration, socket or state directory, 1 for
everything else. On an error stderr says what was expected and what to do.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import NoReturn

    from sevd.config import Settings


def main(argv: list[str] | None = None) -> int:
    """Runs the command; answers its exit code."""
    # Start-up only makes objects that stay: looking for garbage among them takes a quarter of its time.
    gc.disable()
    # gRPC's own fork handlers can hang a forking process, and this one starts programs by exec only.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from sev.errors import InternalError, SevError, UsageError
    from sevd import config, logs

    args = _parser().parse_args(argv)
    try:
        if args.install_units is not None or args.uninstall_units is not None:
            return _units(args)
        settings = _settings(args)
        logs.set_up(settings.log_level, os.environ, settings.log_format)
        if args.check_config:
            from sevd.daemon import policy_of, remote_of

            policy = policy_of(settings)
            if settings.remote_listen or settings.remote_certificate is not None:
                remote_of(settings, policy)
            for setting in config.SETTINGS:
                value = getattr(settings, setting.attribute)
                sys.stdout.write(f"{setting.name} = {_text(value)}\n")
            tables = "".join(f"    {one.table()},\n" for one in settings.identities)
            sys.stdout.write(f"identity = [\n{tables}]\n" if tables else "identity = []\n")
            return 0
        _raise_descriptor_limit()
        from sev.cores import no_core

        no_core()
        from sevd.daemon import run

        run(settings, lambda: _settings(args))
    except SevError as error:
        return _say(error, 2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        import logging

        logging.getLogger("sevd").error("unexpected failure", exc_info=error)
        return _say(InternalError(f"unexpected {type(error).__name__}: {error}"), 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    import argparse

    from sev import __version__
    from sevd.config import PRODUCTS

    parser = argparse.ArgumentParser(
        prog="sevd",
        description="Owns the SEV devices of this host and serves sev.v1 over gRPC on Unix sockets.",
        allow_abbrev=False,
        # Left to itself it asks for the terminal's width, at every start, with modules that nothing else needs.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="configuration (TOML); options here go before it")
    add("--socket", metavar="PATH", help="the one socket to listen on")
    add("--state-dir", metavar="DIR", help="where state is kept")
    add("--device", metavar="PATH", help="the SEV device (default /dev/sev)")
    add("--kvm", metavar="PATH", help="the KVM device (default /dev/kvm)")
    add("--simulator", metavar="DIR", help="use the sevd-simulator that runs with this --device-dir")
    add("--kds", metavar="URL", help='ask this key distribution service for certificates; "auto": AMD\'s; empty: none')
    add("--kds-ca", metavar="FILE", help="trust its TLS certificate by these authorities (PEM)")
    simulate = f"simulate a host of this line ({', '.join(PRODUCTS)}; default genoa): nothing on it is protected"
    add("--simulate", metavar="PRODUCT", nargs="?", const="genoa", choices=PRODUCTS, help=simulate)
    add("--firmware-version", metavar="X.Y.Z", help="firmware of the simulated chip, such as 1.55.40")
    add("--seed", metavar="N", type=_number, help="makes a new simulated chip repeatable")
    add("--check-config", action="store_true", help="check the configuration, print it, and exit")
    add(
        "--install-units", metavar="ROOT", nargs="?", const="/", help="write the files for systemd below ROOT, and exit"
    )
    add("--plain-user", action="store_true", help="with --install-units: run the service as a user of its own")
    add(
        "--uninstall-units",
        metavar="ROOT",
        nargs="?",
        const="/",
        help="remove the files for systemd below ROOT, but those you changed, and exit",
    )
    add("--version", action="version", version=f"sevd {__version__}")
    return parser


def _units(args: argparse.Namespace) -> int:
    """Writes what systemd needs, or takes it away, and says what to do next."""
    from pathlib import Path

    from sev.errors import UsageError
    from sevd import install_units

    if args.install_units is not None and args.uninstall_units is not None:
        raise UsageError("both --install-units and --uninstall-units are given", field="install_units")
    root = Path(os.path.abspath(args.install_units or args.uninstall_units))
    if args.install_units is None:
        done = install_units.uninstall(root)
    else:
        done = install_units.install(root, program=install_units.command(), plain_user=args.plain_user)
    sys.stdout.write(done.text())
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    """The configuration: file, then options, then the paths that neither names."""
    from pathlib import Path

    from sev.errors import UsageError
    from sev.records import replace
    from sevd import config

    uid = os.geteuid()
    file = Path(args.config) if args.config else config.default_file(uid, os.environ)
    settings = config.load(file) if file else config.Settings()
    changes: dict[str, object] = {}
    if args.socket is not None:
        # One socket that is asked for by name is the only one.
        changes.update(socket=_path("socket", args.socket), monitor_socket=None, admin_socket=None)
        changes["fd_socket"] = _path("socket", f"{args.socket}.fd")
    for option, attribute in (
        ("state_dir", "state_dir"),
        ("device", "sev_device"),
        ("kvm", "kvm_device"),
        ("simulator", "simulator"),
        ("kds_ca", "kds_ca"),
    ):
        if getattr(args, option) is not None:
            changes[attribute] = _path(option, getattr(args, option))
    for option in ("simulate", "firmware_version", "seed", "kds"):
        if getattr(args, option) is not None:
            changes[option] = getattr(args, option)
    settings = replace(settings, **changes)
    if settings.simulator is not None:
        _check_simulator(settings, args)
    if (settings.firmware_version or settings.seed is not None) and not settings.simulate:
        raise UsageError(
            "a firmware version or a seed is given, and no simulation",
            field="firmware_version" if settings.firmware_version else "seed",
            remedy="Add --simulate, or leave it out: real firmware has the version it has.",
        )
    return config.resolved(settings, uid, os.environ)


def _check_simulator(settings: Settings, args: argparse.Namespace) -> None:
    """Raises UsageError for options that leave open which host is meant."""
    from sev.errors import UsageError

    if settings.simulate:
        raise UsageError(
            "both --simulate and --simulator are given, and they are two hosts",
            field="simulator",
            remedy="--simulate makes a host inside the daemon, --simulator DIR uses the one that serves DIR.",
        )
    if args.device is not None:
        raise UsageError(
            "both --device and --simulator are given: the simulator's directory has its own device",
            field="device",
            remedy="Leave --device out.",
        )


def _path(option: str, text: str) -> object:
    from pathlib import Path

    from sev.errors import UsageError

    if not text or "\0" in text:
        raise UsageError(f"--{option.replace('_', '-')}: expected a path", field=option)
    return Path(os.path.abspath(text.removeprefix("unix:")))


def _number(text: str) -> int:
    number = int(text, 0)
    if not 0 <= number < 1 << 62:
        raise ValueError
    return number


def _text(value: object) -> str:
    """A setting as TOML would have it; "(none)" for one that is not set."""
    from sevd.example_config import literal

    return literal(value) or "(none)"


def _raise_descriptor_limit() -> None:
    """As many descriptors as the process may have: every connection costs several."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard > 0 else 1 << 16, hard))


def _say(error: object, code: int) -> int:
    from sev.errors import SevError

    assert isinstance(error, SevError)
    sys.stderr.write(f"sevd: {error.message}\n")
    if error.remedy:
        sys.stderr.write(f"      {error.remedy}\n")
    return code


def entry() -> NoReturn:
    """The command as a process. All is closed and written when `main` returns: what the interpreter would do besides
    only keeps the next daemon waiting."""
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
