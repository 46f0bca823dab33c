"""Randomness of the model: the operating system's, or a seeded stream for runs that must repeat.

The seeded stream is HMAC_DRBG with SHA-256 (NIST SP 800-90A, section 10.1.2) without reseeding; its entropy input is
the seed, its personalisation string the name of the stream. Each use has a stream of its own (`stream`), so that one
more draw in one place does not shift the values of another.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

REQUEST_MAX = 1 << 16
"""Bytes that one request of the DRBG may give (SP 800-90A, table 2: 2^19 bits)."""


class HmacDrbg:
    """HMAC_DRBG with SHA-256. Not for keys that protect anything real: it is for repeatable simulations."""

    def __init__(self, entropy: bytes, personalisation: bytes = b"") -> None:
        self._key = bytes(32)
        self._value = b"\x01" * 32
        self._update(entropy + personalisation)

    def _update(self, data: bytes) -> None:
        for round_byte in b"\x00\x01":
            self._key = hmac.digest(self._key, self._value + bytes((round_byte,)) + data, "sha256")
            self._value = hmac.digest(self._key, self._value, "sha256")
            if not data:
                return

    def generate(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            ValueError: More than `REQUEST_MAX` at once.
        """
        if not 0 <= size <= REQUEST_MAX:
            raise ValueError(f"{size} bytes asked of the DRBG, at most {REQUEST_MAX} at once")
        out = bytearray()
        while len(out) < size:
            self._value = hmac.digest(self._key, self._value, "sha256")
            out += self._value
        self._update(b"")
        return bytes(out[:size])


class Entropy:
    """A source of random bytes.

    Attributes:
        seed: The seed, or None for the operating system's randomness.
    """

    def __init__(self, seed: int | None = None, name: str = "sevd simulator") -> None:
        self.seed = seed
        self._name = name
        self._draw: Callable[[int], bytes]
        if seed is None:
            self._draw = os.urandom
        else:
            number = abs(seed)
            entropy = number.to_bytes(max(32, (number.bit_length() + 7) // 8), "big") + (b"-" if seed < 0 else b"")
            self._draw = HmacDrbg(entropy, name.encode()).generate

    def stream(self, name: str) -> Entropy:
        """A source of its own for one use; with a seed, always the same one for the same name."""
        return Entropy(self.seed, f"{self._name}/{name}")

    def bytes(self, size: int) -> bytes:
        """`size` random bytes, at most `REQUEST_MAX`."""
        return self._draw(size)

    @property
    def repeatable(self) -> bool:
        """Whether a seed was given."""
        return self.seed is not None
