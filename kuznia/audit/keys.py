"""The Ed25519 keys that sign checkpoints: files in PEM form."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kuznia import settings
from kuznia.errors import DependencyError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MAKE_ONE = "make one with `openssl genpkey -algorithm ed25519 -out audit.pem`"


def private_path() -> Path:
    """The laptop's key."""
    return settings.home() / "keys" / "audit.pem"


def public_path() -> Path:
    """Its public part."""
    return private_path().with_suffix(".pub")


def private_key(path: Path | None) -> Ed25519PrivateKey:
    """The key in `path`; without one the laptop's, made on first use with its public part.

    Raises InputError for what is no such key, DependencyError where none can be made.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    place = path or private_path()
    try:
        if path is None and not place.exists():
            _make(place)
        key = load_pem_private_key(place.read_bytes(), None)
        if path is None and not public_path().exists() and isinstance(key, Ed25519PrivateKey):
            public_path().write_bytes(pem(key.public_key()))
    except OSError as error:
        if path is not None:
            raise InputError(f"{place}: {error.strerror}; {MAKE_ONE}") from None
        raise DependencyError(
            f"{place}: {error.strerror}; make room or rights there, or give --key"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"{place}: is not a private Ed25519 key in PEM form without a password; {MAKE_ONE}"
        )
    return key


def public_keys(paths: Iterable[Path]) -> list[Ed25519PublicKey]:
    """The public keys in these files; InputError naming every file that holds none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found, problems = [], []
    for path in paths:
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as error:
            problems.append(f"{path}: {error.strerror}; give the public key of the audit log")
            continue
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if isinstance(key, Ed25519PublicKey):
            found.append(key)
        else:
            problems.append(
                f"{path}: is not a public Ed25519 key in PEM form; write the output of "
                "`openssl pkey -in audit.pem -pubout`"
            )
    if problems:
        raise InputError(problems)
    return found


def pem(key: Ed25519PublicKey) -> bytes:
    """The key's PEM form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _make(path: Path) -> None:
    """A new key, readable by its owner alone; of two made at once one wins, whole."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path.parent.mkdir(parents=True, exist_ok=True)
    text = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    partial = path.with_name(f".partial-{uuid.uuid4().hex[:8]}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    finally:
        partial.unlink()
