"""Hashes of the audit log: RFC 6962 leaves and roots, segments made and cut into lines."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from kuznia.contracts.audit import NOTHING, Checkpoint, Header
from kuznia.contracts.base import Contract

encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
"""Canonical JSON as text; as kuznia.contracts.base.canonical_json, without making an encoder."""


def line_of(value: Contract) -> bytes:
    """The value's line, without its line end."""
    return encode(value.model_dump(mode="json", exclude_defaults=True) | _kind(value)).encode()


def _kind(value: Contract) -> dict[str, Any]:
    return {key: getattr(value, key) for key in ("kind", "format") if hasattr(value, key)}


def leaf(line: bytes) -> bytes:
    """Leaf hash of a line without its line end: sha256(0x00, line)."""
    return hashlib.sha256(b"\0" + line).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 Merkle tree hash of leaf hashes, of which there is one at least."""
    level = list(leaves)
    while len(level) > 1:
        # A last one without a partner goes up as it is, which is RFC 6962's split at powers of 2.
        level = [
            hashlib.sha256(b"\1" + level[at] + level[at + 1]).digest()
            if at + 1 < len(level)
            else level[at]
            for at in range(0, len(level), 2)
        ]
    return level[0]


def moment(seconds: float) -> str:
    """Unix seconds as the log writes times; what no calendar has becomes the year 1970."""
    if not 0 <= seconds < 253402300799:
        seconds = 0.0
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@functools.lru_cache(4096)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


_TIME = re.compile(rb'"(?:start|time)":"([0-9T:.Z-]{24})"')
"""A line's time. Inside of a text the quotes would be escaped, so this finds the key alone."""


def seal(
    header: Header, lines: Sequence[bytes], previous: bytes | None, sealed: float
) -> tuple[bytes, Checkpoint]:
    """The bytes of a segment with these records, and its checkpoint, unsigned.

    `previous` is the stream's checkpoint before it, if there is one.
    """
    times = [found[1].decode() for found in map(_TIME.search, lines) if found]
    head = line_of(header)
    leaves = [leaf(head), *map(leaf, lines)]
    checkpoint = Checkpoint(
        tenant=header.tenant,
        writer=header.writer,
        first=header.first,
        total=header.first + len(lines) - 1,
        root=root(leaves).hex(),
        prev=header.prev,
        last=leaves[-1].hex(),
        since=min(times),
        until=max(times),
        sealed=moment(sealed),
        previous=hashlib.sha256(previous).hexdigest() if previous else NOTHING,
    )
    return b"\n".join([head, *lines, b""]), checkpoint
