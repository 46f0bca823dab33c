"""Which way to the firmware a guest takes: what is there decides, unless the caller does."""

from __future__ import annotations

import os

from sev.errors import DeviceMissing, NotPermitted, SevError, UsageError
from sev.guest import device as sev_guest
from sev.guest import tsm as configfs
from sev.guest.refusals import NO_GUEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.guest.model import GuestPlatform
    from sev.guest.patience import Patience
    from sev.launch.seam import Kernel


def choose(
    *,
    device: str | None = None,
    tsm: str | None = None,
    kernel: Kernel | None = None,
    patience: Patience | None = None,
    vmpl: int | None = None,
    long_key_requests: bool = False,
    needs_device: bool = False,
    needs_tsm: bool = False,
) -> GuestPlatform:
    """The platform to ask; see `sev.guest.open`.

    Args:
        device: Use this device, whatever else is there.
        tsm: Use this folder of configfs-tsm, whatever else is there.
        kernel: Where the device is opened.
        patience: How long a busy host is waited for.
        vmpl: Privilege level asked for unless a request names one.
        long_key_requests: See SevGuestDevice.
        needs_device: What will be asked for only the device carries: keys, the choice of a key, a message version.
        needs_tsm: What will be asked for only configfs-tsm carries: services of an SVSM.

    Raises:
        UsageError: Both ways are named, or needed.
        DeviceMissing: There is none.
        NotPermitted: What is there may not be used by this user.
    """
    if device is not None and tsm is not None:
        raise UsageError("a device and a configfs-tsm folder exclude each other", field="device")
    if needs_device and needs_tsm:
        raise UsageError("no way carries both what only the device and what only configfs-tsm has", field="service")

    def open_device(path: str) -> GuestPlatform:
        return sev_guest.SevGuestDevice(
            path, kernel=kernel, patience=patience, vmpl=vmpl, long_key_requests=long_key_requests
        )

    if device is not None:
        return open_device(device)
    if tsm is not None or needs_tsm:
        return configfs.ConfigfsTsm(tsm or configfs.PATH, patience=patience, vmpl=vmpl)
    if needs_device:
        return open_device(sev_guest.PATH)
    refused: list[SevError] = []
    if os.path.isdir(configfs.PATH):
        platform = configfs.ConfigfsTsm(patience=patience, vmpl=vmpl)
        try:
            if platform.provider() == configfs.PROVIDER:
                return platform
        except (DeviceMissing, NotPermitted) as error:
            refused.append(error)
    try:
        return open_device(sev_guest.PATH)
    except (DeviceMissing, NotPermitted) as error:
        refused.append(error)
    forbidden = next((error for error in refused if isinstance(error, NotPermitted)), None)
    if forbidden is not None:
        raise forbidden
    tried = [error.message for error in refused]
    if not any(message.startswith(configfs.PATH) for message in tried):
        tried.append(f"{configfs.PATH}: no such folder, or not of an SEV guest")
    raise DeviceMissing("; ".join(tried), remedy=NO_GUEST, field="device")
