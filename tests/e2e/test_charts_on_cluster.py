"""The examples of the charts, judged by the real API server and its restricted profile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.charts.charts import Objects, examples, folder, load, render
from tests.e2e.cluster import kubectl


@pytest.fixture(scope="module")
def tenant(mark: str) -> Iterator[str]:
    """A tenant whose namespaces are there, confined as the platform confines them."""
    name = f"{mark}-charts"
    places = [f"{name}-{what}" for what in ("training", "inference")]
    for place in places:
        kubectl("create", "namespace", place)
        kubectl("label", "namespace", place, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    for place in places:
        kubectl("delete", "namespace", place, "--wait=false")


@pytest.fixture(scope="module")
def kinds() -> set[str]:
    """Kinds that this cluster has; those of KEDA and External Secrets are often absent."""
    lines = kubectl("api-resources", "--no-headers").splitlines()
    return {line.split()[-1] for line in lines}


def made(chart: str, name: str, tenant: str) -> Objects:
    values = load(folder(chart) / "ci" / name)
    if chart != "gateway":
        values["tenant"] = tenant
    if chart == "workspace":
        values["namespace"] = {"create": False}
    return render(chart, values)


def dry_run(objects: list[dict[str, Any]]) -> None:
    whole = {"apiVersion": "v1", "kind": "List", "items": objects}
    kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(whole))


@pytest.mark.parametrize(
    ("chart", "name"),
    [(chart, name) for chart in ("vllm", "workspace", "gateway") for name in examples(chart)],
)
def test_the_api_server_takes_every_example(
    chart: str, name: str, tenant: str, kinds: set[str]
) -> None:
    objects = made(chart, name, tenant)
    known = [each for each in objects.values() if each["kind"] in kinds]
    assert {each["kind"] for each in objects.values()} - kinds <= {
        *("ScaledObject", "ExternalSecret", "LocalQueue", "HTTPRoute"),
    }
    dry_run(known)


@pytest.mark.parametrize("name", examples("vllm"))
def test_a_release_fits_the_restricted_profile(name: str, tenant: str) -> None:
    place = f"{tenant}-inference"
    objects = made("vllm", name, tenant)
    (deployment,) = (each for each in objects.values() if each["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    account = template["spec"]["serviceAccountName"]
    kubectl("-n", place, "create", "serviceaccount", account, check=False)
    about = template["metadata"] | {"name": "release", "namespace": place}
    dry_run([{"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": template["spec"]}])
