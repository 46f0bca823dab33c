"""A forging authority for tests: chains, lists and reports shaped like AMD's, with any part as a test wants it.

It writes DER by itself, so that a mistake of the project's reader is not repeated here. Keys are made once per test
run; RSA keys have 2048 bits, because making them is what takes time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sev.attestation import Collateral, Roots
from sev.products import GENOA, Product

AT = datetime(2026, 8, 25, tzinfo=UTC)
"""When everything that is made here by default is valid."""

SIGNED_SIZE = 0x2A0
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def tlv(tag: int, content: bytes) -> bytes:
    """One DER element."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*parts: bytes) -> bytes:
    return tlv(0x30, b"".join(parts))


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    out = bytearray()
    for value in (40 * first + second, *rest):
        digits = [value & 0x7F]
        while value := value >> 7:
            digits.append(value & 0x7F | 0x80)
        out += bytes(reversed(digits))
    return tlv(0x06, bytes(out))


def time(moment: datetime) -> bytes:
    if moment.year < 2050:
        return tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def name(common_name: str, organisation: str = "Advanced Micro Devices") -> bytes:
    parts = (
        ("2.5.4.11", 0x0C, "Engineering"),
        ("2.5.4.6", 0x13, "US"),
        ("2.5.4.7", 0x0C, "Santa Clara"),
        ("2.5.4.8", 0x0C, "CA"),
        ("2.5.4.10", 0x0C, organisation),
        ("2.5.4.3", 0x0C, common_name),
    )
    return sequence(*(tlv(0x31, sequence(oid(kind), tlv(tag, text.encode()))) for kind, tag, text in parts))


def pss(*, digest: str = "2.16.840.1.101.3.4.2.2", salt: int = 48, trailer: bool = False) -> bytes:
    """AlgorithmIdentifier of RSASSA-PSS; by default AMD's."""
    of_hash = sequence(oid(digest), tlv(0x05, b""))
    parameters = [
        tlv(0xA0, of_hash),
        tlv(0xA1, sequence(oid("1.2.840.113549.1.1.8"), of_hash)),
        tlv(0xA2, integer(salt)),
    ]
    if trailer:
        parameters.append(tlv(0xA3, integer(1)))
    return sequence(oid("1.2.840.113549.1.1.10"), sequence(*parameters))


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    return sequence(oid(dotted), *([tlv(0x01, b"\xff")] if critical else []), tlv(0x04, value))


AMD = "1.3.6.1.4.1.3704.1"
BASIC_CA = extension("2.5.29.19", sequence(tlv(0x01, b"\xff")), critical=True)
SIGN_ALL = extension("2.5.29.15", tlv(0x03, b"\x01\x06"), critical=True)
SIGN_CERTIFICATES = extension("2.5.29.15", tlv(0x03, b"\x02\x04"), critical=True)


