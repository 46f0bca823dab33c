"""One simulated chip: its secrets, its identifier, and the keys that follow from them and a TCB.

    CUK         32 bytes, the chip's own secret; its public point on secp256k1 is the chip id, X || Y big-endian
    VCEK seed   48 bytes, from which the VCEK of every TCB is derived
    VLEK seed   48 bytes, the provider's, from which VLEKs are; a real chip does not hold it, AMD's KDS does

Sources: behaviour of AMD's published Genoa firmware. Turin's chip id is eight bytes whose derivation is not published;
the model takes the first eight of the point.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sev.products import Product
from sevd.simulator import hash_sticks, store
from sevd.simulator.entropy import Entropy

FILE = "chip.json"
_SECP256K1_ORDER = int("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)


def chip_id(cuk: bytes) -> bytes:
    """X || Y of CUK x G on secp256k1, 64 bytes, big-endian (Milan, Genoa)."""
    key = ec.derive_private_key(int.from_bytes(cuk, "big"), ec.SECP256K1())
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def cek_scalar(cuk: bytes) -> int:
    """Private scalar of the legacy chip endorsement key (P-384)."""
    return hash_sticks.scalar(hashlib.sha256(cuk).digest(), hash_sticks.CEK_LABEL)


class Chip:
    """Secrets of one chip and what is derived from them.

    Attributes:
        product: Its processor line.
        identifier: CHIP_ID as reports carry it, 64 bytes; from Turin on 8 bytes and zeros.
    """

    def __init__(self, product: Product, cuk: bytes, vcek_seed: bytes, vlek_seed: bytes) -> None:
        self.product = product
        self._cuk = cuk
        self._vcek_seed = vcek_seed
        self._vlek_seed = vlek_seed
        self.identifier = chip_id(cuk)[: product.chip_id_bytes].ljust(64, b"\0")

    def __repr__(self) -> str:
        return f"<Chip {self.product.name} {self.identifier[:8].hex()}>"

    @classmethod
    def make(cls, product: Product, entropy: Entropy) -> Chip:
        """A new chip."""
        draw = entropy.stream(f"chip/{product.name}")
        cuk = 0
        while not 0 < cuk < _SECP256K1_ORDER:
            cuk = int.from_bytes(draw.bytes(32), "big")
        return cls(product, cuk.to_bytes(32, "big"), draw.bytes(48), draw.bytes(48))

    @classmethod
    def load(cls, product: Product, directory: Path) -> Chip:
        """The chip stored in a directory.

        Raises:
            CorruptState: Its file is damaged or missing.
        """
        path = directory / FILE
        document = store.read_document(path)
        if document.get("product") != product.name:
            raise store.CorruptState(path, f"this is a chip of {document.get('product')!r}, expected {product.name}")
        cuk = store.hex_field(document, path, "cuk", 32)
        if not 0 < int.from_bytes(cuk, "big") < _SECP256K1_ORDER:
            raise store.CorruptState(path, "the field cuk is no valid chip secret")
        vcek_seed = store.hex_field(document, path, "vcek_seed", 48)
        return cls(product, cuk, vcek_seed, store.hex_field(document, path, "vlek_seed", 48))

    def save(self, directory: Path) -> None:
        """Stores the chip, readable by its owner only."""
        secrets = {"cuk": self._cuk, "vcek_seed": self._vcek_seed, "vlek_seed": self._vlek_seed}
        document: dict[str, object] = {name: value.hex() for name, value in secrets.items()}
        store.write_document(directory / FILE, {"product": self.product.name, **document}, secret=True)

    def vcek_hash(self, tcb: bytes) -> bytes:
        """Root secret of a TCB (8 bytes), 48 bytes."""
        return hash_sticks.tcb_hash(self._vcek_seed, tcb)

    def vcek(self, tcb: bytes) -> ec.EllipticCurvePrivateKey:
        """The versioned chip endorsement key of a TCB."""
        return hash_sticks.private_key(self.vcek_hash(tcb), hash_sticks.VCEK_LABEL)

    def cek(self) -> ec.EllipticCurvePrivateKey:
        """The chip endorsement key of legacy SEV: one for the life of the chip."""
        return ec.derive_private_key(cek_scalar(self._cuk), ec.SECP384R1())

    def storage_keys(self) -> tuple[bytes, bytes]:
        """Keys of this chip for its persistent store: AES-128, and HMAC (32 bytes)."""
        seed = hashlib.sha256(self._cuk).digest()
        return hash_sticks.kdf(seed, "sev-nv-encryption", b"", 16), hash_sticks.kdf(seed, "sev-nv-integrity", b"", 32)

    def vlek_sticks(self, tcb: bytes) -> tuple[bytes, ...]:
        """The provider's eight sticks of a TCB, as the KDS knows them."""
        return hash_sticks.sticks(self._vlek_seed, tcb)

    def vlek(self, tcb: bytes) -> ec.EllipticCurvePrivateKey:
        """The versioned loaded endorsement key of a TCB, as the KDS knows it."""
        return hash_sticks.private_key(self.vlek_sticks(tcb)[-1], hash_sticks.VLEK_LABEL)

    def wrap_vlek(self, tcb: bytes, iv: bytes) -> bytes:
        """The provider's sticks of a TCB wrapped for this chip, 432 bytes."""
        return hash_sticks.wrap_vlek(self.vcek_hash(tcb), self.vlek_sticks(tcb), tcb, iv)

    def unwrap_vlek(self, tcb: bytes, blob: bytes) -> tuple[bytes, ...] | None:
        """The sticks in a wrapped VLEK, if it was made for this chip at this TCB."""
        return hash_sticks.unwrap_vlek(self.vcek_hash(tcb), blob)
