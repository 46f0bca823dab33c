"""Options of commands that ask a key distribution service."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.kds.service import Service


def add_options(parser: ArgumentParser, *, asks: bool = True) -> None:
    """`--kds`, and with `asks` what is needed to talk to it."""
    group = parser.add_argument_group("key distribution service")
    group.add_argument("--kds", metavar="URL", help="ask this one instead of AMD's: a mirror's, or a simulator's")
    if asks:
        group.add_argument("--kds-ca", metavar="FILE", help="trust its TLS certificate by these authorities (PEM)")
        group.add_argument(
            "--kds-client", metavar="FILE", help="show this certificate and key (PEM): for cloud providers"
        )
        group.add_argument(
            "--kds-patience", metavar="SECONDS", type=float, default=60.0, help="how long to ask again (default 60)"
        )


def service(args: Namespace, out: Output) -> Service:
    """The service that the options name, AMD's if none does.

    Raises:
        UsageError: No URL, no certificates in a file, or a patience that is not above zero.
    """
    from sev.errors import UsageError
    from sev.kds import urls
    from sev.kds.service import Service

    if not 0 < args.kds_patience < 1e6:
        raise UsageError("--kds-patience: expected seconds above 0", field="--kds-patience")
    found = Service(
        args.kds if args.kds is not None else urls.AMD,
        ca_file=args.kds_ca,
        client_file=args.kds_client,
        patience=args.kds_patience,
        told=lambda sentence: out.note(f"sev: {sentence}"),
    )
    out.detail(f"sev: asking {found.url}")
    return found
