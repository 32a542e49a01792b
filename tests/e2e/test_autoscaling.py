"""Replicas follow the load: a real KEDA asks a real Prometheus, which reads the models' queues."""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import versions
from tests.e2e.cluster import HERE, Tenant, get, kubectl, need_api, wait_for
from tests.e2e.platform import Platform, read_yaml
from tests.e2e.releases import NAME, Load, caller, lost, pods, publish, ready
from workflows.environments import ROOT

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]
IMAGE = os.environ.get("KUZNIA_E2E_PROMETHEUS_IMAGE", "prom/prometheus:v3.15.0")
SHIPPED = ROOT / "argocd" / "registry" / "platform.yaml"


def scraped() -> dict[str, Any]:
    """Prometheus' configuration of the PodMonitor that the shipped platform.yaml has."""
    stack = read_yaml(SHIPPED)["parts"]["kube-prometheus-stack"]["values"]["prometheus"]
    (monitor,) = stack["additionalPodMonitors"]
    assert monitor["namespaceSelector"] == {"any": True}
    (endpoint,) = monitor["podMetricsEndpoints"]
    pod = "__meta_kubernetes_pod"
    wanted = {
        f"{pod}_label_{re.sub('[^a-z]', '_', label)}": value
        for label, value in monitor["selector"]["matchLabels"].items()
    } | {f"{pod}_container_port_name": endpoint["port"]}
    keep = [
        {"action": "keep", "source_labels": [label], "regex": value}
        for label, value in wanted.items()
    ]
    name = [
        {"source_labels": [source], "target_label": target}
        for source, target in (("__meta_kubernetes_namespace", "namespace"), (f"{pod}_name", "pod"))
    ]
    job = {
        "job_name": monitor["name"],
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": keep + name,
    }
    return {"global": {"scrape_interval": "5s"}, "scrape_configs": [job]}


@pytest.fixture(scope="module")
def monitoring(mark: str) -> Iterator[str]:
    """The namespace of a Prometheus."""
    need_api("scaledobjects.keda.sh", "KEDA")
    namespace = f"{mark}-monitoring"
    manifest = string.Template((HERE / "manifests" / "prometheus.yaml").read_text("utf-8"))
    values = {"NAMESPACE": namespace, "IMAGE": IMAGE, "CONFIG": json.dumps(scraped())}
    text = manifest.substitute(values)
    kubectl("create", "namespace", namespace)
    try:
        kubectl("-n", namespace, "apply", "-f", "-", text=text)
        kubectl("-n", namespace, "rollout", "status", "deploy/prometheus", "--timeout=120s")
        yield namespace
    finally:
        kubectl("-n", namespace, "delete", "--wait=false", "-f", "-", text=text)
        kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def scaled(
    deployed: Platform, monitoring: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tenant, str]:
    """A tenant whose release may have two replicas, and the release's version."""
    tenant = next(iter(deployed.tenants.values()))
    platform = read_yaml(deployed.checkout / "argocd" / "registry" / "platform.yaml")
    shipped = read_yaml(SHIPPED)["serving"]["network"]["scrapers"]
    text = yaml.safe_dump(shipped).replace(": monitoring", f": {monitoring}")
    serving = platform["serving"]
    serving["network"]["scrapers"] = yaml.safe_load(text)
    serving |= {"prometheus": f"http://prometheus.{monitoring}:9090", "scale_down_seconds": 15}
    deployed.write({"platform.yaml": platform})
    (made,) = versions.make(tiny_base, tmp_path_factory.mktemp("scaled") / "versions", 30)
    lines = versions.store(tenant, made, deployed.key)
    # One answer at a time, so that a few callers are a queue.
    lines |= {"autoscaling": {"most": 2, "waiting": 1}, "arguments": ["--max-num-seqs=1"]}
    revision, _ = publish(deployed, tenant, lines)
    deployed.healthy(f"{tenant.name}-{NAME}", revision, 300)
    return tenant, lines["version"]


def test_a_queue_adds_a_replica_and_its_end_takes_it_away(
    deployed: Platform, scaled: tuple[Tenant, str]
) -> None:
    tenant, version = scaled
    space, application = f"{tenant.name}-inference", f"{tenant.name}-{NAME}"

    def replicas() -> int:
        return sum(ready(pod) is not None for pod in pods(tenant, version))

    def active() -> bool:
        conditions = get("scaledobject", NAME, space).get("status", {}).get("conditions") or []
        return ("Ready", "True") in {(each["type"], each["status"]) for each in conditions}

    wait_for("KEDA's word that it reads the queue", active, 120)
    assert replicas() == 1
    with caller("gateway") as one, caller("guard") as other:
        few = Load(one, tenant, rate=2)
        many = Load(other, tenant, rate=0, always=5)
        wait_for("a second replica", lambda: replicas() == 2, 300)
        # Argo CD leaves the number to KEDA.
        status = deployed.application(application)["status"]
        assert status["sync"]["status"] == "Synced"
        assert lost(many.stop()) == []
        wait_for("one replica again", lambda: len(pods(tenant, version)) == 1, 300)
        assert lost(few.stop()) == []
    status = deployed.application(application)["status"]
    assert (status["sync"]["status"], status["health"]["status"]) == ("Synced", "Healthy")
