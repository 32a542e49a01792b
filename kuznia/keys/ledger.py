"""Every API key that was made: who, what, until when; no token. And which are revoked.

gateway/keys/<jti>.json              one a key
gateway/revoked/<jti>.<until>.json   one a revocation, so two people who revoke at once lose nothing

The name of a revocation says all that the gateway needs, so one listing of the store is enough.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

from kuznia import signing
from kuznia.contracts.base import Contract, canonical_json, parse
from kuznia.contracts.release import STAGES, Stage
from kuznia.contracts.runspec import NAME, Risk
from kuznia.errors import DependencyError, InputError
from kuznia.keys.issuer import folder_refuses, home, signing_key
from kuznia.store import Store

ISSUER, AUDIENCE = "kuznia", "kuznia-gateway"
LONGEST = timedelta(days=365)
"""No key lives longer."""
SKEW = 300
"""Seconds after its end for which a token may still be taken by a clock that is late."""
LEDGER, REVOKED = "gateway/keys", "gateway/revoked"
CALLER = r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}"
AT_ONCE = 16
"""Objects of the ledger that are read at once."""


class Key(Contract):
    """What the ledger knows of a key."""

    jti: str
    """Its number: 16 hex digits."""
    name: str
    """Who calls with it: the token's `sub`, in audit records, and what limits a caller."""
    tenant: str
    models: tuple[str, ...]
    """`tenant/model` each, or `*` for all of the tenant's."""
    risks: tuple[Risk, ...]
    stages: tuple[Stage, ...]
    kid: str
    """Fingerprint of the key that signed it."""
    created: datetime
    expires: datetime
    made_by: str = ""
    """The account that made it."""


def issue(
    store: Store,
    tenant: str,
    *,
    name: str = "",
    models: Sequence[str] = ("*",),
    risks: Sequence[str] = ("minimal", "limited"),
    stages: Sequence[str] = ("production",),
    lifetime: timedelta = timedelta(days=90),
    made_by: str = "",
    folder: Path | None = None,
) -> tuple[Key, str]:
    """A new key and its token, which is nowhere else; a model may be named without its tenant.

    Raises InputError with everything that is wrong, DependencyError if the store does not answer.
    """
    import jwt

    models = tuple(m if "/" in m or m == "*" else f"{tenant}/{m}" for m in dict.fromkeys(models))
    risks, stages = tuple(dict.fromkeys(risks)), tuple(dict.fromkeys(stages))
    if problems := _faults(tenant, name, models, risks, stages, lifetime):
        raise InputError(problems)
    private = signing_key(folder)
    kid, jti = signing.fingerprint(private.public_key()), secrets.token_hex(8)
    now = datetime.now(UTC).replace(microsecond=0)
    key = parse(
        Key,
        {
            "jti": jti,
            "name": name or f"key-{jti[:8]}",
            "tenant": tenant,
            "models": models,
            "risks": risks,
            "stages": stages,
            "kid": kid,
            "created": now,
            "expires": now + lifetime,
            "made_by": made_by,
        },
        f"key {jti}",
    )
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": key.name,
        "jti": jti,
        "tenant": tenant,
        "models": models,
        "risks": risks,
        "stages": stages,
        "iat": now,
        "nbf": now,
        "exp": key.expires,
    }
    # Known before it can be used: what is in no ledger could not be revoked.
    if not store.create(f"{LEDGER}/{jti}.json", canonical_json(key)):
        raise DependencyError(f"{store.uri_of(LEDGER)}/{jti}.json: is there already; run again")
    return key, jwt.encode(claims, private, algorithm="ES256", headers={"kid": kid})


