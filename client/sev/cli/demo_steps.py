"""What the demonstration does, step by step. Every step is real; one that does not end as it should ends the story."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.errors import InternalError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.attestation import Policy, VerifiedReport
    from sev.cli.demo_firmware import Image
    from sev.cli.demo_story import Story
    from sev.client import Host
    from sev.endorsement_model import Endorsements
    from sev.guest_model import LaunchedGuest
    from sev.snp_model import SnpStatus

VCPUS = 2
MEASUREMENT_AT = 0x90
"""Offset of the measurement in a report."""


class Proof:
    """A report, and the certificates that the host has for its chip."""

    def __init__(self, report: bytes, endorsements: Endorsements) -> None:
        self.report = report
        self._endorsements = endorsements

    def verify(self, report: bytes | None = None, *, amd: bool = False) -> VerifiedReport:
        """Verifies the report (or another in its place) with the simulated host's root, or with AMD's."""
        from sev.attestation import Collateral, Roots, verify
        from sev.cli.certificates import pem

        of_kind = {one.kind: one.der for one in self._endorsements.endorsements}
        collateral = Collateral(
            vek=of_kind.get("vcek"),
            certificates=[of_kind[kind] for kind in ("ask", "ark") if kind in of_kind],
            crls=[of_kind["crl"]] if "crl" in of_kind and not amd else [],
        )
        roots = Roots.amd() if amd else Roots.from_pem(pem("ark", of_kind.get("ark", b"")))
        return verify(self.report if report is None else report, collateral, at=datetime.now(UTC), roots=roots)


def tell(story: Story, host: Host, image: Image) -> None:
    """Plays the story on a host.

    Raises:
        SevError: A step failed, or did not fail where it had to.
    """
    status = _host(story, host)
    launched = _launch(story, host, image)
    try:
        nonce = os.urandom(64)
        proof = _report(story, host, launched, nonce)
        verified = _verify(story, proof)
        _foreign_root(story, proof)
        _appraise(story, verified, _policy(launched, nonce, status))
        _tamper(story, proof)
    finally:
        host.delete_guest(launched.guest.guest_id)
    _end(story, host, launched)


def _host(story: Story, host: Host) -> SnpStatus:
    from sev.cli.host import text
    from sev.cli.tables import tcbs

    info, status = host.host(), host.snp_status()
    story.step(
        "host",
        "A host that can launch confidential guests",
        """SEV-SNP encrypts a guest's memory with a key that only the chip's security processor has, and stops the host
        from changing it. The versions of everything that this rests on are the TCB (trusted computing base). Each chip
        signs with a key that it derives from its secret and the reported TCB: the VCEK.""",
    )
    columns = (("current", status.current_tcb), ("reported", status.reported_tcb), ("committed", status.committed_tcb))
    story.shows(f"{text(info)}\n\n{tcbs(columns)}", host=info.document(), snp=status.document())
    return status


def _launch(story: Story, host: Host, image: Image) -> LaunchedGuest:
    from sev.cli.guest_launch import progress

    story.step(
        "launch",
        "Predict what the guest must measure, then launch it",
        """The owner of a guest can work out beforehand what the firmware will measure: every page of the firmware
        image, its address and type, and the first state of every vCPU, hashed one after the other (SHA-384). Then the
        daemon launches it: create, load memory, start, measure, finish.""",
    )
    launched = host.launch_snp(image.data, VCPUS, vcpu_type="EPYC-v4", label="sev demo", progress=progress(story.out))
    if not launched.as_expected:
        raise InternalError("the firmware measured something else than was predicted")
    guest = launched.guest
    source = image.path or "a sample image with SEV metadata, built on the spot (no OVMF is installed)"
    story.shows(
        f"firmware    {source}\n"
        f"guest       {guest.guest_id}, {guest.vcpu_count} vCPUs, {guest.updated_pages} pages measured\n"
        f"predicted   {launched.expected_digest.hex()}\n"
        f"measured    {guest.launch_digest.hex()}\n"
        "            the same: the guest is exactly what its owner expected",
        **launched.document(),
    )
    return launched


def _report(story: Story, host: Host, launched: LaunchedGuest, nonce: bytes) -> Proof:
    from sev.attestation import Report

    story.step(
        "report",
        "The guest asks for an attestation report",
        """Now the owner sends the guest a number that was never used before. The guest asks the firmware for a report
        that repeats it; the request and the answer are encrypted with a key that the host does not have. (Here the
        simulator plays the guest; inside a real one it is `sev attest report`.)""",
    )
    answer = host.guest_report(launched.guest.guest_id, nonce)
    report = Report.parse(answer.report)
    story.shows(
        f"report       {len(answer.report)} bytes, version {report.version}, signed\n"
        f"report data  {report.report_data.hex()[:64]}…\n"
        f"measurement  {report.measurement.hex()[:64]}…\n"
        f"policy       {report.policy}\n"
        f"reported TCB {report.reported_tcb}\n"
        f"chip id      {report.chip_id.hex()[:64]}…",
        report=report.document(),
        report_bytes=answer.report.hex(),
    )
    return Proof(answer.report, host.endorsements())


def _verify(story: Story, proof: Proof) -> VerifiedReport:
    from sev.attestation.steps import STEPS

    story.step(
        "verify",
        "Is the report genuine?",
        """The chip's certificate (VCEK) must be signed by the authority of its line (ASK), that one by the root (ARK),
        the report by the VCEK, and the VCEK must be for this chip and this TCB. AMD's roots are built into the
        library; a simulated chip has a root of its own, which has to be trusted on purpose.""",
    )
    verified = proof.verify()
    lines = [f"{step.result:<8} {STEPS.get(step.id, step.id)}" for step in verified.steps]
    story.shows(
        "\n".join([*lines, "", "genuine: every step passed or was not asked for"]),
        verified=True,
        verification=[step.document() for step in verified.steps],
    )
    return verified


def _foreign_root(story: Story, proof: Proof) -> None:
    story.step(
        "amd_root",
        "Would anybody take it for real hardware?",
        """The same report, this time verified as usual, with AMD's roots: it has to be refused, because AMD vouches for
        no simulated chip.""",
    )
    _must_be_refused(story, lambda: proof.verify(amd=True))


def _policy(launched: LaunchedGuest, nonce: bytes, status: SnpStatus) -> Policy:
    from sev.attestation import Policy

    return Policy(
        measurement=launched.expected_digest.hex(),
        report_data=nonce.hex(),
        vmpl=0,
        policy={"debug": "forbidden", "migrate_ma": "forbidden"},
        reported_tcb={"min": status.reported_tcb.components()},
    )


def _appraise(story: Story, verified: VerifiedReport, policy: Policy) -> None:
    from sev.attestation import appraise

    story.step(
        "appraise",
        "Is it the guest that its owner wants?",
        """Genuine is not yet good: a policy says what is expected. Here: the predicted measurement, the number that
        was sent, a guest that cannot be debugged or migrated, and at least this TCB.""",
    )
    appraisal = appraise(verified, policy)
    if not appraisal.accepted:
        raise InternalError("the appraisal refused the guest that was launched")
    asked = [check for check in appraisal.checks if check.result != "not_asked"]
    lines = [f"{check.result:<8} {check.field} = {_short(check.actual)}" for check in asked]
    rest = len(appraisal.checks) - len(asked)
    story.shows(
        "\n".join([*lines, "", f"accepted; {rest} more fields were not asked for"]), appraisal=appraisal.document()
    )


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items() if name != "raw")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 64 else text[:61] + "…"


def _tamper(story: Story, proof: Proof) -> None:
    story.step(
        "tamper",
        "And if somebody changes one bit?",
        """A host that launched something else might try to pass it off: one bit of the measurement in the report is
        flipped, everything else stays as it was.""",
    )
    changed = bytearray(proof.report)
    changed[MEASUREMENT_AT] ^= 0x01
    _must_be_refused(story, lambda: proof.verify(bytes(changed)))


def _must_be_refused(story: Story, attempt: Callable[[], object]) -> None:
    """Shows the refusal of a report that is not genuine.

    Raises:
        InternalError: It was accepted.
    """
    try:
        attempt()
    except VerificationError as error:
        name = type(error).__name__
        story.shows(f"refused: {error.message}  [{name}]", refused=True, error={**error.document(), "class": name})
        return
    raise InternalError("a report that is not genuine was accepted")


def _end(story: Story, host: Host, launched: LaunchedGuest) -> None:
    story.step(
        "end",
        "The guest is deleted",
        "Its memory is gone for good, and the number (ASID) that held its key is free for the next guest.",
    )
    info = host.host()
    use = info.sev_es_asids
    story.shows(
        f"deleted {launched.guest.guest_id}; {use.in_use} of {use.total} ASIDs in use",
        deleted=launched.guest.guest_id,
        asids=use.document(),
    )
