"""The chart helm/workspace: nothing by default, what each value does, what it refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuznia import __version__
from tests.e2e.cluster import kubectl, lint, need_program, run
from workflows.environments import ROOT
from workflows.finetune import CHAIN

CHART = str(ROOT / "helm" / "workspace")
SMALLEST = {"tenant": "acme", "store": "s3://bucket/acme"}


def render(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    need_program("helm")
    return subprocess.run(
        ["helm", "template", "acme", CHART, "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
    )


def objects(**values: Any) -> dict[str, dict[str, Any]]:
    """Rendered objects by `Kind/name`."""
    done = render(SMALLEST | values)
    assert done.returncode == 0, done.stderr
    found = (each for each in yaml.safe_load_all(done.stdout) if each)
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def installed(made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The WorkflowTemplate among rendered objects."""
    (found,) = (each for name, each in made.items() if name.startswith("WorkflowTemplate/"))
    return found


def template(made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What it says of a whole run."""
    spec: dict[str, Any] = installed(made)["spec"]
    return spec


def templates(made: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Container templates of the installed WorkflowTemplate by name."""
    found = template(made)["templates"]
    return {each["name"]: each for each in found if "container" in each}


def test_the_chart_passes_helms_strictest_look() -> None:
    run("helm", "lint", "--strict", CHART)


def test_without_values_nothing_is_rendered() -> None:
    done = render({})
    assert done.returncode == 0, done.stderr
    assert not [each for each in yaml.safe_load_all(done.stdout) if each]


def test_everything_lies_in_the_tenants_namespace() -> None:
    made = objects()
    assert (
        made.pop("Namespace/acme-training")["metadata"]["labels"][
            "pod-security.kubernetes.io/enforce"
        ]
        == "restricted"
    )
    assert {each["metadata"]["namespace"] for each in made.values()} == {"acme-training"}
    for each in made.values():
        assert not (each["kind"] == "Secret" and (each.get("data") or each.get("stringData")))


def test_the_api_server_takes_every_object(mark: str) -> None:
    values = {
        "tenant": mark,
        "store": "file:///storage/store",
        "storage": {"claim": True},
        "namespace": {"create": False},
        "quota": {"requests.nvidia.com/gpu": "2"},
        "catalogue": {"bases": {}},
        "roles": {"dataScientist": [{"kind": "Group", "name": "data"}], "compliance": []},
    }
    kubectl("create", "namespace", f"{mark}-training")
    try:
        text = render(values).stdout
        kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=text)
    finally:
        kubectl("delete", "namespace", f"{mark}-training", "--wait=false")


def test_values_reach_the_templates() -> None:
    pods = {
        "heavy": {"requests": {"cpu": "2"}, "limits": {"cpu": "3", "memory": "12Gi"}},
        "light": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    }
    made = objects(
        images={"train": "registry.example.org/train@sha256:0123"},
        pods=pods,
        retry={"pause": "3s", "longest": "9s"},
        storage={"claim": True},
        hardware={"slots": 3, "gpuClasses": ["l4", "a100-80gb"]},
        keepPods="5m",
    )
    assert template(made)["podGC"] == {
        "strategy": "OnWorkflowCompletion",
        "deleteDelayDuration": "5m",
    }
    steps = templates(made)
    assert set(steps) == {*CHAIN, "notify"}
    assert steps["train"]["container"]["image"] == "registry.example.org/train@sha256:0123"
    assert steps["plan"]["container"]["image"] == f"kuznia/platform:{__version__}"
    for name, size in (("train", "heavy"), ("register", "light")):
        resources = steps[name]["container"]["resources"]
        assert resources["requests"]["cpu"] == pods[size]["requests"]["cpu"]
        assert resources["limits"].items() >= pods[size]["limits"].items()
    for step in steps.values():
        assert "affinity" not in step["retryStrategy"]
        assert step["retryStrategy"]["backoff"] == {"duration": "3s", "factor": 2, "cap": "9s"}
        (storage,) = (each for each in step["volumes"] if each["name"] == "storage")
        assert storage["persistentVolumeClaim"] == {"claimName": "kuznia-storage"}
    settings = made["ConfigMap/kuznia"]["data"]
    assert settings["KUZNIA_GPU_CLASSES"] == "l4,a100-80gb"
    assert (settings["KUZNIA_POD_CPU"], settings["KUZNIA_POD_MEMORY"]) == ("3", "12Gi")
    assert made["ConfigMap/kuznia-locks"]["data"] == {"hardware": "3"}


def test_a_retry_may_go_to_the_same_node_unless_told_otherwise() -> None:
    for step in templates(objects()).values():
        assert "affinity" not in step["retryStrategy"]
    for step in templates(objects(retry={"otherNode": True})).values():
        assert step["retryStrategy"]["affinity"] == {"nodeAntiAffinity": {}}


