"""Values of the endorsement room. They mirror the messages of sev.v1 field by field; numbers of enums are the same."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from sev.records import record

if TYPE_CHECKING:
    from datetime import datetime

    from sev.abi.tcb import TcbVersion
    from sev.products import Product


class EndorsementKind(IntEnum):
    """What a certificate or list is."""

    UNSPECIFIED = 0
    ARK = 1
    ASK = 2
    ASVK = 3
    VCEK = 4
    VLEK = 5
    CRL = 6


@record
class Endorsement:
    """One certificate or list.

    Attributes:
        kind: What it is.
        der: Content in DER.
        origin: Where it came from: "simulator", "import", "offline", "kds"; "kept" where that was lost.
        tcb: The TCB it endorses; VCEK and VLEK only.
        fetched: When it was taken; None: not known.
        ends: When it runs out: a certificate's notAfter, a list's nextUpdate.
    """

    kind: EndorsementKind
    der: bytes
    origin: str
    tcb: TcbVersion | None = None
    fetched: datetime | None = None
    ends: datetime | None = None


@record
class EndorsementSet:
    """The certificates that fit this chip and its reported TCB.

    Attributes:
        endorsements: Certificates and lists at hand, in the order of their kind.
        certificate_table: GHCB certificate table of them, as guests receive it.
        missing: What is missing for a full chain, each as one sentence.
        simulated: The chain ends in the simulator's root.
    """

    endorsements: tuple[Endorsement, ...]
    certificate_table: bytes
    missing: tuple[str, ...]
    simulated: bool


class RefreshResult(IntEnum):
    """How it stands with one thing that is needed."""

    UNSPECIFIED = 0
    AT_HAND = 1
    FETCHED = 2
    UNCHANGED = 3
    FAILED = 4
    WAITING = 5
    MISSING = 6


@record
class Refreshed:
    """One thing that is needed, and what the last refresh did about it.

    Attributes:
        what: "ca", "vcek", "vlek-ca", "vlek", "crl", "cek"; "offline": the directory of files.
        result: AT_HAND: nothing was to do; FETCHED: it came; UNCHANGED: the service says that what is there is still
            so; FAILED: it did not come; WAITING: it failed before, and is not asked for yet; MISSING: nobody is asked.
        message: Of a failure: why.
        next: When it is asked for next; None: not by itself.
    """

    what: str
    result: RefreshResult
    message: str = ""
    next: datetime | None = None


@record
class RefreshState:
    """How the refreshing does.

    Attributes:
        service: The key distribution service that is asked; empty for none.
        last: When it was last looked at what is needed; None: not yet.
        next: When something is asked for next; None: nothing is, by itself.
        items: Each thing that is needed.
    """

    service: str = ""
    last: datetime | None = None
    next: datetime | None = None
    items: tuple[Refreshed, ...] = ()


class ChipIdentity(NamedTuple):
    """What certificates must fit: this chip, as it reports now.

    Attributes:
        product: Processor line.
        chip_id: 64 bytes, or 8 from Turin on.
        reported_tcb: The TCB that reports show.
        vlek_loaded: Reports are signed by a VLEK unless the guest asks otherwise.
        vlek_tcb: The TCB that the loaded VLEK is for; None: the reported one, as when it was loaded.
        vcek_masked: The VCEK may not sign: without a VLEK reports have no signature.
    """

    product: Product
    chip_id: bytes
    reported_tcb: TcbVersion
    vlek_loaded: bool
    vlek_tcb: TcbVersion | None = None
    vcek_masked: bool = False

    @property
    def vlek_fits(self) -> bool:
        """A VLEK is loaded, and for the TCB that reports show: otherwise no certificate fits both key and report."""
        return self.vlek_loaded and self.vlek_tcb in (None, self.reported_tcb)
