"""Chains of SEV and SEV-ES platforms, verified in numbered steps.

    PDH ── PEK ─┬─ OCA (its own)
                └─ CEK ── ASK ── ARK (trusted by key)

The PDH is what a guest owner encrypts for; it is worth that only if every line of this drawing holds.

Source: SEV API specification (AMD 55766), certificate chain; the order of PDH, PEK, OCA, CEK is that of sevctl's files.
"""

from __future__ import annotations

from sev.abi import amd_certificate
from sev.abi import sev_certificate as abi
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_signatures, steps
from sev.certs.errors import NotGenuine, Undecided
from sev.certs.sev_roots import SevRoots
from sev.certs.steps import Step
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

STEPS: dict[str, str] = {
    "format": "there is one PDH, PEK, OCA and CEK",
    "keys": "every key is a point of P-384, or RSA",
    "pdh": "the PEK signed the PDH",
    "oca": "the OCA signed itself and the PEK",
    "pek": "the CEK signed the PEK",
    "cek": "an ASK signed the CEK",
    "ask": "a trusted ARK signed the ASK",
}
"""What each step establishes, by id, in order."""

_MEMBERS = (abi.PDH, abi.PEK, abi.OCA, abi.CEK)


class ChainIncomplete(Undecided):
    """A certificate of the chain is missing, or there are two that could be it."""

    reason = "SEV_CHAIN_INCOMPLETE"
    default_remedy = "A whole chain is PDH, PEK, OCA and CEK: see sev platform export."


class WrongCek(NotGenuine):
    """A CEK's certificate is not that of this chip."""

    reason = "WRONG_CEK"
    default_remedy = "Fetch the CEK again, by this chip's identifier (sev platform id)."


class ChainInvalid(NotGenuine):
    """A step of a chain's verification failed; `steps` has all of them."""

    reason = "SEV_CHAIN_INVALID"
    default_remedy = "Do not trust this platform, nor encrypt anything for its PDH."


class SevChain:
    """The certificates of a platform.

    Attributes:
        pdh, pek, oca, cek: SEV certificates.
        authorities: ASK and ARK in AMD's form that came with them; may be empty.
    """

    __slots__ = ("authorities", "cek", "oca", "pdh", "pek")

    def __init__(self, certificates: Iterable[SevCertificate], authorities: Iterable[AmdCertificate] = ()) -> None:
        """
        Raises:
            ChainIncomplete: One of the four is missing or there twice.
        """
        found: dict[int, SevCertificate] = {}
        for one in certificates:
            if one.usage not in _MEMBERS:
                raise ChainIncomplete(f"a certificate of {one.name} does not belong in a platform's chain")
            if found.setdefault(one.usage, one) != one:
                raise ChainIncomplete(f"two different {one.name} certificates")
        missing = [abi.USAGE_NAMES[usage] for usage in _MEMBERS if usage not in found]
        if missing:
            raise ChainIncomplete(f"no {' and no '.join(missing)} in the chain")
        self.pdh, self.pek, self.oca, self.cek = (found[usage] for usage in _MEMBERS)
        self.authorities = tuple(authorities)

    @classmethod
    def parse(cls, data: bytes) -> SevChain:
        """A chain in a row, in any order, with or without ASK and ARK behind it (sevctl's export, also with --full).

        Raises:
            MalformedInput: A part that is neither form.
            ChainIncomplete: A certificate is missing.
        """
        certificates, authorities = split(data)
        return cls(certificates, authorities)

    def encode(self, *, full: bool = False) -> bytes:
        """PDH, PEK, OCA, CEK in a row, 8336 bytes; with `full` the authorities behind them."""
        rows = b"".join(one.encode() for one in (self.pdh, self.pek, self.oca, self.cek))
        return rows + b"".join(one.encode() for one in self.authorities if full)


def split(data: bytes) -> tuple[list[SevCertificate], list[AmdCertificate]]:
    """SEV certificates and AMD's, in any order in one file, told apart by what they hold.

    Raises:
        MalformedInput: A part is neither.
    """
    certificates: list[SevCertificate] = []
    authorities: list[AmdCertificate] = []
    offset = 0
    while offset < len(data) or not offset:
        if len(certificates) + len(authorities) > 64:
            raise MalformedInput("more than 64 certificates in one file", field="chain")
        rest = data[offset:]
        if _is_sev(rest):
            certificates.append(SevCertificate.read(rest[: abi.SIZE], f"SEV certificate at {offset:#x}"))
            offset += abi.SIZE
            continue
        try:
            # What is behind an authority does not matter here: only its own bytes are taken.
            one, size = amd_certificate.first(rest)
        except MalformedInput as error:
            raise MalformedInput(
                f"offset {offset:#x}: neither an SEV certificate nor one of AMD's: {error.message}", field="chain"
            ) from None
        authorities.append(one)
        offset += size
    return certificates, authorities


def _is_sev(data: bytes) -> bool:
    """An SEV certificate has its usage, 0x1001 to 0x1004, at 8, where AMD's have an identifier."""
    usage = int.from_bytes(data[8:12], "little")
    return len(data) >= abi.SIZE and data[:4] == b"\1\0\0\0" and usage in _MEMBERS


