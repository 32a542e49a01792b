"""Where this process finds the store, MLflow and its caches; all from the environment.

| variable            | meaning                                   | default                       |
|---------------------|-------------------------------------------|-------------------------------|
| KUZNIA_HOME         | state of the local engine                 | .kuznia in the current folder |
| KUZNIA_CACHE        | environments, base models; safe to delete | ~/.cache/kuznia               |
| KUZNIA_STORE        | URI of the store                          | <home>/store                  |
| MLFLOW_TRACKING_URI | MLflow server or database                 | sqlite:///<home>/mlflow.db    |
| KUZNIA_CATALOGUE    | the catalogue file                        | the one that ships            |
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Folder of the local engine's state, absolute."""
    return Path(os.environ.get("KUZNIA_HOME", ".kuznia")).resolve()


def cache() -> Path:
    """Folder of what can be made again, absolute."""
    given = os.environ.get("KUZNIA_CACHE")
    return Path(given).resolve() if given else Path.home() / ".cache" / "kuznia"


def store_uri() -> str:
    """URI of the store."""
    return os.environ.get("KUZNIA_STORE") or (home() / "store").as_uri()


def tracking_uri() -> str:
    """Where MLflow keeps runs and the registry of models."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
