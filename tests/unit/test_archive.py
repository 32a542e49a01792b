"""What is kept of a retired tenant's MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kuznia.registry import mlflow_client
from kuznia.store import open_store
from steps.archive import main


@pytest.fixture
def tenant(tmp_path: Path, mlflow_database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """acme with two versions, one of whose folders is gone; beta with one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    monkeypatch.setenv("KUZNIA_STORE", str(tmp_path / "store"))
    store = open_store(str(tmp_path / "store"))
    client = mlflow_client(mlflow_database)
    for name, version in (
        ("acme.bot", "aaaa00000001"),
        ("acme.bot", "aaaa00000002"),
        ("beta.x", "b"),
    ):
        if version != "aaaa00000002":
            client.create_registered_model(name)
        key = f"models/{name.replace('.', '/')}/{version}"
        client.create_model_version(name, store.uri_of(key), tags={"version": version})
        store.write(f"{key}/manifest.json", version.encode())
    client.set_registered_model_alias("acme.bot", "production", "1")
    return tmp_path / "store"


def test_everything_that_is_known_is_kept(tenant: Path) -> None:
    assert main(["--tenant", "acme"]) == 0
    assert main(["--tenant", "acme"]) == 0
    kept = json.loads((tenant / "archive" / "acme" / "registry.json").read_text("utf-8"))
    assert [(each["name"], each["number"], each["aliases"]) for each in kept] == [
        ("acme.bot", 2, []),
        ("acme.bot", 1, ["production"]),
    ]
    manifests = tenant / "archive" / "acme" / "manifests" / "bot"
    assert (manifests / "aaaa00000001.json").read_text("utf-8") == "aaaa00000001"
    assert not (tenant / "archive" / "beta").exists()


def test_a_lost_folder_is_named_after_the_others_are_kept(
    tenant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tenant / "models" / "acme" / "bot" / "aaaa00000002" / "manifest.json").unlink()
    assert main(["--tenant", "acme"]) == 2
    assert "aaaa00000002: is gone from the store; nothing is left of acme.bot" in (
        capsys.readouterr().err
    )
    kept = json.loads((tenant / "archive" / "acme" / "registry.json").read_text("utf-8"))
    assert len(kept) == 2
