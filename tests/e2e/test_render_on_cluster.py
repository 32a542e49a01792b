"""What `kuznia render` prints, judged by the real API server and by Argo's own lint."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cli.main import main
from tests.e2e.cluster import kubectl
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
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def render(folder: Path, *words: str, more: str = "") -> str:
    (folder / "train.yaml").write_text(SPEC + more)
    where = [str(folder / word) if word == "train.yaml" else word for word in words]
    done = CliRunner().invoke(main, ["render", *where])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def lint(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "all.yaml").write_text(text)
    kinds = "--kinds=workflowtemplates,cronworkflows"
    return subprocess.run(
        ["argo", "lint", "--offline", "--strict", kinds, folder / "all.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )


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
    kubectl("-n", namespace, "create", "serviceaccount", "kuznia-model")
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
