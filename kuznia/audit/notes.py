"""Checkpoints as signed notes (C2SP signed-note), so that tools of others can check them.

The text is a C2SP checkpoint: origin, tree size, root; what follows are extension lines.

    kuznia/audit/acme/gateway-0
    120
    <base64 of the segment's Merkle root>
    first 101
    ...

    — kuznia-audit <base64 of the key's id and the signature>
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from kuznia.contracts.audit import Checkpoint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

ORIGIN = "kuznia/audit"
NAME = "kuznia-audit"
"""The signer's name in the note."""
FIELDS = ("first", "prev", "last", "since", "until", "sealed", "previous")


class Unsigned(ValueError):
    """A note that is no checkpoint, or that none of the keys signed; says which."""


def text_of(checkpoint: Checkpoint) -> str:
    """The text that is signed."""
    lines = [
        f"{ORIGIN}/{checkpoint.tenant}/{checkpoint.writer}",
        str(checkpoint.total),
        base64.b64encode(bytes.fromhex(checkpoint.root)).decode(),
        *(f"{name} {getattr(checkpoint, name)}" for name in FIELDS),
    ]
    return "\n".join(lines) + "\n"


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> bytes:
    """The signed note; the same each time."""
    text = text_of(checkpoint)
    signed = base64.b64encode(_id(key.public_key()) + key.sign(text.encode())).decode()
    return f"{text}\n— {NAME} {signed}\n".encode()


def read(note: bytes, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
    """The checkpoint that one of `keys` signed; Unsigned if none did or it is no checkpoint."""
    from cryptography.exceptions import InvalidSignature

    try:
        text, mark, signatures = note.decode().rpartition("\n\n")
    except UnicodeDecodeError:
        raise Unsigned("is no checkpoint") from None
    *written, end = signatures.split("\n")
    found = [line.split(" ") for line in written]
    if not mark or not found or end or any(line[0] != "—" or len(line) != 3 for line in found):
        raise Unsigned("is no signed checkpoint")
    known = {_id(key): key for key in keys}
    text += "\n"
    ours = False
    for _, name, signature in found:
        raw = _bytes(signature)
        if name != NAME or (key := known.get(raw[:4])) is None:
            continue
        ours = True
        try:
            key.verify(raw[4:], text.encode())
        except InvalidSignature:
            continue
        return _parse(text)
    raise Unsigned("is not what was signed" if ours else "is signed by another key")


def claimed(note: bytes) -> Checkpoint:
    """The checkpoint that a note says it is, whoever signed it; Unsigned if it is none."""
    try:
        return _parse(note.decode().rpartition("\n\n")[0] + "\n")
    except UnicodeDecodeError:
        raise Unsigned("is no checkpoint") from None


def verifier(key: Ed25519PublicKey) -> str:
    """The key as tools for signed notes take it: name, id, key."""
    named = base64.b64encode(b"\1" + key.public_bytes_raw()).decode()
    return f"{NAME}+{_id(key).hex()}+{named}"


def _id(key: Ed25519PublicKey) -> bytes:
    return hashlib.sha256(f"{NAME}\n\1".encode() + key.public_bytes_raw()).digest()[:4]


def _bytes(text: str) -> bytes:
    """What base64 `text` is of; nothing if it is not written as an encoder does."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return value if base64.b64encode(value).decode() == text else b""


def _parse(text: str) -> Checkpoint:
    lines = text.splitlines()
    try:
        origin, total, root, *rest = lines
        start, tenant, writer = origin.rsplit("/", 2)
        values = dict(line.split(" ", 1) for line in rest)
        if start != ORIGIN or tuple(values) != FIELDS:
            raise ValueError(start)
        return Checkpoint.model_validate(
            values
            | {"tenant": tenant, "writer": writer, "root": _bytes(root).hex()}
            | {"total": int(total), "first": int(values["first"])}
        )
    except (ValueError, ValidationError):
        raise Unsigned("is signed, but no checkpoint of an audit log") from None
