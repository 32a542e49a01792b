"""A published folder as files here, checked: several files at once, going on where it broke off."""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kuznia import machine
from kuznia.errors import DependencyError, InputError
from kuznia.manifest import (
    MANIFEST,
    SIGNATURE,
    Manifest,
    ManifestEntry,
    parse_manifest,
    verify_folder,
)
from kuznia.store.web import Source

AT_ONCE = 4
"""Files that are fetched at once: one stream from an object store does not fill a network card."""

Say = Callable[[int, int, str], None]
"""Called with bytes fetched, bytes in all and the file's name; never by two threads at once."""


def download(source: Source, data: bytes, signature: bytes | None, target: Path, say: Say) -> None:
    """Fetch all files of the manifest `data` to `target`, which appears only when it is whole.

    What an interrupted call left beside `target` is used. Raises InputError with every file that
    is missing or differs, DependencyError where the source does not answer or room is lacking.
    """
    digest = hashlib.sha256(data).hexdigest()
    manifest = parse_manifest(data, source.uri_of(MANIFEST))
    if target.exists():
        try:
            verify_folder(target, digest)
            return
        except InputError:
            shutil.rmtree(target)
    partial = target.with_name(f".partial-{target.name}-{digest[:12]}")
    partial.mkdir(exist_ok=True, parents=True)
    has = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    needs, free = (manifest.bytes - has) / machine.GIB, machine.free_disk_gib(partial)
    if needs > free:
        raise DependencyError(
            f"{target}: needs {needs:.2f} GiB more, has {free:.2f} GiB; free some space"
        )
    _Files(source, manifest, partial, say).fetch()
    (partial / MANIFEST).write_bytes(data)
    if signature:
        (partial / SIGNATURE).write_bytes(signature)
    partial.rename(target)


class _Files:
    """The files of one manifest on their way to `folder`."""

    def __init__(self, source: Source, manifest: Manifest, folder: Path, say: Say) -> None:
        self.source, self.manifest, self.folder, self.say = source, manifest, folder, say
        self.lock, self.done, self.away = threading.Lock(), 0, False

    def fetch(self) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            # Small ones first: they are whole whatever happens to the large ones.
            order = sorted(self.manifest.files, key=lambda entry: entry.size)
            tries = {entry.path: pool.submit(self._file, entry) for entry in order}
        ends = (tries[entry.path].exception() for entry in self.manifest.files)
        errors = [error for error in ends if error]
        refused = [error for error in errors if isinstance(error, InputError)]
        if refused:
            raise InputError(problem for error in refused for problem in error.problems)
        if errors:
            raise errors[0]

    def _file(self, entry: ManifestEntry) -> None:
        if self.away:
            return
        path, place = self.folder / entry.path, self.source.uri_of(entry.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.exists()
        try:
            whole = self._get(entry, path)
            if begun and not whole:
                # What was there was no beginning of the file.
                path.unlink()
                whole = self._get(entry, path)
        except FileNotFoundError:
            raise InputError(f"{place}: is missing; choose another version") from None
        except DependencyError:
            self.away = True
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DependencyError(f"{path}: no space left; free some and run again") from error
        if not whole:
            path.unlink()
            raise InputError(
                f"{place}: differs from the manifest; do not use it, restore the file or choose "
                "another version"
            )

    def _get(self, entry: ManifestEntry, path: Path) -> bool:
        """Fetch what `path` lacks; whether the whole is what the manifest says."""
        digest, has = hashlib.sha256(), 0
        with path.open("ab+") as file:
            file.seek(0)
            while chunk := file.read(2**20):
                digest.update(chunk)
                has += len(chunk)
            self._add(has, entry.path)
            if has < entry.size:
                for chunk in self.source.stream(entry.path, has):
                    file.write(chunk)
                    digest.update(chunk)
                    has += len(chunk)
                    self._add(len(chunk), entry.path)
                    if has > entry.size:
                        break
        if has == entry.size and digest.hexdigest() == entry.sha256:
            return True
        self._add(-has, entry.path)
        return False

    def _add(self, more: int, name: str) -> None:
        with self.lock:
            self.done += more
            self.say(self.done, self.manifest.bytes, name)
