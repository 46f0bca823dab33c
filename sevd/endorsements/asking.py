"""Asking a key distribution service through whoever has a network: what comes back is believed only after the checks.

`Kds` is for sev.kds.certificates what its own HTTPS client is for people's commands.
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import TYPE_CHECKING

from sev.kds import certificates, urls
from sev.kds.errors import AGAIN, KdsUnavailable, busy, refused, retry_after
from sev.records import replace
from sevd.endorsements import needs
from sevd.endorsements.check import check_certificate
from sevd.endorsements.entries import Stored, cek_entry, entry
from sevd.endorsements.taking import check_newer
from sevd.fetch.wire import BODY_MAX, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sev.certs import Certificate, Roots
    from sev.certs.sev_roots import SevRoots
    from sevd.endorsements.model import ChipIdentity
    from sevd.endorsements.needs import Need
    from sevd.fetch.client import Fetcher
    from sevd.fetch.wire import Reply

RETRY_AFTER_MAX = 24 * 3600.0
"""Seconds that a service may ask to wait; what asks for more is asked again after these."""


class Kds:
    """A service, asked through a fetcher. Blocks.

    Args:
        url: Its base URL.
        fetcher: Who asks.

    Attributes:
        url: The same.
        reply: The last reply that had a content.
        unchanged: The service said that what was held is still so.
        held: What is held.
    """

    def __init__(self, url: str, fetcher: Fetcher) -> None:
        self.url = urls.base(url)
        self.reply: Reply | None = None
        self.unchanged = False
        self._fetcher = fetcher
        self.held: Sequence[Stored] = ()

    def hold(self, held: Sequence[Stored]) -> None:
        """What is at hand of the next thing that is asked for; where the service lets it be used again, it is."""
        self.held = held
        self.reply, self.unchanged = None, False

    def get(self, url: str, what: str, limit: int = BODY_MAX, *, content: bytes | None = None) -> bytes:
        """What is at an address, as sev.kds.service.Service.get answers it, but asked once. Raises KdsUnavailable."""
        question = Question(url, min(limit, BODY_MAX), headers=self._conditions(), content=content or b"")
        reply = self._fetcher.fetch(question)
        if reply.status == 200:
            self.reply = reply
            return reply.body
        if reply.status == 304 and question.headers:
            self.unchanged = True
            return self._again()
        if reply.status in AGAIN:
            error = KdsUnavailable(f"{what} is not to be had from {self.url}: {busy(reply.status)}", field="kds")
            error.passes = True
            seconds = retry_after(reply.headers.get("retry-after", ""))
            error.retry_after = None if seconds is None else min(seconds, RETRY_AFTER_MAX)
            raise error
        raise refused(self.url, what, reply.status)

    def rest(self) -> None:
        """Nothing is asked for a while."""
        self._fetcher.rest()

    def close(self) -> None:
        """Ends who asks; what is under way ends with KdsUnavailable."""
        self._fetcher.close()

    def _conditions(self) -> tuple[tuple[str, str], ...]:
        """Only where all that is held came with one answer of this service."""
        validators = {(each.etag, each.modified) for each in self.held}
        if len(validators) != 1 or any(each.origin != "kds" for each in self.held):
            return ()
        etag, modified = validators.pop()
        pairs = (("If-None-Match", etag), ("If-Modified-Since", modified))
        return tuple((name, text) for name, text in pairs if text)

    def _again(self) -> bytes:
        """What is held, in the form in which the service gives it."""
        if len(self.held) == 1:
            return self.held[0].der
        return b"".join(
            b"-----BEGIN CERTIFICATE-----\n" + b2a_base64(each.der) + b"-----END CERTIFICATE-----\n"
            for each in self.held
        )


def fetch(
    need: Need,
    kds: Kds,
    identity: ChipIdentity | None,
    *,
    roots: Roots,
    sev_roots: Callable[[], SevRoots],
    given: Sequence[Certificate],
    kept: Callable[[str], Stored | None],
    now: Callable[[], datetime],
) -> list[Stored]:
    """What the service has of a need, checked. Blocks.

    Args:
        need: What to ask for.
        kds: Whom.
        identity: This chip; needed for all but a CEK.
        roots: The trusted roots of SNP.
        sev_roots: Those of SEV.
        given: Authorities at hand.
        kept: What the store has under a name.
        now: Tells the time that dates are compared with.

    Raises:
        KdsUnavailable: No answer.
        MalformedInput, VerificationError, CollateralError: An answer that is something else, or not genuine.
        UsageError: A list older than the one at hand.
    """
    product = need.product
    kds.hold([stored for name in need.names if (stored := kept(name)) is not None] if need.at_hand else [])
    if need.what == needs.CEK:
        found = certificates.cek(kds, need.chip_id, roots=sev_roots())
        return _with_facts([cek_entry(found.encode(), product, need.chip_id)], kds, now())
    assert identity is not None
    tcb = identity.reported_tcb
    if need.what in (needs.CA, needs.VLEK_CA):
        key = "vcek" if need.what == needs.CA else "vlek"
        authorities = certificates.ca(kds, product, key, roots=roots)
        for one in authorities:
            check_certificate(one, roots, (), identity, now())  # of this line, and valid: else they would be no help
        return _with_facts([entry(one, product) for one in authorities], kds, now())
    if need.what == needs.CRL:
        stored = entry(certificates.crl(kds, product, at=now, roots=roots), product)
        check_newer(stored, kept(stored.name))
        return _with_facts([stored], kds, now())
    if need.what == needs.VCEK:
        leaf = certificates.vcek(kds, product, identity.chip_id, tcb, at=now, roots=roots, given=given)
    else:
        leaf = certificates.vlek(kds, product, tcb, at=now, roots=roots, given=given)
    return _with_facts([entry(leaf, product)], kds, now())


def _with_facts(found: Sequence[Stored], kds: Kds, now: datetime) -> list[Stored]:
    """What was found, with where it came from. What is still so keeps its validators."""
    moment = now.replace(microsecond=0)
    if kds.unchanged or kds.reply is None:
        held = {each.name: each for each in kds.held}
        return [replace(held.get(each.name, each), fetched=moment) for each in found]
    headers = kds.reply.headers
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    return [replace(each, origin="kds", fetched=moment, etag=etag, modified=modified) for each in found]
