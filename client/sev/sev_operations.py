"""The operations on the platform of SEV and SEV-ES, described once for the sync and asyncio clients.

While the platform is not initialised, reading its keys or changing its PDH initialises it for that moment, and newer
kernels shut SNP down afterwards: such calls want an administrator, no guests, and `confirm` where SNP is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.abi.sev_certificate import SIZE
from sev.calls import READ_SECONDS, Call, ask, device, new_request_id
from sev.errors import MalformedInput

if TYPE_CHECKING:
    from sev.calls import Operation
    from sev.sev_model import PlatformChain, SevStatus

_CHANGING_SECONDS = 20.0
"""What a read may take that initialises the platform for itself."""


def sev_status() -> Operation[SevStatus]:
    """PLATFORM_STATUS: state, owner, guests."""
    from sev.sev_model import SevStatus
    from sev.v1 import sev_platform_pb2 as pb

    answer = yield from ask(
        Call("SevPlatformService/GetSevStatus", pb.GetSevStatusRequest(), pb.GetSevStatusResponse, seconds=READ_SECONDS)
    )
    return SevStatus.from_message(answer.status)


def chip_ids() -> Operation[tuple[bytes, ...]]:
    """GET_ID2: the identifiers of the chips, 64 bytes for each socket."""
    from sev.v1 import sev_platform_pb2 as pb

    answer = yield from ask(
        Call("SevPlatformService/GetChipIds", pb.GetChipIdsRequest(), pb.GetChipIdsResponse, seconds=READ_SECONDS)
    )
    return tuple(answer.chip_ids)


def export_platform(*, confirm: bool = False) -> Operation[PlatformChain]:
    """PDH_CERT_EXPORT: PDH, PEK, OCA and CEK, and what vouches for the CEK where the host has it.

    Args:
        confirm: It may shut SNP down; needed only while the platform is not initialised and SNP is.
    """
    from sev.sev_model import PlatformChain
    from sev.v1 import sev_platform_pb2 as pb

    request = pb.GetSevChainRequest(confirm=confirm)
    answer = yield from ask(
        Call("SevPlatformService/GetSevChain", request, pb.GetSevChainResponse, seconds=_CHANGING_SECONDS)
    )
    return PlatformChain.from_message(answer)


def pek_csr(*, confirm: bool = False) -> Operation[bytes]:
    """PEK_CSR: the PEK's certificate without signatures, 2084 bytes, for an owner to sign; `confirm` as in export."""
    from sev.v1 import sev_platform_pb2 as pb

    request = pb.RequestPekSigningRequest(confirm=confirm)
    answer = yield from ask(
        Call("SevPlatformService/RequestPekSigning", request, pb.RequestPekSigningResponse, seconds=_CHANGING_SECONDS)
    )
    csr: bytes = answer.csr
    return csr


def reset_platform(*, confirm: bool, validate_only: bool = False, request_id: str = "") -> Operation[SevStatus]:
    """FACTORY_RESET: the platform's keys and its owner are gone for good; refused while guests exist.

    Args:
        confirm: Must be true.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.sev_model import SevStatus
    from sev.v1 import sev_platform_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.ResetSevPlatformRequest(confirm=confirm, validate_only=validate_only, request_id=request_id)
    answer = yield from ask(
        device("SevPlatformService/ResetSevPlatform", request, pb.ResetSevPlatformResponse, request_id)
    )
    return SevStatus.from_message(answer.status)


def pek_generate(*, confirm: bool, validate_only: bool = False, request_id: str = "") -> Operation[SevStatus]:
    """PEK_GEN: new OCA, PEK and PDH, and the platform owns itself; refused while guests exist."""
    from sev.sev_model import SevStatus
    from sev.v1 import sev_platform_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.GeneratePekRequest(confirm=confirm, validate_only=validate_only, request_id=request_id)
    answer = yield from ask(device("SevPlatformService/GeneratePek", request, pb.GeneratePekResponse, request_id))
    return SevStatus.from_message(answer.status)


def pdh_generate(*, confirm: bool = False, validate_only: bool = False, request_id: str = "") -> Operation[SevStatus]:
    """PDH_GEN: a new PDH, also while guests run; launch blobs made for the old one are refused from then on."""
    from sev.sev_model import SevStatus
    from sev.v1 import sev_platform_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.GeneratePdhRequest(confirm=confirm, validate_only=validate_only, request_id=request_id)
    answer = yield from ask(device("SevPlatformService/GeneratePdh", request, pb.GeneratePdhResponse, request_id))
    return SevStatus.from_message(answer.status)


def pek_import(
    pek: bytes, oca: bytes, *, confirm: bool, validate_only: bool = False, request_id: str = ""
) -> Operation[SevStatus]:
    """PEK_CERT_IMPORT: gives the platform an owner; refused while guests exist.

    Args:
        pek: What `pek_csr` gave, signed by the owner's OCA (sev.session.owner.sign_request); 2084 bytes.
        oca: The owner's certificate, 2084 bytes.
        confirm: Must be true.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.

    Raises:
        MalformedInput: Not 2084 bytes.
    """
    from sev.sev_model import SevStatus
    from sev.v1 import sev_platform_pb2 as pb

    for field, data in (("pek", pek), ("oca", oca)):
        if len(data) != SIZE:
            raise MalformedInput(f"{field}: {len(data)} bytes, expected {SIZE}", field=field)
    request_id = request_id or new_request_id()
    request = pb.ImportPekRequest(pek=pek, oca=oca, confirm=confirm, validate_only=validate_only, request_id=request_id)
    answer = yield from ask(device("SevPlatformService/ImportPek", request, pb.ImportPekResponse, request_id))
    return SevStatus.from_message(answer.status)


def own_platform(oca_certificate: bytes, oca_key: bytes, *, confirm: bool) -> Operation[SevStatus]:
    """Makes the platform one's own: its signing request, signed here with the owner's key, comes back to it.

    The key does not leave this process, and whether it fits is known before the platform is asked.

    Args:
        oca_certificate: The owner's OCA certificate, 2084 bytes.
        oca_key: Its private key: P-384, DER or PEM. Secret.
        confirm: Must be true.

    Raises:
        MalformedInput: No certificate, or no key.
        UsageError: No OCA, or a key that is not its own.
        FirmwareError: ALREADY_OWNED: disown it first.
    """
    from sev.abi.sev_certificate import SevCertificate
    from sev.session.owner import check_owner, sign_request

    oca = SevCertificate.read(oca_certificate, "owner's certificate")
    check_owner(oca, oca_key)
    csr = yield from pek_csr(confirm=confirm)
    signed = sign_request(SevCertificate.read(csr, "PEK_CSR"), oca, oca_key)
    return (yield from pek_import(signed.encode(), oca_certificate, confirm=confirm))


def disown_platform(*, confirm: bool) -> Operation[SevStatus]:
    """Gives the platform back to itself: PEK_GEN, with new keys for everything but the chip's own."""
    return (yield from pek_generate(confirm=confirm))
