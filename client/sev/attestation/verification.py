"""Is this report genuine? Twelve numbered steps, from bytes to chip, each of which passes, is skipped or ends it.

Sources: SEV-SNP firmware ABI (AMD 56860) for the report, VCEK/VLEK specification (AMD 57230) for certificates.

 1 format            1184 bytes, version 2 or later, ECDSA P-384 with SHA-384, the signature's unused bytes zero
 2 signing_key       signing_key says VCEK or VLEK, and the VCEK is not masked
 3 vmpl              a guest at level 0 to 3 asked; a report that the host asked for only where the caller allows it
 4 leaf              a certificate of that kind is at hand, with the extensions of its kind
 5 intermediate      its issuer's name belongs to an authority that reaches a trusted root
 6 leaf_signature    that authority's key signed it
 7 validity          leaf, authority and root were valid at the time given
 8 revocation        the root's list does not name them; skipped if no list was given
 9 product           CPUID, productName, authority (and the caller) name the same processor line
10 report_signature  the leaf's key signed bytes 0x000 to 0x29F as they were received
11 tcb               every patch level of the leaf equals the same component of reported_tcb
12 chip_id           hwID equals chip_id (VCEK); skipped for a VLEK, which names no chip

What the guest runs, and whether its platform is good enough, is not asked here: that is `appraise`.
"""

from __future__ import annotations

from functools import lru_cache

from sev.abi.report import ALGORITHM_ECDSA_P384_SHA384, HOST_VMPL, NEWEST_VERSION, OLDEST_VERSION, Report
from sev.attestation import errors
from sev.attestation.steps import PASSED, SKIPPED, Step, complete
from sev.certs import chain as chains
from sev.certs.roots import Roots
from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from sev.attestation.collateral import Collateral
    from sev.certs.x509 import Certificate
    from sev.products import Product

_TAIL = bytes(512 - 144)
_HIGH = bytes(24)


class VerifiedReport:
    """A report that is genuine, and what shows it.

    Attributes:
        report: The report, TCB versions readable (its product is known now).
        leaf: The VCEK or VLEK that signed it.
        chain: Leaf, authority, root.
        product: The processor line.
        steps: The steps, in order.
        at: The time that was verified for.
    """

    __slots__ = ("at", "chain", "leaf", "product", "report", "steps")

    report: Report
    leaf: Certificate
    product: Product

    def __init__(
        self, report: Report, chain: chains.Chain, product: Product, steps: tuple[Step, ...], at: datetime
    ) -> None:
        self.report = report
        self.chain = chain
        self.leaf = chain.leaf
        self.product = product
        self.steps = steps
        self.at = at

    def __repr__(self) -> str:
        return f"<VerifiedReport {self.product.name}, measurement {self.report.measurement.hex()[:16]}…>"


def verify(
    report: Report | bytes,
    collateral: Collateral,
    *,
    at: datetime,
    roots: Roots | None = None,
    product: Product | None = None,
    allow_host_report: bool = False,
    allow_masked_chip_id: bool = False,
) -> VerifiedReport:
    """Runs the twelve steps and answers the report with what shows that it is genuine; raises at the first that fails.

    Args:
        report: The report, or its 1184 bytes.
        collateral: Certificates and lists that came with it.
        at: The time to verify for; it must have a time zone.
        roots: What the chain may end in; AMD's built-in keys if not given.
        product: The processor line that the caller expects.
        allow_host_report: Take a report that the host asked for.
        allow_masked_chip_id: Take a report whose chip id the host masked.

    Raises:
        VerificationError: Not genuine; the subclass (sev.attestation.errors) says which failure, `.steps` how far it
            came.
        CollateralError: It cannot be told, in the same way.
        UsageError: `at` has no time zone.
    """
    if at.tzinfo is None:
        raise UsageError("the time of verification has no time zone; use UTC", field="at")
    run = _Run(report, collateral, at, Roots.amd() if roots is None else roots, product)
    try:
        return run.all_steps(allow_host_report, allow_masked_chip_id)
    except (errors.NotGenuine, errors.Undecided) as error:
        error.steps = complete(run.done, run.current, error.message)
        raise


