"""`sev report`: what an attestation report says, whether it is genuine, and whether it is what one wants."""

from __future__ import annotations

from sev.cli.parser import examples, lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.attestation import Appraisal, Evidence, Step, VerifiedReport
    from sev.cli.output import Output
    from sev.errors import SevError

_SHOW = """\
Shows every field of a report. SNP's may be raw (1184 bytes), hexadecimal, base64, the
buffer of SNP_GET_REPORT, an Azure HCL blob or configfs-tsm's outblob; that of an SEV
or SEV-ES guest has 208 bytes. Nothing is verified: what is shown is what the bytes say.
"""

_VERIFY = """\
Checks that a report is genuine, in numbered steps: its form, the certificate of the key
that signed it, the chain to AMD's root, dates, revocation, the signature, and that the
certificate is for this chip and this TCB. No network and no daemon is needed: AMD's
keys are built in, only the VCEK or VLEK has to be given.

With --policy, --measurement, --report-data, --host-data or --vmpl, a genuine report is
also compared with what is expected.
"""

_APPRAISE = """\
Compares a genuine report with a policy and lists every field: passed, failed or not
asked. It takes the options of `sev report verify`, because what a report says means
nothing before it is verified; evidence that is not genuine is exit 3, as there.

A policy is one table [report] in TOML or JSON, with the field names that
`sev report show --json` prints:

    [report]
    measurement = ["09ef32ac...", "1f2e3d4c..."]      # any of these
    vmpl = 0
    reported_tcb = { min = { bootloader = 4, snp = 27 } }
    current_version = { min = "1.55.29" }
    policy = { debug = "forbidden", unknown = "forbidden" }
    platform_info = { alias_check_complete = "required" }

Floors of TCBs hold per component, floors of mitigation vectors per bit.
"""

_VERIFY_JSON = """\
exit codes: 0 genuine (and as expected), 3 not genuine, 4 genuine but not as expected,
5 cannot be told (a certificate or revocation list is missing or unusable).

JSON: {"verified", "steps": [{"id", "result", "reason"}], "report", "product", "root"},
with an expectation also "appraisal": {"accepted", "checks": [...]}, and "error" where
it fails.
"""


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("show", help="every field of a report", description=_SHOW), _build_show)
    lazy(verbs.add_parser("verify", help="is it genuine?", description=_VERIFY), _build_verify)
    lazy(verbs.add_parser("appraise", help="is it what I want?", description=_APPRAISE), _build_appraise)


def _build_show(show: ArgumentParser) -> None:
    show.add_argument("file", metavar="FILE", help="the report, in any form that is recognised; - for stdin")
    show.add_argument("--product", metavar="P", help="read TCB versions for this line where the report names none")
    examples(
        show,
        ("sev report show report.bin", "every field, for people"),
        ("sev report show report.bin --json", "every field by its name in the firmware ABI"),
    )
    show.set_defaults(run=_show)


def _build_verify(verify: ArgumentParser) -> None:
    from sev.cli.report_inputs import add_options
    from sev.cli.report_legacy import add_options as add_legacy

    add_options(verify, policy_required=False)
    add_legacy(verify)
    examples(
        verify,
        ("sev report verify report.bin --vek vcek.der", "AMD's keys are built in"),
        ("sev report verify outblob --cert-table auxblob", "with the certificates that the host gave the guest"),
        ("sev report verify report.bin --certs certs --roots certs/ark.pem", "a simulated host's, by its own root"),
        ("sev report verify report.bin --chain chain.bin", "an SEV or SEV-ES guest's, 208 bytes"),
        notes=_VERIFY_JSON,
    )
    verify.set_defaults(run=_verify)


def _build_appraise(appraise: ArgumentParser) -> None:
    from sev.cli.report_inputs import add_options

    add_options(appraise, policy_required=True)
    examples(
        appraise,
        ("sev report appraise report.bin --policy policy.toml --vek vcek.der", "every field against the policy"),
        notes=_VERIFY_JSON,
    )
    appraise.set_defaults(run=_judge)


def _show(args: Namespace, out: Output) -> int:
    from sev.cli.report_legacy import is_legacy, show

    if is_legacy(args.file):
        return show(args, out)
    from sev.abi.report_text import text
    from sev.cli.report_inputs import evidence

    found = evidence(args)
    out.detail(f"sev: recognised as {found.form}")
    out.result({**found.report.document(), "form": found.form}, text(found.report))
    return 0


def _verify(args: Namespace, out: Output) -> int:
    if args.chain is None:
        if args.mnonce is not None:
            from sev.errors import UsageError

            raise UsageError("--mnonce goes with --chain: only SEV and SEV-ES reports have one", field="--mnonce")
        return _judge(args, out)
    from sev.cli.report_legacy import judge

    return judge(args, out)


