"""Errors of chains and revocation lists: one class per failure.

    VerificationError (exit 3)            CollateralError (exit 5)
    ├── WrongIssuerName                   ├── CertificateUnreadable
    ├── NotAnAuthority                    ├── LeafMissing
    ├── IntermediateSignatureInvalid      ├── IntermediateMissing
    ├── LeafSignatureInvalid              ├── RootsUnusable
    ├── CertificateExpired                ├── CrlUnreadable
    ├── CertificateNotYetValid            ├── CrlOfAnotherIssuer
    └── IssuerRevoked                     ├── CrlSignatureInvalid
                                          ├── CrlNotYetValid
                                          └── CrlStale

`reason` of each is its stable word. `steps` holds the steps of the verification that ended with it, where there was
one (`sev.attestation.verify`).
"""

from __future__ import annotations

from sev import errors


class NotGenuine(errors.VerificationError):
    """Base of the failures that mean: no. `steps` are the steps up to and including the one that failed."""

    steps: tuple[object, ...] = ()
    default_remedy = "Do not trust this evidence. Ask the guest for a new report and compare the chain with its host's."


class Undecided(errors.CollateralError):
    """Base of the failures that mean: it cannot be told. `steps` are as in NotGenuine."""

    steps: tuple[object, ...] = ()


class WrongIssuerName(NotGenuine):
    """A certificate names an issuer of another kind than its own kind has (a VLEK under an ASK, say)."""

    reason = "WRONG_ISSUER_NAME"


class NotAnAuthority(NotGenuine):
    """The issuer's certificate does not allow it to issue certificates."""

    reason = "NOT_AN_AUTHORITY"


class IntermediateSignatureInvalid(NotGenuine):
    """The ASK or ASVK is not signed by a trusted root."""

    reason = "INTERMEDIATE_SIGNATURE_INVALID"


class LeafSignatureInvalid(NotGenuine):
    """The VCEK or VLEK is not signed by the authority that it names."""

    reason = "LEAF_SIGNATURE_INVALID"


class CertificateExpired(NotGenuine):
    """A certificate of the chain had run out at the time of verification."""

    reason = "CERTIFICATE_EXPIRED"


class CertificateNotYetValid(NotGenuine):
    """A certificate of the chain was not valid yet at the time of verification."""

    reason = "CERTIFICATE_NOT_YET_VALID"


class IssuerRevoked(NotGenuine):
    """The root's revocation list names the ASK or ASVK of the chain."""

    reason = "ISSUER_REVOKED"


class CertificateUnreadable(Undecided):
    """A certificate, file of certificates or certificate table that was given cannot be read."""

    reason = "CERTIFICATE_UNREADABLE"
    default_remedy = "Fetch the certificate again; it must be DER or PEM as AMD's key distribution service gives it."


class LeafMissing(Undecided):
    """No VCEK or VLEK was given for the key that signed the report."""

    reason = "LEAF_MISSING"
    default_remedy = "Give the certificate with --vek, a folder with --certs, or the host's table with --cert-table."


class IntermediateMissing(Undecided):
    """Nothing that was given or is built in is the issuer that the certificate names."""

    reason = "INTERMEDIATE_MISSING"
    default_remedy = "Give the issuer's certificate (ASK or ASVK) with --ca."


class RootsUnusable(Undecided):
    """The roots that were given are no self-signed authorities."""

    reason = "ROOTS_UNUSABLE"
    default_remedy = "Give a PEM bundle of self-signed root certificates, or leave --roots out to use AMD's."


class CrlUnreadable(Undecided):
    """A revocation list that was given cannot be read."""

    reason = "CRL_UNREADABLE"
    default_remedy = "Fetch the list of this product again, or leave it out."


class CrlOfAnotherIssuer(Undecided):
    """The revocation lists that were given are of other products."""

    reason = "CRL_OF_ANOTHER_ISSUER"
    default_remedy = "Give the list of the product that the report is from."


class CrlSignatureInvalid(Undecided):
    """A revocation list is not signed by the root of the chain."""

    reason = "CRL_SIGNATURE_INVALID"
    default_remedy = "Fetch the list of this product again."


class CrlNotYetValid(Undecided):
    """The revocation list speaks of a later time than that of verification."""

    reason = "CRL_NOT_YET_VALID"
    default_remedy = "Give the list that was in force at the time of verification."


class CrlStale(Undecided):
    """The revocation list had run out at the time of verification."""

    reason = "CRL_STALE"
    default_remedy = "Fetch the list of this product again."
