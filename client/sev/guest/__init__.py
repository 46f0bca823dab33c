"""Inside an SEV-SNP guest: attestation reports, the host's certificates, derived keys.

    import sev.guest

    with sev.guest.open() as platform:
        answer = platform.report(sev.guest.ReportRequest(challenge, certificates=True))
        answer.report              # 1184 bytes, for a verifier

There are two ways to the firmware, `/dev/sev-guest` and configfs-tsm, behind one interface (`GuestPlatform`). What
comes back is checked to answer what was asked: report data, privilege level, status, sizes. Whether it is genuine is
for the verifier to find out (`sev.attestation`), not for the guest.
"""

from __future__ import annotations

from sev.guest.errors import AnswerMismatch, ChannelDisabled, HostRefused, Throttled
from sev.guest.model import GuestReport, KeyRequest, ReportRequest, ServiceRequest
from sev.guest.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.guest.model import GuestPlatform
    from sev.launch.seam import Kernel

__all__ = [
    "AnswerMismatch",
    "ChannelDisabled",
    "GuestReport",
    "HostRefused",
    "KeyRequest",
    "Patience",
    "ReportRequest",
    "ServiceRequest",
    "Throttled",
    "open",
]


def open(  # noqa: A001 - the name that programs call it by: sev.guest.open()
    *,
    device: str | None = None,
    tsm: str | None = None,
    kernel: Kernel | None = None,
    patience: Patience | None = None,
    vmpl: int | None = None,
) -> GuestPlatform:
    """The way to the firmware that is there: configfs-tsm, else `/dev/sev-guest`.

    Args:
        device: Use this device (derived keys need one); or one that a simulator serves.
        tsm: Use this configfs-tsm folder.
        kernel: Where the device is opened; the real one by default.
        patience: How long a busy host is waited for; half a minute by default.
        vmpl: Privilege level asked for unless a request names one; by default the kernel's own.

    Raises:
        UsageError: Both `device` and `tsm` are given.
        DeviceMissing: There is neither: not an SNP guest, or the driver is not loaded.
        NotPermitted: This user may not use what is there.
    """
    from sev.guest.choice import choose

    return choose(device=device, tsm=tsm, kernel=kernel, patience=patience, vmpl=vmpl)
