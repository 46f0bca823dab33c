"""The endorsements of this chip: what is at hand, what is missing, and the certificate table made of it.

Certificates come from imported files and, on a simulated platform, from the simulator's authority. Whatever the
origin, each is checked against the trusted roots and this chip before it is kept or shown (sevd.endorsements.check).
Imports of a simulated platform lie in a folder of their own: they never mix with AMD's.

What goes into the table is in `sevd.endorsements.fitting`. It holds no revocation list: guests must not take one from
their host, and a list runs out while the table lies there.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.abi import cert_table
from sev.certs.files import load_all
from sev.errors import DeviceMissing, KernelError, MalformedInput, NotOffered, SevError, UsageError
from sevd.endorsements import fitting
from sevd.endorsements.check import check_certificate, check_genuine, check_list, kind_of, product_of, tcb_of
from sevd.endorsements.model import ChipIdentity, Endorsement, EndorsementKind, EndorsementSet
from sevd.endorsements.store import Store, Stored, entry
from sevd.endorsements.table_file import WAIT_SECONDS, TableFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from sev.certs import Certificate, Crl, Roots
    from sevd.devices.scheduler import Scheduler
    from sevd.events import Publisher


MAX_CONTENTS = 32
"""Contents in one import."""

MAX_CONTENT_BYTES = 64 << 10
"""Bytes of one content."""

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
        table: The same, opened; who has it may have its lock already.
        ask: Asks the platform which chip this is and what it reports. Raises SevError where it does not tell.
        simulated: The platform is simulated.
        now: The time that dates are compared with.
        wait_seconds: How long to wait for readers of the table.

    Attributes:
        version: Counts up whenever `current` answers something new.
        stale: The table could not be made to fit; it is empty, or what readers held on to.
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
        table: TableFile | None = None,
        ask: Callable[[], Awaitable[ChipIdentity]] | None = None,
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
        if table is None and table_path is not None:
            table = TableFile(table_path, wait_seconds=wait_seconds)
        self._table = table
        self._ask = ask
        self._imported: dict[Path, Stored] = {}
        self._sourced: list[Stored] = []
        self._identity: ChipIdentity | None = None
        self._fresh_until: datetime | None = None
        self._lock = asyncio.Lock()
        self.version = 0
        self.stale = False
        self._set = EndorsementSet((), cert_table.build(()), ("The platform was not asked yet.",), simulated)

    async def open(self, identity: ChipIdentity | None) -> EndorsementSet:
        """Reads the store and makes the table; to be called once, at start. Never raises SevError.

        Args:
            identity: This chip; None while the device is missing.
        """
        await self.load()
        try:
            return await self.renew(identity)
        except SevError as error:
            self.mark_stale(error)
            return self.current()

    async def load(self) -> None:
        """Reads the store; the table stays as it is."""

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

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Holds the write lock around a command that changes what reports show, whatever becomes of it.

        The table is empty meanwhile, and afterwards it fits, or stays empty: who is killed in between leaves nothing
        behind that does not fit.

        Raises:
            NotNow, KernelError: As `exclusive`, and if the table cannot be emptied; the command must not be issued.
        """
        async with self.exclusive():
            if self._table is not None:
                self._table.clear()
            try:
                yield
            finally:
                await self.settle()

    async def update(self) -> EndorsementSet:
        """Takes the lock and makes set and table fit what the platform says now. Raises as `exclusive`."""
        async with self.exclusive():
            return await self.settle()

    async def settle(self) -> EndorsementSet:
        """The same while `exclusive` is held. What fails leaves the table empty, and is said; never raises SevError."""
        identity = self._identity
        try:
            if self._ask is not None:
                identity = None
                with suppress(DeviceMissing, NotOffered):  # then there are no guests, and nothing fits
                    identity = await self._ask()
        except SevError as error:
            self.mark_stale(error)
            with suppress(SevError):
                await self.refresh(None)
            return self._set
        try:
            found = await self.refresh(identity)
        except SevError as error:
            self.mark_stale(error)
            return self._set
        self.stale = False
        return found

    async def renew(self, identity: ChipIdentity | None) -> EndorsementSet:
        """Takes the lock and refreshes. Raises as `exclusive`, and KernelError."""
        async with self.exclusive():
            return await self.refresh(identity)

    async def refresh(self, identity: ChipIdentity | None) -> EndorsementSet:
        """Makes set and table fit this chip as it reports now; `exclusive` must be held.

        Raises:
            SevError: The source does not answer, or the table cannot be written; it is empty then.
        """
        async with self._lock:
            self._identity = identity
            try:
                self._sourced = await self._ask_source(identity) if identity is not None else []
                self._rebuild()
                if self._table is not None:
                    self._table.write(self._set.certificate_table)
            except BaseException:
                if self._table is not None:
                    with suppress(KernelError):
                        self._table.clear()
                raise
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
            await self.update()
        return out

    def mark_stale(self, error: SevError) -> None:
        """The table could not be made to fit: says so, once until it was."""
        if self.stale:
            return
        self.stale = True
        log.warning("the certificate table could not be refreshed: %s", error.message)
        self._events.publish("endorsements.stale", f"the certificate table could not be refreshed: {error.message}")

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
            if identity is None or stored.kind in chosen or not fitting.fits(stored, identity):
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
            fitting.table(chosen, identity),
            (*fitting.missing(chosen, identity), *problems, *self._problems),
            self._simulated,
        )
        if fresh != self._set:
            self._set = fresh
            self.version += 1

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
