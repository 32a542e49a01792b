"""The store: keys to bytes, on obstore's clients.

Keys are relative paths with forward slashes. Nothing here overwrites a published folder: a
folder is visible once its manifest is, and the manifest is written last.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import LocalStore, from_url

from kuznia.errors import DependencyError, InputError
from kuznia.manifest import MANIFEST, SIGNATURE, file_digest, read_manifest, verify_folder

if TYPE_CHECKING:
    from obstore.store import ClientConfig

CHUNK = 8 * 2**20
"""Bytes moved at once; also the part size of multipart uploads."""

ABANDONED = 24 * 3600
"""Seconds after which what is half published or fetched counts as left by a killed process."""

_VERSION_OR_BASE = re.compile(r"(.+)/(models/[^/]+/[^/]+/[^/]+|bases/[^/]+/[0-9a-f]{64})/?")

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class Store:
    """An object store under one root URI.

    Raises FileNotFoundError for an absent key and DependencyError when the store does not answer,
    refuses or has no room.
    """

    def __init__(self, uri: str, backend: Any) -> None:
        self.uri = uri.rstrip("/")
        self._backend = backend
        self._root = folder_of(uri) if uri.startswith("file://") else None

    def uri_of(self, key: str) -> str:
        """The full URI of a key."""
        return f"{self.uri}/{key}"

    def local_path(self, key: str) -> Path | None:
        """The file or folder itself where the store is a local folder, else None."""
        return self._root / key if self._root else None

    def exists(self, key: str) -> bool:
        try:
            with self._answers(key):
                obstore.head(self._backend, key)
        except FileNotFoundError:
            return False
        return True

    def read(self, key: str) -> bytes:
        """The whole value of a small key."""
        with self._answers(key):
            return bytes(obstore.get(self._backend, key).bytes())

    def write(self, key: str, value: bytes) -> None:
        """Write a small value at once; a reader sees the old or the new one whole."""
        with self._answers(key, writes=True):
            obstore.put(self._backend, key, value)

    def create(self, key: str, value: bytes) -> bool:
        """Write a value only where there is none; False if there was one."""
        with self._answers(key, writes=True):
            try:
                obstore.put(self._backend, key, value, mode="create")
            except AlreadyExistsError:
                return False
            except PermissionDeniedError:
                # Some stores say this first of what is there under a lock.
                if self.exists(key):
                    return False
                raise
        return True

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, bytes) of everything below `prefix`, in any order."""
        with self._answers(prefix):
            for page in obstore.list(self._backend, f"{prefix.rstrip('/')}/"):
                for item in page:
                    yield item["path"], item["size"]

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, sorted."""
        with self._answers(prefix):
            found = obstore.list_with_delimiter(self._backend, f"{prefix.rstrip('/')}/")
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in found["common_prefixes"])
        return sorted(name for name in names if not name.startswith(".partial-"))

    def put_file(self, source: Path, key: str) -> None:
        """Upload one file, in parts if it is large."""
        with self._answers(key, writes=True):
            obstore.put(self._backend, key, source, chunk_size=CHUNK)

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of a key from byte `start` on (which must exist), in pieces."""
        options: Any = {"range": {"offset": start}} if start else {}
        with self._answers(key):
            found = obstore.get(self._backend, key, options=options)
            for chunk in found.stream(min_chunk_size=CHUNK):
                yield bytes(chunk)

    def get_file(self, key: str, target: Path, partials: Path | None = None) -> None:
        """Download one file; `target` appears only when it is whole.

        Goes on where it broke off as long as anything comes: one answer of a store lasts three
        minutes at most. What is not whole yet is kept in `partials`, the folder of `target` unless
        given.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        name = f".partial-{uuid.uuid4().hex[:8]}-{target.name}"
        partial = (partials or target.parent) / name
        try:
            with self._answers(key), partial.open("wb") as out:
                self._copy(key, out)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _copy(self, key: str, out: BinaryIO) -> None:
        while True:
            begun = out.tell()
            try:
                for chunk in self.stream(key, begun):
                    out.write(chunk)
            except DependencyError:
                if out.tell() == begun:
                    raise
            else:
                return

    def put_folder(self, source: Path, key: str) -> None:
        """Publish a folder that has a manifest; one that is there already is left alone.

        In a local store the folder appears at once, elsewhere the manifest is uploaded last. To
        one of the same content that is there unsigned the signature is added.
        Raises InputError if the folder differs from its manifest.
        """
        if self.exists(f"{key}/{MANIFEST}"):
            if self.read(f"{key}/{MANIFEST}") == (source / MANIFEST).read_bytes():
                self._add_signature(source, key)
            return
        verify_folder(source)
        with self._answers(key):
            if self._root:
                self._publish_locally(source, self._root / key)
                return
        for entry in read_manifest(source).files:
            self.put_file(source / entry.path, f"{key}/{entry.path}")
        self._add_signature(source, key)
        self.create(f"{key}/{MANIFEST}", (source / MANIFEST).read_bytes())

    def remove_folder(self, key: str) -> None:
        """Delete everything below `key`, the manifest first, so no half folder is ever visible.

        For what a step left for itself (checkpoints); versions are never deleted.
        """
        found = [entry for entry, _ in self.keys(key)]
        with self._answers(key):
            for entry in sorted(found, key=lambda entry: entry != f"{key}/{MANIFEST}"):
                obstore.delete(self._backend, entry)

    def delete(self, key: str) -> None:
        """Delete one key; for what has an end, as audit segments past their retention."""
        with self._answers(key):
            obstore.delete(self._backend, key)

    def get_folder(self, key: str, target: Path, progress: Progress | None = None) -> Path:
        """A local copy of a published folder (or the folder itself), checked file by file.

        A second call with the same target downloads only what is missing or different.
        Raises FileNotFoundError where nothing was published, InputError where a file differs
        from the manifest.
        """
        here = self.local_path(key)
        if here is not None:
            if not (here / MANIFEST).exists():
                raise FileNotFoundError(self.uri_of(key))
            verify_folder(here, progress=progress)
            return here
        target.mkdir(parents=True, exist_ok=True)
        # Beside it: what a killed or a parallel call leaves is no file of the folder.
        partials = target.parent
        _sweep(partials)
        self.get_file(f"{key}/{MANIFEST}", target / MANIFEST, partials)
        manifest, done = read_manifest(target), 0
        for entry in manifest.files:
            path = target / entry.path
            if not (path.exists() and file_digest(path) == entry.sha256):
                self.get_file(f"{key}/{entry.path}", path, partials)
            done += entry.size
            if progress:
                progress(done, manifest.bytes)
        with suppress(FileNotFoundError):
            self.get_file(f"{key}/{SIGNATURE}", target / SIGNATURE, partials)
        verify_folder(target)
        return target

    def _add_signature(self, source: Path, key: str) -> None:
        """Put the signature of `source`, if it has one, where there is none."""
        if (source / SIGNATURE).exists():
            self.create(f"{key}/{SIGNATURE}", (source / SIGNATURE).read_bytes())

    def _publish_locally(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        partial = target.with_name(f".partial-{uuid.uuid4().hex[:8]}-{target.name}")
        try:
            shutil.copytree(source, partial)
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise

    @contextmanager
    def _answers(self, key: str, writes: bool = False) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if writes and self._root is None:
                raise DependencyError(
                    f"{self.uri_of(key)}: there is no such bucket; make it or correct KUZNIA_STORE "
                    "and run the same command again"
                ) from error
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DependencyError(
                    f"{self.uri_of(key)}: no space left; free some and run the same command again"
                ) from error
            raise DependencyError(
                f"{self.uri_of(key)}: {error.strerror or error}; check the store and run again"
            ) from error
        except BaseError as error:
            first = str(error).splitlines()[0]
            room = "No space left" in str(error)
            way_out = "free some space" if room else "check the store's address and credentials"
            raise DependencyError(
                f"{self.uri_of(key)}: {first}; {way_out} and run the same command again"
            ) from error


def folder_of(uri: str) -> Path:
    """The folder or file that a file:// URI names; spaces and letters in it may be escaped."""
    return Path(unquote(urlsplit(uri).path))


