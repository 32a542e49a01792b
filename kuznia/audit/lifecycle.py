"""What people do to the log: holds, erasure, retention. Each is itself a record of the log.

The stream of the writer `operator`, one segment an event, signed by the key of whoever acts.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from kuznia.audit import notes
from kuznia.audit.chain import line_of, moment, seal
from kuznia.audit.streams import key_of, publish, streams
from kuznia.audit.verify import LEAST_DAYS, Span
from kuznia.contracts.audit import NOTHING, OPERATOR, Checkpoint, Event, Header, Removed
from kuznia.errors import InputError
from kuznia.store.objects import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Operator:
    """Someone who acts on the log. Raises DependencyError where a store does not answer."""

    def __init__(
        self,
        store: Store,
        key: Ed25519PrivateKey,
        by: str,
        now: Callable[[], float],
        anchors: Store | None = None,
    ) -> None:
        self._store, self._key, self._by, self._now = store, key, by, now
        self._stores = [store, *([anchors] if anchors else [])]

    def log(self, tenant: str, kind: str, **fields: Any) -> Event:
        """Add an event to the tenant's stream; of two at once both are added."""
        while True:
            note, last = self._newest(tenant)
            first = last.total + 1 if last else 1
            event = Event.model_validate(
                {
                    "seq": first,
                    "prev": last.last if last else NOTHING,
                    "tenant": tenant,
                    "kind": kind,
                    "id": uuid.uuid4().hex[:12],
                    "time": moment(self._now()),
                    "by": self._by,
                }
                | fields
            )
            key = key_of(tenant, OPERATOR, first)
            made = self._segment(tenant, first, line_of(event), note)
            mine = self._store.create(key, made[0])
            if not mine:
                # Another operator's, who may have been stopped before its checkpoint.
                there = self._store.read(key).split(b"\n")[1]
                made = self._segment(tenant, first, there, note)
                if self._store.exists(key_of(tenant, OPERATOR, first, "checkpoint")):
                    continue
            publish(self._stores, tenant, OPERATOR, first, made[0], notes.sign(made[1], self._key))
            if mine:
                return event

    def hold(self, tenant: str, span: Span, reason: str) -> Event:
        """Keep everything of the tenant in that span until the hold is lifted."""
        return self.log(
            tenant, "hold", since=span.since or None, until=span.until or None, reason=reason
        )

    def lift(self, tenant: str, hold: str, reason: str) -> Event:
        """End a hold; InputError if there is no such."""
        known = [each.id for each in holds(self._store, tenant)]
        if hold not in known:
            raise InputError(
                f"{hold}: is no hold of {tenant}; there are: {', '.join(known) or 'none'}"
            )
        return self.log(tenant, "lift", hold=hold, reason=reason)

    def retention(self, tenant: str, days: int) -> Event | None:
        """Remove segments sealed longer ago than `days`, but for those under a hold.

        Their checkpoints stay. None if there was none. Raises InputError below 190 days.
        """
        if days < LEAST_DAYS:
            raise InputError(f"--days: {days} is below {LEAST_DAYS}; the law asks for six months")
        now = self._now()
        limit = moment(now - days * 86400)
        held = [Span(each.since or "", each.until or "") for each in holds(self._store, tenant)]
        removed = []
        for stream in streams(self._store, tenant).values():
            if stream.writer == OPERATOR:
                continue
            for first in sorted(stream.segments & stream.checkpoints):
                note = self._store.read(key_of(tenant, stream.writer, first, "checkpoint"))
                one = notes.claimed(note)
                if one.sealed < limit and not any(s.touches(one.since, one.until) for s in held):
                    digest = hashlib.sha256(note).hexdigest()
                    removed.append(Removed(writer=stream.writer, first=first, checkpoint=digest))
        if not removed:
            return None
        # Said before it is done: a removal that nobody signed is a finding.
        event = self.log(
            tenant, "retention", until=limit, days=days, removed=[r.model_dump() for r in removed]
        )
        for each in removed:
            self._store.delete(key_of(tenant, each.writer, each.first))
        return event

    def _newest(self, tenant: str) -> tuple[bytes | None, Checkpoint | None]:
        stream = streams(self._store, tenant).get(f"{tenant}/{OPERATOR}")
        if stream is None or not stream.checkpoints:
            return None, None
        newest = key_of(tenant, OPERATOR, max(stream.checkpoints), "checkpoint")
        note = self._store.read(newest)
        return note, notes.claimed(note)

    def _segment(
        self, tenant: str, first: int, line: bytes, note: bytes | None
    ) -> tuple[bytes, Checkpoint]:
        prev = notes.claimed(note).last if note else NOTHING
        header = Header(tenant=tenant, writer=OPERATOR, first=first, prev=prev)
        return seal(header, [line], note, self._now())


def events(store: Store, tenant: str) -> list[Event]:
    """Everything that was done to a tenant's log, the oldest first."""
    stream = streams(store, tenant).get(f"{tenant}/{OPERATOR}")
    found = []
    for first in sorted(stream.segments if stream else ()):
        for line in store.read(key_of(tenant, OPERATOR, first)).splitlines()[1:]:
            found.append(Event.model_validate(json.loads(line)))
    return found


def holds(store: Store, tenant: str) -> list[Event]:
    """Holds that are not lifted."""
    found = events(store, tenant)
    lifted = {each.hold for each in found if each.kind == "lift"}
    return [each for each in found if each.kind == "hold" and each.id not in lifted]


def refuse_if_held(store: Store, tenant: str, spans: Sequence[Span], what: str) -> None:
    """InputError naming every hold that touches one of these spans."""
    problems = [
        f"{tenant}: {what} is under hold {each.id} of {each.time[:10]} ({each.reason}); lift it "
        f"first with `kuznia audit hold --tenant {tenant} --lift {each.id}`"
        for each in holds(store, tenant)
        if any(Span(each.since or "", each.until or "").touches(s.since, s.until) for s in spans)
    ]
    if problems:
        raise InputError(problems)


def span_of_quarter(quarter: str) -> Span:
    """The times of 2026-Q4."""
    year, number = int(quarter[:4]), int(quarter[-1])
    begin = datetime(year, 3 * number - 2, 1)
    after = datetime(year + number // 4, 3 * number % 12 + 1, 1)
    last = after - timedelta(milliseconds=1)
    return Span(*(f"{each.isoformat(timespec='milliseconds')}Z" for each in (begin, last)))


def span_of_day(day: str) -> Span:
    """The times of 2026-11-21."""
    return Span(f"{day}T00:00:00.000Z", f"{day}T23:59:59.999Z")
