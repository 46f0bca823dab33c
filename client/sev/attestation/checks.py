"""The checks behind the twelve steps of a verification; `sev.attestation.verification` says what each establishes."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from sev.abi.report import (
    ALGORITHM_ECDSA_P384_SHA384,
    HEAD,
    HOST_VMPL,
    NEWEST_VERSION,
    OLDEST_VERSION,
    SIGNING_KEYS,
    Report,
)
from sev.attestation import errors
from sev.attestation.steps import PASSED, SKIPPED, Step
from sev.certs import chain as chains
from sev.certs.roots import Roots
from sev.errors import MalformedInput
from sev.products import by_cpuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sev.attestation.collateral import Collateral
    from sev.certs.crl import Crl
    from sev.certs.x509 import Certificate
    from sev.products import Product

_TAIL = bytes(512 - 144)
_HIGH = bytes(24)
_ECDSA = ECDSA(SHA384())


class Checks:
    """One verification under way. Each step is a check, which raises, and a `told`, which says what it established."""

    __slots__ = (
        "allow_host_report", "allow_masked_chip_id", "at", "chain", "collateral", "crl", "expected", "given", "key",
        "leaf", "not_signed", "of_report", "product", "report", "reported_tcb", "roots", "version", "vmpl",
    )  # fmt: skip

    allow_host_report: bool
    allow_masked_chip_id: bool
    report: Report
    version: int
    vmpl: int
    key: str
    reported_tcb: int
    leaf: Certificate
    chain: chains.Chain
    product: Product

    def __init__(
        self, report: Report | bytes, collateral: Collateral, at: datetime, roots: Roots, expected: Product | None
    ) -> None:
        self.given = report
        self.collateral = collateral
        self.at = at
        self.roots = roots
        self.expected = expected
        self.of_report: Product | None = None
        self.not_signed: errors.LeafSignatureInvalid | None = None
        self.crl: Crl | None = None

    def told(self, count: int) -> list[Step]:
        """The first so many steps, which all passed or were skipped."""
        return [Step(name, *tell(self)) for name, _, tell in CHECKS[:count]]

    def format(self) -> None:
        if isinstance(self.given, Report):
            self.report = self.given
        else:
            try:
                self.report = Report.parse(self.given)
            except MalformedInput as error:
                raise errors.ReportMalformed(error.message, field="report") from error
        raw = self.report.raw
        self.version, self.vmpl, algorithm, key_info, self.reported_tcb, family, model = HEAD.unpack_from(raw)
        if self.version < OLDEST_VERSION:
            raise errors.ReportVersionUnsupported(
                f"report version {self.version}, expected {OLDEST_VERSION} or later", field="version"
            )
        if algorithm != ALGORITHM_ECDSA_P384_SHA384:
            raise errors.AlgorithmUnsupported(
                f"signature algorithm {algorithm}, expected 1 (ECDSA P-384 with SHA-384)", field="signature_algo"
            )
        if raw[0x2D0:0x2E8] != _HIGH or raw[0x318:0x330] != _HIGH or raw[0x330:] != _TAIL:
            raise errors.ReportMalformed(
                "signature: bytes that P-384 does not use (0x2d0, 0x318, 0x330 on) are not zero", field="signature"
            )
        self.key = SIGNING_KEYS.get(key_info >> 2 & 7) or self.report.signing_key
        if self.version >= 3:
            self.of_report = by_cpuid(family, model)

    def tell_format(self) -> tuple[str, str]:
        if self.version > NEWEST_VERSION:
            return PASSED, f"version {self.version}, newer than {NEWEST_VERSION}: read with that one's fields only"
        return PASSED, f"version {self.version}"

    def signing_key(self) -> None:
        key = self.key
        if key == "none":
            raise errors.ReportUnsigned("the report says that no key signed it (signing_key 7)", field="signing_key")
        if key not in chains.ISSUER_KIND:
            raise errors.SigningKeyUnknown(f"signing_key is {key}, expected vcek or vlek", field="signing_key")
        if key == "vcek" and self.report.mask_chip_key:
            raise errors.SigningKeyMasked(
                "signing_key says vcek, but mask_chip_key forbids its use", field="mask_chip_key"
            )

    def tell_signing_key(self) -> tuple[str, str]:
        return PASSED, self.key.upper()

    def check_vmpl(self) -> None:
        if self.vmpl <= 3:
            return
        if self.vmpl != HOST_VMPL:
            raise errors.VmplOutOfRange(f"VMPL {self.vmpl:#x}, expected 0 to 3", field="vmpl")
        if not self.allow_host_report:
            raise errors.HostReport("VMPL 0xffffffff: the host asked for this report, no guest did", field="vmpl")

    def tell_vmpl(self) -> tuple[str, str]:
        return PASSED, f"level {self.vmpl}" if self.vmpl <= 3 else "asked for by the host, as the caller allows"

    def find_leaf(self) -> None:
        self.leaf = leaf = self.collateral.leaf(self.report)
        kind, own = self.key, leaf.extensions
        if leaf.kind != kind:
            given = leaf.kind.upper() if leaf.kind != "other" else repr(leaf.subject_cn)
            raise errors.WrongLeafKind(
                f"the report is signed with a {kind.upper()}, but the certificate given is {given}", field="vek"
            )
        must, must_not = (own.hwid, own.csp_id) if kind == "vcek" else (own.csp_id, own.hwid)
        if must is None or must_not is not None or not own.product_name or not leaf.key_is_p384:
            names = ("hwID", "cspID") if kind == "vcek" else ("cspID", "hwID")
            wrong = [
                what
                for what, is_so in (
                    ("no P-384 key", not leaf.key_is_p384),
                    ("no productName", not own.product_name),
                    (f"no {names[0]}", must is None),
                    (f"a {names[1]}, which its kind must not have", must_not is not None),
                )
                if is_so
            ]
            raise errors.LeafIncomplete(f"the {kind.upper()} has {' and '.join(wrong)}", field="vek")

    def tell_leaf(self) -> tuple[str, str]:
        return PASSED, f"{self.leaf.kind.upper()} for {self.leaf.product_name}"

    def intermediate(self) -> None:
        try:
            self.chain = chains.find(self.leaf, self.roots, self.collateral.authorities())
        except errors.LeafSignatureInvalid as error:
            self.not_signed = error  # it is the next step that fails

    def tell_intermediate(self) -> tuple[str, str]:
        root = "AMD's built-in root" if self.roots.built_in else "a root that was given"
        return PASSED, f"{self.leaf.issuer_cn}, under {root}"

    def leaf_signature(self) -> None:
        if self.not_signed is not None:
            raise self.not_signed

    def tell_leaf_signature(self) -> tuple[str, str]:
        return PASSED, f"signed by {self.chain.issuer.common_name}"

    def validity(self) -> None:
        chains.check_dates(self.chain, self.at)

    def tell_validity(self) -> tuple[str, str]:
        return PASSED, f"leaf, authority and root, at {self.at:%Y-%m-%dT%H:%M:%SZ}"

    def revocation(self) -> None:
        crls = self.collateral.crls()
        if crls:
            self.crl = chains.check_revocation(self.chain, crls, self.at)

    def tell_revocation(self) -> tuple[str, str]:
        if self.crl is None:
            return SKIPPED, "no revocation list was given"
        return PASSED, f"list number {self.crl.number} of {self.crl.issuer_cn}"

    def check_product(self) -> None:
        of_leaf, issuer = self.leaf.product, self.chain.issuer
        if of_leaf is None:
            raise errors.ProductNotKnown(f"the leaf is for {self.leaf.product_name!r}, which is not known here")
        if issuer.product is not of_leaf:
            raise errors.ProductMismatch(
                f"the leaf is for {of_leaf.kds_name}, its issuer is {issuer.common_name}", field="product"
            )
        if self.version >= 3 and self.of_report is not of_leaf:
            cpuid = f"family {self.report.cpuid_fam_id:#x}, model {self.report.cpuid_mod_id:#x}"
            name = self.of_report.kds_name if self.of_report is not None else "of no known line"
            raise errors.ProductMismatch(
                f"the report's processor is {name} ({cpuid}), the leaf is for {of_leaf.kds_name}", field="product"
            )
        if self.expected is not None and self.expected is not of_leaf:
            raise errors.ProductMismatch(
                f"the report is from {of_leaf.kds_name}, expected {self.expected.kds_name}", field="product"
            )
        self.product = of_leaf

    def tell_product(self) -> tuple[str, str]:
        return PASSED, self.product.kds_name

    def report_signature(self) -> None:
        report = self.report
        try:
            key = self.leaf.public_key()
        except MalformedInput as error:
            raise errors.LeafIncomplete(f"the leaf's key cannot be used: {error.message}", field="vek") from error
        signature = encode_dss_signature(report.signature_r, report.signature_s)
        try:
            key.verify(signature, report.signed, _ECDSA)
        except InvalidSignature:
            raise errors.ReportSignatureInvalid(
                f"the {self.leaf.kind.upper()}'s key did not sign this report: it was changed, or is of another chip "
                "or TCB",
                field="signature",
            ) from None

    def tell_report_signature(self) -> tuple[str, str]:
        return PASSED, "ECDSA P-384 over the bytes as received"

    def tcb(self) -> None:
        if self.reported_tcb != self.leaf.tcb_raw():
            difference = _tcb_difference(self.leaf, self.reported_tcb, self.product)
            raise errors.TcbMismatch(f"the leaf is for another TCB: {difference}", field="reported_tcb")

    def tell_tcb(self) -> tuple[str, str]:
        return PASSED, f"{self.reported_tcb:016x}"

    def chip_id(self) -> None:
        hwid = self.leaf.hwid
        if hwid is None:
            return
        chip, size = self.report.chip_id, self.product.chip_id_bytes
        if len(hwid) != size:
            raise errors.ChipIdMismatch(
                f"the leaf's hwID has {len(hwid)} bytes, expected {size} on {self.product.kds_name}", field="chip_id"
            )
        if chip == hwid.ljust(64, b"\0"):
            return
        if any(chip):
            raise errors.ChipIdMismatch(
                f"the leaf is for chip {hwid.hex()[:16]}…, the report is from {chip.hex()[:16]}…", field="chip_id"
            )
        if not self.allow_masked_chip_id:
            raise errors.ChipIdMasked("chip_id is zero: the host masked it", field="chip_id")

    def tell_chip_id(self) -> tuple[str, str]:
        if self.leaf.hwid is None:
            return SKIPPED, f"a VLEK names no chip; it is that of {self.leaf.csp_id}"
        if not any(self.report.chip_id):
            return SKIPPED, "masked by the host, as the caller allows"
        return PASSED, f"{self.leaf.hwid.hex()[:16]}…"


CHECKS: tuple[tuple[str, Callable[[Checks], None], Callable[[Checks], tuple[str, str]]], ...] = (
    ("format", Checks.format, Checks.tell_format),
    ("signing_key", Checks.signing_key, Checks.tell_signing_key),
    ("vmpl", Checks.check_vmpl, Checks.tell_vmpl),
    ("leaf", Checks.find_leaf, Checks.tell_leaf),
    ("intermediate", Checks.intermediate, Checks.tell_intermediate),
    ("leaf_signature", Checks.leaf_signature, Checks.tell_leaf_signature),
    ("validity", Checks.validity, Checks.tell_validity),
    ("revocation", Checks.revocation, Checks.tell_revocation),
    ("product", Checks.check_product, Checks.tell_product),
    ("report_signature", Checks.report_signature, Checks.tell_report_signature),
    ("tcb", Checks.tcb, Checks.tell_tcb),
    ("chip_id", Checks.chip_id, Checks.tell_chip_id),
)
"""Steps in order: id, check, and what it tells; reasons are put into words only when somebody reads them."""


def _tcb_difference(leaf: Certificate, raw: int, product: Product) -> str:
    """Where a leaf's patch levels and a reported TCB differ, for people."""
    levels = leaf.extensions.levels
    wrong = [
        f"{name} {levels.get(name, 'absent')} for {raw >> 8 * place & 0xFF}"
        for name, place in product.tcb_bytes
        if levels.get(name) != raw >> 8 * place & 0xFF
    ]
    wrong += [f"{name} on a line without it" for name in levels if name not in product.components]
    if any(leaf.extensions.reserved_levels.values()):
        wrong.append("a reserved patch level that is not zero")
    return ", ".join(wrong) or f"reported_tcb {raw:016x} has bytes that no patch level covers"
