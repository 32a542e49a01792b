"""Shared by all tests: state in a temporary folder, real environments, a tiny real model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

from kuznia.manifest import MANIFEST, write_manifest
from workflows.environments import python_of, variables_of

FIXTURES = Path(__file__).parent / "fixtures"


def said_by(python: Path, script: str, *arguments: Path, text: str = "") -> dict[str, Any]:
    """What a script of fixtures prints as JSON in the train environment, given `text` to read."""
    done = subprocess.run(
        [python, FIXTURES / script, *arguments],
        input=text,
        env=os.environ | variables_of("train"),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# Two tests at once share the cores: threads of theirs that spin while they wait hold both up.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with real trainers and servers first: two workers then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test has its own home, and none sees the settings of whoever runs it."""
    for name in ("KUZNIA_STORE", "MLFLOW_TRACKING_URI", "KUZNIA_CATALOGUE", "KUZNIA_WORKDIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("KUZNIA_SIGNING_KEY", "KUZNIA_TRUSTED_KEYS", "KUZNIA_HTTP_TOKEN", "KUZNIA_KEYS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("KUZNIA_FORGE", "KUZNIA_FORGE_URL", "KUZNIA_FORGE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUZNIA_HOME", str(tmp_path / "home"))
    yield tmp_path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all test processes of this session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


@pytest.fixture(scope="session")
def train_python() -> Path:
    """Python of the train environment, installed on first use."""
    return python_of("train")


@pytest.fixture(scope="session")
def tiny_base(shared_folder: Path, train_python: Path) -> Path:
    """Folder of a tiny Llama in SmolLM2's chat format, with its manifest; read only."""
    folder = shared_folder / "tiny-base"
    with FileLock(shared_folder / "tiny-base.lock"):
        if not (folder / MANIFEST).exists():
            subprocess.run(
                [train_python, FIXTURES / "tiny_model.py", folder],
                check=True,
                env=os.environ | variables_of("train"),
            )
            write_manifest(folder, "base")
    return folder


@pytest.fixture(scope="session")
def trained_weights(shared_folder: Path, train_python: Path, tiny_base: Path) -> Path:
    """Folder of adapters and full weights for the tiny base; see fixtures/make_weights.py."""
    folder = shared_folder / "trained-weights"
    with FileLock(shared_folder / "trained-weights.lock"):
        if not (folder / "full").exists():
            subprocess.run(
                [train_python, FIXTURES / "make_weights.py", tiny_base, folder],
                check=True,
                capture_output=True,
                env=os.environ | variables_of("train"),
            )
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an empty bucket, reachable by what the environment says."""
    return s3_bucket_at(s3_server, monkeypatch)


def s3_bucket_at(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, for fixtures that outlive a test."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    httpx.put(f"{s3_server}/{bucket}").raise_for_status()
    return f"s3://{bucket}"


@pytest.fixture
def gs_bucket() -> str:
    """URI of an empty bucket on the Cloud Storage emulator that the environment names."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        pytest.skip(
            "set STORAGE_EMULATOR_HOST to a Cloud Storage emulator that knows the XML API's PUT "
            "(fake-gcs-server 1.56 does not)"
        )
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    made = httpx.post(f"{emulator}/storage/v1/b?project=test", json={"name": bucket})
    made.raise_for_status()
    return f"gs://{bucket}"


@pytest.fixture
def mlflow_database(shared_folder: Path, tmp_path: Path) -> str:
    """Address of an empty MLflow database."""
    return make_mlflow_database(shared_folder, tmp_path)


def make_mlflow_database(shared_folder: Path, folder: Path) -> str:
    """An empty MLflow database in `folder`; making one takes seconds, copying one does not."""
    made = shared_folder / "mlflow.db"
    with FileLock(shared_folder / "mlflow.lock"):
        if not made.exists():
            from kuznia.registry import mlflow_client

            partial = made.with_suffix(".partial")
            mlflow_client(f"sqlite:///{partial}").search_registered_models()
            partial.rename(made)
    shutil.copy(made, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"
