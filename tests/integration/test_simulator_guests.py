"""sevd-simulator's guests from outside: another process launches one, and its files are there; what the options say of
them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sev.attestation import Report
from sevd.simulator.overlay import OverlayKernel
from tests.support.control import NO_KVM, launch
from tests.support.device_files import device_files

NONCE = bytes(range(64))
PLAIN = {"auxblob", "generation", "inblob", "outblob", "privlevel", "privlevel_floor", "provider"}
OF_SVSM = {"manifestblob", "service_guid", "service_manifest_version", "service_provider"}


@pytest.mark.parametrize(
    ("options", "attributes", "floor", "certificates"),
    [
        ((), PLAIN, "0\n", True),
        (("--svsm",), PLAIN | OF_SVSM, "2\n", True),
        (("--no-guest-certificates",), PLAIN, "0\n", False),
    ],
    ids=["as it is", "--svsm", "--no-guest-certificates"],
)
def test_guests_of_a_simulator(
    tmp_path: Path, options: tuple[str, ...], attributes: set[str], floor: str, certificates: bool
) -> None:
    with device_files(tmp_path, *options) as served:
        assert os.listdir(served.devices / "sev-guest") == []
        kernel = OverlayKernel(served.devices, NO_KVM)
        guest, digest = launch(kernel, str(served.sev))
        (name,) = os.listdir(served.devices / "sev-guest")
        assert os.listdir(served.devices / "tsm") == [name]
        entry = served.devices / "tsm" / name / "entry"
        entry.mkdir()
        assert set(os.listdir(entry)) == attributes
        assert (entry / "privlevel_floor").read_text() == floor
        (entry / "privlevel").write_text("3")
        (entry / "inblob").write_bytes(NONCE)
        report = Report.parse((entry / "outblob").read_bytes())
        assert (report.report_data, report.measurement, report.vmpl) == (NONCE, digest, 3)
        assert bool((entry / "auxblob").read_bytes()) == certificates
        guest.close()
        kernel.exit()
        assert os.listdir(served.devices / "sev-guest") == []
