"""`sev certs refresh` and `sev certs list`: what the daemon keeps for its chip, and how that is kept current."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from datetime import datetime

    from sev.cli.output import Output
    from sev.endorsement_model import RefreshState

_LIST = """\
Shows the certificates and lists that the daemon has for this chip and its reported TCB:
where each came from, when, and until when it is valid; what is missing; and when it asks
for what by itself.
"""

_REFRESH = """\
Has the daemon look now at everything that its chip needs, and ask for what is missing or
due: first in the offline directory, then at the key distribution service. It does so by
itself too; this does not wait for its pauses after failures, unless the service asked for
them. Ends with 5 if something did not come.
"""


def build_list(parser: ArgumentParser) -> None:
    """The options of `sev certs list`."""
    parser.description = _LIST
    examples(
        parser,
        ("sev certs list", "what is there, from where, until when"),
        notes='JSON: {"endorsements": [{"kind", "tcb", "origin", "bytes", "fetched_at", "expires_at"}],\n'
        '"missing", "refresh": as sev certs refresh prints it, "certificate_table_bytes", "simulated"}.',
    )
    parser.set_defaults(run=_list)


def build_refresh(parser: ArgumentParser) -> None:
    """The options of `sev certs refresh`."""
    parser.description = _REFRESH
    examples(
        parser,
        ("sev certs refresh", "ask now, whatever failed before"),
        notes='JSON: {"service", "last_at", "next_at", "items": [{"what", "result", "message", "next_at"}]}.',
    )
    parser.set_defaults(run=_refresh)


def _list(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated
    from sev.cli.tables import rows

    with connected(args, out, mark=False) as host:
        found = host.endorsements()
    mark_simulated(out, found.simulated)
    lines = [
        (one.kind, one.origin, _moment(one.fetched_at), _moment(one.expires_at), str(one.tcb or ""))
        for one in found.endorsements
    ]
    parts = [rows(("KIND", "FROM", "TAKEN", "VALID UNTIL", "TCB"), lines)] if lines else []
    parts += [f"missing: {sentence}" for sentence in found.missing]
    if found.refresh is not None:
        parts.append(_text(found.refresh))
    out.result(found.document(), "\n".join(parts))
    return 0


def _refresh(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.errors import CollateralError

    with connected(args, out) as host:
        state = host.refresh_endorsements()
    out.result(state.document(), _text(state))
    lacking = {"failed", "waiting", "missing"} & {item.result for item in state.items}
    return CollateralError.exit_code if lacking else 0


def _text(state: RefreshState) -> str:
    """How it stands, for people."""
    from sev.cli.tables import rows

    lines = [(item.what, item.result.replace("_", " "), _moment(item.next_at), item.message) for item in state.items]
    table = [rows(("NEEDED", "STATE", "NEXT", ""), lines)] if lines else []
    service = state.service or "no service is asked (endorsements.kds)"
    return "\n".join([*table, f"service: {service}", f"next: {_moment(state.next_at) or 'nothing, by itself'}"])


def _moment(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else ""
