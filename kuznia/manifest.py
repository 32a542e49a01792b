"""What a folder holds: manifest.json with size and sha256 of every file.

The digest of the manifest names the folder; its first 12 hex digits name a version. The manifest
holds no time and no machine, so equal content has an equal name. The signature lies beside it and
is no part of it: who signed does not change what a version is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from kuznia.contracts.base import Contract, canonical_json, problems_of
from kuznia.errors import InputError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
"""The manifest's signature, where there is one (kuznia/signing.py)."""


class ManifestEntry(Contract):
    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"{value!r} leads out of the folder; do not use this manifest")
        return value


class Manifest(Contract):
    """Files in order of their path, and what they are."""

    schema_version: Literal[1] = 1
    kind: Literal["base", "adapter", "full", "version", "checkpoint"]
    about: dict[str, str] = {}
    """Lineage that belongs to the content: the base's digest, say."""
    files: tuple[ManifestEntry, ...]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.size for entry in self.files)


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, kind: Any, about: dict[str, str] | None = None) -> str:
    """Describe every file of `folder` in its manifest.json; returns the manifest's digest."""
    entries = [
        ManifestEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=file_digest(path),
        )
        for path in _files(folder)
    ]
    manifest = Manifest(
        kind=kind, about=about or {}, files=tuple(sorted(entries, key=lambda entry: entry.path))
    )
    data = canonical_json(manifest)
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; InputError if it is absent or not one."""
    place = folder / MANIFEST
    try:
        return parse_manifest(place.read_bytes(), str(place))
    except FileNotFoundError:
        raise InputError(f"{place}: is missing; this is not a published folder") from None


def parse_manifest(data: bytes, place: str) -> Manifest:
    """The manifest that `data` from `place` is; InputError if it is none."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise InputError(problems_of(error, place)) from None


def manifest_digest(folder: Path) -> str:
    """Digest of the folder's manifest as it stands."""
    return file_digest(folder / MANIFEST)


def verify_folder(
    folder: Path,
    expected: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Compare every file with the manifest, and the manifest with `expected` if given.

    Raises InputError with one line for each file that is missing, added or different.
    """
    manifest = read_manifest(folder)
    problems = []
    if expected is not None and (found := manifest_digest(folder)) != expected:
        problems.append(
            f"{folder / MANIFEST}: digest {found[:12]} is not {expected[:12]}; fetch it again"
        )
    done = 0
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            problems.append(f"{path}: is missing; fetch the folder again")
        elif path.stat().st_size != entry.size or file_digest(path) != entry.sha256:
            problems.append(f"{path}: differs from the manifest; do not use it, fetch it again")
        done += entry.size
        if progress:
            progress(done, manifest.bytes)
    listed = {entry.path for entry in manifest.files}
    for path in _files(folder):
        if path.relative_to(folder).as_posix() not in listed:
            problems.append(f"{path}: is not in the manifest; remove it")
    if problems:
        raise InputError(problems)
    return manifest


def _files(folder: Path) -> list[Path]:
    own = (MANIFEST, SIGNATURE)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in own)
