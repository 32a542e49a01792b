"""The keys that sign API keys: one signs now, one may be prepared, old ones only verify.

signing.pem   the private key that signs now
next.pem      the one that signs after the next rotation, if it is prepared
<kid>.pub     public keys, those of before while tokens of theirs live
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuznia import settings, signing
from kuznia.errors import DependencyError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )


def home() -> Path:
    """The issuer's folder."""
    return settings.keys_folder() or settings.home() / "keys" / "issuer"


def signing_key(folder: Path | None = None) -> EllipticCurvePrivateKey:
    """The key that signs now; on a laptop made on first use, where nobody names a folder."""
    path = (folder or home()) / "signing.pem"
    made_here = folder is None and settings.keys_folder() is None and not settings.in_a_pod()
    try:
        if not path.exists():
            if not made_here:
                raise InputError(
                    f"{path}: is missing; correct KUZNIA_KEYS, or make a first key there with "
                    "`kuznia keys rotate`"
                )
            signing.make_key(path)
        return signing.private_key(str(path), path.read_bytes())
    except OSError as error:
        raise folder_refuses(path, error) from error


def public_keys(folder: Path | None = None) -> dict[str, EllipticCurvePublicKey]:
    """By kid: the key that signs, the prepared one, and those of before. Makes none."""
    folder = folder or home()
    keys = []
    try:
        for path in (folder / "signing.pem", folder / "next.pem"):
            if path.exists():
                keys.append(signing.private_key(str(path), path.read_bytes()).public_key())
        keys += [public_key(str(path), path.read_bytes()) for path in folder.glob("*.pub")]
    except OSError as error:
        raise folder_refuses(folder, error) from error
    return dict(sorted((signing.fingerprint(key), key) for key in keys))


def public_key(place: str, pem: bytes) -> EllipticCurvePublicKey:
    """The P-256 public key in `pem`; InputError beginning with `place` if it is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(
            f"{place}: is not a public ECDSA P-256 key in PEM form; paste what `kuznia keys "
            "public` prints"
        )
    return key


def jwks(folder: Path | None = None) -> dict[str, Any]:
    """The JSON Web Key Set of the issuer's folder: public keys only, sorted by kid."""
    return jwks_of(public_keys(folder).values())


def jwks_of(keys: Iterable[EllipticCurvePublicKey]) -> dict[str, Any]:
    """The same of any public keys, as those in platform.yaml."""
    from jwt.algorithms import ECAlgorithm

    found = {signing.fingerprint(key): json.loads(ECAlgorithm.to_jwk(key)) for key in keys}
    return {
        "keys": [
            {**jwk, "kid": kid, "alg": "ES256", "use": "sig"} for kid, jwk in sorted(found.items())
        ]
    }


def prepare(folder: Path | None = None) -> str:
    """Make the key that the next rotation brings, so that gateways know it before; its kid."""
    path = (folder or home()) / "next.pem"
    try:
        if not path.exists():
            signing.make_key(path)
        return signing.fingerprint(signing.private_key(str(path), path.read_bytes()).public_key())
    except OSError as error:
        raise folder_refuses(path, error) from error


def rotate(folder: Path | None = None, keep_old: bool = True) -> tuple[str, str | None]:
    """Sign with the prepared key, or a new one; kids of the new and the old key (None: none was).

    The old private key is destroyed. Its public part stays in the set; without `keep_old` it goes,
    and so does a prepared key, which lay beside it.
    """
    folder = folder or home()
    path, following, old = folder / "signing.pem", folder / "next.pem", None
    try:
        if not keep_old:
            following.unlink(missing_ok=True)
        new = prepare(folder)
        if path.exists():
            old = _keep(path)
        # Before it signs, lest another rotation at once replaces it unseen.
        _keep(following)
        following.replace(path)
        if old and not keep_old:
            (folder / f"{old}.pub").unlink(missing_ok=True)
    except OSError as error:
        raise folder_refuses(path, error) from error
    return new, old


def _keep(private: Path) -> str:
    """Write the public part of a private key beside it, dated now; its kid."""
    public = signing.private_key(str(private), private.read_bytes()).public_key()
    kid = signing.fingerprint(public)
    partial = private.with_name(f".partial-{secrets.token_hex(4)}")
    partial.write_bytes(signing.public_pem(public))
    partial.replace(private.with_name(f"{kid}.pub"))
    return kid


def folder_refuses(path: Path, error: OSError) -> DependencyError:
    """What to tell where the issuer's folder has no room or no rights."""
    if isinstance(error, FileNotFoundError):
        return DependencyError(
            f"{path}: somebody else has changed the key just now; see `kuznia keys jwks`, and run "
            "the same command again if it needs another one"
        )
    return DependencyError(
        f"{path}: {error.strerror}; make room or rights for signing keys there, or name another "
        "folder in KUZNIA_KEYS, and run the same command again"
    )
