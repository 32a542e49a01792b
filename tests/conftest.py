"""Shared by all tests: state in a temporary folder, real environments, a tiny real model."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from kuznia.manifest import MANIFEST, write_manifest
from workflows.environments import python_of, variables_of

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test has its own home, and none sees the settings of whoever runs it."""
    for name in ("KUZNIA_STORE", "MLFLOW_TRACKING_URI", "KUZNIA_CATALOGUE", "KUZNIA_WORKDIR"):
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
