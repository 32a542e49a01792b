"""Checkpoints of a training: which are whole, which to go on from, and their copy in the store.

A checkpoint is whole once it holds `.complete`, written last and after everything else is on the
disk; a trainer killed at any moment leaves one without.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from kuznia.manifest import write_manifest
from kuznia.store import Store

COMPLETE = ".complete"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was made."""
    found = _NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else -1


def mark_complete(checkpoint: Path) -> None:
    """Say that it is whole; its files are forced to the disk first, against a power cut."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    for path in (*checkpoint.rglob("*"), checkpoint):
        _force_to_disk(path)
    marker = checkpoint / COMPLETE
    marker.touch()
    _force_to_disk(marker)
    _force_to_disk(checkpoint)


def keep_last_complete(output: Path) -> Path | None:
    """Remove everything from a trainer's output folder but its last whole checkpoint, if any."""
    output.mkdir(parents=True, exist_ok=True)
    whole = [path for path in output.iterdir() if (path / COMPLETE).exists()]
    last = max(whole, key=step_of, default=None)
    for path in output.iterdir():
        if path.is_dir() and path != last:
            shutil.rmtree(path)
        elif path != last:
            path.unlink()
    return last


def upload(store: Store, prefix: str, checkpoint: Path) -> None:
    """Copy a whole checkpoint to `<prefix>/<step>` and delete the older ones there.

    Nothing happens where the trainer has removed the checkpoint meanwhile: a newer one follows.
    """
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix=".upload-") as folder:
        copy = Path(folder) / checkpoint.name
        try:
            # Links cost nothing and outlive the trainer's own clearing of old checkpoints.
            shutil.copytree(checkpoint, copy, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            return
        write_manifest(copy, "checkpoint")
        store.put_folder(copy, f"{prefix}/{step_of(checkpoint)}")
    for name in store.folders(prefix):
        if int(name) < step_of(checkpoint):
            store.remove_folder(f"{prefix}/{name}")


def fetch(store: Store, prefix: str, output: Path) -> None:
    """Bring the newest checkpoint of the store into a trainer's output folder, if there is one."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".fetch-") as folder:
        for step in sorted(map(int, store.folders(prefix)), reverse=True):
            copy = Path(folder) / f"checkpoint-{step}"
            try:
                found = store.get_folder(f"{prefix}/{step}", copy)
            except FileNotFoundError:
                continue
            if found != copy:
                shutil.copytree(found, copy)
            copy.rename(output / copy.name)
            return


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
