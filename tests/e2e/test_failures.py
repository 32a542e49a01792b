"""What happens to a run that cannot succeed, on the real controller."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import Tenant, controller_metrics, kubectl, nodes, wait_for, why
from tests.e2e.conftest import MakeTenant

pytestmark = pytest.mark.timeout(600)
NO_MLFLOW = {"mlflow": {"enabled": False, "trackingUri": "http://mlflow.nowhere:5000"}}


@pytest.fixture(scope="module")
def acme(tenants: MakeTenant) -> Tenant:
    return tenants("acme", retry={"pause": "2s", "longest": "4s"}, **NO_MLFLOW)


def config(tenant: Tenant, **changes: Any) -> str:
    spec = {
        "tenant": tenant.name,
        "model": "codes",
        "base": "smollm2-135m-instruct",
        "data": {"train": f"{tenant.store}/rows.jsonl", "format": "alpaca"},
        "card": {"purpose": "Shows how a run fails.", "owner": "tests", "risk": "minimal"},
    }
    return yaml.safe_dump(spec | changes)


def summary(tenant: Tenant, workflow: dict[str, Any]) -> dict[str, Any]:
    """What the exit handler said."""
    (node,) = nodes(workflow, "notify")
    (text,) = (p["value"] for p in node["outputs"]["parameters"] if p["name"] == "outputs")
    found: dict[str, Any] = json.loads(text)
    return found


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_a_persons_mistake_fails_in_the_first_step_once_and_soon(acme: Tenant) -> None:
    # Kubernetes would put the Secret's value there, and make one $ of two.
    base = "$(AWS_SECRET_ACCESS_KEY)$$5"
    acme.submit("mistake", config(acme, base=base, hardware="h100-80gb"))
    workflow = acme.ended("mistake", 180)
    (plan,) = nodes(workflow, "plan")
    assert workflow["status"]["phase"] == "Failed", why(acme, workflow)
    assert plan["outputs"]["exitCode"] == "2"
    assert f"config: base: {base!r} is not in the catalogue" in plan["message"]
    assert "config: hardware: 'h100-80gb' is not open to this tenant" in plan["message"]
    ran = {
        node["templateName"]
        for node in workflow["status"]["nodes"].values()
        if "hostNodeName" in node
    }
    assert ran == {"plan", "notify"}
    (pod,) = acme.pods("mistake", "plan")
    (main,) = (c for c in pod["status"]["containerStatuses"] if c["name"] == "main")
    ended = main["state"]["terminated"]["finishedAt"]
    assert seconds_between(pod["status"]["startTime"], ended) < 30
    told = summary(acme, workflow)
    assert (told["result"], told["step"], told["exit_code"]) == ("failure", "plan", 2)
    assert base in told["reason"]
    labels = f'{{model="codes",result="failure",tenant="{acme.name}"}}'
    page = controller_metrics()
    assert f"kuznia_runs_total{labels} 1\n" in page
    assert f"kuznia_run_seconds_count{labels} 1\n" in page


def test_a_dependency_that_fails_is_tried_again_and_then_reported(tenants: MakeTenant) -> None:
    retry = {"pause": "4s", "longest": "8s"}
    globex = tenants("globex", store="s3://no-such-bucket", retry=retry, **NO_MLFLOW)
    globex.submit("unanswered", config(globex))
    workflow = globex.ended("unanswered", 300)
    assert workflow["status"]["phase"] in ("Failed", "Error"), why(globex, workflow)
    attempts = nodes(workflow, "plan")
    assert [node["outputs"]["exitCode"] for node in attempts] == ["3"] * 4
    pauses = [
        seconds_between(before["finishedAt"], after["startedAt"])
        for before, after in pairwise(sorted(attempts, key=lambda node: str(node["startedAt"])))
    ]
    # Times are whole seconds.
    assert all(pause > wanted - 1 for pause, wanted in zip(pauses, (4, 8, 8), strict=True)), pauses
    told = summary(globex, workflow)
    assert (told["result"], told["step"], told["exit_code"]) == ("failure", "plan", 3)


def test_a_schedule_starts_runs_by_the_installed_template(acme: Tenant, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(config(acme, model="timed", hardware="h100-80gb"))
    made = acme.kuznia("render", "cron", "train.yaml", "--schedule", "* * * * *", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    kubectl("apply", "-f", "-", text=made.stdout)

    def started() -> str:
        return kubectl(
            *("get", "wf", "-n", acme.namespace, "-o", "name"),
            *("-l", "workflows.argoproj.io/cron-workflow=timed-retrain"),
        )

    name = wait_for("the next minute", started, 150).splitlines()[0].rpartition("/")[2]
    kubectl("delete", "cronworkflow", "timed-retrain", "-n", acme.namespace, "--cascade=orphan")
    workflow = acme.ended(name, 180)
    assert workflow["metadata"]["labels"]["kuznia.tenant"] == acme.name
    told = summary(acme, workflow)
    assert (told["step"], told["exit_code"], told["run"]) == ("plan", 2, name)
