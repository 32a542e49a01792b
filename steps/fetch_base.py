"""Bring the base model into the store, once for all runs.

Reads: the catalogue's entry in the plan; its source.
Writes: bases/<name>/<digest>/ in the store, and a copy in this machine's cache.
Fails when: the source names nothing or its content differs from the catalogue's digest (2); the
    source or the store does not answer or has no room (3).
Safe to repeat because: a published folder is found by its digest and left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kuznia.contracts.catalogue import BaseModelEntry
from kuznia.contracts.steps import FetchBaseInputs, FetchBaseOutputs, Folder
from kuznia.errors import InputError
from kuznia.manifest import MANIFEST, Manifest, verify_folder, write_manifest
from kuznia.progress import progress
from kuznia.sources import copy_model, fetch_model
from kuznia.store import Store
from steps import gguf
from steps.context import Context

_STAGES = 4


def run(inputs: FetchBaseInputs, context: Context) -> FetchBaseOutputs:
    name, base = inputs.plan.spec.base, inputs.plan.base
    key = f"bases/{name}/{base.digest}"
    found = _published(context.store, key, base.digest)
    if found is None:
        with _alone(context.cache / "locks" / f"base-{base.digest}"):
            folder = context.cache / "folders" / base.digest
            if not _is_whole(folder, base.digest):
                _make(name, base, folder)
            _say(3, f"publishing {context.store.uri_of(key)}")
            found = context.publish(folder, key)
    _say(_STAGES, f"{name} is at {context.store.uri_of(key)}")
    return FetchBaseOutputs(base=found)


def _published(store: Store, key: str, digest: str) -> Folder | None:
    try:
        data = store.read(f"{key}/{MANIFEST}")
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(
            f"{store.uri_of(key)}/{MANIFEST}: is not the one with digest {digest[:12]}; "
            "someone changed it: remove that folder and run again"
        )
    return Folder(key=key, digest=digest, bytes=Manifest.model_validate_json(data).bytes)


def _is_whole(folder: Path, digest: str) -> bool:
    """Whether the cache has all of the folder; a download that broke off has only a part."""
    try:
        verify_folder(folder, digest)
    except InputError:
        return False
    return True


def _make(name: str, base: BaseModelEntry, folder: Path) -> None:
    work = folder.with_name(f".partial-{base.digest}")
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _say(0, f"fetching {base.source}")
        source = fetch_model(base.source, work / "fetched")
        ready = work / "ready"
        if source.suffix == ".gguf":
            _say(1, f"converting {source.name} to {base.dtype} safetensors")
            gguf.convert(source, ready, base.dtype)
        else:
            copy_model(source, ready)
        _say(2, "checking the digest")
        digest = write_manifest(ready, "base")
        if digest != base.digest:
            raise InputError(
                f"catalogue: bases.{name}.digest: {base.source} has {digest}, the catalogue says "
                f"{base.digest}; correct source, or write the new digest if you trust the source"
            )
        ready.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock of this machine, so that two first uses fetch once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(done: int, what: str) -> None:
    progress("fetch-base", done, _STAGES, "stages", doing=what)
