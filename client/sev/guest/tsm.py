"""configfs-tsm: reports through /sys/kernel/config/tsm/report, the interface that all confidential guests share.

    mkdir ENTRY · write privlevel, service_*, inblob · read outblob, auxblob, manifestblob · rmdir ENTRY

Each report has an entry of its own, with a random name, and the entry goes whatever happens. `generation` counts the
writes to an entry: what was read belongs to what was written only if it is as it must be, before and after.

Source: Documentation/ABI/testing/configfs-tsm-report; drivers/virt/coco/sev-guest; drivers/virt/coco/guest/report.c.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import contextmanager

from sev.errors import DeviceMissing, KernelError, NotOffered, NotPermitted, SevError, UsageError
from sev.guest.answers import check_report, reported_level, trimmed_table
from sev.guest.errors import RELOAD, WIPES, AnswerMismatch, ChannelDisabled, Throttled
from sev.guest.levels import own_level
from sev.guest.model import GuestReport, KeyRequest, ReportRequest
from sev.guest.patience import Busy, Patience
from sev.guest.refusals import NO_GUEST, REPEATABLE
from sev.guest.tsm_files import LinuxFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sev.guest.tsm_files import Files

PATH = "/sys/kernel/config/tsm/report"
PROVIDER = "sev_guest"

_TEXT_LIMIT = 4096
_REPORT_LIMIT = 32 << 10
_BLOB_LIMIT = 1 << 20
"""Bytes of attributes at most; longer ones are refused."""


class ConfigfsTsm:
    """The folder (sev.guest.model.GuestPlatform). Holds nothing open between reports; safe from several threads.

    Args:
        path: The folder `report`, or one that a simulator serves.
        files: What reads and writes below it; the real ones by default.
        patience: How long a busy host is waited for.
        vmpl: Privilege level asked for unless a request names one; None: the lowest that the kernel may ask for.
    """

    name = "configfs-tsm"

    def __init__(
        self,
        path: str = PATH,
        *,
        files: Files | None = None,
        patience: Patience | None = None,
        vmpl: int | None = None,
    ) -> None:
        self.path = path
        self._files = files or LinuxFiles(path)
        self._patience = patience or Patience()
        self._asked_level = vmpl
        self.vmpl = own_level() if vmpl is None else vmpl

    def __enter__(self) -> ConfigfsTsm:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """There is nothing to give back."""

    def provider(self) -> str:
        """Who makes reports here: "sev_guest", "tdx_guest" … Makes an entry and removes it.

        Raises:
            DeviceMissing: There is no such folder, or nobody makes reports.
            NotPermitted: This user may not make entries.
            KernelError: Another errno.
        """
        with self._entry() as entry:
            return entry.text("provider")

    def report(self, request: ReportRequest) -> GuestReport:
        """An attestation report, and with it what an SVSM says where that was asked for.

        Raises:
            NotOffered: The message version, the signing key, or a service of an SVSM where there is none: this way
                does not carry them. Or another kind of guest makes reports here.
            UsageError: A VMPL below the lowest that the kernel may ask for.
            AnswerMismatch: The answer does not belong to the request.
            DeviceMissing, NotPermitted: As for `provider`.
            Throttled, ChannelDisabled, KernelError: As the device has them.
        """
        if request.message_version != 1 or request.signing_key != "any":
            field = "signing_key" if request.signing_key != "any" else "message_version"
            raise NotOffered(
                f"{self.path} carries no {field.replace('_', ' ')}",
                remedy="Use the device: /dev/sev-guest (--device).",
                field=field,
            )
        return self._patience.run(lambda: self._report(request))

    def derived_key(self, request: KeyRequest) -> bytes:
        """configfs-tsm has no keys. Raises NotOffered."""
        del request
        raise NotOffered(
            f"{self.path} gives no derived keys", remedy="Use the device: /dev/sev-guest (--device).", field="key"
        )

    def _report(self, request: ReportRequest) -> GuestReport:
        with self._entry() as entry:
            provider = entry.text("provider")
            if provider != PROVIDER:
                raise NotOffered(
                    f"{self.path}: reports are made by {provider!r}, not by {PROVIDER!r}",
                    remedy="This is no SEV-SNP guest; use the tools of its kind.",
                )
            level = self._level(entry, request)
            if level is not None:
                entry.write("privlevel", f"{level}\n".encode())
            if request.service is not None:
                entry.need_service_attributes()
                entry.write("service_provider", f"{request.service.provider}\n".encode())
                entry.write("service_guid", f"{request.service.guid}\n".encode())
                entry.write("service_manifest_version", f"{request.service.manifest_version}\n".encode())
            entry.write("inblob", request.report_data)
            entry.check_generation()
            report = entry.read("outblob", _REPORT_LIMIT)
            table = trimmed_table(entry.read("auxblob", _BLOB_LIMIT)) if request.certificates else None
            manifest = entry.read("manifestblob", _BLOB_LIMIT) if request.service is not None else None
            entry.check_generation()
        expected = request.report_data
        if manifest is not None:
            # An SVSM binds its manifest: the report holds a hash over challenge and manifest.
            expected = hashlib.sha512(request.report_data + manifest).digest()
        check_report(report, report_data=expected, vmpl=level if manifest is None else None)
        return GuestReport(report, request.report_data, reported_level(report), table, manifest, self.name)

    def _level(self, entry: _Entry, request: ReportRequest) -> int | None:
        """The level to write; None where there is nothing to choose (kernels before 6.7's final form)."""
        if "privlevel" not in entry.attributes:
            return None
        floor = entry.number("privlevel_floor") if "privlevel_floor" in entry.attributes else 0
        wanted = self._asked_level if request.vmpl is None else request.vmpl
        if wanted is None:
            return max(floor, self.vmpl)
        if wanted < floor:
            raise UsageError(
                f"VMPL {wanted}: this kernel may ask for {floor} and above (privlevel_floor)", field="vmpl"
            )
        return wanted

    @contextmanager
    def _entry(self) -> Iterator[_Entry]:
        name = f"sev-{os.urandom(8).hex()}"
        try:
            self._files.mkdir(name)
        except OSError as error:
            raise self._cannot_make(error) from None
        try:
            yield _Entry(self._files, self.path, name)
        finally:
            try:
                self._files.rmdir(name)
            except FileNotFoundError:
                pass  # somebody swept it: it is gone, which is what matters
            except OSError as error:
                raise KernelError(
                    error.errno or errno.EIO,
                    message=f"{self.path}/{name} cannot be removed: {_why(error)}",
                    remedy=f"Remove it: rmdir {self.path}/{name}",
                ) from None

    def _cannot_make(self, error: OSError) -> SevError:
        number = error.errno or errno.EIO
        if number == errno.ENXIO:
            return DeviceMissing(f"{self.path}: no driver makes reports (ENXIO)", remedy=NO_GUEST, errno=number)
        if number in (errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.ENODEV):
            return DeviceMissing(
                f"{self.path}: {_why(error)}",
                remedy=f"Mount configfs (mount -t configfs none /sys/kernel/config), modprobe tsm_report. {NO_GUEST}",
                errno=number,
            )
        if number in (errno.EACCES, errno.EPERM):
            return NotPermitted(
                f"{self.path}: an entry cannot be made: {_why(error)}", remedy="Run as root.", errno=number
            )
        if number in REPEATABLE:
            raise Busy(f"{self.path} is busy: {_why(error)}")
        return KernelError(number, message=f"{self.path}: an entry cannot be made: {_why(error)}")


class _Entry:
    """One entry while it is used; counts its writes."""

    def __init__(self, files: Files, folder: str, name: str) -> None:
        self._files = files
        self._folder = folder
        self._name = name
        try:
            self.attributes = frozenset(files.names(name))
        except OSError as error:
            raise self._refusal("", error) from None
        self._generation = self.number("generation")

    def text(self, attribute: str) -> str:
        """An attribute of one line."""
        return self.read(attribute, _TEXT_LIMIT).decode("ascii", "replace").strip()

    def number(self, attribute: str) -> int:
        """An attribute that is a number."""
        text = self.text(attribute)
        if not text.isascii() or not text.isdigit() or len(text) > 20:
            raise AnswerMismatch(
                f"{self._folder}/{self._name}/{attribute}: {text[:20]!r} where a number was expected", field=attribute
            )
        return int(text)

    def read(self, attribute: str, limit: int) -> bytes:
        """A whole attribute."""
        try:
            return self._files.read(f"{self._name}/{attribute}", limit)
        except OSError as error:
            raise self._refusal(attribute, error) from None

    def write(self, attribute: str, data: bytes) -> None:
        """Writes an attribute."""
        try:
            self._files.write(f"{self._name}/{attribute}", data)
        except OSError as error:
            raise self._refusal(attribute, error) from None
        self._generation += 1

    def check_generation(self) -> None:
        """Raises Busy unless the kernel has counted exactly our writes: it took them all, and nobody else wrote."""
        found = self.number("generation")
        if found != self._generation:
            raise Busy(
                f"{self._folder}/{self._name}: generation is {found} where {self._generation} was expected: "
                "a write was lost, or somebody else writes to this entry"
            )

    def need_service_attributes(self) -> None:
        """Raises NotOffered unless an SVSM can be asked here."""
        if not {"service_provider", "service_guid", "service_manifest_version", "manifestblob"} <= self.attributes:
            raise NotOffered(
                f"{self._folder} has no service attributes: no SVSM is below this kernel, or the kernel is older "
                "than 6.10",
                remedy="Leave the service out.",
                field="service",
            )

    def _refusal(self, attribute: str, error: OSError) -> SevError:
        number = error.errno or errno.EIO
        where = f"{self._folder}/{self._name}/{attribute}"
        if number in REPEATABLE:
            raise Busy(f"{where}: {_why(error)}")
        if number == errno.ETIMEDOUT:
            return Throttled(
                f"{where}: the host throttled this guest for longer than the kernel waits (one minute)",
                errno=number,
                remedy=f"{WIPES} {RELOAD}",
            )
        if number == errno.ENOTTY:
            return ChannelDisabled(
                f"{where}: the kernel's key for guest requests (VMPCK) was wiped after an earlier failure", errno=number
            )
        meaning, remedy = _MEANINGS.get((attribute, number), (f"{_why(error)}", ""))
        return KernelError(number, message=f"{where}: {meaning}", remedy=remedy)


_MEANINGS = {
    ("outblob", errno.EINVAL): (
        "the request was refused (EINVAL): no such level or key, or a service that an SVSM does not know",
        "Ask for a VMPL that is not below privlevel_floor.",
    ),
    ("outblob", errno.ENXIO): (
        "the firmware refused the request (ENXIO; configfs-tsm does not tell its status)",
        "Ask /dev/sev-guest (--device), which tells the status.",
    ),
    ("outblob", errno.EIO): ("the request failed on its way to the firmware (EIO)", f"{WIPES} {RELOAD}"),
    ("outblob", errno.EBADMSG): ("the response does not authenticate (EBADMSG)", f"{WIPES} {RELOAD}"),
    ("privlevel", errno.EINVAL): (
        "the kernel may not ask for this VMPL (EINVAL)",
        "Ask for one that is not below privlevel_floor.",
    ),
    ("auxblob", errno.EFBIG): ("the host's certificate table is too large", "Ask for a report without certificates."),
}
"""(Attribute, errno): what it means, and what to do."""


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
