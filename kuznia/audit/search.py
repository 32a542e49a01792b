"""Finding records, and handing them out in a form that others can check."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuznia.audit import notes
from kuznia.audit.keys import pem
from kuznia.audit.streams import key_of, streams
from kuznia.audit.verify import ALL, Span
from kuznia.contracts.audit import OPERATOR
from kuznia.errors import InputError
from kuznia.store.objects import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True)
class Query:
    """What a record must be; what is empty does not matter."""

    tenant: str | None = None
    span: Span = ALL
    callers: Mapping[str, set[str]] | None = None
    """By tenant: pseudonyms, any of which will do."""
    equal: Mapping[str, Any] = field(default_factory=dict)
    """Fields and their values."""

    def takes(self, value: Mapping[str, Any]) -> bool:
        time = value.get("start") or value.get("time", "")
        if not self.span.touches(time, time):
            return False
        if self.callers is not None and value.get("caller") not in self.callers.get(
            value["tenant"], set()
        ):
            return False
        return all(value.get(name) == wanted for name, wanted in self.equal.items())


def search(store: Store, query: Query) -> Iterator[dict[str, Any]]:
    """Records and events that `query` takes, stream by stream; not verified."""
    for stream in streams(store, query.tenant).values():
        for first in sorted(stream.segments):
            if first in stream.checkpoints:
                key = key_of(stream.tenant, stream.writer, first, "checkpoint")
                if not _may_have(store.read(key), query.span):
                    continue
            body = store.read(key_of(stream.tenant, stream.writer, first))
            for line in body.splitlines()[1:]:
                value = json.loads(line)
                if query.takes(value):
                    yield value | {"writer": stream.writer}


def _may_have(note: bytes, span: Span) -> bool:
    try:
        one = notes.claimed(note)
    except notes.Unsigned:
        return True
    return span.touches(one.since, one.until)


def export(
    store: Store,
    tenant: str,
    span: Span,
    folder: Path,
    keys: Sequence[Ed25519PublicKey],
    anchors: Store | None = None,
) -> int:
    """Write a tenant's log of that time, all checkpoints, keys and a README; returns segments.

    Segments come whole, since only whole ones can be verified: their first and last records may
    be a little outside of the time. InputError if `folder` is not empty or there is nothing.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; name a new folder")
    found = streams(store, tenant)
    if not found:
        raise InputError(f"{tenant}: has no log in {store.uri}; correct --tenant or --store")
    count = 0
    for stream in found.values():
        for first in sorted(stream.checkpoints):
            key = key_of(tenant, stream.writer, first, "checkpoint")
            note = store.read(key)
            _write(folder / key, note)
            wanted = stream.writer == OPERATOR or _may_have(note, span)
            if wanted and first in stream.segments:
                body = key_of(tenant, stream.writer, first)
                _write(folder / body, store.read(body))
                count += 1
    if anchors is not None:
        for anchored in streams(anchors, tenant).values():
            for first in sorted(anchored.checkpoints):
                key = key_of(tenant, anchored.writer, first, "checkpoint")
                _write(folder / "anchors" / key, anchors.read(key))
    names = []
    for number, public in enumerate(keys, 1):
        names.append(f"audit-{number}.pub")
        _write(folder / names[-1], pem(public))
    options = [f"--key {name}" for name in names]
    options += [f"--since {span.since}"] if span.since else []
    options += [f"--until {span.until}"] if span.until else []
    options += ["--anchors anchors"] if anchors else []
    readme = README.format(
        tenant=tenant,
        since=span.since or "the beginning",
        until=span.until or "now",
        options=" ".join(options),
        vkeys="\n".join(f"    {notes.verifier(public)}" for public in keys),
    )
    _write(folder / "README.txt", readme.encode())
    return count


def _write(path: Path, value: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value)


README = """\
Audit log of {tenant}, from {since} to {until}

Every request to the tenant's language models in that time, answered or refused, is one line of a
file audit/{tenant}/<gateway>/<number of its first record>.jsonl. Callers are pseudonyms; no file
holds what was asked or answered.

To check that nothing was changed, removed or added (needs Python and the package kuznia):

    kuznia audit verify . {options}

Compare the keys below with those that the provider published; a log is as good as its key:

{vkeys}

To check by other means:

1. A .checkpoint is a signed note (C2SP signed-note, Ed25519). Its lines: where it is from; the
   number of records so far; the Merkle root of its .jsonl, base64; the number of its first
   record; hashes of the records before its first and of its last; times of its first and last
   request; when it was sealed; sha256 of the whole checkpoint before it (zeros: it is the first).
2. The hash of a line is sha256 of a zero byte and the line without its line end. Each record has
   the hash of the record before it in "prev", and its number in "seq".
3. The root is the Merkle tree hash of RFC 6962 over all lines of the .jsonl, the first one, which
   is its header, included.
4. A .jsonl that is missing was outside of the time asked for, or was removed after its retention:
   then audit/{tenant}/operator/ has a signed event "retention" that names it.
"""
