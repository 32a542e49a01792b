"""HTTP sessions to models, each for some seconds of new requests.

A Service picks a pod when a connection is made. One that is never idle would go on asking a pod
that is to end, however long that waits.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

IDLE = 4.0
"""Seconds that connections are kept idle; uvicorn closes them after five."""
LIVES = 5.0
"""Seconds of new requests on a connection; less than a pod waits before it ends."""
SILENT = 3600.0
"""Seconds that a model may be silent; the gateway waits no longer either."""


@dataclass
class _Session:
    session: aiohttp.ClientSession
    since: float
    users: int = 0


class Sessions:
    """Hands out the session of the moment; an old one is closed after its last request."""

    def __init__(self) -> None:
        self._current: _Session | None = None

    @asynccontextmanager
    async def one(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A session for one request."""
        now, old = time.monotonic(), self._current
        mine = old if old and now - old.since < LIVES else _Session(_session(), now)
        self._current = mine
        mine.users += 1
        try:
            if old and old is not mine:
                await self._end(old)
            yield mine.session
        finally:
            mine.users -= 1
            await self._end(mine)

    async def _end(self, one: _Session) -> None:
        if one is not self._current and not one.users:
            await one.session.close()

    async def close(self) -> None:
        """Close the session of the moment; the others are closed by whoever still uses them."""
        current, self._current = self._current, None
        if current:
            await self._end(current)


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENT)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE)
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    )
