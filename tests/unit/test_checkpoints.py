"""Copies of checkpoints in a store: in a bucket, and in a folder such as a cluster's volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuznia.store import open_store
from steps.checkpoints import COMPLETE, fetch, keep_last_complete, mark_complete, upload
from steps.training import Listener


def checkpoint(output: Path, step: int) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(f"after {step}")
    mark_complete(folder)
    return folder


@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_the_newest_comes_back(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    uri = request.getfixturevalue("s3_bucket") if kind == "bucket" else str(tmp_path / "store")
    store = open_store(uri)
    for step in (10, 20, 30):
        upload(store, "runs/x/checkpoints", checkpoint(tmp_path / "before", step))
    output = tmp_path / "after"
    output.mkdir()
    fetch(store, "runs/x/checkpoints", output)
    found = keep_last_complete(output)
    assert found == output / "checkpoint-30"
    assert (found / "state.json").read_text() == "after 30"
    assert (found / COMPLETE).exists()
    assert [key for key, _ in store.keys("runs/x/checkpoints") if "/30/" not in key] == []


@pytest.mark.parametrize("pod", [True, False])
def test_a_folder_gets_them_only_from_a_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pod: bool
) -> None:
    if pod:
        monkeypatch.setenv("KUZNIA_POD_CPU", "2")
    store = open_store(str(tmp_path / "store"))
    listener = Listener(1, lambda _: None, store, "runs/x/checkpoints")
    made = checkpoint(tmp_path / "output", 5)
    listener.hear({"event": "save", "path": str(made)})
    listener.close()
    assert bool(list(store.keys("runs/x/checkpoints"))) == pod
