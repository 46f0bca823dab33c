"""A new firmware on a simulated host that runs: what a firmware package and its live update do on a real one.

The new firmware is provisional until a commit: CURRENT_TCB and the version change, COMMITTED and REPORTED do not, and
it can be taken back to any version from the committed one on. Guests of SNP go on. SEV is shut down for it, as the
firmware demands, and initialised again, which guests of SEV and SEV-ES would not survive: with any, it is refused.

Source: SEV-SNP firmware ABI (AMD 56860), SNP_DOWNLOAD_FIRMWARE_EX. That the driver brings SEV down and up is this
model's choice.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sev.abi import sev_device as abi
from sev.abi.tcb import TcbVersion
from sev.errors import FirmwareError, KernelError, NotOffered
from sevd.simulator import versions
from sevd.simulator.errnos import FirmwareRefused, Reply, fail
from sevd.simulator.firmware_platform import UPDATE_COMMIT

if TYPE_CHECKING:
    from sevd.simulator.ccp import Ccp
    from sevd.simulator.simulator import Simulator

COMMAND = "SNP_DOWNLOAD_FIRMWARE_EX"


def update(simulator: Simulator, version: str, tcb: str = "", *, commit: bool = False) -> None:
    """Runs another firmware from now on.

    Args:
        simulator: The host.
        version: Such as "1.55.50".
        tcb: CURRENT_TCB with it: components to differ from that of the version's release ("snp=28,microcode=90"), or a
            whole TCB in any of the forms of `TcbVersion.parse`; empty: that of the release.
        commit: Commit it at once.

    Raises:
        UsageError: No such version or TCB.
        NotOffered: A processor line without SNP.
        FirmwareError: BAD_SVN: below the committed one.
        KernelError: EBUSY: there are guests of SEV or SEV-ES, or the processor is dead; others as of every command.
    """
    product = simulator.product
    if not product.has_snp:
        raise NotOffered(f"{product.kds_name} has no {COMMAND}", remedy="Start it anew with --firmware-version.")
    number = versions.parse(version)
    usual = TcbVersion.decode(versions.release(product, number).tcb, product)
    image = versions.image(number, _tcb(tcb, usual).encode() if tcb else b"")
    try:
        _download(simulator.ccp, image, UPDATE_COMMIT if commit else 0)
    except FirmwareRefused as refused:
        raise FirmwareError(refused.status, command=COMMAND) from None
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, command=COMMAND) from None


def _tcb(text: str, usual: TcbVersion) -> TcbVersion:
    """Raises UsageError."""
    if "=" not in text or text.lstrip().startswith("{"):
        return TcbVersion.parse(text, usual.product)
    named = TcbVersion.parse(text, usual.product).components()
    given = {part.partition("=")[0].strip() for part in text.split(",")}
    return usual.replace(**{name: value for name, value in named.items() if name in given})


def _download(ccp: Ccp, image: bytes, flags: int) -> None:
    """The driver's part. Raises OSError as `Ccp.call`."""
    reply = Reply()
    with ccp.lock:
        was_up = ccp.initialised
        if was_up:
            status = abi.PlatformStatus.decode(ccp.call(reply, ccp.firmware.platform_status))
            if status.state == abi.STATE_WORKING:
                fail(errno.EBUSY)
        ccp.shut_down_legacy(reply)
        try:
            ccp.call(reply, lambda: ccp.firmware.snp_download_firmware_ex(image, flags))
        finally:
            if was_up and not ccp.dead:
                ccp.initialise(Reply())