class _Run:
    """One verification under way: what it works on, the steps done, and the one it is at."""

    __slots__ = ("at", "chain", "collateral", "current", "done", "expected", "leaf", "raw", "report", "roots")

    chain: chains.Chain
    leaf: Certificate

    def __init__(
        self, report: Report | bytes, collateral: Collateral, at: datetime, roots: Roots, expected: Product | None
    ) -> None:
        self.raw: Report | bytes = report
        self.collateral = collateral
        self.at = at
        self.roots = roots
        self.expected = expected
        self.done: list[Step] = []
        self.current = ""

    report: Report

    def all_steps(self, allow_host_report: bool, allow_masked_chip_id: bool) -> VerifiedReport:
        done = self.done
        self.current = "format"
        done.append(Step("format", PASSED, self.format()))
        self.current = "signing_key"
        done.append(Step("signing_key", PASSED, self.signing_key()))
        self.current = "vmpl"
        done.append(Step("vmpl", PASSED, self.vmpl(allow_host_report)))
        self.current = "leaf"
        done.append(Step("leaf", PASSED, self.find_leaf()))
        self.current = "intermediate"
        linked = chains.issuers(self.leaf, self.roots, self.collateral.authorities())
        reason = f"{linked[0][0].common_name}, {'built in' if self.roots.built_in else 'under a given root'}"
        done.append(Step("intermediate", PASSED, reason))
        self.current = "leaf_signature"
        self.chain = chains.build(self.leaf, linked)
        done.append(Step("leaf_signature", PASSED, f"signed by {self.chain.issuer.common_name}"))
        self.current = "validity"
        chains.check_dates(self.chain, self.at)
        done.append(Step("validity", PASSED, "leaf, authority and root are inside their dates"))
        self.current = "revocation"
        done.append(self.revocation())
        self.current = "product"
        product = self.product()
        done.append(Step("product", PASSED, product.kds_name))
        self.current = "report_signature"
        self.report_signature()
        done.append(Step("report_signature", PASSED, "ECDSA P-384 over the bytes as received"))
        self.current = "tcb"
        done.append(Step("tcb", PASSED, self.tcb(product)))
        self.current = "chip_id"
        done.append(self.chip_id(product, allow_masked_chip_id))
        report = self.report if self.report.product is not None else self.report.for_product(product)
        return VerifiedReport(report, self.chain, product, tuple(done), self.at)

    def format(self) -> str:
        raw = self.raw
        if isinstance(raw, Report):
            self.report = raw
        else:
            try:
                self.report = Report.parse(raw)
            except MalformedInput as error:
                raise errors.ReportMalformed(error.message, field="report") from error
        report = self.report
        version = report.version
        if version < OLDEST_VERSION:
            raise errors.ReportVersionUnsupported(
                f"report version {version}, expected {OLDEST_VERSION} or later", field="version"
            )
        if report.signature_algo != ALGORITHM_ECDSA_P384_SHA384:
            raise errors.AlgorithmUnsupported(
                f"signature algorithm {report.signature_algo}, expected 1 (ECDSA P-384 with SHA-384)",
                field="signature_algo",
            )
        content = report.raw
        if content[0x2D0:0x2E8] != _HIGH or content[0x318:0x330] != _HIGH or content[0x330:] != _TAIL:
            raise errors.ReportMalformed(
                "signature: bytes that P-384 does not use (0x2d0, 0x318, 0x330 on) are not zero", field="signature"
            )
        if version > NEWEST_VERSION:
            return f"version {version}, newer than {NEWEST_VERSION}: only the fields of {NEWEST_VERSION} are read"
        return f"version {version}"

    def signing_key(self) -> str:
        report = self.report
        key = report.signing_key
        if key == "none":
            raise errors.ReportUnsigned("the report says that no key signed it (signing_key 7)", field="signing_key")
        if key not in chains.ISSUER_KIND:
            raise errors.SigningKeyUnknown(f"signing_key is {key}, expected vcek or vlek", field="signing_key")
        if key == "vcek" and report.mask_chip_key:
            raise errors.SigningKeyMasked(
                "signing_key says vcek, but mask_chip_key forbids its use", field="mask_chip_key"
            )
        return key.upper()

    def vmpl(self, allow_host_report: bool) -> str:
        level = self.report.vmpl
        if level <= 3:
            return f"level {level}"
        if level != HOST_VMPL:
            raise errors.VmplOutOfRange(f"VMPL {level:#x}, expected 0 to 3", field="vmpl")
        if not allow_host_report:
            raise errors.HostReport("VMPL 0xffffffff: the host asked for this report, no guest did", field="vmpl")
        return "asked for by the host, as the caller allows"

    def find_leaf(self) -> str:
        self.leaf = leaf = self.collateral.leaf(self.report)
        kind = self.report.signing_key
        if leaf.kind != kind:
            given = leaf.kind.upper() if leaf.kind != "other" else repr(leaf.subject_cn)
            raise errors.WrongLeafKind(
                f"the report is signed with a {kind.upper()}, but the certificate given is {given}", field="vek"
            )
        own = leaf.extensions
        missing = [
            name
            for name, absent in (
                ("a P-384 key", not leaf.key_is_p384),
                ("productName", not own.product_name),
                ("hwID", kind == "vcek" and own.hwid is None),
                ("cspID", kind == "vlek" and own.csp_id is None),
            )
            if absent
        ]
        if missing:
            raise errors.LeafIncomplete(f"the {kind.upper()} has no {' and no '.join(missing)}", field="vek")
        if (own.csp_id if kind == "vcek" else own.hwid) is not None:
            extra = "cspID" if kind == "vcek" else "hwID"
            raise errors.LeafIncomplete(f"the {kind.upper()} has a {extra}, which its kind must not", field="vek")
        return f"{kind.upper()} for {own.product_name}"

    def revocation(self) -> Step:
        crls = self.collateral.crls()
        if not crls:
            return Step("revocation", SKIPPED, "no revocation list was given")
        crl = chains.check_revocation(self.chain, crls, self.at)
        return Step("revocation", PASSED, f"list number {crl.number} of {crl.issuer_cn}")

    def product(self) -> Product:
        of_leaf, of_issuer, of_report = self.leaf.product, self.chain.issuer.product, self.report.product
        if of_leaf is None:
            raise errors.ProductNotKnown(f"the leaf is for {self.leaf.product_name!r}, which is not known here")
        if of_issuer is not of_leaf:
            raise errors.ProductMismatch(
                f"the leaf is for {of_leaf.kds_name}, its issuer is {self.chain.issuer.common_name}", field="product"
            )
        if self.report.cpuid_fam_id is not None and of_report is not of_leaf:
            cpuid = f"family {self.report.cpuid_fam_id:#x}, model {self.report.cpuid_mod_id:#x}"
            name = of_report.kds_name if of_report is not None else "of no known line"
            raise errors.ProductMismatch(
                f"the report's processor is {name} ({cpuid}), the leaf is for {of_leaf.kds_name}", field="product"
            )
        if self.expected is not None and self.expected is not of_leaf:
            raise errors.ProductMismatch(
                f"the report is from {of_leaf.kds_name}, expected {self.expected.kds_name}", field="product"
            )
        return of_leaf

    def report_signature(self) -> None:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        report = self.report
        try:
            key = self.leaf.public_key()
        except MalformedInput as error:
            raise errors.LeafIncomplete(f"the leaf's key cannot be used: {error.message}", field="vek") from error
        signature = encode_dss_signature(report.signature_r, report.signature_s)
        try:
            key.verify(signature, report.signed, _ecdsa())
        except InvalidSignature:
            raise errors.ReportSignatureInvalid(
                f"the {self.leaf.kind.upper()}'s key did not sign this report: it was changed, or is of another chip "
                "or TCB",
                field="signature",
            ) from None

    def tcb(self, product: Product) -> str:
        raw = self.report.tcb_raw("reported_tcb")
        levels = self.leaf.extensions.levels
        wrong = []
        known = 0
        for name, place in product.tcb_bytes:
            known |= 0xFF << 8 * place
            if levels.get(name) != raw >> 8 * place & 0xFF:
                wrong.append(f"{name} {levels.get(name, 'absent')} for {raw >> 8 * place & 0xFF}")
        wrong += [f"{name} on a line without it" for name in levels if name not in product.components]
        if any(self.leaf.extensions.reserved_levels.values()):
            wrong.append("a reserved patch level that is not zero")
        if wrong:
            raise errors.TcbMismatch(f"the leaf is for another TCB: {', '.join(wrong)}", field="reported_tcb")
        if raw & ~known:
            raise errors.TcbMismatch(
                f"reported_tcb {raw:016x} has bytes that no patch level of the leaf covers", field="reported_tcb"
            )
        return f"{raw:016x}"

    def chip_id(self, product: Product, allow_masked: bool) -> Step:
        chip = self.report.chip_id
        hwid = self.leaf.hwid
        if hwid is None:
            return Step("chip_id", SKIPPED, f"a VLEK names no chip; it is that of {self.leaf.csp_id}")
        if len(hwid) != product.chip_id_bytes:
            raise errors.ChipIdMismatch(
                f"the leaf's hwID has {len(hwid)} bytes, expected {product.chip_id_bytes} on {product.kds_name}",
                field="chip_id",
            )
        if not any(chip):
            if not allow_masked:
                raise errors.ChipIdMasked("chip_id is zero: the host masked it", field="chip_id")
            return Step("chip_id", SKIPPED, "masked by the host, as the caller allows")
        if chip[: len(hwid)] != hwid or any(chip[len(hwid) :]):
            raise errors.ChipIdMismatch(
                f"the leaf is for chip {hwid.hex()[:16]}…, the report is from {chip.hex()[:16]}…", field="chip_id"
            )
        return Step("chip_id", PASSED, f"{hwid.hex()[:16]}…")


@lru_cache(maxsize=1)
def _ecdsa() -> Any:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA384

    return ECDSA(SHA384())
