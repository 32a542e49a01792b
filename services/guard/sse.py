"""Server-sent events: whole ones out of a stream of bytes, and back."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

LARGEST = 16 << 20
"""Bytes of one event at most."""
DONE = b"data: [DONE]\n\n"
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class NotEvents(Exception):
    """What came is no stream of events."""


async def events(stream: aiohttp.StreamReader) -> AsyncIterator[tuple[str, bytes]]:
    """Name and data of each event; comments come as ("", b""). Raises NotEvents."""
    kept = b""
    async for piece in stream.iter_any():
        kept += piece
        start = 0
        while found := _END.search(kept, start):
            yield _event(kept[start : found.start()])
            start = found.end()
        kept = kept[start:]
        if len(kept) > LARGEST:
            raise NotEvents(f"an event has more than {LARGEST} bytes")
    if kept.strip():
        raise NotEvents("the last event is not complete")


def _event(text: bytes) -> tuple[str, bytes]:
    if text.startswith(b"data: ") and b"\n" not in text and b"\r" not in text:
        return "", text[6:]
    name, data = "", []
    for line in text.splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode()
        elif field == b"data":
            data.append(value)
    return name, b"\n".join(data)


def event_bytes(value: dict[str, Any], name: str = "") -> bytes:
    """An event with JSON data."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
