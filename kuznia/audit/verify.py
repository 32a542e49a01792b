"""Whether a log is whole: every line as it was signed, none missing, none moved, none added.

Needs the files and public keys alone. What was cut off at a stream's end, or a stream that is gone
altogether, is seen by the copies of checkpoints in a second store, the anchors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kuznia.audit import notes
from kuznia.audit.chain import leaf, line_of, root
from kuznia.audit.streams import Stored, key_of, strangers, streams
from kuznia.contracts.audit import NOTHING, OPERATOR, Checkpoint, Event, Header
from kuznia.store.objects import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

LEAST_DAYS = 190
"""Days for which records are kept at least."""


@dataclass
class Report:
    """What was found. `findings` are proof that something was changed; `notes` are not."""

    streams: int = 0
    segments: int = 0
    records: int = 0
    expired: int = 0
    """Segments that were removed after their retention, as an event of the log says."""
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """Times as the log writes them; an empty one is open."""

    since: str = ""
    until: str = ""

    def touches(self, since: str, until: str) -> bool:
        """Whether anything from `since` to `until` is in it."""
        return until >= self.since and (not self.until or since <= self.until)


ALL = Span()


def verify(
    store: Store,
    keys: Sequence[Ed25519PublicKey],
    anchors: Store | None = None,
    tenant: str | None = None,
    span: Span = ALL,
) -> Report:
    """Check everything, or one tenant's; segments outside of `span` need not be there.

    Raises DependencyError where a store does not answer.
    """
    return _Verification(store, keys, anchors, span).run(tenant)


class _Verification:
    def __init__(
        self,
        store: Store,
        keys: Sequence[Ed25519PublicKey],
        anchors: Store | None,
        span: Span,
    ) -> None:
        self._store, self._keys, self._anchors, self._span = store, keys, anchors, span
        self._report = Report()
        self._removed: dict[tuple[str, str, int, str], Event] = {}

    def run(self, tenant: str | None) -> Report:
        found = streams(self._store, tenant)
        for key in strangers(self._store):
            self._report.notes.append(f"{key}: is no part of the log; look who put it there")
        # Operators first: they say what was removed.
        for stream in sorted(found.values(), key=lambda each: each.writer != OPERATOR):
            self._report.streams += 1
            self._stream(stream)
        if self._anchors is not None:
            for name, anchored in streams(self._anchors, tenant).items():
                self._anchored(anchored, found.get(name))
        return self._report

    def _find(self, place: str, fault: str) -> None:
        self._report.findings.append(f"{place}: {fault}")

    def _stream(self, stream: Stored) -> None:
        total, last, previous = 0, NOTHING, NOTHING
        known = True
        for first in sorted(stream.checkpoints):
            place = key_of(stream.tenant, stream.writer, first, "checkpoint")
            note = self._store.read(place)
            digest = hashlib.sha256(note).hexdigest()
            try:
                checkpoint = notes.read(note, self._keys)
            except notes.Unsigned as fault:
                self._find(place, f"{fault}; it, or the key that was given, is not the real one")
                known, previous = False, digest
                continue
            if (checkpoint.tenant, checkpoint.writer, checkpoint.first) != (
                stream.tenant,
                stream.writer,
                first,
            ):
                self._find(
                    place,
                    f"is of {checkpoint.tenant}/{checkpoint.writer} from {checkpoint.first} on; "
                    "it was moved here",
                )
                known = False
                continue
            if known and first > total + 1:
                self._find(
                    place,
                    f"records {total + 1} to {first - 1} before it are missing; their segments "
                    "and checkpoints were removed",
                )
            elif known and (first != total + 1 or checkpoint.prev != last):
                self._find(place, "does not continue the records before it; one of both is forged")
            elif known and checkpoint.previous != previous:
                self._find(place, "does not follow the checkpoint before it; one was replaced")
            known, previous = True, digest
            total, last = checkpoint.total, checkpoint.last
            self._present(stream, checkpoint, digest)
        for first in sorted(stream.segments - stream.checkpoints):
            place = key_of(stream.tenant, stream.writer, first)
            if first > total:
                self._report.notes.append(
                    f"{place}: has no checkpoint; if none comes in a few minutes it was removed"
                )
            else:
                self._find(place, "has no checkpoint; it was removed, or the segment was added")

    def _present(self, stream: Stored, checkpoint: Checkpoint, digest: str) -> None:
        place = key_of(stream.tenant, stream.writer, checkpoint.first)
        if checkpoint.first in stream.segments:
            self._segment(place, checkpoint, self._store.read(place))
            return
        if not self._span.touches(checkpoint.since, checkpoint.until):
            return
        event = self._removed.get((stream.tenant, stream.writer, checkpoint.first, digest))
        if event is None:
            self._find(place, f"is missing, with records {checkpoint.first} to {checkpoint.total}")
        elif _days(checkpoint.sealed, event.time) < (event.days or LEAST_DAYS):
            self._find(place, f"was removed on {event.time[:10]}, before its retention was over")
        else:
            self._report.expired += 1

    def _segment(self, place: str, checkpoint: Checkpoint, body: bytes) -> None:
        lines = body.split(b"\n")
        whole = lines.pop() == b"" and bool(lines)
        leaves = [leaf(line) for line in lines]
        if whole and root(leaves).hex() == checkpoint.root:
            self._report.segments += 1
            self._report.records += len(lines) - 1
            values = [json.loads(line) for line in lines[1:]]
            chain = [checkpoint.prev, *(each.hex() for each in leaves[1:])]
            for number, value in enumerate(values):
                if value["prev"] != chain[number] or value["seq"] != checkpoint.first + number:
                    self._find(place, f"record {value['seq']} was signed out of its chain")
            self._note_removals(checkpoint, values)
            return
        for fault in faults(checkpoint, lines, whole):
            self._find(place, fault)

    def _note_removals(self, checkpoint: Checkpoint, values: list[dict[str, Any]]) -> None:
        if checkpoint.writer != OPERATOR:
            return
        for event in (Event.model_validate(value) for value in values):
            for each in event.removed if event.kind == "retention" else ():
                key = (checkpoint.tenant, each.writer, each.first, each.checkpoint)
                self._removed[key] = event

    def _anchored(self, anchored: Stored, stream: Stored | None) -> None:
        assert self._anchors is not None
        if stream is None:
            if anchored.checkpoints:
                place = key_of(anchored.tenant, anchored.writer, 1).rpartition("/")[0]
                self._find(place, "is missing, the whole stream; the anchors know it")
            return
        newest = max(stream.checkpoints, default=0)
        cut = sorted(first for first in anchored.checkpoints if first > newest)
        if cut:
            place = key_of(stream.tenant, stream.writer, cut[0])
            self._find(
                place,
                f"is missing, as is all after it: the end of the stream was cut off, and the "
                f"anchors know {len(cut)} more checkpoints",
            )
        for first in sorted(anchored.checkpoints - set(cut)):
            key = key_of(stream.tenant, stream.writer, first, "checkpoint")
            if first not in stream.checkpoints:
                self._find(key, "is missing; the anchors have it")
            elif self._anchors.read(key) != self._store.read(key):
                self._find(key, "differs from its copy in the anchors; one of both is forged")


def faults(checkpoint: Checkpoint, lines: Sequence[bytes], whole: bool) -> list[str]:
    """What was done to a segment that is not what its checkpoint signed: one line each."""
    header = Header(
        tenant=checkpoint.tenant,
        writer=checkpoint.writer,
        first=checkpoint.first,
        prev=checkpoint.prev,
    )
    found = []
    if not lines or lines[0] != line_of(header):
        found.append("its first line, the header, was edited or removed")
    values = [_value(line) for line in lines[1:]]
    numbers = [value.get("seq") for value in values]
    expected = list(range(checkpoint.first, checkpoint.total + 1))
    known = set(expected)
    here = {number for number in numbers if isinstance(number, int)}
    missing = [number for number in expected if number not in here]
    if missing:
        tail = missing == expected[len(expected) - len(missing) :]
        found.append(
            f"was cut off after record {missing[0] - 1}; {len(missing)} are missing"
            if tail
            else f"record {_some(missing)} missing; deleted, or made unreadable"
        )
    if strange := [number for number in numbers if number not in known]:
        found.append(f"{len(strange)} lines are no records of this segment; added, or made so")
    if len(here) < len([number for number in numbers if isinstance(number, int)]):
        found.append("a record is there twice; it was added")
    in_order = [number for number in numbers if number in known]
    if not missing and not strange and in_order != expected and sorted(in_order) == expected:
        found.append("its records are not in their order")
    by_number = dict(zip(numbers, zip(lines[1:], values, strict=True), strict=True))
    for number in expected:
        if number not in by_number:
            continue
        line = by_number[number][0]
        after = by_number.get(number + 1)
        digest = after[1].get("prev") if after else None
        if number == checkpoint.total:
            digest = checkpoint.last
        if digest is not None and leaf(line).hex() != digest:
            found.append(f"record {number} was edited")
    if not whole:
        found.append("ends in the middle of a line")
    return found or ["is not what was signed: its Merkle root differs"]


def _value(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown} and {len(numbers) - 5} more are" if len(numbers) > 5 else f"{shown} is"


def _days(since: str, until: str) -> float:
    apart = datetime.fromisoformat(until) - datetime.fromisoformat(since)
    return apart.total_seconds() / 86400
