"""The commands of /dev/sev, one function each, as Linux's ccp driver has them (drivers/crypto/ccp/sev-dev.c).

Lengths are written back always, also with an error; asking for a length is an error by itself (EIO, INVALID_LENGTH).
PEK_CSR and PDH_CERT_EXPORT answer EFAULT to buffers above 16 KiB, PEK_CERT_IMPORT EINVAL. SNP_COMMIT checks no access.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from sev.abi import sev_device as abi
from sev.records import record
from sevd.simulator import kernel_era
from sevd.simulator.errnos import FirmwareRefused, Reply, fail

if TYPE_CHECKING:
    from sevd.simulator.ccp import Ccp
    from sevd.simulator.process import Process

GET_ID_API = (0, 16)
"""Firmware below it has no GET_ID."""

_ALLOCATION_MAX = 4 << 20
"""Bytes that the page allocator gives in one piece."""

Sizes = tuple[int, ...]


@record
class Call:
    """One ioctl under way.

    Attributes:
        ccp: The driver, its mutex held.
        process: The caller.
        writable: Its descriptor is open for writing.
        data: Address of the command's data.
        reply: The envelope's `error`.
    """

    ccp: Ccp
    process: Process
    writable: bool
    data: int
    reply: Reply

    def need_write(self) -> None:
        """EPERM without FMODE_WRITE."""
        if not self.writable:
            fail(errno.EPERM)

    def read(self, address: int, size: int) -> bytes:
        """Copies from the caller. Raises OSError(EFAULT)."""
        return self.process.memory.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Copies to the caller. Raises OSError(EFAULT)."""
        self.process.memory.write(address, data)

    def sized(
        self, passed: Sizes, command: Callable[[], tuple[bytes, ...]], written: Callable[[Sizes], bytes]
    ) -> tuple[bytes, ...]:
        """A firmware command that fills buffers: structure back in any case, then the failure, if one, then the data.

        Args:
            passed: The lengths the firmware gets.
            command: Answers the contents of the buffers.
            written: The caller's structure with these lengths.
        """
        failure: OSError | None = None
        blobs: tuple[bytes, ...] = ()
        try:
            blobs = self.ccp.call(self.reply, command)
            lengths = tuple(len(blob) for blob in blobs)
        except FirmwareRefused as refused:
            failure, lengths = refused, refused.lengths or passed
        except OSError as error:
            failure, lengths = error, passed
        self.write(self.data, written(lengths))
        if failure is not None:
            raise failure
        return blobs


def run(call: Call, number: int) -> None:
    """One command. Raises OSError with the driver's errno."""
    _COMMANDS[number](call)


def _factory_reset(call: Call) -> None:
    call.need_write()
    ccp, firmware = call.ccp, call.ccp.firmware
    state = abi.PlatformStatus.decode(ccp.call(call.reply, firmware.platform_status)).state
    if state == abi.STATE_WORKING:
        fail(errno.EBUSY)
    if state == abi.STATE_INIT:
        ccp.shut_down_legacy(call.reply)
    ccp.call(call.reply, firmware.factory_reset, changes_store=True)


def _platform_status(call: Call) -> None:
    call.write(call.data, call.ccp.call(call.reply, call.ccp.firmware.platform_status))


def _pek_gen(call: Call) -> None:
    call.need_write()
    with call.ccp.legacy_ready(call.reply):
        call.ccp.call(call.reply, call.ccp.firmware.pek_gen, changes_store=True)


def _pdh_gen(call: Call) -> None:
    call.need_write()
    with call.ccp.legacy_ready(call.reply):
        call.ccp.call(call.reply, call.ccp.firmware.pdh_gen, changes_store=True)


def _pek_csr(call: Call) -> None:
    call.need_write()
    request = abi.PekCsr.decode(call.read(call.data, abi.PekCsr.size()))
    length = request.length if request.address else 0
    if length > abi.BLOB_MAX:
        fail(errno.EFAULT)
    firmware = call.ccp.firmware
    with call.ccp.legacy_ready(call.reply):
        (csr,) = call.sized(
            (length,), lambda: (firmware.pek_csr(length),), lambda sizes: abi.PekCsr(request.address, *sizes).encode()
        )
        call.write(request.address, csr)


def _pdh_cert_export(call: Call) -> None:
    ccp = call.ccp
    if ccp.era.export_inits_first:
        _need_write_to_init(call)
        with ccp.legacy_ready(call.reply):
            _export(call, _export_request(call))
        return
    request = _export_request(call)
    _need_write_to_init(call)
    with ccp.legacy_ready(call.reply):
        _export(call, request)


def _need_write_to_init(call: Call) -> None:
    if not call.ccp.initialised:
        call.need_write()


def _export_request(call: Call) -> abi.PdhCertExport:
    request = abi.PdhCertExport.decode(call.read(call.data, abi.PdhCertExport.size()))
    if not _is_probe(request) and max(request.pdh_cert_len, request.cert_chain_len) > abi.BLOB_MAX:
        fail(errno.EFAULT)
    return request


def _is_probe(request: abi.PdhCertExport) -> bool:
    wanted = request.pdh_cert_address, request.pdh_cert_len, request.cert_chain_address, request.cert_chain_len
    return not all(wanted)


