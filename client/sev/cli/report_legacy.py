"""`sev report verify --chain`: the attestation report of SEV and SEV-ES guests."""

from __future__ import annotations

from sev.errors import MalformedInput, SevError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.attestation import Step
    from sev.cli.output import Output

SIZE = 208
"""Bytes of such a report. All else about it is loaded when there is one."""

_LIMIT = 1 << 20
_NOT_HERE = ("vek", "certs", "cert_table", "policy", "report_data", "host_data", "vmpl", "product")


def add_options(parser: ArgumentParser) -> None:
    """The options of a legacy report."""
    from sev.cli.values import hex_bytes

    group = parser.add_argument_group("report of an SEV or SEV-ES guest")
    group.add_argument("--chain", metavar="FILE", help="its platform's chain: PDH, PEK, OCA, CEK")
    group.add_argument("--mnonce", metavar="HEX", type=hex_bytes(16), help="the nonce that was asked with")


def is_legacy(path: str) -> bool:
    """Whether a file has the size of such a report. What cannot be looked at is left to whoever reads it."""
    from os import stat

    try:
        return stat(path).st_size == SIZE
    except (OSError, ValueError):
        return False


def show(args: Namespace, out: Output) -> int:
    """Every field of a legacy report."""
    from sev.abi.legacy_report import LegacyReport
    from sev.cli.files import read_file

    report = LegacyReport.parse(read_file(args.file, "the report", _LIMIT))
    document = {**report.document(), "form": "legacy"}
    shown = {**document, "policy": str(report.policy), "signature_usage": f"0x{report.signature_usage:x}"}
    out.result(document, "\n".join(f"{name.replace('_', ' '):<22}{value}" for name, value in shown.items()))
    return 0


def judge(args: Namespace, out: Output) -> int:
    """Verifies a legacy report.

    Raises:
        UsageError: An option that has no meaning for such a report.
    """
    from sev.abi.legacy_report import LegacyReport
    from sev.attestation import legacy
    from sev.attestation.steps import FAILED, Step
    from sev.certs.sev_chain import SevChain
    from sev.cli.files import read_file
    from sev.cli.report import end
    from sev.cli.report_inputs import sev_roots

    for name in _NOT_HERE:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} has no meaning for the report of an SEV guest", field=option)
    if args.measurement is not None and len(args.measurement) != 32:
        raise UsageError("--measurement: an SEV guest's launch digest has 32 bytes", field="--measurement")
    roots = sev_roots(args)
    report: LegacyReport | None = None
    try:
        try:
            report = LegacyReport.parse(read_file(args.file, "the report", _LIMIT))
        except MalformedInput as error:
            invalid = legacy.LegacyReportInvalid(error.message, field="format")
            invalid.steps = (Step("format", FAILED, error.message),)
            raise invalid from None
        chain = SevChain.parse(read_file(args.chain, "the chain", _LIMIT))
        verified = legacy.verify(report, chain, roots=roots, mnonce=args.mnonce, measurement=args.measurement)
    except SevError as error:
        if error.exit_code not in (3, 5, 9):
            raise
        if error.exit_code == 9:
            error = legacy.LegacyReportInvalid(error.message, field="chain")
        steps = getattr(error, "steps", ())
        document = {
            "verified": False,
            "steps": [step.document() for step in steps],
            "report": report.document() if report is not None else None,
        }
        return end(out, document, [*_lines(steps), "", "not genuine"], error)
    document = {
        "verified": True,
        "steps": [step.document() for step in verified.steps],
        "report": verified.report.document(),
        "product": verified.chain.product or None,
    }
    lines = [*_lines(verified.steps), "", f"genuine: launch digest {verified.report.launch_digest.hex()}"]
    out.result(document, "\n".join(lines))
    return 0


def _lines(steps: tuple[Step, ...]) -> list[str]:
    from sev.attestation.legacy import STEPS

    return [f"{count:3}  {step.result:8}{STEPS[step.id]}: {step.reason}" for count, step in enumerate(steps, 1)]
