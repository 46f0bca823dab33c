"""The simulator's certificate authority: ARK, ASK, ASVK, the leaves they sign, and the revocation list.

RSA-4096 keys take seconds to make, so the two that every report needs (ARK, ASK) are made in two threads on first
start, the ASVK when a VLEK is first used. Keys and certificates are stored; a certificate that was issued once is
answered again byte for byte until shortly before it runs out. `authority.json` lists every file with its SHA-256, and
a file counts only once it is listed: a crash between the two leaves nothing half made.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from base64 import encodebytes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sev.abi.tcb import TcbVersion
from sev.products import Product
from sevd import durable
from sevd.simulator import store, x509
from sevd.simulator.chip import Chip

FILE = "authority.json"
KEY_BITS = 4096
CSP_ID = "CN=vlek.sevd-simulator.invalid"
"""Provider named in the simulator's VLEK certificates."""

CA_YEARS, VCEK_YEARS, VLEK_YEARS = 25, 7, 1
CRL_DAYS = 42
RENEW = timedelta(days=14)
"""A stored leaf or list with less than this left is issued anew when asked for."""

LEAVES_MAX = 64
"""Leaf certificates kept; the oldest go first, and are issued anew if asked for again."""

_SERIAL_BASE = {
    "milan": 0x10000, "genoa": 0x20000, "turin": 0x30000, "venice": 0x40000,
    # AMD has X.509 roots for none of these; the model keeps their keys in the same form.
    "naples": 0x50000, "rome": 0x60000,
}  # fmt: skip
_SMALL_KEYS = {"naples": 2048}
"""Bits of a line's root keys, where they are not `KEY_BITS`."""
_SERIAL_OFFSET = {"ark": 0, "ask": 1, "asvk": 0x101}

Progress = Callable[[str], None]


