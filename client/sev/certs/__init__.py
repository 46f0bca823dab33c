"""AMD's SNP certificates: reading, roots, chains, revocation lists.

`load` takes what files hold (DER, PEM, several in a row); `Certificate` and `Crl` are one object each; `Roots` are the
keys that chains must end in. Everything is loaded when first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.certs.crl import Crl
    from sev.certs.files import load, load_all
    from sev.certs.roots import Authority, Roots, builtin
    from sev.certs.x509 import Certificate

__all__ = ["Authority", "Certificate", "Crl", "Roots", "builtin", "load", "load_all"]

_NAMES = {
    "Authority": "sev.certs.roots",
    "Certificate": "sev.certs.x509",
    "Crl": "sev.certs.crl",
    "Roots": "sev.certs.roots",
    "builtin": "sev.certs.roots",
    "load": "sev.certs.files",
    "load_all": "sev.certs.files",
}


def __getattr__(name: str) -> object:
    """Loads a public name on first use (PEP 562)."""
    from importlib import import_module

    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sev.certs' has no attribute {name!r}")
