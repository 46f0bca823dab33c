"""Verification of SEV platforms' chains against the primitives that it cannot do without, per second.

    python -m tests.bench.bench_sev_chain

    built in   PDH, PEK, OCA and CEK of a Naples (real where it lies beside the repository) under AMD's root: five signatures,
               since the link of a built-in ASK is known; floor: four P-384 keys and checks, one RSA-2048 key and check
    given      the same of a simulated Genoa with its own ASK and ARK: six signatures; floor: the same with RSA-4096, twice

What is read from bytes counts on our side, and every key is loaded anew on both. The two run in turn, and the ratio is
the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sev.abi import id_block, sev_certificate
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_chain
from sev.certs.sev_roots import SevRoots
from sevd.simulator import Simulator
from tests.bench.bench_verify import compare

RATIO_WANTED = 1.2
_REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "legacy" / "pdh-blob-naples.bin"

Check = tuple[Callable[[], object], object]


def ecdsa(subject: SevCertificate, signer: SevCertificate, slot: int) -> Callable[[], None]:
    """Loading the signer's key and checking one signature, nothing else."""
    x, y = id_block.decode_key(signer.key)
    point = b"\4" + x.to_bytes(48, "big") + y.to_bytes(48, "big")
    signature = encode_dss_signature(*id_block.decode_signature(subject.signatures[slot - 1].data))
    body, scheme = subject.body, ec.ECDSA(hashes.SHA256())

    def check() -> None:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point).verify(signature, body, scheme)

    return check


def pss(signature: bytes, message: bytes, signer: AmdCertificate) -> Callable[[], None]:
    """The same with RSA."""
    digest = hashes.SHA384() if signer.bits > 2048 else hashes.SHA256()
    scheme, text = padding.PSS(padding.MGF1(digest), digest.digest_size), signature[: signer.bits // 8][::-1]

    def check() -> None:
        numbers = rsa.RSAPublicNumbers(signer.exponent, signer.modulus)
        numbers.public_key().verify(text, message, scheme, digest)

    return check


def floor(chain: sev_chain.SevChain, ask: AmdCertificate, ark: AmdCertificate | None) -> Callable[[], None]:
    """Every signature of a chain."""
    checks = [
        ecdsa(chain.pdh, chain.pek, 1),
        ecdsa(chain.oca, chain.oca, 1),
        ecdsa(chain.pek, chain.oca, 1),
        ecdsa(chain.pek, chain.cek, 2),
        pss(chain.cek.signature1.data, chain.cek.body, ask),
    ]
    if ark is not None:
        checks.append(pss(ask.signature, ask.signed_bytes, ark))

    def run() -> None:
        for check in checks:
            check()

    return run


def simulated() -> tuple[bytes, SevRoots]:
    """A chain of a simulated Genoa, and its roots."""
    with tempfile.TemporaryDirectory() as folder:
        host = Simulator.open(Path(folder), product="genoa", seed=1)
        try:
            pdh, rest = host.firmware.pdh_cert_export(sev_certificate.SIZE, sev_certificate.CHAIN_SIZE)
            cek, authorities = host.firmware.ca.cek_certificate(), host.firmware.ca.legacy_ca()
        finally:
            host.close()
    return pdh + rest[: 2 * sev_certificate.SIZE] + cek, SevRoots.of(authorities)


def main() -> None:
    """Prints chains per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    rounds = 5 if parser.parse_args().quick else 41
    cases: dict[str, tuple[bytes, SevRoots]] = {"given": simulated()}
    if _REAL.exists():
        cases = {"built in": (_REAL.read_bytes(), SevRoots.amd()), **cases}
    for label, (data, roots) in cases.items():
        chain = sev_chain.SevChain.parse(data)
        ask = sev_chain.issuer_of(chain.cek, (), roots)
        assert ask is not None
        ark = None if roots.known_ask(ask) else sev_chain.root_of(ask, (), roots)

        def ours(data: bytes = data, roots: SevRoots = roots) -> None:
            sev_chain.verify(sev_chain.SevChain.parse(data), roots=roots)

        ratio, own, bare = compare(ours, floor(chain, ask, ark), lambda: None, rounds)
        print(
            f"{label:9} {1e6 / own:6.0f} chains/s against {1e6 / bare:6.0f}/s of the signatures alone: "
            f"ratio {ratio:.3f} (wanted: below {RATIO_WANTED})"
        )


if __name__ == "__main__":
    main()