class CertificateAuthority:
    """Keys and certificates in one directory. Safe to call from several threads."""

    def __init__(self, product: Product, chip: Chip, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens a stored authority and checks every file it lists.

        Raises:
            CorruptState: A file is missing or damaged.
        """
        self._product = product
        self._chip = chip
        self._directory = directory
        self._clock = clock
        self._lock = threading.RLock()
        self._keys: dict[str, rsa.RSAPrivateKey] = {}
        path = directory / FILE
        document = store.read_document(path)
        self._created = _moment(document, path, "created")
        files, leaves = document.get("files"), document.get("leaves")
        crl_number = document.get("crl_number")
        if not isinstance(files, dict) or not isinstance(leaves, list) or not isinstance(crl_number, int):
            raise store.CorruptState(path, "the list of files is missing")
        self._files: dict[str, str] = files
        self._leaves: list[str] = leaves
        self._crl_number = crl_number
        needed = ("ark.key", "ark.der", "ask.key", "ask.der")
        for name in (*needed, *files):
            if name not in files or not isinstance(name, str) or "/" in name:
                raise store.CorruptState(path, f"the file {name} is not listed as it should be")
        self._cache = {name: store.read(directory / name, str(digest)) for name, digest in files.items()}

    @classmethod
    def make(
        cls,
        product: Product,
        chip: Chip,
        directory: Path,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.time,
    ) -> CertificateAuthority:
        """A new authority in an empty directory: makes and stores the ARK's and the ASK's keys and certificates."""
        if progress:
            progress(f"Making the simulated root keys (two RSA-{_bits(product)} keys, once; this may take seconds)")
        with ThreadPoolExecutor(max_workers=2) as pool:
            futures = {kind: pool.submit(_new_key, _bits(product)) for kind in ("ark", "ask")}
            keys = {kind: future.result() for kind, future in futures.items()}
        created = datetime.fromtimestamp(int(clock()), UTC)
        files: dict[str, str] = {}
        for kind, key in keys.items():
            certificate = _ca_certificate(product, kind, key.public_key(), keys["ark"], created)
            _store_pair(directory, files, kind, key, certificate)
        _write_list(directory, created, files, [], 0)
        if progress:
            progress("Made the simulated root keys")
        authority = cls(product, chip, directory, clock)
        authority._keys.update(keys)
        return authority

    @property
    def directory(self) -> Path:
        """Where keys and certificates are kept."""
        return self._directory

    @property
    def chip_id(self) -> bytes:
        """CHIP_ID of the chip it vouches for, 64 bytes."""
        return self._chip.identifier

    def ark_der(self) -> bytes:
        """The root certificate, self-signed."""
        return self._cache["ark.der"]

    def ask_der(self) -> bytes:
        """The certificate that signs VCEKs."""
        return self._cache["ask.der"]

    def asvk_der(self) -> bytes:
        """The certificate that signs VLEKs; its key is made on first use."""
        with self._lock:
            if "asvk.der" not in self._files:
                key = _new_key(_bits(self._product))
                now = self._now()
                certificate = _ca_certificate(self._product, "asvk", key.public_key(), self._key("ark"), now)
                self._cache.update(_store_pair(self._directory, self._files, "asvk", key, certificate))
                self._save()
                self._keys["asvk"] = key
            return self._cache["asvk.der"]

    def roots_pem(self) -> bytes:
        """The root certificate as PEM, for verifiers that take roots from a file."""
        return pem(self.ark_der())

    def vcek_der(self, tcb: int) -> bytes:
        """The VCEK certificate of this chip for a TCB (`TcbVersion.raw`)."""
        return self._leaf(f"vcek-{tcb:016x}", VCEK_YEARS, lambda now: self._vcek(tcb, self._chip.identifier, now))

    def stranger_der(self, tcb: int) -> bytes:
        """The VCEK of a chip that there is none of, with this chip's key: what a broken service might answer."""
        other = bytes(octet ^ 0xFF for octet in self._chip.identifier)
        return self._vcek(tcb, other, self._now())

    def _vcek(self, tcb: int, identifier: bytes, now: datetime) -> bytes:
        version = TcbVersion.from_int(tcb, self._product)
        hwid = identifier[: self._product.chip_id_bytes]
        return x509.certificate(
            serial=0,
            issuer=x509.name(f"SEV-{self._product.kds_name}"),
            subject=x509.name("SEV-VCEK"),
            not_before=now,
            not_after=_years_later(now, VCEK_YEARS),
            key=self._chip.vcek(version.encode()).public_key(),
            extensions=x509.leaf_extensions(self._product, version.components(), hwid=hwid),
            signer=self._key("ask"),
        )

    def vlek_der(self, tcb: int) -> bytes:
        """The VLEK certificate of the simulated provider for a TCB (`TcbVersion.raw`)."""
        version = TcbVersion.from_int(tcb, self._product)
        key = self._chip.vlek(version.encode()).public_key()
        extensions = x509.leaf_extensions(self._product, version.components(), csp_id=CSP_ID)
        self.asvk_der()

        def issue(now: datetime) -> bytes:
            return x509.certificate(
                serial=0,
                issuer=x509.name(f"SEV-VLEK-{self._product.kds_name}"),
                subject=x509.name("SEV-VLEK"),
                not_before=now,
                not_after=_years_later(now, VLEK_YEARS),
                key=key,
                extensions=extensions,
                signer=self._key("asvk"),
            )

        return self._leaf(f"vlek-{tcb:016x}", VLEK_YEARS, issue)

    def legacy_ca(self) -> bytes:
        """ASK, then ARK, in the form that SEV had before X.509 (`sev.abi.amd_certificate`), of the same keys."""
        from sevd.simulator import legacy_authority

        return self._once("legacy-ca.cert", lambda: legacy_authority.bundle(self._key("ask"), self._key("ark")))

    def cek_certificate(self) -> bytes:
        """The CEK of this chip signed by the ASK, 2084 bytes, as AMD's KDS answers it for the chip's identifier."""
        from sevd.simulator import legacy_authority

        return self._once("cek.cert", lambda: legacy_authority.endorse(self._chip.cek(), self._key("ask")))

    def crl_der(self) -> bytes:
        """The current revocation list, empty, signed by the ARK; renewed when less than two weeks are left."""
        with self._lock:
            now = self._now()
            for name in self._files:
                if name.startswith("crl-"):
                    issued = datetime.fromtimestamp(int(name.split("-")[2].removesuffix(".der")), UTC)
                    if issued <= now < issued + timedelta(days=CRL_DAYS) - RENEW:
                        return self._cache[name]
            data = self._list(self._crl_number + 1, now)
            self._crl_number += 1
            old = [name for name in self._files if name.startswith("crl-")]
            self._replace(old, f"crl-{self._crl_number}-{int(now.timestamp())}.der", data, self._leaves)
            return data

    def stale_crl_der(self) -> bytes:
        """A list that ran out yesterday: what a service answers that has stood still."""
        now = self._now()
        return self._list(0, now - timedelta(days=CRL_DAYS + 1))

    def _list(self, number: int, now: datetime) -> bytes:
        signer = self._key("ark")
        return x509.revocation_list(
            issuer=x509.ark_name(self._product),
            authority=signer.public_key(),
            number=number,
            this_update=now,
            next_update=now + timedelta(days=CRL_DAYS),
            revoked=(),
            signer=signer,
        )

    def _once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """A file that is made when it is first asked for, and kept for good."""
        with self._lock:
            if name not in self._files:
                self._replace([], name, make(), self._leaves)
            return self._cache[name]

    def _leaf(self, stem: str, years: int, issue: Callable[[datetime], bytes]) -> bytes:
        with self._lock:
            now = self._now()
            old = [name for name in self._leaves if name.startswith(f"{stem}-")]
            for name in old:
                issued = datetime.fromtimestamp(int(name.split("-")[2].removesuffix(".der")), UTC)
                if issued <= now < _years_later(issued, years) - RENEW:
                    return self._cache[name]
            data = issue(now)
            kept = [name for name in self._leaves if name not in old]
            while len(kept) >= LEAVES_MAX:
                old.append(kept.pop(0))
            name = f"{stem}-{int(now.timestamp())}.der"
            self._replace(old, name, data, [*kept, name])
            return data

    def _replace(self, old: list[str], name: str, data: bytes, leaves: list[str]) -> None:
        """Stores and lists a new file, then removes those it stands for."""
        store.write(self._directory / name, data)
        self._leaves = leaves
        gone = [each for each in old if each != name]
        for each in gone:
            self._files.pop(each, None)
            self._cache.pop(each, None)
        self._files[name] = hashlib.sha256(data).hexdigest()
        self._cache[name] = data
        self._save()
        for each in gone:
            with contextlib.suppress(FileNotFoundError):
                durable.disk.remove(self._directory / each)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock()), UTC)

    def _save(self) -> None:
        _write_list(self._directory, self._created, self._files, self._leaves, self._crl_number)

    def _key(self, kind: str) -> rsa.RSAPrivateKey:
        with self._lock:
            if kind not in self._keys:
                path = self._directory / f"{kind}.key"
                # The file's checksum was compared at start; checking the key's primes again costs a tenth of a second.
                key = load_pem_private_key(self._cache[path.name], None, unsafe_skip_rsa_key_validation=True)
                if not isinstance(key, rsa.RSAPrivateKey):
                    raise store.CorruptState(path, "this is no RSA key")
                self._keys[kind] = key
            return self._keys[kind]


