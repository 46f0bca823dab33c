"""AMD SEV, SEV-ES and SEV-SNP: certificates, attestation, measurement, launch, and the client of sevd.

Everything is loaded when first used, so that `import sev` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev import abi, aio, attestation, certs, errors, guest, launch, measurement, products, status
    from sev.abi.policy import SnpPolicy
    from sev.abi.tcb import TcbVersion
    from sev.client import connect
    from sev.errors import SevError

__version__ = "0.1.0"

_MODULES = ("abi", "aio", "attestation", "certs", "errors", "guest", "launch", "measurement", "products", "status")
_NAMES = {
    "SevError": "sev.errors",
    "SnpPolicy": "sev.abi.policy",
    "TcbVersion": "sev.abi.tcb",
    "connect": "sev.client",
}

__all__ = [
    "SevError", "SnpPolicy", "TcbVersion", "__version__", "abi", "aio", "attestation", "certs", "connect", "errors",
    "guest",
    "launch", "measurement", "products", "status",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Loads a public name on first use (PEP 562)."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"sev.{name}")
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sev' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
