"""Makes segments of records, signs their checkpoints, and forgets what is in the store."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from kuznia.audit import notes
from kuznia.audit.chain import line_of, seal
from kuznia.contracts.audit import Header
from services.audit import state
from services.audit.shipper import Shipper

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Sealer:
    """Of the streams in `streams`, which are the collector's too."""

    def __init__(
        self,
        kept: state.State,
        streams: dict[str, state.Stream],
        key: Ed25519PrivateKey,
        shipper: Shipper,
    ) -> None:
        self._kept, self._streams, self._key, self._shipper = kept, streams, key, shipper

    def seal(self, seconds: float, records: int) -> None:
        """Seal every open segment that is so old or has so many records."""
        now = time.time()
        for tenant, stream in self._streams.items():
            count = stream.seq - stream.first + 1
            age = now - stream.opened
            # A clock that was set back makes an age that never comes.
            if count < 1 or (0 <= age < seconds and count < records):
                continue
            header = Header(
                tenant=tenant, writer=self._kept.writer, first=stream.first, prev=stream.base
            )
            lines = state.lines_of(self._kept.db, tenant, stream.first, stream.seq)
            _, checkpoint = seal(header, lines, stream.previous, now)
            note = notes.sign(checkpoint, self._key)
            after = state.Stream(
                seq=stream.seq,
                prev=stream.prev,
                first=stream.seq + 1,
                base=stream.prev,
                previous=note,
            )
            with self._kept.db as db:
                db.execute(
                    "INSERT INTO sealed VALUES (?,?,?,?,?,?)",
                    (tenant, stream.first, stream.seq, line_of(header), note, now),
                )
                self._kept.save_streams([(tenant, after)])
            self._streams[tenant] = after
            self._shipper.wake.set()

    def forget_shipped(self) -> None:
        """Remove from the state what is in the store."""
        while not self._shipper.done.empty():
            each = self._shipper.done.get()
            try:
                with self._kept.db as db:
                    db.execute(
                        "DELETE FROM sealed WHERE tenant=? AND first=?", (each.tenant, each.first)
                    )
                    db.execute(
                        "DELETE FROM records WHERE tenant=? AND seq BETWEEN ? AND ?",
                        (each.tenant, each.first, each.last),
                    )
            except sqlite3.Error:
                self._shipper.done.put(each)
                raise
