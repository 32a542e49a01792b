"""A registered version as folders on this machine, checked before anyone loads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kuznia import settings, signing
from kuznia.errors import InputError
from kuznia.manifest import MANIFEST, SIGNATURE, manifest_digest
from kuznia.registry import ModelVersion
from kuznia.store import open_store, root_and_key


@dataclass(frozen=True)
class Weights:
    """What is served, as checked folders on this machine."""

    name: str
    """`<tenant>/<model>`: what clients put under `model`."""
    folder: Path
    base: Path | None = None
    """The base's folder where `folder` is an adapter."""


def fetch_weights(version: ModelVersion, cache: Path) -> Weights:
    """The folders of a registered version, every file compared with what was registered.

    Raises InputError if a file or the manifest differs or is gone, or if KUZNIA_TRUSTED_KEYS is
    set and the version is signed by none of them.
    """
    folder = _fetch(version.uri, version.digest, cache)
    if trusted := settings.trusted_keys():
        signature = folder / SIGNATURE
        signing.check(
            version.uri,
            (folder / MANIFEST).read_bytes(),
            signature.read_bytes() if signature.exists() else None,
            signing.public_keys(trusted),
        )
    if version.tags.get("mode") != "adapter":
        return Weights(version.served_name, folder)
    root, _ = root_and_key(version.uri)
    base = _fetch(f"{root}/{version.tags['base_key']}", version.tags["base_digest"], cache)
    return Weights(version.served_name, folder, base)


def _fetch(uri: str, digest: str, cache: Path) -> Path:
    root, key = root_and_key(uri)
    try:
        folder = open_store(root).get_folder(key, cache / "folders" / digest)
    except FileNotFoundError:
        raise InputError(
            f"{uri}: is gone from the store; run the chain again to make it anew"
        ) from None
    if (found := manifest_digest(folder)) != digest:
        raise InputError(
            f"{uri}: its manifest is {found[:12]}, but {digest[:12]} was registered; do not use "
            "it, run the chain again"
        )
    return folder
