"""One look at everything that the gateway is compiled from; the last good one stays in force."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kuznia.contracts.base import canonical_json, load_yaml, parse
from kuznia.contracts.guard import GuardConfig
from kuznia.contracts.soft import Soft
from kuznia.errors import DependencyError, InputError
from kuznia.gateway.folder import GUARD, compiled, validate, write
from kuznia.gateway.places import Places
from kuznia.gateway.policy import policy
from kuznia.gateway.shards import read_tables, text_of
from kuznia.gateway.softly import applied, softened
from kuznia.gateway.table import Table
from services.gateway.metrics import COMPILED, FAULTS, READ, REFUSED, RELEASES, REVOKED
from services.guard.config import Config, Keys

REVOKED_EVERY = 5.0
"""Seconds between two looks at the store: a revoked key is refused well within ten."""
KNOWN = "revoked.json"
"""In the folder: the keys that were revoked when the store answered last."""
LAST = "last"
"""In the folder: a folder with the table that is in force."""
Say = Callable[[str], None]


@dataclass
class Configurer:
    """Compiles whenever a source changes; `look` is called again and again."""

    places: Places
    read_table: Callable[[], Table]
    """The registry's view; raises InputError for what is no table."""
    read_revoked: Callable[[], dict[str, int]]
    """Keys that are revoked; raises DependencyError where the store does not answer."""
    soft: Path | None
    """The soft configuration's file, which need not be there."""
    envoy: Path | None
    """Envoy, which checks what is made before it is used; None: it is used unchecked."""
    say: Say
    pause: float = 30.0
    """Seconds until a table is tried again that nobody refused: Envoy's check was killed."""
    _table: Table | None = None
    _soft: Soft = field(default_factory=Soft)
    _softened: Table | None = None
    _soft_of: tuple[str, int] = ("", 0)
    _revoked: dict[str, int] = field(default_factory=dict)
    _looked: float = -REVOKED_EVERY
    _faults: dict[str, str] = field(default_factory=dict)
    _last: Table | None = None
    """The table of what is in the folder, which a process before may have written."""
    _in_force: Table | None = None
    _refused: Table | None = None
    _again: float = 0.0
    """When a table may be tried again."""
    _changed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with what the process before knew: the store may be away now."""
        with suppress(FileNotFoundError, ValueError):
            self._revoked = json.loads((self.places.folder / KNOWN).read_bytes())
        with suppress(InputError):
            self._last = read_tables(self.places.folder / LAST)
        REVOKED.set(len(self._revoked))

    def look(self) -> list[str]:
        """Read the sources and bring the folder up to date; returns the files that changed.

        A source that cannot be read leaves what it said before.
        """
        self._changed = []
        self._try("table", self._read_table)
        self._try("soft", self._read_soft)
        if time.monotonic() - self._looked >= REVOKED_EVERY:
            self._looked = time.monotonic()
            self._try("revoked", self._read_revoked)
        table = self._softened or self._table
        new = table is not self._in_force and table is not self._refused
        if table and new and time.monotonic() >= self._again:
            self._try("envoy", partial(self._bring, table))
        if self._changed and self._last:
            self.say(
                f"{len(self._last.targets)} releases, {len(self._revoked)} revoked keys: in force"
            )
        return self._changed

    @property
    def ready(self) -> bool:
        """Whether a configuration is in force."""
        return self._in_force is not None

    def _bring(self, table: Table) -> None:
        """Compile `table`, have guard and Envoy check it, and put it in force.

        What they refuse is not tried again; what failed otherwise is, after a pause.
        """
        try:
            made = compiled(table, self.places, self._revoked)
            Config(parse(GuardConfig, json.loads(made[GUARD]), GUARD), Keys(None), GUARD)
            if self.envoy:
                validate(made, self.envoy)
            self._put(made | {f"{LAST}/table.json": text_of(table)})
        except InputError:
            self._refused = table
            raise
        except (DependencyError, OSError):
            self._again = time.monotonic() + self.pause
            raise
        self._last = self._in_force = table
        RELEASES.set(len(table.targets))

    def _put(self, made: dict[str, str]) -> None:
        self._changed += write(made, self.places.folder)
        COMPILED.set_to_current_time()

    def _read_table(self) -> None:
        found = self.read_table()
        if found != self._table:
            self._table = found

    def _read_soft(self) -> None:
        """The table with soft words; what is wrong with them takes nobody else's away."""
        if self._table is None:
            return
        text = self.soft.read_text("utf-8") if self.soft and self.soft.exists() else ""
        place = str(self.soft)
        if (text, id(self._table)) == self._soft_of:
            if "soft" in self._faults:
                raise InputError(self._faults["soft"])
            return
        newer_table = self._soft_of[1] != id(self._table)
        self._soft_of = (text, id(self._table))
        try:
            self._soft = parse(Soft, load_yaml(text, place) or {}, place)
            self._softened = softened(self._table, self._soft, place)
        except InputError:
            if newer_table:
                self._softened = applied(self._table, self._soft)
            raise
        awake = {each.name for each in self._table.targets}
        if waits := sorted(set(self._soft.models) - awake):
            self.say(f"{place}: no release of {', '.join(waits)} is awake; their words wait")

    def _read_revoked(self) -> None:
        found = self.read_revoked()
        if found != self._revoked:
            if self._last:
                # Whatever becomes of a newer table.
                self._put({"policy.lua": policy(self._last, found)})
            self._put({KNOWN: canonical_json(found).decode() + "\n"})
            self._revoked = found
        REVOKED.set(len(self._revoked))

    def _try(self, source: str, read: Callable[[], None]) -> None:
        try:
            read()
        except (InputError, DependencyError, OSError) as error:
            self._report(source, str(error))
        else:
            self._faults.pop(source, None)
            REFUSED.labels(source).set(0)
            READ.labels(source).set_to_current_time()

    def _report(self, source: str, fault: str) -> None:
        REFUSED.labels(source).set(1)
        FAULTS.labels(source).inc()
        if self._faults.get(source) != fault:
            self._faults[source] = fault
            self.say(f"{fault}; what was there before stays in force")
