"""The devices that `sev guest run` gives a guest: a serial port and two debug ports; everything else is empty.

A read of a port or address where nothing is answers all ones, as hardware does.
"""

from __future__ import annotations

from sev.abi import kvm_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.abi.kvm_run import Exit

SERIAL = 0x3F8
DEBUG_PORTS = (0xE9, 0x402)
"""What Bochs and QEMU have, and OVMF and SeaBIOS print to; a read tells that they are there."""

_DEBUG_HERE = 0xE9
_REGISTERS = 8
_DATA, _INTERRUPTS, _LINE_CONTROL, _LINE_STATUS, _MODEM_STATUS, _SCRATCH = 0, 2, 3, 5, 6, 7
_DIVISOR_LATCH = 0x80
_READY_TO_SEND, _HAS_BYTE = 0x60, 0x01
_NO_INTERRUPT, _CONNECTED = 0x01, 0xB0


class Console:
    """Answers a guest's exits.

    Args:
        show: Takes what the guest prints.
        key: The next byte that was typed, or None.
    """

    def __init__(self, show: Callable[[bytes], object], key: Callable[[], int | None] = lambda: None) -> None:
        self._show = show
        self._key = key
        self._typed: int | None = None
        self._registers = bytearray(_REGISTERS)

    def answer(self, what: Exit) -> tuple[bytes, bool]:
        """What completes an exit, and whether the exit was for one of the devices here."""
        if isinstance(what, kvm_run.PortWrite):
            return b"", self._write(what)
        if isinstance(what, kvm_run.PortRead):
            value = self._read(what.port) if what.size == 1 else None
            if value is None:
                return b"\xff" * (what.size * what.repeat), False
            values = [value, *(self._read(what.port) or 0 for _ in range(what.repeat - 1))]
            return bytes(values), True
        if isinstance(what, kvm_run.MmioRead):
            return b"\xff" * what.size, False
        return b"", False

    def _write(self, out: kvm_run.PortWrite) -> bool:
        if out.port in DEBUG_PORTS:
            self._show(out.data)
            return True
        register = out.port - SERIAL
        if not 0 <= register < _REGISTERS or out.size != 1:
            return False
        if register == _DATA and not self._registers[_LINE_CONTROL] & _DIVISOR_LATCH:
            self._show(out.data)
        elif register in (_LINE_CONTROL, _SCRATCH):
            self._registers[register] = out.data[-1]
        return True

    def _read(self, port: int) -> int | None:
        """A byte from a device; None where none is."""
        if port in DEBUG_PORTS:
            return _DEBUG_HERE
        register = port - SERIAL
        if not 0 <= register < _REGISTERS:
            return None
        if register == _LINE_STATUS:
            return _READY_TO_SEND | (_HAS_BYTE if self._peek() is not None else 0)
        if register == _DATA and not self._registers[_LINE_CONTROL] & _DIVISOR_LATCH:
            typed, self._typed = self._peek(), None
            return typed or 0
        fixed = {_INTERRUPTS: _NO_INTERRUPT, _MODEM_STATUS: _CONNECTED}
        return fixed.get(register, self._registers[register])

    def _peek(self) -> int | None:
        if self._typed is None:
            self._typed = self._key()
        return self._typed
