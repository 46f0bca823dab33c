"""The endorsements of this chip: what is at hand, what is missing, and the certificate table made of it.

Certificates come from imported files, from what the refresher brings (sevd.endorsements.refresher), and on a simulated
platform from the simulator's authority. Whatever the origin, each is checked against the trusted roots and this chip
before it is kept or shown (sevd.endorsements.check). What a simulated platform keeps lies in a folder of its own: it
never mixes with AMD's.

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
from sev.errors import DeviceMissing, KernelError, NotOffered, SevError
from sev.records import replace
from sevd.endorsements import fitting, taking
from sevd.endorsements.check import LEAVES, check_certificate, check_genuine, check_list, product_of, tcb_of
from sevd.endorsements.entries import Stored, entry
from sevd.endorsements.model import ChipIdentity, Endorsement, EndorsementKind, EndorsementSet
from sevd.endorsements.store import Store
from sevd.endorsements.table_file import WAIT_SECONDS, TableFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from sev.certs import Certificate, Crl, Roots
    from sevd.devices.scheduler import Scheduler
    from sevd.events import Publisher

log = logging.getLogger(__name__)


class Endorsements:
    """The certificates of this chip.

    Args:
        directory: Where they are kept.
        roots: The trusted roots: AMD's, or the simulator's.
        events: Where to say what happened.
        source: Answers certificates in DER by kind ("ark", "ask", …) for the TCB reported now; only a simulator can.
        scheduler: Where `source` runs.
        table_path: The certificate table's file; None for none.
        table: The same, opened; who has it may have its lock already.
        ask: Asks the platform which chip this is and what it reports. Raises SevError where it does not tell.
        service: The key distribution service that is asked by itself; empty for none.
        simulated: The platform is simulated.
        now: The time that dates are compared with.
        wait_seconds: How long to wait for readers of the table.

    Attributes:
        version: Counts up whenever `current` answers something new.
        stale: The table could not be made to fit; it is empty, or what readers held on to.
        roots: The trusted roots.
        changed: Called whenever the set has changed, or, with True, another chip or TCB is reported.
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
        service: str = "",
        simulated: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.roots = roots
        self._service = service
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
        self._kept: dict[str, Stored] = {}
        self._sourced: list[Stored] = []
        self._identity: ChipIdentity | None = None
        self._fresh_until: datetime | None = None
        self._lock = asyncio.Lock()
        self.version = 0
        self.stale = False
        self.changed: Callable[[bool], None] = lambda moved: None
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
                check_list(stored.crl, self.roots, None)
            elif stored.certificate is not None:
                check_genuine(stored.certificate, self.roots, authorities)

        # A state directory may have served another simulated product, under another root: what is kept for it is not
        # damaged, only of no use now.
        lines = [ark.product.name for ark in self.roots.arks if ark.product is not None]
        products = lines if len(lines) == len(self.roots.arks) else None
        self._kept.update(await asyncio.to_thread(self._store.load, check, products))

    @property
    def identity(self) -> ChipIdentity | None:
        """This chip, as it was last asked; None if it is not known."""
        return self._identity

    def kept(self, name: str) -> Stored | None:
        """What is at hand under a name: kept in the store, or from the simulator's authority."""
        return self._kept.get(name) or next((each for each in self._sourced if each.name == name), None)

    def ceks(self) -> list[bytes]:
        """The signed CEKs that are kept, each 2084 bytes. From any thread."""
        return [each.der for name, each in list(self._kept.items()) if name.endswith("/cek")]

    def current(self) -> EndorsementSet:
        """What is at hand for this chip and its reported TCB."""
        if self._fresh_until is not None and self._now() >= self._fresh_until:
            self._rebuild()
        return self._set

    def look_again(self) -> None:
        """Makes the set anew where the table does not change: lists are not in it."""
        self._rebuild()

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
        try:
            async with self.exclusive():
                return await self.settle()
        except SevError as error:
            self.mark_stale(error)
            raise

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
            moved, self._identity = self._identity != identity, identity
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
        if moved:
            self.changed(True)
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
        certificates, lists = taking.read(contents)
        stored = await self.take(certificates, lists, "import", validate_only=validate_only)
        out = tuple(endorsement(each) for each in stored)
        if not validate_only:
            names = ", ".join(each.kind.name for each in out)
            self._events.publish("endorsements.imported", f"endorsements were imported: {names}")
            await self.update()
        return out

    async def take(
        self, certificates: Sequence[Certificate], lists: Sequence[Crl], origin: str, *, validate_only: bool = False
    ) -> list[Stored]:
        """Checks certificates and lists and keeps them, all or none; `update` has guests see them.

        Raises:
            UsageError, VerificationError, CollateralError, KernelError: As `import_`.
        """
        async with self._lock:
            stored = await asyncio.to_thread(self._check, certificates, lists, origin)
            if not validate_only:
                await self._keep(stored)
        return stored

    async def keep(self, *stored: Stored) -> None:
        """Keeps what was checked, all or none; `update` has guests see it. Raises KernelError."""
        async with self._lock:
            await self._keep(stored)

    async def _keep(self, stored: Sequence[Stored]) -> None:
        self._store.spared = frozenset(
            name for name, each in self._kept.items() if self._identity and fitting.fits(each, self._identity)
        )
        await asyncio.to_thread(self._store.keep, *stored)
        self._kept.update((each.name, each) for each in stored)
        for name in set(self._kept) - self._store.names():  # forgotten, to make room
            del self._kept[name]

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

    def authorities(self) -> list[Certificate]:
        """The authorities at hand beside the built-in ones."""
        pool = [*self._kept.values(), *self._sourced]
        return [each.certificate for each in pool if each.certificate is not None and each.certificate.is_ca]

    def _check(self, certificates: Sequence[Certificate], lists: Sequence[Crl], origin: str) -> list[Stored]:
        """Runs on a thread."""
        found = taking.check(
            certificates,
            lists,
            roots=self.roots,
            given=self.authorities(),
            identity=self._identity,
            before=self._kept.get,
            now=self._now(),
        )
        return [replace(each, origin=origin, fetched=self._now().replace(microsecond=0)) for each in found]

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
        return [replace(each, origin="simulator") for each in out]

    def _rebuild(self) -> None:
        """The set and its table from what is at hand."""
        identity, now = self._identity, self._now()
        chosen: dict[EndorsementKind, Endorsement] = {}
        problems: list[str] = []
        given = self.authorities()
        for stored in (*self._sourced, *self._kept.values()):
            if identity is None or stored.kind in chosen or not fitting.fits(stored, identity):
                continue
            try:
                if stored.certificate is not None:
                    check_certificate(stored.certificate, self.roots, given, identity, now)
                elif stored.crl is not None:
                    check_list(stored.crl, self.roots, now)
            except SevError as error:
                problems.append(f"The {stored.kind.name} at hand cannot be used: {error.message}.")
                continue
            chosen[stored.kind] = endorsement(stored)
        self._fresh_until = min((each.ends for each in chosen.values() if each.ends is not None), default=None)
        fresh = EndorsementSet(
            tuple(chosen[kind] for kind in sorted(chosen)),
            fitting.table(chosen, identity),
            (*fitting.missing(chosen, identity, self._service), *problems, *self._problems),
            self._simulated,
        )
        if fresh != self._set:
            self._set = fresh
            self.version += 1
            self.changed(False)

    def _set_aside(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self._problems.append(sentence)
        self._events.publish("endorsements.set_aside", sentence)


def endorsement(stored: Stored) -> Endorsement:
    """One of the store, as it is shown."""
    certificate, crl = stored.certificate, stored.crl
    tcb = tcb_of(certificate) if certificate is not None and stored.kind in LEAVES else None
    ends = certificate.not_after if certificate is not None else crl.next_update if crl is not None else None
    return Endorsement(stored.kind, stored.der, stored.origin, tcb, stored.fetched, ends)
