"""Takes secrets and names out of text that is to leave the machine.

Secrets should not be in any of it; this is what catches them all the same: PEM blocks, long runs of hexadecimal digits
or base64, passwords in addresses. Names (of users, groups, units, certificates, guests, this machine) and network
addresses become stand-ins, the same one for the same name, so that a story can still be followed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,64})-----.*?(?:-----END [A-Z0-9 ]{1,64}-----|\Z)", re.DOTALL)
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{24,}(?![0-9A-Za-z])")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/_-]{32,}={0,2}(?![A-Za-z0-9+/=_-])")
_PASSWORD = re.compile(r"(?<=://)[^/\s@]{1,256}@")
_KEYED = re.compile(
    r"(?i)\b((?:[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|credential|authorization))\s*[:=]\s*)(\S+)"
)
_IDENTITY = re.compile(r"\b(uid|gid|pid|user|group|unit|uri|dns|owner|caller)([:=])([^\s,;()\"']+)")
_GUEST = re.compile(r"\b(?:snp|sev|sev-es|plain)-[0-9a-f]{12}\b")
_HOME = re.compile(r"(/(?:home|Users|run/user)/)[^/\s\"',;:]+")
_ADDRESS = re.compile(r"(?<![0-9A-Za-z.:])(?:[0-9.]{7,15}|[0-9a-fA-F:]{3,39})(?![0-9A-Za-z:])")
_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_SHORT = 3


class Redactor:
    """Makes text fit to be sent to strangers.

    Args:
        names: Names are left as they are; secrets never are.
    """

    def __init__(self, *, names: bool) -> None:
        self.names = names
        self._stand_ins: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._longest_first: list[str] = []

    def learn(self, kind: str, names: Iterable[str]) -> None:
        """These are names of this kind ("guest", "user", "machine"): they are replaced wherever they stand."""
        for name in names:
            if len(name) >= _SHORT and name not in ("root", "sevd", "sev", "localhost"):
                self._stand_in(kind, name)

    def document(self, value: object) -> object:
        """A document with every text in it made fit, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.document(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(one) for one in value]
        return value

    def text(self, text: str) -> str:
        """Text made fit."""
        text = _PEM.sub(r"(PEM \1 withheld)", text)
        text = _PASSWORD.sub("(withheld)@", text)
        text = _KEYED.sub(r"\1(withheld)", text)
        text = _HEX.sub(lambda found: f"(hex, {len(found[0])} characters, withheld)", text)
        text = _BASE64.sub(_encoded, text)
        return text if self.names else self._without_names(text)

    def _without_names(self, text: str) -> str:
        text = _IDENTITY.sub(lambda found: f"{found[1]}{found[2]}{self._stand_in(found[1], found[3])}", text)
        text = _GUEST.sub(lambda found: self._stand_in("guest", found[0]), text)
        text = _HOME.sub(r"\1(somebody)", text)
        text = _ADDRESS.sub(self._address, text)
        if len(self._longest_first) != len(self._stand_ins):
            self._longest_first = sorted(self._stand_ins, key=len, reverse=True)
        for name in self._longest_first:
            if len(name) >= _SHORT and name in text and not name.isdigit():
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", self._stand_ins[name], text)
        return text

    def _address(self, found: re.Match[str]) -> str:
        """What stands for a network address: itself if it is none, or this machine's to itself."""
        from ipaddress import ip_address

        run = found[0]
        if _MAC.fullmatch(run):
            return self._stand_in("address", run)
        try:
            address = ip_address(run.rstrip("."))
        except ValueError:
            return run
        return run if address.is_loopback or address.is_unspecified else self._stand_in("address", run)

    def _stand_in(self, kind: str, name: str) -> str:
        if re.fullmatch(rf"{kind}-[0-9]+", name) or (kind in ("uid", "gid") and name == "0"):
            return name  # replaced before; and root is nobody's name
        found = self._stand_ins.get(name)
        if found is None:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            found = self._stand_ins[name] = f"{kind}-{self._counts[kind]}"
        return found


def _encoded(found: re.Match[str]) -> str:
    """What stands for a run of characters of base64: itself if it is a path or a word, which lack some of them."""
    run = found[0]
    mixed = any(c.isdigit() for c in run) and any(c.isupper() for c in run) and any(c.islower() for c in run)
    return f"(base64, {len(run)} characters, withheld)" if mixed else run
