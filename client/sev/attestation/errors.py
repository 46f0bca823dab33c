"""Errors of verification: one class per failure; those of chains and lists are in sev.certs.errors, and here by name.

VerificationError (exit 3)
├── ReportMalformed             not a report, or the signature's unused bytes are not zero
├── ReportVersionUnsupported    a version that no firmware for customers ever had
├── AlgorithmUnsupported        signature algorithm other than ECDSA P-384 with SHA-384
├── ReportUnsigned              the host masked the chip key: nothing was signed
├── SigningKeyMasked            says VCEK although the chip key is masked
├── SigningKeyUnknown           a signing key that is neither VCEK nor VLEK
├── HostReport                  the host asked for it, so it answers no challenge
├── VmplOutOfRange              a privilege level that does not exist
├── WrongLeafKind               VLEK where the report says VCEK, or the reverse, or an authority
├── LeafIncomplete              the VCEK or VLEK lacks an extension that it must have, or has one it must not
├── ProductMismatch             report, leaf and issuer are of different lines
├── ReportSignatureInvalid      the report is not signed by the leaf's key
├── TcbMismatch                 the leaf is for another TCB than the reported one
├── ChipIdMismatch              the leaf is for another chip
├── ChipIdMasked                the host masked the chip id, so the leaf's cannot be compared
├── RuntimeDataMismatch         the data beside the report is not what its report data binds
└── WrongIssuerName, NotAnAuthority, IntermediateSignatureInvalid, LeafSignatureInvalid, CertificateExpired,
    CertificateNotYetValid, IssuerRevoked
CollateralError (exit 5)
├── ProductNotKnown             nothing tells the processor line
└── CertificateUnreadable, LeafMissing, IntermediateMissing, RootsUnusable, CrlUnreadable, CrlOfAnotherIssuer,
    CrlSignatureInvalid, CrlNotYetValid, CrlStale
"""

from __future__ import annotations

from sev.certs.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateUnreadable,
    CrlNotYetValid,
    CrlOfAnotherIssuer,
    CrlSignatureInvalid,
    CrlStale,
    CrlUnreadable,
    IntermediateMissing,
    IntermediateSignatureInvalid,
    IssuerRevoked,
    LeafMissing,
    LeafSignatureInvalid,
    NotAnAuthority,
    NotGenuine,
    RootsUnusable,
    Undecided,
    WrongIssuerName,
)

__all__ = [
    "AlgorithmUnsupported", "CertificateExpired", "CertificateNotYetValid", "CertificateUnreadable", "ChipIdMasked",
    "ChipIdMismatch", "CrlNotYetValid", "CrlOfAnotherIssuer", "CrlSignatureInvalid", "CrlStale", "CrlUnreadable",
    "HostReport", "IntermediateMissing", "IntermediateSignatureInvalid", "IssuerRevoked", "LeafIncomplete",
    "LeafMissing", "LeafSignatureInvalid", "NotAnAuthority", "NotGenuine", "ProductMismatch", "ProductNotKnown",
    "ReportMalformed", "ReportSignatureInvalid", "ReportUnsigned", "ReportVersionUnsupported", "RootsUnusable",
    "RuntimeDataMismatch", "SigningKeyMasked", "SigningKeyUnknown", "TcbMismatch", "Undecided", "VmplOutOfRange",
    "WrongIssuerName", "WrongLeafKind",
]  # fmt: skip


class ReportMalformed(NotGenuine):
    """The bytes are no report, or the unused bytes of its signature are not zero."""

    reason = "REPORT_MALFORMED"


class ReportVersionUnsupported(NotGenuine):
    """The version is below 2: no firmware that was released wrote such reports."""

    reason = "REPORT_VERSION_UNSUPPORTED"


class AlgorithmUnsupported(NotGenuine):
    """The signature algorithm is not ECDSA P-384 with SHA-384."""

    reason = "ALGORITHM_UNSUPPORTED"


class ReportUnsigned(NotGenuine):
    """The report says that it is not signed."""

    reason = "REPORT_UNSIGNED"
    default_remedy = "The host masks its chip key (mask_chip_key); it must be unmasked, or a VLEK loaded."


class SigningKeyMasked(NotGenuine):
    """The report says that the VCEK signed it and that the VCEK may not be used."""

    reason = "SIGNING_KEY_MASKED"


class SigningKeyUnknown(NotGenuine):
    """The report names a signing key that is neither VCEK nor VLEK."""

    reason = "SIGNING_KEY_UNKNOWN"


class HostReport(NotGenuine):
    """The host asked for this report, not the guest: its report data answers no challenge."""

    reason = "HOST_REPORT"
    default_remedy = "Ask the guest for a report; if a host's own report is meant, say so with --allow-host-report."


class VmplOutOfRange(NotGenuine):
    """The virtual machine privilege level is above 3."""

    reason = "VMPL_OUT_OF_RANGE"


class WrongLeafKind(NotGenuine):
    """The certificate given is not of the kind that the report says signed it."""

    reason = "WRONG_LEAF_KIND"
    default_remedy = "Give the certificate of the key that the report's signing_key names."


class LeafIncomplete(NotGenuine):
    """The VCEK or VLEK lacks an extension that its kind must have, or has one that its kind must not."""

    reason = "LEAF_INCOMPLETE"


class ProductMismatch(NotGenuine):
    """Report, leaf, issuer or the caller's expectation are of different processor lines."""

    reason = "PRODUCT_MISMATCH"
    default_remedy = "Give the certificate of the chip that made the report."


class ReportSignatureInvalid(NotGenuine):
    """The report is not signed by the key of the leaf."""

    reason = "REPORT_SIGNATURE_INVALID"


class TcbMismatch(NotGenuine):
    """The leaf is for another TCB version than the report's reported_tcb."""

    reason = "TCB_MISMATCH"
    default_remedy = "Fetch the certificate for the report's reported_tcb; a host's update or commit changes it."


class ChipIdMismatch(NotGenuine):
    """The leaf is for another chip than the report's chip_id."""

    reason = "CHIP_ID_MISMATCH"
    default_remedy = "Fetch the certificate for the report's chip_id."


class ChipIdMasked(NotGenuine):
    """The report's chip_id is zero, so that the leaf's hwID cannot be compared with it."""

    reason = "CHIP_ID_MASKED"
    default_remedy = (
        "The host masks its chip id (mask_chip_id); accept that with --allow-masked-chip-id if it is meant."
    )


class RuntimeDataMismatch(NotGenuine):
    """The data that came with the report is not what its report data binds."""

    reason = "RUNTIME_DATA_MISMATCH"


class ProductNotKnown(Undecided):
    """Neither the report nor its certificates tell the processor line."""

    reason = "PRODUCT_NOT_KNOWN"
    default_remedy = "Name the processor line with --product."
