"""What a step is given besides its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kuznia.contracts.steps import File, Folder
from kuznia.errors import InputError
from kuznia.manifest import file_digest, manifest_digest, read_manifest
from kuznia.store import Store


@dataclass(frozen=True)
class Context:
    """Store, MLflow's address and a folder of the step's own.

    `workdir` outlives a failed attempt where it can, so a step may find its own leavings there;
    it never holds anything that is not also in the store once the step is done. `cache` is shared
    by all runs on the machine.
    """

    store: Store
    tracking_uri: str
    workdir: Path
    cache: Path

    def put(self, path: Path, key: str) -> File:
        """Upload a file and describe it."""
        self.store.put_file(path, key)
        return File(key=key, sha256=file_digest(path), bytes=path.stat().st_size)

    def publish(self, path: Path, key: str) -> Folder:
        """Upload a folder with a manifest and describe it."""
        self.store.put_folder(path, key)
        return Folder(key=key, digest=manifest_digest(path), bytes=read_manifest(path).bytes)

    def folder(self, folder: Folder) -> Path:
        """A folder of the store as files here, checked; downloaded once a machine.

        Raises InputError if it is missing, damaged or another than `folder` says.
        """
        try:
            here = self.store.get_folder(folder.key, self.cache / "folders" / folder.digest)
        except FileNotFoundError:
            raise InputError(
                f"{self.store.uri_of(folder.key)}: is not in the store; run the step that makes it"
            ) from None
        if (found := manifest_digest(here)) != folder.digest:
            raise InputError(
                f"{self.store.uri_of(folder.key)}: its manifest is {found[:12]}, not "
                f"{folder.digest[:12]}; do not use it, run the step that makes it again"
            )
        return here

    def file(self, file: File) -> Path:
        """A file of the store as a file here; downloaded once a machine."""
        here = self.store.local_path(file.key)
        if here is not None:
            return here
        target = self.cache / "files" / file.sha256
        if not target.exists():
            self.store.get_file(file.key, target)
        return target
