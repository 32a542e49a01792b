"""The half of helm/workspace where models are trained, as rendered; tests/e2e has it installed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.charts.charts import refusal, render

SMALLEST = {"tenant": "acme", "store": "s3://bucket/acme"}
BOTH = SMALLEST | {"inference": {"enabled": True}}


def test_what_holds_data_stays_when_helm_uninstalls() -> None:
    """A namespace that goes takes the claims in it along."""
    made = render("workspace", BOTH | {"storage": {"claim": True}})
    kept = {
        name
        for name, each in made.items()
        if each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    assert {
        "Namespace/acme-training",
        "Namespace/acme-inference",
        "PersistentVolumeClaim/kuznia-storage",
        "PersistentVolumeClaim/mlflow",
    } <= kept


def test_dns_of_the_cluster_and_of_its_nodes_is_open() -> None:
    walls = [each for name, each in render("workspace", BOTH).items() if name.endswith("/dns")]
    assert len(walls) == 2
    for wall in walls:
        (rule,) = wall["spec"]["egress"]
        (expression,) = rule["to"][0]["podSelector"]["matchExpressions"]
        assert expression["values"] == ["kube-dns", "node-local-dns"]


def test_every_kind_of_step_may_have_an_identity() -> None:
    kinds = ("data", "model", "registry", "notify", "mlflow")
    made = render("workspace", SMALLEST | {"identities": {kind: {"is": kind} for kind in kinds}})
    for kind in kinds:
        account = made[f"ServiceAccount/kuznia-{kind}"]
        assert account["metadata"]["annotations"] == {"is": kind}


@pytest.mark.parametrize("given", ["16Gi", "16G", "16384Mi", "1.5Ti"])
def test_amounts_reach_the_steps_as_they_are_written(given: str) -> None:
    pods = {"heavy": {"limits": {"memory": given, "cpu": "3500m"}}}
    settings = render("workspace", SMALLEST | {"pods": pods})["ConfigMap/kuznia"]["data"]
    assert (settings["KUZNIA_POD_MEMORY"], settings["KUZNIA_POD_CPU"]) == (given, "3500m")


@pytest.mark.parametrize(
    "limits", [None, {"cpu": None}, {"memory": "16GB"}, {"memory": "17179869184"}, {"cpu": "four"}]
)
def test_a_pod_without_a_limit_that_steps_can_plan_for_is_refused(limits: Any) -> None:
    lines = refusal("workspace", SMALLEST | {"pods": {"heavy": {"limits": limits}}})
    assert any("/pods/heavy" in line for line in lines), lines


def test_another_image_archives_in_another_job() -> None:
    """A Job cannot be changed, and an upgrade that tries is refused whole."""

    def jobs(image: str) -> list[str]:
        values = SMALLEST | {"state": "retired", "images": {"platform": image}}
        return [name for name in render("workspace", values) if name.startswith("Job/archive-")]

    assert len({*jobs("here/platform:1"), *jobs("here/platform:1"), *jobs("here/platform:2")}) == 2
