"""The endorsements of this chip: what is at hand, what is missing, and the certificate table made of it.

Certificates come from imported files and, on a simulated platform, from the simulator's authority. Whatever the
origin, each is checked against the trusted roots and this chip before it is kept or shown (sevd.endorsements.check).
Imports of a simulated platform lie in a folder of their own: they never mix with AMD's.

The table holds VCEK, ASK and ARK, or VLEK, ASVK and ARK where a VLEK signs. It holds no revocation list: guests must
not take one from their host, and a list runs out while the table lies there.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.abi import cert_table
from sev.certs.files import load_all
from sev.errors import MalformedInput, SevError, UsageError
from sevd.endorsements.check import check_certificate, check_genuine, check_list, kind_of, product_of, tcb_of
from sevd.endorsements.model import ChipIdentity, Endorsement, EndorsementKind, EndorsementSet
from sevd.endorsements.store import Store, Stored, entry
from sevd.endorsements.table_file import WAIT_SECONDS, TableFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from sev.certs import Certificate, Crl, Roots
    from sevd.devices.scheduler import Scheduler
    from sevd.events import Publisher


MAX_CONTENTS = 32
"""Contents in one import."""

MAX_CONTENT_BYTES = 64 << 10
"""Bytes of one content."""

_TABLE = {
    False: ((EndorsementKind.VCEK, cert_table.VCEK), (EndorsementKind.ASK, cert_table.ASK)),
    True: ((EndorsementKind.VLEK, cert_table.VLEK), (EndorsementKind.ASVK, cert_table.ASK)),
}
"""Kinds and GUIDs of the table's entries before the ARK's, by whether a VLEK signs."""

log = logging.getLogger(__name__)


class Endorsements:
    """The certificates of this chip.

    Args:
        directory: Where imports are kept.
        roots: The trusted roots: AMD's, or the simulator's.
        events: Where to say what happened.
        source: Answers certificates in DER by kind ("ark", "ask", …) for the TCB reported now; only a simulator can.
        scheduler: Where `source` runs.
        table_path: The certificate table's file; None for none.
        simulated: The platform is simulated.
        now: The time that dates are compared with.
        wait_seconds: How long to wait for readers of the table.

    Attributes:
        version: Counts up whenever `current` answers something new.
    """

    def __init__(
        self,
        directory: Path,
        roots: Roots,
        events: Publisher,
        *,
        source: Callable[[], Mapping[str, bytes]] | None = None,
        scheduler: Scheduler | None = None,
        table_path: Path | None = None,
        simulated: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._roots = roots
        self._events = events
        self._source = source
        self._scheduler = scheduler
        self._simulated = simulated
        self._now = now
        self._problems: list[str] = []
        self._store = Store(directory / ("simulated" if simulated else "amd"), self._set_aside)
        self._table = TableFile(table_path, wait_seconds=wait_seconds) if table_path is not None else None
        self._imported: dict[Path, Stored] = {}
        self._sourced: list[Stored] = []
        self._identity: ChipIdentity | None = None
        self._fresh_until: datetime | None = None
        self._lock = asyncio.Lock()
        self.version = 0
        self._set = EndorsementSet((), cert_table.build(()), ("The platform was not asked yet.",), simulated)

    async def open(self, identity: ChipIdentity | None) -> EndorsementSet:
        """Reads the store and makes the table; to be called once, at start. Never raises SevError.

        Args:
            identity: This chip; None while the device is missing.
        """

        def check(stored: Stored, authorities: Sequence[Certificate]) -> None:
            # Dates are left out: what has run out is not damaged.
            if stored.crl is not None:
                check_list(stored.crl, self._roots, None)
            elif stored.certificate is not None:
                check_genuine(stored.certificate, self._roots, authorities)

        # A state directory may have served another simulated product, under another root: what is kept for it is not
        # damaged, only of no use now.
        lines = [ark.product.name for ark in self._roots.arks if ark.product is not None]
        products = lines if len(lines) == len(self._roots.arks) else None
        self._imported.update(await asyncio.to_thread(self._store.load, check, products))
        if self._identity is not None:
            identity = self._identity  # a platform command was quicker, and knows better
        try:
            return await self.renew(identity)
        except SevError as error:
            self._stale(error)
            return self.current()

    def current(self) -> EndorsementSet:
        """What is at hand for this chip and its reported TCB."""
        if self._fresh_until is not None and self._now() >= self._fresh_until:
            self._rebuild()
        return self._set

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Holds the table's write lock. Raises NotNow after a bounded wait, KernelError if there can be no lock."""
        if self._table is None:
            yield
        else:
            async with self._table.exclusive():
                yield

    async def renew(self, identity: ChipIdentity | None) -> EndorsementSet:
        """Takes the lock and refreshes. Raises as `exclusive`, and KernelError."""
        async with self.exclusive():
            return await self.refresh(identity)

    async def refresh(self, identity: ChipIdentity | None) -> EndorsementSet:
        """Makes set and table fit this chip as it reports now; `exclusive` must be held. Raises KernelError."""
        async with self._lock:
            self._identity = identity
            self._sourced = await self._ask_source(identity) if identity is not None else []
            self._rebuild()
            if self._table is not None:
                self._table.write(self._set.certificate_table)
        return self._set

    async def import_(self, contents: Sequence[bytes], *, validate_only: bool = False) -> tuple[Endorsement, ...]:
        """Takes certificates and lists from files, all of them or none.

        Args:
            contents: DER or PEM, one or more objects each; at most 32 contents of at most 64 KiB.
            validate_only: Check everything, keep nothing.

        Raises:
            UsageError: Nothing, or too much; an object of another kind; a list older than the one at hand.
            MalformedInput: Neither DER nor PEM, or malformed (field `contents[i]`).
            VerificationError, CollateralError: Not genuine, not of this chip, or undecidable without its issuer.
            KernelError: It cannot be written. NotNow: The table is being read.
        """
        if not 0 < len(contents) <= MAX_CONTENTS:
            raise UsageError(f"contents: {len(contents)}, expected 1 to {MAX_CONTENTS}", field="contents")
        certificates: list[Certificate] = []
        lists: list[Crl] = []
        for index, content in enumerate(contents):
            field = f"contents[{index}]"
            if len(content) > MAX_CONTENT_BYTES:
                raise UsageError(f"{field}: {len(content)} bytes, expected at most {MAX_CONTENT_BYTES}", field=field)
            try:
                found, crls = load_all(bytes(content))
            except MalformedInput as error:
                raise MalformedInput(f"{field}: {error.message}", field=field) from error
            certificates += found
            lists += crls
        async with self._lock:
            stored = await asyncio.to_thread(self._check_import, certificates, lists)
            if not validate_only:
                for each in stored:
                    await asyncio.to_thread(self._store.keep, each)
                    self._imported[each.path] = each
        out = tuple(self._endorsement(each, "import") for each in stored)
        if not validate_only:
            names = ", ".join(each.kind.name for each in out)
            self._events.publish("endorsements.imported", f"endorsements were imported: {names}")
            await self.renew(self._identity)
        return out

    def close(self) -> None:
        """Closes the table's file."""
        if self._table is not None:
            self._table.close()

    def _check_import(self, certificates: Iterable[Certificate], lists: Iterable[Crl]) -> list[Stored]:
        """Runs on a thread."""
        now = self._now()
        wanted = list(dict.fromkeys(certificates))
        given = [one for one in wanted if one.is_ca]
        given += [each.certificate for each in self._imported.values() if each.certificate and each.certificate.is_ca]
        given += [each.certificate for each in self._sourced if each.certificate and each.certificate.is_ca]
        out = []
        for certificate in wanted:
            check_certificate(certificate, self._roots, given, self._identity, now)
            out.append(entry(certificate, product_of(certificate)))
        for crl in dict.fromkeys(lists):
            product = check_list(crl, self._roots, now) or (self._identity.product if self._identity else None)
            if product is None:
                raise UsageError("the list names no product, and this host's is not known", field="crl")
            stored = entry(crl, product)
            before = self._imported.get(stored.path)
            if before is not None and before.crl is not None and before.crl.this_update > crl.this_update:
                raise UsageError(
                    f"the list of {crl.this_update:%Y-%m-%d} is older than the one at hand "
                    f"({before.crl.this_update:%Y-%m-%d})",
                    field="crl",
                )
            out.append(stored)
        return out

    async def _ask_source(self, identity: ChipIdentity) -> list[Stored]:
        """What the simulator's authority has; it is checked where it is used."""
        if self._source is None:
            return []
        if self._scheduler is not None:
            answer = await self._scheduler.run("platform", self._source)
        else:
            answer = await asyncio.to_thread(self._source)
        out: list[Stored] = []
        for der in answer.values():
            certificates, crls = load_all(der)
            out += [entry(certificate, product_of(certificate)) for certificate in certificates]
            out += [entry(crl, identity.product) for crl in crls]
        return out

    def _rebuild(self) -> None:
        """The set and its table from what is at hand."""
        identity, now = self._identity, self._now()
        chosen: dict[EndorsementKind, Endorsement] = {}
        problems: list[str] = []
        ends: list[datetime] = []
        pool = [("simulator", each) for each in self._sourced]
        pool += [("import", each) for each in self._imported.values()]
        given = [each.certificate for _, each in pool if each.certificate is not None and each.certificate.is_ca]
        for origin, stored in pool:
            if identity is None or stored.kind in chosen or not self._fits(stored, identity):
                continue
            try:
                if stored.certificate is not None:
                    check_certificate(stored.certificate, self._roots, given, identity, now)
                    ends.append(stored.certificate.not_after)
                elif stored.crl is not None:
                    check_list(stored.crl, self._roots, now)
                    ends.append(stored.crl.next_update)
            except SevError as error:
                problems.append(f"The {stored.kind.name} at hand cannot be used: {error.message}.")
                continue
            chosen[stored.kind] = self._endorsement(stored, origin)
        self._fresh_until = min(ends, default=None)
        fresh = EndorsementSet(
            tuple(chosen[kind] for kind in sorted(chosen)),
            _table(chosen, vlek=identity is not None and identity.vlek_loaded),
            (*_missing(chosen, identity), *problems, *self._problems),
            self._simulated,
        )
        if fresh != self._set:
            self._set = fresh
            self.version += 1

    @staticmethod
    def _fits(stored: Stored, identity: ChipIdentity) -> bool:
        """Whether it is for this product, chip and reported TCB."""
        if stored.product is not identity.product:
            return False
        if stored.certificate is None or stored.certificate.is_ca:
            return True
        if stored.kind is EndorsementKind.VCEK:
            size = identity.product.chip_id_bytes
            if (stored.certificate.hwid or b"")[:size] != identity.chip_id[:size]:
                return False
        return tcb_of(stored.certificate).components() == identity.reported_tcb.components()

    @staticmethod
    def _endorsement(stored: Stored, origin: str) -> Endorsement:
        leaf = stored.certificate is not None and kind_of(stored.certificate) in (
            EndorsementKind.VCEK,
            EndorsementKind.VLEK,
        )
        tcb = tcb_of(stored.certificate) if leaf and stored.certificate is not None else None
        return Endorsement(stored.kind, stored.der, origin, tcb)

    def _set_aside(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self._problems.append(sentence)
        self._events.publish("endorsements.set_aside", sentence)

    def _stale(self, error: SevError) -> None:
        log.warning("the certificate table could not be refreshed: %s", error.message)
        self._events.publish("endorsements.stale", f"the certificate table could not be refreshed: {error.message}")


def _table(chosen: Mapping[EndorsementKind, Endorsement], *, vlek: bool) -> bytes:
    entries = [*_TABLE[vlek], (EndorsementKind.ARK, cert_table.ARK)]
    return cert_table.build([(guid, chosen[kind].der) for kind, guid in entries if kind in chosen])


def _missing(chosen: Mapping[EndorsementKind, Endorsement], identity: ChipIdentity | None) -> list[str]:
    """What a full chain lacks, one sentence each."""
    if identity is None:
        return ["The chip is not known: its device is missing, or it has no SEV-SNP."]
    needed = [kind for kind, _ in _TABLE[identity.vlek_loaded]] + [EndorsementKind.ARK]
    out = []
    for kind in needed:
        if kind in chosen:
            continue
        if kind in (EndorsementKind.VCEK, EndorsementKind.VLEK):
            out.append(
                f"There is no {kind.name} for the reported TCB ({identity.reported_tcb}) of this chip: fetch it from "
                "AMD's key distribution service and import it (sev certs import)."
            )
        else:
            out.append(f"There is no {kind.name} of {identity.product.kds_name}: import AMD's certificate chain.")
    return out
