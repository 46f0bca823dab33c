"""Plain files beside the devices: what kind of machine this is (`platform.json`), and whom to trust (`roots/`)."""

from __future__ import annotations

import json

from sev import __version__, products
from sevd.simulator import hardware, versions
from sevd.simulator.ca import pem
from sevd.simulator.simulator import Simulator


def platform_json(simulator: Simulator, kds: str | None) -> bytes:
    """`platform.json`: one object.

    Keys: `simulated` (true), `version` (of this program), `product`, `firmware` ("1.55.49"), `kernel`, `kds` (URL or
    null), `cpuid`: a list of {leaf, subleaf, eax, ebx, ecx, edx}, each "0x" and 8 hex digits.
    """
    facts = simulator.host_facts()
    part = hardware.of(products.by_name(facts.product))
    document = {
        "simulated": True,
        "version": __version__,
        "product": facts.product,
        "firmware": versions.text(simulator.firmware.version),
        "kernel": facts.kernel,
        "kds": kds,
        "cpuid": [
            {
                "leaf": f"0x{leaf:08x}",
                "subleaf": f"0x{subleaf:08x}",
                **{name: f"0x{value:08x}" for name, value in zip(("eax", "ebx", "ecx", "edx"), registers, strict=True)},
            }
            for (leaf, subleaf), registers in sorted(part.cpuid.items())
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def roots(simulator: Simulator) -> dict[str, bytes]:
    """The files of `roots/` by name: ark.pem, ask.pem, legacy-ca.cert (ASK, then ARK, AMD's older form)."""
    ca = simulator.firmware.ca
    return {"ark.pem": pem(ca.ark_der()), "ask.pem": pem(ca.ask_der()), "legacy-ca.cert": ca.legacy_ca()}
