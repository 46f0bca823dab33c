"""What the configuration wants of the SNP platform, and how a platform deviates from it.

    [platform]
    reported_tcb = "committed"             or "bootloader=10,snp=23", or "10 0 23 72", or 16 hexadecimal digits
    mask_chip_id = true
    mask_chip_key = false
    vlek = "/etc/sevd/hashstick.bin"

What is not named is left as it is, and so are TCB components that are not named. Nothing here changes anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.abi.sev_device import VLEK_BLOB_SIZE
from sev.errors import SevError, UsageError
from sev.products import TCB_COMPONENTS
from sev.records import record
from sevd.platform.vlek import digest_of, tcb_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sev.abi.tcb import TcbVersion
    from sevd.platform.views import SnpStatusView
    from sevd.settings import Settings

COMMITTED = "committed"
"""The reported TCB follows the committed one."""

_IN_ORDER = ("bootloader", "tee", "snp", "microcode", "fmc")
"""Components as `sev snp config set` and snphost have them in order."""

_EXPECTED = 'expected "committed", such as "snp=23", "BOOTLOADER TEE SNP MICROCODE [FMC]", or 16 hexadecimal digits'


@record
class WantedTcb:
    """A reported TCB that is wanted: one of the three.

    Attributes:
        committed: The committed one, whatever it is.
        components: These components; others as they are.
        raw: Exactly this one.
    """

    committed: bool = False
    components: Mapping[str, int] | None = None
    raw: int | None = None

    def deviation(self, reported: TcbVersion, committed: TcbVersion | None) -> str:
        """How a reported TCB deviates, as the end of a sentence; empty if it does not, or if that is not known."""
        if self.committed:
            return "" if committed in (None, reported) else f"reported is {reported}, committed is {committed}"
        if self.raw is not None:
            return "" if reported.raw == self.raw else f"reported is {reported.raw:016x}, wanted is {self.raw:016x}"
        assert self.components is not None
        wrong = [(name, wanted, reported.get(name)) for name, wanted in self.components.items()]
        return ", ".join(
            f"{name} is {is_now}, wanted is {wanted}" for name, wanted, is_now in wrong if is_now != wanted
        )


@record
class Desired:
    """What is wanted; see the module.

    Attributes:
        reported_tcb: As configured; empty: none.
        mask_chip_id: None: either.
        mask_chip_key: None: either.
        vlek: File of the wrapped hash stick; None: none.
    """

    reported_tcb: str = ""
    mask_chip_id: bool | None = None
    mask_chip_key: bool | None = None
    vlek: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Desired:
        """What a configuration wants."""
        return cls(
            settings.wanted_tcb, settings.wanted_mask_chip_id, settings.wanted_mask_chip_key, settings.wanted_vlek
        )

    @property
    def anything(self) -> bool:
        """Whether anything is wanted at all."""
        return self != Desired()

    @property
    def tcb(self) -> WantedTcb | None:
        """The reported TCB that is wanted."""
        return parse_tcb(self.reported_tcb) if self.reported_tcb else None

    def masks(self, status: SnpStatusView) -> dict[str, bool]:
        """The masks that are to change."""
        wanted = {"mask_chip_id": self.mask_chip_id, "mask_chip_key": self.mask_chip_key}
        return {name: on for name, on in wanted.items() if on is not None and on is not getattr(status, name)}


@record
class HashStick:
    """The file of a hash stick, as it was read.

    Attributes:
        path: Where it lies.
        content: 432 bytes; empty if it cannot be used.
        problem: Why not, as a sentence.
    """

    path: Path
    content: bytes = b""
    problem: str = ""

    @classmethod
    def read(cls, path: Path) -> HashStick:
        """Reads a file; never raises."""
        try:
            with path.open("rb") as file:
                content = file.read(VLEK_BLOB_SIZE + 1)
        except OSError as error:
            return cls(path, problem=f"The hash stick {path} cannot be read: {error.strerror}.")
        if len(content) != VLEK_BLOB_SIZE:
            size = f"more than {VLEK_BLOB_SIZE}" if len(content) > VLEK_BLOB_SIZE else str(len(content))
            return cls(path, problem=f"{path} is no hash stick: it has {size} bytes, expected {VLEK_BLOB_SIZE}.")
        return cls(path, content)

    def fits(self, status: SnpStatusView) -> bool:
        """Whether it is for the reported TCB."""
        return tcb_of(self.content, status.reported_tcb.product) == status.reported_tcb

    def loaded(self, status: SnpStatusView) -> bool:
        """Whether it is known to be the one that is loaded."""
        return status.vlek is not None and status.vlek.digest == digest_of(self.content)

    def deviation(self, status: SnpStatusView) -> str:
        """How the platform deviates from having it loaded, and from signing with it what fits; empty if it does not."""
        if self.problem:
            return self.problem
        product = status.reported_tcb.product
        if not self.fits(status):
            return (
                f"The hash stick {self.path} is for the TCB {tcb_of(self.content, product)}, and the platform reports "
                f"{status.reported_tcb}: it cannot be loaded, or nothing fits what it signs."
            )
        if not status.vlek_loaded:
            return f"No VLEK is loaded; wanted is that of {self.path}."
        if not self.loaded(status):
            return f"The VLEK that is loaded is not known to be that of {self.path}."
        return ""


def parse_tcb(text: str) -> WantedTcb:
    """A wanted reported TCB from its text.

    Raises:
        UsageError: It is none.
    """
    plain = text.strip()
    if plain.lower() == COMMITTED:
        return WantedTcb(committed=True)
    digits = plain.removeprefix("0x")
    if len(digits) == 16 and all(digit in "0123456789abcdefABCDEF" for digit in digits) and int(digits, 16):
        return WantedTcb(raw=int(digits, 16))
    if "=" in plain:
        pairs = [part.partition("=") for part in plain.split(",")]
        named = [(name.strip(), number.strip()) for name, _, number in pairs]
    else:
        numbers = plain.split()
        named = list(zip(_IN_ORDER, numbers, strict=False)) if 4 <= len(numbers) <= 5 else []
    components = {
        name: int(number) for name, number in named if number.isascii() and number.isdigit() and len(number) < 4
    }
    unknown = [name for name, _ in named if name not in TCB_COMPONENTS]
    if not named or unknown or len(components) != len(named) or max(components.values()) > 0xFF:
        raise UsageError(f"{text!r:.60} is no reported TCB: {_EXPECTED}", field="reported_tcb")
    return WantedTcb(components=components)


def drift_of(
    desired: Desired, status: SnpStatusView, committed: TcbVersion | None, stick: HashStick | None
) -> list[str]:
    """How a platform deviates, one sentence each.

    Args:
        desired: What is wanted.
        status: The platform.
        committed: The committed TCB, where it is known.
        stick: The hash stick that is wanted, as read.
    """
    out = []
    tcb = desired.tcb
    if tcb is not None:
        foreign = [name for name in tcb.components or () if name not in status.reported_tcb.components()]
        deviation = tcb.deviation(status.reported_tcb, committed)
        if foreign:
            line = status.reported_tcb.product.kds_name
            out.append(f"The reported TCB that is wanted cannot be: {line} has no component {', '.join(foreign)}.")
        elif deviation:
            out.append(f"The reported TCB is not the wanted one: {deviation}.")
    for name, on in desired.masks(status).items():
        what = {"mask_chip_id": "The chip id", "mask_chip_key": "The chip key"}[name]
        out.append(f"{what} is not masked, as it is wanted." if on else f"{what} is masked, which is not wanted.")
    if stick is not None and (deviation := stick.deviation(status)):
        out.append(deviation)
    return out


def why_not(error: SevError) -> str:
    """What kept the daemon from changing the platform, as a sentence."""
    return f"It was not changed: {error.message.rstrip('.')}."
