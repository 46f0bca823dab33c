"""A simulated SNP guest on the real /dev/kvm: launched by RPC, measured, attested, and executing what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from sev.abi.kvm_run import HALT, PortWrite
from sev.attestation import Report
from sev.measurement.sample import sample_firmware
from tests.support import real_mode as rm
from tests.support.daemon import running
from tests.support.device_files import device_files
from tests.support.needs import need_kvm

SECRET_AT = 0x4000
"""Where the text lies in the image's last 64 KiB; the program reads it through the code segment."""


def image(text: bytes) -> bytes:
    """The sample firmware, with a program at its reset vector that prints a text which lies in the image."""
    out = bytearray(sample_firmware())
    base = len(out) - rm.RAM
    program = b"\xfc\xba\xf8\x03\xbe" + SECRET_AT.to_bytes(2, "little") + b"\xb9" + len(text).to_bytes(2, "little")
    program += b"\x2e\xac\xee\xe2\xfb\xf4"  # next: lodsb cs:[si]; out dx, al; loop next; hlt
    assert not any(out[base : base + len(program)])
    out[base : base + len(program)] = program
    out[base + SECRET_AT : base + SECRET_AT + len(text)] = text
    out[-16:-13] = b"\xe9\x0d\x00"
    return bytes(out)


@pytest.mark.parametrize("text", [b"measured", b"and run!"])
def test_what_runs_is_what_was_measured(tmp_path: Path, text: bytes) -> None:
    need_kvm()
    with (
        device_files(tmp_path / "sim") as files,
        running(tmp_path / "d", "--simulator", str(files.devices)) as daemon,
        daemon.connect() as host,
    ):
        launched = host.launch_snp(image(text), memory_bytes=16 << 20)
        guest = launched.guest.guest_id
        assert launched.as_expected
        report = Report.parse(host.guest_report(guest, bytes(64)).report)
        assert report.measurement == launched.expected_digest
        printed = b""
        with host.run_guest(guest, posted_writes=16) as run:
            for found in run:
                if found.what == HALT:
                    break
                assert isinstance(found.what, PortWrite), found
                printed += found.what.data
                run.complete(found)
        assert printed == text
        assert host.guest(guest).state == "paused"
        host.delete_guest(guest, confirm=True)