def test_the_template_stays_when_the_next_version_has_another() -> None:
    (made,) = (each for name, each in objects().items() if name.startswith("WorkflowTemplate/"))
    assert made["metadata"]["annotations"] == {
        "helm.sh/resource-policy": "keep",
        "argocd.argoproj.io/sync-options": "Prune=false",
        "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    }


def test_argo_takes_the_template_and_no_misnamed_argument(tmp_path: Path) -> None:
    made = objects(storage={"claim": True}, retry={"otherNode": True})
    done = lint(tmp_path, yaml.safe_dump(installed(made)))
    assert done.returncode == 0, done.stdout + done.stderr
    (tasks,) = (each["dag"]["tasks"] for each in template(made)["templates"] if "dag" in each)
    (train,) = (task for task in tasks if task["name"] == "train")
    parameter = train["arguments"]["parameters"][0]
    name = parameter["name"]
    parameter["name"] = "misnamed"
    done = lint(tmp_path, yaml.safe_dump(installed(made)))
    assert done.returncode
    assert f"inputs.parameters.{name} was not supplied" in done.stdout + done.stderr


def test_the_steps_are_told_whose_workspace_it_is_and_what_it_holds() -> None:
    settings = objects()["ConfigMap/kuznia"]["data"]
    assert settings["KUZNIA_TENANT"] == "acme"
    assert "KUZNIA_QUOTA" not in settings
    hard = {"requests.nvidia.com/gpu": 2, "requests.cpu": "16"}
    pods = {"heavy": {"requests": {"cpu": "2"}, "limits": {"cpu": "3", "memory": "12Gi"}}}
    made = objects(quota=hard, pods=pods, webui={"enabled": True})
    told = json.loads(made["ConfigMap/kuznia"]["data"]["KUZNIA_QUOTA"])
    assert told["hard"] == hard == made["ResourceQuota/kuznia"]["spec"]["hard"]
    heavy = templates(made)["train"]["container"]["resources"]
    (unnamed,) = made["LimitRange/kuznia"]["spec"]["limits"]
    always = [
        made[f"Deployment/{name}"]["spec"]["template"]["spec"]["containers"][0]["resources"]
        for name in ("mlflow", "webui")
    ]
    argo = {"requests": unnamed["defaultRequest"], "limits": unnamed["default"]}
    assert (told["pod"], told["beside"]) == (heavy, [argo, *always])
    without = objects(quota=hard, mlflow={"enabled": False, "trackingUri": "http://mlflow"})
    assert json.loads(without["ConfigMap/kuznia"]["data"]["KUZNIA_QUOTA"])["beside"] == [argo]


def test_a_claim_that_is_there_is_used_and_none_is_made() -> None:
    made = objects(
        store="file:///storage/store",
        storage={"existingClaim": "nfs"},
        webui={"enabled": True},
        state="retired",
    )
    assert "PersistentVolumeClaim/kuznia-storage" not in made
    (archive,) = (name for name in made if name.startswith("Job/archive-"))
    pods = [made[name]["spec"]["template"]["spec"] for name in ("Deployment/webui", archive)]
    for pod in (*templates(made).values(), *pods):
        (storage,) = (each for each in pod["volumes"] if each["name"] == "storage")
        assert storage == {"name": "storage", "persistentVolumeClaim": {"claimName": "nfs"}}


def test_only_steps_that_use_the_hardware_can_be_given_a_gpu() -> None:
    patched = {name for name, step in templates(objects()).items() if "podSpecPatch" in step}
    assert patched == {name for name, needs in CHAIN.items() if needs.hardware}
    assert "nvidia.com/gpu" not in json.dumps(objects())


def test_a_queue_is_made_where_kueue_is() -> None:
    assert not [name for name in objects() if name.startswith("LocalQueue/")]
    hardware = {"queue": "gpus", "clusterQueue": "all"}
    for state, policy in (("active", "None"), ("hibernated", "HoldAndDrain")):
        made = objects(hardware=hardware, state=state)
        assert made["LocalQueue/gpus"]["spec"] == {"clusterQueue": "all", "stopPolicy": policy}
    assert made["ConfigMap/kuznia"]["data"]["KUZNIA_QUEUE"] == "gpus"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"store": ""},
            "workspace acme: store is not set; set store: s3://bucket/acme, gs://bucket/acme or "
            "file:///storage/store",
        ),
        (
            {"store": "file:///data"},
            "workspace acme: store: file:///data is not on the claim; set file:///storage/store",
        ),
        (
            {"store": "file:///storage/store"},
            "workspace acme: store: file:///storage/store needs a claim; set storage.claim: true",
        ),
        (
            {"mlflow": {"enabled": False}},
            "workspace acme: mlflow is not enabled; set mlflow.trackingUri to the one to use",
        ),
        (
            {"hardware": {"queue": "gpus"}},
            "workspace acme: hardware.queue has no ClusterQueue; set hardware.clusterQueue",
        ),
        ({"stores": "s3://bucket"}, "additional properties 'stores' not allowed"),
        ({"tenant": "Acme"}, "at '/tenant'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    done = render(SMALLEST | values)
    assert done.returncode
    assert message in done.stderr
