"""What AMD's key distribution service answers, for the one chip that the simulator knows. No sockets here.

    GET  /vcek/v1/P/HWID?blSPL=..&teeSPL=..&snpSPL=..&ucodeSPL=..   DER      (Turin: fmcSPL too, HWID of 8 bytes)
    GET  /vcek/v1/P/cert_chain      /vlek/v1/P/cert_chain           PEM: ASK or ASVK, then ARK
    GET  /vcek/v1/P/crl             /vlek/v1/P/crl                  DER
    GET  /cek/id/ID                                                 the signed CEK, 2084 bytes
    GET  /vlek/v1/P/cert?SPLs                                       DER; for providers
    POST /vlek/v1/P/hash_sticks?SPLs   {"hwids": [..]}              {"results": [{hwid: hex or "not found"}]}; providers

P is the processor line's name there, such as Genoa. HWID and ID are hexadecimal in either case; SPLs are decimal, each
exactly once. 400: a request that makes no sense; 403: for providers only (the real service has another port for them,
with client certificates); 404: no such path, line or chip.

Source: AMD 57230 (VCEK and VLEK certificates, KDS interface), and what programs of the field ask.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import unquote

from sev.abi.tcb import TcbVersion
from sev.records import record
from sevd.simulator.ca import pem

if TYPE_CHECKING:
    from sevd.simulator.firmware import Firmware

TARGET_MAX = 2048
"""Characters of a request target at most."""

BODY_MAX = 64 << 10
"""Bytes of a request body at most."""

HWIDS_MAX = 64
"""Chips asked about at once at most."""

SPL_NAMES = {"fmc": "fmcSPL", "bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}
"""Query parameters by TCB component."""

DER, PEM, JSON, TEXT = "application/octet-stream", "application/x-pem-file", "application/json", "text/plain"

WRONG, STRANGER, STALE = "wrong", "stranger", "stale"
"""A certificate of another TCB; of another chip; a list that ran out."""

_DECIMAL = re.compile(r"[0-9]{1,3}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


@record
class Answer:
    """A response.

    Attributes:
        status: HTTP status.
        body: Its content.
        kind: Content type.
        lasts: It stays the same for long: clients may ask whether it still does (ETag).
    """

    status: int
    body: bytes
    kind: str = TEXT
    lasts: bool = False

    @property
    def etag(self) -> str:
        """A validator of what lasts; empty for anything else."""
        return f'"{sha256(self.body).hexdigest()[:32]}"' if self.lasts and self.status == 200 else ""


class Refused(Exception):
    """A request that is refused: HTTP status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(status, text.encode() + b"\n")


