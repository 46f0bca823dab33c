"""The platform of SEV and SEV-ES as plain values: its status, its certificates; JSON form as in `sev.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import word

if TYPE_CHECKING:
    from sev.certs.sev_chain import SevChain
    from sev.v1 import sev_platform_pb2

SELF, EXTERNAL = "self", "external"
"""Who owns a platform: itself, or somebody else."""


@record
class SevStatus:
    """PLATFORM_STATUS, decoded. `state` is uninit, init or working; `raw` has 12 bytes.

    While it is uninit, firmware tells neither owner nor SEV-ES: `owner` is empty and `es_configured` None, unless the
    bit is set all the same (a simulator's firmware does know).
    """

    state: str
    firmware: str
    api_version: str
    owner: str
    es_configured: bool | None
    guest_count: int
    snp_initialized: bool
    raw: bytes

    @classmethod
    def from_message(cls, message: sev_platform_pb2.SevStatus) -> SevStatus:
        """The status that a message describes."""
        from sev.v1 import sev_platform_pb2

        version = message.firmware_version
        told = message.state != sev_platform_pb2.SEV_STATE_UNINIT
        return cls(
            state=word(sev_platform_pb2.SevState, "SEV_STATE_", message.state),
            firmware=f"{version.major}.{version.minor}.{version.build}",
            api_version=f"{version.major}.{version.minor}",
            owner=EXTERNAL if message.externally_owned else SELF if told else "",
            es_configured=message.es_configured or (False if told else None),
            guest_count=message.guest_count,
            snp_initialized=message.snp_initialized,
            raw=message.raw,
        )

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev platform status --json` prints it."""
        return {
            "state": self.state,
            "firmware": self.firmware,
            "api_version": self.api_version,
            "owner": self.owner or None,
            "es_configured": self.es_configured,
            "guest_count": self.guest_count,
            "snp_initialized": self.snp_initialized,
            "raw": self.raw.hex(),
        }


@record
class PlatformChain:
    """A platform's certificates as its firmware exports them, and what the host knows beyond that.

    Attributes:
        pdh: 2084 bytes, as are the next three.
        pek: Signed by OCA and CEK.
        oca: Signed by itself.
        cek: Unsigned, as the firmware gives it.
        signed_cek: The same key in a signed certificate, where the host has it (simulated ones); else empty.
        authorities: ASK and ARK in a row that go with it; else empty.
        chip_ids: By which AMD gives the signed CEK, 64 bytes for each socket; empty where the firmware tells none.
        simulated: The chain ends in a simulator's root.
    """

    pdh: bytes
    pek: bytes
    oca: bytes
    cek: bytes
    signed_cek: bytes
    authorities: bytes
    chip_ids: tuple[bytes, ...]
    simulated: bool

    @classmethod
    def from_message(cls, message: sev_platform_pb2.GetSevChainResponse) -> PlatformChain:
        """The certificates in a message."""
        return cls(
            pdh=message.pdh,
            pek=message.pek,
            oca=message.oca,
            cek=message.cek,
            signed_cek=message.signed_cek,
            authorities=message.authorities,
            chip_ids=tuple(message.chip_ids),
            simulated=message.simulated,
        )

    @property
    def exported(self) -> bytes:
        """PDH, PEK, OCA and the unsigned CEK in a row, 8336 bytes."""
        return self.pdh + self.pek + self.oca + self.cek

    def chain(self, cek: bytes = b"", authorities: bytes = b"") -> SevChain:
        """The chain with a signed CEK: the one given, else the host's own. Nothing of it is verified yet.

        Args:
            cek: The certificate that AMD's key distribution service gives for the chip, 2084 bytes.
            authorities: ASK and ARK in a row; none given: those that the host has, if the CEK is its own too.

        Raises:
            ChainIncomplete: There is no signed CEK.
            WrongCek: The CEK is of another chip.
            MalformedInput: Something is no certificate.
        """
        from sev.abi import sev_certificate
        from sev.certs.sev_chain import ChainIncomplete, SevChain, same_cek, split

        signed = cek or self.signed_cek
        if not signed:
            raise ChainIncomplete(
                "the firmware exports the CEK without a signature, and this host has none",
                remedy="Fetch the signed one from AMD's key distribution service by the chip's identifier.",
            )
        certificate = same_cek(signed, self.cek)
        rows = [sev_certificate.SevCertificate.read(one) for one in (self.pdh, self.pek, self.oca)]
        known = authorities or (b"" if cek else self.authorities)
        return SevChain([*rows, certificate], split(known)[1] if known else ())
