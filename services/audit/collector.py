"""The collector: lines in, one record out for every request, and no step that a kill can spoil."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kuznia.audit.chain import encode, leaf
from kuznia.audit.pseudonyms import Pseudonyms
from kuznia.errors import DependencyError
from services.audit import metrics, state
from services.audit.records import Line, Request, numbered, parse, record
from services.audit.sealer import Sealer
from services.audit.shipper import Shipper
from services.audit.spool import Spool

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

BATCH = 2**21
"""Bytes of the spool that go into one transaction, of each kind of line."""
SMALL = 2**16
"""The same while there is little room."""
OVERDUE = 5.0
"""Seconds after the start of an Envoy in which ends of its predecessor's requests may come."""
LOST, PARTIAL = 7 * 86400.0, 600.0
"""Seconds for which a request is remembered whose record was written without its end, or without
another of its lines: a late line must not make a second record."""
FORGET = 60.0
"""Seconds between two looks for what need not be remembered."""
NAMELESS = "none-"
"""How the ids begin that are given to requests without one."""
AGAIN = 5.0
"""Seconds until pseudonym keys that could not be read are asked for again."""


@dataclass(frozen=True)
class Settings:
    """How often what is done; paths and names."""

    spool: Path
    admin: Path | None = None
    seal_seconds: float = 300.0
    seal_records: int = 10_000
    rotate_bytes: int = 8 * 2**20
    copy: bool = False
    """Print each record too, for a log that is searched."""


