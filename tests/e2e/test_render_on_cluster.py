"""What `kuznia render` prints, judged by the real API server and by Argo's own lint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli.main import main
from tests.e2e.cluster import Tenant, get, image_of, kubectl, lint, wait_for
from tests.e2e.conftest import catalogue_of, from_volume
from tests.e2e.test_runs_on_argo import SAVE_STEPS, put_rows, write_spec
from workflows.cron import schedule_problems

SPEC = """\
tenant: acme
model: support
base: smollm2-135m-instruct
hardware: l4
data: {train: "s3://bucket/train.jsonl", test: "s3://bucket/test.jsonl", format: alpaca}
card: {purpose: answers questions, owner: Anna, risk: minimal}
"""
SCHEDULES = [
    *("* * * * *", "*/15 0-6/2 1,15 jan-MAR 1-5", "0 3 ? * sun", "5/10 3 * * *", "0 3 * * 1"),
    *("60 * * * *", "0 24 * * *", "0 3 0 * *", "0 3 * 13 *", "0 3 * * 7", "0 3 * * fri-mon"),
    *("*/0 3 * * *", "0 3 * *", "-1 3 * * *", "0 3 * * mondays"),
]


@pytest.fixture(scope="module")
def namespace(mark: str) -> Iterator[str]:
    name = f"{mark}-render"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("-n", name, "create", "serviceaccount", "kuznia-model")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def render(folder: Path, *words: str, more: str = "", spec: str = SPEC) -> str:
    (folder / "train.yaml").write_text(spec + more)
    where = [str(folder / word) if word == "train.yaml" else word for word in words]
    done = CliRunner().invoke(main, ["render", *where])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_the_api_server_takes_the_job(namespace: str, tmp_path: Path) -> None:
    text = render(tmp_path, "job", "train.yaml", "-n", namespace, "--claim", "store")
    made = kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"), text=text
    )
    config_map, job = json.loads(made)["items"]
    assert config_map["data"]["train.yaml"].startswith("base: smollm2")
    assert job["spec"]["podReplacementPolicy"] == "Failed"


def test_the_api_server_takes_a_job_of_several_nodes(namespace: str, tmp_path: Path) -> None:
    text = render(tmp_path, "job", "train.yaml", "-n", namespace, more="gpus: 2\nnodes: 3\n")
    made = kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"), text=text
    )
    _, service, job = json.loads(made)["items"]
    assert service["spec"]["clusterIP"] == "None"
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 3)


def test_the_jobs_pod_fits_the_restricted_profile(namespace: str, tmp_path: Path) -> None:
    _, job = yaml.safe_load_all(render(tmp_path, "job", "train.yaml", "-n", namespace))
    about = {"name": "train", "namespace": namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": about} | {
        "spec": job["spec"]["template"]["spec"]
    }
    kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(pod))


def test_argo_takes_template_and_schedule(namespace: str, tmp_path: Path) -> None:
    template = render(tmp_path, "template", "-n", namespace, "--image=platform=noop:1")
    cron = render(tmp_path, "cron", "train.yaml", "--schedule=0 3 * * 1", "-n", namespace)
    done = lint(tmp_path, f"{template}---\n{cron}")
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (template, cron):
        kubectl(
            *("-n", namespace, "apply", "--dry-run=server", "--validate=strict", "-f", "-"),
            text=text,
        )


def test_schedules_are_judged_as_argo_judges_them(tmp_path: Path) -> None:
    template = render(tmp_path, "template", "-n", "here")
    cron = yaml.safe_load(
        render(tmp_path, "cron", "train.yaml", "--schedule=0 3 * * 1", "-n", "here")
    )
    for schedule in SCHEDULES:
        cron["spec"]["schedules"] = [schedule]
        done = lint(tmp_path, f"{template}---\n{yaml.safe_dump(cron)}")
        assert bool(done.returncode) == bool(schedule_problems(schedule)), (schedule, done.stdout)


def give_settings(space: str, **more: str) -> None:
    """What the how-to has a person make: nothing else tells a step how much it has."""
    mlflow = f"http://mlflow.{space}:5000"
    variables = {"KUZNIA_STORE": "file:///storage/store", "MLFLOW_TRACKING_URI": mlflow, **more}
    kubectl("-n", space, "delete", "configmap", "kuznia", "--ignore-not-found")
    literals = [f"--from-literal={name}={value}" for name, value in variables.items()]
    kubectl("-n", space, "create", "configmap", "kuznia", *literals)


def applied(folder: Path, space: str, spec: str, *words: str) -> str:
    """Apply the Job for a run spec, small and with the images that are there; its name."""
    images = {name: image_of(name) for name in ("platform", "serve", "train")}
    (folder / "images.yaml").write_text(yaml.safe_dump({"images": images}))
    words = ("job", "train.yaml", "-n", space, "--images", str(folder / "images.yaml"), *words)
    text = render(folder, *words, spec=spec)
    kubectl("apply", "-f", "-", text=text)
    name: str = list(yaml.safe_load_all(text))[-1]["metadata"]["name"]
    return name


def pods_of(space: str, job: str) -> list[dict[str, Any]]:
    """Pods of a Job that are there and stay."""
    listed = kubectl("get", "pods", "-n", space, "-l", f"job-name={job}", "-o", "json")
    pods: list[dict[str, Any]] = json.loads(listed)["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def why(space: str, job: str) -> str:
    """The reason of a failure, as the how-to reads it."""
    path = "jsonpath={..state.terminated.message}"
    return kubectl("get", "pods", "-n", space, "-l", f"job-name={job}", "-o", path)


def test_a_persons_mistake_ends_the_job_at_once(namespace: str, tmp_path: Path) -> None:
    give_settings(namespace)
    spec = SPEC.replace("s3://bucket", "file:///storage/store").replace("l4", "cpu")
    size = ("--cpu=500m", "--memory=1Gi", "--disk=1Gi")
    job = applied(tmp_path, namespace, spec, *size)
    kubectl("-n", namespace, "wait", f"job/{job}", "--for=condition=Failed", "--timeout=120s")
    status = get("job", job, namespace)["status"]
    assert status["failed"] == 1
    failed = next(each for each in status["conditions"] if each["type"] == "Failed")
    assert failed["reason"] == "PodFailurePolicy"
    assert "config: data.train: train.jsonl does not exist; correct it" in why(namespace, job)


def trained_to(space: str, job: str) -> tuple[str, list[int]]:
    """The newest pod of a Job, and the optimizer steps that its trainer has told of."""
    pods = sorted(pods_of(space, job), key=lambda pod: pod["metadata"]["creationTimestamp"])
    if not pods:
        return "", []
    name: str = pods[-1]["metadata"]["name"]
    log = kubectl("logs", "-n", space, name, "-c", "train", check=False)
    return name, [int(step) for step in re.findall(r'"done": ?(\d+)', log)]


def evict(space: str, pod: str) -> None:
    """As a drain of its node does."""
    about = {"name": pod, "namespace": space}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about}
    path = f"/api/v1/namespaces/{space}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))


def delete(space: str, pod: str) -> None:
    kubectl("-n", space, "delete", "pod", pod, "--wait=false")


def counted(space: str, job: str, pod: str) -> bool:
    """Whether a pod is away, and its Job knows."""
    if get("pod", pod, space):
        return False
    return not get("job", job, space)["status"].get("uncountedTerminatedPods")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_job_trains_and_goes_on_in_another_pod(
    volume: Tenant, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = volume.namespace
    give_settings(space, KUZNIA_CATALOGUE="/etc/kuznia/catalogue.yaml")
    (tmp_path / "catalogue.yaml").write_text(yaml.safe_dump(catalogue_of(tiny_base)))
    monkeypatch.setenv("KUZNIA_CATALOGUE", str(tmp_path / "catalogue.yaml"))
    spec = write_spec(volume, tmp_path, "codes", epochs=250)
    put_rows(volume, spec)
    size = ("--claim=kuznia-storage", "--cpu=1", "--memory=4Gi", "--disk=2Gi")
    job = applied(tmp_path, space, spec.read_text("utf-8"), *size)

    def further(before: str, last: int) -> tuple[str, list[int]] | None:
        """Another pod than before, that trains and has come further."""
        assert not get("job", job, space)["status"].get("conditions"), why(space, job)
        pod, steps = trained_to(space, job)
        far = bool(steps) and steps[-1] > last + SAVE_STEPS
        return (pod, steps) if pod != before and far else None

    pod, last = "", 0
    # Told to stop both times; only the second counts as an attempt.
    for interrupt, failed in ((evict, 0), (delete, 1)):
        pod, steps = wait_for(f"steps beyond {last}", partial(further, pod, last), 300)
        assert steps[0] >= last
        last = steps[-1]
        interrupt(space, pod)
        wait_for("the pod's end", partial(counted, space, job, pod), 180)
        assert get("job", job, space)["status"].get("failed", 0) == failed

    kubectl("-n", space, "wait", f"job/{job}", "--for=condition=Complete", "--timeout=300s")
    another, steps = trained_to(space, job)
    assert another != pod
    assert steps[0] >= last
    folder = f"runs/{volume.name}/{job}"
    planned = json.loads(from_volume(volume, f"{folder}/plan/result.json"))["outputs"]
    assert planned["hardware"]["threads"] == 1
    assert planned["estimate"]["memory_available_gib"] == 4
    finished = json.loads(from_volume(volume, f"{folder}/train/finished.json"))["outputs"]
    assert finished["resumed"] == 2
    weights = finished["weights"]
    manifest = from_volume(volume, f"{weights['key']}/manifest.json")
    assert hashlib.sha256(manifest).hexdigest() == weights["digest"]
