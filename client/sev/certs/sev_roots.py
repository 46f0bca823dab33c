"""Roots of SEV's own certificates: AMD's ARK and ASK by key, or others that the caller trusts instead.

An authority is looked up by its key alone: a file may say anything about itself, the modulus cannot lie.
"""

from __future__ import annotations

from functools import lru_cache

from sev.abi import amd_certificate
from sev.abi.amd_certificate import AmdCertificate
from sev.certs import sev_signatures
from sev.certs.errors import NotGenuine, RootsUnusable
from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class SevRoots:
    """The ARKs that a chain may end in, and the ASKs that come with them.

    Attributes:
        built_in: They are AMD's own.
        arks: Trusted ARKs.
        asks: ASKs at hand without being given: each was checked against its ARK, or is checked when it is used.
        product: Processor line by modulus of an ARK or ASK, where it is known.
    """

    __slots__ = ("arks", "asks", "built_in", "product")

    def __init__(
        self,
        arks: Iterable[AmdCertificate],
        asks: Iterable[AmdCertificate],
        *,
        built_in: bool = False,
        product: dict[int, str] | None = None,
    ) -> None:
        self.arks = tuple(arks)
        self.asks = tuple(asks)
        self.built_in = built_in
        self.product = product or {}

    @staticmethod
    def amd() -> SevRoots:
        """AMD's own, Naples to Turin, built in. The same object every time."""
        return _amd()

    @staticmethod
    def of(data: bytes) -> SevRoots:
        """The ARKs of a file in AMD's form (ASK and ARK in a row, in any order) as the only trusted roots.

        Raises:
            RootsUnusable: Unreadable, no ARK in there, or one whose own signature does not hold.
        """
        try:
            found = amd_certificate.split(data)
        except MalformedInput as error:
            raise RootsUnusable(f"roots: {error.message}") from error
        arks = [one for one in found if one.usage == amd_certificate.ARK]
        if not arks:
            raise RootsUnusable("roots: no ARK in there")
        for ark in arks:
            try:
                sev_signatures.verify_authority(ark, ark)
            except NotGenuine as error:
                raise RootsUnusable(f"roots: {error.message}") from error
        return SevRoots(arks, [one for one in found if one.usage == amd_certificate.ASK])

    @staticmethod
    def amd_files(product: str) -> tuple[AmdCertificate, AmdCertificate]:
        """ASK and ARK of a processor line, signatures and all: byte for byte the files that AMD publishes.

        Raises:
            UsageError: None are built in for this line.
        """
        from binascii import a2b_base64

        from sev.certs.amd_sev_signatures import SIGNATURES

        roots = _amd()
        found = [one for one in (*roots.asks, *roots.arks) if roots.product[one.modulus] == product]
        if not found:
            known = ", ".join(sorted({name for name, _ in SIGNATURES}))
            raise UsageError(
                f"no SEV authorities of {product!r} are built in; there are those of {known}", field="product"
            )
        ask, ark = (
            AmdCertificate(
                one.key_id, one.certifying_id, one.usage, one.exponent, one.modulus, one.bits,
                a2b_base64(SIGNATURES[product, one.name.lower()])[::-1],
            )
            for one in found
        )  # fmt: skip
        return ask, ark

    def trusts(self, ark: AmdCertificate) -> bool:
        """Whether this is the key of a trusted ARK."""
        return any(ark.modulus == one.modulus and ark.exponent == one.exponent for one in self.arks)

    def known_ask(self, ask: AmdCertificate) -> bool:
        """Whether this is the key of an ASK that is built in: its link to the ARK is known without a signature."""
        return self.built_in and any(ask.modulus == one.modulus and ask.exponent == one.exponent for one in self.asks)


def whose(product: str) -> str:
    """Whose root a chain ends in, for people; the product is empty where the root is none of AMD's."""
    return f"AMD's root for {product.capitalize()}" if product else "a root that was given"


@lru_cache(maxsize=1)
def _amd() -> SevRoots:
    from binascii import a2b_base64, unhexlify

    from sev.certs import amd_roots, amd_sev_roots

    moduli = {name: a2b_base64(text) for name, text in amd_sev_roots.MODULI.items()}
    moduli |= {(row[0], row[1]): a2b_base64(row[8]) for row in amd_roots.KEYS}
    arks: list[AmdCertificate] = []
    asks: list[AmdCertificate] = []
    products: dict[int, str] = {}
    issuer = b""
    for product, kind, identifier, _ in amd_sev_roots.IDENTIFIERS:
        number = int.from_bytes(moduli[product, kind], "big")
        key_id = unhexlify(identifier)
        issuer = key_id if kind == "ark" else issuer
        usage = amd_certificate.ARK if kind == "ark" else amd_certificate.ASK
        one = AmdCertificate(key_id, issuer, usage, amd_certificate.RSA_EXPONENT, number, number.bit_length())
        (arks if kind == "ark" else asks).append(one)
        products[number] = product
    return SevRoots(arks, asks, built_in=True, product=products)
