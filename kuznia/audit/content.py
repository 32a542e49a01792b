"""Content of requests to high-risk releases: pseudonymised by the guard, encrypted, with an end.

    <store>/content/<tenant>/<subject>/<day>/<expiry, Unix seconds>-<request id>
    <keys>/content-keys/<tenant>/<subject>/<day>

`subject` is a keyed hash of whom it is about. A data key serves one subject on one day; without
it nobody reads what it encrypted, in whatever backup that is. Neither folder may be locked.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from kuznia.audit.pseudonyms import pseudonym
from kuznia.contracts.audit import Content
from kuznia.contracts.base import canonical_json
from kuznia.store.objects import Store

ROOT, KEYS = "content", "content-keys"
NAMES = "names"
"""Of each tenant: the key that hashes subjects."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Erased(LookupError):
    """The content, or the key to it, is no more."""


@dataclass(frozen=True)
class Kept:
    """One key of the content store, taken apart."""

    tenant: str
    subject: str
    day: str
    expires: int
    id: str


class ContentStore:
    """Raises DependencyError where a store does not answer."""

    def __init__(self, store: Store, keys: Store) -> None:
        self._store, self._keys = store, keys

    def put(
        self, tenant: str, subject: str, request_id: str, parts: Mapping[str, str], expires: float
    ) -> Content:
        """Keep the parts (input, output) of a request until `expires`, Unix seconds.

        Returns where, and the digest of the encrypted bytes, for the request's audit record.
        Raises ValueError for an id that cannot be part of a path.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not _ID.fullmatch(request_id):
            raise ValueError(f"{request_id!r} is no request id")
        whose = self.subject(tenant, subject)
        day = datetime.now(UTC).date().isoformat()
        ref = f"{ROOT}/{tenant}/{whose}/{day}/{int(expires)}-{request_id}"
        data_key = self._made(f"{KEYS}/{tenant}/{whose}/{day}")
        nonce = secrets.token_bytes(12)
        sealed = nonce + AESGCM(data_key).encrypt(nonce, canonical_json(dict(parts)), ref.encode())
        self._store.write(ref, sealed)
        return Content(ref=ref, sha256=hashlib.sha256(sealed).hexdigest())

    def get(self, ref: str) -> dict[str, str]:
        """The parts. Raises Erased where they or their key are gone, ValueError if forged."""
        import json

        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        kept = _taken_apart(ref)
        try:
            sealed = self._store.read(ref)
            data_key = self._keys.read(f"{KEYS}/{kept.tenant}/{kept.subject}/{kept.day}")
        except FileNotFoundError:
            raise Erased(ref) from None
        try:
            text = AESGCM(data_key).decrypt(sealed[:12], sealed[12:], ref.encode())
        except InvalidTag:
            raise ValueError(f"{ref}: is not what was put there") from None
        parts: dict[str, str] = json.loads(text)
        return parts

    def subject(self, tenant: str, name: str) -> str:
        """How a person is called here."""
        return pseudonym(self._made(f"{KEYS}/{tenant}/{NAMES}"), name)

    def days(self, tenant: str, subject: str) -> list[str]:
        """The days of which there are keys for a person."""
        whose = self.subject(tenant, subject)
        return sorted(
            key.rsplit("/", 1)[-1] for key, _ in self._keys.keys(f"{KEYS}/{tenant}/{whose}")
        )

    def erase(self, tenant: str, subject: str) -> int:
        """Destroy a person's keys, then what they encrypted; returns how many objects."""
        whose = self.subject(tenant, subject)
        for key, _ in list(self._keys.keys(f"{KEYS}/{tenant}/{whose}")):
            self._keys.delete(key)
        found = [key for key, _ in self._store.keys(f"{ROOT}/{tenant}/{whose}")]
        for key in found:
            self._store.delete(key)
        return len(found)

    def expire(
        self,
        now: float,
        tenant: str | None = None,
        held: Callable[[str, str], bool] = lambda tenant, day: False,
    ) -> int:
        """Remove what is past its end, and keys that nothing needs; returns how many objects.

        `held` says for a tenant and a day whether a hold keeps it.
        """
        count = 0
        kept_days: set[tuple[str, str, str]] = set()
        for ref, _ in list(self._store.keys(f"{ROOT}/{tenant}" if tenant else ROOT)):
            kept = _taken_apart(ref)
            if kept.expires >= now or held(kept.tenant, kept.day):
                kept_days.add((kept.tenant, kept.subject, kept.day))
                continue
            self._store.delete(ref)
            count += 1
        today = datetime.fromtimestamp(now, UTC).date().isoformat()
        for key, _ in list(self._keys.keys(f"{KEYS}/{tenant}" if tenant else KEYS)):
            _, owner, *rest = key.split("/")
            if len(rest) == 2 and rest[1] < today and (owner, *rest) not in kept_days:
                self._keys.delete(key)
        return count

    def _made(self, path: str) -> bytes:
        """The key at `path`, made if there is none."""
        try:
            return self._keys.read(path)
        except FileNotFoundError:
            made = secrets.token_bytes(32)
            return made if self._keys.create(path, made) else self._keys.read(path)


def _taken_apart(ref: str) -> Kept:
    root, tenant, subject, day, name = ref.split("/")
    expires, _, request_id = name.partition("-")
    if root != ROOT:
        raise ValueError(f"{ref}: is no content")
    return Kept(tenant, subject, day, int(expires), request_id)
