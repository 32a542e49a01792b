"""Where it is counted: in memory, with long windows kept in a file, or in a Redis for several.

A count belongs to a key and to a window; the key in Redis is the Go service's, so one may take the
other's place without anything forgotten.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kuznia.errors import DependencyError

if TYPE_CHECKING:
    from redis.asyncio import Redis

LONG = 3600
"""Windows of so many seconds and more outlive a restart."""


class Hit(NamedTuple):
    """What is added to one count; 0 only asks."""

    key: str
    seconds: int
    hits: int


class Counters(Protocol):
    """Adds and tells. Raises DependencyError where it cannot."""

    async def add(self, hits: Sequence[Hit], now: int) -> list[int]:
        """Each count after its hits were added, in the window in which the Unix time `now` is."""

    def save(self) -> None:
        """Write down what must outlive this process."""

    async def close(self) -> None:
        """Save, and let go."""


class Memory:
    """Counts of this process; those of long windows also in the SQLite file `state`, if given.

    What was counted since the last `save` is lost by a SIGKILL. Raises DependencyError where the
    file cannot be used.
    """

    def __init__(self, state: Path | None = None) -> None:
        self._windows: dict[int, tuple[int, dict[str, int]]] = {}
        self._changed: set[tuple[int, str]] = set()
        self._place, self._file = state, self._open(state) if state else None

    async def add(self, hits: Sequence[Hit], now: int) -> list[int]:
        counts = []
        for key, seconds, more in hits:
            start = now - now % seconds
            window = self._windows.get(seconds)
            # A clock that is set back goes on in the newer window.
            if window is None or window[0] < start:
                window = self._windows[seconds] = (start, {})
            count = window[1].get(key, 0) + more
            if more:
                window[1][key] = count
                if seconds >= LONG:
                    self._changed.add((seconds, key))
            counts.append(count)
        return counts

    def save(self) -> None:
        if self._file is None or not self._changed:
            return
        changed, self._changed = self._changed, set()
        rows = [
            (key, seconds, start, counts[key])
            for seconds, key in changed
            for start, counts in [self._windows[seconds]]
            if key in counts
        ]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._changed |= changed
            raise self._refuses(error) from error

    async def close(self) -> None:
        self.save()
        if self._file:
            self._file.close()

    def _open(self, path: Path) -> sqlite3.Connection:
        self._place = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(path, timeout=1)
            # Two services on one file would each overwrite the other's counts.
            file.execute("PRAGMA locking_mode = EXCLUSIVE")
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
            with file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS counts (key TEXT, seconds INTEGER, start INTEGER, "
                    "count INTEGER, PRIMARY KEY (key, seconds)) WITHOUT ROWID"
                )
                file.execute("DELETE FROM counts WHERE start + seconds <= ?", (int(time.time()),))
            for key, seconds, start, count in file.execute("SELECT * FROM counts"):
                self._windows.setdefault(seconds, (start, {}))[1][key] = count
        except (sqlite3.Error, OSError) as error:
            raise self._refuses(error) from error
        return file

    def _refuses(self, error: Exception) -> DependencyError:
        return DependencyError(
            f"{self._place}: {error}; make room or rights there, end the other service that uses "
            "it, or move a broken file away"
        )


class Shared:
    """Counts in the Redis at `url`, for several services at once."""

    def __init__(self, url: str) -> None:
        from redis.asyncio import Redis

        self._place = url.rpartition("@")[2]
        try:
            self._redis: Redis = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        except ValueError as error:
            raise DependencyError(f"--redis: {error}; write redis://host:6379") from error

    async def add(self, hits: Sequence[Hit], now: int) -> list[int]:
        from redis.exceptions import RedisError

        commands = self._redis.pipeline(transaction=False)
        for key, seconds, more in hits:
            name = f"{key}{now - now % seconds}"
            commands.incrby(name, more)
            commands.expire(name, seconds)
        try:
            answers = await commands.execute()
        except RedisError as error:
            raise DependencyError(
                f"redis at {self._place}: {error}; check the address and that it runs"
            ) from error
        return [int(answer) for answer in answers[::2]]

    def save(self) -> None:
        """Redis keeps them."""

    async def close(self) -> None:
        await self._redis.aclose()
