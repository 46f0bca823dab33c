"""What guests ask their platform for, whichever way there is to ask; the answers, as values."""

from __future__ import annotations

from sev.abi import cert_table
from sev.errors import UsageError
from sev.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sev.attestation import Report

    class GuestPlatform(Protocol):
        """One way to the firmware: `/dev/sev-guest`, or configfs-tsm."""

        name: str
        """"sev-guest" or "configfs-tsm"."""

        path: str
        """Where it is."""

        vmpl: int
        """The privilege level that is asked for unless another one is named."""

        def report(self, request: ReportRequest) -> GuestReport:
            """An attestation report, checked to be the answer to this request (its signature is not)."""

        def derived_key(self, request: KeyRequest) -> bytes:
            """A key that only this guest on this platform can derive again: 32 bytes, secret."""

        def close(self) -> None:
            """Gives back what is open; once more does nothing."""

        def __enter__(self) -> GuestPlatform: ...

        def __exit__(self, *error: object) -> None: ...


REPORT_DATA_SIZE = 64
VMPL_MAX = 3

SIGNING_KEYS = {"any": 0, "vcek": 1, "vlek": 2}
"""KEY_SEL of MSG_REPORT_REQ and MSG_KEY_REQ; "any" is the VLEK if one is loaded, else the VCEK."""

ROOT_KEYS = {"endorsement": 0, "vmrk": 1}
"""ROOT_KEY_SELECT of MSG_KEY_REQ: the VCEK or VLEK, or the key that a migration agent gives with the guest."""

KEY_FIELDS = {
    "policy": 1 << 0,
    "image_id": 1 << 1,
    "family_id": 1 << 2,
    "measurement": 1 << 3,
    "guest_svn": 1 << 4,
    "tcb_version": 1 << 5,
    "launch_mit_vector": 1 << 6,
}
"""Bits of GUEST_FIELD_SELECT: what of the guest is mixed into a derived key."""


@record
class ServiceRequest:
    """What an SVSM shall attest beside the guest (configfs-tsm, only under an SVSM).

    Attributes:
        provider: "svsm" is the only one there is.
        guid: One service, such as the vTPM's; the null GUID for all.
        manifest_version: Version of that service's manifest.
    """

    provider: str = "svsm"
    guid: str = "00000000-0000-0000-0000-000000000000"
    manifest_version: int = 0


@record
class ReportRequest:
    """What a report is asked for with.

    Attributes:
        report_data: 64 bytes that the report repeats: a verifier's challenge, a hash of a public key.
        vmpl: Privilege level that the report shows, not below that of the kernel's key; None: the platform's own.
        certificates: The host's certificate table is wanted too.
        message_version: Version of the guest message (device only).
        signing_key: One of SIGNING_KEYS (device only, except "any").
        service: What an SVSM shall attest (configfs-tsm only).
    """

    report_data: bytes
    vmpl: int | None = None
    certificates: bool = False
    message_version: int = 1
    signing_key: str = "any"
    service: ServiceRequest | None = None

    def __post_init__(self) -> None:
        if len(self.report_data) != REPORT_DATA_SIZE:
            raise UsageError(
                f"report data: {len(self.report_data)} bytes where exactly {REPORT_DATA_SIZE} were expected",
                field="report_data",
            )
        check_level(self.vmpl)
        check_version(self.message_version)
        if self.signing_key not in SIGNING_KEYS:
            raise UsageError(
                f"signing key {self.signing_key!r}: expected one of {', '.join(SIGNING_KEYS)}", field="signing_key"
            )


@record
class KeyRequest:
    """What a derived key is made from. Fields count only where `fields` selects them, `vmpl` always.

    Attributes:
        root_key: One of ROOT_KEYS.
        signing_key: For root "endorsement" one of SIGNING_KEYS: which of VCEK and VLEK.
        fields: Bits of KEY_FIELDS.
        vmpl: Privilege level mixed in, not below that of the kernel's key; None: the platform's own.
        guest_svn: At most the SVN of the ID block.
        tcb_version: No component above the committed TCB's; the raw integer.
        launch_mit_vector: 64 bits; None leaves it out. Needs message version 2.
        message_version: 1, or 2 with a mitigation vector.
    """

    root_key: str = "endorsement"
    signing_key: str = "any"
    fields: int = 0
    vmpl: int | None = None
    guest_svn: int = 0
    tcb_version: int = 0
    launch_mit_vector: int | None = None
    message_version: int = 1

    def __post_init__(self) -> None:
        check_level(self.vmpl)
        check_version(self.message_version)
        if self.root_key not in ROOT_KEYS:
            raise UsageError(f"root key {self.root_key!r}: expected one of {', '.join(ROOT_KEYS)}", field="root_key")
        if self.signing_key not in SIGNING_KEYS:
            raise UsageError(
                f"signing key {self.signing_key!r}: expected one of {', '.join(SIGNING_KEYS)}", field="signing_key"
            )
        sizes = (
            ("fields", self.fields, 64), ("guest_svn", self.guest_svn, 32), ("tcb_version", self.tcb_version, 64),
            ("launch_mit_vector", self.launch_mit_vector or 0, 64),
        )  # fmt: skip
        for name, value, bits in sizes:
            if not 0 <= value < 1 << bits:
                raise UsageError(f"{name}: {value:#x} does not fit {bits} bits", field=name)
        mixed = bool(self.fields & KEY_FIELDS["launch_mit_vector"])
        if mixed != (self.launch_mit_vector is not None):
            raise UsageError(
                "the launch mitigation vector is mixed in exactly when a value is given: bit 6 of the fields and "
                "launch_mit_vector go together",
                field="launch_mit_vector",
            )
        if mixed and self.message_version < 2:
            raise UsageError("a launch mitigation vector needs message version 2", field="message_version")


@record
class GuestReport:
    """A report as the platform gave it; it answers the request it was asked for with, its signature is unchecked.

    Attributes:
        report: 1184 bytes.
        report_data: What was asked for, 64 bytes. Under `manifest` the report holds a hash over it instead.
        vmpl: The privilege level that the report shows.
        certificate_table: The host's table (GHCB) as it came, without trailing zero pages; empty: the host hands out
            none; None: it was not asked for.
        manifest: What an SVSM says of its services; None: it was not asked.
        source: Name of the platform that answered.
    """

    report: bytes
    report_data: bytes
    vmpl: int
    certificate_table: bytes | None
    manifest: bytes | None
    source: str

    def parse(self) -> Report:
        """The report's fields."""
        from sev.attestation import Report

        return Report.parse(self.report)

    def certificates(self) -> list[tuple[bytes, bytes]]:
        """The certificates of the table as (GUID, contents). Raises MalformedInput if the host's table is none."""
        return cert_table.parse(self.certificate_table) if self.certificate_table else []


def check_level(vmpl: int | None) -> None:
    """Raises UsageError for a privilege level that there is not."""
    if vmpl is not None and not 0 <= vmpl <= VMPL_MAX:
        raise UsageError(f"VMPL {vmpl}: expected 0 to {VMPL_MAX}", field="vmpl")


def check_version(version: int) -> None:
    """Raises UsageError for a message version that cannot be sent: the kernel refuses 0, and has one byte for it."""
    if not 1 <= version <= 0xFF:
        raise UsageError(f"message version {version}: expected 1 to 255", field="message_version")