@cache
def rsa_key(label: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The RSA key of this label, the same for the whole test run."""
    assert label
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(label: str) -> ec.EllipticCurvePrivateKey:
    """The P-384 key of this label, the same for the whole test run."""
    assert label
    return ec.generate_private_key(ec.SECP384R1())


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(signer: rsa.RSAPrivateKey, message: bytes) -> bytes:
    digest = hashes.SHA384()
    return signer.sign(message, padding.PSS(padding.MGF1(digest), 48), digest)


def sealed(tbs: bytes, signer: rsa.RSAPrivateKey, algorithm: bytes) -> bytes:
    """A signed part with its algorithm and signature around it."""
    return sequence(tbs, algorithm, tlv(0x03, b"\x00" + sign(signer, tbs)))


def certificate(
    *,
    subject: bytes,
    issuer: bytes,
    key: Key,
    signer: rsa.RSAPrivateKey,
    serial: int = 0,
    not_before: datetime = datetime(2025, 1, 1, tzinfo=UTC),
    not_after: datetime = datetime(2032, 1, 1, tzinfo=UTC),
    extensions: Sequence[bytes] = (),
    algorithm: bytes | None = None,
) -> bytes:
    """One certificate, signed."""
    algorithm = algorithm or pss()
    tbs = sequence(
        tlv(0xA0, integer(2)),
        integer(serial),
        algorithm,
        issuer,
        sequence(time(not_before), time(not_after)),
        subject,
        spki(key),
        *([tlv(0xA3, sequence(*extensions))] if extensions else []),
    )
    return sealed(tbs, signer, algorithm)


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    from base64 import encodebytes

    return f"-----BEGIN {label}-----\n".encode() + encodebytes(der) + f"-----END {label}-----\n".encode()


class World:
    """One product's authorities, a chip with its keys, and reports of it; methods take what is to be different."""

    def __init__(self, product: Product = GENOA, label: str = "") -> None:
        self.product = product
        self.label = label or product.name
        self.levels = dict.fromkeys(product.components, 4) | {"microcode": 0xDB}
        self.hwid = bytes(range(1, 1 + product.chip_id_bytes))
        self.leaf_key = ec_key(f"{self.label} leaf")

    def authority(self, kind: str, **changes: object) -> bytes:
        """ARK, ASK or ASVK; `key`, `signer`, `cn`, `issuer`, `extensions`, `serial`, dates, as for `certificate`."""
        kds = self.product.kds_name
        names = {"ark": f"ARK-{kds}", "ask": f"SEV-{kds}", "asvk": f"SEV-VLEK-{kds}"}
        serials = {"ark": 0x20000, "ask": 0x20002, "asvk": 0x20101}
        own: dict[str, object] = {
            "subject": name(names[kind]),
            "issuer": name(names["ark"]),
            "key": rsa_key(f"{self.label} {kind}"),
            "signer": rsa_key(f"{self.label} ark"),
            "serial": serials[kind],
            "not_before": datetime(2022, 1, 1, tzinfo=UTC),
            "not_after": datetime(2047, 1, 1, tzinfo=UTC),
            "extensions": (BASIC_CA, SIGN_ALL if kind == "ark" else SIGN_CERTIFICATES),
        }
        return certificate(**{**own, **changes})  # type: ignore[arg-type]

    def leaf_extensions(self, kind: str = "vcek", **changes: object) -> list[bytes]:
        """The extensions of a leaf; `levels`, `hwid`, `csp_id`, `product_name`, `spl4`, or `without` a list of names."""
        levels = {**self.levels, **changes.get("levels", {})}  # type: ignore[dict-item]
        without = changes.get("without", ())
        assert isinstance(without, tuple)
        suffix = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8, "fmc": 9}
        product_name = self.product.product_name if kind == "vcek" else self.product.kds_name
        out = [
            extension(f"{AMD}.1", integer(self.product.struct_version)),
            extension(f"{AMD}.2", tlv(0x16, str(changes.get("product_name", product_name)).encode())),
        ]
        out += [extension(f"{AMD}.3.{suffix[one]}", integer(levels[one])) for one in levels if one not in without]
        out += [extension(f"{AMD}.3.{number}", integer(0)) for number in (5, 6, 7)]
        if "spl4" in changes:
            out.append(extension(f"{AMD}.3.4", integer(int(str(changes["spl4"])))))
        hwid = changes.get("hwid", self.hwid if kind == "vcek" else None)
        csp_id = changes.get("csp_id", "CN=cc-test.example.com" if kind == "vlek" else None)
        if isinstance(hwid, bytes) and "hwid" not in without:
            out.append(extension(f"{AMD}.4", hwid))
        if isinstance(csp_id, str) and "csp_id" not in without:
            out.append(extension(f"{AMD}.5", tlv(0x16, csp_id.encode())))
        return out

    def leaf(self, kind: str = "vcek", *, ext: dict[str, object] | None = None, **changes: object) -> bytes:
        """VCEK or VLEK; `ext` changes its extensions, the rest is as for `certificate`."""
        issuer = "SEV-" if kind == "vcek" else "SEV-VLEK-"
        own: dict[str, object] = {
            "subject": name(f"SEV-{kind.upper()}"),
            "issuer": name(issuer + self.product.kds_name),
            "key": self.leaf_key,
            "signer": rsa_key(f"{self.label} {'ask' if kind == 'vcek' else 'asvk'}"),
            "extensions": self.leaf_extensions(kind, **(ext or {})),
        }
        return certificate(**{**own, **changes})  # type: ignore[arg-type]

    def crl(
        self,
        revoked: Sequence[int] = (),
        *,
        issuer: str = "",
        signer: rsa.RSAPrivateKey | None = None,
        this_update: datetime = datetime(2026, 8, 19, tzinfo=UTC),
        next_update: datetime = datetime(2026, 10, 4, tzinfo=UTC),
        extensions: Sequence[bytes] = (extension("2.5.29.20", integer(10)),),
    ) -> bytes:
        """The ARK's revocation list."""
        entries = [sequence(integer(serial), time(datetime(2026, 1, 1, tzinfo=UTC))) for serial in revoked]
        tbs = sequence(
            integer(1),
            pss(),
            name(issuer or f"ARK-{self.product.kds_name}"),
            time(this_update),
            time(next_update),
            *([sequence(*entries)] if entries else []),
            tlv(0xA0, sequence(*extensions)),
        )
        return sealed(tbs, signer or rsa_key(f"{self.label} ark"), pss())

    def tcb(self, **changes: int) -> bytes:
        """TCB_VERSION of this world's chip."""
        out = bytearray(8)
        for component, place in self.product.tcb_bytes:
            out[place] = {**self.levels, **changes}[component]
        return bytes(out)

    def report(self, *, key: ec.EllipticCurvePrivateKey | None = None, version: int = 5, **fields: object) -> bytes:
        """A signed report; `fields` are bytes or numbers by name, see `PLACES`."""
        family, model, stepping = self.product.sample_cpuid
        tcb = self.tcb()
        content: dict[str, object] = {
            "version": version,
            "policy": 0x30000,
            "signature_algo": 1,
            "platform_info": 0x25,
            "report_data": bytes(range(64)),
            "measurement": bytes(range(48)),
            "report_id_ma": b"\xff" * 32,
            "chip_id": self.hwid.ljust(64, b"\0"),
            "current_version": bytes((49, 55, 1)),
            "committed_version": bytes((49, 55, 1)),
            **dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), tcb),
        }
        if version >= 3:
            content |= {"cpuid_fam_id": family, "cpuid_mod_id": model, "cpuid_step": stepping}
        if version >= 5:
            content |= {"launch_mit_vector": 0xB, "current_mit_vector": 0xB}
        out = bytearray(1184)
        for field, value in {**content, **fields}.items():
            offset, size = PLACES[field]
            out[offset : offset + size] = (
                value if isinstance(value, bytes) else int(str(value)).to_bytes(size, "little")
            )
        return sign_report(bytes(out), key or self.leaf_key)

    def roots(self) -> Roots:
        return Roots.from_pem(pem(self.authority("ark")))

    def collateral(self, vek: bytes | None = None, **changes: object) -> Collateral:
        """The VCEK with its chain; `certificates`, `crls`, `certificate_table` as for Collateral."""
        given: dict[str, object] = {"certificates": (self.authority("ask"), self.authority("asvk")), **changes}
        return Collateral(vek if vek is not None else self.leaf(), **given)  # type: ignore[arg-type]


PLACES = {
    "version": (0x000, 4), "guest_svn": (0x004, 4), "policy": (0x008, 8), "family_id": (0x010, 16),
    "image_id": (0x020, 16), "vmpl": (0x030, 4), "signature_algo": (0x034, 4), "current_tcb": (0x038, 8),
    "platform_info": (0x040, 8), "key_info": (0x048, 4), "reserved": (0x04C, 4), "report_data": (0x050, 64),
    "measurement": (0x090, 48), "host_data": (0x0C0, 32), "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48), "report_id": (0x140, 32), "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8), "cpuid_fam_id": (0x188, 1), "cpuid_mod_id": (0x189, 1), "cpuid_step": (0x18A, 1),
    "chip_id": (0x1A0, 64), "committed_tcb": (0x1E0, 8), "current_version": (0x1E8, 3),
    "committed_version": (0x1EC, 3), "launch_tcb": (0x1F0, 8), "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
}  # fmt: skip
"""Offset and size of what a forged report can be given."""


def sign_report(report: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The report with a new signature over its first 672 bytes."""
    r, s = decode_dss_signature(key.sign(report[:SIGNED_SIZE], ec.ECDSA(hashes.SHA384())))
    return report[:SIGNED_SIZE] + (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")