class VerifiedChain:
    """A chain whose every step passed.

    Attributes:
        chain: The chain.
        product: Processor line of the root that it ends in; empty where that is not one of AMD's.
        steps: All steps.
    """

    __slots__ = ("chain", "product", "steps")

    def __init__(self, chain: SevChain, product: str, steps: tuple[Step, ...]) -> None:
        self.chain = chain
        self.product = product
        self.steps = steps

    @property
    def pdh(self) -> SevCertificate:
        """What a guest owner may encrypt for."""
        return self.chain.pdh


def verify(chain: SevChain, *, roots: SevRoots | None = None) -> VerifiedChain:
    """Verifies a platform's chain up to a trusted root.

    Args:
        chain: The certificates.
        roots: Trusted roots; AMD's if none are given.

    Raises:
        ChainInvalid: A step failed; `steps` shows which.
    """
    roots = roots or SevRoots.amd()
    link: list[AmdCertificate] = []
    keys: dict[int, Any] = {}

    def load() -> str:
        for one in (chain.pdh, chain.pek, chain.oca, chain.cek):
            keys[one.usage] = one.public_key()
        return "every key can be used"

    def slot(subject: SevCertificate, signer: SevCertificate) -> str:
        return f"signature {sev_signatures.verify(subject, signer, keys[signer.usage])}"

    def cek() -> str:
        link.append(_issuer(chain, roots))
        return f"signed by the ASK {link[0].key_id.hex()}"

    def ask() -> str:
        link.append(root_of(link[0], chain.authorities, roots))
        product = roots.product.get(link[1].modulus, "")
        whose = f"AMD's for {product.capitalize()}" if product else "a root that was given"
        return f"the ARK {link[1].key_id.hex()}, {whose}"

    done = steps.run(
        (
            ("format", lambda: "PDH, PEK, OCA and CEK"),
            ("keys", load),
            ("pdh", lambda: slot(chain.pdh, chain.pek)),
            ("oca", lambda: f"{slot(chain.oca, chain.oca)}; PEK: {slot(chain.pek, chain.oca)}"),
            ("pek", lambda: slot(chain.pek, chain.cek)),
            ("cek", cek),
            ("ask", ask),
        ),
        ChainInvalid,
    )
    return VerifiedChain(chain, roots.product.get(link[1].modulus, ""), done)


def same_cek(signed: bytes, exported: bytes) -> SevCertificate:
    """The signed certificate of a CEK, if it is of the same key as the unsigned one that the firmware exports.

    Use, algorithm and key are compared; the API versions differ (AMD's service writes 0.14, a platform its own).

    Args:
        signed: 2084 bytes.
        exported: 2084 bytes.

    Raises:
        MalformedInput: One of them is no certificate.
        WrongCek: They are of two keys.
    """
    certificate, bare = SevCertificate.read(signed, "signed CEK"), SevCertificate.read(exported, "exported CEK")
    if certificate.usage != abi.CEK:
        raise WrongCek(f"CEK: it is a certificate of {certificate.name}", field="CEK")
    if (certificate.algorithm, certificate.key) != (bare.algorithm, bare.key):
        raise WrongCek("CEK: its key is not the one that this chip exports", field="CEK")
    return certificate


def issuer_of(cek: SevCertificate, authorities: Iterable[AmdCertificate], roots: SevRoots) -> AmdCertificate | None:
    """The ASK, of those given and those at hand, whose key signed this CEK; None if none did."""
    for ask in (*authorities, *roots.asks):
        if ask.usage != amd_certificate.ASK:
            continue
        try:
            sev_signatures.verify(cek, ask)
        except (NotGenuine, MalformedInput):
            continue
        return ask
    return None


def root_of(ask: AmdCertificate, authorities: Iterable[AmdCertificate], roots: SevRoots) -> AmdCertificate:
    """The trusted ARK that signed this ASK.

    Raises:
        NotGenuine: None did.
    """
    if roots.known_ask(ask):
        return next(one for one in roots.arks if roots.product[one.modulus] == roots.product[ask.modulus])
    problem: NotGenuine | None = None
    for ark in (*roots.arks, *(one for one in authorities if roots.trusts(one))):
        try:
            sev_signatures.verify_authority(ask, ark)
        except NotGenuine as error:
            problem = problem or error
        else:
            return ark
    raise problem or NotGenuine("the ASK is signed by no trusted ARK", field="ASK")


def _issuer(chain: SevChain, roots: SevRoots) -> AmdCertificate:
    ask = issuer_of(chain.cek, chain.authorities, roots)
    if ask is None:
        raise sev_signatures.NotSignedBy(
            "CEK: no ASK at hand signed it", field="CEK", remedy=_UNSIGNED if unsigned(chain.cek) else _OTHER_ROOT
        )
    return ask


def unsigned(cek: SevCertificate) -> bool:
    """Whether nobody signed it: so the firmware exports a CEK."""
    return all(signature.free for signature in cek.signatures)


_UNSIGNED = "The firmware exports the CEK unsigned: fetch the signed one from AMD by the chip's identifier."
_OTHER_ROOT = (
    "It is signed, but by nobody whom AMD's roots know. If it is from a simulated host, or has roots of your own, name "
    "them with --roots (sev platform export --ca-out writes a simulated host's)."
)