def _faults(
    tenant: str,
    name: str,
    models: Sequence[str],
    risks: Sequence[str],
    stages: Sequence[str],
    lifetime: timedelta,
) -> list[str]:
    faults = []
    if not re.fullmatch(NAME, tenant):
        faults.append(f"--tenant: {tenant!r} is no name of a tenant; see argocd/registry")
    if name and not re.fullmatch(CALLER, name):
        faults.append(
            f"--name: {name!r} is no name of a caller; use letters, digits and ._@+-, 63 at most"
        )
    for model in models:
        owner, _, rest = model.partition("/")
        if model != "*" and (owner != tenant or not re.fullmatch(NAME, rest)):
            faults.append(
                f"--models: {model!r} is no model of {tenant}; write {tenant}/MODEL, or * for all"
            )
    for option, given, known in (
        ("--models", models, ()),
        ("--risks", risks, get_args(Risk)),
        ("--stages", stages, STAGES),
    ):
        if not given:
            faults.append(f"{option}: names nothing; name one at least or leave the option out")
        faults += [
            f"{option}: {each!r} is none of {', '.join(known)}; choose among them"
            for each in given
            if known and each not in known
        ]
    if not timedelta() < lifetime <= LONGEST:
        faults.append(f"--expires: must be above 0 and at most {LONGEST.days}d; choose less")
    return faults


def ledger(store: Store, tenant: str | None = None) -> list[Key]:
    """Every key that was made (of `tenant` alone if given), oldest first."""
    names = [name for name, _ in store.keys(LEDGER)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        texts = list(pool.map(store.read, names))
    found: list[Key] = [
        parse(Key, json.loads(text), store.uri_of(name))
        for name, text in zip(names, texts, strict=True)
    ]
    chosen = [key for key in found if tenant in (None, key.tenant)]
    return sorted(chosen, key=lambda key: (key.created, key.jti))


def revoke(store: Store, jti: str, by: str = "") -> bool:
    """Revoke the key of that number; False if it was revoked before. InputError for no key."""
    place = f"{LEDGER}/{jti}.json"
    try:
        if not re.fullmatch("[0-9a-f]{16}", jti):
            raise FileNotFoundError(jti)
        key: Key = parse(Key, json.loads(store.read(place)), store.uri_of(place))
    except FileNotFoundError:
        raise InputError(
            f"{jti}: is no key of {store.uri_of(LEDGER)}; see `kuznia keys list` for its number"
        ) from None
    until = int(key.expires.timestamp()) + SKEW
    at = datetime.now(UTC).isoformat(timespec="seconds")
    fact = {"jti": jti, "at": at, "by": by, "until": until}
    return store.create(f"{REVOKED}/{jti}.{until}.json", canonical_json(fact))


def revocations(store: Store) -> dict[str, int]:
    """Every key that was revoked, by number, with the Unix time from which no clock takes it.

    One listing; what lies there and is none of ours is left alone.
    """
    names = (name for name, _ in store.keys(REVOKED))
    found = (re.fullmatch(rf"{REVOKED}/([0-9a-f]{{16}})\.([0-9]+)\.json", name) for name in names)
    return dict(sorted((parts[1], int(parts[2])) for parts in found if parts))


def revoked(store: Store, now: float | None = None) -> dict[str, int]:
    """The same without those that have ended by themselves: what a gateway must refuse."""
    now = time.time() if now is None else now
    return {jti: until for jti, until in revocations(store).items() if until > now}


def prune(store: Store, folder: Path | None = None, now: float | None = None) -> list[str]:
    """Drop public keys of before whose last token has ended; their kids.

    A key that this ledger knows no token of (its tokens are in another store's) stays for as long
    as a token of it could live.
    """
    now, last = time.time() if now is None else now, dict[str, float]()
    for key in ledger(store):
        last[key.kid] = max(last.get(key.kid, 0), key.expires.timestamp())
    dropped = []
    signs = signing.fingerprint(signing_key(folder).public_key())
    for path in sorted((folder or home()).glob("*.pub")):
        if path.stem == signs:
            continue
        try:
            end = last.get(path.stem, path.stat().st_mtime + LONGEST.total_seconds())
            if end + SKEW < now:
                path.unlink()
                dropped.append(path.stem)
        except OSError as error:
            raise folder_refuses(path, error) from error
    return dropped
