"""Names of callers as the audit log keeps them.

The key of a tenant's quarter is `audit-keys/<tenant>/<quarter>`, 32 random bytes, made by
whoever needs it first. Keep that folder where readers of the log cannot look. Destroying a key
ends every way back from its quarter's pseudonyms to names; the chain does not have it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator

from kuznia.errors import DependencyError
from kuznia.store.objects import Store

ROOT = "audit-keys"
FRESH = 60.0
"""Seconds for which a key that was read is used: a destroyed one is used no longer than that."""
QUARTER = r"\d{4}-Q[1-4]"


def quarter(moment: str) -> str:
    """The quarter of a time as the log writes it: 2026-Q4."""
    return f"{moment[:4]}-Q{(int(moment[5:7]) + 2) // 3}"


def pseudonym(key: bytes, name: str) -> str:
    """128 bits of HMAC-SHA-256, 32 hex digits."""
    return hmac.digest(key, name.encode("utf-8", "replace"), hashlib.sha256)[:16].hex()


class Pseudonyms:
    """The keys in one store. Raises DependencyError where it does not answer and the key was
    never read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[tuple[str, str], tuple[float, bytes]] = {}
        self._names: dict[tuple[bytes, str], str] = {}

    @property
    def uri(self) -> str:
        """Where the keys are."""
        return self._store.uri_of(ROOT)

    def of(self, tenant: str, name: str, moment: str) -> str:
        """The pseudonym of a caller at a time; makes the key if there is none."""
        key = self._key(tenant, quarter(moment))
        if (key, name) not in self._names:
            if len(self._names) > 10_000:
                self._names.clear()
            self._names[key, name] = pseudonym(key, name)
        return self._names[key, name]

    def known(self, tenant: str, name: str) -> Iterator[tuple[str, str]]:
        """(quarter, pseudonym) of a name for every quarter whose key is there."""
        for path, _ in sorted(self._store.keys(f"{ROOT}/{tenant}")):
            found = path.rsplit("/", 1)[-1]
            if re.fullmatch(QUARTER, found):
                yield found, pseudonym(self._store.read(path), name)

    def destroy(self, tenant: str, quarter: str) -> bool:
        """End re-identification for a quarter; False if there was no key."""
        path = f"{ROOT}/{tenant}/{quarter}"
        if not self._store.exists(path):
            return False
        self._store.delete(path)
        return True

    def _key(self, tenant: str, quarter: str) -> bytes:
        now = time.monotonic()
        read, key = self._keys.get((tenant, quarter), (0.0, b""))
        if key and now - read < FRESH:
            return key
        path = f"{ROOT}/{tenant}/{quarter}"
        try:
            key = self._store.read(path)
        except FileNotFoundError:
            made = secrets.token_bytes(32)
            key = made if self._store.create(path, made) else self._store.read(path)
        except DependencyError:
            if not key:
                raise
        self._keys[tenant, quarter] = now, key
        return key
