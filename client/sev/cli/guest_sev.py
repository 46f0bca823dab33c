"""`sev guest measure|inject|finish`, and reports of SEV and SEV-ES guests."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.client import Host
    from sev.guest_model import Guest

TYPES = ("sev", "sev-es")
_HEADER_BYTES = 52
_PAYLOAD_LIMIT = 16 << 10

_MEASURE = """\
Has the firmware measure an SEV or SEV-ES guest whose memory is loaded and updated, or
shows the measurement of one that was measured before (as after sev guest launch --hold):
48 bytes for the guest's owner, who checks them (sev measurement check) before packing a
secret.
"""

_INJECT = """\
Hands a secret that the guest's owner packed (sev secret build) to a measured guest. What
is in the two files is encrypted: only the guest with this very measurement gets it. The
firmware refuses what was packed for another launch (BAD_MEASUREMENT, exit code 6).

It goes to --gpa, or to where the firmware image says that secrets are looked for.
"""

_FINISH = """\
Ends the launch of a measured SEV or SEV-ES guest: it takes no more secrets, and may run.
"""


def build_measure(parser: ArgumentParser) -> None:
    """The options of `sev guest measure`."""
    parser.description = _MEASURE
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    parser.add_argument("--out", metavar="FILE", help="write the 48 bytes too; - for stdout")
    examples(
        parser,
        ("sev guest measure sev-0f3a5c7e9b1d --out blob", "for the owner's sev measurement check"),
        notes='JSON: {"guest_id", "state", "measurement", "launch_digest"}.',
    )
    parser.set_defaults(run=_measure)


def build_inject(parser: ArgumentParser, noun: str = "guest") -> None:
    """The options of `sev guest inject`, which are those of `sev secret inject`."""
    from sev.cli.values import integer

    parser.description = _INJECT
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    parser.add_argument("header", metavar="HEADER", help="the packet's header, 52 bytes")
    parser.add_argument("payload", metavar="PAYLOAD", help="the encrypted secret")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--gpa", type=integer(0, (1 << 52) - 1), metavar="N", help="guest physical address")
    place.add_argument("--firmware", metavar="FILE", help="the guest's firmware image, which says where")
    examples(
        parser,
        (f"sev {noun} inject sev-0f3a5c7e9b1d header payload --firmware OVMF.fd", "where OVMF looks for it"),
        notes='JSON: {"guest_id", "state", "gpa", "bytes"}.',
    )
    parser.set_defaults(run=_inject)


def build_finish(parser: ArgumentParser) -> None:
    """The options of `sev guest finish`."""
    parser.description = _FINISH
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    examples(
        parser,
        ("sev guest finish sev-0f3a5c7e9b1d", "after its secrets"),
        notes='JSON: {"guest_id", "type", "state", "launch_digest"}.',
    )
    parser.set_defaults(run=_finish)


def report(args: Namespace, host: Host, guest: Guest, out: Output) -> int:
    """Writes the report that the platform makes of an SEV or SEV-ES guest.

    Raises:
        UsageError: Options that such a report has no use for.
    """
    from os import urandom

    from sev.errors import UsageError

    for name in ("report_data", "vmpl", "certs_out"):
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option}: the report of an {guest.type} guest has nothing of the kind",
                field=option,
                remedy="It repeats --mnonce; the platform's chain comes from sev platform export.",
            )
    nonce = args.mnonce if args.mnonce is not None else urandom(16)
    data = host.attestation_report(guest.guest_id, nonce)
    out.write_file(args.out, data)
    if args.out == "-":
        return 0
    document = {"guest_id": guest.guest_id, "report": args.out, "mnonce": nonce.hex()}
    out.result(document, f"wrote {args.out} ({len(data)} bytes), nonce {nonce.hex()}")
    return 0


def _measure(args: Namespace, out: Output) -> int:
    from base64 import b64encode

    from sev.cli.connection import connected, mark_simulated
    from sev.cli.tables import facts

    with connected(args, out, mark=False) as host:
        guest = host.guest(args.guest_id)
        if not guest.measurement:
            guest = host.measure_guest(args.guest_id)
    mark_simulated(out, guest.simulated)
    if args.out is not None:
        out.write_file(args.out, guest.measurement)
        if args.out == "-":
            return 0
    document = {
        "guest_id": guest.guest_id,
        "state": guest.state,
        "measurement": guest.measurement.hex(),
        "launch_digest": guest.launch_digest.hex() or None,
    }
    encoded = b64encode(guest.measurement).decode()
    text = facts((("state", guest.state), ("measurement", encoded), ("launch digest", guest.launch_digest.hex())))
    out.result(document, text)
    return 0


def _inject(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated
    from sev.cli.files import read_bytes, read_file
    from sev.errors import UsageError
    from sev.session.secret import Packet

    if args.gpa is None and args.firmware is None:
        raise UsageError(
            "give --gpa or --firmware: it is not known where the guest looks for secrets",
            field="--gpa",
            remedy="sev guest launch --hold tells the address that the firmware image names.",
        )
    payload = bytes(read_file(args.payload, "the payload", _PAYLOAD_LIMIT))
    packet = Packet(read_bytes(args.header, "the header", _HEADER_BYTES), payload)
    gpa = args.gpa if args.firmware is None else _area(args.firmware, len(payload))
    with connected(args, out, mark=False) as host:
        guest = host.inject_secret(args.guest_id, packet, gpa=gpa)
    mark_simulated(out, guest.simulated)
    document = {"guest_id": guest.guest_id, "state": guest.state, "gpa": f"{gpa:#x}", "bytes": len(payload)}
    out.result(document, f"{guest.guest_id} took a secret of {len(payload)} bytes at {gpa:#x}")
    return 0


def _area(path: str, size: int) -> int:
    """Where a firmware image wants secrets.

    Raises:
        UsageError: It does not say, or there is less room.
        MalformedInput: It contradicts itself.
    """
    from sev.cli.files import read_file
    from sev.errors import UsageError
    from sev.measurement import ovmf

    area = ovmf.Image(read_file(path, "the firmware image", ovmf.MAX_IMAGE)).area(ovmf.SECRET_AREA)
    if area is None or not area[0]:
        raise UsageError(
            f"{path}: the image does not say where secrets go", field="--firmware", remedy="Give an address with --gpa."
        )
    if size > area[1]:
        raise UsageError(
            f"{path}: the image has room for {area[1]} bytes at {area[0]:#x}, and the secret has {size}",
            field="--firmware",
        )
    return area[0]


def _finish(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated

    with connected(args, out, mark=False) as host:
        guest = host.finish_launch(args.guest_id)
    mark_simulated(out, guest.simulated)
    document = {"guest_id": guest.guest_id, "type": guest.type, "state": guest.state}
    out.result({**document, "launch_digest": guest.launch_digest.hex() or None}, f"{guest.guest_id} is {guest.state}")
    return 0
