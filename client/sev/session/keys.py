"""The transport keys of a session: TEK encrypts, TIK protects integrity. Whoever has them is the guest's owner."""

from __future__ import annotations

import hmac
import os

from sev.errors import MalformedInput
from sev.session.kdf import KEY_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class TransportKeys:
    """TEK and TIK, 16 bytes each. Compared in constant time; shown to nobody, pickled never.

    Args:
        tek: Transport encryption key.
        tik: Transport integrity key.

    Raises:
        MalformedInput: A key that is not 16 bytes.
    """

    __slots__ = ("tek", "tik")

    def __init__(self, tek: bytes, tik: bytes) -> None:
        for name, key in (("tek", tek), ("tik", tik)):
            if len(key) != KEY_SIZE:
                raise MalformedInput(f"{name}: {len(key)} bytes where exactly {KEY_SIZE} were expected", field=name)
        self.tek = bytes(tek)
        self.tik = bytes(tik)

    @classmethod
    def generate(cls) -> TransportKeys:
        """Fresh keys from the system's random source."""
        return cls(os.urandom(KEY_SIZE), os.urandom(KEY_SIZE))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TransportKeys):
            return NotImplemented
        return hmac.compare_digest(self.tek + self.tik, other.tek + other.tik)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<TransportKeys>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("transport keys are secret and are not pickled")
