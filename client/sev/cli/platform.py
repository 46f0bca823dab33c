"""`sev platform`: the platform of SEV and SEV-ES: its status, its keys, its owner, its certificates."""

from __future__ import annotations

from sev.cli.parser import examples, lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from typing import TypeVar

    from sev.cli.output import Output
    from sev.client import Host
    from sev.sev_model import SevStatus

    T = TypeVar("T")

_STATUS = """\
Shows PLATFORM_STATUS: the state of SEV and SEV-ES, the firmware, who owns the platform,
whether SEV-ES is configured, and how many SEV and SEV-ES guests the firmware knows.

  not initialised  after a reset, or where nothing has used SEV yet
  initialised      ready for guests
  working          guests are active
"""

_RESET = """\
FACTORY_RESET: erases the platform's keys and its owner. It owns itself again, and has
new keys (OCA, PEK, PDH) from its next initialisation on; chains and sessions of before
are worthless. The chip's own key (CEK) stays.

Refused while there are guests of any kind, SEV-SNP included: after a reset, the next
command that needs the platform initialises it, and shuts SNP down. Cannot be undone;
asks for confirmation, --yes answers it.
"""

_PEK = """\
PEK_GEN: makes new keys (OCA, PEK and PDH). The platform owns itself again; chains and
sessions of before are worthless. Unlike a reset it leaves SEV initialised.

Refused while there are guests of any kind. Cannot be undone; asks for confirmation,
--yes answers it.
"""

_PDH = """\
PDH_GEN: makes a new PDH, signed by the same PEK. Legal while guests run. Sessions that
guest owners made for the old PDH are refused from then on, so they need the chain anew.
"""

_CSR = """\
PEK_CSR: writes the PEK's certificate without signatures, for an owner to sign: offline
with `sev certs sign`, where the owner's key need not come near this host. The result
goes to `sev platform import`. `sev platform own` does all three.
"""

_IMPORT = """\
PEK_CERT_IMPORT: gives the platform an owner. PEK is its signing request (sev platform
csr), signed by the owner's OCA (sev certs sign); OCA is the owner's certificate. Both
are checked before the firmware is asked. The platform gets a new PDH.

A platform that has an owner refuses another one: disown it first. Refused while there
are guests of any kind; asks for confirmation, --yes answers it.
"""

_OWN = """\
Makes this platform yours: fetches its signing request, signs it with your OCA's key, and
gives it back, with your certificate. The key is used here and goes nowhere. From then on
the exported chain shows your OCA, so guest owners can tell whose platform it is.

A platform that has an owner refuses: disown it first. Refused while there are guests of
any kind; asks for confirmation, --yes answers it.
"""

_DISOWN = """\
Gives the platform back to itself (PEK_GEN): new OCA, PEK and PDH. Chains and sessions of
before are worthless. Works whether it had an owner or not.

Refused while there are guests of any kind. Cannot be undone; asks for confirmation,
--yes answers it.
"""

_ID = """\
GET_ID2: the chip's identifier, by which AMD's key distribution service knows it; one line
for each socket. From Turin on the first 8 bytes mean something.
"""

_JSON = "JSON: state, firmware, api_version, owner (self, external), es_configured, guest_count, snp_initialized,\n\
raw; null for what the firmware does not tell while SEV is not initialised."


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = (
        "The platform of SEV and SEV-ES: keys, owner, certificates. SEV-SNP does not use them (see sev snp), but\n"
        "shares the secure processor: some commands here are refused while SNP guests exist."
    )
    verbs = parser.add_subparsers()
    status = verbs.add_parser("status", help="state, firmware, owner, guests", description=_STATUS)
    examples(status, ("sev platform status", "who owns this platform"), notes=_JSON)
    status.set_defaults(run=_status)
    reset = verbs.add_parser("reset", help="erase keys and owner", description=_RESET)
    examples(reset, ("sev platform reset --yes", "begin anew, without being asked"), notes=_JSON)
    reset.set_defaults(run=_reset)
    pek = verbs.add_parser("pek", help="new keys", description="Handles the platform endorsement key.")
    generate = pek.add_subparsers().add_parser("generate", help="new OCA, PEK and PDH", description=_PEK)
    examples(generate, ("sev platform pek generate", "new keys for a platform that owns itself"), notes=_JSON)
    generate.set_defaults(run=_pek_generate)
    pdh = verbs.add_parser("pdh", help="a new PDH", description="Handles the platform's Diffie-Hellman key.")
    rotate = pdh.add_subparsers().add_parser("rotate", help="a new PDH", description=_PDH)
    examples(rotate, ("sev platform pdh rotate", "make sessions of before worthless"), notes=_JSON)
    rotate.set_defaults(run=_pdh_rotate)
    csr = verbs.add_parser("csr", help="what an owner signs", description=_CSR)
    csr.add_argument("--out", required=True, metavar="FILE", help="where to write it, 2084 bytes; - for stdout")
    examples(
        csr,
        ("sev platform csr --out pek.csr", "on the host"),
        ("sev certs sign pek.csr --oca-cert oca.cert --oca-key oca.key --out pek.cert", "where the owner's key is"),
        ("sev platform import pek.cert oca.cert", "on the host again"),
        notes='JSON: {"csr": path, "bytes"}.',
    )
    csr.set_defaults(run=_csr)
    take = verbs.add_parser("import", help="give the platform an owner", description=_IMPORT)
    take.add_argument("pek", metavar="PEK", help="the signed request, 2084 bytes")
    take.add_argument("oca", metavar="OCA", help="the owner's certificate, 2084 bytes")
    examples(take, ("sev platform import pek.cert oca.cert --yes", "after sev certs sign"), notes=_JSON)
    take.set_defaults(run=_import)
    own = verbs.add_parser("own", help="make it yours, in one step", description=_OWN)
    own.add_argument("--oca-cert", required=True, metavar="FILE", help="your certificate (sev certs generate)")
    own.add_argument("--oca-key", required=True, metavar="FILE", help="its private key, DER or PEM")
    examples(
        own,
        ("sev certs generate oca.cert oca.key", "once, for all your platforms"),
        ("sev platform own --oca-cert oca.cert --oca-key oca.key", "this one is yours"),
        notes=_JSON,
    )
    own.set_defaults(run=_own)
    disown = verbs.add_parser("disown", help="give it back to itself", description=_DISOWN)
    examples(disown, ("sev platform disown", "before it changes hands"), notes=_JSON)
    disown.set_defaults(run=_disown)
    lazy(verbs.add_parser("export", help="its certificates, for guest owners"), _build_export)
    shown = verbs.add_parser("id", help="the chip's identifier", description=_ID)
    examples(shown, ("sev platform id", "what AMD knows this chip by"), notes='JSON: {"chip_ids": [hex, …]}.')
    shown.set_defaults(run=_id)


