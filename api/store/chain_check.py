"""The audit log's chain, recomputed: which entry was changed, removed, moved or put in, and what does not match a head.

It reads the log once, in order, and holds no more than a piece of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from api.store.chain import BEGINNING, Head, columns, link
from api.store.records import AuditEntry, AuditHead
from api.store.session import now

LISTED: Final = 100  # findings told one by one; beyond that they are counted
SEALED_WITHIN = timedelta(minutes=10)  # with a worker at work entries wait for its next look only
_COMPARED = 20  # entries that fit nowhere, tried in one another's place
_AT_ONCE = 2000

Kind = Literal["changed", "reordered", "missing", "twice", "head", "signature"]


@dataclass(frozen=True)
class Finding:
    """One thing that does not match. `entry` is the row's id, where there is a row."""

    kind: Kind
    position: int
    entry: int | None
    message: str


@dataclass(frozen=True)
class Claim:
    """What the chain's end was at some time, by somebody who has it in writing."""

    position: int
    hash: str
    source: str  # in words


@dataclass
class Verified:
    """The outcome. `unsealed` entries are not in the chain yet; some overdue say that no worker looks."""

    entries: int = 0
    head: Head = field(default_factory=lambda: Head(0, BEGINNING))
    heads: int = 0  # signed ones compared
    signatures_checked: bool = False
    unsealed: int = 0
    overdue: int = 0  # of those, older than ten minutes
    overdue_first: int | None = None  # the oldest one's id
    found: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all matches."""
        return self.found == 0

    def add(self, finding: Finding) -> None:
        """Count it, and list it while the list is short."""
        self.found += 1
        if len(self.findings) < LISTED:
            self.findings.append(finding)


@dataclass(frozen=True)
class _Misfit:
    before: str
    entry: Row[Any]


def verify(
    session: Session, *, claims: Sequence[Claim] = (), signed: Callable[[AuditHead], bool] | None = None
) -> Verified:
    """Recompute the whole chain, and compare it with the signed heads and with `claims`, such as a report's.

    `signed` says whether a head's signature is good; without it signatures are not looked at. The session must see one
    moment throughout, as a snapshot does.
    """
    result = Verified(signatures_checked=signed is not None)
    awaited = _Claims(session, claims, signed, result)
    misfits: list[_Misfit] = []
    before, place = BEGINNING, 0
    entries = columns().where(AuditEntry.position.is_not(None)).order_by(AuditEntry.position, AuditEntry.id)
    for entry in session.execute(entries.execution_options(yield_per=_AT_ONCE)):
        result.entries += 1
        if entry.position <= place:
            told = f"Position {entry.position} stands twice: entry {entry.id} was put in."
            result.add(Finding("twice", entry.position, entry.id, told))
            continue
        if entry.position > place + 1:
            result.add(Finding("missing", place + 1, None, _missing(place + 1, entry.position - 1)))
        elif link(before, entry.position, entry) != entry.hash:
            if len(misfits) < _COMPARED:
                misfits.append(_Misfit(before, entry))
            else:
                result.add(_changed(entry))
        place, before = entry.position, str(entry.hash)
        awaited.compare(place, before)
    for finding in _told(misfits):
        result.add(finding)
    result.head = Head(place, before)
    awaited.beyond(place)
    result.findings.sort(key=lambda finding: finding.position)
    _count_unsealed(session, result)
    return result


class _Claims:
    """Heads and claims in the order of their positions, each compared when the chain has come to it."""

    def __init__(
        self,
        session: Session,
        claims: Sequence[Claim],
        signed: Callable[[AuditHead], bool] | None,
        result: Verified,
    ) -> None:
        self._result = result
        self._signed = signed
        self._heads = self._of_table(session)
        self._head = next(self._heads, None)
        self._claims = sorted(claims, key=lambda claim: claim.position, reverse=True)

    def _of_table(self, session: Session) -> Iterator[Claim]:
        for head in session.scalars(select(AuditHead).order_by(AuditHead.position).execution_options(yield_per=1000)):
            source = f"the head signed at {_minute(head.at)}"
            self._result.heads += 1
            if self._signed is not None and not self._signed(head):
                told = f"The signature of {source} over position {head.position} is not by this key."
                self._result.add(Finding("signature", head.position, None, told))
            yield Claim(head.position, head.hash, source)

    def compare(self, position: int, found: str) -> None:
        """All that is claimed of this position, against the hash that stands there."""
        for claim in self._up_to(position):
            if claim.position < position:
                self._result.add(Finding("head", claim.position, None, f"Position {_named(claim)}, is missing."))
            elif claim.hash != found:
                told = f"The hash at position {_named(claim)}, is another: the log was made anew up to there."
                self._result.add(Finding("head", position, None, told))

    def beyond(self, last: int) -> None:
        """What is claimed of positions that the chain does not reach."""
        for claim in self._up_to(None):
            told = f"{_missing(last + 1, claim.position)} They stood there by {claim.source}."
            self._result.add(Finding("missing", last + 1, None, told))

    def _up_to(self, position: int | None) -> Iterator[Claim]:
        while self._head is not None and (position is None or self._head.position <= position):
            yield self._head
            self._head = next(self._heads, None)
        while self._claims and (position is None or self._claims[-1].position <= position):
            yield self._claims.pop()


def _told(misfits: Sequence[_Misfit]) -> Iterator[Finding]:
    """What is wrong with entries that do not fit where they stand; one that fits behind another's hash is right."""
    hashes = {misfit.entry.hash for misfit in misfits}
    places = [misfit.entry.position for misfit in misfits]

    def fits(entry: Row[Any], position: int, before: str, wanted: set[str]) -> bool:
        behind = {before, *hashes} - {entry.hash}
        return any(link(hash_, position, entry) in wanted for hash_ in behind)

    for misfit in misfits:
        entry, before = misfit.entry, misfit.before
        if fits(entry, entry.position, before, {entry.hash}):
            continue
        others = (other.entry for other in misfits if other is not misfit)
        right = next((o for o in others if fits(o, entry.position, before, {entry.hash, o.hash})), None)
        moved = next((place for place in places if fits(entry, place, before, {entry.hash})), None)
        if right is not None:
            told = f"Entry {entry.id} stands at position {entry.position}, where entry {right.id} belongs."
            yield Finding("reordered", entry.position, entry.id, told)
        elif moved is not None:
            told = f"Entry {entry.id} stands at position {entry.position} and belongs to position {moved}."
            yield Finding("reordered", entry.position, entry.id, told)
        else:
            yield _changed(entry)


def _changed(entry: Row[Any]) -> Finding:
    told = f"Entry {entry.id} at position {entry.position} is not what was sealed there: it was changed."
    return Finding("changed", entry.position, entry.id, told)


def _missing(first: int, last: int) -> str:
    return f"Position {first} is missing." if first == last else f"Positions {first} to {last} are missing."


def _named(claim: Claim) -> str:
    return f"{claim.position}, of which {claim.source} tells"


def _minute(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _count_unsealed(session: Session, result: Verified) -> None:
    unsealed = AuditEntry.position.is_(None)
    result.unsealed = session.execute(select(func.count()).select_from(AuditEntry).where(unsealed)).scalar_one()
    overdue = select(func.count(), func.min(AuditEntry.id)).where(
        unsealed, AuditEntry.at < now(session) - SEALED_WITHIN
    )
    result.overdue, result.overdue_first = session.execute(overdue).one()