class Collector:
    """All of its memory comes from `kept`, and is made anew from it after a failed transaction."""

    def __init__(
        self,
        settings: Settings,
        kept: state.State,
        key: Ed25519PrivateKey,
        pseudonyms: Pseudonyms,
        shipper: Shipper,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._kept = settings, kept
        self._pseudonyms, self._say = pseudonyms, say
        self._spool = Spool(settings.spool, kept.files(), settings.admin, settings.rotate_bytes)
        self._streams = kept.streams()
        self._sealer = Sealer(kept, self._streams, key, shipper)
        self._closed = kept.closed()
        self._open: dict[str, Request] = {}
        self._ended: dict[str, Request] = {}
        self._dirty: dict[str, Request] = {}
        for identity, lines in kept.pending().items():
            for raw in lines.split(b"\n"):
                self._take(raw, identity)
        for request in self._dirty.values():
            request.stored = True
        self._dirty.clear()
        self._epoch = self._read_epoch()
        self._sweep_at: float | None = time.monotonic() + OVERDUE
        self._blocked = 0.0
        self._clean_at = 0.0

    def close(self) -> None:
        self._spool.close()

    def relieve(self) -> bool:
        """Make room without reading on: seal what there is, and forget what is shipped.

        Whether there is room to read on: what little is left belongs to sealing and shipping.
        """
        self._kept.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.seal_all()
        free = shutil.disk_usage(self._kept.path.parent).free
        return not self.waiting() or free > 2 * state.RESERVE

    def cycle(self, last: bool = False, batch: int = BATCH) -> bool:
        """Read on, write records, seal what is due; True if there is more to read at once.

        With `last`, requests that are still open get their record too. Raises sqlite3.Error where
        the state cannot be written: then this object is of no use any more.
        """
        # In this order: whoever reads an end finds the lines written before it, too.
        self._spool.look()
        for raw in self._spool.read("ends", batch):
            self._take(raw)
        ends_read = self._spool.is_read("ends")
        self._spool.look()
        for raw in self._spool.read("requests", 2 * batch):
            self._take(raw)
        whole = self._spool.is_read("requests")
        written = self._write(self._ready(whole, whole and ends_read, last))
        self._commit(written)
        self._sealer.seal(self._settings.seal_seconds, self._settings.seal_records)
        self._spool.tidy()
        return not (whole and ends_read)

    def seal_all(self) -> None:
        """Seal every open segment, however young."""
        self._sealer.seal(0, 0)

    def waiting(self) -> int:
        """Segments that are not in the store."""
        self._sealer.forget_shipped()
        (count,) = self._kept.db.execute("SELECT count(*) FROM sealed").fetchone()
        return int(count)

    def measure(self) -> None:
        """Set the gauges."""
        metrics.PENDING.set(len(self._open))
        (count, oldest) = self._kept.db.execute("SELECT count(*), min(at) FROM sealed").fetchone()
        metrics.UNSHIPPED.set(count)
        metrics.OLDEST.set(max(0.0, time.time() - oldest) if count else 0)
        metrics.DISK_FREE.set(shutil.disk_usage(self._kept.path.parent).free)
        metrics.SPOOL.set(sum(reader.unread for reader in self._spool.readers.values()))

    def _take(self, raw: bytes, known_as: str | None = None) -> None:
        lines = parse(raw)
        if len(lines) != 1:
            metrics.TORN.inc()
        for line in lines:
            # Of a salvaged one the state gets a line of its own.
            self._join(line, raw if len(lines) == 1 else encode(line).encode(), known_as)

    def _join(self, line: Line, raw: bytes, known_as: str | None) -> None:
        identity, kind = known_as or line.get("id"), line["e"]
        if not isinstance(identity, str) or not identity:
            identity = f"{NAMELESS}{uuid.uuid4()}"
        if identity in self._closed:
            metrics.LATE.inc()
            return
        request = self._open.get(identity)
        if request is None:
            request = self._open[identity] = Request()
        if kind == "in":
            request.start = line
        elif kind == "out":
            request.head = line
        else:
            request.end = line
            self._ended[identity] = request
        request.raw.append(raw)
        self._dirty[identity] = request

    def _ready(self, whole: bool, all_read: bool, last: bool) -> dict[str, Request]:
        """Requests whose record can be written: all lines are here, or none is to come."""
        now = time.monotonic()
        if now < self._blocked:
            return {}
        found = {
            identity: request
            for identity, request in self._ended.items()
            if whole or (request.start and request.head)
        }
        epoch = self._read_epoch()
        if epoch != self._epoch:
            self._epoch, self._sweep_at = epoch, now + OVERDUE
        if last and all_read:
            found |= self._open
        elif self._sweep_at is not None and now >= self._sweep_at and all_read:
            found |= {
                identity: request
                for identity, request in self._open.items()
                if request.began < self._epoch[1]
            }
            self._sweep_at = None
        return found

    def _read_epoch(self) -> tuple[str, float]:
        """The Envoy that runs, and since when (Unix seconds)."""
        path = self._settings.spool / "epoch"
        try:
            return path.read_text("utf-8", "replace"), path.stat().st_mtime
        except FileNotFoundError:
            return "", 0.0

    def _write(self, ready: dict[str, Request]) -> dict[str, tuple[str, int, bytes]]:
        """Chain the records of these requests; (tenant, seq, line) by id."""
        written: dict[str, tuple[str, int, bytes]] = {}
        for identity, request in ready.items():
            value, caller = record(identity, request.start, request.head, request.end)
            tenant = value["tenant"]
            if caller:
                try:
                    caller = self._pseudonyms.of(tenant, caller, value["start"])
                except DependencyError as error:
                    # Their names must not be in the log, so they wait here.
                    metrics.FAULTS.labels("pseudonyms").inc()
                    self._say(str(error))
                    self._blocked = self._sweep_at = time.monotonic() + AGAIN
                    break
            stream = self._streams.get(tenant)
            if stream is None:
                stream = self._streams[tenant] = state.Stream()
            if stream.seq < stream.first:
                stream.opened = time.time()
            stream.seq += 1
            line = encode(numbered(value, stream.seq, stream.prev, caller)).encode()
            stream.prev = leaf(line).hex()
            written[identity] = (tenant, stream.seq, line)
        return written

    def _commit(self, written: dict[str, tuple[str, int, bytes]]) -> None:
        readers = [each for each in self._spool.readers.values() if each.moved]
        if not (written or readers or self._spool.forgotten):
            self._sealer.forget_shipped()
            return
        now = time.time()
        done = {identity: self._open[identity] for identity in written}
        partial = {
            identity: now + (PARTIAL if request.end else LOST)
            for identity, request in done.items()
            if not (request.start and request.head and request.end)
            and not identity.startswith(NAMELESS)
        }
        dirty = [
            (identity, request)
            for identity, request in self._dirty.items()
            if identity not in written
        ]
        rows = list(written.values())
        tenants = {tenant for tenant, _, _ in rows}
        db = self._kept.db
        with db:
            db.executemany("INSERT INTO records VALUES (?,?,?)", rows)
            db.executemany(
                "DELETE FROM pending WHERE id=?",
                [(identity,) for identity, request in done.items() if request.stored],
            )
            db.executemany(
                "INSERT OR REPLACE INTO pending VALUES (?,?)",
                [(identity, b"\n".join(request.raw)) for identity, request in dirty],
            )
            db.executemany("INSERT INTO closed VALUES (?,?)", partial.items())
            db.executemany(
                "DELETE FROM files WHERE inode=?", [(each,) for each in self._spool.forgotten]
            )
            db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?,?,?)",
                [(each.inode, each.offset, each.beginning) for each in readers],
            )
            self._kept.save_streams((tenant, self._streams[tenant]) for tenant in tenants)
        self._spool.forgotten.clear()
        for reader in readers:
            reader.moved = False
        for _, request in dirty:
            request.stored = True
        self._dirty.clear()
        lost = 0
        for identity, request in done.items():
            del self._open[identity]
            self._ended.pop(identity, None)
            lost += request.end is None
        metrics.RECORDS.labels("lost").inc(lost)
        metrics.RECORDS.labels("yes").inc(len(done) - lost)
        self._closed |= partial.keys()
        if self._settings.copy:
            sys.stdout.write("".join(f"{line.decode()}\n" for _, _, line in rows))
            sys.stdout.flush()
        self._sealer.forget_shipped()
        self._forget_closed(now)

    def _forget_closed(self, now: float) -> None:
        if time.monotonic() < self._clean_at:
            return
        self._clean_at = time.monotonic() + FORGET
        with self._kept.db as db:
            gone = db.execute("DELETE FROM closed WHERE until < ?", (now,)).rowcount
        if gone:
            self._closed = self._kept.closed()


FULL = (sqlite3.OperationalError, sqlite3.DatabaseError, OSError)
"""What a disk that is full or broken raises."""