def _sweep(folder: Path) -> None:
    """Remove what killed processes left, a model's size each; another may do so at once."""
    for partial in folder.glob(".partial-*"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def root_and_key(uri: str) -> tuple[str, str]:
    """The store's URI and the key of a version's or a base's folder, by how the URI ends.

    Raises InputError if it ends like neither.
    """
    if not (found := _VERSION_OR_BASE.fullmatch(uri)):
        raise InputError(
            f"{uri}: ends neither in models/<tenant>/<model>/<version> nor in bases/<name>/<digest>"
            "; correct it, or register the version by `kuznia run`"
        )
    return found[1], found[2]


def open_store(uri: str) -> Store:
    """The store at `uri`: a folder, file://, s3://bucket/prefix or gs://bucket/prefix.

    Credentials and endpoints come from the environment, as obstore reads them (AWS_*, GOOGLE_*).
    """
    if "://" not in uri:
        uri = Path(uri).resolve().as_uri()
    if uri.startswith("file://"):
        root = folder_of(uri)
        root.mkdir(parents=True, exist_ok=True)
        return Store(uri, LocalStore(str(root)))
    if uri.startswith("gs://") and (emulator := os.environ.get("STORAGE_EMULATOR_HOST")):
        # The form in which obstore's client is told not to ask anyone for a token.
        key = {"gcs_base_url": emulator, "disable_oauth": True}
        key |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        return Store(uri, from_url(uri, service_account_key=json.dumps(key)))
    if uri.startswith("s3://"):
        # Who names an address with http:// means it. A bucket under Object Lock takes nothing
        # without a checksum.
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        options: ClientConfig = {"allow_http": True} if plain else {}
        return Store(uri, from_url(uri, client_options=options, checksum_algorithm="SHA256"))
    if uri.startswith("gs://"):
        return Store(uri, from_url(uri))
    raise InputError(f"KUZNIA_STORE: {uri!r} is not a store; use a folder, file://, s3:// or gs://")
