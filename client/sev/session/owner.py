"""The owner of a platform: an OCA key that signs the platform's PEK, so that the PDH is the owner's word."""

from __future__ import annotations

from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_signatures
from sev.errors import UsageError
from sev.p384 import load_private_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def sign_request(request: SevCertificate, oca: SevCertificate, key: bytes) -> SevCertificate:
    """A platform's PEK, signed by its owner in slot 1.

    Args:
        request: What PEK_CSR gave.
        oca: The owner's certificate.
        key: The OCA's private key: P-384, DER or PEM.

    Raises:
        UsageError: Not a PEK, not an OCA, or a key that is not this OCA's.
        MalformedInput: A key that cannot be read.
    """
    if request.usage != abi.PEK:
        raise UsageError(f"the request is a {request.name}, expected a PEK", field="csr")
    private = check_owner(oca, key)
    request.public_key()
    return sev_signatures.sign(request, private, abi.OCA, slot=1)


def check_owner(oca: SevCertificate, key: bytes) -> Any:
    """The private key of an owner's certificate (pyca's EllipticCurvePrivateKey). Raises as `sign_request`."""
    if oca.usage != abi.OCA:
        raise UsageError(f"the owner's certificate is a {oca.name}, expected an OCA", field="oca_cert")
    private = load_private_key(key, "owner's key")
    if private.public_key() != oca.public_key():
        raise UsageError(
            "the owner's key does not belong to the owner's certificate",
            remedy="Both are made together: sev certs generate.",
            field="oca_key",
        )
    return private
