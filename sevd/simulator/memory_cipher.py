"""Memory encryption of SEV and SEV-ES guests: what the host sees of a guest's memory.

The memory controller of real parts encrypts with AES-128 and a tweak made of the physical address. How the tweak is
made is not published and no program depends on it; the model uses AES-128 in XTS mode (IEEE 1619) with units of 64 KiB,
the unit's number the tweak. So the same content has another ciphertext at every address, a piece of ciphertext that is
moved decrypts to noise, and every 16 bytes can be read and written alone.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK = 16
"""Addresses and lengths are multiples of it."""

KEY_SIZE = 32
"""Two keys of AES-128, for content and tweak."""

_UNIT = 64 << 10


class MemoryKey:
    """The memory encryption key of a guest. Shown to nobody, not even to the guest.

    Args:
        key: 32 bytes, both halves different.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "<MemoryKey>"

    def encrypt(self, address: int, data: bytes | bytearray | memoryview) -> bytes:
        """What lies at a physical address when the guest writes this there; both multiples of 16."""
        return self._run(address, data, encrypt=True)

    def encrypt_in_place(self, address: int, memory: memoryview) -> None:
        """The same with memory itself, writable: it holds then what the host sees."""
        key, at = algorithms.AES(self._key), 0
        while at < len(memory):
            unit, offset = divmod(address + at, _UNIT)
            piece = memory[at : at + _UNIT - offset]
            if offset:
                piece[:] = self.encrypt(address + at, piece)
            else:
                Cipher(key, modes.XTS(unit.to_bytes(16, "little"))).encryptor().update_into(piece, piece)
            at += len(piece)

    def decrypt(self, address: int, data: bytes | bytearray | memoryview) -> bytes:
        """What the guest reads where this lies; both multiples of 16."""
        return self._run(address, data, encrypt=False)

    def _run(self, address: int, data: bytes | bytearray | memoryview, *, encrypt: bool) -> bytes:
        view, parts, at = memoryview(data), [], 0
        key = algorithms.AES(self._key)
        while at < len(view):
            unit, offset = divmod(address + at, _UNIT)
            size = min(_UNIT - offset, len(view) - at)
            cipher = Cipher(key, modes.XTS(unit.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            if offset:
                # What stands before in the unit only moves the tweak on.
                parts.append(context.update(bytes(offset) + view[at : at + size])[offset:])
            else:
                parts.append(context.update(view[at : at + size]))
            at += size
        return parts[0] if len(parts) == 1 else b"".join(parts)
