"""Another firmware on a simulated host that runs, over its control socket."""

from __future__ import annotations

import errno

import pytest

from sev import status
from sev.abi import kvm_sev
from sev.abi import kvm_sev_legacy as abi
from sev.errors import FirmwareError, KernelError, MalformedInput, UsageError
from sevd.simulator.control_client import ControlClient
from tests.support.control import Served, launch
from tests.support.legacy_machine import owners_start
from tests.support.waiting import eventually
from tests.unit.simulator_control.test_control_sev import Guest


def test_another_firmware_over_the_socket(served: Served) -> None:
    kernel = served.kernel()
    launch(kernel, served.sev)  # SNP guests go on
    firmware = served.simulator.firmware
    committed = firmware.committed_tcb
    with ControlClient.connect(served.folder / "control.sock") as control:
        control.update_firmware("1.55.50", "snp=28")
        assert (firmware.version, firmware.committed_tcb, served.simulator.guest_count()) == ((1, 55, 50), committed, 1)
        control.update_firmware("1.55.51", "snp=29", commit=True)
        assert firmware.committed_tcb == firmware.current_tcb != committed
        with pytest.raises(FirmwareError) as refused:
            control.update_firmware("1.55.50")
        assert refused.value.firmware_status == status.BAD_SVN
        with pytest.raises(UsageError):
            control.update_firmware("newest")
        malformed: list[dict[str, object]] = [
            {"version": 1},
            {"version": "1.55.52", "commit": 1},
            {"version": "1.55.52", "tcb": 5},
            {},
        ]
        for wrong in malformed:
            with pytest.raises(MalformedInput):
                control.call("firmware-update", **wrong)
        assert firmware.version == (1, 55, 51)
    kernel.exit()


def test_guests_of_sev_would_not_survive_it(served: Served) -> None:
    guest = Guest(served)
    _, start = owners_start(served.simulator, 1)
    certificate, session = guest.put(start.certificate), guest.put(start.session)
    request = abi.LaunchStart(0, 1, certificate, len(start.certificate), session, len(start.session))
    guest.op(kvm_sev.LAUNCH_START, request)
    before = served.simulator.firmware.version
    with ControlClient.connect(served.folder / "control.sock") as control:
        with pytest.raises(KernelError) as refused:
            control.update_firmware("1.55.50")
        assert (refused.value.errno, served.simulator.firmware.version) == (errno.EBUSY, before)
        guest.kernel.exit()
        eventually(lambda: served.simulator.firmware.platform_status()[2] != 2, "not WORKING any more", 10)
        control.update_firmware("1.55.50")
    assert served.simulator.firmware.version == (1, 55, 50)
