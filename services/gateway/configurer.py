"""One look at everything that the gateway is compiled from; the last good one stays in force."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kuznia.contracts.base import load_yaml, parse
from kuznia.contracts.soft import Soft
from kuznia.errors import DependencyError, InputError
from kuznia.gateway.folder import compiled, validate, write
from kuznia.gateway.places import Places
from kuznia.gateway.softly import softened
from kuznia.gateway.table import Table
from services.gateway.metrics import COMPILED, FAULTS, READ, REFUSED, RELEASES, REVOKED

REVOKED_EVERY = 5.0
"""Seconds between two looks at the store: a revoked key is refused well within ten."""
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
    _table: Table | None = None
    _softened: Table | None = None
    _soft_of: tuple[str, int] = ("", 0)
    _revoked: dict[str, int] = field(default_factory=dict)
    _looked: float = -REVOKED_EVERY
    _faults: dict[str, str] = field(default_factory=dict)
    _in_force: tuple[int, int] = (0, 0)
    _refused: tuple[int, int] = (0, 0)

    def look(self) -> list[str]:
        """Read the sources and bring the folder up to date; returns the files that changed.

        A source that cannot be read leaves what it said before.
        """
        self._try("table", self._read_table)
        self._try("soft", self._read_soft)
        if time.monotonic() - self._looked >= REVOKED_EVERY:
            self._looked = time.monotonic()
            self._try("revoked", self._read_revoked)
        table = self._softened or self._table
        if table is None:
            return []
        wanted = (id(table), id(self._revoked))
        if wanted in (self._in_force, self._refused):
            return []
        self._refused = wanted
        changed: list[str] = []

        def bring() -> None:
            made = compiled(table, self.places, self._revoked)
            if self.envoy:
                validate(made, self.envoy)
            changed.extend(write(made, self.places.folder))
            self._in_force = wanted

        self._try("envoy", bring)
        if self._in_force == wanted:
            COMPILED.set_to_current_time()
            RELEASES.set(len(table.targets))
        if changed:
            self.say(f"{len(table.targets)} releases, {len(self._revoked)} revoked keys: in force")
        return changed

    @property
    def ready(self) -> bool:
        """Whether a configuration is in force."""
        return self._in_force != (0, 0)

    def _read_table(self) -> None:
        found = self.read_table()
        if found != self._table:
            self._table = found

    def _read_soft(self) -> None:
        """The table with soft words; where they are refused, with those before, or none."""
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
            soft = parse(Soft, load_yaml(text, place) or {}, place)
            self._softened = softened(self._table, soft, place)
        except InputError:
            if newer_table:
                self._softened = None
            raise

    def _read_revoked(self) -> None:
        found = self.read_revoked()
        if found != self._revoked:
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
