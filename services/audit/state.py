"""What the collector knows, in one SQLite file: a batch is in it whole, or not at all.

How far each file of the spool is read, the lines of requests that have no record yet, the records
and the sealed segments that are not in the store yet, and where each chain stands. Reading on and
writing the records of what was read is one transaction, so that a kill at any moment neither loses
nor doubles one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kuznia.contracts.audit import NOTHING
from kuznia.errors import InputError

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (inode INTEGER PRIMARY KEY, offset INTEGER, start BLOB);
CREATE TABLE IF NOT EXISTS pending (id TEXT PRIMARY KEY, lines BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS closed (id TEXT PRIMARY KEY, until REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streams (tenant TEXT PRIMARY KEY, seq INTEGER, prev TEXT,
    first INTEGER, base TEXT, opened REAL, previous BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (tenant TEXT, seq INTEGER, line BLOB,
    PRIMARY KEY (tenant, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed (tenant TEXT, first INTEGER, last INTEGER, header BLOB,
    note BLOB, at REAL, PRIMARY KEY (tenant, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


RESERVE = 2**20
"""Bytes."""


@dataclass
class Stream:
    """Where a tenant's chain stands. The open segment is the records from `first` to `seq`."""

    seq: int = 0
    prev: str = NOTHING
    """Leaf hash of record `seq`."""
    first: int = 1
    base: str = NOTHING
    """Leaf hash of the record before `first`."""
    opened: float = 0.0
    """When `first` was written, Unix seconds."""
    previous: bytes | None = None
    """The newest checkpoint."""


@dataclass(frozen=True)
class Sealed:
    """A segment on its way to the store."""

    tenant: str
    first: int
    last: int
    header: bytes
    note: bytes
    at: float


class State:
    """The file, held by this process alone; InputError if another has it."""

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "collector.db"
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise InputError(
                f"{folder}: another collector works there; give each a state folder of its own"
            ) from None
        self.db = connect(self.path)
        self.db.executescript(SCHEMA)
        # Whoever lost the state begins another stream, under a name that was never used.
        with self.db:
            self.db.execute(
                "INSERT OR IGNORE INTO facts VALUES ('writer', ?)",
                (f"{writer}.{secrets.token_hex(3)}",),
            )
        self.reserve()
        (self.writer,) = self.db.execute("SELECT value FROM facts WHERE name='writer'").fetchone()

    def reserve(self) -> None:
        """Keep some room for when there is none: sealing and shipping, which make room, need it."""
        try:
            with (self.path.parent / "reserve").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
        except OSError:
            self.release()

    def release(self) -> None:
        """Give that room up."""
        (self.path.parent / "reserve").unlink(missing_ok=True)

    def close(self) -> None:
        self.db.close()
        os.close(self._lock)

    def files(self) -> dict[int, tuple[int, bytes]]:
        """By inode: how far a file is read, and how it begins, by which it is known again."""
        return {i: (offset, start) for i, offset, start in self.db.execute("SELECT * FROM files")}

    def pending(self) -> dict[str, bytes]:
        """Lines of requests without a record."""
        return dict(self.db.execute("SELECT id, lines FROM pending"))

    def closed(self) -> set[str]:
        """Requests whose record was written without all of their lines."""
        return {name for (name,) in self.db.execute("SELECT id FROM closed")}

    def streams(self) -> dict[str, Stream]:
        rows = self.db.execute("SELECT * FROM streams")
        return {tenant: Stream(*rest) for tenant, *rest in rows}

    def save_streams(self, streams: Iterable[tuple[str, Stream]]) -> None:
        self.db.executemany(
            "INSERT OR REPLACE INTO streams VALUES (?,?,?,?,?,?,?)",
            [
                (tenant, each.seq, each.prev, each.first, each.base, each.opened, each.previous)
                for tenant, each in streams
            ],
        )


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are on the disk."""
    db = sqlite3.connect(path, timeout=30)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


def lines_of(db: sqlite3.Connection, tenant: str, first: int, last: int) -> list[bytes]:
    """Records by number."""
    rows = db.execute(
        "SELECT line FROM records WHERE tenant=? AND seq BETWEEN ? AND ? ORDER BY seq",
        (tenant, first, last),
    )
    return [line for (line,) in rows]


def sealed(db: sqlite3.Connection) -> list[Sealed]:
    """What waits for the store, the oldest first."""
    rows = db.execute("SELECT tenant, first, last, header, note, at FROM sealed ORDER BY at, first")
    return [Sealed(*row) for row in rows]
