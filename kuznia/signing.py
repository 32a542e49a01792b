"""Who made a version: a detached signature over its manifest, which names every file's digest.

`manifest.json.sig` is base64 of an ECDSA P-256 signature with SHA-256 over the bytes of
manifest.json: what `openssl dgst -sha256 -verify` and `cosign verify-blob --key` check.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kuznia import settings
from kuznia.errors import DependencyError, InputError
from kuznia.manifest import MANIFEST, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

MAKE_ONE = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out signing.pem`"
HOW_TO = "docs/howto/sign-weights.md"


def sign_folder(folder: Path) -> str:
    """Sign the manifest of `folder`; returns what happened, for the log.

    The key is KUZNIA_SIGNING_KEY; without it, on a laptop, one that is made on first use, and in
    a pod none: the folder stays unsigned. Raises InputError for what is not such a key.
    """
    key = signing_key()
    if key is None:
        return "not signed: no KUZNIA_SIGNING_KEY"
    (folder / SIGNATURE).write_bytes(sign((folder / MANIFEST).read_bytes(), key))
    return f"signed by key {fingerprint(key.public_key())}"


def sign(data: bytes, key: EllipticCurvePrivateKey) -> bytes:
    """The signature of `data`, base64 and a line end; the same each time (RFC 6979)."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    return base64.b64encode(key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True))) + b"\n"


def verify(data: bytes, signature: bytes, keys: Sequence[EllipticCurvePublicKey]) -> str | None:
    """Fingerprint of the first of `keys` that signed `data`; None if none of them did."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        raw = base64.b64decode(b"".join(signature.split()), validate=True)
    except binascii.Error:
        return None
    for key in keys:
        try:
            key.verify(raw, data, ec.ECDSA(SHA256()))
        except InvalidSignature:
            continue
        return fingerprint(key)
    return None


def check(
    place: str, data: bytes, signature: bytes | None, keys: Sequence[EllipticCurvePublicKey]
) -> str:
    """Fingerprint of the key that signed the manifest `data` at `place` (a folder or its URI).

    Raises InputError where the signature is missing or by none of `keys`.
    """
    if signature is None:
        raise InputError(
            f"{place}/{SIGNATURE}: is missing, and only signed weights are served; export with "
            f"KUZNIA_SIGNING_KEY or sign the version ({HOW_TO})"
        )
    if (found := verify(data, signature, keys)) is None:
        known = ", ".join(map(fingerprint, keys))
        raise InputError(
            f"{place}/{SIGNATURE}: is by none of the trusted keys ({known}); do not use the "
            f"weights unless you know who signed them, then trust that key ({HOW_TO})"
        )
    return found


def public_keys(folder: Path) -> list[EllipticCurvePublicKey]:
    """The keys in the *.pem files of `folder`; InputError naming every file that is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found, problems = [], []
    for path in sorted(folder.glob("*.pem")):
        try:
            key = load_pem_public_key(path.read_bytes())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if isinstance(key, EllipticCurvePublicKey):
            found.append(key)
        else:
            problems.append(
                f"{path}: is not a public ECDSA key in PEM form; write the output of "
                "`openssl ec -in signing.pem -pubout`"
            )
    if problems:
        raise InputError(problems)
    return found


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """The first 12 hex digits of the sha256 of the key's DER form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:12]


def signing_key() -> EllipticCurvePrivateKey | None:
    """The private key of this place, as `sign_folder` says."""
    given = settings.signing_key()
    if "-----BEGIN" in given:
        return private_key("KUZNIA_SIGNING_KEY", given.encode())
    if given:
        try:
            return private_key(given, Path(given).read_bytes())
        except OSError as error:
            raise InputError(
                f"KUZNIA_SIGNING_KEY: {given}: {error.strerror}; give the path of a PEM file, or "
                "its text"
            ) from None
    if settings.in_a_pod():
        return None
    path = settings.home() / "keys" / "signing.pem"
    try:
        if not path.exists():
            make_key(path)
        key = private_key(str(path), path.read_bytes())
        public = path.with_suffix(".pub")
        if not public.exists():
            public.write_bytes(public_pem(key.public_key()))
    except OSError as error:
        raise DependencyError(
            f"{path}: {error.strerror}; make room or rights for a signing key there, or set "
            "KUZNIA_SIGNING_KEY, and run the same command again"
        ) from error
    return key


def private_key(place: str, pem: bytes) -> EllipticCurvePrivateKey:
    """The private key in `pem`; InputError beginning with `place` if it is none for ES256."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(
            f"{place}: is not a private ECDSA P-256 key in PEM form without a password; {MAKE_ONE}"
        )
    return key


def make_key(path: Path) -> None:
    """A new key at `path`, readable by its owner alone; of two at once one wins, whole."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path.parent.mkdir(parents=True, exist_ok=True)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    partial = path.with_name(f".partial-{uuid.uuid4().hex[:8]}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    finally:
        partial.unlink()


def public_pem(key: EllipticCurvePublicKey) -> bytes:
    """The key's PEM form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
