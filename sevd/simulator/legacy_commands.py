"""The commands of legacy SEV, as methods of the firmware: one for each, as a mailbox.

They share the rules of `sevd.simulator.firmware`. A buffer that is too small is INVALID_LENGTH, and the exception's
`lengths` are what the firmware leaves in the length fields of the command.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from sev import status
from sev.abi.sev_device import ID_SIZE
from sevd.simulator.firmware_legacy import INIT_ES
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.firmware_status import FirmwareStatus


class LegacyCommands(ABC):
    """What `Firmware` inherits."""

    @abstractmethod
    def _command(self, name: str) -> AbstractContextManager[Platform]:
        """Runs one command: serialised, after the hook for faults."""

    def init(self, flags: int = INIT_ES) -> None:
        """INIT; after SNP_INIT where there is SNP. Other flags than b0, for SEV-ES, are INVALID_CONFIG.

        A store that this chip did not write is erased: SECURE_DATA_INVALID, and the next INIT makes new keys.
        """
        with self._command("INIT") as platform:
            platform.legacy.init(flags)

    def init_ex(self, host_store: bytearray | None, flags: int = INIT_ES) -> None:
        """INIT_EX with the store in the host's memory, 32 KiB that commands change; None: in the chip's flash."""
        with self._command("INIT_EX") as platform:
            platform.legacy.init(flags, host_store)

    def shutdown(self) -> None:
        """SHUTDOWN, in any state: deletes all legacy guests."""
        with self._command("SHUTDOWN") as platform:
            platform.legacy.shutdown()

    def factory_reset(self) -> None:
        """PLATFORM_RESET: erases keys and ownership; only while SEV is uninitialised."""
        with self._command("FACTORY_RESET") as platform:
            platform.legacy.reset()

    def platform_status(self) -> bytes:
        """PLATFORM_STATUS, 12 bytes."""
        with self._command("PLATFORM_STATUS") as platform:
            return platform.legacy.status()

    def pek_gen(self) -> None:
        """PEK_GEN: new OCA, PEK and PDH; in state INIT."""
        with self._command("PEK_GEN") as platform:
            platform.legacy.pek_gen()

    def pek_csr(self, length: int) -> bytes:
        """PEK_CSR into a buffer of this length: 2084 bytes."""
        with self._command("PEK_CSR") as platform:
            return platform.legacy.pek_csr(length)

    def pek_cert_import(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT: what PEK_CSR gave, signed by an owner's OCA, and that OCA's certificate."""
        with self._command("PEK_CERT_IMPORT") as platform:
            platform.legacy.pek_cert_import(pek, oca)

    def pdh_cert_export(self, pdh_length: int, chain_length: int) -> tuple[bytes, bytes]:
        """PDH_CERT_EXPORT into buffers of these lengths: PDH, 2084 bytes; PEK, OCA and unsigned CEK, 6252."""
        with self._command("PDH_CERT_EXPORT") as platform:
            return platform.legacy.pdh_cert_export(pdh_length, chain_length)

    def pdh_gen(self) -> None:
        """PDH_GEN: a new PDH; also while guests run."""
        with self._command("PDH_GEN") as platform:
            platform.legacy.pdh_gen()

    def df_flush(self, *, wbinvd: bool = True) -> None:
        """DF_FLUSH: dirty ASIDs become clean; `wbinvd` says whether all cores wrote back their caches before."""
        with self._command("DF_FLUSH") as platform:
            platform.df_flush(wbinvd)

    def download_firmware(self, image: bytes, address: int = 0) -> None:
        """DOWNLOAD_FIRMWARE of a file of `versions.image`, at an address that is a multiple of 32; commits it too."""
        with self._command("DOWNLOAD_FIRMWARE") as platform:
            platform.load_image(bytes(image), address)

    def get_id(self, length: int = ID_SIZE) -> bytes:
        """GET_ID into a buffer of this length: the chip id, 64 bytes (from Turin on 8 and zeros); one socket."""
        with self._command("GET_ID") as platform:
            if length < ID_SIZE:
                raise FirmwareStatus(status.INVALID_LENGTH, lengths=(ID_SIZE,))
            return platform.chip.identifier
