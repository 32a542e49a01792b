"""Every image, as a pod under the `restricted` profile with a read-only root file system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import image_of, kubectl
from workflows.finetune import CHAIN

PROGRAM = (Path(__file__).parent / "image_smoke.py").read_text("utf-8")


@pytest.fixture(scope="module")
def namespace(mark: str) -> Iterator[str]:
    """A namespace that admits restricted pods only."""
    name = f"{mark}-images"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    kubectl("create", "-f", "-", text=json.dumps(made))
    yield name
    kubectl("delete", "namespace", name)


def pod(image: str) -> dict[str, Any]:
    """A pod that runs the smoke program in `image`, with the steps of the chain that use it."""
    of_steps = [name for name, needs in CHAIN.items() if needs.image == image]
    places = {"tmp": "/tmp", "work": "/kuznia/work", "out": "/kuznia/out"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": image},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": image_of(image),
                    "command": ["python", "-c", PROGRAM, image, *of_steps],
                    "securityContext": {
                        "readOnlyRootFilesystem": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": name, "mountPath": place} for name, place in places.items()
                    ],
                }
            ],
            "volumes": [{"name": name, "emptyDir": {}} for name in places],
        },
    }


@pytest.mark.parametrize("image", ["platform", "gateway", "mlflow", "train", "serve"])
def test_image_works_as_a_restricted_pod(image: str, namespace: str) -> None:
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(pod(image)))
    kubectl(
        *("-n", namespace, "wait", f"pod/{image}", "--timeout=300s"),
        "--for=jsonpath={.status.containerStatuses[0].state.terminated}",
    )
    said = kubectl("-n", namespace, "logs", image)
    status = json.loads(kubectl("-n", namespace, "get", "pod", image, "-o", "json"))["status"]
    assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0, said
    print(said)
