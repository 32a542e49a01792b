"""What happens to a run that cannot succeed, on the real controller."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.cluster import Tenant, forwarded, nodes, why
from tests.e2e.conftest import MakeTenant

pytestmark = pytest.mark.timeout(600)
NO_MLFLOW = {"mlflow": {"enabled": False, "trackingUri": "http://mlflow.nowhere:5000"}}


@pytest.fixture(scope="module")
def acme(tenants: MakeTenant) -> Tenant:
    return tenants("acme", retry={"otherNode": False, "pause": "2s", "longest": "4s"}, **NO_MLFLOW)


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


def test_a_persons_mistake_fails_in_the_first_step_once_and_soon(acme: Tenant) -> None:
    acme.submit("mistake", config(acme, base="smollm3", hardware="h100-80gb"))
    workflow = acme.ended("mistake", 180)
    (plan,) = nodes(workflow, "plan")
    assert workflow["status"]["phase"] == "Failed", why(acme, workflow)
    assert plan["outputs"]["exitCode"] == "2"
    assert "config: base: 'smollm3' is not in the catalogue" in plan["message"]
    assert "config: hardware: 'h100-80gb' is not open to this tenant" in plan["message"]
    ran = {
        node["templateName"]
        for node in workflow["status"]["nodes"].values()
        if "hostNodeName" in node
    }
    assert ran == {"plan", "notify"}
    (pod,) = acme.pods("mistake", "plan")
    (main,) = (c for c in pod["status"]["containerStatuses"] if c["name"] == "main")
    ended = main["state"]["terminated"]
    seconds = [datetime.fromisoformat(ended[key]) for key in ("startedAt", "finishedAt")]
    assert (seconds[1] - seconds[0]).total_seconds() < 30
    told = summary(acme, workflow)
    assert (told["result"], told["step"], told["exit_code"]) == ("failure", "plan", 2)
    assert "smollm3" in told["reason"]
    labels = f'{{model="codes",result="failure",tenant="{acme.name}"}}'
    with forwarded("argo", "deployment/workflow-controller", 9090) as address:
        secure = address.replace("http:", "https:")
        page = httpx.get(f"{secure}/metrics", verify=False).text
    assert f"kuznia_runs_total{labels} 1\n" in page
    assert f"kuznia_run_seconds_count{labels} 1\n" in page


def test_a_dependency_that_fails_is_tried_again_and_then_reported(tenants: MakeTenant) -> None:
    retry = {"otherNode": False, "pause": "1s", "longest": "2s"}
    globex = tenants("globex", store="s3://no-such-bucket", retry=retry, **NO_MLFLOW)
    globex.submit("unanswered", config(globex))
    workflow = globex.ended("unanswered", 300)
    assert workflow["status"]["phase"] in ("Failed", "Error"), why(globex, workflow)
    attempts = nodes(workflow, "plan")
    assert [node["outputs"]["exitCode"] for node in attempts] == ["3"] * 4
    told = summary(globex, workflow)
    assert (told["result"], told["step"], told["exit_code"]) == ("failure", "plan", 3)
