"""Root keys: AMD's, built in by number, or others that the caller trusts instead.

An `Authority` is what a chain needs to know of an ARK, ASK or ASVK, whether it comes from a certificate or from the
numbers in `sev.certs.amd_roots`. `Roots` is a set of trusted ARKs with the intermediates that come with them.
"""

from __future__ import annotations

from functools import lru_cache

from sev.certs import names, signatures
from sev.certs.errors import RootsUnusable
from sev.certs.x509 import Certificate
from sev.errors import MalformedInput, UsageError
from sev.products import ALL, by_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    from sev.products import Product

MAX_ROOTS = 16
"""More roots in one bundle are refused."""


class Authority:
    """An ARK, ASK or ASVK: a name, a key, a serial number and a validity. Equal if it is the same object or DER.

    Attributes:
        kind: "ark", "ask" or "asvk"; "other" for a certificate that is named like none of them.
        common_name: Common name.
        name: DER of the subject name.
        product: Processor line by its name; None if the name tells none.
        serial: Serial number, as a revocation list would name it.
        not_before, not_after: First and last second of validity.
        certificate: The certificate; None if it is built in by number.
        sha256: SHA-256 of its certificate, hexadecimal.
    """

    __slots__ = (
        "_hash", "_key", "_modulus", "certificate", "common_name", "kind", "name", "not_after", "not_before",
        "product", "serial", "sha256",
    )  # fmt: skip

    certificate: Certificate | None
    product: Product | None
    not_before: datetime
    not_after: datetime

    @classmethod
    def of(cls, certificate: Certificate) -> Authority:
        """The authority of this certificate; whether it may act as one is checked where it does."""
        out = cls()
        out.kind = certificate.kind
        out.common_name = certificate.subject_cn
        out.name = certificate.subject
        out.product = certificate.product
        out.serial = certificate.serial
        out.not_before = certificate.not_before
        out.not_after = certificate.not_after
        out.certificate = certificate
        out.sha256 = certificate.fingerprint()
        out._key = None
        out._modulus = b""
        out._hash = hash(certificate)
        return out

    @classmethod
    def built_in(cls, row: tuple[str, str, str, int, str, str, str, str, str]) -> Authority:
        """The authority of one row of `sev.certs.amd_roots.KEYS`."""
        from binascii import a2b_base64
        from datetime import datetime

        product, kind, common_name, serial, not_before, not_after, sha256, _, modulus = row
        out = cls()
        out.kind = kind
        out.common_name = common_name
        out.name = names.amd(common_name)
        out.product = by_name(product)
        out.serial = serial
        out.not_before = datetime.fromisoformat(not_before)
        out.not_after = datetime.fromisoformat(not_after)
        out.certificate = None
        out.sha256 = sha256
        out._key = None
        out._modulus = a2b_base64(modulus)
        out._hash = hash(sha256)
        return out

    kind: str
    common_name: str
    name: bytes
    serial: int
    sha256: str
    _key: RSAPublicKey | None
    _modulus: bytes
    _hash: int

    def public_key(self) -> RSAPublicKey:
        """The RSA key; built once.

        Raises:
            MalformedInput: The certificate's key is not RSA, or its numbers are no key.
        """
        if self._key is None:
            if self.certificate is None:
                self._key = signatures.rsa_key(int.from_bytes(self._modulus, "big"), signatures.RSA_EXPONENT, self.kind)
            elif self.certificate.key_is_p384:
                raise MalformedInput(f"{self.common_name}: an elliptic-curve key, expected RSA", field=self.kind)
            else:
                self._key = self.certificate.public_key()
        key: RSAPublicKey = self._key
        return key

    def may_sign_certificates(self) -> bool:
        """Whether it may issue certificates: built in, or a CA whose keyUsage does not say otherwise."""
        if self.certificate is None:
            return True
        return self.certificate.is_ca and self.certificate.extensions.may_sign_certificates()

    def may_sign_lists(self) -> bool:
        """Whether it may issue revocation lists, in the same way."""
        if self.certificate is None:
            return self.kind == "ark"
        return self.certificate.is_ca and self.certificate.extensions.may_sign_lists()

    def signed(self, other: Certificate) -> bool:
        """Whether this authority's key signed that certificate; names and dates are not looked at."""
        return _signed(other, self)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Authority) and self.certificate == other.certificate and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        origin = "built in" if self.certificate is None else "given"
        return f"<Authority {self.kind} {self.common_name!r}, {origin}>"


