"""The program `sevd-fetch`: asks key distribution services for the daemon, on a socket that systemd passes.

It runs as nobody in particular, keeps nothing, and ends when nobody asks any more. Which services it asks stands in its
own options or in the `[endorsements]` of the daemon's configuration file, never in a question.

Exit codes: 0 when nobody asks any more, 2 for a wrong option, file or socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sev.errors import SevError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from sevd.fetch.server import Server
    from sevd.settings import Settings

NAME = "fetch"
"""FileDescriptorName= of its socket."""

IDLE_SECONDS = 60
CREDENTIALS = {"kds_ca": "kds-ca", "kds_client": "kds-client"}
"""Credentials that systemd passes (LoadCredential=), which go before the settings of these names."""

NOBODY = 65534
"""User and group that a child of root becomes (nobody, nogroup; the overflow id of the kernel)."""

log = logging.getLogger("sevd.fetch")


def main(argv: list[str] | None = None) -> int:
    """Runs the program; answers its exit code."""
    from sevd import logs

    args = _parser().parse_args(argv)
    logs.set_up(args.log_level, os.environ, "auto", "sevd-fetch")
    try:
        settings = _settings(args, os.environ)
        server = _server(settings)
        if args.serve is not None:
            connection = socket.socket(fileno=args.serve)
            _become_nobody()
            server.serve(connection)
        else:
            listener = _passed(os.environ)
            log.info("asking %s", settings.kds or "nobody")
            with listener:
                server.listen(listener, args.idle)
    except SevError as error:
        sys.stderr.write(f"sevd-fetch: {error.message}\n")
        if error.remedy:
            sys.stderr.write(f"            {error.remedy}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"sevd-fetch: {error.strerror}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    import argparse

    from sev import __version__

    parser = argparse.ArgumentParser(
        prog="sevd-fetch",
        description="Asks key distribution services for sevd, which has no network, on the socket that systemd passes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="the daemon's configuration (default /etc/sevd/sevd.toml, if it is there)")
    add("--kds", metavar="URL", help="the one service that is asked, instead of the configuration's")
    add("--kds-ca", metavar="FILE", help="authorities by which its TLS certificate is trusted (PEM)")
    add("--kds-client", metavar="FILE", help="a cloud provider's certificate and key (PEM)")
    add("--proxy", metavar="URL", help='the proxy before it; "none": none (default: the environment\'s)')
    add("--idle", metavar="SECONDS", type=float, default=IDLE_SECONDS, help="end after so long; 0: never (default 60)")
    add("--serve", metavar="FD", type=int, help="serve this connected socket alone: what the daemon does by itself")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(default info)")
    add("--version", action="version", version=f"sevd-fetch {__version__}")
    return parser


def _settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """What to ask, and how. Raises UsageError."""
    from sev.records import replace
    from sevd import config

    file = Path(args.config) if args.config else (config.default_file(0, environ) if args.kds is None else None)
    settings = config.load(file) if file is not None else config.Settings()
    changes: dict[str, object] = {}
    if args.kds is not None:
        changes["kds"] = args.kds
    credentials = environ.get("CREDENTIALS_DIRECTORY", "")
    for attribute, name in CREDENTIALS.items():
        if credentials and os.path.exists(os.path.join(credentials, name)):
            changes[attribute] = Path(credentials, name)
        if getattr(args, attribute) is not None:
            changes[attribute] = Path(getattr(args, attribute))
    if args.proxy is not None:
        changes["kds_proxy"] = args.proxy
    # The paths of the daemon mean nothing here; those of its host decide what "auto" is.
    return config.resolved(replace(settings, **changes), 0, {})


def _server(settings: Settings) -> Server:
    """Raises UsageError: a file without certificates, or no address."""
    from sev.kds.https import Https
    from sevd.fetch.rules import Rules
    from sevd.fetch.server import Server

    rules = Rules([settings.kds] if settings.kds else [])
    ca = os.fspath(settings.kds_ca) if settings.kds_ca is not None else None
    proxy = settings.kds_proxy
    way = Https(ca_file=ca, proxy=proxy, allowed=rules.within)
    provider = None
    if settings.kds_client is not None:
        client = os.fspath(settings.kds_client)
        provider = Https(ca_file=ca, client_file=client, proxy=proxy, allowed=rules.within)
    return Server(rules, way, provider)


def _passed(environ: Mapping[str, str]) -> socket.socket:
    """The listening socket that systemd passed. Raises UsageError."""
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != "1" or names[0] not in ("", NAME):
        raise UsageError(
            "systemd passed no socket for it",
            field="LISTEN_FDS",
            remedy="It is started by sevd-fetch.socket (FileDescriptorName=fetch); a daemon without systemd starts its "
            "own.",
        )
    listener = socket.socket(fileno=3)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_SEQPACKET:
        listener.detach()
        raise UsageError("the socket that systemd passed is of another type", remedy="Use ListenSequentialPacket=.")
    os.set_inheritable(3, False)
    return listener


def _become_nobody() -> None:
    """Gives up what root has: all that is needed is open by now, but for modules that are loaded late."""
    import encodings.idna  # names of hosts go through it

    with contextlib.suppress(ImportError):
        import ctypes

        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    os.chdir("/")
    log.debug("serving as uid %d with %s", os.geteuid(), encodings.idna.__name__)
