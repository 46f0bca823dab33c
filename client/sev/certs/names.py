"""X.509 distinguished names as AMD writes them: one attribute per step, text in UTF-8, printable or IA5 strings.

Names are compared as bytes. AMD's certificates all have the same attributes in the same order; only the common name
differs (VCEK/VLEK specification, AMD 57230).
"""

from __future__ import annotations

from functools import lru_cache

from sev.certs import der
from sev.errors import MalformedInput

COMMON_NAME = b"\x55\x04\x03"

_LABELS = {
    COMMON_NAME: "CN",
    b"\x55\x04\x06": "C",
    b"\x55\x04\x07": "L",
    b"\x55\x04\x08": "ST",
    b"\x55\x04\x0a": "O",
    b"\x55\x04\x0b": "OU",
}

MAX_SIZE = 1024
MAX_ATTRIBUTES = 16

_AMD = bytes.fromhex(
    "31143012060355040b0c0b456e67696e656572696e67310b3009060355040613025553311430120603550407"
    "0c0b53616e746120436c617261310b300906035504080c024341311f301d060355040a0c16416476616e6365"
    "64204d6963726f2044657669636573"
)


def amd(common_name: str) -> bytes:
    """DER of the name that AMD gives to the certificate with this common name (at most 80 ASCII characters)."""
    text = common_name.encode("ascii")
    cn = bytes((der.SET, len(text) + 9, der.SEQUENCE, len(text) + 7, der.OID, 3)) + COMMON_NAME
    body = _AMD + cn + bytes((der.UTF8, len(text))) + text
    length = bytes((len(body),)) if len(body) < 0x80 else bytes((0x81, len(body)))
    return bytes((der.SEQUENCE,)) + length + body


@lru_cache(maxsize=128)
def parse(name: bytes, what: str) -> tuple[str, str]:
    """The common name ("" if there is none) and the whole name as text, of one DER name.

    Raises:
        MalformedInput: Longer than 1024 bytes, more than 16 attributes, an attribute in another form, or two common
            names.
    """
    if len(name) > MAX_SIZE:
        raise MalformedInput(f"{what}: name of {len(name)} bytes, expected at most {MAX_SIZE}", field=what)
    at, end = der.expect(name, 0, len(name), der.SEQUENCE, what)
    der.finish(end, len(name), what)
    common: str | None = None
    parts: list[str] = []
    while at < end:
        if len(parts) == MAX_ATTRIBUTES:
            raise MalformedInput(f"{what}: more than {MAX_ATTRIBUTES} attributes", field=what)
        step, step_end = der.expect(name, at, end, der.SET, what)
        pair, pair_end = der.expect(name, step, step_end, der.SEQUENCE, what)
        der.finish(pair_end, step_end, what)
        oid_start, oid_end = der.expect(name, pair, pair_end, der.OID, what)
        tag, text_start, text_end = der.element(name, oid_end, pair_end, what)
        der.finish(text_end, pair_end, what)
        text = _text(name[text_start:text_end], tag, what)
        oid = name[oid_start:oid_end]
        if oid == COMMON_NAME:
            if common is not None:
                raise MalformedInput(f"{what}: two common names", field=what)
            common = text
        parts.append(f"{_LABELS.get(oid) or der.oid_text(oid)}={text}")
        at = step_end
    return common or "", ", ".join(parts)


def _text(content: bytes, tag: int, what: str) -> str:
    try:
        if tag == der.UTF8:
            text = content.decode("utf-8")
        elif tag in (der.PRINTABLE, der.IA5):
            text = content.decode("ascii")
        else:
            raise MalformedInput(f"{what}: string of tag {tag:#04x}, expected UTF8, Printable or IA5", field=what)
    except UnicodeDecodeError:
        raise MalformedInput(f"{what}: text that is not in its declared character set", field=what) from None
    if not text.isprintable():
        raise MalformedInput(f"{what}: text with control characters", field=what)
    return text