def _export(call: Call, request: abi.PdhCertExport) -> None:
    firmware = call.ccp.firmware
    passed = (0, 0) if _is_probe(request) else (request.pdh_cert_len, request.cert_chain_len)

    def written(sizes: Sizes) -> bytes:
        return abi.PdhCertExport(request.pdh_cert_address, sizes[0], request.cert_chain_address, sizes[1]).encode()

    pdh, chain = call.sized(passed, lambda: firmware.pdh_cert_export(*passed), written)
    call.write(request.pdh_cert_address, pdh)
    call.write(request.cert_chain_address, chain)


def _pek_cert_import(call: Call) -> None:
    call.need_write()
    request = abi.PekCertImport.decode(call.read(call.data, abi.PekCertImport.size()))
    pek = _user_blob(call, request.pek_cert_address, request.pek_cert_len)
    oca = _user_blob(call, request.oca_cert_address, request.oca_cert_len)
    firmware = call.ccp.firmware
    with call.ccp.legacy_ready(call.reply):
        call.ccp.call(call.reply, lambda: firmware.pek_cert_import(pek, oca), changes_store=True)


def _user_blob(call: Call, address: int, length: int) -> bytes:
    """psp_copy_user_blob."""
    if not address or not 0 < length <= abi.BLOB_MAX:
        fail(errno.EINVAL)
    return call.read(address, length)


def _get_id(call: Call) -> None:
    _need_id(call)
    firmware = call.ccp.firmware
    call.write(call.data, call.ccp.call(call.reply, lambda: firmware.get_id(abi.GET_ID_SIZE)))


def _get_id2(call: Call) -> None:
    _need_id(call)
    request = abi.GetId2.decode(call.read(call.data, abi.GetId2.size()))
    length = request.length if request.address else 0
    if length > _ALLOCATION_MAX:
        fail(errno.ENOMEM)
    firmware = call.ccp.firmware
    (identifier,) = call.sized(
        (length,), lambda: (firmware.get_id(length),), lambda sizes: abi.GetId2(request.address, *sizes).encode()
    )
    call.write(request.address, identifier)


def _need_id(call: Call) -> None:
    # As the driver read it when it was loaded.
    if call.ccp.firmware.version[:2] < GET_ID_API:
        fail(abi.ENOTSUPP)


def _snp_platform_status(call: Call) -> None:
    _refuse_without_snp(call, abi.SNP_PLATFORM_STATUS, kernel_era.EINVAL, errno.EINVAL)
    if not call.data:
        fail(errno.EINVAL)
    with call.ccp.snp_ready(call.reply, abi.SNP_PLATFORM_STATUS):
        call.write(call.data, call.ccp.call(call.reply, call.ccp.firmware.snp_platform_status))


def _snp_commit(call: Call) -> None:
    _refuse_without_snp(call, abi.SNP_COMMIT, kernel_era.EINVAL, errno.EINVAL)
    with call.ccp.snp_ready(call.reply, abi.SNP_COMMIT):
        call.ccp.call(call.reply, call.ccp.firmware.snp_commit)


def _snp_set_config(call: Call) -> None:
    _check_snp_change(call, abi.SNP_SET_CONFIG)
    config = call.read(call.data, abi.SnpConfig.size())
    with call.ccp.snp_ready(call.reply, abi.SNP_SET_CONFIG):
        call.ccp.call(call.reply, lambda: call.ccp.firmware.snp_config(config))


def _snp_vlek_load(call: Call) -> None:
    _check_snp_change(call, abi.SNP_VLEK_LOAD)
    request = abi.SnpVlekLoad.decode(call.read(call.data, abi.SnpVlekLoad.size()))
    if request.len != abi.SnpVlekLoad.size() or request.vlek_wrapped_version:
        fail(errno.EINVAL)
    if not request.vlek_wrapped_address:
        fail(errno.EINVAL)
    blob = call.read(request.vlek_wrapped_address, abi.VLEK_BLOB_SIZE)
    with call.ccp.snp_ready(call.reply, abi.SNP_VLEK_LOAD):
        call.ccp.call(call.reply, lambda: call.ccp.firmware.snp_vlek_load(blob))


def _check_snp_change(call: Call, number: int) -> None:
    _refuse_without_snp(call, number, kernel_era.EINVAL, errno.EINVAL)
    if not call.data:
        fail(errno.EINVAL)
    call.need_write()
    _refuse_without_snp(call, number, kernel_era.ENODEV, errno.ENODEV)


def _refuse_without_snp(call: Call, number: int, rule: str, refusal: int) -> None:
    if not call.ccp.snp_initialised and call.ccp.era.without_snp[number] == rule:
        fail(refusal)


_COMMANDS: dict[int, Callable[[Call], None]] = {
    abi.FACTORY_RESET: _factory_reset,
    abi.PLATFORM_STATUS: _platform_status,
    abi.PEK_GEN: _pek_gen,
    abi.PEK_CSR: _pek_csr,
    abi.PDH_GEN: _pdh_gen,
    abi.PDH_CERT_EXPORT: _pdh_cert_export,
    abi.PEK_CERT_IMPORT: _pek_cert_import,
    abi.GET_ID: _get_id,
    abi.GET_ID2: _get_id2,
    abi.SNP_PLATFORM_STATUS: _snp_platform_status,
    abi.SNP_COMMIT: _snp_commit,
    abi.SNP_SET_CONFIG: _snp_set_config,
    abi.SNP_VLEK_LOAD: _snp_vlek_load,
}
