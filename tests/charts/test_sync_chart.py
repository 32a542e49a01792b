"""The chart helm/sync: nothing by default, what each value does, what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.sync.settings import from_environment
from tests.charts.charts import check, example, examples, folder, lint, load, render, text

SMALLEST = {"repository": "https://git.test/ai/models.git"}


def environment(values: dict[str, Any]) -> dict[str, str]:
    pod = render("sync", values)["Deployment/kuznia-sync"]["spec"]["template"]["spec"]
    return {each["name"]: each["value"] for each in pod["containers"][0]["env"]}


def test_nothing_by_default() -> None:
    assert render("sync", {}) == {}


@pytest.mark.parametrize("name", examples("sync"))
def test_examples_pass_every_check(name: str) -> None:
    assert lint("sync", name) == ""
    made = render("sync", load(folder("sync") / "ci" / name))
    check(made)
    assert set(made) == {
        "Deployment/kuznia-sync",
        "NetworkPolicy/kuznia-sync",
        "Service/kuznia-sync",
        "ServiceAccount/kuznia-sync",
    }


def test_the_environment_is_one_that_the_sync_takes() -> None:
    given = environment(example("sync", "gitea"))
    settings = from_environment({**given, "KUZNIA_SYNC_WEBHOOK_SECRET": "secret"})
    assert settings.repository == "http://gitea.forge:3000/ai/models.git"
    assert settings.mlflow == "http://mlflow.{tenant}-training:5000"
    assert settings.webhook_url == "http://kuznia-sync.default:8080/webhook"
    assert (given["KUZNIA_FORGE"], given["AWS_REGION"]) == ("gitea", "us-east-1")
    assert from_environment(environment(example("sync", "plain"))).webhook_url == ""


def test_the_secret_is_named_and_never_made() -> None:
    made = render("sync", SMALLEST)
    container = made["Deployment/kuznia-sync"]["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "kuznia-sync"}}]
    assert "kind: Secret" not in text("sync", SMALLEST)


def test_only_mlflow_and_scrapers_reach_it() -> None:
    made = render("sync", example("sync", "gitea"))
    (rule,) = made["NetworkPolicy/kuznia-sync"]["spec"]["ingress"]
    mlflow, monitoring = rule["from"]
    assert mlflow["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}
    assert "monitoring" in json.dumps(monitoring)


def test_it_goes_to_dns_to_mlflow_and_where_it_is_told() -> None:
    given = example("sync", "gitea")
    rules = render("sync", given)["NetworkPolicy/kuznia-sync"]["spec"]["egress"]
    dns, mlflow, *told = rules
    assert {each["port"] for each in dns["ports"]} == {53}
    assert mlflow["to"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}
    assert [each["port"] for each in mlflow["ports"]] == [5000]
    assert told == given["network"]["egress"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (
            {"forge": {"kind": "gitea"}},
            "sync: forge.url is not set; set the repository's page on gitea",
        ),
        (
            {"forge": {"kind": "github", "url": "https://git.test/a/b"}, "secret": ""},
            "sync: secret is not set; name the Secret with KUZNIA_FORGE_TOKEN for github",
        ),
        ({"secret": ""}, "or set webhooks: false"),
        ({"repository": "https://ada:word@git.test/ai/models.git"}, "repository"),
        ({"replica": 2}, "replica"),
    ],
)
def test_refusals_name_the_fault(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(AssertionError) as caught:
        text("sync", SMALLEST | values)
    assert fault in str(caught.value)
