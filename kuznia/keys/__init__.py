"""API keys of the gateway: signed, expiring tokens (ES256 JWT), which are kept nowhere."""

from kuznia.keys.issuer import (
    home,
    jwks,
    jwks_of,
    prepare,
    public_key,
    public_keys,
    rotate,
    signing_key,
)
from kuznia.keys.ledger import (
    AUDIENCE,
    ISSUER,
    Key,
    issue,
    ledger,
    prune,
    revocations,
    revoke,
    revoked,
)

__all__ = [
    "AUDIENCE",
    "ISSUER",
    "Key",
    "home",
    "issue",
    "jwks",
    "jwks_of",
    "ledger",
    "prepare",
    "prune",
    "public_key",
    "public_keys",
    "revocations",
    "revoke",
    "revoked",
    "rotate",
    "signing_key",
]
