"""Pods that use the hardware wait in Kueue's queue, and no others.

The steps do nothing (tests/e2e/noop), so no GPU is needed: the queue counts cores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import Tenant, get, image_of, kubectl, need_api, nodes, wait_for, why
from tests.e2e.conftest import MakeTenant

pytestmark = pytest.mark.timeout(600)
NOOP = image_of("noop")
KUEUE = "kueue.x-k8s.io/v1beta2"
SIZE = {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "10Mi"}


def kueue_object(kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": KUEUE, "kind": kind, "metadata": {"name": name}} | rest


@pytest.fixture(scope="module")
def cluster_queue(mark: str) -> Iterator[str]:
    """A ClusterQueue with room for one training pod."""
    need_api("clusterqueues.kueue.x-k8s.io", "Kueue")
    room = {"cpu": "150m", "memory": "10Gi", "ephemeral-storage": "100Gi"}
    flavor = {
        "name": mark,
        "resources": [{"name": name, "nominalQuota": amount} for name, amount in room.items()],
    }
    spec = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": list(room), "flavors": [flavor]}],
    }
    objects = [
        kueue_object("ResourceFlavor", mark),
        kueue_object("ClusterQueue", mark, spec=spec),
        kueue_object("WorkloadPriorityClass", mark, value=1000),
    ]
    text = "---\n".join(json.dumps(each) + "\n" for each in objects)
    kubectl("apply", "-f", "-", text=text)
    yield mark
    kubectl("delete", "--wait=false", "-f", "-", text=text)


@pytest.fixture(scope="module")
def acme(tenants: MakeTenant, cluster_queue: str) -> Tenant:
    sizes = {"requests": SIZE, "limits": {"cpu": "1", "memory": "256Mi"}}
    tenant = tenants(
        "acme",
        images=dict.fromkeys(("platform", "train", "serve"), NOOP),
        pods={"heavy": sizes, "light": sizes},
        hardware={"slots": 9, "queue": "training", "clusterQueue": cluster_queue},
        retry={"pause": "1s", "longest": "2s"},
        mlflow={"enabled": False, "trackingUri": "http://nowhere:5000"},
        settings={"NOOP_QUEUE": "training", "NOOP_SECONDS": "40"},
    )
    # As `kuznia render` labels the namespaces that Kueue looks at (argocd/registry/platform.yaml).
    kubectl("label", "namespace", tenant.namespace, "kuznia.workspace=training")
    return tenant


def train_pods(tenant: Tenant, run: str) -> list[dict[str, Any]]:
    return [p for p in tenant.pods(run, "train") if "deletionTimestamp" not in p["metadata"]]


def running(tenant: Tenant, run: str) -> bool:
    return any(pod["status"]["phase"] == "Running" for pod in train_pods(tenant, run))


def gated(tenant: Tenant, run: str) -> bool:
    return any(pod["spec"].get("schedulingGates") for pod in train_pods(tenant, run))


def test_a_second_training_waits_for_the_first(acme: Tenant) -> None:
    acme.submit("first", "model: noop")
    wait_for("the first training", lambda: running(acme, "first"), 120)
    acme.submit("second", "model: noop")
    wait_for("the second in the queue", lambda: gated(acme, "second"), 120)
    assert not running(acme, "second")
    for run in ("first", "second"):
        ended = acme.ended(run, 240)
        assert ended["status"]["phase"] == "Succeeded", why(acme, ended)
        for step in ("plan", "data-check", "register"):
            (pod,) = acme.pods(run, step)
            assert "kueue.x-k8s.io/managed" not in pod["metadata"]["labels"], step


def urgent_pod(tenant: Tenant, priority: str) -> dict[str, Any]:
    """A pod of another make, in the same queue, that goes first; it runs until it is deleted."""
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "main",
        "image": NOOP,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "3600"],
        "resources": {"requests": SIZE},
        "securityContext": confined,
    }
    queue = {"queue-name": "training", "priority-class": priority}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "urgent",
            "namespace": tenant.namespace,
            "labels": {f"kueue.x-k8s.io/{key}": value for key, value in queue.items()},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def test_a_preempted_training_waits_and_is_tried_again(acme: Tenant, cluster_queue: str) -> None:
    acme.submit("preempted", "model: noop")
    wait_for("the training", lambda: running(acme, "preempted"), 120)
    # Argo makes a pod that is gone within 10 s of its start again, without counting an attempt.
    time.sleep(12)
    kubectl("create", "-f", "-", text=json.dumps(urgent_pod(acme, cluster_queue)))

    def urgent_runs() -> bool:
        return bool(get("pod", "urgent", acme.namespace)["status"]["phase"] == "Running")

    wait_for("the urgent pod in the training's place", urgent_runs, 180)
    wait_for("the training back in the queue", lambda: gated(acme, "preempted"), 120)
    assert urgent_runs() and not running(acme, "preempted")
    reasons = kubectl("get", "events", "-n", acme.namespace, "-o", "jsonpath={.items[*].reason}")
    assert "Preempted" in reasons.split()

    kubectl("delete", "pod", "urgent", "-n", acme.namespace)
    ended = acme.ended("preempted", 240)
    assert ended["status"]["phase"] == "Succeeded", why(acme, ended)
    lost, tried = (node["phase"] for node in nodes(ended, "train"))
    # Failed where Argo saw how the pod ended, Error where it was gone before.
    assert lost in ("Failed", "Error")
    assert tried == "Succeeded"
