"""The demo's run spec through every step in real pods: a real small model, a real trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from kuznia.store import open_store
from tests.e2e.conftest import MakeTenant, put_base, variables
from workflows.environments import ROOT

pytestmark = pytest.mark.timeout(1500)


def test_the_demo_on_the_cluster(tenants: MakeTenant, real_base: Path, tmp_path: Path) -> None:
    tenant = tenants("demo")
    put_base(tenant, "smollm2-135m-instruct", real_base)
    shutil.copytree(ROOT / "examples" / "demo", tmp_path / "demo")
    path = tmp_path / "demo" / "train.yaml"
    spec = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump(spec | {"tenant": tenant.name}))

    done = tenant.kuznia("run", "train.yaml", "--on", "cluster", "--json", cwd=path.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    made = report["outputs"]
    assert made["verify"]["passed"], made["verify"]["reasons"]
    assert made["evaluate"]["verdict"] == "promote"
    assert made["evaluate"]["metrics"]["exact_match"]["candidate"] >= 0.8
    assert made["register"]["aliases"] == ["staging"]
    with variables(tenant):
        store = open_store(tenant.store)
        card = yaml.safe_load(store.read(made["model-card"]["card"]["key"]))
        assert card["identity"]["version"]["value"] == made["export"]["version"]
        assert store.exists(f"{made['export']['folder']['key']}/manifest.json")
