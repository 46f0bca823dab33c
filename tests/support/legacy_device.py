"""Legacy commands of /dev/sev as a program issues them, for tests in every kernel era."""

from __future__ import annotations

from sev.abi import sev_certificate
from sev.abi import sev_device as abi
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import issue

SIZE, CHAIN_SIZE = sev_certificate.SIZE, sev_certificate.CHAIN_SIZE
UNMAPPED = 0x1000
INITIALISING = (abi.PEK_GEN, abi.PEK_CSR, abi.PDH_GEN, abi.PDH_CERT_EXPORT, abi.PEK_CERT_IMPORT)
"""Commands that bring legacy SEV up where it is down."""


def legacy(process: Process, fd: int) -> abi.PlatformStatus:
    """PLATFORM_STATUS."""
    return abi.PlatformStatus.decode(issue(process, fd, abi.PLATFORM_STATUS, bytes(12)).data)


def snp_state(host: Simulator) -> int:
    """State of SNP in the firmware; to ask by the device would bring it up, in some eras."""
    return host.firmware.snp_platform_status()[2]


def csr(process: Process, fd: int) -> bytes:
    """PEK_CSR."""
    buffer = bytearray(SIZE)
    outcome = issue(process, fd, abi.PEK_CSR, abi.PekCsr(process.memory.place(buffer), SIZE).encode())
    assert outcome[:2] == (0, 0)
    return bytes(buffer)


def export(process: Process, fd: int) -> tuple[bytes, bytes]:
    """PDH_CERT_EXPORT: PDH; PEK, OCA and CEK."""
    pdh, chain = bytearray(SIZE), bytearray(CHAIN_SIZE)
    request = abi.PdhCertExport(process.memory.place(pdh), SIZE, process.memory.place(chain), CHAIN_SIZE)
    assert issue(process, fd, abi.PDH_CERT_EXPORT, request.encode())[:2] == (0, 0)
    return bytes(pdh), bytes(chain)


def requests(process: Process) -> dict[int, bytes]:
    """What the commands that initialise are given, by number."""
    place = process.memory.place(bytearray(CHAIN_SIZE))
    return {
        abi.PEK_GEN: b"",
        abi.PDH_GEN: b"",
        abi.PEK_CSR: abi.PekCsr(place, SIZE).encode(),
        abi.PDH_CERT_EXPORT: abi.PdhCertExport(place, SIZE, place, CHAIN_SIZE).encode(),
        abi.PEK_CERT_IMPORT: abi.PekCertImport(place, SIZE, place, SIZE).encode(),
    }