class KdsAnswers:
    """The service's knowledge. Safe for use from several threads.

    Args:
        firmware: The chip, and the authority that vouches for it.
    """

    def __init__(self, firmware: Firmware) -> None:
        self._firmware = firmware
        self._product = firmware.product

    def answer(self, method: str, target: str, body: bytes = b"", *, provider: bool = False, twist: str = "") -> Answer:
        """The response to a request; every refusal is one too.

        Args:
            method: GET or POST; HEAD counts as GET.
            target: Path and query.
            body: Content, at most BODY_MAX bytes.
            provider: The client proved to be a provider.
            twist: What is not as it should be: WRONG, STRANGER, STALE; empty for nothing.
        """
        method = "GET" if method == "HEAD" else method
        try:
            if len(target) > TARGET_MAX or not target.isascii():
                raise Refused(400, "the request target is too long, or not ASCII")
            path, _, query = target.partition("?")
            parts = path.split("/")
            if parts[0] or len(parts) not in (4, 5):
                raise Refused(404, "no such path")
            if parts[1:3] == ["cek", "id"] and len(parts) == 4:
                return self._cek(method, parts[3])
            if len(parts) != 5 or parts[1] not in ("vcek", "vlek") or parts[2] != "v1":
                raise Refused(404, "no such path")
            if parts[3] != self._product.kds_name or not self._product.has_snp:
                raise Refused(404, f"no such product here; this chip is a {self._product.kds_name}")
            return self._of_product(method, parts[1], parts[4], query, body, provider, twist)
        except Refused as refused:
            return refused.answer

    def _of_product(
        self, method: str, key: str, what: str, query: str, body: bytes, provider: bool, twist: str
    ) -> Answer:
        ca = self._firmware.ca
        if what == "cert_chain":
            self._need(method, "GET")
            middle = ca.ask_der() if key == "vcek" else ca.asvk_der()
            return Answer(200, pem(middle) + pem(ca.ark_der()), PEM, lasts=True)
        if what == "crl":
            self._need(method, "GET")
            return Answer(200, ca.stale_crl_der() if twist == STALE else ca.crl_der(), DER, lasts=True)
        if key == "vcek":
            self._need(method, "GET")
            self._check_chip(what)
            issue = ca.stranger_der if twist == STRANGER else ca.vcek_der
            return Answer(200, issue(self._tcb(query, twist)), DER)
        if what not in ("cert", "hash_sticks"):
            raise Refused(404, "no such path")
        if not provider:
            raise Refused(403, "for cloud providers only: show a client certificate")
        if what == "cert":
            self._need(method, "GET")
            return Answer(200, ca.vlek_der(self._tcb(query, twist)), DER)
        self._need(method, "POST")
        return self._sticks(self._tcb(query, twist), body)

    def _cek(self, method: str, identifier: str) -> Answer:
        self._need(method, "GET")
        self._check_chip(identifier, padded=True)
        return Answer(200, self._firmware.ca.cek_certificate(), DER)

    def _sticks(self, tcb: int, body: bytes) -> Answer:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        hwids = document.get("hwids") if isinstance(document, dict) else None
        if not isinstance(hwids, list) or not all(isinstance(one, str) for one in hwids) or len(hwids) > HWIDS_MAX:
            raise Refused(400, f'expected {{"hwids": [..]}} with at most {HWIDS_MAX} chips')
        results = []
        for hwid in hwids:
            found = self._is_this_chip(hwid)
            stick = self._firmware.vlek_hashstick(tcb).hex() if found else "not found"
            results.append({hwid: stick})
        return Answer(200, json.dumps({"results": results}).encode() + b"\n", JSON)

    def _check_chip(self, text: str, *, padded: bool = False) -> None:
        if not _HEX.fullmatch(text):
            raise Refused(400, "the chip's identifier is not hexadecimal")
        if not self._is_this_chip(text, padded=padded):
            raise Refused(404, "no such chip")

    def _is_this_chip(self, text: str, *, padded: bool = False) -> bool:
        """Whether this is the chip's identifier at its own length; `padded`: or filled up with zeros to 64 bytes."""
        identifier = self._firmware.ca.chip_id
        own = identifier[: self._product.chip_id_bytes].hex()
        return text.lower() in ((own, identifier.hex()) if padded else (own,))

    def _tcb(self, query: str, twist: str) -> int:
        names = {SPL_NAMES[component]: component for component in self._product.components}
        found: dict[str, int] = {}
        for pair in query.split("&") if query else ():
            name, _, value = pair.partition("=")
            name, value = unquote(name), unquote(value)
            component = names.get(name)
            if component is None or component in found:
                raise Refused(400, f"the parameter {name[:20]!r} is not known here, or stands twice")
            if not _DECIMAL.fullmatch(value) or int(value) > 255:
                raise Refused(400, f"{name}: expected a decimal number from 0 to 255")
            found[component] = int(value)
        missing = [name for name, component in names.items() if component not in found]
        if missing:
            raise Refused(400, f"missing: {', '.join(missing)}")
        if twist == WRONG:
            found["snp"] ^= 1
        return TcbVersion.of(self._product, **found).raw

    @staticmethod
    def _need(method: str, expected: str) -> None:
        if method != expected:
            raise Refused(405, f"expected {expected}")
