"""Certificates and lists on disk: each content once, under its SHA-256; an index says which stands for what.

    DIRECTORY/objects/SHA256    DER, or a CEK in SEV's own form
    DIRECTORY/index             names to objects, with their origin (sevd.endorsements.index)

A name is what something is for: `genoa/ark`, `ask`, `asvk`, `crl`, `genoa/vlek-TCB`, `genoa/CHIP/vcek-TCB`,
`genoa/CHIP/cek`; TCB is the raw integer in 16 hexadecimal digits, CHIP the identifier in hexadecimal.

New objects are written and synced before the index names them, and old ones go after it does not: at any moment the
index is the old or the new one, and all that it names is there. An object whose content is not what its name says, or
not what the index takes it for, is set aside (renamed to NAME.damaged-TIME) and reported, never silently replaced; a
damaged index too, and then it is made again from the objects. Files of the layout before this one are taken over.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sev.errors import CollateralError, KernelError, MalformedInput, SevError, VerificationError
from sev.records import replace
from sevd import durable
from sevd.endorsements import index, older_store
from sevd.endorsements.entries import MAX_FILE, Stored, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sev.certs import Certificate

LEAVES_MAX = 128
"""Leaf certificates and CEKs kept, of all chips and TCBs; those that came first go first."""

OBJECTS_MAX = 4096
"""Objects looked at when an index is made again."""


class Store:
    """The folder. Everything here blocks on the disk; one call at a time.

    Args:
        directory: Where it is; made when the first is kept.
        report: Told one sentence about everything that was set aside.

    Attributes:
        spared: Names of leaves that are kept however many others come: those that are in use.
    """

    def __init__(self, directory: Path, report: Callable[[str], None]) -> None:
        self._directory = directory
        self._objects = directory / "objects"
        self._index = directory / "index"
        self._report = report
        self._entries: dict[str, index.Entry] = {}
        self.spared: frozenset[str] = frozenset()

    def load(
        self, check: Callable[[Stored, Sequence[Certificate]], None], products: Collection[str] | None = None
    ) -> dict[str, Stored]:
        """Everything in the store that reads back as what it should be and passes `check`, by name.

        What lies there for processor lines other than `products` (None: all) is neither read nor touched.

        `check` is given each entry and the authorities among all of them. What it refuses with a VerificationError is
        set aside like a damaged file; what it cannot decide (CollateralError) stays.
        """
        sure = self._read_index(products)
        before = dict(self._entries)
        found = self._read_objects(products)
        authorities = [one.certificate for one in found.values() if one.certificate and one.certificate.is_ca]
        for name, stored in list(found.items()):
            try:
                check(stored, authorities)
            except VerificationError as error:
                self._drop(name, error.message)
                del found[name]
            except CollateralError:
                pass  # undecided: it is looked at again where it is used
        taken = older_store.take_over(self._directory, self._report, products)
        fresh = [stored for stored, _ in taken if stored.name not in found]
        for stored in fresh:
            try:
                check(stored, [*authorities, *(one.certificate for one in fresh if one.certificate)])
            except VerificationError as error:
                path = next(path for one, path in taken if one is stored)
                older_store.set_aside(path, error.message, self._report)
                taken = [(one, at) for one, at in taken if one is not stored]
                continue
            except CollateralError:
                pass
            found[stored.name] = stored
        try:
            kept = [stored for stored, _ in taken if found.get(stored.name) is stored]
            if kept:
                self.keep(*kept)
            elif self._entries != before or not sure:
                self._write_index()
            for _, path in taken:
                durable.disk.remove(path)
            older_store.tidy(self._directory)
            if sure:
                self._sweep()
        except (OSError, KernelError) as error:
            self._report(f"{self._directory} cannot be written: {getattr(error, 'strerror', None) or error}.")
        return found

    def keep(self, *stored: Stored) -> None:
        """Keeps these, all or none. Raises KernelError."""
        before = dict(self._entries)
        path = self._objects
        try:
            if not self._index.exists():
                path = self._index
                self._write_index()  # before any object: objects without an index mean that it was lost
            durable.make_directories(self._objects, 0o755)
            for each in stored:
                path = self._objects / each.digest
                if not path.exists():
                    durable.write(path, each.der, 0o644)
                self._entries[each.name] = index.Entry(each.digest, each.origin, each.fetched, each.etag, each.modified)
            self._make_room({each.name for each in stored})
            path = self._index
            self._write_index()
        except OSError as error:
            self._entries = before
            raise KernelError(error.errno or 0, command=f"write {path}") from error
        for digest in {known.digest for known in before.values()} - self._named():
            try:
                durable.disk.remove(self._objects / digest)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    self._report(f"{self._objects / digest} cannot be removed: {error.strerror}.")

    def names(self) -> frozenset[str]:
        """What there is."""
        return frozenset(self._entries)

    def _write_index(self) -> None:
        durable.make_directories(self._directory, 0o755)
        index.write(self._index, self._entries)

    def _read_index(self, products: Collection[str] | None) -> bool:
        """Reads it, or makes it again; whether it was there and whole, or there is nothing."""
        try:
            self._entries = index.read(self._index)
            return True
        except FileNotFoundError:
            if not self._objects.is_dir():
                return True
        except MalformedInput as error:
            made_again = "it is made again from the certificates that are there"
            older_store.set_aside(self._index, error.message, self._report, made_again)
        except OSError as error:
            self._report(f"{self._index} cannot be read: {error.strerror}.")
        self._entries = self._made_again(products)
        return False

    def _made_again(self, products: Collection[str] | None) -> dict[str, index.Entry]:
        """An index from what the objects say of themselves."""
        best: dict[str, Stored] = {}
        try:
            with os.scandir(self._objects) as found:
                digests = sorted(file.name for _, file in zip(range(OBJECTS_MAX), found, strict=False))
        except OSError as error:
            self._report(f"{self._objects} cannot be read: {error.strerror}.")
            return {}
        for digest in digests:
            if len(digest) != 64:
                continue
            try:
                stored = parse(self._content(digest), lines=products)
            except (OSError, SevError):
                continue  # nobody can tell any more what it was; it stays where it is
            if stored.name not in best or _since(best[stored.name]) < _since(stored):
                best[stored.name] = stored
        return {name: index.Entry(stored.digest, "kept") for name, stored in best.items()}

    def _read_objects(self, products: Collection[str] | None) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        for name, entry in list(self._entries.items()):
            if products is not None and name.partition("/")[0] not in products:
                continue
            try:
                stored = parse(self._content(entry.digest), name=name)
                if stored.name != name:
                    raise MalformedInput(f"it holds what belongs to {stored.name}")
            except FileNotFoundError:
                self._report(f"{self._objects / entry.digest}, the {name}, is missing.")
                del self._entries[name]
            except SevError as error:
                self._drop(name, error.message)
            except OSError as error:
                self._report(f"{self._objects / entry.digest} cannot be read: {error.strerror}.")
            else:
                found[name] = replace(
                    stored, origin=entry.origin, fetched=entry.fetched, etag=entry.etag, modified=entry.modified
                )
        return found

    def _content(self, digest: str) -> bytes:
        """Raises OSError; MalformedInput: it is not what its name says."""
        descriptor = os.open(self._objects / digest, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise MalformedInput(f"more than {MAX_FILE} bytes")
        if hashlib.sha256(data).hexdigest() != digest:
            raise MalformedInput("its content does not match its name, which is its SHA-256")
        return data

    def _drop(self, name: str, why: str) -> None:
        entry = self._entries.pop(name)
        if entry.digest not in self._named():
            path, then = self._objects / entry.digest, "import it again, or have it fetched"
            older_store.set_aside(path, f"the {name}: {why}", self._report, then)

    def _make_room(self, new: Collection[str]) -> None:
        """Forgets the oldest leaves beyond the bound."""
        leaves = [name for name in self._entries if name.rpartition("/")[2][:4] in ("vcek", "vlek", "cek")]
        safe = self.spared | set(new)
        old = sorted((name for name in leaves if name not in safe), key=self._age)
        for name in old[: max(0, len(leaves) - LEAVES_MAX)]:
            del self._entries[name]

    def _age(self, name: str) -> float:
        fetched = self._entries[name].fetched
        return fetched.timestamp() if fetched is not None else 0.0

    def _named(self) -> set[str]:
        return {entry.digest for entry in self._entries.values()}

    def _sweep(self) -> None:
        """Removes what a power loss left behind: files that were growing, and objects that no index names."""
        for folder in (self._directory, self._objects):
            if folder.is_dir():
                durable.sweep(folder)
        if self._objects.is_dir():
            for digest in set(os.listdir(self._objects)) - self._named():
                if len(digest) == 64:
                    durable.disk.remove(self._objects / digest)


def _since(stored: Stored) -> float:
    """From when it speaks; of two that stand for the same the later one counts."""
    moment = stored.certificate.not_before if stored.certificate else stored.crl.this_update if stored.crl else None
    return moment.timestamp() if moment is not None else 0.0