def pem(certificate: bytes) -> bytes:
    """A DER certificate as PEM text."""
    body = encodebytes(certificate).replace(b"\n", b"")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))


def _bits(product: Product) -> int:
    return _SMALL_KEYS.get(product.name, KEY_BITS)


def _new_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def _years_later(moment: datetime, years: int) -> datetime:
    """The same day and time years later; the 28th for a 29th of February that the year does not have."""
    try:
        return moment.replace(year=moment.year + years)
    except ValueError:
        return moment.replace(year=moment.year + years, day=28)


def _moment(document: dict[str, object], path: Path, name: str) -> datetime:
    value = document.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 33:
        raise store.CorruptState(path, f"the field {name} is no time")
    return datetime.fromtimestamp(value, UTC)


def _ca_certificate(
    product: Product, kind: str, key: rsa.RSAPublicKey, ark: rsa.RSAPrivateKey, created: datetime
) -> bytes:
    if kind == "ark":
        subject, extensions = x509.ark_name(product), x509.root_extensions(product, key)
    else:
        prefix, role = ("SEV", "vcek") if kind == "ask" else ("SEV-VLEK", "vlek")
        subject = x509.name(f"{prefix}-{product.kds_name}")
        extensions = x509.intermediate_extensions(product, role, key, ark.public_key())
    return x509.certificate(
        serial=_SERIAL_BASE[product.name] + _SERIAL_OFFSET[kind],
        issuer=x509.ark_name(product),
        subject=subject,
        not_before=created,
        not_after=_years_later(created, CA_YEARS),
        key=key,
        extensions=extensions,
        signer=ark,
    )


def _store_pair(
    directory: Path, files: dict[str, str], kind: str, key: rsa.RSAPrivateKey, certificate: bytes
) -> dict[str, bytes]:
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pair = {f"{kind}.key": text, f"{kind}.der": certificate}
    for name, data in pair.items():
        store.write(directory / name, data, secret=name.endswith(".key"))
    files.update({name: hashlib.sha256(data).hexdigest() for name, data in pair.items()})
    return pair


def _write_list(directory: Path, created: datetime, files: dict[str, str], leaves: list[str], crl_number: int) -> None:
    document: dict[str, object] = {
        "created": int(created.timestamp()), "files": files, "leaves": leaves, "crl_number": crl_number,
    }  # fmt: skip
    store.write_document(directory / FILE, document)
