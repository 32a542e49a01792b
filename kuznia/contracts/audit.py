"""The audit log's values: a record of each request, events of its keeping, signed checkpoints.

A segment file holds lines of canonical JSON without defaults: a Header, then Records or Events.
Keys are the fields' names; a key that is absent has its default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kuznia.contracts.base import Contract
from kuznia.contracts.runspec import NAME, Risk

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
"""UTC with milliseconds, so that texts sort as times do."""

UNKNOWN = "_unknown"
"""The tenant of requests of which none is known: no key, a bad one, no valid HTTP."""
Owner = Annotated[str, Field(pattern=rf"^(?:{NAME.strip('^$')}|{UNKNOWN})$")]

WRITER = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,118}[A-Za-z0-9])?$"
Writer = Annotated[str, Field(pattern=WRITER)]
OPERATOR = "operator"
"""The writer of events; of requests there are others."""

NOTHING = "0" * 64
"""What the first of a chain has before it."""


class Verdict(Contract):
    """What the guard did and why: how often each rule hit; never what was hit."""

    action: str = ""
    input: dict[str, int] = {}
    output: dict[str, int] = {}


class Content(Contract):
    """Where the encrypted content of a high-risk release's request is, and its digest."""

    ref: str
    sha256: Hash


class Chained(Contract):
    """A line of a chain."""

    seq: int = Field(ge=1)
    """Its number in the stream, from 1 without gaps."""
    prev: Hash
    """Leaf hash (RFC 6962) of the line of the record before it."""
    tenant: Owner


class Record(Chained):
    """One request, answered or refused. Never its content."""

    kind: Literal["request"] = "request"
    id: str
    """x-request-id."""
    ended: Literal["yes", "lost"] = "yes"
    """lost: the gateway died before the request's end, so tokens and duration are not known."""
    start: Time
    answered: Time | None = None
    """When the head of the answer went out."""
    end: Time | None = None
    ms: int | None = None
    method: str = ""
    path: str = ""
    """Without what follows a question mark."""
    host: str = ""
    caller: str = ""
    """Pseudonym: HMAC-SHA-256 of the caller's name, 128 bits, key by tenant and quarter."""
    key: str = ""
    """jti of the API key."""
    model: str = ""
    release: str = ""
    version: str = ""
    digest: str = ""
    """Of the version's manifest."""
    mode: str = ""
    """merged or adapter."""
    risk: Risk | Literal[""] = ""
    arm: str = ""
    """The cluster that answered; of a split release, which half."""
    policy: str = ""
    """Digest of the guard's policy, 12 digits."""
    guard: Verdict | None = None
    status: int = 0
    """0 where no answer was sent."""
    reason: str = ""
    """Why it was refused."""
    flags: str = ""
    details: str = ""
    """How the answer came about, in the gateway's words."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    content: Content | None = None


class Removed(Contract):
    """A segment whose retention was over."""

    writer: Writer
    first: int
    checkpoint: Hash
    """sha256 of its checkpoint, which stays."""


class Event(Chained):
    """What people did to the log or to what belongs to it."""

    kind: Literal["hold", "lift", "erase", "retention"]
    id: str
    time: Time
    by: str
    reason: str = ""
    since: Time | None = None
    """hold: the first moment that is held; none: from the beginning."""
    until: Time | None = None
    """hold: the last; none: without end. retention: what was sealed before it was removed."""
    hold: str = ""
    """lift: id of the hold that ends."""
    subject: str = ""
    """erase: pseudonym of the subject whose content keys were destroyed."""
    quarter: str = ""
    """erase: the quarter whose pseudonym key was destroyed, as 2026-Q4."""
    days: int | None = None
    """retention: how long records are kept."""
    removed: tuple[Removed, ...] = ()


class Header(Contract):
    """First line of a segment, and first leaf of its Merkle tree."""

    kind: Literal["segment"] = "segment"
    format: Literal[1] = 1
    tenant: Owner
    writer: Writer
    first: int = Field(ge=1)
    prev: Hash
    """Leaf hash of the record before `first`."""


class Checkpoint(Contract):
    """What is signed of a segment; kuznia/audit/notes.py has its text form."""

    tenant: Owner
    writer: Writer
    first: int = Field(ge=1)
    total: int = Field(ge=1)
    """Records of the stream so far, which is also the number of this segment's last."""
    root: Hash
    """RFC 6962 Merkle root of the segment's lines, the header's included."""
    prev: Hash
    """Leaf hash of the record before `first`."""
    last: Hash
    """Leaf hash of the last record."""
    since: Time
    """Start of the earliest request in it."""
    until: Time
    """Start of the latest."""
    sealed: Time
    previous: Hash
    """sha256 of the checkpoint before this one, signature included; of the first: zeros."""
