"""The legacy half of the platform: SEV's states, the keys OCA, PEK, PDH and CEK, and who owns the platform.

    UNINIT --INIT, INIT_EX--> INIT --first guest--> WORKING --last guest gone--> INIT       any --SHUTDOWN--> UNINIT

OCA, PEK and PDH live in the persistent store and outlive restarts; PLATFORM_RESET erases it, and the next INIT finds it
empty and makes new ones. The CEK is the chip's for life. The platform is its own (OCA made here) until PEK_CERT_IMPORT
brings somebody's OCA, and again after PEK_GEN or a reset.

An INIT with an empty store makes three key pairs on real parts. The model makes them when they are first looked at,
which nobody can tell but by the time it takes; after INIT_EX at once, since the host sees that store.

Source: SEV API specification (AMD 55766), platform management; behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from sev import status
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sevd.simulator import hash_sticks, legacy_store, store
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.legacy_certificates import judged, need_signature
from sevd.simulator.legacy_store import Identity, Key

if TYPE_CHECKING:
    from sevd.simulator.entropy import Entropy
    from sevd.simulator.firmware_platform import Platform
    from sevd.simulator.legacy_guest import LegacyGuest

FILE = "flash.json"
UNINIT, INITIALISED, WORKING = 0, 1, 2
INIT_ES = 1
"""The one flag of INIT and INIT_EX."""

GUESTS_MAX = 1024


class LegacyPlatform:
    """State of legacy SEV on a platform. Not locked: `Firmware` serialises commands as the mailbox does.

    Attributes:
        es: Initialised for SEV-ES.
        guests: Guests by handle.
    """

    def __init__(self, platform: Platform, directory: Path, entropy: Entropy) -> None:
        """Powers up; reads the flash.

        Raises:
            CorruptState: The flash's file is damaged.
        """
        self._platform = platform
        self._entropy = entropy
        self._path = directory / FILE
        self._flash, self._keys_made = _read_flash(self._path)
        self._host_store: bytearray | None = None
        self._identity: Identity | None = None
        self._owned = False
        self._up = False
        self.es = False
        self.guests: dict[int, LegacyGuest] = {}

    @property
    def state(self) -> int:
        """UNINIT, INITIALISED or WORKING."""
        if not self._up:
            return UNINIT
        return WORKING if self.guests else INITIALISED

    def need(self, *states: int) -> None:
        """Refuses in any other state."""
        if self.state not in states:
            raise FirmwareStatus(status.INVALID_PLATFORM_STATE)

    def admit(self, guest: LegacyGuest) -> int:
        """Takes a new guest in; its handle, from 1. RESOURCE_LIMIT if there are too many."""
        self.need(INITIALISED, WORKING)
        for handle in range(1, GUESTS_MAX + 1):
            if handle not in self.guests:
                self.guests[handle] = guest
                return handle
        raise FirmwareStatus(status.RESOURCE_LIMIT)

    def guest(self, handle: int) -> LegacyGuest:
        """The guest of a handle, or INVALID_GUEST."""
        guest = self.guests.get(handle)
        if guest is None:
            raise FirmwareStatus(status.INVALID_GUEST)
        return guest

    # Commands, in the order of a platform's life.

    def init(self, flags: int, host_store: bytearray | None = None) -> None:
        """INIT, or INIT_EX with a store of 32 KiB in the host's memory, which commands then change."""
        self.need(UNINIT)
        platform = self._platform
        if platform.product.has_snp and not platform.rmp_initialised:
            raise FirmwareStatus(status.INVALID_PLATFORM_STATE)
        if host_store is not None and len(host_store) != legacy_store.NV_SIZE:
            raise FirmwareStatus(status.INVALID_LENGTH)
        if flags & ~INIT_ES:
            raise FirmwareStatus(status.INVALID_CONFIG)
        self._host_store = host_store
        stored = self._stored()
        identity = None
        if not legacy_store.is_empty(stored):
            identity = legacy_store.unseal(stored, platform.chip.storage_keys())
            if identity is None:
                self._erase()
                raise FirmwareStatus(status.SECURE_DATA_INVALID)
        self._identity, self._owned = identity, identity is not None and identity.owned
        self._up, self.es = True, bool(flags & INIT_ES)
        platform.soil_asids()
        if host_store is not None:
            # The kernel writes its file after this command, and after none that only looks at keys.
            self.identity()

    def shutdown(self) -> None:
        """SHUTDOWN, in any state: every legacy guest is deleted, the store stays."""
        for guest in self.guests.values():
            if guest.asid:
                self._platform.give_asid(guest.asid)
        self.guests.clear()
        self._up = self.es = False
        self._identity = None

    def reset(self) -> None:
        """PLATFORM_RESET: erases the store."""
        self.need(UNINIT)
        self._erase()

    def status(self) -> bytes:
        """PLATFORM_STATUS, 12 bytes; ES and guests read as 0 in UNINIT.

        So does the owner on Genoa. The model tells the owner that it knew last: after a reset Linux shuts down behind
        every command that needs an INIT, and nobody could see whom the platform belongs to any more.
        """
        major, minor, build = self._platform.version
        flags = int(self._owned), int(self.es)
        return struct.pack("<BBBBHBBI", major, minor, self.state, *flags, 0, build, len(self.guests))

    def pek_gen(self) -> None:
        """PEK_GEN: new OCA, PEK and PDH; the platform is its own again."""
        self.need(INITIALISED)
        self._keep(self._new_identity())

    def pek_csr(self, length: int) -> bytes:
        """PEK_CSR: the PEK's body with free slots, 2084 bytes, into a buffer of `length`."""
        self.need(INITIALISED, WORKING)
        if length < abi.SIZE:
            raise FirmwareStatus(status.INVALID_LENGTH, lengths=(abi.SIZE,))
        free = abi.Signature()
        return self.identity().pek.signed(1, free).signed(2, free).encode()

    def pek_cert_import(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT of the PEK that an owner signed, and the owner's OCA, 2084 bytes each."""
        self.need(INITIALISED)
        identity = self.identity()
        if identity.owned:
            raise FirmwareStatus(status.ALREADY_OWNED)
        if len(pek) != abi.SIZE or len(oca) != abi.SIZE:
            raise FirmwareStatus(status.INVALID_LENGTH)
        owner = judged(oca, abi.OCA)
        need_signature(owner, owner)
        signed = judged(pek, abi.PEK)
        need_signature(signed, owner)
        if signed.body != identity.pek.body:
            raise FirmwareStatus(status.INVALID_CERTIFICATE)
        slot = next((number for number, each in enumerate(signed.signatures, 1) if each.free), None)
        if slot is None:
            raise FirmwareStatus(status.INVALID_CERTIFICATE)
        own = next(each for each in identity.pek.signatures if each.usage == abi.CEK)
        pdh, pdh_key = self._new_pdh(identity.pek_key)
        self._keep(Identity(owner, None, signed.signed(slot, own), identity.pek_key, pdh, pdh_key))

    def pdh_gen(self) -> None:
        """PDH_GEN: a new PDH, signed by the PEK."""
        self.need(INITIALISED, WORKING)
        now = self.identity()
        pdh, pdh_key = self._new_pdh(now.pek_key)
        self._keep(Identity(now.oca, now.oca_key, now.pek, now.pek_key, pdh, pdh_key))

    def pdh_cert_export(self, pdh_length: int, chain_length: int) -> tuple[bytes, bytes]:
        """PDH_CERT_EXPORT: the PDH's certificate, 2084 bytes, and PEK, OCA and CEK, 6252 bytes. The CEK is unsigned."""
        self.need(INITIALISED, WORKING)
        if pdh_length < abi.SIZE or chain_length < abi.CHAIN_SIZE:
            raise FirmwareStatus(status.INVALID_LENGTH, lengths=(abi.SIZE, abi.CHAIN_SIZE))
        identity = self.identity()
        cek = SevCertificate.of_key(abi.CEK, self._platform.chip.cek().public_key(), self._api)
        return identity.pdh.encode(), identity.pek.encode() + identity.oca.encode() + cek.encode()

    def identity(self) -> Identity:
        """Keys and certificates of the initialised platform; made now if the store was empty."""
        if self._identity is None:
            self._keep(self._new_identity())
        assert self._identity is not None
        return self._identity

    # Keys.

    @property
    def _api(self) -> tuple[int, int]:
        return self._platform.version[:2]

    def _new_key(self) -> Key:
        self._keys_made += 1
        # A stream of its own for each key: after a restart a seeded platform goes on, it does not begin again.
        drawn = self._entropy.stream(f"legacy/key/{self._keys_made}").bytes(56)
        scalar = int.from_bytes(drawn, "little") % (hash_sticks.P384_ORDER - 1) + 1
        return legacy_store.private_key(scalar.to_bytes(48, "big"))

    def _sign(self, certificate: SevCertificate, key: Key, usage: int, slot: int) -> SevCertificate:
        from sev.certs import sev_signatures  # a start makes no keys

        deterministic = self._platform.deterministic
        return sev_signatures.sign(certificate, key, usage, slot=slot, deterministic=deterministic)

    def _new_identity(self) -> Identity:
        oca_key, pek_key = self._new_key(), self._new_key()
        oca = self._sign(SevCertificate.of_key(abi.OCA, oca_key.public_key(), self._api), oca_key, abi.OCA, 1)
        pek = self._sign(SevCertificate.of_key(abi.PEK, pek_key.public_key(), self._api), oca_key, abi.OCA, 1)
        pek = self._sign(pek, self._platform.chip.cek(), abi.CEK, 2)
        pdh, pdh_key = self._new_pdh(pek_key)
        return Identity(oca, oca_key, pek, pek_key, pdh, pdh_key)

    def _new_pdh(self, pek_key: Key) -> tuple[SevCertificate, Key]:
        key = self._new_key()
        return self._sign(SevCertificate.of_key(abi.PDH, key.public_key(), self._api), pek_key, abi.PEK, 1), key

    # The persistent store.

    def _stored(self) -> bytes:
        return self._flash if self._host_store is None else bytes(self._host_store)

    def _keep(self, identity: Identity) -> None:
        """Stores a new identity and takes it on; all as before, and HWERROR_PLATFORM, if it cannot be stored."""
        iv = self._entropy.stream(f"legacy/iv/{self._keys_made}").bytes(legacy_store.IV_SIZE)
        self._store(legacy_store.seal(identity, self._platform.chip.storage_keys(), iv))
        self._identity, self._owned = identity, identity.owned

    def _erase(self) -> None:
        self._store(b"")
        self._owned = False

    def _store(self, data: bytes) -> None:
        flash = data if self._host_store is None else self._flash
        document: dict[str, object] = {"nv": flash.hex(), "keys_made": self._keys_made}
        try:
            store.write_document(self._path, document, secret=True)
        except store.NotStored:
            raise FirmwareStatus(status.HWERROR_PLATFORM) from None
        self._flash = flash
        if self._host_store is not None:
            self._host_store[:] = data.ljust(legacy_store.NV_SIZE, b"\xff")


def _read_flash(path: Path) -> tuple[bytes, int]:
    """Contents of the flash, and how many keys were ever made; a chip that never was initialised has no file."""
    if not path.exists():
        return b"", 0
    document = store.read_document(path)
    contents, made = document.get("nv"), document.get("keys_made")
    if isinstance(contents, str) and isinstance(made, int) and len(contents) <= 2 * legacy_store.NV_SIZE:
        try:
            return bytes.fromhex(contents), made
        except ValueError:
            pass
    raise store.CorruptState(path, "the contents of the flash are missing")