@lru_cache(maxsize=2048)
def _signed(certificate: Certificate, authority: Authority) -> bool:
    return signatures.verifies(authority.public_key(), certificate.signature, certificate.tbs)


class CaKeys:
    """AMD's three authorities of one processor line: `.ark`, `.ask`, `.asvk`."""

    __slots__ = ("ark", "ask", "asvk")

    def __init__(self, ark: Authority, ask: Authority, asvk: Authority) -> None:
        self.ark = ark
        self.ask = ask
        self.asvk = asvk


@lru_cache(maxsize=8)
def builtin(product: Product) -> CaKeys:
    """AMD's authorities of a processor line.

    Raises:
        UsageError: AMD publishes none for this line, or none that is built in.
    """
    from sev.certs.amd_roots import KEYS

    found = {row[1]: Authority.built_in(row) for row in KEYS if row[0] == product.name}
    if not found:
        known = ", ".join(sorted({row[0] for row in KEYS}))
        raise UsageError(f"no root keys of {product.name} are built in; there are those of {known}", field="product")
    return CaKeys(found["ark"], found["ask"], found["asvk"])


class Roots:
    """The ARKs that a chain may end in, and intermediates that come with them.

    Attributes:
        built_in: Whether they are AMD's own.
        arks: The trusted roots.
        intermediates: Authorities below them. Built-in ones were checked when the project took their numbers; given
            ones are checked like any other certificate.
    """

    __slots__ = ("_by_name", "arks", "built_in", "intermediates")

    def __init__(
        self, arks: tuple[Authority, ...], intermediates: tuple[Authority, ...], *, built_in: bool = False
    ) -> None:
        self.built_in = built_in
        self.arks = arks
        self.intermediates = intermediates
        self._by_name: dict[bytes, tuple[Authority, ...]] = {}
        for authority in (*arks, *intermediates):
            self._by_name[authority.name] = (*self._by_name.get(authority.name, ()), authority)

    @staticmethod
    def amd() -> Roots:
        """AMD's own, built in. The same object every time."""
        return _amd()

    @staticmethod
    def from_pem(data: bytes) -> Roots:
        """The self-signed certificates of a bundle (PEM, or DER) as the only trusted roots.

        Other authorities in the bundle serve as intermediates. Names are free; products are recognised further down
        the chain.

        Raises:
            RootsUnusable: Unreadable, no root in there, more than 16 roots, or one whose own signature does not hold.
        """
        from sev.certs.files import load

        try:
            certificates = load(data)
            arks = [Authority.of(one) for one in certificates if one.issuer == one.subject and one.is_ca]
            others = [Authority.of(one) for one in certificates if one.issuer != one.subject and one.is_ca]
            if not arks or len(arks) > MAX_ROOTS:
                raise RootsUnusable(f"roots: {len(arks)} self-signed authorities in there, expected 1 to {MAX_ROOTS}")
            for ark in arks:
                if ark.certificate is None or not ark.may_sign_certificates() or not ark.signed(ark.certificate):
                    raise RootsUnusable(f"roots: {ark.common_name!r} is not signed by its own key as a root must be")
        except MalformedInput as error:
            raise RootsUnusable(f"roots: {error.message}") from error
        return Roots(tuple(arks), tuple(others))

    def named(self, name: bytes) -> tuple[Authority, ...]:
        """The authorities among these, roots and intermediates, whose subject name has this DER."""
        return self._by_name.get(name, ())

    def __repr__(self) -> str:
        return f"<Roots {'of AMD' if self.built_in else 'given'}: {', '.join(ark.common_name for ark in self.arks)}>"


@lru_cache(maxsize=1)
def _amd() -> Roots:
    sets = [builtin(product) for product in ALL if product.has_x509_roots]
    return Roots(
        tuple(keys.ark for keys in sets),
        tuple(one for keys in sets for one in (keys.ask, keys.asvk)),
        built_in=True,
    )