def _build_export(parser: ArgumentParser) -> None:
    from sev.cli.platform_export import build_export

    build_export(parser)


def _status(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected

    with connected(args, out) as host:
        status = host.sev_status()
    _print(out, status)
    return 0


def _reset(args: Namespace, out: Output) -> int:
    return _change(
        args,
        out,
        "FACTORY_RESET erases the platform's keys and its owner; it cannot be undone.",
        lambda host: host.reset_platform(confirm=True),
    )


def _pek_generate(args: Namespace, out: Output) -> int:
    return _change(
        args,
        out,
        "PEK_GEN replaces the platform's keys, and its owner by itself; it cannot be undone.",
        lambda host: host.pek_generate(confirm=True),
    )


def _disown(args: Namespace, out: Output) -> int:
    return _change(
        args,
        out,
        "Disowning replaces the platform's keys, and its owner by itself; it cannot be undone.",
        lambda host: host.disown_platform(confirm=True),
    )


def _import(args: Namespace, out: Output) -> int:
    from sev.cli.files import read_file

    pek = read_file(args.pek, "the signed request", _LIMIT)
    oca = read_file(args.oca, "the owner's certificate", _LIMIT)
    return _change(args, out, _NEW_OWNER, lambda host: host.pek_import(pek, oca, confirm=True))


def _own(args: Namespace, out: Output) -> int:
    from sev.abi.sev_certificate import SevCertificate
    from sev.cli.files import read_file, read_secret
    from sev.session.owner import check_owner

    certificate = read_file(args.oca_cert, "the owner's certificate", _LIMIT)
    key = read_secret(args.oca_key, "the owner's key", _LIMIT)
    check_owner(SevCertificate.read(certificate, "owner's certificate"), key)  # before anybody is asked anything
    return _change(args, out, _NEW_OWNER, lambda host: host.own_platform(certificate, key, confirm=True))


_LIMIT = 64 << 10
_NEW_OWNER = (
    "The platform gets an owner and a new PDH; sessions that guest owners made for it are worthless afterwards."
)


def _pdh_rotate(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected

    with connected(args, out) as host:
        status = confirmed_if_asked(args, lambda confirm: host.pdh_generate(confirm=confirm))
    _print(out, status)
    return 0


def _csr(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected

    with connected(args, out) as host:
        csr = confirmed_if_asked(args, lambda confirm: host.pek_csr(confirm=confirm))
    out.write_file(args.out, csr)
    if args.out != "-":
        out.result({"csr": args.out, "bytes": len(csr)}, f"wrote {args.out}")
    return 0


def _id(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected

    with connected(args, out) as host:
        found = host.chip_ids()
    out.result({"chip_ids": [one.hex() for one in found]}, "\n".join(one.hex() for one in found))
    return 0


def _change(args: Namespace, out: Output, what: str, function: Callable[[Host], SevStatus]) -> int:
    from sev.cli.confirm import confirm
    from sev.cli.connection import connected

    confirm(args, what)
    with connected(args, out) as host:
        status = function(host)
    _print(out, status)
    return 0


def confirmed_if_asked(args: Namespace, function: Callable[[bool], T]) -> T:
    """Asks the daemon, and, where it wants a confirmation because of the platform's state, the person first.

    Args:
        args: The parsed arguments; `--yes` answers.
        function: Asks the daemon, given whether it is confirmed.

    Raises:
        ConfirmationMissing: The daemon wants one, and there is neither --yes nor a person who types yes.
    """
    from sev.cli.confirm import confirm
    from sev.errors import ConfirmationMissing

    try:
        return function(bool(args.yes))
    except ConfirmationMissing as error:
        confirm(args, f"{error.message}.")
        return function(True)


def _print(out: Output, status: SevStatus) -> None:
    out.result(status.document(), text(status))


_UNTOLD = "not told while SEV is not initialised"


def text(status: SevStatus) -> str:
    """The status for people."""
    from sev.cli.tables import facts

    states = {"uninit": "not initialised", "init": "initialised", "working": "working"}
    es = {True: "configured", False: "not configured", None: _UNTOLD}[status.es_configured]
    return facts(
        (
            ("state", states.get(status.state, status.state)),
            ("firmware", f"{status.firmware} (API {status.api_version})"),
            ("owner", {"self": "itself", "external": "an owner of its own"}.get(status.owner, _UNTOLD)),
            ("SEV-ES", es),
            ("guests", status.guest_count),
            ("SEV-SNP", "initialised" if status.snp_initialized else "not initialised"),
        )
    )
