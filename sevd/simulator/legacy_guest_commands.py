"""The commands of SEV and SEV-ES guests, as methods of the firmware: one for each, as a mailbox.

They share the rules of `sevd.simulator.firmware`. Guests are named by handles from 1. Memory is given as bytes with its
physical address, a number of the caller's choice that is the same whenever the same memory is meant; what a command
leaves there is its answer, which the caller puts in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from sevd.simulator import legacy_launch, legacy_migration
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.legacy_guest import LUPDATE, RUPDATE
from sevd.simulator.legacy_migration import Receiver

if TYPE_CHECKING:
    from sevd.simulator.ca import CertificateAuthority


class LegacyGuestCommands(ABC):
    """What `Firmware` inherits."""

    ca: CertificateAuthority

    @abstractmethod
    def _command(self, name: str) -> AbstractContextManager[Platform]:
        """Runs one command: serialised, after the hook for faults."""

    # Beginning and end.

    def launch_start(self, handle: int, policy: int, certificate: bytes | None, session: bytes | None) -> int:
        """LAUNCH_START: the new guest's handle.

        Args:
            handle: A guest whose memory key it shares; 0: none.
            policy: Guest policy, 32 bits.
            certificate: The owner's ECDH certificate, 2084 bytes; None: there is no owner.
            session: The launch blob, 128 bytes.
        """
        with self._command("LAUNCH_START") as platform:
            return legacy_launch.begin(platform, handle, policy, certificate, session, LUPDATE)

    def activate(self, handle: int, asid: int) -> None:
        """ACTIVATE: binds an ASID."""
        with self._command("ACTIVATE") as platform:
            legacy_launch.activate(platform, handle, asid)

    def deactivate(self, handle: int) -> None:
        """DEACTIVATE: unbinds it."""
        with self._command("DEACTIVATE") as platform:
            legacy_launch.deactivate(platform, handle)

    def decommission(self, handle: int) -> None:
        """DECOMMISSION of a guest without an ASID."""
        with self._command("DECOMMISSION") as platform:
            legacy_launch.decommission(platform, handle)

    def guest_status(self, handle: int) -> bytes:
        """GUEST_STATUS, 13 bytes: handle, policy and ASID u32, state u8."""
        with self._command("GUEST_STATUS") as platform:
            return legacy_launch.guest_status(platform, handle)

    # Launch.

    def launch_update_data(self, handle: int, memory: memoryview, address: int) -> None:
        """LAUNCH_UPDATE_DATA of writable memory, which is encrypted in place."""
        with self._command("LAUNCH_UPDATE_DATA") as platform:
            legacy_launch.update_data(platform, handle, memory, address)

    def launch_update_vmsa(self, handle: int, page: bytes, address: int) -> bytes:
        """LAUNCH_UPDATE_VMSA: the page, encrypted."""
        with self._command("LAUNCH_UPDATE_VMSA") as platform:
            return legacy_launch.update_vmsa(platform, handle, page, address)

    def launch_measure(self, handle: int, length: int) -> bytes:
        """LAUNCH_MEASURE into a buffer of this length: 48 bytes."""
        with self._command("LAUNCH_MEASURE") as platform:
            return legacy_launch.measure(platform, handle, length)

    def launch_secret(self, handle: int, header: bytes, address: int, size: int, packet: bytes) -> bytes:
        """LAUNCH_SECRET: what lies at the address then."""
        with self._command("LAUNCH_SECRET") as platform:
            return legacy_launch.secret(platform, handle, header, address, size, packet)

    def launch_finish(self, handle: int) -> None:
        """LAUNCH_FINISH."""
        with self._command("LAUNCH_FINISH") as platform:
            legacy_launch.finish(platform, handle)

    def attestation(self, handle: int, mnonce: bytes, length: int) -> bytes:
        """ATTESTATION into a buffer of this length: 208 bytes."""
        with self._command("ATTESTATION") as platform:
            return legacy_launch.attestation(platform, handle, mnonce, length)

    # Migration.

    def send_start(self, handle: int, receiver: Receiver, length: int) -> tuple[int, bytes]:
        """SEND_START into a buffer of this length: policy, and the launch blob of 128 bytes."""
        with self._command("SEND_START") as platform:
            return legacy_migration.send_start(platform, self.ca.legacy_ca, handle, receiver, length)

    def send_update_data(
        self, handle: int, data: bytes, address: int, header_length: int, packet_length: int
    ) -> tuple[bytes, bytes]:
        """SEND_UPDATE_DATA into buffers of these lengths: header, 52 bytes, and packet, as long as the memory."""
        with self._command("SEND_UPDATE_DATA") as platform:
            return legacy_migration.send_update_data(platform, handle, data, address, header_length, packet_length)

    def send_update_vmsa(
        self, handle: int, page: bytes, address: int, header_length: int, packet_length: int
    ) -> tuple[bytes, bytes]:
        """SEND_UPDATE_VMSA, as `send_update_data`."""
        with self._command("SEND_UPDATE_VMSA") as platform:
            return legacy_migration.send_update_vmsa(platform, handle, page, address, header_length, packet_length)

    def send_finish(self, handle: int) -> None:
        """SEND_FINISH."""
        with self._command("SEND_FINISH") as platform:
            legacy_migration.send_finish(platform, handle)

    def send_cancel(self, handle: int) -> None:
        """SEND_CANCEL."""
        with self._command("SEND_CANCEL") as platform:
            legacy_migration.send_cancel(platform, handle)

    def receive_start(self, handle: int, policy: int, certificate: bytes, session: bytes) -> int:
        """RECEIVE_START with the sender's PDH and launch blob, as `launch_start`."""
        with self._command("RECEIVE_START") as platform:
            return legacy_launch.begin(platform, handle, policy, certificate, session, RUPDATE)

    def receive_update_data(self, handle: int, header: bytes, address: int, size: int, packet: bytes) -> bytes:
        """RECEIVE_UPDATE_DATA: what lies at the address then."""
        with self._command("RECEIVE_UPDATE_DATA") as platform:
            return legacy_migration.receive_update_data(platform, handle, header, address, size, packet)

    def receive_update_vmsa(self, handle: int, header: bytes, address: int, size: int, packet: bytes) -> bytes:
        """RECEIVE_UPDATE_VMSA, as `receive_update_data`."""
        with self._command("RECEIVE_UPDATE_VMSA") as platform:
            return legacy_migration.receive_update_vmsa(platform, handle, header, address, size, packet)

    def receive_finish(self, handle: int) -> None:
        """RECEIVE_FINISH."""
        with self._command("RECEIVE_FINISH") as platform:
            legacy_migration.receive_finish(platform, handle)

    # Debugging.

    def dbg_decrypt(self, handle: int, data: bytes, source: int, target: int) -> bytes:
        """DBG_DECRYPT of guest memory at `source`: what lies at `target` then."""
        with self._command("DBG_DECRYPT") as platform:
            return legacy_launch.debug(platform, handle, data, source, target, decrypt=True)

    def dbg_encrypt(self, handle: int, data: bytes, source: int, target: int) -> bytes:
        """DBG_ENCRYPT into guest memory at `target`: what lies there then."""
        with self._command("DBG_ENCRYPT") as platform:
            return legacy_launch.debug(platform, handle, data, source, target, decrypt=False)
