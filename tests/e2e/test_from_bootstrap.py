"""From an empty cluster and one applied file to a fine-tuned model that answers.

The demo's run spec goes through every step in real pods: a real small model, a real trainer.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest
import yaml

from kuznia.store import open_store
from tests.e2e.cluster import controller_metrics, forwarded
from tests.e2e.conftest import put_base, variables
from tests.e2e.platform import Platform
from workflows.environments import ROOT

pytestmark = pytest.mark.timeout(1800)


def test_the_demo_from_bootstrap_to_an_answer(
    deployed: Platform, real_base: Path, tmp_path: Path
) -> None:
    tenant = next(iter(deployed.tenants.values()))
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
    version, model = made["export"]["version"], spec["model"]
    page = controller_metrics()
    labels = f'{{model="{model}",tenant="{tenant.name}"}}'
    assert f"kuznia_queue_seconds_count{labels} 1\n" in page
    (speed,) = re.findall(rf"kuznia_train_samples_per_second{re.escape(labels)} (.*)", page)
    assert float(speed) > 0
    with variables(tenant):
        store = open_store(tenant.store)
        card = yaml.safe_load(store.read(made["model-card"]["card"]["key"]))
        assert card["identity"]["version"]["value"] == version
        assert store.exists(f"{made['export']['folder']['key']}/manifest.json.sig")

    with forwarded(tenant.namespace, "service/mlflow", 5000) as mlflow:
        tenant.variables["MLFLOW_TRACKING_URI"] = mlflow
        for source, stage in ((f"{tenant.name}/{model}@{version}", "staging"),):
            done = tenant.kuznia(
                *("promote", source, "--to", stage, "--no-commit"), cwd=deployed.checkout
            )
            assert done.returncode == 0, done.stdout + done.stderr
    place = deployed.checkout / "argocd" / "registry" / tenant.name / model / "staging.yaml"
    text = place.read_text("utf-8")
    place.write_text(f"{text}cpu: 1\nmemory_gib: 4\ndisk_gib: 2\ncontext_length: 1024\n")
    revision, _ = deployed.push(f"{model} to staging")
    deployed.healthy(f"{tenant.name}-{model}-staging", revision, 600)

    smoke = made["verify"]["smoke"][0]
    with forwarded(f"{tenant.name}-inference", f"service/{model}-staging", 8000) as address:
        answer = httpx.post(
            f"{address}/v1/chat/completions",
            json={
                "model": f"{tenant.name}/{model}",
                "messages": [{"role": "user", "content": smoke["prompt"]}],
                "max_tokens": 64,
                "temperature": 0,
            },
            timeout=120,
            trust_env=False,
        ).json()
    assert answer["choices"][0]["message"]["content"].strip() == smoke["answer"]
    deployed.write({f"{tenant.name}/{model}/staging.yaml": None})
    deployed.push(f"{model} is not served any more")