def _judge(args: Namespace, out: Output) -> int:
    from sev.attestation import appraise, verify
    from sev.attestation.steps import complete
    from sev.cli import report_inputs as inputs
    from sev.errors import AppraisalError, CollateralError, MalformedInput, UsageError, VerificationError
    from sev.products import by_name

    if args.measurement is not None and len(args.measurement) != 48:
        raise UsageError("--measurement: an SNP guest's launch digest has 48 bytes", field="--measurement")
    at = inputs.verification_time(args)
    product = by_name(args.product) if args.product is not None else None
    policy = inputs.policy(args, out)
    found: Evidence | None = None
    steps: tuple[Step, ...] = ()
    try:
        try:
            found = inputs.evidence(args)
        except MalformedInput as error:
            from sev.attestation.errors import ReportMalformed

            steps = complete([], "format", error.message)
            raise ReportMalformed(error.message, field=error.field, remedy=_hint(args)) from None
        roots = inputs.roots(args)
        verified = verify(
            found.report,
            inputs.collateral(args, found, out),
            at=at,
            roots=roots,
            product=product,
            allow_host_report=args.allow_host_report,
            allow_masked_chip_id=args.allow_masked_chip_id,
        )
        steps = _with_binding(verified.steps, found)
    except (VerificationError, CollateralError) as error:
        steps = getattr(error, "steps", ()) or steps
        _explain_roots(args, error)
        return _refuse(out, found, steps, error)
    appraisal = appraise(verified, policy) if policy is not None else None
    document = _document(verified, steps, appraisal)
    lines = _step_lines(steps)
    lines += ["", f"genuine: {_whose(verified)}"]
    if appraisal is not None:
        lines += ["", *_check_lines(appraisal)]
    if appraisal is None or appraisal.accepted:
        out.result(document, "\n".join(lines))
        return 0
    try:
        appraisal.require()
    except AppraisalError as error:
        return end(out, document, lines, error)
    return 0


def _hint(args: Namespace) -> str:
    """What to do about a report that is none of SNP's, where that can be told."""
    from sev.cli.report_legacy import is_legacy

    if not is_legacy(args.file):
        return ""
    return "It has the size of an SEV or SEV-ES guest's report: give its platform's chain with --chain."


def _with_binding(steps: tuple[Step, ...], found: Evidence) -> tuple[Step, ...]:
    """The steps, and one more where runtime data came with the report."""
    from sev.attestation import Step
    from sev.attestation.errors import RuntimeDataMismatch

    try:
        bound = found.check_binding()
    except RuntimeDataMismatch as error:
        error.steps = (*steps, Step("runtime_data", "failed", error.message))
        raise
    if not bound:
        return steps
    return (*steps, Step("runtime_data", "passed", "report_data is the SHA-256 of the runtime data beside the report"))


def _explain_roots(args: Namespace, error: SevError) -> None:
    """Says in the remedy that a chain of other roots than AMD's has to be trusted by name."""
    if args.roots is None and error.reason in ("LEAF_SIGNATURE_INVALID", "INTERMEDIATE_MISSING"):
        error.remedy = (
            f"{error.remedy} If it is from a simulated host, or from roots of your own, name the root with --roots."
        )


def _document(verified: VerifiedReport, steps: tuple[Step, ...], appraisal: Appraisal | None) -> dict[str, object]:
    root = verified.chain.root
    document: dict[str, object] = {
        "verified": True,
        "steps": [step.document() for step in steps],
        "report": verified.report.document(),
        "product": verified.product.name,
        "root": {"name": root.common_name, "sha256": root.sha256, "built_in": root.certificate is None},
    }
    if appraisal is not None:
        document["appraisal"] = appraisal.document()
    return document


def _whose(verified: VerifiedReport) -> str:
    root = verified.chain.root
    trust = "AMD's root, built in" if root.certificate is None else f"the given root {root.common_name!r}"
    leaf = verified.leaf
    chip = f"chip {leaf.hwid.hex()[:16]}…" if leaf.hwid is not None else f"the provider {leaf.csp_id}"
    return f"{verified.product.kds_name}, {leaf.kind.upper()} of {chip}, under {trust}"


def _refuse(out: Output, found: Evidence | None, steps: tuple[Step, ...], error: SevError) -> int:
    document: dict[str, object] = {
        "verified": False,
        "steps": [step.document() for step in steps],
        "report": found.report.document() if found is not None else None,
    }
    verdict = "not genuine" if error.exit_code == 3 else "cannot be told"
    return end(out, document, [*_step_lines(steps), "", verdict], error)


def end(out: Output, document: dict[str, object], lines: list[str], error: SevError) -> int:
    """Says how a verification ended that failed, on stdout and stderr; answers the exit code."""
    from sev.cli.output import Output

    out.result({**document, "error": error.document()}, "\n".join(lines).lstrip("\n"))
    # The document has the error already; people read it on stderr in either mode.
    Output(quiet=out.quiet, verbose=out.verbose).error(error)
    return error.exit_code


def _step_lines(steps: tuple[Step, ...]) -> list[str]:
    from sev.attestation.steps import STEPS

    lines = []
    for count, step in enumerate(steps, 1):
        what = STEPS.get(step.id, "the data beside the report is bound by it")
        lines.append(f"{count:3}  {step.result:8}{what}: {step.reason}")
        if step.result == "failed":
            if count < len(steps):
                lines.append(f"     the steps after it, {count + 1} to {len(steps)}, were not reached")
            break
    return lines


def _check_lines(appraisal: Appraisal) -> list[str]:
    lines = []
    for check in appraisal.checks:
        if check.result == "passed":
            lines.append(f"     passed  {check.field}: {_brief(check.actual)}")
        elif check.result == "failed":
            lines.append(f"     failed  {check.field}: expected {_brief(check.expected)}, is {_brief(check.actual)}")
    not_asked = [check.field for check in appraisal.checks if check.result == "not_asked"]
    if not_asked:
        lines.append(f"     not asked: {', '.join(not_asked)}")
    lines += ["", "accepted" if appraisal.accepted else "not accepted"]
    return lines


def _brief(value: object) -> str:
    from json import dumps

    if value is None:
        return "absent"
    return value if isinstance(value, str) else dumps(value)
