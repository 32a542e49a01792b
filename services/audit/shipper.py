"""Brings sealed segments to the store and their checkpoints to the anchors, however long it takes.

A thread of its own: a store that does not answer must not hold up the writing of records.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from kuznia.audit.streams import publish
from kuznia.errors import KuzniaError
from kuznia.store.objects import Store, open_store
from services.audit import metrics, state

FIRST, MOST = 0.5, 30.0
"""Seconds until a failed shipment is tried again: twice as long each time."""


class Shipper:
    """Reads the state; what is in the store goes to `done`, for the collector to remove."""

    def __init__(
        self, path: Path, writer: str, to: str, anchors: str | None, say: Callable[[str], None]
    ) -> None:
        self._path, self._writer, self._to, self._anchors = path, writer, to, anchors
        self._say, self._said = say, ""
        self.done: SimpleQueue[state.Sealed] = SimpleQueue()
        self.wake = threading.Event()
        self._stores: list[Store] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop after the segment at hand; returns at once if the store does not answer."""
        self._ended.set()
        self.wake.set()
        self._thread.join(timeout=1)

    def check(self) -> None:
        """Raise RuntimeError if the thread ended by a fault of ours."""
        if not self._thread.is_alive():
            raise RuntimeError("the shipper has stopped; its traceback is above")

    def _work(self) -> None:
        shipped: set[tuple[str, int]] = set()
        wait = FIRST
        db = state.connect(self._path)
        while not self._ended.is_set():
            self.wake.wait(1)
            self.wake.clear()
            try:
                self._ship_all(db, shipped)
            except (KuzniaError, OSError, sqlite3.Error) as error:
                metrics.FAULTS.labels("store").inc()
                self._tell(str(error))
                self._ended.wait(wait)
                wait = min(2 * wait, MOST)
                self.wake.set()
            else:
                wait = FIRST
        db.close()

    def _ship_all(self, db: sqlite3.Connection, shipped: set[tuple[str, int]]) -> None:
        """Ship what waits and is not in `shipped`, and add it there."""
        waiting = state.sealed(db)
        shipped &= {(each.tenant, each.first) for each in waiting}
        for each in waiting:
            if (each.tenant, each.first) in shipped:
                continue
            if self._ended.is_set():
                return
            self._ship(each, state.lines_of(db, each.tenant, each.first, each.last))
            shipped.add((each.tenant, each.first))
            self.done.put(each)
            metrics.SHIPPED.inc()
            self._tell("")

    def _ship(self, each: state.Sealed, lines: list[bytes]) -> None:
        if not self._stores:
            uris = [self._to] + ([self._anchors] if self._anchors else [])
            self._stores = [open_store(uri) for uri in uris]
        body = b"\n".join([each.header, *lines, b""])
        publish(self._stores, each.tenant, self._writer, each.first, body, each.note)

    def _tell(self, fault: str) -> None:
        """Say a fault when it begins, and that it is over; not each time."""
        if fault and not self._said:
            self._say(f"{fault} (segments wait here until then)")
        elif self._said and not fault:
            self._say("the store answers again")
        self._said = fault
