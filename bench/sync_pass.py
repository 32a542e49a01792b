"""One pass of the sync over one MLflow, against asking for each model's versions.

What a pass does every 30 s: list all models with their aliases, compare with what git has
answered. The other way, which MLflow's client suggests, searches the versions of each model.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.results import machine, save, spread
from kuznia.forges import Plain
from kuznia.progress import say
from kuznia.registry import VOLUME, Registry
from services.sync.passes import Sync
from services.sync.registries import Registries
from services.sync.repository import STATE, Repository

SIZES = (100, 1000, 10_000)
VERSIONS = 3
ROUNDS = 3
STORE = "file:///storage/store"
"""A volume that is not here: no card is read, which would measure the store."""
TENANT = f"""\
quota:
  training: {{cpu: 4, memory_gib: 16}}
  inference: {{cpu: 8, memory_gib: 32}}
storage: {{store: {STORE}}}
"""
AUTHOR = "bench <bench@localhost>"


def main() -> None:
    """Measure every size, print the table, and write bench/results/sync_pass.json."""
    rows = []
    for models in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_measure(Path(folder), models))
            say(str(rows[-1]))
    save(
        "sync_pass",
        "A pass of the sync over one MLflow",
        rows,
        machine("mlflow-skinny", "sqlalchemy"),
        f"Seconds, {ROUNDS} passes each (one by each model at 10,000); SQLite, {VERSIONS} versions "
        "a model with 13 tags, aliases on two of them, a local git remote.",
    )


def _measure(folder: Path, models: int) -> dict[str, Any]:
    database = f"sqlite:///{folder / 'mlflow.db'}"
    created = _fill(folder / "mlflow.db", models)
    remote = _remote(folder)
    repository = Repository(str(remote), "main", folder / "sync", "", AUTHOR)
    repository.fetch()
    pointers = {"staging": f"{VERSIONS}@{created}", "production": f"1@{created}"}
    state = json.dumps({f"m{number}": pointers for number in range(models)})
    answered = {"acme.json": state.encode()}
    repository.push({STATE: repository.commit(None, answered, "answered\n")})
    sync = Sync(repository, Registries(database), Plain(), lambda _: None)
    sync.one_pass()
    registry = Registry(database)
    still, moved, each = [], [], []
    for number in range(ROUNDS):
        still.append(_seconds(sync.one_pass))
        registry.client.set_registered_model_alias(f"acme.m{number}", "staging", "2")
        moved.append(_seconds(sync.one_pass))
        if models < SIZES[-1] or not each:
            each.append(_seconds(registry.versions))
    said = subprocess.run(
        ["git", "rev-list", "--count", "main"], cwd=remote, capture_output=True, check=True
    )
    assert int(said.stdout) == 1 + ROUNDS, "every move is a commit"
    return {
        "models": models,
        "pass, nothing moved": spread(still),
        "pass, one alias moved": spread(moved),
        "versions of each model": spread(each),
    }


def _seconds(what: Any) -> float:
    start = time.monotonic()
    what()
    return time.monotonic() - start


def _fill(database: Path, models: int) -> int:
    """One model through MLflow, the others as copies of its rows; when they were created."""
    client = Registry(f"sqlite:///{database}").client
    client.create_registered_model("acme.m0", tags={"tenant": "acme", "owner": "bench"})
    for number in range(1, VERSIONS + 1):
        digest = f"{number}" * 64
        tags = {f"score.{name}": "0.5" for name in range(8)}
        tags |= {"version": digest[:12], "digest.sha256": digest, "mode": "merged"}
        tags |= {"base_model": "tiny", "eval.verdict": "promote", "verify.passed": "true"}
        source = f"{VOLUME}/storage/store/models/acme/m0/{digest[:12]}"
        client.create_model_version("acme.m0", source, tags=tags)
    client.set_registered_model_alias("acme.m0", "staging", str(VERSIONS))
    client.set_registered_model_alias("acme.m0", "production", "1")
    with sqlite3.connect(database) as db:
        for table in (
            "registered_models",
            "registered_model_tags",
            "registered_model_aliases",
            "model_versions",
            "model_version_tags",
        ):
            columns = [row[1] for row in db.execute(f"pragma table_info({table})")]
            changed = {
                "name": "'acme.m' || n.i",
                "source": "replace(x.source, '/m0/', '/m' || n.i || '/')",
            }
            values = ", ".join(changed.get(column, f"x.{column}") for column in columns)
            db.execute(
                f"with recursive n(i) as (select 1 union all select i + 1 from n "
                f"where i < {models - 1}) insert into {table} ({', '.join(columns)}) "
                f"select {values} from {table} x, n where x.name = 'acme.m0'"
            )
    db.close()
    return int(client.get_registered_model("acme.m0").creation_timestamp)


def _remote(folder: Path) -> Path:
    remote = folder / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(remote)], check=True)
    repository = Repository(str(remote), "main", folder / "first", "", AUTHOR)
    files = {"argocd/registry/acme/tenant.yaml": TENANT.encode()}
    repository.push({"main": repository.commit(None, files, "A registry\n")})
    return remote


if __name__ == "__main__":
    main()
