"""What the sync is told, all by the environment.

| variable                   | meaning                               | default                |
|----------------------------|---------------------------------------|------------------------|
| KUZNIA_SYNC_REPOSITORY     | the repository with argocd/registry   | required               |
| KUZNIA_SYNC_BRANCH         | its branch that is deployed           | main                   |
| KUZNIA_SYNC_MLFLOW         | MLflow's address; one for all tenants | http://mlflow.         |
|                            | where {tenant} is not in it           | {tenant}-training:5000 |
| KUZNIA_SYNC_INTERVAL       | seconds from pass to pass             | 30                     |
| KUZNIA_SYNC_PORT           | of /metrics, /healthz and /webhook    | 8080                   |
| KUZNIA_SYNC_WEBHOOK_SECRET | MLflow's webhooks are signed with it  | none: takes none       |
| KUZNIA_SYNC_WEBHOOK_URL    | /webhook as MLflow reaches it, which  | none: tells nobody     |
|                            | each MLflow is told                   |                        |
| KUZNIA_SYNC_NAME           | who commits                           | kuznia-sync            |
| KUZNIA_SYNC_MAIL           | the mail address of who commits       | kuznia-sync@localhost  |
| KUZNIA_SYNC_FOLDER         | its copy of the repository, which may | <KUZNIA_HOME>/sync     |
|                            | be deleted                            |                        |

The forge and its token: KUZNIA_FORGE, KUZNIA_FORGE_URL, KUZNIA_FORGE_TOKEN. The stores with the
cards: what the store's client reads (AWS_*, GOOGLE_*).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kuznia import settings
from kuznia.errors import InputError

START = "KUZNIA_SYNC_"


@dataclass(frozen=True)
class Settings:
    repository: str
    folder: Path
    branch: str = "main"
    mlflow: str = "http://mlflow.{tenant}-training:5000"
    interval: float = 30
    port: int = 8080
    webhook_secret: str = ""
    webhook_url: str = ""
    author: str = "kuznia-sync <kuznia-sync@localhost>"


def from_environment(given: Mapping[str, str] = os.environ) -> Settings:
    """The settings; InputError with everything that is wrong."""
    problems = []
    if not (repository := given.get(f"{START}REPOSITORY", "")):
        problems.append(f"{START}REPOSITORY: is not set; set the registry's git address")
    numbers = {}
    for name, default, least in (("INTERVAL", "30", 1), ("PORT", "8080", 0)):
        text = given.get(START + name) or default
        if text.isdigit() and int(text) >= least:
            numbers[name] = int(text)
        else:
            problems.append(f"{START}{name}: {text!r} is no whole number from {least}; set one")
    if given.get(f"{START}WEBHOOK_URL") and not given.get(f"{START}WEBHOOK_SECRET"):
        problems.append(f"{START}WEBHOOK_SECRET: is not set, and webhooks need it; set both")
    if problems:
        raise InputError(problems)
    name = given.get(f"{START}NAME") or "kuznia-sync"
    return Settings(
        repository=repository,
        folder=Path(given.get(f"{START}FOLDER") or settings.home() / "sync"),
        branch=given.get(f"{START}BRANCH") or Settings.branch,
        mlflow=given.get(f"{START}MLFLOW") or Settings.mlflow,
        interval=numbers["INTERVAL"],
        port=numbers["PORT"],
        webhook_secret=given.get(f"{START}WEBHOOK_SECRET", ""),
        webhook_url=given.get(f"{START}WEBHOOK_URL", ""),
        author=f"{name} <{given.get(f'{START}MAIL') or f'{name}@localhost'}>",
    )
